//! What can go wrong with a command, and on which socket.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::codec::CodecError;

#[derive(Clone, Debug, Error)]
#[error("{command} on {socket}: {kind}", socket = .socket.display())]
pub struct QmpError {
    pub socket: PathBuf,
    /// The command, or "connect".
    pub command: Cow<'static, str>,
    #[source]
    pub kind: ErrorKind,
}

impl QmpError {
    /// QEMU answered, and said no. Everything else leaves open whether the command was carried out.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Qemu { .. })
    }

    /// The connection is gone.
    pub fn is_closed(&self) -> bool {
        matches!(self.kind, ErrorKind::Closed | ErrorKind::Io(_) | ErrorKind::Codec(_))
    }
}

#[derive(Clone, Debug, Error)]
pub enum ErrorKind {
    #[error("QEMU says: {desc} ({class})")]
    Qemu { class: String, desc: String },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no greeting within {0:?}; QEMU speaks to one client at a time, and another may be connected")]
    NoGreeting(Duration),
    #[error("{0}")]
    Io(String),
    #[error("QEMU closed the connection")]
    Closed,
    #[error("not QMP, or no longer: {0}")]
    Codec(#[from] CodecError),
    #[error("an answer that is not what the command returns: {0}")]
    Answer(String),
    #[error("the command could not be written as JSON: {0}")]
    Arguments(String),
}
