//! A migration at its destination: a QEMU waits, is filled, loads, and is started once the source has let go.
//!
//! ```text
//!  armed ─▶ filling ─▶ loading ─▶ starting ─▶ running
//!    └────────┴──────────┴──────────┴─ any failure: refused, durably, before it is said
//! ```
//!
//! The guest is the source's until GO. After GO it is ours, unless we refuse it; refused means that it never ran here.

mod answer;
pub(crate) mod apply;
mod error;
pub(crate) mod events;
mod fit;
mod guest;
mod refuse;
mod restart;
pub(crate) mod sink;
pub(crate) mod way_back;
mod words;

pub use answer::{answer, over};
pub use error::DestinationError;
pub use guest::{WaitingError, WaitingGuest};
pub use restart::{Held, restart_starting};

use crate::api::wire::{Numbers, ReceiveArguments};
use crate::daemon::{Daemon, Receives};
use crate::fail;
use crate::hooks::{self, Hook, HookError};
use crate::id::Id;
use crate::inbox::Inbox;
use crate::mailbox::{FromPeer, Mailbox};
use crate::outage;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::{Destination, DestinationStep, Phase};
use crate::protocol::{
    self, ArrivalTimes, Migrate, PROTOCOL, Refusal, ToDestination, ToSource, Verdict, Welcome,
};
use crate::records::{self, Record, RecordError};
use crate::registry::Entry;
use apply::{Apply, ApplyError, FromApply, ToApply};
use events::SourceEvents;
use hikyaku_engine::{PAGE_BYTES, ReceiverConfig};
use hikyaku_qemu::return_path::{Message, Reader};
use hikyaku_transport::{Incoming, PeerName, RxSession};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use way_back::WayBack;

/// A source at the door, with what it said.
pub struct Arrival {
    pub peer: PeerName,
    pub hello: Migrate,
    pub incoming: Incoming,
}

/// A QEMU that awaits a guest.
pub struct Armed {
    pub entry: Arc<Entry>,
    pub arguments: ReceiveArguments,
    pub guest: WaitingGuest,
    /// Sources come in here, until one is taken.
    pub door: tokio::sync::mpsc::Receiver<Arrival>,
}

/// Waits for the guest and takes it, to the end, whatever that is; tells the registry.
pub async fn run(daemon: Rc<Daemon>, mut armed: Armed) {
    let taken = loop {
        let arrival = tokio::select! {
            arrival = armed.door.recv() => arrival,
            _ = armed.entry.cancelled() => None,
            () = armed.guest.gone() => {
                daemon.disarm(&armed.arguments.guest);
                let desc = "the waiting QEMU ended before a guest came";
                armed.entry.finish(Phase::Refused, Outcome::new(Ending::Failed, Whereabouts::Untouched, desc));
                return;
            }
        };
        let Some(arrival) = arrival else {
            daemon.disarm(&armed.arguments.guest);
            let desc = "no longer awaited";
            armed.entry.finish(Phase::Refused, Outcome::new(Ending::Cancelled, Whereabouts::Untouched, desc));
            return;
        };
        let id = Id(arrival.incoming.id().0);
        let gone = || Err((Refusal::NotAwaited, "it is awaited there no more".to_owned()));
        let checked = match fit::check(&armed, &arrival) {
            Ok(()) => tokio::select! {
                biased;
                _ = armed.entry.cancelled() => gone(),
                () = armed.guest.gone() => gone(),
                record = daemon.records.read(id) => fit::is_new(&daemon, id, record),
            },
            refused => refused,
        };
        match checked {
            Ok(()) => break arrival,
            Err((code, text)) => {
                tracing::warn!(guest = %armed.arguments.guest, peer = %arrival.peer, %text, "a guest was refused");
                armed.entry.turned_away(arrival.peer.as_str(), &text);
                arrival.incoming.refuse(code as u16, &text);
            }
        }
    };
    // The door closes: this QEMU can take one guest only.
    daemon.disarm(&armed.arguments.guest);
    armed.entry.set_source(taken.peer.as_str(), Id(taken.incoming.id().0));
    armed.entry.advance(Phase::Filling);
    match Reception::begin(&daemon, armed, taken).await {
        Ok(reception) => reception.run().await,
        Err((entry, error)) => {
            entry.finish(Phase::Refused, error.outcome(false));
        }
    }
}

