//! What a link's control connection brings, and what it is answered with.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{LinkCore, OpenAnswer, Role, lock};
use crate::voice::Voice;
use crate::wire::control::Message;

impl LinkCore {
    /// Responder: registers a question. `Err` ends the link; `Ok(false)`: too many sessions, already refused.
    pub fn asked(&self, session: u32) -> Result<bool, String> {
        // The open ones, and those whose end the other side has not heard of.
        let told = lock(&self.voices).len();
        let mut received = lock(&self.received);
        if session <= received.highest {
            return Err(format!("session number {session} was used before"));
        }
        received.highest = session;
        let unanswered = received.asked.len() + received.withdrawn.len();
        if received.open.len().max(told) + unanswered >= self.limits.sessions {
            received.forget_early();
            drop(received);
            let text = format!("{} sessions are open, which is the limit", self.limits.sessions);
            self.push(&Message::Refused { session, code: crate::code::TOO_MANY, text });
            return Ok(false);
        }
        received.asked.insert(session);
        // What came of sessions before it that were never asked for.
        received.forget_early();
        Ok(true)
    }

    pub fn answered(&self, session: u32, answer: OpenAnswer, credit: u64) {
        // An opener that gave up has told the peer so.
        let waiting = lock(&self.opening).remove(&session);
        if let Some(waiting) = waiting {
            if matches!(answer, OpenAnswer::Accepted { .. }) {
                lock(&self.voices).insert(session, Voice::live());
            }
            self.queue.grant(session, credit);
            let _ = waiting.answer.send(answer);
        }
    }

    pub fn ack(
        &self,
        session: u32,
        cumulative: u64,
        credit: u64,
        ranges: &[(u64, u64)],
    ) -> Result<(), String> {
        let rtt = lock(&self.rtt).smoothed;
        let acked =
            self.queue.acked(Instant::now(), session, cumulative, ranges, credit, rtt).map_err(|never| {
                format!("chunk {} of session {session} was acknowledged but never sent", never.seq)
            })?;
        if let Some(acked) = acked {
            acked.events.acked(cumulative, ranges);
            if acked.room {
                acked.events.room();
            }
        }
        Ok(())
    }

    pub fn user_message_came(&self, session: u32, message: Vec<u8>) {
        self.heard(session, false);
        match self.role {
            Role::Initiator => {
                if let Some(events) = self.queue.events(session) {
                    events.message(message);
                }
            }
            Role::Responder => {
                let account = lock(&self.received).open.get(&session).cloned();
                if let Some(account) = account {
                    account.message(message);
                }
            }
        }
    }

    pub fn close_came(&self, session: u32, code: u16, text: String) {
        self.heard(session, true);
        self.ended_there(session, code, text);
    }

    /// The other side closed the session, or does not know it any more.
    pub(crate) fn ended_there(&self, session: u32, code: u16, text: String) {
        match self.role {
            Role::Initiator => {
                if let Some(events) = self.queue.remove_session(session) {
                    events.closed(code, text);
                }
            }
            Role::Responder => {
                let account = {
                    let mut received = lock(&self.received);
                    if received.asked.remove(&session) {
                        received.withdrawn.insert(session);
                        received.forget_early();
                    }
                    received.open.remove(&session)
                };
                if let Some(account) = account {
                    account.closed_by_peer(code, text);
                }
            }
        }
    }

    /// Acknowledgements that are due. `Err` ends the link.
    pub fn due_acks(&self) -> Result<Vec<Message>, String> {
        self.acks_due.store(false, Ordering::Release);
        let mut due =
            self.accounts().iter().filter_map(|a| a.ack().transpose()).collect::<Result<Vec<_>, _>>()?;
        lock(&self.voices).retain(|&session, voice| {
            if voice.live
                && let Some(number) = voice.take_news()
            {
                due.push(Message::Heard { session, number });
            }
            !voice.is_over()
        });
        Ok(due)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::bond::Bond;
    use crate::control::handle;
    use crate::error::OpenError;
    use crate::events::Acceptor;
    use crate::incoming::Incoming;
    use crate::model::{User, bond, link};
    use crate::names::{PeerName, SessionId};
    use crate::schedule::Priority;
    use crate::session::Share;

    struct Nobody;

    impl Acceptor for Nobody {
        fn open(&self, _: &PeerName, _: Vec<u8>, _: Incoming) {}
    }

    /// Answers nothing, and keeps the questions.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Incoming>>);

    impl Acceptor for Slow {
        fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
            lock(&self.0).push(incoming);
        }
    }

