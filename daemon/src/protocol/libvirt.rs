//! What two daemons say to each other of a guest that libvirt moves, which they carry.
//!
//! ```text
//! source                                   destination
//!   Hello::WhoListens ───────────────────▶  who listens at this port of the landing?
//!   ◀──────────────────────────────── Listens
//!   Hello::Carry ──────────────────────────▶  is it allowed? a directory for its sockets is made
//!   ◀──────────────────────────────── Carried
//!   Hello::Conduit (a session each) ───────▶  libvirt's socket, or one that the waiting QEMU has made, is connected to
//!   ◀────────────────────────────── Connected
//!   chunks … ──────────────────────────────▶  what is said on it
//!   ◀───────────────────────── ToNear::Bytes  what is answered, so far ahead of Taken and no further
//!   Taken ─────────────────────────────────▶
//!   End ───────────────────────────────────▶  it was closed there, after this chunk
//!   ◀─────────────────────────── ToNear::End  it was closed here, after these bytes
//!
//!   Hello::WhatBecame (any later link) ────▶  libvirt there was asked to let the guest run, or was to be: what did it do?
//!   ◀──────────────────────────────── Became
//! ```

use crate::id::Id;
use crate::libvirt::check::Finding;
use bincode::{Decode, Encode};

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Carry {
    pub protocol: u16,
    pub guest: String,
    pub incarnation: Id,
    /// Where the sockets are, at both hosts: libvirt tells its other side the paths that it was told. Empty: there are none, and
    /// connections go to the destination's landing.
    pub directory: String,
}

