//! The one place where QEMU's blocks and the engine's page numbers meet, and the items that ride in the engine's ordered
//! bytes.
//!
//! A guest's pages are numbered through all its RAM blocks, in the order in which QEMU lists them:
//!
//! ```text
//! block 0 (pc.ram)    block 1 (vga.vram)   block 2 …
//! 0 ……………… n0-1       n0 ……………… n0+n1-1
//! ```

use hikyaku_engine::PageId;
use hikyaku_qemu::stream::{BlockIdx, PAGE_BYTES, RamLayout, Resume};

#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    #[error("the guest has more pages than can be numbered (16 TiB)")]
    TooMany,
    #[error("page {0} is outside the guest's memory")]
    Outside(u32),
    #[error("the peer sent an item that is not understood: {0}")]
    Item(&'static str),
}

#[derive(Debug, Clone)]
pub struct PageMap {
    /// First page number of each block, and the end as a last element.
    starts: Vec<u32>,
}

impl PageMap {
    pub fn new(layout: &RamLayout) -> Result<PageMap, PagesError> {
        let mut starts = Vec::with_capacity(layout.blocks.len() + 1);
        let mut next = 0u32;
        starts.push(next);
        for block in &layout.blocks {
            let pages =
                u32::try_from(block.span_bytes() / PAGE_BYTES as u64).map_err(|_| PagesError::TooMany)?;
            next = next.checked_add(pages).ok_or(PagesError::TooMany)?;
            starts.push(next);
        }
        Ok(PageMap { starts })
    }

    pub fn pages(&self) -> u32 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The number of a page that the parser has checked to be in the block.
    pub fn id(&self, block: BlockIdx, offset: u64) -> PageId {
        let start = self.starts.get(usize::from(block.0)).copied().unwrap_or(0);
        PageId(start.wrapping_add((offset / PAGE_BYTES as u64) as u32))
    }

    /// Where a page lies: its block, its offset there, and how many pages of the block there are from it on.
    pub fn place(&self, page: PageId) -> Result<(BlockIdx, u64, u32), PagesError> {
        // Blocks without pages share a start with the next one: the last that begins at or before the page has it.
        let after = self.starts.partition_point(|start| *start <= page.0);
        match (after.checked_sub(1), self.starts.get(after)) {
            (Some(block), Some(end)) => {
                let offset = u64::from(page.0 - self.starts[block]) * PAGE_BYTES as u64;
                Ok((BlockIdx(block as u16), offset, end - page.0))
            }
            _ => Err(PagesError::Outside(page.0)),
        }
    }
}

/// What the ordered bytes between the daemons consist of (`docs/wire-format.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// Bytes of QEMU's stream.
    Bytes(&'a [u8]),
    /// "Same block as before" means this one from here on.
    SelectBlock(BlockIdx),
    /// QEMU's stream goes on verbatim after this, and the rebuilt one must stand like this.
    Relay(Resume),
}

const BYTES: u8 = 0;
const SELECT_BLOCK: u8 = 1;
const RELAY_VERBATIM: u8 = 2;
const RELAY_ITEM: u8 = 3;
const RELAY_IN_RAM: u8 = 4;
const HEADER_BYTES: usize = 5;
/// On the wire: no block.
const NO_BLOCK: u16 = u16::MAX;

impl Item<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        let block = |b: Option<BlockIdx>| b.map_or(NO_BLOCK, |b| b.0).to_le_bytes();
        match *self {
            Item::Bytes(bytes) => put(out, BYTES, bytes),
            Item::SelectBlock(b) => put(out, SELECT_BLOCK, &block(Some(b))),
            Item::Relay(Resume::Verbatim) => put(out, RELAY_VERBATIM, &[]),
            Item::Relay(Resume::Item { last_block }) => put(out, RELAY_ITEM, &block(last_block)),
            Item::Relay(Resume::InRam { last_block }) => put(out, RELAY_IN_RAM, &block(last_block)),
        }
    }
}

