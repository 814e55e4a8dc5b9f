//! `hikyaku link`.

use crate::api::link::LinkReport;
use crate::units::{BitRate, Bytes};
use std::io::{self, Write};

pub fn show(report: &LinkReport, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        return writeln!(out);
    }
    let sessions = match report.sessions {
        1 => "1 migration".to_owned(),
        more => format!("{more} migrations"),
    };
    writeln!(out, "link        to {}: up, {}, {}, {sessions}", report.peer, report.suite, report.io)?;
    writeln!(out, "round trip  {}, at least {}", ms(report.rtt_us), ms(report.min_rtt_us))?;
    match &report.warmed {
        Some(warm) => writeln!(
            out,
            "bandwidth   {}, found with {} of padding in {} ms; {:.3} % of the packets were sent again",
            BitRate(report.bytes_per_s as f64),
            Bytes(warm.padding_bytes),
            warm.took_ms,
            warm.loss * 100.0
        )?,
        None => writeln!(out, "rate        {}", BitRate(report.bytes_per_s as f64))?,
    }
    writeln!(
        out,
        "\n{:>4}  {:<24} {:<8} {:>10} {:>10} {:>16} {:>12} {:>10} {:>10}",
        "LANE", "ADDRESS", "CONTROL", "CWND", "RTT", "SENT AGAIN", "PACING", "BUFFER", "WINDOW"
    )?;
    for lane in &report.lanes {
        writeln!(
            out,
            "{:>4}  {:<24} {:<8} {:>10} {:>10} {:>16} {:>12} {:>10} {:>10}",
            lane.lane,
            lane.address.as_deref().unwrap_or("?"),
            lane.congestion,
            Bytes(lane.window_bytes).to_string(),
            ms(Some(lane.rtt_us)),
            format!("{}/{}", lane.resent_segments, lane.sent_segments),
            lane.pacing_bytes_per_s.map_or("none".into(), |rate| BitRate(rate as f64).to_string()),
            Bytes(lane.send_buffer_bytes).to_string(),
            Bytes(lane.receive_window_bytes).to_string(),
        )?;
    }
    match &report.limited_by {
        Some(what) => writeln!(out, "\nlimited by {what}"),
        None => writeln!(out, "\nlimited by nothing: it was idle"),
    }
}

fn ms(us: Option<u64>) -> String {
    us.map_or("unknown".into(), |us| format!("{:.1} ms", us as f64 * 1e-3))
}
