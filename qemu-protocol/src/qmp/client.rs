//! The socket and who waits for which reply.
//!
//! One task reads, one writes; both end when the client is dropped or the connection fails. A caller that goes
//! away or runs out of time leaves nothing behind but a reply that nobody wants: a command is written whole or
//! not at all.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::awake::within;
use super::codec::{Greeting, GreetingVersion, Lines, Message};
use super::error::{ErrorKind, QmpError};
use super::events::{Event, Events, Hub};

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// For the connection, its greeting and the capability negotiation together. Default 5 s.
    pub connect_timeout: Duration,
    /// For one command's answer. Default 10 s: QEMU answers within milliseconds unless it is busy completing a
    /// migration or its host is.
    pub command_timeout: Duration,
    /// The longest line taken from QEMU. Default 16 MiB: `query-qmp-schema` is below 1 MiB.
    pub max_line_bytes: usize,
    /// Events a subscriber may leave untaken before the oldest are dropped (and counted). Default 1024.
    pub max_events: usize,
    /// Bytes of one read. Default 64 KiB.
    pub read_bytes: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            max_line_bytes: 16 << 20,
            max_events: 1024,
            read_bytes: 64 << 10,
        }
    }
}

/// A connection to one QEMU. Cheap to clone; the connection closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    to_writer: mpsc::Sender<Outgoing>,
    tasks: [AbortHandle; 2],
    version: GreetingVersion,
    peer_pid: Option<i32>,
    next_id: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.fail(ErrorKind::Closed);
    }
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    config: ClientConfig,
    waiting: Mutex<Waiting>,
    events: Hub,
}

type Reply = Result<Value, ErrorKind>;

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Reply>>,
    failed: Option<ErrorKind>,
}

#[derive(Debug)]
struct Outgoing {
    line: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Client {
    /// Connects to the socket that QEMU listens on and negotiates. Must run inside a tokio runtime.
    pub async fn connect(socket: impl AsRef<Path>, config: ClientConfig) -> Result<Self, QmpError> {
        let socket = socket.as_ref().to_path_buf();
        let limit = config.connect_timeout;
        let error = |kind| QmpError { socket: socket.clone(), command: "connect".into(), kind };
        let stream = within(limit, UnixStream::connect(&socket))
            .await
            .map_err(|_| error(ErrorKind::Timeout(limit)))?
            .map_err(|e| error(ErrorKind::Io(e.to_string())))?;
        Self::start(stream, &socket, config).await
    }

    /// The same on a connection that already exists; `socket` is what errors call it.
    pub async fn start(
        stream: UnixStream,
        socket: impl AsRef<Path>,
        config: ClientConfig,
    ) -> Result<Self, QmpError> {
        /// Commands that wait to be written; a caller beyond that waits itself.
        const QUEUED_COMMANDS: usize = 16;
        let socket = socket.as_ref().to_path_buf();
        let limit = config.connect_timeout;
        let shared = Arc::new(Shared {
            socket: socket.clone(),
            config,
            waiting: Mutex::default(),
            events: Hub::default(),
        });
        let peer_pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let stream = Arc::new(stream);
        let (greeted, greeting) = oneshot::channel();
        let (to_writer, from_callers) = mpsc::channel(QUEUED_COMMANDS);
        let reader = tokio::spawn(read(stream.clone(), shared.clone(), greeted));
        let writer = tokio::spawn(write(stream, shared.clone(), from_callers));
        let mut inner = Inner {
            shared,
            to_writer,
            tasks: [reader.abort_handle(), writer.abort_handle()],
            version: GreetingVersion::default(),
            peer_pid,
            next_id: AtomicU64::new(1),
        };
        let error = |kind| QmpError { socket, command: "connect".into(), kind };
        inner.version = match within(limit, greeting).await {
            Err(_) => return Err(error(ErrorKind::NoGreeting(limit))),
            Ok(Err(_)) => return Err(error(inner.shared.failure())),
            Ok(Ok(greeting)) => greeting.version,
        };
        let client = Self { inner: Arc::new(inner) };
        let _: Value = client.execute_within("qmp_capabilities", (), limit).await?;
        Ok(client)
    }

    /// The path it was connected to.
    pub fn socket(&self) -> &Path {
        &self.inner.shared.socket
    }

    /// QEMU's version, as its greeting said.
    pub fn greeting_version(&self) -> &GreetingVersion {
        &self.inner.version
    }

    /// The process that listens on the socket, or made it for QEMU. None: it is in another namespace.
    pub fn peer_pid(&self) -> Option<i32> {
        self.inner.peer_pid
    }

    /// Events from now on.
    pub fn events(&self) -> Events {
        self.inner.shared.events.subscribe(self.inner.shared.config.max_events)
    }

    /// Runs a command. `()` as `args` is none; `Value` or [`serde::de::IgnoredAny`] as `T` takes any answer.
    pub async fn execute<T: DeserializeOwned>(
        &self,
        command: &'static str,
        args: impl Serialize,
    ) -> Result<T, QmpError> {
        self.execute_within(command, args, self.inner.shared.config.command_timeout).await
    }

    /// The same with a time-out of its own. After a time-out the command may still be carried out.
    pub async fn execute_within<T: DeserializeOwned>(
        &self,
        command: &'static str,
        args: impl Serialize,
        limit: Duration,
    ) -> Result<T, QmpError> {
        self.run(command, args, None, limit).await
    }

    /// The same with a file descriptor for QEMU, which it closes unless the command keeps it.
    pub async fn execute_with_fd<T: DeserializeOwned>(
        &self,
        command: &'static str,
        args: impl Serialize,
        fd: OwnedFd,
    ) -> Result<T, QmpError> {
        self.run(command, args, Some(fd), self.inner.shared.config.command_timeout).await
    }

    async fn run<T: DeserializeOwned>(
        &self,
        command: &'static str,
        args: impl Serialize,
        fd: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<T, QmpError> {
        let value = match within(limit, self.reply(command, args, fd)).await {
            Ok(reply) => reply,
            Err(_) => Err(ErrorKind::Timeout(limit)),
        };
        value
            .and_then(|v| serde_json::from_value(v).map_err(|e| ErrorKind::Answer(e.to_string())))
            .map_err(|kind| self.error(command, kind))
    }

    pub(super) fn error(&self, command: &'static str, kind: ErrorKind) -> QmpError {
        QmpError { socket: self.inner.shared.socket.clone(), command: command.into(), kind }
    }

    async fn reply(&self, command: &str, args: impl Serialize, fd: Option<OwnedFd>) -> Reply {
        let args = serde_json::to_value(args).map_err(|e| ErrorKind::Arguments(e.to_string()))?;
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = if args.is_null() {
            serde_json::json!({"execute": command, "id": id})
        } else {
            serde_json::json!({"execute": command, "arguments": args, "id": id})
        }
        .to_string()
        .into_bytes();
        line.push(b'\n');
        let reply = self.inner.shared.expect(id)?;
        let _forget = Forget { shared: &self.inner.shared, id };
        // A writer that is gone has left its failure for the reply.
        if self.inner.to_writer.send(Outgoing { line, fd }).await.is_err() {
            return Err(self.inner.shared.failure());
        }
        reply.await.unwrap_or_else(|_| Err(self.inner.shared.failure()))
    }
}

/// A caller that gave up no longer waits.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().replies.remove(&self.id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: u64) -> Result<oneshot::Receiver<Reply>, ErrorKind> {
        let (tx, rx) = oneshot::channel();
        let mut waiting = self.lock();
        match &waiting.failed {
            Some(failure) => Err(failure.clone()),
            None => {
                waiting.replies.insert(id, tx);
                Ok(rx)
            }
        }
    }

