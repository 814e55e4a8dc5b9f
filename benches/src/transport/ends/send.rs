//! The sending end: random chunks, as fast as the lanes take them.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use hikyaku_transport::{
    Acceptor, Chunk, Incoming, Lost, Node, Payload, PeerName, SessionId, TxEvents, TxSession,
};

use super::super::PATIENCE;
use super::super::plan::{Amount, Manner, Plan, Said, Sent, now_ns};
use super::usage::Before;
use super::{OTHER, config, hash_of, lock, say};

/// Payload that waits for lanes: 16 ms at 1 Gbit/s, so that a sender that sleeps is not missed.
const QUEUE_BYTES: u64 = 2 << 20;
const CHUNK_BYTES: std::ops::Range<usize> = (128 << 10)..(256 << 10);
/// Chunks are pieces of this, from anywhere in it.
const NOISE_BYTES: usize = 32 << 20;
/// A sender that is told nothing looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A node that goes takes with it what it has not written yet: the close waits so many round trips.
const LAST_ROUND_TRIPS: u32 = 4;

pub fn send(plan: &Plan) -> anyhow::Result<()> {
    let manner = &plan.manner;
    let node = Node::start(config(plan)?, Arc::new(Nobody))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let noise = noise()?;
    let before = Before::now()?;
    let link = runtime.block_on(node.link(&OTHER.into()))?;
    let mut sessions = Vec::new();
    for index in 0..manner.sessions {
        let acks = Arc::new(Acks::default());
        let opened = link.open(SessionId([index; 16]), Vec::new(), acks.clone());
        let (session, _) = runtime.block_on(opened)?;
        sessions.push(Pouring { index: index.into(), session, acks, noise: noise.clone() });
    }

    if let Some(first) = sessions.first() {
        first.session.set_limit(manner.limit_bytes_per_s);
    }

    // What a daemon spends on QEMU; there is nothing to be awaited here.
    thread::sleep(manner.preparation);
    if manner.warm {
        runtime.block_on(link.warm_up())?;
    }
    let first_chunk_ns = now_ns();
    let hashes = thread::scope(|scope| {
        let running: Vec<_> = sessions.iter().map(|one| scope.spawn(|| one.pour(manner))).collect();
        let join = |one: thread::ScopedJoinHandle<'_, _>| {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect::<anyhow::Result<Vec<u64>>>()
    })?;
    let usage = before.until_now()?;
    let stats: Vec<_> = sessions.iter().map(|one| one.session.stats()).collect();
    sessions.iter().for_each(|one| one.session.close(0, "all sent"));
    let (lanes, rtt) = stats.first().map(|s| (s.lanes, s.rtt)).unwrap_or_default();
    thread::sleep(LAST_ROUND_TRIPS * rtt.unwrap_or_default());
    say(&Said::Sent(Sent {
        lanes,
        io: format!("{:?}", node.io()),
        first_chunk_ns,
        padding_bytes: link.stats().padding_bytes,
        delivered_bytes: stats.iter().map(|s| s.delivered_bytes).sum(),
        hashes,
        usage,
    }))
}

/// Not in a slice of its own: moving it there would leave its size in freed memory behind, where a link's would hide.
fn noise() -> anyhow::Result<Arc<Vec<u8>>> {
    let mut noise = vec![0; NOISE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    Ok(Arc::new(noise))
}

/// A session that is being filled.
struct Pouring {
    index: usize,
    session: TxSession,
    acks: Arc<Acks>,
    noise: Arc<Vec<u8>>,
}

impl Pouring {
    /// Queues chunks of random lengths until it is enough; the sum of their hashes, if they are to be checked.
    fn pour(&self, manner: &Manner) -> anyhow::Result<u64> {
        let words = self.noise.as_chunks::<4>().0;
        // Each session has a course of its own through the noise.
        let mut draws = words.iter().cycle().skip(self.index << 16);
        let mut draw =
            |below: usize| draws.next().map_or(0, |word| u32::from_le_bytes(*word) as usize) % below;
        let (start, mut left) = (Instant::now(), u64::MAX);
        let mut end = None;
        match manner.amount {
            Amount::Time(time) => end = Some(start + time),
            Amount::Bytes(bytes) => left = bytes,
        }
        let (mut seq, mut hashes) = (0, 0_u64);
        let is_over = || end.is_some_and(|end| Instant::now() >= end);
        while left > 0 && !is_over() {
            self.acks.wait_until(&self.session, |_, unsent_bytes| unsent_bytes < QUEUE_BYTES || is_over())?;
            let length = CHUNK_BYTES.start + draw(CHUNK_BYTES.len());
            let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
            let start = draw(NOISE_BYTES - length);
            let piece = Piece { noise: self.noise.clone(), range: start..start + length };
            let payload =
                if manner.own_memory { piece.as_ref().to_vec().into() } else { Payload::new(piece) };
            seq += 1;
            if manner.checked {
                hashes = hashes.wrapping_add(hash_of(seq, &payload));
            }
            self.session.send(Chunk { seq, after: 0, payload })?;
            left -= length as u64;
        }
        if end.is_none() {
            self.acks.wait_until(&self.session, |cumulative, _| cumulative >= seq)?;
        }
        Ok(hashes)
    }
}

struct Piece {
    noise: Arc<Vec<u8>>,
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.noise[self.range.clone()]
    }
}

/// What a session's sender hears.
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
