//! `reaper PROGRAM ARGUMENT…`: runs it, and buries whatever it leaves behind.
//!
//! libvirt waits until a QEMU that it ended is buried. That is for PID 1 to do, and where that is no `init` it may
//! take seconds, which are then measured as libvirt's.

use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: reaper PROGRAM ARGUMENT…");
        return ExitCode::from(2);
    };
    match run(Command::new(&program).args(words)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("reaper: {}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}

/// Until the program itself has ended.
fn run(command: &mut Command) -> std::io::Result<u8> {
    prctl::set_child_subreaper(true)?;
    hikyaku_lab::link::die_with_parent(command);
    let child = command.spawn()?;
    let child = Pid::from_raw(child.id() as i32);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code as u8),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return Ok(1),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
