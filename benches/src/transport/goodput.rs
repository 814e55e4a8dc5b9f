//! The parts `goodput`, `lan` and `lossy`: sealed goodput beside the payload rate and beside plain TCP.

use std::fs;

use hikyaku_transport::{NodeConfig, StaticKey};

use super::course::Course;
use super::iperf;
use super::plan::Manner;
use super::rows::{Row, Thing, measure, payload_rate};
use crate::link::Profile;
use crate::link::cli::named;
use crate::verdict::{Bound, Verdict};

const OURS: &str = "hikyaku";
const OURS_CUBIC: &str = "hikyaku, cubic only";
const OURS_AUTOTUNED: &str = "hikyaku, kernel's buffers";
const ONE_STREAM: &str = "iperf3, 1 stream";
const MANY_STREAMS: &str = "iperf3, as many as lanes";

/// On `jgn`, `us` and `eu`, of the payload rate.
const OF_THE_RATE: f64 = 0.95;
/// On `us` and `eu`, of one plain stream.
const OF_ONE_STREAM: f64 = 2.0;
/// Links so long that one stream's buffers cannot hold them.
const LONG: [&str; 2] = ["us", "eu"];
/// On `lan`, of as many plain streams: there the machine is the limit.
const OF_MANY_STREAMS: f64 = 0.7;
/// On `lossy`, of the payload rate.
const LOSSY_BBR: f64 = 0.9;
const LOSSY_CUBIC: f64 = 0.6;

/// Links that are long, or ordinary.
pub fn goodput(links: &[String], course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for name in links {
        let profile = profile(name)?;
        let (mut rows, rate) = (plain_rows(course)?, payload_rate(&profile)?);
        measure(name, &profile, course, &mut rows)?;
        let [ours, cubic, autotuned, one, _] = &rows[..] else { continue };
        for row in [ours, cubic, autotuned] {
            let what = format!("{name}: goodput of {} by the payload rate", row.name());
            verdicts.push(Verdict::new(
                what,
                row.goodputs().median() / rate,
                Bound::AtLeast(OF_THE_RATE),
                "",
            ));
        }
        if LONG.contains(&name.as_str()) {
            for row in [ours, cubic] {
                let what = format!("{name}: goodput of {} by that of one plain stream", row.name());
                verdicts.push(Verdict::new(what, row.by(one).median(), Bound::AtLeast(OF_ONE_STREAM), ""));
            }
        }
    }
    Ok(verdicts)
}

pub fn lan(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let mut rows = plain_rows(course)?;
    measure("lan", &profile("lan")?, course, &mut rows)?;
    let [ours, cubic, _, _, many] = &rows[..] else { return Ok(Vec::new()) };
    let verdict = |row: &Row| {
        let what = format!("lan: goodput of {} by that of as many plain streams", row.name());
        Verdict::new(what, row.by(many).median(), Bound::AtLeast(OF_MANY_STREAMS), "")
    };
    Ok(vec![verdict(ours), verdict(cubic)])
}

pub fn lossy(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let (profile, course) = (profile("lossy")?, &course.with_losses());
    let rate = payload_rate(&profile)?;
    let mut rows = plain_rows(course)?;
    measure("lossy", &profile, course, &mut rows)?;
    let [ours, cubic, ..] = &rows[..] else { return Ok(Vec::new()) };
    let verdict = |row: &Row, bound| {
        let what = format!("lossy: goodput of {} by the payload rate", row.name());
        Verdict::new(what, row.goodputs().median() / rate, Bound::AtLeast(bound), "")
    };
    // Without it the transport has nothing to choose.
    let ours = if allow("bbr") {
        verdict(ours, LOSSY_BBR)
    } else {
        let what = format!("lossy: goodput of {OURS} by the payload rate");
        Verdict::without(what, "this kernel has no bbr for its hosts", Bound::AtLeast(LOSSY_BBR), "")
    };
    Ok(vec![ours, verdict(cubic, LOSSY_CUBIC)])
}

/// With the defaults, with cubic as where there is nothing else, then also without the right to force buffers, and plain TCP.
fn plain_rows(course: &Course) -> anyhow::Result<Vec<Row>> {
    iperf::need()?;
    let lanes = course.lanes.unwrap_or(NodeConfig::new(StaticKey::generate()?).lanes);
    let cubic = Manner { congestion: Some("cubic".to_owned()), ..ours(course) };
    Ok(vec![
        Row::new(OURS, Thing::Ours(ours(course))),
        Row::new(OURS_CUBIC, Thing::Ours(cubic.clone())),
        Row::new(OURS_AUTOTUNED, Thing::Ours(Manner { autotune: true, ..cubic })),
        Row::new(ONE_STREAM, Thing::Iperf(1)),
        Row::new(MANY_STREAMS, Thing::Iperf(lanes)),
    ])
}

fn ours(course: &Course) -> Manner {
    Manner { lanes: course.lanes, ..Manner::default() }
}

fn profile(name: &str) -> anyhow::Result<Profile> {
    named(name).map_err(anyhow::Error::msg)
}

/// Whether a host's socket may ask for this congestion control.
fn allow(congestion: &str) -> bool {
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
    allowed.unwrap_or_default().split_whitespace().any(|one| one == congestion)
}
