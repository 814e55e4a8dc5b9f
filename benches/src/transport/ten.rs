//! The part `ten`: ten sessions at once over one link. All of it arrives as it was sent, and each gets its share.
//!
//! Shares are taken from second 3 on until the first session has all of its volume: as long as all ten have something to send.

use super::course::{Course, load_average};
use super::pair::{HOSTS, Place, transfer};
use super::plan::{Amount, Manner};
use super::rows::payload_rate;
use super::verdict::{Bound, Verdict};
use crate::link::Link;
use crate::link::cli::named;

const SESSIONS: u8 = 10;
const LINK: &str = "us";
/// Of a tenth of the payload rate.
const LEAST_SHARE: f64 = 0.8;
const MOST_SHARE: f64 = 1.2;

pub fn ten(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let profile = named(LINK).map_err(anyhow::Error::msg)?;
    let rate = payload_rate(&profile)?;
    let tenth = rate / f64::from(SESSIONS);
    // So that all of it takes about the time of a run.
    let bytes = (tenth * course.time.as_secs_f64()) as u64;
    println!("\nten sessions at once over {LINK}, {:.0} MB each: {profile}", bytes as f64 / 1e6);
    let (mut least, mut most, mut arrived) = (f64::INFINITY, 0.0_f64, true);
    for repeat in 1..=course.repeats {
        let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
        let manner = Manner {
            amount: Amount::Bytes(bytes),
            sessions: SESSIONS,
            own_memory: true,
            checked: true,
            lanes: course.lanes,
            ..Manner::default()
        };
        let outcome = transfer(Place::Hosts(&network), &manner, rate)?;
        let sessions = &outcome.received.sessions;
        let first_end = sessions.iter().map(|one| one.series.last()).min().unwrap_or_default();
        let last_end = sessions.iter().map(|one| one.series.last()).max().unwrap_or_default();
        let shares: Vec<_> =
            sessions.iter().map(|one| one.series.rate(course.steady_from, first_end) / tenth).collect();
        let all = sessions.len() == usize::from(SESSIONS)
            && sessions
                .iter()
                .zip(&outcome.sent.hashes)
                .all(|(one, hash)| one.series.bytes() == bytes && one.hash == *hash);
        let text: Vec<_> = shares.iter().map(|share| format!("{share:.2}")).collect();
        println!(
            "  {repeat} {}; shares of a tenth from {:.1} s until {:.1} s: {}; the last ended at {:.1} s; load {}",
            if all { "all arrived as sent" } else { "NOT all arrived as sent" },
            course.steady_from.as_secs_f64(),
            first_end.as_secs_f64(),
            text.join(" "),
            last_end.as_secs_f64(),
            load_average(),
        );
        arrived &= all;
        least = shares.iter().copied().fold(least, f64::min);
        most = shares.iter().copied().fold(most, f64::max);
    }
    let share = |which| format!("ten sessions: the {which} share of all, of a tenth of the payload rate");
    Ok(vec![
        Verdict::new(
            "ten sessions: runs in which all of it arrived as it was sent, of those made",
            f64::from(u8::from(arrived)),
            Bound::AtLeast(1.0),
            "",
        ),
        Verdict::new(share("smallest"), least, Bound::AtLeast(LEAST_SHARE), ""),
        Verdict::new(share("largest"), most, Bound::AtMost(MOST_SHARE), ""),
    ])
}
