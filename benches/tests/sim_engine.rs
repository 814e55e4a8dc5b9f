//! Whole migrations in virtual time: what the engine has to hold whatever the guest, the link and the policy.

use std::time::Duration;

use hikyaku_engine::precopy::{self, Adaptive, AdaptiveConfig, Common, Encodings, Xen3, Xen3Config};
use hikyaku_engine::{
    AbortReason, Decision, Delta, HoldBack, OnDeadline, PAGE_BYTES, Policy, SourceConfig, Time, View,
};
use hikyaku_lab::guest::Load;
use hikyaku_lab::guest::load::{Pattern, Renewal};
use hikyaku_lab::sim::{EncodeSpeed, End, GuestConfig, LinkConfig, Report, Setup, StopCost, run};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// 30 % zero, 40 % text-like, 30 % random; a quarter of memory may be written.
fn mixed(mib: u32) -> GuestConfig {
    let load = Load {
        dup_permille: 0,
        text_permille: 400,
        random_permille: 300,
        set_pages: mib * 64,
        rate_pages_per_s: 0,
        change_bytes: (64, 64),
        ..Load::preset("rand").expect("a preset")
    };
    GuestConfig::new(load, mib)
}

/// Random pages alone, of which all may be written.
fn noise(mib: u32) -> GuestConfig {
    let mut guest = mixed(mib);
    guest.load = Load {
        text_permille: 0,
        random_permille: 1000,
        set_pages: u32::MAX,
        renewal: Renewal::Random,
        ..guest.load
    };
    guest
}

fn writing(mut guest: GuestConfig, pattern: Pattern, pages_per_s: u32) -> GuestConfig {
    guest.load.pattern = pattern;
    guest.pages_per_s = pages_per_s.into();
    guest
}

fn link(mbit_per_s: u64, rtt_ms: u64) -> LinkConfig {
    LinkConfig { credit_bytes: 64 << 20, ..LinkConfig::new(mbit_per_s as f64 * 1e6, MS * rtt_ms as u32) }
}

/// Stopping costs nothing, so that a gap is the engine's and the link's.
fn setup(guest: GuestConfig, link: LinkConfig) -> Setup {
    let mut setup = Setup::new(guest, link);
    setup.stop = StopCost::none();
    setup.encode = EncodeSpeed::flat(600e6);
    setup.limit = Duration::from_secs(120);
    setup
}

fn moves(setup: &Setup, policy: Box<dyn Policy>) -> Report {
    let report = runs(setup, policy);
    assert!(matches!(report.end, End::Moved), "{report:?}");
    assert!(report.memory_equal, "what arrived is not what was sent");
    report
}

fn runs(setup: &Setup, policy: Box<dyn Policy>) -> Report {
    let report = run(setup, policy).expect("the engine keeps its rules");
    println!("{report:?}");
    report
}

fn gap(report: &Report) -> Duration {
    report.gap.expect("moved")
}

fn adaptive() -> Box<dyn Policy> {
    Box::new(Adaptive::new(AdaptiveConfig::default()))
}

fn with_deadline(seconds: u64, on_deadline: OnDeadline) -> Box<dyn Policy> {
    let deadline = Duration::from_secs(seconds);
    Box::new(Adaptive::new(AdaptiveConfig { deadline, on_deadline, ..AdaptiveConfig::default() }))
}

#[test]
fn an_idle_guest_crosses_every_link_with_little_more_than_half_a_round_trip_of_stop() {
    for (mbit, rtt_ms) in [(10_000, 1), (1000, 40), (1000, 120), (1000, 200), (100, 20)] {
        let report = moves(&setup(mixed(32), link(mbit, rtt_ms)), adaptive());
        let rtt = MS * rtt_ms as u32;
        let wire = Duration::from_secs_f64(report.sent_bytes as f64 * 8.0 / (mbit as f64 * 1e6));
        let most = (wire + rtt * 2).mul_f64(1.2) + MS * 100;
        assert!(report.total <= most, "{mbit} Mbit/s, {rtt_ms} ms: {report:?}");
        assert!(gap(&report) <= rtt / 2 + MS * 20, "{mbit} Mbit/s, {rtt_ms} ms: {report:?}");
    }
}

