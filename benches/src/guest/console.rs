//! The guest's serial console: every heartbeat with the moment its first byte arrived.
//!
//! A thread reads the socket until QEMU closes it. It rests [`REST`] after each read, so that a line costs it a
//! wake-up and not one per byte; the stamp is taken before the rest. [`Instant`] is CLOCK_MONOTONIC: the
//! consoles of one process share one time.

use std::io::Read;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const REST: Duration = Duration::from_millis(1);
/// A line longer than this is cut: the guest's are below 200 bytes.
const MAX_LINE_BYTES: usize = 4096;
/// Lines that are no heartbeats; later ones are dropped.
const MAX_OTHER_LINES: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub at: Instant,
    pub number: u64,
    /// The guest's own time, which stands still while it is stopped.
    pub guest_ms: u64,
    /// Pages written since the start.
    pub writes: u64,
    /// Times the background check has been through all of memory.
    pub sweeps: u64,
    /// Pages that did not hold what they should.
    pub bad: u64,
}

/// What the guest made of its memory, as its first line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub at: Instant,
    pub pages: u64,
    pub zero: u64,
    pub dup: u64,
    pub text: u64,
    pub random: u64,
    /// Pages in the working set.
    pub set: u64,
    pub fill_ms: u64,
}

/// The longest silence in a window; its ends are heartbeats or the window's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub length: Duration,
    pub from: Instant,
    /// The last heartbeat before it, if there was one in the window.
    pub after: Option<u64>,
    /// The heartbeat that ended it, if one did.
    pub before: Option<u64>,
}

/// What has been read so far.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub heartbeats: Vec<Heartbeat>,
    pub ready: Option<Ready>,
    /// Everything else: reports of bad pages, or another guest's boot messages.
    pub lines: Vec<(Instant, String)>,
    /// The first line, whatever it is: a guest that moved in the middle of a line ends it here.
    pub first_line: Option<(Instant, String)>,
    /// A last line without its end.
    pub unfinished: Vec<u8>,
    pub closed: bool,
    pub(super) line_at: Option<Instant>,
}

/// A handle on the log; clones share it.
#[derive(Clone, Debug)]
pub struct Console {
    shared: Arc<(Mutex<Log>, Condvar)>,
}

