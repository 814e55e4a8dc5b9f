//! The receiver against chunks in any order, repeated, and written by someone who means harm.

use crate::model::{ModelRam, Rng};
use crate::payload::{PAGES, Pair, first_byte, opaque, payload, stream};
use hikyaku_engine::codec::{DecodeScratch, HEADER_BYTES, Kind};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{
    AbortReason, Action, Chunk, ChunkSeq, Delta, EncodeScratch, LinkStats, PAGE_BYTES, PageBytes, PageId,
    ReceiveError, Receiver, ReceiverConfig, Source, SourceConfig, Time,
};
use proptest::prelude::*;

fn source(config: SourceConfig) -> Source {
    let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
    source.opaque(b"prefix");
    source.layout(Time(0), PAGES).expect("a layout");
    source
}

/// Everything the source wants sent now, encoded at once.
fn drain(source: &mut Source, chunks: &mut Vec<Chunk>) {
    let mut scratch = EncodeScratch::default();
    while let Some(action) = source.poll(Time(0)) {
        match action {
            Action::Encode(job) => source.encoded(Time(0), job.run(&mut scratch)),
            Action::Send(chunk) => {
                chunks.push(chunk);
                source.link(Time(0), LinkStats::default());
            }
            Action::Abort(why) => panic!("{why}"),
            Action::Switch | Action::Throttle(_) | Action::WakeAt(_) => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Write {
    Change {
        page: u32,
        at: usize,
        len: usize,
        value: u8,
    },
    Fill {
        page: u32,
        value: u8,
    },
    Zero {
        page: u32,
        run: u32,
    },
    Opaque(u8),
    /// Let everything staged become chunks.
    Send,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let page = 0..PAGES;
    let one = prop_oneof![
        6 => (page.clone(), 0..PAGE_BYTES, 1..300usize, any::<u8>())
            .prop_map(|(page, at, len, value)| Write::Change { page, at, len, value }),
        2 => (page.clone(), any::<u8>()).prop_map(|(page, value)| Write::Fill { page, value }),
        1 => (page, 1..6u32).prop_map(|(page, run)| Write::Zero { page, run: run.min(PAGES - page) }),
        1 => any::<u8>().prop_map(Write::Opaque),
        4 => Just(Write::Send),
    ];
    prop::collection::vec(one, 1..60)
}

/// Feeds `writes` to a source; the chunks, the RAM and the opaque bytes they make, the last number.
fn migrate(writes: &[Write], delta: Delta) -> (Vec<Chunk>, Vec<PageBytes>, Vec<u8>) {
    let mut source = source(SourceConfig { delta, ..SourceConfig::default() });
    let mut ram = vec![[0; PAGE_BYTES]; PAGES as usize];
    let mut opaque = b"prefix".to_vec();
    let mut chunks = Vec::new();
    source.zero(Time(0), PageId(0), PAGES);
    for write in writes {
        match *write {
            Write::Change { page, at, len, value } => {
                let end = (at + len).min(PAGE_BYTES);
                ram[page as usize][at..end].fill(value);
                source.page(Time(0), PageId(page), &ram[page as usize]);
            }
            Write::Fill { page, value } => {
                ram[page as usize] = [value; PAGE_BYTES];
                source.page(Time(0), PageId(page), &ram[page as usize]);
            }
            Write::Zero { page, run } => {
                ram[page as usize..(page + run) as usize].fill([0; PAGE_BYTES]);
                source.zero(Time(0), PageId(page), run);
            }
            Write::Opaque(byte) => {
                opaque.push(byte);
                source.opaque(&[byte]);
            }
            Write::Send => drain(&mut source, &mut chunks),
        }
    }
    source.guest_stopped(Time(0));
    source.tail(b"tail");
    source.tail_done();
    drain(&mut source, &mut chunks);
    assert_eq!(source.last_seq(), chunks.iter().map(|chunk| chunk.seq).max());
    (chunks, ram, opaque)
}

pub fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u64 + 1) as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_order_and_any_repetition_make_the_same_ram(
        writes in writes(),
        seed in any::<u64>(),
        delta in prop_oneof![Just(Delta::Off), Just(Delta::Always { base_budget_bytes: 1 << 20 }),
            Just(Delta::Always { base_budget_bytes: 30_000 }), Just(Delta::Always { base_budget_bytes: 3_000 })],
    ) {
        let (chunks, ram, opaque) = migrate(&writes, delta);
        let mut rng = Rng(seed);
        let mut arriving: Vec<Chunk> = chunks.clone();
        for _ in 0..chunks.len() / 3 {
            arriving.push(chunks[rng.below(chunks.len() as u64) as usize].clone());
        }
        shuffle(&mut arriving, &mut rng);

        let mut model = ModelRam::new(PAGES);
        let mut receiver = Receiver::new(ReceiverConfig::default());
        let mut applied = Vec::new();
        for chunk in &arriving {
            receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut model).unwrap();
            receiver.take_applied(&mut applied);
        }
        prop_assert_eq!(&model.opaque, &opaque);
        prop_assert_eq!(&model.tail, b"tail");
        prop_assert!(model.pages == ram, "RAM differs");
        prop_assert_eq!(receiver.parked_chunks(), 0);
        prop_assert_eq!(Some(receiver.applied_through()), chunks.iter().map(|chunk| chunk.seq).max());
        // Each chunk is reported once, with its payload's bytes.
        applied.sort_unstable();
        let mut sent: Vec<_> = chunks.iter().map(|chunk| (chunk.seq, chunk.payload.len() as u64)).collect();
        sent.sort_unstable();
        prop_assert_eq!(applied, sent);
    }

    #[test]
    fn a_changed_payload_is_refused_or_harmless(
        writes in writes(),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let (mut chunks, _, _) = migrate(&writes, Delta::Always { base_budget_bytes: 1 << 20 });
        let chunk = which.get(&chunks).clone();
        let mut payload = chunk.payload.to_vec();
        let at = at.index(payload.len());
        if cut {
            payload.truncate(at);
        } else {
            payload[at] = value;
        }
        for other in &mut chunks {
            if other.seq == chunk.seq {
                other.payload = payload.clone().into();
            }
        }
        let config = ReceiverConfig { park_budget_bytes: 1 << 20, ..ReceiverConfig::default() };
        let budget = config.park_budget_bytes + config.max_chunk_bytes + DecodeScratch::ZSTD_BYTES + (64 << 10);
        let mut receiver = Receiver::new(config);
        // A hostile delta may make no page of this guest's; the model must not mind.
        let mut model = ModelRam::new(PAGES);
        for chunk in &chunks {
            if receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut model).is_err() {
                break;
            }
            prop_assert!(receiver.memory_bytes() <= budget, "{} bytes", receiver.memory_bytes());
        }
    }

    #[test]
    fn random_payloads_do_no_harm(
        chunks in prop::collection::vec(
            (0..40u32, 0..40u32, prop::collection::vec(any::<u8>(), 0..80), 0..4u8), 0..30),
    ) {
        let mut receiver = Receiver::new(ReceiverConfig::default());
        let mut model = ModelRam::new(PAGES);
        for (seq, after, mut payload, kind) in chunks {
            // Most random bytes end at the first byte; let some get further.
            if kind > 0 && payload.len() >= HEADER_BYTES {
                payload[0] = 2;
                payload[1] = 1 + payload[1] % 4;
                payload[2] = kind - 1;
                payload[3] = 0;
                let body_bytes = (payload.len() - HEADER_BYTES) as u32;
                payload[4..8].copy_from_slice(&body_bytes.to_le_bytes());
                for [count, high] in payload[8..HEADER_BYTES].as_chunks_mut().0 {
                    (*count, *high) = (*count % 3, 0);
                }
            }
            let _ = receiver.chunk(ChunkSeq(seq), ChunkSeq(after), payload, &mut model);
        }
    }
}

