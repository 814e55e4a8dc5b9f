//! Whether a guest that comes to the door is one that can be taken.

use super::{Armed, Arrival};
use crate::daemon::Daemon;
use crate::id::Id;
use crate::protocol::Refusal;
use crate::records::{Record, RecordError};
use hikyaku_engine::{PAGE_BYTES, ReceiverConfig};

/// Before anything is touched: would this guest fit?
pub fn check(armed: &Armed, arrival: &Arrival) -> Result<(), (Refusal, String)> {
    let (hello, here) = (&arrival.hello, &armed.guest.facts);
    if let Some(from) = &armed.arguments.from
        && from != arrival.peer.as_str()
    {
        return Err((Refusal::NotAllowed, format!("\"{}\" is awaited from another peer", hello.guest)));
    }
    let there = &hello.qemu;
    if there.machine != here.machine {
        let text =
            format!("the guest's machine type is {}, the waiting QEMU's is {}", there.machine, here.machine);
        return Err((Refusal::Incompatible, text));
    }
    if there.ram_bytes != here.ram_bytes {
        let mib = |bytes: u64| bytes as f64 / 1048576.0;
        let text = format!(
            "the guest has {} MiB of RAM, the waiting QEMU {} MiB",
            mib(there.ram_bytes),
            mib(here.ram_bytes)
        );
        return Err((Refusal::Incompatible, text));
    }
    Ok(())
}

/// Nothing is on record of it, and nothing under way.
pub fn is_new(
    daemon: &Daemon,
    id: Id,
    record: Result<Option<Record>, RecordError>,
) -> Result<(), (Refusal, String)> {
    match record {
        // After the disk was read: somebody may have begun it meanwhile.
        Ok(None) if daemon.is_receiving(id) => {
            Err((Refusal::Other, "a migration of this id is under way here".into()))
        }
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err((Refusal::Other, "a migration of this id was here before".into())),
        Err(error) => Err((Refusal::Other, error.to_string())),
    }
}

/// RAM's pages, and those of all other memory that QEMU sends: frame buffers, ROMs. The peer says how many there are, and each costs
/// four bytes here.
pub fn pages_at_most(ram_bytes: u64) -> u32 {
    const OTHERS_BYTES: u64 = 4 << 30;
    let pages = ram_bytes.saturating_add(OTHERS_BYTES) / PAGE_BYTES as u64;
    u32::try_from(pages).unwrap_or(u32::MAX).min(ReceiverConfig::default().max_pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_claim_many_times_the_memory_that_the_waiting_qemu_has() {
        let gib = |gib: u64| gib << 30;
        assert_eq!(pages_at_most(gib(1)), 5 << 18);
        assert_eq!(pages_at_most(gib(1024)), 1 << 28);
        assert_eq!(pages_at_most(u64::MAX), 1 << 28);
    }
}
