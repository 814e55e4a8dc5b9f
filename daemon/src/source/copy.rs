//! The longest phase: the guest runs, its pages travel, until the policy wants it stopped.

use super::gate::{Gate, GateConfig, Look, Step};
use super::guest::Hold;
use super::pump::{FromPump, ToPump};
use super::{Migration, SourceError, options, throttle};
use crate::api::wire::OnDeadline;
use crate::fail;
use crate::hooks::{self, Hook};
use hikyaku_engine::{PAGE_BYTES, SourceConfig, SyncInfo};
use std::time::{Duration, Instant};

/// Between two looks at `query-migrate`: a pass is seen this late at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The same of a QEMU that may stop its guest by itself: the guest stands for as long.
const GATED_LOOK_INTERVAL: Duration = Duration::from_millis(10);

impl Migration {
    /// On `Ok` the guest runs, and is to be stopped at once. `announced`: those who wanted to know before that have been told.
    pub(super) async fn copy(&mut self, announced: bool) -> Result<(), SourceError> {
        let guest = self.guest.clone();
        let gated = guest.hold == Hold::Gate;
        // A QEMU that may stop its guest by itself is not led there before.
        let tells_first =
            gated && !announced && hooks::is_there(&self.daemon.config.hooks, Hook::BeforeSwitchover);
        let mut gate = Gate::new(GateConfig::default(), options::downtime(&self.arguments));
        if gated {
            self.inbox.push(ToPump::Allowance(Some(GateConfig::default().min_grant_bytes)));
        }
        let mut sampling = std::pin::pin!(guest.dirty_bytes_per_s());
        let mut sampled = !gated;
        let mut ticks = tokio::time::interval(if gated { GATED_LOOK_INTERVAL } else { LOOK_INTERVAL });
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // `used_up`: an older QEMU waits for its next grant.
        let (mut wanted, mut used_up, mut syncs) = (false, false, 0);
        // While the link is down nothing is decided: the guest runs on, and QEMU is read as long as there is room.
        while !(wanted && self.may_stop && self.answer.is_had() && self.down.is_none()) {
            if self.stream_ended() && self.down.is_none() && self.answer.is_had() {
                if self.sleep.now() {
                    return Err(SourceError::Asleep);
                }
                // Whoever stopped the guest wants it stopped: a QEMU whose guest stands waits for nobody.
                if self.raw && !guest.stands(&guest.state(self.daemon.config.guest.qmp_timeout).await?) {
                    return Err(SourceError::Unexpected("that it has loaded a guest that still runs"));
                }
                self.runs = false;
                return Ok(());
            }
            let was_down = self.down.is_some();
            tokio::select! {
                biased;
                wish = self.entry.cancelled() => return Err(SourceError::Cancelled(wish)),
                welcome = self.answer.next(&self.welcome) => {
                    self.answered(welcome?);
                    continue;
                }
                message = self.mailbox.next() => {
                    self.handle_peer(message)?;
                    if was_down && self.down.is_none() {
                        // What is left, and how fast it goes, is not what it was.
                        wanted = false;
                    }
                    continue;
                }
                told = self.from_pump.recv() => match self.handle_pump(told)? {
                    Some(FromPump::Allowed) => used_up = true,
                    Some(FromPump::Switch) => {
                        wanted = true;
                        continue;
                    }
                    Some(FromPump::Throttle(share)) => {
                        self.take_time(throttle::percent(share)).await;
                        continue;
                    }
                    _ => continue,
                },
                rate = &mut sampling, if !sampled => {
                    sampled = true;
                    if let Some(rate) = rate {
                        gate.sampled(rate);
                    }
                    continue;
                }
                _ = ticks.tick() => {}
            }
            fail::point("source.looking");
            let info = guest.look().await?;
            if gated && info.is("pre-switchover") {
                // It stopped the guest by itself, and waits. What is left is little, and the guest does not wait for the link.
                if self.down.is_some() {
                    return Err(SourceError::StoppedItself);
                }
                tracing::info!(id = %self.entry.id.short(), "QEMU stopped the guest");
                (wanted, self.gone_on) = (true, true);
                continue;
            }
            self.see_time_taken(info.cpu_throttle_percentage);
            let Some(ram) = info.ram else {
                // Not set up yet: nothing is dirty that could be counted.
                if std::mem::take(&mut used_up) {
                    self.inbox.push(ToPump::Allowance(Some(GateConfig::default().min_grant_bytes)));
                }
                continue;
            };
            let sync_count = ram.dirty_sync_count.unwrap_or(0);
            let remaining_bytes = ram.remaining_bytes.unwrap_or(0);
            if sync_count != syncs {
                syncs = sync_count;
                let dirty_pages = Some(remaining_bytes / PAGE_BYTES as u64);
                self.inbox.push(ToPump::Sync(SyncInfo { count: Some(sync_count), dirty_pages }));
            }
            wanted |= self.is_late(sync_count, remaining_bytes)?;
            if self.down.is_none() {
                self.best_goodput =
                    self.best_goodput.max(self.session.stats().goodput_bytes_per_s.unwrap_or(0));
                wanted |= self.raw && self.fits_now(sync_count, remaining_bytes);
            }
            if used_up {
                let goodput_bytes_per_s = self.session.stats().goodput_bytes_per_s.unwrap_or(0);
                let look = Look {
                    at: self.begun.elapsed(),
                    remaining_bytes,
                    sync_count,
                    goodput_bytes_per_s,
                    waiting_bytes: self.entry.staged_bytes() + self.under_way_bytes(),
                    may_end: self.down.is_none() && self.answer.is_had() && !tells_first,
                };
                match gate.look(look) {
                    Step::Wait => wanted |= tells_first && self.down.is_none(),
                    Step::Grant(bytes) => {
                        used_up = false;
                        self.inbox.push(ToPump::Allowance(Some(bytes)));
                    }
                    // It is not read on until it may be stopped, and looked at again meanwhile.
                    Step::Switch => wanted = self.down.is_none(),
                }
            }
        }
        Ok(())
    }

