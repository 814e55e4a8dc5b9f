//! After an outage: what each side still holds, and how the sessions go on.
//!
//! As soon as a link has a new bond, both sides say on its control connection what they hold: per session, how much they
//! heard of what the other said and, at the receiver, which chunks came. Then each does its part with the other's list:
//!
//! * what was said and not heard is said again;
//! * the sender takes again what was in flight and did not come;
//! * a session that the other side does not hold is over.

use std::collections::HashMap;
use std::sync::Arc;

use crate::bond::Bond;
use crate::code;
use crate::link::{LinkCore, Role, lock};
use crate::ranges::RangeSet;
use crate::wire::control::{Message, RANGES_MAX};

/// The other side's list, as it comes.
#[derive(Default)]
pub struct Lists {
    /// Whose control connection it comes on.
    of: Option<[u8; 16]>,
    theirs: HashMap<u32, Standing>,
    /// Of all sessions.
    ranges: usize,
    /// It is complete; or there is none, for the link is new.
    done: bool,
}

#[derive(Default)]
struct Standing {
    heard: u64,
    received: RangeSet,
}

impl Lists {
    /// To be had on a new bond, if the link goes on with it.
    pub fn of(bond: &Bond, goes_on: bool) -> Self {
        Self { of: Some(bond.id), done: !goes_on, ..Self::default() }
    }
}

impl LinkCore {
    /// Says what this side holds.
    pub fn send_list(&self, bond: &Bond) {
        let voices: Vec<_> =
            lock(&self.voices).iter().map(|(session, voice)| (*session, voice.heard_here())).collect();
        for (session, heard) in voices {
            let account = lock(&self.received).open.get(&session).cloned();
            let (cumulative, ranges) = account.map_or_else(Default::default, |account| account.arrived());
            let mut parts = ranges.chunks(RANGES_MAX);
            let mut part = parts.next().unwrap_or_default();
            loop {
                let next = parts.next();
                let more = next.is_some();
                bond.outbox.push(&Message::Standing {
                    session,
                    heard,
                    cumulative,
                    ranges: part.into(),
                    more,
                });
                match next {
                    Some(next) => part = next,
                    None => break,
                }
            }
        }
        bond.outbox.push(&Message::Listed);
    }

    /// A part of the other side's list. `Err` ends the link.
    pub fn standing(
        &self,
        bond: &Bond,
        session: u32,
        heard: u64,
        cumulative: u64,
        ranges: &[(u64, u64)],
    ) -> Result<(), String> {
        let mut lists = lock(&self.lists);
        if lists.of != Some(bond.id) {
            return Ok(());
        }
        if lists.done {
            return Err("a list of sessions that is complete, or that nobody waits for".into());
        }
        if self.role == Role::Responder && !ranges.is_empty() {
            return Err(format!("session {session}: chunks that came, from the side that sends them"));
        }
        // Those that are open, and as many that were closed and are not told yet.
        if lists.theirs.len() >= 2 * self.limits.sessions && !lists.theirs.contains_key(&session) {
            return Err("it lists more sessions than can be".into());
        }
        // One session's bound is that of all together: they share one path's disorder.
        lists.ranges += ranges.len();
        if lists.ranges > self.limits.gaps {
            return Err("it lists more gaps than can be".into());
        }
        let standing = lists.theirs.entry(session).or_default();
        standing.heard = heard;
        if !standing.received.extend(cumulative, ranges) {
            return Err(format!("session {session}: ranges that cannot be"));
        }
        Ok(())
    }

    /// The other side's list is complete: the sessions go on, or are over. `Err` ends the link.
    pub fn listed(&self, bond: &Arc<Bond>) -> Result<(), String> {
        let theirs = {
            let mut lists = lock(&self.lists);
            if lists.of != Some(bond.id) {
                return Ok(());
            }
            if std::mem::replace(&mut lists.done, true) {
                return Err("a list of sessions that is complete, or that nobody waits for".into());
            }
            std::mem::take(&mut lists.theirs)
        };
        let mut gone = Vec::new();
        {
            let mut voices = lock(&self.voices);
            for (session, voice) in voices.iter_mut() {
                let Some(standing) = theirs.get(session) else {
                    gone.push(*session);
                    continue;
                };
                let unheard = voice
                    .resume(standing.heard)
                    .map_err(|_| format!("session {session}: it heard what was never said"))?;
                unheard.for_each(|encoded| bond.outbox.push_encoded(encoded.clone()));
                if self.role == Role::Initiator {
                    self.queue.resume(*session, &standing.received);
                }
            }
            voices.retain(|session, voice| theirs.contains_key(session) && !voice.is_over());
        }
        self.queue.go_on();
        for session in gone {
            let text = format!("{} does not hold this session any more", self.peer);
            self.ended_there(session, code::NOT_HELD, text);
        }
        for account in lock(&self.received).open.values() {
            account.acknowledge_again();
        }
        self.ack_soon();
        self.tell_up();
        Ok(())
    }
}
