//! A link's control connection while the link lives: reads and writes records, measures the round trip, notices
//! silence, sends acknowledgements, and ends the link.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Lost;
use crate::events::Acceptor;
use crate::incoming::Incoming;
use crate::link::{LinkCore, OpenAnswer, Role};
use crate::names::SessionId;
use crate::noise::{RecordError, RecordReader, RecordWriter, Records};
use crate::wire::control::Message;

/// Bytes sealed before they are written: enough for one system call, little enough to keep pings prompt.
const WRITE_BATCH_BYTES: usize = 128 * 1024;

/// Runs until the link is over; then every session has been told.
pub async fn run(link: Arc<LinkCore>, records: Records, acceptor: Arc<dyn Acceptor>) {
    let Records { mut reader, mut writer, .. } = records;
    let lost = {
        let read = read(&link, &mut reader, &acceptor);
        let write = write(&link, &mut writer);
        tokio::pin!(read, write);
        let fault = tokio::select! {
            lost = &mut read => Err(lost),
            lost = &mut write => Err(lost),
            fault = fault(&link) => Ok(fault),
        };
        match fault {
            Err(Lost::Protocol { peer, what }) => {
                let lost = Lost::Protocol { peer, what };
                give_up(&link, &lost, std::future::pending(), write).await;
                lost
            }
            Err(lost) => lost,
            // A connection broke; the peer may know why, and say so here.
            Ok(lost @ Lost::Connection { .. }) => {
                let peers = tokio::time::timeout(link.timeouts.last_words, async {
                    tokio::select! {
                        lost = &mut read => lost,
                        lost = &mut write => lost,
                    }
                });
                match peers.await {
                    Ok(said @ Lost::ByPeer { .. }) => said,
                    Ok(_) => lost,
                    Err(_) => {
                        give_up(&link, &lost, read, write).await;
                        lost
                    }
                }
            }
            Ok(lost) => {
                give_up(&link, &lost, read, write).await;
                lost
            }
        }
    };
    writer.finish().await;
    link.end(lost);
}

/// Tells the peer why, and gives it time to read it: closing with unread bytes would reset the connection.
async fn give_up(
    link: &LinkCore,
    lost: &Lost,
    read: impl Future<Output = Lost>,
    write: impl Future<Output = Lost>,
) {
    link.outbox.push_last(&Message::GiveUp { text: lost.to_string() });
    let _ = tokio::time::timeout(link.timeouts.last_words, async {
        tokio::pin!(read);
        tokio::select! {
            _ = &mut read => return,
            _ = write => {}
        }
        read.await;
    })
    .await;
}

async fn fault(link: &LinkCore) -> Lost {
    loop {
        link.faulted.notified().await;
        if let Some(lost) = link.first_fault() {
            return lost;
        }
    }
}

async fn read(link: &Arc<LinkCore>, reader: &mut RecordReader, acceptor: &Arc<dyn Acceptor>) -> Lost {
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
        if let Err(what) = handle(link, message, acceptor) {
            return Lost::Protocol { peer, what };
        }
    }
}

fn handle(link: &Arc<LinkCore>, message: Message, acceptor: &Arc<dyn Acceptor>) -> Result<(), String> {
    match (link.role, message) {
        (_, Message::Ping(number)) => {
            if link.outbox.is_flooded() {
                return Err("the peer asks without reading the answers".into());
            }
            link.outbox.push(&Message::Pong(number));
        }
        (_, Message::Pong(number)) => link.pong(number),
        (_, Message::User { session, message }) => link.user_message_came(session, message),
        (_, Message::Close { session, code, text }) => link.close_came(session, code, text),
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

async fn write(link: &LinkCore, writer: &mut RecordWriter) -> Lost {
    let mut next_ping = Instant::now();
    let mut last_ack = Instant::now();
    loop {
        let closing = link.outbox.is_closing();
        for message in link.outbox.take() {
            writer.add(&message);
            if writer.pending_bytes() >= WRITE_BATCH_BYTES
                && let Err(lost) = flush(link, writer).await
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
                Err(what) => link.fault(Lost::Protocol { peer: link.peer.clone(), what }),
            }
            last_ack = now;
        }
        if now >= next_ping {
            if let Ok(ping) = Message::Ping(link.now_us()).encode() {
                writer.add(&ping);
            }
            let pause = if link.has_sessions() { link.timeouts.ping_active } else { link.timeouts.ping_idle };
            next_ping = now + pause;
            if let Some(lane) = link.stuck_lane() {
                link.fault(Lost::Connection {
                    peer: link.peer.clone(),
                    connection: lane.to_string(),
                    what: "the rest of a frame does not come".into(),
                });
            }
        }
        if let Err(lost) = flush(link, writer).await {
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
        let _ = tokio::time::timeout_at(wake_at, link.outbox.notified()).await;
    }
}

async fn flush(link: &LinkCore, writer: &mut RecordWriter) -> Result<(), Lost> {
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
