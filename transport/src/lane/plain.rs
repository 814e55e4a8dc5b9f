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

use super::engine::{Command, Core, Inbox, Pacing, connection_lost, received, shut_down};
use super::tx::Load;
use crate::link::LinkCore;
use crate::sys::recv_append;

/// System calls one lane may make before the next lane's turn: a few frames.
const CALLS_PER_TURN: usize = 8;
const WAKE: u64 = u64::MAX;

struct Lane {
    link: Arc<LinkCore>,
    socket: OwnedFd,
    core: Core,
    readable: bool,
    writable: bool,
    pacing: Pacing,
    /// Nothing more is done with it; its socket stays open until the link is closed, so that the peer hears the reason
    /// first.
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
    Over,
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
        for lane in lanes.iter_mut().flatten() {
            match lane.turn(inbox) {
                Turn::Again => again = true,
                Turn::Hungry => hungry = true,
                Turn::Later(due) => wake_at = sooner(wake_at, Some(due)),
                Turn::Waiting => {}
                Turn::Over => lane.over = true,
            }
        }
        if hungry && !again {
            inbox.waker.set_hungry(true);
            let now = Instant::now();
            for lane in lanes.iter().flatten().filter(|lane| lane.is_hungry()) {
                wake_at = sooner(wake_at, lane.link.queue.ready_at(now));
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
                    link: new.link,
                    socket: new.socket,
                    core: new.core,
                    readable: true,
                    writable: true,
                    pacing: Pacing::default(),
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
            Command::Close(link) => {
                for slot in lanes.iter_mut() {
                    if slot.as_ref().is_some_and(|lane| Arc::ptr_eq(&lane.link, &link))
                        && let Some(lane) = slot.take()
                    {
                        shut_down(&lane.socket);
                    }
                }
            }
            Command::Stop => return Ok(false),
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
    fn is_hungry(&self) -> bool {
        matches!(&self.core, Core::Tx(tx) if tx.is_empty()) && self.writable && !self.over
    }

    fn turn(&mut self, inbox: &Inbox) -> Turn {
        if self.over {
            return Turn::Waiting;
        }
        match self.core {
            Core::Tx(_) => self.turn_tx(),
            Core::Rx(_) => self.turn_rx(inbox),
        }
    }

    fn turn_tx(&mut self) -> Turn {
        let Core::Tx(tx) = &mut self.core else { return Turn::Over };
        if self.readable {
            // Nothing is ever sent back on a lane, so this is the end, or nothing.
            match recv_append(self.socket.as_fd(), &mut Vec::new(), 1) {
                Ok(0) => return lost(&self.link, tx.id, "closed by the peer"),
                Ok(_) => {
                    return lost(&self.link, tx.id, "the peer sent something on a lane that only receives");
                }
                Err(error) if would_block(&error) => self.readable = false,
                Err(error) => return lost(&self.link, tx.id, error),
            }
        }
        for _ in 0..CALLS_PER_TURN {
            if !self.writable {
                return Turn::Waiting;
            }
            match tx.load(&self.link.queue) {
                Load::Ready => {}
                Load::Later(due) => return Turn::Later(due),
                Load::Nothing => return Turn::Hungry,
            }
            self.pacing.set(&self.socket, tx.pace());
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), tx.unsent(), flags) {
                Ok(bytes) => {
                    tx.advance(bytes);
                    self.link.sent(bytes);
                    if tx.is_limited() && tx.is_empty() {
                        return Turn::Again;
                    }
                }
                Err(Errno::EAGAIN) => self.writable = false,
                Err(Errno::EINTR) => {}
                Err(error) => return lost(&self.link, tx.id, io::Error::from(error)),
            }
        }
        Turn::Again
    }

    fn turn_rx(&mut self, inbox: &Inbox) -> Turn {
        let Core::Rx(rx) = &mut self.core else { return Turn::Over };
        for _ in 0..CALLS_PER_TURN {
            if !self.readable {
                return Turn::Waiting;
            }
            let (buffer, want) = rx.space();
            match recv_append(self.socket.as_fd(), buffer, want) {
                Ok(0) => return lost(&self.link, rx.id, "closed by the peer"),
                Ok(_) => {
                    if !received(&self.link, rx, inbox.now_ms()) {
                        return Turn::Over;
                    }
                }
                Err(error) if would_block(&error) => self.readable = false,
                Err(error) => return lost(&self.link, rx.id, error),
            }
        }
        Turn::Again
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn lost(link: &LinkCore, lane: crate::names::LaneId, what: impl ToString) -> Turn {
    link.fault(connection_lost(link, lane, what));
    Turn::Over
}
