//! One run: new hosts, a new guest, one move, and everything that is seen of it.
//!
//! Both QEMUs run inside the hosts, whoever moves the guest, and the move begins at the same age of the guest, so its memory and
//! the phase of its bursts are the same for all. Nothing outlives the run, however it ends.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::matrix::Cell;
use super::peer::{Carried, HOSTS, Peer, Whereabouts};
use super::progress::Progress;
use super::record::Figures;
use crate::floor::Content;
use crate::guest::{GuestSpec, Qemu};
use crate::link::Link;
use crate::travel::{Seen, hear};

const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// The guest has worked for so long, by its own clock, when it is asked to move: a whole number of the bursts' periods.
const AGE_MS: u64 = 2000;
const AGE_LIMIT: Duration = Duration::from_secs(60);
/// Twice through all memory, on a machine that does other work too.
const SWEEP_LIMIT: Duration = Duration::from_secs(240);
/// What the guest checks of its memory in a second: what one of 512 MiB does by itself, and a smaller one all of it.
const SWEEP_MIB_PER_S: u32 = 128;
const PAGES_PER_MIB: u32 = 256;

pub fn run(
    cell: &Cell,
    peer: &dyn Peer,
    memory_mib: u32,
    limit: Duration,
    progress: &Progress,
) -> anyhow::Result<Figures> {
    let network = Link::builder().hosts(HOSTS).profile(*cell.profile()).build()?;
    let mut carrier = peer.set_up(&network)?;
    let mut spec = GuestSpec::new(memory_mib, cell.load().clone());
    spec.load.sweep_pages_per_s = Some(memory_mib.min(SWEEP_MIB_PER_S) * PAGES_PER_MIB);
    let [tokyo, seattle] = HOSTS.map(|name| network.host(name));
    let mut here = Qemu::start_with(&spec, |program| tokyo.command(program))?;
    let mut there = Qemu::await_migration_with(&spec, "defer", |program| seattle.command(program))?;
    let during = |what: &str| format!("{cell} {}: {what}", peer.name());
    progress.during(&during("the guest fills its memory"), &network, || -> anyhow::Result<()> {
        let old_ms = here.wait_ready(BOOT_LIMIT)?.fill_ms + AGE_MS;
        carrier.prepare(&mut here, &mut there)?;
        here.wait_heartbeat(AGE_LIMIT, "the age to move", |beat| beat.guest_ms >= old_ms)?;
        Ok(())
    })?;

    let cpu_before = carrier.cpu_time()?;
    let crossed_bytes = network.wire_bytes();
    let [from, to] = HOSTS;
    network.take_longest_queue(from, to);
    let moving = during("moving");
    let carried = progress
        .during(&moving, &network, || carrier.carry(&mut here, &mut there, limit))
        .context("moving")?;
    let wire_bytes = network.wire_bytes() - crossed_bytes;
    let queue = network.take_longest_queue(from, to);
    let daemon_cpu_s = match (cpu_before, carrier.cpu_time()?) {
        (Some(before), Some(after)) => {
            Some([0, 1].map(|side| after[side].saturating_sub(before[side]).as_secs_f64()))
        }
        _ => None,
    };

    let examine = during("all memory is checked");
    let seen = progress.during(&examine, &network, || match carried.guest {
        Whereabouts::There => there_seen(&mut here, &mut there, &carried),
        Whereabouts::Here => here_seen(&mut here, &mut there, &carried),
    })?;
    let in_time = carried.guest == Whereabouts::There && carried.ended - carried.begun <= limit;
    let total = if in_time { carried.ended - carried.begun } else { limit };
    let floor = seen.content.and_then(|content| content.floor(cell.profile()));
    Ok(Figures {
        arrived: in_time,
        total_s: total.as_secs_f64(),
        gap_s: seen.gap.filter(|_| in_time).map(|gap| gap.as_secs_f64()),
        wire_bytes,
        queue_s: queue.as_secs_f64(),
        writes_per_s: seen.writes_per_s,
        bad_pages: seen.bad,
        lost_beats: seen.lost,
        two_ran: seen.two_ran,
        content_bytes: seen.content.map(|content| content.compressed_bytes),
        floor_s: floor.map(|floor| floor.as_secs_f64()),
        score: floor.filter(|_| in_time).map(|floor| total.as_secs_f64() / floor.as_secs_f64()),
        daemon_cpu_s,
        congestion: carrier.congestion(&network).unwrap_or_else(|_| "unknown".to_owned()),
        said: carried.said,
    })
}

/// What was found out about the guest after the move.
struct Examined {
    gap: Option<Duration>,
    writes_per_s: f64,
    bad: u64,
    lost: u64,
    two_ran: bool,
    content: Option<Content>,
}

/// Of a guest that arrived. Its memory is read while it stands, as it came; then it checks all of it itself.
fn there_seen(here: &mut Qemu, there: &mut Qemu, carried: &Carried) -> anyhow::Result<Examined> {
    let heard = hear(there)?;
    let seen = Seen::of(here, there, carried.begun, carried.ended - carried.begun, heard)?;
    there.stop()?;
    let content = Content::of(there)?;
    there.cont()?;
    Ok(Examined {
        gap: Some(seen.gap),
        writes_per_s: seen.writes_per_s,
        bad: seen.bad.max(there.wait_swept(SWEEP_LIMIT)?.bad),
        lost: seen.lost.len() as u64,
        two_ran: seen.two_ran,
        content: Some(content),
    })
}

/// Of a guest that stayed: it must go on.
fn here_seen(here: &mut Qemu, there: &mut Qemu, carried: &Carried) -> anyhow::Result<Examined> {
    let over = Instant::now();
    hear(here).context("the guest that was not moved")?;
    let status = here.status()?;
    anyhow::ensure!(status == "running", "the guest that was not moved is {status}");
    Ok(Examined {
        gap: None,
        writes_per_s: here.console().writes_per_s(carried.begun..carried.ended.min(over)),
        bad: here.wait_swept(SWEEP_LIMIT)?.bad,
        lost: 0,
        // A QEMU that is gone runs no guest.
        two_ran: there.status().is_ok_and(|status| status == "running"),
        content: None,
    })
}
