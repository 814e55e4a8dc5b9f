//! `cargo lab soak`: one guest goes there and back, many times, over the same two daemons.
//!
//! After every move: no bad page, no heartbeat that nobody heard, one guest and not two. Over all of them: daemons that do not
//! grow. The run ends at the first move that is not so; every wait in it has a bound.

use crate::guest::Load;
use crate::guest::locate::QemuBinary;
use crate::link::cli::named;
use crate::link::{Link, Network, parse_duration};
use crate::site::{Held, Programs, Site};
use crate::travel::{Manner, POLICIES, Row, Traveller};
use anyhow::Context;
use clap::Args;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Daemons may grow until then: the allocator's heaps, one per thread, fill up.
const SETTLED_AFTER: usize = 5;
/// From then on, by the end.
const GROWTH_BYTES: u64 = 32 << 20;
/// The same of descriptors, threads and files: threads that wait for disks come and go, and links have more lanes or fewer.
const GROWTH_COUNT: usize = 12;
/// The guest checks all of its memory, end to end, after so many round trips, and after the last. In between it checks what it
/// rewrites, and goes on sweeping: a page that is bad stays bad until it is found.
const SWEEP_EVERY: u32 = 5;
/// One move may take so long.
const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// The link is cut when so much of a move has crossed it.
const CUT_AFTER_BYTES: u64 = 8 << 20;
/// Between two looks at how much that is.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The number of the round trip before those that are cut.
const UNDISTURBED: u32 = 0;
/// An outage costs itself, and this.
const OUTAGE_COSTS: Duration = Duration::from_secs(2);
const HOSTS: [&str; 2] = ["tokyo", "fukuoka"];

#[derive(Debug, Args)]
pub struct SoakArgs {
    /// Round trips
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// The same, in moves: a round trip is two of them
    #[arg(long, conflicts_with = "times", value_parser = clap::value_parser!(u32).range(1..))]
    moves: Option<u32>,
    /// Instead: one fault after the other, by chance, for so many minutes: daemons die, stand still and cannot write, links are cut
    #[arg(long, conflicts_with_all = ["times", "moves", "outage"])]
    minutes: Option<u64>,
    /// With --minutes: what chance begins with, to see the same again
    #[arg(long, requires = "minutes")]
    seed: Option<u64>,
    /// The link, by name: lan, jgn, us, eu, …
    #[arg(long, default_value = "jgn")]
    link: String,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 128)]
    mem: u32,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, default_value = "rand@20")]
    load: String,
    /// Who decides when to stop the guest
    #[arg(long, default_value = "adaptive", value_parser = POLICIES)]
    policy: String,
    /// Cut the link for so long in the midst of every move, such as 5min; less than link.timeout of the daemons. A round trip
    /// without comes first, and a move may take as long, the outage, and 2 s
    #[arg(long, value_parser = parse_duration)]
    outage: Option<Duration>,
    /// Congestion control of the daemons' lanes, as link.congestion: auto, or a name of the kernel's
    #[arg(long, default_value = "auto")]
    congestion: String,
    /// The whole run may take so long, such as 3600s
    #[arg(long, default_value = "3600s", value_parser = parse_duration)]
    limit: Duration,
}

