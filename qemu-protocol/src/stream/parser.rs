//! The incremental parser: bytes in, [`Events`] out, nothing kept but positions.
//!
//! | state | unit | next |
//! |---|---|---|
//! | `Header` | magic and version | `Item` |
//! | `Item` | configuration, its subsections, a command | `Item` |
//! | | START of "ram" | `RamSize` |
//! | | PART or END of "ram" | `Ram` |
//! | | any other section's header | `Foreign` |
//! | `RamSize` | total size | `RamBlocks` |
//! | `RamBlocks` | one block | `RamBlocks` until the total is reached, `RamSetupEnd` |
//! | `RamSetupEnd` | EOS and footer | `Item` |
//! | `Ram` | one record | `Ram` |
//! | | EOS and footer | `Item` (PART) or `Tail` (END) |
//! | `Foreign` | a run of bytes without the section's end | `Foreign`, at its end `Item` |
//! | `Tail` | any bytes | `Tail` |
//! | any | what is not listed | `Failed`, for good |

use std::collections::BTreeSet;

use thiserror::Error;

use super::scan::{self, Plausible};
use super::wire::{self, Cursor, command, item, ram};
use super::{Block, BlockIdx, BlockName, Events, PAGE_BYTES, RamLayout, Resume};

/// Limits on what a stream may make the parser hold.
#[derive(Clone, Debug)]
pub struct ParserConfig {
    /// RAM blocks in the set-up section. Default 4096: QEMU allows 512 memory slots by default and some dozens
    /// of ROMs; a block costs about 300 bytes at worst. At most 65536, [`BlockIdx`]'s range.
    pub max_blocks: usize,
    /// Sections other than RAM before RAM's end. Default 4096: one for each virtio-mem or VFIO device.
    pub max_foreign_sections: usize,
    /// Bytes one foreign section may have before the parser gives up looking for its end. Nothing is buffered;
    /// the limit only bounds how long an unrecognised end keeps pages from being seen. Default 256 MiB.
    pub max_foreign_bytes: u64,
}

impl Default for ParserConfig {
    fn default() -> Self {
        Self { max_blocks: 4096, max_foreign_sections: 4096, max_foreign_bytes: 256 << 20 }
    }
}

/// The stream left what is understood. All events so far are valid; from `at` on the bytes must be relayed
/// verbatim, on a stream brought to the state that `resume` names.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("QEMU's stream is not understood at byte {at}: {why}")]
pub struct NotUnderstood {
    /// Position in the whole stream.
    pub at: u64,
    /// How much of the buffer that was just fed lies before `at`.
    pub consumed_before: usize,
    pub why: Why,
    pub resume: Resume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Why {
    #[error("it is TLS")]
    Tls,
    #[error("it is a multifd channel")]
    Multifd,
    #[error("it does not begin with QEMU's magic")]
    Magic,
    #[error("stream version {0}")]
    Version(u32),
    #[error("an item of type {0:#04x}")]
    Item(u8),
    #[error("postcopy is turned on: the guest may be let run there before all of it is there")]
    Postcopy,
    #[error("command {cmd} with {len} bytes")]
    Command { cmd: u16, len: u16 },
    #[error("the configuration has a part that is not known")]
    Configuration,
    #[error("section {0}, which has not been started or was started before")]
    SectionId(u32),
    #[error("more sections than the limit")]
    TooManySections,
    #[error("RAM's set-up is not as expected")]
    RamSetup,
    #[error("more RAM blocks than the limit")]
    TooManyBlocks,
    #[error("a RAM record with flags {0:#05x}{kind}", kind = ram::foreign_kind(u64::from(*.0)))]
    RamFlags(u16),
    #[error("a RAM record for a block that is not listed")]
    UnknownBlock,
    #[error("a RAM record at {0:#x}, outside its block")]
    Offset(u64),
    #[error("a zero record with fill byte {0:#04x}")]
    Fill(u8),
    #[error("a section's footer is missing")]
    Footer,
    #[error("a section whose end was not found")]
    EndlessSection,
}

/// The stream ended before RAM did.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("QEMU's stream ended at byte {at}, before the end of RAM")]
pub struct Truncated {
    pub at: u64,
}

#[derive(Debug)]
pub struct Parser {
    config: ParserConfig,
    state: State,
    /// Position in the stream of the next byte to be consumed.
    at: u64,
    /// The item before was the configuration or one of its subsections.
    in_configuration: bool,
    /// Blocks come with their guest-physical address.
    ignore_shared: bool,
    layout: RamLayout,
    ram_started: bool,
    started: BTreeSet<u32>,
    last_block: Option<BlockIdx>,
}

#[derive(Clone, Debug)]
enum State {
    Header,
    Item,
    RamSize,
    RamBlocks { left_bytes: u64 },
    RamSetupEnd,
    Ram { end: bool, records: u64 },
    Foreign { id: u32, bytes: u64 },
    Tail,
    Failed { why: Why, resume: Resume },
}

/// What came of looking for one unit.
enum Step {
    Took(usize),
    Need,
    Bad(Why),
}

impl Parser {
    pub fn new(config: ParserConfig) -> Self {
        Self {
            config,
            state: State::Header,
            at: 0,
            in_configuration: false,
            ignore_shared: false,
            layout: RamLayout { section_id: 0, blocks: Vec::new() },
            ram_started: false,
            started: BTreeSet::new(),
            last_block: None,
        }
    }