    fn open(session: u32) -> Message {
        Message::Open { session, id: [1; 16], hello: vec![0; 100] }
    }

    fn close(session: u32) -> Message {
        Message::Close { session, code: 1, text: "no more".into() }
    }

    fn bound(role: Role) -> (Arc<LinkCore>, Arc<Bond>) {
        let link = link(role);
        let bond = bond(&link, 1);
        assert!(link.attach(&bond));
        (link, bond)
    }

    #[tokio::test]
    async fn an_opener_that_goes_with_the_answer_on_its_way_to_it_closes_the_session() {
        let (source, destination) = (link(Role::Initiator), link(Role::Responder));
        let (here, there) = (bond(&source, 1), bond(&destination, 1));
        assert!(source.attach(&here) && destination.attach(&there));
        let id = SessionId([1; 16]);
        {
            let mut opening =
                Box::pin(source.open(id, Vec::new(), Arc::<User>::default(), Share::default(), true));
            let mut context = Context::from_waker(Waker::noop());
            assert!(matches!(opening.as_mut().poll(&mut context), Poll::Pending));
            destination.asked(1).unwrap();
            destination.accept(1, id, Vec::new(), 4000, Arc::<User>::default()).ok().unwrap();
            for said in there.outbox.take() {
                handle(&Nobody, &here, Message::decode(&said).unwrap()).unwrap();
            }
        }
        for said in here.outbox.take() {
            let said = Message::decode(&said).unwrap();
            if !matches!(said, Message::Open { .. }) {
                handle(&Nobody, &there, said).unwrap();
            }
        }
        for heard in destination.due_acks().unwrap() {
            assert_eq!(handle(&Nobody, &here, heard), Ok(()));
        }
        assert!(!source.holds_anything() && !destination.holds_anything());
    }

    #[tokio::test]
    async fn what_a_session_is_to_share_holds_before_it_is_answered_and_a_question_warms_nothing() {
        let (link, _bond) = bound(Role::Initiator);
        let share = Share { limit_bytes_per_s: Some(500_000), priority: Priority::Low };
        let begin = |warm_up| {
            let mut opening =
                Box::pin(link.open(SessionId([1; 16]), vec![], Arc::<User>::default(), share, warm_up));
            assert!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            opening
        };
        let question = begin(false);
        assert!(!link.wish.is_asked());
        drop(question);
        let _opening = begin(true);
        assert!(link.wish.is_asked());
        assert_eq!(link.queue.limit(), Some(500_000));
        let figures = link.queue.figures(2).unwrap();
        assert_eq!((figures.limit_bytes_per_s, figures.priority), (Some(500_000), Priority::Low));
    }

    #[test]
    fn a_bond_whose_place_was_taken_has_nothing_more_to_say() {
        let link = link(Role::Responder);
        let (old, new) = (bond(&link, 1), bond(&link, 2));
        assert!(link.attach(&old));
        link.asked(1).unwrap();
        let user = Arc::<User>::default();
        link.accept(1, SessionId([1; 16]), Vec::new(), 4000, user.clone()).ok().unwrap();
        assert!(link.attach(&new));
        let standing = Message::Standing { session: 1, heard: 0, cumulative: 0, ranges: vec![], more: false };
        handle(&Nobody, &new, standing.clone()).unwrap();
        // Read later, and said before.
        let said = Message::User { session: 1, message: vec![7] };
        for late in [standing, Message::Listed, said.clone(), Message::Ping(1)] {
            handle(&Nobody, &old, late).unwrap();
        }
        assert_eq!(user.messages(), Vec::<Vec<u8>>::new());
        assert!(old.outbox.take().len() == 1, "the session was accepted, and no ping answered");
        assert_eq!(handle(&Nobody, &new, Message::Listed), Ok(()));
        handle(&Nobody, &new, said).unwrap();
        assert_eq!(user.messages(), [vec![7]]);
    }

    #[test]
    fn sessions_whose_end_the_peer_does_not_hear_count_as_open() {
        let (link, _bond) = bound(Role::Responder);
        let accepts = |session| {
            link.asked(session).unwrap()
                && link.accept(session, SessionId([1; 16]), vec![], 1, Arc::<User>::default()).is_ok()
        };
        let accepted = (1..=1000).take_while(|&session| {
            let accepted = accepts(session);
            link.send_close(session, 1, "no");
            link.forget_rx(session);
            accepted
        });
        assert_eq!(accepted.count(), link.limits.sessions);
        link.heard_there(1, 1).unwrap();
        assert!(accepts(2000), "one was heard");
    }

