//! Two daemons, two QEMUs, a link, and what may come next.

use crate::ownership::{Destination, DestinationStep, Known, Source, SourceStep, known};
use crate::records::Phase;

/// A way in which a daemon could be wrong. Each has to be caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Not,
    /// The guest is stopped before that is durable.
    StopsUnmarked,
    /// GO leaves before *Ceded* is durable.
    GoesUncovered,
    /// The source takes the guest back when the session ends, whatever it has sent.
    TakesSilenceForNo,
    /// The destination runs the guest before *Starting* is durable.
    RunsUncovered,
    /// A source that asks is refused though the guest is being received.
    RefusesWhatIsUnderWay,
    /// *Refused* is said before it is durable.
    RefusesUncovered,
    /// A QEMU that does not answer the order to run is taken to have refused it.
    TakesSilenceForDisobedience,
    /// What is being started counts as arrived.
    SaysArrivedTooSoon,
    /// The destination is told that nobody will ask before that is durable.
    ForgetsTooSoon,
    /// Somebody says that the guest is here, and has not made sure of it.
    IsToldUnfenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Qemu {
    /// Part of the guest, or nothing, is in it.
    Waits,
    /// All of the guest is in it; it stands.
    Loaded,
    Runs,
    /// It gave the guest up.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Data {
    Coming,
    /// The last of it is under way.
    Sent,
    Here,
}

/// On its way to the disk, in front of what is there.
type Writing = Option<Phase>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    source: Daemon<Source>,
    source_disk: Option<Phase>,
    source_writing: Writing,
    /// It has not given the session up.
    source_session: bool,
    runs_here: bool,

    destination: Daemon<Reception>,
    destination_disk: Option<Phase>,
    destination_writing: Writing,
    destination_session: bool,
    there: Qemu,
    /// QEMU has an order to run that it will carry out when it wakes.
    told: bool,

    data: Data,
    go: bool,
    verdict: Option<Known>,
    asked: bool,
    answer: Option<Known>,
    /// That the source will not ask.
    over: bool,

    faults_left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Daemon<T> {
    Dead,
    /// It has nothing in hand.
    Idle,
    Has(T),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reception {
    UnderWay(Destination),
    /// Looking what became of what an earlier daemon had started.
    Looking(Destination),
}

impl World {
    pub(super) fn begin(faults: u8) -> World {
        World {
            source: Daemon::Has(Source::Free),
            source_disk: None,
            source_writing: None,
            source_session: true,
            runs_here: true,
            destination: Daemon::Has(Reception::UnderWay(Destination::Filling)),
            destination_disk: None,
            destination_writing: None,
            destination_session: true,
            there: Qemu::Waits,
            told: false,
            data: Data::Coming,
            go: false,
            verdict: None,
            asked: false,
            answer: None,
            over: false,
            faults_left: faults,
        }
    }

    /// The rule that was broken, if one was.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        let runs_there = self.there == Qemu::Runs;
        if self.runs_here && runs_there {
            return Some("two guests run");
        }
        match self.source {
            Daemon::Has(Source::Kept) if !self.runs_here => Some("said to be kept, and it does not run here"),
            Daemon::Has(Source::Moved) if !runs_there => {
                Some("said to have moved, and it does not run there")
            }
            _ => None,
        }
    }

    /// One runs, and nothing is left to do.
    pub(super) fn is_settled(&self) -> bool {
        let source = matches!(self.source, Daemon::Idle | Daemon::Has(Source::Kept | Source::Moved));
        let destination = self.destination == Daemon::Idle
            // One that was never let go may wait for long.
            || self.destination == Daemon::Has(Reception::UnderWay(Destination::Filling)) && !self.go;
        source && destination && !self.told && (self.runs_here != (self.there == Qemu::Runs))
    }
}

/// What may come next.
pub(super) struct Ways<'a> {
    from: &'a World,
    broken: Broken,
    safe: bool,
    found: Vec<Way>,
}

pub(super) struct Way {
    pub what: &'static str,
    /// Not needed for anything good: a crash, a failing disk.
    pub fault: bool,
    pub to: World,
}

