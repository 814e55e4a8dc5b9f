//! Sessions that send before they are answered, and what is said outside of sessions.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use hikyaku_transport::*;

const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS: u64 = 64;
/// Of one chunk, with what it costs besides.
const COST: u64 = CHUNK_BYTES as u64 + 64;
const AHEAD: u64 = 16;

async fn asked(io: Io, answer: Answer) -> (Pair, Arc<Sender>, TxSession, Opening) {
    let mut setup = Setup::new(io);
    setup.change = |config| config.limits.early_bytes = AHEAD * COST + 1;
    let pair = setup.pair(answer);
    let link = pair.source.link(&"osaka".into()).await.unwrap();
    let sender = Arc::new(Sender::default());
    let (tx, opening) =
        link.open_early(SessionId([1; 16]), b"hello".to_vec(), sender.clone(), Share::default()).unwrap();
    for seq in 1..=CHUNKS {
        tx.send(Chunk { seq, after: seq - 1, payload: noise(seq, CHUNK_BYTES).into() }).unwrap();
    }
    (pair, sender, tx, opening)
}

/// Until as much is under way as may be ahead of an answer.
async fn all_ahead(tx: &TxSession) {
    while tx.in_flight_bytes() < AHEAD * CHUNK_BYTES as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tx.in_flight_bytes(), AHEAD * CHUNK_BYTES as u64);
}

over_both! {
    async fn what_is_agreed_goes_ahead_of_the_answer_and_the_rest_behind_it(io: Io) {
        let (pair, sender, tx, opening) = asked(io, Answer::Nothing).await;
        all_ahead(&tx).await;
        let incoming = pair.host.kept.lock().unwrap().pop().unwrap();
        let receiver = Arc::new(Receiver::default());
        let rx = incoming.accept(b"welcome".to_vec(), 0, receiver.clone()).unwrap();
        assert_eq!(receiver.got.read(|got| got.chunks.len() as u64), AHEAD);
        assert_eq!(opening.wait().await.unwrap(), b"welcome");
        let mut applied = 0;
        while applied < CHUNKS {
            receiver.got.wait("chunks", |got| (!got.held.is_empty()).then_some(()));
            for (seq, bytes) in receiver.got.update(|got| std::mem::take(&mut got.held)) {
                rx.applied(seq, bytes);
                applied += 1;
            }
        }
        sender.0.wait("every acknowledgement", |sent| (sent.cumulative == CHUNKS).then_some(()));
        receiver.got.read(|got| {
            assert_eq!((got.chunks.len() as u64, got.twice), (CHUNKS, 0));
            for (seq, (after, sum)) in &got.chunks {
                assert_eq!((*after, *sum), (seq - 1, checksum(&noise(*seq, CHUNK_BYTES))));
            }
        });
    }

    async fn what_went_ahead_of_a_refusal_is_forgotten_and_the_link_lives_on(io: Io) {
        let (pair, sender, tx, opening) = asked(io, Answer::Nothing).await;
        all_ahead(&tx).await;
        pair.host.kept.lock().unwrap().pop().unwrap().refuse(42, "no room here");
        assert!(matches!(opening.wait().await, Err(OpenError::Refused { code: 42, .. })));
        let chunk = Chunk { seq: CHUNKS + 1, after: 0, payload: vec![1].into() };
        assert_eq!(tx.send(chunk), Err(SendError::Closed));
        sender.0.read(|sent| assert!(sent.lost.is_empty() && sent.closed.is_empty()));
        *pair.host.answer.lock().unwrap() = ACCEPT;
        let link = pair.source.link(&"osaka".into()).await.unwrap();
        let again = link.open(SessionId([2; 16]), vec![], Arc::new(Sender::default())).await;
        assert!(again.is_ok() && pair.host.sessions.read(|sessions| sessions.len() == 1));
    }

    async fn a_note_comes_to_either_side_of_a_link(io: Io) {
        let pair = Setup::new(io).pair(ACCEPT);
        assert!(!pair.source.note(&"osaka".into(), b"early"), "there is no link");
        pair.source.link(&"osaka".into()).await.unwrap();
        assert!(pair.source.note(&"osaka".into(), b"here"));
        let notes = pair.host.notes.wait("a note", |notes| (!notes.is_empty()).then(|| notes.clone()));
        assert_eq!(notes, [("tokyo".into(), b"here".to_vec())]);
        assert!(pair.destination.note(&"tokyo".into(), b"there"));
        let notes = pair.source_host.notes.wait("a note", |notes| (!notes.is_empty()).then(|| notes.clone()));
        assert_eq!(notes, [("osaka".into(), b"there".to_vec())]);
        assert!(!pair.destination.note(&"kyoto".into(), b"there"));
        let too_long = vec![0; Limits::default().message_bytes + 1];
        assert!(!pair.source.note(&"osaka".into(), &too_long));
    }
}
