//! Wrong keys, wrong versions, changed bytes, silence and floods: a clear reason, and bounded harm.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::proxy::*;
use common::*;
use hikyaku_transport::wire::greeting::{Greeting, Kind, Refusal};
use hikyaku_transport::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sends until the link is lost; the reasons on both sides.
async fn until_lost(pair: &Pair) -> (Lost, Lost) {
    let (tx, sender, _rx, receiver) = pair.open().await;
    for seq in 1..=400 {
        if tx.send(Chunk { seq, after: 0, payload: noise(seq, 50_000).into() }).is_err() {
            break;
        }
    }
    // The proxy lives in this runtime.
    tokio::task::spawn_blocking(move || {
        let source = sender.0.wait("the source's reason", |sent| sent.lost.first().cloned());
        let destination = receiver.got.wait("the destination's reason", |got| got.lost.first().cloned());
        receiver.got.read(|got| {
            for (seq, (_, sum)) in &got.chunks {
                assert_eq!(*sum, checksum(&noise(*seq, 50_000)), "a changed chunk was delivered");
            }
            assert!(got.chunks.len() < 400);
        });
        assert_eq!(sender.0.read(|sent| sent.lost.len()), 1);
        assert_eq!(receiver.got.read(|got| got.lost.len()), 1);
        (source, destination)
    })
    .await
    .unwrap()
}

