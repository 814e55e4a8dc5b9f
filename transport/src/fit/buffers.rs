//! How long the lanes' send buffers are to be.
//!
//! What a lane has under way must fit in its send buffer until it is acknowledged: so together they hold twice what the path does, the
//! second half for its queue and for lanes that carry more than others. The kernel would let them grow by itself, but not past
//! `tcp_wmem`; they are set past that where the process may, and only ever grow while the connection lives.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What a path is taken to carry before more is found, bytes per second: 1 Gbit/s, and something for a queue.
pub const RATE: f64 = 1.2 * 125e6;
/// How much of a send buffer, as the kernel counts it, is data.
pub const DATA: f64 = 0.6;
/// Of bandwidth × round trip.
const HOLD: f64 = 2.0;
/// The kernel makes twice of what it is told.
const DOUBLED: f64 = 2.0;
/// They grow in steps, or every look would find some more to do.
const STEP: u32 = 512 << 10;

/// What each of so many lanes is to be given (`SO_SNDBUFFORCE`) where so many bytes per second were found.
pub fn wanted(found: f64, rtt: Duration, lanes: usize, bounds: &RangeInclusive<u32>) -> u32 {
    let data = HOLD * found.max(RATE) * rtt.as_secs_f64() / lanes.max(1) as f64;
    let bytes = (data / (DATA * DOUBLED)).min(f64::from(*bounds.end())) as u32;
    bytes.next_multiple_of(STEP).max(*bounds.start()).min(*bounds.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOUNDS: RangeInclusive<u32> = 1 << 20..=8 << 20;

    #[test]
    fn they_follow_the_path() {
        let kib = |rate: f64, rtt, lanes| wanted(rate * 125e6, rtt, lanes, &BOUNDS) >> 10;
        assert_eq!(kib(1.0, MS / 5, 8), 1024, "a short path needs no more than the least");
        assert_eq!(kib(1.0, 40 * MS, 8), 1536);
        assert_eq!(kib(1.0, 120 * MS, 8), 4096);
        assert_eq!(kib(1.0, 200 * MS, 8), 6144);
        assert_eq!(kib(0.01, 200 * MS, 8), 6144, "little was found perhaps because they are short");
        assert_eq!(kib(10.0, 40 * MS, 8), 8192, "the most: more than the peer's window lets be under way");
        assert_eq!(kib(10.0, 40 * MS, 32), 2560, "more lanes need less each");
        assert_eq!(kib(1e9, 1000 * MS, 1), 8192);
    }
}
