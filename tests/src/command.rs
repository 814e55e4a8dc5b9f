//! A program run to its end, its output kept, within a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::binaries;

/// What a program left.
#[derive(Debug)]
pub struct Output {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The output, if the program exited with `code`; else a panic that shows everything.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Output {
        assert_eq!(self.code, Some(code), "exit code; {self}");
        self
    }

    /// Standard output and error in one.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.map_or("a signal".to_owned(), |code| code.to_string());
        writeln!(f, "ended by {code}\nstdout:")?;
        // Ten a second say nothing that the phases between them do not.
        for line in self.stdout.lines().filter(|line| !line.contains(r#""event":"progress""#)) {
            writeln!(f, "{line}")?;
        }
        write!(f, "stderr:\n{}", self.stderr)
    }
}

/// A program that runs beside the test. Killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    stdout: Arc<Heard>,
    stderr: Arc<Heard>,
    readers: Vec<JoinHandle<()>>,
}

/// What a program has said so far on one of its outputs.
#[derive(Debug, Default)]
struct Heard {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    closed: bool,
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        hikyaku_lab::link::die_with_parent(command);
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (stdout, stderr) = (Arc::<Heard>::default(), Arc::<Heard>::default());
        let readers = vec![reader(child.stdout.take(), &stdout), reader(child.stderr.take(), &stderr)];
        Running { child, name, stdout, stderr, readers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has said a line like this, from its start on. It ending without one fails the test.
    #[track_caller]
    pub fn wait_line(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + limit;
        let mut said = self.stdout.lock();
        let mut looked_bytes = 0;
        loop {
            while let Some(length) = said.bytes[looked_bytes..].iter().position(|&byte| byte == b'\n') {
                let line = &said.bytes[looked_bytes..looked_bytes + length];
                if wanted(&String::from_utf8_lossy(line)) {
                    return;
                }
                looked_bytes += length + 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.closed || left.is_zero() {
                let text = String::from_utf8_lossy(&said.bytes).into_owned();
                drop(said);
                panic!("{}: no {what} within {limit:?}; it said:\n{text}{}", self.name, self.stderr.text());
            }
            let more = self.stdout.more.wait_timeout(said, left);
            said = more.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it, and returns what it has said.
    pub fn end(mut self) -> Output {
        let _ = self.child.kill();
        self.wait(Duration::from_secs(10))
    }

    /// Waits for its end; one that takes longer than `limit` is killed, and the test fails.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Output {
        let deadline = Instant::now() + limit;
        let mut in_time = true;
        while self.is_running() {
            if Instant::now() > deadline {
                in_time = false;
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().ok().and_then(|status| status.code());
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let output = Output { code, stdout: self.stdout.text(), stderr: self.stderr.text() };
        assert!(in_time, "{} did not end within {limit:?}; {output}", self.name);
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `hikyaku ARGS…`, asking the daemon behind `api`.
pub fn hikyaku<A: AsRef<OsStr>>(api: &Path, args: impl IntoIterator<Item = A>) -> Running {
    let mut command = Command::new(binaries::product("hikyaku"));
    command.arg("--api").arg(api).args(args);
    Running::start(&mut command)
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }
}

fn reader(stream: Option<impl Read + Send + 'static>, heard: &Arc<Heard>) -> JoinHandle<()> {
    let heard = heard.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        if let Some(mut stream) = stream {
            // What was read before an error is still worth showing.
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                heard.lock().bytes.extend_from_slice(&buffer[..read]);
                heard.more.notify_all();
            }
        }
        heard.lock().closed = true;
        heard.more.notify_all();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        Running::start(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn the_exit_code_and_both_outputs_are_kept() {
        let output = shell("echo out; echo err >&2; exit 9").wait(Duration::from_secs(10)).expect_code(9);
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_line_is_heard_while_the_program_runs() {
        let mut running = shell("echo one; echo two; exec sleep 60");
        running.wait_line("second line", Duration::from_secs(10), |line| line == "two");
        assert!(running.is_running());
    }

    #[test]
    #[should_panic(expected = "no third line")]
    fn a_line_that_never_comes_fails_the_test() {
        shell("echo one; echo two").wait_line("third line", Duration::from_secs(10), |line| line == "three");
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_program_that_hangs_is_ended() {
        shell("exec sleep 60").wait(Duration::from_millis(50));
    }
}
