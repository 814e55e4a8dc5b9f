//! Whole migrations in virtual time.

use std::time::Duration;

use proptest::prelude::*;

use crate::sim::guest::{GuestConfig, Pattern};
use crate::sim::link::LinkConfig;
use crate::sim::{End, MS, Report, Setup, run};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig, Xen3, Xen3Config};
use hikyaku_engine::{AbortReason, Delta, HoldBack, OnDeadline, PAGE_BYTES, Policy, SourceConfig};

fn adaptive() -> Box<dyn Policy> {
    Box::new(Adaptive::new(AdaptiveConfig::default()))
}

fn with_deadline(seconds: u64, on_deadline: OnDeadline) -> Box<dyn Policy> {
    let deadline = Duration::from_secs(seconds);
    Box::new(Adaptive::new(AdaptiveConfig { deadline, on_deadline, ..AdaptiveConfig::default() }))
}

fn moved(report: &Report) {
    println!("{report:?}");
    assert!(matches!(report.end, End::Moved), "{:?}", report.end);
    assert!(report.ram_equal, "what arrived is not what was sent");
}

#[test]
fn an_idle_guest_crosses_every_link_with_little_more_than_half_a_round_trip_of_stop() {
    for (mbit, rtt_ms) in [(10_000, 1), (1000, 40), (1000, 120), (1000, 200), (100, 20)] {
        let report = run(Setup::new(GuestConfig::mixed(32), LinkConfig::new(mbit, rtt_ms)), adaptive());
        moved(&report);
        let wire_ns = report.payload_bytes * 1_000_000_000 / (mbit * 125_000);
        let floor_ns = wire_ns + rtt_ms * MS;
        assert!(report.total_ns <= floor_ns * 12 / 10 + 100 * MS, "{mbit} Mbit/s, {rtt_ms} ms: {report:?}");
        assert!(report.down_ns <= rtt_ms * MS / 2 + 20 * MS, "{mbit} Mbit/s, {rtt_ms} ms: {report:?}");
    }
}

#[test]
fn a_writing_guest_arrives_equal_over_lanes_that_reorder_and_repeat() {
    for pattern in [Pattern::Sequential, Pattern::Random, Pattern::Hot] {
        let guest = GuestConfig::mixed(32).writing(pattern, 5000);
        let report = run(Setup::new(guest, LinkConfig::new(1000, 120).unruly()), adaptive());
        moved(&report);
        assert!(report.reordered > 0, "the link did not reorder");
        assert!(report.down_ns <= 400 * MS, "{} ms", report.down_ns / MS);
    }
}

#[test]
fn pages_that_become_zero_and_back_arrive_equal() {
    for delta in [Delta::Off, Delta::Always { base_budget_bytes: 16 << 20 }] {
        let mut guest = GuestConfig::mixed(16).writing(Pattern::Hot, 8000);
        guest.changed_bytes = 0;
        let mut setup = Setup::new(guest, LinkConfig::new(1000, 40).unruly());
        setup.source.delta = delta;
        moved(&run(setup, adaptive()));
    }
}

#[test]
fn hot_pages_are_superseded_and_not_sent() {
    let mut guest = GuestConfig::mixed(32).writing(Pattern::Hot, 20_000);
    guest.working_set = 2000;
    let report = run(Setup::new(guest, LinkConfig::new(100, 20)), with_deadline(20, OnDeadline::Force));
    moved(&report);
    let written = 20_000 * (report.total_ns / MS) / 1000;
    let sent_again = report.progress.pages_sent.saturating_sub(report.progress.pages_total);
    assert!(sent_again * 4 < written, "{sent_again} of {written} versions crossed");
}

#[test]
fn the_prediction_is_near_the_stop() {
    for writes in [0, 2000, 8000] {
        let guest = GuestConfig::mixed(32).writing(Pattern::Random, writes);
        let report = run(Setup::new(guest, LinkConfig::new(1000, 120)), adaptive());
        moved(&report);
        let predicted_ms = report.predicted_ms.unwrap();
        // The model has no device state to save and load.
        let outside_ms = 45;
        let stop_ms = report.down_ns / MS + outside_ms;
        assert!(predicted_ms.abs_diff(stop_ms) <= 60, "{writes}: predicted {predicted_ms}, was {stop_ms}");
    }
}

