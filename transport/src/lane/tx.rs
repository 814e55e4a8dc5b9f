//! A lane's sending core: one sealed frame and how much of it is gone.

use std::time::Instant;

use crate::names::{Epoch, LaneId};
use crate::queue::{Carrier, PADDING_SESSION, TxQueue};
use crate::seal::Sealer;
use crate::throttle::Slice;
use crate::wire::frame::{FrameType, HEADER_BYTES, Header, TAG_BYTES};

pub struct TxLane {
    pub id: LaneId,
    pub epoch: Epoch,
    /// This connection, to the queue.
    pub carrier: Carrier,
    sealer: Sealer,
    /// Lent to the kernel while an operation runs ([`TxLane::lend`]).
    buffer: Vec<u8>,
    sent: usize,
    /// So far the frame may leave; from `due` on, if that is still to come.
    granted: usize,
    due: Option<Instant>,
    end: usize,
    /// Whose frame it is.
    session: u32,
    pace: Option<u64>,
    unsent_most: Option<u32>,
    /// The frame is padding.
    padding: bool,
    padding_bytes: usize,
}

/// The body of a frame of padding. A chunk that comes waits for one of them at most.
static PADDING: [u8; 16 * 1024] = [0; 16 * 1024];

/// Whether a lane has something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Ready,
    /// It may not leave before.
    Later(Instant),
    Nothing,
}

impl TxLane {
    /// No frame's body may be longer than `body_bytes_max`.
    pub fn new(id: LaneId, epoch: Epoch, carrier: Carrier, sealer: Sealer, body_bytes_max: u32) -> Self {
        Self {
            id,
            epoch,
            carrier,
            sealer,
            buffer: Vec::new(),
            sent: 0,
            granted: 0,
            due: None,
            end: 0,
            session: 0,
            pace: None,
            unsent_most: None,
            padding: false,
            padding_bytes: PADDING.len().min(body_bytes_max as usize),
        }
    }

    /// Makes sure that there is something to send: takes the next chunk and seals it if the frame before is gone, and
    /// asks for the next slice if the one before is.
    pub fn load(&mut self, queue: &TxQueue) -> Load {
        if self.sent == self.end {
            if !self.take(queue) {
                return Load::Nothing;
            }
        } else if self.sent == self.granted {
            let now = Instant::now();
            let slice = queue.slice(self.carrier, self.session, self.end - self.sent, now);
            self.grant(slice, now);
        }
        match self.due {
            None => Load::Ready,
            Some(due) if due > Instant::now() => Load::Later(due),
            Some(_) => {
                self.due = None;
                queue.waits_no_more(self.carrier);
                Load::Ready
            }
        }
    }

    fn take(&mut self, queue: &TxQueue) -> bool {
        let now = Instant::now();
        let Some(taken) = queue.take(self.carrier, now) else { return self.pad(queue, now) };
        let payload = taken.chunk.payload.as_ref();
        let header = Header {
            kind: FrameType::Chunk,
            lane: self.id,
            epoch: self.epoch,
            session: taken.session,
            // Checked against the link's limit when it was queued.
            body_bytes: payload.len() as u32,
            seq: taken.chunk.seq,
            after: taken.chunk.after,
        };
        self.end = self.sealer.seal(&header, payload, &mut self.buffer);
        self.sent = 0;
        self.granted = 0;
        self.session = taken.session;
        self.padding = false;
        self.grant(taken.slice, now);
        if let Some(events) = taken.room {
            events.room();
        }
        true
    }

    /// There is no chunk; there may be padding.
    fn pad(&mut self, queue: &TxQueue, now: Instant) -> bool {
        let body = &PADDING[..self.padding_bytes];
        let frame_bytes = HEADER_BYTES + body.len() + TAG_BYTES;
        let Some(slice) = queue.pad(self.carrier, frame_bytes, now) else { return false };
        let header = Header {
            kind: FrameType::Padding,
            lane: self.id,
            epoch: self.epoch,
            session: 0,
            body_bytes: body.len() as u32,
            seq: 0,
            after: 0,
        };
        self.end = self.sealer.seal(&header, body, &mut self.buffer);
        self.sent = 0;
        self.granted = 0;
        self.session = PADDING_SESSION;
        self.padding = true;
        self.grant(slice, now);
        true
    }

    /// What its socket may hold that was never sent, if it usually holds `usual`: little of padding, which is in the way, and
    /// of what a limit holds back.
    pub fn notsent_low(&self, usual: u32) -> u32 {
        let usual = usual.min(self.unsent_most.unwrap_or(u32::MAX));
        if self.padding { usual.min(2 * PADDING.len() as u32) } else { usual }
    }

    fn grant(&mut self, slice: Slice, now: Instant) {
        self.granted = self.end.min(self.granted + slice.bytes);
        self.due = (slice.due > now).then_some(slice.due);
        self.pace = slice.pace;
        self.unsent_most = slice.unsent_most;
    }

    /// The frame before is gone.
    pub fn is_empty(&self) -> bool {
        self.sent == self.end
    }

    /// What its socket is to be paced at by the kernel.
    pub fn pace(&self) -> Option<u64> {
        self.pace
    }

    /// What may leave of the frame.
    pub fn unsent(&self) -> &[u8] {
        &self.buffer[self.sent..self.granted]
    }

    pub fn advance(&mut self, bytes: usize) {
        self.sent = self.granted.min(self.sent + bytes);
    }

    /// The buffer and the part of it to send, for a kernel that takes its time.
    pub fn lend(&mut self) -> (Vec<u8>, std::ops::Range<usize>) {
        (std::mem::take(&mut self.buffer), self.sent..self.granted)
    }

    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }
}
