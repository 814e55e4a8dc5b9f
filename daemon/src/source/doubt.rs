//! In doubt: GO may have left, and no verdict came. The source stays stopped and asks until it knows.
//!
//! While the session lives, GO and the verdict travel on it, however often the link breaks; here is asked when it ended, or
//! when the destination takes too long although it is reached. Both ways tell the same: what is said on the session is on
//! record before.
//!
//! A person who has made sure that the other host cannot run the guest may say where it is; that counts as a verdict.
//!
//! The destination answers from its records. *Running* and *Paused* release the guest, *Refused* returns it. A destination
//! whose records are of another incarnation cannot know, and its *Unknown* never releases anything.

use crate::api::wire::Resolution;
use crate::daemon::Daemon;
use crate::id::Id;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::SourceStep;
use crate::protocol::{self, Answer, Ask, Hello, PROTOCOL, Verdict};
use crate::records::Record;
use crate::registry::Entry;
use hikyaku_transport::SessionId;
use std::time::Duration;

/// Between two questions, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Asks until there is a verdict.
pub async fn ask(daemon: &Daemon, entry: &Entry, record: &Record) -> Verdict {
    let mut wait = FIRST_WAIT;
    let mut said = String::new();
    loop {
        let answer = tokio::select! {
            answer = ask_once(daemon, record) => answer,
            resolution = entry.resolved() => return as_told(resolution),
        };
        if answer.is_ok() {
            entry.link_up();
        }
        let why = match answer {
            Ok(Answer::Verdict(verdict)) => return verdict,
            Ok(Answer::Pending) => format!(
                "{} has it in hand, and hikyaku status {} there says what it waits for",
                record.peer, record.guest
            ),
            Ok(Answer::Unknown) => {
                format!(
                    "the records of {} about this guest are lost: look there, and say where it is with hikyaku resolve",
                    record.peer
                )
            }
            Err(why) => why,
        };
        // Once per reason: a log that repeats itself is not read.
        if why != said {
            entry.set_outcome(outcome(&record.guest, &record.peer, &why));
            tracing::warn!(guest = %record.guest, peer = %record.peer, %why, "in doubt; asking again");
            said = why;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            resolution = entry.resolved() => return as_told(resolution),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn as_told(resolution: Resolution) -> Verdict {
    match resolution {
        Resolution::Here => Verdict::Refused { why: "whoever resolved it said so".into() },
        Resolution::There => Verdict::Running,
    }
}

/// What a guest that is not the destination's is taken back by.
pub fn step(entry: &Entry) -> SourceStep {
    match entry.told() {
        Some(Resolution::Here) => SourceStep::Here,
        _ => SourceStep::Refused,
    }
}

/// What is said of a guest that was given away, to a destination that said `guest`; or to one of which somebody has said that it has it.
pub fn moved(entry: &Entry, peer: &str, guest: Whereabouts) -> Outcome {
    match entry.told() {
        Some(Resolution::There) => {
            let desc = format!("given up here, for somebody has said that it is {peer}'s");
            Outcome::new(Ending::Moved, Whereabouts::LeftToDestination, desc)
        }
        _ => Outcome::new(Ending::Moved, guest, format!("moved to {peer}")),
    }
}

/// What is said as long as there is no verdict.
pub fn outcome(guest: &str, peer: &str, why: &str) -> Outcome {
    let desc = format!("{guest} was let go to {peer}, and its verdict is not here yet: {why}");
    Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, desc)
        .advise(format!("Follow it: hikyaku watch {guest}. Only if {peer} is gone for good: hikyaku resolve"))
}

pub(super) async fn ask_once(daemon: &Daemon, record: &Record) -> Result<Answer, String> {
    let link = daemon.link_to(&record.peer).await.map_err(|e| e.to_string())?;
    let question =
        Hello::Ask(Ask { protocol: PROTOCOL, migration: record.id, incarnation: record.peer_incarnation });
    let hello = protocol::encode(&question).map_err(|e| e.to_string())?;
    let answer = link.ask(SessionId(Id::random().0), hello).await.map_err(|e| e.to_string())?;
    protocol::decode(&answer).map_err(|e| e.to_string())
}
