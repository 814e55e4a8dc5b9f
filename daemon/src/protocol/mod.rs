//! What two daemons say to each other about a guest, inside the transport's sealed control channel.
//!
//! ```text
//! source                                   destination
//!   Hello::Migrate ────────────────────────▶  is GUEST awaited? same machine, same RAM?
//!   ◀──────────────────────────────── Welcome   (or refused with a number and a text)
//!   chunks … ──────────────────────────────▶  written into the waiting QEMU
//!   ◀─────────────────────────── ReturnPath   PONGs and the like, verbatim
//!   Load ──────────────────────────────────▶  only with the safe switch-over: load all, and wait
//!   ◀──────────────────────────────── Ready   with the safe switch-over, and in raw relay: QEMU has loaded everything
//!   Go ────────────────────────────────────▶  after Ceded is durable; start it
//!   ◀──────────────────────────────── Times   how its arrival was spent, if it runs
//!   ◀────────────────────────────── Verdict   after the guest runs (or never will)
//!
//!   ◀──────────── Note::Awaits, AwaitsNoMore   before all that, of no session: `awaited`
//!   Note::WhoIsAwaited ────────────────────▶
//!
//!   Hello::Ask (any later link) ───────────▶
//!   ◀──────────────────── Verdict | Pending | Unknown      as the answer's payload
//! ```
//!
//! Of a guest that libvirt moves they say other things: [`libvirt`].
//!
//! Encoding: bincode, with a hard limit (`docs/wire-format.md`); nothing here is trusted beyond its type.

pub mod libvirt;

use crate::id::Id;
use bincode::{Decode, Encode};

/// Raised when a message changes meaning. The transport has a version of its own.
pub const PROTOCOL: u16 = 2;

