//! Small senders and receivers, run as `lab link probe …` inside the hosts: nothing to install, and no tool of
//! somebody else's whose own limits would be measured.
//!
//! A receiver says `ready` on a line of its own once it can be sent to. Results are one line of JSON.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Subcommand;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::sys;

/// As much as a TCP super-packet holds.
const BLOCK_BYTES: usize = 64 << 10;
/// Datagrams are full packets of an MTU of 1500 over IPv6 (over IPv4, 20 bytes less than full).
pub(super) const DATAGRAM_BYTES: usize = 1452;
/// Datagrams in one send where the kernel segments them: below its 64 and below 64 KiB.
const DATAGRAMS_PER_SEND: usize = 40;
/// Asked of the kernel so that the measuring socket does not drop what the link delivered; drops are counted.
const UDP_BUFFER_BYTES: usize = 32 << 20;
/// A receiver of datagrams ends when nothing has come for so long, which is several of the longest round trips.
const QUIET: Duration = Duration::from_millis(1500);
/// A probe that cannot go on says so instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Probe {
    /// Receive TCP streams: their rate, or all of them checked
    TcpSink {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        streams: usize,
        /// Not measured, from the first byte on
        #[arg(long, default_value_t = 0)]
        skip_ms: u64,
        /// Measured; 0: check everything until the streams end
        #[arg(long, default_value_t = 0)]
        measure_ms: u64,
    },
    /// Send TCP streams until the receiver goes or so much is sent
    TcpSource {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        streams: usize,
        /// Per stream; 0: without end
        #[arg(long, default_value_t = 0)]
        bytes: u64,
    },
    /// Send every datagram back
    UdpEcho {
        #[arg(long)]
        port: u16,
    },
    /// Round trips of datagrams
    UdpPing {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        interval_ms: u64,
    },
    /// Count datagrams
    UdpSink {
        #[arg(long)]
        port: u16,
    },
    /// Send datagrams, many at once as a super-packet
    UdpSource {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: u64,
        #[arg(long)]
        per_second: u64,
    },
}

/// What a TCP receiver got.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct TcpReceived {
    pub bytes: u64,
    pub seconds: f64,
    /// Words that were not what was sent there.
    pub wrong_words: u64,
}

/// What a TCP sender's kernel says it sent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct TcpSent {
    pub bytes: u64,
    pub retransmitted_packets: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RoundTrips {
    pub ns: Vec<u64>,
}

/// What a UDP receiver got.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct UdpReceived {
    pub datagrams: u64,
    /// Came to the host, but found the socket's buffer full.
    pub overflowed: u64,
    pub wrong: u64,
}

pub(super) fn run(probe: &Probe) -> io::Result<()> {
    match *probe {
        Probe::TcpSink { port, streams, measure_ms: 0, .. } => report(&tcp_check(port, streams)?),
        Probe::TcpSink { port, streams, skip_ms, measure_ms } => {
            let skip = Duration::from_millis(skip_ms);
            report(&tcp_measure(port, streams, skip, Duration::from_millis(measure_ms))?)
        }
        Probe::TcpSource { to, streams, bytes } => report(&tcp_send(to, streams, bytes)?),
        Probe::UdpEcho { port } => udp_echo(port),
        Probe::UdpPing { to, count, interval_ms } => {
            report(&udp_ping(to, count, Duration::from_millis(interval_ms))?)
        }
        Probe::UdpSink { port } => report(&udp_receive(port)?),
        Probe::UdpSource { to, count, per_second } => udp_send(to, count, per_second),
    }
}

fn report(result: &impl Serialize) -> io::Result<()> {
    say(&serde_json::to_string(result).map_err(io::Error::other)?)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    say("ready")?;
    Ok(listener)
}

