//! The return path: what the receiving QEMU says to the sending one, on the same socket.
//!
//! `be16 type | be16 len | data`. It is parsed only to see SHUT and SWITCHOVER_ACK and to hold one back; every
//! message can be written again byte for byte. It does not know what the messages mean to a migration: SHUT, in
//! particular, is no verdict on the guest.

use thiserror::Error;

const HEADER_BYTES: usize = 4;
/// The buffer QEMU's source reads a message into; it fails the migration on a longer one.
pub const MAX_DATA_BYTES: usize = 512;

mod kind {
    pub const SHUT: u16 = 1;
    pub const PONG: u16 = 2;
    pub const REQ_PAGES_ID: u16 = 3;
    pub const REQ_PAGES: u16 = 4;
    pub const RECV_BITMAP: u16 = 5;
    pub const RESUME_ACK: u16 = 6;
    pub const SWITCHOVER_ACK: u16 = 7;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The destination closes; 0 lets the source complete.
    Shut(u32),
    /// The answer to PING.
    Pong(u32),
    /// Postcopy: pages of the block named, from here on the current one.
    ReqPagesId {
        start: u64,
        len: u32,
        block: Vec<u8>,
    },
    /// Postcopy: pages of the current block.
    ReqPages {
        start: u64,
        len: u32,
    },
    /// Postcopy recovery: a block's name; its bitmap follows **unframed**, so nothing after it can be parsed.
    RecvBitmap {
        block: Vec<u8>,
    },
    ResumeAck(u32),
    SwitchoverAck,
    /// A message of a type, or with data, that is not known here.
    Unknown {
        kind: u16,
        data: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReturnPathError {
    #[error(
        "a message of type {kind} with {len} bytes on QEMU's return path, more than the {MAX_DATA_BYTES} QEMU takes"
    )]
    TooLong { kind: u16, len: usize },
    #[error("QEMU's return path cannot be followed beyond a dirty bitmap")]
    AfterBitmap,
}

impl Message {
    /// Appends the message as QEMU writes it. `Unknown` data beyond [`MAX_DATA_BYTES`] is refused.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), ReturnPathError> {
        let mut data = Vec::new();
        let kind = match self {
            Message::Shut(value) => be32(&mut data, *value, kind::SHUT),
            Message::Pong(value) => be32(&mut data, *value, kind::PONG),
            Message::ResumeAck(value) => be32(&mut data, *value, kind::RESUME_ACK),
            Message::ReqPages { start, len } => pages(&mut data, *start, *len, kind::REQ_PAGES),
            Message::ReqPagesId { start, len, block } => {
                let kind = pages(&mut data, *start, *len, kind::REQ_PAGES_ID);
                counted(&mut data, block, kind)?
            }
            Message::RecvBitmap { block } => counted(&mut data, block, kind::RECV_BITMAP)?,
            Message::SwitchoverAck => kind::SWITCHOVER_ACK,
            Message::Unknown { kind, data: bytes } => {
                if bytes.len() > MAX_DATA_BYTES {
                    return Err(ReturnPathError::TooLong { kind: *kind, len: bytes.len() });
                }
                data.extend_from_slice(bytes);
                *kind
            }
        };
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(&data);
        Ok(())
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, ReturnPathError> {
        let mut out = Vec::new();
        self.write(&mut out).map(|()| out)
    }

    fn read(kind: u16, data: &[u8]) -> Self {
        Self::read_known(kind, data).unwrap_or_else(|| Message::Unknown { kind, data: data.to_vec() })
    }

    fn read_known(kind: u16, data: &[u8]) -> Option<Self> {
        let word = || data.try_into().ok().map(u32::from_be_bytes);
        match kind {
            kind::SHUT => word().map(Message::Shut),
            kind::PONG => word().map(Message::Pong),
            kind::RESUME_ACK => word().map(Message::ResumeAck),
            kind::REQ_PAGES | kind::REQ_PAGES_ID => {
                let (start, rest) = data.split_first_chunk()?;
                let (len, rest) = rest.split_first_chunk()?;
                let (start, len) = (u64::from_be_bytes(*start), u32::from_be_bytes(*len));
                if kind == kind::REQ_PAGES_ID {
                    Some(Message::ReqPagesId { start, len, block: exactly_counted(rest)? })
                } else {
                    rest.is_empty().then_some(Message::ReqPages { start, len })
                }
            }
            kind::RECV_BITMAP => Some(Message::RecvBitmap { block: exactly_counted(data)? }),
            kind::SWITCHOVER_ACK => data.is_empty().then_some(Message::SwitchoverAck),
            _ => None,
        }
    }
}

fn be32(data: &mut Vec<u8>, value: u32, kind: u16) -> u16 {
    data.extend_from_slice(&value.to_be_bytes());
    kind
}

fn pages(data: &mut Vec<u8>, start: u64, len: u32, kind: u16) -> u16 {
    data.extend_from_slice(&start.to_be_bytes());
    data.extend_from_slice(&len.to_be_bytes());
    kind
}

fn counted(data: &mut Vec<u8>, name: &[u8], kind: u16) -> Result<u16, ReturnPathError> {
    let n = u8::try_from(name.len()).map_err(|_| ReturnPathError::TooLong { kind, len: name.len() })?;
    data.push(n);
    data.extend_from_slice(name);
    Ok(kind)
}

fn exactly_counted(data: &[u8]) -> Option<Vec<u8>> {
    let (n, name) = data.split_first()?;
    (usize::from(*n) == name.len()).then(|| name.to_vec())
}

/// Reads messages from bytes as they come; holds at most one message.
#[derive(Debug, Default)]
pub struct Reader {
    held: Vec<u8>,
    failed: Option<ReturnPathError>,
}

impl Reader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands every message that is now whole to `each`. After an error nothing more is read.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Message)) -> Result<(), ReturnPathError> {
        loop {
            if let Some(error) = self.failed {
                return Err(error);
            }
            let want = match self.message_len() {
                Ok(want) => want,
                Err(error) => {
                    self.failed = Some(error);
                    continue;
                }
            };
            let take = want.saturating_sub(self.held.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(take).unwrap_or((bytes, &[]));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() < want {
                return Ok(());
            }
            if let Some(message) = self.whole_message() {
                if matches!(message, Message::RecvBitmap { .. }) {
                    self.failed = Some(ReturnPathError::AfterBitmap);
                }
                self.held.clear();
                each(message);
                if bytes.is_empty() {
                    return Ok(());
                }
            }
        }
    }

    /// A message has begun and is not whole.
    pub fn is_inside_message(&self) -> bool {
        !self.held.is_empty()
    }

    /// Bytes to hold before the next decision: a header, or with it the whole message.
    fn message_len(&self) -> Result<usize, ReturnPathError> {
        let Some((kind, len)) = self.header() else { return Ok(HEADER_BYTES) };
        if len > MAX_DATA_BYTES {
            return Err(ReturnPathError::TooLong { kind, len });
        }
        Ok(HEADER_BYTES + len)
    }

    fn header(&self) -> Option<(u16, usize)> {
        let [k0, k1, l0, l1] = *self.held.first_chunk()?;
        Some((u16::from_be_bytes([k0, k1]), usize::from(u16::from_be_bytes([l0, l1]))))
    }

    fn whole_message(&self) -> Option<Message> {
        let (kind, len) = self.header()?;
        let data = self.held.get(HEADER_BYTES..)?;
        (data.len() == len).then(|| Message::read(kind, data))
    }
}
