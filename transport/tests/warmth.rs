//! Links that are warmed before there is anything to send, over both backends.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use hikyaku_transport::*;

over_both! {
    async fn a_link_that_is_warmed_says_what_it_found_and_the_padding_is_seen_by_nobody(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, rx, receiver) = pair.open().await;
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let probe = link.warm_up().await.unwrap();
        assert!(probe.padding_bytes > 100_000, "{probe:?}");
        assert!(probe.bandwidth_bytes_per_s.unwrap() > 1_000_000, "{probe:?}");
        assert!(probe.min_rtt.unwrap() <= probe.rtt.unwrap(), "{probe:?}");
        assert_eq!(link.probe(), Some(probe));
        let stats = link.stats();
        assert!(stats.padding_bytes >= probe.padding_bytes && stats.lane_bytes_sent > 0);
        tx.send(Chunk { seq: 1, after: 0, payload: vec![7; 1000].into() }).unwrap();
        receiver.got.wait("the chunk", |got| (got.payload_bytes == 1000).then_some(()));
        sender.0.wait("its acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
        assert_eq!(rx.stats().delivered_bytes, 1000);
        assert!(receiver.got.read(|got| got.lost.is_empty()));
    }

    async fn a_chunk_ends_the_padding(io: Io) {
        let mut setup = Setup::new(io);
        setup.change = |config| config.limits.chunk_bytes = 1000;
        let pair = setup.pair(ACCEPT);
        let (tx, sender, ..) = pair.open().await;
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        // At this rate the padding would take minutes.
        link.set_limit(Some(100_000));
        let warming = link.clone();
        let warming = tokio::spawn(async move { warming.warm_up().await });
        while link.stats().padding_bytes == 0 {
            tokio::task::yield_now().await;
        }
        tx.send(Chunk { seq: 1, after: 0, payload: vec![7; 1000].into() }).unwrap();
        sender.0.wait("its acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
        assert!(warming.await.unwrap().is_ok());
        let padding = link.stats().padding_bytes;
        tx.send(Chunk { seq: 2, after: 0, payload: vec![7; 1000].into() }).unwrap();
        sender.0.wait("its acknowledgement", |sent| (sent.cumulative == 2).then_some(()));
        assert_eq!(link.stats().padding_bytes, padding);
    }

    async fn a_short_path_is_not_padded_when_a_session_opens(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, ..) = pair.open().await;
        tx.send(Chunk { seq: 1, after: 0, payload: vec![7; 1000].into() }).unwrap();
        sender.0.wait("its acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
        assert_eq!(tx.stats().padding_bytes, 0);
    }

    async fn every_lane_says_how_it_does(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        let (tx, sender, ..) = pair.open().await;
        for seq in 1..=64 {
            tx.send(Chunk { seq, after: 0, payload: vec![7; 100_000].into() }).unwrap();
        }
        sender.0.wait("all", |sent| (sent.cumulative == 64).then_some(()));
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let lanes = link.lanes();
        assert_eq!(lanes.iter().map(|lane| lane.lane.0).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        let there = pair.destination.addresses()[0];
        assert!(lanes.iter().all(|lane| lane.peer == Some(there) && lane.window_bytes > 0));
        assert!(lanes.iter().map(|lane| lane.sent_segments).sum::<u64>() > 0);
        let reading = link.reading();
        assert!(!reading.threads.is_empty() && reading.unsent_bytes == 0 && !reading.waits_for_peer);
        assert_eq!(what_limits(&reading, &link.reading()), Limit::Source);
    }
}
