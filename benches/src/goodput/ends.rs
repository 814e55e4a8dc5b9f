//! The two ends of a transfer: what `lab bench goodput send` and `… receive` are. Each is a node with the transport's defaults.

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use hikyaku_transport::{
    Acceptor, Chunk, Incoming, Lost, Node, NodeConfig, Payload, Peer, PeerName, PublicKey, RxEvents,
    RxSession, SessionId, StaticKey, TxEvents, TxSession, keep_freed_buffers,
};
use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use super::{PATIENCE, STEADY_FROM};

/// What each end calls the other.
const OTHER: &str = "other";
/// As daemons give by default.
const CREDIT_BYTES: u64 = 128 << 20;
/// Payload that waits for lanes: 16 ms at 1 Gbit/s, so that a sender that sleeps is not missed.
const QUEUE_BYTES: u64 = 2 << 20;
const CHUNK_BYTES: std::ops::Range<usize> = (128 << 10)..(256 << 10);
/// Chunks are pieces of this, from anywhere in it.
const NOISE_BYTES: usize = 32 << 20;
/// A sender that is told nothing looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A node that goes takes with it what it has not written yet: the close waits so many round trips.
const LAST_ROUND_TRIPS: u32 = 4;

#[derive(Debug, Clone, Subcommand)]
pub enum End {
    /// Apply whatever comes, at once; then say when it came
    #[command(hide = true)]
    Receive {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        key: PathBuf,
        #[arg(long)]
        peer: PublicKey,
        #[arg(long)]
        autotune: bool,
    },
    /// Send random chunks
    #[command(hide = true)]
    Send {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        key: PathBuf,
        #[arg(long)]
        peer: PublicKey,
        #[arg(long)]
        bytes: u64,
        #[arg(long)]
        autotune: bool,
    },
}

/// What a sender knows at its end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sent {
    pub lanes: u16,
    pub io: String,
}

pub fn run(end: &End) -> anyhow::Result<()> {
    // As the daemon does.
    keep_freed_buffers();
    match end {
        End::Receive { listen, key, peer, autotune } => {
            receive(NodeConfig { listen: vec![*listen], ..config(key, *peer, Vec::new(), *autotune)? })
        }
        End::Send { to, key, peer, bytes, autotune } => {
            send(config(key, *peer, vec![to.to_string()], *autotune)?, *bytes)
        }
    }
}

/// Who is to be reached at an address is sent to, another sends.
fn config(key: &Path, peer: PublicKey, addresses: Vec<String>, autotune: bool) -> anyhow::Result<NodeConfig> {
    let text = fs::read_to_string(key).with_context(|| key.display().to_string())?;
    let mut config = NodeConfig::new(StaticKey::from_text(text.trim())?);
    let sends = addresses.is_empty();
    let name = PeerName::from(OTHER);
    config.peers = vec![Peer { name, addresses, public_key: peer, may_send: sends, may_receive: !sends }];
    if autotune {
        config.sockets.send_buffer_bytes = None;
        config.sockets.receive_buffer_bytes = None;
    }
    Ok(config)
}

// ---- the receiving end

fn receive(config: NodeConfig) -> anyhow::Result<()> {
    let host = Arc::new(Host::default());
    let _node = Node::start(config, Arc::new(Door(host.clone())))?;
    println!("ready");
    let ended = host.wait_for_end();
    if let Some(lost) = ended {
        bail!("receiver: {lost}");
    }
    println!("{}", serde_json::to_string(&lock(&host.state).arrivals.figures(STEADY_FROM))?);
    Ok(())
}

#[derive(Default)]
struct Host {
    state: Mutex<HostState>,
    ended: Condvar,
}

#[derive(Default)]
struct HostState {
    arrivals: Arrivals,
    /// Why, if it was not the sender's wish.
    over: Option<Option<String>>,
}

impl Host {
    fn end(&self, why: Option<String>) {
        lock(&self.state).over = Some(why);
        self.ended.notify_all();
    }

    /// The process that started this one bounds the wait.
    fn wait_for_end(&self) -> Option<String> {
        let state = self.ended.wait_while(lock(&self.state), |state| state.over.is_none());
        state.unwrap_or_else(PoisonError::into_inner).over.clone().flatten()
    }
}

struct Door(Arc<Host>);

impl Acceptor for Door {
    fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
        let sink = Arc::new(Sink { host: self.0.clone(), start: Instant::now(), session: OnceLock::new() });
        match incoming.accept(Vec::new(), CREDIT_BYTES, sink.clone()) {
            Ok(session) => drop(sink.session.set(session)),
            Err(error) => self.0.end(Some(error.to_string())),
        }
    }
}

