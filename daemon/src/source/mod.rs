//! A migration at its source: the phases in order, and what undoes each.
//!
//! ```text
//!  prepare ─▶ copy ─▶ ebb ─▶ stop ─▶ drain ─▶ let go ─▶ await the verdict ─▶ release
//!     └─────────┴──────┴───────┴───────┴── any failure: give the guest back
//! ```
//!
//! A link that is down (not lost: the transport seeks it) ends nothing while the guest runs, and nothing after GO; in
//! between the guest must not stand for it, and is given back if it does not return at once.
//!
//! Until GO has left the guest is ours: whatever fails, `give_back` leaves it as it was. After that only the
//! destination's verdict counts; while it cannot be had, [`doubt`] goes on asking.

mod answer;
mod cause;
mod copy;
mod deadline;
pub mod doubt;
mod ebb;
mod error;
pub(crate) mod events;
pub mod experience;
mod forget;
mod gate;
mod give_back;
mod guest;
mod handover;
pub(crate) mod intake;
pub(crate) mod kept;
mod leftovers;
mod meddling;
mod options;
pub(crate) mod pump;
mod return_path;
pub(crate) mod sharing;
mod sleep;
mod standing;
mod survey;
mod throttle;

pub use error::SourceError;
pub use forget::{Writing, forget, forget_behind};
pub use guest::{GuestError, continue_guest, facts};
pub use meddling::{stop_again_whoever_continues, stop_copy};
pub use options::{POLICIES, check};
pub use survey::{Survey, survey};

use crate::api::wire::{MigrateArguments, Resolution, StopTimes, Switchover};
use crate::daemon::Daemon;
use crate::estimate::Estimate;
use crate::fail;
use crate::hooks::{self, Hook};
use crate::inbox::Inbox;
use crate::mailbox::{FromPeer, Mailbox};
use crate::outage;
use crate::outcome::Whereabouts;
use crate::ownership::{Forbidden, Phase, Source, SourceStep};
use crate::protocol::{self, ArrivalTimes, Migrate, PROTOCOL, Refusal, Relay, ToSource, Verdict, Welcome};
use crate::records::{self, Record};
use crate::registry::Entry;
use crate::report::{self, Report};
use answer::{Answer, Opened};
use deadline::Deadline;
use guest::{Hold, SourceGuest};
use hikyaku_engine::AbortReason;
use hikyaku_engine::precopy::Terms;
use hikyaku_transport::{Ebb, Lost, TxSession};
use intake::Intake;
use meddling::Meddling;
use pump::{Closes, FromPump, Pump, ToPump};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Moves the guest, to the end, whatever that is; tells the registry.
pub async fn run(daemon: Rc<Daemon>, entry: Arc<Entry>, arguments: MigrateArguments) {
    for may_foresee in [true, false] {
        match Migration::prepare(&daemon, &entry, arguments.clone(), may_foresee).await {
            Ok(migration) => match migration.run().await {
                Ended::ForGood => return,
                Ended::ToBeBegunAgain => {}
            },
            Err(error) => return entry.finish(Phase::Failed, error.outcome(Whereabouts::Untouched)),
        }
    }
}

/// What is left of a guest that was moved.
pub const STOPPED_COPY: &str =
    "The stopped copy here is of no use any more, and must not be continued: quit its QEMU";
/// Of one of which somebody has said that it is there.
pub const LEFT_COPY: &str =
    "When you have seen it run there, the stopped copy here is of no use any more: quit its QEMU";
/// Its QEMU may take it for its own.
const UNNOTICED_COPY: &str = "The QEMU here has not noticed that its guest is gone: end it with SIGKILL, for one that quits may write to the guest's disks";
/// What took too long.
const STATE_DISK: &str = "the disk of the state directory to take a record";

enum Ended {
    ForGood,
    /// The guest is as it was.
    ToBeBegunAgain,
}

