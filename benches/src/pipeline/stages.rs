//! Each stage alone, and the chains of a source and a destination on one thread.

use std::convert::Infallible;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{
    Action, Chunk, EncodeScratch, LinkStats, PageBytes, PageId, Receiver, ReceiverConfig, Sink, Source,
    SourceConfig, Time, codec,
};
use hikyaku_qemu::stream::{
    BlockIdx, Events, PAGE_BYTES, Parser, ParserConfig, RamLayout, Writer, WriterConfig,
};
use hikyaku_transport::seal::{Direction, LinkSecret, Opener, Sealer};
use hikyaku_transport::wire::frame::{FrameType, HEADER_BYTES, Header};
use hikyaku_transport::{Epoch, LaneId, Suite};

use super::content::{Corpus, layout, pass, prefix};
use super::meter::{Figure, Meter, thread_cpu};

/// Gathered before it is written to the destination's QEMU.
const WRITE_BYTES: usize = 256 << 10;

/// Does not depend on the content: pages that are not zero differ in their first bytes.
pub fn zero_test(meter: &Meter, pages: u32) -> anyhow::Result<Figure> {
    // Written once, or the kernel would back all of them by one page.
    let mut zero = vec![[1; PAGE_BYTES]; pages as usize];
    zero.fill([0; PAGE_BYTES]);
    meter.run("zero test", "zero", u64::from(pages) * PAGE_BYTES as u64, || {
        ensure!(zero.iter().all(|page| codec::is_zero(black_box(page))), "all pages are zero");
        Ok(())
    })
}

pub fn all(meter: &Meter, corpus: &Corpus, show: &mut impl FnMut(Figure)) -> anyhow::Result<()> {
    let name = corpus.content.name();
    let bytes = corpus.bytes();
    let count = corpus.pages.len() as u32;

    let mut stream = prefix(count);
    stream.extend(pass(&corpus.pages.iter().map(Some).collect::<Vec<_>>())?);
    show(meter.run("parse", name, bytes, || parse(&stream))?);

    let mut staged = new_source(count)?;
    show(meter.run("stage", name, bytes, || {
        feed(&mut staged, corpus);
        Ok(())
    })?);
    drop(staged);

    let mut encoder = Encoder::default();
    let mut chunks = Vec::new();
    let figure = meter.part("LZ4, with copies and header", name, bytes, || {
        let mut source = new_source(count)?;
        feed(&mut source, corpus);
        chunks.clear();
        encoder.encoding = Duration::ZERO;
        encoder.drain(&mut source, |chunk| chunks.push(chunk))?;
        Ok(encoder.encoding)
    })?;
    let payload_bytes: u64 = chunks.iter().map(|chunk| chunk.payload.len() as u64).sum();
    show(figure.note(format!("to {:.0} %", payload_bytes as f64 * 100.0 / bytes as f64)));

    let mut sealed = Vec::new();
    show(meter.run("seal", name, bytes, || {
        let mut sealer = sealer();
        sealed.clear();
        for chunk in &chunks {
            // Where the lane has one buffer, the measurement of `open` needs all of them.
            let mut frame = Vec::with_capacity(chunk.payload.len() + 64);
            seal(&mut sealer, chunk, &mut frame);
            sealed.push(frame);
        }
        Ok(())
    })?);

    show(meter.run("open", name, bytes, || {
        let mut opener = opener();
        for frame in &sealed {
            black_box(open(&mut opener, frame)?);
        }
        Ok(())
    })?);

    show(meter.run("decompress + order", name, bytes, || {
        let mut counter = Counter { pages: 0 };
        let mut receiver = Receiver::new(ReceiverConfig::default());
        receiver.layout(count)?;
        for chunk in &chunks {
            receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut counter)?;
        }
        ensure!(counter.pages == u64::from(count), "pages were lost");
        Ok(())
    })?);

    show(with_reader(|socket| {
        meter.run("write", name, bytes, || {
            let mut sink = QemuSink::new(socket, count);
            for (at, page) in corpus.pages.iter().enumerate() {
                sink.page(PageId(at as u32), page)?;
            }
            Ok(sink.flush()?)
        })
    })?);

    let mut frame = Vec::new();
    show(meter.run("source, all on one core", name, bytes, || {
        let mut sealer = sealer();
        let mut source = new_source(count)?;
        let mut intake = Staging(&mut source);
        Parser::new(ParserConfig::default()).feed(&stream, &mut intake).map_err(|why| anyhow!("{why}"))?;
        encoder.drain(&mut source, |chunk| {
            seal(&mut sealer, &chunk, &mut frame);
            black_box(&frame);
        })
    })?);

    show(with_reader(|socket| {
        meter.run("destination, all on one core", name, bytes, || {
            let mut opener = opener();
            let mut sink = QemuSink::new(socket, count);
            let mut receiver = Receiver::new(ReceiverConfig::default());
            receiver.layout(count)?;
            for (chunk, frame) in chunks.iter().zip(&sealed) {
                let payload = open(&mut opener, frame)?;
                receiver.chunk(chunk.seq, chunk.after, payload, &mut sink).context("receiving")?;
            }
            Ok(sink.flush()?)
        })
    })?);
    Ok(())
}

