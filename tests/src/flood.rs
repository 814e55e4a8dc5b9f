//! Strangers at a daemon's door: connections that never say what a peer would.
//!
//! Runs as a process of its own (`src/bin/flood.rs`), in the host that it comes from.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Each waits for its connections: over 40 ms, 25 a second.
const THREADS: usize = 64;
/// That each keeps open, half open to the daemon. It places 256 in all, and ends the rest.
const HELD: usize = 12;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Makes so many connections in so much time, and says how many there were.
pub fn run(to: SocketAddr, attempts: usize, lasts: Duration) -> usize {
    let began = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn(move || {
                    let mut held = VecDeque::new();
                    let mut made = 0;
                    for n in (first..attempts).step_by(THREADS) {
                        let due = began + lasts.mul_f64(n as f64 / attempts as f64);
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if let Ok(stream) = attempt(to, n) {
                            made += 1;
                            held.push_back(stream);
                        }
                        if held.len() > HELD {
                            held.pop_front();
                        }
                    }
                    made
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    })
}

fn attempt(to: SocketAddr, n: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
    // What the daemon ended already.
    let _ = stream.write_all(&first_words(n));
    Ok(stream)
}

/// Nothing, some of a greeting, a greeting and garbage of the length that follows, TLS, HTTP, garbage.
fn first_words(n: usize) -> Vec<u8> {
    let greeting = |kind, suites| [b'H', b'K', b'Y', b'K', 1, 0, 1, 0, kind, suites, 0, 0];
    let noise = |bytes| (0..bytes).map(|i| ((n + i) * (n + 7 * i)) as u8).collect::<Vec<_>>();
    match n % 7 {
        0 => Vec::new(),
        1 => greeting(1, 3)[..5].to_vec(),
        2 => [&greeting(1, 3)[..], &[96, 0], &noise(96)].concat(),
        3 => [&greeting(2, 0)[..], &noise(92)].concat(),
        4 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(506)].concat(),
        5 => b"GET / HTTP/1.1\r\nHost: osaka\r\n\r\n".to_vec(),
        _ => noise(300),
    }
}

#[cfg(test)]
mod tests {
    use hikyaku_transport::wire::greeting::{Greeting, Kind};

    use super::first_words;

    /// One of another version is turned away before anything is computed for it.
    #[test]
    fn two_of_seven_get_as_far_as_the_handshake_and_the_hello() {
        let kind = |n: usize| {
            let greeting = first_words(n).first_chunk().and_then(|bytes| Greeting::decode(bytes).ok());
            greeting.map(|greeting| greeting.kind)
        };
        assert!(matches!(kind(2), Some(Kind::Control { .. })), "{:?}", kind(2));
        assert_eq!(kind(3), Some(Kind::Lane));
    }
}
