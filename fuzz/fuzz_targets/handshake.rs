//! An attacker's bytes against everything that is said before somebody has authenticated: as the initiator's first flight, as
//! the responder's answer, as a first record, as a lane's hello. No panic, bounded memory; and nothing is believed: whatever of
//! an honest side's bytes is changed, nobody is let in. The first byte chooses what is attacked and how: with the bytes as they
//! are, or with honest ones that the bytes are xored into.
#![no_main]

use std::sync::LazyLock;

use hikyaku_transport::handshake::{
    HandshakeError, Initiation, MESSAGE_1_BYTES, MESSAGE_2_BYTES_MAX, RecordOpener, RecordSealer, Responder,
};
use hikyaku_transport::hello::{self, LINK_ID_BYTES, REST_BYTES};
use hikyaku_transport::seal::LinkSecret;
use hikyaku_transport::suite::SuiteSet;
use hikyaku_transport::wire::control::Message;
use hikyaku_transport::wire::greeting::{GREETING_BYTES, Greeting, Kind};
use hikyaku_transport::{Epoch, LaneId, PublicKey, StaticKey, Suite};
use libfuzzer_sys::fuzz_target;

struct Honest {
    initiator: StaticKey,
    key: PublicKey,
    responder: Responder,
    /// A first flight, which the responder has not seen.
    flight: Vec<u8>,
}

static HONEST: LazyLock<Honest> = LazyLock::new(|| {
    let key =
        |digit: &str| StaticKey::from_text(&format!("HIKYAKU-SECRET-KEY-{}", digit.repeat(64))).unwrap();
    let (initiator, responder) = (key("1"), key("2"));
    let public = responder.public();
    let flight = Initiation::new(&initiator, &public, all()).unwrap().1;
    Honest { initiator, key: public, responder: Responder::new(responder, all()), flight }
});

fn all() -> SuiteSet {
    [Suite::ChaCha20Poly1305, Suite::Aes256Gcm].into_iter().collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    match choice % 8 {
        0 => {
            respond(bytes);
        }
        // The same flight that opens untouched must not open changed.
        1 => {
            if let Some(changed) = xored(&HONEST.flight, bytes) {
                assert!(!respond(&changed), "a changed first flight was believed");
            }
        }
        2 => finish(bytes),
        3 => answer(bytes),
        4 => first_record(bytes, false),
        5 => first_record(bytes, true),
        6 => {
            lane(bytes);
        }
        _ => {
            let (honest, _) = hello::hello(&secret(choice), &LINK, LaneId(3), Epoch(4));
            if let Some(changed) = xored(&honest, bytes) {
                assert!(!lane(&changed), "a changed hello was believed");
            }
        }
    }
});

/// `None` if nothing is changed.
fn xored(honest: &[u8], with: &[u8]) -> Option<Vec<u8>> {
    let mut changed = honest.to_vec();
    changed.iter_mut().zip(with).for_each(|(byte, x)| *byte ^= x);
    (changed != honest).then_some(changed)
}

/// As a listener does. Whether anybody's key was believed.
fn respond(bytes: &[u8]) -> bool {
    let Some((greeting, rest)) = bytes.split_first_chunk::<GREETING_BYTES>() else { return false };
    let Ok(Greeting { kind: Kind::Control { suites }, .. }) = Greeting::decode(greeting) else {
        return false;
    };
    let Some(suite) = HONEST.responder.choose(suites) else { return false };
    assert!(suites.contains(suite));
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return false };
    if usize::from(u16::from_le_bytes(*length)) != MESSAGE_1_BYTES {
        return false;
    }
    let Some(first) = rest.first_chunk::<MESSAGE_1_BYTES>() else { return false };
    let mut asked = None;
    // Nobody is let in, so that no message counts as seen.
    let answer = HONEST.responder.answer(greeting, suite, first, |key| {
        asked = Some(key);
        Err::<(), _>("nobody".into())
    });
    match answer {
        Ok(answer) => assert!(answer.decision.is_err() && answer.flight.len() <= 14 + MESSAGE_2_BYTES_MAX),
        Err(HandshakeError::WrongKey(_)) => assert!(asked.is_none()),
        Err(error) => panic!("{error}"),
    }
    asked == Some(HONEST.initiator.public())
}

/// An answer to a first flight out of nothing.
fn finish(bytes: &[u8]) {
    let Some((greeting, rest)) = bytes.split_first_chunk::<GREETING_BYTES>() else { return };
    let _ = Initiation::greeted(greeting);
    let (initiation, _) = Initiation::new(&HONEST.initiator, &HONEST.key, all()).unwrap();
    let second = rest.get(2..).unwrap_or_default();
    assert!(initiation.finish(&second[..second.len().min(MESSAGE_2_BYTES_MAX)]).is_err());
}

/// An honest answer, changed.
fn answer(bytes: &[u8]) {
    let (initiation, flight) = Initiation::new(&HONEST.initiator, &HONEST.key, all()).unwrap();
    let Some(second) = xored(&answer_to(&flight).0[GREETING_BYTES + 2..], bytes) else { return };
    assert!(initiation.finish(&second).is_err(), "a changed answer was believed");
}

fn answer_to(flight: &[u8]) -> (Vec<u8>, hikyaku_transport::handshake::Keys) {
    let greeting = flight.first_chunk::<GREETING_BYTES>().unwrap();
    let first = flight[GREETING_BYTES + 2..].first_chunk::<MESSAGE_1_BYTES>().unwrap();
    // One that remembers nothing of the runs before.
    let key = StaticKey::from_text(&format!("HIKYAKU-SECRET-KEY-{}", "2".repeat(64))).unwrap();
    let answer = Responder::new(key, all()).answer(greeting, Suite::Aes256Gcm, first, |_| Ok(())).unwrap();
    let (keys, ()) = answer.decision.unwrap();
    (answer.flight, keys)
}

/// After an honest handshake: bytes out of nothing, or an honest record, changed.
fn first_record(bytes: &[u8], honest: bool) {
    let (initiation, flight) = Initiation::new(&HONEST.initiator, &HONEST.key, all()).unwrap();
    let (answer, theirs) = answer_to(&flight);
    let ours = initiation.finish(&answer[GREETING_BYTES + 2..]).unwrap();
    assert_eq!(ours.suite, theirs.suite);
    let mut record = Vec::new();
    RecordSealer::new(&ours).seal(&Message::Ping(7), &mut record).unwrap();
    let mut opener = RecordOpener::new(&theirs);
    let record = match honest {
        true => {
            let Some(changed) = xored(&record, bytes) else { return };
            changed
        }
        false => bytes.to_vec(),
    };
    let Some((length, sealed)) = record.split_first_chunk::<2>() else { return };
    let Ok(length) = opener.announced(u16::from_le_bytes(*length)) else { return };
    if let Some(sealed) = sealed.get(..length) {
        assert!(opener.open(sealed).is_err(), "a changed record was believed");
    }
}

const LINK: [u8; LINK_ID_BYTES] = [9; LINK_ID_BYTES];

fn secret(choice: u8) -> LinkSecret {
    let suite = if choice & 8 == 0 { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm };
    LinkSecret::new([5; 32], suite)
}

/// As a listener does. Whether the hello was believed.
fn lane(bytes: &[u8]) -> bool {
    let Some((greeting, rest)) = bytes.split_first_chunk::<GREETING_BYTES>() else { return false };
    let Some(rest) = rest.first_chunk::<REST_BYTES>() else { return false };
    hello::claimed_link(rest) == LINK
        && [0, 8].iter().any(|choice| hello::open(&secret(*choice), greeting, rest).is_some())
}
