//! From the running guest to GO: it is stopped, its last pages and its device state are taken, and it is let go.
//!
//! Nothing here asks the destination anything, unless the switch-over is the safe one or QEMU's stream is relayed raw.

use super::guest::{GuestError, Hold};
use super::meddling::{Meddling, stop_again};
use super::pump::{FromPump, ToPump};
use super::standing::{Overlong, Patience, Standing};
use super::{Migration, SHUT_OK, STATE_DISK, SourceError, ms};
use crate::fail;
use crate::ownership::{Phase, SourceStep};
use crate::protocol::{self, ToDestination, Verdict};
use crate::records::{self, RecordError, Wanted};
use crate::registry::Wish;
use hikyaku_engine::ChunkSeq;
use hikyaku_qemu::qmp::{Overdue, within};
use std::time::Instant;

impl Migration {
    /// On `Ok(true)` the guest is stopped by us, and that is durable; on `Err` it may be stopped. `Ok(false)`: the link went
    /// down first, and it is to be copied on.
    pub(super) async fn stop(&mut self) -> Result<bool, SourceError> {
        // Before, not after: a daemon that dies in between finds a running guest, and leaves it alone.
        // Even one that failed may be on the disk: whatever happens from here on, Kept has to follow it.
        self.mark().await?;
        let (guest, timeout) = (self.guest.clone(), self.daemon.config.guest.load_timeout);
        self.standing = Standing::new(Instant::now());
        // Asked as late as can be: once we have stopped it too, QEMU cannot tell who did.
        if self.runs {
            let state = self.beside(guest.state(timeout)).await?;
            if state.status == "suspended" {
                return Err(SourceError::Asleep);
            }
            if guest.stands(&state) {
                self.runs = false;
                self.mark().await?;
            }
        }
        self.ebb = None;
        // What came while the disk was waited for.
        while let Some(message) = self.mailbox.waiting() {
            self.handle_peer(Some(message))?;
        }
        if self.down.is_some() {
            // The migration is not over: the destination is told nothing. A record that stays says nothing wrong: the guest runs.
            let (records, id) = (self.daemon.records.clone(), self.entry.id);
            let forgotten = self.at_disk(&Wanted::default(), async move { records.forget(id).await }).await?;
            if let Err(error) = forgotten {
                tracing::warn!(%error, "the guest is not stopped, and its record says that it may be");
            }
            self.owner.step(SourceStep::Unmark)?;
            self.entry.advance(Phase::LinkLost);
            return Ok(false);
        }
        let at = Instant::now();
        self.inbox.push(ToPump::Foretell);
        self.sharing.hurry(true);
        self.inbox.push(ToPump::Allowance(None));
        self.standing = Standing::new(at);
        self.meddling = Meddling::begin(&self.guest);
        self.owner.step(SourceStep::Stop)?;
        fail::point("source.stopping");
        // The guest may stand long before QEMU says so.
        self.beside(guest.stop(timeout)).await?;
        self.times.pause_ms = ms(at);
        self.inbox.push(ToPump::GuestStopped);
        fail::point("source.stopped");
        self.entry.advance(Phase::Stopped);
        Ok(true)
    }

    /// On `Ok` a daemon that comes after this one continues the guest, if it ran.
    async fn mark(&mut self) -> Result<(), SourceError> {
        self.owner.step(SourceStep::Mark)?;
        self.recorded = true;
        fail::point("source.marking");
        self.write(records::Phase::Stopped).await?;
        fail::point("source.marked");
        Ok(self.owner.step(SourceStep::Marked)?)
    }

    /// Takes the last pages and the device state out of QEMU, which goes on by itself once the guest stands: it waits for
    /// no SWITCHOVER_ACK then. On `Ok` all of it has been handed to the transport, or, in
    /// raw relay, loaded at the destination.
    pub(super) async fn drain(&mut self) -> Result<ChunkSeq, SourceError> {
        let at = Instant::now();
        let timeout = self.daemon.config.guest.load_timeout;
        if self.guest.hold == Hold::Gate {
            // The pump reads on while QEMU is awaited.
            let guest = self.guest.clone();
            self.beside(guest.finish_when_asked(timeout)).await?;
        }
        while !self.stream_ended() {
            self.next().await?;
        }
        self.times.drain_ms = ms(at);
        let at = Instant::now();
        if !self.raw {
            let guest = self.guest.clone();
            self.beside(guest.answers(timeout)).await?;
            self.times.save_ms = ms(at);
            self.inbox.push(ToPump::StreamWritten);
            loop {
                if let Some(FromPump::AllSent { last_seq }) = self.next().await? {
                    self.times.tail_ms = ms(at);
                    return Ok(last_seq);
                }
            }
        }
        self.times.tail_ms = ms(at);
        Ok(ChunkSeq::NONE)
    }

