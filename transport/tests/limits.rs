//! Limits and shares on loopback, over both backends, by the clock: every figure is bytes that arrived between two
//! events, so what a busy machine delays it delays for all.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use hikyaku_lab::steady::{claim, timed};
use hikyaku_transport::*;

const CHUNK_BYTES: usize = 256 * 1024;
/// On the wire: frame header and tag, and 78 bytes of headers around 1448.
const WIRE: f64 = 1526.0 / 1448.0;

struct Flow {
    tx: TxSession,
    receiver: Arc<Receiver>,
    _keep: (Arc<Sender>, RxSession),
}

impl Flow {
    async fn open(pair: &Pair) -> Flow {
        let (tx, sender, rx, receiver) = pair.open().await;
        Flow { tx, receiver, _keep: (sender, rx) }
    }

    /// Queues so many chunks that follow `from`.
    fn queue(&self, from: u64, chunks: u64) {
        let payload = Payload::from(noise(3, CHUNK_BYTES));
        for seq in from + 1..=from + chunks {
            self.tx.send(Chunk { seq, after: 0, payload: payload.clone() }).unwrap();
        }
    }

    fn got(&self) -> u64 {
        self.receiver.got.read(|got| got.payload_bytes)
    }

    /// When there was so much.
    fn reaches(&self, bytes: u64) -> Instant {
        self.receiver.got.wait("bytes", |got| (got.payload_bytes >= bytes).then(Instant::now))
    }

    /// Bytes per second on the wire while `chunks` more arrive, from the arrival of the next on.
    fn rate(&self, chunks: u64) -> f64 {
        let from = self.got() + 1;
        let start = self.reaches(from);
        let before = self.got();
        let end = self.reaches(before + chunks * CHUNK_BYTES as u64);
        (self.got() - before) as f64 * WIRE / (end - start).as_secs_f64()
    }
}

fn about(what: &str, rate: f64, asked: f64) {
    let ratio = rate / asked;
    claim((0.95..1.05).contains(&ratio), format!("{what}: {ratio:.3} of what was asked"));
}

/// Runs the body over both backends: again, if it is not so, where the machine stood still meanwhile.
macro_rules! by_the_clock {
    ($(async fn $name:ident($io:ident: Io) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($io: Io) $body

            #[test]
            fn plain() {
                timed(1, stringify!($name), || runtime().block_on(body(Io::Plain)));
            }

            #[test]
            fn uring() {
                timed(1, stringify!($name), || runtime().block_on(body(Io::Uring)));
            }
        }
    )*};
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

by_the_clock! {
    async fn a_limit_is_kept_and_changes_while_running(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let flow = Flow::open(&pair).await;
        flow.tx.set_limit(Some(20_000_000));
        assert_eq!(flow.tx.stats().limit_bytes_per_s, Some(20_000_000));
        flow.queue(0, 600);
        flow.reaches(1 << 20);
        about("20 MB/s", flow.rate(120), 20e6);
        flow.tx.set_limit(Some(60_000_000));
        about("60 MB/s", flow.rate(200), 60e6);
        flow.tx.set_limit(Some(2_000_000));
        // What the lanes hold leaves by the new limit, too.
        about("2 MB/s", flow.rate(16), 2e6);
        let goodput = flow.tx.stats().goodput_bytes_per_s.unwrap() as f64 * WIRE;
        claim((0.8..1.01).contains(&(goodput / 2e6)), format!("a goodput of {goodput}"));
        flow.tx.set_limit(None);
        let start = Instant::now();
        flow.reaches(600 * CHUNK_BYTES as u64);
        claim(start.elapsed() < Duration::from_secs(5), format!("the rest took {:?}", start.elapsed()));
    }

    async fn the_smallest_limit_of_session_link_and_host_holds(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let flow = Flow::open(&pair).await;
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        flow.tx.set_limit(Some(10_000_000));
        link.set_limit(Some(20_000_000));
        pair.source.set_limit(Some(40_000_000));
        flow.queue(0, 500);
        flow.reaches(1 << 20);
        about("the session's", flow.rate(60), 10e6);
        flow.tx.set_limit(None);
        about("the link's", flow.rate(100), 20e6);
        link.set_limit(None);
        about("the host's", flow.rate(160), 40e6);
        assert_eq!(flow.tx.stats().limit_bytes_per_s, Some(40_000_000));
    }

    async fn ten_sessions_get_a_tenth_each(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        pair.source.set_limit(Some(40_000_000));
        let mut flows = Vec::new();
        for _ in 0..10 {
            flows.push(Flow::open(&pair).await);
        }
        flows.iter().for_each(|flow| flow.queue(0, 100));
        flows[0].reaches(40 * CHUNK_BYTES as u64);
        let got: Vec<_> = flows.iter().map(|flow| flow.got() as f64).collect();
        let mean = got.iter().sum::<f64>() / 10.0;
        for bytes in &got {
            claim((0.8..1.2).contains(&(bytes / mean)), format!("{got:?}"));
        }
    }

    async fn ten_low_limits_do_not_stand_in_each_others_way(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let mut flows = Vec::new();
        for _ in 0..10 {
            let flow = Flow::open(&pair).await;
            flow.tx.set_limit(Some(1_250_000));
            flow.queue(0, 60);
            flows.push(flow);
        }
        flows[9].reaches(4 * CHUNK_BYTES as u64);
        let (start, before) = (Instant::now(), flows.iter().map(Flow::got).sum::<u64>());
        flows[9].reaches(14 * CHUNK_BYTES as u64);
        let bytes = flows.iter().map(Flow::got).sum::<u64>() - before;
        about("10 × 10 Mbit/s", bytes as f64 * WIRE / start.elapsed().as_secs_f64(), 12.5e6);
    }

    async fn urgent_is_served_first_beside_limited_and_unlimited_ones(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        link.set_limit(Some(20_000_000));
        let (slow, bulk, urgent) = (Flow::open(&pair).await, Flow::open(&pair).await, Flow::open(&pair).await);
        slow.tx.set_limit(Some(1_250_000));
        slow.queue(0, 400);
        bulk.queue(0, 400);
        bulk.reaches(8 << 20);
        urgent.tx.set_priority(Priority::Urgent);
        assert_eq!(urgent.tx.stats().priority, Priority::Urgent);
        let start = Instant::now();
        urgent.queue(0, 40);
        urgent.reaches(40 * CHUNK_BYTES as u64);
        let alone = 40.0 * CHUNK_BYTES as f64 * WIRE / 20e6;
        let took = start.elapsed().as_secs_f64();
        // Frames that were begun go on meanwhile.
        claim(took < alone * 1.25, format!("{took} s instead of {alone} s"));
    }
}