    /// Reports every whole unit at the front of `buf` and answers how many bytes they took. The caller keeps the
    /// rest and calls again with more behind it; with [`super::MAX_UNIT_BYTES`] in `buf` there is always progress.
    pub fn feed<E: Events>(&mut self, buf: &[u8], ev: &mut E) -> Result<usize, NotUnderstood> {
        let start = self.at;
        let mut rest = buf;
        loop {
            let before = self.at;
            let step = self.step(rest, ev);
            let (took, verdict) = match step {
                Step::Took(n) => (n, None),
                Step::Need => return Ok((self.at - start) as usize),
                Step::Bad(why) => (0, Some(why)),
            };
            self.at += took as u64;
            // A state that loops over records has moved `at` itself.
            rest = rest.get((self.at - before) as usize..).unwrap_or_default();
            if let Some(why) = verdict {
                return Err(self.fail(why, (self.at - start) as usize));
            }
        }
    }

    /// The source closed its end and everything was fed.
    pub fn finish(&self) -> Result<(), Truncated> {
        if self.in_tail() { Ok(()) } else { Err(Truncated { at: self.at }) }
    }

    /// RAM has ended; whatever comes now goes to [`Events::tail`].
    pub fn in_tail(&self) -> bool {
        matches!(self.state, State::Tail)
    }

    /// Position in the stream of the next byte to be consumed.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The blocks, once they were reported.
    pub fn layout(&self) -> Option<&RamLayout> {
        self.ram_started.then_some(&self.layout)
    }

    /// How a rebuilt stream must stand for a verbatim relay from [`Self::position`] on: for a caller that gives
    /// up parsing by its own choice, before RAM's end.
    pub fn resume(&self) -> Resume {
        match self.state {
            State::Failed { resume, .. } => resume,
            State::Ram { .. } => Resume::InRam { last_block: self.last_block },
            State::Item if self.ram_started => Resume::Item { last_block: self.last_block },
            _ => Resume::Verbatim,
        }
    }

    fn fail(&mut self, why: Why, consumed_before: usize) -> NotUnderstood {
        let resume = self.resume();
        self.state = State::Failed { why, resume };
        NotUnderstood { at: self.at, consumed_before, why, resume }
    }

    fn step<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        match self.state {
            State::Header => self.header(rest, ev),
            State::Item => self.item(rest, ev),
            State::RamSize => self.ram_size(rest, ev),
            State::RamBlocks { left_bytes } => self.ram_block(rest, left_bytes, ev),
            State::RamSetupEnd => self.ram_setup_end(rest, ev),
            State::Ram { end, records } => self.ram(rest, end, records, ev),
            State::Foreign { id, bytes } => self.foreign(rest, id, bytes, ev),
            State::Tail => {
                if rest.is_empty() {
                    return Step::Need;
                }
                ev.tail(rest);
                Step::Took(rest.len())
            }
            State::Failed { why, .. } => Step::Bad(why),
        }
    }

