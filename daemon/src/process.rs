//! Which QEMU it was.

use hikyaku_qemu::qmp::Client;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A process, told from whatever gets its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pid: i32,
    /// In ticks since the host booted.
    started: u64,
}

impl ProcessId {
    pub fn of(pid: i32) -> Option<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in brackets, and may hold any of them. Behind it begins the third field, the state; the 22nd is wanted.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        // Its parent may take its time to bury it. Of one that is dying the first thread may be the first to be dead.
        let is_dead = matches!(state, "Z" | "X") && threads(pid) <= 1;
        (!is_dead).then_some(ProcessId { pid, started })
    }

    /// Where it says what goes wrong.
    pub fn standard_error(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/2", self.pid))
    }

    /// For a file.
    pub fn name(&self) -> String {
        format!("{}-{}", self.pid, self.started)
    }

    /// It has not ended.
    pub fn is_there(&self) -> bool {
        ProcessId::of(self.pid) == Some(*self)
    }

    /// Who listens at the other end. None: that cannot be seen, as from another namespace.
    pub fn behind(qmp: &Client) -> Option<ProcessId> {
        ProcessId::of(qmp.peer_pid()?)
    }

    /// Whether another process than this one is behind `qmp`, for sure.
    pub fn is_not_behind(self, qmp: &Client) -> bool {
        ProcessId::behind(qmp).is_some_and(|now| now != self)
    }
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        assert_eq!(ProcessId::of(std::process::id() as i32), Some(own));
        let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
        let other = ProcessId::of(child.id() as i32).unwrap();
        assert!(other != own && other.started >= own.started);
        assert!(own.is_there() && other.is_there());
        let _ = child.kill();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while other.is_there() {
            assert!(std::time::Instant::now() < deadline, "it is dead, and not buried");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = child.wait();
        assert_eq!(ProcessId::of(child.id() as i32), None);
        assert!(!other.is_there());
    }
}
