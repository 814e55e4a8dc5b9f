//! What people type. It parses, asks the daemon, and shows; it decides nothing about a guest.

/// A line for whoever reads. One who goes away (`| head`) is no error: the migration that is followed goes on, and so does what
/// the exit code says of it.
macro_rules! say {
    ($($words:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($words)*))))
    };
}

mod check;
mod follow;
mod keys;
mod libvirt;
mod link;
mod progress;
mod resolve;
mod table;
mod virsh;

use crate::api::check::{CheckArguments, CheckReport};
use crate::api::client::{Client, ClientError};
use crate::api::link::LinkArguments;
use crate::api::wire::{
    CarryArguments, Carrying, Command, Delta, MigrateArguments, OnDeadline, Priority, ReceiveArguments,
    Resolution, SetArguments, Started, Status, Switchover, Which,
};
use crate::config::Config;
use crate::id::Id;
use crate::outcome::{Ending, Whereabouts};
use crate::source::POLICIES;
use crate::units;
use clap::builder::PossibleValuesParser;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const AFTER_HELP: &str = "\
Exit codes: 0 moved, 1 other, 2 usage, 3 configuration, 4 peer unreachable, 5 not allowed, 6 incompatible,
7 did not converge, 8 cancelled, 9 failed, 10 in doubt: do not start either copy by hand.
After 4 to 9 the source has the guest; the sentence beside says how it is.";