#[test]
fn a_writing_guest_arrives_equal_over_lanes_that_reorder_and_repeat() {
    for pattern in [Pattern::Seq, Pattern::Uniform, Pattern::Hot] {
        let report = moves(&setup(writing(mixed(32), pattern, 5000), link(1000, 120).unruly()), adaptive());
        assert!(report.reordered > 0, "the link did not reorder");
        assert!(gap(&report) <= MS * 400, "{report:?}");
    }
}

#[test]
fn pages_that_become_zero_and_back_arrive_equal() {
    for delta in [Delta::Off, Delta::Always { base_budget_bytes: 16 << 20 }] {
        let mut guest = writing(mixed(16), Pattern::Hot, 8000);
        guest.zeroing_permille = 125;
        let mut setup = setup(guest, link(1000, 40).unruly());
        setup.source.delta = delta;
        moves(&setup, adaptive());
    }
}

#[test]
fn hot_pages_are_superseded_and_not_sent() {
    let mut guest = writing(mixed(32), Pattern::Hot, 20_000);
    guest.load.set_pages = 2000;
    let report = moves(&setup(guest, link(100, 20)), with_deadline(20, OnDeadline::Force));
    let sent_again = report.progress.pages_sent.saturating_sub(report.progress.pages_total);
    assert!(sent_again * 4 < report.writes, "{sent_again} of {} versions crossed", report.writes);
}

#[test]
fn the_prediction_is_near_the_stop() {
    for writes in [0, 2000, 8000] {
        let mut setup = setup(writing(mixed(32), Pattern::Uniform, writes), link(1000, 120));
        setup.stop = StopCost::default();
        let report = moves(&setup, adaptive());
        let (predicted, was) = (report.predicted_gap.expect("a prediction"), gap(&report));
        assert!(predicted.abs_diff(was) <= MS * 60, "{writes}: predicted {predicted:?}, was {was:?}");
    }
}

#[test]
fn a_guest_faster_than_the_link_ends_as_the_deadline_says() {
    // 160 MB/s of random pages over 12.5 MB/s.
    let mut guest = writing(noise(16), Pattern::Uniform, 40_000);
    guest.load.change_bytes = (PAGE_BYTES as u32, PAGE_BYTES as u32);
    let setup = setup(guest, link(100, 40));

    let report = runs(&setup, with_deadline(5, OnDeadline::Abort));
    assert!(matches!(report.end, End::Aborted(AbortReason::NotConverging { .. })));
    assert!(report.total < MS * 5200);
    assert_eq!(report.switches, 0);

    let report = moves(&setup, with_deadline(5, OnDeadline::Force));
    assert!(report.total < Duration::from_secs(8), "{report:?}");

    // Half of the guest is still too fast.
    let config = AdaptiveConfig {
        deadline: Duration::from_secs(2),
        on_deadline: OnDeadline::Throttle,
        throttle_most: 0.5,
        ..AdaptiveConfig::default()
    };
    let report = runs(&setup, Box::new(Adaptive::new(config)));
    assert!(matches!(report.end, End::Aborted(AbortReason::NotConverging { .. })));
    assert!(report.total < Duration::from_secs(25));
}

#[test]
fn throttling_makes_a_guest_converge() {
    let mut guest = writing(noise(32), Pattern::Uniform, 8000);
    guest.load.set_pages = 32 * 64;
    guest.load.change_bytes = (PAGE_BYTES as u32, PAGE_BYTES as u32);
    let report = moves(&setup(guest, link(100, 40)), with_deadline(4, OnDeadline::Throttle));
    assert!(gap(&report) <= MS * 700, "{report:?}");
}

#[test]
fn xen_3_stops_after_its_passes_or_when_little_is_dirty() {
    let xen = || Box::new(Xen3::new(Xen3Config::default()));
    let idle = moves(&setup(mixed(16), link(1000, 40)), xen());
    assert!(idle.passes.len() <= 3, "{:?}", idle.passes);

    // So fast a link that a pass takes as long as taking the bitmap, and so fast a guest that it dirties 70 pages meanwhile.
    let busy = moves(&setup(writing(noise(16), Pattern::Uniform, 70_000), link(10_000, 40)), xen());
    assert_eq!(busy.passes.len(), 30, "{:?}", busy.passes);
}

