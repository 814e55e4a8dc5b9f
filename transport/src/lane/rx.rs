//! A lane's receiving core: assembles one frame, opens it in place.
//!
//! Invariant: nothing but a length within the lane's limit is believed of a header before its frame is opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::names::{Epoch, LaneId};
use crate::seal::Opener;
use crate::wire::frame::{FrameType, HEADER_BYTES, Header, TAG_BYTES};

pub struct RxLane {
    pub id: LaneId,
    pub epoch: Epoch,
    opener: Opener,
    limit_bytes: u32,
    state: State,
    /// Lent to the kernel while an operation runs ([`RxLane::lend`]).
    buffer: Vec<u8>,
    progress: Arc<Progress>,
}

enum State {
    Header,
    Body(Header, [u8; HEADER_BYTES]),
}

/// The frame cannot have been sent like this: its bytes were changed, or were never sealed by the peer.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAuthentic {
    /// Its number on the lane; the hello is 0.
    pub frame: u64,
}

/// Seen by the link: since when a lane waits for the rest of a frame. (A changed length makes it wait for bytes that
/// nobody sent; nothing else would notice.)
#[derive(Debug, Default)]
pub struct Progress {
    /// Milliseconds on the caller's clock, plus 1; 0 between frames.
    waiting_since_ms: AtomicU64,
}

impl Progress {
    fn note(&self, inside: bool, now_ms: u64) {
        self.waiting_since_ms.store(if inside { now_ms + 1 } else { 0 }, Ordering::Relaxed);
    }

    /// More of a frame has come, if one was begun.
    pub fn came(&self, now_ms: u64) {
        let some = |since| (since > 0).then_some(now_ms + 1);
        let _ = self.waiting_since_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, some);
    }

    /// For how long no byte of a frame that was begun has come.
    pub fn stuck_for_ms(&self, now_ms: u64) -> u64 {
        match self.waiting_since_ms.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ms.saturating_sub(since - 1),
        }
    }
}

impl RxLane {
    /// `opener` has opened the lane's hello.
    pub fn new(id: LaneId, epoch: Epoch, opener: Opener, limit_bytes: u32, progress: Arc<Progress>) -> Self {
        let buffer = Vec::with_capacity(HEADER_BYTES);
        Self { id, epoch, opener, limit_bytes, state: State::Header, buffer, progress }
    }

    /// The buffer to append to, and how many bytes it is to have.
    pub fn space(&mut self) -> (&mut Vec<u8>, usize) {
        let want = self.want();
        (&mut self.buffer, want)
    }

