//! A blocking QMP client for tests and measurements; the daemon has its own, which does far more.
//!
//! One command at a time; of the events that arrive meanwhile those are kept that say when the guest runs. Every call has a time limit.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::runs::Runs;

/// Longer than QEMU's main loop is ever held up by a migration's last phase on a slow machine.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    runs: Runs,
}

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QMP connection: {0}")]
    Io(#[from] io::Error),
    #[error("QMP connection closed by QEMU")]
    Closed,
    #[error("QMP: not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("QEMU refused {command}: {reason}")]
    Refused { command: String, reason: String },
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        let mut qmp = Qmp { stream: BufReader::new(stream), runs: Runs::default() };
        qmp.read()?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut message = self.read()?;
            if let Some(reply) = message.get_mut("return") {
                return Ok(reply.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), reason });
            }
        }
    }

    /// As of the last call.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    pub fn socket(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    fn read(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(QmpError::Closed);
        }
        let message = serde_json::from_str(&line)?;
        self.runs.hear(&message);
        Ok(message)
    }
}
