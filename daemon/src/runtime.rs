//! How the daemon's one control thread runs: on io_uring where the kernel allows it, on epoll elsewhere.
//!
//! All control code uses tokio's types, so it does not see the difference.

use std::future::Future;

/// Runs `main` to its end, with `spawn_local` available in it.
pub fn block_on<F: Future>(uring: bool, main: F) -> std::io::Result<F::Output> {
    if uring {
        return Ok(tokio_uring::start(main));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, main))
}

/// Whether the kernel lets this process have an io_uring (RHEL 9's default and many containers' seccomp do not).
pub fn uring_is_allowed() -> bool {
    io_uring::IoUring::new(1).is_ok()
}
