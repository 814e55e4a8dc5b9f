//! The way in: QEMU's stream from a unix socket, parsed and staged. Another thread plays QEMU.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{LayoutError, PageId, Source, SourceConfig, Time};
use hikyaku_qemu::stream::{BlockIdx, Events, MAX_UNIT_BYTES, PAGE_BYTES, Parser, ParserConfig, RamLayout};

use super::content::{Content, Corpus, pass, prefix};
use super::meter::{Figure, Meter, thread_cpu};

/// As the daemon reads.
const READ_BYTES: usize = 512 << 10;

/// Passes over the memory after the first.
const LATER_PASSES: u32 = 3;

/// One guest memory's way in.
pub struct Intake {
    /// The first pass: staging's memory is new, and each of its pages a fault.
    pub first: Figure,
    /// The passes after it, which replace what is staged.
    pub later: Figure,
    /// All of the stream.
    pub whole: Figure,
}

/// Pages with content.
pub fn pages(meter: &Meter, pages: u32) -> anyhow::Result<Intake> {
    let corpus = Corpus::new(Content::Random, pages);
    let stream = pass(&corpus.pages.iter().map(Some).collect::<Vec<_>>())?;
    measure(meter, "pages", pages, &stream)
}

/// Nothing but zero pages: a guest of 4 GiB, or there would be little to measure.
pub fn zero(meter: &Meter) -> anyhow::Result<Intake> {
    const PAGES: u32 = 1 << 20;
    let stream = pass(&vec![None; PAGES as usize])?;
    measure(meter, "zero", PAGES, &stream)
}

fn measure(meter: &Meter, content: &'static str, pages: u32, stream: &[u8]) -> anyhow::Result<Intake> {
    const FIRST: &str = "intake + staging, first pass";
    const LATER: &str = "intake + staging, later";
    const WHOLE: &str = "intake + staging, in all";
    // Once for nothing: in a virtual machine the host may have to find the memory first.
    one_migration(pages, stream)?;
    let mut times = Vec::new();
    let mut first_times = Vec::new();
    meter.run(LATER, content, 0, || {
        let (first, again) = one_migration(pages, stream)?;
        first_times.push(first);
        times.push(again);
        Ok(())
    })?;
    let bytes = u64::from(pages) * PAGE_BYTES as u64;
    let whole = first_times.iter().zip(&times).map(|(first, again)| *first + *again * LATER_PASSES).collect();
    Ok(Intake {
        first: Figure::of(FIRST, content, bytes, first_times),
        later: Figure::of(LATER, content, bytes, times),
        whole: Figure::of(WHOLE, content, bytes * u64::from(LATER_PASSES + 1), whole),
    })
}

/// CPU time of the reading side for the first pass, and for one of the later ones.
fn one_migration(pages: u32, stream: &[u8]) -> anyhow::Result<(Duration, Duration)> {
    let (mut ours, mut qemus) = UnixStream::pair()?;
    let staging_bytes = pages as usize * (PAGE_BYTES + 256) + (1 << 20);
    let config = SourceConfig { staging_bytes, ..SourceConfig::default() };
    let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
    let mut intake =
        Feed { source: &mut source, pages: pages.into(), refused: None, seen: 0, first_pass_ended: None };
    let mut parser = Parser::new(ParserConfig::default());
    let mut buffer = vec![0; READ_BYTES + MAX_UNIT_BYTES];
    let mut held = 0;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            qemus.write_all(&prefix(pages))?;
            for _ in 0..=LATER_PASSES {
                qemus.write_all(stream)?;
            }
            Ok::<_, std::io::Error>(())
        });
        let begun = thread_cpu()?;
        loop {
            let got = ours.read(&mut buffer[held..])?;
            if got == 0 {
                break;
            }
            held += got;
            let used = parser.feed(&buffer[..held], &mut intake).map_err(|why| anyhow!("{why}"))?;
            buffer.copy_within(used..held, 0);
            held -= used;
        }
        let ended = thread_cpu()?;
        writer.join().map_err(|_| anyhow!("the writer failed"))??;
        intake.refused.map_or(Ok(()), Err)?;
        ensure!(intake.seen == u64::from(pages) * u64::from(LATER_PASSES + 1), "pages were lost");
        let first = intake.first_pass_ended.ok_or_else(|| anyhow!("the first pass did not end"))??;
        Ok((first.saturating_sub(begun), ended.saturating_sub(first) / LATER_PASSES))
    })
}

/// What the daemon's intake does, for a guest of one block.
struct Feed<'a> {
    source: &'a mut Source,
    pages: u64,
    refused: Option<LayoutError>,
    seen: u64,
    /// CPU time then.
    first_pass_ended: Option<anyhow::Result<Duration>>,
}

impl Feed<'_> {
    fn saw_one(&mut self) {
        self.seen += 1;
        if self.seen == self.pages {
            self.first_pass_ended = Some(thread_cpu());
        }
    }
}

impl Events for Feed<'_> {
    fn opaque(&mut self, bytes: &[u8]) {
        self.source.opaque(bytes);
    }

    fn blocks(&mut self, layout: &RamLayout) {
        let pages: u64 = layout.blocks.iter().map(|block| block.used_bytes / PAGE_BYTES as u64).sum();
        self.refused = self.source.layout(Time(0), u32::try_from(pages).unwrap_or(u32::MAX)).err();
    }

    fn zero(&mut self, _: BlockIdx, offset: u64) {
        self.source.zero(Time(0), page_id(offset), 1);
        self.saw_one();
    }

    fn page(&mut self, _: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        self.source.page(Time(0), page_id(offset), data);
        self.saw_one();
    }

    fn select_block(&mut self, _: BlockIdx) {}

    fn ram_part(&mut self, _: u64) {}

    fn ram_end(&mut self, _: u64) {}

    fn tail(&mut self, bytes: &[u8]) {
        self.source.tail(bytes);
    }
}

fn page_id(offset: u64) -> PageId {
    PageId((offset / PAGE_BYTES as u64) as u32)
}
