//! Connections that die under a session: it goes on, and everything comes once.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::proxy::*;
use common::*;
use hikyaku_transport::*;

const CHUNK_BYTES: usize = 50_000;

fn quick(config: &mut NodeConfig) {
    config.timeouts.dead_after = Duration::from_millis(800);
    config.timeouts.ping_idle = Duration::from_millis(200);
}

fn send(tx: &TxSession, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        tx.send(Chunk { seq, after: seq - 1, payload: noise(seq, CHUNK_BYTES).into() }).unwrap();
    }
}

/// Waits until all chunks up to `last` are acknowledged; then they came as they were sent, once.
async fn all_came(sender: &Arc<Sender>, receiver: &Arc<Receiver>, last: u64) {
    let (sender, receiver) = (sender.clone(), receiver.clone());
    tokio::task::spawn_blocking(move || {
        sender.0.wait("the last acknowledgement", |sent| {
            assert_eq!(sent.lost, []);
            (sent.cumulative == last).then_some(())
        });
        receiver.got.read(|got| {
            assert_eq!(got.twice, 0);
            assert_eq!(got.chunks.len() as u64, last);
            for (seq, (after, sum)) in &got.chunks {
                assert_eq!((*after, *sum), (seq - 1, checksum(&noise(*seq, CHUNK_BYTES))), "chunk {seq}");
            }
        });
    })
    .await
    .unwrap();
}

/// Runs a check that waits; the proxy needs this thread meanwhile.
async fn apart<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(check).await.unwrap()
}

