//! `hikyaku list` and `hikyaku status`.

use crate::api::wire::{Role, Status};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::units::{BitRate, Bytes, Span};
use std::io::{self, Write};
use std::time::Duration;

pub fn list(statuses: &[Status], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        for status in statuses {
            serde_json::to_writer(&mut out, status)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    if statuses.is_empty() {
        return writeln!(out, "no migrations");
    }
    writeln!(
        out,
        "{:<8}  {:<20} {:<16} {:<14} {:>10}  {:>10}",
        "ID", "GUEST", "PEER", "PHASE", "ELAPSED", "SENT"
    )?;
    for s in statuses {
        let arrow = if s.role == Role::Source { "→" } else { "←" };
        writeln!(
            out,
            "{:<8}  {:<20} {:<16} {:<14} {:>10}  {:>10}",
            s.id.short(),
            s.guest,
            format!("{arrow} {}", s.peer.as_deref().unwrap_or("any")),
            phase(s),
            Span(Duration::from_millis(s.elapsed_ms)).to_string(),
            Bytes(s.numbers.sent_bytes).to_string(),
        )?;
    }
    Ok(())
}

/// In doubt is what counts, whatever it is in doubt in.
fn phase(status: &Status) -> String {
    match &status.outcome {
        Some(outcome) if outcome.ending == Ending::InDoubt => "IN DOUBT".into(),
        Some(Outcome { guest: Whereabouts::EndedAtSource | Whereabouts::EndedAtDestination, .. }) => {
            "GUEST ENDED".into()
        }
        Some(Outcome { guest: Whereabouts::AtBoth, .. }) => "AT BOTH".into(),
        _ => status.phase.to_string(),
    }
}

pub fn status(status: &Status, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, status)?;
        return writeln!(out);
    }
    let n = &status.numbers;
    let (direction, peer) = match status.role {
        Role::Source => ("to", status.peer.as_deref().unwrap_or("?")),
        Role::Destination => ("from", status.peer.as_deref().unwrap_or("any peer")),
    };
    writeln!(out, "migration   {}", status.id)?;
    writeln!(out, "guest       {} {direction} {peer}", status.guest)?;
    let (elapsed, over) = (Span(Duration::from_millis(status.elapsed_ms)), status.phase.is_final());
    let when = if over { "took" } else { "begun" };
    let ago = if over { "" } else { " ago" };
    writeln!(out, "phase       {}, {when} {elapsed}{ago}", status.phase)?;
    if let Some(words) = super::progress::link_words(status) {
        writeln!(out, "link        {words}")?;
    }
    if let Some(words) = super::progress::turned_away_words(status) {
        writeln!(out, "refused     {words}")?;
    }
    if let Some(words) = super::progress::hook_words(status) {
        writeln!(out, "hook        {words}")?;
    }
    if n.pages_total > 0 {
        write!(out, "memory      {} of {}", Bytes(n.pages_done * 4096), Bytes(n.pages_total * 4096))?;
        match status.role {
            Role::Source => writeln!(out, ", pass {}", n.pass)?,
            Role::Destination => writeln!(out)?,
        }
        match status.role {
            Role::Source => writeln!(
                out,
                "sent        {} for {} of pages, {} of them arrived; {} pages superseded unsent",
                Bytes(n.sent_bytes),
                Bytes(n.raw_bytes),
                Bytes(n.acked_bytes),
                n.superseded_pages
            )?,
            Role::Destination => {
                writeln!(out, "received    {} for {} of pages", Bytes(n.sent_bytes), Bytes(n.raw_bytes))?;
            }
        }
        if super::progress::stops_later(status) {
            writeln!(
                out,
                "link        {}, round trip {:.1} ms",
                BitRate(n.goodput_bytes_per_s as f64),
                n.rtt_us as f64 / 1000.0
            )?;
        }
        if n.predicted_stop_ms > 0 && super::progress::stops_later(status) {
            writeln!(out, "stop        {} if it were now", Span(Duration::from_millis(n.predicted_stop_ms)))?;
        }
        if n.throttle_percent > 0 && !over {
            writeln!(out, "slowed down {} % of the guest's CPU time is taken", n.throttle_percent)?;
        }
    }
    if let Some(sharing) = &status.sharing {
        match sharing.limit_bytes_per_s {
            Some(limit) => write!(out, "sharing     at most {}", BitRate(limit as f64))?,
            None => write!(out, "sharing     no limit of its own")?,
        }
        writeln!(out, ", priority {}", format!("{:?}", sharing.priority).to_lowercase())?;
    }
    if let Some(outcome) = &status.outcome {
        writeln!(out, "outcome     {outcome}")?;
    }
    Ok(())
}

/// What was foretold of a move, beside what came of it.
pub fn report(status: &Status, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let (id, guest, peer) = (status.id, &status.guest, &status.peer);
        let value = serde_json::json!({ "id": id, "guest": guest, "peer": peer, "report": status.report });
        return writeln!(out, "{value}");
    }
    let Some(report) = &status.report else {
        let why = match status.role {
            Role::Source if status.outcome.is_none() => "it is still being moved",
            Role::Source => "it was not moved from here",
            Role::Destination => "its source has it",
        };
        return writeln!(out, "no report of {} ({}): {why}", status.guest, status.phase);
    };
    let total = Span(Duration::from_millis(report.total_ms));
    let peer = status.peer.as_deref().unwrap_or("?");
    writeln!(
        out,
        "{}: moved to {peer} in {total}, {} on the way, {} passes",
        status.guest,
        Bytes(report.sent_bytes),
        report.passes
    )?;
    report.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
}
