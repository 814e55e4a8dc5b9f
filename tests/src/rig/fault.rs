//! A move in which something is broken on purpose, at a phase that is waited for; and what must hold after it.
//!
//! A fault is put where the phases say that the move is: `hikyaku … --json` prints them as they come. Afterwards the guest
//! works at exactly one place. That it never worked at two is seen on both consoles, which are read from the start, and
//! asked of both QEMUs while it settles.

use std::time::{Duration, Instant};

use hikyaku_lab::guest::{Console, Timeline};
use hikyaku_lab::link::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{BEAT_LIMIT, COMMAND_LIMIT, GUEST, MIGRATE_LIMIT, POLL, Rig, SWEEP_LIMIT, WORK, words};
use crate::command::{Output, Running};
use crate::site::Site;

/// A defect of the daemon's own, in its log.
const DEFECTS: [&str; 2] = ["panicked", "a step that must not happen"];
/// Between two looks at both QEMUs.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Running {
    /// Waits until a `--json` command has shown this phase.
    #[track_caller]
    pub fn wait_phase(&self, phase: &str) {
        self.wait_line(&format!("phase {phase}"), MIGRATE_LIMIT, |line| {
            event(line).is_some_and(|event| event["data"]["phase"] == phase)
        });
    }

    /// Waits until a `--json` command has told this event.
    #[track_caller]
    pub fn wait_event(&self, name: &str, limit: Duration) {
        self.wait_line(&format!("event {name}"), limit, |line| {
            event(line).is_some_and(|event| event["event"] == name)
        });
    }

    /// Waits until so much of the guest's time is being taken from it.
    #[track_caller]
    pub fn wait_throttled(&self, percent: u64) {
        self.wait_line(&format!("throttle of {percent} %"), MIGRATE_LIMIT, |line| {
            event(line).is_some_and(|event| {
                event["data"]["numbers"]["throttle_percent"].as_u64().is_some_and(|taken| taken >= percent)
            })
        });
    }

    /// Waits until the other side has so much of the guest.
    #[track_caller]
    pub fn wait_acked(&self, bytes: u64) {
        self.wait_line(&format!("{bytes} acknowledged bytes"), MIGRATE_LIMIT, |line| {
            event(line).is_some_and(|event| {
                event["data"]["numbers"]["acked_bytes"].as_u64().is_some_and(|acked| acked >= bytes)
            })
        });
    }
}

impl Output {
    /// The events of a `--json` command that have this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        self.stdout.lines().filter_map(event).filter(|event| event["event"] == name).collect()
    }

    /// Where the last event of a `--json` command says that the guest is.
    #[track_caller]
    pub fn whereabouts(&self) -> String {
        let said = self.stdout.lines().rev().find_map(|line| {
            event(line).and_then(|event| event["data"]["outcome"]["guest"].as_str().map(str::to_owned))
        });
        said.unwrap_or_else(|| panic!("it is not said where the guest is; {self}"))
    }
}

impl Rig {
    /// `hikyaku migrate … --json` beside the test.
    pub fn migrate_beside(&self, flags: &[&str]) -> Running {
        let mut arguments = words(&["--json", "migrate", GUEST, "--to", self.there, "--qmp"]);
        arguments.push(self.source.qmp_path().into());
        arguments.extend(words(flags));
        self.source_site().hikyaku_beside(arguments)
    }

    /// `hikyaku watch … --json` at the destination, beside the test.
    pub fn watch_destination(&self) -> Running {
        self.destination_site().hikyaku_beside(["--json", "watch", GUEST])
    }

    pub fn source_site_mut(&mut self) -> &mut Site {
        if self.here == "a" { &mut self.pair.a } else { &mut self.pair.b }
    }

    fn site_mut(&mut self, side: Side) -> (&mut Site, &Host) {
        let name = if side == Side::Source { self.here } else { self.there };
        let site = if name == "a" { &mut self.pair.a } else { &mut self.pair.b };
        (site, self.network.host(name))
    }