over_both! {
    async fn a_lane_cut_in_the_midst_of_a_frame_costs_nothing_but_time(io: Io) {
        let meddler = Meddler { connection: 2, cut_at: Some(130_000), ..Meddler::default() };
        let (pair, meddler) = through(io, meddler, |_| {}).await;
        let (tx, sender, _rx, receiver) = pair.open().await;
        send(&tx, 1..=400);
        all_came(&sender, &receiver, 400).await;
        assert!(meddler.seen.load(Ordering::SeqCst) >= 10, "the lane was dialled again");
        assert_eq!((sender.0.read(|sent| sent.down), receiver.got.read(|got| got.down)), (0, 0));
    }

    async fn every_lane_may_die_again_and_again(io: Io) {
        let (pair, meddler) = through(io, Meddler { connection: 0, and_later: true, cut_at: Some(1_000_000), ..Meddler::default() }, |_| {}).await;
        let (tx, sender, _rx, receiver) = pair.open().await;
        // The control connection is one of them, after so many acknowledgements; the lanes carry 60 MB, 1 MB each.
        send(&tx, 1..=1200);
        all_came(&sender, &receiver, 1200).await;
        assert!(meddler.seen.load(Ordering::SeqCst) > 60);
    }

    async fn an_outage_loses_no_chunk_and_no_message(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), quick).await;
        let (tx, sender, rx, receiver) = pair.open().await;
        let mut sent = 0;
        for round in 0..3u8 {
            for n in 0..20 {
                tx.message(vec![round, n]).unwrap();
                rx.message(vec![round, n, 1]).unwrap();
            }
            send(&tx, sent + 1..=sent + 100);
            sent += 100;
            tokio::time::sleep(Duration::from_millis(5)).await;
            meddler.refusing.store(true, Ordering::SeqCst);
            meddler.cut();
            let (s, r) = (sender.clone(), receiver.clone());
            apart(move || {
                s.0.wait("the source sees it", |sent| (sent.down > usize::from(round)).then_some(()));
                r.got.wait("the destination, too", |got| (got.down > usize::from(round)).then_some(()));
            }).await;
            // Work goes on meanwhile.
            for n in 20..40 {
                tx.message(vec![round, n]).unwrap();
                rx.message(vec![round, n, 1]).unwrap();
            }
            send(&tx, sent + 1..=sent + 20);
            sent += 20;
            meddler.refusing.store(false, Ordering::SeqCst);
            all_came(&sender, &receiver, sent).await;
        }
        let expected = |end: &'static [u8]| (0..3u8).flat_map(move |round| (0..40u8).map(move |n| [&[round, n], end].concat())).collect::<Vec<_>>();
        apart(move || {
            receiver.got.wait("the source's messages", |got| (got.messages.len() >= 120).then_some(()));
            sender.0.wait("the destination's messages", |sent| (sent.messages.len() >= 120).then_some(()));
            assert_eq!(receiver.got.read(|got| got.messages.clone()), expected(&[]));
            assert_eq!(sender.0.read(|sent| sent.messages.clone()), expected(&[1]));
            let (down, up) = sender.0.read(|sent| (sent.down, sent.up));
            assert_eq!((down, up), (3, 3));
        }).await;
    }

    async fn a_silent_path_is_given_up_and_the_session_goes_on_when_it_speaks(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), quick).await;
        let (tx, sender, _rx, receiver) = pair.open().await;
        send(&tx, 1..=50);
        meddler.frozen.store(true, Ordering::SeqCst);
        send(&tx, 51..=100);
        let watched = sender.clone();
        apart(move || watched.0.wait("it is seen", |sent| (sent.down > 0).then_some(()))).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        meddler.frozen.store(false, Ordering::SeqCst);
        let since = Instant::now();
        all_came(&sender, &receiver, 100).await;
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    }

    async fn what_was_received_and_not_applied_is_not_sent_again(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), quick).await;
        *pair.host.answer.lock().unwrap() = Answer::Accept { credit_bytes: 64 << 20, applies: false };
        let (tx, sender, rx, receiver) = pair.open().await;
        send(&tx, 1..=100);
        let watched = receiver.clone();
        apart(move || watched.got.wait("all are there", |got| (got.chunks.len() == 100).then_some(()))).await;
        // Frames are counted when the kernel has all of them, which may be after they came.
        let before = 100 * (CHUNK_BYTES as u64 + 48);
        while tx.stats().lane_bytes_sent < before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Silence, not death: a lane that dies alone has its chunks sent again at once by the others.
        meddler.frozen.store(true, Ordering::SeqCst);
        let watched = sender.clone();
        apart(move || watched.0.wait("it is down", |sent| (sent.down == 1).then_some(()))).await;
        meddler.frozen.store(false, Ordering::SeqCst);
        let watched = sender.clone();
        apart(move || watched.0.wait("it is up again", |sent| (sent.up == 1).then_some(()))).await;
        for (seq, bytes) in receiver.got.read(|got| got.held.clone()) {
            rx.applied(seq, bytes);
        }
        all_came(&sender, &receiver, 100).await;
        assert_eq!(tx.stats().lane_bytes_sent, before);
        // Credit was not charged twice either.
        assert_eq!(tx.credit_left(), 64 << 20);
    }

    async fn a_close_that_met_an_outage_is_told_afterwards(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), quick).await;
        let (tx, sender, rx, receiver) = pair.open().await;
        meddler.refusing.store(true, Ordering::SeqCst);
        meddler.cut();
        let (s, r) = (sender.clone(), receiver.clone());
        apart(move || {
            s.0.wait("down", |sent| (sent.down > 0).then_some(()));
            r.got.wait("down", |got| (got.down > 0).then_some(()));
        }).await;
        tx.message(b"last words".to_vec()).unwrap();
        tx.close(77, "enough");
        meddler.refusing.store(false, Ordering::SeqCst);
        let closed = apart(move || {
            receiver.got.wait("the close", |got| got.closed.first().cloned().map(|closed| (closed, got.messages.clone())))
        }).await;
        assert_eq!(closed, ((77, "enough".into()), vec![b"last words".to_vec()]));
        drop(rx);
        // The link has nothing to hold any more, and serves the next session.
        let (tx, sender, _rx, receiver) = pair.open().await;
        send(&tx, 1..=3);
        all_came(&sender, &receiver, 3).await;
    }

    async fn an_outage_that_lasts_ends_the_session_on_both_sides(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), |config| {
            quick(config);
            config.timeouts.link = Duration::from_millis(1500);
        }).await;
        let (_tx, sender, _rx, receiver) = pair.open().await;
        meddler.refusing.store(true, Ordering::SeqCst);
        meddler.cut();
        let (source, destination) = apart(move || {
            (
                sender.0.wait("the source's reason", |sent| sent.lost.first().cloned()),
                receiver.got.wait("the destination's reason", |got| got.lost.first().cloned()),
            )
        }).await;
        assert!(matches!(source, Lost::Outage { .. }), "{source}");
        assert!(matches!(destination, Lost::Outage { .. }), "{destination}");
        assert!(source.to_string().contains("did not come back within 1.5 s"), "{source}");
    }

    async fn a_peer_that_was_restarted_holds_nothing_and_says_so(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), quick).await;
        let (_tx, sender, rx, receiver) = pair.open().await;
        drop((rx, receiver));
        let there = pair.destination.addresses()[0];
        let Pair { source: _source, destination, host, source_key, destination_key, .. } = pair;
        host.sessions.update(Vec::clear);
        drop((destination, host));
        meddler.cut();
        let mut config = NodeConfig::new(destination_key);
        config.listen = vec![there];
        config.io = io;
        config.peers = vec![Peer {
            name: "tokyo".into(),
            addresses: vec![],
            public_key: source_key.public(),
            may_send: true,
            may_receive: false,
        }];
        let _restarted = loop {
            match Node::start(config.clone(), Host::new(ACCEPT)) {
                Ok(node) => break node,
                // The old one's listener goes in its own time.
                Err(StartError::Listen { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        };
        let (lost, closed) = apart(move || {
            sender.0.wait("the end", |sent| {
                (sent.lost.len() + sent.closed.len() > 0).then(|| (sent.lost.clone(), sent.closed.clone()))
            })
        }).await;
        assert!(matches!(lost[..], [Lost::Forgotten { .. }]), "{lost:?} {closed:?}");
        assert!(lost[0].to_string().contains("restarted"), "{}", lost[0]);
    }

    async fn an_address_that_does_not_answer_costs_its_lanes_nothing_but_their_path(io: Io) {
        let mut setup = Setup::new(io);
        setup.listen = free_address();
        let closed = free_address();
        setup.via = Some(vec![setup.listen.to_string(), closed.to_string()]);
        let pair = setup.pair(ACCEPT);
        let (tx, sender, _rx, receiver) = pair.open().await;
        assert_eq!(tx.stats().lanes, 8);
        send(&tx, 1..=100);
        all_came(&sender, &receiver, 100).await;
    }

    async fn lanes_are_spread_over_the_peers_addresses_and_move_when_one_goes(io: Io) {
        let mut setup = Setup::new(io);
        setup.listen = free_address();
        let (first, second) = (Arc::new(Meddler::default()), Arc::new(Meddler::default()));
        let via = [proxy(setup.listen, first.clone()).await, proxy(setup.listen, second.clone()).await];
        setup.via = Some(via.iter().map(ToString::to_string).collect());
        let pair = setup.pair(ACCEPT);
        let (tx, sender, _rx, receiver) = pair.open().await;
        let seen = || (first.seen.load(Ordering::SeqCst), second.seen.load(Ordering::SeqCst));
        assert_eq!(seen(), (5, 4), "the control connection, and half of the lanes each");
        send(&tx, 1..=100);
        all_came(&sender, &receiver, 100).await;
        second.refusing.store(true, Ordering::SeqCst);
        second.cut();
        send(&tx, 101..=300);
        all_came(&sender, &receiver, 300).await;
        let source = sender.clone();
        assert_eq!(source.0.read(|sent| sent.down), 0, "the link was never down");
        // They go back when the path is there again.
        second.refusing.store(false, Ordering::SeqCst);
        let before = second.seen.load(Ordering::SeqCst);
        let until = Instant::now() + LONG;
        while second.seen.load(Ordering::SeqCst) < before + 4 {
            assert!(Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        send(&tx, 301..=400);
        all_came(&sender, &receiver, 400).await;
    }

    async fn lanes_whose_own_path_takes_connections_and_no_hello_are_not_lost(io: Io) {
        let mut setup = Setup::new(io);
        setup.listen = free_address();
        let first = Arc::new(Meddler { spares_first: true, ..Meddler::default() });
        let second = Arc::new(Meddler::default());
        let via = [proxy(setup.listen, first.clone()).await, proxy(setup.listen, second.clone()).await];
        setup.via = Some(via.iter().map(ToString::to_string).collect());
        let pair = setup.pair(ACCEPT);
        let (tx, sender, _rx, receiver) = pair.open().await;
        let until = Instant::now() + LONG;
        let wait_for = async |count: &AtomicUsize, least: usize| {
            while count.load(Ordering::SeqCst) < least {
                assert!(Instant::now() < until, "{} of {least}", count.load(Ordering::SeqCst));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Only the control connection stays there. Four lanes are refused as they fall, and again as they try to go home.
        first.refusing.store(true, Ordering::SeqCst);
        first.cut();
        wait_for(&first.refused, 8).await;
        first.refusing.store(false, Ordering::SeqCst);
        second.cut();
        wait_for(&first.seen, 1 + 4 + 4).await;
        send(&tx, 1..=100);
        all_came(&sender, &receiver, 100).await;
        assert_eq!(sender.0.read(|sent| sent.down), 0, "the link was never down");
    }
}
