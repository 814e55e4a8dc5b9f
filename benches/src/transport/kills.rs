//! The part `kills`: lanes that are reset by the path, ten in each second, and what the link makes of it.
//!
//! The emulator stops carrying a connection, as a firewall does that has lost its state: both ends see it reset. A connection is
//! taken for a lane if the sender has more than a packet under way on it; the control connection never has.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::course::{CONTROLS, Control, Course, load_average};
use super::pair::{HOSTS, Outcome, Pair, Place};
use super::plan::{Amount, Manner, now_ns};
use super::rows::payload_rate;
use crate::link::cli::named;
use crate::link::{Link, Network, Profile, TCP_PAYLOAD_BYTES};
use crate::verdict::{Bound, Repeats, Verdict};

const LINKS: [&str; 2] = ["jgn", "us"];
const KILLS_PER_S: u32 = 10;
const FOR: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_secs(1);
/// After the last kill: time to be well again, and more.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// Of the payload rate, while lanes are killed.
const MEANWHILE: f64 = 0.3;
/// Of the payload rate, afterwards.
const WELL: f64 = 0.9;
/// Of the kills, how many meet a lane at least: else nothing was shown.
const MET: f64 = 0.9;
/// Until it is well again, in round trips.
const ROUND_TRIPS: f64 = 10.0;

pub fn kills(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for name in LINKS {
        for control in &CONTROLS {
            verdicts.extend(on(name, control, course)?);
        }
    }
    Ok(verdicts)
}

fn on(name: &str, control: &Control, course: &Course) -> anyhow::Result<[Verdict; 3]> {
    let time = if course.quick { QUICK } else { FOR };
    let profile = named(name).map_err(anyhow::Error::msg)?;
    let name = format!("{name}{}", control.name);
    println!("\n{KILLS_PER_S} lanes killed in each second for {time:?} on {name}: {profile}");
    let [mut met, mut shares, mut recoveries] = [(); 3].map(|()| Repeats::default());
    let mut broken = None;
    for repeat in 1..=course.repeats {
        match run(&profile, course, time, control) {
            Ok(seen) => {
                println!(
                    "  {repeat} {} of {} kills met a lane; meanwhile {:.1} % of the payload rate; {:.0} % again after {}; load {}",
                    seen.killed,
                    seen.tried,
                    seen.share * 100.0,
                    WELL * 100.0,
                    seen.recovery.map_or("never".to_owned(), |trips| format!("{trips:.1} round trips")),
                    load_average(),
                );
                println!("         Mbit/s of each second: {}", seen.course);
                met.add(f64::from(seen.killed) / f64::from(seen.tried.max(1)));
                shares.add(seen.share);
                recoveries.add(seen.recovery.unwrap_or(f64::INFINITY));
            }
            Err(error) => {
                println!("  {repeat} {error:#}");
                broken = Some(format!("{error:#}"));
            }
        }
    }
    let goodput = format!("{name}: goodput while lanes are killed, by the payload rate");
    let well = format!("{name}: until {:.0} % of the payload rate after the last kill", WELL * 100.0);
    let hit = format!("{name}: kills that met a lane");
    let bounds = [Bound::AtLeast(MET), Bound::AtLeast(MEANWHILE), Bound::AtMost(ROUND_TRIPS)];
    Ok(match broken {
        None => [
            Verdict::new(hit, met.median(), bounds[0], ""),
            Verdict::new(goodput, shares.median(), bounds[1], ""),
            Verdict::new(well, recoveries.median(), bounds[2], " round trips"),
        ],
        Some(why) => [
            Verdict::without(hit, &why, bounds[0], ""),
            Verdict::without(goodput, &why, bounds[1], ""),
            Verdict::without(well, &why, bounds[2], " round trips"),
        ],
    })
}

struct Seen {
    tried: u32,
    killed: u32,
    share: f64,
    /// In round trips; `None`: not before the end.
    recovery: Option<f64>,
    course: String,
}

fn run(profile: &Profile, course: &Course, time: Duration, control: &Control) -> anyhow::Result<Seen> {
    let rate = payload_rate(profile)?;
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let amount = Amount::Time(course.steady_from + time + AFTERWARDS);
    let congestion = control.congestion();
    let manner = Manner { amount, congestion, lanes: course.lanes, ..Manner::default() };
    let mut pair = Pair::start(Place::Hosts(&network), &manner, rate)?;
    let started_ns = pair.wait_for_start()?;
    let begin = Instant::now() + course.steady_from;
    let (mut tried, mut killed) = (0, 0);
    let (mut first_ns, mut last_ns) = (0, 0);
    for kill in 0..KILLS_PER_S * time.as_secs() as u32 {
        let at = begin + Duration::from_secs(1) / KILLS_PER_S * kill;
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if !pair.is_running() {
            break;
        }
        last_ns = now_ns();
        if kill == 0 {
            first_ns = last_ns;
        }
        tried += 1;
        if let Some(lane) = some_lane(&network, pair.sender_id(), kill) {
            network.reset_connection(lane);
            killed += 1;
        }
    }
    let Outcome { received, .. } = pair.finish()?;
    let series = received.series();
    let since_start = |ns: u64| Duration::from_nanos(ns.saturating_sub(started_ns));
    let (first, last) = (since_start(first_ns), since_start(last_ns));
    let well = series.reaches(WELL * rate, last, profile.rtt);
    let mbit: Vec<_> = series.per_second().iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect();
    Ok(Seen {
        tried,
        killed,
        share: series.rate(first, last) / rate,
        recovery: well.map(|at| at.saturating_sub(last).as_secs_f64() / profile.rtt.as_secs_f64()),
        course: mbit.join(" "),
    })
}

/// The two ends of one of the sender's lanes, another one each time.
fn some_lane(network: &Network, sender: u32, turn: u32) -> Option<[SocketAddr; 2]> {
    let table = fs::read_to_string(format!("/proc/{sender}/net/tcp")).ok()?;
    let lanes: Vec<_> = table.lines().filter_map(busy_connection).collect();
    let [there, here] = HOSTS.map(|host| network.host(host).ip4());
    let (local, remote) = *lanes.get(turn as usize % lanes.len().max(1))?;
    Some([(here, local).into(), (there, remote).into()])
}

/// The ports of an established connection that has more than a packet under way, from a line of `/proc/net/tcp`.
fn busy_connection(line: &str) -> Option<(u16, u16)> {
    const ESTABLISHED: &str = "01";
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, local, remote, ESTABLISHED, queues, ..] = fields[..] else { return None };
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let unacknowledged = u32::from_str_radix(queues.split_once(':')?.0, 16).ok()?;
    (unacknowledged > TCP_PAYLOAD_BYTES).then_some((port(local)?, port(remote)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_known_by_what_it_has_under_way() {
        let line = |state: &str, queue: &str| {
            format!(
                "   3: 020012C6:A27E 010012C6:1263 {state} {queue}:00000000 01:00000019 00000000     0        0 1"
            )
        };
        assert_eq!(busy_connection(&line("01", "00100000")), Some((0xa27e, 4707)));
        assert_eq!(busy_connection(&line("01", "00000030")), None, "the control connection");
        assert_eq!(busy_connection(&line("04", "00100000")), None, "closing");
        assert_eq!(busy_connection("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }
}
