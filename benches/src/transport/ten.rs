//! The part `ten`: ten sessions at once over one link. All of it arrives as it was sent, each gets its share, and a limit holds.
//!
//! Shares are taken from second 3 on until the first session has all of its volume: as long as all ten have something to send.
//! With a limit on one of them all ten send for a fixed time.

use super::course::{Course, load_average};
use super::pair::{HOSTS, Outcome, Place, transfer};
use super::plan::{Amount, Arrivals, Manner};
use super::rows::payload_rate;
use crate::link::cli::named;
use crate::link::{LINK_OVERHEAD_BYTES, Link, MTU_BYTES, Profile, TCP_PAYLOAD_BYTES};
use crate::verdict::{Bound, Repeats, Verdict};

const SESSIONS: u8 = 10;
const LINK: &str = "us";
/// Of a tenth of the payload rate.
const LEAST_SHARE: f64 = 0.8;
const MOST_SHARE: f64 = 1.2;
/// The limit on one session, of a tenth of the payload rate.
const LIMIT_SHARE: f64 = 0.4;
/// By how much the limited session's rate may differ from its limit.
const LIMIT_ERROR: f64 = 0.05;

pub fn ten(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let profile = named(LINK).map_err(anyhow::Error::msg)?;
    println!("\nten sessions at once over {LINK}: {profile}");
    let mut shares = Repeats::default();
    let (mut whole, mut errors) = (0, Repeats::default());
    for repeat in 1..=course.repeats {
        let (all_arrived, seen) = equals(&profile, course, repeat)?;
        whole += u32::from(all_arrived);
        seen.into_iter().for_each(|share| shares.add(share));
        errors.add(limited(&profile, course, repeat)?);
    }
    let share = |which| format!("ten sessions: the {which} share of all, of a tenth of the payload rate");
    let arrived = "ten sessions: runs in which all of it arrived as it was sent";
    Ok(vec![
        Verdict::new(arrived, whole.into(), Bound::AtLeast(course.repeats.into()), ""),
        Verdict::new(share("smallest"), shares.least(), Bound::AtLeast(LEAST_SHARE), ""),
        Verdict::new(share("largest"), shares.most(), Bound::AtMost(MOST_SHARE), ""),
        Verdict::new(
            "ten sessions: by how much the one with a limit missed it, at most of all runs",
            errors.most() * 100.0,
            Bound::AtMost(LIMIT_ERROR * 100.0),
            " %",
        ),
    ])
}

/// Each with the same volume: whether all of it arrived, and their shares.
fn equals(profile: &Profile, course: &Course, repeat: u32) -> anyhow::Result<(bool, Vec<f64>)> {
    let tenth = payload_rate(profile)? / f64::from(SESSIONS);
    // So that all of it takes about the time of a run.
    let bytes = (tenth * course.time.as_secs_f64()) as u64;
    let manner = Manner { amount: Amount::Bytes(bytes), own_memory: true, checked: true, ..manner(course) };
    let Outcome { received, sent, .. } = run(profile, &manner)?;
    let sessions = &received.sessions;
    let first_end = sessions.iter().map(|one| one.series.last()).min().unwrap_or_default();
    let last_end = sessions.iter().map(|one| one.series.last()).max().unwrap_or_default();
    let shares: Vec<_> =
        sessions.iter().map(|one| one.series.rate(course.steady_from, first_end) / tenth).collect();
    let is_whole = |(one, hash): (&Arrivals, &u64)| one.series.bytes() == bytes && one.hash == *hash;
    let all = sessions.len() == usize::from(SESSIONS) && sessions.iter().zip(&sent.hashes).all(is_whole);
    println!(
        "  {repeat} {:.0} MB each: {}; shares of a tenth, {:.1}-{:.1} s: {}; the last ended at {:.1} s; load {}",
        bytes as f64 / 1e6,
        if all { "all arrived as sent" } else { "NOT all arrived as sent" },
        course.steady_from.as_secs_f64(),
        first_end.as_secs_f64(),
        show(&shares),
        last_end.as_secs_f64(),
        load_average(),
    );
    Ok((all, shares))
}

/// The first has a limit below its share: by how much its rate differs from it.
fn limited(profile: &Profile, course: &Course, repeat: u32) -> anyhow::Result<f64> {
    let tenth = payload_rate(profile)? / f64::from(SESSIONS);
    let limit = tenth * LIMIT_SHARE;
    let amount = Amount::Time(course.time + 2 * profile.rtt);
    let manner = Manner { amount, limit_bytes_per_s: Some(limit as u64), ..manner(course) };
    let Outcome { received, .. } = run(profile, &manner)?;
    let rate = |session: &Arrivals| session.series.rate(course.steady_from, course.time);
    // A limit counts what is on the wire, headers of the packets included.
    let wire = f64::from(MTU_BYTES + LINK_OVERHEAD_BYTES) / f64::from(TCP_PAYLOAD_BYTES);
    let kept = received.sessions.first().map_or(f64::NAN, |first| rate(first) * wire);
    let others: Vec<_> = received.sessions.iter().skip(1).map(|one| rate(one) / tenth).collect();
    println!(
        "  {repeat} a limit of {:.1} Mbit/s on one: it had {:.1}; the others' shares of a tenth: {}; load {}",
        limit * 8e-6,
        kept * 8e-6,
        show(&others),
        load_average(),
    );
    Ok((kept / limit - 1.0).abs())
}

fn manner(course: &Course) -> Manner {
    Manner { sessions: SESSIONS, lanes: course.lanes, ..Manner::default() }
}

fn run(profile: &Profile, manner: &Manner) -> anyhow::Result<Outcome> {
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    transfer(Place::Hosts(&network), manner, payload_rate(profile)?)
}

fn show(shares: &[f64]) -> String {
    shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" ")
}
