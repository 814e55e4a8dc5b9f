//! `cargo lab sim …`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use hikyaku_engine::precopy::{self, Common};

use super::matrix::{Cell, Plan};
use super::report::{Line, print_header, print_trace};
use crate::guest::Load;
use crate::link::{Profile, parse_duration, parse_rate};
use crate::verdict::{Bound, Verdict};

#[derive(Debug, Args)]
pub struct SimArgs {
    /// What the guest does: NAME[@MB/s]
    #[arg(long, value_delimiter = ',', default_value = "oltp@5")]
    guest: Vec<String>,
    /// The guest's memory: MiB, or 64G, 1T
    #[arg(long, value_delimiter = ',', default_value = "512", value_parser = parse_mib)]
    mem: Vec<u64>,
    /// A named link, or RATE/ROUND-TRIP as in 10gbit/200ms
    #[arg(long, value_delimiter = ',', default_value = "us")]
    link: Vec<String>,
    /// How it is decided when the guest is stopped
    #[arg(long, value_delimiter = ',', default_value = "adaptive")]
    policy: Vec<String>,
    /// Threads that encode [default: 2, with --require 16]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    workers: Option<u32>,
    /// Memory really held, in MiB: a larger guest is simulated by one of this size
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=65536))]
    hold: u32,
    /// A guest of more than 512 MiB has a larger working set and writes more, both by the square root of that
    #[arg(long)]
    grow: bool,
    /// The link is not known yet: its window opens by slow start
    #[arg(long)]
    cold: bool,
    /// What stands in the bottleneck's queue during the copy
    #[arg(long, default_value = "20ms", value_parser = parse_duration)]
    queue: Duration,
    /// Of the rate, what losses leave on a link that has any
    #[arg(long, default_value_t = 0.85)]
    loss_factor: f64,
    /// The source is QEMU whatever the policy: no page is skipped
    #[arg(long)]
    over_qemu: bool,
    /// The stop that is aimed at
    #[arg(long, default_value = "300ms", value_parser = parse_duration)]
    downtime: Duration,
    /// A move that takes longer is given up [default: 2h, with --matrix 2min]
    #[arg(long, value_parser = parse_long)]
    limit: Option<Duration>,
    /// A line per pass
    #[arg(long)]
    trace: bool,
    /// Every guest and policy over every named link
    #[arg(long, conflicts_with_all = ["guest", "link", "policy"])]
    matrix: bool,
    /// Large guests at 10 Gbit/s; exit with 1 unless every criterion is met
    #[arg(long, conflicts_with_all = ["guest", "link", "policy", "mem", "matrix"])]
    require: bool,
    /// Runs at once [default: one per processor]
    #[arg(long)]
    jobs: Option<usize>,
}

/// A terabyte takes minutes at the fastest link there is.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
/// Many guests of the matrix never converge by many policies.
const MATRIX_LIMIT: Duration = Duration::from_secs(120);

/// What is asked of a large guest.
const REQUIRED_SCORE: f64 = 1.10;
const REQUIRED_MIB: [u64; 3] = [64 << 10, 256 << 10, 1 << 20];
const REQUIRED_LINKS: [&str; 2] = ["jgn-10g", "10gbit/200ms"];
const REQUIRED_GUESTS: [&str; 3] = ["idle", "oltp@5", "build@5"];
/// At 10 Gbit/s text-like pages keep so many processors busy.
const REQUIRED_WORKERS: u32 = 16;

const MATRIX_GUESTS: [&str; 13] = [
    "idle", "seq@20", "seq@100", "rand@20", "rand@100", "hot@20", "hot@100", "oltp@5", "oltp@20", "build@5",
    "build@20", "jbb", "noise",
];
const MATRIX_LINKS: [&str; 7] = ["lan", "jgn", "jgn-10g", "cloudnet", "us", "eu", "lossy"];

