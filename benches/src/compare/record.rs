//! What a run came to, and all runs of a peer in a cell.

use serde::Serialize;
use serde_json::Value;

use super::matrix::Cell;
use crate::verdict::Repeats;

/// What one run measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// The guest runs at the destination, and came within the limit.
    pub arrived: bool,
    /// From the request until it ran there and the source had let go; the limit, if that was not so by then.
    pub total_s: f64,
    /// The longest silence of its console.
    pub gap_s: Option<f64>,
    /// Both directions, headers included.
    pub wire_bytes: u64,
    /// The longest queue of the link on the guest's way, while it was moved.
    pub queue_s: f64,
    /// The guest's own, from the request until the move was over.
    pub writes_per_s: f64,
    /// After the guest has checked all of its memory, wherever it is then.
    pub bad_pages: u64,
    /// Heartbeats that no console showed.
    pub lost_beats: u64,
    pub two_ran: bool,
    /// What the arrived guest's memory needs at least: see [`crate::floor`].
    pub content_bytes: Option<u64>,
    pub floor_s: Option<f64>,
    pub score: Option<f64>,
    /// Of our daemons, source and destination.
    pub daemon_cpu_s: Option<[f64; 2]>,
    pub congestion: String,
    /// The mover's own account, if it gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said: Option<Value>,
}

/// A line of the JSON file.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub link: String,
    pub load: String,
    pub mem_mib: u32,
    pub peer: String,
    pub repeat: u32,
    /// The machine's, when the run began.
    pub load_average: String,
    #[serde(flatten)]
    pub figures: Option<Figures>,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Run {
    pub fn new(
        cell: &Cell,
        mem_mib: u32,
        peer: &str,
        repeat: u32,
        load_average: String,
        figures: anyhow::Result<Figures>,
    ) -> Run {
        let (figures, error) = match figures {
            Ok(figures) => (Some(figures), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Run {
            link: cell.link().to_owned(),
            load: cell.load_name().to_owned(),
            mem_mib,
            peer: peer.to_owned(),
            repeat,
            load_average,
            figures,
            error,
        }
    }
}

/// Everything that was measured in one cell.
#[derive(Debug, Clone)]
pub struct CellRecord {
    pub name: String,
    pub link: String,
    pub load: String,
    pub mem_mib: u32,
    /// In the order of the table.
    pub peers: Vec<PeerRecord>,
}

impl CellRecord {
    pub fn new<'a>(cell: &Cell, mem_mib: u32, peers: impl Iterator<Item = &'a str>) -> CellRecord {
        CellRecord {
            name: cell.to_string(),
            link: cell.link().to_owned(),
            load: cell.load_name().to_owned(),
            mem_mib,
            peers: peers.map(PeerRecord::new).collect(),
        }
    }

    pub fn take(&mut self, run: Run) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == run.peer) {
            peer.runs.push(run);
        }
    }

    pub fn peer(&self, name: &str) -> Option<&PeerRecord> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// Of these names, who has the least total; among equals, which they are when nobody converges, whose guest wrote most, since
    /// that is the hardest to keep up with. `None`: nobody was measured.
    pub fn best(&self, names: &[&str]) -> Option<&PeerRecord> {
        let measured =
            self.peers.iter().filter(|peer| names.contains(&peer.name.as_str()) && peer.measured() > 0);
        measured.min_by(|one, other| {
            let totals = one.totals().median().total_cmp(&other.totals().median());
            totals.then(other.writes().median().total_cmp(&one.writes().median()))
        })
    }
}

/// All runs of a peer in a cell.
#[derive(Debug, Clone)]
pub struct PeerRecord {
    pub name: String,
    pub runs: Vec<Run>,
}

impl PeerRecord {
    fn new(name: &str) -> PeerRecord {
        PeerRecord { name: name.to_owned(), runs: Vec::new() }
    }

    pub fn figures(&self) -> impl Iterator<Item = &Figures> {
        self.runs.iter().filter_map(|run| run.figures.as_ref())
    }

    pub fn measured(&self) -> usize {
        self.figures().count()
    }

    pub fn failed(&self) -> usize {
        self.runs.len() - self.measured()
    }

    pub fn arrived(&self) -> usize {
        self.figures().filter(|figures| figures.arrived).count()
    }

    /// More often than not, which is when the median of its totals is less than the limit.
    pub fn converges(&self) -> bool {
        2 * self.arrived() > self.measured()
    }

    pub fn totals(&self) -> Repeats {
        self.figures().map(|figures| figures.total_s).collect()
    }

    /// Of those that arrived.
    pub fn gaps(&self) -> Repeats {
        self.figures().filter_map(|figures| figures.gap_s).collect()
    }

    pub fn wire_bytes(&self) -> Repeats {
        self.figures().map(|figures| figures.wire_bytes as f64).collect()
    }

    pub fn writes(&self) -> Repeats {
        self.figures().map(|figures| figures.writes_per_s).collect()
    }

    pub fn scores(&self) -> Repeats {
        self.figures().filter_map(|figures| figures.score).collect()
    }

