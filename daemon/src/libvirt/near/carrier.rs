//! One connection of a carriage: what it is, and what becomes of it.

use super::asked::{Holding, Known};
use super::conduit::{self, ConduitError};
use super::{Came, Stop, Told, ram};
use crate::daemon::Daemon;
use crate::id::Id;
use crate::libvirt::tap;
use crate::ownership::Phase;
use crate::protocol::PROTOCOL;
use crate::protocol::libvirt::{Conduit, Place};
use crate::registry::Entry;
use crate::source::sharing;
use hikyaku_engine::precopy::AdaptiveConfig;
use hikyaku_transport::{Priority, Share};
use nix::sys::socket::{MsgFlags, recv};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Until what begins a connection is there; QEMU says it at once.
const BEGINNING: Duration = Duration::from_secs(2);
/// By a landing those that belong together come one after the other, each when it is known whose it is.
const BESIDE: Duration = Duration::from_millis(100);
/// How QEMU's stream begins.
const MAGIC: [u8; 4] = *b"QEVM";

/// What one connection is carried with.
pub struct Carrier {
    pub daemon: Rc<Daemon>,
    pub entry: Arc<Entry>,
    pub to: String,
    pub downtime: Option<Duration>,
    pub told: Told,
    pub stop: watch::Receiver<Stop>,
    /// What became of the guest, if that is known otherwise than by its answer.
    pub known: watch::Receiver<Option<Known>>,
    /// The peer's.
    pub incarnation: Id,
    /// A guest is let run once: one Finish has come.
    pub first: Rc<Cell<bool>>,
    /// Connections of this guest's memory that are none of QEMU's plain streams: beside them its plain one carries no pages.
    pub others: Rc<Cell<usize>>,
}

impl Carrier {
    pub async fn carry(&self, came: Came) -> Result<(), ConduitError> {
        match came.place {
            Place::Rpc => self.rpc(came.stream).await,
            Place::Disks => self.relayed(came).await,
            Place::Ram => {
                let beginning = begins(&came.stream, BEGINNING).await;
                if came.port.is_some() && beginning == Beginning::Word(MAGIC) {
                    tokio::time::sleep(BESIDE).await;
                }
                match beginning {
                    Beginning::Word(MAGIC) if self.others.get() == 0 => return self.ram(came).await,
                    Beginning::Word(MAGIC) => return self.relayed(came).await,
                    Beginning::Word(_) | Beginning::Silence => self.others.set(self.others.get() + 1),
                    // Somebody looked. The waiting QEMU would take that for its guest.
                    Beginning::Closed => return Ok(()),
                }
                tracing::warn!(
                    id = %self.entry.id.short(),
                    "a connection for the guest's memory that is none of QEMU's plain streams (--parallel, --tls, --postcopy): it is relayed as it is, without deltas; leave those out"
                );
                self.relayed(came).await
            }
        }
    }

    fn share(&self, urgent: bool) -> Share {
        let share = sharing::share(&self.entry);
        if urgent { Share { priority: Priority::Urgent, ..share } } else { share }
    }

    async fn open(
        &self,
        to: Place,
        port: Option<u16>,
        native: bool,
    ) -> Result<conduit::Opened, ConduitError> {
        let hello = Conduit { protocol: PROTOCOL, carriage: self.entry.id, to, port, native };
        conduit::open(&self.daemon, &self.to, hello, self.share(to == Place::Rpc)).await
    }

    async fn relayed(&self, came: Came) -> Result<(), ConduitError> {
        let opened = self.open(came.place, came.port, false).await?;
        if came.place == Place::Ram {
            let _ = self.told.ram.send(ram::Told::Relayed);
        }
        // By a landing a guest's disks come before anything else of it.
        if came.port.is_some() && self.entry.phase() == Phase::Preparing {
            self.entry.advance(Phase::Copying);
        }
        let sharing = sharing::Follower::start(opened.session.clone(), self.entry.clone());
        let socket = came.stream.into_std().map_err(ConduitError::Resources)?;
        let ended = tokio::select! {
            ended = conduit::run(&self.daemon, socket, opened) => ended,
            () = self.stopped(Stop::Ram) => Ok(()),
        };
        drop(sharing);
        ended
    }

