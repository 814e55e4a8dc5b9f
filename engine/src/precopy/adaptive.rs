//! The default policy: switch when the predicted stop `D` is short enough and waiting no longer shortens it.
//!
//! A millisecond of waiting costs one of the total time, unless the bytes that cross meanwhile need not cross with the
//! guest stopped. A millisecond of the stop is dearer than one of the total: as long as `D` falls by at least
//! [`AdaptiveConfig::worth_permille`] of the time waited, waiting wins.
//!
//! On a busy host `D` falls in steps, with rests between them, and each pass that ends brings what the guest has dirtied since.
//! Whether it falls is therefore not judged at once, but over a time that grows with what there is to win
//! ([`AdaptiveConfig::patience_per_residual`]): a guest that does not converge is made to wait at most so much longer.
//!
//! | `D` | falling | the answer |
//! |---|---|---|
//! | ≤ target, and next to nothing of it is the residual | either | switch |
//! | ≤ target | no, for `patience` | switch at a local minimum |
//! | ≤ target x `settle_factor` | no, for `settle` | switch at a local minimum: it will get no better |
//! | more | no | go on until the deadline |
//!
//! At the deadline: force, throttle or abort. Before every page has been taken in once, only the deadline counts.

use std::collections::VecDeque;
use std::time::Duration;

use crate::precopy::{AbortReason, Decision, OnDeadline, Policy, View};
use crate::types::Time;

/// The knobs of [`Adaptive`].
#[derive(Debug, Clone)]
pub struct AdaptiveConfig {
    /// The stop the user asked for. Default 300 ms, as QEMU's.
    pub downtime_target: Duration,
    /// From the start until [`AdaptiveConfig::on_deadline`]. Default 10 min; [`Duration::MAX`] for a caller that has its own.
    pub deadline: Duration,
    /// Default [`OnDeadline::Abort`]: the guest stays where it runs.
    pub on_deadline: OnDeadline,
    /// By how much of the time waited `D` has to fall for waiting to go on, in 1/1000. Default 200: the guest dirties nearly as much as
    /// crosses, and five milliseconds more of copying are worth one less of the stop.
    pub worth_permille: u32,
    /// For how long `D` must not have fallen before the guest is stopped within the target; one and a half times a pass of the source, or
    /// so many times the residual, if that is longer, to ten times this. Default 50 ms: several decisions, and a burst of the guest.
    pub patience: Duration,
    /// See [`AdaptiveConfig::patience`]. Default 2.
    pub patience_per_residual: u32,
    /// A residual that crosses in this time is next to nothing. Default 5 ms: below the accuracy of the other terms.
    pub negligible: Duration,
    /// For how long `D` must not have fallen before a stop beyond the target is accepted. Default 3 s: longer than the
    /// bursts of most guests.
    pub settle: Duration,
    /// How far beyond the target, in multiples of it. Default 2.
    pub settle_factor: u32,
    /// A local minimum: `D` within this of the least seen meanwhile, in 1/1000. Default 100.
    pub settle_tolerance_permille: u32,
    /// First share of the guest's time taken by [`OnDeadline::Throttle`], and by how much it grows. Defaults 0.2 and 0.1, as
    /// QEMU's auto-converge.
    pub throttle_first: f32,
    pub throttle_step: f32,
    /// How long each step is tried, and two passes at least: what was dirtied before it has to go first. Default 2 s.
    pub throttle_every: Duration,
    /// How long a share is waited for that the guest does not yield yet, and the two passes after it. Default 20 s: QEMU takes it
    /// at the second bitmap sync from then, and a pass over a slow link takes seconds.
    pub throttle_patience: Duration,
    /// By how much `D` has to fall in that time for a step to be tried on, in 1/1000. Default 100.
    pub throttle_worth_permille: u32,
    /// The largest share. Default 0.9; when it has been tried as well, the migration is given up.
    pub throttle_most: f32,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        AdaptiveConfig {
            downtime_target: Duration::from_millis(300),
            deadline: Duration::from_secs(600),
            on_deadline: OnDeadline::Abort,
            worth_permille: 200,
            patience: Duration::from_millis(50),
            patience_per_residual: 2,
            negligible: Duration::from_millis(5),
            settle: Duration::from_secs(3),
            settle_factor: 2,
            settle_tolerance_permille: 100,
            throttle_first: 0.2,
            throttle_step: 0.1,
            throttle_every: Duration::from_secs(2),
            throttle_patience: Duration::from_secs(20),
            throttle_worth_permille: 100,
            throttle_most: 0.9,
        }
    }
}

