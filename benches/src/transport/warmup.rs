//! The part `warmup`: how soon a session goes at the rate of the path, when it had time to prepare and when not.
//!
//! A session is opened, the link warms up, the first chunk is queued: as soon as the link is warm, which is what is judged;
//! or at once; or after some seconds of silence. The clock starts when the first byte could have reached the receiver: half a
//! round trip after the first chunk was queued. What crossed the link before is padding.

use std::time::Duration;

use super::course::{CONTROLS, Control, Course, load_average};
use super::pair::{HOSTS, Place, transfer};
use super::plan::{Amount, Manner};
use super::rows::payload_rate;
use crate::link::cli::named;
use crate::link::{Link, Profile};
use crate::verdict::{Bound, Repeats, Verdict};

/// When the first chunk is queued.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Start {
    AtOnce,
    /// When the link says that it is warm.
    Warm,
    /// Long after it was: as if QEMU took so long to begin.
    Late,
}

const PREPARATION: Duration = Duration::from_secs(3);
/// From the first chunk on.
const TIME: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_secs(1);
/// Of the payload rate.
const AT_RATE: f64 = 0.9;
/// Until it goes at that rate, in round trips.
const ROUND_TRIPS: f64 = 2.0;
/// And at this cost, with the first windows.
const PADDING: f64 = 2.0;
/// Chunks come whole, and of all lanes at about the same time: a shorter time has too few of them.
const SHORTEST_WINDOW: Duration = Duration::from_millis(50);

pub fn warmup(links: &[String], course: &Course) -> anyhow::Result<Vec<Verdict>> {
    println!("\nwarm-up: from the first byte to {:.0} % of the payload rate", AT_RATE * 100.0);
    let mut verdicts = Vec::new();
    for name in links {
        let profile = named(name).map_err(anyhow::Error::msg)?;
        let rate = payload_rate(&profile)?;
        for control in &CONTROLS {
            verdicts.extend(measured(name, &profile, rate, control, course)?);
        }
    }
    Ok(verdicts)
}

fn measured(
    name: &str,
    profile: &Profile,
    rate: f64,
    control: &Control,
    course: &Course,
) -> anyhow::Result<[Verdict; 2]> {
    let (mut warm, mut padding) = (Repeats::default(), Repeats::default());
    let name = format!("{name}{}", control.name);
    for repeat in 1..=course.repeats {
        for (start, text) in
            [(Start::AtOnce, "at once"), (Start::Warm, "as soon as it is warm"), (Start::Late, "after 3 s")]
        {
            let seen = run(profile, course, start, control)?;
            println!(
                "  {repeat} {name}: first chunk {text:<22} ({:.2} s): {}; directly after two round trips {:.1} % of the rate; \
                     padding {:.1} MB; load {}; Mbit/s of each second: {}",
                seen.first_chunk.as_secs_f64(),
                seen.round_trips.map_or("not at all".to_owned(), |trips| format!("{trips:.1} round trips")),
                seen.afterwards * 100.0,
                seen.padding_bytes as f64 / 1e6,
                load_average(),
                seen.course,
            );
            if start == Start::Warm {
                warm.add(seen.round_trips.unwrap_or(f64::INFINITY));
                padding.add(seen.padding_bytes as f64 / (rate * profile.rtt.as_secs_f64()));
            }
        }
    }
    let what = format!("{name}: warm, from the first byte to {:.0} % of the payload rate", AT_RATE * 100.0);
    let warm = Verdict::new(what, warm.median(), Bound::AtMost(ROUND_TRIPS), " round trips");
    let what = format!("{name}: padding, by bandwidth x round trip");
    Ok([warm, Verdict::new(what, padding.median(), Bound::AtMost(PADDING), "")])
}

struct Seen {
    /// After the session was accepted.
    first_chunk: Duration,
    round_trips: Option<f64>,
    /// Goodput from two round trips after the first byte on, by the payload rate.
    afterwards: f64,
    padding_bytes: u64,
    course: String,
}

fn run(profile: &Profile, course: &Course, start: Start, control: &Control) -> anyhow::Result<Seen> {
    let rate = payload_rate(profile)?;
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let time = if course.quick { QUICK } else { TIME } + 4 * profile.rtt;
    let manner = Manner {
        amount: Amount::Time(time),
        preparation: if start == Start::Late { PREPARATION } else { Duration::ZERO },
        warm: start == Start::Warm,
        congestion: control.congestion(),
        lanes: course.lanes,
        ..Manner::default()
    };
    let outcome = transfer(Place::Hosts(&network), &manner, rate)?;
    let (series, first) = (outcome.received.series(), outcome.first_byte(profile.rtt));
    let window = (profile.rtt / 2).max(SHORTEST_WINDOW);
    let at_rate = series.reaches(AT_RATE * rate, first, window);
    let after = first + 2 * profile.rtt;
    let mbit = series.per_second_from(first);
    Ok(Seen {
        round_trips: at_rate.map(|at| at.saturating_sub(first).as_secs_f64() / profile.rtt.as_secs_f64()),
        afterwards: series.rate(after, (first + time).min(series.last())) / rate,
        padding_bytes: outcome.sent.padding_bytes,
        first_chunk: first.saturating_sub(profile.rtt / 2),
        course: mbit.iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect::<Vec<_>>().join(" "),
    })
}