    /// In raw relay the engine sees no pages; QEMU's own count of what is left has to do.
    fn fits_now(&self, syncs: u64, remaining_bytes: u64) -> bool {
        // Confirmed before it is let go: one and a half round trips, of which the last half carries the pages.
        let round_trip = self.round_trip();
        let left = options::downtime(&self.arguments).saturating_sub(round_trip).max(round_trip / 2);
        syncs >= 2 && self.raw_transfer(remaining_bytes).is_some_and(|transfer| transfer <= left)
    }

    /// How long what is left of a raw stream takes. None: nothing is known of the link yet.
    fn raw_transfer(&self, remaining_bytes: u64) -> Option<Duration> {
        let goodput = self.session.stats().goodput_bytes_per_s.filter(|goodput| *goodput > 0)?;
        // A link that has nothing to send carries more than it is seen to carry.
        let goodput = if self.session.unsent_bytes() > 0 { goodput } else { goodput.max(self.best_goodput) };
        let left = remaining_bytes.saturating_add(raw_waiting(self.entry.staged_bytes()));
        raw_transfer(left, self.under_way_bytes(), self.entry.raw_and_sent(), goodput)
    }

    fn under_way_bytes(&self) -> u64 {
        self.session.unsent_bytes() + self.session.in_flight_bytes()
    }

    fn round_trip(&self) -> Duration {
        self.session.stats().rtt.unwrap_or_default()
    }

    /// True: the deadline has come, and the guest is to be stopped however long that takes. `Err`: it is to stay.
    fn is_late(&mut self, syncs: u64, remaining_bytes: u64) -> Result<bool, SourceError> {
        if self.is_as_good_as_it_gets(syncs) {
            self.late.get_or_insert(self.begun.elapsed());
            return match self.arguments.on_deadline {
                OnDeadline::Force => Ok(true),
                OnDeadline::Throttle | OnDeadline::Abort => {
                    Err(self.not_converged(self.entry.predicted_stop()))
                }
            };
        }
        let Some(deadline) = self.deadline.look(Instant::now(), syncs >= 2, self.down.is_some()) else {
            return Ok(false);
        };
        let first = self.late.replace(deadline).is_none();
        match self.arguments.on_deadline {
            OnDeadline::Force => Ok(true),
            // The engine sees no pages of a stream that is not understood.
            OnDeadline::Throttle if !self.raw => {
                if first {
                    self.inbox.push(ToPump::DeadlinePassed);
                }
                Ok(false)
            }
            OnDeadline::Throttle | OnDeadline::Abort => Err(self.not_converged(match self.raw {
                true => self
                    .raw_transfer(remaining_bytes)
                    .map(|transfer| transfer.saturating_add(self.round_trip())),
                false => self.entry.predicted_stop(),
            })),
        }
    }