impl Ways<'_> {
    pub(super) fn all(from: &World, broken: Broken, safe: bool) -> Vec<Way> {
        let mut ways = Ways { from, broken, safe, found: Vec::new() };
        ways.source();
        ways.destination();
        ways.qemu();
        ways.world();
        ways.found
    }

    fn way(&mut self, what: &'static str, change: impl FnOnce(&mut World)) {
        let mut to = self.from.clone();
        change(&mut to);
        self.found.push(Way { what, fault: false, to });
    }

    fn fault(&mut self, what: &'static str, change: impl FnOnce(&mut World)) {
        if self.from.faults_left > 0 {
            let mut to = self.from.clone();
            to.faults_left -= 1;
            change(&mut to);
            self.found.push(Way { what, fault: true, to });
        }
    }

    /// The source's daemon takes a step of its table, if it may.
    fn source_step(&mut self, what: &'static str, step: SourceStep, change: impl FnOnce(&mut World)) {
        if let Daemon::Has(state) = self.from.source
            && let Ok(next) = state.after(step)
        {
            self.way(what, |to| {
                to.source = Daemon::Has(next);
                change(to);
            });
        }
    }

    fn source(&mut self) {
        let state = match self.from.source {
            Daemon::Has(state) => state,
            Daemon::Idle => return,
            Daemon::Dead => {
                return self.way("the source's daemon starts again", |to| {
                    let found = to.source_disk.and_then(Source::found);
                    to.source = found.map_or(Daemon::Idle, Daemon::Has);
                });
            }
        };
        let (session, writing) = (self.from.source_session, self.from.source_writing);
        let end_session = |to: &mut World| to.source_session = false;
        let forgets_too_soon = self.broken == Broken::ForgetsTooSoon;
        match (state, writing) {
            (Source::Marking | Source::Ceding, Some(record)) => {
                let step = if state == Source::Marking { SourceStep::Marked } else { SourceStep::Ceded };
                self.source_step("the source's record is durable", step, |to| {
                    to.source_disk = Some(record);
                    to.source_writing = None;
                });
                for on_disk in [true, false] {
                    self.fault("the source's record fails", |to| {
                        to.source_writing = None;
                        to.source_disk = if on_disk { Some(record) } else { to.source_disk };
                        to.source = state.after(SourceStep::Fail).map_or(Daemon::Dead, Daemon::Has);
                        end_session(to);
                    });
                }
                if self.broken == Broken::StopsUnmarked && state == Source::Marking {
                    self.way("the guest is stopped unmarked", |to| to.runs_here = false);
                }
                if self.broken == Broken::GoesUncovered && state == Source::Ceding && session {
                    self.way("GO leaves uncovered", |to| {
                        to.go = true;
                        to.source = Daemon::Has(Source::LetGo);
                    });
                }
            }
            (Source::Free, _) => self.source_step("the source marks the guest", SourceStep::Mark, |to| {
                to.source_writing = Some(Phase::Stopped);
            }),
            (Source::Marked, _) => {
                for durable in [true, false] {
                    self.source_step("the link is down: the guest is copied on", SourceStep::Unmark, |to| {
                        to.source_disk = to.source_disk.filter(|_| !durable);
                    });
                }
                self.source_step("the guest is stopped", SourceStep::Stop, |to| to.runs_here = false);
            }
            (Source::Stopped, _) => {
                if session && self.from.data == Data::Coming {
                    self.way("the last of the guest is sent", |to| to.data = Data::Sent);
                }
                // With the safe switch-over it waits until the destination has loaded everything.
                let ready = !self.safe || session && self.from.there == Qemu::Loaded;
                if self.from.data != Data::Coming && ready {
                    self.source_step("the source cedes", SourceStep::Cede, |to| {
                        to.source_writing = Some(Phase::Ceded);
                    });
                }
            }
            (Source::Ceded, _) if session => {
                self.source_step("GO leaves", SourceStep::Go, |to| to.go = true);
            }
            (Source::LetGo, _) => self.source_let_go(),
            (Source::Reclaiming, Some(record)) => {
                for durable in [true, false] {
                    self.source_step("what was said is on record, or is not", SourceStep::Settled, |to| {
                        to.source_disk = if durable { Some(record) } else { to.source_disk };
                        to.source_writing = None;
                    });
                }
            }
            (Source::Returned, _) => {
                for durable in [true, false] {
                    let kept = SourceStep::Continued;
                    self.source_step("the guest is continued here", kept, |to| {
                        to.runs_here = true;
                        to.source_disk = to.source_disk.filter(|_| !durable);
                        to.over = durable || forgets_too_soon;
                    });
                }
                // A daemon that dies between the two.
                self.way("the guest is continued here, and that is not seen yet", |to| to.runs_here = true);
            }
            (Source::Taken, _) => {
                for durable in [true, false] {
                    self.source_step("the source releases the guest", SourceStep::Released, |to| {
                        to.source_disk = to.source_disk.filter(|_| !durable);
                        to.over = durable || forgets_too_soon;
                        end_session(to);
                    });
                }
            }
            _ => {}
        }
        self.source_step("something fails at the source", SourceStep::Fail, |to| {
            to.source_writing = None;
            end_session(to);
        });
        if session {
            self.way("the source gives the session up", end_session);
        }
    }

    fn source_let_go(&mut self) {
        let heard = |known: Known| match known {
            Known::Running | Known::Paused => Some(SourceStep::Arrived),
            Known::Refused => Some(SourceStep::Refused),
            Known::Pending | Known::NeverCame | Known::Nothing => None,
        };
        if let Some(verdict) = self.from.verdict.filter(|_| self.from.source_session)
            && let Some(step) = heard(verdict)
        {
            self.source_step("the verdict comes", step, |to| to.verdict = None);
        }
        match self.from.answer {
            Some(answer) => match heard(answer) {
                Some(step) => self.source_step("an answer comes", step, |to| to.answer = None),
                None => self.way("an answer comes that says nothing", |to| to.answer = None),
            },
            None if !self.from.asked => self.way("the source asks", |to| to.asked = true),
            None => {}
        }
        self.somebody_says_here();
        if self.broken == Broken::TakesSilenceForNo && !self.from.source_session {
            self.way("the source takes silence for no", |to| to.source = Daemon::Has(Source::Returned));
        }
    }

    /// Whoever says so has ended the QEMU there, in which the guest has not run, and its host is not reached.
    fn somebody_says_here(&mut self) {
        let has_run = self.from.there == Qemu::Runs || self.from.destination_disk == Some(Phase::Arrived);
        let unfenced = self.broken == Broken::IsToldUnfenced;
        let Ok(reclaiming) = Source::LetGo.after(SourceStep::Here) else { return };
        if has_run && !unfenced {
            return;
        }
        self.fault("somebody says that the guest is here", |to| {
            to.source = Daemon::Has(reclaiming);
            to.source_writing = Some(Phase::Stopped);
            to.source_session = false;
            (to.asked, to.answer, to.verdict) = (false, None, None);
            if !unfenced {
                (to.there, to.told) = (Qemu::Failed, false);
                (to.destination, to.destination_writing) = (Daemon::Dead, None);
                to.destination_session = false;
            }
        });
    }

    fn destination(&mut self) {
        if self.from.destination == Daemon::Dead {
            return self.way("the destination's daemon starts again", |to| {
                let found = to.destination_disk.and_then(Destination::found);
                to.destination = found.map_or(Daemon::Idle, |state| Daemon::Has(Reception::Looking(state)));
            });
        }
        self.destination_asked();
        let Daemon::Has(reception) = self.from.destination else { return };
        let (Reception::UnderWay(state) | Reception::Looking(state)) = reception;
        let looking = matches!(reception, Reception::Looking(_));
        let again = move |state| {
            Daemon::Has(if looking { Reception::Looking(state) } else { Reception::UnderWay(state) })
        };
        let step = |step: DestinationStep| state.after(step).map_or(Daemon::Dead, again);
        let (writing, there) = (self.from.destination_writing, self.from.there);
        let all_here = self.from.data == Data::Here;
        match state {
            Destination::Filling => {
                if self.from.go && self.from.destination_session {
                    self.way("GO comes", |to| {
                        to.go = false;
                        to.destination = step(DestinationStep::Go);
                    });
                }
            }
            Destination::Given => match writing {
                None if all_here => self.way("the destination writes Starting", |to| {
                    to.destination_writing = Some(Phase::Starting);
                }),
                Some(record) => self.way("the destination's record is durable", |to| {
                    to.destination_disk = Some(record);
                    to.destination_writing = None;
                    to.destination = step(DestinationStep::Durable);
                }),
                None => {}
            },
            Destination::Ours if there == Qemu::Loaded => {
                let disobeyed =
                    state.after(DestinationStep::Run).and_then(|s| s.after(DestinationStep::Disobeyed));
                self.way("QEMU runs the guest", |to| {
                    to.there = Qemu::Runs;
                    to.destination = step(DestinationStep::Run);
                });
                self.way("QEMU hangs when told to run the guest", |to| {
                    to.told = true;
                    to.destination = step(DestinationStep::Run);
                });
                self.way("QEMU refuses to run the guest", |to| {
                    to.destination = disobeyed.map_or(Daemon::Dead, again)
                });
            }
            Destination::Told => {
                if there == Qemu::Runs {
                    for durable in [true, false] {
                        self.way("the destination sees the guest run", |to| {
                            to.destination_disk =
                                if durable { Some(Phase::Arrived) } else { to.destination_disk };
                            to.verdict = to.destination_session.then_some(Known::Running);
                            // Without the record a question is answered by the next daemon, which sees it run.
                            to.destination =
                                if durable { Daemon::Idle } else { Daemon::Has(Reception::Looking(state)) };
                        });
                    }
                }
                // It is told again, for it may not have been told; it does not hang any more, or nothing could be seen.
                if there == Qemu::Loaded && !self.from.told {
                    self.way("QEMU is told again, and runs the guest", |to| {
                        to.there = Qemu::Runs;
                        to.destination = step(DestinationStep::Run);
                    });
                }
                if there == Qemu::Failed {
                    self.way("QEMU says that it never had the guest", |to| {
                        to.destination = step(DestinationStep::NeverLoaded);
                        to.destination_writing = Some(Phase::Refused);
                    });
                }
            }
            Destination::Refusing => {
                self.way("the refusal is durable", |to| {
                    to.destination_disk = Some(Phase::Refused);
                    to.destination_writing = None;
                    to.verdict = to.destination_session.then_some(Known::Refused);
                    to.destination_session = false;
                    to.destination = Daemon::Idle;
                });
            }
            Destination::Ours | Destination::Arrived | Destination::Refused => {}
        }
        self.destination_refuses(state, again);
        self.destination_is_broken(state);
    }

    fn destination_refuses(&mut self, state: Destination, again: impl Fn(Destination) -> Daemon<Reception>) {
        let Ok(refusing) = state.after(DestinationStep::Refuse) else { return };
        if refusing == Destination::Refused {
            return self.way("the destination refuses what was not given", |to| {
                to.destination = Daemon::Idle;
                to.destination_session = false;
                to.there = Qemu::Failed;
            });
        }
        // What is being written is waited for, and may have failed.
        let written = self.from.destination_writing;
        for on_disk in [true, false] {
            self.way("the destination refuses", |to| {
                to.destination_disk = written.filter(|_| on_disk).or(to.destination_disk);
                to.destination_writing = Some(Phase::Refused);
                to.destination = again(refusing);
                if to.there == Qemu::Waits {
                    to.there = Qemu::Failed;
                }
            });
        }
    }

    fn destination_asked(&mut self) {
        if self.from.over {
            let ended = matches!(self.from.destination_disk, Some(Phase::Arrived | Phase::Refused));
            self.way("the destination hears that nobody will ask", |to| {
                to.over = false;
                to.destination_disk = to.destination_disk.filter(|_| !ended);
            });
        }
        if !self.from.asked {
            return;
        }
        let under_way = matches!(self.from.destination, Daemon::Has(Reception::UnderWay(_)))
            && self.broken != Broken::RefusesWhatIsUnderWay;
        let record = self.from.destination_disk.map(|record| (record, true));
        let mut known = known(record, under_way);
        if self.broken == Broken::SaysArrivedTooSoon
            && record.is_some_and(|(record, _)| record == Phase::Starting)
        {
            known = Known::Running;
        }
        self.way("the destination answers", |to| {
            to.asked = false;
            to.answer = Some(match known {
                Known::NeverCame => {
                    to.destination_disk = Some(Phase::Refused);
                    Known::Refused
                }
                known => known,
            });
        });
    }

    fn destination_is_broken(&mut self, state: Destination) {
        match (self.broken, state, self.from.there) {
            (Broken::RunsUncovered, Destination::Given, Qemu::Loaded) => {
                self.way("the guest runs uncovered", |to| {
                    to.there = Qemu::Runs;
                    to.destination = Daemon::Has(Reception::UnderWay(Destination::Told));
                });
            }
            (Broken::TakesSilenceForDisobedience, Destination::Told, Qemu::Loaded) => {
                self.way("silence is taken for disobedience", |to| {
                    to.destination = Daemon::Has(Reception::UnderWay(Destination::Refusing));
                });
            }
            (Broken::RefusesUncovered, Destination::Refusing, _) if self.from.destination_session => {
                self.way("the refusal is said uncovered", |to| to.verdict = Some(Known::Refused));
            }
            _ => {}
        }
    }

    fn qemu(&mut self) {
        let may_load = self.from.data == Data::Here
            && match self.from.destination {
                // What was written to it before the daemon died is in its socket.
                Daemon::Dead | Daemon::Idle | Daemon::Has(Reception::Looking(_)) => true,
                // The end of the stream is held back until GO.
                Daemon::Has(Reception::UnderWay(state)) => self.safe || state != Destination::Filling,
            };
        if self.from.there == Qemu::Waits {
            if may_load {
                self.way("QEMU has loaded the guest", |to| to.there = Qemu::Loaded);
            }
            if may_load || !matches!(self.from.destination, Daemon::Has(Reception::UnderWay(_))) {
                self.way("QEMU gives the guest up", |to| to.there = Qemu::Failed);
            }
        }
        if self.from.told && self.from.there == Qemu::Loaded {
            self.way("QEMU wakes, and does what it was told", |to| {
                to.there = Qemu::Runs;
                to.told = false;
            });
        }
    }

    fn world(&mut self) {
        if self.from.data == Data::Sent && self.from.destination_session {
            self.way("all of the guest is there", |to| to.data = Data::Here);
        }
        if self.from.destination_session {
            self.way("the destination gives the session up", |to| to.destination_session = false);
        }
        if self.from.asked {
            self.way("the question is lost", |to| to.asked = false);
        }
        if self.from.answer.is_some() {
            self.way("the answer is lost", |to| to.answer = None);
        }
        if self.from.over {
            self.way("the note is lost", |to| to.over = false);
        }
        if self.from.source != Daemon::Dead {
            let writing = self.from.source_writing;
            for on_disk in [true, false] {
                self.fault("the source's daemon is killed", |to| {
                    to.source_disk = writing.filter(|_| on_disk).or(to.source_disk);
                    (to.source, to.source_writing, to.source_session) = (Daemon::Dead, None, false);
                });
            }
        }
        if self.from.destination != Daemon::Dead {
            let writing = self.from.destination_writing;
            for on_disk in [true, false] {
                self.fault("the destination's daemon is killed", |to| {
                    to.destination_disk = writing.filter(|_| on_disk).or(to.destination_disk);
                    (to.destination, to.destination_writing) = (Daemon::Dead, None);
                    to.destination_session = false;
                });
            }
        }
    }
}
