//! A destination's memory, and numbers to shuffle with. Whole migrations are the laboratory's (`cargo lab sim`, `benches/tests/sim_*.rs`).

use std::convert::Infallible;

use hikyaku_engine::codec::xbzrle;
use hikyaku_engine::{PAGE_BYTES, PageBytes, PageId, Sink};

/// Small, fast, the same everywhere.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The destination's RAM. Pages hold rubbish until they are written, so that none can be forgotten.
pub struct ModelRam {
    pub pages: Vec<PageBytes>,
    pub opaque: Vec<u8>,
    pub raw: Vec<u8>,
    pub tail: Vec<u8>,
    pub deltas: u64,
}

impl ModelRam {
    pub fn new(pages: u32) -> Self {
        ModelRam {
            pages: vec![[0xa5; PAGE_BYTES]; pages as usize],
            opaque: Vec::new(),
            raw: Vec::new(),
            tail: Vec::new(),
            deltas: 0,
        }
    }
}

impl Sink for ModelRam {
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
        xbzrle::apply(delta, &mut self.pages[page.0 as usize]).expect("a delta QEMU takes");
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.raw.extend_from_slice(bytes);
        Ok(())
    }

    fn tail(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.tail.extend_from_slice(bytes);
        Ok(())
    }
}
