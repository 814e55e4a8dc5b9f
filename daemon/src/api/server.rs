//! The API's server: one task per connection, bounded lines, every command answered.

use super::wire::{
    Command, ErrorBody, Greeting, GreetingBody, MAX_LINE_BYTES, Reply, Request, SCHEMA, Started,
};
use super::{check, link};
use crate::daemon::{Daemon, check_limit};
use crate::libvirt::near;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::registry::Entry;
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

/// Whoever says where a guest is sees what comes of it, if it comes within this.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Binds the socket, replacing one that a dead daemon left behind; a living one is an error.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another hikyakud answers on this socket",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(e) => return Err(e),
        }
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves until the runtime ends.
pub async fn serve(listener: UnixListener, daemon: Rc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = daemon.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection(stream, daemon).await {
                        tracing::debug!(%error, "an API connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back when others end.
                tracing::warn!(%error, "API connections cannot be accepted just now");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, daemon: Rc<Daemon>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let greeting = GreetingBody {
        version: env!("CARGO_PKG_VERSION").into(),
        schema: SCHEMA,
        capabilities: vec![
            "migrate".into(),
            "receive".into(),
            "events".into(),
            "resolve".into(),
            "set".into(),
            "link".into(),
            "check".into(),
            "carry".into(),
        ],
    };
    send(&mut write, &Greeting { hikyaku: greeting }).await?;
    loop {
        let mut line = Vec::new();
        (&mut lines).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && line.len() >= MAX_LINE_BYTES {
            send(&mut write, &refusal(None, format!("a request line may have {MAX_LINE_BYTES} bytes")))
                .await?;
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let request: Request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(e) => {
                let id = serde_json::from_slice::<Value>(&line).ok().and_then(|v| v.get("id").cloned());
                send(&mut write, &refusal(id, format!("request not understood: {e}"))).await?;
                continue;
            }
        };
        if matches!(request.command, Command::Subscribe) {
            return events(daemon, write, lines, request.id).await;
        }
        let reply = match execute(&daemon, request.command, uid).await {
            Ok(value) => Reply { value: Some(value), error: None, id: request.id },
            Err(outcome) => Reply { value: None, error: Some(ErrorBody::from(outcome)), id: request.id },
        };
        send(&mut write, &reply).await?;
    }
}

async fn execute(daemon: &Rc<Daemon>, command: Command, uid: u32) -> Result<Value, Outcome> {
    match command {
        Command::Migrate(arguments) => {
            tracing::info!(uid, guest = %arguments.guest, to = %arguments.to, "asked to migrate");
            Ok(json(&Started { id: daemon.migrate(arguments)? }))
        }
        Command::Receive(arguments) => {
            tracing::info!(uid, guest = %arguments.guest, "asked to receive");
            Ok(json(&Started { id: daemon.receive(arguments).await? }))
        }
        Command::List => Ok(json(&daemon.registry.statuses())),
        Command::Status(which) => Ok(json(&daemon.registry.find(&which.id)?.status())),
        Command::Cancel(which) => {
            tracing::info!(uid, which = %which.id, "asked to cancel");
            daemon.registry.find(&which.id)?.cancel()?;
            Ok(Value::Object(Default::default()))
        }
        Command::Resolve(arguments) => {
            tracing::warn!(uid, which = %arguments.id, guest_is = ?arguments.guest_is, "told where a guest in doubt is");
            let entry = daemon.registry.find(&arguments.id)?;
            entry.resolve(arguments.guest_is, arguments.fenced)?;
            settles(&entry).await;
            Ok(json(&entry.status()))
        }
        Command::Set(arguments) => {
            tracing::info!(uid, which = %arguments.id, "asked to change how it shares the link");
            check_limit(arguments.limit_bytes_per_s.flatten())?;
            let entry = daemon.registry.find(&arguments.id)?;
            entry.set_sharing(arguments.limit_bytes_per_s, arguments.priority)?;
            Ok(json(&entry.status()))
        }
        Command::Link(arguments) => {
            tracing::info!(uid, peer = %arguments.peer, "asked how a link does");
            Ok(json(&link::report(daemon, arguments).await?))
        }
        Command::Check(arguments) => {
            tracing::info!(uid, guest = %arguments.guest, peer = %arguments.peer, "asked how a move would go");
            Ok(json(&check::report(daemon, arguments).await?))
        }
        Command::Carry(arguments) => {
            tracing::info!(uid, guest = %arguments.guest, to = %arguments.to, "asked to carry a guest of libvirt's");
            Ok(json(&near::open(daemon, arguments).await?))
        }
        Command::LibvirtCheck(arguments) => {
            tracing::info!(uid, peer = ?arguments.peer, "asked whether all is ready for libvirt's guests");
            Ok(json(&crate::libvirt::check::report(daemon, arguments).await?))
        }
        Command::LibvirtHook(arguments) => Ok(json(&crate::libvirt::hook::told(daemon, &arguments))),
        Command::Subscribe => Ok(Value::Null),
    }
}

/// Until what somebody has said of a guest has been acted on, or was not believed; not for long.
async fn settles(entry: &Entry) {
    let settled = async {
        while !entry.phase().is_final() && entry.told().is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let _ = tokio::time::timeout(SETTLES_WITHIN, settled).await;
}

/// After `subscribe` the connection carries events only, until the reader goes away.
async fn events(
    daemon: Rc<Daemon>,
    mut write: OwnedWriteHalf,
    mut lines: BufReader<tokio::net::unix::OwnedReadHalf>,
    id: Option<Value>,
) -> io::Result<()> {
    let mut events = daemon.registry.subscribe();
    send(&mut write, &Reply { value: Some(json(&daemon.registry.statuses())), error: None, id }).await?;
    let mut gone = [0u8; 64];
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => send(&mut write, &event).await?,
                Err(RecvError::Lagged(_)) => {
                    // What it missed is in the statuses; endings must not be lost.
                    for status in daemon.registry.statuses() {
                        let event = if status.phase.is_final() {
                            super::wire::EventKind::Finished
                        } else {
                            super::wire::EventKind::Progress
                        };
                        send(&mut write, &super::wire::Event { event, v: SCHEMA, data: status }).await?;
                    }
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            read = lines.read(&mut gone) => if read? == 0 {
                return Ok(());
            },
        }
    }
}

async fn send<T: Serialize>(write: &mut OwnedWriteHalf, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    write.write_all(&line).await
}

fn refusal(id: Option<Value>, desc: String) -> Reply {
    let error = ErrorBody { class: Ending::Usage, desc, guest: Whereabouts::Untouched };
    Reply { value: None, error: Some(error), id }
}

fn json<T: Serialize>(value: &T) -> Value {
    // Our own types, with string keys: this cannot fail.
    serde_json::to_value(value).unwrap_or(Value::Null)
}
