//! Streams of a real QEMU are read, written again in every way there is, and loaded by a real QEMU. What arrived
//! is judged by the receiving QEMU's own stream: every page of every RAM block, ROMs and video memory too.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{Capture, Image, Qemu, Setup, Told, capture, load, qemu};
use hikyaku_qemu::stream::replay::Replay;
use hikyaku_qemu::stream::xbzrle;
use hikyaku_qemu::stream::{
    BlockIdx, PAGE_BYTES, Parser, ParserConfig, Resume, TailScanner, Why, Writer, WriterConfig,
};

const SETUPS: [Setup; 3] = [Setup::DevicesStopped, Setup::DevicesRunning, Setup::Writer];

/// The stream of a guest that was stopped before it left, so that it arrives paused.
async fn captured(qemu: &Qemu, setup: Setup) -> Capture {
    let guest = qemu.source(setup).await;
    match setup {
        Setup::DevicesStopped => {}
        Setup::DevicesRunning => tokio::time::sleep(std::time::Duration::from_millis(700)).await,
        Setup::Writer => guest.wait_writing().await,
    }
    guest.qmp.stop().await.unwrap();
    capture(&guest, &[]).await
}

/// What a QEMU that loaded `stream` holds.
async fn loaded(qemu: &Qemu, setup: Setup, stream: &[u8]) -> Image {
    let guest = qemu.destination(setup).await;
    load(&guest, stream).await;
    Told::of(&capture(&guest, &[]).await.stream).image()
}

fn assert_same(got: &Image, want: &Image) {
    assert_eq!(got.len(), want.len(), "another number of pages");
    for ((key, got), (other, want)) in got.iter().zip(want) {
        assert_eq!(key, other, "another page");
        assert!(got == want, "the content of {key:?} differs");
    }
}

fn writer(told: &Told) -> (Writer, Vec<u8>) {
    (Writer::new(told.layout().clone(), WriterConfig::default()), told.prefix.clone())
}

fn finish(mut writer: Writer, mut out: Vec<u8>, told: &Told) -> Vec<u8> {
    writer.finish_ram(&mut out).unwrap();
    writer.tail(&mut out, &told.tail).unwrap();
    out
}

#[tokio::test]
async fn a_stream_is_understood_and_replayed_byte_for_byte() {
    let Some(qemu) = qemu() else { return };
    for setup in SETUPS {
        let stream = captured(&qemu, setup).await.stream;
        // Odd pieces: every kind of record is cut somewhere.
        for piece in [stream.len(), 4099] {
            let (mut replay, mut parser) = (Replay::new(), Parser::new(ParserConfig::default()));
            let (mut from, mut to) = (0, 0);
            while to < stream.len() {
                to = (to + piece).min(stream.len());
                from += parser.feed(&stream[from..to], &mut replay).expect("not understood");
            }
            parser.finish().unwrap();
            let again = replay.into_bytes();
            let differs = again.iter().zip(&stream).position(|(a, b)| a != b);
            assert_eq!((differs, again.len()), (None, stream.len()), "{setup:?}");
        }
        let told = Told::of(&stream);
        let names: BTreeSet<_> = told.layout().blocks.iter().map(|b| b.name.to_string()).collect();
        assert!(names.contains("pc.ram"), "{names:?}");
        assert!(names.iter().any(|n| n.ends_with("vga.vram")), "{names:?}");
    }
}

#[tokio::test]
async fn the_section_that_virtio_mem_sends_early_is_passed_whole() {
    let Some(qemu) = qemu() else { return };
    let stream = captured(&qemu, Setup::DevicesStopped).await.stream;
    let told = Told::of(&stream);
    let names: Vec<_> = told.layout().blocks.iter().map(|b| b.name.to_string()).collect();
    assert!(names.iter().any(|n| n.ends_with("vmem0")), "{names:?}");
    let has = |name: &[u8]| told.prefix.windows(name.len()).any(|w| w == name);
    let version = qemu.source(Setup::DevicesStopped).await.qmp.greeting_version().qemu;
    assert_eq!(has(b"/virtio-mem-device-early"), version.major >= 8, "{version:?}");
    // All of RAM was told but what virtio-mem has not plugged.
    let bytes: u64 = told.layout().blocks.iter().map(|b| b.span_bytes()).sum();
    let pages = told.pages.len() as u64 * PAGE_BYTES as u64;
    assert!(pages <= bytes && pages + (128 << 20) >= bytes, "{pages} of {bytes}");
}

