//! Two ends of a transfer: started, bounded, listened to.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use hikyaku_transport::StaticKey;

use super::PATIENCE;
use super::plan::{Amount, Manner, Plan, Received, Role, Said, Sent};
use crate::child::Tied;
use crate::link::{Network, die_with_parent};

const PORT: u16 = 4707;
/// The hosts: the first receives, the second sends.
pub const HOSTS: [&str; 2] = ["a", "b"];
/// A transfer at this share of the rate is waited for.
const SLOWEST: f64 = 0.1;

/// Where the ends are.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    Hosts(&'a Network),
    /// On this machine itself, over loopback.
    Here,
}

/// A transfer that was begun.
#[derive(Debug)]
pub struct Pair {
    receiver: End,
    sender: End,
    limit: Duration,
}

/// What both ends know when it is over.
#[derive(Debug)]
pub struct Outcome {
    /// When the first session was accepted: the zero of all series.
    pub started_ns: u64,
    pub received: Received,
    pub sent: Sent,
}

impl Outcome {
    /// From the start to the moment at which the first byte could have reached the receiver.
    pub fn first_byte(&self, rtt: Duration) -> Duration {
        Duration::from_nanos(self.sent.first_chunk_ns.saturating_sub(self.started_ns)) + rtt / 2
    }
}

/// Starts both ends and takes it to its end.
pub fn transfer(place: Place<'_>, manner: &Manner, bytes_per_s: f64) -> anyhow::Result<Outcome> {
    Pair::start(place, manner, bytes_per_s)?.finish()
}

impl Pair {
    /// Both ends run; `bytes_per_s` is what the path can do, which bounds the wait.
    pub fn start(place: Place<'_>, manner: &Manner, bytes_per_s: f64) -> anyhow::Result<Pair> {
        let keys = [StaticKey::generate()?, StaticKey::generate()?];
        let address = match place {
            Place::Hosts(network) => SocketAddr::from((network.host(HOSTS[0]).ip4(), PORT)),
            Place::Here => free_address()?,
        };
        let plan = |role, own: usize| Plan {
            role,
            address,
            secret_key: keys[own].to_text().to_string(),
            peer: keys[1 - own].public().to_string(),
            manner: manner.clone(),
        };
        let program = std::env::current_exe()?;
        let start = |role, own: usize| {
            let command = match place {
                Place::Hosts(network) => network.host(HOSTS[own]).command(&program),
                Place::Here => Command::new(&program),
            };
            End::start(command, &plan(role, own))
        };
        let mut receiver = start(Role::Receive, 0)?;
        match receiver.hear()? {
            Said::Ready => {}
            other => bail!("the receiver said {other:?} before it was ready"),
        }
        let needed = match manner.amount {
            Amount::Time(time) => time,
            Amount::Bytes(bytes) => {
                let all = bytes as f64 * f64::from(manner.sessions);
                Duration::from_secs_f64(all / (bytes_per_s * SLOWEST))
            }
        };
        let limit = needed + manner.preparation + PATIENCE;
        Ok(Pair { receiver, sender: start(Role::Send, 1)?, limit })
    }

    pub fn receiver_id(&mut self) -> u32 {
        self.receiver.process.child().id()
    }

    pub fn sender_id(&mut self) -> u32 {
        self.sender.process.child().id()
    }

    /// Until the first session is accepted; its time, see [`now_ns`](super::plan::now_ns).
    pub fn wait_for_start(&mut self) -> anyhow::Result<u64> {
        self.receiver.started()
    }

    /// Whether both ends still run.
    pub fn is_running(&mut self) -> bool {
        let runs = |end: &mut End| matches!(end.process.child().try_wait(), Ok(None));
        runs(&mut self.receiver) && runs(&mut self.sender)
    }

    pub fn finish(self) -> anyhow::Result<Outcome> {
        let Pair { mut receiver, sender, limit } = self;
        let sent = sender.result(limit)?;
        let Said::Sent(sent) = sent else { bail!("the sender said {sent:?} at its end") };
        let started_ns = receiver.started()?;
        let received = receiver.result(PATIENCE)?;
        let Said::Received(received) = received else { bail!("the receiver said {received:?} at its end") };
        Ok(Outcome { started_ns, received, sent })
    }
}

/// An end, which says things on its standard output, a line each.
#[derive(Debug)]
struct End {
    process: Tied,
    lines: BufReader<ChildStdout>,
    started_ns: Option<u64>,
}

impl End {
    fn start(mut command: Command, plan: &Plan) -> anyhow::Result<End> {
        command.args(["bench", "transport", "end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        let mut process = Tied::spawn(&mut command).context("cannot start an end of the transfer")?;
        let lines = BufReader::new(process.child().stdout.take().context("no pipe")?);
        let mut plans = process.child().stdin.take().context("no pipe")?;
        writeln!(plans, "{}", serde_json::to_string(plan)?)?;
        Ok(End { process, lines, started_ns: None })
    }

    /// Its next line. It says one or ends.
    fn hear(&mut self) -> anyhow::Result<Said> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line.is_empty() {
            bail!("an end of the transfer ended; it says why above");
        }
        serde_json::from_str(&line).with_context(|| format!("an end of the transfer said {line:?}"))
    }

    /// A receiver's start, once it has been said.
    fn started(&mut self) -> anyhow::Result<u64> {
        if let Some(at_ns) = self.started_ns {
            return Ok(at_ns);
        }
        match self.hear()? {
            Said::Started { at_ns } => Ok(*self.started_ns.insert(at_ns)),
            other => bail!("the receiver said {other:?} instead of its start"),
        }
    }

    /// Its last line, and its end.
    fn result(self, limit: Duration) -> anyhow::Result<Said> {
        // Its pipe holds less than it has to say: what it says is read on while it is waited for.
        let lines = self.lines;
        let reader = std::thread::spawn(move || lines.lines().last());
        let status = self.process.wait_within(limit).context("an end of the transfer")?;
        let last = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if !status.success() {
            bail!("an end of the transfer failed: {status}");
        }
        let line = last.context("an end of the transfer said nothing")??;
        serde_json::from_str(&line).with_context(|| format!("an end of the transfer said {line:?}"))
    }
}

/// Where nobody listens: the receiver is told before it does. No connection goes out from that address: none takes the port.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.77.0.1:0")?.local_addr()?)
}

/// Fails with a line that says how to get it, if a program of this name cannot be run.
pub fn need(program: &str, package: &str, why: &str) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file());
    if !found {
        bail!("{why} needs {program}, which is not here: apt-get install {package}");
    }
    Ok(())
}
