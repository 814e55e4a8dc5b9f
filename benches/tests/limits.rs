//! The transport's limits, as the link sees them: every byte that crosses counts, whoever sent it.
//!
//! Needs root: threads of this process enter the hosts.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hikyaku_lab::link::{Link, Network, Profile, Rate, WINDOW};
use hikyaku_lab::steady::{mostly, within};
use hikyaku_transport::*;

const PORT: u16 = 4707;
const CHUNK_BYTES: usize = 256 << 10;
const ATTEMPTS: usize = 5;
/// So long lanes look for the shortest round trip.
const LOOKS_FOR: Duration = Duration::from_millis(200);

/// The machine's network belongs to one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Applies whatever comes, at once.
struct Sink(OnceLock<RxSession>);

impl RxEvents for Sink {
    fn chunk(&self, seq: u64, _: u64, payload: Vec<u8>) {
        self.0.wait().applied(seq, payload.len() as u64);
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, _: Lost) {}
    fn closed(&self, _: u16, _: String) {}
}

struct Door;

impl Acceptor for Door {
    fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
        let sink = Arc::new(Sink(OnceLock::new()));
        let session = incoming.accept(Vec::new(), 128 << 20, sink.clone()).unwrap();
        drop(sink.0.set(session));
    }
}

/// A session that always has something to send.
#[derive(Default)]
struct Source {
    tx: OnceLock<TxSession>,
    seq: AtomicU64,
    payload: OnceLock<Payload>,
}

impl Source {
    fn fill(&self) {
        // Two fill at once: the later number may have been first.
        while self.tx.get().is_some_and(|tx| tx.unsent_bytes() < 4 << 20) && self.send().is_some() {}
    }

    /// One chunk. `None`: it was not taken, or it is too early.
    fn send(&self) -> Option<()> {
        let (tx, payload) = (self.tx.get()?, self.payload.get()?);
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        tx.send(Chunk { seq, after: 0, payload: payload.clone() }).ok()
    }
}

impl TxEvents for Source {
    fn acked(&self, _: u64, _: &[(u64, u64)]) {}
    fn room(&self) {}
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, _: Lost) {}
    fn closed(&self, _: u16, _: String) {}
}

/// Two nodes on either side of a link, and sessions that fill it.
struct Pour {
    network: Network,
    link: hikyaku_transport::Link,
    sources: Vec<Arc<Source>>,
    source: Node,
    _destination: Node,
}

impl Pour {
    fn over(profile: &str, io: Io, sessions: usize, limit: Option<u64>) -> Pour {
        Pour::with(profile, io, sessions, limit, Congestion::Auto)
    }

    fn with(profile: &str, io: Io, sessions: usize, limit: Option<u64>, congestion: Congestion) -> Pour {
        let network = Link::builder().profile(Profile::named(profile).unwrap()).build().unwrap();
        Pour::to(network, &["b"], io, sessions, limit, congestion)
    }

    /// To `b`, by the addresses of these hosts.
    fn to(
        network: Network,
        by: &[&str],
        io: Io,
        sessions: usize,
        limit: Option<u64>,
        congestion: Congestion,
    ) -> Pour {
        let keys = [(); 2].map(|()| StaticKey::generate().unwrap());
        let peer = |key: &StaticKey, addresses: Vec<String>| Peer {
            name: "other".into(),
            may_send: addresses.is_empty(),
            may_receive: !addresses.is_empty(),
            addresses,
            public_key: key.public(),
        };
        let address = |host: &str| format!("{}:{PORT}", network.host(host).ip4());
        let mut config = NodeConfig::new(keys[1].clone());
        config.io = io;
        config.listen = vec![address("b").parse().unwrap()];
        config.peers = vec![peer(&keys[0], vec![])];
        let start = |host: &str, config: NodeConfig| {
            network.host(host).within(|| Node::start(config, Arc::new(Door)).unwrap()).unwrap()
        };
        let destination = start("b", config);
        let mut config = NodeConfig::new(keys[0].clone());
        config.io = io;
        config.sockets.congestion = congestion;
        config.peers = vec![peer(&keys[1], by.iter().map(|host| address(host)).collect())];
        let source = start("a", config);
        let runtime = runtime();
        let link = runtime.block_on(source.link(&"other".into())).unwrap();
        let mut noise = vec![0; CHUNK_BYTES];
        noise.iter_mut().enumerate().for_each(|(i, byte)| *byte = ((i * i) >> 7) as u8);
        let payload = Payload::from(noise);
        let mut sources = Vec::new();
        for n in 0..sessions {
            let events = Arc::new(Source::default());
            let id = SessionId([n as u8 + 1; 16]);
            let (tx, _) = runtime.block_on(link.open(id, Vec::new(), events.clone())).unwrap();
            tx.set_limit(limit);
            drop((events.tx.set(tx), events.payload.set(payload.clone())));
            sources.push(events);
        }
        Pour { network, link, sources, source, _destination: destination }
    }

