//! Every knob of the engine, with unit, default and the reason for it.

use std::time::Duration;

use crate::codec::choice::ChooserConfig;
use crate::types::PAGE_BYTES;

/// The knobs of a [`crate::Source`].
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The most pages a guest may have. Default 2^28 (1 TiB): bounds the page table before it is allocated.
    pub max_pages: u32,
    /// Memory for page contents and stream bytes that were taken in and not yet sent, in bytes, overhead
    /// included. Default 256 MiB: the working set of most guests fits, so that it is superseded and not sent.
    pub staging_bytes: usize,
    /// The same once raw relay has begun, if it is less. Default 8 MiB: nothing is superseded there, and more would only hide from
    /// who writes the stream how slow the link is.
    pub raw_staging_bytes: usize,
    /// Page buffers kept for reuse when staging shrinks, in bytes. Default 8 MiB: a few windows' worth, so that
    /// the steady state allocates nothing; the rest goes back to the allocator.
    pub pool_bytes: usize,
    /// Raw bytes of one chunk. Default 128 KiB: LZ4's window is 64 KiB, a header and a tag are noise beside it,
    /// and at 100 Mbit/s it takes 10 ms.
    pub chunk_bytes: usize,
    /// Zero runs of one chunk. Default 4096 (32 KiB of records).
    pub chunk_zero_runs: usize,
    /// References of one chunk to contents the peer has. Default 4096: 16 MiB of memory.
    pub chunk_refs: usize,
    /// Threads that encode. Default 2: a small machine's cores.
    pub workers: usize,
    /// How a chunk's method is chosen, and what is believed of the methods before any was used.
    pub choice: ChooserConfig,
    /// Encode jobs under way at once. Default 4: two per worker on a small machine keep both busy.
    pub encode_jobs: usize,
    /// Encoded bytes that may wait for a lane, at least. Default 512 KiB: what eight lanes take at once before
    /// goodput is known.
    pub window_bytes: u64,
    /// The same as time at the link's goodput; the larger counts. Default 20 ms: one scheduling hiccup of a
    /// busy host. Deeper queues only make superseding end earlier.
    pub window: Duration,
    /// Encoded bytes that may wait while the lanes' windows open, at most. Default 64 MiB: the workers have little else to do then, and
    /// later less than the wire asks of them. What is encoded ahead is not superseded any more; but no page has come again yet.
    pub ahead_bytes: u64,
    /// For how long that is, in round trips. Default 10: slow start from 8 x 14 kB to 1 GB takes 13, to 1 Gbit/s x 120 ms 7.
    pub ahead_round_trips: u64,
    /// Chunks issued beyond the last one of which everything before has been acknowledged. Default 32768: half
    /// of what a receiver tracks ([`ReceiverConfig::max_ahead`]).
    pub max_ahead: u32,
    /// Saving by compression, in 1/1000 of the raw bytes, below which a chunk is stored. Default 30: less is not worth the
    /// receiver's work.
    pub min_saving_permille: u32,
    /// Deltas against what was last sent. Default [`Delta::Auto`].
    pub delta: Delta,
    /// Contents kept at both ends for pages that are alike. Default 4096 (16 MiB at each end): what many pages share is most
    /// often one of a few. 0: sameness is found within a chunk only.
    pub dictionary_slots: u16,
    /// The time in which a page that does not come again loses half of its heat. Default 2 s: several passes, and
    /// the bursts of most guests.
    pub heat_half_life: Duration,
    /// While the guest runs, the source's next pass is taken in when this part of the time that what waits will take has gone by. Default 8:
    /// superseding ends at a page's turn, and a pass more only brings pages before theirs, each copied in vain.
    pub passes_per_residual: u32,
    /// Bounds of that. Defaults 40 ms and 1 s: what a guest dirties in the least is part of its stop, and a page that comes again within the
    /// most is hot.
    pub pass_pause_least: Duration,
    pub pass_pause_most: Duration,
    /// How QEMU is kept from stopping the guest by itself. Default [`HoldBack::Ack`].
    pub hold_back: HoldBack,
    /// The tail goes as it comes, as it must where nobody says where it ends. Default false: it goes in large pieces, the last one at its end.
    pub tail_as_it_comes: bool,
    /// After QEMU said that nothing is dirty, how long it is left alone. Default 2 ms: held back it would search its
    /// bitmap 20000 times a second.
    pub idle_pause: Duration,
    /// How often the policy is asked between passes. Default 10 ms: the length of the guest's time slice, and small
    /// beside every round trip worth a migration over a WAN.
    pub policy_interval: Duration,
    /// Weight of the newest chunk in the running ratio of encoded to raw bytes, in 1/1000. Default 30: the last
    /// few megabytes count.
    pub ratio_weight_permille: u32,
    /// Time constant of the measured dirty rate. Default 1 s: several passes.
    pub dirty_rate_window: Duration,
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig {
            max_pages: 1 << 28,
            staging_bytes: 256 << 20,
            raw_staging_bytes: 8 << 20,
            pool_bytes: 8 << 20,
            chunk_bytes: 128 << 10,
            chunk_zero_runs: 4096,
            chunk_refs: 4096,
            workers: 2,
            choice: ChooserConfig::default(),
            encode_jobs: 4,
            window_bytes: 512 << 10,
            window: Duration::from_millis(20),
            ahead_bytes: 64 << 20,
            ahead_round_trips: 10,
            max_ahead: 32768,
            min_saving_permille: 30,
            delta: Delta::Auto,
            dictionary_slots: 4096,
            heat_half_life: Duration::from_secs(2),
            passes_per_residual: 8,
            pass_pause_least: Duration::from_millis(40),
            pass_pause_most: Duration::from_secs(1),
            hold_back: HoldBack::Ack,
            tail_as_it_comes: false,
            idle_pause: Duration::from_millis(2),
            policy_interval: Duration::from_millis(10),
            ratio_weight_permille: 30,
            dirty_rate_window: Duration::from_secs(1),
        }
    }
}

