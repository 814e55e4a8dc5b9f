//! A bond's control connection: reads and writes records, measures the round trip, notices silence, sends
//! acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::bond::Bond;
use crate::error::Lost;
use crate::events::Acceptor;
use crate::incoming::Incoming;
use crate::link::{OpenAnswer, Role};
use crate::names::SessionId;
use crate::node::Shared;
use crate::noise::{RecordError, RecordReader, RecordWriter, Records};
use crate::wire::control::Message;

/// Bytes sealed before they are written: enough for one system call, little enough to keep pings prompt.
const WRITE_BATCH_BYTES: usize = 128 * 1024;
/// Frames of one link that may stop in their midst. Connections do that; more often, something changes lengths.
const STUCK_FRAMES_MAX: u32 = 3;

/// Runs until the bond is over, and says why. If it is for more than a dead connection, the peer has been told.
pub async fn run(shared: &Shared, bond: &Arc<Bond>, records: Records) -> Lost {
    shared.running.send_modify(|bonds| *bonds += 1);
    let lost = run_counted(shared, bond, records).await;
    shared.running.send_modify(|bonds| *bonds -= 1);
    lost
}

async fn run_counted(shared: &Shared, bond: &Arc<Bond>, records: Records) -> Lost {
    let Records { mut reader, mut writer, .. } = records;
    let lost = {
        let read = read(shared, bond, &mut reader);
        let write = write(shared, bond, &mut writer);
        tokio::pin!(read, write);
        let fault = tokio::select! {
            lost = &mut read => Err(lost),
            lost = &mut write => Err(lost),
            fault = bond.faulted() => Ok(fault),
        };
        match fault {
            Err(lost @ Lost::Protocol { .. }) => {
                give_up(bond, &lost, std::future::pending(), write).await;
                lost
            }
            Err(lost) => lost,
            Ok(lost) => {
                give_up(bond, &lost, read, write).await;
                lost
            }
        }
    };
    writer.finish().await;
    lost
}

/// Tells the peer why, and gives it time to read it: closing with unread bytes would reset the connection.
async fn give_up(
    bond: &Bond,
    lost: &Lost,
    read: impl Future<Output = Lost>,
    write: impl Future<Output = Lost>,
) {
    bond.outbox.push_last(&Message::GiveUp { text: lost.to_string() });
    let _ = tokio::time::timeout(bond.link.timeouts.last_words, async {
        tokio::pin!(read);
        tokio::select! {
            _ = &mut read => return,
            _ = write => {}
        }
        read.await;
    })
    .await;
}

async fn read(shared: &Shared, bond: &Arc<Bond>, reader: &mut RecordReader) -> Lost {
    let link = &bond.link;
    let peer = link.peer.clone();
    loop {
        let message = match tokio::time::timeout(link.timeouts.dead_after, reader.read()).await {
            Ok(Ok(message)) => message,
            Ok(Err(RecordError::Io(error))) => {
                let what = match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => "closed by the peer".to_owned(),
                    _ => error.to_string(),
                };
                return Lost::Connection { peer, connection: "control connection".into(), what };
            }
            Ok(Err(error)) => return Lost::Protocol { peer, what: format!("control connection: {error}") },
            Err(_) => return Lost::Silent { peer, silent_for: link.timeouts.dead_after },
        };
        if let Message::GiveUp { text } = message {
            return Lost::ByPeer { peer, text };
        }
        if let Err(what) = handle(&*shared.acceptor, bond, message) {
            return Lost::Protocol { peer, what };
        }
    }
}