    /// The same, for a kernel that takes its time.
    pub fn lend(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.buffer), self.want())
    }

    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }

    /// After bytes were appended: a chunk, if it is complete and authentic.
    pub fn appended(&mut self, now_ms: u64) -> Result<Option<(Header, Vec<u8>)>, NotAuthentic> {
        let complete = self.buffer.len() >= self.want();
        let inside = !(complete && matches!(self.state, State::Body(..)));
        self.progress.note(inside, now_ms);
        if !complete {
            return Ok(None);
        }
        let forged = NotAuthentic { frame: self.opener.frames() };
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => {
                let Ok(bytes) = <[u8; HEADER_BYTES]>::try_from(&self.buffer[..]) else { return Err(forged) };
                let Ok(header) = Header::decode(&bytes, self.limit_bytes) else { return Err(forged) };
                let carries = matches!(header.kind, FrameType::Chunk | FrameType::Padding);
                if !carries || (header.lane, header.epoch) != (self.id, self.epoch) {
                    return Err(forged);
                }
                self.state = State::Body(header, bytes);
                self.buffer = Vec::with_capacity(self.want());
                Ok(None)
            }
            State::Body(header, bytes) => {
                self.opener.open(&bytes, &mut self.buffer).map_err(|_| forged)?;
                let body = std::mem::replace(&mut self.buffer, Vec::with_capacity(HEADER_BYTES));
                Ok((header.kind == FrameType::Chunk).then_some((header, body)))
            }
        }
    }

    fn want(&self) -> usize {
        match &self.state {
            State::Header => HEADER_BYTES,
            State::Body(header, _) => header.body_bytes as usize + TAG_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::tx::{Load, TxLane};
    use crate::queue::TxQueue;
    use crate::seal::{Direction, LinkSecret};
    use crate::session::Chunk;
    use crate::suite::Suite;
    use proptest::prelude::*;

    const LIMIT: u32 = 5000;

    struct Pair {
        queue: TxQueue,
        tx: TxLane,
        rx: RxLane,
    }

    fn pair() -> Pair {
        let secret = LinkSecret::new([1; 32], Suite::ChaCha20Poly1305);
        let (link, lane, epoch) = ([2; 16], LaneId(3), Epoch(1));
        let queue = TxQueue::new(0);
        queue.add_session(9, Arc::new(crate::session::Deaf));
        queue.grant(9, u64::MAX);
        let tx = TxLane::new(
            lane,
            epoch,
            queue.new_carrier(),
            secret.sealer(&link, lane, epoch, Direction::FromInitiator),
            LIMIT,
        );
        let opener = secret.opener(&link, lane, epoch, Direction::FromInitiator);
        let rx = RxLane::new(lane, epoch, opener, LIMIT, Arc::default());
        Pair { queue, tx, rx }
    }

    /// The bytes of `payloads`, as the lane sends them.
    fn sealed(pair: &mut Pair, payloads: &[Vec<u8>]) -> Vec<u8> {
        for (i, payload) in payloads.iter().enumerate() {
            let chunk = Chunk { seq: i as u64 + 1, after: i as u64, payload: payload.clone().into() };
            pair.queue.push(9, chunk).unwrap();
        }
        let mut bytes = Vec::new();
        while pair.tx.load(&pair.queue) == Load::Ready {
            let unsent = pair.tx.unsent();
            let some = unsent.len().min(1000);
            bytes.extend_from_slice(&unsent[..some]);
            pair.tx.advance(some);
        }
        bytes
    }

    fn receive(
        rx: &mut RxLane,
        mut bytes: &[u8],
        most: usize,
    ) -> Result<Vec<(Header, Vec<u8>)>, NotAuthentic> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (buffer, want) = rx.space();
            let some = bytes.len().min(most).min(want - buffer.len());
            buffer.extend_from_slice(&bytes[..some]);
            bytes = &bytes[some..];
            frames.extend(rx.appended(0)?);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_chunks(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..5),
            most in 1usize..4000,
        ) {
            let mut pair = pair();
            let bytes = sealed(&mut pair, &payloads);
            let frames = receive(&mut pair.rx, &bytes, most).unwrap();
            prop_assert_eq!(frames.len(), payloads.len());
            for (i, ((header, body), payload)) in frames.iter().zip(&payloads).enumerate() {
                prop_assert_eq!((header.session, header.seq, header.after), (9, i as u64 + 1, i as u64));
                prop_assert_eq!(body, payload);
            }
        }

        #[test]
        fn a_changed_byte_never_yields_a_changed_chunk(at in 0usize..3000, flip in 1u8..) {
            let payloads = [vec![1; 900], vec![2; 900], vec![3; 900]];
            let mut pair = pair();
            let mut bytes = sealed(&mut pair, &payloads);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let mut seen = Vec::new();
            let mut rest = &bytes[..];
            let mut failed = false;
            while !rest.is_empty() && !failed {
                let (buffer, want) = pair.rx.space();
                let some = rest.len().min(want - buffer.len());
                buffer.extend_from_slice(&rest[..some]);
                rest = &rest[some..];
                match pair.rx.appended(0) {
                    Ok(frame) => seen.extend(frame),
                    Err(error) => {
                        prop_assert_eq!(error.frame as usize, seen.len());
                        failed = true;
                    }
                }
            }
            prop_assert!(seen.len() < 3);
            // A length that grew leaves the lane waiting inside a frame, which the link sees.
            prop_assert!(failed || pair.rx.progress.stuck_for_ms(1000) > 0);
            for ((_, body), payload) in seen.iter().zip(&payloads) {
                prop_assert_eq!(body, payload);
            }
        }
    }

    #[test]
    fn padding_comes_after_chunks_as_much_as_was_allowed_and_is_thrown_away() {
        let mut pair = pair();
        assert!(pair.queue.allow_padding(3 * (LIMIT as u64 + 48), 0));
        let padding = sealed(&mut pair, &[]);
        assert_eq!(padding.len(), 3 * (LIMIT as usize + 48));
        assert!(receive(&mut pair.rx, &padding, 700).unwrap().is_empty());
        // A chunk ends what is left of it.
        assert!(pair.queue.allow_padding(9 * (LIMIT as u64 + 48), 0));
        let bytes = sealed(&mut pair, &[vec![7; 10]]);
        let frames = receive(&mut pair.rx, &bytes, 64).unwrap();
        assert_eq!((frames.len(), &frames[0].1[..]), (1, &[7; 10][..]));
        assert_eq!(bytes.len(), HEADER_BYTES + 10 + TAG_BYTES);
        assert!(!pair.queue.allow_padding(1 << 30, 0), "who allowed it had not seen the chunk");
    }

    #[test]
    fn an_outage_ends_padding() {
        let mut pair = pair();
        assert!(pair.queue.allow_padding(3 * LIMIT as u64, 0));
        pair.queue.pause();
        pair.queue.go_on();
        assert_eq!(sealed(&mut pair, &[]), []);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_at_the_header() {
        let mut pair = pair();
        let bytes = sealed(&mut pair, &[vec![0; LIMIT as usize + 1]]);
        assert_eq!(receive(&mut pair.rx, &bytes[..HEADER_BYTES], 64), Err(NotAuthentic { frame: 0 }));
        assert!(pair.rx.buffer.capacity() < 1000);
    }

    #[test]
    fn a_lane_between_frames_is_not_stuck() {
        let mut pair = pair();
        let bytes = sealed(&mut pair, &[vec![0; 100]]);
        receive(&mut pair.rx, &bytes[..50], 64).unwrap();
        assert_eq!(pair.rx.progress.stuck_for_ms(30), 30);
        receive(&mut pair.rx, &bytes[50..], 64).unwrap();
        assert_eq!(pair.rx.progress.stuck_for_ms(30), 0);
    }
}