/// Whether pages that were sent before go as deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// Never: no base is kept.
    Off,
    /// As [`Delta::Always`], with a quarter of the guest's memory, at most 1 GiB: the working set of most guests.
    Auto,
    /// Whenever the base is at hand and the delta is smaller than the page.
    Always {
        /// Memory for what was last sent, in bytes, overhead included; 0 keeps nothing.
        base_budget_bytes: usize,
    },
}

impl Delta {
    /// Memory for what was last sent, of a guest of so many pages.
    pub fn budget_bytes(self, pages: u32) -> usize {
        match self {
            Delta::Off => 0,
            Delta::Auto => (pages as usize / 4).saturating_mul(PAGE_BYTES).min(1 << 30),
            Delta::Always { base_budget_bytes } => base_budget_bytes,
        }
    }
}

/// How QEMU is kept from stopping the guest before the engine is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldBack {
    /// By withholding SWITCHOVER_ACK: staging may use its whole budget.
    Ack,
    /// By taking no more from QEMU than the link carries within this time (times the ratio of compression), so that
    /// QEMU's own rate is the link's.
    Rate(Duration),
}

/// The knobs of a [`crate::Receiver`].
#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// The most pages a guest may have. Default 2^28 (1 TiB).
    pub max_pages: u32,
    /// Memory for chunks that wait for an earlier one, in bytes, overhead included. Default 160 MiB: more than the
    /// credit the peer gets, so that only a peer that breaks the rules meets it.
    pub park_budget_bytes: usize,
    /// Chunks numbered further than this beyond the last of which everything before has been applied are
    /// refused. Default 65536: bounds what is remembered of them to 8 KiB.
    pub max_ahead: u32,
    /// Raw bytes of one chunk. Default 512 KiB: twice the largest a source makes.
    pub max_chunk_bytes: usize,
    /// Contents of pages that the source may have kept here and then refer to; 0 = none. Default 4096 (16 MiB): memory is
    /// allocated when a slot is first used.
    pub dictionary_slots: u16,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        ReceiverConfig {
            max_pages: 1 << 28,
            park_budget_bytes: 160 << 20,
            max_ahead: 65536,
            max_chunk_bytes: 512 << 10,
            dictionary_slots: 4096,
        }
    }
}