struct Migration {
    daemon: Rc<Daemon>,
    entry: Arc<Entry>,
    arguments: MigrateArguments,
    guest: Rc<SourceGuest>,
    session: TxSession,
    sharing: sharing::Follower,
    welcome: Welcome,
    answer: Answer,
    inbox: Arc<Inbox<ToPump>>,
    from_pump: UnboundedReceiver<FromPump>,
    mailbox: Mailbox,
    begun: Instant,
    /// The most that was seen to arrive, bytes per second.
    best_goodput: u64,
    deadline: Deadline,
    /// It has come, and the engine was told.
    late: Option<Duration>,
    /// Of the guest's time, in percent, what its QEMU was told to take.
    throttle: Option<u8>,
    /// It runs, as far as nobody but us stops it; so it is to run afterwards.
    runs: bool,
    /// What may be done to it.
    owner: Source,
    meddling: Meddling,
    /// RAM's last record has been read.
    ram_ended: bool,
    /// QEMU's stream is relayed as it is.
    raw: bool,
    /// The destination's devices let the guest be stopped.
    may_stop: bool,
    /// A QEMU that knows no SWITCHOVER_ACK stopped the guest before it was told to.
    gone_on: bool,
    sleep: sleep::Sleep,
    /// There is a record of it, or may be.
    recorded: bool,
    /// Its record, on its way to a disk that nobody waited for any longer.
    writing: Option<forget::Writing>,
    /// The destination's QEMU has loaded everything.
    ready: bool,
    verdict: Option<Verdict>,
    /// Why the destination cannot be reached just now.
    down: Option<String>,
    return_path: return_path::Guard,
    /// How long it has stood.
    standing: standing::Standing,
    /// The link sends less than it could, so that the guest's last pages find no queue.
    ebb: Option<Ebb>,
    times: StopTimes,
    /// What the stop was made of, as far as it was known before.
    terms: Terms,
    /// Before the guest was stopped.
    foretold: Option<report::Stop>,
    /// What the destination says of the rest of the stop.
    arrival: Option<ArrivalTimes>,
    estimate: Option<Estimate>,
}

impl Migration {
    /// Asks everybody; begins QEMU's migration last. On `Err` the guest was not stopped. `may_foresee`: a destination that has said what
    /// it awaits is asked, and not waited for.
    async fn prepare(
        daemon: &Rc<Daemon>,
        entry: &Arc<Entry>,
        arguments: MigrateArguments,
        may_foresee: bool,
    ) -> Result<Migration, SourceError> {
        let config = &daemon.config;
        if config.peer(&arguments.to).is_none() {
            return Err(SourceError::UnknownPeer(arguments.to));
        }
        let asked = async {
            let guest = SourceGuest::connect(
                &arguments.qmp,
                config.guest.qmp_timeout,
                options::may_throttle(&arguments),
            )
            .await
            .map_err(SourceError::Qmp)?;
            leftovers::clear(daemon, &arguments.qmp, guest.process).await?;
            let inbox = Arc::new(Inbox::new().map_err(SourceError::Resources)?);
            let hello = Migrate {
                protocol: PROTOCOL,
                guest: arguments.guest.clone(),
                incarnation: daemon.records.incarnation(),
                qemu: guest.facts.clone(),
                relay: if arguments.raw { Relay::Raw } else { Relay::Native },
                holds_ack: guest.hold == Hold::Ack,
            };
            let (to, name) = (&arguments.to, &arguments.guest);
            let foreseen = daemon.awaited.take(to, name, &guest.facts).filter(|_| may_foresee);
            let opened = answer::ask(daemon, entry, to, hello, foreseen, &inbox).await?;
            if let Some(hook) = hooks::call(&config.hooks, Hook::BeforeCopy, entry, &arguments.qmp) {
                hook.run_for(entry).await?;
            }
            Ok::<_, SourceError>((guest, inbox, opened))
        };
        // Up to here nothing needs to be undone: dropping it all is enough.
        let (mut guest, inbox, opened) = tokio::select! {
            asked = asked => asked?,
            wish = entry.cancelled() => return Err(SourceError::Cancelled(wish)),
        };

        let Opened { mailbox, session, welcome, answer } = opened;
        let patience = config.guest.qmp_timeout;
        let kept =
            tokio::time::timeout(patience, guest.keep_settings(&daemon.settings, &arguments.qmp)).await;
        let kept = kept.unwrap_or(Err(SourceError::Slow { what: STATE_DISK, after: patience }));
        if let Err(error) = kept {
            session.close(Refusal::Other as u16, &error.to_string());
            guest.forget_settings().await;
            return Err(error);
        }
        let estimate = daemon.estimates.borrow().last(&arguments.guest, &arguments.to);
        let terms = daemon.experience.borrow().terms(&arguments.to, guest.facts.ram_bytes);
        let mut engine = options::engine(config, &daemon.workers, &arguments, guest.hold)
            .ok_or_else(|| SourceError::UnknownPolicy(arguments.policy.clone().unwrap_or_default()))?;
        engine.set_terms(terms);
        engine.dictionary_slots(welcome.dictionary_slots);
        let sharing = sharing::Follower::start(session.clone(), entry.clone());
        let (to_controller, from_pump) = unbounded_channel();
        fail::point("source.answered");
        let begun = guest.begin().await.map_err(SourceError::from).and_then(|qemu| {
            let pump = Pump {
                qemu,
                engine,
                intake: if arguments.raw { Intake::raw() } else { Intake::native() },
                tx: session.clone(),
                workers: daemon.workers.clone(),
                inbox: inbox.clone(),
                out: to_controller,
                closes: Closes::Fails,
            };
            pump.start().map_err(SourceError::Resources)
        });
        if let Err(error) = begun {
            session.close(Refusal::Other as u16, &error.to_string());
            // QEMU may have begun: without a reader its migration fails. Nobody stopped the guest for it, so nobody
            // continues it.
            if let Err(e) = guest.give_back(false, config.guest.qmp_timeout).await {
                tracing::warn!(error = %e, "after a migration that did not begin");
            }
            return Err(error);
        }
        fail::point("source.begun");
        let deadline = Deadline::new(arguments.deadline_ms.map(Duration::from_millis), Instant::now());
        Ok(Migration {
            daemon: daemon.clone(),
            entry: entry.clone(),
            raw: arguments.raw,
            arguments,
            runs: guest.runs,
            sleep: sleep::Sleep::begin(&guest),
            ram_ended: false,
            guest: Rc::new(guest),
            session,
            sharing,
            may_stop: answer.is_had() && !welcome.sends_ack,
            gone_on: false,
            recorded: false,
            writing: None,
            welcome,
            answer,
            inbox,
            from_pump,
            mailbox,
            begun: Instant::now(),
            best_goodput: 0,
            deadline,
            late: None,
            throttle: None,
            owner: Source::Free,
            meddling: Meddling::none(),
            ready: false,
            verdict: None,
            down: None,
            return_path: return_path::Guard::default(),
            standing: standing::Standing::new(Instant::now()),
            ebb: None,
            times: StopTimes::default(),
            terms,
            foretold: None,
            arrival: None,
            estimate,
        })
    }

