//! `hikyaku check`.

use crate::api::check::CheckReport;
use crate::units::{BitRate, Bytes};
use std::io::{self, Write};

pub fn show(report: &CheckReport, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        return writeln!(out);
    }
    let used =
        report.used_bytes.map_or("all of it, for all that is known".into(), |used| Bytes(used).to_string());
    writeln!(out, "guest       {}, {} of memory, {used} in use", report.guest, Bytes(report.ram_bytes))?;
    match report.dirty_bytes_per_s {
        _ if !report.runs => writeln!(out, "dirties     nothing: it stands")?,
        Some(rate) => writeln!(out, "dirties     {:.0} MB/s", rate as f64 / 1e6)?,
        None => writeln!(
            out,
            "dirties     unknown: its QEMU does not tell (5.2 and newer do); that it converges is not known either"
        )?,
    }
    let rtt = report.min_rtt_us.map_or("unknown".into(), |us| format!("{:.1} ms", us as f64 * 1e-3));
    let rate = BitRate(report.goodput_bytes_per_s as f64);
    write!(out, "path        to {}: {rate}, round trip {rtt}", report.peer)?;
    match report.sessions {
        0 => writeln!(out)?,
        1 => writeln!(out, "; 1 migration shares it")?,
        more => writeln!(out, "; {more} migrations share it")?,
    }
    writeln!(out, "assumed     {:.0} bytes cross for 100 of its memory", report.assumed_ratio * 100.0)?;
    for not in &report.not_checked {
        writeln!(out, "not checked {not}")?;
    }
    writeln!(out, "\n{}", report.words)
}