    /// Of both daemons together.
    pub fn daemon_cpu(&self) -> Repeats {
        self.figures().filter_map(|figures| figures.daemon_cpu_s).map(|[from, to]| from + to).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const LIMIT_S: f64 = 60.0;

    /// A guest that came after so many seconds with this gap, or (without) did not.
    pub fn figures(arrival: Option<(f64, f64)>, writes_per_s: f64) -> Figures {
        Figures {
            arrived: arrival.is_some(),
            total_s: arrival.map_or(LIMIT_S, |(total_s, _)| total_s),
            gap_s: arrival.map(|(_, gap_s)| gap_s),
            wire_bytes: 100_000_000,
            queue_s: 0.01,
            writes_per_s,
            bad_pages: 0,
            lost_beats: 0,
            two_ran: false,
            content_bytes: arrival.map(|_| 50_000_000),
            floor_s: arrival.map(|_| 1.0),
            score: arrival.map(|(total_s, _)| total_s),
            daemon_cpu_s: None,
            congestion: "cubic".into(),
            said: arrival.map(|(_, gap_s)| {
                serde_json::json!({ "data": { "report": { "predicted": { "total_ms": gap_s * 1e3 } } } })
            }),
        }
    }

    pub fn peer(name: &str, all: impl IntoIterator<Item = Result<Figures, &'static str>>) -> PeerRecord {
        let run = |(repeat, figures): (u32, Result<Figures, &str>)| Run {
            link: "us".into(),
            load: "seq@20".into(),
            mem_mib: 512,
            peer: name.into(),
            repeat,
            load_average: "0.5".into(),
            error: figures.as_ref().err().map(|why| (*why).to_owned()),
            figures: figures.ok(),
        };
        PeerRecord { name: name.into(), runs: (1..).zip(all).map(run).collect() }
    }

    pub fn cell(peers: impl IntoIterator<Item = PeerRecord>) -> CellRecord {
        CellRecord {
            name: "us seq@20".into(),
            link: "us".into(),
            load: "seq@20".into(),
            mem_mib: 512,
            peers: peers.into_iter().collect(),
        }
    }

    #[test]
    fn what_does_not_converge_counts_with_the_limit_and_has_no_gap() {
        let late = figures(None, 5000.0);
        let often =
            peer("qemu", [Ok(late.clone()), Ok(late.clone()), Ok(figures(Some((20.0, 0.5)), 5000.0))]);
        assert!(!often.converges());
        assert_eq!(often.totals().median(), LIMIT_S);
        assert_eq!((often.gaps().least(), often.gaps().most()), (0.5, 0.5));
        let once = [(20.0, 0.5), (30.0, 0.3)].map(|arrival| Ok(figures(Some(arrival), 5000.0)));
        let rarely = peer("qemu", once.into_iter().chain([Ok(late)]));
        assert!(rarely.converges());
        assert_eq!(rarely.totals().median(), 30.0);
    }

    #[test]
    fn runs_that_failed_are_counted_and_not_averaged() {
        let record = peer("qemu", [Err("no zstd in it"), Ok(figures(Some((20.0, 0.5)), 5000.0))]);
        assert_eq!((record.measured(), record.failed(), record.arrived()), (1, 1, 1));
        assert_eq!(record.totals().median(), 20.0);
    }

    #[test]
    fn the_best_peer_has_the_least_total_and_among_those_that_never_come_the_busiest_guest() {
        let fast = peer("qemu", [Ok(figures(Some((10.0, 0.5)), 5000.0))]);
        let slow = peer("qemu-xbzrle", [Ok(figures(Some((12.0, 0.1)), 5000.0))]);
        let broken = peer("qemu-multifd-zstd", [Err("no zstd in it")]);
        let all = ["qemu", "qemu-xbzrle", "qemu-multifd-zstd"];
        let best = |record: &CellRecord, names: &[&str]| record.best(names).map(|peer| peer.name.clone());
        let record = cell([slow, fast, broken]);
        assert_eq!(best(&record, &all).as_deref(), Some("qemu"));
        assert_eq!(best(&record, &["qemu-xbzrle"]).as_deref(), Some("qemu-xbzrle"));
        assert_eq!(best(&record, &["qemu-multifd-zstd"]), None);
        let never = [("qemu", 4000.0), ("qemu-xbzrle", 5000.0)];
        let record = cell(never.map(|(name, writes)| peer(name, [Ok(figures(None, writes))])));
        assert_eq!(best(&record, &all).as_deref(), Some("qemu-xbzrle"));
    }

    #[test]
    fn a_run_is_one_flat_object_and_a_failed_one_says_why() {
        let record = peer("qemu", [Ok(figures(Some((20.0, 0.5)), 5000.0)), Err("no zstd in it")]);
        let [good, bad] = [0, 1].map(|run| serde_json::to_value(&record.runs[run]).unwrap());
        assert_eq!(
            (&good["peer"], &good["total_s"], &good["arrived"]),
            (&"qemu".into(), &20.0.into(), &true.into())
        );
        assert!(good.get("error").is_none());
        assert_eq!((&bad["error"], bad.get("total_s")), (&"no zstd in it".into(), None));
    }
}
