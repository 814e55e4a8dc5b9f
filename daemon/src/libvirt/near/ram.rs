//! A guest's memory on its way: its pages go through the engine, and when it is to be stopped is decided by the policy, as far as QEMU asks.
//!
//! What QEMU and libvirt say to each other about the end is passed on: SHUT is the waiting QEMU's, and stopping the guest is libvirt's. Only
//! SWITCHOVER_ACK is held back, until the policy wants the guest stopped: a QEMU that waits for it goes on copying. One that does not stops
//! when it thinks that it is time; it is read no faster than the link takes, so that it knows how long the rest will take.

use super::conduit::{ConduitError, EndsPump, Opened};
use crate::api::wire::Numbers;
use crate::daemon::Daemon;
use crate::mailbox::FromPeer;
use crate::protocol::libvirt::{ToFar, ToNear};
use crate::protocol::{self, Refusal};
use crate::source::intake::Intake;
use crate::source::pump::{Closes, FromPump, Pump, PumpError, ToPump};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{Delta, HoldBack, Source, SourceConfig};
use hikyaku_qemu::return_path::{Message, Reader};
use hikyaku_transport::{Priority, TxSession};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// What is told of it.
#[derive(Debug)]
pub enum Told {
    Numbers(Numbers),
    /// All of it, as it is.
    Relayed,
    /// Not understood from there on, and relayed as it is.
    WentRaw(String),
    /// All of the guest's memory was read: it stands.
    Stands,
    /// The waiting QEMU says that it is done, and with what error.
    Shut(u32),
}

/// What it takes.
pub struct Plan {
    pub downtime: Duration,
    pub told: UnboundedSender<Told>,
}

/// Until QEMU closes its socket, or the waiting one does.
pub async fn run(
    daemon: &Daemon,
    socket: UnixStream,
    opened: Opened,
    plan: Plan,
) -> Result<(), ConduitError> {
    let (out, from_pump) = unbounded_channel();
    let mut engine = engine(daemon, plan.downtime);
    engine.dictionary_slots(opened.connected.dictionary_slots);
    let pump = Pump {
        qemu: socket,
        engine,
        intake: Intake::native(),
        tx: opened.session.clone(),
        workers: daemon.workers.clone(),
        inbox: opened.inbox.clone(),
        out,
        // It closes when the migration is over, and when it is given up: what it had not given then nobody wants.
        closes: Closes::Fails,
    };
    pump.start().map_err(ConduitError::Resources)?;
    let mut running = Running {
        opened,
        told: plan.told,
        reader: Reader::new(),
        wanted: false,
        acked: false,
        released: false,
        down: false,
        raw: false,
        shut: false,
        taken: 0,
    };
    let _ends = EndsPump(running.opened.inbox.clone());
    let mut from_pump = from_pump;
    let ended = loop {
        tokio::select! {
            message = running.opened.mailbox.next() => match running.answered(message) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            },
            told = from_pump.recv() => match running.pumped(told) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
        running.release_if_due().await;
    };
    running.opened.inbox.push(ToPump::End);
    while let Some(told) = from_pump.recv().await {
        if let FromPump::Ended(_) = told {
            break;
        }
    }
    match &ended {
        Ok(()) => running.opened.session.close(Refusal::Done as u16, "closed"),
        Err(error) => running.opened.session.close(Refusal::Other as u16, &error.to_string()),
    }
    ended
}

fn engine(daemon: &Daemon, downtime: Duration) -> Source {
    let memory = &daemon.config.memory;
    let config = SourceConfig {
        staging_bytes: memory.staging as usize,
        workers: daemon.workers.count(),
        encode_jobs: 2 * daemon.workers.count(),
        delta: memory.bases.map_or(Delta::Auto, |bytes| Delta::Always {
            base_budget_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        }),
        dictionary_slots: memory.dictionary_slots(),
        // Until it is known that QEMU waits.
        hold_back: HoldBack::Rate(downtime),
        tail_as_it_comes: true,
        idle_pause: daemon.config.guest.sync_interval,
        ..SourceConfig::default()
    };
    let policy = AdaptiveConfig {
        downtime_target: downtime,
        // libvirt's, and whoever watches it.
        deadline: Duration::MAX,
        ..AdaptiveConfig::default()
    };
    Source::new(config, Box::new(Adaptive::new(policy)))
}

