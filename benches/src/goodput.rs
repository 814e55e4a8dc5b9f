//! `cargo lab bench goodput`: what the transport makes of a long fat link, a fixed volume each time.
//!
//! The ends are those of [`transport`](crate::transport). Goodput is payload that was applied from second 3 on until the last
//! byte, by time, by the link's payload rate. The clock starts when the receiver accepts the session: before the first byte
//! could come.

use crate::link::cli::named;
use crate::link::{Link, Profile, parse_bytes};
use crate::transport::pair::{HOSTS, Outcome, Place, transfer};
use crate::transport::plan::{Amount, Manner};
use anyhow::{Context, bail};
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;

/// Slow start is over by then on every link that is measured.
const STEADY_FROM: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct GoodputArgs {
    /// The links, by name
    #[arg(long, value_delimiter = ',', default_value = "jgn,us")]
    link: Vec<String>,
    /// Random data of each run
    #[arg(long, default_value = "2GiB", value_parser = parse_bytes)]
    bytes: u64,
    /// Runs over each link; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeat: u32,
    /// Fail if a median is below this share of the link's payload rate
    #[arg(long, default_value_t = 0.90)]
    require: f64,
    /// Leave the sockets' buffers to the kernel's autotuning, as a daemon without privileges must
    #[arg(long)]
    autotune: bool,
    /// Congestion control of the lanes; "auto" is the transport's choice
    #[arg(long, default_value = "cubic")]
    congestion: String,
}

pub fn run(args: &GoodputArgs) -> anyhow::Result<ExitCode> {
    let mut passed = true;
    for name in &args.link {
        let profile = named(name).map_err(anyhow::Error::msg)?;
        let rate = profile.rate.with_context(|| format!("{name} has no rate to compare with"))?;
        let payload_bytes_per_s = rate.payload_bit_per_s() as f64 / 8.0;
        println!("{name}: {profile}");
        let mut shares = Vec::new();
        for run in 1..=args.repeat {
            let (outcome, drops) = measure(&profile, args, payload_bytes_per_s)?;
            let series = outcome.received.series();
            let steady_s = series.last().saturating_sub(STEADY_FROM).as_secs_f64();
            if steady_s == 0.0 {
                bail!("all of it came before second {}: give more --bytes", STEADY_FROM.as_secs());
            }
            let share = series.rate_from(STEADY_FROM) / payload_bytes_per_s;
            println!(
                "  run {run}: {:.1} % from second {} on ({:.2} GB in {steady_s:.2} s); {} lanes, {}; {drops} packets found the queue full",
                share * 100.0,
                STEADY_FROM.as_secs(),
                series.between(STEADY_FROM, Duration::MAX) as f64 / 1e9,
                outcome.sent.lanes,
                outcome.sent.io,
            );
            let mbit: Vec<_> =
                series.per_second().iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect();
            println!("         Mbit/s of each second: {}", mbit.join(" "));
            shares.push(share);
        }
        shares.sort_by(f64::total_cmp);
        let median = shares.get(shares.len() / 2).copied().unwrap_or(0.0);
        let enough = median >= args.require;
        passed &= enough;
        println!(
            "  {name}: median {:.1} % of the payload rate, at least {:.1} % asked: {}",
            median * 100.0,
            args.require * 100.0,
            if enough { "PASS" } else { "FAIL" }
        );
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One transfer between new processes in new hosts; and how many packets found the link's queue full.
fn measure(profile: &Profile, args: &GoodputArgs, bytes_per_s: f64) -> anyhow::Result<(Outcome, u64)> {
    let congestion = Some(args.congestion.clone()).filter(|name| name != "auto");
    let amount = Amount::Bytes(args.bytes);
    let manner = Manner { amount, autotune: args.autotune, congestion, ..Manner::default() };
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let outcome = transfer(Place::Hosts(&network), &manner, bytes_per_s)?;
    let applied = outcome.received.series().bytes();
    if applied != args.bytes {
        bail!("{applied} of {} bytes were applied", args.bytes);
    }
    let drops = network.counters().iter().map(|(_, _, seen)| seen.dropped_queue).sum();
    Ok((outcome, drops))
}
