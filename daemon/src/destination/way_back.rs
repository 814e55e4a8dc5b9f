//! What the waiting QEMU says on its stream's way back.
//!
//! The socket is the one that another thread fills. Whoever watches a socket for both directions is woken each time QEMU
//! has read some of what it is given, thousands of times per second, and has nothing to do then: this watches for what is to
//! be read alone.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use tokio::io::{Interest, unix::AsyncFd};

pub struct WayBack(AsyncFd<UnixStream>);

impl WayBack {
    pub fn new(socket: UnixStream) -> io::Result<WayBack> {
        socket.set_nonblocking(true)?;
        // SAFETY: the socket is open and owned by the `AsyncFd` until both end, and a `UnixStream` always gives the same
        // descriptor.
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(WayBack(watched?))
    }

    /// At least one byte; none at the end. May be dropped at any time without losing any.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |mut socket| socket.read(buffer)).await
    }

    /// Ends both directions, also for whoever holds the socket besides.
    pub fn shutdown(&self) {
        // Only a socket that has ended refuses.
        let _ = self.0.get_ref().shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    fn sleeps() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn qemu_reading_wakes_nobody_and_what_it_says_is_heard() {
        const TIMES: u64 = 2000;
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let mut write = ours.try_clone().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _within = runtime.enter();
        let back = WayBack::new(ours).unwrap();
        let qemu = std::thread::spawn(move || {
            let mut taken = [0; 4096];
            for _ in 0..TIMES {
                write.write_all(&[7; 4096]).unwrap();
                qemus.read_exact(&mut taken).unwrap();
                std::thread::sleep(Duration::from_micros(50));
            }
            qemus.write_all(b"pong").unwrap();
        });
        let before = sleeps();
        let mut heard = [0; 16];
        let len = runtime.block_on(back.read(&mut heard)).unwrap();
        let slept = sleeps() - before;
        assert_eq!(&heard[..len], b"pong");
        assert!(slept < TIMES / 10, "woken {slept} times for {TIMES} reads");
        qemu.join().unwrap();
        assert_eq!(runtime.block_on(back.read(&mut heard)).unwrap(), 0, "the end");
    }
}
