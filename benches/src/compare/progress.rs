//! Signs of life: whatever takes longer than two seconds says how far it is.

use std::io::{IsTerminal, Write, stdout};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::link::Network;

/// One line that is written anew, on a terminal.
const REDRAW: Duration = Duration::from_secs(1);
/// One line more, elsewhere.
const NEXT_LINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { terminal: stdout().is_terminal() }
    }

    /// Does `work`, and says meanwhile what it is and what has crossed the link since it began.
    pub fn during<T>(&self, what: &str, network: &Network, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let (over, ended) = channel::<()>();
            scope.spawn(move || {
                let (begun, crossed) = (Instant::now(), network.wire_bytes());
                let interval = if self.terminal { REDRAW } else { NEXT_LINE };
                let mut drawn = false;
                while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    let mb = (network.wire_bytes() - crossed) as f64 / 1e6;
                    self.say(&format!("     {what}: {} s, {mb:.1} MB", begun.elapsed().as_secs()));
                    drawn = true;
                }
                if drawn && self.terminal {
                    self.say("");
                }
            });
            // Dropped also when `work` panics: the scope waits for the thread.
            let _over = over;
            work()
        })
    }

    fn say(&self, line: &str) {
        let mut out = stdout().lock();
        // Whoever looked may have gone: the measurement goes on.
        let _ = match self.terminal {
            true => write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush()),
            false => writeln!(out, "{line}"),
        };
    }
}
