//! Which cipher suite two nodes take for their lanes, and that nobody between them can choose it.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use hikyaku_transport::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CHACHA: Suites = Suites::Only(Suite::ChaCha20Poly1305);
const AES: Suites = Suites::Only(Suite::Aes256Gcm);

/// Both nodes are configured by the same function; only the destination listens.
fn pair(change: fn(&mut NodeConfig)) -> Pair {
    let mut setup = Setup::new(Io::Plain);
    setup.change = change;
    setup.pair(ACCEPT)
}

/// Opens a link, sends chunks over it, and returns its suite.
async fn taken(pair: &Pair) -> Suite {
    let link = pair.source.link(&"osaka".into()).await.unwrap();
    let (tx, sender, _rx, receiver) = pair.open().await;
    for seq in 1..=40 {
        tx.send(Chunk { seq, after: 0, payload: noise(seq, 100_000).into() }).unwrap();
    }
    tokio::task::spawn_blocking(move || {
        sender.0.wait("acknowledgements", |sent| (sent.cumulative == 40).then_some(()));
        receiver.got.read(|got| {
            for (seq, (_, sum)) in &got.chunks {
                assert_eq!(*sum, checksum(&noise(*seq, 100_000)));
            }
        });
    })
    .await
    .unwrap();
    link.suite().unwrap()
}

#[tokio::test]
async fn a_link_takes_what_both_ends_are_told_to_use() {
    assert_eq!(taken(&pair(|config| config.suites = CHACHA)).await, Suite::ChaCha20Poly1305);
    assert_eq!(taken(&pair(|config| config.suites = AES)).await, Suite::Aes256Gcm);
}

#[tokio::test]
async fn a_link_takes_the_faster_suite_only_if_both_ends_have_it() {
    let both = taken(&pair(|_| {})).await;
    let best = suite::best_here();
    assert_eq!(Some(both), best.choose(best));
    let one = |config: &mut NodeConfig| {
        if config.listen.is_empty() {
            config.suites = CHACHA;
        }
    };
    assert_eq!(taken(&pair(one)).await, Suite::ChaCha20Poly1305);
    let other = |config: &mut NodeConfig| {
        if !config.listen.is_empty() {
            config.suites = CHACHA;
        }
    };
    assert_eq!(taken(&pair(other)).await, Suite::ChaCha20Poly1305);
}

#[tokio::test]
async fn nothing_in_common_is_said_clearly() {
    let pair = pair(|config| config.suites = if config.listen.is_empty() { AES } else { CHACHA });
    let error = pair.source.link(&"osaka".into()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, LinkError::Suite { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("osaka") && text.contains("AES-256-GCM"), "{text}");
    assert!(pair.host.asked.read(Vec::is_empty));
}

/// The source would only ever take AES, the destination only ChaCha; someone between them makes the offer fit.
#[tokio::test]
async fn an_offer_that_was_changed_on_the_way_breaks_the_handshake() {
    let mut setup = Setup::new(Io::Plain);
    setup.listen = free_address();
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    setup.via = Some(vec![between.local_addr().unwrap().to_string()]);
    setup.change = |config| config.suites = if config.listen.is_empty() { AES } else { CHACHA };
    let pair = setup.pair(ACCEPT);
    let there = setup.listen;
    tokio::spawn(async move {
        let (mut near, _) = between.accept().await.unwrap();
        let mut far = TcpStream::connect(there).await.unwrap();
        let mut greeting = [0; 12];
        near.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting[9], Suite::Aes256Gcm.id());
        greeting[9] = Suite::ChaCha20Poly1305.id();
        far.write_all(&greeting).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let error = pair.source.link(&"osaka".into()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, LinkError::WrongKey { .. }), "{error}");
    assert!(pair.host.asked.read(Vec::is_empty));
}
