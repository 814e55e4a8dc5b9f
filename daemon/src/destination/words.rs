//! What a QEMU says on its standard error: why it cannot load a guest it tells there, and nowhere else.
//!
//! It can be read where that is a file, as libvirt makes it; a journal or a terminal cannot. A file system that hangs holds up nobody.

use crate::process::ProcessId;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

/// So much of it is told, at most.
const TOLD_BYTES: u64 = 600;
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Words {
    log: Arc<File>,
    begun: u64,
}

impl Words {
    /// From now on.
    pub async fn of(process: ProcessId) -> Option<Words> {
        aside(move || Words::open(process)).await
    }

    fn open(process: ProcessId) -> Option<Words> {
        let path = process.standard_error();
        // Anything but a file may not even let itself be opened at once.
        std::fs::metadata(&path).ok().filter(|what| what.is_file())?;
        let log = File::open(path).ok()?;
        let begun = log.metadata().ok()?.len();
        Some(Words { log: Arc::new(log), begun })
    }

    /// The last of what was said since, on one line.
    pub async fn said(&self) -> Option<String> {
        let (log, begun) = (self.log.clone(), self.begun);
        aside(move || read(&log, begun).ok().filter(|said| !said.is_empty())).await
    }
}

fn read(mut log: &File, begun: u64) -> io::Result<String> {
    let end = log.metadata()?.len();
    log.seek(SeekFrom::Start(begun.max(end.saturating_sub(TOLD_BYTES))))?;
    let mut bytes = Vec::new();
    log.take(TOLD_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(|line| line.trim().trim_start_matches("qemu-system-x86_64: "));
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    Ok(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ").chars().map(shown).collect())
}

async fn aside<T: Send + 'static>(job: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(job)).await.ok()?.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn what_was_said_since_is_told_on_one_line_even_of_a_process_that_has_ended() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        std::fs::write(&path, "said long ago\n").unwrap();
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        let stderr = Stdio::from(log.try_clone().unwrap());
        let mut child = Command::new("sleep").arg("10").stderr(stderr).spawn().unwrap();
        let words = Words::of(ProcessId::of(child.id() as i32).unwrap()).await.unwrap();
        assert_eq!(words.said().await, None);
        child.kill().unwrap();
        child.wait().unwrap();
        log.write_all(b"qemu-system-x86_64: Unknown section\nload failed\x1b[1m\n\n").unwrap();
        assert_eq!(words.said().await.unwrap(), "Unknown section; load failed [1m");
        log.write_all(&[b'x'; 5000]).unwrap();
        assert_eq!(words.said().await.unwrap().len() as u64, TOLD_BYTES);
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_read() {
        let mut child = Command::new("sleep").arg("10").stderr(Stdio::piped()).spawn().unwrap();
        assert!(Words::of(ProcessId::of(child.id() as i32).unwrap()).await.is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
