//! Between a libvirt's socket and what carries its packets.
//!
//! ```text
//!  who calls ──packets──▶ up ──▶ who is called
//!     ▲  ◀───PONG──────────┘          keepalive is answered here, in both directions, and goes no further: it says that this
//!     └──packets──── down ◀─────┘     daemon is there, and a link that is down for a while is nobody's death
//! ```
//! **Finish** is the call by which the guest is let run at the destination. Once it may have arrived there, only its reply may end the caller's
//! connection: libvirt takes a connection that ends for a Finish that failed, and continues the guest at the source, whatever the destination
//! does. So the caller's socket is held until the reply is there, or it is known otherwise what became of the guest; and Finish goes no further before
//! [`Gate::before`] has made that survive this daemon.

use hikyaku_qemu::libvirt::{
    Answer, Header, PONG, Part, Reader, RpcError, Uuid, finish_is_cancelled, finish_uuid, procedure,
};
use nix::sys::socket::{Shutdown, shutdown};
use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
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
    /// It has answered that, and who asked has it.
    Finished(Answer),
    /// It has answered that, and who asked is gone, or cannot be told.
    Unheard(Answer),
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

/// What a Finish that lets a guest run says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finishing {
    pub serial: u32,
    /// The guest's.
    pub uuid: Option<Uuid>,
}

/// How the wait for a reply ends that does not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// libvirt takes it for a Finish that failed.
    Close,
    /// It is what the reply would have been.
    Answer(Vec<u8>),
}

/// What Finish waits for, and what waits for its reply.
pub trait Gate {
    /// On `Err`, or if it is not waited for any longer, it goes no further, and the connection ends: it was never asked.
    async fn before(&self, finishing: Finishing) -> io::Result<()>;
    /// The reply has not come this way, and will not.
    async fn released(&self) -> Released;
    /// Nobody who cannot be answered has to be held any more.
    async fn freed(&self);
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// libvirt closed its connection.
    ByLibvirt,
    /// What carries it ended, and libvirt's connection with it.
    ByCarrier,
}

/// Passes packets on until one of the two ends. If it is dropped before, libvirt's connection is closed, but not ended: whoever has a copy of
/// it, as a service manager has, holds it.
pub async fn run(
    mut libvirt: UnixStream,
    mut carried: UnixStream,
    passed: UnboundedSender<Passed>,
    gate: &impl Gate,
) -> Result<Ended, TapError> {
    let socket = libvirt.as_raw_fd();
    let (from_libvirt, to_libvirt) = libvirt.split();
    let (from_carried, to_carried) = carried.split();
    // Of more pings than that the first ones are answered.
    let ((pinged_below, pongs_below), (pinged_above, pongs_above)) = (channel(PINGS), channel(PINGS));
    let tap = Tap {
        passed,
        gate,
        goes: Cell::new(None),
        again: Cell::new(false),
        finish: Cell::new(None),
        answered: Notify::new(),
        gone: Notify::new(),
        said: Cell::new(false),
    };
    let up = Way { from: from_libvirt, to: to_carried, pinged: pinged_below, pongs: pongs_above };
    let down = Way { from: from_carried, to: to_libvirt, pinged: pinged_above, pongs: pongs_below };
    // Whichever ends first ends the other one: both sockets are closed with it.
    let ended = tokio::select! {
        ended = tap.up(up) => ended.map(|()| Ended::ByLibvirt),
        ended = tap.down(down) => ended.map(|()| Ended::ByCarrier),
    };
    // What it has still to read it reads before that.
    let _ = shutdown(socket, Shutdown::Write);
    ended
}

const PINGS: usize = 4;

/// One direction.
struct Way<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    /// Where what comes here was sent from.
    pinged: Sender<()>,
    /// Where it goes to asks whether somebody is there.
    pongs: Receiver<()>,
}

