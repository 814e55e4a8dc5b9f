//! The threads that drive lanes.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::rx::RxLane;
use super::tx::TxLane;
use super::waker::Waker;
use super::{plain, uring};
use crate::bond::Bond;
use crate::config::Io;
use crate::error::{Lost, StartError};
use crate::names::{Epoch, LaneId};
use crate::sys::{Ring, set_notsent_low, set_pacing};

/// A node's lane threads. They end when it is dropped.
pub struct LaneEngine {
    threads: Vec<Arc<Inbox>>,
    times: Arc<ThreadTimes>,
    io: Io,
}

/// How a thread is told things.
pub struct Inbox {
    pub waker: Arc<Waker>,
    commands: Mutex<Vec<Command>>,
    pub clock: Instant,
}

pub enum Command {
    Add(OwnLane),
    /// Drops every lane of this bond.
    Close(Arc<Bond>),
    /// Drops this one, if it is still of this epoch.
    CloseLane(Arc<Bond>, LaneId, Epoch),
    Stop,
}

impl Command {
    /// Whether a lane is to be dropped.
    pub fn closes(&self, bond: &Arc<Bond>, core: &Core) -> bool {
        match self {
            Command::Close(whose) => Arc::ptr_eq(whose, bond),
            Command::CloseLane(whose, lane, epoch) => {
                Arc::ptr_eq(whose, bond) && (*lane, *epoch) == (core.id(), core.epoch())
            }
            Command::Add(_) | Command::Stop => false,
        }
    }
}

pub struct NewLane {
    pub bond: Arc<Bond>,
    /// Its hello is done.
    pub socket: TcpStream,
    pub core: Core,
}

/// How much of their time the threads need.
#[derive(Default)]
pub struct ThreadTimes {
    /// The threads, as the kernel names them.
    tasks: Mutex<Vec<String>>,
}

impl ThreadTimes {
    /// Time that each ran or waited for a CPU. A kernel that does not count this says 0.
    pub fn read(&self) -> Vec<Duration> {
        let time = |task: &String| {
            let text =
                std::fs::read_to_string(format!("/proc/self/task/{task}/schedstat")).unwrap_or_default();
            text.split_whitespace().take(2).filter_map(|ns| ns.parse().ok()).map(Duration::from_nanos).sum()
        };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().map(time).collect()
    }

    /// The calling thread is one of them.
    fn count_me(&self) {
        // "<process>/task/<thread>"
        let Ok(path) = std::fs::read_link("/proc/thread-self") else { return };
        let Some(task) = path.file_name().and_then(|name| name.to_str()) else { return };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task.to_owned());
    }
}

/// A lane as its thread gets it.
pub struct OwnLane {
    pub bond: Arc<Bond>,
    /// Non-blocking; blocking for io_uring, which would answer "try again" instead of waiting by itself.
    pub socket: Arc<OwnedFd>,
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

    pub fn epoch(&self) -> Epoch {
        match self {
            Core::Tx(tx) => tx.epoch,
            Core::Rx(rx) => rx.epoch,
        }
    }

