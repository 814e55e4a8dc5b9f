//! The thread between the lanes and the waiting QEMU: chunks in any order become one valid stream.
//!
//! ```text
//!  lanes ──chunks──▶ (inbox) ─▶ Receiver ─▶ QemuSink ──bytes──▶ QEMU -incoming
//!                                  │ applied: ack and credit
//!                                  └▶ RxSession
//! ```
//!
//! Memory is bounded by the credit that was granted: what is not applied is not acknowledged, and the source stops.
//!
//! Invariant: **no byte after the end of RAM reaches QEMU before the source says so** — QEMU acts on the last byte of its stream. In raw relay, where the end of RAM is not known, the guest arrives stopped, and only our
//! own `cont`, after GO, starts it. Where somebody else decides about the guest ([`End::PassedOn`]) its QEMU starts nothing by itself either.

use super::sink::{End, QemuSink, SinkError};
use crate::inbox::Inbox;
use hikyaku_engine::{ChunkSeq, ReceiveError, Receiver, ReceiverConfig};
use hikyaku_transport::RxSession;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Between two reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub enum ToApply {
    Chunk {
        seq: u64,
        after: u64,
        payload: Vec<u8>,
    },
    /// Everything up to this chunk is the guest: QEMU may have its device state.
    Release {
        last_seq: u32,
    },
    /// The session is gone; what has not come will not come.
    NoMore,
    End,
}

#[derive(Debug)]
pub enum FromApply {
    /// Everything up to the last chunk is here: the tail is being written to QEMU.
    Complete,
    Progress(Progress),
    /// The last word.
    Ended(Result<(), ApplyError>),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    pub pages_total: u64,
    pub pages_written: u64,
    pub payload_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Receive(#[from] ReceiveError<SinkError>),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("chunk number {0} is out of range")]
    Sequence(u64),
    #[error("the link was lost before all of the guest was here")]
    Incomplete,
    #[error("waiting for events: {0}")]
    Poll(io::Error),
}

impl ApplyError {
    /// QEMU did not take its stream: it knows why, and says so through QMP.
    pub fn is_qemus(&self) -> bool {
        let (Self::Sink(sink) | Self::Receive(ReceiveError::Sink(sink))) = self else { return false };
        matches!(sink, SinkError::Write(_))
    }
}

pub struct Apply {
    pub qemu: UnixStream,
    pub config: ReceiverConfig,
    pub end: End,
    pub inbox: Arc<Inbox<ToApply>>,
    pub out: UnboundedSender<FromApply>,
}

impl Apply {
    /// Starts the thread. It ends with [`FromApply::Ended`]; shutting the socket down from elsewhere ends it, too.
    pub fn start(self, session: RxSession) -> io::Result<()> {
        self.qemu.set_nonblocking(true)?;
        std::thread::Builder::new().name("apply".into()).spawn(move || {
            let out = self.out.clone();
            let sink = QemuSink::new(self.qemu, self.end);
            let running = Running {
                receiver: Receiver::new(self.config),
                sink,
                session,
                inbox: self.inbox,
                out: self.out,
                last: None,
                done: false,
                payload_bytes: 0,
                applied: Vec::new(),
                report_at: Instant::now(),
            };
            let _ = out.send(FromApply::Ended(running.run()));
        })?;
        Ok(())
    }
}

struct Running {
    receiver: Receiver,
    sink: QemuSink,
    session: RxSession,
    inbox: Arc<Inbox<ToApply>>,
    out: UnboundedSender<FromApply>,
    last: Option<ChunkSeq>,
    done: bool,
    payload_bytes: u64,
    applied: Vec<(ChunkSeq, u64)>,
    report_at: Instant,
}

impl Running {
    fn run(mut self) -> Result<(), ApplyError> {
        let mut arrived = Vec::new();
        loop {
            self.inbox.take(&mut arrived);
            if arrived.is_empty() {
                // Nothing waits: QEMU gets what was gathered for it, and the source its acknowledgements.
                self.sink.flush()?;
                self.report();
                self.sleep()?;
                continue;
            }
            for message in arrived.drain(..) {
                match message {
                    ToApply::Chunk { seq, after, payload } => self.chunk(seq, after, payload)?,
                    ToApply::Release { last_seq } => self.last = Some(ChunkSeq(last_seq)),
                    ToApply::NoMore if !self.done => return Err(ApplyError::Incomplete),
                    ToApply::NoMore => {}
                    ToApply::End => return Ok(()),
                }
                self.finish_if_complete()?;
            }
            self.report();
        }
    }

    fn chunk(&mut self, seq: u64, after: u64, payload: Vec<u8>) -> Result<(), ApplyError> {
        let number = |n: u64| u32::try_from(n).map(ChunkSeq).map_err(|_| ApplyError::Sequence(n));
        self.payload_bytes += payload.len() as u64;
        self.receiver.chunk(number(seq)?, number(after)?, payload, &mut self.sink)?;
        self.receiver.take_applied(&mut self.applied);
        for (seq, bytes) in self.applied.drain(..) {
            self.session.applied(seq.0.into(), bytes);
        }
        Ok(())
    }

    fn finish_if_complete(&mut self) -> Result<(), ApplyError> {
        let Some(last) = self.last else { return Ok(()) };
        if self.done || self.receiver.applied_through() < last {
            return Ok(());
        }
        self.done = true;
        self.tell(FromApply::Complete);
        self.sink.release_tail()?;
        Ok(())
    }

    fn report(&mut self) {
        let now = Instant::now();
        if now >= self.report_at {
            self.report_at = now + REPORT_INTERVAL;
            self.tell(FromApply::Progress(Progress {
                pages_total: self.sink.pages_total(),
                pages_written: self.sink.pages_written(),
                payload_bytes: self.payload_bytes,
            }));
        }
    }

    fn sleep(&self) -> Result<(), ApplyError> {
        let mut fds = [PollFd::new(self.inbox.fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(ApplyError::Poll(e.into())),
        }
    }

    fn tell(&self, what: FromApply) {
        let _ = self.out.send(what);
    }
}
