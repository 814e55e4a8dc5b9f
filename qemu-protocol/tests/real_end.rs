//! How a real QEMU ends: held back by the switch-over acknowledgement, and how one knows that the tail is whole.

#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::time::{Duration, Instant};

use common::{Guest, PATIENCE, Setup, TailWatch, load, qemu};
use hikyaku_qemu::return_path::Message;
use hikyaku_qemu::stream::{Parser, ParserConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// A migration that is being read.
struct Reading {
    socket: UnixStream,
    stream: Vec<u8>,
    from: usize,
    parser: Parser,
    watch: TailWatch,
}

impl Reading {
    async fn begin(guest: &Guest) -> Self {
        Self::begin_on(guest, guest.channel("out").await).await
    }

    async fn begin_on(guest: &Guest, socket: UnixStream) -> Self {
        guest.qmp.migrate_fd("out").await.unwrap();
        let parser = Parser::new(ParserConfig::default());
        Self { socket, stream: Vec::new(), from: 0, parser, watch: TailWatch::default() }
    }

    async fn some(&mut self, limit_bytes: usize) {
        let mut buf = vec![0; limit_bytes];
        let n = timeout(PATIENCE, self.socket.read(&mut buf)).await;
        let n = n.unwrap_or_else(|_| panic!("the stream stopped; PARTs {:?}", self.watch.parts)).unwrap();
        assert!(n > 0, "QEMU closed its stream");
        self.take(&buf[..n]);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.stream.extend_from_slice(bytes);
        self.from += self.parser.feed(&self.stream[self.from..], &mut self.watch).expect("not understood");
    }

    /// What is in the socket by now, and no more.
    fn drain(&mut self) -> usize {
        let (mut buf, mut all) = (vec![0; 64 << 10], 0);
        loop {
            match self.socket.try_read(&mut buf) {
                Ok(0) => panic!("QEMU closed its stream"),
                Ok(n) => {
                    all += n;
                    self.take(&buf[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return all,
                Err(e) => panic!("{e}"),
            }
        }
    }

    async fn say(&mut self, message: Message) {
        self.socket.write_all(&message.to_bytes().unwrap()).await.unwrap();
    }
}

/// What lets a switch-over go that was held back.
#[derive(Clone, Copy, PartialEq)]
enum Release {
    Acknowledge,
    Stop,
}

/// `stop` releases QEMU as the acknowledgement does: it waits for none while the guest does not run.
#[tokio::test]
async fn a_switch_over_of_a_running_guest_waits_for_the_acknowledgement_or_for_stop() {
    let Some(qemu) = qemu() else { return };
    for release in [Release::Acknowledge, Release::Stop] {
        let guest = qemu.source(Setup::DevicesRunning).await;
        // SeaBIOS has nothing to boot and then nothing to do.
        sleep(Duration::from_millis(1500)).await;
        let wanted = [("return-path", true), ("switchover-ack", true), ("no-such-capability", true)];
        let mut unknown = guest.qmp.migrate_set_capabilities(&wanted).await.unwrap();
        assert_eq!(unknown.pop().as_deref(), Some("no-such-capability"));
        let version = guest.qmp.query_version().await.unwrap().qemu;
        let has_ack = (version.major, version.minor) >= (8, 1);
        assert_eq!(unknown.is_empty(), has_ack, "{version:?}: {unknown:?}");
        let mut reading = Reading::begin(&guest).await;
        if has_ack {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(1000) {
                if timeout(Duration::from_millis(50), reading.some(64 << 10)).await.is_err() {
                    println!("50 ms of silence");
                }
            }
            let parts = &reading.watch.parts;
            let empty = parts.iter().filter(|n| **n == 0).count();
            println!("{} PARTs, {empty} of them empty, in 1 s", parts.len());
            assert!(empty > 10, "{parts:?}");
            assert!(!reading.watch.ram_ended);
            assert!(guest.qmp.query_status().await.unwrap().running);
            assert!(guest.qmp.query_migrate().await.unwrap().is("active"));
        }
        match release {
            Release::Acknowledge if has_ack => reading.say(Message::SwitchoverAck).await,
            Release::Acknowledge => {}
            // QEMU may begin to complete before it has answered, and then answers only when all was read.
            Release::Stop => {
                let to_the_end = async {
                    while !reading.watch.scanner.complete() {
                        reading.some(64 << 10).await;
                    }
                };
                let (stopped, ()) = tokio::join!(guest.qmp.stop(), to_the_end);
                stopped.unwrap();
            }
        }
        while !reading.watch.scanner.complete() {
            reading.some(64 << 10).await;
        }
        reading.say(Message::Shut(0)).await;
        guest.wait_migration("completed").await;
    }
}

/// QEMU holds its big lock while it completes, so it answers a command only when all its bytes are written.
#[tokio::test]
async fn an_answer_after_the_end_of_ram_means_that_the_whole_tail_is_in_the_socket() {
    /// Far less than a tail, so that QEMU has to wait for the reader before it is through.
    const SOCKET_BYTES: usize = 8 << 10;
    let Some(qemu) = qemu() else { return };
    for (options, described) in [("", true), (",suppress-vmdesc=on", false)] {
        let guest = qemu.start(Setup::DevicesRunning, options, false, false).await;
        guest.qmp.migrate_set_capabilities(&[("return-path", true)]).await.unwrap();
        guest.qmp.stop().await.unwrap();
        let socket = guest.channel_of("out", Some(SOCKET_BYTES)).await;
        let mut reading = Reading::begin_on(&guest, socket).await;
        while !reading.watch.ram_ended {
            reading.some(1 << 10).await;
        }
        let answer = guest.qmp.query_status();
        tokio::pin!(answer);
        // Not read, QEMU does not get through and does not answer.
        assert!(timeout(Duration::from_millis(300), &mut answer).await.is_err());
        assert!(!reading.watch.scanner.complete());
        let mut turns = 0;
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => break drop(answered.unwrap()),
                () = sleep(Duration::from_millis(1)) => {}
            }
            let mut buf = [0; 2 << 10];
            if let Ok(n) = reading.socket.try_read(&mut buf) {
                reading.take(&buf[..n]);
            }
            turns += 1;
        }
        let drained = reading.drain();
        println!("answered after {turns} reads, {drained} bytes of the tail were still in the socket");
        assert!(turns > 4, "the tail is too short to show anything");
        assert_eq!(reading.watch.scanner.complete(), described);
        assert!(reading.watch.scanner.could_be_complete());
        sleep(Duration::from_millis(100)).await;
        assert_eq!(reading.drain(), 0, "bytes came after the answer");
        reading.say(Message::Shut(0)).await;
        guest.wait_migration("completed").await;
        let receiver = qemu.start(Setup::DevicesRunning, options, false, true).await;
        load(&receiver, &reading.stream).await;
    }
}