    /// On `Ok` Ceded is durable and GO is on its way: the guest is no longer ours to continue. On `Err` it still is.
    pub(super) async fn let_go(&mut self, last_seq: ChunkSeq) -> Result<(), SourceError> {
        let at = Instant::now();
        fail::point("source.drained");
        if self.is_safe() && !self.raw {
            self.session.message(protocol::encode(&ToDestination::Load { last_seq: last_seq.0 })?)?;
            // Its QEMU may hang while the link does not.
            let patience = self.daemon.config.guest.load_timeout;
            let loaded = async {
                while !self.ready {
                    self.next().await?;
                }
                Ok::<_, SourceError>(())
            };
            within(patience, loaded).await.map_err(|Overdue| SourceError::Slow {
                what: "loading the guest there",
                after: patience,
            })??;
        }
        if self.completes_early() {
            // It may have stopped the guest by itself before we did, and nobody can tell. Then it would continue the guest as soon
            // as its migration failed, as it does when we die: so it is over before the guest is let go.
            let (guest, timeout) = (self.guest.clone(), self.daemon.config.guest.qmp_timeout);
            // It closes its socket, of which all has been read.
            self.inbox.push(ToPump::Allowance(Some(0)));
            self.inbox.push(ToPump::ReturnPath(SHUT_OK.to_vec()));
            self.beside(guest.completed(timeout)).await?;
        }
        if let Some(wish) = self.entry.wished() {
            return Err(SourceError::Cancelled(wish));
        }
        let go = protocol::encode(&ToDestination::Go { last_seq: last_seq.0, run: self.runs })?;
        self.owner.step(SourceStep::Cede)?;
        fail::point("source.ceding");
        self.write(records::Phase::Ceded).await?;
        self.owner.step(SourceStep::Ceded)?;
        fail::point("source.ceded");
        if self.completes_early() {
            // One whose migration is over lets anybody continue its guest. It has said so before it answers.
            let (guest, timeout) = (self.guest.clone(), self.daemon.config.guest.qmp_timeout);
            self.beside(guest.answers(timeout)).await?;
        }
        // What came while the disk was waited for: a link that is down must not be trusted with GO.
        while let Some(message) = self.mailbox.waiting() {
            self.handle_peer(Some(message))?;
        }
        while self.down.is_some() {
            self.next().await?;
        }
        if let Some(wish) = self.entry.wished() {
            // It came while the disk was waited for, and was granted.
            return Err(SourceError::Cancelled(wish));
        }
        if self.meddling.seen() {
            return Err(SourceError::Meddled);
        }
        self.owner.step(SourceStep::Go)?;
        self.entry.advance(Phase::Ceded);
        if let Err(refused) = self.session.message(go) {
            // It has not left, and never will.
            self.owner.step(SourceStep::NeverLeft)?;
            return Err(refused.into());
        }
        fail::point("source.let-go");
        self.times.go_ms = ms(at);
        Ok(())
    }

    pub(super) async fn write(&mut self, phase: records::Phase) -> Result<(), SourceError> {
        let (records, record, wanted) = (self.daemon.records.clone(), self.record(phase), Wanted::default());
        let while_wanted = wanted.clone();
        let writing = async move { records.write_while(&record, &while_wanted).await };
        Ok(self.at_disk(&wanted, writing).await??)
    }

    /// The guest may stand meanwhile: a disk that hangs gives it back. What may take effect later all the same is waited for before the record
    /// is removed.
    async fn at_disk(
        &mut self,
        wanted: &Wanted,
        job: impl Future<Output = Result<(), RecordError>> + 'static,
    ) -> Result<Result<(), RecordError>, SourceError> {
        let mut working = tokio::task::spawn_local(job);
        let patience = self.daemon.config.guest.qmp_timeout;
        let error = tokio::select! {
            biased;
            done = &mut working => return done.map_err(|_| SourceError::Cancelled(Wish::End)),
            wish = self.entry.cancelled() => SourceError::Cancelled(wish),
            () = tokio::time::sleep(patience) => {
                SourceError::Slow { what: STATE_DISK, after: patience }
            }
        };
        self.writing = Some(working).filter(|_| !wanted.withdraw());
        Err(error)
    }

