//! `cargo lab bench gap`: how long a guest is silent that is moved over a link whose queue is full.
//!
//! The lanes go by losses (cubic), so during the copy they fill the bottleneck's queue of 100 ms, as everything does that goes by losses; a
//! stop must not stand in it. The guests have next to nothing left when they are stopped. What was foretold is set beside what was heard.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::backed::Backed;
use crate::compare::{self, Cell, Figures, Ours};
use crate::guest::locate::QemuBinary;
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
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(32..=16384))]
    mem: u32,
    /// Congestion control of the lanes; `auto` keeps them off the queue
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
}

/// Beyond half a round trip: the median's, and how much further the worst may be.
const MOST: Duration = Duration::from_millis(80);
const WORST: Duration = Duration::from_millis(60);
/// What was foretold is right within this share, or this time.
const FORETOLD_WITHIN: f64 = 0.3;
const FORETOLD_WITHIN_MS: f64 = 20.0;
/// In so many of all moves.
const FORETOLD_OFTEN: f64 = 0.9;
const LIMIT: Duration = Duration::from_secs(60);

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
        let gaps = gaps(cell, &ours, args, &mut told)?;
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
    }
    let what = "stops that took what was foretold, within 30 % or 20 ms";
    verdicts.push(Verdict::new(what, told.share(), Bound::AtLeast(FORETOLD_OFTEN), ""));
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!("{} criteria, {failed} not met; load {}", verdicts.len(), load_average());
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// In milliseconds; a guest that did not arrive is silent for as long as it may.
fn gaps(cell: &Cell, ours: &Ours, args: &GapArgs, told: &mut Told) -> anyhow::Result<Repeats> {
    let mut gaps = Repeats::default();
    for nth in 1..=args.repeats {
        let figures = compare::measure_ours(cell, args.mem, ours, LIMIT)?;
        let gap_ms = figures.gap_s.unwrap_or(LIMIT.as_secs_f64()) * 1e3;
        let foretold_ms = foretold_ms(&figures);
        let words = foretold_ms.map_or("nothing".to_owned(), |ms| format!("{ms:.0} ms"));
        println!(
            "  {nth} gap {gap_ms:.0} ms, foretold {words}; queue up to {:.0} ms, total {:.2} s, bad {}, {}",
            figures.queue_s * 1e3,
            figures.total_s,
            figures.bad_pages,
            figures.congestion
        );
        told.count(foretold_ms, gap_ms);
        gaps.add(if figures.bad_pages == 0 { gap_ms } else { f64::INFINITY });
    }
    Ok(gaps)
}

fn foretold_ms(figures: &Figures) -> Option<f64> {
    let said: &Value = figures.said.as_ref()?;
    said["data"]["report"]["predicted"]["total_ms"].as_f64()
}

/// How often a stop took what was foretold.
#[derive(Debug, Default)]
struct Told {
    moves: u32,
    right: u32,
}

impl Told {
    fn count(&mut self, foretold_ms: Option<f64>, gap_ms: f64) {
        self.moves += 1;
        let off_ms = foretold_ms.map_or(f64::INFINITY, |foretold_ms| (foretold_ms - gap_ms).abs());
        self.right += u32::from(off_ms <= FORETOLD_WITHIN_MS.max(FORETOLD_WITHIN * gap_ms));
    }

    fn share(&self) -> f64 {
        f64::from(self.right) / f64::from(self.moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_foretold_is_right_within_a_share_or_a_time() {
        let mut told = Told::default();
        [(Some(80.0), 100.0), (Some(30.0), 50.0), (Some(260.0), 200.0), (Some(110.0), 200.0), (None, 100.0)]
            .into_iter()
            .for_each(|(foretold, gap)| told.count(foretold, gap));
        assert_eq!((told.right, told.moves), (3, 5));
    }
}
