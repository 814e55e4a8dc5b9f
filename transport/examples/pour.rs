//! Pours random bytes from one node to another and prints what arrives, second by second.
//!
//! ```text
//! pour                                    both ends in this process, over loopback
//! pour --listen ADDRESS                   the receiving end, until its first session is over
//! pour --to ADDRESS [--seconds N]         the sending end
//!      [--io auto|uring|plain] [--lanes N] [--threads N] [--chunk BYTES] [--credit BYTES]
//!      [--buffers auto|BYTES] [--congestion host|NAME] [--lanes-most N]
//!      [--warm-up 0|1]
//!      [--warm 1]                         warms the link first, and says what it found
//!      [--every MS]                       a line every so often instead of every second
//! ```
//! The two ends use fixed keys: this is for measuring, not for use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hikyaku_transport::*;

struct Options {
    listen: Option<String>,
    to: Option<String>,
    seconds: u64,
    chunk_bytes: usize,
    credit_bytes: u64,
    warm: bool,
    every: Duration,
    config: NodeConfig,
}

fn main() -> anyhow::Result<()> {
    keep_freed_buffers();
    let options = options()?;
    match (&options.listen, &options.to) {
        (Some(listen), None) => {
            let (_node, host) = receiver(&options, listen)?;
            let over = host.over.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            drop(host.ended.wait_while(over, |over| !*over));
            Ok(())
        }
        (None, Some(to)) => pour(&options, to),
        (None, None) => {
            let (node, _) = receiver(&options, "127.0.0.1:0")?;
            pour(&options, &node.addresses()[0].to_string())
        }
        _ => bail!("--listen or --to, not both"),
    }
}

fn key(digit: &str) -> anyhow::Result<StaticKey> {
    Ok(StaticKey::from_text(&format!("HIKYAKU-SECRET-KEY-{}", digit.repeat(64)))?)
}

fn receiver(options: &Options, listen: &str) -> anyhow::Result<(Node, Arc<Host>)> {
    let mut config = options.config.clone();
    config.key = key("2")?;
    config.listen = vec![listen.parse().context("--listen")?];
    config.peers = vec![Peer {
        name: "source".into(),
        addresses: vec![],
        public_key: key("1")?.public(),
        may_send: true,
        may_receive: false,
    }];
    let host = Arc::new(Host { credit_bytes: options.credit_bytes, ..Host::default() });
    Ok((Node::start(config, Arc::new(Answering(host.clone())))?, host))
}

#[derive(Default)]
struct Host {
    credit_bytes: u64,
    over: Mutex<bool>,
    ended: Condvar,
}

struct Answering(Arc<Host>);

impl Acceptor for Answering {
    fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
        let sink = Arc::new(Sink { session: OnceLock::new(), host: self.0.clone() });
        if let Ok(session) = incoming.accept(Vec::new(), self.0.credit_bytes, sink.clone()) {
            let _ = sink.session.set(session);
        }
    }
}

/// Applies whatever comes, at once.
struct Sink {
    session: OnceLock<RxSession>,
    host: Arc<Host>,
}

impl Sink {
    fn over(&self) {
        if let Ok(mut over) = self.host.over.lock() {
            *over = true;
        }
        self.host.ended.notify_all();
    }
}

impl RxEvents for Sink {
    fn chunk(&self, seq: u64, _: u64, payload: Vec<u8>) {
        // The first chunks may come before `accept` has returned in `open`.
        while self.session.get().is_none() {
            std::thread::yield_now();
        }
        if let Some(session) = self.session.get() {
            session.applied(seq, payload.len() as u64);
        }
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, lost: Lost) {
        eprintln!("receiver: {lost}");
        self.over();
    }
    fn closed(&self, _: u16, _: String) {
        self.over();
    }
}

#[derive(Default)]
struct Source {
    cumulative: AtomicU64,
    lost: Mutex<Option<Lost>>,
    room: Condvar,
}

impl TxEvents for Source {
    fn acked(&self, cumulative: u64, _: &[(u64, u64)]) {
        self.cumulative.fetch_max(cumulative, Ordering::Relaxed);
        self.room.notify_all();
    }
    fn room(&self) {
        self.room.notify_all();
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, lost: Lost) {
        if let Ok(mut slot) = self.lost.lock() {
            *slot = Some(lost);
        }
        self.room.notify_all();
    }
    fn closed(&self, _: u16, _: String) {}
}

