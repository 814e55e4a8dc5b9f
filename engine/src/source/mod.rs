//! The source of a migration: what was taken in and not sent, and what is under way.
//!
//! | file | what it holds |
//! |---|---|
//! | `table`, `heat` | per page: 12 bytes and a bit; how often it comes again |
//! | `staging`, `pool` | the newest content of what was not sent, the coldest first |
//! | `dictionary` | contents that occur on many pages, for references |
//! | `stream` | opaque, raw and tail bytes |
//! | `window`, `issue`, `job` | which chunk is made when, and its encoding |
//! | `passes`, `decide` | QEMU's passes, the residual, the policy |
//! | `bases` | what was last sent, for deltas |
//! | `speed` | how each chunk is compressed, by what encoding and the wire are measured to do |
//! | `limiter` | what may be sent per second, where a policy sets that |
//!
//! Invariants:
//! * What a page holds at the peer in the end is what was fed of it last: a staged version is newer than every chunk
//!   issued, chunks are numbered in the order in which versions were fed, and the peer applies the newest number.
//! * A chunk's content never changes once [`Action::Encode`] has left: superseding ends there.
//! * Pages go after all opaque bytes fed before them (`after`); raw and tail bytes after everything.

mod bases;
mod decide;
mod dictionary;
mod heat;
mod issue;
mod job;
mod limiter;
mod passes;
mod pool;
mod speed;
mod staging;
mod stream;
mod table;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use bases::Bases;
use dictionary::Dictionary;
use heat::Epoch;
use job::PagesWork;
pub use job::{EncodeJob, EncodeScratch, Encoded};
use limiter::Limiter;
use passes::Passes;
use pool::Pool;
use speed::Speed;
use staging::{NO_SLOT, SLOT_COST_BYTES, Staging};
use stream::StreamQueue;
use table::PageTable;
use window::Window;

use crate::config::{HoldBack, SourceConfig};
use crate::precopy::{AbortReason, Encodings, Policy, Prediction, Terms};
use crate::types::{ChunkSeq, LinkStats, PAGE_BYTES, PageBytes, PageId, Time};

/// What the caller has to do.
#[derive(Debug)]
pub enum Action {
    /// Run this on any thread and give the result to [`Source::encoded`].
    Encode(EncodeJob),
    /// Hand this to the transport. Numbers come without gaps.
    Send(Chunk),
    /// Stop the guest now; then [`Source::guest_stopped`].
    Switch,
    /// Take this share (0.0-0.99) of its time from the guest.
    Throttle(f32),
    /// Give up; the guest stays here. Nothing else follows.
    Abort(AbortReason),
    /// Call [`Source::poll`] at this time if nothing happens before. Replaces the last one.
    WakeAt(Time),
}

/// A chunk, immutable: if it has to be sent again it goes with the same number and the same payload.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub seq: ChunkSeq,
    /// Everything up to this number has to be applied before; [`ChunkSeq::NONE`] if nothing.
    pub after: ChunkSeq,
    pub payload: Arc<[u8]>,
}

/// What is known of a dirty-bitmap sync of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncInfo {
    /// QEMU's `dirty-sync-count`.
    pub count: Option<u64>,
    /// Pages that are dirty in QEMU and not yet emitted.
    pub dirty_pages: Option<u64>,
}

/// Where a migration stands. Counts are since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    pub pages_total: u64,
    /// Distinct pages taken in at least once.
    pub pages_seen: u64,
    /// Pages that wait, zero pages included.
    pub pages_staged: u64,
    /// What was taken in, zero pages at their full size.
    pub bytes_raw_in: u64,
    /// Payload made so far.
    pub bytes_encoded: u64,
    /// Versions of pages in chunks, zero pages included.
    pub pages_sent: u64,
    /// Of them, as deltas.
    pub deltas_sent: u64,
    /// Of them, as references into the dictionary.
    pub refs_sent: u64,
    /// Staged versions that were replaced and never crossed the link.
    pub superseded: u64,
    /// Versions that were what the peer had already.
    pub unchanged: u64,
    /// Zero pages taken in.
    pub zero_pages: u64,
    /// Passes of QEMU that have ended.
    pub pass: u32,
    pub chunks_issued: ChunkSeq,
    /// Chunks the peer has not applied yet.
    pub chunks_under_way: u64,
    /// What would cross the link if the guest were stopped now.
    pub residual_bytes_encoded: u64,
    /// None as long as it cannot be told.
    pub predicted_stop_ms: Option<u64>,
    /// The same, term by term.
    pub prediction: Prediction,
    /// Pages that come again per second, smoothed.
    pub dirty_pages_per_s: u64,
    /// Encoded bytes per raw byte, of the last chunks.
    pub ratio: f64,
    pub memory_bytes: usize,
}

