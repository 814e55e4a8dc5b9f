//! Progress for people: one block that updates on a terminal, one `key=value` line per pass or ten seconds elsewhere.

use crate::api::wire::{EventKind, Role, Status};
use crate::hooks::Hook;
use crate::outcome::Ending;
use crate::ownership::Phase;
use crate::report::Report;
use crate::units::{BitRate, Bytes, Span};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines where no terminal is.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Progress {
    json: bool,
    terminal: bool,
    /// Lines of the block on the screen now.
    drawn: usize,
    last_line: Option<(Instant, u64, Phase)>,
    /// The hook that was last said to be waited for.
    hook: Option<Hook>,
    turned_away: Option<String>,
}

impl Progress {
    pub fn new(json: bool) -> Progress {
        Progress {
            json,
            terminal: std::io::stdout().is_terminal(),
            drawn: 0,
            last_line: None,
            hook: None,
            turned_away: None,
        }
    }

    pub fn show(&mut self, event: EventKind, status: &Status) {
        if self.json {
            return;
        }
        if self.terminal {
            self.draw(&block(status));
            return;
        }
        if let (EventKind::LinkDown | EventKind::LinkUp, Some(words)) = (event, link_words(status)) {
            say!("guest={} id={} {words}", status.guest, status.id.short());
            return;
        }
        if self.turned_away != status.turned_away {
            self.turned_away.clone_from(&status.turned_away);
            if let Some(words) = turned_away_words(status) {
                return say!("guest={} id={} {words}", status.guest, status.id.short());
            }
        }
        let hook = status.hook.map(|hook| hook.name);
        if std::mem::replace(&mut self.hook, hook) != hook
            && let Some(words) = hook_words(status)
        {
            return say!("guest={} id={} {words}", status.guest, status.id.short());
        }
        let due = match self.last_line {
            None => true,
            Some((at, pass, phase)) => {
                phase != status.phase
                    || at.elapsed() >= LINE_INTERVAL
                    // Early passes of an adaptive move come many a second; they are not news.
                    || (pass != status.numbers.pass && at.elapsed() >= Duration::from_secs(1))
            }
        };
        if due
            && (event == EventKind::Progress
                || self.last_line.is_none_or(|(.., phase)| phase != status.phase))
        {
            self.last_line = Some((Instant::now(), status.numbers.pass, status.phase));
            say!("{}", line(status));
        }
    }

    /// The end: what happened, where the guest runs now, what to do.
    pub fn last(&mut self, status: &Status) {
        if self.json {
            return;
        }
        if self.terminal {
            self.draw(&block(status));
        }
        let Some(outcome) = &status.outcome else { return };
        let n = &status.numbers;
        match outcome.ending {
            Ending::Moved if status.role == Role::Source => {
                say!(
                    "{}: {} in {}, {} on the way for {} of guest memory; {}",
                    status.guest,
                    outcome.desc,
                    Span(Duration::from_millis(status.elapsed_ms)),
                    Bytes(n.sent_bytes),
                    Bytes(n.pages_total * 4096),
                    outcome.guest,
                );
                if let Some(stop) = &status.stop {
                    say!(
                        "stop: pause {:.0} ms, last pages {:.0} ms, state {:.0} ms, let go {:.0} ms, verdict {:.0} ms",
                        stop.pause_ms,
                        stop.drain_ms,
                        stop.tail_ms,
                        stop.go_ms,
                        stop.verdict_ms
                    );
                }
                for line in status.report.iter().flat_map(Report::lines) {
                    say!("{line}");
                }
                if !outcome.advice.is_empty() {
                    say!("{}", outcome.advice);
                }
            }
            Ending::Moved => say!("{}: {outcome}", status.guest),
            _ => eprintln!("hikyaku: {}: {outcome}", status.guest),
        }
    }