fn pour(options: &Options, to: &str) -> anyhow::Result<()> {
    let mut config = options.config.clone();
    config.key = key("1")?;
    config.peers = vec![Peer {
        name: "destination".into(),
        addresses: vec![to.to_owned()],
        public_key: key("2")?.public(),
        may_send: false,
        may_receive: true,
    }];
    let node = Node::start(config, Arc::new(Answering(Arc::default())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let events = Arc::new(Source::default());
    let started = Instant::now();
    let (link, tx) = runtime.block_on(async {
        let link = node.link(&"destination".into()).await?;
        if options.warm {
            println!("{:?}", link.warm_up().await?);
        }
        let (tx, _) = link.open(SessionId([1; 16]), Vec::new(), events.clone()).await?;
        anyhow::Ok((link, tx))
    })?;
    println!("open after {:?}, {:?}", started.elapsed(), node.io());

    let mut noise = vec![0; options.chunk_bytes];
    getrandom::fill(&mut noise)?;
    let payload = Payload::from(noise);
    let started = Instant::now();
    let mut next_line = options.every;
    let mut before = link.reading();
    let mut delivered_before = 0;
    let mut seq = 0;
    loop {
        let elapsed = started.elapsed();
        if elapsed >= next_line {
            let (stats, now) = (tx.stats(), link.reading());
            println!(
                "{:>5.1} s  {:>8.1} Mbit/s  estimate {:>8.1}  rtt {:?} min {:?}  unsent {} KiB  in flight {} KiB  credit {} KiB  padding {} KiB  {} lanes  limited by {}",
                next_line.as_secs_f64(),
                (stats.delivered_bytes - delivered_before) as f64 * 8e-6 / options.every.as_secs_f64(),
                stats.goodput_bytes_per_s.unwrap_or(0) as f64 * 8e-6,
                stats.rtt.unwrap_or_default(),
                stats.min_rtt.unwrap_or_default(),
                tx.unsent_bytes() >> 10,
                tx.in_flight_bytes() >> 10,
                tx.credit_left() >> 10,
                stats.padding_bytes >> 10,
                stats.lanes,
                what_limits(&before, &now),
            );
            before = now;
            delivered_before = stats.delivered_bytes;
            next_line += options.every;
            if elapsed.as_secs() >= options.seconds {
                break;
            }
        }
        if tx.unsent_bytes() < 2 << 20 {
            seq += 1;
            tx.send(Chunk { seq, after: 0, payload: payload.clone() })?;
            continue;
        }
        let lost = events.lost.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        if let Some(lost) = &*lost {
            bail!("{lost}");
        }
        let _ = events.room.wait_timeout(lost, Duration::from_millis(5));
    }
    let bytes = tx.stats().delivered_bytes;
    println!(
        "{:.3} GB/s of payload over {:?}",
        bytes as f64 / started.elapsed().as_secs_f64() * 1e-9,
        started.elapsed()
    );
    tx.close(0, "poured");
    // A node that goes takes with it what it has not written yet.
    std::thread::sleep(4 * tx.stats().rtt.unwrap_or_default() + Duration::from_millis(100));
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        listen: None,
        to: None,
        seconds: 5,
        chunk_bytes: 128 * 1024,
        credit_bytes: 128 << 20,
        warm: false,
        every: Duration::from_secs(1),
        config: NodeConfig::new(key("1")?),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} wants a value"))?;
        match word.as_str() {
            "--listen" => options.listen = Some(value),
            "--to" => options.to = Some(value),
            "--seconds" => options.seconds = value.parse()?,
            "--chunk" => options.chunk_bytes = value.parse()?,
            "--credit" => options.credit_bytes = value.parse()?,
            "--lanes" => options.config.lanes = value.parse()?,
            "--threads" => options.config.lane_threads = value.parse()?,
            "--buffers" => {
                let bytes: Option<u32> = if value == "auto" { None } else { Some(value.parse()?) };
                options.config.sockets.send_buffer_bytes = bytes.map(|bytes| bytes..=bytes);
                options.config.sockets.receive_buffer_bytes = bytes;
            }
            "--lanes-most" => options.config.lanes_most = value.parse()?,
            "--warm-up" => options.config.warm_up = value == "1",
            "--warm" => options.warm = value == "1",
            "--every" => options.every = Duration::from_millis(value.parse()?),
            "--congestion" => {
                options.config.sockets.congestion = match value.as_str() {
                    "auto" => Congestion::Auto,
                    _ => Congestion::Named(value),
                }
            }
            "--io" => {
                options.config.io = match value.as_str() {
                    "auto" => Io::Auto,
                    "uring" => Io::Uring,
                    "plain" => Io::Plain,
                    _ => bail!("--io auto, uring or plain"),
                }
            }
            _ => bail!("unknown option {word}"),
        }
    }
    Ok(options)
}
