//! What is asked of hikyaku: beside its peers, where any is there, and alone. Ratios are of medians; smaller is better but for the guest's writes.
//!
//! The peer that counts in a cell is the one with the least total among [`JUDGED`]; gap and writes are compared with the same one,
//! so that nobody is asked to beat one peer's total and another's gap at once.

use std::fmt;
use std::time::Duration;

use super::foretold::Told;
use super::peer::OURS;
use super::record::{CellRecord, PeerRecord};
use crate::verdict::{Bound, Verdict};

/// Of these the best counts, as far as they were measured.
pub const JUDGED: [&str; 3] = ["qemu", "qemu-xbzrle", "qemu-multifd-zstd"];
const TOTAL: f64 = 0.75;
const TOTAL_MEAN: f64 = 0.6;
const GAP: f64 = 0.5;
const WRITES: f64 = 0.9;
/// Score, where the wire is the limit and where two processors are; of guests that one need not wait for.
const SCORES: [(&str, f64); 4] = [("cloudnet", 1.15), ("jgn", 1.5), ("us", 1.5), ("eu", 1.5)];
const SCORED: [&str; 3] = ["idle", "oltp@5", "build@5"];
const SCORED_MIB: u32 = 512;
/// Where no peer converges.
const TOTAL_OF_LIMIT: f64 = 0.5;
const GAP_ALONE_S: f64 = 1.0;

/// Ours beside the best peer of a cell.
#[derive(Debug, Clone)]
pub struct Beside {
    peer: String,
    converges: bool,
    /// A peer that does not converge counts with the limit.
    total: f64,
    /// `None`: one of the two has no gap.
    gap: Option<f64>,
    writes: f64,
}

impl Beside {
    /// `None`: ours or every peer that counts was not measured.
    pub fn best(ours: &PeerRecord, record: &CellRecord) -> Option<Beside> {
        let best = record.best(&JUDGED).filter(|_| ours.measured() > 0)?;
        let both_converge = ours.converges() && best.converges();
        Some(Beside {
            peer: best.name.clone(),
            converges: best.converges(),
            total: ours.totals().median() / best.totals().median(),
            gap: both_converge.then(|| ours.gaps().median() / best.gaps().median()),
            writes: ours.writes().median() / best.writes().median(),
        })
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = self.gap.map_or("-".to_owned(), |gap| format!("{gap:.2}"));
        write!(
            f,
            "{}, the best peer by total: total {:.2}, gap {gap}, writes/s {:.2}",
            self.peer, self.total, self.writes
        )
    }
}

/// A verdict for each thing that is asked: of every cell, and of all together.
pub fn judge(records: &[CellRecord], limit: Duration) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    if records.iter().any(|record| JUDGED.iter().any(|name| record.peer(name).is_some())) {
        verdicts.extend(beside_peers(records, limit));
    }
    verdicts.extend(records.iter().filter_map(score));
    let mut told = Told::default();
    adaptive(records).flat_map(PeerRecord::figures).for_each(|figures| told.count(figures));
    verdicts.extend(told.verdict());
    verdicts.extend(ours_is_whole(records));
    verdicts
}

fn beside_peers(records: &[CellRecord], limit: Duration) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut totals = Vec::new();
    for record in records {
        match record.peer(OURS).and_then(|ours| Some((ours, Beside::best(ours, record)?))) {
            Some((ours, beside)) => {
                totals.push(beside.total);
                verdicts.extend(in_cell(&record.name, ours, &beside, limit));
            }
            None => {
                totals.push(f64::NAN);
                let why = "there is no total of hikyaku, or of none of the peers that count";
                let what = format!("{}: total of {OURS} by that of the best peer", record.name);
                verdicts.push(Verdict::without(what, why, Bound::AtMost(TOTAL), ""));
            }
        }
    }
    let what = format!("geometric mean over {} cells of total by that of the best peer", records.len());
    verdicts.push(Verdict::new(what, geometric_mean(&totals), Bound::AtMost(TOTAL_MEAN), ""));
    verdicts
}