/// The layout was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("the guest has {pages} pages, at most {max_pages} are allowed")]
    TooManyPages { pages: u32, max_pages: u32 },
    #[error("the guest's layout is already known")]
    Known,
}

/// See the module.
pub struct Source {
    config: SourceConfig,
    policy: Box<dyn Policy>,
    table: PageTable,
    layout_at: Option<Time>,
    staging: Staging,
    pool: Pool,
    bases: Option<Bases>,
    dictionary: Dictionary,
    speed: Speed,
    limiter: Limiter,
    encodings: Encodings,
    epoch: Epoch,
    opaque: StreamQueue,
    raw: StreamQueue,
    tail: StreamQueue,
    tail_complete: bool,
    window: Window,
    passes: Passes,
    /// The last chunk with opaque bytes: pages go after it.
    last_opaque: ChunkSeq,
    /// Encoded, not yet polled. Workers finish in any order; chunks leave in the order of their numbers, so that
    /// what the receiver and the acknowledgements have to remember stays small.
    ready: BTreeMap<ChunkSeq, Chunk>,
    sent_through: ChunkSeq,
    ready_bytes: usize,
    /// Memory of jobs that came back, for the next ones.
    spare_work: Vec<PagesWork>,
    /// Pages in jobs.
    encoding_pages: usize,
    /// Of the pages staged and of those in jobs, those that were sent before.
    staged_again: usize,
    encoding_again: usize,
    /// Bytes of streams in jobs.
    encoding_stream_bytes: usize,
    phase: Phase,
    idle_until: Option<Time>,
    next_decision: Time,
    /// The policy is not asked just now.
    undecided: bool,
    throttle: f32,
    wake: Option<Time>,
    polled_at: Time,
    fault: Option<AbortReason>,
    terms: Terms,
    /// Encoded by raw bytes of pages that are sent for the first time, and of others once there are any.
    ratio: f64,
    ratio_again: Option<f64>,
    /// When it was last learned, or began to be.
    sampled_at: Option<Time>,
    counts: Counts,
}

/// Where the guest is, as far as the engine has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It runs here and the policy is asked.
    Live,
    /// The policy wants it stopped; it runs until the caller has done so.
    Switching,
    /// It stands still.
    Stopped,
    /// The engine has given up.
    Aborted,
}

#[derive(Debug, Default)]
struct Counts {
    pages_seen: u64,
    bytes_raw_in: u64,
    bytes_encoded: u64,
    pages_sent: u64,
    superseded: u64,
    zero_pages: u64,
    deltas_sent: u64,
    refs_sent: u64,
    unchanged: u64,
}

impl Source {
    pub fn new(config: SourceConfig, policy: Box<dyn Policy>) -> Self {
        let piece = config.chunk_bytes;
        Source {
            table: PageTable::new(0),
            layout_at: None,
            staging: Staging::new(),
            pool: Pool::new(config.pool_bytes),
            bases: None,
            dictionary: Dictionary::new(0, 0),
            speed: Speed::new(config.workers, config.choice.clone()),
            limiter: Limiter::default(),
            encodings: policy.encodings(),
            epoch: Epoch::default(),
            opaque: StreamQueue::new(piece),
            raw: StreamQueue::new(piece),
            tail: StreamQueue::new(piece),
            tail_complete: false,
            window: Window::new(),
            passes: Passes::new(),
            last_opaque: ChunkSeq::NONE,
            ready: BTreeMap::new(),
            sent_through: ChunkSeq::NONE,
            ready_bytes: 0,
            spare_work: Vec::new(),
            encoding_pages: 0,
            staged_again: 0,
            encoding_again: 0,
            encoding_stream_bytes: 0,
            phase: Phase::Live,
            idle_until: None,
            next_decision: Time::default(),
            undecided: false,
            throttle: 0.0,
            wake: None,
            polled_at: Time::default(),
            fault: None,
            terms: Terms::default(),
            ratio: 1.0,
            ratio_again: None,
            sampled_at: None,
            counts: Counts::default(),
            config,
            policy,
        }
    }