fn parse(stream: &[u8]) -> anyhow::Result<()> {
    struct Look(u64);
    impl Events for Look {
        fn opaque(&mut self, _: &[u8]) {}
        fn blocks(&mut self, _: &RamLayout) {}
        fn zero(&mut self, _: BlockIdx, offset: u64) {
            self.0 ^= offset;
        }
        fn page(&mut self, _: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
            self.0 ^= offset ^ u64::from(data[0]);
        }
        fn select_block(&mut self, _: BlockIdx) {}
        fn ram_part(&mut self, _: u64) {}
        fn ram_end(&mut self, _: u64) {}
        fn tail(&mut self, _: &[u8]) {}
    }
    let mut look = Look(0);
    let used =
        Parser::new(ParserConfig::default()).feed(stream, &mut look).map_err(|why| anyhow!("{why}"))?;
    ensure!(used == stream.len(), "the stream was not taken whole");
    black_box(look.0);
    Ok(())
}

fn new_source(pages: u32) -> anyhow::Result<Source> {
    let config = SourceConfig {
        staging_bytes: pages as usize * (PAGE_BYTES + 256) + (1 << 20),
        encode_jobs: 1,
        ..SourceConfig::default()
    };
    let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
    source.layout(Time(0), pages)?;
    Ok(source)
}

fn feed(source: &mut Source, corpus: &Corpus) {
    for (at, page) in corpus.pages.iter().enumerate() {
        source.page(Time(0), PageId(at as u32), page);
    }
}

#[derive(Default)]
struct Encoder {
    scratch: EncodeScratch,
    /// CPU time of the jobs so far.
    encoding: Duration,
}

impl Encoder {
    /// Encodes all that is staged; the link is as fast as it has to be.
    fn drain(&mut self, source: &mut Source, mut send: impl FnMut(Chunk)) -> anyhow::Result<()> {
        source.guest_stopped(Time(0));
        while let Some(action) = source.poll(Time(0)) {
            match action {
                Action::Encode(job) => {
                    let before = thread_cpu()?;
                    let encoded = job.run(&mut self.scratch);
                    self.encoding += thread_cpu()?.saturating_sub(before);
                    source.encoded(Time(0), encoded);
                }
                Action::Send(chunk) => {
                    source.link(Time(0), LinkStats::default());
                    let seq = chunk.seq;
                    send(chunk);
                    source.acked(Time(0), seq, &[]);
                }
                Action::Abort(why) => return Err(why.into()),
                Action::Switch | Action::Throttle(_) | Action::WakeAt(_) => {}
            }
        }
        ensure!(source.is_drained(), "something was left");
        Ok(())
    }
}

fn secret() -> LinkSecret {
    LinkSecret::new([7; 32], Suite::ChaCha20Poly1305)
}

fn sealer() -> Sealer {
    secret().sealer(&[1; 16], LaneId(0), Epoch(1), Direction::FromInitiator)
}

fn opener() -> Opener {
    secret().opener(&[1; 16], LaneId(0), Epoch(1), Direction::FromInitiator)
}

