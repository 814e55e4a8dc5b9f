//! How fast this machine seals and opens frames with each cipher suite, on one thread:
//! `cargo run --release -p hikyaku-transport --example ciphers`

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use hikyaku_transport::seal::{Direction, LinkSecret};
use hikyaku_transport::wire::frame::{FrameType, HEADER_BYTES, Header};
use hikyaku_transport::{Epoch, LaneId, Suite, suite};

const BODY_BYTES: usize = 128 * 1024;
/// Together more than the CPU's caches hold: chunks come from memory.
const BODIES: usize = 2048;
const ROUNDS: usize = 4;

fn main() {
    println!("offered here: {}", suite::best_here());
    let (lane, epoch, link) = (LaneId(0), Epoch(1), [0; 16]);
    let body_bytes = BODY_BYTES as u32;
    let header = Header { kind: FrameType::Chunk, lane, epoch, session: 0, body_bytes, seq: 0, after: 0 };
    let bodies = vec![7; BODY_BYTES * BODIES];
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let secret = LinkSecret::new([1; 32], suite);
        let (mut best_seal, mut best_open) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            let sealer = || secret.sealer(&link, lane, epoch, Direction::FromInitiator);
            let (mut timed, mut frame) = (sealer(), Vec::new());
            let began = Instant::now();
            for body in bodies.chunks(BODY_BYTES) {
                timed.seal(&header, body, &mut frame);
            }
            best_seal = best_seal.min(began.elapsed().as_secs_f64());

            let mut sealer = sealer();
            let seal = |body| {
                sealer.seal(&header, body, &mut frame);
                frame[HEADER_BYTES..].to_vec()
            };
            let mut sealed: Vec<_> = bodies.chunks(BODY_BYTES).map(seal).collect();
            let mut opener = secret.opener(&link, lane, epoch, Direction::FromInitiator);
            let head = header.encode();
            let began = Instant::now();
            for body in &mut sealed {
                opener.open(&head, body).unwrap();
            }
            best_open = best_open.min(began.elapsed().as_secs_f64());
        }
        let gb_per_s = |seconds: f64| bodies.len() as f64 / seconds / 1e9;
        println!("{suite}: seal {:.2} GB/s, open {:.2} GB/s", gb_per_s(best_seal), gb_per_s(best_open));
    }
}