    async fn ram(&self, came: Came) -> Result<(), ConduitError> {
        let opened = self.open(Place::Ram, came.port, true).await?;
        if self.entry.phase() == Phase::Preparing {
            self.entry.advance(Phase::Copying);
        }
        let sharing = sharing::Follower::start(opened.session.clone(), self.entry.clone());
        let socket = came.stream.into_std().map_err(ConduitError::Resources)?;
        let plan = ram::Plan {
            downtime: self.downtime.unwrap_or(AdaptiveConfig::default().downtime_target),
            told: self.told.ram.clone(),
        };
        let ended = tokio::select! {
            ended = ram::run(&self.daemon, socket, opened, plan) => ended,
            () = self.stopped(Stop::Ram) => Ok(()),
        };
        drop(sharing);
        ended
    }

    async fn rpc(&self, stream: UnixStream) -> Result<(), ConduitError> {
        let opened = self.open(Place::Rpc, None, false).await?;
        let (ours, carried) = std::os::unix::net::UnixStream::pair().map_err(ConduitError::Resources)?;
        let ours = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
        let ours = ours.map_err(ConduitError::Resources)?;
        let caller = stream.as_fd().try_clone_to_owned().map_err(ConduitError::Resources)?;
        let holding = Holding {
            daemon: self.daemon.clone(),
            entry: self.entry.clone(),
            peer: self.to.clone(),
            incarnation: self.incarnation,
            caller,
            first: self.first.clone(),
            begun: Cell::new(false),
            stop: self.stop.clone(),
            known: self.known.clone(),
            asked: RefCell::default(),
            told: self.told.asked.clone(),
        };
        let tap = async {
            let tapped = tap::run(stream, ours, self.told.passed.clone(), &holding).await;
            holding.tidy();
            tapped
        };
        let carried = async {
            tokio::select! {
                ended = conduit::run(&self.daemon, carried, opened) => ended,
                // So that whoever waits for an answer is released, though one could still come.
                () = self.stopped(Stop::All) => Ok(()),
            }
        };
        let (tapped, carried) = tokio::join!(tap, carried);
        tapped?;
        carried
    }

    /// Returns when so much, or more, is to stop.
    async fn stopped(&self, what: Stop) {
        stopped(&self.stop, what).await;
    }
}

pub(super) async fn stopped(stop: &watch::Receiver<Stop>, what: Stop) {
    let mut stop = stop.clone();
    let is_told = |told: &Stop| match what {
        Stop::No => true,
        Stop::Ram => *told != Stop::No,
        Stop::All => *told == Stop::All,
    };
    if stop.wait_for(is_told).await.is_err() {
        // The carriage is gone, and with it whoever could say so.
        std::future::pending().await
    }
}

/// What one who connected says first.
#[derive(Debug, PartialEq, Eq)]
pub enum Beginning {
    Word([u8; 4]),
    /// He waits to be spoken to.
    Silence,
    /// He has gone.
    Closed,
}

/// Looks, and takes nothing away.
pub async fn begins(stream: &UnixStream, within: Duration) -> Beginning {
    let looked = tokio::time::timeout(within, async {
        let mut there = [0; 4];
        loop {
            if stream.readable().await.is_err() {
                return Beginning::Closed;
            }
            match recv(stream.as_raw_fd(), &mut there, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
                Ok(4) => return Beginning::Word(there),
                Ok(0) => return Beginning::Closed,
                // Readable it stays: it is looked at again a little later.
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(nix::Error::EAGAIN) => {
                    let _ = stream.try_io(tokio::io::Interest::READABLE, || {
                        Err::<(), _>(io::ErrorKind::WouldBlock.into())
                    });
                }
                Err(_) => return Beginning::Closed,
            }
        }
    });
    looked.await.unwrap_or(Beginning::Silence)
}
