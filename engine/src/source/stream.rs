//! Bytes of a stream that wait to be cut into chunks, in order.

use std::collections::VecDeque;

/// A queue of stream bytes, in pieces of at most one chunk.
#[derive(Debug)]
pub(super) struct StreamQueue {
    pieces: VecDeque<Vec<u8>>,
    piece_bytes: usize,
    queued_bytes: usize,
    /// Where the first piece begins in the stream.
    offset: u64,
}

impl StreamQueue {
    pub(super) fn new(piece_bytes: usize) -> Self {
        StreamQueue { pieces: VecDeque::new(), piece_bytes: piece_bytes.max(1), queued_bytes: 0, offset: 0 }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.queued_bytes += bytes.len();
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |last| self.piece_bytes.saturating_sub(last.len()));
            if room == 0 {
                self.pieces.push_back(Vec::new());
                continue;
            }
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            if let Some(last) = self.pieces.back_mut() {
                last.extend_from_slice(head);
            }
            bytes = rest;
        }
    }

    /// The next piece and where it begins in the stream.
    pub(super) fn pop(&mut self) -> Option<(u64, Vec<u8>)> {
        let piece = self.pieces.pop_front()?;
        let offset = self.offset;
        self.offset += piece.len() as u64;
        self.queued_bytes -= piece.len();
        Some((offset, piece))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The next piece will not grow.
    pub(super) fn has_whole_piece(&self) -> bool {
        self.queued_bytes >= self.piece_bytes
    }

    /// Something was pushed, now or before.
    pub(super) fn begun(&self) -> bool {
        self.offset > 0 || !self.is_empty()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_full_and_in_order() {
        let mut queue = StreamQueue::new(4);
        assert!(!queue.begun());
        for bytes in [&b"ab"[..], b"", b"cdefgh", b"i"] {
            queue.push(bytes);
        }
        assert_eq!(queue.queued_bytes(), 9);
        assert_eq!(queue.pop(), Some((0, b"abcd".to_vec())));
        assert!(queue.has_whole_piece());
        assert_eq!(queue.pop(), Some((4, b"efgh".to_vec())));
        assert!(!queue.has_whole_piece());
        assert_eq!(queue.pop(), Some((8, b"i".to_vec())));
        assert_eq!(queue.pop(), None);
        assert!(queue.begun());
    }
}
