//! The thread between QEMU's socket and the lanes: it owns the engine and does what the engine says.
//!
//! ```text
//!  QEMU ──bytes──▶ intake ─▶ engine ──Encode──▶ workers ──Encoded──▶ (inbox)
//!                              │
//!                              └──Send──▶ TxSession ─▶ lanes        acks, room ─▶ (inbox)
//!  controller ◀── FromPump ── pump ◀── ToPump (inbox)
//! ```
//!
//! It sleeps in one `poll` on QEMU's socket and its inbox. It never waits for the link: when staging is full it stops
//! reading, and QEMU waits. It decides nothing about the guest: stopping, letting go and giving back are the
//! controller's.

use super::intake::{Intake, IntakeError};
use crate::api::wire::Numbers;
use crate::inbox::Inbox;
use crate::workers::Workers;
use hikyaku_engine::precopy::Prediction;
use hikyaku_engine::{
    AbortReason, Action, ChunkSeq, Encoded, HoldBack, LinkStats, PAGE_BYTES, Source, SyncInfo, Time,
};
use hikyaku_transport::{Chunk, Payload, SendError, TxSession};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// One read of QEMU's socket takes at most this: large enough that the system call is noise beside the copy, small enough
/// to stay in the L2 cache until it has been staged.
const READ_BYTES: usize = 512 << 10;
/// Between two looks at the link's figures.
const LINK_INTERVAL: Duration = Duration::from_millis(5);
/// Between two reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// Of the return path, while QEMU does not read it. A PONG has eight bytes, and QEMU asks for a few per migration.
const MAX_RETURN_PATH_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub enum ToPump {
    Acked {
        cumulative: u64,
        ranges: Vec<(u64, u64)>,
    },
    /// The peer is not reached just now: no time to decide when the guest is stopped.
    LinkDown,
    /// It is reached again: what was decided before is decided anew.
    LinkUp,
    /// The guest was not stopped, and has worked on: what was decided is decided anew.
    DecideAnew,
    /// More may be sent. The flag is lowered when this has been seen.
    Room(Arc<AtomicBool>),
    Encoded(Encoded),
    Sync(SyncInfo),
    /// The deadline has come, and the engine is to do something about it.
    DeadlinePassed,
    /// Of the guest's time this share is being taken.
    Throttled(f32),
    /// Bytes for the source QEMU, on its return path.
    ReturnPath(Vec<u8>),
    /// Say what the stop would take now: the guest is about to be stopped.
    Foretell,
    GuestStopped,
    /// How QEMU is kept from stopping the guest by itself, as is known now.
    HoldBack(HoldBack),
    /// QEMU has written all of its stream: what the socket holds is the rest.
    StreamWritten,
    /// Read so many bytes of QEMU's stream and no more, until told again; None: as many as staging takes.
    Allowance(Option<u64>),
    /// Close QEMU's socket and end.
    End,
}

/// Few and small: bounded by what the controller asks and by time.
#[derive(Debug)]
pub enum FromPump {
    /// The policy wants the guest stopped.
    Switch,
    /// It wants this share of the guest's time taken from it.
    Throttle(f32),
    Foretold(Prediction),
    Abort(AbortReason),
    /// RAM's last record was read: device state follows.
    RamEnded,
    /// Not understood from here on, and relayed as it is.
    WentRaw(String),
    /// The allowance is used up.
    Allowed,
    /// So many bytes have been written on the way back, in all.
    Returned(u64),
    /// The whole stream, device state included, has been handed to the transport.
    AllSent {
        last_seq: ChunkSeq,
    },
    Numbers(Numbers),
    /// The last word. Ok: ended as told.
    Ended(Result<(), PumpError>),
}

