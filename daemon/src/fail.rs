//! Points at which a test makes a daemon fail. They are there with the feature `fail-points` only: without it a daemon that is asked for one does
//! not start, and [`point`] is nothing.
//!
//! `HIKYAKU_FAIL=POINT[@N]:WHAT[,…]`; at its first pass through POINT, or the Nth, the daemon does
//!
//! | WHAT | |
//! |---|---|
//! | `kill` | it dies, as by SIGKILL |
//! | `stop` | it stands still, as by SIGSTOP, until SIGCONT |
//! | `500ms` | the thread sleeps so long |
//! | `enospc`, `eio` | what is being written is not ([`io`]) |

/// By where they lie on the way of a guest. Behind the phase comes what has just been done.
pub const POINTS: [&str; 34] = [
    "source.answered",
    "source.begun",
    "source.looking",
    "source.marking",
    "source.marked",
    "source.stopping",
    "source.stopped",
    "source.drained",
    "source.ceding",
    "source.ceded",
    "source.let-go",
    "source.verdict",
    "source.forgotten",
    "source.returning",
    "source.continued",
    "destination.accepted",
    "destination.go",
    "destination.complete",
    "destination.loaded",
    "destination.started",
    "destination.running",
    "destination.arrived",
    "destination.refusing",
    "destination.refused",
    "destination.asked",
    "libvirt.keeping",
    "libvirt.asked",
    "libvirt.finish",
    "libvirt.shut",
    "record.write",
    "record.read",
    "record.remove",
    "settings.write",
    "settings.remove",
];

pub use of_this_build::{io, point, prepare};

#[cfg(not(feature = "fail-points"))]
mod of_this_build {
    /// `Err`: a test wants what this build has not.
    pub fn prepare() -> Result<(), String> {
        match std::env::var_os("HIKYAKU_FAIL") {
            Some(_) => Err("HIKYAKU_FAIL is set, and this hikyakud is built without fail points".into()),
            None => Ok(()),
        }
    }

    #[inline]
    pub fn point(_name: &'static str) {}

    #[inline]
    pub fn io(_name: &'static str) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "fail-points")]
mod of_this_build {
    use super::POINTS;
    use crate::units;
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::io;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    #[derive(Debug, Clone, Copy)]
    enum What {
        Signal(Signal),
        Sleep(Duration),
        Error(Errno),
    }

    #[derive(Debug)]
    struct Wanted {
        point: &'static str,
        /// Passes up to the one that is meant.
        passes: u32,
        what: What,
    }

    static WANTED: Mutex<Vec<Wanted>> = Mutex::new(Vec::new());

    /// Reads what is wanted.
    pub fn prepare() -> Result<(), String> {
        let Ok(text) = std::env::var("HIKYAKU_FAIL") else { return Ok(()) };
        let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (point, what) = part.split_once(':').unwrap_or((part, ""));
            let (name, passes) = point.split_once('@').unwrap_or((point, "1"));
            let name = POINTS.into_iter().find(|known| *known == name);
            let what = match what {
                "kill" => Some(What::Signal(Signal::SIGKILL)),
                "stop" => Some(What::Signal(Signal::SIGSTOP)),
                "enospc" => Some(What::Error(Errno::ENOSPC)),
                "eio" => Some(What::Error(Errno::EIO)),
                time => units::parse_duration(time).ok().map(What::Sleep),
            };
            let (Some(point), Ok(passes @ 1..), Some(what)) = (name, passes.parse(), what) else {
                return Err(format!("HIKYAKU_FAIL: \"{part}\" means nothing"));
            };
            wanted.push(Wanted { point, passes, what });
        }
        Ok(())
    }

    pub fn point(name: &'static str) {
        let _ = io(name);
    }

    /// A point at which something is written.
    pub fn io(name: &'static str) -> io::Result<()> {
        debug_assert!(POINTS.contains(&name), "{name}");
        let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.iter_mut().filter(|wanted| wanted.point == name).for_each(|wanted| wanted.passes -= 1);
        let Some(at) = wanted.iter().position(|wanted| wanted.passes == 0) else { return Ok(()) };
        let what = wanted.remove(at).what;
        drop(wanted);
        tracing::warn!(point = name, ?what, "fails on purpose");
        match what {
            What::Signal(signal) => drop(raise_for_all(signal)),
            What::Sleep(time) => std::thread::sleep(time),
            What::Error(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Returns once the daemon goes on; of SIGKILL never.
    fn raise_for_all(signal: Signal) -> nix::Result<()> {
        kill(Pid::this(), signal)?;
        // It may reach another thread first.
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}
