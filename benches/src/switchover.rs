//! `cargo lab bench switchover`: the gap of the fast switch-over beside that of the safe one, in turns.
//!
//! The fast one asks the destination nothing before it lets the guest go, and pays half a round trip; the safe one waits until the destination has
//! loaded everything, and pays one and a half. The guests leave next to nothing for the stop, and what that takes on the link is left out of
//! what is asked.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::backed::Backed;
use crate::compare::{self, Cell};
use crate::guest::locate::QemuBinary;
use crate::site::Programs;
use crate::transport::load_average;
use crate::verdict::{Bound, Repeats, Verdict};

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    #[arg(long, value_delimiter = ',', default_value = "us,eu")]
    link: Vec<String>,
    /// Guests that leave at most a megabyte for the stop: NAME[@MB/s]
    #[arg(long, value_delimiter = ',', default_value = "idle,oltp@5")]
    load: Vec<String>,
    /// Moves of each, each way
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: u32,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=16384))]
    mem: u32,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
}

/// A way to hand a guest over, and the round trips that it takes.
const WAYS: [(&str, f64); 2] = [("fast", 0.5), ("safe", 1.5)];
/// Beyond those.
const MOST: Duration = Duration::from_millis(80);
const LIMIT: Duration = Duration::from_secs(60);

pub fn run(args: &SwitchoverArgs) -> anyhow::Result<ExitCode> {
    let cells = compare::cells(&args.link, &args.load)?;
    QemuBinary::find()?;
    let programs = Programs::build()?;
    let _backed = Backed::hold((args.mem as usize) << 23);
    println!("a guest of {} MiB, {} moves each way; load {}", args.mem, args.repeats, load_average());
    let mut verdicts = Vec::new();
    for cell in &cells {
        println!("\n{cell} over {}", cell.profile());
        verdicts.extend(in_turns(cell, &programs, args)?);
    }
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!("{} criteria, {failed} not met; load {}", verdicts.len(), load_average());
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn in_turns(cell: &Cell, programs: &Programs, args: &SwitchoverArgs) -> anyhow::Result<Vec<Verdict>> {
    let mut gaps = WAYS.map(|_| Repeats::default());
    for nth in 1..=args.repeats {
        for ((way, _), gaps) in WAYS.iter().zip(&mut gaps) {
            let ours = compare::ours(programs).flags(&["--switchover", way]);
            let figures = compare::measure_ours(cell, args.mem, &ours, LIMIT)?;
            let gap_ms = figures.gap_s.unwrap_or(LIMIT.as_secs_f64()) * 1e3;
            println!(
                "  {nth} {way}: gap {gap_ms:.0} ms, total {:.2} s, bad {}",
                figures.total_s, figures.bad_pages
            );
            gaps.add(if figures.bad_pages == 0 { gap_ms } else { f64::INFINITY });
        }
    }
    let verdict = |((way, round_trips), gaps): (&(&str, f64), &Repeats)| {
        let most = cell.profile().rtt.mul_f64(*round_trips) + MOST;
        let what = format!("{cell}: gap, {way}, median of {}", args.repeats);
        Verdict::new(what, gaps.median(), Bound::AtMost(most.as_secs_f64() * 1e3), " ms")
    };
    Ok(WAYS.iter().zip(&gaps).map(verdict).collect())
}
