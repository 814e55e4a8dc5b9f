//! Things side by side on one link: each repeat measures every one of them once, in hosts that are new.

use std::time::Duration;

use anyhow::Context;

use super::course::{Course, load_average};
use super::pair::{HOSTS, Place, transfer};
use super::plan::{Amount, Manner};
use super::series::Series;
use super::{Measured, iperf};
use crate::link::{Link, Network, Profile};
use crate::verdict::Repeats;

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    Ours(Manner),
    /// Plain TCP: iperf3 with so many streams.
    Iperf(u16),
}

/// A thing, how it is called, and what its repeats came to.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    thing: Thing,
    all: Vec<Measured>,
}

impl Row {
    pub fn new(name: &'static str, thing: Thing) -> Row {
        Row { name, thing, all: Vec::new() }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn goodputs(&self) -> Repeats {
        self.all.iter().map(|one| one.steady_bytes_per_s).collect()
    }

    /// This thing's goodput by the other's, each repeat by itself.
    pub fn by(&self, other: &Row) -> Repeats {
        let pairs = self.all.iter().zip(&other.all);
        pairs.map(|(one, other)| one.steady_bytes_per_s / other.steady_bytes_per_s).collect()
    }
}

/// Payload that the link can carry, in bytes per second.
pub fn payload_rate(profile: &Profile) -> anyhow::Result<f64> {
    let rate = profile.rate.context("a link without a rate has nothing to be compared with")?;
    Ok(rate.payload_bit_per_s() as f64 / 8.0)
}

/// Measures all rows, alternating, and prints each run and then the table.
pub fn measure(name: &str, profile: &Profile, course: &Course, rows: &mut [Row]) -> anyhow::Result<()> {
    let rate = payload_rate(profile)?;
    let volume = course.volume(rate);
    println!("\n{name}: {profile}");
    println!(
        "  goodput: payload from second {} on, of {:.0} s; of the payload rate. Total: until {:.0} MB had come",
        course.steady_from.as_secs_f64(),
        course.time.as_secs_f64(),
        volume as f64 / 1e6,
    );
    for repeat in 1..=course.repeats {
        for row in &mut *rows {
            let measured = run(profile, course, &row.thing, rate).context(row.name)?;
            println!("  {repeat} {:<26} {}", row.name, describe(&measured, rate));
            row.all.push(measured);
        }
    }
    println!(
        "  {:<28} {:>22} {:>22} {:>20}",
        "median (least-most)", "goodput, Mbit/s", "of the rate, %", "total, s"
    );
    for row in &*rows {
        let goodputs = row.goodputs();
        let totals: Repeats = row.all.iter().map(|one| one.total_s.unwrap_or(f64::INFINITY)).collect();
        println!(
            "  {:<28} {:>22} {:>22} {:>20}",
            row.name,
            goodputs.show(8e-6, 0),
            goodputs.show(100.0 / rate, 1),
            totals.show(1.0, 2),
        );
    }
    Ok(())
}

fn describe(measured: &Measured, rate: f64) -> String {
    let mbit: Vec<_> = measured.per_second.iter().map(|b| format!("{:.0}", *b as f64 * 8e-6)).collect();
    let lanes = if measured.lanes > 0 { format!("{} lanes; ", measured.lanes) } else { String::new() };
    format!(
        "{:>5.1} %; {lanes}{} packets found the queue full; load {}; Mbit/s of each second: {}",
        measured.steady_bytes_per_s / rate * 100.0,
        measured.drops,
        load_average(),
        mbit.join(" ")
    )
}

fn run(profile: &Profile, course: &Course, thing: &Thing, rate: f64) -> anyhow::Result<Measured> {
    let network = Link::builder().hosts(HOSTS).profile(*profile).build()?;
    let (series, lanes) = match thing {
        Thing::Ours(manner) => {
            // A little longer: its clock starts before the first byte comes.
            let manner = Manner { amount: Amount::Time(course.time + 2 * profile.rtt), ..manner.clone() };
            let outcome = transfer(Place::Hosts(&network), &manner, rate)?;
            (outcome.received.series(), outcome.sent.lanes)
        }
        Thing::Iperf(streams) => (iperf::run(&network, *streams, course.time)?, 0),
    };
    Ok(Measured { lanes, ..figures(&series, course, course.volume(rate), &network) })
}

fn figures(series: &Series, course: &Course, volume: u64, network: &Network) -> Measured {
    // The end of a transfer is not its steady state.
    let until = course.time.min(series.last());
    Measured {
        steady_bytes_per_s: series.rate(course.steady_from, until),
        total_s: series.time_of(volume).map(|time: Duration| time.as_secs_f64()),
        per_second: series.per_second(),
        lanes: 0,
        drops: network.counters().iter().map(|(_, _, seen)| seen.dropped_queue).sum(),
    }
}
