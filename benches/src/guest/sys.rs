//! Starting a process that ends with this one, whatever ends this one.
//!
//! Linux ends such a child when the *thread* that started it ends. Handles on guests travel between threads, so one
//! thread, which lives as long as the process, starts them all.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

type Order = (Command, Sender<io::Result<Child>>);

/// Spawns `command`. A wrapper that forks, or that changes credentials, takes the tie away: the handle's drop remains.
pub fn spawn_tied(mut command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    // SAFETY: between fork and exec only a system call is made; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let starter = STARTER.get_or_init(|| {
        let (orders, incoming) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in incoming {
                // Whoever ordered it is waiting.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, done) = mpsc::channel();
    let sent = starter.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply));
    let gone = || io::Error::other("the thread that starts processes is gone");
    sent.map_err(|_| gone())?;
    done.recv().map_err(|_| gone())?
}