    fn tx(&self, n: usize) -> &TxSession {
        self.sources[n].tx.get().unwrap()
    }

    /// Keeps all sessions filled for so long. Bytes per second that crossed the link, and the peak as a rate.
    fn run(&self, lasts: Duration) -> (f64, f64) {
        self.network.take_peak("a", "b");
        let before = self.network.counters_of("a", "b").bytes;
        let start = Instant::now();
        while start.elapsed() < lasts {
            self.sources.iter().for_each(|source| source.fill());
            thread::sleep(Duration::from_millis(5));
        }
        let rate = (self.network.counters_of("a", "b").bytes - before) as f64 / start.elapsed().as_secs_f64();
        (rate, self.network.take_peak("a", "b") as f64 / WINDOW.as_secs_f64())
    }
}

/// A pipe that is full has a queue, which runs empty before a guest is stopped, and the link is as fast as before afterwards.
#[test]
fn a_full_path_runs_empty_when_it_is_to_and_fills_again() {
    let _alone = alone();
    for profile in ["jgn", "us"] {
        let pour = Pour::with(profile, Io::Auto, 1, None, Congestion::Named("cubic".into()));
        pour.run(seconds(4.0));
        within(ATTEMPTS, profile, || {
            let (before, _) = pour.run(seconds(2.0));
            let over = AtomicBool::new(false);
            let ebb = thread::scope(|scope| {
                let pouring = scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        pour.run(seconds(0.1));
                    }
                });
                let runtime = runtime();
                let ebb = runtime.block_on(pour.tx(0).ebb());
                // Until it is dropped no queue comes back, and nobody sees a limit.
                thread::sleep(seconds(0.5));
                let stats = pour.tx(0).stats();
                assert_eq!(stats.limit_bytes_per_s, None);
                over.store(true, Ordering::Relaxed);
                pouring.join().unwrap();
                println!(
                    "{profile}: {ebb:?}; half a second later {:?}, least {:?}",
                    stats.rtt, stats.min_rtt
                );
                assert!(ebb.took < 3 * stats.min_rtt.unwrap() + 2 * ebb.queue + seconds(0.1));
                ebb
            });
            // What several lanes lost at once may have emptied it just then: that shows nothing.
            let well = ebb.queue > seconds(0.02) && ebb.left < ebb.queue / 3;
            let ebbed = format!("{ebb:?}");
            drop(ebb);
            pour.run(seconds(1.0));
            let (after, _) = pour.run(seconds(2.0));
            println!("{:.0} Mbit/s before, {:.0} after", before * 8e-6, after * 8e-6);
            if well && after > 0.8 * before {
                Ok(())
            } else {
                Err(format!("{ebbed}, {before:.0} and {after:.0} B/s"))
            }
        });
    }
}