over_both! {
    async fn a_changed_byte_of_a_chunk_ends_the_link_and_names_the_lane(io: Io) {
        let meddler = Meddler { connection: 3, flip_at: Some(120_000), ..Meddler::default() };
        let (pair, _) = through(io, meddler, |_| {}).await;
        let (source, destination) = until_lost(&pair).await;
        let Lost::Authentication { peer, lane, .. } = &destination else { panic!("{destination}") };
        assert_eq!(peer.as_str(), "tokyo");
        // The source hears the same, from the peer.
        let Lost::ByPeer { text, .. } = &source else { panic!("{source}") };
        assert!(text.contains(&lane.to_string()) && text.contains("authentication"), "{text}");
        // The next link is a new one, and works (the proxy meddles with one connection only).
        let (tx, sender, ..) = pair.open().await;
        tx.send(Chunk { seq: 1, after: 0, payload: vec![1; 1000].into() }).unwrap();
        tokio::task::spawn_blocking(move || {
            sender.0.wait("an acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
        })
        .await
        .unwrap();
    }

    async fn a_changed_byte_of_the_control_connection_ends_the_link(io: Io) {
        let meddler = Meddler { connection: 0, ..Meddler::default() };
        let (pair, meddler) = through(io, meddler, |_| {}).await;
        let (tx, sender, _rx, receiver) = pair.open().await;
        meddler.armed.store(true, Ordering::SeqCst);
        tx.message(vec![0; 100]).unwrap();
        let (source, destination) = reasons(sender, receiver).await;
        assert!(destination.to_string().contains("failed authentication"), "{destination}");
        assert!(source.to_string().contains("failed authentication"), "{source}");
    }

    async fn a_peer_that_falls_silent_is_noticed_on_both_sides(io: Io) {
        let (pair, meddler) = through(io, Meddler::default(), |config| {
            config.timeouts.dead_after = Duration::from_millis(800);
            config.timeouts.ping_idle = Duration::from_millis(200);
            config.timeouts.link = Duration::ZERO;
        })
        .await;
        let (_tx, sender, _rx, receiver) = pair.open().await;
        // Alive and idle for longer than the bound: pings keep it.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(sender.0.read(|sent| sent.lost.is_empty()));
        meddler.frozen.store(true, Ordering::SeqCst);
        let (source, destination) = reasons(sender, receiver).await;
        assert!(matches!(source, Lost::Silent { .. }), "{source}");
        assert!(matches!(destination, Lost::Silent { .. }), "{destination}");
    }

    async fn a_frame_that_never_ends_is_noticed(io: Io) {
        // The header of the first chunk follows the lane's hello (104 bytes). Byte 13 of it belongs to the body's
        // length: 50,000 becomes 54,096.
        let meddler =
            Meddler { connection: 1, and_later: true, flip_at: Some(104 + 13), ..Meddler::default() };
        let (pair, _) =
            through(io, meddler, |config| config.timeouts.frame = Duration::from_millis(500)).await;
        let (tx, sender, _rx, receiver) = pair.open().await;
        tx.send(Chunk { seq: 1, after: 0, payload: noise(1, 50_000).into() }).unwrap();
        let (source, destination) = reasons(sender, receiver).await;
        assert!(destination.to_string().contains("rest of a frame"), "{destination}");
        assert!(source.to_string().contains("rest of a frame"), "{source}");
    }

    async fn acknowledging_what_was_never_sent_ends_the_link(io: Io) {
        let pair = Setup::new(io).pair(Answer::Accept { credit_bytes: 1 << 20, applies: false });
        let (_tx, sender, rx, receiver) = pair.open().await;
        rx.applied(5, 1000);
        let (source, destination) = reasons(sender, receiver).await;
        assert!(matches!(&source, Lost::Protocol { what, .. } if what.contains("never sent")), "{source}");
        assert!(matches!(&destination, Lost::ByPeer { text, .. } if text.contains("never sent")), "{destination}");
    }
}

/// Why the link was lost, as both sides say. (The proxy needs this thread meanwhile.)
async fn reasons(sender: Arc<Sender>, receiver: Arc<Receiver>) -> (Lost, Lost) {
    tokio::task::spawn_blocking(move || {
        (
            sender.0.wait("the source's reason", |sent| sent.lost.first().cloned()),
            receiver.got.wait("the destination's reason", |got| got.lost.first().cloned()),
        )
    })
    .await
    .unwrap()
}

async fn error_of(node: &Node) -> LinkError {
    match node.link(&"osaka".into()).await {
        Ok(_) => panic!("a link came about"),
        Err(error) => error,
    }
}

fn source_for(address: SocketAddr, key: &StaticKey, peer: PublicKey) -> Node {
    let mut config = NodeConfig::new(key.clone());
    config.timeouts.handshake = Duration::from_secs(5);
    config.peers = vec![Peer {
        name: "osaka".into(),
        addresses: vec![address.to_string()],
        public_key: peer,
        may_send: false,
        may_receive: true,
    }];
    Node::start(config, Host::new(Answer::Nothing)).unwrap()
}

#[tokio::test]
async fn the_wrong_key_at_the_peer_is_named() {
    let pair = Setup::new(Io::Plain).pair(ACCEPT);
    let other = StaticKey::generate().unwrap().public();
    let source = source_for(pair.destination.addresses()[0], &pair.source_key, other);
    let error = error_of(&source).await;
    assert!(matches!(error, LinkError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("does not hold the key"), "{error}");
}

#[tokio::test]
async fn a_key_that_the_peer_does_not_know_is_refused_with_a_text() {
    let pair = Setup::new(Io::Plain).pair(ACCEPT);
    let stranger = StaticKey::generate().unwrap();
    let there = pair.destination.addresses()[0];
    let source = source_for(there, &stranger, pair.destination_key.public());
    let error = error_of(&source).await;
    let LinkError::NotAllowedThere { text, .. } = &error else { panic!("{error}") };
    assert!(text.contains(&stranger.public().to_string()), "{text}");
    assert!(pair.host.asked.read(Vec::is_empty));
}

#[tokio::test]
async fn a_peer_that_may_not_send_is_refused_with_a_text() {
    let mut setup = Setup::new(Io::Plain);
    setup.may_send = false;
    let pair = setup.pair(ACCEPT);
    let error = error_of(&pair.source).await;
    assert!(
        matches!(&error, LinkError::NotAllowedThere { text, .. } if text.contains("may not send")),
        "{error}"
    );
    // And the other way: the destination may not even try.
    let error = pair.destination.link(&"tokyo".into()).await.map(|_| ());
    assert!(matches!(error, Err(LinkError::NotAllowedHere(_))));
    let error = pair.source.link(&"nara".into()).await.map(|_| ());
    assert!(matches!(error, Err(LinkError::UnknownPeer(_))));
}

#[tokio::test]
async fn nobody_there_lists_what_was_tried() {
    let key = StaticKey::generate().unwrap();
    let closed = free_address();
    let source = source_for(closed, &key, StaticKey::generate().unwrap().public());
    let error = error_of(&source).await;
    let LinkError::Unreachable { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 1);
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
}

#[tokio::test]
async fn a_greeting_of_another_version_is_refused_in_the_clear() {
    let pair = Setup::new(Io::Plain).pair(ACCEPT);
    let mut stream = TcpStream::connect(pair.destination.addresses()[0]).await.unwrap();
    stream.write_all(b"HKYK\x09\x00\x07\x00\x01\x01\x00\x00and what version 9 says").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, Greeting::ours(Kind::Refused(Refusal::Version)).encode());
}

#[tokio::test]
async fn a_peer_of_another_version_is_named_with_both_versions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HKYK\x09\x00\x07\x00\x04\x01\x00\x00").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let key = StaticKey::generate().unwrap();
    let error = error_of(&source_for(there, &key, key.public())).await;
    assert!(matches!(error, LinkError::Version { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("versions 7 to 9") && text.contains("version 1"), "{text}");
}

#[tokio::test]
async fn something_else_that_listens_there_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let key = StaticKey::generate().unwrap();
    let error = error_of(&source_for(there, &key, key.public())).await;
    assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_changed_greeting_breaks_the_handshake() {
    // Suites talked down in transit: the prologue differs, so nothing opens.
    let meddler = Meddler { connection: 0, flip_at: Some(9), ..Meddler::default() };
    let (pair, _) = through(Io::Plain, meddler, |_| {}).await;
    let error = error_of(&pair.source).await;
    assert!(matches!(error, LinkError::WrongKey { .. }), "{error}");
}

#[tokio::test]
async fn a_replayed_first_message_makes_no_link_and_a_replayed_lane_no_lane() {
    // Records what the source says on every connection, passing it on.
    let mut setup = Setup::new(Io::Plain);
    setup.listen = free_address();
    let heard: Arc<Watched<Vec<Vec<u8>>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    setup.via = Some(vec![listener.local_addr().unwrap().to_string()]);
    let (to, record) = (setup.listen, heard.clone());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let index = record.update(|heard| {
                heard.push(Vec::new());
                heard.len() - 1
            });
            let (mut near_read, mut near_write) = near.into_split();
            let (mut far_read, mut far_write) = far.into_split();
            let record = record.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(bytes @ 1..) = near_read.read(&mut buffer).await {
                    record.update(|heard| heard[index].extend_from_slice(&buffer[..bytes]));
                    far_write.write_all(&buffer[..bytes]).await.unwrap();
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        }
    });
    let pair = setup.pair(ACCEPT);
    let (tx, sender, ..) = pair.open().await;
    let connections = heard.read(Clone::clone);
    assert_eq!(connections.len(), 9);

    // A lane's hello, word for word: closed without an answer.
    let mut replay = TcpStream::connect(pair.destination.addresses()[0]).await.unwrap();
    replay.write_all(&connections[1][..104]).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, replay.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.is_empty());

    // The handshake's first message and the records after it: the same.
    let mut replay = TcpStream::connect(pair.destination.addresses()[0]).await.unwrap();
    replay.write_all(&connections[0]).await.unwrap();
    let _ = tokio::time::timeout(LONG, replay.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.is_empty());

    // The link that was there is untouched.
    tx.send(Chunk { seq: 1, after: 0, payload: vec![1; 1000].into() }).unwrap();
    tokio::task::spawn_blocking(move || {
        sender.0.wait("an acknowledgement", |sent| (sent.cumulative == 1).then_some(()));
        assert!(sender.0.read(|sent| sent.lost.is_empty()));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn strangers_are_bounded_in_number_and_time() {
    let mut setup = Setup::new(Io::Plain);
    setup.change = |config| {
        config.timeouts.handshake = Duration::from_secs(3);
        config.limits.pending_per_address = 12;
    };
    let pair = setup.pair(ACCEPT);
    let there = pair.destination.addresses()[0];
    // Garbage is closed at once.
    let mut garbage = TcpStream::connect(there).await.unwrap();
    garbage.write_all(&noise(3, 100)).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(2), garbage.read(&mut [0; 10])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    // A flood of connections that say nothing, or one byte: only 12 are held.
    let mut flood = Vec::new();
    for n in 0..40 {
        let mut stream = TcpStream::connect(there).await.unwrap();
        if n % 2 == 0 {
            let _ = stream.write_all(b"H").await;
        }
        flood.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut held = 0;
    for stream in &mut flood {
        if tokio::time::timeout(Duration::from_millis(2), stream.read(&mut [0; 10])).await.is_err() {
            held += 1;
        }
    }
    assert_eq!(held, 12);
    // After the handshake's time they are gone, and the door is open.
    for stream in &mut flood {
        let closed = tokio::time::timeout(LONG, stream.read(&mut [0; 10])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    pair.open().await;
}

#[tokio::test]
async fn a_node_that_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let key = StaticKey::generate().unwrap();
    let mut config = NodeConfig::new(key.clone());
    config.listen = vec![taken.local_addr().unwrap()];
    let error = Node::start(config, Host::new(Answer::Nothing)).map(|_| ());
    assert!(matches!(error, Err(StartError::Listen { .. })));
    let mut config = NodeConfig::new(key.clone());
    let peer = |name: &str| Peer {
        name: name.into(),
        addresses: vec![],
        public_key: key.public(),
        may_send: true,
        may_receive: true,
    };
    config.peers = vec![peer("a"), peer("b")];
    let error = Node::start(config, Host::new(Answer::Nothing)).map(|_| ());
    assert!(matches!(error, Err(StartError::SameKey(..))));
}
