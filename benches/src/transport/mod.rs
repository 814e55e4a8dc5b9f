//! `cargo lab bench transport`: the measurement of record of the transport, with the criteria it has to meet.
//!
//! ```text
//!  host b                                    the link                                host a
//!  lab … end ─── Node ─── random chunks ═══ rate, delay, queue ═══▶ Node ─── lab … end: applies at once, notes when
//!  iperf3 -c                                the same                                 iperf3 -s
//! ```
//!
//! Two nodes of the transport, each in a process of its own, in hosts that nobody has tuned (`cubic`, stock limits of
//! buffers); plain TCP beside it, in turns, in one run. It does not measure the daemon: no guest, no page, no disk.
//!
//! | file | what it holds |
//! |---|---|
//! | `ends` | the two processes |
//! | `plan` | what they are told and what they say |
//! | `pair` | starting, bounding and hearing both |
//! | `series` | what came when, and figures from it |
//! | `iperf` | plain TCP on the same hosts |
//! | `rows` | things side by side on one link |
//! | `course` | how long, how often |
//! | `goodput` | parts `goodput`, `lan`, `lossy` |
//! | `warmup`, `memory`, `cores`, `ten`, `kills` | the part of that name |

mod cores;
mod course;
mod ends;
mod goodput;
mod iperf;
mod kills;
mod memory;
pub mod pair;
pub mod plan;
mod rows;
mod series;
mod ten;
mod warmup;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::verdict::Verdict;
use course::Course;
pub(crate) use course::load_average;

/// A transfer at a tenth of the rate, and this, is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TransportArgs {
    #[command(subcommand)]
    end: Option<Hidden>,

    /// These parts alone
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// The links of the parts `goodput`, `warmup` and `memory`
    #[arg(long, value_delimiter = ',', default_value = "jgn,us,eu")]
    link: Vec<String>,
    /// Runs of everything; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: u32,
    /// Lanes of the link, if not the transport's default
    #[arg(long)]
    lanes: Option<u16>,
    /// A short run of everything, to see that it works: its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum Hidden {
    /// One end of a transfer; its plan comes on the standard input
    #[command(hide = true)]
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Goodput on ordinary and long links, beside plain TCP
    Goodput,
    /// The same on a link where the machine is the limit
    Lan,
    /// The same on a link that loses packets
    Lossy,
    /// How soon a session goes at the rate of the path
    Warmup,
    /// What a link costs its ends in memory
    Memory,
    /// GB/s of one core
    Cores,
    /// Ten sessions at once
    Ten,
    /// Lanes that are reset, ten in each second
    Kills,
}

/// One run of one thing on one link.
#[derive(Debug, Clone)]
pub struct Measured {
    steady_bytes_per_s: f64,
    /// Until the fixed volume had come, if it did.
    total_s: Option<f64>,
    per_second: Vec<u64>,
    /// Lanes at the end; 0: not ours.
    lanes: u16,
    /// Packets that found the link's queue full.
    drops: u64,
}

pub fn run(args: &TransportArgs) -> anyhow::Result<ExitCode> {
    if let Some(Hidden::End) = args.end {
        ends::run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let course = Course::new(args.repeats, args.quick, args.lanes);
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    println!("{cpus} CPUs, load {}; cubic and Linux' default limits of buffers in the hosts", load_average());
    let parts = if args.only.is_empty() { Part::value_variants() } else { &args.only };
    let mut verdicts = Vec::new();
    for part in parts {
        verdicts.extend(measure(*part, args, &course)?);
    }
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!(
        "{} criteria, {failed} not met{}",
        verdicts.len(),
        if course.quick { "; a quick run decides nothing" } else { "" }
    );
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(part: Part, args: &TransportArgs, course: &Course) -> anyhow::Result<Vec<Verdict>> {
    match part {
        Part::Goodput => goodput::goodput(&args.link, course),
        Part::Lan => goodput::lan(course),
        Part::Lossy => goodput::lossy(course),
        Part::Warmup => warmup::warmup(&args.link, course),
        Part::Memory => memory::memory(&args.link, course),
        Part::Cores => cores::cores(course),
        Part::Ten => ten::ten(course),
        Part::Kills => kills::kills(course),
    }
}