#[tokio::test]
async fn a_replayed_stream_loads() {
    let Some(qemu) = qemu() else { return };
    let stream = captured(&qemu, Setup::DevicesRunning).await.stream;
    assert_same(&loaded(&qemu, Setup::DevicesRunning, &stream).await, &Told::of(&stream).image());
}

#[tokio::test]
async fn pages_written_in_another_order_load() {
    let Some(qemu) = qemu() else { return };
    for setup in SETUPS {
        let told = Told::of(&captured(&qemu, setup).await.stream);
        let (mut writer, mut out) = writer(&told);
        // Backwards, blocks interleaved, so that almost no record continues its block.
        let mut pages: Vec<_> = told.pages.iter().collect();
        pages.sort_by_key(|((block, offset), _)| std::cmp::Reverse((offset >> 12 & 0xff, *block, *offset)));
        for ((block, offset), data) in pages {
            match data {
                None => writer.zero(&mut out, *block, *offset, 1).unwrap(),
                Some(page) => writer.page(&mut out, *block, *offset, page).unwrap(),
            }
        }
        let stream = finish(writer, out, &told);
        assert_eq!(Told::of(&stream).image(), told.image(), "what was written is what was meant");
        assert_same(&loaded(&qemu, setup, &stream).await, &told.image());
    }
}

#[tokio::test]
async fn pages_written_as_deltas_load() {
    let Some(qemu) = qemu() else { return };
    let setup = Setup::DevicesRunning;
    let told = Told::of(&captured(&qemu, setup).await.stream);
    let (mut writer, mut out) = writer(&told);
    let mut deltas = 0;
    for ((block, offset), data) in &told.pages {
        let Some(page) = data else {
            writer.zero(&mut out, *block, *offset, 1).unwrap();
            continue;
        };
        // First another content, then what turns it into the right one: at its ends, and in the middle.
        let changes = [(0, 5), (700, 300), (PAGE_BYTES - 3, 3)];
        let (mut base, mut delta, mut at) = (page.clone(), Vec::new(), 0);
        for (from, len) in changes {
            base[from..from + len].iter_mut().for_each(|b| *b ^= 0x5a);
            for run in [from - at, len] {
                if run < 0x80 {
                    delta.push(run as u8);
                } else {
                    delta.extend_from_slice(&[run as u8 | 0x80, (run >> 7) as u8]);
                }
            }
            delta.extend_from_slice(&page[from..from + len]);
            at = from + len;
        }
        let mut check = base.clone();
        xbzrle::decode(&mut check, &delta).unwrap();
        assert_eq!(&check, page);
        writer.page(&mut out, *block, *offset, &base).unwrap();
        writer.xbzrle(&mut out, *block, *offset, &delta).unwrap();
        deltas += 1;
    }
    assert!(deltas > 100, "only {deltas} pages to try it on");
    assert_same(&loaded(&qemu, setup, &finish(writer, out, &told)).await, &told.image());
}

#[tokio::test]
async fn a_relay_can_take_over_in_the_middle() {
    let Some(qemu) = qemu() else { return };
    let setup = Setup::Writer;
    let stream = captured(&qemu, setup).await.stream;
    let want = Told::of(&stream).image();
    // Between two records of a PART that both continue a block, and between two items.
    let (mut in_ram, mut between) = (None, None);
    let mut parser = Parser::new(ParserConfig::default());
    let (mut from, mut told) = (0, Told::default());
    for to in (0..stream.len()).step_by(977) {
        from += parser.feed(&stream[from..to], &mut told).unwrap();
        match parser.resume() {
            Resume::InRam { last_block: Some(_) } if told.records > 500 && in_ram.is_none() => {
                in_ram = Some(from);
            }
            Resume::Item { last_block: Some(_) } => between = Some(from),
            _ => {}
        }
    }
    // An item's first byte is always there; feed up to it exactly if no piece happened to end there.
    let between = between.or_else(|| item_boundary(&stream));
    for at in [in_ram.expect("no place inside RAM"), between.expect("no place between items")] {
        let mut told = Told::default();
        let mut parser = Parser::new(ParserConfig::default());
        assert_eq!(parser.feed(&stream[..at], &mut told).unwrap(), at);
        let (mut writer, mut out) = writer(&told);
        // The rebuilt stream has another block last than the source's.
        for ((block, offset), data) in told.pages.iter().rev() {
            match data {
                None => writer.zero(&mut out, *block, *offset, 1).unwrap(),
                Some(page) => writer.page(&mut out, *block, *offset, page).unwrap(),
            }
        }
        let other = BlockIdx((told.layout().blocks.len() - 1) as u16);
        writer.select_block(&mut out, other).unwrap();
        writer.begin_relay(&mut out, parser.resume()).unwrap();
        out.extend_from_slice(&stream[at..]);
        assert_same(&loaded(&qemu, setup, &out).await, &want);
    }
}

