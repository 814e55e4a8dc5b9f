//! Lanes over `epoll`, `send` and `recv`.
//!
//! Edge-triggered: a lane remembers whether its socket is readable and writable until the kernel says otherwise. Each
//! turn gives every lane a bounded share, so no lane starves another of the same thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, send};

use super::engine::{After, Command, Core, Inbox, NotsentLow, Pacing, received, shut_down};
use super::tx::Load;
use crate::bond::Bond;
use crate::sys::recv_append;

/// System calls one lane may make before the next lane's turn: a few frames.
const CALLS_PER_TURN: usize = 8;
const WAKE: u64 = u64::MAX;

struct Lane {
    bond: Arc<Bond>,
    socket: Arc<OwnedFd>,
    core: Core,
    readable: bool,
    writable: bool,
    pacing: Pacing,
    low: NotsentLow,
    /// See [`After::Faulted`].
    over: bool,
}

#[derive(PartialEq)]
enum Turn {
    /// Its share is used up.
    Again,
    /// Until its socket changes.
    Waiting,
    /// Until there is a chunk.
    Hungry,
    /// Until a limit lets more of its frame go.
    Later(Instant),
    Faulted,
    /// Its connection ended.
    Ended(String),
}

pub fn run(inbox: &Inbox) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(inbox.waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
    let mut lanes: Vec<Option<Lane>> = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let mut again = false;
        let mut hungry = false;
        let mut wake_at: Option<Instant> = None;
        for slot in &mut lanes {
            let Some(lane) = slot else { continue };
            match lane.turn(inbox) {
                Turn::Again => again = true,
                Turn::Hungry => hungry = true,
                Turn::Later(due) => wake_at = sooner(wake_at, Some(due)),
                Turn::Waiting => {}
                Turn::Faulted => lane.over = true,
                Turn::Ended(what) => {
                    if let Some(lane) = slot.take() {
                        lane.drop_with(&what);
                    }
                }
            }
        }
        if hungry && !again {
            inbox.waker.set_hungry(true);
            let now = Instant::now();
            for lane in lanes.iter().flatten().filter(|lane| lane.is_hungry()) {
                wake_at = sooner(wake_at, lane.bond.link.queue.ready_at(now));
            }
        }
        let timeout = if again { EpollTimeout::ZERO } else { timeout(wake_at) };
        let count = match epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        inbox.waker.set_hungry(false);
        for event in &events[..count] {
            if event.data() == WAKE {
                inbox.waker.reset();
                if !obey(inbox, &epoll, &mut lanes)? {
                    return Ok(());
                }
                continue;
            }
            let slot = usize::try_from(event.data()).ok().and_then(|i| lanes.get_mut(i));
            if let Some(Some(lane)) = slot {
                let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
                lane.readable |=
                    event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | failed);
                lane.writable |= event.events().intersects(EpollFlags::EPOLLOUT | failed);
            }
        }
    }
}

/// False: stop.
fn obey(inbox: &Inbox, epoll: &Epoll, lanes: &mut Vec<Option<Lane>>) -> io::Result<bool> {
    for command in inbox.take() {
        match command {
            Command::Add(new) => {
                let lane = Lane {
                    bond: new.bond,
                    socket: new.socket,
                    core: new.core,
                    readable: true,
                    writable: true,
                    pacing: Pacing::default(),
                    low: NotsentLow::default(),
                    over: false,
                };
                let slot = lanes.iter().position(Option::is_none).unwrap_or(lanes.len());
                let interest =
                    EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                epoll.add(lane.socket.as_fd(), EpollEvent::new(interest, slot as u64))?;
                if slot == lanes.len() {
                    lanes.push(None);
                }
                lanes[slot] = Some(lane);
            }
            Command::Stop => return Ok(false),
            close => {
                for slot in lanes.iter_mut() {
                    if slot.as_ref().is_some_and(|lane| close.closes(&lane.bond, &lane.core))
                        && let Some(lane) = slot.take()
                    {
                        lane.drop_with("closed here");
                    }
                }
            }
        }
    }
    Ok(true)
}

fn sooner(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// Whole milliseconds, upwards: what is late by less is made up for.
fn timeout(wake_at: Option<Instant>) -> EpollTimeout {
    let Some(wake_at) = wake_at else { return EpollTimeout::NONE };
    let left = wake_at.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000);
    EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
}

impl Lane {
    fn drop_with(self, what: &str) {
        shut_down(&self.socket);
        self.core.dropped(&self.bond);
        self.bond.lane_down(self.core.id(), self.core.epoch(), what);
    }

    fn is_hungry(&self) -> bool {
        matches!(&self.core, Core::Tx(tx) if tx.is_empty()) && self.writable && !self.over
    }

    fn turn(&mut self, inbox: &Inbox) -> Turn {
        if self.over {
            return Turn::Waiting;
        }
        match &mut self.core {
            Core::Tx(tx) => {
                if self.readable {
                    // Nothing is ever sent back on a lane, so this is the end, or nothing.
                    match recv_append(self.socket.as_fd(), &mut Vec::new(), 1) {
                        Ok(0) => return Turn::Ended("closed by the peer".into()),
                        Ok(_) => {
                            return Turn::Ended(
                                "the peer sent something on a lane that only receives".into(),
                            );
                        }
                        Err(error) if would_block(&error) => self.readable = false,
                        Err(error) => return Turn::Ended(error.to_string()),
                    }
                }
                for _ in 0..CALLS_PER_TURN {
                    if !self.writable {
                        return Turn::Waiting;
                    }
                    match tx.load(&self.bond.link.queue) {
                        Load::Ready => {}
                        Load::Later(due) => return Turn::Later(due),
                        Load::Nothing => return Turn::Hungry,
                    }
                    self.pacing.set(&self.socket, tx.pace());
                    self.low.set(&self.socket, tx.notsent_low(self.bond.link.sockets.notsent_low_bytes));
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    match send(self.socket.as_raw_fd(), tx.unsent(), flags) {
                        Ok(bytes) => {
                            tx.advance(bytes);
                            self.bond.link.sent(bytes);
                        }
                        Err(Errno::EAGAIN) => self.writable = false,
                        Err(Errno::EINTR) => {}
                        Err(error) => return Turn::Ended(io::Error::from(error).to_string()),
                    }
                }
            }
            Core::Rx(rx) => {
                for _ in 0..CALLS_PER_TURN {
                    if !self.readable {
                        return Turn::Waiting;
                    }
                    let (buffer, want) = rx.space();
                    match recv_append(self.socket.as_fd(), buffer, want) {
                        Ok(0) => return Turn::Ended("closed by the peer".into()),
                        Ok(_) => {
                            if received(&self.bond, rx, inbox.now_ms()) == After::Faulted {
                                return Turn::Faulted;
                            }
                        }
                        Err(error) if would_block(&error) => self.readable = false,
                        Err(error) => return Turn::Ended(error.to_string()),
                    }
                }
            }
        }
        Turn::Again
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