#[test]
fn a_guest_faster_than_the_link_ends_as_the_deadline_says() {
    // 160 MB/s of random pages over 12.5 MB/s.
    let guest = || GuestConfig {
        zero_percent: 0,
        text_percent: 0,
        working_set: 16 * 256,
        changed_bytes: PAGE_BYTES,
        ..GuestConfig::mixed(16).writing(Pattern::Random, 40_000)
    };
    let setup = || Setup::new(guest(), LinkConfig::new(100, 40));

    let report = run(setup(), with_deadline(5, OnDeadline::Abort));
    assert!(matches!(report.end, End::Aborted(AbortReason::NotConverging { .. })), "{report:?}");
    assert!(report.total_ns < 5100 * MS);
    assert_eq!(report.switches, 0);

    let report = run(setup(), with_deadline(5, OnDeadline::Force));
    moved(&report);
    assert!(report.total_ns < 8000 * MS, "{report:?}");

    // Half of the guest is still too fast.
    let config = AdaptiveConfig {
        deadline: Duration::from_secs(2),
        on_deadline: OnDeadline::Throttle,
        throttle_most: 0.5,
        ..AdaptiveConfig::default()
    };
    let report = run(setup(), Box::new(Adaptive::new(config)));
    assert!(matches!(report.end, End::Aborted(AbortReason::NotConverging { .. })), "{report:?}");
    assert!(report.total_ns < 25_000 * MS);
}

#[test]
fn throttling_makes_a_guest_converge() {
    let guest = GuestConfig {
        zero_percent: 0,
        text_percent: 0,
        changed_bytes: PAGE_BYTES,
        ..GuestConfig::mixed(32).writing(Pattern::Random, 8_000)
    };
    let report = run(Setup::new(guest, LinkConfig::new(100, 40)), with_deadline(4, OnDeadline::Throttle));
    moved(&report);
    assert!(report.down_ns <= 700 * MS, "{report:?}");
}

#[test]
fn xen_3_stops_after_its_passes_or_when_little_is_dirty() {
    let xen = || Box::new(Xen3::new(Xen3Config::default()));
    let idle = run(Setup::new(GuestConfig::mixed(16), LinkConfig::new(1000, 40)), xen());
    moved(&idle);
    assert!(idle.switched_in_pass <= 3, "{idle:?}");

    // So fast a link that a pass is over in a millisecond, and so fast a guest that it dirties 70 pages meanwhile.
    let guest =
        GuestConfig { working_set: 16 * 256, ..GuestConfig::mixed(16).writing(Pattern::Random, 70_000) };
    let busy = run(Setup::new(guest, LinkConfig::new(10_000, 40)), xen());
    moved(&busy);
    assert_eq!(busy.switched_in_pass, 29, "{busy:?}");

    let guest =
        GuestConfig { working_set: 16 * 256, ..GuestConfig::mixed(16).writing(Pattern::Random, 40_000) };
    let fast = run(Setup::new(guest, LinkConfig::new(100, 40)), xen());
    moved(&fast);
    let sent = fast.progress.pages_sent as f64 / fast.progress.pages_total as f64;
    assert!((2.0..5.5).contains(&sent) && fast.switched_in_pass < 29, "{sent} times RAM: {fast:?}");
}

#[test]
fn deltas_arrive_equal_and_cost_less() {
    let with = |delta| {
        let guest = GuestConfig {
            zero_percent: 0,
            text_percent: 0,
            ..GuestConfig::mixed(16).writing(Pattern::Random, 3000)
        };
        let mut setup = Setup::new(guest, LinkConfig::new(100, 40).unruly());
        setup.source.delta = delta;
        run(setup, with_deadline(6, OnDeadline::Force))
    };
    let whole = with(Delta::Off);
    moved(&whole);
    assert_eq!(whole.progress.deltas_sent, 0);
    for budget in [64 << 20, 2 << 20, 0] {
        let delta = with(Delta::Always { base_budget_bytes: budget });
        moved(&delta);
        match budget {
            0 => assert_eq!(delta.progress.deltas_sent, 0),
            _ => assert!(delta.progress.deltas_sent > 0, "{delta:?}"),
        }
        if budget == 64 << 20 {
            assert!(
                delta.payload_bytes < whole.payload_bytes * 9 / 10
                    || delta.total_ns < whole.total_ns * 9 / 10
            );
        }
    }
}