struct Sink {
    host: Arc<Host>,
    start: Instant,
    session: OnceLock<RxSession>,
}

impl RxEvents for Sink {
    fn chunk(&self, seq: u64, _: u64, payload: Vec<u8>) {
        let bytes = payload.len() as u64;
        drop(payload);
        // Its first chunks may come while `open` still has the session in its hands.
        self.session.wait().applied(seq, bytes);
        lock(&self.host.state).arrivals.add(self.start.elapsed(), bytes);
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, lost: Lost) {
        self.host.end(Some(lost.to_string()));
    }
    fn closed(&self, code: u16, text: String) {
        self.host.end((code != 0).then_some(text));
    }
}

// ---- the sending end

fn send(config: NodeConfig, bytes: u64) -> anyhow::Result<()> {
    let node = Node::start(config, Arc::new(Nobody))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let acks = Arc::new(Acks::default());
    let session = runtime.block_on(async {
        let link = node.link(&OTHER.into()).await?;
        let (session, _) = link.open(SessionId([1; 16]), Vec::new(), acks.clone()).await?;
        anyhow::Ok(session)
    })?;
    let chunks = pour(&session, &acks, bytes)?;
    acks.wait_until(&session, |cumulative, _| cumulative >= chunks)?;
    let stats = session.stats();
    session.close(0, "all sent");
    std::thread::sleep(LAST_ROUND_TRIPS * stats.rtt.unwrap_or_default());
    println!("{}", serde_json::to_string(&Sent { lanes: stats.lanes, io: format!("{:?}", node.io()) })?);
    Ok(())
}

/// Queues chunks of random lengths until it is all queued; the number of chunks.
fn pour(session: &TxSession, acks: &Acks, bytes: u64) -> anyhow::Result<u64> {
    let mut noise = vec![0; NOISE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let noise: Arc<[u8]> = noise.into();
    let mut draws = noise.as_chunks::<4>().0.iter().cycle().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let mut draw = |below: usize| draws.next().unwrap_or_default() % below;

    let (mut seq, mut left) = (0, bytes);
    while left > 0 {
        acks.wait_until(session, |_, unsent_bytes| unsent_bytes < QUEUE_BYTES)?;
        let length = CHUNK_BYTES.start + draw(CHUNK_BYTES.len());
        let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        let start = draw(NOISE_BYTES - length);
        seq += 1;
        let payload = Payload::new(Piece { noise: noise.clone(), range: start..start + length });
        session.send(Chunk { seq, after: 0, payload })?;
        left -= length as u64;
    }
    Ok(seq)
}

struct Piece {
    noise: Arc<[u8]>,
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.noise[self.range.clone()]
    }
}

/// What the sender hears.
#[derive(Default)]
struct Acks {
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Default, Clone)]
struct Heard {
    cumulative: u64,
    over: Option<String>,
}

impl Acks {
    /// Until it is so, by the last chunk before which all is applied and by the bytes unsent. Nothing delivered for [`PATIENCE`]
    /// is an error.
    fn wait_until(&self, session: &TxSession, done: impl Fn(u64, u64) -> bool) -> anyhow::Result<()> {
        let (mut delivered, mut since) = (session.stats().delivered_bytes, Instant::now());
        loop {
            // Not under the lock: what calls back may hold the session's.
            let Heard { cumulative, over } = lock(&self.heard).clone();
            if let Some(why) = over {
                bail!("sender: {why}");
            }
            if done(cumulative, session.unsent_bytes()) {
                return Ok(());
            }
            drop(self.news.wait_timeout(lock(&self.heard), LOOK_AGAIN));
            let now = session.stats().delivered_bytes;
            if now != delivered {
                (delivered, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                bail!("sender: nothing was delivered for {PATIENCE:?}");
            }
        }
    }

    fn tell(&self, what: impl FnOnce(&mut Heard)) {
        what(&mut lock(&self.heard));
        self.news.notify_all();
    }
}

impl TxEvents for Acks {
    fn acked(&self, cumulative: u64, _: &[(u64, u64)]) {
        self.tell(|heard| heard.cumulative = heard.cumulative.max(cumulative));
    }
    fn room(&self) {
        self.news.notify_all();
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, lost: Lost) {
        self.tell(|heard| heard.over = Some(lost.to_string()));
    }
    fn closed(&self, _: u16, text: String) {
        self.tell(|heard| heard.over = Some(text));
    }
}

/// Nobody opens sessions at the sending end.
struct Nobody;

impl Acceptor for Nobody {
    fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
        incoming.refuse(1, "this end only sends");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