    /// The guest has `pages` pages. Before it only [`Source::opaque`] and [`Source::raw`] are allowed.
    pub fn layout(&mut self, now: Time, pages: u32) -> Result<(), LayoutError> {
        if self.layout_at.is_some() {
            return Err(LayoutError::Known);
        }
        if pages > self.config.max_pages {
            return Err(LayoutError::TooManyPages { pages, max_pages: self.config.max_pages });
        }
        self.table = PageTable::new(pages);
        let slots = if self.encodings.dictionary { self.config.dictionary_slots } else { 0 };
        self.dictionary = Dictionary::new(slots, pages);
        let budget_bytes = if self.encodings.delta { self.config.delta.budget_bytes(pages) } else { 0 };
        self.bases = (budget_bytes > 0).then(|| Bases::new(budget_bytes));
        self.layout_at = Some(now);
        self.next_decision = now;
        self.passes.started(now, pages);
        Ok(())
    }

    /// What may be in the dictionary at most, as the peer said; before the layout.
    pub fn dictionary_slots(&mut self, slots: u16) {
        self.config.dictionary_slots = self.config.dictionary_slots.min(slots);
    }

    /// How QEMU is kept from stopping the guest by itself, where that is known only now.
    pub fn hold_back(&mut self, hold_back: HoldBack) {
        self.config.hold_back = hold_back;
    }

    /// Stream bytes to be carried verbatim, in order with each other. Pages fed later are applied after them; pages fed earlier
    /// may be applied before or after.
    pub fn opaque(&mut self, bytes: &[u8]) {
        if self.in_order("opaque bytes", Feed::Pages) {
            self.opaque.push(bytes);
        }
    }

    /// Page `page` now holds `content`. Replaces what is staged of it.
    pub fn page(&mut self, now: Time, page: PageId, content: &PageBytes) {
        if !self.in_order("a page", Feed::Pages) {
            return;
        }
        let Some(meta) = self.table.get_mut(page) else { return self.outside(page) };
        self.counts.bytes_raw_in += PAGE_BYTES as u64;
        let again = meta.seen;
        if again {
            meta.heat.touch(self.epoch);
        } else {
            meta.seen = true;
            self.counts.pages_seen += 1;
        }
        let class = meta.heat.class(self.epoch);
        if meta.slot == NO_SLOT {
            meta.slot = self.staging.push(page, class, content, &mut self.pool);
            if meta.sent != ChunkSeq::NONE {
                self.staged_again += 1;
                if let Some(bases) = &mut self.bases {
                    bases.came_again(page);
                }
            }
            if self.table.zeros.remove(page) {
                self.counts.superseded += 1;
            }
        } else {
            self.staging.replace(meta.slot, class, content);
            self.counts.superseded += 1;
        }
        self.took_in(now, page, 1, again.into());
    }

    /// `run` pages from `first` on are now zero.
    pub fn zero(&mut self, now: Time, first: PageId, run: u32) {
        if !self.in_order("zero pages", Feed::Pages) {
            return;
        }
        let Some(end) = first.0.checked_add(run).filter(|end| *end <= self.table.len()) else {
            return self.outside(PageId(first.0.saturating_add(run.saturating_sub(1))));
        };
        if !self.encodings.zero {
            return (first.0..end).for_each(|page| self.page(now, PageId(page), &[0; PAGE_BYTES]));
        }
        let mut again = 0;
        for page in (first.0..end).map(PageId) {
            let Some(meta) = self.table.get_mut(page) else { continue };
            if meta.seen {
                again += 1;
                meta.heat.touch(self.epoch);
            } else {
                meta.seen = true;
                self.counts.pages_seen += 1;
            }
            if meta.slot != NO_SLOT {
                self.staging.remove(meta.slot, &mut self.pool);
                meta.slot = NO_SLOT;
                self.staged_again -= usize::from(meta.sent != ChunkSeq::NONE);
                self.counts.superseded += 1;
            }
            // What was last sent is zero and everything staged since is gone: nothing to send.
            if meta.sent_zero() {
                self.counts.unchanged += 1;
            } else if !self.table.zeros.insert(page) {
                self.counts.superseded += 1;
            }
        }
        self.counts.zero_pages += u64::from(run);
        self.counts.bytes_raw_in += u64::from(run) * PAGE_BYTES as u64;
        self.took_in(now, first, run, again);
    }

    /// `run` pages from `first` on are dirty again and left to the next pass, where the policy wants that ([`Policy::skips_redirtied`]).
    pub fn skipped(&mut self, now: Time, first: PageId, run: u32) {
        self.passes.skipped(now, first, run);
    }

    /// All of RAM has been gone over, says a source that knows; after the [`Source::sync`] that belongs to it. Without it passes are seen by
    /// their pages' numbers.
    pub fn pass_ended(&mut self, now: Time) {
        self.passes.told_end(now);
    }

    /// Whether the policy wants pages skipped.
    pub fn skips_redirtied(&self) -> bool {
        self.policy.skips_redirtied()
    }

