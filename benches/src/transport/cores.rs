//! The part `cores`: what one core seals and sends, and receives and opens, over loopback, beside the bare cipher.
//!
//! One lane thread at each end; payload by the CPU time of that thread, so that other work on the machine costs time and not
//! figures (it shares caches and clocks, though). Over loopback the kernel does part of the receiver's work in the sender's
//! system calls: the sender's figure bears it.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use hikyaku_transport::seal::{Direction, LinkSecret};
use hikyaku_transport::wire::frame::{FrameType, Header};
use hikyaku_transport::{Epoch, LaneId, Suite, suite};
use nix::time::{ClockId, clock_gettime};

use super::course::{Course, load_average};
use super::pair::{Place, transfer};
use super::plan::{Amount, Manner};
use crate::verdict::{Bound, Repeats, Verdict};

const WITH_AVX512: f64 = 1.0;
const WITH_AVX2: f64 = 0.7;
const TIME: Duration = Duration::from_secs(4);
const QUICK: Duration = Duration::from_secs(1);
/// What loopback does at least: bounds the wait.
const LOOPBACK_BYTES_PER_S: f64 = 1e8;
/// As long as the chunks that are sent are in the middle.
const CHUNK_BYTES: usize = 192 << 10;
/// Far more than caches hold, as chunks are.
const NOISE_BYTES: usize = 32 << 20;

pub fn cores(course: &Course) -> anyhow::Result<Vec<Verdict>> {
    let (simd, bound) = simd();
    let suites = suite::best_here();
    println!("\ncores: one lane thread at each end, over loopback; {simd}; offered here: {suites}");
    let taken = suites.choose(suites).unwrap_or(Suite::ChaCha20Poly1305);
    let mut rows: Vec<_> = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
        .into_iter()
        .filter(|suite| suites.contains(*suite))
        .map(|suite| (suite, Repeats::default(), Repeats::default()))
        .collect();
    for repeat in 1..=course.repeats {
        for (suite, sends, receives) in &mut rows {
            let (send, receive) = run(repeat, *suite, course)?;
            sends.add(send);
            receives.add(receive);
        }
    }
    let mut verdicts = Vec::new();
    for (suite, sends, receives) in &rows {
        println!(
            "  {suite}: seal and send {} GB/s, receive and open {}",
            sends.show(1.0, 2),
            receives.show(1.0, 2)
        );
        // Only what links take is judged.
        if *suite == taken {
            for (what, repeats) in [("seal and send", sends), ("receive and open", receives)] {
                let what = format!("cores: {what} with {suite} ({simd}), of one core");
                verdicts.push(Verdict::new(what, repeats.median(), Bound::AtLeast(bound), " GB/s"));
            }
        }
    }
    Ok(verdicts)
}

/// GB/s of CPU time: sealed and sent, received and opened.
fn run(repeat: u32, suite: Suite, course: &Course) -> anyhow::Result<(f64, f64)> {
    let time = if course.quick { QUICK } else { TIME };
    let (seal, open) = bare_cipher(suite, time / 4)?;
    let manner = Manner {
        amount: Amount::Time(time),
        lane_threads: Some(1),
        lanes: course.lanes,
        suite: Some(suite.id()),
        ..Manner::default()
    };
    let outcome = transfer(Place::Here, &manner, LOOPBACK_BYTES_PER_S)?;
    let received = outcome.received.series();
    let send = outcome.sent.delivered_bytes as f64 / outcome.sent.usage.lane_cpu.as_secs_f64();
    let receive = received.bytes() as f64 / outcome.received.usage.lane_cpu.as_secs_f64();
    println!(
        "  {repeat} {suite}: seal and send {:.2} GB/s (the bare cipher: {:.2}), receive and open {:.2} ({:.2}); {:.2} GB/s went over; {}; load {}",
        send / 1e9,
        seal / 1e9,
        receive / 1e9,
        open / 1e9,
        received.rate_from(Duration::ZERO) / 1e9,
        outcome.sent.io,
        load_average(),
    );
    Ok((send / 1e9, receive / 1e9))
}

/// What the cipher has to work with here, and what is asked of it.
fn simd() -> (&'static str, f64) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return ("AVX-512", WITH_AVX512);
    }
    ("no AVX-512", WITH_AVX2)
}

/// Bytes per second of this thread's CPU time: sealed, and opened.
fn bare_cipher(suite: Suite, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut noise = vec![0; NOISE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let secret = LinkSecret::new([1; 32], suite);
    let (link, lane, epoch) = ([2; 16], LaneId(0), Epoch(1));
    let mut sealer = secret.sealer(&link, lane, epoch, Direction::FromInitiator);
    let mut opener = secret.opener(&link, lane, epoch, Direction::FromInitiator);
    let header = Header {
        kind: FrameType::Chunk,
        lane,
        epoch,
        session: 1,
        body_bytes: CHUNK_BYTES as u32,
        seq: 1,
        after: 0,
    };
    let (mut seal, mut open, mut bytes) = (Duration::ZERO, Duration::ZERO, 0_u64);
    let mut frame = Vec::new();
    let (begin, head) = (thread_cpu()?, header.encode());
    for chunk in noise.chunks_exact(CHUNK_BYTES).cycle() {
        let start = thread_cpu()?;
        let end = sealer.seal(&header, chunk, &mut frame);
        let sealed = thread_cpu()?;
        let mut body = frame.get(head.len()..end).unwrap_or_default().to_vec();
        let copied = thread_cpu()?;
        opener.open(&head, &mut body)?;
        let opened = thread_cpu()?;
        seal += sealed.saturating_sub(start);
        open += opened.saturating_sub(copied);
        bytes += CHUNK_BYTES as u64;
        if opened.saturating_sub(begin) > time {
            break;
        }
    }
    Ok((bytes as f64 / seal.as_secs_f64(), bytes as f64 / open.as_secs_f64()))
}

fn thread_cpu() -> anyhow::Result<Duration> {
    let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::new(spent.tv_sec() as u64, spent.tv_nsec() as u32))
}
