//! A stream written again from its events, byte for byte as QEMU writes it: the oracle that the parser lost
//! nothing and misplaced nothing. It buffers one section and has no other use.
//!
//! It relies on two habits of QEMU, so it shows equality only for streams QEMU itself wrote: CONTINUE is set
//! exactly when the block is the one of the record before, across sections; and a section's records are in one
//! piece.

use super::wire::{item, ram};
use super::{BlockIdx, Events, PAGE_BYTES, RamLayout};

#[derive(Debug, Default)]
pub struct Replay {
    out: Vec<u8>,
    layout: Option<RamLayout>,
    section: Vec<u8>,
    last: Option<BlockIdx>,
}

impl Replay {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    fn header(&mut self, block: BlockIdx, offset: u64, flag: u64) {
        if self.last == Some(block) {
            self.section.extend_from_slice(&(offset | flag | ram::CONTINUE).to_be_bytes());
            return;
        }
        self.section.extend_from_slice(&(offset | flag).to_be_bytes());
        if let Some(listed) = self.layout.as_ref().and_then(|l| l.block(block)) {
            self.section.push(listed.name.len_u8());
            self.section.extend_from_slice(listed.name.as_bytes());
        }
        self.last = Some(block);
    }

    fn close(&mut self, kind: u8) {
        let id = self.layout.as_ref().map_or(0, |l| l.section_id).to_be_bytes();
        self.out.push(kind);
        self.out.extend_from_slice(&id);
        self.out.append(&mut self.section);
        self.out.extend_from_slice(&ram::EOS.to_be_bytes());
        self.out.push(item::FOOTER);
        self.out.extend_from_slice(&id);
    }
}

impl Events for Replay {
    fn opaque(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn blocks(&mut self, layout: &RamLayout) {
        self.layout = Some(layout.clone());
    }

    fn zero(&mut self, block: BlockIdx, offset: u64) {
        self.header(block, offset, ram::ZERO);
        self.section.push(0);
    }

    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        self.header(block, offset, ram::PAGE);
        self.section.extend_from_slice(data);
    }

    fn select_block(&mut self, _block: BlockIdx) {}

    fn ram_part(&mut self, _pages: u64) {
        self.close(item::PART);
    }

    fn ram_end(&mut self, _pages: u64) {
        self.close(item::END);
    }

    fn tail(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
}