impl Way<'_> {
    /// Until nothing more comes. `before`: what was looked at goes on.
    async fn pass(
        &mut self,
        looks: impl Fn(&Header) -> bool,
        mut look: impl FnMut(&Header, &[u8]),
        before: impl AsyncFn() -> io::Result<()>,
        after: impl Fn(bool),
    ) -> Result<Reader, TapError> {
        let mut reader = Reader::default();
        let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
        loop {
            let got = tokio::select! {
                biased;
                // Not in the middle of a packet.
                Some(()) = self.pongs.recv(), if !reader.is_passing() => {
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
            if !out.is_empty() {
                before().await?;
                after(self.write(&out).await);
                out.clear();
            }
        }
    }

    /// True: it was taken. If nobody takes it the other direction ends, which says so; meanwhile who sends it is answered as before.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.to.write_all(bytes).await.is_ok()
    }
}

struct Tap<'a, G> {
    passed: UnboundedSender<Passed>,
    gate: &'a G,
    /// A Finish that lets a guest run is about to go on.
    goes: Cell<Option<Finishing>>,
    /// There was one before.
    again: Cell<bool>,
    /// Of a Finish that may have arrived, and was not answered.
    finish: Cell<Option<u32>>,
    /// It is answered now.
    answered: Notify,
    /// Nobody waits for the answer any more.
    gone: Notify,
    /// It was answered here: nobody is behind this connection any more.
    said: Cell<bool>,
}

impl<G: Gate> Tap<'_, G> {
    /// Until who calls is gone, and needs no answer any more.
    async fn up(&self, mut way: Way<'_>) -> Result<(), TapError> {
        let before = async || match self.goes.take() {
            _ if self.again.get() => Err(io::Error::other("a second Finish by the same connection")),
            Some(finishing) => {
                self.gate.before(finishing).await?;
                self.finish.set(Some(finishing.serial));
                let _ = self.passed.send(Passed::Finish { cancelled: false });
                Ok(())
            }
            // Whoever was answered has nothing more to ask of anybody.
            None if self.said.get() => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        };
        let called = |header: &Header, packet: &[u8]| self.called(header, packet);
        let ended = way.pass(is_looked_at, called, before, |_| {}).await;
        if self.said.get() {
            return Ok(());
        }
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
            if !finish_is_cancelled(packet) {
                self.again.set(self.goes.get().is_some() || self.finish.get().is_some());
                self.goes.set(Some(Finishing { serial: header.serial, uuid: finish_uuid(packet) }));
                return;
            }
            Passed::Finish { cancelled: true }
        } else if header.calls(procedure::PREPARE) {
            Passed::Prepare
        } else {
            Passed::Tunnel
        };
        let _ = self.passed.send(what);
    }

    async fn down(&self, mut way: Way<'_>) -> Result<(), TapError> {
        let answered = |header: &Header| self.finish.get().and_then(|serial| header.answers(serial));
        let came = Cell::new(None);
        let passed = way
            .pass(
                |header| answered(header).is_some(),
                |header, _| came.set(came.get().or(answered(header))),
                async || Ok(()),
                |heard| {
                    if let Some(answer) = came.take() {
                        self.told(answer, heard);
                    }
                },
            )
            .await;
        if self.finish.get().is_none() {
            return passed.map(drop);
        }
        let within = match &passed {
            Ok(reader) => reader.is_passing(),
            Err(error) => {
                tracing::warn!(%error, "before the answer to libvirt's Finish");
                true
            }
        };
        let _ = self.passed.send(Passed::Unanswered);
        let mut released = std::pin::pin!(self.gate.released());
        let mut freed = std::pin::pin!(self.gate.freed());
        let mut waits = true;
        loop {
            tokio::select! {
                released = &mut released, if waits => match released {
                    Released::Close => return Ok(()),
                    // A packet that was cut short is not completed any more, and nothing may stand within it: libvirt is held, for the guest runs.
                    Released::Answer(_) if within => {
                        tracing::warn!("libvirt cannot be answered in the middle of a packet, and is held");
                        waits = false;
                        let _ = self.passed.send(Passed::Unheard(Answer::Done));
                    }
                    Released::Answer(answer) => {
                        waits = false;
                        self.said.set(true);
                        let heard = way.write(&answer).await;
                        self.told(Answer::Done, heard);
                        if !heard {
                            return Ok(());
                        }
                    }
                },
                () = &mut freed, if !waits && !self.said.get() => return Ok(()),
                () = self.gone.notified() => return Ok(()),
                Some(()) = way.pongs.recv(), if !within => drop(way.write(&PONG).await),
            }
        }
    }

    fn told(&self, answer: Answer, heard: bool) {
        self.finish.set(None);
        self.answered.notify_one();
        let _ = self.passed.send(if heard { Passed::Finished(answer) } else { Passed::Unheard(answer) });
    }
}