    #[test]
    fn questions_that_were_taken_back_count_until_their_user_lets_them_go() {
        let (link, bond) = bound(Role::Responder);
        let user = Slow::default();
        for session in 1..=1000 {
            handle(&user, &bond, open(session)).unwrap();
            handle(&user, &bond, close(session)).unwrap();
        }
        assert_eq!(lock(&user.0).len(), link.limits.sessions);
        // The same across bonds.
        let next = crate::model::bond(&link, 2);
        assert!(link.attach(&next));
        handle(&user, &next, open(1001)).unwrap();
        assert_eq!(lock(&user.0).len(), link.limits.sessions);
        lock(&user.0).clear();
        handle(&user, &next, open(1002)).unwrap();
        assert_eq!(lock(&user.0).len(), 1);
    }

    #[test]
    fn a_peer_that_asks_without_reading_the_answers_loses_the_link() {
        let (link, bond) = bound(Role::Responder);
        let refused = (1..1_000_000).take_while(|&session| handle(&Nobody, &bond, open(session)).is_ok());
        assert!(refused.count() < 1_000_000 - 1);
        let kept: usize = bond.outbox.take().iter().map(Vec::len).sum();
        assert!(kept <= 2 * link.limits.outbox_bytes + 100, "{kept}");
    }

    #[test]
    fn a_list_comes_only_where_a_link_goes_on_and_all_its_ranges_are_bounded() {
        let (link, new) = bound(Role::Initiator);
        let part =
            |session, ranges| Message::Standing { session, heard: 0, cumulative: 0, ranges, more: false };
        assert!(handle(&Nobody, &new, part(1, vec![])).is_err());
        assert!(handle(&Nobody, &new, Message::Listed).is_err());
        let next = bond(&link, 2);
        assert!(link.attach(&next));
        let ranges: Vec<_> = (1..=512).map(|n| (2 * n, 2 * n)).collect();
        let taken =
            (1..1000).take_while(|&session| handle(&Nobody, &next, part(session, ranges.clone())).is_ok());
        assert_eq!(taken.count(), link.limits.gaps / 512);
        let (_, there) = bound(Role::Responder);
        let next = bond(&there.link, 2);
        assert!(there.link.attach(&next));
        assert!(handle(&Nobody, &next, part(1, ranges)).is_err(), "it sends chunks, and receives none");
        assert_eq!(handle(&Nobody, &next, part(1, vec![])), Ok(()));
    }

    #[tokio::test]
    async fn nothing_more_is_opened_at_a_peer_that_hears_of_no_end() {
        let (link, _bond) = bound(Role::Initiator);
        for session in 1..=link.limits.sessions as u32 {
            let _answer = link.expect_answer(session);
            link.answered(session, OpenAnswer::Accepted { reply: vec![] }, 0);
            link.send_close(session, 1, "done");
        }
        let opened =
            link.open(SessionId([1; 16]), vec![], Arc::<User>::default(), Share::default(), true).await;
        assert!(matches!(opened, Err(OpenError::TooManySessions(_))));
    }

    #[test]
    fn questions_and_answers_do_not_wait_for_each_other() {
        let (link, _bond) = bound(Role::Initiator);
        let answer = |link: &LinkCore, session| {
            let _answer = link.expect_answer(session);
            link.answered(session, OpenAnswer::Accepted { reply: vec![] }, 0);
        };
        // No question is asked any more, but each is counted.
        (1..=link.limits.sessions as u32).for_each(|session| answer(&link, session));
        let (done, is_done) = mpsc::channel();
        let (asks, asked) = (link.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..1_000_000 {
                let mut opening = Box::pin(asks.open(
                    SessionId([1; 16]),
                    vec![],
                    Arc::<User>::default(),
                    Share::default(),
                    true,
                ));
                assert!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
            }
            asked.send(())
        });
        std::thread::spawn(move || {
            (0..1_000_000).for_each(|_| answer(&link, 1));
            done.send(())
        });
        for _ in 0..2 {
            is_done.recv_timeout(std::time::Duration::from_secs(20)).expect("both go on");
        }
    }

    #[test]
    fn a_round_trip_that_cannot_be_is_not_believed() {
        let mut link = link(Role::Initiator);
        let dead_after = link.timeouts.dead_after;
        Arc::get_mut(&mut link).unwrap().clock -= 3 * dead_after;
        link.pong(link.now_us() - 40_000);
        let known = link.round_trips();
        link.pong(0);
        link.pong(u64::MAX);
        assert_eq!(link.round_trips(), known, "longer than silence may be, and not yet sent");
    }
}