/// See [`AdaptiveConfig::patience`].
const PATIENCE_MOST: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    config: AdaptiveConfig,
    history: History,
    /// The caller's deadline has come.
    late: bool,
    throttle: Option<Throttle>,
    /// When it was last asked.
    decided: Time,
}

#[derive(Debug, Clone, Copy)]
struct Throttle {
    /// Of the guest's time.
    share: f32,
    asked: Time,
    /// From when on it is being tried: the guest yields it.
    since: Time,
    /// `D` then, and the passes that had ended.
    then: Option<(u64, u32)>,
}

impl Adaptive {
    pub fn new(config: AdaptiveConfig) -> Self {
        let history = History {
            samples: VecDeque::new(),
            span_ns: 2 * ns(config.settle.max(config.patience * PATIENCE_MOST)),
        };
        Adaptive { config, history, late: false, throttle: None, decided: Time(0) }
    }

    fn may_switch(&self, view: &View) -> bool {
        let config = &self.config;
        let stop_ns = view.prediction.total_ns;
        let target_ns = ns(config.downtime_target);
        if stop_ns <= target_ns {
            let residual_ns = view.prediction.residual_ns;
            return residual_ns <= ns(config.negligible)
                || self.stalled(
                    view.now,
                    stop_ns,
                    self.patience_ns(view.pass.last.duration_ns, residual_ns),
                );
        }
        stop_ns <= target_ns.saturating_mul(config.settle_factor.into())
            && self.stalled(view.now, stop_ns, ns(config.settle))
    }

    fn patience_ns(&self, pass_ns: u64, residual_ns: u64) -> u64 {
        let least_ns = ns(self.config.patience);
        let residual_ns = residual_ns.saturating_mul(self.config.patience_per_residual.into());
        (pass_ns.saturating_mul(3) / 2)
            .max(residual_ns)
            .clamp(least_ns, least_ns.saturating_mul(PATIENCE_MOST.into()))
    }

    /// The least `D` of the last period is not enough less to be worth the wait than that of the period before, and `D` is no more than that
    /// now: each pass brings what the guest has dirtied since the last one, so `D` itself goes up and down with them.
    fn stalled(&self, now: Time, stop_ns: u64, period_ns: u64) -> bool {
        let (latest, before) = self.history.least_of_two(now, period_ns);
        let latest_ns = latest.unwrap_or(u64::MAX).min(stop_ns);
        let worth_ns = period_ns / 1000 * u64::from(self.config.worth_permille);
        before.is_some_and(|before_ns| {
            let least_ns = latest_ns.min(before_ns);
            let tolerance_ns = least_ns / 1000 * u64::from(self.config.settle_tolerance_permille);
            latest_ns.saturating_add(worth_ns) >= before_ns
                && stop_ns <= least_ns.saturating_add(tolerance_ns)
        })
    }