pub fn run(args: &SoakArgs) -> anyhow::Result<ExitCode> {
    if let Some(minutes) = args.minutes {
        return faults(minutes, args.seed);
    }
    let begun = Instant::now();
    let times = args.moves.map_or(args.times, |moves| moves.div_ceil(2));
    let profile = named(&args.link).map_err(anyhow::Error::msg)?;
    let load = Load::preset(&args.load)?;
    QemuBinary::find()?;
    println!("building hikyakud (release) …");
    let programs = Programs::build()?;
    let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
    let config = format!("[link]\ncongestion = \"{}\"\n", args.congestion);
    let sites = Site::pair(&network, HOSTS, &programs, &config)?;
    println!("{times} round trips of a guest of {} MiB ({}) over: {profile}", args.mem, args.load);

    let mut guest = Traveller::start(args.mem, &load)?;
    let mut record = Record::default();
    let first = if args.outage.is_some() { UNDISTURBED } else { 1 };
    'rounds: for round in first..=times {
        let outage = args.outage.filter(|_| round != UNDISTURBED);
        for (from, to) in [(0, 1), (1, 0)] {
            let last_leg = from == 1 && (round % SWEEP_EVERY == 0 || round == times);
            let manner = Manner {
                policy: args.policy.clone(),
                shown: false,
                swept: last_leg,
                limit: MOVE_LIMIT + outage.unwrap_or_default(),
                ..Manner::default()
            };
            let (over, ended) = channel::<()>();
            let moved = std::thread::scope(|scope| {
                let cut = outage.map(|outage| {
                    let network = &network;
                    scope.spawn(move || cut(network, outage, &ended))
                });
                let moved = guest.travel(&network, &sites[from], &sites[to], &manner);
                drop(over);
                if cut.is_some_and(|cut| !cut.join().unwrap_or(false)) {
                    record
                        .faults
                        .push(format!("round trip {round}: the move was over before its outage was"));
                }
                moved
            });
            let row = match moved.with_context(|| format!("round trip {round}")) {
                Ok(row) => row,
                Err(error) => {
                    record.faults.push(format!("{error:#}"));
                    break 'rounds;
                }
            };
            let rss = [sites[0].rss_bytes()?, sites[1].rss_bytes()?];
            println!("{}", line(round, times, &row, rss, manner.swept));
            record.take(round, row, outage);
            record.faults.extend(guest.reports());
            if from == 1 {
                record.rss.push(rss);
                record.held.push([sites[0].held()?, sites[1].held()?]);
            }
            if begun.elapsed() > args.limit && !(from == 1 && round == times) {
                record.faults.push(format!("not done after {:?}", args.limit));
            }
            if !record.faults.is_empty() {
                break 'rounds;
            }
        }
    }
    record.judge_growth();
    record.print(begun.elapsed());
    Ok(if record.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The crash lab is the tests': a program of theirs, which builds its daemons with their fail points.
fn faults(minutes: u64, seed: Option<u64>) -> anyhow::Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut soak = Command::new(cargo);
    soak.args([
        "run",
        "--quiet",
        "--package",
        "hikyaku-tests",
        "--bin",
        "crash-soak",
        "--",
        &minutes.to_string(),
    ]);
    soak.args(seed.map(|seed| seed.to_string()));
    soak.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = soak.status().context("cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cuts the link in the midst of a move. False: the move ended first.
fn cut(network: &Network, outage: Duration, ended: &Receiver<()>) -> bool {
    let lasts = |time| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    let before_bytes = network.wire_bytes();
    while network.wire_bytes() - before_bytes < CUT_AFTER_BYTES {
        if !lasts(LOOK_INTERVAL) {
            return false;
        }
    }
    network.set_outage(true);
    let lasted = lasts(outage);
    network.set_outage(false);
    lasted
}

fn line(round: u32, rounds: u32, row: &Row, rss: [u64; 2], swept: bool) -> String {
    format!(
        "{round:>3}/{rounds} {:<17} total {:>5.2} s  gap {:>4} ms  {:>6.1} MB  bad {}  lost {}  daemons {:>3} + {:>3} MiB{}{}",
        format!("{} → {}", row.from, row.to),
        row.total.as_secs_f64(),
        row.gap.as_millis(),
        row.wire_bytes as f64 / 1e6,
        row.bad,
        row.lost.len(),
        rss[0] >> 20,
        rss[1] >> 20,
        if swept { "  swept" } else { "" },
        if row.two_ran { "  TWO GUESTS RAN" } else { "" },
    )
}

#[derive(Default)]
struct Record {
    /// The longest move before the first outage.
    undisturbed: Duration,
    totals: Vec<Duration>,
    gaps: Vec<Duration>,
    /// Of both daemons, after each round trip.
    rss: Vec<[u64; 2]>,
    held: Vec<[Held; 2]>,
    faults: Vec<String>,
}

impl Record {
    fn take(&mut self, round: u32, row: Row, outage: Option<Duration>) {
        if !row.is_whole() {
            self.faults.push(format!(
                "round trip {round}, {} to {}: {} bad pages, heartbeats {:?} lost{}{}",
                row.from,
                row.to,
                row.bad,
                row.lost,
                if row.two_ran { ", two guests ran" } else { "" },
                if row.cut.is_empty() { String::new() } else { format!("; {}", row.cut) },
            ));
        }
        if round == UNDISTURBED {
            self.undisturbed = self.undisturbed.max(row.total);
            return;
        }
        if let Some(outage) = outage
            && row.total > self.undisturbed + outage + OUTAGE_COSTS
        {
            let (total, usual) = (row.total, self.undisturbed);
            self.faults.push(format!(
                "round trip {round}: {total:.1?} over an outage of {outage:?}, {usual:.1?} without"
            ));
        }
        self.totals.push(row.total);
        self.gaps.push(row.gap);
    }

    /// How much each daemon has grown since it had settled; none if the run was too short to tell.
    fn growth_bytes(&self) -> Option<[u64; 2]> {
        let settled = self.rss.get(SETTLED_AFTER - 1)?;
        let last = self.rss.last().filter(|_| self.rss.len() > SETTLED_AFTER)?;
        Some([0, 1].map(|site| last[site].saturating_sub(settled[site])))
    }

    fn judge_growth(&mut self) {
        for (name, bytes) in HOSTS.into_iter().zip(self.growth_bytes().into_iter().flatten()) {
            if bytes > GROWTH_BYTES {
                let text = format!(
                    "the daemon of {name} grew by {} MiB, {} are allowed",
                    bytes >> 20,
                    GROWTH_BYTES >> 20
                );
                self.faults.push(text);
            }
        }
        let Some((settled, last)) = self.settled_and_last() else { return };
        for (at, name) in HOSTS.into_iter().enumerate() {
            for ((what, before), (_, now)) in settled[at].counts().into_iter().zip(last[at].counts()) {
                if now > before + GROWTH_COUNT {
                    self.faults.push(format!("the daemon of {name} has {now} {what}, and had {before}"));
                }
            }
        }
    }

    fn settled_and_last(&self) -> Option<([Held; 2], [Held; 2])> {
        let settled = self.held.get(SETTLED_AFTER - 1)?;
        Some((*settled, *self.held.last().filter(|_| self.held.len() > SETTLED_AFTER)?))
    }

    fn print(&mut self, elapsed: Duration) {
        println!("\n{} moves in {elapsed:.0?}", self.totals.len());
        for (what, times) in [("total", &mut self.totals), ("gap", &mut self.gaps)] {
            times.sort_unstable();
            if let (Some(median), Some(worst)) = (times.get(times.len() / 2), times.last()) {
                println!("{what:<6} median {median:.3?}, worst {worst:.3?}");
            }
        }
        match self.growth_bytes() {
            Some([one, other]) => println!(
                "daemons grew by {} and {} KiB from round trip {SETTLED_AFTER} to the last",
                one >> 10,
                other >> 10
            ),
            None => println!(
                "growth of the daemons was not judged: that takes more than {SETTLED_AFTER} round trips"
            ),
        }
        if let Some((settled, last)) = self.settled_and_last() {
            for (at, name) in HOSTS.into_iter().enumerate() {
                let counts = settled[at].counts().into_iter().zip(last[at].counts());
                let counts: Vec<_> =
                    counts.map(|((what, before), (_, now))| format!("{what} {before} → {now}")).collect();
                println!("the daemon of {name}: {}", counts.join(", "));
            }
        }
        for fault in &self.faults {
            println!("FAIL: {fault}");
        }
        if self.faults.is_empty() {
            println!("PASS: no bad page, no heartbeat lost, never two guests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            policy: "adaptive".into(),
            from: "a".into(),
            to: "b".into(),
            total: Duration::from_secs(1),
            gap: Duration::from_millis(50),
            wire_bytes: 0,
            writes_per_s: 0.0,
            bad: 0,
            lost: Vec::new(),
            cut: String::new(),
            two_ran: false,
        }
    }

    #[test]
    fn anything_wrong_with_a_move_is_a_fault() {
        let wrong = [Row { bad: 1, ..row() }, Row { lost: vec![7], ..row() }, Row { two_ran: true, ..row() }];
        for wrong in wrong {
            let mut record = Record::default();
            record.take(1, row(), None);
            assert!(record.faults.is_empty());
            record.take(2, wrong.clone(), None);
            assert_eq!(record.faults.len(), 1, "{wrong:?}");
        }
    }

    #[test]
    fn an_outage_costs_itself_and_two_seconds() {
        let outage = Some(Duration::from_secs(300));
        let mut record = Record::default();
        record.take(UNDISTURBED, row(), None);
        record.take(1, Row { total: Duration::from_millis(302_900), ..row() }, outage);
        assert!(record.faults.is_empty());
        record.take(1, Row { total: Duration::from_millis(303_100), ..row() }, outage);
        assert_eq!((record.faults.len(), record.totals.len()), (1, 2));
    }

    #[test]
    fn a_daemon_may_settle_and_then_not_grow() {
        let settling = [10, 20, 30, 40, 90].map(|mib: u64| [mib << 20, 50 << 20]);
        let mut record = Record { rss: settling.to_vec(), ..Record::default() };
        assert_eq!(record.growth_bytes(), None);
        record.rss.push([122 << 20, 40 << 20]);
        record.judge_growth();
        assert!(record.faults.is_empty());
        record.rss.push([123 << 20, 40 << 20]);
        record.judge_growth();
        assert_eq!(record.faults.len(), 1);
    }
}
