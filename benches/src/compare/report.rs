//! What people read: a line for each run, a table for each cell.

use std::fmt::Write as _;
use std::time::Duration;

use super::criteria::{Beside, JUDGED};
use super::peer::OURS;
use super::record::{CellRecord, Figures, PeerRecord, Run};

/// One run, as it ends.
pub fn line(run: &Run) -> String {
    let head = format!("{} {:<9} {:<18} {}:", run.link, run.load, run.peer, run.repeat);
    let result = match (&run.figures, &run.error) {
        (Some(figures), _) => described(figures),
        (None, why) => format!("FAILED: {}", why.as_deref().unwrap_or("nobody knows why")),
    };
    format!("{head} {result}; load {}", run.load_average)
}

fn described(figures: &Figures) -> String {
    let mut text = match figures.gap_s {
        Some(gap_s) => format!("total {:>6.2} s, gap {:>5.0} ms", figures.total_s, gap_s * 1e3),
        None => format!("{:<29}", format!("not within {:.0} s", figures.total_s)),
    };
    // Writing to a String cannot fail.
    let _ =
        write!(text, ", {:>7.1} MB, {:>6.0} writes/s", figures.wire_bytes as f64 / 1e6, figures.writes_per_s);
    if let Some(score) = figures.score {
        let _ = write!(text, ", score {score:.2}");
    }
    let _ = write!(text, ", bad {}", figures.bad_pages);
    if figures.lost_beats > 0 {
        let _ = write!(text, ", {} heartbeats lost", figures.lost_beats);
    }
    if figures.two_ran {
        text += ", TWO GUESTS RAN";
    }
    if let Some([from, to]) = figures.daemon_cpu_s {
        let share = (from + to) / (figures.total_s * cpus() as f64) * 100.0;
        let _ = write!(text, ", daemons {from:.1} + {to:.1} s CPU ({share:.0} % of all there is)");
    }
    let _ = write!(text, ", {}", figures.congestion);
    text
}

pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get())
}

/// One cell: a row for each peer, and ours beside the best of them.
pub fn table(record: &CellRecord, limit: Duration) -> String {
    let mut text = format!(
        "{}, {} MiB: median (least-most)\n  {:<18} {:>22} {:>18} {:>24} {:>22} {:>18} {:>10}  arrived\n",
        record.name, record.mem_mib, "peer", "total, s", "gap, ms", "wire, MB", "writes/s", "score", "CPU, s"
    );
    for peer in &record.peers {
        text += &row(peer);
    }
    for ours in record.peers.iter().filter(|peer| peer.name.starts_with(OURS)) {
        if let Some(beside) = Beside::best(ours, record) {
            let name = &ours.name;
            let _ = writeln!(text, "  {name} by {beside}");
        }
    }
    if record.best(&JUDGED).is_some_and(|best| !best.converges()) {
        let _ = writeln!(text, "  no peer converged: each counts with the limit of {limit:?}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn row(peer: &PeerRecord) -> String {
    format!(
        "  {:<18} {:>22} {:>18} {:>24} {:>22} {:>18} {:>10}  {}/{}{}\n",
        peer.name,
        peer.totals().show(1.0, 2),
        peer.gaps().show(1e3, 0),
        peer.wire_bytes().show(1e-6, 1),
        peer.writes().show(1.0, 0),
        peer.scores().show(1.0, 2),
        peer.daemon_cpu().show(1.0, 1),
        peer.arrived(),
        peer.measured(),
        if peer.failed() > 0 { format!(", {} failed", peer.failed()) } else { String::new() },
    )
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{cell, figures, peer};
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_peer_and_sets_ours_beside_the_best() {
        let record = cell([
            peer("hikyaku", [Ok(figures(Some((5.0, 0.1)), 4000.0))]),
            peer("qemu", [Ok(figures(None, 5000.0))]),
            peer("qemu-xbzrle", [Ok(figures(Some((10.0, 0.4)), 5000.0)), Err("it ended")]),
        ]);
        let text = table(&record, Duration::from_secs(60));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[3].contains("60.00") && lines[3].ends_with("0/1"), "{text}");
        assert!(lines[4].ends_with("1/1, 1 failed"), "{text}");
        assert_eq!(
            lines[5],
            "  hikyaku by qemu-xbzrle, the best peer by total: total 0.50, gap 0.25, writes/s 0.80"
        );
    }

    #[test]
    fn what_failed_or_came_too_late_says_so() {
        let runs = peer("qemu", [Ok(figures(None, 5000.0)), Err("no route")]).runs;
        assert!(line(&runs[0]).contains("not within 60 s"), "{}", line(&runs[0]));
        assert!(line(&runs[1]).contains("FAILED: no route"), "{}", line(&runs[1]));
        let odd = Figures { two_ran: true, lost_beats: 2, ..figures(Some((5.0, 0.1)), 1.0) };
        assert!(described(&odd).contains("2 heartbeats lost, TWO GUESTS RAN"));
    }
}
