//! Bytes to messages. Holds at most one line, at most as long as its limit.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("a line of more than {limit_bytes} bytes")]
    TooLong { limit_bytes: usize },
    #[error("a line that is no QMP message ({why}): {start}")]
    Garbage { start: String, why: String },
}

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Greeting(Greeting),
    Event {
        name: String,
        data: Value,
        /// Since the epoch, by the host's clock, as QEMU says.
        at_us: Option<u64>,
    },
    Return {
        id: Option<u64>,
        value: Value,
    },
    Error {
        id: Option<u64>,
        class: String,
        desc: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Greeting {
    pub version: GreetingVersion,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GreetingVersion {
    pub qemu: Triple,
    pub package: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub struct Triple {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<RawError>,
    id: Option<Value>,
}

/// QEMU says -1 where the clock failed.
#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// Decodes one line, without its end.
pub fn decode(line: &[u8]) -> Result<Message, CodecError> {
    let garbage = |why: String| CodecError::Garbage { start: start_of(line), why };
    let raw: Raw = serde_json::from_slice(line).map_err(|e| garbage(e.to_string()))?;
    let id = raw.id.as_ref().and_then(Value::as_u64);
    if let Some(name) = raw.event {
        let at_us = raw.timestamp.and_then(|t| {
            let seconds = u64::try_from(t.seconds).ok()?;
            seconds.checked_mul(1_000_000)?.checked_add(u64::try_from(t.microseconds).ok()?)
        });
        return Ok(Message::Event { name, data: raw.data, at_us });
    }
    if let Some(error) = raw.error {
        return Ok(Message::Error { id, class: error.class, desc: error.desc });
    }
    if let Some(value) = raw.value {
        return Ok(Message::Return { id, value });
    }
    match raw.greeting {
        Some(greeting) => Ok(Message::Greeting(greeting)),
        None => Err(garbage("none of QMP, event, return, error".into())),
    }
}

/// Enough of a line to recognise it in a log.
fn start_of(line: &[u8]) -> String {
    const SHOWN_BYTES: usize = 80;
    let (start, more) = match line.get(..SHOWN_BYTES) {
        Some(start) => (start, "…"),
        None => (line, ""),
    };
    format!("{}{more}", start.escape_ascii())
}

/// Cuts bytes into lines.
#[derive(Debug)]
pub struct Lines {
    held: Vec<u8>,
    limit_bytes: usize,
}

impl Lines {
    pub fn new(limit_bytes: usize) -> Self {
        Self { held: Vec::new(), limit_bytes }
    }

    /// Hands every message that is now whole to `each`. Empty lines are skipped. After an error the connection is
    /// of no more use.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Message)) -> Result<(), CodecError> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
            bytes = rest.get(1..).unwrap_or_default();
            if self.held.is_empty() {
                self.line(line, &mut each)?;
            } else {
                self.hold(line)?;
                let whole = std::mem::take(&mut self.held);
                self.line(&whole, &mut each)?;
            }
        }
        self.hold(bytes)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if self.held.len() + bytes.len() > self.limit_bytes {
            return Err(self.too_long());
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn line(&self, line: &[u8], each: &mut impl FnMut(Message)) -> Result<(), CodecError> {
        if line.len() > self.limit_bytes {
            return Err(self.too_long());
        }
        let line = line.trim_ascii();
        if !line.is_empty() {
            each(decode(line)?);
        }
        Ok(())
    }

    fn too_long(&self) -> CodecError {
        CodecError::TooLong { limit_bytes: self.limit_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(limit: usize, pieces: &[&[u8]]) -> (Vec<Message>, Result<(), CodecError>) {
        let (mut lines, mut out) = (Lines::new(limit), Vec::new());
        let result = pieces.iter().try_for_each(|p| lines.push(p, |m| out.push(m)));
        (out, result)
    }

    #[test]
    fn lines_may_come_in_any_pieces() {
        let text = b"{\"return\": {}, \"id\": 7}\r\n\n{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 2, \"microseconds\": 5}}\n";
        let (whole, result) = all(1000, &[text]);
        assert_eq!(result, Ok(()));
        assert_eq!(
            whole,
            [
                Message::Return { id: Some(7), value: serde_json::json!({}) },
                Message::Event { name: "STOP".into(), data: Value::Null, at_us: Some(2_000_005) },
            ]
        );
        for cut in 0..text.len() {
            assert_eq!(all(1000, &[&text[..cut], &text[cut..]]).0, whole);
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused_before_it_is_held() {
        let long = [b' '; 40];
        assert_eq!(all(30, &[&long[..20], &long[..20]]).1, Err(CodecError::TooLong { limit_bytes: 30 }));
        assert_eq!(all(30, &[&long]).1, Err(CodecError::TooLong { limit_bytes: 30 }));
    }

    #[test]
    fn what_is_no_message_is_an_error_that_shows_it() {
        for line in ["HTTP/1.1 400 Bad Request\n", "[]\n", "{\"x\": 1}\n", "{\"event\": 3}\n", "\u{0}\n"] {
            let (messages, result) = all(1000, &[line.as_bytes()]);
            assert!(messages.is_empty());
            assert!(matches!(result, Err(CodecError::Garbage { .. })), "{line}");
        }
    }

    #[test]
    fn a_clock_that_failed_is_no_error() {
        let line = br#"{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}, "new": [1]}"#;
        assert_eq!(decode(line), Ok(Message::Event { name: "STOP".into(), data: Value::Null, at_us: None }));
    }
}
