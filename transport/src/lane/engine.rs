//! The threads that drive lanes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::rx::RxLane;
use super::tx::TxLane;
use super::waker::Waker;
use super::{plain, uring};
use crate::config::Io;
use crate::error::{Lost, StartError};
use crate::link::LinkCore;
use crate::names::LaneId;
use crate::sys::{Ring, set_pacing};

/// A node's lane threads. They end when it is dropped.
pub struct LaneEngine {
    threads: Vec<Arc<Inbox>>,
    io: Io,
}

/// How a thread is told things.
pub struct Inbox {
    pub waker: Arc<Waker>,
    commands: Mutex<Vec<Command>>,
    pub clock: Instant,
}

pub enum Command {
    Add(NewLane),
    /// Drops every lane of this link.
    Close(Arc<LinkCore>),
    Stop,
}

pub struct NewLane {
    pub link: Arc<LinkCore>,
    /// Non-blocking, its hello done.
    pub socket: OwnedFd,
    pub core: Core,
}

pub enum Core {
    Tx(TxLane),
    Rx(RxLane),
}

impl Core {
    pub fn id(&self) -> LaneId {
        match self {
            Core::Tx(tx) => tx.id,
            Core::Rx(rx) => rx.id,
        }
    }
}

/// Entries of a thread's submission queue. Two operations per lane; more lanes than half of it only cost a second
/// system call per turn.
const RING_ENTRIES: u32 = 256;

impl LaneEngine {
    pub fn start(threads: usize, io: Io, clock: Instant) -> Result<Self, StartError> {
        let io = match (io, Ring::new(RING_ENTRIES)) {
            (Io::Plain, _) => Io::Plain,
            (_, Ok(_)) => Io::Uring,
            (Io::Uring, Err(error)) => return Err(StartError::NoUring(error.to_string())),
            (Io::Auto, Err(error)) => {
                tracing::warn!(%error, "io_uring is not available here; lanes use plain sockets");
                Io::Plain
            }
        };
        let mut engine = Self { threads: Vec::new(), io };
        for n in 0..threads {
            let waker = Arc::new(Waker::new().map_err(StartError::Threads)?);
            let inbox = Arc::new(Inbox { waker, commands: Mutex::default(), clock });
            let theirs = inbox.clone();
            std::thread::Builder::new()
                .name(format!("hikyaku-lane-{n}"))
                .spawn(move || run(io, theirs))
                .map_err(StartError::Threads)?;
            engine.threads.push(inbox);
        }
        Ok(engine)
    }

    /// The backend in use: never [`Io::Auto`].
    pub fn io(&self) -> Io {
        self.io
    }

    pub fn add(&self, lane: NewLane) {
        let thread = &self.threads[usize::from(lane.core.id().0) % self.threads.len()];
        lane.link.queue.add_waker(thread.waker.clone());
        thread.tell(Command::Add(lane));
    }

    pub fn close(&self, link: &Arc<LinkCore>) {
        for thread in &self.threads {
            thread.tell(Command::Close(link.clone()));
        }
    }
}

impl Drop for LaneEngine {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.tell(Command::Stop);
        }
    }
}

impl Inbox {
    pub fn take(&self) -> Vec<Command> {
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn now_ms(&self) -> u64 {
        self.clock.elapsed().as_millis() as u64
    }

    fn tell(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.waker.wake();
    }
}

fn run(io: Io, inbox: Arc<Inbox>) {
    let result = match io {
        Io::Uring => Ring::new(RING_ENTRIES).and_then(|ring| uring::run(&inbox, ring)),
        Io::Plain | Io::Auto => plain::run(&inbox),
    };
    if let Err(error) = result {
        // Links notice by their silence; say why.
        tracing::error!(%error, "a lane thread ended");
    }
}

/// What the kernel paces a lane at: set when it changes.
#[derive(Default)]
pub struct Pacing(Option<u64>);

impl Pacing {
    pub fn set(&mut self, socket: &OwnedFd, bytes_per_s: Option<u64>) {
        if self.0 != bytes_per_s {
            self.0 = bytes_per_s;
            if let Err(error) = set_pacing(socket.as_fd(), bytes_per_s) {
                tracing::debug!(%error, "the kernel does not pace");
            }
        }
    }
}

/// What a lane tells its link when its connection ended.
pub fn connection_lost(link: &LinkCore, lane: LaneId, what: impl ToString) -> Lost {
    Lost::Connection { peer: link.peer.clone(), connection: lane.to_string(), what: what.to_string() }
}

/// Hands a received frame, or what is wrong with it, to its link. False: the lane is over.
pub fn received(link: &LinkCore, rx: &mut RxLane, now_ms: u64) -> bool {
    let lost = match rx.appended(now_ms) {
        Ok(None) => return true,
        Ok(Some((header, body))) => match link.deliver(&header, body) {
            Ok(()) => return true,
            Err(what) => Lost::Protocol { peer: link.peer.clone(), what },
        },
        Err(forged) => Lost::Authentication { peer: link.peer.clone(), lane: rx.id, frame: forged.frame },
    };
    link.fault(lost);
    false
}

/// Ends a connection whatever the kernel still does with it.
pub fn shut_down(socket: &OwnedFd) {
    use std::os::fd::AsRawFd;
    // It may be gone already.
    let _ = nix::sys::socket::shutdown(socket.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both);
}