/// `None`: nothing is asked there.
fn score(record: &CellRecord) -> Option<Verdict> {
    let (_, most) = SCORES.into_iter().find(|(link, _)| *link == record.link)?;
    let asked = SCORED.contains(&record.load.as_str()) && record.mem_mib == SCORED_MIB;
    let scores = record.peer(OURS).filter(|_| asked)?.scores();
    Some(Verdict::new(format!("{}: score", record.name), scores.median(), Bound::AtMost(most), ""))
}

/// Who foretells: ours, with the policy that it has unless another is asked for.
fn adaptive(records: &[CellRecord]) -> impl Iterator<Item = &PeerRecord> {
    records.iter().filter_map(|record| record.peer(OURS))
}

fn in_cell(name: &str, ours: &PeerRecord, beside: &Beside, limit: Duration) -> Vec<Verdict> {
    let peer = &beside.peer;
    let (total, gap) = if beside.converges {
        let what = format!("{name}: total by that of {peer}, the best peer");
        let total = Verdict::new(what, beside.total, Bound::AtMost(TOTAL), "");
        let what = format!("{name}: gap by that of {peer}, the best peer by total");
        (total, or_without(what, beside.gap, Bound::AtMost(GAP), ""))
    } else {
        let what = format!("{name}: total by the limit of {limit:?}, no peer converged");
        let total = ours.totals().median() / limit.as_secs_f64();
        let total = Verdict::new(what, total, Bound::AtMost(TOTAL_OF_LIMIT), "");
        let gap = ours.converges().then(|| ours.gaps().median());
        let what = format!("{name}: gap, no peer converged");
        (total, or_without(what, gap, Bound::AtMost(GAP_ALONE_S), " s"))
    };
    let what = format!("{name}: the guest's writes per second by those with {peer}");
    vec![total, gap, Verdict::new(what, beside.writes, Bound::AtLeast(WRITES), "")]
}

fn or_without(what: String, figure: Option<f64>, bound: Bound, unit: &'static str) -> Verdict {
    match figure {
        Some(figure) => Verdict::new(what, figure, bound, unit),
        None => Verdict::without(what, "hikyaku did not converge", bound, unit),
    }
}

/// Whatever the figures: no page may be wrong, and there may be one guest only.
fn ours_is_whole(records: &[CellRecord]) -> [Verdict; 2] {
    let ours = || records.iter().flat_map(|record| &record.peers).filter(|peer| peer.name.starts_with(OURS));
    let bad: u64 = ours().flat_map(PeerRecord::figures).map(|figures| figures.bad_pages).sum();
    let broken = ours().map(PeerRecord::failed).sum::<usize>()
        + ours().flat_map(PeerRecord::figures).filter(|figures| figures.two_ran).count();
    let none = Bound::AtMost(0.0);
    [
        Verdict::new("bad pages in all runs of hikyaku", bad as f64, none, ""),
        Verdict::new("runs of hikyaku that failed or left two guests", broken as f64, none, ""),
    ]
}