    fn after_deadline(&mut self, view: &View) -> Decision {
        let give_up = Decision::Abort(AbortReason::NotConverging {
            predicted_ms: view.prediction.total_ns / 1_000_000,
            target_ms: ns(self.config.downtime_target) / 1_000_000,
        });
        match (self.config.on_deadline, self.throttle) {
            (OnDeadline::Force, _) => Decision::SwitchOver,
            (OnDeadline::Abort, _) => give_up,
            // Before that nothing tells whether it would converge.
            (OnDeadline::Throttle, None) if !view.whole_guest_seen => Decision::Continue,
            (OnDeadline::Throttle, None) => self.take_share(view.now, self.config.throttle_first),
            (OnDeadline::Throttle, Some(throttle)) => {
                let (stop_ns, passes) = (view.prediction.total_ns, view.pass.ended);
                let then @ (before_ns, passes_before) = throttle.then.unwrap_or((stop_ns, passes));
                let worth_ns = before_ns / 1000 * u64::from(self.config.throttle_worth_permille);
                let elapsed_ns = view.now.since(throttle.since);
                let tried = elapsed_ns >= ns(self.config.throttle_every)
                    && (passes >= passes_before.saturating_add(2)
                        || elapsed_ns >= ns(self.config.throttle_patience));
                if !tried {
                    self.throttle = Some(Throttle { then: Some(then), ..throttle });
                    Decision::Throttle(throttle.share)
                } else if stop_ns.saturating_add(worth_ns) <= before_ns {
                    self.throttle =
                        Some(Throttle { since: view.now, then: Some((stop_ns, passes)), ..throttle });
                    Decision::Throttle(throttle.share)
                } else if throttle.share >= self.config.throttle_most {
                    give_up
                } else {
                    self.take_share(view.now, throttle.share + self.config.throttle_step)
                }
            }
        }
    }

    fn take_share(&mut self, now: Time, share: f32) -> Decision {
        let share = share.min(self.config.throttle_most);
        self.throttle = Some(Throttle { share, asked: now, since: now, then: None });
        Decision::Throttle(share)
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn decide(&mut self, view: &View) -> Decision {
        self.decided = view.now;
        if view.whole_guest_seen {
            let may_switch = self.may_switch(view);
            self.history.push(view.now, view.prediction.total_ns);
            if may_switch {
                return Decision::SwitchOver;
            }
        }
        if self.late || view.now.since(view.started) >= ns(self.config.deadline) {
            return self.after_deadline(view);
        }
        Decision::Continue
    }

    fn resumed(&mut self, now: Time) {
        self.history.samples.clear();
        // The time in which nothing could cross does not count; what was tried before does, or a link that comes and goes would keep
        // the guest throttled for ever.
        let away = Duration::from_nanos(now.since(self.decided));
        if let Some(throttle) = &mut self.throttle {
            (throttle.asked, throttle.since) = (throttle.asked.plus(away), throttle.since.plus(away));
        }
    }

    fn late(&mut self, _now: Time) {
        self.late = true;
    }

    fn throttled(&mut self, now: Time, share: f32) {
        /// QEMU counts in whole percents.
        const ROUNDING: f32 = 0.006;
        let Some(throttle) = &mut self.throttle else { return };
        let waited = now.since(throttle.asked) >= ns(self.config.throttle_patience);
        if share + ROUNDING < throttle.share && !waited {
            (throttle.since, throttle.then) = (now, None);
        }
    }
}

/// Predictions of the recent past, one per [`SAMPLE_EVERY_NS`] at most.
#[derive(Debug)]
struct History {
    samples: VecDeque<(Time, u64)>,
    span_ns: u64,
}

/// Passes may end every few hundred microseconds; so many samples would say no more.
const SAMPLE_EVERY_NS: u64 = 5_000_000;

impl History {
    fn push(&mut self, now: Time, stop_ns: u64) {
        if self.samples.back().is_some_and(|(last, _)| now.since(*last) < SAMPLE_EVERY_NS) {
            return;
        }
        self.samples.push_back((now, stop_ns));
        while let Some((second, _)) = self.samples.get(1)
            && now.since(*second) >= self.span_ns
        {
            self.samples.pop_front();
        }
    }

