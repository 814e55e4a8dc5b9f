//! How a session with the destination begins: its answer is waited for, or, where the destination has said that it awaits the guest,
//! the guest's pages go behind the question.

use super::events::PeerEvents;
use super::pump::ToPump;
use super::{SourceError, sharing};
use crate::daemon::Daemon;
use crate::inbox::Inbox;
use crate::mailbox::Mailbox;
use crate::protocol::{self, Hello, Migrate, Welcome};
use crate::registry::Entry;
use hikyaku_transport::{Link, OpenError, Opening, SessionId, TxSession};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A session, and what the destination answered, or will answer.
pub struct Opened {
    pub mailbox: Mailbox,
    pub session: TxSession,
    pub welcome: Welcome,
    pub answer: Answer,
}

/// What the destination says to the guest.
pub enum Answer {
    /// It has said it.
    Had,
    /// What it will say is known from what it said before.
    Foreseen(oneshot::Receiver<Result<Vec<u8>, OpenError>>),
}

/// The destination, over a link to be had, is asked whether it takes the guest. `foreseen`: what it will say.
pub async fn ask(
    daemon: &Daemon,
    entry: &Entry,
    to: &str,
    hello: Migrate,
    foreseen: Option<Welcome>,
    inbox: &Arc<Inbox<ToPump>>,
) -> Result<Opened, SourceError> {
    let (id, hello) = (SessionId(entry.id.0), protocol::encode(&Hello::Migrate(hello))?);
    let mut again = false;
    loop {
        let link = daemon.link_to(to).await?;
        let (events, mailbox) = PeerEvents::new(inbox.clone());
        if let Some(welcome) = foreseen.clone().filter(|_| !again) {
            let asked = link.open_early(id, hello.clone(), Arc::new(events), sharing::share(entry));
            if let Ok((session, opening)) = asked {
                tracing::info!(peer = %to, "the guest is awaited there: its pages go behind the question");
                return Ok(Opened { mailbox, session, welcome, answer: Answer::foreseen(link, opening) });
            }
            again = true;
            continue;
        }
        match link.open_sharing(id, hello.clone(), Arc::new(events), sharing::share(entry)).await {
            // A link that stood for long may be one to a daemon that is gone, which shows when it is used.
            Err(OpenError::Lost(lost)) if !again => {
                tracing::info!(peer = %to, %lost, "asked for again, by a new link");
                again = true;
            }
            opened => {
                let (session, welcome) = opened?;
                let welcome = protocol::decode(&welcome)?;
                return Ok(Opened { mailbox, session, welcome, answer: Answer::Had });
            }
        }
    }
}

impl Answer {
    fn foreseen(link: Link, opening: Opening) -> Answer {
        let (told, answer) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let answer = opening.wait().await;
            drop(link);
            // Nobody wants to know any more: the session was closed, and the destination is told.
            let _ = told.send(answer);
        });
        Answer::Foreseen(answer)
    }

    pub fn is_had(&self) -> bool {
        matches!(self, Answer::Had)
    }

    /// What the destination says, once it does; if that is not what was foreseen, as an error. Never, if it was had before.
    pub async fn next(&mut self, foreseen: &Welcome) -> Result<Welcome, SourceError> {
        let Answer::Foreseen(answer) = self else { return std::future::pending().await };
        let answer = answer.await.unwrap_or(Err(OpenError::Lost(hikyaku_transport::Lost::Stopped)));
        *self = Answer::Had;
        let welcome: Welcome = match answer {
            Ok(welcome) => protocol::decode(&welcome)?,
            Err(OpenError::Lost(lost)) => return Err(SourceError::Unforeseen(lost.to_string())),
            Err(other) => return Err(other.into()),
        };
        if welcome.dictionary_slots < foreseen.dictionary_slots {
            return Err(SourceError::Unforeseen("the destination keeps less than it said".into()));
        }
        Ok(welcome)
    }
}
