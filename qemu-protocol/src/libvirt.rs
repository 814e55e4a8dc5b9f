//! libvirt's remote procedure calls, as far as whoever carries them from one host to another has to know them.
//!
//! `be32 length (itself included) | program | version | procedure | type | serial | status | payload`
//!
//! A migration needs two calls to its destination: Prepare, which starts the QEMU there, and Finish, which lets its guest run. Between the
//! two the connection is silent but for keepalive packets, which are not carried: they would say that the far libvirt lives, and are meant
//! to say that the near one hears. Whoever carries the rest answers them ([`PONG`]).

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

pub const HEADER_BYTES: usize = 28;
/// What libvirt allows of a packet's body, and the length before it.
pub const PACKET_BYTES_MAX: usize = (32 << 20) + 4;
/// A packet that is to be looked at whole is not longer: a cookie has at most 4 MiB, a domain's description less.
pub const WHOLE_BYTES_MAX: usize = 9 << 20;

/// The answer to a keepalive packet.
pub const PONG: [u8; HEADER_BYTES] = keepalive(PONG_PROCEDURE);

const REMOTE: u32 = 0x2000_8086;
const KEEPALIVE: u32 = 0x6b65_6570;
const PING_PROCEDURE: i32 = 1;
const PONG_PROCEDURE: i32 = 2;
const CALL: i32 = 0;
const REPLY: i32 = 1;
const MESSAGE: i32 = 2;
const CALL_WITH_FDS: i32 = 4;
const REPLY_WITH_FDS: i32 = 5;
const OK: i32 = 0;

/// The remote program's procedures that a migration is made of.
pub mod procedure {
    pub const PREPARE: i32 = 303;
    pub const PREPARE_TUNNEL: i32 = 304;
    pub const FINISH: i32 = 306;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: i32,
    pub kind: i32,
    pub serial: u32,
    pub status: i32,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RpcError {
    #[error("a packet of {0} bytes, which is none of libvirt's")]
    Length(u32),
    #[error("a packet that brings file descriptors, which cannot be carried to another host")]
    Descriptors,
    #[error("a packet of {0} bytes, of a kind that has at most {WHOLE_BYTES_MAX}")]
    TooLong(u32),
}

impl Header {
    fn read(bytes: &[u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Header {
            length: word(0),
            program: word(4),
            version: word(8),
            procedure: word(12) as i32,
            kind: word(16) as i32,
            serial: word(20),
            status: word(24) as i32,
        }
    }

    fn check(&self) -> Result<(), RpcError> {
        if !(HEADER_BYTES..=PACKET_BYTES_MAX).contains(&(self.length as usize)) {
            return Err(RpcError::Length(self.length));
        }
        match self.kind {
            CALL_WITH_FDS | REPLY_WITH_FDS => Err(RpcError::Descriptors),
            _ => Ok(()),
        }
    }

    /// Asks libvirt for this.
    pub fn calls(&self, procedure: i32) -> bool {
        self.program == REMOTE && self.kind == CALL && self.procedure == procedure
    }

    /// Answers the call of this serial number.
    pub fn answers(&self, serial: u32) -> Option<Answer> {
        (self.program == REMOTE && self.kind == REPLY && self.serial == serial)
            .then_some(if self.status == OK { Answer::Done } else { Answer::Failed })
    }

    fn pings(&self) -> bool {
        self.program == KEEPALIVE && self.kind == MESSAGE && self.procedure == PING_PROCEDURE
    }
}

/// Whether a whole Finish is that of a migration that failed: it ends the QEMU that waited, and lets nothing run.
pub fn finish_is_cancelled(packet: &[u8]) -> bool {
    packet.len() >= HEADER_BYTES + 4 && packet[packet.len() - 4..] != [0; 4]
}

/// Whose guest a whole Finish is about: its cookie, which is text, has it.
pub fn finish_uuid(packet: &[u8]) -> Option<Uuid> {
    const BEFORE: &[u8] = b"<uuid>";
    let at = packet.windows(BEFORE.len()).position(|there| there == BEFORE)? + BEFORE.len();
    std::str::from_utf8(packet.get(at..at + UUID_TEXT_BYTES)?).ok()?.parse().ok()
}

const UUID_TEXT_BYTES: usize = 36;

/// What libvirt calls a guest by, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uuid([u8; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no UUID")]
pub struct NoUuid;

impl FromStr for Uuid {
    type Err = NoUuid;

