//! 10,000 connections that never authenticate, while a session moves data: what they cost the node, the session, and the
//! peers that come meanwhile. The node is a process of its own, so that its memory and descriptors can be counted.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use hikyaku_transport::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const ATTEMPTS: usize = 10_000;
/// 10,000 in 10 s.
const PAUSE: Duration = Duration::from_millis(1);
/// Links that are opened in the midst of it, one after the other, half of them while the flood comes from their own address.
const LINKS: usize = 8;
/// Each of them with its session and a chunk. A busy machine's scheduling is most of it.
const LINK_BOUND: Duration = Duration::from_secs(3);
const RSS_GROWTH_KIB: u64 = 4 * 1024;
/// The session's rate, as of a link of 320 Mbit/s: less than the machine could do, so what is missing is the flood's fault.
const RATE_BYTES_PER_S: f64 = 40e6;
const CHUNK_BYTES: usize = 100_000;
const CREDIT_BYTES: u64 = 16 << 20;

const ROLE: &str = "HIKYAKU_FLOOD_PEERS";

/// The node under attack: this test, run by the other as a process of its own, with the peers' public keys.
#[test]
fn the_node_under_attack() {
    let Ok(keys) = std::env::var(ROLE) else { return };
    let key = StaticKey::generate().unwrap();
    let mut config = NodeConfig::new(key.clone());
    config.listen = vec!["0.0.0.0:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    config.lane_threads = 1;
    config.peers = (keys.split(','))
        .enumerate()
        .map(|(n, key)| Peer {
            name: format!("peer-{n}").as_str().into(),
            addresses: vec![],
            public_key: key.parse().unwrap(),
            may_send: true,
            may_receive: false,
        })
        .collect();
    let host = Host::new(Answer::Accept { credit_bytes: CREDIT_BYTES, applies: true });
    let node = Node::start(config, host).unwrap();
    let ports: Vec<_> = node.addresses().iter().map(|address| address.port().to_string()).collect();
    println!("\nready {} {}", key.public(), ports.join(" "));
    // Until the other process closes the pipe, or ends.
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Attacked {
    child: Child,
    /// Kept open: what the child prints at its end goes there.
    _stdout: std::io::Lines<BufReader<ChildStdout>>,
    key: PublicKey,
    v4: SocketAddr,
    v6: SocketAddr,
}

impl Attacked {
    fn start(peers: &[&StaticKey]) -> Self {
        let peers: Vec<_> = peers.iter().map(|key| key.public().to_string()).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_node_under_attack", "--nocapture"])
            .env(ROLE, peers.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready =
            lines.by_ref().find_map(|line| line.unwrap().strip_prefix("ready ").map(str::to_owned)).unwrap();
        let words: Vec<_> = ready.split(' ').collect();
        let port = |n: usize| words[n].parse::<u16>().unwrap();
        Self {
            child,
            _stdout: lines,
            key: words[0].parse().unwrap(),
            v4: (Ipv4Addr::LOCALHOST, port(1)).into(),
            v6: SocketAddr::new("::1".parse().unwrap(), port(2)),
        }
    }

    fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.child.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.child.wait();
    }
}

fn source(attacked: &Attacked, key: &StaticKey, via: Option<SocketAddr>) -> Node {
    let mut config = NodeConfig::new(key.clone());
    config.lane_threads = 1;
    config.peers = vec![Peer {
        name: "osaka".into(),
        addresses: vec![via.unwrap_or(attacked.v4).to_string()],
        public_key: attacked.key,
        may_send: false,
        may_receive: true,
    }];
    Node::start(config, Host::new(Answer::Nothing)).unwrap()
}

async fn session(node: &Node) -> (TxSession, Arc<Sender>) {
    let link = node.link(&"osaka".into()).await.unwrap();
    let sender = Arc::new(Sender::default());
    let (tx, _) = link.open(SessionId([1; 16]), b"hello".to_vec(), sender.clone()).await.unwrap();
    (tx, sender)
}

/// Sends at [`RATE_BYTES_PER_S`], but never more than the credit ahead of what was acknowledged, until `over`. Bytes
/// acknowledged per second.
fn transfer(tx: &TxSession, sender: &Sender, first_seq: &mut u64, over: &AtomicBool) -> f64 {
    let payload = noise(1, CHUNK_BYTES);
    let began = Instant::now();
    let acked_before = sender.0.read(|sent| sent.cumulative);
    let mut chunks = 0;
    while !over.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * RATE_BYTES_PER_S / CHUNK_BYTES as f64) as u64;
        let acked = sender.0.read(|sent| {
            assert!(sent.lost.is_empty(), "{:?}", sent.lost);
            sent.cumulative
        });
        while chunks < due && *first_seq - acked < CREDIT_BYTES / CHUNK_BYTES as u64 {
            tx.send(Chunk { seq: *first_seq, after: 0, payload: payload.clone().into() }).unwrap();
            *first_seq += 1;
            chunks += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let acked = sender.0.read(|sent| sent.cumulative) - acked_before;
    (acked * CHUNK_BYTES as u64) as f64 / began.elapsed().as_secs_f64()
}

/// What one node says on its control connection and on a lane, up to where its peer would answer.
async fn recorded(attacked: &Attacked, key: &StaticKey) -> [Vec<u8>; 2] {
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = source(attacked, key, Some(between.local_addr().unwrap()));
    let heard: Arc<Watched<Vec<Vec<u8>>>> = Arc::default();
    let (to, record) = (attacked.v4, heard.clone());
    let proxy = tokio::spawn(async move {
        while let Ok((near, _)) = between.accept().await {
            let index = record.update(|heard| {
                heard.push(Vec::new());
                heard.len() - 1
            });
            let (far_read, mut far_write) = TcpStream::connect(to).await.unwrap().into_split();
            let (mut near_read, mut near_write) = near.into_split();
            let record = record.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(bytes @ 1..) = near_read.read(&mut buffer).await {
                    record.update(|heard| heard[index].extend_from_slice(&buffer[..bytes]));
                    if far_write.write_all(&buffer[..bytes]).await.is_err() {
                        return;
                    }
                }
            });
            let mut far_read = far_read;
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        }
    });
    session(&node).await;
    proxy.abort();
    heard.read(|heard| [heard[0][..110].to_vec(), heard[1][..104].to_vec()])
}

