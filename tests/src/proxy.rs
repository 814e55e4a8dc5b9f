//! A TCP proxy that passes everything on but one thing.
//!
//! It runs as a program of its own (`faulty-proxy`), because it must stand inside a host's network. A listener is put
//! where one daemon looks for the other; every connection is passed to the real one. On the connections chosen, in the
//! direction from the connecting side, one fault happens at one offset of the byte stream.
//!
//! The first connection between two daemons is their control connection, the later ones are lanes; the proxy itself
//! knows nothing of what passes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What to do to the stream, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub on: Connections,
    /// Offset in the stream of the connecting side, in bytes.
    pub at_bytes: u64,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// The first connection only.
    First,
    /// The first of the later connections that gets as far as the offset.
    Later,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Invert these bits of the bytes from there on.
    Xor([u8; 4]),
    /// Pass nothing from there on, and end the connection.
    Truncate,
}

impl Fault {
    /// As the program's arguments.
    pub fn arguments(&self) -> [String; 3] {
        let on = match self.on {
            Connections::First => "first",
            Connections::Later => "later",
        };
        let kind = match self.kind {
            Kind::Xor(bits) => format!("xor={:#x}", u32::from_le_bytes(bits)),
            Kind::Truncate => "truncate".to_owned(),
        };
        [on.to_owned(), self.at_bytes.to_string(), kind]
    }

    pub fn parse([on, at, kind]: [&str; 3]) -> Option<Fault> {
        Some(Fault {
            on: match on {
                "first" => Connections::First,
                "later" => Connections::Later,
                _ => return None,
            },
            at_bytes: at.parse().ok()?,
            kind: match kind.strip_prefix("xor=") {
                Some(bits) => {
                    Kind::Xor(u32::from_str_radix(bits.strip_prefix("0x")?, 16).ok()?.to_le_bytes())
                }
                None if kind == "truncate" => Kind::Truncate,
                None => return None,
            },
        })
    }
}

/// Serves for ever. Prints `listening` once it does, `fault` when the fault has happened.
pub fn serve(listen: SocketAddr, to: SocketAddr, fault: Fault) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("listening");
    let happened = Arc::new(AtomicBool::new(false));
    let connections = AtomicU32::new(0);
    loop {
        let (client, _) = listener.accept()?;
        let first = connections.fetch_add(1, Ordering::Relaxed) == 0;
        let Ok(server) = TcpStream::connect(to) else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let chosen = first == (fault.on == Connections::First);
        let back = (server.try_clone()?, client.try_clone()?);
        let happened = happened.clone();
        std::thread::spawn(move || pass(client, server, chosen.then_some((fault, happened))));
        std::thread::spawn(move || pass(back.0, back.1, None));
    }
}

/// Passes bytes until either side ends.
fn pass(mut from: TcpStream, mut to: TcpStream, fault: Option<(Fault, Arc<AtomicBool>)>) {
    let mut buffer = vec![0; 256 << 10];
    let mut passed_bytes = 0u64;
    let mut mine = false;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut keep = length;
        if let Some((fault, happened)) = &fault {
            let reached = passed_bytes + length as u64 > fault.at_bytes;
            if reached && !mine && !happened.swap(true, Ordering::Relaxed) {
                mine = true;
                println!("fault");
            }
            if reached && mine {
                keep = fault.apply(passed_bytes, &mut buffer[..length]);
            }
        }
        if to.write_all(&buffer[..keep]).is_err() || keep < length {
            break;
        }
        passed_bytes += length as u64;
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Fault {
    /// To bytes that begin at offset `at_bytes` of the stream; how many of them are to be passed.
    fn apply(&self, at_bytes: u64, bytes: &mut [u8]) -> usize {
        match self.kind {
            Kind::Xor(bits) => {
                for (offset, bits) in (self.at_bytes..).zip(bits) {
                    let here = offset.checked_sub(at_bytes).and_then(|index| bytes.get_mut(index as usize));
                    if let Some(byte) = here {
                        *byte ^= bits;
                    }
                }
                bytes.len()
            }
            Kind::Truncate => self.at_bytes.saturating_sub(at_bytes) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_command_line() {
        for kind in [Kind::Xor([0x80, 0, 1, 0]), Kind::Truncate] {
            let fault = Fault { on: Connections::Later, at_bytes: 100_000, kind };
            let arguments = fault.arguments();
            assert_eq!(Fault::parse(arguments.each_ref().map(String::as_str)), Some(fault));
        }
        assert_eq!(Fault::parse(["first", "1", "melt"]), None);
    }

    #[test]
    fn bits_are_inverted_wherever_the_reads_end() {
        let fault = Fault { on: Connections::First, at_bytes: 5, kind: Kind::Xor([1, 2, 4, 8]) };
        let mut stream = [0u8; 12];
        let (one, other) = stream.split_at_mut(7);
        assert_eq!((fault.apply(0, one), fault.apply(7, other)), (7, 5));
        assert_eq!(stream, [0, 0, 0, 0, 0, 1, 2, 4, 8, 0, 0, 0]);
        let cut = Fault { kind: Kind::Truncate, ..fault };
        assert_eq!(cut.apply(3, &mut [0; 9]), 2);
    }
}