#[test]
fn an_older_page_never_replaces_a_newer_one() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(2, 0, payload(&[], &[(3, 22)], &[])).unwrap();
    pair.chunk(1, 0, payload(&[(3, 2)], &[], &[])).unwrap();
    assert_eq!(pair.ram.pages[3], [22; PAGE_BYTES]);
    assert_eq!(pair.ram.pages[4], [0; PAGE_BYTES]);
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(2));
}

#[test]
fn a_delta_waits_for_its_base_and_the_rest_of_its_chunk_does_not() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(3, 0, payload(&[], &[(9, 9)], &[(5, 2, &first_byte(3))])).unwrap();
    assert_eq!(pair.ram.pages[9], [9; PAGE_BYTES]);
    assert_eq!(pair.receiver.parked_chunks(), 1);
    pair.chunk(2, 0, payload(&[], &[], &[(5, 1, &first_byte(2))])).unwrap();
    assert_eq!(pair.receiver.parked_chunks(), 2);
    pair.chunk(1, 0, payload(&[], &[(5, 1)], &[])).unwrap();
    assert_eq!((pair.ram.pages[5][0], pair.ram.pages[5][1]), (3, 1));
    assert_eq!((pair.receiver.parked_chunks(), pair.ram.deltas), (0, 2));
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(3));
}