    async fn run(mut self) -> Ended {
        if self.answer.is_had() {
            self.entry.advance(Phase::Copying);
        }
        match self.until_let_go().await {
            Ok(()) => {
                if let Err(defect) = self.after_let_go().await {
                    tracing::error!(%defect, "the guest and its record are left as they are");
                }
            }
            Err(error) => match self.cause(error).await {
                error @ SourceError::Unforeseen(_) => {
                    tracing::info!(id = %self.entry.id.short(), %error, "begun again");
                    self.undo(Refusal::Other, &error).await;
                    return Ended::ToBeBegunAgain;
                }
                error => self.give_back(error).await,
            },
        }
        Ended::ForGood
    }

    /// The destination takes the guest, as it said it would.
    fn answered(&mut self, welcome: Welcome) {
        self.may_stop |= !welcome.sends_ack;
        self.welcome = welcome;
        self.entry.advance(Phase::Copying);
    }

    /// Everything that can be undone. On `Ok` the guest is stopped, Ceded is durable, and GO is on its way.
    async fn until_let_go(&mut self) -> Result<(), SourceError> {
        let mut announced = false;
        loop {
            self.copy(announced).await?;
            // When to stop is decided anew after a hook: the guest has worked on.
            if !std::mem::replace(&mut announced, true) && self.before_switchover().await? {
                continue;
            }
            if self.ebb().await? && self.stop().await? {
                break;
            }
        }
        let last_seq = self.drain().await?;
        self.let_go(last_seq).await
    }

    /// True: something was done, and took its time.
    async fn before_switchover(&mut self) -> Result<bool, SourceError> {
        let qmp = self.arguments.qmp.clone();
        let called = hooks::call(&self.daemon.config.hooks, Hook::BeforeSwitchover, &self.entry, &qmp);
        let Some(hook) = called else { return Ok(false) };
        let entry = self.entry.clone();
        let mut running = std::pin::pin!(hook.run_for(&entry));
        loop {
            tokio::select! {
                biased;
                done = &mut running => {
                    done?;
                    self.inbox.push(ToPump::DecideAnew);
                    return Ok(true);
                }
                step = self.next() => drop(step?),
            }
        }
    }

    fn call_beside(&self, hook: Hook) {
        hooks::call_beside(&self.daemon.config.hooks, hook, &self.entry, &self.arguments.qmp, None);
    }

