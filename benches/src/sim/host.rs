//! The source host: passes over the guest's memory, put out at a rate, as QEMU does it, or Xen where the policy is one of its.
//!
//! | | QEMU | Xen 3 |
//! |---|---|---|
//! | a pass | the dirty bitmap taken, its pages in order | the same |
//! | a page dirty again at its turn | is put out | is skipped: the bitmap is looked at again after every batch |
//! | nothing dirty | says so, and searches again | the same |
//!
//! Both take the bitmap again as soon as a pass is over. Xen's tells the engine so; QEMU's stream does not. Pages of zeros cost less to put out.

use hikyaku_engine::precopy::historical::XEN_3_PEEK_PAGES;
use hikyaku_engine::{PAGE_BYTES, PageBytes, PageId, Source, SyncInfo, Time};

use super::bitmap::Bitmap;
use super::guest::Guest;

/// How fast the source host is.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// What it puts out, and the daemon takes in. Default 3.3 GB/s: one stream of QEMU 10 into a unix socket.
    pub bytes_per_s: f64,
    /// Memory found to be zero per second. Default 30 GB/s.
    pub zero_bytes_per_s: f64,
    /// Taking the dirty bitmap, guest running. Default 1 ms; a large guest's costs more.
    pub sync_ns: u64,
    /// Pages put out between two looks at what to skip.
    pub peek_pages: u64,
}

impl Default for HostConfig {
    fn default() -> Self {
        HostConfig {
            bytes_per_s: 3.3e9,
            zero_bytes_per_s: 30e9,
            sync_ns: 1_000_000,
            peek_pages: XEN_3_PEEK_PAGES,
        }
    }
}

/// A pass as the host saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassTrace {
    pub sent: u64,
    pub skipped: u64,
    /// When it was over: what the next one goes over.
    pub dirty: u64,
    pub began_ns: u64,
    pub duration_ns: u64,
}

/// See the module.
pub struct Host {
    config: HostConfig,
    /// What the pass still has to put out.
    pass: Bitmap,
    cursor: u32,
    /// Pages to be skipped, as last looked at; and how many may be put out before the next look.
    skip: Option<Bitmap>,
    peek_in: u64,
    syncs: u64,
    /// It is busy until then.
    free_at: f64,
    waits: bool,
    now_in: PassTrace,
    /// Passes that are over.
    pub passes: Vec<PassTrace>,
    buffer: Box<PageBytes>,
    pub pages_fed: u64,
    kind: HostKind,
}

/// Whose passes they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostKind {
    /// Pages dirty again at their turn are skipped.
    pub skips: bool,
    /// The engine is told when a pass is over.
    pub tells_passes: bool,
    /// Pages of zeros are put out as such.
    pub knows_zero: bool,
}

/// What came of feeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// The engine takes no more for now, or the host is busy.
    Waits,
    /// Everything was put out, and nothing is dirty.
    Clean,
}

impl Host {
    pub fn new(config: HostConfig, guest: &Guest, kind: HostKind) -> Self {
        Host {
            config,
            pass: Bitmap::full(guest.len()),
            cursor: 0,
            skip: kind.skips.then(|| Bitmap::new(guest.len())),
            peek_in: 0,
            syncs: 1,
            free_at: 0.0,
            waits: false,
            now_in: PassTrace::default(),
            passes: Vec::new(),
            buffer: Box::new([0; PAGE_BYTES]),
            pages_fed: 0,
            kind,
        }
    }

    /// It does nothing else for so long.
    pub fn busy(&mut self, now: u64, ns: u64) {
        self.free_at = self.free_at.max(now as f64) + ns as f64;
    }

    /// Nothing more is skipped: the guest stands still.
    pub fn guest_stopped(&mut self) {
        self.skip = None;
    }

    /// Puts out what it can.
    pub fn feed(&mut self, now: u64, guest: &mut Guest, source: &mut Source) -> Fed {
        if std::mem::take(&mut self.waits) {
            self.free_at = self.free_at.max(now as f64);
        }
        while self.free_at <= now as f64 {
            let resumes_at = source.intake_resumes_at();
            if resumes_at.is_some_and(|at| at > Time(now)) || source.intake_room() < PAGE_BYTES {
                self.waits = true;
                return Fed::Waits;
            }
            match self.pass.next(self.cursor) {
                Some(index) => self.page(now, index, guest, source),
                None if self.sync(now, guest, source) == 0 => {
                    self.waits = true;
                    return Fed::Clean;
                }
                None => {}
            }
        }
        Fed::Waits
    }

    fn page(&mut self, now: u64, index: u32, guest: &Guest, source: &mut Source) {
        self.pass.clear(index);
        self.cursor = index;
        if let Some(skip) = &mut self.skip {
            if self.peek_in == 0 {
                skip.copy_from(&guest.dirty);
                self.peek_in = self.config.peek_pages.max(1);
            }
            if skip.contains(index) {
                self.now_in.skipped += 1;
                source.skipped(Time(now), PageId(index), 1);
                return;
            }
            self.peek_in -= 1;
        }
        self.now_in.sent += 1;
        self.pages_fed += 1;
        let zero = self.kind.knows_zero && guest.is_zero(index);
        if zero {
            source.zero(Time(now), PageId(index), 1);
        } else {
            guest.read(index, &mut self.buffer);
            source.page(Time(now), PageId(index), &self.buffer);
        }
        let speed = if zero { self.config.zero_bytes_per_s } else { self.config.bytes_per_s };
        self.free_at += PAGE_BYTES as f64 * 1e9 / speed;
    }

    /// A pass is over; how many pages the next one has.
    fn sync(&mut self, now: u64, guest: &mut Guest, source: &mut Source) -> u64 {
        self.syncs += 1;
        self.cursor = 0;
        self.peek_in = 0;
        std::mem::swap(&mut self.pass, &mut guest.dirty);
        guest.dirty.clear_all();
        let dirty = self.pass.count();
        let over = PassTrace { dirty, duration_ns: now - self.now_in.began_ns, ..self.now_in };
        if over.sent + over.skipped > 0 {
            self.passes.push(over);
        }
        self.now_in = PassTrace { began_ns: now, ..PassTrace::default() };
        source.sync(Time(now), SyncInfo { count: Some(self.syncs), dirty_pages: Some(dirty) });
        if self.kind.tells_passes {
            source.pass_ended(Time(now));
        }
        self.busy(now, self.config.sync_ns);
        dirty
    }

    /// The pass under way, as far as it has come.
    pub fn under_way(&self, now: u64) -> PassTrace {
        PassTrace { duration_ns: now - self.now_in.began_ns, ..self.now_in }
    }
}