#[test]
fn a_delta_is_dropped_when_something_newer_is_there() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(3, 0, payload(&[], &[(5, 3)], &[])).unwrap();
    pair.chunk(2, 0, payload(&[], &[], &[(5, 1, &first_byte(2))])).unwrap();
    pair.chunk(1, 0, payload(&[], &[(5, 1)], &[])).unwrap();
    assert_eq!(pair.ram.pages[5], [3; PAGE_BYTES]);
    assert_eq!(pair.ram.deltas, 0);
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(3));
}

#[test]
fn a_delta_whose_base_was_never_sent_is_an_error() {
    for (base, seq) in [(1, 2), (0, 2), (2, 2), (7, 2)] {
        let mut pair = Pair::new(ReceiverConfig::default());
        pair.chunk(1, 0, payload(&[], &[(6, 1)], &[])).unwrap();
        let error = pair.chunk(seq, 0, payload(&[], &[], &[(5, base, &first_byte(2))])).unwrap_err();
        assert_eq!(error, ReceiveError::NoBase { seq, page: 5, base });
    }
    // Between the base and the delta something else was sent.
    let mut pair = Pair::new(ReceiverConfig::default());
    for seq in [1, 2] {
        pair.chunk(seq, 0, payload(&[], &[(5, 1)], &[])).unwrap();
    }
    assert!(matches!(
        pair.chunk(3, 0, payload(&[], &[], &[(5, 1, &first_byte(2))])),
        Err(ReceiveError::NoBase { .. })
    ));
}

#[test]
fn a_chunk_after_another_waits_for_everything_up_to_it() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(4, 3, stream(Kind::Tail, 0, b"tail")).unwrap();
    pair.chunk(3, 0, payload(&[(0, 1)], &[], &[])).unwrap();
    pair.chunk(1, 0, payload(&[(1, 1)], &[], &[])).unwrap();
    assert!(pair.ram.tail.is_empty());
    pair.chunk(2, 0, payload(&[(2, 1)], &[], &[])).unwrap();
    assert_eq!(pair.ram.tail, b"tail");
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(4));
}

#[test]
fn pages_wait_for_the_layout_however_it_comes() {
    for told_by_sink in [true, false] {
        let mut receiver = Receiver::new(ReceiverConfig::default());
        let mut ram = ModelRam::new(PAGES);
        receiver.chunk(ChunkSeq(2), ChunkSeq(0), payload(&[], &[(1, 7)], &[]), &mut ram).unwrap();
        assert_eq!(receiver.parked_chunks(), 1);
        if told_by_sink {
            receiver.chunk(ChunkSeq(1), ChunkSeq(0), opaque(0, b"prefix"), &mut ram).unwrap();
        } else {
            receiver.layout(PAGES).unwrap();
            receiver.resume(&mut ram).unwrap();
        }
        assert_eq!((receiver.parked_chunks(), ram.pages[1]), (0, [7; PAGE_BYTES]));
    }
}