    /// The first failure counts; everybody who waits is told.
    fn fail(&self, kind: ErrorKind) {
        let replies = {
            let mut waiting = self.lock();
            waiting.failed.get_or_insert_with(|| kind.clone());
            std::mem::take(&mut waiting.replies)
        };
        for (_, reply) in replies {
            let _ = reply.send(Err(kind.clone()));
        }
        self.events.close();
    }

    fn failure(&self) -> ErrorKind {
        self.lock().failed.clone().unwrap_or(ErrorKind::Closed)
    }

    /// QEMU leaves the id out only where it could not read the command; it answers in order, so the oldest.
    fn answer(&self, id: Option<u64>, reply: Reply) {
        let waiter = {
            let mut waiting = self.lock();
            let id = id.or_else(|| waiting.replies.keys().min().copied());
            id.and_then(|id| waiting.replies.remove(&id))
        };
        match waiter {
            Some(waiter) => drop(waiter.send(reply)),
            None => {
                tracing::debug!(socket = %self.socket.display(), "an answer that nobody waits for any more")
            }
        }
    }

    fn take(&self, message: Message, greeted: &mut Option<oneshot::Sender<Greeting>>) {
        match message {
            Message::Greeting(greeting) => {
                if let Some(greeted) = greeted.take() {
                    let _ = greeted.send(greeting);
                }
            }
            Message::Event { name, data, at_us } => {
                self.events.publish(&Event { name, data, at_us, count: 1, lost_before: 0 });
            }
            Message::Return { id, value } => self.answer(id, Ok(value)),
            Message::Error { id, class, desc } => self.answer(id, Err(ErrorKind::Qemu { class, desc })),
        }
    }
}

async fn read(stream: Arc<UnixStream>, shared: Arc<Shared>, greeted: oneshot::Sender<Greeting>) {
    let failure = read_all(&stream, &shared, greeted).await;
    shared.fail(failure);
}

async fn read_all(stream: &UnixStream, shared: &Shared, greeted: oneshot::Sender<Greeting>) -> ErrorKind {
    let mut greeted = Some(greeted);
    let mut lines = Lines::new(shared.config.max_line_bytes);
    let mut buf = vec![0; shared.config.read_bytes.max(1)];
    loop {
        if let Err(e) = stream.readable().await {
            return ErrorKind::Io(e.to_string());
        }
        let bytes = match stream.try_read(&mut buf) {
            Ok(0) => return ErrorKind::Closed,
            Ok(n) => buf.get(..n).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return ErrorKind::Io(e.to_string()),
        };
        if let Err(e) = lines.push(bytes, |message| shared.take(message, &mut greeted)) {
            return ErrorKind::Codec(e);
        }
    }
}

async fn write(stream: Arc<UnixStream>, shared: Arc<Shared>, mut commands: mpsc::Receiver<Outgoing>) {
    while let Some(command) = commands.recv().await {
        if let Err(e) = write_one(&stream, command).await {
            shared.fail(ErrorKind::Io(e.to_string()));
            return;
        }
    }
}

async fn write_one(stream: &UnixStream, command: Outgoing) -> io::Result<()> {
    let mut fd = command.fd;
    let mut rest = command.line.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let rights = if fds.is_empty() { &[] } else { rights.as_slice() };
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(rest)], rights, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(io::Error::from)
        });
        match sent {
            Ok(n) => {
                // The descriptor went with the first bytes.
                fd = None;
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
