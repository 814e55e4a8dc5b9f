//! `cargo lab link check`: what was asked of the emulator, and what is measured on this machine now.

use std::path::Path;
use std::time::Duration;

use super::measure::{Family, Measure};
use super::{Counters, Link, Network, Profile, Queue, Rate};

/// How far off is still right.
const RTT_TOLERANCE: Duration = Duration::from_millis(1);
const RATE_TOLERANCE: f64 = 0.03;
const LOSS_TOLERANCE: f64 = 0.10;
const UNLIMITED_BIT_PER_S: f64 = 3e9;

const RTTS_US: [u64; 5] = [200, 1_000, 40_000, 120_000, 200_000];
const PINGS: u64 = 60;
const RATES_BIT_PER_S: [u64; 2] = [100_000_000, 1_000_000_000];
const RATE_RTT: Duration = Duration::from_millis(20);
/// Enough that the queue stays filled while one of them backs off.
const STREAMS: usize = 8;
/// Until what slow start sent too much has been repaired: before, data that waited behind a hole is measured as well.
const SKIP: Duration = Duration::from_secs(3);
const TIME: Duration = Duration::from_secs(2);
const LOSS: f64 = 0.01;
/// 2,000 losses: their number is within 10 % but once in 100,000 runs.
const DATAGRAMS: u64 = 200_000;
const DATAGRAMS_PER_S: u64 = 50_000;

/// Measures and prints a table; says how many rows were not right.
pub(super) fn run(lab: &Path) -> anyhow::Result<usize> {
    println!("{:<34}{:>14}{:>14}   within", "", "asked", "measured");
    let mut wrong = 0;
    for family in [Family::Ip4, Family::Ip6] {
        for rtt_us in RTTS_US {
            wrong += usize::from(!round_trip(lab, family, Duration::from_micros(rtt_us))?);
        }
        for rate in RATES_BIT_PER_S {
            wrong += usize::from(!tcp_rate(lab, family, rate)?);
        }
        wrong += usize::from(!unlimited(lab, family)?);
        wrong += usize::from(!loss(lab, family)?);
    }
    Ok(wrong)
}

fn round_trip(lab: &Path, family: Family, rtt: Duration) -> anyhow::Result<bool> {
    let network = network(Profile { rtt, ..Profile::UNLIMITED })?;
    let all = measure(lab, &network, family).round_trips(PINGS)?;
    anyhow::ensure!(all.len() as u64 == PINGS, "{} of {PINGS} datagrams came back", all.len());
    let median = all[all.len() / 2];
    let right = median.abs_diff(rtt) <= RTT_TOLERANCE;
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    row("round trip, median", family, &ms(rtt), &ms(median), "1 ms", right);
    Ok(right)
}

fn tcp_rate(lab: &Path, family: Family, bit_per_s: u64) -> anyhow::Result<bool> {
    let rate = Some(Rate::payload(bit_per_s));
    let network = network(Profile { rate, rtt: RATE_RTT, ..Profile::UNLIMITED })?;
    let measured = measure(lab, &network, family).tcp_rate(STREAMS, SKIP, TIME)?;
    let right = (measured / bit_per_s as f64 - 1.0).abs() <= RATE_TOLERANCE;
    row("TCP payload, 20 ms, 8 streams", family, &mbit(bit_per_s as f64), &mbit(measured), "3 %", right);
    Ok(right)
}

fn unlimited(lab: &Path, family: Family) -> anyhow::Result<bool> {
    let network = network(Profile::UNLIMITED)?;
    let measured = measure(lab, &network, family).tcp_rate(2, SKIP / 6, TIME)?;
    let right = measured >= UNLIMITED_BIT_PER_S;
    let asked = format!(">= {}", mbit(UNLIMITED_BIT_PER_S));
    row("TCP payload, no limit, 2 streams", family, &asked, &mbit(measured), "", right);
    Ok(right)
}

fn loss(lab: &Path, family: Family) -> anyhow::Result<bool> {
    let network = network(Profile { loss: LOSS, ..Profile::UNLIMITED })?;
    let seen = measure(lab, &network, family).datagrams(DATAGRAMS, DATAGRAMS_PER_S)?;
    let right = (seen.loss() / LOSS - 1.0).abs() <= LOSS_TOLERANCE && seen.wrong == 0;
    let percent = |loss: f64| format!("{:.3} %", loss * 100.0);
    row("loss, datagrams in super-packets", family, &percent(LOSS), &percent(seen.loss()), "10 %", right);
    let Counters { packets, dropped_loss, .. } = network.counters_of("a", "b");
    let counted = dropped_loss as f64 / (packets + dropped_loss) as f64;
    row("loss, as the emulator counts it", family, &percent(seen.loss()), &percent(counted), "", true);
    Ok(right)
}

fn network(profile: Profile) -> anyhow::Result<Network> {
    let queue = Queue::Time(Duration::from_millis(100));
    Ok(Link::builder().profile(Profile { queue, ..profile }).build()?)
}

fn measure<'a>(lab: &Path, network: &'a Network, family: Family) -> Measure<'a> {
    Measure::new(lab, network, "a", "b", family)
}

fn mbit(bit_per_s: f64) -> String {
    format!("{:.0} Mbit/s", bit_per_s / 1e6)
}

fn row(what: &str, family: Family, asked: &str, measured: &str, within: &str, right: bool) {
    let family = match family {
        Family::Ip4 => "",
        Family::Ip6 => ", v6",
    };
    let verdict = if right { "ok" } else { "WRONG" };
    println!("{:<34}{asked:>14}{measured:>14}   {within:<7} {verdict}", format!("{what}{family}"));
}
