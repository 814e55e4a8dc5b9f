//! Messages of the control connection: the only place of this crate that knows `bincode`.
//!
//! Each message is one Noise record: u16 length, then that many bytes of ciphertext and tag. So no message is longer
//! than [`PLAIN_BYTES_MAX`], which is also the decoder's limit: a length inside a message that claims more is refused
//! before anything is allocated.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use zeroize::Zeroize;

/// Longest ciphertext of a Noise record, tag included.
pub const RECORD_BYTES_MAX: usize = 65_535;
/// Longest encoded message.
pub const PLAIN_BYTES_MAX: usize = RECORD_BYTES_MAX - 16;
/// Ranges in one acknowledgement or part of a list; the others come with the next.
pub const RANGES_MAX: usize = 512;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<PLAIN_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<PLAIN_BYTES_MAX>();

/// A message of the control connection. The order of the variants is their number on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// First message of the side that connected: proves that it holds the handshake's keys *now*, so state may be made.
    Start(Start),
    /// The answer.
    Started(Started),
    /// Answered at once with [`Message::Pong`] and the same number.
    Ping(u64),
    Pong(u64),
    /// The sender of chunks opens a session. `session` names it in frames and messages; never used twice on a link.
    Open {
        session: u32,
        id: [u8; 16],
        hello: Vec<u8>,
    },
    Accepted {
        session: u32,
        credit: u64,
        reply: Vec<u8>,
    },
    Refused {
        session: u32,
        code: u16,
        text: String,
    },
    /// Every chunk up to and with `cumulative` was applied, and those of `ranges` (inclusive, ascending, disjoint).
    /// `credit` is the absolute number of charged bytes that may be sent.
    Ack {
        session: u32,
        cumulative: u64,
        credit: u64,
        ranges: Vec<(u64, u64)>,
    },
    /// A message of the session's users.
    User {
        session: u32,
        message: Vec<u8>,
    },
    /// Either side closes the session.
    Close {
        session: u32,
        code: u16,
        text: String,
    },
    /// The link is given up, and why.
    GiveUp {
        text: String,
    },
    /// So many of the session's messages (and its close) came.
    Heard {
        session: u32,
        number: u64,
    },
    /// After a resumed start, before anything else of the sessions, from both sides: what is held of one. At a receiver
    /// the chunks that came: up to `cumulative`, and `ranges`; `more` of them follow.
    Standing {
        session: u32,
        heard: u64,
        cumulative: u64,
        ranges: Vec<(u64, u64)>,
        more: bool,
    },
    /// Those were all.
    Listed,
    /// Of the users of both sides, and of no session: not repeated after an outage.
    Note(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Start {
    /// Names the bond in lane hellos. Random, not secret.
    pub link: [u8; 16],
    /// The link that is to go on: the `link` of its first start.
    pub resumes: Option<[u8; 16]>,
    /// The lanes' keys are derived from it. Random; wiped on drop.
    pub secret: [u8; 32],
    pub lanes: u16,
    pub chunk_bytes_max: u32,
    pub message_bytes_max: u32,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// The secret is left out.
impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Start {{ lanes: {}, chunk_bytes_max: {}, .. }}", self.lanes, self.chunk_bytes_max)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Started {
    /// The link that was to go on is here. False where none was named.
    pub resumed: bool,
    /// At most what was asked for.
    pub lanes: u16,
    pub chunk_bytes_max: u32,
    pub message_bytes_max: u32,
    /// Charged bytes of sessions that are not answered yet, of all together.
    pub early_bytes: u64,
}

/// The payload of Noise's second message: what the responder decided, under the handshake's protection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    Welcome {
        version: u16,
        suite: u8,
    },
    /// The key is proved, and may not open links.
    No {
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("the control message cannot be understood: {0}")]
    Decode(String),
    #[error("{0} bytes follow the control message")]
    Trailing(usize),
    #[error("the control message is too long")]
    TooLong,
    #[error("{0} ranges in one control message")]
    Ranges(usize),
}

impl Message {
    pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let message = decode(bytes)?;
        match &message {
            Message::Ack { ranges, .. } | Message::Standing { ranges, .. } if ranges.len() > RANGES_MAX => {
                Err(ControlError::Ranges(ranges.len()))
            }
            _ => Ok(message),
        }
    }
}

impl Verdict {
    pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        decode(bytes)
    }
}

fn encode(message: &impl Encode) -> Result<Vec<u8>, ControlError> {
    match bincode::encode_to_vec(message, CONFIG) {
        Ok(bytes) if bytes.len() <= PLAIN_BYTES_MAX => Ok(bytes),
        _ => Err(ControlError::TooLong),
    }
}

fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, ControlError> {
    let (message, used) =
        bincode::decode_from_slice(bytes, CONFIG).map_err(|e| ControlError::Decode(e.to_string()))?;
    match bytes.len() - used {
        0 => Ok(message),
        left => Err(ControlError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_documented_bytes() {
        let start = |resumes| {
            Message::Start(Start {
                link: [9; 16],
                resumes,
                secret: [8; 32],
                lanes: 0x0102,
                chunk_bytes_max: 0x0304,
                message_bytes_max: 0x0506,
            })
        };
        let limits = [2, 1, 4, 3, 0, 0, 6, 5, 0, 0];
        let anew = [&[0, 0, 0, 0][..], &[9; 16], &[0], &[8; 32], &limits].concat();
        let goes_on = [&[0, 0, 0, 0][..], &[9; 16], &[1], &[7; 16], &[8; 32], &limits].concat();
        let golden: [(Message, &[u8]); 16] = [
            (start(None), &anew),
            (start(Some([7; 16])), &goes_on),
            (
                Message::Started(Started {
                    resumed: true,
                    lanes: 0x0102,
                    chunk_bytes_max: 0x0304,
                    message_bytes_max: 0x0506,
                    early_bytes: 0x0708,
                }),
                &[1, 0, 0, 0, 1, 2, 1, 4, 3, 0, 0, 6, 5, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0],
            ),
            (Message::Pong(0x0102), &[3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]),
            (
                Message::Accepted { session: 7, credit: 0x0203, reply: vec![1, 2] },
                &[5, 0, 0, 0, 7, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2],
            ),
            (
                Message::Close { session: 7, code: 0x0203, text: "no".into() },
                &[9, 0, 0, 0, 7, 0, 0, 0, 3, 2, 2, 0, 0, 0, 0, 0, 0, 0, b'n', b'o'],
            ),
            (Message::Ping(0x0102), &[2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]),
            (
                Message::Open { session: 7, id: [9; 16], hello: vec![1, 2] },
                &[
                    4, 0, 0, 0, 7, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 2, 0, 0, 0, 0, 0,
                    0, 0, 1, 2,
                ],
            ),
            (
                Message::Refused { session: 7, code: 0x0203, text: "no".into() },
                &[6, 0, 0, 0, 7, 0, 0, 0, 3, 2, 2, 0, 0, 0, 0, 0, 0, 0, b'n', b'o'],
            ),
            (
                Message::Ack { session: 1, cumulative: 5, credit: 6, ranges: vec![(8, 9)] },
                &[
                    7, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
                    0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
                ],
            ),
            (
                Message::User { session: 1, message: vec![5] },
                &[8, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5],
            ),
            (Message::GiveUp { text: "x".into() }, &[10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x']),
            (
                Message::Heard { session: 7, number: 0x0203 },
                &[11, 0, 0, 0, 7, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0],
            ),
            (
                Message::Standing { session: 7, heard: 3, cumulative: 5, ranges: vec![(8, 9)], more: true },
                &[
                    12, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
                    0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1,
                ],
            ),
            (Message::Listed, &[13, 0, 0, 0]),
            (Message::Note(vec![7]), &[14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]),
        ];
        for (message, bytes) in golden {
            assert_eq!(message.encode().unwrap(), bytes, "{message:?}");
            assert_eq!(Message::decode(bytes), Ok(message));
        }
    }

    #[test]
    fn verdicts_have_their_documented_bytes() {
        let golden: [(Verdict, &[u8]); 2] = [
            (Verdict::Welcome { version: 0x0102, suite: 3 }, &[0, 0, 0, 0, 2, 1, 3]),
            (Verdict::No { text: "x".into() }, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x']),
        ];
        for (verdict, bytes) in golden {
            assert_eq!(verdict.encode().unwrap(), bytes, "{verdict:?}");
            assert_eq!(Verdict::decode(bytes), Ok(verdict));
        }
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let mut bytes = Message::User { session: 1, message: vec![5] }.encode().unwrap();
        bytes[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(Message::decode(&bytes), Err(ControlError::Decode(_))));
        bytes[8..16].copy_from_slice(&0u64.to_le_bytes());
        assert_eq!(Message::decode(&bytes), Err(ControlError::Trailing(1)));
    }

    #[test]
    fn the_longest_things_we_send_fit() {
        let ack = Message::Ack { session: 1, cumulative: 1, credit: 1, ranges: vec![(1, 1); RANGES_MAX] };
        assert!(ack.encode().is_ok());
        let ranges = vec![(1, 1); RANGES_MAX + 1];
        let standing = Message::Standing { session: 1, heard: 0, cumulative: 0, ranges, more: false };
        let bytes = standing.encode().unwrap();
        assert_eq!(
            Message::decode(&bytes),
            Err(ControlError::Ranges(RANGES_MAX + 1)),
            "nobody sends so many"
        );
        let user = Message::User { session: 1, message: vec![0; crate::config::MESSAGE_BYTES_CEILING] };
        assert!(user.encode().is_ok());
        let user = Message::User { session: 1, message: vec![0; RECORD_BYTES_MAX] };
        assert_eq!(user.encode(), Err(ControlError::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_are_an_error_or_a_message(bytes: Vec<u8>) {
            if let Ok(message) = Message::decode(&bytes) {
                proptest::prop_assert_eq!(message.encode().unwrap(), bytes);
            }
        }
    }
}