fn seal(sealer: &mut Sealer, chunk: &Chunk, frame: &mut Vec<u8>) {
    let header = Header {
        kind: FrameType::Chunk,
        lane: LaneId(0),
        epoch: Epoch(1),
        session: 1,
        body_bytes: chunk.payload.len() as u32,
        seq: chunk.seq.0.into(),
        after: chunk.after.0.into(),
    };
    let sealed_bytes = sealer.seal(&header, &chunk.payload, frame);
    frame.truncate(sealed_bytes);
}

/// The payload of a frame. As on a lane, the body is copied once, out of what the socket gave.
fn open(opener: &mut Opener, frame: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().context("a short frame")?;
    let mut payload = body.to_vec();
    opener.open(header, &mut payload)?;
    Ok(payload)
}

/// Parsed pages on their way into staging.
struct Staging<'a>(&'a mut Source);

impl Events for Staging<'_> {
    fn opaque(&mut self, bytes: &[u8]) {
        self.0.opaque(bytes);
    }
    fn blocks(&mut self, _: &RamLayout) {}
    fn zero(&mut self, _: BlockIdx, offset: u64) {
        self.0.zero(Time(0), PageId((offset / PAGE_BYTES as u64) as u32), 1);
    }
    fn page(&mut self, _: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        self.0.page(Time(0), PageId((offset / PAGE_BYTES as u64) as u32), data);
    }
    fn select_block(&mut self, _: BlockIdx) {}
    fn ram_part(&mut self, _: u64) {}
    fn ram_end(&mut self, _: u64) {}
    fn tail(&mut self, _: &[u8]) {}
}

/// Takes pages and looks at them.
struct Counter {
    pages: u64,
}

impl Sink for Counter {
    type Error = Infallible;
    fn opaque(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn zero(&mut self, _: PageId, run: u32) -> Result<(), Infallible> {
        self.pages += u64::from(run);
        Ok(())
    }
    fn page(&mut self, _: PageId, bytes: &PageBytes) -> Result<(), Infallible> {
        black_box(bytes);
        self.pages += 1;
        Ok(())
    }
    fn delta(&mut self, _: PageId, _: &[u8]) -> Result<(), Infallible> {
        self.pages += 1;
        Ok(())
    }
    fn raw(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn tail(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Writes QEMU's stream to a socket.
struct QemuSink<'a> {
    socket: &'a UnixStream,
    writer: Writer,
    out: Vec<u8>,
}

impl<'a> QemuSink<'a> {
    fn new(socket: &'a UnixStream, pages: u32) -> Self {
        let writer = Writer::new(layout(pages), WriterConfig::default());
        QemuSink { socket, writer, out: Vec::with_capacity(WRITE_BYTES + 2 * PAGE_BYTES) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn written<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &mut self,
        done: Result<(), E>,
    ) -> io::Result<()> {
        done.map_err(io::Error::other)?;
        if self.out.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }
}

impl Sink for QemuSink<'_> {
    type Error = io::Error;
    fn opaque(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zero(&mut self, page: PageId, run: u32) -> io::Result<()> {
        let done =
            self.writer.zero(&mut self.out, BlockIdx(0), u64::from(page.0) * PAGE_BYTES as u64, run.into());
        self.written(done)
    }
    fn page(&mut self, page: PageId, bytes: &PageBytes) -> io::Result<()> {
        let done = self.writer.page(&mut self.out, BlockIdx(0), u64::from(page.0) * PAGE_BYTES as u64, bytes);
        self.written(done)
    }
    fn delta(&mut self, page: PageId, xbzrle: &[u8]) -> io::Result<()> {
        let done =
            self.writer.xbzrle(&mut self.out, BlockIdx(0), u64::from(page.0) * PAGE_BYTES as u64, xbzrle);
        self.written(done)
    }
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn tail(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` with a socket that another thread reads empty.
fn with_reader<T>(work: impl FnOnce(&UnixStream) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (ours, mut qemus) = UnixStream::pair()?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while qemus.read(&mut buffer)? > 0 {}
            Ok::<_, io::Error>(())
        });
        let done = work(&ours);
        drop(ours);
        reader.join().map_err(|_| anyhow!("the reader failed"))??;
        done
    })
}