    fn from_str(text: &str) -> Result<Uuid, NoUuid> {
        let dashes = [8, 13, 18, 23];
        let fits = text.len() == UUID_TEXT_BYTES
            && text.bytes().enumerate().all(|(at, byte)| match dashes.contains(&at) {
                true => byte == b'-',
                false => byte.is_ascii_hexdigit(),
            });
        let digits = text.replace('-', "");
        let number = fits.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().ok_or(NoUuid)?;
        Ok(Uuid(number.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e] = [0..4, 4..6, 6..8, 8..10, 10..16].map(|range| hex(&self.0[range]));
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to the Finish of this serial number, of a guest that runs: as libvirt there gives it, or would have. `id`: its number there.
pub fn finished(serial: u32, name: &str, uuid: Uuid, id: i32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((name.len() as u32).to_be_bytes());
    body.extend(name.as_bytes());
    body.resize(body.len().next_multiple_of(4), 0);
    body.extend(uuid.0);
    body.extend(id.to_be_bytes());
    // A cookie, which whoever asked does not need.
    body.extend(0_u32.to_be_bytes());
    let length = (HEADER_BYTES + body.len()) as u32;
    let words = [length, REMOTE, 1, procedure::FINISH as u32, REPLY as u32, serial, OK as u32];
    let mut packet: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    packet.append(&mut body);
    packet
}

#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Goes on as it is.
    Bytes(&'a [u8]),
    /// A packet that was to be looked at, whole.
    Packet(Header, &'a [u8]),
    /// Is to be answered with [`PONG`], and does not go on.
    Ping,
}

/// Cuts one direction of a connection into what may go on at once, and packets to be looked at first.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a packet whose header is not there, or all there is of one that is gathered.
    held: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    /// So many bytes of this packet go on.
    Passing(usize),
    /// It is gathered until it has so many.
    Gathering(Header),
    /// So many bytes of this packet do not go on.
    Dropping(usize),
    Failed(RpcError),
}

impl Reader {
    /// The last that went on is part of a packet of which more is to come: nothing else may stand there.
    pub fn is_passing(&self) -> bool {
        matches!(self.state, State::Passing(_) | State::Failed(_))
    }

    /// `whole`: this packet is to be looked at. After an error it says the same for ever.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut whole: impl FnMut(&Header) -> bool,
        mut tell: impl FnMut(Part<'_>),
    ) -> Result<(), RpcError> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.state {
                State::Failed(error) => return Err(error),
                State::Passing(left) => {
                    let end = left.min(rest.len());
                    if end > 0 {
                        tell(Part::Bytes(&rest[..end]));
                    }
                    at += end;
                    self.state = after(left - end, State::Passing);
                }
                State::Dropping(left) => {
                    let end = left.min(rest.len());
                    at += end;
                    self.state = after(left - end, State::Dropping);
                }
                State::Gathering(header) => {
                    let missing = header.length as usize - self.held.len();
                    let end = missing.min(rest.len());
                    self.held.extend_from_slice(&rest[..end]);
                    at += end;
                    if end == missing {
                        tell(Part::Packet(header, &self.held));
                        self.held = Vec::new();
                        self.state = State::Header;
                    }
                }
                State::Header => {
                    let end = (HEADER_BYTES - self.held.len()).min(rest.len());
                    self.held.extend_from_slice(&rest[..end]);
                    at += end;
                    let Ok(header) = self.held.as_slice().try_into().map(Header::read) else { return Ok(()) };
                    self.state = match self.begin(header, whole(&header), &mut tell) {
                        Ok(state) => state,
                        Err(error) => State::Failed(error),
                    };
                }
            }
            if at == bytes.len() && !matches!(self.state, State::Failed(_)) {
                return Ok(());
            }
        }
    }

    fn begin(
        &mut self,
        header: Header,
        whole: bool,
        tell: &mut impl FnMut(Part<'_>),
    ) -> Result<State, RpcError> {
        header.check()?;
        let left = header.length as usize - HEADER_BYTES;
        if header.program == KEEPALIVE {
            if header.pings() {
                tell(Part::Ping);
            }
            self.held.clear();
            return Ok(after(left, State::Dropping));
        }
        if !whole {
            tell(Part::Bytes(&self.held));
            self.held.clear();
            return Ok(after(left, State::Passing));
        }
        if header.length as usize > WHOLE_BYTES_MAX {
            return Err(RpcError::TooLong(header.length));
        }
        if left > 0 {
            return Ok(State::Gathering(header));
        }
        tell(Part::Packet(header, &self.held));
        self.held.clear();
        Ok(State::Header)
    }
}

fn after(left: usize, state: impl FnOnce(usize) -> State) -> State {
    if left == 0 { State::Header } else { state(left) }
}

const fn keepalive(procedure: i32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let words = [HEADER_BYTES as u32, KEEPALIVE, 1, procedure as u32, MESSAGE as u32, 0, 0];
    let mut n = 0;
    while n < words.len() {
        let word = words[n].to_be_bytes();
        let mut i = 0;
        while i < 4 {
            bytes[4 * n + i] = word[i];
            i += 1;
        }
        n += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finish_says_whose_guest_it_is() {
        let uuid = "6e1b6d0c-2b2f-4b7e-9a53-0b9e3c1d2f10";
        let cookie = format!("<qemu-migration>\n  <name>web</name>\n  <uuid>{uuid}</uuid>");
        assert_eq!(finish_uuid(cookie.as_bytes()).map(|uuid| uuid.to_string()).as_deref(), Some(uuid));
        for cut in 0..cookie.len() - "</uuid>".len() {
            assert_eq!(finish_uuid(&cookie.as_bytes()[..cut]), None);
        }
        for none in
            ["6e1b6d0c-2b2f-4b7e-9a53-0b9e3c1d2f1+", "6e1b6d0c2b2f-4b7e-9a53-0b9e3c1d2f1000", "日本語"]
        {
            assert_eq!(none.parse::<Uuid>(), Err(NoUuid));
        }
    }

    /// As libvirt 11.3 answers, but for the cookie.
    #[test]
    fn an_answer_can_be_given_in_its_place() {
        let uuid = "6e1b6d0c-2b2f-4b7e-9a53-0b9e3c1d2f10".parse().unwrap();
        let answer = finished(6, "courier", uuid, 3);
        let header = Header::read(answer[..HEADER_BYTES].try_into().unwrap());
        assert_eq!((header.length as usize, header.procedure), (answer.len(), procedure::FINISH));
        assert_eq!(header.answers(6), Some(Answer::Done));
        let body = [
            &[0, 0, 0, 7][..],
            b"courier\0",
            b"\x6e\x1b\x6d\x0c\x2b\x2f\x4b\x7e\x9a\x53\x0b\x9e\x3c\x1d\x2f\x10",
            &[0, 0, 0, 3],
            &[0, 0, 0, 0],
        ];
        assert_eq!(answer[HEADER_BYTES..], body.concat());
    }
}
