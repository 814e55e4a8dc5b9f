//! The load itself: what every page should hold, writing, sweeping, and what was found wrong.
//!
//! What it is to be says [`plan`](crate::plan); here it is done. The working set is a row of
//! non-zero pages. Versions are kept beside the pages (16 bits each), so a page that went back in time is found.
//! A bad page is counted once, left as it is, and not touched again.

use crate::console::{Console, Hex, Show};
use crate::memory::Memory;
use crate::page::{self, Content, Damage, Identity, Page, WORDS};
use crate::params::{Corruption, Params};
use crate::pattern::Chooser;
use crate::plan::{self, BAD, Kind, first, kind, next_version};
use crate::rng::Rng;

/// Work that could not be done in this long is dropped, so that the load does not run after a pause.
const BACKLOG_US: u64 = 100_000;
/// While writes are behind, one step in this many still goes to the sweep.
const SWEEP_SHARE: u32 = 8;
/// How many bad pages are described on the console; all are counted.
const REPORTS: usize = 8;
/// Pages between two calls back while memory is filled. Where every instruction is emulated, a page takes milliseconds.
const FILL_BREATH_PAGES: u32 = 256;

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub pages: u32,
    pub zero: u32,
    pub dup: u32,
    pub text: u32,
    pub random: u32,
    pub set: u32,
}

/// One bad page, as the console shows it.
pub struct Report {
    index: u32,
    address: u64,
    kind: Kind,
    damage: Option<Damage>,
    expected_version: u16,
    found: Identity,
}

impl Show for Report {
    fn show(&self, console: &mut Console) {
        let kind = match self.kind {
            Kind::Zero => "zero",
            Kind::Dup => "dup",
            Kind::Own(Content::Text) => "text",
            Kind::Own(Content::Random) => "random",
        };
        let damage = match self.damage {
            None => "not-zero",
            Some(Damage::Identity) => "identity",
            Some(Damage::Sum) => "sum",
        };
        let parts: &[&dyn Show] = &[
            &"bad page=",
            &self.index,
            &" address=",
            &Hex(self.address),
            &" kind=",
            &kind,
            &" damage=",
            &damage,
            &" expected_version=",
            &self.expected_version,
            &" found_index=",
            &Hex(u64::from(self.found.index)),
            &" found_version=",
            &self.found.version,
        ];
        parts.show(console);
    }
}

/// So much per second, in whole pieces, never more than [`BACKLOG_US`] behind.
struct Quota {
    per_s: u64,
    /// In millionths of a piece.
    credit: u64,
}

impl Quota {
    fn grant(&mut self, elapsed_us: u64) {
        self.credit = (self.credit + self.per_s * elapsed_us).min(self.per_s * BACKLOG_US + 1_000_000);
    }

    fn take(&mut self) -> bool {
        let any = self.credit >= 1_000_000;
        if any {
            self.credit -= 1_000_000;
        }
        any
    }
}

pub struct Load {
    memory: Memory,
    params: Params,
    pages: u32,
    versions: &'static mut [u16],
    /// The non-zero pages in order; the working set is a window on it.
    filled: &'static mut [u32],
    counts: Counts,
    chooser: Chooser,
    rng: Rng,
    started_us: u64,
    now_us: u64,
    write_quota: Quota,
    sweep_quota: Quota,
    steps: u32,
    window_start: u32,
    sweep_at: u32,
    sweeps: u64,
    writes: u64,
    bad: u64,
    reports: [Option<Report>; REPORTS],
    reported: usize,
    corrupted: bool,
}

impl Load {
    /// Takes its tables from `memory` and plans every page. `None`: no room.
    pub fn new(mut memory: Memory, params: Params) -> Option<Load> {
        let all = memory.pages();
        let versions = memory.take_table::<u16>(all as usize)?;
        let most_filled = (1..all).filter(|&index| kind(&params, index) != Kind::Zero).count() + 1;
        let filled = memory.take_table::<u32>(most_filled)?;
        let pages = memory.pages();
        let mut counts = Counts { pages, ..Counts::default() };
        let mut len = 0;
        for index in 0..pages {
            match kind(&params, index) {
                Kind::Zero => counts.zero += 1,
                Kind::Dup => counts.dup += 1,
                Kind::Own(Content::Text) => counts.text += 1,
                Kind::Own(Content::Random) => counts.random += 1,
            }
            if kind(&params, index) != Kind::Zero && len < filled.len() {
                filled[len] = index;
                len += 1;
            }
        }
        let filled = &mut filled[..len];
        counts.set = params.set_pages.min(len as u32);
        Some(Load {
            pages,
            versions,
            filled,
            counts,
            chooser: Chooser::new(params.pattern, counts.set, params.zipf_root),
            rng: Rng::new(params.seed, u64::MAX),
            started_us: 0,
            now_us: 0,
            write_quota: Quota { per_s: 0, credit: 0 },
            sweep_quota: Quota { per_s: u64::from(params.sweep_pages_per_s), credit: 0 },
            steps: 0,
            window_start: 0,
            sweep_at: 0,
            sweeps: 0,
            writes: 0,
            bad: 0,
            reports: [const { None }; REPORTS],
            reported: 0,
            corrupted: false,
            memory,
            params,
        })
    }

