//! One connection at the destination, passed on as it is; or, of a native stream, with the guest's pages put back into it.

use crate::destination::apply::{Apply, ApplyError, FromApply, ToApply};
use crate::destination::events::SourceEvents;
use crate::destination::sink::End;
use crate::destination::way_back::WayBack;
use crate::fail;
use crate::inbox::Inbox;
use crate::mailbox::{FromPeer, Mailbox};
use crate::protocol::libvirt::{Connected, PIECE_BYTES, ToFar, ToNear, WINDOW_BYTES, cost};
use crate::protocol::{self, ProtocolError, Refusal};
use hikyaku_engine::ReceiverConfig;
use hikyaku_qemu::return_path::{Message, Reader, ReturnPathError};
use hikyaku_transport::{AcceptError, Incoming, Lost, MessageError, RxSession};
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[derive(Debug, thiserror::Error)]
pub enum ConduitError {
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("what the waiting QEMU answers is not understood: {0}")]
    ReturnPath(#[from] ReturnPathError),
    #[error("memory or descriptors for it: {0}")]
    Resources(io::Error),
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error("the source ended it: {text}")]
    Closed { text: String },
    #[error("the source sends more than can wait here")]
    Flood,
    #[error("it was ended here")]
    Ended,
}

/// What a conduit is to be like.
pub struct Shape {
    /// Memory for what has arrived and was not taken.
    pub credit: u64,
    /// Of a native stream: what its receiver may hold.
    pub receiver: ReceiverConfig,
    pub native: bool,
    pub dictionary_slots: u16,
}

/// What is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Progress {
        pages_total: u64,
        pages_written: u64,
        payload_bytes: u64,
    },
    /// Of a native stream: the waiting QEMU says that it is done, and with what error.
    Shut(u32),
}

/// Passes on what is said between the source and `socket`, until one side closes.
pub async fn run(
    incoming: Incoming,
    socket: UnixStream,
    shape: Shape,
    told: UnboundedSender<Told>,
) -> Result<(), ConduitError> {
    let parts =
        socket.try_clone().and_then(|write| Ok((WayBack::new(socket)?, write, Arc::new(Inbox::new()?))));
    let (way_back, write, inbox) = match parts {
        Ok(parts) => parts,
        Err(error) => {
            incoming.refuse(Refusal::Other as u16, &error.to_string());
            return Err(ConduitError::Resources(error));
        }
    };
    let (events, mailbox) = SourceEvents::new(inbox.clone());
    let reply = protocol::encode(&Connected { dictionary_slots: shape.dictionary_slots })?;
    let session = incoming.accept(reply, shape.credit, Arc::new(events))?;
    let (out, from_apply) = unbounded_channel();
    let apply = Apply { qemu: write, config: shape.receiver, end: End::PassedOn, inbox: inbox.clone(), out };
    if let Err(error) = apply.start(session.clone()) {
        session.close(Refusal::Other as u16, &error.to_string());
        return Err(ConduitError::Resources(error));
    }
    let reader = shape.native.then(Reader::new);
    let mut running =
        Running { session, mailbox, inbox, from_apply, way_back, reader, window: Window::default(), told };
    let ended = running.run().await;
    running.way_back.shutdown();
    running.inbox.push(ToApply::End);
    match &ended {
        Ok(()) => running.session.close(Refusal::Done as u16, "closed"),
        Err(error) => running.session.close(Refusal::Other as u16, &error.to_string()),
    }
    ended
}

struct Running {
    session: RxSession,
    mailbox: Mailbox,
    inbox: Arc<Inbox<ToApply>>,
    from_apply: UnboundedReceiver<FromApply>,
    way_back: WayBack,
    /// Of what a QEMU answers.
    reader: Option<Reader>,
    window: Window,
    told: UnboundedSender<Told>,
}

