//! A child process that ends with its handle, and is waited for with a bound.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A wait is over at most so much later than the child.
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Tied {
    child: Child,
}

impl Tied {
    pub fn spawn(command: &mut Command) -> io::Result<Tied> {
        Ok(Tied { child: command.spawn()? })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end; after `limit` it is killed and that is the error.
    pub fn wait_within(mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        match self.wait_until(Instant::now() + limit)? {
            Some(status) => Ok(status),
            None => bail!("a command did not end within {limit:?}"),
        }
    }

    /// The same; one that has not ended by then runs on, and there is no status.
    pub fn wait_until(&mut self, deadline: Instant) -> anyhow::Result<Option<ExitStatus>> {
        loop {
            let ended = self.child.try_wait().context("waiting for a command")?;
            if ended.is_some() || Instant::now() > deadline {
                return Ok(ended);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_waited_for_and_one_that_hangs_is_ended() {
        let ends = Tied::spawn(Command::new("false").stdin(std::process::Stdio::null())).unwrap();
        assert_eq!(ends.wait_within(Duration::from_secs(10)).unwrap().code(), Some(1));

        let hangs = Tied::spawn(Command::new("sleep").arg("1000")).unwrap();
        let process = format!("/proc/{}", hangs.child.id());
        assert!(hangs.wait_within(Duration::from_millis(20)).is_err());
        assert!(!std::path::Path::new(&process).exists());
    }
}
