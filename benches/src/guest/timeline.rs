//! The consoles of a guest that moved, as one story.
//!
//! A guest counts its heartbeats; wherever it runs, the count goes on. So one guest that moved shows every number
//! once, and its consoles speak one after the other. Two running copies show numbers twice, or speak at the same time.
//!
//! A guest that was stopped in the middle of a line ends that line on its next console: the halves are joined.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::console::{self, Console, Gap, Heartbeat, Log};

/// Two consoles may seem to overlap by this much: the readers rest between reads.
const STAMP_SLACK: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub struct Timeline {
    /// In order of arrival; the first field is the console's place in [`Timeline::merge`]'s argument.
    beats: Vec<(usize, Heartbeat)>,
}

/// Two consoles that both spoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    pub consoles: (usize, usize),
    /// Heartbeat numbers that both printed.
    pub repeated: Vec<u64>,
    /// How long both were heard.
    pub length: Duration,
}

impl Timeline {
    /// Consoles in the order in which the guest lived on them.
    pub fn merge(consoles: &[&Console]) -> Timeline {
        let logs: Vec<Log> = consoles.iter().map(|console| console.snapshot()).collect();
        Timeline::of(&logs)
    }

    fn of(logs: &[Log]) -> Timeline {
        let mut beats: Vec<(usize, Heartbeat)> = Vec::new();
        for (place, log) in logs.iter().enumerate() {
            beats.extend(log.heartbeats.iter().map(|&beat| (place, beat)));
            let next = logs.get(place + 1).and_then(|next| next.first_line.as_ref());
            if let (false, Some((at, rest))) = (log.unfinished.is_empty(), next) {
                let joined = format!("{}{rest}", String::from_utf8_lossy(&log.unfinished));
                beats.extend(Heartbeat::parse(&joined, *at).map(|beat| (place + 1, beat)));
            }
        }
        beats.sort_by_key(|(_, beat)| beat.at);
        Timeline { beats }
    }

    /// From the first heartbeat to the last.
    pub fn span(&self) -> Range<Instant> {
        match (self.beats.first(), self.beats.last()) {
            (Some((_, first)), Some((_, last))) => first.at..last.at,
            _ => {
                let now = Instant::now();
                now..now
            }
        }
    }

    pub fn heartbeats(&self) -> impl Iterator<Item = &Heartbeat> {
        self.beats.iter().map(|(_, beat)| beat)
    }

    /// The longest silence on all consoles together: the stop as the world sees it.
    pub fn longest_gap(&self, window: Range<Instant>) -> Gap {
        console::longest_gap(&self.plain(), window)
    }

    pub fn writes_per_s(&self, window: Range<Instant>) -> f64 {
        console::writes_per_s(&self.plain(), window)
    }

    pub fn bad(&self) -> u64 {
        self.beats.iter().map(|(_, beat)| beat.bad).max().unwrap_or(0)
    }

    /// Numbers between the first and the last that no console showed. Some may be gone at an end that was cut off hard.
    pub fn lost(&self) -> Vec<u64> {
        let numbers: BTreeMap<u64, ()> = self.beats.iter().map(|(_, beat)| (beat.number, ())).collect();
        match (numbers.first_key_value(), numbers.last_key_value()) {
            (Some((&first, ())), Some((&last, ()))) => {
                (first..=last).filter(|number| !numbers.contains_key(number)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Did two copies run? The first pair of consoles that shows it.
    pub fn overlap(&self) -> Option<Overlap> {
        let places = self.beats.iter().map(|(place, _)| place + 1).max().unwrap_or(0);
        (0..places).flat_map(|one| (one + 1..places).map(move |other| (one, other))).find_map(
            |(one, other)| {
                let of = |wanted: usize| {
                    self.beats.iter().filter(move |(place, _)| *place == wanted).map(|(_, beat)| beat)
                };
                let mut repeated: Vec<u64> = of(one)
                    .filter(|beat| of(other).any(|there| there.number == beat.number))
                    .map(|beat| beat.number)
                    .collect();
                repeated.dedup();
                let start = of(one).next()?.at.max(of(other).next()?.at);
                let end = of(one).next_back()?.at.min(of(other).next_back()?.at);
                let length = end.saturating_duration_since(start);
                (!repeated.is_empty() || length > STAMP_SLACK).then_some(Overlap {
                    consoles: (one, other),
                    repeated,
                    length,
                })
            },
        )
    }

    fn plain(&self) -> Vec<Heartbeat> {
        self.heartbeats().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(start: Instant, beats: impl IntoIterator<Item = (u64, u64)>) -> Log {
        let heartbeats = beats
            .into_iter()
            .map(|(ms, number)| Heartbeat {
                at: start + Duration::from_millis(ms),
                number,
                guest_ms: 0,
                writes: number,
                sweeps: 0,
                bad: 0,
            })
            .collect();
        Log { heartbeats, ..Log::default() }
    }

    #[test]
    fn a_moved_guest_has_one_gap_and_no_lost_beat() {
        let start = Instant::now();
        let timeline = Timeline::of(&[
            log(start, [(0, 1), (10, 2), (20, 3)]),
            log(start, [(95, 4), (105, 5), (115, 6)]),
        ]);
        let gap = timeline.longest_gap(timeline.span());
        assert_eq!((gap.length.as_millis(), gap.after, gap.before), (75, Some(3), Some(4)));
        assert_eq!(timeline.lost(), [0; 0]);
        assert_eq!(timeline.overlap(), None);
    }

    #[test]
    fn a_beat_that_nobody_saw_is_lost() {
        let start = Instant::now();
        let timeline = Timeline::of(&[log(start, [(0, 1), (10, 2)]), log(start, [(95, 4)])]);
        assert_eq!(timeline.lost(), [3]);
    }

    #[test]
    fn two_running_guests_are_found_by_numbers_and_by_time() {
        let start = Instant::now();
        let by_number =
            Timeline::of(&[log(start, [(0, 1), (10, 2), (20, 3)]), log(start, [(40, 3), (50, 4)])]);
        let overlap = by_number.overlap().unwrap();
        assert_eq!((overlap.repeated, overlap.length), (vec![3], Duration::ZERO));

        // A copy that starts elsewhere in the count still speaks at the same time.
        let by_time = Timeline::of(&[log(start, [(0, 1), (50, 6)]), log(start, [(20, 10), (60, 14)])]);
        assert_eq!(by_time.overlap().unwrap().length.as_millis(), 30);
    }

    #[test]
    fn a_line_that_moved_in_the_middle_is_one_heartbeat() {
        let start = Instant::now();
        let mut source = log(start, [(0, 1)]);
        source.unfinished = b"hb=2 t=20 wri".to_vec();
        let mut destination = log(start, [(60, 3)]);
        destination.first_line = Some((start + Duration::from_millis(50), "tes=9 sweeps=0 bad=0".into()));
        let timeline = Timeline::of(&[source, destination]);
        assert_eq!(timeline.lost(), [0; 0]);
        assert_eq!(timeline.overlap(), None);
        assert_eq!(timeline.longest_gap(timeline.span()).length.as_millis(), 50);
    }
}