    /// Stopping and starting alone take longer than is aimed at, and what is left to be copied would not be in the way: no copying helps any more.
    fn is_as_good_as_it_gets(&self, syncs: u64) -> bool {
        let (handover, downtime) = (self.handover(), options::downtime(&self.arguments));
        let decides = options::is_adaptive(&self.arguments) && !self.raw;
        decides
            && syncs >= 2
            && self.down.is_none()
            && handover > downtime
            && self.entry.predicted_stop().is_some_and(|stop| stop <= handover + downtime)
    }

    /// What stopping and starting alone is expected to take.
    fn handover(&self) -> Duration {
        self.terms.pause + self.terms.state + self.terms.resume
    }

    /// `stop`: how long the guest would stand if it were stopped now.
    pub(super) fn not_converged(&self, stop: Option<Duration>) -> SourceError {
        let terms = self.handover();
        let downtime = options::downtime(&self.arguments);
        let dear = terms > downtime / 2;
        if dear {
            // Perhaps it was so once: whoever comes next may find out.
            self.daemon.experience.borrow_mut().doubt(&self.arguments.to);
        }
        SourceError::NotConverged {
            handover: dear.then_some(terms),
            deadline: self.late.unwrap_or_default(),
            stop,
            downtime,
            throttle: self.throttle,
            may_throttle: !self.raw && options::is_adaptive(&self.arguments),
            limited: self.session.stats().limit_bytes_per_s.is_some(),
        }
    }

    /// Has QEMU take so much of the guest's time. It will do so at a later sync of its own.
    async fn take_time(&mut self, percent: u8) {
        tracing::info!(id = %self.entry.id.short(), percent, "the guest is slowed down");
        self.throttle = Some(percent);
        if let Err(error) = self.guest.throttle(percent).await {
            // The engine waits for it in vain, asks for more, and gives up in the end.
            tracing::warn!(%error, "QEMU does not slow the guest down");
        }
    }

    fn see_time_taken(&mut self, percent: Option<u64>) {
        if self.throttle.is_some() {
            let percent = percent.unwrap_or(0).min(99);
            self.entry.set_throttle(percent);
            self.inbox.push(ToPump::Throttled(percent as f32 / 100.0));
        }
    }
}

/// How long so much of QEMU's stream takes, and what is under way before it. `raw_and_sent`: what of it was sent so far, and as how much.
fn raw_transfer(left: u64, under_way: u64, raw_and_sent: (u64, u64), goodput: u64) -> Option<Duration> {
    let (raw, sent) = raw_and_sent;
    let shrinks_to = if raw > 0 { (sent as f64 / raw as f64).min(1.0) } else { 1.0 };
    Duration::try_from_secs_f64((left as f64 * shrinks_to + under_way as f64) / goodput as f64).ok()
}

/// What may wait here of a stream that is relayed raw: pages from before it went raw, or, when they are few, as much of it as is taken in.
fn raw_waiting(staged_bytes: u64) -> u64 {
    staged_bytes.max(SourceConfig::default().raw_staging_bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 160 MiB of a guest that makes 22 MB/s, of which 6 cross.
    #[test]
    fn what_is_left_of_a_raw_stream_counts_as_what_will_cross() {
        let takes = |raw_and_sent| raw_transfer(10 << 20, 1 << 20, raw_and_sent, 13_600_000).unwrap();
        assert_eq!(takes((684_908_715, 178_226_935)).as_millis(), 277);
        assert_eq!(takes((0, 0)).as_millis(), 848, "nothing is known yet");
        assert_eq!(takes((1 << 20, 1 << 21)), takes((0, 0)), "what came before it was sent, too");
    }

    #[test]
    fn pages_that_were_staged_before_the_stream_went_raw_go_first() {
        assert_eq!(raw_waiting(0), 8 << 20);
        assert_eq!(raw_waiting(200 << 20), 200 << 20);
    }
}