#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("QEMU closed its migration socket")]
    QemuClosed,
    #[error("reading QEMU's migration socket: {0}")]
    Read(io::Error),
    #[error("writing QEMU's return path: {0}")]
    Write(io::Error),
    #[error("QEMU does not read its return path, and the destination goes on sending on it")]
    ReturnPathFull,
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("the session does not take the chunk: {0}")]
    Send(#[from] SendError),
    #[error("waiting for events: {0}")]
    Poll(io::Error),
}

pub struct Pump {
    pub qemu: UnixStream,
    pub engine: Source,
    pub intake: Intake,
    pub tx: TxSession,
    pub workers: Workers,
    pub inbox: Arc<Inbox<ToPump>>,
    pub out: UnboundedSender<FromPump>,
    pub closes: Closes,
}

/// What it means that the socket which is read is closed by its other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closes {
    /// The migration has failed.
    Fails,
    /// Its bytes are complete. What is written on the way back is told, too.
    Ends,
}

impl Pump {
    /// Starts the thread. It ends with [`FromPump::Ended`], and closes QEMU's socket then.
    pub fn start(self) -> io::Result<()> {
        self.qemu.set_nonblocking(true)?;
        std::thread::Builder::new().name("pump".into()).spawn(move || {
            let out = self.out.clone();
            let ended = Running::new(self).run();
            // The controller may be gone; then nobody has to know.
            let _ = out.send(FromPump::Ended(ended));
        })?;
        Ok(())
    }
}

struct Running {
    pump: Pump,
    begun: Instant,
    /// Bytes read and not yet consumed: `buffer[..held]`.
    buffer: Vec<u8>,
    held: usize,
    read_bytes: u64,
    allowance: Option<u64>,
    stopped: bool,
    link_down: bool,
    /// The policy wants the guest stopped, and is asked no more.
    switch: bool,
    tail: TailState,
    wake_at: Option<Time>,
    link_at: Instant,
    report_at: Instant,
    return_path: Vec<u8>,
    returned_bytes: u64,
    acked_bytes: u64,
}

/// Nothing in the bytes says for sure where device state ends; QEMU's control socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TailState {
    Coming,
    /// All of it is in the socket.
    Written,
    /// All of it was given to the engine.
    Read,
    Sent,
}

impl Running {
    fn new(pump: Pump) -> Running {
        let now = Instant::now();
        Running {
            pump,
            begun: now,
            buffer: vec![0; READ_BYTES + hikyaku_qemu::stream::MAX_UNIT_BYTES],
            held: 0,
            read_bytes: 0,
            allowance: None,
            stopped: false,
            link_down: false,
            switch: false,
            tail: TailState::Coming,
            wake_at: None,
            link_at: now,
            report_at: now,
            return_path: Vec::new(),
            returned_bytes: 0,
            acked_bytes: 0,
        }
    }

    fn run(mut self) -> Result<(), PumpError> {
        let mut arrived = Vec::new();
        loop {
            self.pump.inbox.take(&mut arrived);
            for message in arrived.drain(..) {
                if !self.handle(message) {
                    // What came just before the end may be what decides about the migration.
                    if !self.return_path.is_empty() {
                        let _ = self.write_return_path();
                    }
                    return Ok(());
                }
            }
            if self.return_path.len() > MAX_RETURN_PATH_BYTES {
                return Err(PumpError::ReturnPathFull);
            }
            self.refresh_link();
            self.act()?;
            self.report();
            let readable = self.sleep()?;
            if readable {
                self.read()?;
            }
        }
    }

    fn now(&self) -> Time {
        // 584 years of nanoseconds.
        Time(self.begun.elapsed().as_nanos() as u64)
    }

