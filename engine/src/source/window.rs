//! How much may be under way: few chunks, so that superseding ends late, yet enough that no lane runs dry.

use crate::config::SourceConfig;
use crate::source::job::chunk_most_bytes;
use crate::types::{ChunkSeq, LinkStats};

/// Chunks issued, and what the transport said last.
#[derive(Debug)]
pub(super) struct Window {
    pub link: LinkStats,
    /// Payload encoded that [`Window::link`] does not know of.
    unknown_bytes: u64,
    /// Encode jobs under way and what their payloads take at most.
    pub jobs: usize,
    jobs_most_bytes: u64,
    /// The last chunk number given out.
    pub issued: ChunkSeq,
    /// Everything up to this chunk has been applied by the peer.
    acked_through: ChunkSeq,
    /// Chunks beyond it that have been applied.
    acked_beyond: u64,
}

/// When chunks are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As late as the wire allows: what is not issued can be superseded.
    Late,
    /// Ahead of a wire that carries little yet.
    Ahead,
    /// As soon as can be.
    Hurry,
}

impl Window {
    pub(super) fn new() -> Self {
        Window {
            link: LinkStats::default(),
            unknown_bytes: 0,
            jobs: 0,
            jobs_most_bytes: 0,
            issued: ChunkSeq::NONE,
            acked_through: ChunkSeq::NONE,
            acked_beyond: 0,
        }
    }

    /// `held_bytes` are encoded and not yet with the transport.
    pub(super) fn linked(&mut self, link: LinkStats, held_bytes: usize) {
        self.link = link;
        self.unknown_bytes = held_bytes as u64;
    }

    pub(super) fn acked(&mut self, cumulative: ChunkSeq, ranges: &[(ChunkSeq, ChunkSeq)]) {
        self.acked_through = self.acked_through.max(cumulative.min(self.issued));
        self.acked_beyond = ranges
            .iter()
            .map(|(first, last)| (first.previous().max(self.acked_through), last.min(&self.issued)))
            .map(|(before, last)| u64::from(last.0.saturating_sub(before.0)))
            .sum();
    }

    pub(super) fn job_issued(&mut self, most_bytes: usize) {
        self.jobs += 1;
        self.jobs_most_bytes += most_bytes as u64;
    }

    pub(super) fn job_done(&mut self, most_bytes: usize) {
        self.jobs = self.jobs.saturating_sub(1);
        self.jobs_most_bytes = self.jobs_most_bytes.saturating_sub(most_bytes as u64);
    }

    pub(super) fn encoded(&mut self, payload_bytes: usize) {
        self.unknown_bytes += payload_bytes as u64;
    }

    /// Encoded bytes no lane has taken, as far as is known.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.link.unsent_bytes.saturating_add(self.unknown_bytes)
    }

    /// Neither a job nor a byte waits: the lanes would run dry.
    pub(super) fn is_dry(&self) -> bool {
        self.jobs == 0 && self.unsent_bytes() == 0
    }

    /// Everything up to this chunk has been applied by the peer.
    pub(super) fn acked_through(&self) -> ChunkSeq {
        self.acked_through
    }

    /// Chunks issued that the peer has not applied.
    pub(super) fn chunks_under_way(&self) -> u64 {
        u64::from(self.issued.0 - self.acked_through.0).saturating_sub(self.acked_beyond)
    }

    /// Whether another chunk may be issued. `ratio` is encoded by raw bytes.
    pub(super) fn has_room(&self, config: &SourceConfig, ratio: f64, pace: Pace) -> bool {
        if self.jobs >= config.encode_jobs.max(1) || self.issued.0 - self.acked_through.0 >= config.max_ahead
        {
            return false;
        }
        // A job may turn out as large as it was; a chunk beyond the credit would be queued for a peer that
        // has no memory for it.
        let promised = self.jobs_most_bytes + self.unknown_bytes + chunk_most_bytes(config) as u64;
        if promised > self.link.credit_bytes && !(self.is_dry() && self.link.in_flight_bytes == 0) {
            return false;
        }
        let encoding = (self.jobs_most_bytes as f64 * ratio) as u64;
        let target = match pace {
            Pace::Late => self.target_bytes(config),
            Pace::Ahead => self.target_bytes(config).max(config.ahead_bytes),
            Pace::Hurry => return true,
        };
        self.unsent_bytes().saturating_add(encoding) < target
    }

    fn target_bytes(&self, config: &SourceConfig) -> u64 {
        let in_time = u128::from(self.link.goodput_bytes_per_s) * config.window.as_nanos() / 1_000_000_000;
        config.window_bytes.max(u64::try_from(in_time).unwrap_or(u64::MAX))
    }
}
