//! A guest that writes to its memory, and QEMU's passes over it.

use std::convert::Infallible;

use hikyaku_engine::codec::xbzrle;
use hikyaku_engine::{PAGE_BYTES, PageBytes, PageId, Sink};

/// xorshift*: small, fast, the same everywhere.
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

#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// One page after the other through the working set.
    Sequential,
    /// Any page of the working set.
    Random,
    /// Nine of ten to a tenth of the working set.
    Hot,
}

#[derive(Clone)]
pub struct GuestConfig {
    pub pages: u32,
    /// Shares of zero, text-like and random pages, in percent; the rest is random.
    pub zero_percent: u64,
    pub text_percent: u64,
    pub pattern: Pattern,
    pub working_set: u32,
    pub writes_per_s: u64,
    /// Bytes changed by a write; a whole page becomes zero now and then if it is 0.
    pub changed_bytes: usize,
}

impl GuestConfig {
    pub fn mixed(mib: u32) -> Self {
        GuestConfig {
            pages: mib * 256,
            zero_percent: 30,
            text_percent: 40,
            pattern: Pattern::Random,
            working_set: mib * 64,
            writes_per_s: 0,
            changed_bytes: 64,
        }
    }

    pub fn writing(self, pattern: Pattern, writes_per_s: u64) -> Self {
        GuestConfig { pattern, writes_per_s, ..self }
    }
}

pub struct Guest {
    pub pages: Vec<PageBytes>,
    pub syncs: u64,
    config: GuestConfig,
    rng: Rng,
    dirty: Vec<bool>,
    /// What QEMU's pass still has to emit, from `cursor` on.
    pass: Vec<bool>,
    cursor: usize,
    next: u32,
    owed: f64,
    share: f64,
}

impl Guest {
    pub fn new(config: &GuestConfig, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let pages = (0..config.pages).map(|_| fresh_page(config, &mut rng)).collect();
        Guest {
            pages,
            syncs: 1,
            rng,
            dirty: vec![false; config.pages as usize],
            pass: vec![true; config.pages as usize],
            cursor: 0,
            next: 0,
            owed: 0.0,
            share: 1.0,
            config: config.clone(),
        }
    }

    pub fn throttle(&mut self, share: f32) {
        self.share = f64::from(1.0 - share);
    }

    /// Lets the guest run.
    pub fn write(&mut self, ns: u64) {
        self.owed += self.config.writes_per_s as f64 * self.share * ns as f64 / 1e9;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let set = u64::from(self.config.working_set);
            let page = match self.config.pattern {
                Pattern::Sequential => {
                    self.next = (self.next + 1) % self.config.working_set;
                    self.next as usize
                }
                Pattern::Random => self.rng.below(set) as usize,
                Pattern::Hot if self.rng.below(10) > 0 => self.rng.below((set / 10).max(1)) as usize,
                Pattern::Hot => self.rng.below(set) as usize,
            };
            self.dirty[page] = true;
            let target = &mut self.pages[page];
            if self.config.changed_bytes == 0 && self.rng.below(8) == 0 {
                target.fill(0);
                continue;
            }
            let len = self.config.changed_bytes.clamp(8, PAGE_BYTES);
            let at = self.rng.below((PAGE_BYTES - len + 1) as u64) as usize;
            for bytes in target[at..at + len].chunks_mut(8) {
                let random = self.rng.next().to_le_bytes();
                bytes.copy_from_slice(&random[..bytes.len()]);
            }
        }
    }

    /// The next page of QEMU's pass, as it is now.
    pub fn next_dirty(&mut self) -> Option<(PageId, &PageBytes)> {
        let at = self.cursor + self.pass[self.cursor..].iter().position(|dirty| *dirty)?;
        self.pass[at] = false;
        self.cursor = at;
        Some((PageId(at as u32), &self.pages[at]))
    }

    /// A pass ends: the bitmap becomes the next pass. How many pages it has.
    pub fn sync(&mut self) -> u64 {
        self.syncs += 1;
        self.cursor = 0;
        std::mem::swap(&mut self.pass, &mut self.dirty);
        self.dirty.fill(false);
        self.pass.iter().filter(|dirty| **dirty).count() as u64
    }
}

fn fresh_page(config: &GuestConfig, rng: &mut Rng) -> PageBytes {
    let kind = rng.below(100);
    let mut page = [0; PAGE_BYTES];
    if kind < config.zero_percent {
        return page;
    }
    let text = kind < config.zero_percent + config.text_percent;
    for bytes in page.chunks_mut(8) {
        let random = rng.next();
        let word = if text { u64::from_le_bytes(*b"the page") ^ (random & 0x0303) } else { random };
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
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
