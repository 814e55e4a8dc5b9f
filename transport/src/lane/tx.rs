//! A lane's sending core: one sealed frame and how much of it is gone.

use std::time::Instant;

use crate::names::{Epoch, LaneId};
use crate::queue::{Carrier, TxQueue};
use crate::seal::Sealer;
use crate::wire::frame::{FrameType, Header};

pub struct TxLane {
    pub id: LaneId,
    epoch: Epoch,
    /// This connection, to the queue.
    pub carrier: Carrier,
    sealer: Sealer,
    /// Lent to the kernel while an operation runs ([`TxLane::lend`]).
    buffer: Vec<u8>,
    sent: usize,
    end: usize,
}

impl TxLane {
    pub fn new(id: LaneId, epoch: Epoch, carrier: Carrier, sealer: Sealer) -> Self {
        Self { id, epoch, carrier, sealer, buffer: Vec::new(), sent: 0, end: 0 }
    }

    /// Makes sure that there is something to send: takes the next chunk and seals it if the frame before is gone.
    /// False: there is nothing.
    pub fn load(&mut self, queue: &TxQueue) -> bool {
        if self.sent < self.end {
            return true;
        }
        let Some(taken) = queue.take(self.carrier, Instant::now()) else { return false };
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
        if let Some(events) = taken.room {
            events.room();
        }
        true
    }

    /// What is left of the frame.
    pub fn unsent(&self) -> &[u8] {
        &self.buffer[self.sent..self.end]
    }

    pub fn advance(&mut self, bytes: usize) {
        self.sent = self.end.min(self.sent + bytes);
    }

    /// The buffer and the part of it to send, for a kernel that takes its time.
    pub fn lend(&mut self) -> (Vec<u8>, std::ops::Range<usize>) {
        (std::mem::take(&mut self.buffer), self.sent..self.end)
    }

    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }
}
