//! Time-outs that count only time in which this process ran.
//!
//! A daemon that is stopped for a while (SIGSTOP, a debugger, a host that suspends) finds all its time-outs over when
//! it goes on, and the answers they were for beside them, unread. None of those who were asked was slow.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// A time-out is waited for in so many parts.
const PARTS: u32 = 8;

/// It took longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue;

/// Waits for `what` for `limit`. A part of it that took twice as long as it should was not waited, and is waited again.
pub async fn within<F: Future>(limit: Duration, what: F) -> Result<F::Output, Overdue> {
    let mut what = std::pin::pin!(what);
    let part = limit / PARTS;
    let mut waited = 0;
    while waited < PARTS {
        let began = Instant::now();
        if let Ok(output) = timeout(part, &mut what).await {
            return Ok(output);
        }
        if began.elapsed() < 2 * part + GRAIN {
            waited += 1;
        }
    }
    Err(Overdue)
}

/// Timers are not finer, and a busy machine is later than that.
const GRAIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;

    const LIMIT: Duration = Duration::from_millis(400);

    /// An answer that comes in time, read and passed on by a task of its own, as a client does it.
    async fn answered_while_nobody_looks() -> impl Future<Output = u8> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move { tell.send(ours.read_u8().await.unwrap()) });
        tokio::task::yield_now().await;
        theirs.write_u8(7).await.unwrap();
        // The whole runtime: nothing in this process runs meanwhile.
        tokio::spawn(async { std::thread::sleep(3 * LIMIT) });
        async move {
            let _open = theirs;
            told.await.unwrap()
        }
    }

    #[tokio::test]
    async fn what_came_while_the_process_stood_still_is_in_time() {
        assert_eq!(within(LIMIT, answered_while_nobody_looks().await).await, Ok(7));
        // What this is for.
        let late = timeout(LIMIT, answered_while_nobody_looks().await).await;
        assert!(late.is_err(), "tokio's own would do");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_overdue_in_time() {
        let began = Instant::now();
        assert_eq!(within(LIMIT, std::future::pending::<()>()).await, Err(Overdue));
        assert!((LIMIT..LIMIT + 10 * Duration::from_millis(PARTS.into())).contains(&began.elapsed()));
    }

    #[tokio::test]
    async fn no_time_at_all_is_none() {
        assert_eq!(within(Duration::ZERO, async { 1 }).await, Ok(1));
        assert_eq!(within(Duration::ZERO, std::future::pending::<()>()).await, Err(Overdue));
    }
}