struct Running {
    opened: Opened,
    told: UnboundedSender<Told>,
    reader: Reader,
    /// The policy wants the guest stopped.
    wanted: bool,
    /// The waiting QEMU would let it be: so QEMU here waits for that.
    acked: bool,
    /// QEMU here has been told.
    released: bool,
    down: bool,
    /// It is relayed as it is, and the policy sees nothing of it.
    raw: bool,
    /// The waiting QEMU has said its last word.
    shut: bool,
    /// Of its words, in all.
    taken: u64,
}

impl Running {
    fn session(&self) -> &TxSession {
        &self.opened.session
    }

    /// False: the end.
    fn answered(&mut self, message: Option<FromPeer>) -> Result<bool, ConduitError> {
        let message = match message {
            Some(FromPeer::Message(message)) => message,
            Some(FromPeer::LinkDown(_)) => {
                self.down = true;
                self.opened.inbox.push(ToPump::LinkDown);
                return Ok(true);
            }
            Some(FromPeer::LinkUp) => {
                self.down = false;
                // What is left, and how fast it goes, is not what it was.
                self.wanted = self.raw;
                self.opened.inbox.push(ToPump::LinkUp);
                return Ok(true);
            }
            Some(FromPeer::Closed { code, .. }) if Refusal::from(code) == Refusal::Done => return Ok(false),
            Some(FromPeer::Closed { text, .. }) => return Err(ConduitError::Closed { text }),
            Some(FromPeer::Lost(lost)) => return Err(lost.into()),
            Some(FromPeer::Flood) => return Err(ConduitError::Unexpected("more than was let through")),
            None => return Err(ConduitError::Closed { text: "without a word".into() }),
        };
        match protocol::decode(&message)? {
            ToNear::Bytes(bytes) => {
                let (mut shut, mut acks) = (None, false);
                let read = self.reader.push(&bytes, |message| match message {
                    Message::Shut(error) => shut = Some(error),
                    Message::SwitchoverAck => acks = true,
                    _ => {}
                });
                if acks || read.is_err() {
                    return Err(ConduitError::Unexpected("what no QEMU says on its return path"));
                }
                if let Some(error) = shut {
                    self.shut = true;
                    self.tell(Told::Shut(error));
                }
                self.taken += bytes.len() as u64;
                self.opened.inbox.push(ToPump::ReturnPath(bytes));
                // QEMU always reads it, and says little on it.
                self.session().message(protocol::encode(&ToFar::Taken { bytes: self.taken })?)?;
            }
            ToNear::SwitchoverAck => {
                self.acked = true;
                self.opened.inbox.push(ToPump::HoldBack(HoldBack::Ack));
            }
            ToNear::End => return Ok(false),
        }
        Ok(true)
    }

    /// False: the end.
    fn pumped(&mut self, told: Option<FromPump>) -> Result<bool, ConduitError> {
        match told {
            Some(FromPump::Numbers(numbers)) => self.tell(Told::Numbers(numbers)),
            Some(FromPump::Switch) => self.wanted = true,
            Some(FromPump::WentRaw(why)) => {
                // It goes through in order now; when to stop is QEMU's to say.
                (self.raw, self.wanted) = (true, true);
                self.tell(Told::WentRaw(why));
            }
            Some(FromPump::RamEnded) => {
                self.opened.inbox.push(ToPump::GuestStopped);
                self.session().set_priority(Priority::Urgent);
                self.tell(Told::Stands);
            }
            Some(FromPump::Abort(why)) => return Err(why.into()),
            // It closes its socket when it has heard SHUT, and when its migration is given up: libvirt knows which.
            Some(FromPump::Ended(Err(PumpError::QemuClosed))) => return Ok(false),
            Some(FromPump::Ended(Err(error))) if !self.shut => return Err(error.into()),
            Some(FromPump::Ended(_)) | None => return Ok(false),
            Some(_) => {}
        }
        Ok(true)
    }

    /// Lets QEMU stop the guest, when that is due; once.
    async fn release_if_due(&mut self) {
        if !self.wanted || !self.acked || self.released || self.down {
            return;
        }
        self.released = true;
        if self.raw {
            // When it does is QEMU's to say and is not seen: it is to know, to the end, how slow the link is.
            return self.let_stop();
        }
        // A queue on the path would be part of the stop.
        let ebb = self.session().ebb().await;
        self.session().set_priority(Priority::Urgent);
        self.let_stop();
        // It will, within moments, and is read without a pause until it has.
        self.opened.inbox.push(ToPump::GuestStopped);
        drop(ebb);
    }

    fn let_stop(&self) {
        if let Ok(ack) = Message::SwitchoverAck.to_bytes() {
            self.opened.inbox.push(ToPump::ReturnPath(ack));
        }
    }

    fn tell(&self, what: Told) {
        let _ = self.told.send(what);
    }
}
