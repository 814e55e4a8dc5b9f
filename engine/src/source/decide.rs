//! What is left, how long the stop would be, and what the policy makes of it.

use std::time::Duration;

use crate::codec::Method;
use crate::config::HoldBack;
use crate::precopy::{Decision, Prediction, Residual, Terms, View};
use crate::source::window::Pace;
use crate::source::{Action, Phase, Source};
use crate::types::{PAGE_BYTES, Time};

impl Source {
    /// Asks the policy, if it is time to.
    pub(super) fn ask_policy(&mut self, now: Time) -> Option<Action> {
        let started = self.layout_at?;
        if self.phase != Phase::Live
            || self.undecided
            || self.raw.begun()
            || !(self.passes.ended_unasked || now >= self.next_decision)
        {
            return None;
        }
        self.passes.measure(now, self.config.dirty_rate_window);
        let residual = self.residual(now);
        let view = View {
            now,
            started,
            pass_ended: self.passes.ended_unasked,
            pass: self.passes.take_stats(),
            link: self.window.link,
            residual,
            prediction: self.predict(now, &residual),
            whole_guest_seen: self.passes.whole_guest_seen(),
            pages_total: self.table.len().into(),
            pages_sent: self.counts.pages_sent,
        };
        self.next_decision = now.plus(self.config.policy_interval);
        match self.policy.decide(&view) {
            Decision::Continue => None,
            // A guest that were let go now would stand for as long as the link does. Its deadline holds all the same.
            Decision::SwitchOver if self.window.stands(now) => None,
            Decision::Throttle(share) if share == self.throttle => None,
            Decision::Throttle(share) => {
                self.throttle = share;
                Some(Action::Throttle(share))
            }
            Decision::SwitchOver => {
                self.phase = Phase::Switching;
                Some(Action::Switch)
            }
            Decision::Abort(why) => Some(self.abort(why)),
        }
    }

    /// How long the guest would stand if it were stopped now.
    pub(super) fn predict(&self, now: Time, residual: &Residual) -> Prediction {
        Prediction::of(&self.terms(), &self.window.link_for_the_rest(now), residual)
    }

    /// What the caller said of the stop, with what was measured here.
    pub(super) fn terms(&self) -> Terms {
        let again = (self.staged_again + self.encoding_again) as f64;
        let again = again / (self.staging.len() + self.encoding_pages).max(1) as f64;
        let encode_bytes_per_s =
            self.speed.stopped_bytes_per_s(again.min(1.0)).unwrap_or(self.terms.encode_bytes_per_s);
        Terms { encode_bytes_per_s, ..self.terms }
    }

    /// A pass of the source has ended: the next one is due when a share of what waits has gone. A pass that begins earlier would
    /// only bring pages that come again before their turn, each copied in vain.
    pub(super) fn pace(&mut self, now: Time) {
        let residual = self.residual(now);
        let left_ns = self.predict(now, &residual).residual_ns;
        let pause_ns = (left_ns / u64::from(self.config.passes_per_residual.max(1)))
            .clamp(ns(self.config.pass_pause_least), ns(self.config.pass_pause_most));
        self.idle_until = Some(now.plus_ns(pause_ns));
    }

    /// How the next chunk is compressed.
    pub(super) fn method(&mut self) -> Method {
        if !self.encodings.compression {
            return Method::Stored;
        }
        let opening = self.issue_pace() == Pace::Ahead;
        self.speed.method(&self.window, opening)
    }

    /// When to be polled again, if that has changed.
    pub(super) fn wake_up(&mut self, now: Time) -> Option<Action> {
        let asked = self.phase == Phase::Live && self.layout_at.is_some();
        let decision = (asked && !self.undecided && !self.raw.begun()).then_some(self.next_decision);
        let wake = decision.into_iter().chain(self.idle_until).chain(self.limiter.opens_at()).min()?.max(now);
        if self.wake == Some(wake) {
            return None;
        }
        self.wake = Some(wake);
        Some(Action::WakeAt(wake))
    }

