//! iperf3 on the same hosts: what plain TCP makes of the link.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::PATIENCE;
use super::pair::HOSTS;
use super::series::Series;
use crate::child::Tied;
use crate::link::{Network, die_with_parent};

/// iperf3's own port, as `/proc/net/tcp` writes it, and the state "listening".
const PORT_HEX: &str = ":1451";
const LISTENING: &str = "0A";
const START_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

pub fn need() -> anyhow::Result<()> {
    super::pair::need("iperf3", "iperf3", "the comparison with plain TCP")
}

/// What the server received of so many streams, with cubic and the hosts' buffers.
pub fn run(network: &Network, streams: u16, time: Duration) -> anyhow::Result<Series> {
    let [there, here] = HOSTS.map(|name| network.host(name));
    let mut server = there.command("iperf3");
    server.args(["-s", "-1", "-J", "-i", "0.1"]).stdin(Stdio::null()).stdout(Stdio::piped());
    die_with_parent(&mut server);
    let mut server = Tied::spawn(&mut server).context("iperf3")?;
    wait_for_listener(&mut server)?;
    let mut said = server.child().stdout.take().context("no pipe")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        said.read_to_string(&mut text).map(|_| text)
    });

    let mut client = here.command("iperf3");
    client.args(["-c", &there.ip4().to_string(), "-C", "cubic", "-J"]);
    client.args(["-P", &streams.to_string(), "-t", &time.as_secs().max(1).to_string()]);
    client.stdin(Stdio::null()).stdout(Stdio::null());
    die_with_parent(&mut client);
    let status = Tied::spawn(&mut client).context("iperf3")?.wait_within(time + PATIENCE)?;
    if !status.success() {
        bail!("iperf3 -c failed: {status}");
    }
    server.wait_within(PATIENCE)?;
    let text = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    series(&text)
}

#[derive(Deserialize)]
struct Report {
    intervals: Vec<Interval>,
}

#[derive(Deserialize)]
struct Interval {
    sum: Sum,
}

#[derive(Deserialize)]
struct Sum {
    start: f64,
    end: f64,
    bytes: u64,
}

fn series(report: &str) -> anyhow::Result<Series> {
    let report: Report = serde_json::from_str(report).context("what iperf3 -s -J said")?;
    let mut series = Series::default();
    for Interval { sum } in report.intervals {
        let [from, to] = [sum.start, sum.end].map(|at| Duration::from_secs_f64(at.max(0.0)));
        series.spread(from, to, sum.bytes);
    }
    Ok(series)
}

/// A connection to see whether it listens would be the one test that the server serves.
fn wait_for_listener(server: &mut Tied) -> anyhow::Result<()> {
    let id = server.child().id();
    let deadline = Instant::now() + START_LIMIT;
    let listens = |table: &str| {
        let sockets = fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap_or_default();
        sockets.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            matches!(fields[..], [_, local, _, state, ..] if local.ends_with(PORT_HEX) && state == LISTENING)
        })
    };
    while !listens("tcp") && !listens("tcp6") {
        if let Some(status) = server.child().try_wait()? {
            bail!("iperf3 -s ended at its start: {status}");
        }
        if Instant::now() > deadline {
            bail!("iperf3 -s does not listen within {START_LIMIT:?}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_what_came_when() {
        let report = r#"{"start":{"version":"iperf 3.12"},"intervals":[
            {"streams":[],"sum":{"start":0,"end":0.100012,"seconds":0.1,"bytes":1000,"bits_per_second":80000.0}},
            {"streams":[],"sum":{"start":0.100012,"end":0.2,"seconds":0.1,"bytes":3000,"bits_per_second":240000.0}}
        ],"end":{}}"#;
        let series = series(report).unwrap();
        assert_eq!(series.bytes(), 4000);
        assert_eq!(series.between(Duration::ZERO, Duration::from_millis(100)), 1000);
        assert!(super::series("{}").is_err());
    }
}
