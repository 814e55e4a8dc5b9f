//! Between a libvirt's socket and what carries its packets.
//!
//! ```text
//!  who calls ──packets──▶ up ──▶ who is called
//!     ▲  ◀───PONG──────────┘          keepalive is answered here, in both directions, and goes no further: it says that this
//!     └──packets──── down ◀─────┘     daemon is there, and a link that is down for a while is nobody's death
//! ```
//! **Finish** is the call by which the guest is let run at the destination. Once it may have arrived there, only its reply may end the caller's
//! connection: libvirt takes a connection that ends for a Finish that failed, and continues the guest at the source, whatever the destination
//! does. So the caller's socket is held until the reply is there, or somebody says that it need not be.

use hikyaku_qemu::libvirt::{Answer, Header, PONG, Part, Reader, RpcError, finish_is_cancelled, procedure};
use std::cell::Cell;
use std::future::Future;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedSender, channel};

/// Read at once.
const READ_BYTES: usize = 64 << 10;

/// What was seen to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// libvirt there is asked to prepare for the guest.
    Prepare,
    /// Likewise, with the guest's memory to come by these same packets.
    Tunnel,
    /// It is asked to let the guest run, or, `cancelled`, to end the QEMU that waited.
    Finish { cancelled: bool },
    /// It has answered that.
    Finished(Answer),
    /// It will not any more, by this way.
    Unanswered,
}

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("what libvirt says is not understood: {0}")]
    Rpc(#[from] RpcError),
    #[error("libvirt's connection: {0}")]
    Socket(#[from] io::Error),
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// libvirt closed its connection.
    ByLibvirt,
    /// What carries it ended, and libvirt's connection with it.
    ByCarrier,
}

/// Passes packets on until one of the two ends. `released` ends the wait for a reply that does not come.
pub async fn run(
    libvirt: UnixStream,
    carried: UnixStream,
    passed: UnboundedSender<Passed>,
    released: impl Future<Output = ()>,
) -> Result<Ended, TapError> {
    let (from_libvirt, to_libvirt) = libvirt.into_split();
    let (from_carried, to_carried) = carried.into_split();
    // Of more pings than that the first ones are answered.
    let ((pinged_below, pongs_below), (pinged_above, pongs_above)) = (channel(PINGS), channel(PINGS));
    let tap = Tap { passed, finish: Cell::new(None), answered: Notify::new(), gone: Notify::new() };
    let up = Way { from: from_libvirt, to: to_carried, pinged: pinged_below, pongs: pongs_above };
    let down = Way { from: from_carried, to: to_libvirt, pinged: pinged_above, pongs: pongs_below };
    // Whichever ends first ends the other one: both sockets are closed with it.
    tokio::select! {
        ended = tap.up(up) => ended.map(|()| Ended::ByLibvirt),
        ended = tap.down(down, released) => ended.map(|()| Ended::ByCarrier),
    }
}

const PINGS: usize = 4;

/// One direction.
struct Way {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    /// Where what comes here was sent from.
    pinged: Sender<()>,
    /// Where it goes to asks whether somebody is there.
    pongs: Receiver<()>,
}

impl Way {
    /// Until nothing more comes.
    async fn pass(
        &mut self,
        looks: impl Fn(&Header) -> bool,
        mut look: impl FnMut(&Header, &[u8]),
    ) -> Result<Reader, TapError> {
        let mut reader = Reader::default();
        let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
        loop {
            let got = tokio::select! {
                biased;
                // Not in the middle of a packet.
                Some(()) = self.pongs.recv(), if !reader.is_within() => {
                    self.write(&PONG).await;
                    continue;
                }
                read = self.from.read(&mut buffer) => match read {
                    Ok(0) => return Ok(reader),
                    Ok(got) => got,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(reader),
                    Err(error) => return Err(error.into()),
                },
            };
            reader.push(&buffer[..got], &looks, |part| match part {
                Part::Bytes(bytes) => out.extend_from_slice(bytes),
                Part::Packet(header, packet) => {
                    look(&header, packet);
                    out.extend_from_slice(packet);
                }
                Part::Ping => drop(self.pinged.try_send(())),
            })?;
            self.write(&out).await;
            out.clear();
        }
    }

    /// If nobody takes it the other direction ends, which says so; meanwhile who sends it is answered as before.
    async fn write(&mut self, bytes: &[u8]) {
        let _ = self.to.write_all(bytes).await;
    }
}

struct Tap {
    passed: UnboundedSender<Passed>,
    /// Of a Finish that may have arrived, and was not answered.
    finish: Cell<Option<u32>>,
    /// It is answered now.
    answered: Notify,
    /// Nobody waits for the answer any more.
    gone: Notify,
}

impl Tap {
    /// Until who calls is gone, and needs no answer any more.
    async fn up(&self, mut way: Way) -> Result<(), TapError> {
        let ended = way.pass(is_looked_at, |header, packet| self.called(header, packet)).await;
        if self.finish.get().is_none() {
            return ended.map(drop);
        }
        // The answer is still to be heard, whoever hears it: it says where the guest is.
        match ended {
            Ok(_) => self.gone.notify_one(),
            Err(error) => tracing::warn!(%error, "behind libvirt's Finish"),
        }
        self.answered.notified().await;
        Ok(())
    }

    fn called(&self, header: &Header, packet: &[u8]) {
        let what = if header.calls(procedure::FINISH) {
            let cancelled = finish_is_cancelled(packet);
            if !cancelled {
                self.finish.set(Some(header.serial));
            }
            Passed::Finish { cancelled }
        } else if header.calls(procedure::PREPARE) {
            Passed::Prepare
        } else {
            Passed::Tunnel
        };
        let _ = self.passed.send(what);
    }

    async fn down(&self, mut way: Way, released: impl Future<Output = ()>) -> Result<(), TapError> {
        let answered = |header: &Header| self.finish.get().and_then(|serial| header.answers(serial));
        let passed = way
            .pass(
                |header| answered(header).is_some(),
                |header, _| {
                    if let Some(answer) = answered(header) {
                        self.finish.set(None);
                        self.answered.notify_one();
                        let _ = self.passed.send(Passed::Finished(answer));
                    }
                },
            )
            .await;
        if self.finish.get().is_none() {
            return passed.map(drop);
        }
        let within = match &passed {
            Ok(reader) => reader.is_within(),
            Err(error) => {
                tracing::warn!(%error, "before the answer to libvirt's Finish");
                true
            }
        };
        let _ = self.passed.send(Passed::Unanswered);
        let mut released = std::pin::pin!(released);
        loop {
            tokio::select! {
                () = &mut released => return Ok(()),
                () = self.gone.notified() => return Ok(()),
                // A packet that was cut short is not completed any more, and nothing may stand within it.
                Some(()) = way.pongs.recv(), if !within => way.write(&PONG).await,
            }
        }
    }
}

fn is_looked_at(header: &Header) -> bool {
    [procedure::FINISH, procedure::PREPARE, procedure::PREPARE_TUNNEL].iter().any(|n| header.calls(*n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::sync::oneshot;
    use tokio::task::{JoinHandle, LocalSet};

    const PING: [u8; 28] = *b"\0\0\0\x1ckeep\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0";

    struct Rig {
        libvirt: UnixStream,
        carried: UnixStream,
        passed: UnboundedReceiver<Passed>,
        release: oneshot::Sender<()>,
        ended: JoinHandle<Result<Ended, TapError>>,
    }

    fn rig() -> Rig {
        let (libvirt, its) = UnixStream::pair().unwrap();
        let (carried, other) = UnixStream::pair().unwrap();
        let (tell, passed) = unbounded_channel();
        let (release, released) = oneshot::channel();
        let released = async move {
            let _ = released.await;
        };
        let ended = tokio::task::spawn_local(run(its, other, tell, released));
        Rig { libvirt, carried, passed, release, ended }
    }

    fn packet(procedure: i32, kind: i32, serial: u32, payload: &[u8]) -> Vec<u8> {
        let length = 28 + payload.len() as u32;
        let words = [length, 0x2000_8086, 1, procedure as u32, kind as u32, serial, 0];
        words.iter().flat_map(|word| word.to_be_bytes()).chain(payload.iter().copied()).collect()
    }

    async fn read(stream: &mut UnixStream, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        stream.read_exact(&mut read).await.unwrap();
        read
    }

    async fn is_open(stream: &mut UnixStream) -> bool {
        tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 1])).await.is_err()
    }

    fn within<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(test));
    }

    #[test]
    fn keepalive_is_answered_here_and_between_packets() {
        within(async {
            let mut rig = rig();
            let call = packet(1, 0, 1, b"12345678");
            rig.libvirt.write_all(&[&PING[..], &call].concat()).await.unwrap();
            assert_eq!(read(&mut rig.carried, call.len()).await, call);
            assert_eq!(read(&mut rig.libvirt, 28).await, PONG);
            rig.carried.write_all(&PING).await.unwrap();
            assert_eq!(read(&mut rig.carried, 28).await, PONG, "who is called asks, too");
            // In the middle of an answer there is none.
            let reply = packet(1, 1, 1, b"12345678");
            rig.carried.write_all(&reply[..30]).await.unwrap();
            assert_eq!(read(&mut rig.libvirt, 30).await, reply[..30]);
            rig.libvirt.write_all(&PING).await.unwrap();
            assert!(is_open(&mut rig.libvirt).await);
            rig.carried.write_all(&reply[30..]).await.unwrap();
            assert_eq!(read(&mut rig.libvirt, 6).await, reply[30..]);
            assert_eq!(read(&mut rig.libvirt, 28).await, PONG);
            drop(rig.libvirt);
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByLibvirt);
        });
    }

    #[test]
    fn a_migration_is_seen_to_pass() {
        within(async {
            let mut rig = rig();
            let prepare = packet(procedure::PREPARE, 0, 5, b"xml");
            let finish = packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0");
            let answer = packet(procedure::FINISH, 1, 6, b"domain");
            rig.libvirt.write_all(&[&prepare[..], &finish].concat()).await.unwrap();
            assert_eq!(
                read(&mut rig.carried, prepare.len() + finish.len()).await,
                [prepare, finish].concat()
            );
            assert_eq!(rig.passed.recv().await, Some(Passed::Prepare));
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            rig.carried.write_all(&answer).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finished(Answer::Done)));
            assert_eq!(read(&mut rig.libvirt, answer.len()).await, answer);
            // Then it may end as any other.
            drop(rig.carried);
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByCarrier);
            assert_eq!(rig.libvirt.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }

    #[test]
    fn who_waits_for_finish_is_held_until_it_is_known_that_he_need_not() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            drop(rig.carried);
            assert!(is_open(&mut rig.libvirt).await);
            rig.libvirt.write_all(&PING).await.unwrap();
            assert_eq!(read(&mut rig.libvirt, 28).await, PONG, "nobody takes it for dead");
            rig.release.send(()).unwrap();
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByCarrier);
            assert_eq!(rig.libvirt.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_finish_that_lets_nothing_run_holds_nobody() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\x01")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: true }));
            drop(rig.carried);
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByCarrier);
        });
    }

    #[test]
    fn what_is_none_of_libvirt_s_ends_it() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(b"GET / HTTP/1.1\r\nHost: osaka\r\n\r\n").await.unwrap();
            assert!(matches!(rig.ended.await.unwrap(), Err(TapError::Rpc(_))));
            assert_eq!(rig.carried.read(&mut [0; 1]).await.unwrap_or(0), 0, "nothing of it has passed");
        });
    }
}
