//! `cargo lab demo`: a guest crosses an ocean and comes back, while it works.
//!
//! Two hosts, a long fat link, a daemon on each, a real QEMU with a guest that checks every page of its memory. It is moved
//! there and back by the default policy, then by the constants that Xen compiled in, over the same link; a table at the
//! end sets them side by side.

mod table;

use crate::guest::Load;
use crate::link::Link;
use crate::link::cli::named;
use crate::site::{Programs, Site};
use crate::travel::{Manner, POLICIES, Traveller};
use clap::Args;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The link, by name: lan, jgn, us, eu, …
    #[arg(long, default_value = "us")]
    link: String,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 512)]
    mem: u32,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, default_value = "oltp@20")]
    load: String,
    /// Only these policies
    #[arg(long, value_delimiter = ',', default_value = "adaptive,xen-3", value_parser = POLICIES)]
    policy: Vec<String>,
}

pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let profile = named(&args.link).map_err(anyhow::Error::msg)?;
    let load = Load::preset(&args.load)?;
    // Before anything is built: without QEMU there is nothing to show.
    crate::guest::locate::QemuBinary::find()?;
    println!("building hikyakud (release; a few minutes, the first time) …");
    let programs = Programs::build()?;
    let begun = Instant::now();
    println!("two hosts, tokyo and seattle, joined by: {profile}");
    let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
    let mut rows = Vec::new();
    for policy in &args.policy {
        // Daemons of its own for each policy: the second would find the first one's links warm.
        let sites = Site::pair(&network, HOSTS, &programs, "")?;
        println!("\na guest of {} MiB starts in tokyo and works ({}); policy {policy}", args.mem, args.load);
        let mut guest = Traveller::start(args.mem, &load)?;
        let manner = Manner { policy: policy.clone(), ..Manner::default() };
        for (from, to) in [(0, 1), (1, 0)] {
            rows.push(guest.travel(&network, &sites[from], &sites[to], &manner)?);
        }
    }
    println!();
    table::print(&rows);
    println!(
        "\nevery page was checked by the guest itself after each arrival; {} s in all, without the build.",
        begun.elapsed().as_secs()
    );
    if let Some(load) = busy() {
        println!(
            "This machine is busy (load {load:.1} before the moves ended): that makes every gap longer."
        );
    }
    let whole = rows.iter().all(|row| row.bad == 0 && !row.two_ran);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The load of the last minute, if it is more than the demo itself makes.
fn busy() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    let cpus = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    (load > cpus + 1.0).then_some(load)
}

const HOSTS: [&str; 2] = ["tokyo", "seattle"];