    /// The daemon of this side is started anew, and fails where `points` says.
    pub fn restart_daemon(&mut self, side: Side, points: &str) {
        let (site, host) = self.site_mut(side);
        site.restart_failing(host, points);
    }

    /// Waits until the daemon of this side has killed itself.
    #[track_caller]
    pub fn wait_dead(&mut self, side: Side, limit: Duration) {
        self.wait_daemon(side, limit, "it does not come to where it was to die", |site| !site.is_running());
    }

    /// Waits until the daemon of this side has stopped itself.
    #[track_caller]
    pub fn wait_still(&mut self, side: Side, limit: Duration) {
        self.wait_daemon(side, limit, "it does not come to where it was to stand", |site| site.stands());
    }

    #[track_caller]
    fn wait_daemon(&mut self, side: Side, limit: Duration, what: &str, wanted: impl Fn(&mut Site) -> bool) {
        let deadline = Instant::now() + limit;
        let (site, _) = self.site_mut(side);
        while !wanted(site) {
            assert!(Instant::now() < deadline, "{what}:\n{}", site.log());
            std::thread::sleep(POLL);
        }
    }

    /// The phase in which the source says that the move is; None if it knows nothing of it.
    pub fn source_phase(&self) -> Option<String> {
        let output = self.source_site().hikyaku(["--json", "status", GUEST], COMMAND_LIMIT);
        Some(event(&output.stdout)?["phase"].as_str()?.to_owned())
    }