    async fn after_let_go(mut self) -> Result<(), Forbidden> {
        let waited = Instant::now();
        let verdict = match self.await_verdict().await {
            Some(verdict) => verdict,
            None => {
                let record = self.record(records::Phase::Ceded);
                let Migration { daemon, entry, meddling: heard, guest, arguments, .. } = &mut self;
                let timeout = daemon.config.guest.qmp_timeout;
                let stays = async {
                    loop {
                        heard.next().await;
                        meddling::stop_again(guest, &arguments.guest, timeout).await;
                    }
                };
                tokio::select! {
                    verdict = doubt::ask(daemon, entry, &record) => verdict,
                    () = stays => unreachable!("it never ends"),
                }
            }
        };
        self.times.verdict_ms = ms(waited);
        self.entry.set_stop(self.times);
        match verdict {
            Verdict::Refused { why } => {
                self.owner.step(doubt::step(&self.entry))?;
                fail::point("source.verdict");
                self.take_back(why).await
            }
            Verdict::Running | Verdict::Paused => {
                self.owner.step(SourceStep::Arrived)?;
                fail::point("source.verdict");
                let runs = verdict == Verdict::Running;
                self.release(if runs {
                    Whereabouts::RunsAtDestination
                } else {
                    Whereabouts::StoppedAtDestination
                })
                .await
            }
        }
    }

    /// The guest is the destination's. QEMU here is told that its migration is done.
    async fn release(mut self, guest: Whereabouts) -> Result<(), Forbidden> {
        // It is not here, whatever has been said meanwhile.
        let record = Record { resolved: false, ..self.record(records::Phase::Moved) };
        forget::forget_behind(&self.daemon, self.writing.take(), record).await;
        fail::point("source.forgotten");
        let mut ended = Ok(());
        if !self.completes_early() {
            self.inbox.push(ToPump::ReturnPath(SHUT_OK.to_vec()));
            ended = self.guest.completed(self.daemon.config.guest.qmp_timeout).await;
        }
        if let Err(error) = &ended {
            // The guest is gone from here; what is left is a stopped copy in a QEMU that did not notice.
            tracing::warn!(%error, "the source QEMU did not end its migration as it should");
        }
        // Somebody may have continued it just now.
        let timeout = self.daemon.config.guest.qmp_timeout;
        if self.guest.state(timeout).await.is_ok_and(|state| state.lives()) {
            meddling::stop_again(&self.guest, &self.arguments.guest, timeout).await;
        }
        self.end_pump().await;
        self.guest.forget_settings().await;
        // One that did not notice may hold the guest's images, and would write to them at its end.
        let quits = self.daemon.config.guest.quit_moved && ended.is_ok();
        if quits {
            self.guest.quit().await;
        }
        self.report();
        self.session.close(Refusal::Done as u16, "moved");
        let outcome = doubt::moved(&self.entry, &self.arguments.to, guest);
        let advice = match (&ended, self.entry.told()) {
            _ if quits => "",
            (Err(_), _) => UNNOTICED_COPY,
            (Ok(()), Some(_)) => LEFT_COPY,
            (Ok(()), None) => STOPPED_COPY,
        };
        self.entry.finish(Phase::Moved, outcome.advise(advice));
        self.call_beside(Hook::AfterSwitchover);
        self.owner.step(SourceStep::Released)
    }

    /// What was foretold, beside what came of it; and what that teaches.
    fn report(&mut self) {
        let min_rtt = self.session.stats().min_rtt.unwrap_or_default();
        let measured = self.arrival.map(|there| report::measured(&self.times, &there, min_rtt));
        // A stream that was relayed raw was loaded while it came.
        if let Some(stop) = measured.filter(|_| !self.raw) {
            let ram_bytes = self.guest.facts.ram_bytes;
            self.daemon.experience.borrow_mut().learn(&self.arguments.to, ram_bytes, &stop);
        }
        // It was of this move.
        self.daemon.estimates.borrow_mut().forget(&self.arguments.guest, &self.arguments.to);
        let (estimate, predicted) = (self.estimate.take(), self.foretold.filter(|_| !self.raw));
        self.entry.set_report(Report { estimate, predicted, measured, ..Report::default() });
    }

    /// Closes QEMU's migration socket. Returns when it is closed.
    async fn end_pump(&mut self) {
        self.inbox.push(ToPump::End);
        while let Some(told) = self.from_pump.recv().await {
            if let FromPump::Ended(_) = told {
                return;
            }
        }
    }

    /// The guest's fate is known. A daemon that finds the record all the same asks the destination once more.
    async fn forget_record(&mut self) {
        let record = self.record(records::Phase::Kept);
        forget::forget_behind(&self.daemon, self.writing.take(), record).await;
    }