    fn draw(&mut self, lines: &[String]) {
        let mut out = std::io::stdout().lock();
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in lines {
            text.push_str(&format!("\x1b[2K{line}\n"));
        }
        // A block that has become shorter leaves nothing behind.
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        // A terminal that went away is told by the next read of the daemon.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// For logs and pipes.
fn line(status: &Status) -> String {
    let n = &status.numbers;
    let mut text = format!(
        "guest={} id={} phase={} elapsed_ms={}",
        status.guest,
        status.id.short(),
        status.phase.to_string().replace(' ', "-"),
        status.elapsed_ms
    );
    if let Some(peer) = &status.peer {
        text += &format!(" peer={peer}");
    }
    if let Some(link) = status.link.as_ref().filter(|link| link.down) {
        text += &format!(" link_down_ms={} link_timeout_ms={}", link.for_ms, link.timeout_ms);
    }
    if let Some(hook) = &status.hook {
        text += &format!(" hook={} hook_ms={} hook_timeout_ms={}", hook.name, hook.for_ms, hook.timeout_ms);
    }
    if n.pages_total > 0 {
        if status.role == Role::Source {
            text += &format!(" pass={}", n.pass);
        }
        text += &format!(" done={:.1}%", percent(n.pages_done, n.pages_total));
        let rtt_ms = n.rtt_us as f64 / 1000.0;
        text += &match status.role {
            Role::Source => format!(
                " staged_bytes={} sent_bytes={} goodput_bytes_per_s={} rtt_ms={rtt_ms:.1}",
                n.staged_bytes, n.sent_bytes, n.goodput_bytes_per_s
            ),
            // How fast it comes, and what is to be expected, the source knows.
            Role::Destination => format!(" received_bytes={} rtt_ms={rtt_ms:.1}", n.sent_bytes),
        };
        if stops_later(status) {
            text += &format!(" predicted_stop_ms={}", n.predicted_stop_ms);
        }
        if n.throttle_percent > 0 {
            text += &format!(" throttle_percent={}", n.throttle_percent);
        }
    }
    text
}

/// For a terminal.
fn block(status: &Status) -> Vec<String> {
    let n = &status.numbers;
    let towards = match (status.role, &status.peer) {
        (Role::Source, Some(peer)) => format!(" → {peer}"),
        (Role::Destination, Some(peer)) => format!(" ← {peer}"),
        _ => String::new(),
    };
    let elapsed = Span(Duration::from_millis(status.elapsed_ms));
    let mut lines = vec![format!("{}{towards}  {}  {elapsed}", status.guest, status.phase)];
    lines.extend(link_words(status).map(|words| format!("  {words}")));
    lines.extend(hook_words(status).map(|words| format!("  {words}")));
    lines.extend(turned_away_words(status).map(|words| format!("  {words}")));
    if n.pages_total > 0 {
        const WIDTH: usize = 40;
        let share = percent(n.pages_done, n.pages_total);
        let full = ((share / 100.0 * WIDTH as f64) as usize).min(WIDTH);
        // Passes are the source's to count.
        let pass = if status.role == Role::Source { format!("  pass {}", n.pass) } else { String::new() };
        lines.push(format!("  [{}{}] {share:5.1} %{pass}", "█".repeat(full), "░".repeat(WIDTH - full)));
        let rtt_ms = n.rtt_us as f64 / 1000.0;
        lines.push(match status.role {
            Role::Source => format!(
                "  {} sent at {}, {} staged, round trip {rtt_ms:.1} ms",
                Bytes(n.sent_bytes),
                BitRate(n.goodput_bytes_per_s as f64),
                Bytes(n.staged_bytes)
            ),
            Role::Destination => format!("  {} received, round trip {rtt_ms:.1} ms", Bytes(n.sent_bytes)),
        });
        if stops_later(status) {
            lines.push(match n.predicted_stop_ms {
                // From the first bytes of a link that has just opened.
                ms if ms > 3_600_000 => {
                    "  stop if now: over an hour, by the little that is known yet".to_owned()
                }
                0 => "  stop if now: not known yet".to_owned(),
                ms => format!("  stop if now: {}", Span(Duration::from_millis(ms))),
            });
        }
        if n.throttle_percent > 0 && !status.phase.is_final() {
            lines.push(format!("  slowed down: {} % of its CPU time is taken", n.throttle_percent));
        }
    }
    lines
}

/// Its guest runs, and is to be stopped one day.
pub(super) fn stops_later(status: &Status) -> bool {
    status.role == Role::Source && matches!(status.phase, Phase::Preparing | Phase::Copying | Phase::LinkLost)
}

/// Who came, and was not let in.
pub(super) fn turned_away_words(status: &Status) -> Option<String> {
    let who = status.turned_away.as_ref().filter(|_| status.phase == Phase::Armed)?;
    Some(format!("refused the guest of {who}; still awaiting it"))
}

/// What the move waits for.
pub(super) fn hook_words(status: &Status) -> Option<String> {
    let hook = status.hook.as_ref()?;
    let timeout = Span(Duration::from_millis(hook.timeout_ms));
    Some(format!("waiting for the hook {} ({:.0} s of {timeout})", hook.name, hook.for_ms as f64 / 1000.0))
}

/// What an outage means for the guest just now; or that it is over.
pub(super) fn link_words(status: &Status) -> Option<String> {
    let link = status.link.as_ref()?;
    let seconds = link.for_ms as f64 / 1000.0;
    if !link.down {
        return Some(format!("link is back after {seconds:.1} s"));
    }
    let guest = match (status.role, status.phase) {
        (Role::Source, Phase::Preparing | Phase::Copying | Phase::LinkLost) => "the guest runs on here",
        (_, Phase::Handed) => "libvirt says where the guest goes on",
        (Role::Source, Phase::Stopped) => "the guest is being continued here",
        (Role::Source, _) => "where the guest runs is in doubt",
        (Role::Destination, Phase::Armed | Phase::Filling | Phase::LinkLost) => {
            "not all of the guest is here"
        }
        (Role::Destination, _) => "all of the guest is here",
    };
    let peer = status.peer.as_deref().unwrap_or("the peer");
    let effort = match status.role {
        Role::Source => format!("trying to reach {peer} again"),
        Role::Destination => format!("waiting for {peer}"),
    };
    let limit = link.timeout_ms / 1000;
    Some(format!("link lost: {}; {guest}; {effort} (for {seconds:.0} s of {limit} s)", link.why))
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