fn tcp_measure(port: u16, streams: usize, skip: Duration, measure: Duration) -> io::Result<TcpReceived> {
    let listener = listen(port)?;
    let received = Arc::new(AtomicU64::new(0));
    for _ in 0..streams {
        let (stream, _) = listener.accept()?;
        let received = Arc::clone(&received);
        thread::spawn(move || drain(stream, &received));
    }
    thread::sleep(skip);
    let (from, start) = (received.load(Ordering::Relaxed), Instant::now());
    thread::sleep(measure);
    let bytes = received.load(Ordering::Relaxed) - from;
    // The end of this process ends the streams, and with them the sender.
    Ok(TcpReceived { bytes, seconds: start.elapsed().as_secs_f64(), wrong_words: 0 })
}

fn drain(mut stream: TcpStream, received: &AtomicU64) {
    let mut block = vec![0; 4 * BLOCK_BYTES];
    while let Ok(len @ 1..) = stream.read(&mut block) {
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
}

fn tcp_check(port: u16, streams: usize) -> io::Result<TcpReceived> {
    let listener = listen(port)?;
    let start = Instant::now();
    let mut checks = Vec::new();
    for _ in 0..streams {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        checks.push(thread::spawn(move || check_words(stream)));
    }
    let mut all = TcpReceived { bytes: 0, seconds: 0.0, wrong_words: 0 };
    for check in checks {
        let (bytes, wrong) = check.join().map_err(|_| io::Error::other("a receiving thread panicked"))??;
        all.bytes += bytes;
        all.wrong_words += wrong;
    }
    all.seconds = start.elapsed().as_secs_f64();
    Ok(all)
}

/// Reads to the end; each word of eight bytes holds its own position.
fn check_words(mut stream: TcpStream) -> io::Result<(u64, u64)> {
    let (mut block, mut filled, mut at, mut wrong) = (vec![0; BLOCK_BYTES], 0, 0, 0);
    loop {
        let len = stream.read(&mut block[filled..])?;
        filled += len;
        let whole = filled / 8 * 8;
        for word in block[..whole].as_chunks().0 {
            wrong += u64::from(u64::from_le_bytes(*word) != at);
            at += 8;
        }
        if len == 0 {
            return Ok((at + (filled - whole) as u64, wrong));
        }
        block.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

fn tcp_send(to: SocketAddr, streams: usize, bytes: u64) -> io::Result<TcpSent> {
    let streams: Vec<_> = (0..streams).map(|_| TcpStream::connect(to)).collect::<Result<_, _>>()?;
    let send = move |mut stream: TcpStream| {
        let sent = if bytes == 0 { send_without_end(&mut stream) } else { send_words(&mut stream, bytes)? };
        Ok::<_, io::Error>((sent, sys::tcp_retransmitted(&stream)?))
    };
    let senders: Vec<_> = streams.into_iter().map(|stream| thread::spawn(move || send(stream))).collect();
    let mut all = TcpSent { bytes: 0, retransmitted_packets: 0 };
    for sender in senders {
        let (sent, packets) = sender.join().map_err(|_| io::Error::other("a sending thread panicked"))??;
        all.bytes += sent;
        all.retransmitted_packets += u64::from(packets);
    }
    Ok(all)
}

fn send_without_end(stream: &mut TcpStream) -> u64 {
    let block = vec![0x5a; BLOCK_BYTES];
    let mut sent = 0;
    while stream.write_all(&block).is_ok() {
        sent += BLOCK_BYTES as u64;
    }
    sent
}

fn send_words(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut sent = 0;
    while sent < bytes {
        for (index, word) in block.as_chunks_mut().0.iter_mut().enumerate() {
            *word = (sent + 8 * index as u64).to_le_bytes();
        }
        let len = (bytes - sent).min(BLOCK_BYTES as u64);
        stream.write_all(&block[..len as usize])?;
        sent += len;
    }
    // The other side has all of it when it closes in its turn: only then have all retransmissions been counted.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let nothing = stream.read(&mut block)?;
    debug_assert_eq!(nothing, 0);
    Ok(sent)
}

fn udp(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    // As much as may be had.
    if setsockopt(&socket, sockopt::RcvBufForce, &UDP_BUFFER_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &UDP_BUFFER_BYTES);
    }
    Ok(socket)
}

fn udp_echo(port: u16) -> io::Result<()> {
    let socket = udp(port)?;
    say("ready")?;
    let mut datagram = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..len], from)?;
    }
}