/// Over QEMU nothing is skipped, and a fast guest is sent three times.
#[test]
fn xen_3_sends_three_times_the_memory_of_a_guest_that_is_too_fast() {
    let mut setup = setup(writing(noise(16), Pattern::Uniform, 40_000), link(100, 40));
    setup.over_qemu = true;
    let fast = moves(&setup, Box::new(Xen3::new(Xen3Config::default())));
    let sent = fast.progress.pages_sent as f64 / fast.progress.pages_total as f64;
    assert!((3.0..5.1).contains(&sent) && fast.passes.len() < 6, "{sent} times RAM: {fast:?}");
}

#[test]
fn deltas_arrive_equal_and_cost_less() {
    let with = |delta| {
        let mut guest = writing(noise(16), Pattern::Uniform, 3000);
        guest.load.set_pages = 16 * 64;
        let mut setup = setup(guest, link(100, 40).unruly());
        setup.source.delta = delta;
        moves(&setup, with_deadline(6, OnDeadline::Force))
    };
    let whole = with(Delta::Off);
    assert_eq!(whole.progress.deltas_sent, 0);
    for budget in [64 << 20, 2 << 20, 0] {
        let delta = with(Delta::Always { base_budget_bytes: budget });
        match budget {
            0 => assert_eq!(delta.progress.deltas_sent, 0),
            _ => assert!(delta.progress.deltas_sent > 0, "{delta:?}"),
        }
        if budget == 64 << 20 {
            let fewer_bytes = delta.sent_bytes < whole.sent_bytes * 9 / 10;
            assert!(fewer_bytes || delta.total < whole.total * 9 / 10);
        }
    }
}

#[test]
fn staging_stays_within_its_budget_and_the_receiver_within_its_own() {
    for staging_bytes in [512 << 10, 4 << 20] {
        let mut setup = setup(writing(mixed(32), Pattern::Uniform, 5000), link(1000, 40).unruly());
        setup.source = SourceConfig { staging_bytes, pool_bytes: 1 << 20, ..SourceConfig::default() };
        setup.receiver.park_budget_bytes = 66 << 20;
        let report = moves(&setup, with_deadline(20, OnDeadline::Force));
        // Beyond the budgets: the pool, and the growth of the slots' own tables.
        let bases_bytes = setup.source.delta.budget_bytes(32 << 8);
        let allowed =
            staging_bytes + bases_bytes + setup.source.pool_bytes + staging_bytes / 64 + (512 << 10);
        assert!(report.source_peak_bytes <= allowed, "{} of {allowed}", report.source_peak_bytes);
        assert!(report.receiver_peak_bytes <= setup.receiver.park_budget_bytes + (4 << 20));
        // All sent, all given back.
        let left = report.progress.memory_bytes - 16 * report.progress.pages_total as usize;
        let kept = setup.source.pool_bytes + bases_bytes + (512 << 10);
        assert!(left <= kept, "{left} bytes are still held");
    }
}

#[test]
fn a_source_that_cannot_be_held_back_is_read_at_the_rate_of_the_link() {
    let hold = MS * 100;
    let mut setup = setup(noise(32), link(1000, 40));
    setup.source.hold_back = HoldBack::Rate(hold);
    let report = moves(&setup, adaptive());
    let in_hold = (125_000_000.0 * hold.as_secs_f64()) as usize;
    let pool = SourceConfig::default().pool_bytes;
    assert!(report.source_peak_bytes <= in_hold * 5 / 4 + pool + (1 << 20), "{report:?}");
}

#[test]
fn a_guest_that_runs_on_after_a_stop_is_stopped_again_later() {
    let mut setup = setup(writing(mixed(16), Pattern::Uniform, 2000), link(1000, 120));
    setup.first_stop_fails_after = Some(MS * 300);
    assert_eq!(moves(&setup, adaptive()).switches, 2);
}

#[test]
fn a_cold_link_begins_slowly_and_carries_everything() {
    let total = |warm| {
        let mut setup = setup(mixed(64), link(1000, 200));
        setup.link.warm = warm;
        moves(&setup, adaptive()).total
    };
    let (warm, cold) = (total(true), total(false));
    assert!(cold > warm + MS * 400, "warm {warm:?}, cold {cold:?}");
}

