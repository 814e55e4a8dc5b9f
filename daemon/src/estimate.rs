//! How a move would go, by what is known of guest and path before it begins.
//!
//! ```text
//!  first pass   used x ratio / goodput        (or as fast as it is encoded, or QEMU reads it: the slowest counts)
//!  the rest     each pass is rho of the one before, rho = dirtied x ratio / goodput
//!  copying      first pass / (1 - rho)        rho >= 1: it never ends
//!  stop         the engine's own prediction, for what is dirtied while QEMU is looked at once
//! ```
//!
//! It is rough: what the pages compress to is assumed, and so is that the guest goes on as in the second in which it was
//! watched, each page it dirties being another. A guest that rewrites few pages does better. Pure.

use crate::units::{Bytes, Span};
use hikyaku_engine::precopy::{AdaptiveConfig, Prediction, Residual, Terms};
use hikyaku_engine::{LinkStats, PAGE_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Encoded bytes per raw byte of pages that are not zero. Text-like pages come to about a third, random ones to all.
pub const ASSUMED_RATIO: f64 = 0.5;
/// One stream of QEMU's, zero pages looked through.
const QEMU_BYTES_PER_S: f64 = 3e9;
/// Round trips beside the copying: the session is opened (2), the path's queue runs empty (3), and the verdict comes back (1/2).
const ROUND_TRIPS: f64 = 5.5;
/// A guest that dirties more than this of what crosses takes so long to converge that it is not to be counted on.
const RHO_MOST: f64 = 0.95;

/// What is known before.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub ram_bytes: u64,
    /// Of it, what the guest has touched, as far as that can be told.
    pub used_bytes: u64,
    /// None: its QEMU cannot tell.
    pub dirty_bytes_per_s: Option<u64>,
    pub ratio: f64,
    /// What the path carries of payload.
    pub goodput_bytes_per_s: u64,
    pub min_rtt: Duration,
    pub terms: Terms,
    /// Between two looks at what is dirty.
    pub sync_interval: Duration,
    pub downtime: Duration,
    /// None: ten minutes after all was read once.
    pub deadline: Option<Duration>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// From the request until the guest is released here. None: it would not end.
    pub total_ms: Option<u64>,
    /// How long the guest would stand. Of one that does not converge: at least, if it were stopped all the same.
    pub stop_ms: u64,
    /// Payload that would cross.
    pub bytes: u64,
    pub verdict: Foretold,
    /// What of the guest's memory the path carries in a second.
    pub carried_bytes_per_s: u64,
    pub dirty_bytes_per_s: Option<u64>,
    pub downtime_ms: u64,
    pub deadline_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foretold {
    /// Within the stop that is aimed at, and the deadline.
    Converges,
    /// It is moved, but stands longer than is aimed at.
    StandsLonger,
    /// It dirties more than the path carries.
    DirtiesTooFast,
    /// Its stop would be far longer than is aimed at, however long it is copied.
    StopTooLong,
    /// Not by the deadline.
    TooSlow,
}

/// Ten minutes.
const DEADLINE: Duration = Duration::from_secs(600);

pub fn estimate(known: &Known) -> Estimate {
    let ratio = known.ratio.clamp(0.001, 1.0);
    let goodput = known.goodput_bytes_per_s.max(1) as f64;
    let carried = (goodput / ratio).min(known.terms.encode_bytes_per_s as f64);
    let dirty = known.dirty_bytes_per_s.unwrap_or(0) as f64;
    let rho = dirty / carried;

    let used = known.used_bytes.min(known.ram_bytes) as f64;
    let first_s = (used / carried).max(known.ram_bytes as f64 / QEMU_BYTES_PER_S);
    let converges = rho < RHO_MOST;
    let copying_s = first_s / if converges { 1.0 - rho } else { 1.0 };
    // Of a guest that does not converge, what it dirties in a second is left at least.
    let left_s = if converges { known.sync_interval.as_secs_f64() } else { 1.0 };
    let raw = (dirty * left_s).min(used) as u64;
    let stop_ns = stop_ns(known, raw, ratio);

    let total_s = copying_s + stop_ns as f64 / 1e9 + ROUND_TRIPS * known.min_rtt.as_secs_f64();
    let deadline_s =
        known.deadline.map_or(DEADLINE.as_secs_f64() + first_s, |deadline| deadline.as_secs_f64());
    let downtime_ns = known.downtime.as_nanos() as u64;
    let longest_ns = downtime_ns.saturating_mul(AdaptiveConfig::default().settle_factor.into());
    let verdict = match () {
        () if !converges => Foretold::DirtiesTooFast,
        () if stop_ns > longest_ns => Foretold::StopTooLong,
        () if total_s > deadline_s => Foretold::TooSlow,
        () if stop_ns > downtime_ns => Foretold::StandsLonger,
        () => Foretold::Converges,
    };
    let copied = used * ratio / if converges { 1.0 - rho } else { 1.0 };
    Estimate {
        total_ms: converges.then_some((total_s * 1e3) as u64),
        stop_ms: stop_ns / 1_000_000,
        bytes: (copied + raw as f64 * ratio) as u64,
        verdict,
        carried_bytes_per_s: carried as u64,
        dirty_bytes_per_s: known.dirty_bytes_per_s,
        downtime_ms: known.downtime.as_millis() as u64,
        deadline_ms: (deadline_s * 1e3) as u64,
    }
}

fn stop_ns(known: &Known, raw_bytes: u64, ratio: f64) -> u64 {
    let rtt_ns = known.min_rtt.as_nanos() as u64;
    // The queue is let go before a stop.
    let link = LinkStats {
        rtt_ns,
        min_rtt_ns: rtt_ns,
        goodput_bytes_per_s: known.goodput_bytes_per_s.max(1),
        ..LinkStats::default()
    };
    let residual = Residual {
        pages: raw_bytes / PAGE_BYTES as u64,
        raw_bytes,
        encoded_bytes: (raw_bytes as f64 * ratio) as u64,
    };
    Prediction::of(&known.terms, &link, &residual).total_ns
}

impl Estimate {
    /// The guest would be moved.
    pub fn moves(&self) -> bool {
        matches!(self.verdict, Foretold::Converges | Foretold::StandsLonger)
    }

    /// For people: how it would go, and what to do if it would not.
    pub fn words(&self) -> String {
        let span = |ms: u64| Span(Duration::from_millis(ms));
        let mb = |bytes_per_s: u64| format!("{:.0} MB/s", bytes_per_s as f64 / 1e6);
        let total = self.total_ms.map_or_else(String::new, |ms| format!(" in about {}", span(ms)));
        let (stop, aimed) = (span(self.stop_ms), span(self.downtime_ms));
        let crosses = format!("{} would cross", Bytes(self.bytes));
        match self.verdict {
            Foretold::Converges => format!("would move{total}, standing for about {stop}; {crosses}"),
            Foretold::StandsLonger => {
                format!(
                    "would move{total}, standing for about {stop}, longer than the {aimed} aimed at; {crosses}"
                )
            }
            Foretold::DirtiesTooFast => format!(
                "would not converge: it dirties {}, the path carries {} of its memory. Move it when it does less, slow it down \
                 (--on-deadline throttle), or stop it all the same (--on-deadline force), for {stop} at least",
                mb(self.dirty_bytes_per_s.unwrap_or(0)),
                mb(self.carried_bytes_per_s),
            ),
            Foretold::StopTooLong => format!(
                "would not converge: it would stand for about {stop}, {aimed} are aimed at. Allow a longer stop (--downtime)"
            ),
            Foretold::TooSlow => format!(
                "would not be moved by its deadline: it takes{}, {} are allowed. Give it more time (--deadline); {crosses}",
                total.trim_start_matches(" in"),
                span(self.deadline_ms),
            ),
        }
    }
}

/// The last ones that were made, to stand beside what comes of them.
#[derive(Debug, Default)]
pub struct Estimates {
    made: VecDeque<(String, String, Instant, Estimate)>,
}

/// They are small, and asked for by hand.
const ESTIMATES_KEPT: usize = 64;
/// An older one was of another guest, as it were.
const ESTIMATES_HOLD: Duration = Duration::from_secs(3600);

impl Estimates {
    pub fn remember(&mut self, guest: &str, peer: &str, estimate: &Estimate) {
        self.forget(guest, peer);
        self.made.push_back((guest.to_owned(), peer.to_owned(), Instant::now(), estimate.clone()));
        if self.made.len() > ESTIMATES_KEPT {
            self.made.pop_front();
        }
    }

    /// The last one of this guest and this peer.
    pub fn last(&self, guest: &str, peer: &str) -> Option<Estimate> {
        let (.., made, estimate) = self.made.iter().find(|(g, p, ..)| g == guest && p == peer)?;
        (made.elapsed() < ESTIMATES_HOLD).then(|| estimate.clone())
    }

    /// The guest was moved there: the next one is another move.
    pub fn forget(&mut self, guest: &str, peer: &str) {
        self.made.retain(|(g, p, ..)| g != guest || p != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 512 MiB of which three quarters are used, over 1 Gbit/s and 120 ms.
    fn known() -> Known {
        Known {
            ram_bytes: 512 * MIB,
            used_bytes: 384 * MIB,
            dirty_bytes_per_s: Some(20_000_000),
            ratio: 0.5,
            goodput_bytes_per_s: 125_000_000,
            min_rtt: Duration::from_millis(120),
            terms: Terms::default(),
            sync_interval: Duration::from_millis(50),
            downtime: Duration::from_millis(300),
            deadline: None,
        }
    }

    #[test]
    fn an_idle_guest_takes_what_its_memory_takes_and_half_a_round_trip() {
        let estimate = estimate(&Known { dirty_bytes_per_s: Some(0), ..known() });
        assert_eq!((estimate.verdict, estimate.bytes), (Foretold::Converges, 192 * MIB));
        // 201 MB at 125 MB/s, 5.5 round trips, and the stop.
        assert!((2_300..2_500).contains(&estimate.total_ms.unwrap()), "{estimate:?}");
        // Half a round trip and the terms of the stop: 15 + 20 + 10 ms.
        assert_eq!(estimate.stop_ms, 105);
        assert_eq!(
            estimate.words(),
            "would move in about 2.4 s, standing for about 105 ms; 192.0 MiB would cross"
        );
    }

    #[test]
    fn what_is_dirtied_goes_again_and_again() {
        let [less, more] = [20_000_000, 100_000_000]
            .map(|dirty| estimate(&Known { dirty_bytes_per_s: Some(dirty), ..known() }));
        assert!(less.bytes < more.bytes && less.total_ms < more.total_ms && less.stop_ms < more.stop_ms);
        // rho = 100 / 250.
        assert!((more.bytes as f64 / (192 * MIB) as f64 - 1.0 / 0.6).abs() < 0.05, "{more:?}");
    }

    #[test]
    fn a_guest_that_dirties_more_than_the_path_carries_does_not_converge() {
        let estimate = estimate(&Known { dirty_bytes_per_s: Some(400_000_000), ..known() });
        assert_eq!((estimate.verdict, estimate.total_ms), (Foretold::DirtiesTooFast, None));
        // What it dirties in a second, at 125 MB/s.
        assert!((1_600..1_800).contains(&estimate.stop_ms), "{estimate:?}");
        let words = estimate.words();
        assert!(
            words.contains("it dirties 400 MB/s, the path carries 250 MB/s") && !estimate.moves(),
            "{words}"
        );
    }

    #[test]
    fn a_stop_beyond_what_is_aimed_at_is_told_from_one_far_beyond() {
        let aimed = |ms| estimate(&Known { downtime: Duration::from_millis(ms), ..known() });
        assert_eq!(
            [200, 80, 50].map(|ms| aimed(ms).verdict),
            [Foretold::Converges, Foretold::StandsLonger, Foretold::StopTooLong]
        );
        assert!(aimed(80).moves() && !aimed(50).moves());
        assert!(aimed(50).words().contains("--downtime"));
    }

    #[test]
    fn a_deadline_that_is_too_short_is_said_and_so_is_what_it_takes() {
        let estimate = estimate(&Known { deadline: Some(Duration::from_secs(1)), ..known() });
        assert_eq!(estimate.verdict, Foretold::TooSlow);
        let words = estimate.words();
        assert!(words.contains("it takes about 2.5 s, 1.0 s are allowed"), "{words}");
    }

    #[test]
    fn an_estimate_is_of_one_guest_one_peer_and_one_move() {
        let (mut estimates, made) = (Estimates::default(), estimate(&known()));
        estimates.remember("web", "osaka", &made);
        assert_eq!(estimates.last("web", "kyoto"), None);
        assert_eq!(estimates.last("web", "osaka"), Some(made.clone()));
        assert_eq!(estimates.last("web", "osaka"), Some(made.clone()), "a move that fails is begun again");
        estimates.forget("web", "osaka");
        assert_eq!(estimates.last("web", "osaka"), None);
        for n in 0..1000 {
            estimates.remember(&format!("{n}"), "osaka", &made);
        }
        assert_eq!(estimates.made.len(), ESTIMATES_KEPT);
    }

    #[test]
    fn nothing_that_can_be_known_makes_it_panic() {
        for (ram_bytes, goodput_bytes_per_s, ratio) in
            [(0, 0, 0.0), (u64::MAX, 0, 1.0), (u64::MAX, u64::MAX, 9.0)]
        {
            let known = Known { ram_bytes, used_bytes: u64::MAX, goodput_bytes_per_s, ratio, ..known() };
            for dirty_bytes_per_s in [None, Some(0), Some(u64::MAX)] {
                let _ = estimate(&Known { dirty_bytes_per_s, ..known }).words();
            }
        }
    }
}
