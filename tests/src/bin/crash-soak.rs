//! `crash-soak MINUTES [SEED]`: the table of faults at random, for so long; prints how often each was survived. `cargo lab soak --minutes N` runs it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hikyaku_tests::crash::{
    CUT_OFF, DEAF, DISKS, KILLED, KILLED_SAFE, MUTE, Row, SAFE, STANDING_STILL, by_name, rig, survive,
};
use hikyaku_tests::rig::{Rig, Side};

/// A fault, and how the guest is to be handed over.
type Fault = ((Side, Row), &'static [&'static str]);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments = arguments.iter().map(|argument| argument.parse::<u64>().ok());
    let (Some(Some(minutes)), seed, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: crash-soak MINUTES [SEED]");
        return ExitCode::from(2);
    };
    let seed = seed.flatten().unwrap_or_else(|| u64::from(std::process::id()) ^ now_ns());
    println!("seed {seed}");
    soak(Duration::from_secs(minutes * 60), seed)
}

fn soak(time: Duration, seed: u64) -> ExitCode {
    let faults = faults();
    let mut survived: BTreeMap<String, u32> = faults.iter().map(|fault| (name(fault), 0)).collect();
    let mut failed = Vec::new();
    let begun = Instant::now();
    let mut x = seed | 1;
    let mut current: Option<Rig> = None;
    while begun.elapsed() < time {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // Those that were survived the least often, in an order of chance.
        let least = survived.values().copied().min().unwrap_or_default();
        let open: Vec<_> = faults.iter().filter(|fault| survived[&name(fault)] <= least + 1).collect();
        let fault = open[(x >> 16) as usize % open.len()];
        let Some(mut rig) = current.take().or_else(rig) else { return ExitCode::from(2) };
        match catch_unwind(AssertUnwindSafe(|| survive(&mut rig, fault.0, fault.1))) {
            Ok(()) => {
                *survived.entry(name(fault)).or_default() += 1;
                current = Some(rig);
            }
            Err(_) => {
                println!("FAIL: {} (seed {seed}, after {:.0?})", name(fault), begun.elapsed());
                failed.push(name(fault));
            }
        }
    }
    println!("\n{:<60} survived", "fault");
    for (name, times) in &survived {
        println!("{name:<60} {times}");
    }
    let times = survived.values().sum::<u32>();
    let least = survived.values().copied().min().unwrap_or_default();
    println!(
        "\n{} faults, {times} times in {:.0?}, each at least {least} times; {} failed; seed {seed}",
        survived.len(),
        begun.elapsed(),
        failed.len()
    );
    failed.iter().for_each(|name| println!("FAIL: {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn faults() -> Vec<Fault> {
    let plain = [&KILLED[..], &STANDING_STILL, &CUT_OFF, &DEAF, &MUTE].concat();
    let plain = plain.into_iter().map(|row| (by_name(row), &[][..]));
    let safe = KILLED_SAFE.into_iter().map(|row| (by_name(row), SAFE));
    plain.chain(safe).chain(DISKS.into_iter().map(|fault| (fault, &[][..]))).collect()
}

fn name(((side, (point, what, _)), flags): &Fault) -> String {
    let side = if point.starts_with("record") { format!("{side:?} ").to_lowercase() } else { String::new() };
    let safe = if flags.is_empty() { "" } else { ", safe" };
    format!("{side}{point}: {what:?}{safe}").to_lowercase()
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64)
}