/// Where the kernel has a congestion control that goes by what arrives, a full pipe has hardly a queue, and loses nothing to it.
#[test]
fn a_full_path_has_a_short_queue_where_lanes_go_by_rate() {
    let _alone = alone();
    if !has_bbr() {
        return;
    }
    for profile in ["jgn", "us", "lossy"] {
        let pour = Pour::over(profile, Io::Auto, 1, None);
        pour.run(seconds(4.0));
        within(ATTEMPTS, profile, || {
            let before = pour.network.counters_of("a", "b").dropped_queue;
            let (rate, _) = pour.run(seconds(2.0));
            let (stats, lanes) = (pour.tx(0).stats(), pour.link.lanes());
            assert!(lanes.iter().all(|lane| lane.congestion == "bbr"), "{lanes:?}");
            let queue = stats.rtt.unwrap().saturating_sub(stats.min_rtt.unwrap());
            let dropped = pour.network.counters_of("a", "b").dropped_queue - before;
            println!("{profile}: {:.0} Mbit/s, {queue:?} queued, {dropped} dropped", rate * 8e-6);
            // On the wire 1 Gbit/s of payload are 1054 Mbit/s.
            let well = rate > 0.9 * 131.7e6 && queue < seconds(0.03) && dropped == 0;
            if well { Ok(()) } else { Err(format!("{rate:.0} B/s, {queue:?} queued, {dropped} dropped")) }
        });
    }
}

/// Lanes that go by rate have next to nothing under way for a moment every ten seconds, to see the shortest round trip. Not while a
/// guest stands still.
#[test]
fn a_stop_does_not_fall_into_a_look_for_the_shortest_round_trip() {
    let _alone = alone();
    if !has_bbr() {
        return;
    }
    let pour = Pour::over("jgn", Io::Auto, 2, None);
    let urgent = pour.tx(1);
    urgent.set_priority(Priority::Urgent);
    let looks = || pour.link.lanes().iter().any(|lane| lane.window_bytes <= 4 * lane.segment_bytes);
    let stop = |pause: Duration| {
        thread::sleep(pause);
        let (begun, before) = (Instant::now(), urgent.stats().delivered_bytes);
        (0..8).for_each(|_| pour.sources[1].send().unwrap());
        while urgent.stats().delivered_bytes < before + 8 * CHUNK_BYTES as u64 {
            thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    };
    let over = AtomicBool::new(false);
    let fill = || {
        while !over.load(Ordering::Relaxed) {
            pour.sources[0].fill();
            thread::sleep(Duration::from_millis(5));
        }
    };
    thread::scope(|scope| {
        scope.spawn(fill);
        let runtime = runtime();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            within(2, "a stop in the midst of it", || {
                let begun = Instant::now();
                while !looks() {
                    assert!(begun.elapsed() < seconds(30.0), "they never look");
                    thread::sleep(Duration::from_millis(2));
                }
                let ebb = runtime.block_on(urgent.ebb());
                let took = stop(Duration::ZERO);
                println!("{ebb:?}, then {took:?}");
                if took < LOOKS_FOR { Ok(()) } else { Err(format!("{ebb:?}, then {took:?}")) }
            });
            within(2, "a stop just before it", || {
                thread::sleep(seconds(9.5));
                let ebb = runtime.block_on(urgent.ebb());
                let longest = (0..15).map(|_| stop(seconds(0.05))).max().unwrap();
                println!("{ebb:?}, then at most {longest:?}");
                if longest < LOOKS_FOR { Ok(()) } else { Err(format!("{ebb:?}, then {longest:?}")) }
            });
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A session that goes at once leaves nothing to be warm for; a question never did.
#[test]
fn a_link_is_not_filled_with_padding_for_nobody() {
    let _alone = alone();
    let pour = Pour::over("us", Io::Auto, 0, None);
    let crossed = || pour.network.counters_of("a", "b").bytes;
    let before = crossed();
    drop(
        runtime().block_on(pour.link.open(SessionId([1; 16]), Vec::new(), Arc::<Source>::default())).unwrap(),
    );
    thread::sleep(seconds(2.0));
    let opened = crossed() - before;
    let before = crossed();
    runtime().block_on(pour.link.ask(SessionId([2; 16]), Vec::new())).unwrap();
    thread::sleep(seconds(1.0));
    let asked = crossed() - before;
    println!("{asked} bytes for a question, {opened} for a session");
    assert!(asked < 50_000 && (50_000..2_000_000).contains(&opened));
}

/// Each path carries what it can: lanes take chunks as fast as theirs lets them.
#[test]
fn two_paths_share_by_what_each_carries() {
    let _alone = alone();
    let wide = Profile { rate: Some(Rate::payload(900_000_000)), ..Profile::named("jgn").unwrap() };
    let narrow = Profile { rate: Some(Rate::payload(100_000_000)), ..wide };
    let network = Link::builder().hosts(["a", "b", "c"]).direction("a", "b", wide.direction());
    let network = network.direction("b", "a", wide.direction()).direction("a", "c", narrow.direction());
    let network = network.direction("c", "a", narrow.direction()).build().unwrap();
    relay(&network, "c", "b");
    let pour = Pour::to(network, &["b", "c"], Io::Auto, 1, None, Congestion::Auto);
    pour.run(seconds(4.0));
    mostly(ATTEMPTS / 2 + 1, "shares", || {
        let crossed = || ["b", "c"].map(|to| pour.network.counters_of("a", to).bytes);
        let (begun, before) = (Instant::now(), crossed());
        pour.run(seconds(3.0));
        let (after, took) = (crossed(), begun.elapsed().as_secs_f64());
        let mbit = [0, 1].map(|path| (after[path] - before[path]) as f64 * 8e-6 / took);
        println!("{mbit:.0?} Mbit/s");
        let well = (810.0..960.0).contains(&mbit[0]) && (85.0..107.0).contains(&mbit[1]);
        if well { Ok(()) } else { Err(format!("{mbit:.0?} Mbit/s")) }
    });
}

/// Whoever connects to host `at` is connected to `to`.
fn relay(network: &Network, at: &str, to: &str) {
    let [at_address, to] = [at, to].map(|host| (network.host(host).ip4(), PORT));
    let serve = move || {
        let listener = TcpListener::bind(at_address).unwrap();
        // It stays in the host.
        thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(on) = TcpStream::connect(to) else { return };
                let back = [&on, &from].map(|end| end.try_clone().unwrap());
                for [mut from, mut on] in [[from, on], back] {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut on);
                        let _ = on.shutdown(Shutdown::Write);
                    });
                }
            }
        });
    };
    network.host(at).within(serve).unwrap();
}