    /// False: end.
    fn handle(&mut self, message: ToPump) -> bool {
        let now = self.now();
        if let ToPump::Foretell = message {
            // A queue has just been let go: the smoothed round trip still has some of it.
            let stats = self.pump.tx.stats();
            self.tell_link(stats.rtt.min(stats.rtt_latest));
            self.link_at = Instant::now();
            self.tell(FromPump::Foretold(self.pump.engine.progress().prediction));
            return true;
        }
        let engine = &mut self.pump.engine;
        if let ToPump::GuestStopped | ToPump::StreamWritten | ToPump::ReturnPath(_) | ToPump::End = &message {
            tracing::debug!(?message, read_bytes = self.read_bytes, "pump is told");
        }
        match message {
            ToPump::Acked { cumulative, ranges } => {
                let seq = |n: u64| ChunkSeq(u32::try_from(n).unwrap_or(u32::MAX));
                let ranges: Vec<_> = ranges.into_iter().map(|(a, b)| (seq(a), seq(b))).collect();
                engine.acked(now, seq(cumulative), &ranges);
                // Credit and goodput changed with it.
                self.link_at = Instant::now();
            }
            ToPump::LinkDown => {
                self.link_down = true;
                engine.outage(now, true);
            }
            ToPump::LinkUp => {
                self.link_down = false;
                engine.outage(now, false);
                if std::mem::take(&mut self.switch) && !self.stopped {
                    engine.guest_resumed(now);
                }
                self.link_at = Instant::now();
            }
            ToPump::DecideAnew => {
                if std::mem::take(&mut self.switch) && !self.stopped {
                    engine.guest_resumed(now);
                }
            }
            ToPump::Room(told) => {
                told.store(false, Ordering::Release);
                self.link_at = Instant::now();
            }
            ToPump::Encoded(encoded) => engine.encoded(now, encoded),
            ToPump::Sync(info) => engine.sync(now, info),
            ToPump::DeadlinePassed => engine.deadline_passed(now),
            ToPump::Throttled(share) => engine.throttled(now, share),
            ToPump::ReturnPath(bytes) => self.return_path.extend_from_slice(&bytes),
            ToPump::GuestStopped => {
                engine.guest_stopped(now);
                self.stopped = true;
            }
            ToPump::StreamWritten if self.tail == TailState::Coming => self.tail = TailState::Written,
            ToPump::StreamWritten => {}
            ToPump::HoldBack(hold_back) => engine.hold_back(hold_back),
            ToPump::Foretell => {}
            ToPump::Allowance(allowance) => self.allowance = allowance,
            ToPump::End => return false,
        }
        true
    }

    fn refresh_link(&mut self) {
        let now = Instant::now();
        if now < self.link_at {
            return;
        }
        self.link_at = now + LINK_INTERVAL;
        self.tell_link(self.pump.tx.stats().rtt);
    }

    /// What the engine is to know of the link, `rtt` being its round trip.
    fn tell_link(&mut self, rtt: Option<Duration>) {
        let (tx, at) = (&self.pump.tx, self.now());
        let stats = tx.stats();
        let ns = |d: Option<Duration>| d.map_or(0, |d| d.as_nanos() as u64);
        self.pump.engine.link(
            at,
            LinkStats {
                rtt_ns: ns(rtt),
                min_rtt_ns: ns(stats.min_rtt),
                goodput_bytes_per_s: stats.goodput_bytes_per_s.unwrap_or(0),
                path_bytes_per_s: stats.path_bytes_per_s.unwrap_or(0),
                unsent_bytes: tx.unsent_bytes(),
                in_flight_bytes: tx.in_flight_bytes(),
                credit_bytes: tx.credit_left(),
            },
        );
    }

