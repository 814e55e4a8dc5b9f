//! Lanes over io_uring.
//!
//! Each lane has one operation with the kernel: a whole frame to send, or the rest of a header or body to receive
//! (`MSG_WAITALL`: the kernel goes on by itself until it has all). A sending lane has a second one, which only notices
//! that the peer closed. All that became ready in a turn goes to the kernel in one system call.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Command, Core, Inbox, Pacing, connection_lost, received, shut_down};
use super::tx::Load;
use crate::link::LinkCore;
use crate::sys::{Completion, OperationKind, Ring};

const WAKE: u64 = u64::MAX;

struct Lane {
    link: Arc<LinkCore>,
    socket: Arc<OwnedFd>,
    core: Core,
    pacing: Pacing,
    /// Its frame's operation is with the kernel.
    busy: bool,
    /// So is the one that notices the end.
    watched: bool,
    /// Nothing more is started; see `plain.rs`.
    over: bool,
    /// The link is closed: the lane goes when the kernel has given everything back.
    closing: bool,
}

enum Started {
    WithKernel,
    /// There was no chunk to send.
    Hungry,
    /// A limit lets more of its frame go then.
    Later(Instant),
}

pub fn run(inbox: &Inbox, mut ring: Ring) -> io::Result<()> {
    let mut lanes: Vec<Option<Lane>> = Vec::new();
    let mut completed = Vec::new();
    let mut stopping = false;
    let mut first = 0;
    ring.poll_readable(WAKE, inbox.waker.as_fd());
    loop {
        let mut hungry = false;
        let mut wake_at: Option<Instant> = None;
        // Not always the same lane first: under a limit the first takes what there is.
        let (count, from) = (lanes.len(), first);
        first = (first + 1) % count.max(1);
        for slot in (0..count).map(|n| (from + n) % count) {
            let Some(lane) = &mut lanes[slot] else { continue };
            if lane.closing && !lane.busy && !lane.watched {
                lanes[slot] = None;
            } else if !lane.over {
                match lane.start(slot as u64, &mut ring) {
                    Started::WithKernel => {}
                    Started::Hungry => hungry = true,
                    Started::Later(due) => wake_at = Some(wake_at.map_or(due, |at| at.min(due))),
                }
            }
        }
        // Only the poll of the waker is left.
        if stopping && ring.in_flight() <= 1 {
            return Ok(());
        }
        if hungry {
            inbox.waker.set_hungry(true);
            let now = Instant::now();
            for lane in lanes.iter().flatten().filter(|lane| lane.is_hungry()) {
                wake_at = wake_at.into_iter().chain(lane.link.queue.ready_at(now)).min();
            }
            if wake_at.is_some_and(|at| at <= now) {
                inbox.waker.set_hungry(false);
                continue;
            }
        }
        let timeout = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
        ring.turn(&mut completed, timeout)?;
        inbox.waker.set_hungry(false);
        for done in completed.drain(..) {
            if done.key == WAKE {
                inbox.waker.reset();
                stopping |= obey(inbox, &mut lanes);
                ring.poll_readable(WAKE, inbox.waker.as_fd());
            } else if let Some(Some(lane)) =
                usize::try_from(done.key >> 1).ok().and_then(|slot| lanes.get_mut(slot))
            {
                lane.complete(done, inbox);
            }
        }
    }
}

/// True: stop.
fn obey(inbox: &Inbox, lanes: &mut Vec<Option<Lane>>) -> bool {
    let mut stop = false;
    for command in inbox.take() {
        match command {
            Command::Add(new) => {
                // On a non-blocking socket the kernel would answer "try again" instead of waiting by itself.
                let socket = std::net::TcpStream::from(new.socket);
                if let Err(error) = socket.set_nonblocking(false) {
                    new.link.fault(connection_lost(&new.link, new.core.id(), error));
                    continue;
                }
                let lane = Lane {
                    link: new.link,
                    socket: Arc::new(socket.into()),
                    core: new.core,
                    pacing: Pacing::default(),
                    busy: false,
                    watched: false,
                    over: false,
                    closing: false,
                };
                match lanes.iter().position(Option::is_none) {
                    Some(slot) => lanes[slot] = Some(lane),
                    None => lanes.push(Some(lane)),
                }
            }
            Command::Close(link) => {
                lanes
                    .iter_mut()
                    .flatten()
                    .filter(|lane| Arc::ptr_eq(&lane.link, &link))
                    .for_each(Lane::close);
            }
            Command::Stop => {
                stop = true;
                lanes.iter_mut().flatten().for_each(Lane::close);
            }
        }
    }
    stop
}

impl Lane {
    /// Gives the kernel what it lacks.
    fn start(&mut self, slot: u64, ring: &mut Ring) -> Started {
        match &mut self.core {
            Core::Tx(tx) => {
                if !self.watched {
                    self.watched = true;
                    ring.recv(slot << 1 | 1, &self.socket, Vec::new(), 1);
                }
                if self.busy {
                    return Started::WithKernel;
                }
                match tx.load(&self.link.queue) {
                    Load::Ready => {}
                    Load::Later(due) => return Started::Later(due),
                    Load::Nothing => return Started::Hungry,
                }
                self.pacing.set(&self.socket, tx.pace());
                let (buffer, part) = tx.lend();
                ring.send(slot << 1, &self.socket, buffer, part);
            }
            Core::Rx(rx) => {
                if self.busy {
                    return Started::WithKernel;
                }
                let (buffer, want) = rx.lend();
                ring.recv(slot << 1, &self.socket, buffer, want);
            }
        }
        self.busy = true;
        Started::WithKernel
    }

    fn is_hungry(&self) -> bool {
        matches!(&self.core, Core::Tx(tx) if tx.is_empty()) && !self.busy && !self.over
    }

    fn complete(&mut self, done: Completion, inbox: &Inbox) {
        let watch = done.key & 1 == 1;
        if watch {
            self.watched = false;
        } else {
            self.busy = false;
        }
        let id = self.core.id();
        let outcome = match (&mut self.core, done.kind, done.result) {
            (_, OperationKind::Recv, Ok(0)) => Err("closed by the peer".to_owned()),
            (Core::Tx(_), OperationKind::Recv, Ok(_)) => {
                Err("the peer sent something on a lane that only receives".to_owned())
            }
            (Core::Tx(tx), OperationKind::Send, Ok(bytes)) => {
                tx.give_back(done.buffer);
                tx.advance(bytes);
                self.link.sent(bytes);
                Ok(())
            }
            (Core::Rx(rx), OperationKind::Recv, Ok(_)) => {
                rx.give_back(done.buffer);
                if !self.over && !received(&self.link, rx, inbox.now_ms()) {
                    self.over = true;
                }
                Ok(())
            }
            (_, _, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {
                match &mut self.core {
                    Core::Tx(tx) if !watch => tx.give_back(done.buffer),
                    Core::Rx(rx) => rx.give_back(done.buffer),
                    Core::Tx(_) => {}
                }
                Ok(())
            }
            (_, _, Err(error)) => Err(error.to_string()),
            (_, OperationKind::Send | OperationKind::Poll, Ok(_)) => Ok(()),
        };
        if let Err(what) = outcome
            && !self.over
        {
            self.over = true;
            self.link.fault(connection_lost(&self.link, id, what));
        }
    }

    fn close(&mut self) {
        self.over = true;
        self.closing = true;
        shut_down(&self.socket);
    }
}