/// What a source is told whose guest is taken. `holds_ack`: it waits for this QEMU's SWITCHOVER_ACK, if there will be one.
pub fn welcome(daemon: &Daemon, guest: &WaitingGuest, holds_ack: bool) -> Welcome {
    Welcome {
        protocol: PROTOCOL,
        incarnation: daemon.records.incarnation(),
        qemu: guest.facts.clone(),
        sends_ack: holds_ack && guest.knows_ack,
        dictionary_slots: daemon.config.memory.dictionary_slots(),
    }
}

struct Reception {
    daemon: Rc<Daemon>,
    entry: Arc<Entry>,
    arguments: ReceiveArguments,
    guest: WaitingGuest,
    id: Id,
    peer: PeerName,
    peer_incarnation: Id,
    session: RxSession,
    way_back: WayBack,
    inbox: Arc<Inbox<ToApply>>,
    from_apply: UnboundedReceiver<FromApply>,
    mailbox: Mailbox,
    reader: Reader,
    /// What may be done to the guest.
    owner: Destination,
    /// The source has let go; whether the guest ran before.
    go: Option<bool>,
    /// Starting, on its way to the disk.
    starting: Option<JoinHandle<Result<(), RecordError>>>,
    /// What has to be done before the guest may run.
    hook: Option<JoinHandle<Result<(), HookError>>>,
    /// What is done beside.
    beside: Option<JoinHandle<()>>,
    lost_after_go: bool,
    /// The source is not reached just now.
    down: bool,
    /// All of the guest is here.
    complete: bool,
    /// When all of it was here, GO included; when QEMU had loaded it; when it ran.
    arrived: Option<Instant>,
    loaded: Option<Instant>,
    ran: Option<Instant>,
    /// Who asks about it meanwhile is told to ask again.
    _receives: Receives,
}

impl Reception {
    async fn begin(
        daemon: &Rc<Daemon>,
        armed: Armed,
        arrival: Arrival,
    ) -> Result<Reception, (Arc<Entry>, DestinationError)> {
        let Armed { entry, arguments, guest, .. } = armed;
        let Arrival { peer, hello, incoming } = arrival;
        let id = Id(incoming.id().0);
        // From here on whoever asks about it is told to ask again.
        let receives = daemon.receives(id);
        let fail = |incoming: Incoming, error: DestinationError| {
            incoming.refuse(Refusal::QemuFailed as u16, &error.to_string());
            (entry.clone(), error)
        };
        if let Some(hook) = hooks::call(&daemon.config.hooks, Hook::BeforeCopy, &entry, &arguments.qmp)
            && let Err(error) = hook.run_for(&entry).await
        {
            return Err(fail(incoming, error.into()));
        }
        let welcome = welcome(daemon, &guest, hello.holds_ack);
        let ours = match guest.begin(welcome.sends_ack).await {
            Ok(ours) => ours,
            Err(error) => return Err(fail(incoming, error.into())),
        };
        let parts =
            ours.try_clone().and_then(|write| Ok((WayBack::new(ours)?, write, Arc::new(Inbox::new()?))));
        let (way_back, write, inbox) = match parts {
            Ok(parts) => parts,
            Err(error) => return Err(fail(incoming, DestinationError::Resources(error))),
        };
        let (events, mailbox) = SourceEvents::new(inbox.clone());
        let (out, from_apply) = unbounded_channel();
        let memory = &daemon.config.memory;
        let session = protocol::encode(&welcome)
            .map_err(DestinationError::from)
            .and_then(|reply| Ok(incoming.accept(reply, memory.credit, Arc::new(events))?))
            .map_err(|error| (entry.clone(), error))?;
        let apply = Apply {
            qemu: write,
            config: ReceiverConfig {
                park_budget_bytes: memory.credit as usize + (32 << 20),
                max_pages: fit::pages_at_most(guest.facts.ram_bytes),
                dictionary_slots: memory.dictionary_slots(),
                ..ReceiverConfig::default()
            },
            end: sink::End::Held { tail_budget_bytes: memory.tail as usize },
            inbox: inbox.clone(),
            out,
        };
        if let Err(error) = apply.start(session.clone()) {
            session.close(Refusal::Other as u16, &error.to_string());
            return Err((entry, DestinationError::Resources(error)));
        }
        Ok(Reception {
            daemon: daemon.clone(),
            entry,
            arguments,
            guest,
            id,
            peer,
            peer_incarnation: hello.incarnation,
            session,
            way_back,
            inbox,
            from_apply,
            mailbox,
            reader: Reader::new(),
            owner: Destination::Filling,
            go: None,
            starting: None,
            hook: None,
            beside: None,
            lost_after_go: false,
            down: false,
            complete: false,
            arrived: None,
            loaded: None,
            ran: None,
            _receives: receives,
        })
    }