#[test]
fn staging_stays_within_its_budget_and_the_receiver_within_its_own() {
    for staging_bytes in [512 << 10, 4 << 20] {
        let guest = GuestConfig::mixed(32).writing(Pattern::Random, 5000);
        let mut setup = Setup::new(guest, LinkConfig::new(1000, 40).unruly());
        setup.source = SourceConfig { staging_bytes, pool_bytes: 1 << 20, ..SourceConfig::default() };
        setup.receiver.park_budget_bytes = 66 << 20;
        let report = run(setup.clone(), with_deadline(20, OnDeadline::Force));
        moved(&report);
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
fn metadata_is_at_most_sixteen_bytes_per_page() {
    for delta in [Delta::Off, Delta::Always { base_budget_bytes: 1 << 20 }] {
        let config = SourceConfig { delta, ..SourceConfig::default() };
        let mut source = hikyaku_engine::Source::new(config, adaptive());
        let pages = 1 << 18;
        source.layout(hikyaku_engine::Time(0), pages).unwrap();
        let per_page = source.metadata_bytes() as f64 / f64::from(pages);
        assert!(per_page <= 16.0, "{per_page}");
        assert!(source.memory_bytes() - source.metadata_bytes() < 64 << 10);
    }
}

#[test]
fn a_source_that_cannot_be_held_back_is_read_at_the_rate_of_the_link() {
    let hold = Duration::from_millis(100);
    let guest = GuestConfig { zero_percent: 0, text_percent: 0, ..GuestConfig::mixed(32) };
    let mut setup = Setup::new(guest, LinkConfig::new(1000, 40));
    setup.source.hold_back = HoldBack::Rate(hold);
    let report = run(setup, adaptive());
    moved(&report);
    let in_hold = (125_000_000.0 * hold.as_secs_f64()) as usize;
    let pool = SourceConfig::default().pool_bytes;
    assert!(report.source_peak_bytes <= in_hold * 5 / 4 + pool + (1 << 20), "{report:?}");
}

#[test]
fn a_guest_that_runs_on_after_a_stop_is_stopped_again_later() {
    let guest = GuestConfig::mixed(16).writing(Pattern::Random, 2000);
    let mut setup = Setup::new(guest, LinkConfig::new(1000, 120));
    setup.first_stop_fails_after_ns = Some(300 * MS);
    let report = run(setup, adaptive());
    moved(&report);
    assert_eq!(report.switches, 2);
}

#[test]
fn the_same_events_give_the_same_migration() {
    let once = || {
        let guest = GuestConfig::mixed(16).writing(Pattern::Hot, 3000);
        let report = run(Setup::new(guest, LinkConfig::new(1000, 40).unruly()), adaptive());
        (report.total_ns, report.payload_bytes, report.progress.chunks_issued)
    };
    assert_eq!(once(), once());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_guest_arrives_equal_over_any_link(
        seed in any::<u64>(),
        mib in 1..6u32,
        shares in (0..60u64, 0..40u64),
        pattern in prop_oneof![Just(Pattern::Sequential), Just(Pattern::Random), Just(Pattern::Hot)],
        writes_per_s in prop_oneof![Just(0), 1..20_000u64],
        changed_bytes in prop_oneof![Just(0), 8..PAGE_BYTES],
        link in (10..2000u64, 0..200u64, any::<bool>()),
        staging_bytes in prop_oneof![Just(1 << 16), Just(1 << 20), Just(256 << 20)],
        chunk_bytes in prop_oneof![Just(PAGE_BYTES), Just(64 << 10), Just(256 << 10)],
        delta in prop_oneof![
            Just(Delta::Off),
            (0..4usize << 20).prop_map(|base_budget_bytes| Delta::Always { base_budget_bytes })
        ],
        xen in any::<bool>(),
        resumed in any::<bool>(),
    ) {
        let guest = GuestConfig {
            zero_percent: shares.0,
            text_percent: shares.1,
            changed_bytes,
            ..GuestConfig::mixed(mib).writing(pattern, writes_per_s)
        };
        let (mbit, rtt_ms, unruly) = link;
        let link = LinkConfig::new(mbit, rtt_ms);
        let mut setup = Setup::new(guest, if unruly { link.unruly() } else { link });
        setup.seed = seed;
        setup.source = SourceConfig { staging_bytes, chunk_bytes, delta, ..setup.source };
        setup.first_stop_fails_after_ns = resumed.then_some(50 * MS);
        let policy: Box<dyn Policy> =
            if xen { Box::new(Xen3::new(Xen3Config::default())) } else { with_deadline(3, OnDeadline::Force) };
        let report = run(setup, policy);
        prop_assert!(matches!(report.end, End::Moved), "{report:?}");
        prop_assert!(report.ram_equal, "{report:?}");
    }
}
