//! A guest looked at before it is moved: nothing of it, and nothing of its QEMU, is changed.

use super::SourceError;
use super::guest::{GuestError, SourceGuest};
use std::path::Path;
use std::time::Duration;

/// What its QEMU says of it.
#[derive(Debug)]
pub struct Survey {
    pub runs: bool,
    pub ram_bytes: u64,
    /// Of it, what is resident at most. None: that cannot be told.
    pub used_bytes: Option<u64>,
    /// None: this QEMU cannot tell (before 5.2).
    pub dirty_bytes_per_s: Option<u64>,
}

/// `Err`: for this reason it could not be moved.
pub async fn survey(socket: &Path, timeout: Duration, may_throttle: bool) -> Result<Survey, SourceError> {
    let guest = SourceGuest::connect(socket, timeout, may_throttle).await.map_err(SourceError::Qmp)?;
    guest.check_blockers().await.map_err(SourceError::Qmp)?;
    let dirty_bytes_per_s = match guest.runs {
        true => guest.dirty_bytes_per_s().await.map(|rate| rate as u64),
        false => Some(0),
    };
    Ok(Survey {
        runs: guest.runs,
        ram_bytes: guest.facts.ram_bytes,
        used_bytes: guest.used_bytes().await,
        dirty_bytes_per_s,
    })
}

impl SourceGuest {
    /// What in QEMU forbids a migration. (6.0 and later say so before.)
    async fn check_blockers(&self) -> Result<(), GuestError> {
        let reasons = self.qmp.query_migrate().await?.blocked_reasons;
        if reasons.is_empty() { Ok(()) } else { Err(GuestError::Blocked(reasons.join("; "))) }
    }

    /// The least of what its balloon leaves it and what its QEMU has in memory.
    async fn used_bytes(&self) -> Option<u64> {
        let balloon = self.qmp.balloon_bytes().await.ok().flatten();
        let resident = self.qmp.peer_pid().and_then(resident_bytes);
        [balloon, resident].into_iter().flatten().min().map(|bytes| bytes.min(self.facts.ram_bytes))
    }
}

/// Memory that a process has, by `/proc/PID/status`, if it is a QEMU. Who made a socket for it may be another (libvirt).
fn resident_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    resident(&status)
}

fn resident(status: &str) -> Option<u64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if !field("Name:")?.starts_with("qemu") {
        return None;
    }
    let kib = |name: &str| field(name).and_then(|text| text.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    // Memory backends are anonymous, shared, or huge pages, which are in neither.
    let kib = kib("RssAnon:")? + kib("RssShmem:").unwrap_or(0) + kib("HugetlbPages:").unwrap_or(0);
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tqemu-system-x86\nVmRSS:\t  900 kB\nRssAnon:\t     500 kB\nRssFile:\t     300 kB\nRssShmem:\t     100 kB\nHugetlbPages:\t    2048 kB\n";

    #[test]
    fn what_backs_a_guest_is_counted_and_libraries_are_not() {
        assert_eq!(resident(STATUS), Some(2648 << 10));
        assert_eq!(resident(&STATUS.replace("HugetlbPages", "Else")), Some(600 << 10));
    }

    #[test]
    fn another_program_than_qemu_says_nothing_of_the_guest() {
        assert_eq!(resident(&STATUS.replace("qemu-system-x86", "libvirtd")), None);
        assert_eq!(resident(""), None);
    }
}
