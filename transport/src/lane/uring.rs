//! Lanes over io_uring.
//!
//! Each lane has one operation with the kernel: a whole frame to send, or the rest of a header or body to receive
//! (`MSG_WAITALL`: the kernel goes on by itself until it has all). A sending lane has a second one, which only notices
//! that the peer closed. All that became ready in a turn goes to the kernel in one system call.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::engine::{After, Command, Core, Inbox, NotsentLow, Pacing, received, shut_down};
use super::tx::Load;
use crate::bond::Bond;
use crate::sys::{Completion, OperationKind, Ring};

const WAKE: u64 = u64::MAX;

struct Lane {
    bond: Arc<Bond>,
    socket: Arc<OwnedFd>,
    core: Core,
    pacing: Pacing,
    low: NotsentLow,
    /// Its frame's operation is with the kernel.
    busy: bool,
    /// So is the one that notices the end.
    watched: bool,
    /// See [`After::Faulted`].
    over: bool,
    /// Why it is to go as soon as the kernel has given everything back.
    closing: Option<String>,
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
    ring.poll_readable(WAKE, inbox.waker.as_fd());
    loop {
        let mut hungry = false;
        let mut wake_at: Option<Instant> = None;
        for (slot, entry) in lanes.iter_mut().enumerate() {
            let Some(lane) = entry else { continue };
            if let Some(what) = &lane.closing
                && !lane.busy
                && !lane.watched
            {
                lane.core.dropped(&lane.bond);
                lane.bond.lane_down(lane.core.id(), lane.core.epoch(), what);
                *entry = None;
            } else if !lane.over && lane.closing.is_none() {
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
                wake_at = wake_at.into_iter().chain(lane.bond.link.queue.ready_at(now)).min();
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
                let lane = Lane {
                    bond: new.bond,
                    socket: new.socket,
                    core: new.core,
                    pacing: Pacing::default(),
                    low: NotsentLow::default(),
                    busy: false,
                    watched: false,
                    over: false,
                    closing: None,
                };
                match lanes.iter().position(Option::is_none) {
                    Some(slot) => lanes[slot] = Some(lane),
                    None => lanes.push(Some(lane)),
                }
            }
            Command::Stop => {
                stop = true;
                lanes.iter_mut().flatten().for_each(|lane| lane.close("this node has stopped"));
            }
            close => lanes
                .iter_mut()
                .flatten()
                .filter(|lane| close.closes(&lane.bond, &lane.core))
                .for_each(|lane| lane.close("closed here")),
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
                match tx.load(&self.bond.link.queue) {
                    Load::Ready => {}
                    Load::Later(due) => return Started::Later(due),
                    Load::Nothing => return Started::Hungry,
                }
                self.pacing.set(&self.socket, tx.pace());
                self.low.set(&self.socket, tx.notsent_low(self.bond.link.sockets.notsent_low_bytes));
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
        matches!(&self.core, Core::Tx(tx) if tx.is_empty())
            && !self.busy
            && !self.over
            && self.closing.is_none()
    }

    fn complete(&mut self, done: Completion, inbox: &Inbox) {
        let watch = done.key & 1 == 1;
        if watch {
            self.watched = false;
        } else {
            self.busy = false;
        }
        let outcome = match (&mut self.core, done.kind, done.result) {
            (_, OperationKind::Recv, Ok(0)) => Err("closed by the peer".to_owned()),
            (Core::Tx(_), OperationKind::Recv, Ok(_)) => {
                Err("the peer sent something on a lane that only receives".to_owned())
            }
            (Core::Tx(tx), OperationKind::Send, Ok(bytes)) => {
                tx.give_back(done.buffer);
                tx.advance(bytes);
                self.bond.link.sent(bytes);
                Ok(())
            }
            (Core::Rx(rx), OperationKind::Recv, Ok(_)) => {
                rx.give_back(done.buffer);
                if !self.over && received(&self.bond, rx, inbox.now_ms()) == After::Faulted {
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
            self.close(&what);
        }
    }

    fn close(&mut self, what: &str) {
        self.closing.get_or_insert_with(|| what.to_owned());
        shut_down(&self.socket);
    }
}