    /// The lane is gone. What it carried goes by another.
    pub fn dropped(&self, bond: &Bond) {
        if let Core::Tx(tx) = self {
            bond.link.queue.give_back(tx.carrier);
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
        let mut engine = Self { threads: Vec::new(), times: Arc::default(), io };
        for n in 0..threads {
            let waker = Arc::new(Waker::new().map_err(StartError::Threads)?);
            let inbox = Arc::new(Inbox { waker, commands: Mutex::default(), clock });
            let (theirs, times) = (inbox.clone(), engine.times.clone());
            std::thread::Builder::new()
                .name(format!("hikyaku-lane-{n}"))
                .spawn(move || {
                    times.count_me();
                    run(io, theirs);
                })
                .map_err(StartError::Threads)?;
            engine.threads.push(inbox);
        }
        Ok(engine)
    }

    /// The backend in use: never [`Io::Auto`].
    pub fn io(&self) -> Io {
        self.io
    }

    /// If the bond is over, the lane goes at once.
    pub fn add(&self, lane: NewLane) {
        let NewLane { bond, socket, core } = lane;
        let (id, epoch) = (core.id(), core.epoch());
        if self.io == Io::Uring
            && let Err(error) = socket.set_nonblocking(false)
        {
            return bond.lane_down(id, epoch, &error.to_string());
        }
        let socket = Arc::new(socket.into());
        bond.lane_has(id, epoch, &socket);
        let thread = self.thread(id);
        bond.link.queue.add_waker(thread.waker.clone());
        thread.tell(Command::Add(OwnLane { bond: bond.clone(), socket, core }));
        // Whoever ended it may have closed it before it had this lane.
        if bond.is_over() {
            self.close_lane(&bond, id, epoch);
        }
    }

    pub fn times(&self) -> Arc<ThreadTimes> {
        self.times.clone()
    }

    pub fn close(&self, bond: &Arc<Bond>) {
        for thread in &self.threads {
            thread.tell(Command::Close(bond.clone()));
        }
    }

    pub fn close_lane(&self, bond: &Arc<Bond>, lane: LaneId, epoch: Epoch) {
        self.thread(lane).tell(Command::CloseLane(bond.clone(), lane, epoch));
    }

    /// A lane stays with its thread, whatever its epoch.
    fn thread(&self, lane: LaneId) -> &Arc<Inbox> {
        &self.threads[usize::from(lane.0) % self.threads.len()]
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

/// What a lane's socket may hold that was never sent: set when it changes.
#[derive(Default)]
pub struct NotsentLow(Option<u32>);

impl NotsentLow {
    pub fn set(&mut self, socket: &OwnedFd, bytes: u32) {
        if self.0 != Some(bytes) {
            self.0 = Some(bytes);
            if let Err(error) = set_notsent_low(socket.as_fd(), bytes) {
                tracing::debug!(%error, "the kernel does not bound what is unsent");
            }
        }
    }
}

/// How it goes on with a lane after a frame.
#[derive(PartialEq)]
pub enum After {
    GoOn,
    /// Nothing more is done with it. Its socket stays open until the bond is closed, so that the peer hears the reason
    /// before it notices the end.
    Faulted,
}

/// Hands a received frame, or what is wrong with it, to its link.
pub fn received(bond: &Bond, rx: &mut RxLane, now_ms: u64) -> After {
    let link = &bond.link;
    let lost = match rx.appended(now_ms) {
        Ok(None) => return After::GoOn,
        Ok(Some((header, body))) => match link.deliver(&header, body) {
            Ok(()) => return After::GoOn,
            Err(what) => Lost::Protocol { peer: link.peer.clone(), what },
        },
        Err(forged) => Lost::Authentication { peer: link.peer.clone(), lane: rx.id, frame: forged.frame },
    };
    bond.fault(lost);
    After::Faulted
}

/// Ends a connection whatever the kernel still does with it.
pub fn shut_down(socket: &OwnedFd) {
    use std::os::fd::AsRawFd;
    // It may be gone already.
    let _ = nix::sys::socket::shutdown(socket.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::link::{LinkCore, Role};
    use crate::model;
    use crate::seal::Direction;
    use crate::session::Chunk;
    use crate::wire::frame::HEADER_BYTES;

    const LANE: (LaneId, Epoch) = (LaneId(0), Epoch(1));

    /// A receiving lane of `bond`, and the connection's other end.
    fn lane(bond: &Arc<Bond>) -> (NewLane, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (progress, _) = bond.admit(LANE.0, LANE.1).unwrap();
        let opener = bond.secret.opener(&bond.id, LANE.0, LANE.1, Direction::FromInitiator);
        let core = Core::Rx(RxLane::new(LANE.0, LANE.1, opener, 1000, progress));
        (NewLane { bond: bond.clone(), socket: listener.accept().unwrap().0, core }, there)
    }

    /// A frame as the other side sends it.
    fn frame(link: &LinkCore, bond: &Bond) -> Vec<u8> {
        link.queue.add_session(1, Arc::<model::User>::default());
        link.queue.grant(1, u64::MAX);
        link.queue.push(1, Chunk { seq: 1, after: 0, payload: vec![0; 900].into() }).unwrap();
        let sealer = bond.secret.sealer(&bond.id, LANE.0, LANE.1, Direction::FromInitiator);
        let mut tx = TxLane::new(LANE.0, LANE.1, link.queue.new_carrier(), sealer, 1000);
        tx.load(&link.queue);
        tx.unsent().to_vec()
    }

    #[test]
    fn a_lane_that_comes_after_its_bond_was_closed_is_closed() {
        for io in [Io::Plain, Io::Uring] {
            let bond = model::bond(&model::link(Role::Responder), 1);
            let engine = LaneEngine::start(1, io, bond.link.clock).unwrap();
            bond.set_over();
            engine.close(&bond);
            let (lane, mut there) = lane(&bond);
            engine.add(lane);
            there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(there.read_to_end(&mut Vec::new()).unwrap(), 0, "{io:?}");
        }
    }

    #[test]
    fn a_frame_that_comes_slowly_is_not_stuck() {
        for io in [Io::Plain, Io::Uring] {
            let mut link = model::link(Role::Responder);
            Arc::get_mut(&mut link).unwrap().timeouts.frame = Duration::from_millis(200);
            let bond = model::bond(&link, 1);
            let engine = LaneEngine::start(1, io, link.clock).unwrap();
            let (lane, mut there) = lane(&bond);
            engine.add(lane);
            let frame = frame(&link, &bond);
            there.write_all(&frame[..HEADER_BYTES]).unwrap();
            for byte in &frame[HEADER_BYTES..][..40] {
                std::thread::sleep(Duration::from_millis(20));
                there.write_all(&[*byte]).unwrap();
                assert_eq!(bond.stuck_lane(), None, "{io:?}");
            }
            let patience = Instant::now() + Duration::from_secs(10);
            while bond.stuck_lane() != Some(LANE) {
                assert!(Instant::now() < patience, "{io:?}: nothing more comes");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