/// What an attacker does with a connection before it waits for its end.
#[derive(Clone)]
enum Attack {
    Says(Vec<u8>),
    /// A byte per second.
    Dribbles(Vec<u8>),
}

fn attacks([control, lane]: [Vec<u8>; 2]) -> Vec<Attack> {
    let greeting = control[..12].to_vec();
    let garbage_after_greeting = [&greeting[..], &[96, 0], &noise(5, 96)].concat();
    let half_a_message = control[..60].to_vec();
    let mut client_hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    client_hello.extend(noise(6, 506));
    let mut other_lane = lane.clone();
    other_lane[20] ^= 1;
    vec![
        Attack::Says(Vec::new()),
        Attack::Dribbles(control.clone()),
        Attack::Says(noise(7, 300)),
        Attack::Says(greeting),
        Attack::Says(garbage_after_greeting),
        Attack::Says(half_a_message),
        Attack::Says(client_hello),
        Attack::Says(b"GET / HTTP/1.1\r\nHost: osaka\r\n\r\n".to_vec()),
        Attack::Says(lane),
        Attack::Says(other_lane),
        Attack::Says(control),
    ]
}

async fn attack(from: IpAddr, to: SocketAddr, how: Attack) -> std::io::Result<()> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(from, 0))?;
    let mut stream = socket.connect(to).await?;
    let mut answer = [0; 512];
    match how {
        Attack::Says(bytes) => stream.write_all(&bytes).await?,
        Attack::Dribbles(bytes) => {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                let ended = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
                if let Ok(Ok(0) | Err(_)) = ended {
                    return Ok(());
                }
            }
        }
    }
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}

/// Where the attackers come from.
#[derive(Clone, Copy, Debug)]
enum From {
    /// Everywhere but where the peers are.
    Elsewhere,
    /// Where the peers are.
    Beside,
}