#[test]
fn a_limit_of_the_policy_s_own_is_kept_until_the_guest_stands() {
    // 24 MiB of noise; Xen's limiter begins at 100 Mbit/s of 2^20 bits, the link carries ten times as much.
    let policy = precopy::by_name("xen-3-limited", &Common::default()).expect("it exists");
    let report = moves(&setup(noise(24), link(1000, 20)), policy);
    let at_the_limit = (24 << 20) as f64 / (100 << 17) as f64;
    let total = report.total.as_secs_f64();
    assert!((at_the_limit * 0.97..at_the_limit * 1.1).contains(&total), "{total} s of {at_the_limit}");
}

#[test]
fn the_same_setup_gives_the_same_migration() {
    let once = || {
        let report =
            runs(&setup(writing(mixed(16), Pattern::Hot, 3000), link(1000, 40).unruly()), adaptive());
        (report.total, report.sent_bytes, report.progress.chunks_issued, report.passes)
    };
    assert_eq!(once(), once());
}

/// A policy whose original never gives up, with an end.
struct Within {
    inner: Box<dyn Policy>,
    ns: u64,
}

impl Policy for Within {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn decide(&mut self, view: &View) -> Decision {
        let decision = self.inner.decide(view);
        if view.now.since(view.started) > self.ns { Decision::SwitchOver } else { decision }
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.inner.staging_bytes(configured)
    }

    fn encodings(&self) -> Encodings {
        self.inner.encodings()
    }

    fn paces_passes(&self) -> bool {
        self.inner.paces_passes()
    }

    fn skips_redirtied(&self) -> bool {
        self.inner.skips_redirtied()
    }

    fn limit_bytes_per_s(&self) -> Option<u64> {
        self.inner.limit_bytes_per_s()
    }

    fn resumed(&mut self, now: Time) {
        self.inner.resumed(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_guest_arrives_equal_over_any_link_by_any_policy(
        seed in any::<u32>(),
        mib in 1..6u32,
        shares in (0..200u32, 0..400u32, 0..400u32),
        pattern in prop_oneof![
            Just(Pattern::Seq), Just(Pattern::Uniform), Just(Pattern::Hot), Just(Pattern::Zipf { root: 10 })
        ],
        writes_per_s in prop_oneof![Just(0), 1..20_000u32],
        change in (8..=PAGE_BYTES as u32, prop_oneof![Just(0), Just(125u32)]),
        path in (10..2000u64, 0..200u64, any::<bool>(), any::<bool>()),
        staging_bytes in prop_oneof![Just(1 << 16), Just(1 << 20), Just(256 << 20)],
        chunk_bytes in prop_oneof![Just(PAGE_BYTES), Just(64 << 10), Just(256 << 10)],
        delta in prop_oneof![
            Just(Delta::Off),
            (0..4usize << 20).prop_map(|base_budget_bytes| Delta::Always { base_budget_bytes })
        ],
        policy in prop::sample::select(&precopy::NAMES[..]),
        resumed in any::<bool>(),
    ) {
        let mut guest = writing(mixed(mib), pattern, writes_per_s);
        guest.load = Load {
            seed: seed.into(),
            dup_permille: shares.0,
            text_permille: shares.1,
            random_permille: shares.2,
            change_bytes: (change.0, change.0),
            ..guest.load
        };
        guest.zeroing_permille = change.1;
        let (mbit, rtt_ms, unruly, warm) = path;
        let path = LinkConfig { warm, ..link(mbit, rtt_ms) };
        let mut setup = setup(guest, if unruly { path.unruly() } else { path });
        setup.seed = seed.into();
        setup.source = SourceConfig { staging_bytes, chunk_bytes, delta, ..setup.source };
        setup.first_stop_fails_after = resumed.then_some(MS * 50);
        let inner = precopy::by_name(policy, &Common::default()).expect("a name");
        let report = run(&setup, Box::new(Within { inner, ns: 3_000_000_000 })).expect("the engine keeps its rules");
        prop_assert!(matches!(report.end, End::Moved), "{report:?}");
        prop_assert!(report.memory_equal, "{report:?}");
    }
}
