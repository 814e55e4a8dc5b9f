//! The daemon.

use anyhow::bail;
use clap::Parser;
use hikyaku_daemon::api::server;
use hikyaku_daemon::config::{Allow, Config, Io};
use hikyaku_daemon::daemon::{Daemon, Door};
use hikyaku_daemon::heap::Heap;
use hikyaku_daemon::libvirt::{directory, near};
use hikyaku_daemon::records::Records;
use hikyaku_daemon::settings::Store;
use hikyaku_daemon::workers::Workers;
use hikyaku_daemon::{fail, keyfile, restart, runtime, service, standing};
use hikyaku_transport::{Congestion, Node, NodeConfig, Peer};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{channel, unbounded_channel};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// How long guests may take to be given back when the daemon is told to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// For a disk to let go of what is not true any more.
const TIDY_TIMEOUT: Duration = Duration::from_secs(5);

/// Moves running QEMU guests between sites: the daemon on every KVM host.
#[derive(Debug, Parser)]
#[command(name = "hikyakud", version)]
struct Arguments {
    #[arg(long, value_name = "FILE", default_value = "/etc/hikyaku/config.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("HIKYAKU_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Errors of ours name their causes in their own words.
            eprintln!("hikyakud: {error}");
            // Configuration and keys are what is wrong at a start.
            ExitCode::from(hikyaku_daemon::outcome::Ending::Configuration.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let kept = service::kept();
    fail::prepare().map_err(anyhow::Error::msg)?;
    hikyaku_transport::keep_freed_buffers();
    let config = Config::read(&arguments.config)?;
    let key = keyfile::read(&config.key)?;
    let records = Records::open(&config.state)?;
    let settings = Store::open(&config.state)?;
    directory::sweep(&config.libvirt.directory);
    let shelves = [records.shelf("libvirt-asked")?, records.shelf("libvirt-delivered")?];
    let uring = match config.io {
        Io::Plain => false,
        Io::Auto => runtime::uring_is_allowed(),
        Io::Uring if runtime::uring_is_allowed() => true,
        Io::Uring => {
            bail!("io = \"uring\", but this kernel does not allow io_uring; use \"auto\" or \"plain\"")
        }
    };
    if config.io == Io::Auto && !uring {
        tracing::info!("this kernel does not allow io_uring; plain sockets are used");
    }
    let own = key.public();
    let mut node = NodeConfig::new(key);
    node.listen = config.listen.to_vec();
    node.peers = config.peers.iter().map(peer).collect();
    if let Some(lanes) = config.link.lanes {
        (node.lanes, node.lanes_most) = (lanes, lanes);
    }
    node.io = if uring { hikyaku_transport::Io::Auto } else { hikyaku_transport::Io::Plain };
    node.sockets.congestion = config
        .link
        .congestion
        .clone()
        .filter(|name| name != "auto")
        .map_or(Congestion::Auto, Congestion::Named);
    node.sockets.dscp = config.link.dscp;
    node.timeouts.connect = config.link.connect_timeout;
    node.timeouts.handshake = config.link.connect_timeout;
    node.timeouts.dead_after = config.link.dead_after;
    node.timeouts.link = config.link.timeout;
    node.limits.early_bytes = config.memory.credit.min(EARLY_BYTES_MOST);
    let workers = Workers::start().map_err(|e| anyhow::anyhow!("starting the encoding threads: {e}"))?;

    runtime::block_on(uring, async move {
        let (at_door, knocks) = unbounded_channel();
        let (noting, notes) = channel(NOTES);
        let node = Node::start(node, Arc::new(Door { knocks: at_door, notes: noting }))?;
        node.set_limit(config.link.limit_bytes_per_s);
        for address in node.addresses() {
            tracing::info!(%address, "peers reach this daemon here");
        }
        let api = config.api.clone();
        let listener =
            server::bind(&api).map_err(|e| anyhow::anyhow!("the API socket {}: {e}", api.display()))?;
        let daemon = Daemon::new(config, node, records, settings, shelves, workers);
        // Whoever knocks meanwhile waits: what was left unfinished is known to this daemon before anybody is answered.
        restart::take_up(&daemon).await?;
        near::left::take_up(&daemon, kept).await?;
        tokio::task::spawn_local(daemon.clone().answer_the_door(knocks));
        tokio::task::spawn_local(daemon.clone().read_notes(notes));
        standing::begin(&daemon, &own);
        near::landing::listen(&daemon);
        tokio::task::spawn_local(server::serve(listener, daemon.clone()));
        tracing::info!(api = %api.display(), io = if uring { "io_uring" } else { "plain" }, "ready");
        let mut told = Told::new()?;
        told.next().await;
        drain(&daemon, &mut told).await;
        end(&daemon).await;
        // Another daemon may have taken the path over only if this one was dead.
        let _ = std::fs::remove_file(&api);
        Ok(())
    })?
}

/// Of peers' notes, what may wait to be read.
const NOTES: usize = 64;
/// What each peer may send of guests that are not taken yet: about a round trip of 200 ms at 1 Gbit/s.
const EARLY_BYTES_MOST: u64 = 32 << 20;

fn peer(peer: &hikyaku_daemon::config::Peer) -> Peer {
    Peer {
        name: peer.name.as_str().into(),
        addresses: peer.addresses.clone(),
        public_key: peer.public_key,
        may_receive: peer.may_be_sent_to(),
        may_send: peer.allow.contains(&Allow::Receive),
    }
}

/// To end.
struct Told {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal that is closed, or somebody who expects a reload, ends no daemon.
    hangup: Signal,
}

impl Told {
    fn new() -> std::io::Result<Told> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Told { terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return tracing::info!("told to end (SIGTERM)"),
                _ = self.interrupt.recv() => return tracing::info!("told to end (SIGINT)"),
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP is ignored: a changed configuration takes a restart");
                }
            }
        }
    }
}

/// Lets the moves that are under way come to their end, unless that takes too long or it is told once more.
async fn drain(daemon: &Rc<Daemon>, told: &mut Told) {
    let registry = &daemon.registry;
    registry.close();
    let moves = registry.moving();
    if moves == 0 {
        return;
    }
    let drain = daemon.config.drain;
    tracing::info!(
        moves,
        "moves under way have {} s to end; told once more, their guests are given back at once",
        drain.as_secs()
    );
    let ended = async {
        while registry.moving() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Those who wait are told so.
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep(drain) => tracing::warn!(moves = registry.moving(), "still under way: given back"),
        () = told.next() => {}
    }
}

/// Of a move that has ended, to peers and to whoever waits at the API.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Gives back every guest that can be; those in doubt are taken up by the next start.
async fn end(daemon: &Rc<Daemon>) {
    let deadline = tokio::time::Instant::now() + END_TIMEOUT;
    loop {
        let left = daemon.registry.unfinished();
        if left.is_empty() || tokio::time::Instant::now() > deadline {
            break;
        }
        // Every one of them, before it is asked whether any could be.
        let can_be = left.iter().filter(|entry| entry.give_up().is_ok()).count();
        if can_be == 0 {
            // They were let go, or are being started: moments at best, and on record at worst.
            tokio::time::sleep(Duration::from_secs(1)).await;
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is on record of guests that are where they were would be taken up by the next daemon.
    let deadline = tokio::time::Instant::now() + TIDY_TIMEOUT;
    while daemon.is_tidying() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
