//! The simulator against reality: the same guest over the same link, in virtual time and by daemons between two QEMUs.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::time::Duration;

use hikyaku_engine::precopy::{Common, by_name};
use hikyaku_lab::compare;
use hikyaku_lab::link::{LINK_OVERHEAD_BYTES, MTU_BYTES, TCP_PAYLOAD_BYTES};
use hikyaku_lab::sim::{self, End, GuestConfig, LinkConfig, Setup};
use hikyaku_lab::site::Programs;
use hikyaku_lab::steady::{claim, timed};

/// Beside it what a machine has of memory besides its guest's (ROMs, a frame buffer), which is not simulated, does not count for much.
const MIB: u32 = 192;
const LIMIT: Duration = Duration::from_secs(60);
/// By how much the two may differ.
const WITHIN: f64 = 0.15;

/// Where the wire is the limit, and not how many processors this machine has.
#[test]
fn small_guests_take_for_real_what_they_take_in_virtual_time() {
    let programs = Programs::build().unwrap();
    let loads = ["idle", "oltp@5", "build@5"].map(String::from);
    for cell in compare::cells(&["cloudnet".into()], &loads).unwrap() {
        let rate = cell.profile().rate.unwrap().payload_bit_per_s();
        let link = LinkConfig::new(rate as f64, cell.profile().rtt);
        let setup = Setup::new(GuestConfig::new(cell.load().clone(), MIB), link);
        let foretold = sim::run(&setup, by_name("adaptive", &Common::default()).unwrap()).unwrap();
        assert!(matches!(foretold.end, End::Moved) && foretold.memory_equal, "{cell}: {:?}", foretold.end);
        timed(3, &format!("{cell} beside virtual time"), || {
            let real = compare::measure_ours(&cell, MIB, &compare::ours(&programs), LIMIT).unwrap();
            assert_eq!((real.arrived, real.bad_pages), (true, 0));
            let packet_bytes = f64::from(MTU_BYTES + LINK_OVERHEAD_BYTES);
            let payload_mb = real.wire_bytes as f64 * f64::from(TCP_PAYLOAD_BYTES) / packet_bytes / 1e6;
            let agree = |what: &str, real: f64, foretold: f64| {
                println!("{cell}: {what} {real:.2}, in virtual time {foretold:.2}");
                claim(
                    (real / foretold - 1.0).abs() <= WITHIN,
                    format!("{cell}: {what} {real:.2}, in virtual time {foretold:.2}"),
                );
            };
            agree("seconds", real.total_s, foretold.total.as_secs_f64());
            agree("MB", payload_mb, foretold.sent_bytes as f64 / 1e6);
        });
    }
}
