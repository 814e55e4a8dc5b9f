//! `cargo lab link …`: run commands inside hosts joined by an emulated link.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use super::probe::{self, Probe};
use super::{
    Host, Link, Network, Profile, Queue, Rate, check, die_with_parent, hosts, parse_duration, parse_loss,
    parse_rate,
};

const EXAMPLES: &str = "\
Inside every host, $A and $B are the IPv4 addresses of hosts a and b, $A6 and $B6 the IPv6 ones.
The link lives until the last of the commands has ended; its exit code is returned.

  cargo lab link us --on a 'iperf3 -s -1' --on b 'iperf3 -c $A -t 5'
  cargo lab link --rate 100mbit --rtt 20ms --loss 0.1% --on a 'iperf3 -s -1' --on b 'iperf3 -c $A -t 5'
  cargo lab link eu --outage 2s+2s --on a 'iperf3 -s -1' --on b 'iperf3 -c $A -t 8'
  cargo lab link jgn                    (no command: says how to enter the hosts, lives until Ctrl-C)
  cargo lab link check                  (what is asked of the emulator, and what this machine does)";

/// Run commands inside hosts joined by an emulated long-fat link.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct LinkArgs {
    #[command(subcommand)]
    other: Option<Other>,

    /// A named link: lan, jgn, jgn-10g, cloudnet, us, eu, lossy, unlimited
    #[arg(default_value = "us", value_parser = named)]
    profile: Profile,

    /// What TCP's payload gets, such as 1gbit or 100mbit
    #[arg(long, value_parser = parse_rate)]
    rate: Option<u64>,

    /// Round trip, such as 120ms
    #[arg(long, value_parser = parse_duration)]
    rtt: Option<Duration>,

    /// Drop-tail queue of each direction, as the time the rate needs for it
    #[arg(long, value_parser = parse_duration)]
    queue: Option<Duration>,

    /// Random loss of each direction, per packet, such as 0.01%
    #[arg(long, value_parser = parse_loss)]
    loss: Option<f64>,

    /// Names of the hosts
    #[arg(long, value_delimiter = ',', default_value = "a,b")]
    hosts: Vec<String>,

    /// Cut the link so long after the start, for so long: 5s+2s. May be given again
    #[arg(long, value_parser = parse_outage, value_name = "AT+FOR")]
    outage: Vec<Outage>,

    /// Run a shell command inside a host. May be given again; they start in this order
    #[arg(long, num_args = 2, value_names = ["HOST", "COMMAND"])]
    on: Vec<String>,

    /// Between the starts of two commands, so that the first can begin to listen
    #[arg(long, default_value = "300ms", value_parser = parse_duration)]
    stagger: Duration,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Measure what is asked of the emulator on this machine
    Check,
    /// Kill what runs in these network namespaces once the standard input ends
    #[command(hide = true)]
    Keep { namespaces: Vec<PathBuf> },
    /// The senders and receivers that measure
    #[command(subcommand, hide = true)]
    Probe(Probe),
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    at: Duration,
    lasts: Duration,
}

