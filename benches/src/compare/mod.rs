//! `cargo lab compare`: the same guest over the same link, moved by hikyaku and by its peers, in turns, in one run.
//!
//! ```text
//!  tokyo (netns)                               the link                                  seattle (netns)
//!  QEMU, the guest ── peer ═══════════ rate, delay, queue ═════════════▶ peer ── QEMU that waits
//! ```
//!
//! Each run has new hosts, a new link, new QEMUs and, where they are ours, new daemons. What a run cost is seen from outside: on
//! the guest's console, on the link, in both QEMUs, in the memory that arrived. It knows no peer from inside, and nothing here
//! decides when a guest is stopped.
//!
//! | file | what it holds |
//! |---|---|
//! | `matrix` | which guests over which links |
//! | `peer` | what a peer is, and their names |
//! | `stock` | QEMU to QEMU over TCP |
//! | `ours` | our daemons |
//! | `run` | one run, from new hosts to the last check of memory |
//! | `record` | what a run came to, and all runs of a peer in a cell |
//! | `report` | lines and tables |
//! | `criteria` | what is asked of us, beside the peers and alone |
//! | `foretold` | whether a stop took what was foretold |
//! | `progress` | signs of life |

mod criteria;
mod foretold;
mod matrix;
mod ours;
mod peer;
mod progress;
mod record;
mod report;
mod run;
mod stock;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::backed::Backed;
use crate::guest::locate::QemuBinary;
use crate::link::parse_duration;
use crate::site::Programs;
use crate::transport::load_average;
pub use foretold::{Told, foretold_s};
pub use matrix::{Cell, cells};
pub use ours::Ours;
use peer::Peer;
use progress::Progress;
pub use record::Figures;
use record::{CellRecord, Run};

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Links, by name
    #[arg(long, value_delimiter = ',', default_value = "us")]
    link: Vec<String>,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, value_delimiter = ',', default_values = matrix::LOADS)]
    load: Vec<String>,
    /// Whom hikyaku, which is always there, is compared with; hikyaku:POLICY for another of its policies,
    /// none for nobody
    #[arg(long, value_delimiter = ',', default_values = peer::PEERS)]
    peer: Vec<String>,
    /// Runs of everything; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: u32,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(32..=16384))]
    mem: u32,
    /// A move that takes longer is called off, and counts as this
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    limit: Duration,
    /// Exit with 1 unless every criterion is met
    #[arg(long)]
    require: bool,
    /// Write every run to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let cells = matrix::cells(&args.link, &args.load)?;
    let names = peer::with_ours(&args.peer);
    peer::check(&names)?;
    QemuBinary::find()?;
    let mut json = match &args.json {
        Some(path) => Some(File::create(path).with_context(|| format!("{}", path.display()))?),
        None => None,
    };
    println!("building hikyakud …");
    let programs = Programs::build()?;
    let peers =
        names.iter().map(|name| peer::named(name, args.mem, &programs)).collect::<Result<Vec<_>, _>>()?;

    // Two guests, what moves them, and what the kernel takes from elsewhere meanwhile.
    let _backed = Backed::hold((args.mem as usize) << 23);
    println!(
        "a guest of {} MiB; {} cells, {} peers, {} repeats; a move has {:?}; {} CPUs, load {}",
        args.mem,
        cells.len(),
        peers.len(),
        args.repeats,
        args.limit,
        report::cpus(),
        load_average()
    );
    println!(
        "hosts that nobody has tuned: cubic and Linux' default limits of buffers; our lanes choose (auto)"
    );
    let mut course = Course::new(args, cells.len() * peers.len());
    let mut records = Vec::new();
    for cell in &cells {
        println!("\n{cell} over {}", cell.profile());
        records.push(course.measure(cell, &peers, &mut json)?);
    }

    for record in &records {
        println!("\n{}", report::table(record, args.limit));
    }
    let verdicts = criteria::judge(&records, args.limit);
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    println!("{} criteria, {failed} not met; load {}", verdicts.len(), load_average());
    Ok(if args.require && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One run of ours alone.
pub fn measure_ours(cell: &Cell, memory_mib: u32, ours: &Ours, limit: Duration) -> anyhow::Result<Figures> {
    run::run(cell, ours, memory_mib, limit, &Progress::new())
}

/// Ours, with its defaults.
pub fn ours(programs: &Programs) -> Ours {
    Ours::new("hikyaku", "adaptive", programs.clone())
}

/// How far all of it is.
struct Course<'a> {
    args: &'a CompareArgs,
    begun: Instant,
    done: usize,
    runs: usize,
    progress: Progress,
}

impl<'a> Course<'a> {
    fn new(args: &'a CompareArgs, rows: usize) -> Course<'a> {
        let runs = rows * args.repeats as usize;
        Course { args, begun: Instant::now(), done: 0, runs, progress: Progress::new() }
    }

    /// Every peer once in each repeat; each repeat begins with another one.
    fn measure(
        &mut self,
        cell: &Cell,
        peers: &[Box<dyn Peer>],
        json: &mut Option<File>,
    ) -> anyhow::Result<CellRecord> {
        let mut record = CellRecord::new(cell, self.args.mem, peers.iter().map(|peer| peer.name()));
        for repeat in 1..=self.args.repeats {
            for turn in 0..peers.len() {
                let index = (turn + repeat as usize - 1) % peers.len();
                let Some(peer) = peers.get(index) else { continue };
                let load_average = load_average();
                let figures = run::run(cell, peer.as_ref(), self.args.mem, self.args.limit, &self.progress);
                let run = Run::new(cell, self.args.mem, peer.name(), repeat, load_average, figures);
                self.done += 1;
                println!("{:>4}/{} {}{}", self.done, self.runs, report::line(&run), self.left());
                if let Some(file) = json {
                    // Whole lines: what was measured is there, however all of it ends.
                    file.write_all(format!("{}\n", serde_json::to_string(&run)?).as_bytes())?;
                }
                record.take(run);
            }
        }
        Ok(record)
    }

    /// How long the rest will take, said now and then.
    fn left(&self) -> String {
        const EVERY: usize = 10;
        let left = self.runs - self.done;
        if !self.done.is_multiple_of(EVERY) || left == 0 {
            return String::new();
        }
        let each = self.begun.elapsed().as_secs_f64() / self.done as f64;
        format!("; about {:.0} min to go", (each * left as f64 / 60.0).ceil())
    }
}
