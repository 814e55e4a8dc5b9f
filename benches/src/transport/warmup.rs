//! The part `warmup`: how soon a session goes at the rate of the path, when it had time to prepare and when not.
//!
//! A migration opens its session and then prepares the guest; the link can use that time. The clock starts when the first byte
//! could have reached the receiver: half a round trip after the first chunk was queued. What crossed the link before is padding.

use std::time::Duration;

use super::course::{Course, load_average};
use super::pair::{HOSTS, Pair, Place};
use super::plan::{Amount, Manner, now_ns};
use super::rows::payload_rate;
use super::verdict::{Bound, Repeats, Verdict};
use crate::link::cli::named;
use crate::link::{Link, Profile};

/// From the session's opening to its first chunk, as long as QEMU takes to begin and a slow start on the longest link.
const PREPARATION: Duration = Duration::from_secs(3);
/// From the first chunk on.
const TIME: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_secs(1);
/// Of the payload rate.
const AT_RATE: f64 = 0.9;
/// Until it goes at that rate, in round trips.
const ROUND_TRIPS: f64 = 2.0;
/// Chunks come whole, and of all lanes at about the same time: a shorter time has too few of them.
const SHORTEST_WINDOW: Duration = Duration::from_millis(50);

pub fn warmup(links: &[String], course: &Course) -> anyhow::Result<Vec<Verdict>> {
    println!("\nwarm-up: from the first byte to {:.0} % of the payload rate", AT_RATE * 100.0);
    let mut verdicts = Vec::new();
    for name in links {
        let profile = named(name).map_err(anyhow::Error::msg)?;
        let mut prepared = Repeats::default();
        for repeat in 1..=course.repeats {
            for preparation in [Duration::ZERO, PREPARATION] {
                let seen = run(&profile, course, preparation)?;
                println!(
                    "  {repeat} {name:<5} first chunk {:.0} s after the session: {}; directly after two round trips {:.1} % of the rate; \
                     padding {:.1} MB; load {}; Mbit/s of each second: {}",
                    preparation.as_secs_f64(),
                    seen.round_trips
                        .map_or("not at all".to_owned(), |trips| format!("{trips:.1} round trips")),
                    seen.afterwards * 100.0,
                    seen.padding_bytes as f64 / 1e6,
                    load_average(),
                    seen.course,
                );
                if !preparation.is_zero() {
                    prepared.add(seen.round_trips.unwrap_or(f64::INFINITY));
                }
            }
        }
        let what =
            format!("{name}: from the first byte to {:.0} % of the payload rate, prepared", AT_RATE * 100.0);
        verdicts.push(Verdict::new(what, prepared.median(), Bound::AtMost(ROUND_TRIPS), " round trips"));
    }
    Ok(verdicts)
}

struct Seen {
    round_trips: Option<f64>,
    /// Goodput from two round trips after the first byte on, by the payload rate.
    afterwards: f64,
    padding_bytes: u64,
    course: String,
}

fn run(profile: &Profile, course: &Course, preparation: Duration) -> anyhow::Result<Seen> {
    let rate = payload_rate(profile)?;
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let time = if course.quick { QUICK } else { TIME } + 4 * profile.rtt;
    let manner = Manner { amount: Amount::Time(time), preparation, lanes: course.lanes, ..Manner::default() };
    let mut pair = Pair::start(Place::Hosts(&network), &manner, rate)?;
    let started_ns = pair.wait_for_start()?;
    let first_chunk_at = preparation.saturating_sub(Duration::from_nanos(now_ns() - started_ns));
    std::thread::sleep(first_chunk_at);
    let padding_bytes = network.counters_of(HOSTS[1], HOSTS[0]).bytes;
    let outcome = pair.finish()?;
    let (series, first) = (outcome.received.series(), outcome.first_byte(profile.rtt));
    let window = (profile.rtt / 2).max(SHORTEST_WINDOW);
    let at_rate = series.reaches(AT_RATE * rate, first, window);
    let after = first + 2 * profile.rtt;
    let mbit = series.per_second_from(first);
    Ok(Seen {
        round_trips: at_rate.map(|at| at.saturating_sub(first).as_secs_f64() / profile.rtt.as_secs_f64()),
        afterwards: series.rate(after, (first + time).min(series.last())) / rate,
        padding_bytes,
        course: mbit.iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect::<Vec<_>>().join(" "),
    })
}