    /// Puts version 0 into every page; calls `now_and_then` often enough for any clock.
    pub fn fill(&mut self, mut now_and_then: impl FnMut()) {
        let seed = self.params.seed;
        for index in 0..self.pages {
            if index.is_multiple_of(FILL_BREATH_PAGES) {
                now_and_then();
            }
            let kind = kind(&self.params, index);
            let page = self.memory.page(index);
            match kind {
                // What the firmware left behind; a page that is zero already is not written.
                Kind::Zero if page::is_zero(page) => {}
                Kind::Zero => page.fill(0),
                Kind::Dup => page::create(page, first(index, kind), Content::Text, seed),
                Kind::Own(content) => page::create(page, first(index, kind), content, seed),
            }
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// How often the sweep has come round.
    pub fn sweeps(&self) -> u64 {
        self.sweeps
    }

    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// The next description of a bad page that has not been taken yet.
    pub fn take_report(&mut self) -> Option<Report> {
        let report = self.reports.get_mut(self.reported)?.take();
        self.reported += usize::from(report.is_some());
        report
    }

    pub fn start(&mut self, now_us: u64) {
        self.started_us = now_us;
        self.now_us = now_us;
    }

    /// Grants what has become due; [`Load::step`] does it.
    pub fn advance(&mut self, now_us: u64) {
        let elapsed_us = now_us - self.now_us;
        self.now_us = now_us;
        let since_start_us = now_us - self.started_us;
        let pace_ppm = plan::pace_ppm(&self.params, since_start_us);
        self.write_quota.per_s = u64::from(self.params.rate_pages_per_s) * pace_ppm / 1_000_000;
        self.write_quota.grant(elapsed_us);
        self.sweep_quota.grant(elapsed_us);
        let room = self.filled.len() as u64 - u64::from(self.counts.set);
        self.window_start = plan::window_start(&self.params, since_start_us, room);
        if !self.corrupted && since_start_us >= u64::from(self.params.corrupt_after_ms) * 1000 {
            self.corrupted = true;
            self.corrupt();
        }
    }

    /// Does one page's work; `false` when nothing is due.
    pub fn step(&mut self) -> bool {
        self.steps = self.steps.wrapping_add(1);
        let sweep_first = self.steps.is_multiple_of(SWEEP_SHARE);
        if sweep_first && self.sweep_quota.take() {
            self.sweep_one();
        } else if self.counts.set > 0 && self.write_quota.take() {
            self.write_one();
        } else if !sweep_first && self.sweep_quota.take() {
            self.sweep_one();
        } else {
            return false;
        }
        true
    }

    fn write_one(&mut self) {
        let slot = self.window_start + self.chooser.next(&mut self.rng);
        let index = self.filled[slot as usize];
        if !self.check(index) {
            return;
        }
        let version = next_version(page::identity(self.memory.page(index)).version);
        let kind = kind(&self.params, index);
        let content = plan::written(&self.params, kind);
        let to = Identity { index, version };
        let bytes = plan::change_bytes(&self.params, &mut self.rng);
        let page = self.memory.page(index);
        if bytes >= size_of::<Page>() {
            page::create(page, to, content, self.params.seed);
        } else {
            page::change(page, to, plan::body_change_bytes(bytes), content, &mut self.rng);
        }
        self.versions[index as usize] = version as u16;
        self.writes += 1;
    }

    fn sweep_one(&mut self) {
        let index = self.sweep_at;
        self.sweep_at += 1;
        if self.sweep_at == self.pages {
            self.sweep_at = 0;
            self.sweeps += 1;
        }
        self.check(index);
    }

    /// Is the page what it should be? A bad one is counted, reported and retired.
    fn check(&mut self, index: u32) -> bool {
        let expected_version = self.versions[index as usize];
        if expected_version == BAD {
            return false;
        }
        let kind = kind(&self.params, index);
        let page = self.memory.page(index);
        let damage = match kind {
            Kind::Zero if page::is_zero(page) => return true,
            Kind::Zero => None,
            _ => {
                let expected = if expected_version == 0 { first(index, kind).index } else { index };
                match page::verify(page, expected, expected_version) {
                    Ok(()) => return true,
                    Err(damage) => Some(damage),
                }
            }
        };
        let found = page::identity(page);
        self.versions[index as usize] = BAD;
        if let Some(slot) = self.reports.get_mut(self.bad as usize) {
            let address = self.memory.address(index);
            *slot = Some(Report { index, address, kind, damage, expected_version, found });
        }
        self.bad += 1;
        false
    }

    fn corrupt(&mut self) {
        let zero = (0..self.pages).find(|&index| kind(&self.params, index) == Kind::Zero);
        let (Some(&one), Some(&other)) = (self.filled.first(), self.filled.last()) else { return };
        match self.params.corruption {
            Corruption::None => {}
            Corruption::Flip => self.memory.page(one)[WORDS / 2] ^= 1 << 17,
            Corruption::Dirty => {
                if let Some(zero) = zero {
                    self.memory.page(zero)[WORDS / 2] = 1 << 17;
                }
            }
            // A version that the page really had, and a table that knows of a later one.
            Corruption::Stale => {
                let version = page::identity(self.memory.page(one)).version;
                self.versions[one as usize] = next_version(version) as u16;
            }
            Corruption::Wipe => self.memory.page(one).fill(0),
            Corruption::Swap => {
                let kept = *self.memory.page(one);
                let moved = *self.memory.page(other);
                *self.memory.page(one) = moved;
                *self.memory.page(other) = kept;
            }
        }
    }
}
