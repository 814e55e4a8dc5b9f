//! `link`: how a link does, lane by lane, and what limits it.

use crate::daemon::Daemon;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::source::SourceError;
use hikyaku_transport::{Io, LaneStats, Link, LinkError, Probe, what_limits};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A link that works is watched for so long.
const WATCHED: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkArguments {
    pub peer: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkReport {
    pub peer: String,
    /// How its lanes are sealed.
    pub suite: String,
    /// How this host's lanes reach the kernel.
    pub io: String,
    /// Migrations that have it open.
    pub sessions: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rtt_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_rtt_us: Option<u64>,
    /// What its lanes sent while it was watched; of a link that was warmed, what the path took.
    pub bytes_per_s: u64,
    /// It was idle, and filled with padding to be measured.
    pub warmed: Option<WarmUp>,
    /// What limited it while it was watched, in words. Not of a link that was idle.
    pub limited_by: Option<String>,
    pub lanes: Vec<LaneReport>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmUp {
    pub took_ms: u64,
    pub padding_bytes: u64,
    /// Packets sent again, of all.
    pub loss: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaneReport {
    pub lane: u16,
    pub address: Option<String>,
    pub congestion: String,
    pub window_bytes: u64,
    pub rtt_us: u64,
    pub sent_segments: u64,
    pub resent_segments: u64,
    pub pacing_bytes_per_s: Option<u64>,
    pub send_buffer_bytes: u64,
    pub receive_window_bytes: u64,
}

/// Opens the link if it is not. One that is idle is warmed; one that works is watched, and not disturbed.
pub async fn report(daemon: &Daemon, arguments: LinkArguments) -> Result<LinkReport, Outcome> {
    let untouched = |error: LinkError| SourceError::from(error).outcome(Whereabouts::Untouched);
    if daemon.config.peer(&arguments.peer).is_none() {
        let desc = format!("no peer \"{}\" in the configuration", arguments.peer);
        return Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc));
    }
    let link = daemon.link_to(&arguments.peer).await.map_err(untouched)?;
    let probe = link.warm_up().await.map_err(untouched)?;
    let mut report = LinkReport {
        peer: arguments.peer,
        suite: link.suite().map_or_else(|| "none: the link is down".into(), |suite| suite.to_string()),
        io: if daemon.node.io() == Io::Uring { "io_uring" } else { "plain" }.into(),
        sessions: link.sessions(),
        rtt_us: None,
        min_rtt_us: None,
        bytes_per_s: 0,
        warmed: None,
        limited_by: None,
        lanes: Vec::new(),
    };
    match probe.bandwidth_bytes_per_s {
        Some(bandwidth) => warmed(&mut report, &probe, bandwidth),
        None => watch(&mut report, &link).await,
    }
    report.lanes = link.lanes().iter().map(lane).collect();
    Ok(report)
}

fn warmed(report: &mut LinkReport, probe: &Probe, bandwidth: u64) {
    report.rtt_us = probe.rtt.map(us);
    report.min_rtt_us = probe.min_rtt.map(us);
    report.bytes_per_s = bandwidth;
    report.warmed = Some(WarmUp {
        took_ms: probe.took.as_millis() as u64,
        padding_bytes: probe.padding_bytes,
        loss: probe.loss,
    });
}

async fn watch(report: &mut LinkReport, link: &Link) {
    let (before, sent_before) = (link.reading(), link.stats().lane_bytes_sent);
    tokio::time::sleep(WATCHED).await;
    let (after, stats) = (link.reading(), link.stats());
    let elapsed = after.at.saturating_duration_since(before.at).as_secs_f64();
    report.bytes_per_s = (stats.lane_bytes_sent.saturating_sub(sent_before) as f64 / elapsed) as u64;
    report.rtt_us = after.rtt.map(us);
    report.min_rtt_us = after.min_rtt.map(us);
    report.limited_by = Some(what_limits(&before, &after).to_string());
}

fn lane(lane: &LaneStats) -> LaneReport {
    LaneReport {
        lane: lane.lane.0,
        address: lane.peer.map(|address| address.to_string()),
        congestion: lane.congestion.clone(),
        window_bytes: lane.window_bytes,
        rtt_us: us(lane.rtt),
        sent_segments: lane.sent_segments,
        resent_segments: lane.resent_segments,
        pacing_bytes_per_s: lane.pacing_bytes_per_s,
        send_buffer_bytes: lane.send_buffer_bytes,
        receive_window_bytes: lane.receive_window_bytes,
    }
}

fn us(time: Duration) -> u64 {
    time.as_micros() as u64
}