    /// QEMU ends its migration before the guest is let go.
    pub(super) fn completes_early(&self) -> bool {
        self.guest.hold == Hold::Gate
    }

    /// None: it cannot be had over this session, or not in time.
    pub(super) async fn await_verdict(&mut self) -> Option<Verdict> {
        let (qmp_timeout, load_timeout) =
            (self.daemon.config.guest.qmp_timeout, self.daemon.config.guest.load_timeout);
        // A QEMU may hang there while the link does not: whoever waits here is told, and the destination asked. A link that
        // is down brings GO, or the verdict, when it is back; it is the transport that gives it up.
        let patience = load_timeout + qmp_timeout;
        let mut late = tokio::time::Instant::now() + patience;
        loop {
            if let Some(verdict) = self.verdict.take() {
                return Some(verdict);
            }
            tokio::select! {
                message = self.mailbox.next() => {
                    if let Err(error) = self.handle_peer(message) {
                        tracing::warn!(%error, "before the verdict");
                        return self.verdict.take();
                    }
                    late = tokio::time::Instant::now() + patience;
                }
                () = tokio::time::sleep_until(late), if self.down.is_none() => return None,
                () = self.meddling.next() => {
                    stop_again(&self.guest, &self.arguments.guest, qmp_timeout).await;
                }
                // It is asked for once more, there.
                _ = self.entry.resolved() => return None,
                // QEMU has nothing to say any more; its failing changes nothing: it cannot start the guest.
                Some(told) = self.from_pump.recv() => {
                    if let Err(error) = self.handle_pump(Some(told)) {
                        tracing::warn!(%error, "before the verdict");
                    }
                }
            }
        }
    }

    /// Asks QEMU, which may be waiting for the link to take more; that is watched meanwhile, as in [`next`](Self::next).
    async fn beside<T>(
        &mut self,
        asking: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, SourceError> {
        let mut asking = std::pin::pin!(asking);
        loop {
            tokio::select! {
                biased;
                answer = &mut asking => return Ok(answer?),
                step = self.next() => drop(step?),
            }
        }
    }

    /// The next thing that happens. A guest that was stopped is waited with as long as [`Standing`](super::standing::Standing)
    /// says. It cannot go back to being copied: once it stood, QEMU has ended its stream.
    pub(super) async fn next(&mut self) -> Result<Option<FromPump>, SourceError> {
        let config = &self.daemon.config.guest;
        let patience = Patience { link: config.closing_timeout, qemu: config.load_timeout };
        loop {
            let step = tokio::select! {
                biased;
                wish = self.entry.cancelled() => return Err(SourceError::Cancelled(wish)),
                message = self.mailbox.next() => {
                    let before = (self.ready, self.may_stop, self.down.is_some());
                    self.handle_peer(message)?;
                    let now = Instant::now();
                    if before.2 && self.down.is_none() {
                        self.standing.came_back(now);
                    }
                    if (self.ready, self.may_stop) != (before.0, before.1) {
                        self.standing.went_on(now);
                    }
                    return Ok(None);
                }
                told = self.from_pump.recv() => self.handle_pump(told)?,
            };
            let Some(FromPump::Numbers(numbers)) = step else { return Ok(step) };
            let waits =
                self.down.is_some() || self.session.unsent_bytes() + self.session.in_flight_bytes() > 0;
            let overlong = self.standing.look(Instant::now(), waits, numbers.acked_bytes, patience);
            if let Some(overlong) = overlong.filter(|_| self.owner.holds()) {
                return Err(match (overlong, self.down.take()) {
                    (Overlong::Link, Some(why)) => SourceError::LostWhileStopped(why),
                    (Overlong::Link, None) => SourceError::Slow {
                        what: "moving the stopped guest's last pages",
                        after: patience.link,
                    },
                    (Overlong::Qemu, _) => SourceError::Slow {
                        what: "ending the stream here, or loading it there",
                        after: patience.qemu,
                    },
                });
            }
        }
    }
}
