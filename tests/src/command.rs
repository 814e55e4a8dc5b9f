//! A program run to its end, its output kept, within a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
        write!(f, "ended by {code}\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr)
    }
}

/// A program that runs beside the test. Killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    readers: Option<[JoinHandle<String>; 2]>,
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
        let readers = [reader(child.stdout.take()), reader(child.stderr.take())];
        Running { child, name, readers: Some(readers) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
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
        let [stdout, stderr] =
            self.readers.take().expect("waited for once").map(|r| r.join().unwrap_or_default());
        let output = Output { code, stdout, stderr };
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

fn reader(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is still worth showing.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
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
    #[should_panic(expected = "did not end within")]
    fn a_program_that_hangs_is_ended() {
        shell("exec sleep 60").wait(Duration::from_millis(50));
    }
}
