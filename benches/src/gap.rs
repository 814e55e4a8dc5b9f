//! `cargo lab bench gap`: how long a guest is silent that is moved over a link whose queue is full.
//!
//! The lanes go by losses (cubic), so during the copy they fill the bottleneck's queue of 100 ms, as everything does that goes by losses; a
//! stop must not stand in it. The guests have next to nothing left when they are stopped. What was foretold is set beside what was heard.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::backed::Backed;
use crate::compare::{self, Cell, Ours, Told, foretold_s};
use crate::guest::locate::QemuBinary;
use crate::link::Queue;
use crate::site::Programs;
use crate::transport::load_average;
use crate::verdict::{Bound, Repeats, Verdict};

#[derive(Debug, Args)]
pub struct GapArgs {
    #[arg(long, value_delimiter = ',', default_value = "jgn,us,eu")]
    link: Vec<String>,
    /// Guests that leave at most a megabyte for the stop: NAME[@MB/s]
    #[arg(long, value_delimiter = ',', default_value = "idle,oltp@5")]
    load: Vec<String>,
    /// Moves of each over each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: u32,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..=16384))]
    mem: u32,
    /// Congestion control of the lanes; `auto` keeps them off the queue
    #[arg(long, default_value = FILLS_QUEUES)]
    congestion: String,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
}

/// Beyond half a round trip: the median's, and how much further the worst may be.
const MOST: Duration = Duration::from_millis(80);
const WORST: Duration = Duration::from_millis(60);
/// The congestion control that does.
const FILLS_QUEUES: &str = "cubic";
/// How full the bottleneck's queue has to be at some time, or the stop had nothing to stand in.
const QUEUE_FILLED: f64 = 0.8;
const LIMIT: Duration = Duration::from_secs(120);

pub fn run(args: &GapArgs) -> anyhow::Result<ExitCode> {
    let cells = compare::cells(&args.link, &args.load)?;
    QemuBinary::find()?;
    let programs = Programs::build()?;
    let _backed = Backed::hold((args.mem as usize) << 23);
    let ours =
        compare::ours(&programs).configured(&format!("[link]\ncongestion = \"{}\"\n", args.congestion));
    println!(
        "a guest of {} MiB, lanes with {}, {} moves each; load {}",
        args.mem,
        args.congestion,
        args.repeats,
        load_average()
    );
    let mut told = Told::default();
    let mut verdicts = Vec::new();
    for cell in &cells {
        println!("\n{cell} over {}", cell.profile());
        let (gaps, queues) = gaps(cell, &ours, args, &mut told)?;
        let most_ms = (cell.profile().rtt / 2 + MOST).as_secs_f64() * 1e3;
        let worst_ms = most_ms + WORST.as_secs_f64() * 1e3;
        let what = format!("{cell}: gap of {} moves, median", args.repeats);
        verdicts.push(Verdict::new(what, gaps.median(), Bound::AtMost(most_ms), " ms"));
        verdicts.push(Verdict::new(
            format!("{cell}: the worst"),
            gaps.most(),
            Bound::AtMost(worst_ms),
            " ms",
        ));
        if let (FILLS_QUEUES, Queue::Time(queue)) = (args.congestion.as_str(), cell.profile().queue) {
            let what = format!("{cell}: what stood in the bottleneck's queue, at most, median");
            let asked = Bound::AtLeast(queue.as_secs_f64() * 1e3 * QUEUE_FILLED);
            verdicts.push(Verdict::new(what, queues.median(), asked, " ms"));
        }
    }
    verdicts.extend(told.verdict());
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!("{} criteria, {failed} not met; load {}", verdicts.len(), load_average());
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Gaps and the longest queues, in milliseconds; a guest that did not arrive is silent for as long as it may.
fn gaps(cell: &Cell, ours: &Ours, args: &GapArgs, told: &mut Told) -> anyhow::Result<(Repeats, Repeats)> {
    let (mut gaps, mut queues) = (Repeats::default(), Repeats::default());
    for nth in 1..=args.repeats {
        let figures = compare::measure_ours(cell, args.mem, ours, LIMIT)?;
        let gap_ms = figures.gap_s.unwrap_or(LIMIT.as_secs_f64()) * 1e3;
        let words = foretold_s(&figures).map_or("nothing".to_owned(), |s| format!("{:.0} ms", s * 1e3));
        println!(
            "  {nth} gap {gap_ms:.0} ms, foretold {words}; queue up to {:.0} ms, total {:.2} s, bad {}, {}",
            figures.queue_s * 1e3,
            figures.total_s,
            figures.bad_pages,
            figures.congestion
        );
        told.count(&figures);
        queues.add(figures.queue_s * 1e3);
        gaps.add(if figures.bad_pages == 0 { gap_ms } else { f64::INFINITY });
    }
    Ok((gaps, queues))
}
