//! `cargo lab bench bytes`: what a move puts on the wire, from plain copying to all that the engine does, beside what an oracle would.
//!
//! ```text
//!   raw ─▶ + zero ─▶ + LZ4/zstd ─▶ + same ─▶ + delta ─▶ + supersede  =  adaptive           oracle  =  U + deltas
//!   └───────────────────── the simulator: real pages, real encoders, virtual time ─────────────────────┘
//! ```
//!
//! Each rung is a move of the same guest in virtual time ([`crate::sim`]), so a guest that no rung but the last can move costs no hours; one that
//! does not converge is stopped at a deadline. Then the daemons move the same guest for real, over the emulated link.
//!
//! | file | what it holds |
//! |---|---|
//! | `rungs` | what each rung has |
//! | `oracle` | the deltas of one who knows beforehand |
//! | `ladder` | all rungs of one guest |

mod ladder;
mod oracle;
mod rungs;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::compare::{self, Cell};
use crate::guest::locate::QemuBinary;
use crate::link::parse_duration;
use crate::site::Programs;
use crate::verdict::{Bound, Verdict};
use ladder::{Ladder, climb};
use rungs::Rung;

/// The guests of the laboratory, each at a rate that the link can follow, if it has one.
const LOADS: [&str; 8] = ["idle", "seq@20", "rand@20", "hot@20", "oltp@5", "build@5", "jbb", "noise"];
/// Whose pages do not get smaller.
const NOISE: &str = "noise";
/// The stop that is asked for. Whoever asks for a shorter one than the link can give pays with bytes: what waits is sent again and again until it is
/// little enough.
const STOP: Duration = Duration::from_millis(300);
/// This guest dirties six times what `cloudnet` carries, nearly all of it in a working set that it rewrites every second; CloudNet stopped it for 6.5 s.
const LONG_STOP: (&str, Duration) = ("jbb", Duration::from_secs(1));

/// Of *U*, and of an oracle's deltas.
const MOST_BY_ORACLE: f64 = 1.15;
/// Of what is copied plainly.
const MOST_BY_RAW: f64 = 1.01;

#[derive(Debug, Args)]
pub struct BytesArgs {
    /// Where the wire is the limit, and not two processors
    #[arg(long, default_value = "cloudnet")]
    link: String,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, value_delimiter = ',', default_values = LOADS)]
    load: Vec<String>,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(32..=16384))]
    mem: u32,
    /// A guest that does not converge is stopped after so long; for real, the move is called off
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    deadline: Duration,
    /// Virtual time alone: no daemons, no QEMU
    #[arg(long)]
    simulated: bool,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
}

pub fn run(args: &BytesArgs) -> anyhow::Result<ExitCode> {
    let cells = compare::cells(std::slice::from_ref(&args.link), &args.load)?;
    let programs = if args.simulated {
        None
    } else {
        QemuBinary::find()?;
        Some(Programs::build()?)
    };
    println!(
        "a guest of {} MiB over {}; MB of TCP payload in virtual time; *: not converged, stopped after {:?}",
        args.mem, args.link, args.deadline
    );
    let names = Rung::ALL.map(|rung| format!("{:>12}", rung.name()));
    println!("{:9}{}{:>10}{:>8}{:>9}{:>11}", "guest", names.concat(), "U", "deltas", "oracle", "by oracle");
    let mut ladders = Vec::new();
    for cell in &cells {
        let ladder = climb(cell, args.mem, args.deadline, stop(cell))?;
        println!("{:9}{ladder}", cell.load_name());
        ladders.push(ladder);
    }

    let mut verdicts = Vec::new();
    for (cell, ladder) in cells.iter().zip(&ladders) {
        verdicts.push(Verdict::new(
            format!("{cell}: what all rungs send, by its pages plainly"),
            ladder.by_pages(),
            Bound::AtMost(MOST_BY_RAW),
            "",
        ));
        // There is nothing that an oracle could do for it.
        if cell.load_name() != NOISE {
            let what = format!("{cell}: payload in virtual time by an oracle's");
            verdicts.push(Verdict::new(what, ladder.by_oracle(), Bound::AtMost(MOST_BY_ORACLE), ""));
        }
    }
    if let Some(programs) = &programs {
        println!("\nthe same guests, moved by the daemons; wire: headers, acknowledgements and all");
        for (cell, ladder) in cells.iter().zip(&ladders).filter(|(_, ladder)| ladder.converges()) {
            verdicts.push(moved(cell, ladder, args, programs)?);
        }
    }
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!("{} criteria, {failed} not met", verdicts.len());
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn stop(cell: &Cell) -> Duration {
    let (name, long) = LONG_STOP;
    if cell.load_name() == name { long } else { STOP }
}

/// Moves a guest for real, and tells of it.
fn moved(cell: &Cell, ladder: &Ladder, args: &BytesArgs, programs: &Programs) -> anyhow::Result<Verdict> {
    let figures =
        compare::measure_ours(cell, args.mem, &compare::ours(programs).downtime(stop(cell)), args.deadline)?;
    let (what, bound) = (format!("{cell}: on the wire by an oracle's"), Bound::AtMost(MOST_BY_ORACLE));
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let Some(content_bytes) = figures.content_bytes else {
        println!("  {:9} did not arrive within {:?}", cell.load_name(), args.deadline);
        return Ok(Verdict::without(what, "did not arrive", bound, ""));
    };
    let oracle = content_bytes + ladder.delta_bytes();
    println!(
        "  {:9} {:.2} s, {:.1} MB on the wire; U {:.1} MB, an oracle's deltas {:.1}; bad {}",
        cell.load_name(),
        figures.total_s,
        mb(figures.wire_bytes),
        mb(content_bytes),
        mb(ladder.delta_bytes()),
        figures.bad_pages
    );
    Ok(Verdict::new(what, figures.wire_bytes as f64 / oracle as f64, bound, ""))
}