/// The position right after some PART section of RAM that had pages.
fn item_boundary(stream: &[u8]) -> Option<usize> {
    let told = Told::of(stream);
    let mut close = vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e];
    close.extend_from_slice(&told.layout().section_id.to_be_bytes());
    let mut parser = Parser::new(ParserConfig::default());
    let mut seen = Told::default();
    let ends = stream.windows(close.len()).enumerate().filter(|(_, w)| *w == close).map(|(i, w)| i + w.len());
    let mut from = 0;
    for end in ends {
        from += parser.feed(&stream[from..end], &mut seen).unwrap();
        if from == end && matches!(parser.resume(), Resume::Item { last_block: Some(_) }) {
            return Some(end);
        }
    }
    None
}

#[tokio::test]
async fn a_source_with_xbzrle_is_relayed_from_its_first_delta() {
    let Some(qemu) = qemu() else { return };
    let guest = qemu.source(Setup::Writer).await;
    guest.wait_writing().await;
    let not_understood = common::until_not_understood(&guest).await;
    assert_eq!(not_understood.why.0, Why::RamFlags(0x040 | not_understood.why.1));
    // A delta names its block or continues it; either way it is inside RAM and the relay can take over there.
    let setup = Setup::Writer;
    let common::Broken { stream, at, resume, told, .. } = not_understood;
    let (mut writer, mut out) = writer(&told);
    for ((block, offset), data) in told.pages.iter().rev() {
        match data {
            None => writer.zero(&mut out, *block, *offset, 1).unwrap(),
            Some(page) => writer.page(&mut out, *block, *offset, page).unwrap(),
        }
    }
    writer.begin_relay(&mut out, resume).unwrap();
    out.extend_from_slice(&stream[at..]);
    // QEMU may have stopped the guest itself before our `stop` came: then only `-S` keeps it stopped there.
    let receiver = qemu.start(setup, "", true, true).await;
    load(&receiver, &out).await;
    // Below and above the legacy hole, which shows other memory.
    for (from, to) in [(0, 0xa_0000), (0x10_0000, 32 << 20)] {
        let (got, want) =
            (receiver.memory(from, to - from as usize).await, guest.memory(from, to - from as usize).await);
        assert_eq!(got.iter().zip(&want).position(|(a, b)| a != b), None);
    }
}

#[tokio::test]
async fn the_tail_is_complete_at_its_last_byte_and_nowhere_before() {
    let Some(qemu) = qemu() else { return };
    for setup in SETUPS {
        let told = Told::of(&captured(&qemu, setup).await.stream);
        let mut scanner = TailScanner::new();
        for (n, byte) in told.tail.iter().enumerate() {
            scanner.push(std::slice::from_ref(byte));
            assert_eq!(scanner.complete(), n + 1 == told.tail.len(), "{setup:?}: byte {n}");
        }
    }
}

#[tokio::test]
async fn a_guest_that_writes_while_it_moves_arrives_whole() {
    let Some(qemu) = qemu() else { return };
    let guest = qemu.source(Setup::Writer).await;
    guest.wait_writing().await;
    // Slow at first: several passes over what the guest writes again and again.
    let limits = |downtime_ms: u64, bytes_per_s: u64| {
        let parameters = serde_json::json!({"downtime-limit": downtime_ms, "max-bandwidth": bytes_per_s});
        guest.qmp.migrate_set_parameters(parameters)
    };
    limits(1, 4 << 20).await.unwrap();
    let later = async {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        limits(2000, 0).await.unwrap();
    };
    let (captured, ()) = tokio::join!(capture(&guest, &[]), later);
    let told = Told::of(&captured.stream);
    assert!(told.parts.len() > 5, "it converged too soon: {:?}", told.parts);
    let memory = guest.memory(0, 0xa_0000).await;
    for ((name, offset), page) in told.image() {
        if name.as_bytes() == b"pc.ram" && offset < memory.len() as u64 {
            let want = &memory[offset as usize..][..PAGE_BYTES];
            assert!(page.map_or([0; PAGE_BYTES], |p| *p) == want, "the page at {offset:#x} differs");
        }
    }
}
