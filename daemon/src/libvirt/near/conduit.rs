//! One connection at the source, passed on as it is.

use crate::daemon::Daemon;
use crate::id::Id;
use crate::inbox::Inbox;
use crate::libvirt::tap::TapError;
use crate::mailbox::{FromPeer, Mailbox};
use crate::protocol::libvirt::{Conduit, Connected, ToFar, ToNear};
use crate::protocol::{self, Hello, ProtocolError, Refusal};
use crate::source::events::PeerEvents;
use crate::source::intake::Intake;
use crate::source::pump::{Closes, FromPump, Pump, PumpError, ToPump};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{AbortReason, Source, SourceConfig};
use hikyaku_transport::{LinkError, Lost, MessageError, OpenError, SessionId, Share, TxSession};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Of what is answered, so much is taken before it is told; all of it is told at once.
const TOLD_BYTES: u64 = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ConduitError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Pump(#[from] PumpError),
    #[error("memory or descriptors for it: {0}")]
    Resources(io::Error),
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Engine(#[from] AbortReason),
    #[error("the destination ended it: {text}")]
    Closed { text: String },
    #[error("the destination sends {0}, which does not belong there")]
    Unexpected(&'static str),
}

/// Ends the pump, and closes its socket with it, however whoever drives it ends.
pub struct EndsPump(pub Arc<Inbox<ToPump>>);

impl Drop for EndsPump {
    fn drop(&mut self) {
        self.0.push(ToPump::End);
    }
}

/// Its session, which the destination has taken.
pub struct Opened {
    pub session: TxSession,
    pub mailbox: Mailbox,
    pub inbox: Arc<Inbox<ToPump>>,
    pub connected: Connected,
}

/// Has the destination connect to where this one wanted to.
pub async fn open(daemon: &Daemon, peer: &str, hello: Conduit, share: Share) -> Result<Opened, ConduitError> {
    let (id, hello) = (SessionId(Id::random().0), protocol::encode(&Hello::Conduit(hello))?);
    let inbox = Arc::new(Inbox::new().map_err(ConduitError::Resources)?);
    let (events, mailbox) = PeerEvents::new(inbox.clone());
    let link = daemon.link_to(peer).await?;
    let (session, connected) = link.open_sharing(id, hello, Arc::new(events), share).await?;
    Ok(Opened { session, mailbox, inbox, connected: protocol::decode(&connected)? })
}

/// Passes on what is said, until one side closes.
pub async fn run(daemon: &Daemon, socket: UnixStream, opened: Opened) -> Result<(), ConduitError> {
    let Opened { session, mailbox, inbox, .. } = opened;
    let config = SourceConfig {
        workers: daemon.workers.count(),
        encode_jobs: 2 * daemon.workers.count(),
        ..SourceConfig::default()
    };
    // It is never asked: no page passes here.
    let policy = Box::new(Adaptive::new(AdaptiveConfig::default()));
    let (out, from_pump) = unbounded_channel();
    let pump = Pump {
        qemu: socket,
        engine: Source::new(config, policy),
        intake: Intake::raw(),
        tx: session.clone(),
        workers: daemon.workers.clone(),
        inbox: inbox.clone(),
        out,
        closes: Closes::Ends,
    };
    pump.start().map_err(ConduitError::Resources)?;
    let _ends = EndsPump(inbox.clone());
    let mut running = Running { session, mailbox, inbox, from_pump, back: Back::default() };
    let ended = running.run().await;
    running.inbox.push(ToPump::End);
    // Its socket is closed when this returns.
    while let Some(told) = running.from_pump.recv().await {
        if let FromPump::Ended(_) = told {
            break;
        }
    }
    match &ended {
        Ok(()) => running.session.close(Refusal::Done as u16, "closed"),
        Err(error) => running.session.close(Refusal::Other as u16, &error.to_string()),
    }
    ended
}

struct Running {
    session: TxSession,
    mailbox: Mailbox,
    inbox: Arc<Inbox<ToPump>>,
    from_pump: UnboundedReceiver<FromPump>,
    back: Back,
}

/// What is answered, in bytes from the beginning.
#[derive(Default)]
struct Back {
    came: u64,
    written: u64,
    told: u64,
    ended: bool,
}

impl Back {
    /// So many have been written now; what of that is to be told.
    fn wrote(&mut self, written: u64) -> Option<u64> {
        self.written = written;
        let told = self.written - self.told >= TOLD_BYTES || self.written == self.came;
        told.then(|| {
            self.told = written;
            written
        })
    }

    fn is_over(&self) -> bool {
        self.ended && self.written == self.came
    }
}

impl Running {
    async fn run(&mut self) -> Result<(), ConduitError> {
        while !self.back.is_over() {
            tokio::select! {
                message = self.mailbox.next() => match message {
                    Some(FromPeer::Message(message)) => self.answered(protocol::decode(&message)?)?,
                    Some(FromPeer::LinkDown(_)) => self.inbox.push(ToPump::LinkDown),
                    Some(FromPeer::LinkUp) => self.inbox.push(ToPump::LinkUp),
                    Some(FromPeer::Closed { code, .. }) if Refusal::from(code) == Refusal::Done => return Ok(()),
                    Some(FromPeer::Closed { text, .. }) => return Err(ConduitError::Closed { text }),
                    Some(FromPeer::Lost(lost)) => return Err(lost.into()),
                    Some(FromPeer::Flood) => return Err(ConduitError::Unexpected("more than was let through")),
                    None => return Err(ConduitError::Closed { text: "without a word".into() }),
                },
                told = self.from_pump.recv() => match told {
                    Some(FromPump::Returned(written)) => if let Some(bytes) = self.back.wrote(written) {
                        self.session.message(protocol::encode(&ToFar::Taken { bytes })?)?;
                    },
                    Some(FromPump::AllSent { last_seq }) => {
                        self.session.message(protocol::encode(&ToFar::End { last_seq: last_seq.0 })?)?;
                    }
                    Some(FromPump::Abort(why)) => return Err(why.into()),
                    Some(FromPump::Ended(Err(error))) => return Err(error.into()),
                    Some(FromPump::Ended(Ok(()))) | None => return Ok(()),
                    Some(_) => {}
                },
            }
        }
        Ok(())
    }

    fn answered(&mut self, answer: ToNear) -> Result<(), ConduitError> {
        match answer {
            ToNear::Bytes(_) if self.back.ended => Err(ConduitError::Unexpected("something behind its end")),
            ToNear::Bytes(bytes) => {
                self.back.came += bytes.len() as u64;
                self.inbox.push(ToPump::ReturnPath(bytes));
                Ok(())
            }
            ToNear::End => {
                self.back.ended = true;
                Ok(())
            }
            ToNear::SwitchoverAck => Err(ConduitError::Unexpected("SWITCHOVER_ACK")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_told_in_large_pieces_and_at_the_end() {
        let mut back = Back { came: 100_000, ..Back::default() };
        assert_eq!(back.wrote(20_000), None);
        assert_eq!(back.wrote(40_000), Some(40_000));
        assert_eq!(back.wrote(60_000), None);
        assert!(!back.is_over());
        assert_eq!(back.wrote(100_000), Some(100_000));
        back.ended = true;
        assert!(back.is_over());
        assert!(Back { ended: true, ..Back::default() }.is_over(), "nothing was answered");
    }
}