/// Runs the subcommand.
pub fn run(args: LinkArgs) -> anyhow::Result<ExitCode> {
    match &args.other {
        Some(Other::Probe(probe)) => probe::run(probe)?,
        Some(Other::Keep { namespaces }) => {
            io::copy(&mut io::stdin(), &mut io::sink())?;
            hosts::power_off(namespaces);
        }
        Some(Other::Check) => {
            let wrong = check::run(&std::env::current_exe()?)?;
            ensure!(wrong == 0, "{wrong} rows are not within what was asked");
        }
        None => return run_in_hosts(&args),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_in_hosts(args: &LinkArgs) -> anyhow::Result<ExitCode> {
    let profile = profile(args);
    let commands: Vec<_> = args.on.chunks(2).map(|pair| (&pair[0], &pair[1])).collect();
    if let Some((host, _)) = commands.iter().find(|(host, _)| !args.hosts.contains(host)) {
        bail!("no host is named {host:?}: the hosts are {}", args.hosts.join(", "));
    }
    let network = Link::builder().hosts(&args.hosts).profile(profile).build()?;
    let environment = environment(&network);
    eprintln!("link: {profile}");
    for host in network.hosts() {
        eprintln!("link: host {}  {}  {}", host.name(), host.ip4(), host.ip6());
    }

    let network = &network;
    let _keeper = start_keeper(network)?;
    thread::scope(|scope| {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let outages = args.outage.clone();
        scope.spawn(move || run_outages(network, outages, &end));
        let code = if commands.is_empty() {
            hold(network)
        } else {
            run_commands(network, &commands, &environment, args.stagger)
        };
        drop(ended);
        print_counters(network);
        code
    })
}

/// A process that outlives this one, however it ends, just so long as to switch the hosts off.
fn start_keeper(network: &Network) -> anyhow::Result<Child> {
    let namespaces = network.hosts().iter().map(hosts::namespace_name).collect::<io::Result<Vec<_>>>()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["link", "keep"]).args(namespaces).stdin(Stdio::piped()).stdout(Stdio::null());
    // A Ctrl-C is not meant for it.
    command.process_group(0).spawn().context("cannot start the process that ends the others")
}

fn profile(args: &LinkArgs) -> Profile {
    let mut profile = args.profile;
    profile.rate = args.rate.map(Rate::payload).or(profile.rate);
    profile.rtt = args.rtt.unwrap_or(profile.rtt);
    profile.queue = args.queue.map_or(profile.queue, Queue::Time);
    profile.loss = args.loss.unwrap_or(profile.loss);
    profile
}

fn environment(network: &Network) -> BTreeMap<String, String> {
    let of = |host: &Host| {
        let name = host.name().to_uppercase();
        [(name.clone(), host.ip4().to_string()), (format!("{name}6"), host.ip6().to_string())]
    };
    network.hosts().iter().flat_map(of).collect()
}

fn run_outages(network: &Network, mut outages: Vec<Outage>, end: &std::sync::mpsc::Receiver<()>) {
    outages.sort_by_key(|outage| outage.at);
    let start = std::time::Instant::now();
    // The channel never carries anything: it closes when the commands have ended.
    let ended_before = |at: Duration| {
        let wait = at.saturating_sub(start.elapsed());
        end.recv_timeout(wait) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    };
    for outage in outages {
        if ended_before(outage.at) {
            return;
        }
        network.set_outage(true);
        eprintln!("link: out");
        if ended_before(outage.at + outage.lasts) {
            return;
        }
        network.set_outage(false);
        eprintln!("link: mended");
    }
}

fn hold(network: &Network) -> anyhow::Result<ExitCode> {
    for host in network.hosts() {
        let user = host.user_namespace().map(|path| format!("--user={} ", path.display()));
        let net = host.net_namespace();
        eprintln!(
            "link: enter {} with: nsenter {}--net={}",
            host.name(),
            user.unwrap_or_default(),
            net.display()
        );
    }
    eprintln!("link: Ctrl-C ends it");
    loop {
        thread::park();
    }
}

fn run_commands(
    network: &Network,
    commands: &[(&String, &String)],
    environment: &BTreeMap<String, String>,
    stagger: Duration,
) -> anyhow::Result<ExitCode> {
    let mut running = Vec::new();
    for (index, (host, line)) in commands.iter().enumerate() {
        if index > 0 {
            thread::sleep(stagger);
        }
        let mut command: Command = network.host(host).command("/bin/sh");
        command.arg("-c").arg(line).envs(environment);
        die_with_parent(&mut command);
        running.push(command.spawn().with_context(|| format!("cannot start a shell in host {host}"))?);
    }
    let status = running.last_mut().map(Child::wait).transpose()?;
    let code = status.map_or(Some(0), |status| status.code());
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn print_counters(network: &Network) {
    eprintln!(
        "{:<12}{:>16}{:>12}{:>14}{:>14}{:>14}{:>10}{:>10}",
        "", "wire bytes", "packets", "queue drops", "loss", "outage", "reset", "refused"
    );
    for (from, to, seen) in network.counters() {
        eprintln!(
            "{:<12}{:>16}{:>12}{:>14}{:>14}{:>14}{:>10}{:>10}",
            format!("{from} -> {to}"),
            seen.bytes,
            seen.packets,
            seen.dropped_queue,
            seen.dropped_loss,
            seen.dropped_outage,
            seen.dropped_reset,
            seen.refused
        );
    }
}

/// The link of this name; otherwise which there are.
pub(crate) fn named(name: &str) -> Result<Profile, String> {
    let known = || Profile::names().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
    Profile::named(name).ok_or_else(|| format!("the links are {}", known()))
}

fn parse_outage(text: &str) -> Result<Outage, String> {
    let (at, lasts) = text.split_once('+').ok_or("an outage is written 5s+2s: when, and for how long")?;
    let parse = |text| parse_duration(text).map_err(|error| error.to_string());
    Ok(Outage { at: parse(at)?, lasts: parse(lasts)? })
}