fn is_looked_at(header: &Header) -> bool {
    [procedure::FINISH, procedure::PREPARE, procedure::PREPARE_TUNNEL].iter().any(|n| header.calls(*n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::os::fd::AsFd;
    use std::rc::Rc;
    use std::time::Duration;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::sync::oneshot;
    use tokio::task::{JoinHandle, LocalSet};

    const PING: [u8; 28] = *b"\0\0\0\x1ckeep\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0";

    struct Rig {
        libvirt: UnixStream,
        carried: UnixStream,
        passed: UnboundedReceiver<Passed>,
        release: oneshot::Sender<Released>,
        ended: JoinHandle<Result<Ended, TapError>>,
        /// A copy of libvirt's connection.
        its: std::os::fd::OwnedFd,
        /// Finish is not let through.
        refuse: Rc<Cell<bool>>,
        seen: Rc<Cell<Option<Finishing>>>,
    }

    struct Waits {
        released: RefCell<Option<oneshot::Receiver<Released>>>,
        refuse: Rc<Cell<bool>>,
        seen: Rc<Cell<Option<Finishing>>>,
    }

    impl Gate for Waits {
        async fn before(&self, finishing: Finishing) -> io::Result<()> {
            self.seen.set(Some(finishing));
            if self.refuse.get() { Err(io::Error::other("the disk is full")) } else { Ok(()) }
        }

        async fn released(&self) -> Released {
            let released = self.released.borrow_mut().take().expect("once");
            released.await.unwrap_or(Released::Close)
        }

        async fn freed(&self) {
            std::future::pending().await
        }
    }

    fn rig() -> Rig {
        let (libvirt, its) = UnixStream::pair().unwrap();
        let (carried, other) = UnixStream::pair().unwrap();
        let (tell, passed) = unbounded_channel();
        let (release, released) = oneshot::channel();
        let (refuse, seen) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(None)));
        let gate =
            Waits { released: RefCell::new(Some(released)), refuse: refuse.clone(), seen: seen.clone() };
        let copy = its.as_fd().try_clone_to_owned().unwrap();
        let ended = tokio::task::spawn_local(async move { run(its, other, tell, &gate).await });
        Rig { libvirt, carried, passed, release, ended, its: copy, refuse, seen }
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
            rig.release.send(Released::Close).unwrap();
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByCarrier);
            assert_eq!(rig.libvirt.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }

    #[test]
    fn who_waits_for_finish_is_answered_by_whoever_knows() {
        within(async {
            let mut rig = rig();
            let finish = packet(
                procedure::FINISH,
                0,
                6,
                b"<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>\0\0\0\0\0\0\0",
            );
            rig.libvirt.write_all(&finish).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809".parse().ok();
            assert_eq!(rig.seen.get(), Some(Finishing { serial: 6, uuid }));
            drop(rig.carried);
            assert_eq!(rig.passed.recv().await, Some(Passed::Unanswered));
            rig.release.send(Released::Answer(b"it runs".to_vec())).unwrap();
            assert_eq!(read(&mut rig.libvirt, 7).await, b"it runs");
            rig.libvirt.write_all(&PING).await.unwrap();
            assert_eq!(read(&mut rig.libvirt, 28).await, PONG);
            // Whatever it asks now nobody answers.
            rig.libvirt.write_all(&packet(2, 0, 7, b"")).await.unwrap();
            assert_eq!(rig.libvirt.read(&mut [0; 1]).await.unwrap(), 0);
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByLibvirt);
        });
    }

    /// libvirt continues the guest when its connection ends, and the guest runs.
    #[test]
    fn in_the_middle_of_a_packet_nobody_is_answered_and_libvirt_is_held() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            let event = packet(9, 2, 0, b"12345678");
            rig.carried.write_all(&event[..30]).await.unwrap();
            assert_eq!(read(&mut rig.libvirt, 30).await, event[..30]);
            drop(rig.carried);
            assert_eq!(rig.passed.recv().await, Some(Passed::Unanswered));
            rig.release.send(Released::Answer(b"it runs".to_vec())).unwrap();
            assert!(is_open(&mut rig.libvirt).await);
            drop(rig.libvirt);
            assert_eq!(rig.ended.await.unwrap().unwrap(), Ended::ByCarrier);
        });
    }

    /// Nothing of it has gone on: an answer may stand in its place.
    #[test]
    fn who_waits_for_finish_is_answered_where_a_packet_was_still_gathered() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            rig.carried.write_all(&packet(procedure::FINISH, 1, 6, b"12345678")[..30]).await.unwrap();
            drop(rig.carried);
            assert_eq!(rig.passed.recv().await, Some(Passed::Unanswered));
            rig.release.send(Released::Answer(b"it runs".to_vec())).unwrap();
            assert_eq!(read(&mut rig.libvirt, 7).await, b"it runs");
        });
    }

    #[test]
    fn an_answer_that_nobody_takes_is_said_to_be_unheard() {
        within(async {
            let mut rig = rig();
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
            drop(rig.libvirt);
            rig.carried.write_all(&packet(procedure::FINISH, 1, 6, b"12345678")).await.unwrap();
            assert_eq!(rig.passed.recv().await, Some(Passed::Unheard(Answer::Done)));
        });
    }

    #[test]
    fn one_connection_lets_one_guest_run() {
        within(async {
            let mut rig = rig();
            let finish = packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0");
            rig.libvirt.write_all(&[&finish[..], &finish].concat()).await.unwrap();
            assert!(matches!(rig.ended.await.unwrap(), Err(TapError::Socket(_))));
            assert_eq!(rig.seen.take(), None);
        });
    }

    /// As by a daemon that ends: the manager has a copy.
    #[test]
    fn who_is_held_by_somebody_else_is_held_on_when_this_ends_unfinished() {
        within(async {
            for finished in [false, true] {
                let mut rig = rig();
                let copy = rig.its.try_clone().unwrap();
                rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
                assert_eq!(rig.passed.recv().await, Some(Passed::Finish { cancelled: false }));
                if finished {
                    drop(rig.carried);
                    rig.release.send(Released::Close).unwrap();
                    assert!(rig.ended.await.unwrap().is_ok());
                } else {
                    rig.ended.abort();
                    assert!(rig.ended.await.unwrap_err().is_cancelled());
                }
                assert_ne!(is_open(&mut rig.libvirt).await, finished);
                drop(copy);
            }
        });
    }

    #[test]
    fn a_finish_that_cannot_be_put_on_record_goes_no_further() {
        within(async {
            let mut rig = rig();
            rig.refuse.set(true);
            rig.libvirt.write_all(&packet(procedure::FINISH, 0, 6, b"cookie\0\0\0\0")).await.unwrap();
            assert!(matches!(rig.ended.await.unwrap(), Err(TapError::Socket(_))));
            assert_eq!(rig.carried.read(&mut [0; 1]).await.unwrap_or(0), 0);
            assert_eq!(rig.passed.recv().await, None);
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