    /// All of its memory, as the guest itself finds it.
    #[track_caller]
    pub fn assert_whole(&mut self, side: Side) {
        let qemu = match side {
            Side::Source => &mut self.source,
            Side::Destination => self.destination.as_mut().expect("the rig is armed"),
        };
        let swept = qemu.wait_swept(SWEEP_LIMIT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(swept.bad, 0, "bad pages");
    }

    /// The QEMU that waited is of no use any more.
    pub fn disarm(&mut self) {
        self.destination = None;
    }

    pub fn restart_source_daemon(&mut self) {
        self.restart_daemon(Side::Source, "");
    }

    pub fn restart_destination_daemon(&mut self) {
        self.restart_daemon(Side::Destination, "");
    }

    /// Cuts, or mends, the direction in which verdicts and acknowledgements travel.
    pub fn set_return_outage(&self, out: bool) {
        self.network.set_outage_of(self.there, self.here, out);
    }

    /// The same of the direction in which pages and orders travel.
    pub fn set_forward_outage(&self, out: bool) {
        self.network.set_outage_of(self.here, self.there, out);
    }

    /// The guest's own QEMU is killed, and the guest with it.
    pub fn kill_source_qemu(&self) {
        kill(Pid::from_raw(self.source.pid()), Signal::SIGKILL).expect("the source's QEMU is there");
    }

    /// To the destination's QEMU, and to nothing else.
    pub fn signal_destination_qemu(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.destination().pid()), signal).expect("the destination's QEMU is there");
    }

    /// What `hikyaku status` at the source says.
    #[track_caller]
    pub fn source_status(&self) -> Value {
        let output = self.source_site().hikyaku(["--json", "status", GUEST], COMMAND_LIMIT).expect_code(0);
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}; {output}"))
    }

    /// Waits until the source says that the move is over, and returns the phase in which.
    #[track_caller]
    pub fn wait_source_final(&self, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.source_status();
            let phase = status["phase"].as_str().unwrap_or_default().to_owned();
            if matches!(phase.as_str(), "moved" | "resumed" | "failed") {
                return phase;
            }
            assert!(Instant::now() < deadline, "still not over after {limit:?}: {status}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the guest works somewhere, and says where. Never two, and none only for as long as `limit`.
    ///
    /// Watched on for a moment: it stays there, without a bad page, and neither daemon's log shows a defect.
    #[track_caller]
    pub fn settles(&mut self, limit: Duration) -> Side {
        let deadline = Instant::now() + limit;
        let side = loop {
            match self.where_it_runs() {
                Some(side) => break side,
                None => assert!(Instant::now() < deadline, "nobody runs the guest after {limit:?}"),
            }
            std::thread::sleep(LOOK_INTERVAL);
        };
        let until = Instant::now() + WORK;
        while Instant::now() < until {
            assert_eq!(self.where_it_runs(), Some(side), "it ran at one place, and then");
            std::thread::sleep(LOOK_INTERVAL);
        }
        self.assert_works(side);
        self.assert_never_two();
        for site in [&self.pair.a, &self.pair.b] {
            let log = site.log();
            let defect = log.lines().find(|line| DEFECTS.iter().any(|defect| line.contains(defect)));
            assert_eq!(defect, None, "in the log of {}", site.name());
        }
        side
    }

    /// The guest was started once, and the source was told once.
    #[track_caller]
    pub fn assert_one_verdict(&self) {
        let count = |site: &Site, what: &str| site.log().lines().filter(|line| line.contains(what)).count();
        let (asked, moved) = (
            count(self.destination_site(), "was asked for a verdict"),
            count(self.source_site(), "moved to"),
        );
        assert_eq!((asked, moved), (0, 1), "the verdict comes on the session, once");
    }

    /// Nobody runs the guest: asked of both QEMUs and heard on both consoles for a moment.
    #[track_caller]
    pub fn assert_stands(&mut self) {
        let beats = |rig: &Rig| {
            rig.consoles().iter().map(|console| console.look(|log| log.heartbeats.len())).sum::<usize>()
        };
        // What it wrote before it was stopped may be on its way to us still.
        std::thread::sleep(WORK);
        let before = beats(self);
        std::thread::sleep(WORK);
        assert_eq!(self.where_it_runs(), None);
        assert_eq!(beats(self), before, "heartbeats of a guest that stands");
    }

    #[track_caller]
    fn assert_works(&mut self, side: Side) {
        let qemu = match side {
            Side::Source => &self.source,
            Side::Destination => self.destination.as_ref().expect("the rig is armed"),
        };
        let now = qemu.console().look(|log| log.heartbeats.last().map_or(0, |beat| beat.number));
        let beat = qemu.wait_heartbeat(BEAT_LIMIT, "ten heartbeats", |beat| beat.number >= now + 10);
        assert_eq!(beat.unwrap_or_else(|e| panic!("{e}")).bad, 0, "bad pages");
    }

    /// Heard on both consoles, and said by both QEMUs as long as they are there.
    #[track_caller]
    fn assert_never_two(&mut self) {
        assert_eq!(Timeline::merge(&self.consoles()).overlap(), None, "two guests ran");
        let Some(destination) = &mut self.destination else { return };
        if self.source.status().is_ok() && destination.status().is_ok() {
            let both = self.source.runs().overlap(destination.runs());
            assert_eq!(both, None, "both QEMUs ran the guest, by their own clocks");
        }
    }

    fn consoles(&self) -> Vec<&Console> {
        [Some(&self.source), self.destination.as_ref()].into_iter().flatten().map(|q| q.console()).collect()
    }

    /// A QEMU that is gone runs nothing.
    #[track_caller]
    fn where_it_runs(&mut self) -> Option<Side> {
        let runs = |status: Result<String, _>| status.is_ok_and(|status: String| status == "running");
        let at_destination = self.destination.as_mut().is_some_and(|qemu| runs(qemu.status()));
        // The source is asked second: a guest that moves meanwhile is missed at most, and never seen at both.
        match (runs(self.source.status()), at_destination) {
            (true, true) => panic!("the guest runs at both sides"),
            (true, false) => Some(Side::Source),
            (false, true) => Some(Side::Destination),
            (false, false) => None,
        }
    }
}

fn event(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}