    /// Does what the engine wants done.
    fn act(&mut self) -> Result<(), PumpError> {
        let now = self.now();
        while let Some(action) = self.pump.engine.poll(now) {
            match action {
                Action::Encode(job) => {
                    let inbox = self.pump.inbox.clone();
                    self.pump.workers.run(move |scratch| {
                        let (begun, spent) = (Instant::now(), crate::sys::thread_time());
                        let encoded = job.run(scratch).took(begun.elapsed());
                        let spent = crate::sys::thread_time().saturating_sub(spent);
                        inbox.push(ToPump::Encoded(encoded.spent(spent)));
                    });
                }
                Action::Send(chunk) => self.pump.tx.send(Chunk {
                    seq: chunk.seq.0.into(),
                    after: chunk.after.0.into(),
                    payload: Payload::from(chunk.payload),
                })?,
                Action::Switch => {
                    self.switch = true;
                    if !self.link_down {
                        self.tell(FromPump::Switch);
                    }
                }
                Action::Throttle(share) => self.tell(FromPump::Throttle(share)),
                Action::Abort(reason) => self.tell(FromPump::Abort(reason)),
                Action::WakeAt(at) => self.wake_at = Some(at),
            }
        }
        if self.tail == TailState::Written
            && self.held == 0
            && crate::sys::readable_bytes(self.pump.qemu.as_fd()).map_err(PumpError::Read)? == 0
        {
            self.tail = TailState::Read;
            self.pump.engine.tail_done();
            return self.act();
        }
        if self.tail == TailState::Read
            && let Some(last_seq) = self.pump.engine.last_seq()
        {
            self.tail = TailState::Sent;
            // What is shown at the end is all of it.
            self.report_at = Instant::now();
            self.report();
            self.tell(FromPump::AllSent { last_seq });
        }
        Ok(())
    }

    fn report(&mut self) {
        let now = Instant::now();
        if now < self.report_at {
            return;
        }
        self.report_at = now + REPORT_INTERVAL;
        let progress = self.pump.engine.progress();
        let stats = self.pump.tx.stats();
        let under_way = self.pump.tx.unsent_bytes() + self.pump.tx.in_flight_bytes();
        self.acked_bytes = self.acked_bytes.max(progress.bytes_encoded.saturating_sub(under_way));
        let page = PAGE_BYTES as u64;
        let numbers = Numbers {
            pass: progress.pass.into(),
            pages_total: progress.pages_total,
            pages_done: progress.pages_seen.saturating_sub(progress.pages_staged).min(progress.pages_total),
            staged_bytes: progress.pages_staged * page,
            sent_bytes: progress.bytes_encoded,
            acked_bytes: self.acked_bytes,
            raw_bytes: progress.bytes_raw_in,
            superseded_pages: progress.superseded,
            goodput_bytes_per_s: stats.goodput_bytes_per_s.unwrap_or(0),
            rtt_us: stats.rtt.map_or(0, |d| d.as_micros() as u64),
            predicted_stop_ms: progress.predicted_stop_ms.unwrap_or(0),
            dirty_bytes_per_s: progress.dirty_pages_per_s * page,
            delta_pages: progress.deltas_sent,
            // The controller's.
            throttle_percent: 0,
        };
        self.tell(FromPump::Numbers(numbers));
    }

    /// Waits for QEMU, the inbox or the next time something is due. True: QEMU's socket is readable.
    fn sleep(&mut self) -> Result<bool, PumpError> {
        let now = self.now();
        // While QEMU has nothing dirty it is left alone; once stopped, its last words are awaited.
        let rest = self.pump.engine.intake_resumes_at().filter(|at| *at > now && !self.stopped);
        let ended = self.pump.closes == Closes::Ends && !matches!(self.tail, TailState::Coming);
        let wants =
            rest.is_none() && !ended && self.pump.engine.intake_room() > 0 && self.allowance != Some(0);
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, wants);
        events.set(PollFlags::POLLOUT, !self.return_path.is_empty());

        let due = self.link_at.min(self.report_at).saturating_duration_since(Instant::now());
        let until =
            [self.wake_at, rest].into_iter().flatten().map(|at| Duration::from_nanos(at.since(now))).min();
        let timeout = until.map_or(due, |until| due.min(until));
        // Rounded up: a timeout of 0 before the time has come would spin.
        let timeout =
            PollTimeout::try_from(timeout.as_micros().div_ceil(1000) as i32).unwrap_or(PollTimeout::ZERO);