impl Console {
    pub fn read_from(mut stream: UnixStream) -> std::io::Result<Console> {
        let console = Console { shared: Arc::default() };
        let reader = console.clone();
        thread::Builder::new().name("console".into()).spawn(move || {
            // QEMU writes byte by byte, and a unix socket holds 278 such writes: five heartbeats. A reader that comes later
            // than that on a busy machine makes the guest's serial port drop what it should have sent.
            crate::link::be_punctual(true);
            let mut buffer = [0; 16384];
            loop {
                let read = stream.read(&mut buffer);
                let at = Instant::now();
                let bytes = match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => &buffer[..count],
                };
                reader.log().take_in(bytes, at);
                reader.shared.1.notify_all();
                thread::sleep(REST);
            }
            reader.log().closed = true;
            reader.shared.1.notify_all();
        })?;
        Ok(console)
    }

    /// A copy of everything so far.
    pub fn snapshot(&self) -> Log {
        self.log().clone()
    }

    /// Looks at the log without copying it.
    pub fn look<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.log())
    }

    /// Waits until `look` finds something; `None` after `timeout`, or when QEMU is gone and nothing more can come.
    pub fn wait<T>(&self, timeout: Duration, mut look: impl FnMut(&Log) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut log = self.log();
        loop {
            if let Some(found) = look(&log) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || log.closed {
                return None;
            }
            log = self.shared.1.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn last_heartbeat(&self) -> Option<Heartbeat> {
        self.log().heartbeats.last().copied()
    }

    /// Bad pages so far.
    pub fn bad(&self) -> u64 {
        self.last_heartbeat().map_or(0, |beat| beat.bad)
    }

    /// The guest's own descriptions of the first bad pages.
    pub fn reports(&self) -> Vec<String> {
        let log = self.log();
        log.lines.iter().map(|(_, line)| line).filter(|line| line.starts_with("bad page=")).cloned().collect()
    }

    pub fn longest_gap(&self, window: Range<Instant>) -> Gap {
        longest_gap(&self.log().heartbeats, window)
    }

    /// Pages written per second of real time, by the first and last heartbeat in the window.
    pub fn writes_per_s(&self, window: Range<Instant>) -> f64 {
        writes_per_s(&self.log().heartbeats, window)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn take_in(&mut self, bytes: &[u8], at: Instant) {
        for &byte in bytes {
            let began = *self.line_at.get_or_insert(at);
            match byte {
                b'\n' => {
                    let line = String::from_utf8_lossy(&self.unfinished).trim_end().to_owned();
                    self.unfinished.clear();
                    self.line_at = None;
                    self.take_line(line, began);
                }
                _ if self.unfinished.len() < MAX_LINE_BYTES => self.unfinished.push(byte),
                _ => {}
            }
        }
    }

    fn take_line(&mut self, line: String, at: Instant) {
        if self.first_line.is_none() {
            self.first_line = Some((at, line.clone()));
        }
        if let Some(heartbeat) = Heartbeat::parse(&line, at) {
            self.heartbeats.push(heartbeat);
        } else if let Some(ready) = Ready::parse(&line, at) {
            self.ready = Some(ready);
        } else if self.lines.len() < MAX_OTHER_LINES {
            self.lines.push((at, line));
        }
    }
}

impl Heartbeat {
    pub(super) fn parse(line: &str, at: Instant) -> Option<Heartbeat> {
        let [number, guest_ms, writes, sweeps, bad] = fields(line, ["hb", "t", "writes", "sweeps", "bad"])?;
        line.starts_with("hb=").then_some(Heartbeat { at, number, guest_ms, writes, sweeps, bad })
    }
}

impl Ready {
    fn parse(line: &str, at: Instant) -> Option<Ready> {
        let rest = line.strip_prefix("ready ")?;
        let [pages, zero, dup, text, random, set, fill_ms] =
            fields(rest, ["pages", "zero", "dup", "text", "random", "set", "fill_ms"])?;
        Some(Ready { at, pages, zero, dup, text, random, set, fill_ms })
    }
}

/// The values of exactly these keys; `None` if one is missing.
fn fields<const N: usize>(line: &str, keys: [&str; N]) -> Option<[u64; N]> {
    let mut values = [None; N];
    for (key, value) in line.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
        if let Some(at) = keys.iter().position(|wanted| *wanted == key) {
            values[at] = value.parse().ok();
        }
    }
    let all: Option<Vec<u64>> = values.into_iter().collect();
    all?.try_into().ok()
}

pub(super) fn longest_gap(beats: &[Heartbeat], window: Range<Instant>) -> Gap {
    let mut longest = Gap { length: Duration::ZERO, from: window.start, after: None, before: None };
    let (mut from, mut after) = (window.start, None);
    let mut consider = |from: Instant, to: Instant, after, before| {
        let length = to.saturating_duration_since(from);
        if length > longest.length {
            longest = Gap { length, from, after, before };
        }
    };
    for beat in beats.iter().filter(|beat| window.contains(&beat.at)) {
        consider(from, beat.at, after, Some(beat.number));
        (from, after) = (beat.at, Some(beat.number));
    }
    consider(from, window.end, after, None);
    longest
}

pub(super) fn writes_per_s(beats: &[Heartbeat], window: Range<Instant>) -> f64 {
    let mut inside = beats.iter().filter(|beat| window.contains(&beat.at));
    match (inside.next(), inside.next_back()) {
        (Some(first), Some(last)) => {
            let seconds = last.at.duration_since(first.at).as_secs_f64();
            (last.writes - first.writes) as f64 / seconds
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(chunks: &[&str]) -> Log {
        let mut log = Log::default();
        let start = Instant::now();
        for (nth, chunk) in chunks.iter().enumerate() {
            log.take_in(chunk.as_bytes(), start + Duration::from_millis(nth as u64));
        }
        log
    }

    #[test]
    fn a_line_in_pieces_is_stamped_with_its_first_byte() {
        let log =
            log(&["h", "b=7 t=70 wri", "tes=3 sweeps=0 bad=0\nhb", "=8 t=80 writes=4 sweeps=0 bad=1\n"]);
        let [seven, eight] = log.heartbeats[..] else { panic!("{log:?}") };
        assert_eq!((seven.number, seven.guest_ms, seven.writes, seven.bad), (7, 70, 3, 0));
        assert_eq!(eight.at - seven.at, Duration::from_millis(2));
        assert_eq!(eight.bad, 1);
    }

    #[test]
    fn what_is_no_heartbeat_is_kept_as_text() {
        let log =
            log(&["Linux version 6\nhb=1 t=10 writes=x sweeps=0 bad=0\nbad page=3 kind=zero\nhb=1 t=1"]);
        assert_eq!(log.heartbeats, []);
        assert_eq!(log.lines.len(), 3);
        assert_eq!(log.unfinished, b"hb=1 t=1");
    }

    #[test]
    fn silence_at_either_end_of_the_window_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let beats: Vec<_> = [20, 30, 40, 90]
            .iter()
            .zip(1..)
            .map(|(&ms, number)| Heartbeat { at: at(ms), number, guest_ms: 0, writes: 0, sweeps: 0, bad: 0 })
            .collect();
        let gap = longest_gap(&beats, at(0)..at(100));
        assert_eq!((gap.length.as_millis(), gap.after, gap.before), (50, Some(3), Some(4)));
        let gap = longest_gap(&beats, at(0)..at(200));
        assert_eq!((gap.length.as_millis(), gap.after, gap.before), (110, Some(4), None));
        let gap = longest_gap(&beats, at(0)..at(35));
        assert_eq!((gap.length.as_millis(), gap.after, gap.before), (20, None, Some(1)));
        assert_eq!(longest_gap(&[], at(0)..at(35)).length.as_millis(), 35);
    }
}
