//! Following one migration until its last word.

use super::CliError;
use super::progress::Progress;
use crate::api::client::Client;
use crate::api::wire::{EventKind, Role, SCHEMA, Status};
use crate::id::Id;
use crate::outcome::Ending;

/// Shows `id` until it has ended, and tells how.
pub fn follow(events: &mut Client, id: Id, now: Option<Status>, json: bool) -> Result<Ending, CliError> {
    let mut progress = Progress::new(json);
    if let Some(status) = now {
        if let Some(ending) = ended(&status) {
            if json {
                say!("{}", serde_json::json!({ "event": EventKind::Finished, "v": SCHEMA, "data": status }));
            }
            progress.last(&status);
            return Ok(ending);
        }
        progress.show(EventKind::Phase, &status);
    }
    loop {
        let (event, line) = events.event()?;
        if event.data.id != id {
            continue;
        }
        if json {
            say!("{}", line.trim_end());
        }
        match ended(&event.data) {
            Some(ending) if event.event == EventKind::Finished => {
                progress.last(&event.data);
                return Ok(ending);
            }
            // In doubt, or stuck, is not the end, but nobody should wait at a terminal for it: the daemon goes on.
            _ => {
                if let Some(outcome) = event.data.outcome.as_ref().filter(|_| !event.data.phase.is_final()) {
                    progress.last(&event.data);
                    return Ok(outcome.ending);
                }
                progress.show(event.event, &event.data);
            }
        }
    }
}

fn ended(status: &Status) -> Option<Ending> {
    let outcome = status.outcome.as_ref().filter(|_| status.phase.is_final())?;
    // A destination that was disarmed has not failed at anything.
    Some(match (status.role, outcome.ending) {
        (Role::Destination, Ending::Moved) | (Role::Source, Ending::Moved) => Ending::Moved,
        (_, ending) => ending,
    })
}