        let mut fds = [
            PollFd::new(self.pump.inbox.fd(), PollFlags::POLLIN),
            PollFd::new(self.pump.qemu.as_fd(), events),
        ];
        // Errors and hang-ups are reported whatever was asked for: unless something is wanted, leave the socket out.
        let watched = if events.is_empty() { &mut fds[..1] } else { &mut fds[..] };
        match poll(watched, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(PumpError::Poll(e.into())),
        }
        let ready = fds[1].revents().unwrap_or(PollFlags::empty());
        if ready.contains(PollFlags::POLLOUT) {
            self.write_return_path()?;
        }
        if self.wake_at.is_some_and(|at| at <= self.now()) {
            self.wake_at = None;
        }
        Ok(wants && ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR))
    }

    fn read(&mut self) -> Result<(), PumpError> {
        let room = self.buffer.len() - self.held;
        let limit = self.allowance.map_or(room, |left| room.min(usize::try_from(left).unwrap_or(room)));
        let got = match (&self.pump.qemu).read(&mut self.buffer[self.held..self.held + limit]) {
            Ok(0) if self.pump.closes == Closes::Ends => return self.all_read(),
            // It was closed before all that was answered had been read there.
            Err(e) if e.kind() == ErrorKind::ConnectionReset && self.pump.closes == Closes::Ends => {
                return self.all_read();
            }
            Ok(0) => return Err(PumpError::QemuClosed),
            Ok(got) => got,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(e) => return Err(PumpError::Read(e)),
        };
        self.held += got;
        self.read_bytes += got as u64;
        self.feed()?;
        if let Some(left) = &mut self.allowance {
            *left -= got as u64;
            if *left == 0 {
                self.tell(FromPump::Allowed);
            }
        }
        Ok(())
    }

    fn all_read(&mut self) -> Result<(), PumpError> {
        self.tail = TailState::Read;
        self.pump.engine.tail_done();
        Ok(())
    }

    fn feed(&mut self) -> Result<(), PumpError> {
        let now = self.now();
        let mut used = 0;
        // A second time only when the stream stopped being understood in the middle.
        while used < self.held {
            let bytes = &self.buffer[used..self.held];
            let taken = self.pump.intake.feed(now, bytes, &mut self.pump.engine)?;
            used += taken;
            let told = self.pump.intake.take_told();
            let went_raw = told.went_raw.is_some();
            if let Some(why) = told.went_raw {
                // What is staged by now goes first, and counts from the first look on.
                self.report_at = Instant::now();
                self.report();
                self.tell(FromPump::WentRaw(why));
            }
            if told.ram_ended {
                self.tell(FromPump::RamEnded);
            }
            if told.empty_parts > 0 {
                self.pump.engine.idle(now);
            }
            if !went_raw {
                break;
            }
        }
        self.buffer.copy_within(used..self.held, 0);
        self.held -= used;
        Ok(())
    }

    fn write_return_path(&mut self) -> Result<(), PumpError> {
        let written = match (&self.pump.qemu).write(&self.return_path) {
            // Nobody reads it any more; that it was closed shows when it is read from.
            Err(e)
                if self.pump.closes == Closes::Ends
                    && matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                Ok(self.return_path.len())
            }
            written => written,
        };
        match written {
            Ok(n) => {
                self.return_path.drain(..n);
                self.returned_bytes += n as u64;
                if self.pump.closes == Closes::Ends {
                    self.tell(FromPump::Returned(self.returned_bytes));
                }
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(PumpError::Write(e)),
        }
    }

    fn tell(&self, what: FromPump) {
        if !matches!(what, FromPump::Numbers(_) | FromPump::Allowed | FromPump::Returned(_)) {
            tracing::debug!(?what, read_bytes = self.read_bytes, "pump tells");
        }
        // A controller that is gone has ended the migration, and End follows.
        let _ = self.pump.out.send(what);
    }
}