fn put(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    // Callers pass slices of one socket read: far below 4 GiB.
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Takes items out of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct ItemReader {
    held: Vec<u8>,
}

/// A longer item is an error: the source's reads are shorter.
pub const MAX_ITEM_BYTES: usize = 8 << 20;

impl ItemReader {
    /// Calls `take` for every item that is complete.
    pub fn feed<E: From<PagesError>>(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(header) = self.held.get(at..at + HEADER_BYTES) {
            let [tag, a, b, c, d] = *header else { break };
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            if len > MAX_ITEM_BYTES {
                return Err(PagesError::Item("too long").into());
            }
            let Some(body) = self.held.get(at + HEADER_BYTES..at + HEADER_BYTES + len) else { break };
            take(item(tag, body)?)?;
            at += HEADER_BYTES + len;
        }
        self.held.drain(..at);
        Ok(())
    }

    /// Nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

fn item(tag: u8, body: &[u8]) -> Result<Item<'_>, PagesError> {
    let block = || match *body {
        [a, b] => Ok(match u16::from_le_bytes([a, b]) {
            NO_BLOCK => None,
            block => Some(BlockIdx(block)),
        }),
        _ => Err(PagesError::Item("a block of the wrong length")),
    };
    Ok(match tag {
        BYTES => Item::Bytes(body),
        SELECT_BLOCK => Item::SelectBlock(block()?.ok_or(PagesError::Item("no block"))?),
        RELAY_VERBATIM => Item::Relay(Resume::Verbatim),
        RELAY_ITEM => Item::Relay(Resume::Item { last_block: block()? }),
        RELAY_IN_RAM => Item::Relay(Resume::InRam { last_block: block()? }),
        _ => return Err(PagesError::Item("an unknown tag")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hikyaku_qemu::stream::{Block, BlockName};

    fn layout(pages: &[u64]) -> RamLayout {
        let block = |(i, n): (usize, &u64)| Block {
            name: BlockName::new(format!("b{i}").as_bytes()).unwrap(),
            used_bytes: n * PAGE_BYTES as u64,
            gpa: None,
        };
        RamLayout { section_id: 2, blocks: pages.iter().enumerate().map(block).collect() }
    }

    #[test]
    fn every_page_has_one_number_and_finds_its_way_back() {
        let map = PageMap::new(&layout(&[3, 0, 1, 2])).unwrap();
        assert_eq!(map.pages(), 6);
        let mut next = 0;
        for (block, pages) in [3u64, 0, 1, 2].into_iter().enumerate() {
            for i in 0..pages {
                let (block, offset) = (BlockIdx(block as u16), i * PAGE_BYTES as u64);
                let id = map.id(block, offset);
                assert_eq!(id, PageId(next));
                assert_eq!(map.place(id).unwrap(), (block, offset, (pages - i) as u32));
                next += 1;
            }
        }
        assert!(map.place(PageId(6)).is_err());
        assert!(map.place(PageId(u32::MAX)).is_err());
        assert!(PageMap::new(&layout(&[u64::from(u32::MAX), 1])).is_err());
    }

    #[test]
    fn items_have_their_documented_bytes() {
        let golden: [(Item<'_>, &[u8]); 6] = [
            (Item::Bytes(&[5, 6]), &[0, 2, 0, 0, 0, 5, 6]),
            (Item::SelectBlock(BlockIdx(0x0102)), &[1, 2, 0, 0, 0, 2, 1]),
            (Item::Relay(Resume::Verbatim), &[2, 0, 0, 0, 0]),
            (Item::Relay(Resume::Item { last_block: Some(BlockIdx(3)) }), &[3, 2, 0, 0, 0, 3, 0]),
            (Item::Relay(Resume::InRam { last_block: Some(BlockIdx(3)) }), &[4, 2, 0, 0, 0, 3, 0]),
            (Item::Relay(Resume::InRam { last_block: None }), &[4, 2, 0, 0, 0, 0xff, 0xff]),
        ];
        for (item, bytes) in golden {
            let mut written = Vec::new();
            item.write(&mut written);
            assert_eq!(written, bytes, "{item:?}");
        }
    }

    #[test]
    fn items_survive_any_split() {
        let items = [
            Item::Bytes(b"header"),
            Item::SelectBlock(BlockIdx(3)),
            Item::Bytes(b""),
            Item::Relay(Resume::InRam { last_block: None }),
            Item::Relay(Resume::Item { last_block: Some(BlockIdx(0)) }),
            Item::Relay(Resume::Verbatim),
        ];
        let mut bytes = Vec::new();
        items.iter().for_each(|i| i.write(&mut bytes));
        for size in 1..bytes.len() {
            let (mut reader, mut seen) = (ItemReader::default(), 0);
            for piece in bytes.chunks(size) {
                reader
                    .feed::<PagesError>(piece, |item| {
                        assert_eq!(item, items[seen]);
                        seen += 1;
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!((seen, reader.is_empty()), (items.len(), true), "in pieces of {size}");
        }
    }

    #[test]
    fn hostile_items_are_errors() {
        for bytes in
            [&[0u8, 0, 0, 0, 0xff][..], &[9, 0, 0, 0, 0], &[1, 1, 0, 0, 0, 0], &[1, 2, 0, 0, 0, 0xff, 0xff]]
        {
            assert!(ItemReader::default().feed::<PagesError>(bytes, |_| Ok(())).is_err(), "{bytes:?}");
        }
    }
}