#[derive(Debug, Parser)]
#[command(name = "hikyaku", version, about = "Move running QEMU guests between sites", after_help = AFTER_HELP)]
struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", env = "HIKYAKU_API", default_value = crate::DEFAULT_API)]
    api: PathBuf,
    /// One JSON object per line, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// At the destination: a QEMU started with -incoming defer awaits GUEST
    Receive {
        guest: String,
        /// QMP socket of the waiting QEMU.
        #[arg(long, value_name = "PATH")]
        qmp: PathBuf,
        /// Only from this peer; otherwise from any that may send to us.
        #[arg(long, value_name = "PEER")]
        from: Option<String>,
        /// Leave the guest stopped after its arrival.
        #[arg(long)]
        paused: bool,
        /// Return once the QEMU is awaiting; do not wait for the guest.
        #[arg(long)]
        detach: bool,
    },
    /// At the source: move GUEST to a peer
    Migrate {
        guest: String,
        /// QMP socket of the running QEMU.
        #[arg(long, value_name = "PATH")]
        qmp: PathBuf,
        /// The peer's name in the configuration.
        #[arg(long, value_name = "PEER")]
        to: String,
        /// The stop aimed at. Default: 300ms.
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        downtime: Option<Duration>,
        /// How long the guest may be copied before --on-deadline decides; outages do not count. Default: 10min after all of its memory
        /// was read once.
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        deadline: Option<Duration>,
        /// What to do at the deadline.
        #[arg(long, value_enum, default_value = "abort")]
        on_deadline: OnDeadline,
        /// Of the guest's CPU time, what --on-deadline throttle may take from it; the rest is left. Default: 80.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=99))]
        throttle_max: Option<u8>,
        /// Who decides when to stop the guest. Default: adaptive.
        #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(POLICIES))]
        policy: Option<String>,
        /// How the guest is handed over.
        #[arg(long, value_enum, default_value = "fast")]
        switchover: Switchover,
        /// Relay QEMU's stream as it is, without looking into it.
        #[arg(long)]
        raw: bool,
        /// Send pages that were sent before as deltas.
        #[arg(long, value_enum, default_value = "auto", hide = true)]
        delta: Delta,
        /// What it sends at most, headers included, such as 500mbit.
        #[arg(long, value_name = "RATE", value_parser = units::parse_limit)]
        limit: Option<u64>,
        /// Its share beside other migrations to the same peer.
        #[arg(long, value_enum, default_value = "normal")]
        priority: Priority,
        /// Return once the migration has been accepted; it goes on in the daemon.
        #[arg(long)]
        detach: bool,
    },
    /// At the source: have libvirt move GUEST to a peer; what its two sides say to each other, and the guest, are carried
    VirshMigrate {
        guest: String,
        /// The peer's name in the configuration.
        #[arg(long, value_name = "PEER")]
        to: String,
        /// This host's libvirt talks to the other one, not virsh.
        #[arg(long)]
        p2p: bool,
        /// Copy the guest's disks as well.
        #[arg(long)]
        disks: bool,
        /// The stop aimed at. Default: 300ms.
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        downtime: Option<Duration>,
        /// What it sends at most, headers included, such as 500mbit.
        #[arg(long, value_name = "RATE", value_parser = units::parse_limit)]
        limit: Option<u64>,
        /// Its share beside other migrations to the same peer.
        #[arg(long, value_enum, default_value = "normal")]
        priority: Priority,
        /// More options of virsh migrate, behind hikyaku's own.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "VIRSH OPTION")]
        options: Vec<OsString>,
    },
    /// About guests that libvirt moves
    #[command(subcommand)]
    Libvirt(LibvirtVerb),
    /// Every migration this daemon knows
    List,
    /// One migration, in full
    Status { id: Option<String> },
    /// Follow a migration until it ends
    Watch { id: String },
    /// End a migration; the guest stays where it is
    Cancel { id: String },
    /// Say where a guest is that is in doubt; the daemons would else go on asking
    #[command(group(clap::ArgGroup::new("where").required(true)))]
    Resolve {
        id: String,
        /// It goes on at this host; the other one was switched off or cut from its disks first.
        #[arg(long, group = "where")]
        here: bool,
        /// It is the other host's, where it was seen; the copy here is given up.
        #[arg(long, group = "where")]
        there: bool,
        /// Do not ask: what --here or --there needs was done.
        #[arg(long)]
        fenced: bool,
    },
    /// Change how a running migration shares the link; at its source
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true)))]
    Set {
        id: String,
        /// What it sends at most, headers included, such as 500mbit, or none.
        #[arg(long, value_name = "RATE", value_parser = limit_or_none, group = "what")]
        limit: Option<Limit>,
        /// Its share beside other migrations to the same peer.
        #[arg(long, value_enum, group = "what")]
        priority: Option<Priority>,
    },
    /// How a move of GUEST would go, before it is begun; the guest is not touched
    Check {
        /// The peer's name in the configuration.
        peer: String,
        #[arg(long)]
        guest: String,
        /// QMP socket of the running QEMU.
        #[arg(long, value_name = "PATH")]
        qmp: PathBuf,
        /// The stop aimed at. Default: 300ms.
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        downtime: Option<Duration>,
        /// How long the guest may be copied. Default: 10min after all of its memory was read once.
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        deadline: Option<Duration>,
        /// What it may send at most, such as 500mbit.
        #[arg(long, value_name = "RATE", value_parser = units::parse_limit)]
        limit: Option<u64>,
    },
    /// What was foretold of a move that was made, beside what came of it; at its source
    Report { id: String },
    /// How the link to a peer does, lane by lane, and what limits it; an idle one is measured with padding
    Link {
        /// The peer's name in the configuration.
        peer: String,
    },
    /// Make a key for this host and print its public half
    Keygen {
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public half of a key
    Fingerprint {
        /// The key file.
        #[arg(default_value = "/etc/hikyaku/key")]
        key: PathBuf,
    },
    /// About the configuration file
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
enum LibvirtVerb {
    /// At the source: make the sockets by which libvirt can move GUEST, and say how; for whoever runs virsh himself
    Carry {
        guest: String,
        /// The peer's name in the configuration.
        #[arg(long, value_name = "PEER")]
        to: String,
    },
    /// What /etc/hosts and libvirt's qemu.conf have to say, so that guests leave and land without anybody being told of hikyaku
    Setup {
        /// What this host is to be called by other hosts' libvirts, if the configuration does not say so yet.
        #[arg(long, value_name = "NAME")]
        alias: Option<String>,
        /// Write it there.
        #[arg(long)]
        apply: bool,
        /// The daemon's configuration.
        #[arg(long, value_name = "FILE", default_value = "/etc/hikyaku/config.toml")]
        config: PathBuf,
    },
    /// Whether this host, and PEER, are ready for guests that libvirt moves
    Check { peer: Option<String> },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read the file as the daemon would, and say what is wrong with it
    Check {
        #[arg(default_value = "/etc/hikyaku/config.toml")]
        file: PathBuf,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(ending) => ExitCode::from(ending.exit_code()),
        Err(error) => {
            if cli.json {
                let (class, guest) = (error.ending(), error.guest());
                say!("{}", serde_json::json!({ "error": error.to_string(), "class": class, "guest": guest }));
            } else {
                eprintln!("hikyaku: {error}");
            }
            ExitCode::from(error.ending().exit_code())
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Key(#[from] crate::keyfile::KeyFileError),
    #[error(transparent)]
    Virsh(#[from] virsh::VirshError),
    #[error(transparent)]
    Setup(#[from] crate::libvirt::setup::SetupError),
    #[error("{0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn ending(&self) -> Ending {
        match self {
            CliError::Client(ClientError::Refused(body)) => body.class,
            CliError::Virsh(error) => error.ending(),
            CliError::Client(_) | CliError::Output(_) => Ending::Other,
            CliError::Config(_) | CliError::Key(_) | CliError::Setup(_) => Ending::Configuration,
        }
    }

    fn guest(&self) -> Whereabouts {
        match self {
            CliError::Client(error) => error.guest(),
            CliError::Config(_) | CliError::Key(_) | CliError::Setup(_) => Whereabouts::AsItWas,
            CliError::Virsh(_) => Whereabouts::Untouched,
            CliError::Output(_) => Whereabouts::Unknown,
        }
    }
}

fn run(cli: &Cli) -> Result<Ending, CliError> {
    match obey(cli) {
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Ending::Moved),
        result => result,
    }
}

fn obey(cli: &Cli) -> Result<Ending, CliError> {
    match &cli.verb {
        Verb::Receive { guest, qmp, from, paused, detach } => {
            let arguments = ReceiveArguments {
                guest: guest.clone(),
                qmp: absolute(qmp),
                from: from.clone(),
                paused: *paused,
            };
            start(cli, Command::Receive(arguments), *detach)
        }
        Verb::Migrate {
            guest,
            qmp,
            to,
            downtime,
            deadline,
            on_deadline,
            throttle_max,
            policy,
            switchover,
            raw,
            delta,
            limit,
            priority,
            detach,
        } => {
            let arguments = MigrateArguments {
                guest: guest.clone(),
                qmp: absolute(qmp),
                to: to.clone(),
                downtime_ms: downtime.map(|d| d.as_millis() as u64),
                deadline_ms: deadline.map(|d| d.as_millis() as u64),
                on_deadline: *on_deadline,
                throttle_max_percent: *throttle_max,
                policy: policy.clone(),
                switchover: *switchover,
                raw: *raw,
                delta: *delta,
                limit_bytes_per_s: *limit,
                priority: *priority,
            };
            start(cli, Command::Migrate(arguments), *detach)
        }
        Verb::VirshMigrate { guest, to, p2p, disks, downtime, limit, priority, options } => {
            let arguments = CarryArguments {
                guest: guest.clone(),
                to: to.clone(),
                downtime_ms: downtime.map(|d| d.as_millis() as u64),
                limit_bytes_per_s: *limit,
                priority: *priority,
            };
            virsh::migrate(cli, arguments, &virsh::Wish { p2p: *p2p, disks: *disks, options })
        }
        Verb::Libvirt(LibvirtVerb::Carry { guest, to }) => {
            let arguments = CarryArguments {
                guest: guest.clone(),
                to: to.clone(),
                downtime_ms: None,
                limit_bytes_per_s: None,
                priority: Priority::default(),
            };
            let carrying: Carrying = Client::connect(&cli.api)?.execute(Command::Carry(arguments))?;
            virsh::show(guest, &carrying, cli.json)?;
            Ok(Ending::Moved)
        }
        Verb::Libvirt(LibvirtVerb::Setup { alias, apply, config }) => {
            libvirt::setup(config, alias.as_deref(), *apply)
        }
        Verb::Libvirt(LibvirtVerb::Check { peer }) => {
            let arguments = crate::libvirt::check::Arguments { peer: peer.clone() };
            let report = Client::connect(&cli.api)?.execute(Command::LibvirtCheck(arguments))?;
            libvirt::show_report(&report, peer.as_deref(), cli.json)
        }
        Verb::List => {
            let statuses: Vec<Status> = Client::connect(&cli.api)?.execute(Command::List)?;
            table::list(&statuses, cli.json)?;
            Ok(Ending::Moved)
        }
        Verb::Status { id } => {
            let mut client = Client::connect(&cli.api)?;
            match id {
                Some(id) => {
                    let status = client.execute(Command::Status(Which { id: id.clone() }))?;
                    table::status(&status, cli.json)?;
                }
                None => table::list(&client.execute::<Vec<Status>>(Command::List)?, cli.json)?,
            }
            Ok(Ending::Moved)
        }
        Verb::Watch { id } => {
            // Events first: an end that came between the two would never be heard of.
            let mut events = subscribe(cli)?;
            let which = Command::Status(Which { id: id.clone() });
            let status: Status = Client::connect(&cli.api)?.execute(which)?;
            follow::follow(&mut events, status.id, Some(status), cli.json)
        }
        Verb::Cancel { id } => {
            let _: serde_json::Value =
                Client::connect(&cli.api)?.execute(Command::Cancel(Which { id: id.clone() }))?;
            if !cli.json {
                say!("cancelling; the guest stays where it is");
            }
            Ok(Ending::Moved)
        }
        Verb::Resolve { id, here, there: _, fenced } => {
            resolve::resolve(cli, id, if *here { Resolution::Here } else { Resolution::There }, *fenced)
        }
        Verb::Set { id, limit, priority } => {
            let arguments = SetArguments {
                id: id.clone(),
                limit_bytes_per_s: limit.map(|limit| limit.0),
                priority: *priority,
            };
            let status = Client::connect(&cli.api)?.execute(Command::Set(arguments))?;
            table::status(&status, cli.json)?;
            Ok(Ending::Moved)
        }
        Verb::Check { peer, guest, qmp, downtime, deadline, limit } => {
            let arguments = CheckArguments {
                peer: peer.clone(),
                guest: guest.clone(),
                qmp: absolute(qmp),
                downtime_ms: downtime.map(|d| d.as_millis() as u64),
                deadline_ms: deadline.map(|d| d.as_millis() as u64),
                limit_bytes_per_s: *limit,
            };
            let report: CheckReport = Client::connect(&cli.api)?.execute(Command::Check(arguments))?;
            check::show(&report, cli.json)?;
            Ok(if report.estimate.moves() { Ending::Moved } else { Ending::NotConverged })
        }
        Verb::Report { id } => {
            let which = Command::Status(Which { id: id.clone() });
            let status: Status = Client::connect(&cli.api)?.execute(which)?;
            table::report(&status, cli.json)?;
            Ok(if status.report.is_some() { Ending::Moved } else { Ending::Other })
        }
        Verb::Link { peer } => {
            let command = Command::Link(LinkArguments { peer: peer.clone() });
            link::show(&Client::connect(&cli.api)?.execute(command)?, cli.json)?;
            Ok(Ending::Moved)
        }
        Verb::Keygen { out } => Ok(keys::generate(out, cli.json)?),
        Verb::Fingerprint { key } => Ok(keys::show(key, cli.json)?),
        Verb::Config(ConfigVerb::Check { file }) => {
            let config = Config::read(file)?;
            crate::keyfile::read(&config.key)?;
            let peers = match config.peers.len() {
                1 => "1 peer".to_owned(),
                n => format!("{n} peers"),
            };
            say!("{}: in order, {peers}", file.display());
            Ok(Ending::Moved)
        }
        Verb::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "hikyaku", &mut std::io::stdout());
            Ok(Ending::Moved)
        }
    }
}

fn start(cli: &Cli, command: Command, detach: bool) -> Result<Ending, CliError> {
    // Subscribed before it starts, so that no event is missed.
    let mut events = if detach { None } else { Some(subscribe(cli)?) };
    let started: Started = Client::connect(&cli.api)?.execute(command)?;
    match &mut events {
        Some(events) => follow::follow(events, started.id, None, cli.json),
        None => {
            say_id(started.id, cli.json);
            Ok(Ending::Moved)
        }
    }
}

fn subscribe(cli: &Cli) -> Result<Client, CliError> {
    let mut client = Client::connect(&cli.api)?;
    let _: Vec<Status> = client.execute(Command::Subscribe)?;
    Ok(client)
}

fn say_id(id: Id, json: bool) {
    if json {
        say!("{}", serde_json::json!({ "id": id }));
    } else {
        say!("{id}");
    }
}

/// Bytes per second, or no limit.
#[derive(Debug, Clone, Copy)]
struct Limit(Option<u64>);

fn limit_or_none(text: &str) -> Result<Limit, units::UnitError> {
    match text {
        "none" => Ok(Limit(None)),
        _ => units::parse_limit(text).map(|rate| Limit(Some(rate))),
    }
}

/// The daemon has another working directory.
fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::{Reply, Request, Role};
    use crate::outcome::{Outcome, Whereabouts};
    use crate::ownership;
    use crate::registry::Registry;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// A daemon in which a migration ends as soon as the first command has been answered. Nobody hears of it by an event.
    fn daemon_that_ends_a_migration(api: &std::path::Path) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(api).unwrap();
        let registry = Registry::default();
        let entry =
            registry.enter(Id::random(), "web", Role::Destination, None, ownership::Phase::Armed).unwrap();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().take(2) {
                let stream = stream.unwrap();
                writeln!(&stream, r#"{{"hikyaku": {{"version": "0.1.0", "schema": 1}}}}"#).unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                let value = match request.command {
                    Command::Subscribe => serde_json::to_value(registry.statuses()),
                    _ => serde_json::to_value(entry.status()),
                };
                let reply = Reply { value: Some(value.unwrap()), error: None, id: None };
                writeln!(&stream, "{}", serde_json::to_string(&reply).unwrap()).unwrap();
                let outcome = Outcome::new(Ending::Cancelled, Whereabouts::Untouched, "cancelled");
                entry.finish(ownership::Phase::Refused, outcome);
                open.push(stream);
            }
        })
    }

    #[test]
    fn a_migration_that_ends_while_it_begins_to_be_watched_is_seen_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let api = dir.path().join("api.sock");
        let daemon = daemon_that_ends_a_migration(&api);
        let cli = Cli::parse_from(["hikyaku", "--json", "--api", api.to_str().unwrap(), "watch", "web"]);
        assert_eq!(run(&cli).unwrap(), Ending::Cancelled);
        daemon.join().unwrap();
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