    /// Bytes that may be fed before staging is full. Feeding more is allowed and makes it 0.
    pub fn intake_room(&self) -> usize {
        let used = (self.staging.len() + self.encoding_pages) * SLOT_COST_BYTES
            + self.opaque.queued_bytes()
            + self.raw.queued_bytes()
            + self.tail.queued_bytes()
            + self.encoding_stream_bytes
            + self.ready_bytes;
        self.staging_budget().saturating_sub(used)
    }

    /// Nothing is to be taken in until then: the source had nothing dirty, or its next pass is not due.
    pub fn intake_resumes_at(&self) -> Option<Time> {
        self.idle_until
    }

    /// Raw relay: stream bytes applied after everything fed before. No pages may follow.
    pub fn raw(&mut self, bytes: &[u8]) {
        if self.in_order("raw bytes", Feed::Raw) {
            self.counts.bytes_raw_in += bytes.len() as u64;
            self.raw.push(bytes);
        }
    }

    /// QEMU has synced its dirty bitmap; what it says is left serves the prediction. Passes are seen without it.
    pub fn sync(&mut self, now: Time, info: SyncInfo) {
        self.passes.synced(now, info);
    }

    /// The source said that nothing is dirty (an empty PART).
    pub fn idle(&mut self, now: Time) {
        self.passes.idle(now);
        if self.phase != Phase::Stopped {
            self.idle_until = Some(now.plus(self.config.idle_pause));
        }
    }

    /// The guest stands still: everything goes out as fast as it can, the policy is asked no more.
    pub fn guest_stopped(&mut self, now: Time) {
        if self.phase != Phase::Aborted {
            self.phase = Phase::Stopped;
            self.idle_until = None;
            self.passes.measure(now, self.config.dirty_rate_window);
        }
    }

    /// The guest runs on here after all, and copying goes on. Not possible any more once the tail has begun: that needs
    /// another stream, hence another session.
    pub fn guest_resumed(&mut self, now: Time) {
        if self.tail.begun() || self.tail_complete {
            self.fault = Some(AbortReason::OutOfOrder { what: "the guest resumed", after: "the tail" });
        } else if self.phase != Phase::Aborted {
            self.phase = Phase::Live;
            self.next_decision = now.plus(self.config.policy_interval);
            self.policy.resumed(now);
        }
    }

    /// Bytes after the end of RAM, applied after everything fed before.
    pub fn tail(&mut self, bytes: &[u8]) {
        if self.in_order("the tail", Feed::Tail) {
            self.tail.push(bytes);
        }
    }

    /// The tail is complete (also when there is none: raw relay's end).
    pub fn tail_done(&mut self) {
        self.tail_complete = true;
    }

    /// After [`Source::tail_done`] and once everything fed is in numbered chunks: the last number, for GO to name. Some of these
    /// chunks may still be with the encoder.
    pub fn last_seq(&self) -> Option<ChunkSeq> {
        (self.tail_complete && self.nothing_waits()).then_some(self.window.issued)
    }

    /// Everything fed has been applied by the peer.
    pub fn is_drained(&self) -> bool {
        self.nothing_waits() && self.window.chunks_under_way() == 0
    }

    /// The peer has applied all chunks up to `cumulative`, and `ranges` (both ends included).
    pub fn acked(&mut self, now: Time, cumulative: ChunkSeq, ranges: &[(ChunkSeq, ChunkSeq)]) {
        self.window.acked(now, cumulative, ranges);
    }

    /// What the transport knows now.
    pub fn link(&mut self, now: Time, stats: LinkStats) {
        self.window.linked(now, stats, self.ready_bytes);
    }

    /// The deadline has come, for a caller that keeps its own: what the policy does then, it does now.
    pub fn deadline_passed(&mut self, now: Time) {
        self.policy.late(now);
    }

    /// The peer is not reached, and nothing is decided meanwhile; or it is reached again.
    pub fn outage(&mut self, now: Time, down: bool) {
        if std::mem::replace(&mut self.undecided, down) && !down {
            self.next_decision = now.plus(self.config.policy_interval);
            self.policy.resumed(now);
        }
    }

    /// This share of its time is really being taken from the guest. To be told again and again after [`Action::Throttle`] by a
    /// caller whose guest obeys late; one that is never told this has obeyed at once.
    pub fn throttled(&mut self, now: Time, share: f32) {
        self.policy.throttled(now, share);
    }