/// What a message does. `Err` ends the link.
pub(crate) fn handle(acceptor: &dyn Acceptor, bond: &Arc<Bond>, message: Message) -> Result<(), String> {
    let link = &bond.link;
    if bond.is_over() {
        // Another took its place, and its sessions go on there: whatever of this was not heard is said again.
        return Ok(());
    }
    if matches!(message, Message::Ping(_) | Message::Open { .. }) && bond.outbox.is_flooded() {
        return Err("the peer asks without reading the answers".into());
    }
    match (link.role, message) {
        (_, Message::Ping(number)) => {
            bond.outbox.push(&Message::Pong(number));
        }
        (_, Message::Pong(number)) => link.pong(number),
        (_, Message::User { session, message }) => link.user_message_came(session, message),
        (_, Message::Close { session, code, text }) => link.close_came(session, code, text),
        (_, Message::Heard { session, number }) => link.heard_there(session, number)?,
        (_, Message::Standing { session, heard, cumulative, ranges, more: _ }) => {
            link.standing(bond, session, heard, cumulative, &ranges)?;
        }
        (_, Message::Listed) => link.listed(bond)?,
        (_, Message::Note(note)) => acceptor.note(&link.peer, note),
        (Role::Responder, Message::Open { session, id, hello }) => {
            if link.asked(session)? {
                let incoming = Incoming::new(link.clone(), session, SessionId(id));
                acceptor.open(&link.peer, hello, incoming);
            }
        }
        (Role::Initiator, Message::Accepted { session, credit, reply }) => {
            link.answered(session, OpenAnswer::Accepted { reply }, credit);
        }
        (Role::Initiator, Message::Refused { session, code, text }) => {
            link.answered(session, OpenAnswer::Refused { code, text }, 0);
        }
        (Role::Initiator, Message::Ack { session, cumulative, credit, ranges }) => {
            link.ack(session, cumulative, credit, &ranges)?;
        }
        (_, other) => {
            let name = format!("{other:?}");
            let name = name.split([' ', '(']).next().unwrap_or_default();
            return Err(format!("the peer sent {name}, which is not its to send now"));
        }
    }
    Ok(())
}

async fn write(shared: &Shared, bond: &Arc<Bond>, writer: &mut RecordWriter) -> Lost {
    let link = &bond.link;
    let mut next_ping = Instant::now();
    let mut last_ack = Instant::now();
    loop {
        let closing = bond.outbox.is_closing();
        for message in bond.outbox.take() {
            writer.add(&message);
            if writer.pending_bytes() >= WRITE_BATCH_BYTES
                && let Err(lost) = flush(bond, writer).await
            {
                return lost;
            }
        }
        let now = Instant::now();
        if link.acks_are_due() && now >= last_ack + link.timeouts.ack {
            match link.due_acks() {
                Ok(acks) => {
                    for ack in acks.iter().filter_map(|ack| ack.encode().ok()) {
                        writer.add(&ack);
                    }
                }
                // Not returned: the reader's side of `run` tells the peer.
                Err(what) => bond.fault(Lost::Protocol { peer: link.peer.clone(), what }),
            }
            last_ack = now;
        }
        if now >= next_ping {
            if let Ok(ping) = Message::Ping(link.now_us()).encode() {
                writer.add(&ping);
            }
            let pause = if link.has_sessions() { link.timeouts.ping_active } else { link.timeouts.ping_idle };
            next_ping = now + pause;
            if let Some((lane, epoch)) = bond.stuck_lane() {
                let what = "the rest of a frame does not come";
                if link.count_stuck_frame() >= STUCK_FRAMES_MAX {
                    let what =
                        format!("{lane}: {what}, for the third time: something changes bytes on the way");
                    bond.fault(Lost::Protocol { peer: link.peer.clone(), what });
                }
                tracing::warn!(peer = %link.peer, %lane, what, "a lane is given up");
                shared.lanes.close_lane(bond, lane, epoch);
            }
        }
        if let Err(lost) = flush(bond, writer).await {
            return lost;
        }
        if closing {
            writer.finish().await;
            return Lost::Stopped;
        }
        // A session that opens shortens the pause between pings.
        let ping_at =
            if link.has_sessions() { next_ping.min(now + link.timeouts.ping_active) } else { next_ping };
        let wake_at = if link.acks_are_due() { ping_at.min(last_ack + link.timeouts.ack) } else { ping_at };
        next_ping = ping_at;
        let _ = tokio::time::timeout_at(wake_at, bond.outbox.notified()).await;
    }
}

async fn flush(bond: &Bond, writer: &mut RecordWriter) -> Result<(), Lost> {
    let link = &bond.link;
    let bound: Duration = link.timeouts.dead_after;
    match tokio::time::timeout(bound, writer.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Lost::Connection {
            peer: link.peer.clone(),
            connection: "control connection".into(),
            what: error.to_string(),
        }),
        Err(_) => Err(Lost::Silent { peer: link.peer.clone(), silent_for: bound }),
    }
}