/// Not a number if there are none, or one of them is not.
fn geometric_mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::super::record::Figures;
    use super::super::record::tests::{LIMIT_S, cell, figures, peer};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(LIMIT_S as u64);

    fn record(ours: Option<(f64, f64)>, theirs: Option<(f64, f64)>, writes: (f64, f64)) -> CellRecord {
        cell([
            peer(OURS, [Ok(figures(ours, writes.0))]),
            peer("qemu", [Ok(figures(theirs, writes.1))]),
            // Whoever does not count may be better.
            peer("qemu-multifd", [Ok(figures(Some((0.1, 0.001)), 9e9))]),
        ])
    }

    fn lines(records: &[CellRecord]) -> Vec<String> {
        judge(records, LIMIT).iter().map(Verdict::to_string).collect()
    }

    #[test]
    fn ours_is_judged_beside_the_best_peer_in_total_gap_and_writes() {
        let good = lines(&[record(Some((5.0, 0.1)), Some((10.0, 0.4)), (4600.0, 5000.0))]);
        assert_eq!(
            good,
            [
                "PASS  us seq@20: total by that of qemu, the best peer: 0.50, at most 0.75 asked",
                "PASS  us seq@20: gap by that of qemu, the best peer by total: 0.25, at most 0.50 asked",
                "PASS  us seq@20: the guest's writes per second by those with qemu: 0.92, at least 0.90 asked",
                "PASS  geometric mean over 1 cells of total by that of the best peer: 0.50, at most 0.60 asked",
                "PASS  stops that took what was foretold, within 30 % or 20 ms, of 1: 1.00, at least 0.90 asked",
                "PASS  bad pages in all runs of hikyaku: 0.00, at most 0.00 asked",
                "PASS  runs of hikyaku that failed or left two guests: 0.00, at most 0.00 asked",
            ]
        );
        let bad = lines(&[record(Some((8.0, 0.3)), Some((10.0, 0.4)), (4000.0, 5000.0))]);
        assert_eq!(bad.iter().filter(|line| line.starts_with("FAIL")).count(), 4, "{bad:#?}");
    }

    #[test]
    fn alone_ours_is_judged_by_its_score_where_one_is_asked_for() {
        let of = |link: &str, load: &str, mem_mib: u32, score: f64| {
            let ours = peer(OURS, [Ok(figures(Some((score, 0.1)), 4600.0))]);
            let (link, load) = (link.to_owned(), load.to_owned());
            CellRecord { name: format!("{link} {load}"), link, load, mem_mib, ..cell([ours]) }
        };
        let records = [
            of("cloudnet", "build@5", 512, 1.2),
            of("eu", "oltp@5", 512, 1.2),
            of("eu", "rand@20", 512, 9.0),
            of("us", "idle", 64, 9.0),
        ];
        let lines = lines(&records);
        assert_eq!(
            lines[..2],
            [
                "FAIL  cloudnet build@5: score: 1.20, at most 1.15 asked",
                "PASS  eu oltp@5: score: 1.20, at most 1.50 asked"
            ]
        );
        assert_eq!(lines.len(), 2 + 3, "{lines:#?}");
    }

    #[test]
    fn where_no_peer_converges_the_limit_is_the_mark() {
        let alone = lines(&[record(Some((25.0, 0.9)), None, (5000.0, 5000.0))]);
        assert_eq!(
            alone[0],
            "PASS  us seq@20: total by the limit of 60s, no peer converged: 0.42, at most 0.50 asked"
        );
        assert_eq!(alone[1], "PASS  us seq@20: gap, no peer converged: 0.90 s, at most 1.00 s asked");
        assert!(
            lines(&[record(Some((31.0, 1.1)), None, (5000.0, 5000.0))])[..2]
                .iter()
                .all(|line| line.starts_with("FAIL"))
        );
    }

    #[test]
    fn ours_that_does_not_converge_has_failed_and_says_so() {
        for theirs in [Some((10.0, 0.4)), None] {
            let lost = lines(&[record(None, theirs, (5000.0, 5000.0))]);
            assert!(lost[0].starts_with("FAIL"), "{lost:#?}");
            assert!(lost[1].starts_with("FAIL") && lost[1].contains("hikyaku did not converge"), "{lost:#?}");
        }
    }

    #[test]
    fn the_mean_is_geometric_and_a_cell_without_ratio_spoils_it() {
        assert!((geometric_mean(&[0.25, 1.0]) - 0.5).abs() < 1e-12);
        assert!(geometric_mean(&[]).is_nan() && geometric_mean(&[0.5, f64::NAN]).is_nan());
        let broken =
            cell([peer(OURS, [Err("it ended")]), peer("qemu", [Ok(figures(Some((10.0, 0.4)), 1.0))])]);
        let verdicts = judge(&[broken], LIMIT);
        assert!(verdicts.iter().filter(|verdict| !verdict.passed()).count() == 3, "{verdicts:?}");
    }

    #[test]
    fn a_bad_page_or_a_second_guest_fails_whatever_the_figures() {
        let with = |change: fn(&mut Figures)| {
            let mut ours = figures(Some((5.0, 0.1)), 5000.0);
            change(&mut ours);
            let other = figures(Some((10.0, 0.4)), 5000.0);
            judge(&[cell([peer(OURS, [Ok(ours)]), peer("qemu", [Ok(other)])])], LIMIT)
        };
        assert!(with(|_| ()).iter().all(Verdict::passed));
        for verdicts in [with(|ours| ours.bad_pages = 1), with(|ours| ours.two_ran = true)] {
            assert_eq!(verdicts.iter().filter(|verdict| !verdict.passed()).count(), 1);
        }
    }
}