#[test]
fn what_a_peer_may_not_send_is_refused() {
    let pair = || Pair::new(ReceiverConfig::default());
    assert!(matches!(pair().chunk(0, 0, opaque(0, b"x")), Err(ReceiveError::Order { .. })));
    assert!(matches!(pair().chunk(5, 5, opaque(0, b"x")), Err(ReceiveError::Order { .. })));
    assert!(matches!(pair().chunk(70_000, 0, opaque(0, b"x")), Err(ReceiveError::TooFarAhead { .. })));
    assert!(matches!(pair().chunk(1, 0, opaque(1, b"x")), Err(ReceiveError::Gap { .. })));
    assert!(matches!(pair().chunk(2, 0, stream(Kind::Tail, 0, b"tail")), Err(ReceiveError::Order { .. })));
    for outside in [
        payload(&[(PAGES - 1, 2)], &[], &[]),
        payload(&[], &[(PAGES, 1)], &[]),
        payload(&[], &[], &[(PAGES, 1, &first_byte(1))]),
    ] {
        assert!(matches!(pair().chunk(2, 0, outside), Err(ReceiveError::PageOutsideLayout { .. })));
    }
    let repeated = vec![(0, PAGES); 2];
    assert!(matches!(
        pair().chunk(1, 0, payload(&repeated, &[], &[])),
        Err(ReceiveError::TooManyRecords { .. })
    ));
    for bad in [payload(&[(0, 0)], &[], &[]), payload(&[(u32::MAX, 2)], &[], &[]), vec![], vec![9; 40]] {
        assert!(matches!(pair().chunk(1, 0, bad), Err(ReceiveError::Payload { .. })));
    }
    let mut huge = payload(&[], &[(1, 1)], &[]);
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(pair().chunk(1, 0, huge), Err(ReceiveError::Payload { .. })));
    let mut receiver = Receiver::new(ReceiverConfig { max_pages: 10, ..ReceiverConfig::default() });
    assert!(receiver.layout(11).is_err());
}

#[test]
fn what_waits_stays_within_the_budget() {
    let config = ReceiverConfig { park_budget_bytes: 100_000, ..ReceiverConfig::default() };
    let mut pair = Pair::new(config.clone());
    let mut refused = None;
    for seq in 3..60_000 {
        if let Err(error) = pair.chunk(seq, 2, payload(&[], &[(1, 1)], &[])) {
            refused = Some((seq, error));
            break;
        }
        assert!(pair.receiver.memory_bytes() < config.park_budget_bytes + (32 << 10));
    }
    let (seq, error) = refused.expect("the budget has an end");
    assert_eq!(error, ReceiveError::ParkBudget { budget_bytes: 100_000 });
    assert!(seq > 20, "parked only {seq} chunks");
}

#[test]
fn raw_relay_is_carried_in_order_after_everything_before() {
    let mut source = source(SourceConfig { chunk_bytes: 4096, ..SourceConfig::default() });
    source.page(Time(0), PageId(3), &[3; PAGE_BYTES]);
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let mut chunks = Vec::new();
    for piece in bytes.chunks(1777) {
        source.raw(piece);
        drain(&mut source, &mut chunks);
    }
    source.tail_done();
    drain(&mut source, &mut chunks);
    assert_eq!(source.last_seq(), Some(chunks.last().unwrap().seq));
    shuffle(&mut chunks, &mut Rng(5));
    let mut receiver = Receiver::new(ReceiverConfig::default());
    let mut ram = ModelRam::new(PAGES);
    for chunk in chunks {
        receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut ram).unwrap();
        assert!(ram.raw.is_empty() || ram.pages[3] == [3; PAGE_BYTES]);
    }
    assert!(ram.raw == bytes);
    assert_eq!(Some(receiver.applied_through()), source.last_seq());
}

