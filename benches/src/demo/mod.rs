//! `cargo lab demo`: a guest crosses an ocean and comes back, while it works.
//!
//! Two hosts, a long fat link, a daemon on each, a real QEMU with a guest that checks every page of its memory. It is moved
//! there and back by the default policy, then by the constants that Xen compiled in, over the same link; a table at the
//! end sets them side by side.

mod moves;
mod table;

use crate::guest::Load;
use crate::link::{Link, Profile};
use crate::site::{Programs, Site};
use anyhow::Context;
use clap::Args;
use moves::Traveller;
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
    #[arg(long, value_delimiter = ',', default_value = "adaptive,xen-3")]
    policy: Vec<String>,
}

pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let profile = Profile::named(&args.link).with_context(|| {
        let names: Vec<_> = Profile::names().map(|(name, _)| name).collect();
        format!("no link is called \"{}\"; there are: {}", args.link, names.join(", "))
    })?;
    let load = Load::preset(&args.load)?;
    // Before anything is built: without QEMU there is nothing to show.
    crate::guest::locate::QemuBinary::find()?;
    println!("building hikyakud (release) …");
    let programs = Programs::build()?;
    println!("two hosts, tokyo and seattle, joined by: {profile}");
    let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
    let sites = Site::pair(&network, HOSTS, &programs, "")?;

    let mut rows = Vec::new();
    for policy in &args.policy {
        println!("\na guest of {} MiB starts in tokyo and works ({}); policy {policy}", args.mem, args.load);
        let mut guest = Traveller::start(args.mem, &load)?;
        for (from, to) in [(0, 1), (1, 0)] {
            rows.push(guest.travel(&network, &sites[from], &sites[to], policy)?);
        }
    }
    println!();
    table::print(&rows);
    println!(
        "\nevery page was checked by the guest itself after each arrival; {:.0?} in all",
        begun.elapsed()
    );
    let whole = rows.iter().all(|row| row.bad == 0 && !row.two_ran);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const HOSTS: [&str; 2] = ["tokyo", "seattle"];
