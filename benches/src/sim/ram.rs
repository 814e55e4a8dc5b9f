//! The destination's memory. Pages hold rubbish until they are written, so that none can be forgotten.

use std::convert::Infallible;

use hikyaku_engine::codec::xbzrle;
use hikyaku_engine::{PAGE_BYTES, PageBytes, PageId, Sink};

use super::guest::Guest;

/// See the module.
pub struct Ram {
    pages: Vec<PageBytes>,
    pub opaque: Vec<u8>,
    pub tail: Vec<u8>,
    /// Deltas that were applied; one that QEMU's decoder does not take is counted and makes the memory unequal.
    pub deltas: u64,
    pub bad_deltas: u64,
}

impl Ram {
    pub fn new(pages: u32) -> Self {
        Ram {
            pages: vec![[0xa5; PAGE_BYTES]; pages as usize],
            opaque: Vec::new(),
            tail: Vec::new(),
            deltas: 0,
            bad_deltas: 0,
        }
    }

    pub fn equals(&self, guest: &Guest) -> bool {
        let mut expected = [0; PAGE_BYTES];
        self.bad_deltas == 0
            && self.pages.len() == guest.len() as usize
            && (0..).zip(&self.pages).all(|(index, page)| {
                guest.read(index, &mut expected);
                *page == expected
            })
    }

    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        self.pages.iter().map(|page| &page[..])
    }
}

impl Sink for Ram {
    type Error = Infallible;

    fn layout(&self) -> Option<u32> {
        (!self.opaque.is_empty()).then_some(self.pages.len() as u32)
    }

    fn opaque(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.opaque.extend_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, page: PageId, run: u32) -> Result<(), Infallible> {
        self.pages[page.0 as usize..(page.0 + run) as usize].fill([0; PAGE_BYTES]);
        Ok(())
    }

    fn page(&mut self, page: PageId, bytes: &PageBytes) -> Result<(), Infallible> {
        self.pages[page.0 as usize] = *bytes;
        Ok(())
    }

    fn delta(&mut self, page: PageId, delta: &[u8]) -> Result<(), Infallible> {
        self.deltas += 1;
        self.bad_deltas += u64::from(xbzrle::apply(delta, &mut self.pages[page.0 as usize]).is_err());
        Ok(())
    }

    fn raw(&mut self, _bytes: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn tail(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.tail.extend_from_slice(bytes);
        Ok(())
    }
}