fn addresses(from: From, n: usize, attacked: &Attacked) -> (IpAddr, SocketAddr) {
    match from {
        From::Beside => (Ipv4Addr::LOCALHOST.into(), attacked.v4),
        From::Elsewhere if n.is_multiple_of(8) => ("::1".parse().unwrap(), attacked.v6),
        From::Elsewhere => {
            // No two of 10,000 alike.
            let [_, _, high, low] = (n as u32).to_be_bytes();
            (Ipv4Addr::new(127, 9, high, low).into(), attacked.v4)
        }
    }
}

#[test]
fn ten_thousand_strangers_cost_little_and_keep_nobody_out() {
    if std::env::var(ROLE).is_ok() {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let keys: Vec<_> = (0..3).map(|_| StaticKey::generate().unwrap()).collect();
    let attacked = Attacked::start(&keys.iter().collect::<Vec<_>>());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let attacks = attacks(runtime.block_on(recorded(&attacked, &keys[2])));
    let busy = source(&attacked, &keys[0], None);
    let (tx, sender) = runtime.block_on(session(&busy));

    let mut seq = 1;
    let over = AtomicBool::new(false);
    let undisturbed = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(3));
            over.store(true, Ordering::Relaxed);
        });
        transfer(&tx, &sender, &mut seq, &over)
    });
    let (rss_kib, descriptors) = (attacked.rss_kib(), attacked.descriptors());

    over.store(false, Ordering::Relaxed);
    let (ended, made) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (disturbed, times, rss_most_kib, descriptors_most) = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| transfer(&tx, &sender, &mut seq, &over));
        let watch = scope.spawn(|| {
            let (mut rss, mut descriptors) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                rss = rss.max(attacked.rss_kib());
                descriptors = descriptors.max(attacked.descriptors());
                std::thread::sleep(Duration::from_millis(20));
            }
            (rss, descriptors)
        });
        let links = scope.spawn(|| {
            let mut times = Vec::new();
            for n in 0..LINKS {
                while made.load(Ordering::Relaxed) < (2 * n + 1) * ATTEMPTS / (2 * LINKS) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let began = Instant::now();
                let node = source(&attacked, &keys[1], None);
                let (tx, sender) = runtime.block_on(session(&node));
                tx.send(Chunk { seq: 1, after: 0, payload: vec![1; 1000].into() }).unwrap();
                sender.0.wait("an acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
                times.push(began.elapsed());
            }
            times
        });
        let began = Instant::now();
        runtime.block_on(async {
            for n in 0..ATTEMPTS {
                tokio::time::sleep_until((began + PAUSE * n as u32).into()).await;
                let from = if n < ATTEMPTS / 2 { From::Elsewhere } else { From::Beside };
                let (from, to) = addresses(from, n, &attacked);
                let (how, ended) = (attacks[n % attacks.len()].clone(), ended.clone());
                made.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = attack(from, to, how).await;
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        let times = links.join();
        over.store(true, Ordering::Relaxed);
        let (rss, descriptors) = watch.join().unwrap();
        (transfer.join().unwrap(), times.unwrap(), rss, descriptors)
    });
    // Those that were driven out last have yet to hear of it.
    let heard = || ended.load(Ordering::Relaxed) >= ATTEMPTS - Limits::default().pending;
    let until = Instant::now() + Duration::from_secs(3);
    while !heard() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "{:.1} MB/s undisturbed, {:.1} disturbed; links after {times:?}; RSS {rss_kib} KiB, at most {rss_most_kib}; \
         descriptors {descriptors}, at most {descriptors_most}; {} of {ATTEMPTS} attempts were ended",
        undisturbed / 1e6,
        disturbed / 1e6,
        ended.load(Ordering::Relaxed)
    );
    assert!(disturbed >= 0.9 * undisturbed);
    assert!(times.iter().all(|time| *time < LINK_BOUND));
    assert!(rss_most_kib < rss_kib + RSS_GROWTH_KIB);
    // The waiting ones, those that were just driven out, and a second link.
    let bound = descriptors + Limits::default().pending + 64;
    assert!(descriptors_most < bound, "{descriptors_most} of {bound}");
    // All but those that still have a place.
    assert!(heard());
}