/// Lanes that go by rate remember a shorter round trip for longer than a guest should be kept waiting.
#[test]
fn a_path_that_becomes_much_longer_is_soon_filled_again() {
    let _alone = alone();
    within(ATTEMPTS, "jgn", || {
        let pour = Pour::over("jgn", Io::Auto, 1, None);
        pour.run(seconds(4.0));
        pour.network.set_rtt(seconds(0.25));
        let each = [(); 10].map(|()| pour.run(seconds(0.5)).0 * 8e-6);
        println!("{each:.0?} Mbit/s");
        // New connections need about three seconds to fill it; what the others remember took ten, and what they sent went on falling.
        let well = each[..6].iter().all(|rate| *rate > 250.0) && each[7..].iter().all(|rate| *rate > 650.0);
        if well { Ok(()) } else { Err(format!("{each:.0?} Mbit/s")) }
    });
}

/// What is found of a path by a link that has found it before, and rests.
#[test]
fn a_path_is_found_again_as_it_was_found_first() {
    let _alone = alone();
    within(ATTEMPTS, "us", || {
        let pour = Pour::over("us", Io::Auto, 0, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime.block_on(pour.link.warm_up()).unwrap();
        // TCP forgets a window that is not used for as long.
        thread::sleep(seconds(5.0));
        let again = runtime.block_on(pour.link.warm_up()).unwrap();
        println!("{first:?}\n{again:?}");
        let near =
            |probe: &Probe| probe.path().is_some_and(|rate| (100_000_000..140_000_000).contains(&rate));
        if near(&first) && near(&again) { Ok(()) } else { Err(format!("{first:?}, {again:?}")) }
    });
}

/// A limit that is raised or goes is used at once.
#[test]
fn a_limit_that_goes_leaves_no_ceiling_behind() {
    let _alone = alone();
    let pour = Pour::over("us", Io::Auto, 1, Some(2_500_000));
    pour.run(seconds(4.0));
    pour.tx(0).set_limit(None);
    pour.run(seconds(1.5));
    within(ATTEMPTS, "us", || {
        let (rate, _) = pour.run(seconds(1.0));
        println!("{:.0} Mbit/s", rate * 8e-6);
        if rate > 0.8 * 131.7e6 { Ok(()) } else { Err(format!("{rate:.0} B/s")) }
    });
}

/// Says so where the kernel has none; where everything is to be tested that is a failure.
fn has_bbr() -> bool {
    let has = || {
        let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        known.split_whitespace().any(|name| name == "bbr")
    };
    // It lists what is loaded.
    if has() || Command::new("modprobe").arg("tcp_bbr").status().is_ok_and(|done| done.success()) && has() {
        return true;
    }
    assert_ne!(std::env::var("HIKYAKU_TESTS").as_deref(), Ok("all"), "the kernel has no bbr");
    if let Some(log) = std::env::var_os("HIKYAKU_SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(log, "{}: needs a kernel with bbr", thread::current().name().unwrap()).unwrap();
    }
    false
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn kept(pour: &Pour, lasts: f64, limit: u64) -> Result<(), String> {
    let (rate, peak) = pour.run(seconds(lasts));
    let (rate, peak) = (rate / limit as f64, peak / limit as f64);
    println!("{:>6.0} Mbit/s: {rate:.3} of it, peak {peak:.2}", limit as f64 * 8e-6);
    if (0.95..=1.05).contains(&rate) && peak <= 2.0 {
        return Ok(());
    }
    Err(format!("{rate:.3} of {limit} B/s, at its peak {peak:.2} of it"))
}

#[test]
fn a_sessions_limit_is_kept_smoothly_and_changes_while_running() {
    let _alone = alone();
    for (profile, io, limits) in [("jgn", Io::Uring, [400, 10]), ("us", Io::Plain, [50, 100])] {
        println!("{profile} {io:?}");
        let pour = Pour::over(profile, io, 1, Some(12_500_000));
        pour.run(seconds(1.0));
        for mbit in limits {
            let limit = mbit * 125_000;
            pour.tx(0).set_limit(Some(limit));
            // What crosses already is of the limit before; lanes that had little to do find their window again.
            pour.run(seconds(2.0));
            mostly(ATTEMPTS / 2 + 1, &format!("{profile}, {mbit} Mbit/s"), || kept(&pour, 2.0, limit));
        }
    }
}

#[test]
fn ten_sessions_share_a_link_and_keep_its_limit() {
    let _alone = alone();
    for limit in [None, Some(50_000_000)] {
        let pour = Pour::over("jgn", Io::Auto, 10, None);
        pour.link.set_limit(limit);
        pour.run(seconds(3.0));
        mostly(ATTEMPTS / 2 + 1, "a tenth each", || {
            let before: Vec<_> = (0..10).map(|n| pour.tx(n).stats().delivered_bytes).collect();
            match limit {
                Some(limit) => kept(&pour, 3.0, limit)?,
                None => drop(pour.run(seconds(3.0))),
            }
            let got: Vec<_> =
                (0..10).map(|n| (pour.tx(n).stats().delivered_bytes - before[n]) as f64).collect();
            let mean = got.iter().sum::<f64>() / 10.0;
            let shares: Vec<_> = got.iter().map(|bytes| bytes / mean).collect();
            println!("{shares:.2?}");
            let fair = shares.iter().all(|share| (0.8..=1.2).contains(share));
            if fair { Ok(()) } else { Err(format!("{shares:.2?}")) }
        });
    }
}

#[test]
fn the_hosts_limit_holds_for_limited_and_unlimited_sessions_together() {
    let _alone = alone();
    let pour = Pour::over("jgn", Io::Auto, 3, None);
    pour.tx(0).set_limit(Some(1_250_000));
    pour.tx(1).set_priority(Priority::High);
    pour.source.set_limit(Some(25_000_000));
    pour.run(seconds(2.0));
    mostly(ATTEMPTS / 2 + 1, "the host's", || {
        let before: Vec<_> = (0..3).map(|n| pour.tx(n).stats().delivered_bytes).collect();
        kept(&pour, 3.0, 25_000_000)?;
        let rate = |n: usize| (pour.tx(n).stats().delivered_bytes - before[n]) as f64 / 3.0;
        let rates = [rate(0) / 1.18e6, rate(1) / rate(2)];
        println!("{rates:.2?}");
        let right = (0.85..1.1).contains(&rates[0]) && (3.2..4.8).contains(&rates[1]);
        if right { Ok(()) } else { Err(format!("limited {:.2}, high to normal {:.2}", rates[0], rates[1])) }
    });
}
