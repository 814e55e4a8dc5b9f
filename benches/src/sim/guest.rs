//! The guest: the memory and the writes of the test guest (`benches/guest/`), by the same code, in virtual time.
//!
//! What it leaves out: the sweep, which only reads; the console; being behind because a processor is busy.

use std::time::Duration;

use hikyaku_engine::{PAGE_BYTES, PageBytes};

use super::bitmap::Bitmap;
use super::page::{self, Identity, Page, WORDS};
use super::params::Params;
use super::pattern::Chooser;
use super::plan::{self, Kind};
use super::rng::Rng;
use crate::guest::Load;

/// A guest to be made.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    pub pages: u32,
    pub load: Load,
    /// Pages written per second, where the load's own whole number is too coarse or too small.
    pub pages_per_s: f64,
    /// Of 1000 writes, those that make the whole page zero. The test guest does no such thing.
    pub zeroing_permille: u32,
}

impl GuestConfig {
    pub fn new(load: Load, mib: u32) -> Self {
        GuestConfig {
            pages: mib * 256,
            pages_per_s: f64::from(load.rate_pages_per_s),
            load,
            zeroing_permille: 0,
        }
    }
}

/// See the module.
pub struct Guest {
    pages: Vec<Page>,
    /// Written since the bitmap was last taken.
    pub dirty: Bitmap,
    config: GuestConfig,
    params: Params,
    /// The non-zero pages in order; the working set is a window on it.
    filled: Vec<u32>,
    set_pages: u32,
    chooser: Chooser,
    rng: Rng,
    owed: f64,
    ran: Duration,
    /// The share of its time that is left to it.
    share: f64,
    pub writes: u64,
}

/// The load cannot be that of a guest.
#[derive(Debug, thiserror::Error)]
#[error("the guest would not understand {word:?}")]
pub struct GuestError {
    word: String,
}

impl Guest {
    pub fn new(config: &GuestConfig) -> Result<Self, GuestError> {
        let line = config.load.command_line(config.pages.div_ceil(256));
        let params = Params::parse(&line).map_err(|word| GuestError { word: word.into() })?;
        let mut pages = vec![[0; WORDS]; config.pages as usize];
        let mut filled = Vec::new();
        for (index, page) in (0..config.pages).zip(&mut pages) {
            let kind = plan::kind(&params, index);
            match kind {
                Kind::Zero => continue,
                Kind::Dup => page::create(page, plan::first(index, kind), page::Content::Text, params.seed),
                Kind::Own(content) => page::create(page, plan::first(index, kind), content, params.seed),
            }
            filled.push(index);
        }
        let set_pages = params.set_pages.min(filled.len() as u32);
        Ok(Guest {
            pages,
            dirty: Bitmap::new(config.pages),
            chooser: Chooser::new(params.pattern, set_pages, params.zipf_root),
            rng: Rng::new(params.seed, u64::MAX),
            config: config.clone(),
            params,
            filled,
            set_pages,
            owed: 0.0,
            ran: Duration::ZERO,
            share: 1.0,
            writes: 0,
        })
    }

    /// The share of its time that is taken from it.
    pub fn throttle(&mut self, share: f32) {
        self.share = f64::from(1.0 - share);
    }

    /// Lets it run for so long.
    pub fn run(&mut self, time: Duration) {
        self.ran += time;
        let since_start_us = self.ran.as_micros() as u64;
        let pace = plan::pace_ppm(&self.params, since_start_us) as f64 / 1e6;
        self.owed += self.config.pages_per_s * pace * self.share * time.as_secs_f64();
        if self.set_pages == 0 {
            return;
        }
        let room = self.filled.len() as u64 - u64::from(self.set_pages);
        let window_start = plan::window_start(&self.params, since_start_us, room);
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let slot = window_start + self.chooser.next(&mut self.rng);
            self.write(self.filled[slot as usize]);
        }
    }

    fn write(&mut self, index: u32) {
        self.writes += 1;
        self.dirty.set(index);
        let page = &mut self.pages[index as usize];
        if self.config.zeroing_permille > self.rng.below(1000) {
            page.fill(0);
            return;
        }
        let kind = plan::kind(&self.params, index);
        let content = plan::written(&self.params, kind);
        let to = Identity { index, version: plan::next_version(page::identity(page).version) };
        let bytes = plan::change_bytes(&self.params, &mut self.rng);
        if bytes >= PAGE_BYTES {
            page::create(page, to, content, self.params.seed);
        } else {
            page::change(page, to, plan::body_change_bytes(bytes), content, &mut self.rng);
        }
    }

    pub fn len(&self) -> u32 {
        self.pages.len() as u32
    }

    pub fn is_zero(&self, index: u32) -> bool {
        page::is_zero(&self.pages[index as usize])
    }

    pub fn read(&self, index: u32, into: &mut PageBytes) {
        for (bytes, word) in into.as_chunks_mut::<8>().0.iter_mut().zip(&self.pages[index as usize]) {
            *bytes = word.to_le_bytes();
        }
    }
}