fn udp_ping(to: SocketAddr, count: u64, interval: Duration) -> io::Result<RoundTrips> {
    let socket = Arc::new(udp_towards(to)?);
    socket.set_read_timeout(Some(QUIET))?;
    let start = Instant::now();
    let sending = {
        let socket = Arc::clone(&socket);
        thread::spawn(move || {
            for _ in 0..count {
                let now = start.elapsed().as_nanos() as u64;
                if socket.send(&now.to_le_bytes()).is_err() {
                    return;
                }
                thread::sleep(interval);
            }
        })
    };
    let mut ns = Vec::new();
    let mut datagram = [0; 8];
    while (ns.len() as u64) < count && matches!(socket.recv(&mut datagram), Ok(8)) {
        ns.push(start.elapsed().as_nanos() as u64 - u64::from_le_bytes(datagram));
    }
    let _ = sending.join();
    Ok(RoundTrips { ns })
}

fn udp_towards(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

fn udp_send(to: SocketAddr, count: u64, per_second: u64) -> io::Result<()> {
    let socket = udp_towards(to)?;
    let segment = DATAGRAM_BYTES as i32;
    setsockopt(&socket, sockopt::UdpGsoSegment, &segment)?;
    let mut block = vec![0; DATAGRAMS_PER_SEND * DATAGRAM_BYTES];
    let (mut sent, start) = (0, Instant::now());
    while sent < count {
        let now = DATAGRAMS_PER_SEND.min((count - sent) as usize);
        for (index, datagram) in block.chunks_exact_mut(DATAGRAM_BYTES).enumerate() {
            let number = sent + index as u64;
            datagram.fill(number as u8);
            datagram[..8].copy_from_slice(&number.to_le_bytes());
        }
        match socket.send(&block[..now * DATAGRAM_BYTES]) {
            Ok(_) => sent += now as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock || is_full(&error) => {}
            Err(error) => return Err(error),
        }
        let due = Duration::from_nanos(sent * 1_000_000_000 / per_second.max(1));
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

fn udp_receive(port: u16) -> io::Result<UdpReceived> {
    let socket = udp(port)?;
    say("ready")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut datagram = [0; 2048];
    let mut all = UdpReceived { datagrams: 0, overflowed: 0, wrong: 0 };
    let mut next = 0;
    loop {
        let len = match socket.recv(&mut datagram) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error),
        };
        if all.datagrams == 0 {
            socket.set_read_timeout(Some(QUIET))?;
        }
        all.datagrams += 1;
        let mut number = [0; 8];
        number.copy_from_slice(&datagram[..8]);
        let number = u64::from_le_bytes(number);
        let content_is_right = datagram[8..len].iter().all(|&byte| byte == number as u8);
        // In order, and each at most once.
        all.wrong += u64::from(len != DATAGRAM_BYTES || number < next || !content_is_right);
        next = number + 1;
    }
    all.overflowed = overflowed(port)?;
    Ok(all)
}

/// The kernel's count of datagrams that found the buffer of the socket on this port full: the last column of
/// `/proc/net/udp6`, whose second is the local address and port in hexadecimal.
fn overflowed(port: u16) -> io::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/udp6")?;
    let ending = format!(":{port:04X}");
    let line = table.lines().find(|line| {
        let local = line.split_whitespace().nth(1);
        local.is_some_and(|local| local.ends_with(&ending))
    });
    let drops = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    drops.ok_or_else(|| io::Error::other("the kernel does not say how many datagrams it dropped"))
}
