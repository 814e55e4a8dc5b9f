//! Memory that stays where it is while something is measured.
//!
//! A virtual machine may give memory that is free back to its host (free page reporting), two seconds after it became free. Whoever
//! touches it next waits until the host has found and cleared it anew: 8 us for each 4 KiB were seen, where a machine of its own clears them
//! in 0.4. A guest that arrives is nothing but memory touched for the first time, so a move would be measured by what its host
//! does. [`Backed`] keeps the machine's free memory from being given back, and has the host find it before.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE_BYTES: usize = 4096;

/// The least order of free memory that is reported. One above the largest order that there is: none.
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
const NEVER: &str = "11";

/// Holds for as long as it lives, or its process does. On a machine that gives nothing back, or to who may not say, it does nothing.
#[derive(Debug)]
pub struct Backed {
    _putting_back: Option<PuttingBack>,
}

impl Backed {
    /// `bytes` are touched once, as far as half of what is free goes.
    pub fn hold(bytes: usize) -> Backed {
        let order = Path::new(ORDER);
        let none = Backed { _putting_back: None };
        let Some(before) = reported_order(order) else { return none };
        let Ok(putting_back) = PuttingBack::of(order, &before) else { return none };
        if fs::write(order, NEVER).is_err() {
            return none;
        }
        let bytes = bytes.min(available_bytes() / 2);
        println!(
            "this machine gives free memory back to its host: not while it is measured; {} MiB are touched before",
            bytes >> 20
        );
        if let Err(error) = touch(bytes) {
            eprintln!("not touched: {error}");
        }
        Backed { _putting_back: Some(putting_back) }
    }
}

/// A process that writes a file when this value is dropped, or this process ended however it did: then its standard input closes.
#[derive(Debug)]
struct PuttingBack(Child);

impl PuttingBack {
    fn of(path: &Path, content: &str) -> io::Result<PuttingBack> {
        let mut command = Command::new("sh");
        command.args(["-c", r#"read -r _; printf '%s\n' "$1" > "$2""#, "put-back", content]).arg(path);
        // Whoever interrupts this process from a terminal does not mean that one.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map(PuttingBack)
    }
}

impl Drop for PuttingBack {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if !self.0.wait().is_ok_and(|status| status.success()) {
            eprintln!("{ORDER} is not what it was");
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
    fn what_was_changed_is_put_back_also_by_the_end_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("order");
        let content = || fs::read_to_string(&path).unwrap_or_default();
        drop(PuttingBack::of(&path, "9").unwrap());
        assert_eq!(content(), "9\n");
        fs::write(&path, "11").unwrap();
        let mut putting_back = PuttingBack::of(&path, "9").unwrap();
        // As the kernel does for a process that is gone.
        drop(putting_back.0.stdin.take());
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while content() != "9\n" && std::time::Instant::now() < patience {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(content(), "9\n");
    }

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