    fn record(&self, phase: records::Phase) -> Record {
        Record {
            id: self.entry.id,
            phase,
            guest: self.arguments.guest.clone(),
            qmp: self.arguments.qmp.clone(),
            peer: self.arguments.to.clone(),
            run: self.runs,
            peer_incarnation: self.welcome.incarnation,
            qemu: self.guest.process,
            why: String::new(),
            resolved: self.entry.told() == Some(Resolution::Here),
        }
    }

    fn handle_peer(&mut self, from: Option<FromPeer>) -> Result<(), SourceError> {
        let message = match from {
            Some(FromPeer::Message(message)) => message,
            Some(FromPeer::LinkDown(why)) => {
                self.link_down(&why);
                return Ok(());
            }
            Some(FromPeer::LinkUp) => {
                self.link_up();
                return Ok(());
            }
            Some(FromPeer::Lost(lost)) => return Err(lost.into()),
            Some(FromPeer::Closed { code, text }) => return Err(SourceError::Closed { code, text }),
            Some(FromPeer::Flood) => return Err(SourceError::Flood),
            None => return Err(SourceError::Closed { code: 0, text: "without a word".into() }),
        };
        match protocol::decode(&message)? {
            ToSource::ReturnPath(bytes) => {
                self.return_path.check(&bytes).map_err(SourceError::Unexpected)?;
                self.inbox.push(ToPump::ReturnPath(bytes));
            }
            ToSource::SwitchoverAck => self.may_stop = true,
            ToSource::Ready => self.ready = true,
            // Nobody can have an opinion on a guest that was not let go.
            ToSource::Verdict(_) if self.entry.phase() != Phase::Ceded => {
                return Err(SourceError::Unexpected("a verdict"));
            }
            ToSource::Verdict(verdict) => self.verdict = Some(verdict),
            ToSource::Times(times) => self.arrival = Some(times),
        }
        Ok(())
    }

    fn link_down(&mut self, why: &Lost) {
        let why = outage::words(why);
        self.entry.link_down(&why, self.daemon.config.link.timeout);
        self.inbox.push(ToPump::LinkDown);
        self.down = Some(why.clone());
        match self.entry.phase() {
            Phase::Ceded => {
                let why = format!("the link is down: {why}");
                self.entry.set_outcome(doubt::outcome(&self.arguments.guest, &self.arguments.to, &why));
            }
            Phase::Copying if !self.owner.holds() => self.entry.advance(Phase::LinkLost),
            _ => {}
        }
    }

    fn link_up(&mut self) {
        self.down = None;
        self.inbox.push(ToPump::LinkUp);
        // The verdict is awaited as if it had never been gone.
        self.entry.withdraw_doubt();
        self.entry.link_up();
        if self.entry.phase() == Phase::LinkLost {
            self.entry.advance(Phase::Copying);
        }
    }

    /// Progress goes to the registry, failures up; the rest is for the phase that is on.
    fn handle_pump(&mut self, from: Option<FromPump>) -> Result<Option<FromPump>, SourceError> {
        match from {
            Some(FromPump::Numbers(numbers)) => {
                self.entry.set_numbers(numbers);
                Ok(Some(FromPump::Numbers(numbers)))
            }
            Some(FromPump::RamEnded) => {
                self.ram_ended = true;
                Ok(None)
            }
            Some(FromPump::Foretold(prediction)) => {
                self.foretold = report::predicted(&self.terms, &prediction);
                Ok(None)
            }
            Some(FromPump::Abort(AbortReason::NotConverging { predicted_ms, .. })) => {
                Err(self.not_converged(Some(Duration::from_millis(predicted_ms))))
            }
            Some(FromPump::Abort(reason)) => Err(SourceError::Engine(reason)),
            Some(FromPump::WentRaw(why)) => {
                tracing::warn!(id = %self.entry.id.short(), %why, "the rest of the stream is relayed as it is");
                self.raw = true;
                Ok(None)
            }
            Some(FromPump::Ended(Err(error))) => Err(error.into()),
            Some(FromPump::Ended(Ok(()))) | None => Err(SourceError::Pump(pump::PumpError::QemuClosed)),
            other => Ok(other),
        }
    }

    /// QEMU has given all of RAM; in raw relay, which is not looked into, all of its stream, and the destination's has loaded it.
    fn stream_ended(&self) -> bool {
        self.ram_ended || self.raw && self.ready
    }

    fn is_safe(&self) -> bool {
        self.raw || self.arguments.switchover == Switchover::Safe
    }
}

/// SHUT with no error, as QEMU's return path carries it.
const SHUT_OK: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