    /// The least of the last period, and of the one before it; of a caller that asks more rarely, what was before the last period.
    fn least_of_two(&self, now: Time, period_ns: u64) -> (Option<u64>, Option<u64>) {
        let mut least = [None, None];
        for (then, stop_ns) in self.samples.iter().rev() {
            let ago = now.since(*then) / period_ns.max(1);
            if ago > 1 && least[1].is_some() {
                break;
            }
            let of = &mut least[usize::from(ago > 0)];
            *of = Some(of.map_or(*stop_ns, |least: u64| least.min(*stop_ns)));
        }
        (least[0], least[1])
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::{PassStats, Prediction, Residual};
    use crate::types::LinkStats;

    const MS: u64 = 1_000_000;

    fn view(now_ms: u64, stop_ms: u64, seen: bool) -> View {
        View {
            now: Time(now_ms * MS),
            started: Time(0),
            pass_ended: false,
            pass: PassStats { ended: (now_ms / 100) as u32, ..PassStats::default() },
            link: LinkStats::default(),
            residual: Residual::default(),
            prediction: Prediction {
                total_ns: stop_ms * MS,
                forward_ns: 60 * MS,
                residual_ns: stop_ms.saturating_sub(100) * MS,
            },
            whole_guest_seen: seen,
            pages_total: 1000,
            pages_sent: 0,
        }
    }

    /// Feeds `stop_ms(now_ms)` every 10 ms until the answer is not to continue.
    fn run(config: AdaptiveConfig, until_ms: u64, stop_ms: impl Fn(u64) -> u64) -> Option<(u64, Decision)> {
        let mut policy = Adaptive::new(config);
        (0..until_ms).step_by(10).find_map(|now_ms| {
            match policy.decide(&view(now_ms, stop_ms(now_ms), true)) {
                Decision::Continue => None,
                other => Some((now_ms, other)),
            }
        })
    }

    #[test]
    fn a_stop_that_still_falls_is_waited_for() {
        // 1000 ms to go, falling as fast as time passes, down to a floor of 180 ms.
        let stop = |now_ms: u64| (1000u64.saturating_sub(now_ms)).max(180);
        let (when, what) = run(AdaptiveConfig::default(), 5000, stop).unwrap();
        assert_eq!(what, Decision::SwitchOver);
        assert!((820..=1000).contains(&when), "switched at {when} ms");
    }

    #[test]
    fn what_each_pass_brings_does_not_hide_that_less_is_left() {
        // It falls by 45 in 50 ms, and each 60 ms a pass brings 60 again that go in 20.
        let stop = |now_ms: u64| {
            let falls = 1000u64.saturating_sub(now_ms * 9 / 10).max(120);
            falls + if now_ms % 60 < 20 && falls > 120 { 60 } else { 0 }
        };
        let (when, _) = run(AdaptiveConfig::default(), 5000, stop).unwrap();
        assert!((980..=1130).contains(&when), "switched at {when} ms");
    }

    #[test]
    fn the_rests_of_a_busy_host_are_waited_out() {
        // 270 ms of residual; it falls by 72 in 120 ms, and rests for 90.
        let stop = |now_ms: u64| {
            let (rounds, into) = (now_ms / 210, now_ms % 210);
            370u64.saturating_sub(rounds * 72 + into.min(120) * 72 / 120).max(100)
        };
        let (when, _) = run(AdaptiveConfig::default(), 5000, stop).unwrap();
        assert!(stop(when) <= 160, "stopped at {} ms, after {when}", stop(when));
    }

    #[test]
    fn the_guest_is_stopped_before_a_pass_brings_more_and_not_after() {
        // Each 300 ms a pass brings 150 ms, which fall to 50: it does not converge.
        let stop = |now_ms: u64| 250 - (now_ms % 300) / 3;
        let (when, _) = run(AdaptiveConfig::default(), 5000, stop).unwrap();
        assert!(stop(when) <= 180, "stopped at {} ms, after {when}", stop(when));
        assert!(when <= 1500, "after {when} ms");
    }

    #[test]
    fn a_caller_that_asks_rarely_is_answered_too() {
        for every_ms in [10, 40, 99, 110, 150, 300, 2000] {
            let mut policy = Adaptive::new(AdaptiveConfig::default());
            let mut asked = (0..60_000).step_by(every_ms);
            let when = asked.find(|now_ms| policy.decide(&view(*now_ms, 200, true)) == Decision::SwitchOver);
            assert!(
                when.is_some_and(|when| when <= 2 * every_ms as u64 + 200),
                "each {every_ms} ms: {when:?}"
            );
        }
    }

    #[test]
    fn a_link_that_comes_and_goes_does_not_keep_a_guest_throttled() {
        let config = AdaptiveConfig {
            on_deadline: OnDeadline::Throttle,
            deadline: Duration::from_secs(1),
            ..AdaptiveConfig::default()
        };
        let mut policy = Adaptive::new(config);
        // Down for the last second of three.
        let given_up = (0..600_000).step_by(10).find(|now_ms| {
            if now_ms % 3000 == 0 {
                policy.resumed(Time(now_ms * MS));
            }
            now_ms % 3000 < 2000 && matches!(policy.decide(&view(*now_ms, 3000, true)), Decision::Abort(_))
        });
        // As 16 seconds of steps without it.
        assert!(given_up.is_some_and(|when| (22_000..=30_000).contains(&when)), "{given_up:?}");
    }

    #[test]
    fn next_to_no_residual_is_stopped_at_once() {
        assert_eq!(run(AdaptiveConfig::default(), 5000, |_| 101), Some((0, Decision::SwitchOver)));
    }

    #[test]
    fn nothing_is_stopped_before_the_whole_guest_was_seen() {
        let mut policy = Adaptive::new(AdaptiveConfig::default());
        for now_ms in (0..10_000).step_by(10) {
            assert_eq!(policy.decide(&view(now_ms, 101, false)), Decision::Continue);
        }
    }

    #[test]
    fn a_local_minimum_near_the_target_is_taken_after_a_while() {
        let wave = |now_ms: u64| 450 + (now_ms % 400).abs_diff(200);
        let (when, what) = run(AdaptiveConfig::default(), 60_000, wave).unwrap();
        assert_eq!(what, Decision::SwitchOver);
        assert!(when >= 3000, "settled at {when} ms");
        assert!(wave(when) <= 495, "stopped at {} ms, the least is 450", wave(when));
    }

    #[test]
    fn far_beyond_the_target_only_the_deadline_ends_it() {
        let with = |on_deadline| AdaptiveConfig {
            on_deadline,
            deadline: Duration::from_secs(20),
            ..AdaptiveConfig::default()
        };
        let abort = AbortReason::NotConverging { predicted_ms: 2000, target_ms: 300 };
        assert_eq!(run(with(OnDeadline::Abort), 60_000, |_| 2000), Some((20_000, Decision::Abort(abort))));
        assert_eq!(run(with(OnDeadline::Force), 60_000, |_| 2000), Some((20_000, Decision::SwitchOver)));
    }

    #[test]
    fn throttling_goes_up_in_steps_and_ends() {
        let config = AdaptiveConfig {
            on_deadline: OnDeadline::Throttle,
            deadline: Duration::from_secs(1),
            ..AdaptiveConfig::default()
        };
        let mut policy = Adaptive::new(config);
        let mut shares = Vec::new();
        let end = (0..60_000).step_by(10).find_map(|now_ms| match policy.decide(&view(now_ms, 2000, true)) {
            Decision::Throttle(share) => {
                if shares.last() != Some(&share) {
                    shares.push(share);
                }
                None
            }
            Decision::Continue => None,
            other => Some((now_ms, other)),
        });
        assert_eq!(shares.len(), 8, "{shares:?}");
        assert!(shares.is_sorted() && shares.last() == Some(&0.9), "{shares:?}");
        assert!(matches!(end, Some((17_000, Decision::Abort(_)))), "{end:?}");
    }

    /// The guest yields a share `lag_ms` after it was asked for. When each was asked for, and when it was given up.
    fn throttled_late(lag_ms: u64) -> (Vec<u64>, u64) {
        let config = AdaptiveConfig {
            deadline: Duration::MAX,
            on_deadline: OnDeadline::Throttle,
            throttle_most: 0.4,
            ..AdaptiveConfig::default()
        };
        let mut policy = Adaptive::new(config);
        policy.late(Time(0));
        let (mut asked, mut yields): (Vec<(u64, f32)>, f32) = (Vec::new(), 0.0);
        for now_ms in (0..200_000).step_by(100) {
            match policy.decide(&view(now_ms, 2000, true)) {
                Decision::Throttle(share) if asked.last().is_none_or(|(_, last)| *last != share) => {
                    asked.push((now_ms, share));
                }
                Decision::Abort(_) => return (asked.into_iter().map(|(at_ms, _)| at_ms).collect(), now_ms),
                _ => {}
            }
            if let Some((at_ms, share)) = asked.last()
                && now_ms >= at_ms + lag_ms
            {
                yields = (share * 100.0).round() / 100.0;
            }
            policy.throttled(Time(now_ms * MS), yields);
        }
        panic!("never given up: {asked:?}");
    }

    #[test]
    fn a_share_is_tried_from_when_the_guest_yields_it_on() {
        assert_eq!(throttled_late(0), (vec![0, 2000, 4000], 6000));
        assert_eq!(throttled_late(5000), (vec![0, 6900, 13_800], 20_700));
    }

    #[test]
    fn a_guest_that_never_yields_is_not_waited_for_without_end() {
        assert_eq!(throttled_late(1_000_000), (vec![0, 21_900, 43_800], 65_700));
    }

    #[test]
    fn a_share_is_tried_for_two_passes() {
        let config = AdaptiveConfig {
            deadline: Duration::from_secs(1),
            on_deadline: OnDeadline::Throttle,
            throttle_most: 0.2,
            ..AdaptiveConfig::default()
        };
        let given_up = |pass_ms: u64| {
            let mut policy = Adaptive::new(config.clone());
            (0..60_000).step_by(10).find(|now_ms| {
                let ended = (now_ms / pass_ms) as u32;
                let view =
                    View { pass: PassStats { ended, ..PassStats::default() }, ..view(*now_ms, 2000, true) };
                matches!(policy.decide(&view), Decision::Abort(_))
            })
        };
        assert_eq!([500, 3000, 50_000].map(given_up), [Some(3000), Some(6000), Some(21_000)]);
    }

    #[test]
    fn a_share_that_helps_is_given_its_time() {
        let config = AdaptiveConfig {
            deadline: Duration::from_secs(1),
            on_deadline: OnDeadline::Throttle,
            throttle_most: 0.2,
            ..AdaptiveConfig::default()
        };
        // A tenth of a second per second, to 1000 ms: too little to be waited for with the guest stopped at its end.
        let stop = |now_ms: u64| 3000u64.saturating_sub(now_ms.saturating_sub(1000) / 5).max(1000);
        let mut policy = Adaptive::new(config);
        let end = (0..60_000).step_by(10).find_map(|now_ms| {
            match policy.decide(&view(now_ms, stop(now_ms), true)) {
                Decision::Continue | Decision::Throttle(_) => None,
                other => Some((now_ms, other)),
            }
        });
        assert!(matches!(end, Some((11_000..14_000, Decision::Abort(_)))), "{end:?}");
    }

    #[test]
    fn nothing_is_taken_from_a_guest_before_all_of_it_was_seen() {
        let config = AdaptiveConfig { on_deadline: OnDeadline::Throttle, ..AdaptiveConfig::default() };
        let mut policy = Adaptive::new(config);
        policy.late(Time(0));
        assert_eq!(policy.decide(&view(10, 2000, false)), Decision::Continue);
        assert_eq!(policy.decide(&view(20, 2000, true)), Decision::Throttle(0.2));
    }

    #[test]
    fn a_throttled_guest_that_converges_is_stopped() {
        let config = AdaptiveConfig {
            on_deadline: OnDeadline::Throttle,
            deadline: Duration::from_secs(1),
            ..AdaptiveConfig::default()
        };
        let mut policy = Adaptive::new(config);
        let answers: Vec<Decision> = (0..9000)
            .step_by(10)
            .map(|now_ms| policy.decide(&view(now_ms, if now_ms < 5000 { 2000 } else { 250 }, true)))
            .collect();
        assert!(answers.contains(&Decision::SwitchOver));
    }
}
