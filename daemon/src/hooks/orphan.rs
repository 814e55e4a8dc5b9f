//! Hooks that a daemon before this one called, and that live on: found by what they have in their environment.

use super::{GUEST, PROGRAM};
use crate::process::ProcessId;
use std::path::Path;

/// The first process of such a hook. What it has left running on purpose, in a group or a session of its own, does not count.
pub async fn running(program: &Path, guest: &str) -> Option<i32> {
    let wanted = [format!("{PROGRAM}={}", program.display()), format!("{GUEST}={guest}")];
    tokio::task::spawn_blocking(move || {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        pids.find(|pid| leads_a_group(*pid) && has(*pid, &wanted) && ProcessId::of(*pid).is_some())
    })
    .await
    .ok()
    .flatten()
}

fn leads_a_group(pid: i32) -> bool {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::unistd::getpgid(Some(pid)) == Ok(pid)
        && nix::unistd::getsid(Some(pid)).is_ok_and(|session| session != pid)
}

fn has(pid: i32, wanted: &[String]) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    wanted.iter().all(|wanted| environment.split(|byte| *byte == 0).any(|line| line == wanted.as_bytes()))
}