    fn header<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        if rest.starts_with(&wire::TLS_HANDSHAKE) {
            return Step::Bad(Why::Tls);
        }
        let mut at = Cursor::new(rest);
        let Some(magic) = at.array::<4>() else { return Step::Need };
        if *magic == wire::MULTIFD_MAGIC {
            return Step::Bad(Why::Multifd);
        }
        if u32::from_be_bytes(*magic) != wire::MAGIC {
            return Step::Bad(Why::Magic);
        }
        match at.be32() {
            None => Step::Need,
            Some(wire::VERSION) => self.opaque(rest, wire::HEADER_BYTES, State::Item, ev),
            Some(version) => Step::Bad(Why::Version(version)),
        }
    }

    fn item<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        let Some(&kind) = rest.first() else { return Step::Need };
        match kind {
            item::CONFIGURATION if self.at == wire::HEADER_BYTES as u64 => self.configuration(rest, ev),
            item::SUBSECTION if self.in_configuration => self.configuration_part(rest, ev),
            item::START | item::FULL => self.section_header(rest, kind, ev),
            item::PART | item::END => self.section_again(rest, kind, ev),
            item::COMMAND => self.command(rest, ev),
            other => Step::Bad(Why::Item(other)),
        }
    }

    fn configuration<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        /// QEMU's machine type names have some dozen bytes.
        const MAX_MACHINE_NAME_BYTES: usize = 255;
        let mut at = Cursor::new(rest);
        at.u8();
        let Some(len) = at.be32() else { return Step::Need };
        let len = len as usize;
        if len > MAX_MACHINE_NAME_BYTES {
            return Step::Bad(Why::Configuration);
        }
        if at.bytes(len).is_none() {
            return Step::Need;
        }
        let step = self.opaque(rest, at.pos(), State::Item, ev);
        self.in_configuration = true;
        step
    }

    fn configuration_part<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        match scan::configuration_part(rest) {
            scan::ConfigurationPart::Need => Step::Need,
            scan::ConfigurationPart::Unknown => Step::Bad(Why::Configuration),
            scan::ConfigurationPart::Known { len, ignore_shared } => {
                self.ignore_shared |= ignore_shared;
                let step = self.opaque(rest, len, State::Item, ev);
                self.in_configuration = true;
                step
            }
        }
    }

    fn command<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        let mut at = Cursor::new(rest);
        at.u8();
        let (Some(cmd), Some(len)) = (at.be16(), at.be16()) else { return Step::Need };
        if (cmd, len) == (command::POSTCOPY_ADVISE, wire::POSTCOPY_TERMS_BYTES) {
            return Step::Bad(Why::Postcopy);
        }
        if !wire::is_precopy_command(cmd, len) {
            return Step::Bad(Why::Command { cmd, len });
        }
        if at.bytes(usize::from(len)).is_none() {
            return Step::Need;
        }
        self.opaque(rest, at.pos(), State::Item, ev)
    }

    fn section_header<E: Events>(&mut self, rest: &[u8], kind: u8, ev: &mut E) -> Step {
        let Some(head) = scan::SectionHeader::read(rest) else { return Step::Need };
        if head.name == wire::RAM_NAME {
            if kind != item::START || self.ram_started || head.version != wire::RAM_VERSION {
                return Step::Bad(Why::RamSetup);
            }
            if self.started.contains(&head.id) {
                return Step::Bad(Why::SectionId(head.id));
            }
            self.layout.section_id = head.id;
            return self.opaque(rest, head.len, State::RamSize, ev);
        }
        if self.started.contains(&head.id) || (self.ram_started && head.id == self.layout.section_id) {
            return Step::Bad(Why::SectionId(head.id));
        }
        if self.started.len() >= self.config.max_foreign_sections {
            return Step::Bad(Why::TooManySections);
        }
        self.started.insert(head.id);
        self.enter_foreign(rest, head.len, head.id, ev)
    }

    fn section_again<E: Events>(&mut self, rest: &[u8], kind: u8, ev: &mut E) -> Step {
        let mut at = Cursor::new(rest);
        at.u8();
        let Some(id) = at.be32() else { return Step::Need };
        if self.ram_started && id == self.layout.section_id {
            self.in_configuration = false;
            self.state = State::Ram { end: kind == item::END, records: 0 };
            return Step::Took(wire::SECTION_REF_BYTES);
        }
        if self.started.contains(&id) {
            return self.enter_foreign(rest, wire::SECTION_REF_BYTES, id, ev);
        }
        Step::Bad(Why::SectionId(id))
    }

    fn enter_foreign<E: Events>(&mut self, rest: &[u8], len: usize, id: u32, ev: &mut E) -> Step {
        if let Some(block) = self.last_block {
            ev.select_block(block);
        }
        self.opaque(rest, len, State::Foreign { id, bytes: 0 }, ev)
    }

    fn foreign<E: Events>(&mut self, rest: &[u8], id: u32, bytes: u64, ev: &mut E) -> Step {
        let room = self.config.max_foreign_bytes.saturating_sub(bytes);
        if room == 0 {
            return Step::Bad(Why::EndlessSection);
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let known = scan::Known {
            ram: self.ram_started.then_some(&self.layout),
            last_block: self.last_block,
            started: &self.started,
        };
        let mut from = 0;
        loop {
            let Some(found) = scan::footer_from(rest, from, id) else {
                // The last bytes may be the front of a footer.
                let safe = rest.len() - scan::partial_footer(rest, id);
                return self.foreign_run(rest, safe.min(room), id, bytes, ev);
            };
            if found >= room {
                return self.foreign_run(rest, room, id, bytes, ev);
            }
            let end = found + wire::FOOTER_BYTES;
            match known.plausible_item(rest.get(end..).unwrap_or_default()) {
                Plausible::Yes => return self.opaque(rest, end, State::Item, ev),
                Plausible::No => from = found + 1,
                Plausible::Need => return self.foreign_run(rest, found, id, bytes, ev),
            }
        }
    }

    fn foreign_run<E: Events>(&mut self, rest: &[u8], n: usize, id: u32, bytes: u64, ev: &mut E) -> Step {
        if n == 0 {
            return Step::Need;
        }
        self.opaque(rest, n, State::Foreign { id, bytes: bytes + n as u64 }, ev)
    }

    fn ram_size<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        let Some(word) = Cursor::new(rest).be64() else { return Step::Need };
        let total = word & !ram::FLAGS;
        if word & ram::FLAGS != ram::MEM_SIZE || total == 0 {
            return Step::Bad(Why::RamSetup);
        }
        self.opaque(rest, wire::WORD_BYTES, State::RamBlocks { left_bytes: total }, ev)
    }

    fn ram_block<E: Events>(&mut self, rest: &[u8], left_bytes: u64, ev: &mut E) -> Step {
        let mut at = Cursor::new(rest);
        let (Some(name), Some(used_bytes)) = (at.counted(), at.be64()) else { return Step::Need };
        let Some(name) = BlockName::new(name) else { return Step::Bad(Why::RamSetup) };
        if used_bytes == 0 || used_bytes > left_bytes || self.layout.blocks.iter().any(|b| b.name == name) {
            return Step::Bad(Why::RamSetup);
        }
        if self.layout.blocks.len() >= self.config.max_blocks.min(1 << u16::BITS) {
            return Step::Bad(Why::TooManyBlocks);
        }
        let left_bytes = left_bytes - used_bytes;
        let gpa = if self.ignore_shared {
            match at.be64() {
                None => return Step::Need,
                gpa => gpa,
            }
        } else {
            None
        };
        self.layout.blocks.push(Block { name, used_bytes, gpa });
        let next = if left_bytes == 0 { State::RamSetupEnd } else { State::RamBlocks { left_bytes } };
        self.opaque(rest, at.pos(), next, ev)
    }

    fn ram_setup_end<E: Events>(&mut self, rest: &[u8], ev: &mut E) -> Step {
        match ram_close(rest, self.layout.section_id) {
            None => Step::Need,
            Some(Err(_)) => Step::Bad(Why::RamSetup),
            Some(Ok(())) => {
                let step = self.opaque(rest, wire::RAM_CLOSE_BYTES, State::Item, ev);
                self.ram_started = true;
                ev.blocks(&self.layout);
                step
            }
        }
    }

    /// All the records that are whole. Moves `at` by itself, so that a stop in between leaves it exact.
    fn ram<E: Events>(&mut self, buf: &[u8], end: bool, mut records: u64, ev: &mut E) -> Step {
        let mut rest = buf;
        let mut last = self.last_block;
        let mut span = last.and_then(|b| self.layout.block(b)).map_or(0, Block::span_bytes);
        let outcome = loop {
            let Some((word, mut body)) = rest.split_first_chunk::<{ wire::WORD_BYTES }>() else {
                break Step::Need;
            };
            let word = u64::from_be_bytes(*word);
            let (flags, offset) = (word & ram::FLAGS, word & !ram::FLAGS);
            let (mut block, mut block_span) = (last, span);
            match flags {
                ram::EOS => {
                    match ram_close(rest, self.layout.section_id) {
                        None => break Step::Need,
                        Some(Err(why)) => break Step::Bad(why),
                        Some(Ok(())) => {}
                    }
                    self.advance(buf, rest, last);
                    self.at += wire::RAM_CLOSE_BYTES as u64;
                    self.state = if end { State::Tail } else { State::Item };
                    if end {
                        ev.ram_end(records)
                    } else {
                        ev.ram_part(records)
                    }
                    return Step::Took(0);
                }
                ram::ZERO | ram::PAGE => {
                    let mut at = Cursor::new(body);
                    let Some(name) = at.counted() else { break Step::Need };
                    let Some(found) = self.find_block(name) else { break Step::Bad(Why::UnknownBlock) };
                    block = Some(found);
                    block_span = self.layout.block(found).map_or(0, Block::span_bytes);
                    body = body.get(at.pos()..).unwrap_or_default();
                }
                ram::ZERO_SAME | ram::PAGE_SAME => {}
                other => break Step::Bad(Why::RamFlags(other as u16)),
            }
            let Some(to) = block else { break Step::Bad(Why::UnknownBlock) };
            if offset >= block_span {
                break Step::Bad(Why::Offset(offset));
            }
            if flags & ram::PAGE != 0 {
                let Some((page, next)) = body.split_first_chunk::<PAGE_BYTES>() else { break Step::Need };
                ev.page(to, offset, page);
                rest = next;
            } else {
                let Some((&fill, next)) = body.split_first() else { break Step::Need };
                if fill != 0 {
                    break Step::Bad(Why::Fill(fill));
                }
                ev.zero(to, offset);
                rest = next;
            }
            (last, span) = (block, block_span);
            records += 1;
        };
        self.state = State::Ram { end, records };
        self.advance(buf, rest, last);
        outcome
    }

    fn advance(&mut self, buf: &[u8], rest: &[u8], last: Option<BlockIdx>) {
        self.at += (buf.len() - rest.len()) as u64;
        self.last_block = last;
    }

    fn find_block(&self, name: &[u8]) -> Option<BlockIdx> {
        // `max_blocks` keeps the index within u16.
        self.layout.blocks.iter().position(|b| b.name.as_bytes() == name).map(|i| BlockIdx(i as u16))
    }

    fn opaque<E: Events>(&mut self, rest: &[u8], len: usize, next: State, ev: &mut E) -> Step {
        ev.opaque(rest.get(..len).unwrap_or_default());
        self.in_configuration = false;
        self.state = next;
        Step::Took(len)
    }
}

/// EOS and footer; `None` while they are not all there.
fn ram_close(rest: &[u8], section_id: u32) -> Option<Result<(), Why>> {
    let mut at = Cursor::new(rest);
    let word = at.be64()?;
    if word != ram::EOS {
        return Some(Err(Why::RamFlags((word & ram::FLAGS) as u16)));
    }
    let (mark, id) = (at.u8()?, at.be32()?);
    Some(if mark == item::FOOTER && id == section_id { Ok(()) } else { Err(Why::Footer) })
}
