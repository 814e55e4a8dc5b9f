//! Measuring a network from inside its hosts: round trip, TCP goodput, loss.
//!
//! Each measurement starts [`probe`](super::probe)s in two hosts and says what they saw. What is measured is the
//! link together with this machine; a busy one shows.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::probe::{RoundTrips, TcpReceived, TcpSent, UdpReceived};
use super::{Host, Network, TCP_PAYLOAD_BYTES, die_with_parent};

/// Free in a host, where nothing else runs unless a test starts it.
const PORT: u16 = 5301;

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("cannot run the probe {program:?}: {error}")]
    Start { program: PathBuf, error: io::Error },
    #[error("the probe {arguments:?} failed: {said}")]
    Failed { arguments: Vec<OsString>, said: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ip4,
    Ip6,
}

/// Measures between two hosts of a network.
#[derive(Debug)]
pub struct Measure<'a> {
    /// The program that has the probes as `link probe …`: `lab`.
    lab: PathBuf,
    from: &'a Host,
    to: &'a Host,
    family: Family,
}

/// TCP streams of which every byte was checked.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub bytes: u64,
    /// Words of eight bytes that did not arrive as they were sent.
    pub wrong_words: u64,
    /// Packets sent again, of all packets sent.
    pub retransmitted: f64,
}

/// Datagrams sent in super-packets.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    pub sent: u64,
    /// Came to the host, whether the receiver kept up or not.
    pub arrived: u64,
    /// Out of order, twice, or not as they were sent.
    pub wrong: u64,
}

impl Datagrams {
    pub fn loss(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent as f64
    }
}

impl<'a> Measure<'a> {
    /// `lab` is the program of that name.
    pub fn new(lab: impl Into<PathBuf>, network: &'a Network, from: &str, to: &str, family: Family) -> Self {
        Self { lab: lab.into(), from: network.host(from), to: network.host(to), family }
    }

    /// Round trips of small datagrams on the otherwise idle link, sorted.
    pub fn round_trips(&self, count: u64) -> Result<Vec<Duration>, MeasureError> {
        let echo = self.receiver(&["udp-echo"])?;
        let (count, to) = (count.to_string(), self.target().to_string());
        let ping = ["udp-ping", "--to", &to, "--count", &count, "--interval-ms", "5"];
        let seen: RoundTrips = self.probe(self.from, &ping)?.result()?;
        drop(echo);
        let mut all: Vec<_> = seen.ns.into_iter().map(Duration::from_nanos).collect();
        all.sort();
        Ok(all)
    }

    /// Payload bits per second of this many TCP streams, once they have had the time `skip` to find their rate.
    pub fn tcp_rate(&self, streams: usize, skip: Duration, time: Duration) -> Result<f64, MeasureError> {
        let (streams, to) = (streams.to_string(), self.target().to_string());
        let (skip, time) = (skip.as_millis().to_string(), time.as_millis().to_string());
        let sink =
            self.receiver(&["tcp-sink", "--streams", &streams, "--skip-ms", &skip, "--measure-ms", &time])?;
        let source = self.probe(self.from, &["tcp-source", "--to", &to, "--streams", &streams])?;
        let seen: TcpReceived = sink.result()?;
        drop(source);
        Ok(seen.bytes as f64 * 8.0 / seen.seconds)
    }

    /// Sends this much over each TCP stream and checks all of it.
    pub fn tcp_transfer(&self, streams: usize, bytes: u64) -> Result<Transfer, MeasureError> {
        let (streams, to, bytes) = (streams.to_string(), self.target().to_string(), bytes.to_string());
        let sink = self.receiver(&["tcp-sink", "--streams", &streams])?;
        let source = ["tcp-source", "--to", &to, "--streams", &streams, "--bytes", &bytes];
        let sent: TcpSent = self.probe(self.from, &source)?.result()?;
        let seen: TcpReceived = sink.result()?;
        let first_sent = sent.bytes as f64 / f64::from(self.tcp_payload_bytes());
        let again = sent.retransmitted_packets as f64;
        let retransmitted = again / (first_sent + again);
        Ok(Transfer { bytes: seen.bytes, wrong_words: seen.wrong_words, retransmitted })
    }

    /// Sends datagrams of a full packet each, 40 at a time in a super-packet.
    pub fn datagrams(&self, count: u64, per_second: u64) -> Result<Datagrams, MeasureError> {
        let (to, number, rate) = (self.target().to_string(), count.to_string(), per_second.to_string());
        let sink = self.receiver(&["udp-sink"])?;
        let source = ["udp-source", "--to", &to, "--count", &number, "--per-second", &rate];
        self.probe(self.from, &source)?.end()?;
        let seen: UdpReceived = sink.result()?;
        Ok(Datagrams { sent: count, arrived: seen.datagrams + seen.overflowed, wrong: seen.wrong })
    }

    fn target(&self) -> SocketAddr {
        let ip: IpAddr = match self.family {
            Family::Ip4 => self.to.ip4().into(),
            Family::Ip6 => self.to.ip6().into(),
        };
        SocketAddr::new(ip, PORT)
    }

    fn tcp_payload_bytes(&self) -> u32 {
        match self.family {
            Family::Ip4 => TCP_PAYLOAD_BYTES,
            Family::Ip6 => TCP_PAYLOAD_BYTES - 20,
        }
    }

    /// A probe on the other host that can be sent to.
    fn receiver(&self, arguments: &[&str]) -> Result<Running, MeasureError> {
        let port = PORT.to_string();
        let mut running = self.probe(self.to, &[arguments, &["--port", &port]].concat())?;
        if running.line() == "ready" { Ok(running) } else { Err(running.failed()) }
    }

    fn probe(&self, host: &Host, arguments: &[&str]) -> Result<Running, MeasureError> {
        let mut command = host.command(&self.lab);
        command.args(["link", "probe"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_parent(&mut command);
        Running::start(command)
    }
}

/// A probe, ended when dropped.
#[derive(Debug)]
struct Running {
    command: Command,
    child: Child,
    out: Option<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Result<Self, MeasureError> {
        let started = command.spawn();
        let program = || command.get_program().into();
        let mut child = started.map_err(|error| MeasureError::Start { program: program(), error })?;
        let out = child.stdout.take().map(BufReader::new);
        Ok(Self { command, child, out })
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Some(out) = &mut self.out {
            // What cannot be read is an empty line, which no probe says.
            let _ = out.read_line(&mut line);
        }
        line.trim().to_owned()
    }

    fn result<T: DeserializeOwned>(mut self) -> Result<T, MeasureError> {
        let line = self.line();
        serde_json::from_str(&line).map_err(|_| self.failed())
    }

    fn end(mut self) -> Result<(), MeasureError> {
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(self.failed()),
        }
    }

    fn failed(&mut self) -> MeasureError {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(mut error) = self.child.stderr.take() {
            let _ = io::Read::read_to_string(&mut error, &mut said);
        }
        let arguments = self.command.get_args().map(Into::into).collect();
        MeasureError::Failed { arguments, said: said.trim().to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
