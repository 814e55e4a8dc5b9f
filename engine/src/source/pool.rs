//! Page buffers, used again and again, so that the steady state allocates nothing per page.

use crate::types::{PAGE_BYTES, PageBytes};

/// What an allocator adds to a page buffer.
pub(super) const BOX_OVERHEAD_BYTES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    free: Vec<Box<PageBytes>>,
    keep: usize,
    /// Buffers handed out and not given back.
    out: usize,
}

impl Pool {
    /// A pool that keeps at most `keep_bytes` of unused buffers.
    pub(super) fn new(keep_bytes: usize) -> Self {
        Pool { free: Vec::new(), keep: keep_bytes / (PAGE_BYTES + BOX_OVERHEAD_BYTES), out: 0 }
    }

    /// A buffer that holds `content`: one copy, and no clearing before it.
    pub(super) fn copy_of(&mut self, content: &PageBytes) -> Box<PageBytes> {
        self.out += 1;
        match self.free.pop() {
            Some(mut bytes) => {
                bytes.copy_from_slice(content);
                bytes
            }
            None => Box::new(*content),
        }
    }

    pub(super) fn give_back(&mut self, bytes: Box<PageBytes>) {
        self.out -= 1;
        if self.free.len() < self.keep {
            self.free.push(bytes);
        }
    }

    /// Memory of all buffers, handed out or kept.
    pub(super) fn memory_bytes(&self) -> usize {
        (self.out + self.free.len()) * (PAGE_BYTES + BOX_OVERHEAD_BYTES)
            + self.free.capacity() * size_of::<Box<PageBytes>>()
    }
}
