//! Sessions between two nodes on loopback, over both backends.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use hikyaku_transport::*;

over_both! {
    async fn a_session_opens_with_a_hello_and_a_reply(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        assert_eq!(pair.source.io(), io);
        let (_tx, _, rx, _) = pair.open().await;
        let asked = pair.host.asked.read(|asked| asked.clone());
        assert_eq!(asked, [("tokyo".into(), b"hello".to_vec())]);
        assert!(rx.stats().lanes == 8);
    }

    async fn a_refusal_brings_its_code_and_text(io: Io) {
        let pair = Setup::new(io).pair(Answer::Refuse(42, "no room here"));
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let sender = Arc::new(Sender::default());
        match link.open(SessionId([1; 16]), vec![], sender.clone()).await.map(|_| ()) {
            Err(OpenError::Refused { code: 42, text }) => assert_eq!(text, "no room here"),
            other => panic!("{other:?}"),
        }
        assert!(sender.0.read(|sent| sent.lost.is_empty() && sent.closed.is_empty()));
    }

    async fn messages_go_both_ways_in_order(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, rx, receiver) = pair.open().await;
        for n in 0..200u8 {
            tx.message(vec![n; 1 + usize::from(n)]).unwrap();
            rx.message(vec![n; 2]).unwrap();
        }
        receiver.got.wait("200 messages", |got| (got.messages.len() == 200).then_some(()));
        sender.0.wait("200 messages", |sent| (sent.messages.len() == 200).then_some(()));
        receiver.got.read(|got| {
            assert!(got.messages.iter().enumerate().all(|(n, m)| *m == vec![n as u8; 1 + n]));
        });
        sender.0.read(|sent| assert!(sent.messages.iter().enumerate().all(|(n, m)| *m == vec![n as u8; 2])));
    }

    async fn a_message_beyond_the_limit_is_refused_here(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, _, _, receiver) = pair.open().await;
        let limit = Limits::default().message_bytes;
        let error = tx.message(vec![0; limit + 1]);
        assert_eq!(error, Err(MessageError::TooLong { bytes: limit + 1, limit }));
        tx.message(vec![5; limit]).unwrap();
        receiver.got.wait("the longest message", |got| (got.messages == [vec![5; limit]]).then_some(()));
    }

    async fn a_gigabyte_arrives_whole_over_eight_lanes_out_of_order(io: Io) {
        const CHUNKS: u64 = 8192;
        const BYTES: usize = 128 * 1024;
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, _rx, receiver) = pair.open().await;
        // 64 different payloads, at different offsets for each number.
        let pool = noise(1, 65 * BYTES);
        let payload = |seq: u64| {
            let start = (seq as usize * 4099) % (pool.len() - BYTES);
            let bytes = BYTES - (seq as usize % 7) * 1000;
            pool[start..start + bytes].to_vec()
        };
        let started = std::time::Instant::now();
        let mut total = 0;
        for seq in 1..=CHUNKS {
            let payload = payload(seq);
            total += payload.len() as u64;
            tx.send(Chunk { seq, after: seq / 2, payload: payload.into() }).unwrap();
            while tx.unsent_bytes() > 4 << 20 {
                let rooms = sender.0.read(|sent| sent.rooms);
                if tx.unsent_bytes() > 4 << 20 {
                    sender.0.wait("room", |sent| (sent.rooms > rooms || sent.cumulative > 0).then_some(()));
                    tokio::task::yield_now().await;
                }
            }
        }
        sender.0.wait("every acknowledgement", |sent| (sent.cumulative == CHUNKS).then_some(()));
        println!("{total} bytes in {:?}, {:?}", started.elapsed(), tx.stats());
        receiver.got.read(|got| {
            assert_eq!((got.chunks.len() as u64, got.twice, got.payload_bytes), (CHUNKS, 0, total));
            assert!(got.out_of_order > 0, "eight lanes that never overtake each other?");
            for (seq, (after, sum)) in &got.chunks {
                assert_eq!((*after, *sum), (seq / 2, checksum(&payload(*seq))), "chunk {seq}");
            }
        });
        assert_eq!((tx.unsent_bytes(), tx.in_flight_bytes()), (0, 0));
        let stats = tx.stats();
        assert!(stats.goodput_bytes_per_s.is_some_and(|rate| rate > 10_000_000), "{stats:?}");
        assert!(stats.rtt.is_some() && stats.min_rtt <= stats.rtt, "{stats:?}");
        assert!(stats.lane_bytes_sent >= total);
    }

    async fn a_slow_consumer_holds_no_more_than_its_credit(io: Io) {
        const CREDIT: u64 = 4 << 20;
        const BYTES: usize = 64 * 1024;
        const CHUNKS: u64 = 400;
        let pair = Setup::new(io).pair(Answer::Accept { credit_bytes: CREDIT, applies: false });
        let (tx, sender, rx, receiver) = pair.open().await;
        for seq in 1..=CHUNKS {
            tx.send(Chunk { seq, after: 0, payload: noise(seq, BYTES).into() }).unwrap();
        }
        let full = (CREDIT / (BYTES as u64 + 64)) as usize;
        receiver.got.wait("all that credit allows", |got| (got.held.len() == full).then_some(()));
        // Nothing more comes, though lanes and queue have it.
        let more = receiver.got.wait_for(std::time::Duration::from_millis(300), |got| {
            (got.held.len() > full).then_some(())
        });
        assert!(more.is_none());
        assert!(tx.credit_left() < BYTES as u64 + 64);
        assert_eq!(tx.unsent_bytes(), (CHUNKS - full as u64) * BYTES as u64);
        // All but the first are applied: acknowledgements come as ranges.
        while receiver.got.read(|got| got.chunks.len() as u64) < CHUNKS {
            let next = receiver.got.wait("a chunk", |got| got.held.iter().find(|held| held.0 > 1).copied());
            receiver.got.update(|got| {
                got.held.retain(|held| *held != next);
                got.held_bytes -= next.1;
            });
            rx.applied(next.0, next.1);
        }
        for (seq, bytes) in receiver.got.read(|got| got.held.clone()) {
            if seq > 1 {
                rx.applied(seq, bytes);
            }
        }
        sender.0.wait("all but the first", |sent| (sent.acked.len() as u64 == CHUNKS - 1).then_some(()));
        assert_eq!(sender.0.read(|sent| sent.cumulative), 0);
        assert_eq!(tx.in_flight_bytes(), BYTES as u64);
        rx.applied(1, BYTES as u64);
        sender.0.wait("every acknowledgement", |sent| (sent.cumulative == CHUNKS).then_some(()));
        assert!(receiver.got.read(|got| got.held_bytes_max) <= CREDIT);
    }

    async fn either_side_closes(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, rx, receiver) = pair.open().await;
        tx.close(3, "moved");
        assert_eq!(receiver.got.wait("close", |got| got.closed.first().cloned()), (3, "moved".into()));
        assert_eq!(rx.message(vec![1]), Err(MessageError::Closed));
        assert_eq!(tx.message(vec![1]), Err(MessageError::Closed));
        let chunk = Chunk { seq: 1, after: 0, payload: vec![1].into() };
        assert_eq!(tx.send(chunk), Err(SendError::Closed));
        assert!(sender.0.read(|sent| sent.closed.is_empty() && sent.lost.is_empty()));

        let (tx, sender, rx, receiver) = pair.open().await;
        rx.close(4, "not wanted");
        assert_eq!(sender.0.wait("close", |sent| sent.closed.first().cloned()), (4, "not wanted".into()));
        assert_eq!(tx.message(vec![1]), Err(MessageError::Closed));
        assert!(receiver.got.read(|got| got.closed.is_empty() && got.lost.is_empty()));

        let (tx, sender, rx, receiver) = pair.open().await;
        drop(tx);
        let closed = receiver.got.wait("close", |got| got.closed.first().cloned());
        assert_eq!(closed.0, code::DROPPED);
        drop((rx, sender));
    }

    async fn what_was_applied_before_a_close_is_acknowledged(io: Io) {
        let pair = Setup::new(io).pair(Answer::Accept { credit_bytes: 1 << 20, applies: false });
        let (tx, sender, rx, receiver) = pair.open().await;
        tx.send(Chunk { seq: 1, after: 0, payload: vec![1; 100].into() }).unwrap();
        receiver.got.wait("the chunk", |got| got.chunks.get(&1).copied());
        rx.applied(1, 100);
        rx.close(0, "done");
        sender.0.wait("close", |sent| sent.closed.first().cloned());
        assert_eq!(sender.0.read(|sent| sent.cumulative), 1);
    }

    async fn sessions_share_a_link_and_end_apart(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx1, sender1, _rx1, receiver1) = pair.open().await;
        let (tx2, sender2, _rx2, receiver2) = pair.open().await;
        for seq in 1..=50 {
            tx1.send(Chunk { seq, after: 0, payload: noise(seq, 50_000).into() }).unwrap();
            tx2.send(Chunk { seq, after: 0, payload: noise(seq + 1000, 50_000).into() }).unwrap();
        }
        tx1.close(1, "enough");
        receiver1.got.wait("close", |got| got.closed.first().cloned());
        sender2.0.wait("every acknowledgement", |sent| (sent.cumulative == 50).then_some(()));
        receiver2.got.read(|got| {
            for (seq, (_, sum)) in &got.chunks {
                assert_eq!(*sum, checksum(&noise(seq + 1000, 50_000)));
            }
        });
        assert!(sender1.0.read(|sent| sent.lost.is_empty()));
    }

    async fn an_answer_that_does_not_come_is_a_timeout(io: Io) {
        let mut setup = Setup::new(io);
        setup.change = |config| config.timeouts.open = std::time::Duration::from_millis(200);
        let pair = setup.pair(Answer::Nothing);
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let opened = link.open(SessionId([1; 16]), vec![], Arc::new(Sender::default())).await;
        assert!(matches!(opened, Err(OpenError::Timeout(_))));
        // The next question comes after the news that nobody waits for the first.
        *pair.host.answer.lock().unwrap() = ACCEPT;
        link.open(SessionId([2; 16]), vec![], Arc::new(Sender::default())).await.unwrap();
        let incoming = pair.host.kept.lock().unwrap().pop().unwrap();
        let accepted = incoming.accept(vec![], 1 << 20, Arc::new(Receiver::default()));
        assert!(matches!(accepted, Err(AcceptError::Gone)));
    }

    async fn a_dropped_question_is_a_refusal(io: Io) {
        let pair = Setup::new(io).pair(Answer::Nothing);
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let host = pair.host.clone();
        let dropper = std::thread::spawn(move || {
            host.asked.wait("the question", |asked| (!asked.is_empty()).then_some(()));
            while host.kept.lock().unwrap().pop().is_none() {
                std::thread::yield_now();
            }
        });
        let opened = link.open(SessionId([1; 16]), vec![], Arc::new(Sender::default())).await;
        assert!(matches!(opened, Err(OpenError::Refused { code: code::NOT_ANSWERED, .. })));
        dropper.join().unwrap();
    }

    async fn a_node_that_stops_tells_its_sessions(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (_tx, sender, _rx, receiver) = pair.open().await;
        drop(pair.source);
        assert_eq!(sender.0.wait("lost", |sent| sent.lost.first().cloned()), Lost::Stopped);
        let lost = receiver.got.wait("lost", |got| got.lost.first().cloned());
        assert!(matches!(&lost, Lost::ByPeer { text, .. } if text.contains("stopped")), "{lost}");
    }

    async fn the_same_link_is_used_again_and_a_lost_one_is_not(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let one = pair.source.link(&"osaka".into()).await.unwrap();
        let two = pair.source.link(&"osaka".into()).await.unwrap();
        let (tx, ..) = pair.open().await;
        assert!(one.lost().is_none() && two.lost().is_none());
        assert_eq!(tx.stats().lanes, 8);
        assert_eq!(pair.source.link(&"osaka".into()).await.unwrap().stats().lanes, 8);
    }

    async fn ipv6_and_several_addresses_work(io: Io) {
        let mut setup = Setup::new(io);
        setup.listen = "[::1]:0".parse().unwrap();
        let pair = setup.pair(ACCEPT);
        pair.open().await;
        // The first address answers to nobody.
        let port = pair.destination.addresses()[0].port();
        let mut config = NodeConfig::new(pair.source_key.clone());
        config.io = io;
        config.peers = vec![Peer {
            name: "osaka".into(),
            addresses: vec!["127.0.0.1:1".into(), format!("[::1]:{port}")],
            public_key: pair.destination_key.public(),
            may_send: false,
            may_receive: true,
        }];
        let node = Node::start(config, Host::new(Answer::Nothing)).unwrap();
        node.link(&"osaka".into()).await.unwrap();
    }
}
