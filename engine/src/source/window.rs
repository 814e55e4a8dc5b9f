//! How much may be under way: few chunks, so that superseding ends late, yet enough that no lane runs dry.

use std::time::Duration;

use crate::config::SourceConfig;
use crate::source::job::chunk_most_bytes;
use crate::types::{ChunkSeq, LinkStats, Time};

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
    /// When the peer last said that it applied something; or when something was issued, and nothing was under way before.
    moved_at: Time,
    /// The most that was carried per second lately, forgotten as time goes by ([`LATELY`]).
    most_bytes_per_s: f64,
    linked_at: Time,
    /// When next to nothing was left to carry.
    dry_at: Option<Time>,
}

/// A rate that was seen counts less and less, a third after this time.
const LATELY: Duration = Duration::from_secs(5);
/// A wire that had nothing to carry within this time is not what holds the migration up.
const DRY_LATELY: Duration = Duration::from_millis(500);
/// Less than this part of a second waits for the wire.
const DRY_PARTS: u64 = 200;

/// A link of which nothing comes back for so long stands.
const STANDS_AFTER: Duration = Duration::from_secs(1);
const STANDS_AFTER_ROUND_TRIPS: u64 = 8;

/// When chunks are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As late as the wire allows: what is not issued can be superseded.
    Late,
    /// With so many bytes waiting, so that encoding is done when the wire is.
    Early { unsent_bytes: u64 },
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
            moved_at: Time(0),
            most_bytes_per_s: 0.0,
            linked_at: Time(0),
            dry_at: None,
        }
    }

    /// `held_bytes` are encoded and not yet with the transport.
    pub(super) fn linked(&mut self, now: Time, link: LinkStats, held_bytes: usize) {
        self.link = link;
        self.unknown_bytes = held_bytes as u64;
        let forgotten = (-(now.since(self.linked_at) as f64) / LATELY.as_nanos() as f64).exp();
        self.most_bytes_per_s = (self.most_bytes_per_s * forgotten).max(link.goodput_bytes_per_s as f64);
        self.linked_at = now;
        if self.waits_for_more() {
            self.dry_at = Some(now);
        }
    }

    /// The wire has next to nothing to carry: its rate tells how fast chunks are encoded, and not what it could do.
    pub(super) fn waits_for_more(&self) -> bool {
        self.unsent_bytes() < self.link.goodput_bytes_per_s / DRY_PARTS
    }

    /// What the link will do with the rest of a guest that is stopped now. While the guest runs on a busy host chunks are encoded, and taken by
    /// lanes, more slowly than the wire carries them; then what it carried before is to be had again.
    pub(super) fn link_for_the_rest(&self, now: Time) -> LinkStats {
        let dry_lately = self.dry_at.is_some_and(|at| u128::from(now.since(at)) < DRY_LATELY.as_nanos());
        let most = if dry_lately { self.most_bytes_per_s as u64 } else { 0 };
        LinkStats { goodput_bytes_per_s: self.link.goodput_bytes_per_s.max(most), ..self.link }
    }

    /// The number of the next chunk; None: there are no more.
    pub(super) fn issue(&mut self, now: Time) -> Option<ChunkSeq> {
        if self.chunks_under_way() == 0 {
            self.moved_at = now;
        }
        self.issued = ChunkSeq(self.issued.0.checked_add(1)?);
        Some(self.issued)
    }

    /// Something is under way, and for longer than any path takes nothing of it has been applied: what is known of the link is not true of it now.
    pub(super) fn stands(&self, now: Time) -> bool {
        let patience_ns = u64::try_from(STANDS_AFTER.as_nanos()).unwrap_or(u64::MAX);
        let patience_ns = patience_ns.max(self.link.rtt_ns.saturating_mul(STANDS_AFTER_ROUND_TRIPS));
        self.chunks_under_way() > 0 && now.since(self.moved_at) > patience_ns
    }

    pub(super) fn acked(&mut self, now: Time, cumulative: ChunkSeq, ranges: &[(ChunkSeq, ChunkSeq)]) {
        let before = (self.acked_through, self.acked_beyond);
        self.acked_through = self.acked_through.max(cumulative.min(self.issued));
        self.acked_beyond = ranges
            .iter()
            .map(|(first, last)| (first.previous().max(self.acked_through), last.min(&self.issued)))
            .map(|(before, last)| u64::from(last.0.saturating_sub(before.0)))
            .sum();
        if before != (self.acked_through, self.acked_beyond) {
            self.moved_at = now;
        }
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
            Pace::Early { unsent_bytes } => self.target_bytes(config).max(unsent_bytes),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_carried_counts_again_where_the_wire_is_not_what_holds_it_up() {
        let ms = |ms: u64| Time(ms * 1_000_000);
        let link = |goodput_bytes_per_s, unsent_bytes| LinkStats {
            goodput_bytes_per_s,
            unsent_bytes,
            ..LinkStats::default()
        };
        let mut window = Window::new();
        let mut rate = |at, goodput, unsent| {
            window.linked(at, link(goodput, unsent), 0);
            window.link_for_the_rest(at).goodput_bytes_per_s
        };
        assert_eq!(rate(ms(0), 100_000_000, 5_000_000), 100_000_000);
        // Chunks are waited for.
        let waits = rate(ms(1000), 40_000_000, 0);
        assert!((80_000_000..84_000_000).contains(&waits), "{waits}");
        // The wire is: more than it takes is always there, so the path carries no more.
        rate(ms(1400), 40_000_000, 2_000_000);
        assert_eq!(rate(ms(1600), 40_000_000, 2_000_000), 40_000_000);
    }
}