pub fn run(args: &SimArgs) -> anyhow::Result<ExitCode> {
    let plan = args.plan()?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    print_header();
    let mut failures = 0;
    let mut verdicts = Vec::new();
    plan.run(jobs.max(1), |cell, run| match run {
        Ok(line) => {
            println!("{line}");
            if args.trace {
                print_trace(&line);
            }
            failures += usize::from(!line.is_sound());
            if args.require {
                verdicts.push(verdict(cell, &line));
            }
        }
        Err(error) => {
            failures += 1;
            println!("{cell}: {error:#}");
        }
    });
    for verdict in &verdicts {
        println!("{verdict}");
    }
    let met = failures == 0 && verdicts.iter().all(Verdict::passed);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(cell: &Cell, line: &Line) -> Verdict {
    let bound = Bound::AtMost(REQUIRED_SCORE);
    match line.score() {
        Some(score) => Verdict::new(format!("score of {cell}"), score, bound, ""),
        None => Verdict::without(format!("score of {cell}"), line.end(), bound, ""),
    }
}

impl SimArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        ensure!(
            (0.01..=1.0).contains(&self.loss_factor),
            "--loss-factor is a share of the rate, from 0.01 to 1"
        );
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (guests, links, policies, mems) = if self.matrix {
            (owned(&MATRIX_GUESTS), owned(&MATRIX_LINKS), owned(&precopy::NAMES), self.mem.clone())
        } else if self.require {
            (owned(&REQUIRED_GUESTS), owned(&REQUIRED_LINKS), owned(&["adaptive"]), REQUIRED_MIB.to_vec())
        } else {
            (self.guest.clone(), self.link.clone(), self.policy.clone(), self.mem.clone())
        };
        let limit = self.limit.unwrap_or(if self.matrix { MATRIX_LIMIT } else { LIMIT });
        let common = Common { downtime_target: self.downtime, deadline: limit, ..Common::default() };
        for name in &policies {
            if precopy::by_name(name, &common).is_none() {
                bail!("no policy is called {name:?}; there are: {}", precopy::NAMES.join(", "));
            }
        }
        let mut cells = Vec::new();
        for guest in &guests {
            let load = Load::preset(guest)?;
            for &mib in &mems {
                for link in &links {
                    let (profile, name) = (parse_link(link)?, link.clone());
                    cells.extend(policies.iter().map(|policy| Cell {
                        guest: guest.clone(),
                        load: load.clone(),
                        mib,
                        link: name.clone(),
                        profile,
                        policy: policy.clone(),
                    }));
                }
            }
        }
        Ok(Plan {
            cells,
            workers: self.workers.unwrap_or(if self.require { REQUIRED_WORKERS } else { 2 }) as usize,
            hold_mib: self.hold.into(),
            grow: self.grow || self.require,
            cold: self.cold,
            queue: self.queue,
            loss_factor: self.loss_factor,
            over_qemu: self.over_qemu,
            common,
            limit,
        })
    }
}

/// `us`, or `10gbit/200ms`.
fn parse_link(text: &str) -> anyhow::Result<Profile> {
    if let Some(profile) = Profile::named(text) {
        ensure!(profile.rate.is_some(), "{text:?} has no rate");
        return Ok(profile);
    }
    let names: Vec<_> = Profile::names().map(|(name, _)| name).collect();
    let (rate, rtt) = text.split_once('/').with_context(|| {
        format!("no link is called {text:?}; there are {}, and RATE/ROUND-TRIP", names.join(", "))
    })?;
    let rate = crate::link::Rate::payload(parse_rate(rate)?);
    Ok(Profile { rate: Some(rate), rtt: parse_duration(rtt)?, ..Profile::UNLIMITED })
}

/// `512`, `512M`, `64G`, `1T`: mebibytes.
fn parse_mib(text: &str) -> Result<u64, String> {
    let (number, mib) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 10),
        Some((at, 'T' | 't')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| "a size, such as 512, 64G or 1T".to_owned())?;
    Some(number.saturating_mul(mib))
        .filter(|mib| (16..=1 << 20).contains(mib))
        .ok_or_else(|| "from 16 MiB to 1 TiB".to_owned())
}

/// As [`parse_duration`], and hours.
fn parse_long(text: &str) -> Result<Duration, String> {
    if let Some(hours) = text.strip_suffix('h').and_then(|hours| hours.parse::<u32>().ok()) {
        return Ok(Duration::from_secs(u64::from(hours) * 3600));
    }
    parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_links_are_read_with_their_units() {
        assert_eq!([parse_mib("512"), parse_mib("64G"), parse_mib("1T")], [Ok(512), Ok(65_536), Ok(1 << 20)]);
        for wrong in ["", "G", "8", "2T", "-1", "1.5G"] {
            assert!(parse_mib(wrong).is_err(), "{wrong:?}");
        }
        let link = parse_link("10gbit/200ms").unwrap();
        assert_eq!(link.rtt, Duration::from_millis(200));
        assert_eq!(link.rate.unwrap().payload_bit_per_s(), 10_000_000_000);
        assert_eq!(parse_link("us").unwrap(), Profile::named("us").unwrap());
        for wrong in ["moon", "10gbit", "10gbit/far", "unlimited"] {
            assert!(parse_link(wrong).is_err(), "{wrong:?}");
        }
    }
}