    /// What would have to cross if the guest were stopped now.
    pub(super) fn residual(&self, now: Time) -> Residual {
        let in_qemu = if self.phase == Phase::Stopped || self.layout_at.is_none() {
            0
        } else {
            self.passes.dirty_in_qemu(now, self.table.len().into())
        };
        // What is dirty in QEMU was sent before, but for the first pass.
        let (again_in_qemu, fresh_in_qemu) =
            if self.passes.ended() > 0 { (in_qemu, 0) } else { (0, in_qemu) };
        let again_pages = (self.staged_again + self.encoding_again) as u64 + again_in_qemu;
        let staged_pages = (self.staging.len() + self.encoding_pages) as u64;
        let content_pages = staged_pages + in_qemu;
        let fresh_pages = staged_pages.saturating_sub(again_pages - again_in_qemu) + fresh_in_qemu;
        let stream_bytes = (self.opaque.queued_bytes()
            + self.raw.queued_bytes()
            + self.tail.queued_bytes()
            + self.encoding_stream_bytes) as u64;
        let raw_bytes = content_pages.saturating_mul(PAGE_BYTES as u64).saturating_add(stream_bytes);
        let link = self.window.link_for_the_rest(now);
        let carried_by_delay = u128::from(link.goodput_bytes_per_s) * u128::from(link.rtt_ns) / 1_000_000_000;
        let late_bytes =
            link.in_flight_bytes.saturating_sub(u64::try_from(carried_by_delay).unwrap_or(u64::MAX));
        let page = PAGE_BYTES as f64;
        let content_bytes = fresh_pages as f64 * page * self.ratio
            + again_pages as f64 * page * self.ratio_again.unwrap_or(self.ratio);
        let encoded_bytes = (content_bytes as u64)
            .saturating_add(stream_bytes)
            .saturating_add(self.window.unsent_bytes())
            .saturating_add(late_bytes);
        Residual { pages: content_pages + self.table.zeros.len() as u64, raw_bytes, encoded_bytes }
    }

    /// Bytes staging may hold now.
    pub(super) fn staging_budget(&self) -> usize {
        let wanted = self.policy.staging_bytes(self.config.staging_bytes);
        let wanted = if self.raw.begun() { wanted.min(self.config.raw_staging_bytes) } else { wanted };
        match self.config.hold_back {
            // Where nobody tells QEMU to stop, it is QEMU that has to know how slow the link is, to the end.
            HoldBack::Rate(time)
                if self.phase == Phase::Live
                    || self.phase == Phase::Switching && self.config.tail_as_it_comes =>
            {
                let goodput = u128::from(self.window.link.goodput_bytes_per_s);
                let encoded = goodput * time.as_nanos() / 1_000_000_000;
                let raw = encoded as f64 / self.ratio.max(MIN_RATIO);
                let least = self.config.chunk_bytes * self.config.encode_jobs.max(1);
                wanted.min((raw as usize).max(least))
            }
            HoldBack::Rate(_) | HoldBack::Ack => wanted,
        }
    }
}

/// Keeps a ratio measured on nearly empty chunks from making the budget of [`HoldBack::Rate`] meaningless.
const MIN_RATIO: f64 = 0.01;

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceConfig;
    use crate::precopy::Policy;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Counts how often it is asked, and told that it was not for a while.
    #[derive(Default, Clone)]
    struct Asked(Arc<[AtomicU32; 2]>);

    impl Policy for Asked {
        fn name(&self) -> &'static str {
            "asked"
        }

        fn decide(&mut self, _view: &View) -> Decision {
            self.0[0].fetch_add(1, Ordering::Relaxed);
            Decision::Continue
        }

        fn resumed(&mut self, _now: Time) {
            self.0[1].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nothing_is_decided_during_an_outage() {
        const MS: u64 = 1_000_000;
        let asked = Asked::default();
        let mut source = Source::new(SourceConfig::default(), Box::new(asked.clone()));
        source.layout(Time(0), 16).unwrap();
        let poll_until = |source: &mut Source, from_ms: u64, until_ms: u64| {
            let mut woken = 0;
            for now in (from_ms..until_ms).map(|ms| Time(ms * MS)) {
                while let Some(action) = source.poll(now) {
                    woken += u32::from(matches!(action, Action::WakeAt(_)));
                }
            }
            let [times, resumed] = [0, 1].map(|n| asked.0[n].swap(0, Ordering::Relaxed));
            (times, resumed, woken)
        };
        assert_eq!(poll_until(&mut source, 0, 100), (10, 0, 10));
        source.outage(Time(100 * MS), true);
        assert_eq!(poll_until(&mut source, 100, 200), (0, 0, 0), "asked, or woken for it");
        source.outage(Time(200 * MS), false);
        let (times, resumed, _) = poll_until(&mut source, 200, 300);
        assert_eq!((times, resumed), (9, 1));
    }
}