/// Nothing of it is ever superseded: more would only hide how slow the link is.
#[test]
fn a_stream_that_goes_raw_may_wait_in_little_memory_whatever_pages_had() {
    let mut source = source(SourceConfig::default());
    source.page(Time(0), PageId(3), &[3; PAGE_BYTES]);
    assert!(source.intake_room() > 200 << 20);
    source.raw(b"not understood");
    assert!(source.intake_room() < 8 << 20, "{} bytes", source.intake_room());
}

#[test]
fn intake_in_the_wrong_order_ends_in_an_error_and_not_in_wrong_memory() {
    let first_abort = |source: &mut Source| {
        std::iter::from_fn(|| source.poll(Time(0))).find_map(|action| match action {
            Action::Abort(why) => Some(why),
            _ => None,
        })
    };
    let mut outside = source(SourceConfig::default());
    outside.page(Time(0), PageId(PAGES), &[0; PAGE_BYTES]);
    assert_eq!(first_abort(&mut outside), Some(AbortReason::PageOutsideLayout { page: PAGES, pages: PAGES }));
    let mut outside = source(SourceConfig::default());
    outside.zero(Time(0), PageId(PAGES - 1), 2);
    assert!(matches!(first_abort(&mut outside), Some(AbortReason::PageOutsideLayout { .. })));
    let mut raw_first = source(SourceConfig::default());
    raw_first.raw(b"x");
    raw_first.zero(Time(0), PageId(0), 1);
    assert!(matches!(first_abort(&mut raw_first), Some(AbortReason::OutOfOrder { .. })));
    let mut ended = source(SourceConfig::default());
    ended.tail_done();
    ended.tail(b"x");
    assert!(matches!(first_abort(&mut ended), Some(AbortReason::OutOfOrder { .. })));
}

#[test]
fn identical_content_is_not_sent_again() {
    let mut source = source(SourceConfig {
        delta: Delta::Always { base_budget_bytes: 1 << 20 },
        ..SourceConfig::default()
    });
    let mut chunks = Vec::new();
    for _ in 0..3 {
        source.page(Time(0), PageId(1), &[1; PAGE_BYTES]);
        source.zero(Time(0), PageId(2), 5);
        drain(&mut source, &mut chunks);
    }
    let progress = source.progress();
    assert_eq!((progress.pages_sent, progress.unchanged), (6, 2 + 10));
    assert!(chunks.iter().skip(2).all(|chunk| chunk.payload.len() == HEADER_BYTES), "a chunk of nothing");
}

#[test]
fn a_source_waits_for_credit_and_for_acknowledgements() {
    let config = SourceConfig { max_ahead: 6, ..SourceConfig::default() };
    let mut source = source(config);
    let mut scratch = EncodeScratch::default();
    let mut issued = 0;
    source.link(Time(0), LinkStats { in_flight_bytes: 1, credit_bytes: 1000, ..LinkStats::default() });
    source.zero(Time(0), PageId(0), 1);
    let encode = |source: &mut Source, scratch: &mut EncodeScratch| {
        std::iter::from_fn(|| source.poll(Time(0)))
            .filter_map(|action| match action {
                Action::Encode(job) => Some(job.run(scratch)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert!(encode(&mut source, &mut scratch).is_empty(), "sent without credit");
    for round in 1.. {
        source.link(Time(0), LinkStats::default());
        source.page(Time(0), PageId(round % PAGES), &[1; PAGE_BYTES]);
        let done = encode(&mut source, &mut scratch);
        if done.is_empty() {
            break;
        }
        issued += done.len();
        done.into_iter().for_each(|encoded| source.encoded(Time(0), encoded));
        while let Some(Action::Send(_)) = source.poll(Time(0)) {}
    }
    assert_eq!(issued, 6);
    assert_eq!(source.progress().chunks_under_way, 6);
    source.acked(Time(0), ChunkSeq(2), &[(ChunkSeq(4), ChunkSeq(5))]);
    source.link(Time(0), LinkStats::default());
    assert_eq!(source.progress().chunks_under_way, 2);
    assert!(!encode(&mut source, &mut scratch).is_empty());
}