impl Running {
    async fn run(&mut self) -> Result<(), ConduitError> {
        let mut buffer = vec![0; PIECE_BYTES];
        // It was closed here, and the source has been told; nothing more is taken here.
        let (mut closed, mut takes) = (false, true);
        loop {
            tokio::select! {
                message = self.mailbox.next() => match message {
                    Some(FromPeer::Message(message)) => match protocol::decode(&message)? {
                        ToFar::Taken { bytes } => self.window.taken(bytes),
                        ToFar::End { last_seq } => self.inbox.push(ToApply::Release { last_seq }),
                    },
                    Some(FromPeer::LinkDown(_) | FromPeer::LinkUp) => {}
                    Some(FromPeer::Closed { code, .. }) if Refusal::from(code) == Refusal::Done => return Ok(()),
                    Some(FromPeer::Closed { text, .. }) => return Err(ConduitError::Closed { text }),
                    Some(FromPeer::Lost(lost)) => return Err(lost.into()),
                    Some(FromPeer::Flood) => return Err(ConduitError::Flood),
                    None => return Err(ConduitError::Ended),
                },
                told = self.from_apply.recv(), if takes => match told {
                    // It was closed there, and all of it is being written here: closed here, too, when it is.
                    Some(FromApply::Complete) => self.inbox.push(ToApply::End),
                    Some(FromApply::Progress(progress)) if self.reader.is_some() => self.tell(Told::Progress {
                        pages_total: progress.pages_total,
                        pages_written: progress.pages_written,
                        payload_bytes: progress.payload_bytes,
                    }),
                    Some(FromApply::Progress(_)) => {}
                    // Whoever takes it has closed it, which shows when he is read from: what he said before is not lost.
                    Some(FromApply::Ended(Err(error))) if error.is_qemus() => takes = false,
                    Some(FromApply::Ended(Err(error))) => return Err(error.into()),
                    Some(FromApply::Ended(Ok(()))) | None => return Ok(()),
                },
                read = self.way_back.read(&mut buffer), if !closed && self.window.is_open() => match read {
                    Ok(0) | Err(_) => {
                        closed = true;
                        self.say(&ToNear::End)?;
                    }
                    Ok(got) => self.pass_back(&buffer[..got])?,
                },
            }
        }
    }

    fn pass_back(&mut self, bytes: &[u8]) -> Result<(), ConduitError> {
        let Some(reader) = &mut self.reader else { return self.say_bytes(bytes.to_vec()) };
        let (mut on, mut acked, mut shut, mut broken) = (Vec::new(), false, None, None);
        reader.push(bytes, |message| match message {
            Message::SwitchoverAck => acked = true,
            other => {
                if let Message::Shut(error) = other {
                    fail::point("libvirt.shut");
                    shut = Some(error);
                }
                broken = other.write(&mut on).err().or(broken);
            }
        })?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        if acked {
            self.say(&ToNear::SwitchoverAck)?;
        }
        if let Some(error) = shut {
            self.tell(Told::Shut(error));
        }
        if on.is_empty() { Ok(()) } else { self.say_bytes(on) }
    }

    fn say_bytes(&mut self, bytes: Vec<u8>) -> Result<(), ConduitError> {
        self.window.sent(bytes.len());
        self.say(&ToNear::Bytes(bytes))
    }

    fn say(&self, what: &ToNear) -> Result<(), ConduitError> {
        Ok(self.session.message(protocol::encode(what)?)?)
    }

    fn tell(&self, what: Told) {
        // Whoever listened is gone with the carriage, which ends this.
        let _ = self.told.send(what);
    }
}

/// What was answered and is not known to have been taken.
#[derive(Debug, Default)]
struct Window {
    sent: u64,
    /// Where each message ends, and what it costs.
    out: VecDeque<(u64, u64)>,
    used: u64,
}

impl Window {
    fn is_open(&self) -> bool {
        self.used < WINDOW_BYTES
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.out.push_back((self.sent, cost(bytes)));
        self.used += cost(bytes);
    }

    fn taken(&mut self, through: u64) {
        while let Some((end, cost)) = self.out.front().copied().filter(|(end, _)| *end <= through) {
            debug_assert!(end <= self.sent);
            self.used -= cost;
            self.out.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::libvirt::MESSAGE_COST_BYTES;

    #[test]
    fn no_more_is_answered_than_can_wait() {
        for bytes in [1, MESSAGE_COST_BYTES as usize, PIECE_BYTES] {
            let mut window = Window::default();
            let mut sent = 0;
            while window.is_open() {
                window.sent(bytes);
                sent += 1;
            }
            assert!((16..=128).contains(&sent), "{sent} messages of {bytes} bytes");
            window.taken(bytes as u64 - 1);
            assert!(!window.is_open());
            window.taken(bytes as u64);
            assert!(window.is_open());
            window.taken(u64::MAX);
            assert_eq!(window.used, 0);
        }
    }
}
