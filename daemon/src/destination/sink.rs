//! What the receiver writes to: a stream rebuilt for the waiting QEMU, gathered into large writes.

use crate::pages::{Item, ItemReader, PageMap, PagesError};
use hikyaku_engine::{PageBytes, PageId, Sink};
use hikyaku_qemu::stream::{
    BlockIdx, Events, NotUnderstood, PAGE_BYTES, Parser, ParserConfig, RamLayout, WriteError, Writer,
    WriterConfig,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Gathered before one write to QEMU's socket.
const GATHER_BYTES: usize = 256 << 10;
/// A run may be as long as the guest's memory: written in steps of 144 KiB of records.
const ZERO_PAGES_AT_ONCE: u32 = 16 << 10;
/// Stream bytes before RAM's block list is complete; QEMU's are some kilobytes.
const MAX_PREFIX_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("the waiting QEMU does not take its stream any more: {0}")]
    Write(io::Error),
    #[error(transparent)]
    Pages(#[from] PagesError),
    #[error("the peer's pages do not fit the guest: {0}")]
    Writer(#[from] WriteError),
    #[error("the peer's stream is not understood: {0}")]
    Prefix(#[from] NotUnderstood),
    #[error("the peer sent {0} before the guest's memory was described")]
    Early(&'static str),
    #[error("the device state has more than {0} bytes, the budget of memory.tail")]
    TailBudget(usize),
    #[error("the stream's beginning has more than {MAX_PREFIX_BYTES} bytes")]
    PrefixBudget,
}

/// Who says when QEMU may have the end of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source: the guest's device state, of so many bytes at most, is held back until GO.
    Held { tail_budget_bytes: usize },
    /// Nobody here: what comes is passed on.
    PassedOn,
}

pub struct QemuSink {
    socket: UnixStream,
    out: Vec<u8>,
    stage: Stage,
    opaque: ItemReader,
    raw: ItemReader,
    /// Held back until GO.
    tail: Vec<u8>,
    end: End,
    ram_ended: bool,
    went_raw: bool,
    pages_written: u64,
}

// One of a kind per migration.
#[allow(clippy::large_enum_variant)]
enum Stage {
    /// The block list has not come. Bytes the parser has not consumed yet.
    Prefix {
        parser: Parser,
        held: Vec<u8>,
        seen: usize,
    },
    Live {
        writer: Writer,
        map: PageMap,
    },
}

impl QemuSink {
    pub fn new(socket: UnixStream, end: End) -> QemuSink {
        QemuSink {
            socket,
            out: Vec::with_capacity(GATHER_BYTES + (64 << 10)),
            stage: Stage::Prefix { parser: Parser::new(ParserConfig::default()), held: Vec::new(), seen: 0 },
            opaque: ItemReader::default(),
            raw: ItemReader::default(),
            tail: Vec::new(),
            end,
            ram_ended: false,
            went_raw: false,
            pages_written: 0,
        }
    }

    pub fn pages_total(&self) -> u64 {
        match &self.stage {
            Stage::Live { map, .. } => map.pages().into(),
            Stage::Prefix { .. } => 0,
        }
    }

    /// Page records written, every version counted.
    pub fn pages_written(&self) -> u64 {
        self.pages_written
    }

    /// Nothing more comes, or GO is here: QEMU gets the end of RAM and its device state, if they were held back.
    pub fn release_tail(&mut self) -> Result<(), SinkError> {
        if !self.went_raw && self.end != End::PassedOn {
            let tail = std::mem::take(&mut self.tail);
            self.write_tail(&tail)?;
        }
        self.flush()
    }

    /// The end of RAM, if QEMU has not had it, and this behind it.
    fn write_tail(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let Stage::Live { writer, .. } = &mut self.stage else { return Err(SinkError::Early("the end")) };
        if !std::mem::replace(&mut self.ram_ended, true) {
            writer.finish_ram(&mut self.out)?;
        }
        for piece in bytes.chunks(GATHER_BYTES) {
            let (writer, _, out) = self.live("the end")?;
            writer.tail(out, piece)?;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Gives QEMU what was gathered. Waits for it as long as it takes; shutting the socket down ends the wait.
    pub fn flush(&mut self) -> Result<(), SinkError> {
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(nix::Error::EINTR) => {}
                        Err(e) => return Err(SinkError::Write(e.into())),
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(SinkError::Write(e)),
            }
        }
        self.out.clear();
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), SinkError> {
        if self.out.len() >= GATHER_BYTES { self.flush() } else { Ok(()) }
    }

    fn live(&mut self, what: &'static str) -> Result<(&mut Writer, &PageMap, &mut Vec<u8>), SinkError> {
        match &mut self.stage {
            Stage::Live { writer, map } => Ok((writer, map, &mut self.out)),
            Stage::Prefix { .. } => Err(SinkError::Early(what)),
        }
    }

    fn opaque_item(&mut self, item: Item<'_>) -> Result<(), SinkError> {
        match (item, &mut self.stage) {
            (Item::Bytes(bytes), Stage::Prefix { parser, held, seen }) => {
                *seen += bytes.len();
                if *seen > MAX_PREFIX_BYTES {
                    return Err(SinkError::PrefixBudget);
                }
                self.out.extend_from_slice(bytes);
                held.extend_from_slice(bytes);
                let mut found = FindLayout(None);
                let used = parser.feed(held, &mut found)?;
                held.drain(..used);
                if let Some(layout) = found.0 {
                    let map = PageMap::new(&layout)?;
                    self.stage = Stage::Live { writer: Writer::new(layout, WriterConfig::default()), map };
                }
                Ok(())
            }
            (Item::Bytes(bytes), Stage::Live { writer, .. }) => Ok(writer.opaque(&mut self.out, bytes)?),
            (Item::SelectBlock(block), Stage::Live { writer, .. }) => {
                Ok(writer.select_block(&mut self.out, block)?)
            }
            (Item::SelectBlock(_), Stage::Prefix { .. }) => Err(SinkError::Early("a block")),
            (Item::Relay(_), _) => Err(PagesError::Item("a relay among opaque bytes").into()),
        }
    }

    fn raw_item(&mut self, item: Item<'_>) -> Result<(), SinkError> {
        self.went_raw = true;
        match item {
            Item::Bytes(bytes) => self.out.extend_from_slice(bytes),
            Item::Relay(resume) => {
                if let Stage::Live { writer, .. } = &mut self.stage {
                    writer.begin_relay(&mut self.out, resume)?;
                }
            }
            Item::SelectBlock(_) => return Err(PagesError::Item("a block in a relay").into()),
        }
        self.flush_if_full()
    }
}

impl Sink for QemuSink {
    type Error = SinkError;

    fn layout(&self) -> Option<u32> {
        match &self.stage {
            Stage::Live { map, .. } => Some(map.pages()),
            Stage::Prefix { .. } => None,
        }
    }

    fn opaque(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let mut reader = std::mem::take(&mut self.opaque);
        let result = reader.feed(bytes, |item| self.opaque_item(item));
        self.opaque = reader;
        result?;
        self.flush_if_full()
    }

    fn zero(&mut self, page: PageId, run: u32) -> Result<(), SinkError> {
        self.pages_written += u64::from(run);
        let (mut page, mut left) = (page, run);
        while left > 0 {
            let (writer, map, out) = self.live("a page")?;
            let (block, offset, in_block) = map.place(page)?;
            let pages = left.min(in_block).min(ZERO_PAGES_AT_ONCE);
            writer.zero(out, block, offset, pages.into())?;
            left -= pages;
            page = PageId(page.0.saturating_add(pages));
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn page(&mut self, page: PageId, bytes: &PageBytes) -> Result<(), SinkError> {
        self.pages_written += 1;
        let (writer, map, out) = self.live("a page")?;
        let (block, offset, _) = map.place(page)?;
        writer.page(out, block, offset, bytes)?;
        self.flush_if_full()
    }

    fn delta(&mut self, page: PageId, xbzrle: &[u8]) -> Result<(), SinkError> {
        self.pages_written += 1;
        let (writer, map, out) = self.live("a page")?;
        let (block, offset, _) = map.place(page)?;
        writer.xbzrle(out, block, offset, xbzrle)?;
        self.flush_if_full()
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let mut reader = std::mem::take(&mut self.raw);
        let result = reader.feed(bytes, |item| self.raw_item(item));
        self.raw = reader;
        result
    }

    fn tail(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        match self.end {
            End::PassedOn => self.write_tail(bytes),
            End::Held { tail_budget_bytes } if self.tail.len() + bytes.len() > tail_budget_bytes => {
                Err(SinkError::TailBudget(tail_budget_bytes))
            }
            End::Held { .. } => {
                self.tail.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Of the prefix only RAM's block list matters here.
struct FindLayout(Option<RamLayout>);

impl Events for FindLayout {
    fn opaque(&mut self, _bytes: &[u8]) {}
    fn blocks(&mut self, layout: &RamLayout) {
        self.0 = Some(layout.clone());
    }
    fn zero(&mut self, _block: BlockIdx, _offset: u64) {}
    fn page(&mut self, _block: BlockIdx, _offset: u64, _data: &[u8; PAGE_BYTES]) {}
    fn select_block(&mut self, _block: BlockIdx) {}
    fn ram_part(&mut self, _pages: u64) {}
    fn ram_end(&mut self, _pages: u64) {}
    fn tail(&mut self, _bytes: &[u8]) {}
}
