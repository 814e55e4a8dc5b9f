//! How sessions begin: asked for, answered, and what a sender may send meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{LinkCore, OpenAnswer, lock, shorten};
use crate::error::{Lost, OpenError};
use crate::events::{RxEvents, TxEvents};
use crate::names::SessionId;
use crate::rx_session::RxAccount;
use crate::session::{Share, TxSession};
use crate::voice::Voice;
use crate::wire::control::Message;

/// A question under way.
pub struct Asked {
    pub answer: oneshot::Sender<OpenAnswer>,
    /// Its session has what is agreed for the link to be sent ahead of an answer.
    pub early: bool,
}

/// The answer to a session that was asked for. Dropping it before it came takes the question back.
pub struct Opening {
    link: Arc<LinkCore>,
    wire: u32,
    answered: oneshot::Receiver<OpenAnswer>,
    undecided: bool,
}

impl LinkCore {
    pub async fn open(
        self: &Arc<Self>,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
        share: Share,
        warm_up: bool,
    ) -> Result<(TxSession, Vec<u8>), OpenError> {
        let answer = self.ask(id, hello, events, share, warm_up)?;
        let (link, wire) = (self.clone(), answer.wire);
        let reply = answer.wait().await?;
        Ok((TxSession::new(link, wire, id), reply))
    }

    /// The session is there at once; of the sessions that are not answered, one at a time may send.
    pub fn open_early(
        self: &Arc<Self>,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
        share: Share,
    ) -> Result<(TxSession, Opening), OpenError> {
        let answer = self.ask(id, hello, events, share, true)?;
        let is_first = {
            let mut opening = lock(&self.opening);
            let is_first = !opening.values().any(|asked| asked.early);
            if let Some(asked) = opening.get_mut(&answer.wire) {
                asked.early = is_first;
            }
            is_first
        };
        if is_first {
            self.queue.grant(answer.wire, self.agreed.early_bytes);
        }
        Ok((TxSession::new(self.clone(), answer.wire, id), answer))
    }

    fn ask(
        self: &Arc<Self>,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
        share: Share,
        warm_up: bool,
    ) -> Result<Opening, OpenError> {
        let limit = self.agreed.message_bytes_max as usize;
        if hello.len() > limit {
            return Err(OpenError::HelloTooLong { bytes: hello.len(), limit });
        }
        // One that was closed is there until the other side has heard so.
        let told = lock(&self.voices).len();
        let told = told + lock(&self.opening).len();
        if self.queue.sessions().max(told) >= self.limits.sessions {
            return Err(OpenError::TooManySessions(self.limits.sessions));
        }
        let wire = self.next_session.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.opening).insert(wire, Asked { answer, early: false });
        let mut asked = Opening { link: self.clone(), wire, answered, undecided: true };
        self.queue.add_session(wire, events);
        self.queue.set_limit(wire, share.limit_bytes_per_s, Instant::now());
        self.queue.set_priority(wire, share.priority);
        let Some(bond) = self.bond() else {
            asked.undecided = false;
            lock(&self.opening).remove(&wire);
            self.queue.remove_session(wire);
            return Err(self.why_down().unwrap_or(Lost::Stopped).into());
        };
        if warm_up && self.warm_up {
            self.wish.opening();
        } else {
            self.wish.stir();
        }
        bond.outbox.push(&Message::Open { session: wire, id: id.0, hello });
        Ok(asked)
    }

    /// Responder: a session that was asked for is accepted. `Err`: its opener is gone.
    pub fn accept(
        self: &Arc<Self>,
        session: u32,
        id: SessionId,
        reply: Vec<u8>,
        credit_bytes: u64,
        events: Arc<dyn RxEvents>,
    ) -> Result<Arc<RxAccount>, Option<Lost>> {
        let account = Arc::new(RxAccount::new(session, id, credit_bytes, self.limits.gaps, events));
        let early = {
            let mut received = lock(&self.received);
            received.withdrawn.remove(&session);
            let still_asked = received.asked.remove(&session);
            if let Some(lost) = self.ended() {
                return Err(Some(lost.clone()));
            }
            if !still_asked {
                return Err(None);
            }
            received.open.insert(session, account.clone());
            received.early.take(session)
        };
        lock(&self.voices).insert(session, Voice::live());
        self.push(&Message::Accepted { session, credit: account.credit_bytes(), reply });
        for (seq, after, payload) in early {
            if let Err(what) = account.chunk(seq, after, payload)
                && let Some(bond) = self.bond()
            {
                bond.fault(Lost::Protocol { peer: self.peer.clone(), what });
            }
        }
        Ok(account)
    }

    pub fn refuse(&self, session: u32, code: u16, text: &str) {
        let still_asked = {
            let mut received = lock(&self.received);
            received.withdrawn.remove(&session);
            let still_asked = received.asked.remove(&session);
            received.forget_early();
            still_asked
        };
        if still_asked {
            let text = shorten(text, self.agreed.message_bytes_max as usize);
            self.push(&Message::Refused { session, code, text });
        }
    }
}

