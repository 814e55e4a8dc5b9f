//! `cargo lab bench goodput`: what the transport makes of a long fat link.
//!
//! ```text
//!  host b                                    the link                                host a
//!  lab … send ── Node ── random chunks ═══ rate, delay, queue ═══▶ Node ── lab … receive: applies at once, counts
//! ```
//!
//! Two nodes with the transport's defaults (but for `--autotune`), each in a process of its own, in hosts that nobody has tuned (`cubic`, stock limits of
//! buffers). Goodput is payload that was applied from second 3 on until the last byte, by time, by the link's payload rate. The
//! clock starts when the receiver accepts the session: before the first byte could come.
//!
//! | file | what it holds |
//! |---|---|
//! | `ends` | the two processes |
//! | `arrivals` | figures from what came when |

mod arrivals;
mod ends;

use crate::child::Tied;
use crate::link::cli::named;
use crate::link::{Host, Link, Network, Profile, die_with_parent, parse_bytes};
use anyhow::{Context, bail};
use arrivals::Received;
use clap::Args;
use ends::{End, Sent};
use hikyaku_transport::{PublicKey, StaticKey};
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PORT: u16 = 4707;
/// Slow start is over by then on every link that is measured.
const STEADY_FROM: Duration = Duration::from_secs(3);
/// A transfer at a tenth of the rate, and this, is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const HOSTS: [&str; 2] = ["a", "b"];

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct GoodputArgs {
    #[command(subcommand)]
    end: Option<End>,

    /// The links, by name
    #[arg(long, value_delimiter = ',', default_value = "jgn,us")]
    link: Vec<String>,
    /// Random data of each run
    #[arg(long, default_value = "2GiB", value_parser = parse_bytes)]
    bytes: u64,
    /// Runs over each link; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeat: u32,
    /// Fail if a median is below this share of the link's payload rate
    #[arg(long, default_value_t = 0.90)]
    require: f64,
    /// Leave the sockets' buffers to the kernel's autotuning, as a daemon without privileges must
    #[arg(long)]
    autotune: bool,
}

pub fn run(args: &GoodputArgs) -> anyhow::Result<ExitCode> {
    if let Some(end) = &args.end {
        ends::run(end)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut passed = true;
    for name in &args.link {
        let profile = named(name).map_err(anyhow::Error::msg)?;
        let rate = profile.rate.with_context(|| format!("{name} has no rate to compare with"))?;
        let payload_bytes_per_s = rate.payload_bit_per_s() as f64 / 8.0;
        println!("{name}: {profile}");
        let mut shares = Vec::new();
        for run in 1..=args.repeat {
            let (received, sent, drops) = transfer(&profile, args, payload_bytes_per_s)?;
            if received.steady_s == 0.0 {
                bail!("all of it came before second {}: give more --bytes", STEADY_FROM.as_secs());
            }
            let share = received.steady_bytes_per_s() / payload_bytes_per_s;
            let mbit: Vec<_> =
                received.per_second_bytes.iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect();
            println!(
                "  run {run}: {:.1} % from second {} on ({:.2} GB in {:.2} s); {} lanes, {}; {drops} packets found the queue full",
                share * 100.0,
                STEADY_FROM.as_secs(),
                received.steady_bytes as f64 / 1e9,
                received.steady_s,
                sent.lanes,
                sent.io,
            );
            println!("         Mbit/s of each second: {}", mbit.join(" "));
            shares.push(share);
        }
        shares.sort_by(f64::total_cmp);
        let median = shares.get(shares.len() / 2).copied().unwrap_or(0.0);
        let enough = median >= args.require;
        passed &= enough;
        println!(
            "  {name}: median {:.1} % of the payload rate, at least {:.1} % asked: {}",
            median * 100.0,
            args.require * 100.0,
            if enough { "PASS" } else { "FAIL" }
        );
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One transfer between new processes in new hosts; and how many packets found the link's queue full.
fn transfer(
    profile: &Profile,
    args: &GoodputArgs,
    bytes_per_s: f64,
) -> anyhow::Result<(Received, Sent, u64)> {
    let bytes = args.bytes;
    let autotune = args.autotune.then_some("--autotune");
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let keys = Keys::make()?;
    let limit = PATIENCE + Duration::from_secs_f64(bytes as f64 / (bytes_per_s / 10.0));
    let [there, here] = HOSTS.map(|name| network.host(name));
    let address = SocketAddr::from((there.ip4(), PORT));

    let mut receive = lab(there)?;
    receive.arg("receive").arg("--listen").arg(address.to_string()).args(keys.of(0)).args(autotune);
    let mut receiver = Running::start(receive)?;
    receiver.expect("ready")?;

    let mut send = lab(here)?;
    send.arg("send").arg("--to").arg(address.to_string()).args(keys.of(1)).args(autotune);
    send.arg("--bytes").arg(bytes.to_string());
    let sent: Sent = Running::start(send)?.result(limit)?;
    let received: Received = receiver.result(PATIENCE)?;
    if received.bytes != bytes {
        bail!("{} of {bytes} bytes were applied", received.bytes);
    }
    let drops = dropped(&network);
    Ok((received, sent, drops))
}

fn dropped(network: &Network) -> u64 {
    network.counters().iter().map(|(_, _, seen)| seen.dropped_queue).sum()
}

/// This program again, inside a host.
fn lab(host: &Host) -> anyhow::Result<Command> {
    let mut command = host.command(std::env::current_exe()?);
    command.args(["bench", "goodput"]);
    Ok(command)
}

/// Each end's secret key in a file, and the other's public one.
struct Keys {
    folder: TempDir,
    public: [PublicKey; 2],
}

impl Keys {
    fn make() -> anyhow::Result<Keys> {
        let folder = tempfile::Builder::new().prefix("hikyaku-goodput.").tempdir()?;
        let keys = [StaticKey::generate()?, StaticKey::generate()?];
        for (name, key) in HOSTS.iter().zip(&keys) {
            fs::write(folder.path().join(name), key.to_text().as_bytes())?;
        }
        Ok(Keys { folder, public: keys.map(|key| key.public()) })
    }

    fn of(&self, end: usize) -> [String; 4] {
        let file = self.folder.path().join(HOSTS[end]).display().to_string();
        ["--key".into(), file, "--peer".into(), self.public[1 - end].to_string()]
    }
}

/// An end that says things on its standard output, a line each.
struct Running {
    process: Tied,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> anyhow::Result<Running> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        let mut process = Tied::spawn(&mut command).context("cannot start an end of the transfer")?;
        let lines = BufReader::new(process.child().stdout.take().context("no pipe")?);
        Ok(Running { process, lines })
    }

    /// It says so first, or ends: both ends bound what they wait for before.
    fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line.trim() != word {
            bail!("an end of the transfer said {line:?} instead of {word:?}");
        }
        Ok(())
    }

    /// Waits for its end and takes its last line.
    fn result<T: DeserializeOwned>(mut self, limit: Duration) -> anyhow::Result<T> {
        let status = self.process.wait_within(limit).context("an end of the transfer")?;
        if !status.success() {
            bail!("an end of the transfer failed: {status}");
        }
        let mut said = String::new();
        self.lines.read_to_string(&mut said)?;
        serde_json::from_str(said.trim()).with_context(|| format!("an end of the transfer said {said:?}"))
    }
}
