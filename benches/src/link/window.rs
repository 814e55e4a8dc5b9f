//! The most bytes that crossed a direction in any 10 ms: whether what was sent was smooth. Time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// Short beside what a queue of any link holds, long beside what one super-packet takes.
pub const WINDOW: Duration = Duration::from_millis(10);

/// The packets of the last 10 ms, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Window {
    packets: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Window {
    /// Bytes of the window that ends with these.
    pub fn add(&mut self, at_ns: u64, bytes: u64) -> u64 {
        self.packets.push_back((at_ns, bytes));
        self.bytes += bytes;
        let since = at_ns.saturating_sub(WINDOW.as_nanos() as u64);
        while let Some((_, old)) = self.packets.front().filter(|(at, _)| *at <= since && since > 0) {
            self.bytes -= old;
            self.packets.pop_front();
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_counts_until_ten_milliseconds_have_passed() {
        let mut window = Window::default();
        let packets = [(1, 100), (5, 10), (9, 1), (11, 5), (15, 0), (40, 7)];
        let seen = packets.map(|(ms, bytes)| window.add(ms * 1_000_000, bytes));
        assert_eq!(seen, [100, 110, 111, 16, 6, 7]);
    }
}
