//! The machine a guest runs on: QEMU's command line.
//!
//! Source and destination of a migration are made from the same spec; only how they start differs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::load::Load;
use super::locate::QemuBinary;

/// The firmware switches kvmclock on and never off, and KVM then writes into a page of memory whenever it likes: also at the
/// destination of a move, before the guest has run there. Without it a stopped guest's memory stands still.
const KVM_CPU: [&str; 2] = ["-cpu", "qemu64,kvmclock=off"];

#[derive(Clone, Debug)]
pub struct GuestSpec {
    pub memory_mib: u32,
    /// 8 KiB more. A RAM block whose length is no multiple of 64 pages takes QEMU's slow way through the dirty bitmap,
    /// which under TCG before 9.0 is the one that loses no writes (`docs/qemu.md`).
    pub uneven: bool,
    pub load: Load,
    /// `q35`, `pc`, or a versioned machine type: across QEMU versions both sides must name the same one.
    pub machine: String,
    /// `tcg` or `kvm`.
    pub accel: String,
    /// `std`, or any other of QEMU's; `none` for a machine without video memory.
    pub vga: String,
    /// After everything else; QEMU takes the last of repeated options, so `-kernel` here is another guest.
    pub extra_args: Vec<OsString>,
    /// `None`: whatever [`QemuBinary::find`] finds.
    pub qemu: Option<QemuBinary>,
}

/// The files of one QEMU process; all of them in a directory of its own.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub kernel: PathBuf,
    pub console: PathBuf,
    /// Our own QMP connection.
    pub control: PathBuf,
    /// Left free for a daemon.
    pub qmp: PathBuf,
    pub stderr: PathBuf,
}

impl Files {
    pub fn inside(folder: &Path) -> Files {
        Files {
            kernel: folder.join("guest.elf"),
            console: folder.join("console.sock"),
            control: folder.join("control.sock"),
            qmp: folder.join("qmp.sock"),
            stderr: folder.join("stderr"),
        }
    }
}

impl GuestSpec {
    /// A q35 under TCG with standard video memory: runs everywhere.
    pub fn new(memory_mib: u32, load: Load) -> GuestSpec {
        GuestSpec {
            memory_mib,
            uneven: false,
            load,
            machine: "q35".into(),
            accel: "tcg".into(),
            vga: "std".into(),
            extra_args: Vec::new(),
            qemu: None,
        }
    }

    pub fn machine(mut self, machine: &str) -> GuestSpec {
        self.machine = machine.into();
        self
    }

    pub fn accel(mut self, accel: &str) -> GuestSpec {
        self.accel = accel.into();
        self
    }

    pub fn qemu(mut self, qemu: QemuBinary) -> GuestSpec {
        self.qemu = Some(qemu);
        self
    }

    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> GuestSpec {
        self.extra_args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(super) fn arguments(&self, files: &Files, qemu: &QemuBinary, start: &[&str]) -> Vec<OsString> {
        let socket = |path: &Path| format!("path={},server=on,wait=off", path.display());
        let mut arguments: Vec<OsString> = Vec::new();
        for folder in &qemu.data {
            arguments.push("-L".into());
            arguments.push(folder.into());
        }
        let own = [
            "-nodefaults".into(),
            "-no-user-config".into(),
            "-display".into(),
            "none".into(),
            "-machine".into(),
            self.machine.clone(),
            "-accel".into(),
            self.accel.clone(),
            "-m".into(),
            format!("{}K", u64::from(self.memory_mib) * 1024 + if self.uneven { 8 } else { 0 }),
            "-vga".into(),
            self.vga.clone(),
            "-kernel".into(),
            files.kernel.display().to_string(),
            "-append".into(),
            self.load.command_line(self.memory_mib),
            "-chardev".into(),
            format!("socket,id=console,{}", socket(&files.console)),
            "-serial".into(),
            "chardev:console".into(),
            "-chardev".into(),
            format!("socket,id=control,{}", socket(&files.control)),
            "-mon".into(),
            "chardev=control,mode=control".into(),
            "-chardev".into(),
            format!("socket,id=qmp,{}", socket(&files.qmp)),
            "-mon".into(),
            "chardev=qmp,mode=control".into(),
        ];
        arguments.extend(own.into_iter().map(OsString::from));
        if self.accel == "kvm" {
            arguments.extend(KVM_CPU.map(OsString::from));
        }
        arguments.extend(start.iter().map(OsString::from));
        arguments.extend(self.extra_args.iter().cloned());
        arguments
    }
}
