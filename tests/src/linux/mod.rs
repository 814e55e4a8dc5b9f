//! A real Linux guest: Debian's cloud kernel, a static busybox and one script.
//!
//! The parts are unpacked by `tests/run` into `$HIKYAKU_LINUX` (default: `linux/` in the tests' cache); the
//! initramfs is made here. The guest has no disk and no network: its state is all in RAM. It beats like the bare-metal
//! guest (`hb=… bad=…`), see `init.sh`.

mod cpio;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::machine;

/// RAM the guest is given; it boots with half of it.
pub const MEMORY_MIB: u32 = 256;

/// The kernel and an initramfs, ready for QEMU's `-kernel` and `-initrd`.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Damage a file after this many writes, to show that the guest notices.
    pub corrupt_after_writes: Option<u32>,
}

impl LinuxGuest {
    /// Makes the initramfs in `scratch`. `Ok(None)` when the parts have not been unpacked on this machine.
    pub fn prepare(scratch: &Path) -> io::Result<Option<LinuxGuest>> {
        let parts = machine::linux_parts();
        let (kernel, busybox) = (parts.join("vmlinuz"), parts.join("busybox"));
        if !kernel.exists() || !busybox.exists() {
            return Ok(None);
        }
        let mut archive = cpio::Archive::default();
        archive.directory("bin");
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("bin/busybox", 0o755, &std::fs::read(busybox)?);
        archive.file("init", 0o755, include_bytes!("init.sh"));
        let initramfs = scratch.join("initramfs.cpio");
        std::fs::write(&initramfs, archive.finish())?;
        Ok(Some(LinuxGuest { kernel, initramfs, corrupt_after_writes: None }))
    }

    /// `-kernel`, `-initrd` and `-append`. The destination's QEMU must be started with the same.
    pub fn qemu_arguments(&self) -> Vec<OsString> {
        vec![
            "-kernel".into(),
            self.kernel.clone().into(),
            "-initrd".into(),
            self.initramfs.clone().into(),
            "-append".into(),
            self.command_line().into(),
        ]
    }

    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    pub fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    pub fn command_line(&self) -> String {
        let mut line = String::from("console=ttyS0 quiet panic=-1");
        if let Some(writes) = self.corrupt_after_writes {
            line.push_str(&format!(" corrupt={writes}"));
        }
        line
    }
}