/// A question: somebody wants to connect to this port of the destination's landing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WhoListens {
    pub protocol: u16,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Listens {
    pub guest: String,
    /// Its QEMU listens at no lower port of the landing: most likely for memory, and at a higher one for disks.
    pub first: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Carried {
    pub protocol: u16,
    pub incarnation: Id,
    /// This peer may talk to the libvirt there.
    pub rpc: bool,
}

/// A question: is that host ready for guests that libvirt moves?
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Examine {
    pub protocol: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Examined {
    pub findings: Vec<Finding>,
    /// Where sockets are made.
    pub directory: String,
    /// Where guests land, as the configuration has it.
    pub landing: Option<String>,
}

/// A question about a Finish that lets a guest run, whose answer was not heard.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WhatBecame {
    pub protocol: u16,
    pub carriage: Id,
    /// The destination's as the source knew it.
    pub incarnation: Id,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Became {
    /// libvirt there was not asked, and will not be.
    NeverAsked,
    /// It is at it; ask again.
    Pending,
    /// It runs there, under this name and with this number.
    Runs { name: String, id: i32 },
    /// libvirt there has said that it does not run, and it has ended it.
    Failed,
    /// Nobody can tell but a person.
    Unclear { why: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Conduit {
    pub protocol: u16,
    /// The session by which it is carried.
    pub carriage: Id,
    pub to: Place,
    /// Of the landing, if it is none of the directory's sockets.
    pub port: Option<u16>,
    /// The guest's pages are taken out of the stream, and a new one is built.
    pub native: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Place {
    /// libvirt.
    Rpc,
    /// Where the waiting QEMU takes its guest.
    Ram,
    /// Where it takes its disks.
    Disks,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Connected {
    /// Contents that the destination keeps, for pages that are alike.
    pub dictionary_slots: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToFar {
    /// So many bytes of what was answered have been taken, in all.
    Taken {
        bytes: u64,
    },
    End {
        last_seq: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToNear {
    Bytes(Vec<u8>),
    /// Of a native stream: the waiting QEMU would let its guest be stopped. It is not among the bytes.
    SwitchoverAck,
    End,
}

/// What may be on its way back, of one conduit: so many bytes, each message counting as [`MESSAGE_COST_BYTES`] at least.
pub const WINDOW_BYTES: u64 = 256 << 10;
/// So fewer wait than a mailbox holds.
pub const MESSAGE_COST_BYTES: u64 = 2 << 10;
/// Of one message.
pub const PIECE_BYTES: usize = 16 << 10;

/// What a message of so many bytes takes of the window.
pub fn cost(bytes: usize) -> u64 {
    (bytes as u64).max(MESSAGE_COST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_bytes;
    use super::super::{Hello, PROTOCOL};
    use super::*;
    use crate::libvirt::check::Verdict;

    #[test]
    fn they_have_their_documented_bytes() {
        let carry = Carry {
            protocol: PROTOCOL,
            guest: "web".into(),
            incarnation: Id([9; 16]),
            directory: "/m/1".into(),
        };
        assert_bytes(Hello::Carry(carry), &[&[2, 2, 3], b"web", &[9; 16], &[4], b"/m/1"]);
        assert_bytes(
            Carried { protocol: PROTOCOL, incarnation: Id([9; 16]), rpc: true },
            &[&[2], &[9; 16], &[1]],
        );
        let conduit = |to, port, native| {
            Hello::Conduit(Conduit { protocol: PROTOCOL, carriage: Id([8; 16]), to, port, native })
        };
        assert_bytes(conduit(Place::Rpc, None, false), &[&[3, 2], &[8; 16], &[0, 0, 0]]);
        assert_bytes(conduit(Place::Ram, None, true), &[&[3, 2], &[8; 16], &[1, 0, 1]]);
        assert_bytes(conduit(Place::Disks, Some(200), false), &[&[3, 2], &[8; 16], &[2, 1, 200, 0]]);
        let who = Hello::WhoListens(WhoListens { protocol: PROTOCOL, port: 49152 });
        assert_bytes(who, &[&[4, 2], &[251, 0, 192]]);
        assert_bytes(Hello::Examine(Examine { protocol: PROTOCOL }), &[&[5, 2]]);
        let finding = Finding { verdict: Verdict::Wrong, what: "w".into(), advice: "a".into() };
        let examined =
            Examined { findings: vec![finding], directory: "/m".into(), landing: Some("l".into()) };
        assert_bytes(examined, &[&[1, 2, 1], b"w", &[1], b"a", &[2], b"/m", &[1, 1], b"l"]);
        let what = WhatBecame { protocol: PROTOCOL, carriage: Id([8; 16]), incarnation: Id([9; 16]) };
        assert_bytes(Hello::WhatBecame(what), &[&[6, 2], &[8; 16], &[9; 16]]);
        assert_bytes(Became::NeverAsked, &[&[0]]);
        assert_bytes(Became::Pending, &[&[1]]);
        assert_bytes(Became::Runs { name: "web".into(), id: -1 }, &[&[2, 3], b"web", &[1]]);
        assert_bytes(Became::Failed, &[&[3]]);
        assert_bytes(Became::Unclear { why: "no".into() }, &[&[4, 2], b"no"]);
        assert_bytes(Listens { guest: "web".into(), first: true }, &[&[3], b"web", &[1]]);
        assert_bytes(Connected { dictionary_slots: 4096 }, &[&[251, 0, 16]]);
        assert_bytes(ToFar::Taken { bytes: 250 }, &[&[0, 250]]);
        assert_bytes(ToFar::End { last_seq: 7 }, &[&[1, 7]]);
        assert_bytes(ToNear::Bytes(vec![7; 3]), &[&[0, 3, 7, 7, 7]]);
        assert_bytes(ToNear::SwitchoverAck, &[&[1]]);
        assert_bytes(ToNear::End, &[&[2]]);
    }

    #[test]
    fn a_full_window_fits_a_mailbox() {
        const { assert!(WINDOW_BYTES / MESSAGE_COST_BYTES < 200) };
        assert!(super::super::encode(&ToNear::Bytes(vec![0; PIECE_BYTES])).is_ok());
    }
}
