//! The part `memory`: what a link costs its two ends in memory, the kernel's for its sockets included.
//!
//! Of each end: the largest resident size less the one before the link was opened, and the largest sum of what its sockets
//! held (`ss -m`, ten times a second). The two peaks need not have been at the same moment; their sum is an upper bound.

use std::process::Stdio;
use std::time::Duration;

use super::course::{CONTROLS, Control, Course, load_average};
use super::pair::{HOSTS, Pair, Place, need};
use super::plan::{Amount, Manner};
use super::rows::payload_rate;
use crate::link::cli::named;
use crate::link::{Host, Link};
use crate::verdict::{Bound, Repeats, Verdict};

const SAMPLE: Duration = Duration::from_millis(100);
/// Of bandwidth × round trip.
const OF_BDP: f64 = 2.0;
const BESIDE_BYTES: f64 = (64 << 20) as f64;
const MIB: f64 = (1 << 20) as f64;
const ROLES: [&str; 2] = ["receiver", "sender"];

pub fn memory(links: &[String], course: &Course) -> anyhow::Result<Vec<Verdict>> {
    need("ss", "iproute2", "what sockets hold in memory")?;
    println!("\nmemory per end of a link: peak beyond what there was before it, and its sockets'");
    let mut verdicts = Vec::new();
    for (name, control) in links.iter().flat_map(|name| CONTROLS.iter().map(move |control| (name, control))) {
        let profile = named(name).map_err(anyhow::Error::msg)?;
        let rate = payload_rate(&profile)?;
        let name = format!("{name}{}", control.name);
        let limit = OF_BDP * rate * profile.rtt.as_secs_f64() + BESIDE_BYTES;
        let mut totals = [Repeats::default(), Repeats::default()];
        for repeat in 1..=course.repeats {
            let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
            let amount = Amount::Time(course.time + 2 * profile.rtt);
            let manner = manner(amount, control, course);
            let mut pair = Pair::start(Place::Hosts(&network), &manner, rate)?;
            pair.wait_for_start()?;
            let mut sockets_bytes = [0; 2];
            while pair.is_running() {
                for (peak, host) in sockets_bytes.iter_mut().zip(HOSTS) {
                    *peak = (*peak).max(sockets(network.host(host))?);
                }
                std::thread::sleep(SAMPLE);
            }
            let outcome = pair.finish()?;
            let usages = [outcome.received.usage, outcome.sent.usage];
            for (role, usage) in usages.iter().enumerate() {
                let process = usage.rss_peak_bytes.saturating_sub(usage.rss_before_bytes);
                let all = (process + sockets_bytes[role]) as f64;
                println!(
                    "  {repeat} {name}, {:<9} process {:>6.1} MiB, sockets {:>6.1}, together {:>6.1} of {:.1}; load {}",
                    ROLES[role],
                    process as f64 / MIB,
                    sockets_bytes[role] as f64 / MIB,
                    all / MIB,
                    limit / MIB,
                    load_average(),
                );
                totals[role].add(all);
            }
        }
        for (role, totals) in ROLES.iter().zip(totals) {
            let what = format!("{name}: memory of the {role} for the link");
            verdicts.push(Verdict::new(what, totals.median() / MIB, Bound::AtMost(limit / MIB), " MiB"));
        }
    }
    Ok(verdicts)
}

fn manner(amount: Amount, control: &Control, course: &Course) -> Manner {
    let congestion = control.congestion();
    Manner { amount, own_memory: true, congestion, lanes: course.lanes, ..Manner::default() }
}

/// Bytes of memory that the host's TCP sockets hold now.
fn sockets(host: &Host) -> anyhow::Result<u64> {
    let output = host.command("ss").args(["-tmnOH"]).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(socket_bytes).sum())
}

/// Of `skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)`: received and not read, kept ready, and to be sent or acknowledged.
fn socket_bytes(line: &str) -> Option<u64> {
    let fields = line.split_once("skmem:(")?.1.split_once(')')?.0;
    let value = |name: &str| {
        fields.split(',').find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    Some(value("r") + value("f") + value("w"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_s_memory_is_what_it_holds_and_not_what_it_may() {
        let line =
            "ESTAB 0 0 198.18.0.2:1 198.18.0.1:4707 skmem:(r10,rb131072,t5,tb87040,f200,w3000,o40,bl0,d7)";
        assert_eq!(socket_bytes(line), Some(3210));
        assert_eq!(socket_bytes("ESTAB 0 0"), None);
    }
}