    /// What the caller has measured of the stop outside the engine.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// What has to be done; call it until it is None, after every event or after all events of one wake-up.
    pub fn poll(&mut self, now: Time) -> Option<Action> {
        self.polled_at = now;
        self.epoch = Epoch::of(now, self.config.heat_half_life);
        self.limiter.set(now, self.policy.limit_bytes_per_s());
        if self.phase == Phase::Aborted {
            return None;
        }
        if let Some(why) = self.fault.take() {
            return Some(self.abort(why));
        }
        if self.idle_until.is_some_and(|until| until <= now) {
            self.idle_until = None;
        }
        let next = ChunkSeq(self.sent_through.0.saturating_add(1));
        if let Some(chunk) = self.ready.remove(&next) {
            self.sent_through = next;
            self.ready_bytes -= chunk.payload.len();
            return Some(Action::Send(chunk));
        }
        if let Some(job) = self.next_job() {
            return Some(Action::Encode(job));
        }
        if let Some(action) = self.ask_policy(now) {
            return Some(action);
        }
        self.wake_up(now)
    }

    /// Where the migration stood when [`Source::poll`] was last called.
    pub fn progress(&self) -> Progress {
        let residual = self.residual(self.polled_at);
        let prediction = self.predict(self.polled_at, &residual);
        Progress {
            pages_total: self.table.len().into(),
            pages_seen: self.counts.pages_seen,
            pages_staged: (self.staging.len() + self.table.zeros.len()) as u64,
            bytes_raw_in: self.counts.bytes_raw_in,
            bytes_encoded: self.counts.bytes_encoded,
            pages_sent: self.counts.pages_sent,
            deltas_sent: self.counts.deltas_sent,
            refs_sent: self.counts.refs_sent,
            superseded: self.counts.superseded,
            unchanged: self.counts.unchanged,
            zero_pages: self.counts.zero_pages,
            pass: self.passes.ended(),
            chunks_issued: self.window.issued,
            chunks_under_way: self.window.chunks_under_way(),
            residual_bytes_encoded: residual.encoded_bytes,
            predicted_stop_ms: (prediction.total_ns != u64::MAX).then_some(prediction.total_ns / 1_000_000),
            prediction,
            dirty_pages_per_s: self.passes.dirty_pages_per_s as u64,
            ratio: self.ratio,
            memory_bytes: self.memory_bytes(),
        }
    }

    /// Memory held, in bytes, overhead included; the budget covers the part that grows with what is staged.
    pub fn memory_bytes(&self) -> usize {
        self.metadata_bytes()
            + self.staging.memory_bytes()
            + self.pool.memory_bytes()
            + self.bases.as_ref().map_or(0, Bases::memory_bytes)
            + self.dictionary.entries_bytes()
            + self.opaque.memory_bytes()
            + self.raw.memory_bytes()
            + self.tail.memory_bytes()
            + self.encoding_stream_bytes
            + self.ready_bytes
    }

    /// Of it, what grows with the guest: at most 16 bytes per page.
    pub fn metadata_bytes(&self) -> usize {
        self.table.memory_bytes() + self.dictionary.marks_bytes()
    }

    /// Nothing fed is without a chunk.
    fn nothing_waits(&self) -> bool {
        self.staging.len() == 0
            && self.table.zeros.len() == 0
            && self.opaque.is_empty()
            && self.raw.is_empty()
            && self.tail.is_empty()
    }

    /// What the pages taken in mean for the passes, and for when the next one is due.
    fn took_in(&mut self, now: Time, first: PageId, run: u32, again: u64) {
        let ended = self.passes.ended();
        self.passes.took_in(now, first, run, again);
        if self.passes.ended() > ended && self.phase == Phase::Live && self.paces_passes() {
            self.pace(now);
        }
    }

    /// A source that is read at the rate of the link has no time to waste, and its passes are the link's.
    fn paces_passes(&self) -> bool {
        self.policy.paces_passes() && self.config.hold_back == HoldBack::Ack
    }

    /// Whether `what` may be fed now; otherwise it is a fault of the caller.
    fn in_order(&mut self, what: &'static str, feed: Feed) -> bool {
        let after = if self.tail_complete {
            "the end"
        } else if feed < Feed::Tail && self.tail.begun() {
            "the tail"
        } else if feed < Feed::Raw && self.raw.begun() {
            "raw relay"
        } else {
            return true;
        };
        self.fault.get_or_insert(AbortReason::OutOfOrder { what, after });
        false
    }

    fn outside(&mut self, page: PageId) {
        let pages = self.table.len();
        self.fault.get_or_insert(AbortReason::PageOutsideLayout { page: page.0, pages });
    }

    fn abort(&mut self, why: AbortReason) -> Action {
        self.phase = Phase::Aborted;
        Action::Abort(why)
    }
}

/// What is fed, in the only order allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Feed {
    Pages,
    Raw,
    Tail,
}
