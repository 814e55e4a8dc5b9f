//! Memory that stays where it is while something is measured.
//!
//! A virtual machine may give memory that is free back to its host (free page reporting), two seconds after it became free. Whoever
//! touches it next waits until the host has found and cleared it anew: 8 us for each 4 KiB were seen, where a machine of its own clears them
//! in 0.4. A guest that arrives is nothing but memory touched for the first time, so a move would be measured by what its host
//! does. [`Backed`] keeps the machine's free memory from being given back, and has the host find it before.

#![allow(unsafe_code)]

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE_BYTES: usize = 4096;

/// The least order of free memory that is reported. One above the largest order that there is: none.
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
const NEVER: &str = "11";

/// Holds for as long as it lives. On a machine that gives nothing back, or to who may not say, it does nothing.
#[derive(Debug)]
pub struct Backed {
    before: Option<String>,
}

impl Backed {
    /// `bytes` are touched once, as far as half of what is free goes.
    pub fn hold(bytes: usize) -> Backed {
        let Some(before) = reported_order(Path::new(ORDER)) else { return Backed { before: None } };
        if fs::write(ORDER, NEVER).is_err() {
            return Backed { before: None };
        }
        let bytes = bytes.min(available_bytes() / 2);
        println!(
            "this machine gives free memory back to its host: not while it is measured; {} MiB are touched before",
            bytes >> 20
        );
        if let Err(error) = touch(bytes) {
            eprintln!("not touched: {error}");
        }
        Backed { before: Some(before) }
    }
}

impl Drop for Backed {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(ORDER, before)
        {
            eprintln!("{ORDER} was {before}: {error}");
        }
    }
}

/// In huge pages, which guests have: small ones would come from elsewhere.
fn touch(bytes: usize) -> nix::Result<()> {
    let Some(length) = NonZeroUsize::new(bytes) else { return Ok(()) };
    let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: new memory of this length, at no place of our choice, that nobody else knows of and that is given back below.
    unsafe {
        let memory = mmap_anonymous(None, length, rights, flags)?;
        let _ = madvise(memory, bytes, MmapAdvise::MADV_HUGEPAGE);
        for offset in (0..bytes).step_by(PAGE_BYTES) {
            memory.as_ptr().cast::<u8>().add(offset).write_volatile(1);
        }
        munmap(memory, bytes)
    }
}

/// `None`: nothing is reported.
fn reported_order(parameter: &Path) -> Option<String> {
    let order = fs::read_to_string(parameter).ok()?.trim().to_owned();
    (order.parse::<u32>().ok()? < NEVER.parse().ok()?).then_some(order)
}

fn available_bytes() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_reports_free_memory_is_kept_from_it() {
        let directory = tempfile::tempdir().unwrap();
        let order = |text: &str| {
            let path = directory.path().join("order");
            fs::write(&path, text).unwrap();
            reported_order(&path)
        };
        assert_eq!(order("9\n").as_deref(), Some("9"));
        assert_eq!(order("11\n"), None);
        assert_eq!(order("\n"), None);
        assert_eq!(reported_order(&directory.path().join("none")), None);
        assert!(available_bytes() > 0);
        touch(3 * PAGE_BYTES + 1).unwrap();
    }
}
