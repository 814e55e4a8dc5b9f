//! Packets held in memory, in the order in which they are due.
//!
//! Bytes lie one packet behind the other in large blocks that are used again: a link of 10 Gbit/s and 40 ms holds
//! 150 MB, of which small acknowledgements must not each take a buffer of 64 KiB. It does not order: the caller
//! pushes in the order of `due_ns`.

use std::collections::VecDeque;

/// Many times the largest super-packet, so little is lost at the end of a block.
const BLOCK_BYTES: usize = 1 << 20;
/// Empty blocks kept for the next packets; more are given back to the allocator.
const SPARE_BLOCKS: usize = 32;

/// What is known of a held packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// When it is to be delivered, in nanoseconds of the emulator's clock.
    pub due_ns: u64,
    /// How many MTU-sized packets it stands for.
    pub packets: u32,
    /// Their bytes on the wire.
    pub wire_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Fifo {
    blocks: VecDeque<Block>,
    entries: VecDeque<Entry>,
    spare: Vec<Box<[u8]>>,
    held_bytes: u64,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    used: usize,
    entries: usize,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    start: usize,
    len: usize,
}

impl Fifo {
    /// Holds the `len` bytes that `fill` writes, `len` being at most [`BLOCK_BYTES`].
    pub fn push(&mut self, held: Held, len: usize, fill: impl FnOnce(&mut [u8])) {
        debug_assert!(len <= BLOCK_BYTES);
        debug_assert!(self.entries.back().is_none_or(|last| last.held.due_ns <= held.due_ns));
        if self.blocks.back().is_none_or(|block| block.bytes.len() - block.used < len) {
            let bytes = self.spare.pop().unwrap_or_else(|| vec![0; BLOCK_BYTES].into_boxed_slice());
            self.blocks.push_back(Block { bytes, used: 0, entries: 0 });
        }
        let Some(block) = self.blocks.back_mut() else { return };
        let start = block.used;
        fill(&mut block.bytes[start..start + len]);
        block.used += len;
        block.entries += 1;
        self.held_bytes += len as u64;
        self.entries.push_back(Entry { held, start, len });
    }

    /// The packet that is due first, and its bytes.
    pub fn front(&self) -> Option<(Held, &[u8])> {
        let (entry, block) = (self.entries.front()?, self.blocks.front()?);
        Some((entry.held, &block.bytes[entry.start..entry.start + entry.len]))
    }

    /// Forgets the packet that is due first.
    pub fn pop(&mut self) {
        let (Some(entry), Some(block)) = (self.entries.pop_front(), self.blocks.front_mut()) else { return };
        self.held_bytes -= entry.len as u64;
        block.entries -= 1;
        if block.entries > 0 {
            return;
        }
        if self.blocks.len() == 1 {
            // It may still be filled, from the start.
            self.blocks[0].used = 0;
        } else if let Some(block) = self.blocks.pop_front()
            && self.spare.len() < SPARE_BLOCKS
        {
            self.spare.push(block.bytes);
        }
    }

    /// Bytes of memory the held packets take.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_over_many_blocks() {
        let mut fifo = Fifo::default();
        let len = |i: u64| 1 + (i as usize * 7919) % 65_000;
        let held = |i: u64| Held { due_ns: i, packets: i as u32, wire_bytes: 2 * i };
        let (mut pushed, mut popped, mut bytes) = (0_u64, 0_u64, 0_u64);
        for round in 0..50 {
            for _ in 0..(round % 5) * 20 {
                fifo.push(held(pushed), len(pushed), |to| to.fill(pushed as u8));
                bytes += len(pushed) as u64;
                pushed += 1;
            }
            assert_eq!(fifo.held_bytes(), bytes);
            for _ in 0..(round % 7) * 15 {
                let Some((front, content)) = fifo.front() else { break };
                assert_eq!(front, held(popped));
                assert_eq!(content.len(), len(popped));
                assert!(content.iter().all(|&byte| byte == popped as u8));
                bytes -= len(popped) as u64;
                popped += 1;
                fifo.pop();
            }
        }
        assert!(popped > 1000 && pushed > popped, "the test must cross blocks: {popped} of {pushed}");
    }

    #[test]
    fn an_empty_fifo_gives_nothing_and_holds_nothing() {
        let mut fifo = Fifo::default();
        fifo.pop();
        assert!(fifo.front().is_none());
        fifo.push(Held { due_ns: 1, packets: 1, wire_bytes: 1 }, 10, |_| {});
        fifo.pop();
        assert!(fifo.front().is_none());
        assert_eq!(fifo.held_bytes(), 0);
    }
}