impl Opening {
    /// Waits for it, and gives the reply.
    pub async fn wait(mut self) -> Result<Vec<u8>, OpenError> {
        let bound = self.link.timeouts.open;
        let answer =
            tokio::time::timeout(bound, &mut self.answered).await.map_err(|_| OpenError::Timeout(bound))?;
        self.undecided = false;
        match answer {
            Ok(OpenAnswer::Accepted { reply }) => {
                if self.link.queue.figures(self.wire).is_none() {
                    // Closed before it was answered, which nobody could be told.
                    self.link.send_close(self.wire, crate::code::DROPPED, "closed before it was answered");
                }
                Ok(reply)
            }
            Ok(OpenAnswer::Refused { code, text }) => {
                self.link.queue.remove_session(self.wire);
                Err(OpenError::Refused { code, text })
            }
            Err(_) => Err(self.link.why_down().unwrap_or(Lost::Stopped).into()),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.undecided {
            return;
        }
        const TEXT: &str = "the opener stopped waiting";
        let (session, code) = (self.wire, crate::code::GAVE_UP);
        let unanswered = lock(&self.link.opening).remove(&session).is_some();
        self.link.queue.remove_session(session);
        if unanswered {
            // Nothing is counted in a session that does not exist.
            self.link.push(&Message::Close { session, code, text: TEXT.to_owned() });
        } else {
            // Accepted, and nobody took the answer: the other side counts what is said in it.
            self.link.send_close(session, code, TEXT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::Role;
    use super::*;
    use crate::bond::Bond;
    use crate::control::handle;
    use crate::events::Acceptor;
    use crate::incoming::Incoming;
    use crate::model::{EARLY_BYTES, User, bond, link};
    use crate::names::{Epoch, LaneId, PeerName};
    use crate::session::{RxSession, charge};
    use crate::wire::frame::{FrameType, Header};

    const ID: SessionId = SessionId([1; 16]);

    /// Keeps the questions.
    #[derive(Default)]
    struct Host(Mutex<Vec<Incoming>>);

    impl Acceptor for Host {
        fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
            lock(&self.0).push(incoming);
        }
    }

    struct Ends {
        source: Arc<LinkCore>,
        destination: Arc<LinkCore>,
        here: Arc<Bond>,
        there: Arc<Bond>,
        host: Host,
    }

    impl Ends {
        fn new() -> Ends {
            let (source, destination) = (link(Role::Initiator), link(Role::Responder));
            let (here, there) = (bond(&source, 1), bond(&destination, 1));
            assert!(source.attach(&here) && destination.attach(&there));
            Ends { source, destination, here, there, host: Host::default() }
        }

        fn open_early(&self) -> (TxSession, Opening) {
            self.source.open_early(ID, vec![], Arc::<User>::default(), Share::default()).ok().unwrap()
        }

        /// What either side said arrives.
        fn speak(&self) {
            for (from, to) in [(&self.here, &self.there), (&self.there, &self.here)] {
                for said in from.outbox.take() {
                    handle(&self.host, to, Message::decode(&said).unwrap()).unwrap();
                }
            }
        }

        fn chunk_comes(&self, session: u32, seq: u64, bytes: usize) -> Result<(), String> {
            let header = Header {
                kind: FrameType::Chunk,
                lane: LaneId(0),
                epoch: Epoch(0),
                session,
                body_bytes: bytes as u32,
                seq,
                after: seq - 1,
            };
            self.destination.deliver(&header, vec![seq as u8; bytes])
        }

        fn accept(&self, user: &Arc<User>) -> RxSession {
            let incoming = lock(&self.host.0).remove(0);
            incoming.accept(vec![], 0, user.clone()).unwrap()
        }
    }

    #[tokio::test]
    async fn chunks_that_overtake_their_question_or_its_answer_are_given_when_it_is_accepted() {
        let ends = Ends::new();
        let (session, opening) = ends.open_early();
        assert_eq!(session.credit_left(), EARLY_BYTES);
        ends.chunk_comes(1, 2, 100).unwrap();
        ends.speak();
        ends.chunk_comes(1, 1, 100).unwrap();
        ends.chunk_comes(1, 2, 100).unwrap();
        let user = Arc::<User>::default();
        let _accepted = ends.accept(&user);
        ends.chunk_comes(1, 3, 100).unwrap();
        assert_eq!(user.chunks(), [(1, 0), (2, 1), (3, 2)]);
        ends.speak();
        opening.wait().await.unwrap();
        assert!(session.credit_left() >= EARLY_BYTES, "no less than may have come");
        session.message(vec![7]).unwrap();
        ends.speak();
        assert_eq!(user.messages(), [vec![7]]);
    }

    #[tokio::test]
    async fn what_came_of_a_session_that_is_refused_or_taken_back_makes_room() {
        let ends = Ends::new();
        let most = EARLY_BYTES as usize - charge(0) as usize;
        for refused in [true, false] {
            let (_session, opening) = ends.open_early();
            let number = if refused { 1 } else { 2 };
            ends.chunk_comes(number, 1, most).unwrap();
            ends.speak();
            if refused {
                lock(&ends.host.0).pop().unwrap().refuse(1, "no");
                ends.speak();
                assert!(opening.wait().await.is_err());
            } else {
                drop(opening);
                ends.speak();
            }
            assert!(ends.source.queue.figures(number).is_none());
            ends.chunk_comes(number, 2, most).unwrap();
        }
        ends.chunk_comes(3, 1, most).unwrap();
        assert!(ends.chunk_comes(4, 1, 1).unwrap_err().contains("agreed"));
        // Number 3 was passed over.
        let _four = (ends.open_early(), ends.open_early());
        ends.source.next_session.store(9, Ordering::Relaxed);
        let _nine = ends.open_early();
        ends.speak();
        ends.chunk_comes(10, 1, most).unwrap_err();
    }

    #[tokio::test]
    async fn one_session_at_a_time_sends_ahead_of_its_answer() {
        let ends = Ends::new();
        let (first, answer) = ends.open_early();
        let (second, _unanswered) = ends.open_early();
        assert_eq!((first.credit_left(), second.credit_left()), (EARLY_BYTES, 0));
        ends.speak();
        let _accepted = ends.accept(&Arc::default());
        ends.speak();
        answer.wait().await.unwrap();
        let (third, _unanswered) = ends.open_early();
        assert_eq!(third.credit_left(), EARLY_BYTES);
    }

    #[tokio::test]
    async fn one_that_is_closed_before_its_answer_is_closed_there_too() {
        let ends = Ends::new();
        let (session, opening) = ends.open_early();
        ends.speak();
        session.close(1, "no more");
        let _accepted = ends.accept(&Arc::default());
        ends.speak();
        opening.wait().await.unwrap();
        ends.speak();
        for heard in ends.destination.due_acks().unwrap() {
            handle(&ends.host, &ends.here, heard).unwrap();
        }
        assert!(!ends.source.holds_anything() && !ends.destination.holds_anything());
    }

    #[tokio::test]
    async fn a_link_that_dies_before_the_answer_takes_the_session_with_it() {
        let ends = Ends::new();
        let (session, opening) = ends.open_early();
        ends.chunk_comes(1, 1, 100).unwrap();
        ends.speak();
        ends.source.detach(&ends.here, &Lost::Stopped);
        ends.destination.detach(&ends.there, &Lost::Stopped);
        assert!(matches!(opening.wait().await, Err(OpenError::Lost(_))));
        let chunk = crate::Chunk { seq: 1, after: 0, payload: vec![1].into() };
        assert!(session.send(chunk).is_err());
        assert!(lock(&ends.destination.received).early.take(1).is_empty());
        let incoming = lock(&ends.host.0).remove(0);
        assert!(incoming.accept(vec![], 0, Arc::<User>::default()).is_err());
    }
}