/// No message is longer: the largest carry return-path bytes or an error text.
pub const MAX_MESSAGE_BYTES: usize = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("message of {0} bytes, the limit is {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    #[error("message not understood: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    #[error("message not encodable: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    #[error("message followed by {0} bytes that do not belong to it")]
    Trailing(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Hello {
    Migrate(Migrate),
    Ask(Ask),
    Carry(libvirt::Carry),
    Conduit(libvirt::Conduit),
    WhoListens(libvirt::WhoListens),
    Examine(libvirt::Examine),
    WhatBecame(libvirt::WhatBecame),
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Migrate {
    pub protocol: u16,
    pub guest: String,
    pub incarnation: Id,
    pub qemu: GuestFacts,
    pub relay: Relay,
    /// The source withholds SWITCHOVER_ACK: the destination QEMU's own is to be told to it.
    pub holds_ack: bool,
}

/// What must be equal on both sides before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct GuestFacts {
    pub version: (u32, u32, u32),
    pub machine: String,
    pub ram_bytes: u64,
}

impl GuestFacts {
    /// A QEMU with the one can take the guest of another with the other. The version is for people.
    pub fn fits(&self, other: &GuestFacts) -> bool {
        self.machine == other.machine && self.ram_bytes == other.ram_bytes
    }
}

/// Said outside of any session. Nobody relies on it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Note {
    /// A QEMU here awaits this guest, and this will be answered; `sends_ack` if it is asked for.
    Awaits {
        guest: String,
        welcome: Welcome,
    },
    AwaitsNoMore {
        guest: String,
    },
    /// What of this peer's guests is awaited there?
    WhoIsAwaited,
    /// The source has heard what became of this migration, durably, and will never ask.
    Over {
        migration: Id,
    },
    /// Somebody has said that this guest stays at its source, which runs it.
    Kept {
        migration: Id,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Relay {
    /// Pages are taken out of QEMU's stream, and a new stream is built at the destination.
    Native,
    /// QEMU's stream goes through as it is.
    Raw,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    pub protocol: u16,
    pub incarnation: Id,
    pub qemu: GuestFacts,
    /// The destination QEMU will send SWITCHOVER_ACK, to be waited for.
    pub sends_ack: bool,
    /// Contents that the destination keeps, for pages that are alike.
    pub dictionary_slots: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    pub protocol: u16,
    pub migration: Id,
    /// The destination's incarnation as the source knew it.
    pub incarnation: Id,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    Verdict(Verdict),
    /// It is being started; ask again.
    Pending,
    /// The records of that time are gone: nobody here can say.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToDestination {
    /// Everything up to this chunk makes up the guest; let QEMU load it, stopped.
    Load { last_seq: u32 },
    /// The source has let go. Everything up to this chunk makes up the guest. `run`: it ran before.
    Go { last_seq: u32, run: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToSource {
    /// From the destination QEMU's return path, whole messages, without SHUT and SWITCHOVER_ACK.
    ReturnPath(Vec<u8>),
    /// The destination QEMU would let the guest stop now.
    SwitchoverAck,
    /// The destination QEMU has loaded everything and waits, paused.
    Ready,
    Verdict(Verdict),
    /// Before the verdict, of a guest that runs.
    Times(ArrivalTimes),
}

/// How the arrival of a guest was spent, by the destination's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct ArrivalTimes {
    /// From when everything was there, GO included, until QEMU had loaded it.
    pub load_us: u64,
    /// From then until the guest ran.
    pub resume_us: u64,
    /// From then until this was said: its arrival was made durable.
    pub told_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    /// The guest is the destination's, and runs.
    Running,
    /// The guest is the destination's, and is stopped, as asked or as it was.
    Paused,
    /// The guest was not taken, and never will be under this id.
    Refused { why: String },
}

/// Why a session was refused or closed, as a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    Other = 1,
    NotAwaited = 2,
    Incompatible = 3,
    Protocol = 4,
    NotAllowed = 5,
    QemuFailed = 6,
    Cancelled = 7,
    NotConverged = 8,
    /// Not a refusal: the migration is over.
    Done = 0,
}

impl From<u16> for Refusal {
    fn from(code: u16) -> Refusal {
        match code {
            0 => Refusal::Done,
            2 => Refusal::NotAwaited,
            3 => Refusal::Incompatible,
            4 => Refusal::Protocol,
            5 => Refusal::NotAllowed,
            6 => Refusal::QemuFailed,
            7 => Refusal::Cancelled,
            8 => Refusal::NotConverged,
            _ => Refusal::Other,
        }
    }
}

pub fn encode<T: Encode>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let bytes = bincode::encode_to_vec(message, bincode::config::standard())?;
    if bytes.len() > MAX_MESSAGE_BYTES { Err(ProtocolError::TooLong(bytes.len())) } else { Ok(bytes) }
}

pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, ProtocolError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong(bytes.len()));
    }
    let config = bincode::config::standard().with_limit::<MAX_MESSAGE_BYTES>();
    let (message, used) = bincode::decode_from_slice(bytes, config)?;
    match bytes.len() - used {
        0 => Ok(message),
        left => Err(ProtocolError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/wire-format.md` has them: a daemon of another version must read these.
    #[track_caller]
    pub(super) fn assert_bytes<T: Encode + Decode<()> + PartialEq + std::fmt::Debug>(
        message: T,
        bytes: &[&[u8]],
    ) {
        let bytes = bytes.concat();
        assert_eq!(encode(&message).unwrap(), bytes, "{message:?}");
        assert_eq!(decode::<T>(&bytes).unwrap(), message);
    }

    const ID: [u8; 16] = [9; 16];
    /// Of a QEMU 10.0.300 with 1 GiB.
    const FACTS: [u8; 12] = [10, 0, 251, 0x2c, 0x01, 1, b'q', 252, 0, 0, 0, 0x40];

    fn facts() -> GuestFacts {
        GuestFacts { version: (10, 0, 300), machine: "q".into(), ram_bytes: 1 << 30 }
    }

    #[test]
    fn hellos_and_their_answers_have_their_documented_bytes() {
        let migrate = |relay, holds_ack| {
            let (guest, incarnation) = ("web".into(), Id(ID));
            Hello::Migrate(Migrate {
                protocol: PROTOCOL,
                guest,
                incarnation,
                qemu: facts(),
                relay,
                holds_ack,
            })
        };
        assert_bytes(migrate(Relay::Native, true), &[&[0, 2, 3], b"web", &ID, &FACTS, &[0, 1]]);
        assert_bytes(migrate(Relay::Raw, false), &[&[0, 2, 3], b"web", &ID, &FACTS, &[1, 0]]);
        let welcome = Welcome {
            protocol: PROTOCOL,
            incarnation: Id(ID),
            qemu: facts(),
            sends_ack: true,
            dictionary_slots: 4096,
        };
        let awaits = Note::Awaits { guest: "web".into(), welcome: welcome.clone() };
        assert_bytes(awaits, &[&[0, 3], b"web", &[2], &ID, &FACTS, &[1, 251, 0, 16]]);
        assert_bytes(Note::AwaitsNoMore { guest: "web".into() }, &[&[1, 3], b"web"]);
        assert_bytes(Note::WhoIsAwaited, &[&[2]]);
        assert_bytes(Note::Over { migration: Id([8; 16]) }, &[&[3], &[8; 16]]);
        assert_bytes(Note::Kept { migration: Id([8; 16]) }, &[&[4], &[8; 16]]);
        assert_bytes(welcome, &[&[2], &ID, &FACTS, &[1, 251, 0, 16]]);

        let ask = Ask { protocol: PROTOCOL, migration: Id([8; 16]), incarnation: Id(ID) };
        assert_bytes(Hello::Ask(ask), &[&[1, 2], &[8; 16], &ID]);
        assert_bytes(Answer::Verdict(Verdict::Running), &[&[0, 0]]);
        assert_bytes(Answer::Pending, &[&[1]]);
        assert_bytes(Answer::Unknown, &[&[2]]);
    }

    #[test]
    fn messages_have_their_documented_bytes() {
        assert_bytes(ToDestination::Load { last_seq: 250 }, &[&[0, 250]]);
        assert_bytes(ToDestination::Go { last_seq: 251, run: true }, &[&[1, 251, 251, 0, 1]]);
        assert_bytes(ToDestination::Go { last_seq: 1 << 16, run: false }, &[&[1, 252, 0, 0, 1, 0, 0]]);
        assert_bytes(ToSource::ReturnPath(vec![7; 3]), &[&[0, 3, 7, 7, 7]]);
        assert_bytes(ToSource::SwitchoverAck, &[&[1]]);
        assert_bytes(ToSource::Ready, &[&[2]]);
        assert_bytes(ToSource::Verdict(Verdict::Running), &[&[3, 0]]);
        assert_bytes(ToSource::Verdict(Verdict::Paused), &[&[3, 1]]);
        assert_bytes(ToSource::Verdict(Verdict::Refused { why: "no".into() }), &[&[3, 2, 2], b"no"]);
        let times = ArrivalTimes { load_us: 250, resume_us: 251, told_us: 1 << 16 };
        assert_bytes(ToSource::Times(times), &[&[4, 250, 251, 251, 0, 252, 0, 0, 1, 0]]);
    }

    #[test]
    fn hostile_lengths_and_trailing_bytes_are_refused() {
        assert!(decode::<ToSource>(&[0, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<ToSource>(&[]).is_err());
        assert!(decode::<ToSource>(&[99]).is_err());
        let mut bytes = encode(&ToSource::Ready).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<ToSource>(&bytes), Err(ProtocolError::Trailing(1))));
        assert!(matches!(
            decode::<ToSource>(&vec![0; MAX_MESSAGE_BYTES + 1]),
            Err(ProtocolError::TooLong(_))
        ));
        assert!(encode(&ToSource::ReturnPath(vec![0; MAX_MESSAGE_BYTES])).is_err());
    }
}