    async fn run(mut self) {
        fail::point("destination.accepted");
        let taken = match self.fill().await {
            Ok(()) => self.start().await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(verdict) => self.tell_arrived(verdict).await,
            Err(error) if self.owner == Destination::Told => self.find_out(error).await,
            Err(error) => self.refuse(error).await,
        }
    }

    /// Until the guest is loaded, stopped, and the source has let go. `Err` means it is not ours.
    async fn fill(&mut self) -> Result<(), DestinationError> {
        let patience = self.daemon.config.guest.load_timeout;
        let mut buffer = [0; 4096];
        let mut loaded = false;
        while !(loaded && self.go.is_some()) {
            if self.complete && self.go.is_some() {
                self.arrived.get_or_insert_with(Instant::now);
            }
            tokio::select! {
                biased;
                wish = self.entry.cancelled(), if self.go.is_none() => return Err(DestinationError::Cancelled(wish)),
                from = self.mailbox.next() => self.handle_source(from)?,
                told = self.from_apply.recv() => match told {
                    Some(FromApply::Complete) => {
                        self.complete = true;
                        fail::point("destination.complete");
                        self.load();
                        if self.go.is_some() {
                            self.begin_starting();
                        }
                    }
                    Some(FromApply::Progress(progress)) => self.show(progress),
                    Some(FromApply::Ended(Err(error))) => return Err(self.why_it_ended(error).await),
                    Some(FromApply::Ended(Ok(()))) | None => return Err(DestinationError::Ended),
                },
                read = self.way_back.read(&mut buffer), if !loaded => {
                    let over = match read {
                        Ok(0) | Err(_) => true,
                        Ok(n) => self.return_path(&buffer[..n])?,
                    };
                    if over {
                        self.guest.loaded(patience).await?;
                        loaded = true;
                        fail::point("destination.loaded");
                        self.loaded = Some(Instant::now());
                        self.complete = true;
                        self.load();
                        if self.go.is_none() {
                            self.session.message(protocol::encode(&ToSource::Ready)?)?;
                        }
                    }
                }
                // The guest stands: a QEMU that takes nothing more of it must not keep it standing. It arrives stopped, so
                // it can be refused whatever becomes of that QEMU. What is missing while the link is down comes with it, or
                // the transport gives the link up.
                () = tokio::time::sleep(patience), if self.go.is_some() && (self.complete || !self.down) => {
                    return Err(WaitingError::Slow { what: "take the guest", after: patience }.into());
                }
            }
        }
        self.arrived.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Nothing of the guest is missing any more, whatever the link does.
    fn load(&self) {
        if self.entry.phase() == Phase::LinkLost {
            self.entry.advance(Phase::Filling);
        }
        self.entry.advance(Phase::Loading);
        self.entry.all_is_here();
    }

    /// The guest is loaded and the source has let go: it is started, unless it is to stay stopped. On `Ok` that is durable;
    /// on `Err` the guest has not run here.
    async fn start(&mut self) -> Result<Verdict, DestinationError> {
        self.begin_starting();
        if let Some(writing) = self.starting.take() {
            writing.await.map_err(|_| DestinationError::Ended)??;
        }
        self.owner.step(DestinationStep::Durable)?;
        if let Some(hook) = self.hook.take() {
            hook.await.map_err(|_| DestinationError::Ended)??;
        }
        fail::point("destination.started");
        if self.entry.is_kept_at_source() {
            return Err(DestinationError::Kept);
        }
        self.entry.advance(Phase::Starting);
        let run = self.go == Some(true) && !self.arguments.paused;
        if run {
            self.owner.step(DestinationStep::Run)?;
            if let Err(error) = self.guest.start(self.daemon.config.guest.qmp_timeout).await {
                if !error.is_unclear() {
                    self.owner.step(DestinationStep::Disobeyed)?;
                }
                return Err(error.into());
            }
            self.ran = Some(Instant::now());
        }
        self.owner.step(DestinationStep::Seen)?;
        fail::point("destination.running");
        let arrived = self.record(records::Phase::Arrived, "");
        if let Err(error) = self.daemon.records.write(&arrived).await {
            // It runs. A restart finds Starting, sees it run, and says the same.
            tracing::error!(%error, "the arrival is not recorded yet");
            let records = self.daemon.records.clone();
            tokio::task::spawn_local(async move {
                while records.write(&arrived).await.is_err() {
                    tokio::time::sleep(refuse::RECORD_INTERVAL).await;
                }
            });
        }
        fail::point("destination.arrived");
        Ok(if run { Verdict::Running } else { Verdict::Paused })
    }

    /// Makes Starting durable while QEMU loads: if loading fails, Refused follows it.
    fn begin_starting(&mut self) {
        if self.starting.is_none() {
            let (records, record) = (self.daemon.records.clone(), self.record(records::Phase::Starting, ""));
            self.starting = Some(tokio::task::spawn_local(async move { records.write(&record).await }));
            let (hooks, qmp) = (&self.daemon.config.hooks, &self.arguments.qmp);
            if hooks.hold.contains(&Hook::BeforeSwitchover) {
                let called = hooks::call(hooks, Hook::BeforeSwitchover, &self.entry, qmp);
                let entry = self.entry.clone();
                self.hook =
                    called.map(|hook| tokio::task::spawn_local(async move { hook.run_for(&entry).await }));
            } else {
                self.beside = hooks::call_beside(hooks, Hook::BeforeSwitchover, &self.entry, qmp, None);
            }
        }
    }

    async fn tell_arrived(mut self, verdict: Verdict) {
        let guest = match verdict {
            Verdict::Running => Whereabouts::RunsAtDestination,
            _ => Whereabouts::StoppedAtDestination,
        };
        if let Some(times) = self.times() {
            // Only the report of the move wants it.
            let said = protocol::encode(&ToSource::Times(times)).map(|message| self.session.message(message));
            tracing::debug!(?times, ?said, "arrived");
        }
        let runs = verdict == Verdict::Running;
        self.entry.all_is_here();
        say(&self.session, verdict);
        let desc = format!("arrived from {}", self.peer);
        self.entry.finish(Phase::Running, Outcome::new(Ending::Moved, guest, desc));
        self.call_beside(Hook::AfterSwitchover);
        if runs {
            self.guest.announce().await;
        }
        self.inbox.push(ToApply::End);
        part(self.session, &mut self.mailbox).await;
    }

    /// When what came before it has ended.
    fn call_beside(&mut self, hook: Hook) {
        let held = self.hook.take().map(|held| tokio::task::spawn_local(async move { drop(held.await) }));
        let behind = held.or(self.beside.take());
        hooks::call_beside(&self.daemon.config.hooks, hook, &self.entry, &self.arguments.qmp, behind);
    }

    /// How its arrival was spent. None: it does not run.
    fn times(&self) -> Option<ArrivalTimes> {
        let (ran, loaded) = (self.ran?, self.loaded?);
        // With the safe switch-over it was loaded before GO came.
        let arrived = self.arrived?;
        let us = |from: Instant, until: Instant| until.saturating_duration_since(from).as_micros() as u64;
        Some(ArrivalTimes {
            load_us: us(arrived, loaded),
            resume_us: us(loaded.max(arrived), ran),
            told_us: us(ran, Instant::now()),
        })
    }

    fn handle_source(&mut self, from: Option<FromPeer>) -> Result<(), DestinationError> {
        let lost = match from {
            Some(FromPeer::Message(message)) => {
                match protocol::decode(&message)? {
                    _ if self.go.is_some() => tracing::warn!("a message after GO is of no account"),
                    ToDestination::Load { last_seq } => self.inbox.push(ToApply::Release { last_seq }),
                    ToDestination::Go { last_seq, run } => {
                        self.owner.step(DestinationStep::Go)?;
                        self.go = Some(run);
                        self.entry.set_let_go();
                        fail::point("destination.go");
                        self.inbox.push(ToApply::Release { last_seq });
                    }
                }
                return Ok(());
            }
            Some(FromPeer::LinkDown(why)) => {
                self.down = true;
                self.entry.link_down(&outage::words(&why), self.daemon.config.link.timeout);
                if self.entry.phase() == Phase::Filling {
                    self.entry.advance(Phase::LinkLost);
                }
                return Ok(());
            }
            Some(FromPeer::LinkUp) => {
                self.down = false;
                self.entry.link_up();
                if self.entry.phase() == Phase::LinkLost {
                    self.entry.advance(Phase::Filling);
                }
                return Ok(());
            }
            Some(FromPeer::Lost(lost)) => DestinationError::Lost(lost),
            Some(FromPeer::Closed { code, text }) => DestinationError::Closed { code, text },
            Some(FromPeer::Flood) => DestinationError::Flood,
            None => DestinationError::Ended,
        };
        if self.go.is_none() {
            return Err(lost);
        }
        // The guest is ours if all of it is here; the source will ask.
        tracing::warn!(error = %lost, "after GO");
        if !self.lost_after_go {
            self.lost_after_go = true;
            self.inbox.push(ToApply::NoMore);
        }
        Ok(())
    }

    /// QEMU's return path goes on to the source's, except what the daemons decide. True: QEMU says that it is done.
    fn return_path(&mut self, bytes: &[u8]) -> Result<bool, DestinationError> {
        let (mut on, mut acked, mut shut) = (Vec::new(), false, false);
        let mut broken = None;
        self.reader.push(bytes, |message| match message {
            Message::Shut(_) => shut = true,
            Message::SwitchoverAck => acked = true,
            other => broken = other.write(&mut on).err().or(broken),
        })?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        if acked {
            self.session.message(protocol::encode(&ToSource::SwitchoverAck)?)?;
        }
        if !on.is_empty() {
            self.session.message(protocol::encode(&ToSource::ReturnPath(on))?)?;
        }
        Ok(shut)
    }

    /// When QEMU stops taking its stream, QEMU knows why.
    async fn why_it_ended(&self, error: ApplyError) -> DestinationError {
        if !error.is_qemus() {
            return error.into();
        }
        match self.guest.loaded(Duration::from_secs(1)).await {
            Err(WaitingError::Slow { .. }) | Ok(()) => error.into(),
            Err(why) => why.into(),
        }
    }

    fn show(&self, progress: apply::Progress) {
        let stats = self.session.stats();
        self.entry.set_numbers(Numbers {
            pages_total: progress.pages_total,
            pages_done: if self.complete {
                progress.pages_total
            } else {
                progress.pages_written.min(progress.pages_total)
            },
            sent_bytes: progress.payload_bytes,
            raw_bytes: progress.pages_written * PAGE_BYTES as u64,
            rtt_us: stats.rtt.map_or(0, |d| d.as_micros() as u64),
            goodput_bytes_per_s: stats.goodput_bytes_per_s.unwrap_or(0),
            ..Numbers::default()
        });
    }

    fn record(&self, phase: records::Phase, why: &str) -> Record {
        Record {
            id: self.id,
            phase,
            guest: self.arguments.guest.clone(),
            qmp: self.arguments.qmp.clone(),
            peer: self.peer.as_str().to_owned(),
            run: self.go == Some(true) && !self.arguments.paused,
            peer_incarnation: self.peer_incarnation,
            qemu: self.guest.process,
            why: why.to_owned(),
            resolved: false,
        }
    }
}

fn say(session: &RxSession, verdict: Verdict) {
    let said = protocol::encode(&ToSource::Verdict(verdict))
        .map_err(DestinationError::from)
        .and_then(|message| Ok(session.message(message)?));
    if let Err(error) = said {
        tracing::warn!(%error, "the source will have to ask for the verdict");
    }
}

/// Leaves the session to the source to close, so that the verdict is not overtaken.
async fn part(session: RxSession, mailbox: &mut Mailbox) {
    let _ = tokio::time::timeout(LAST_WORDS, async {
        while let Some(FromPeer::Message(_) | FromPeer::LinkDown(_) | FromPeer::LinkUp) = mailbox.next().await
        {
        }
    })
    .await;
    session.close(Refusal::Done as u16, "arrived");
}

/// How long the source may take to close the session after the verdict; it does so at once.
const LAST_WORDS: Duration = Duration::from_secs(10);
