//! The parser and the writer on made-up streams: every split, every foreign section, everything that must be
//! refused, and where a relay takes over.

#![allow(clippy::unwrap_used)]

use hikyaku_qemu::stream::xbzrle::XbzrleError;
use hikyaku_qemu::stream::{
    BlockIdx, BlockName, Events, NotUnderstood, PAGE_BYTES, Parser, ParserConfig, RamLayout, Resume, Why,
    WriteError, Writer, WriterConfig,
};
use proptest::prelude::*;

const RAM: u32 = 2;

/// A block's name, its pages, and what follows its length.
type Listed<'a> = (&'a [u8], u64, &'a [u8]);

/// Builds streams item by item, as QEMU does.
#[derive(Clone, Default)]
struct Made(Vec<u8>);

impl Made {
    fn begin() -> Self {
        Made(b"QEVM\x00\x00\x00\x03".to_vec()).raw(b"\x07\x00\x00\x00\x0bpc-q35-10.0")
    }

    /// Header, configuration, and RAM with blocks "a" of 4 pages and "bb" of 3.
    fn started() -> Self {
        Made::begin().ram_setup(&[(b"a", 4, &[]), (b"bb", 3, &[])])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn be64(self, word: u64) -> Self {
        self.raw(&word.to_be_bytes())
    }

    fn section(self, kind: u8, id: u32, name: &[u8], version: u32) -> Self {
        self.raw(&[kind])
            .raw(&id.to_be_bytes())
            .raw(&[name.len() as u8])
            .raw(name)
            .raw(&[0; 4])
            .raw(&version.to_be_bytes())
    }

    fn footer(self, id: u32) -> Self {
        self.raw(&[0x7e]).raw(&id.to_be_bytes())
    }

    fn again(self, kind: u8, id: u32) -> Self {
        self.raw(&[kind]).raw(&id.to_be_bytes())
    }

    fn close(self) -> Self {
        self.be64(0x10).footer(RAM)
    }

    fn ram_setup(self, blocks: &[Listed<'_>]) -> Self {
        let total: u64 = blocks.iter().map(|b| b.1 * PAGE_BYTES as u64).sum();
        let mut made = self.section(1, RAM, b"ram", 4).be64(total | 0x4);
        for (name, pages, extra) in blocks {
            made = made.raw(&[name.len() as u8]).raw(name).be64(pages * PAGE_BYTES as u64).raw(extra);
        }
        made.close()
    }

    fn part(self) -> Self {
        self.again(2, RAM)
    }

    fn named(self, flag: u64, page: u64, name: &[u8]) -> Self {
        self.be64((page * PAGE_BYTES as u64) | flag).raw(&[name.len() as u8]).raw(name)
    }

    fn same(self, flag: u64, page: u64) -> Self {
        self.be64((page * PAGE_BYTES as u64) | flag | 0x20)
    }

    fn page(self, fill: u8) -> Self {
        self.raw(&[fill; PAGE_BYTES])
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Ev {
    Opaque(Vec<u8>),
    Blocks(RamLayout),
    Zero(u16, u64),
    Page(u16, u64, u8),
    Select(u16),
    Part(u64),
    End(u64),
    Tail(Vec<u8>),
}

/// Events, with adjacent slices joined.
#[derive(Default)]
struct Seen(Vec<Ev>);

impl Events for Seen {
    fn opaque(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Ev::Opaque(all)) => all.extend_from_slice(bytes),
            _ => self.0.push(Ev::Opaque(bytes.to_vec())),
        }
    }
    fn blocks(&mut self, layout: &RamLayout) {
        self.0.push(Ev::Blocks(layout.clone()));
    }
    fn zero(&mut self, block: BlockIdx, offset: u64) {
        self.0.push(Ev::Zero(block.0, offset));
    }
    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        assert!(data.iter().all(|b| *b == data[0]));
        self.0.push(Ev::Page(block.0, offset, data[0]));
    }
    fn select_block(&mut self, block: BlockIdx) {
        self.0.push(Ev::Select(block.0));
    }
    fn ram_part(&mut self, pages: u64) {
        self.0.push(Ev::Part(pages));
    }
    fn ram_end(&mut self, pages: u64) {
        self.0.push(Ev::End(pages));
    }
    fn tail(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Ev::Tail(all)) => all.extend_from_slice(bytes),
            _ => self.0.push(Ev::Tail(bytes.to_vec())),
        }
    }
}

/// Feeds `stream` in pieces; what is left over is kept, as a caller does.
fn parse(stream: &[u8], pieces: impl IntoIterator<Item = usize>) -> (Vec<Ev>, Result<u64, NotUnderstood>) {
    parse_with(ParserConfig::default(), stream, pieces)
}

fn parse_with(
    config: ParserConfig,
    stream: &[u8],
    pieces: impl IntoIterator<Item = usize>,
) -> (Vec<Ev>, Result<u64, NotUnderstood>) {
    let (mut parser, mut seen) = (Parser::new(config), Seen::default());
    let (mut from, mut to) = (0, 0);
    for piece in pieces.into_iter().chain([stream.len()]) {
        to = (to + piece).min(stream.len());
        match parser.feed(&stream[from..to], &mut seen) {
            Ok(n) => from += n,
            Err(mut e) => {
                assert_eq!(e.at, (from + e.consumed_before) as u64);
                // Relative to the buffer, so the one thing that depends on the split.
                e.consumed_before = 0;
                return (seen.0, Err(e));
            }
        }
        assert_eq!(parser.position(), from as u64);
    }
    (seen.0, Ok(from as u64))
}

fn whole(made: &Made) -> (Vec<Ev>, Result<u64, NotUnderstood>) {
    let once = parse(&made.0, []);
    for piece in [1, 7, 4096, 5000] {
        let pieces = std::iter::repeat_n(piece, made.0.len() / piece + 1);
        assert_eq!(parse(&made.0, pieces), once, "in pieces of {piece}");
    }
    once
}

fn refused(made: &Made) -> NotUnderstood {
    whole(made).1.unwrap_err()
}

#[test]
fn a_plain_stream_is_told_as_it_is() {
    let prefix = Made::begin().raw(b"\x08\x00\x01\x00\x00\x08\x00\x02\x00\x04\x00\x00\x00\x01");
    let prefix = prefix.ram_setup(&[(b"a", 4, &[]), (b"bb", 3, &[])]);
    let live =
        prefix.clone().part().named(8, 1, b"a").page(9).same(2, 3).raw(&[0]).named(2, 0, b"bb").raw(&[0]);
    // CONTINUE holds across sections.
    let live = live.close().part().close().part().same(8, 2).page(7).close();
    let command = b"\x08\x00\x0b\x00\x00";
    let made = live.raw(command).again(3, RAM).same(2, 1).raw(&[0]).close().raw(b"device state");
    let (events, end) = whole(&made);
    assert_eq!(end, Ok(made.0.len() as u64));
    let Ev::Blocks(layout) = events[1].clone() else { panic!("{events:?}") };
    assert_eq!(layout.section_id, RAM);
    let names: Vec<_> = layout.blocks.iter().map(|b| (b.name.to_string(), b.used_bytes)).collect();
    assert_eq!(names, [("a".to_string(), 4 * 4096), ("bb".to_string(), 3 * 4096)]);
    let want = [
        Ev::Opaque(prefix.0),
        Ev::Blocks(layout),
        Ev::Page(0, 4096, 9),
        Ev::Zero(0, 3 * 4096),
        Ev::Zero(1, 0),
        Ev::Part(3),
        Ev::Part(0),
        Ev::Page(1, 2 * 4096, 7),
        Ev::Part(1),
        Ev::Opaque(command.to_vec()),
        Ev::Zero(1, 4096),
        Ev::End(1),
        Ev::Tail(b"device state".to_vec()),
    ];
    assert_eq!(events, want);
}

#[test]
fn what_is_not_qemus_plain_stream_is_refused_at_its_first_byte() {
    let cases: [(&[u8], Why); 4] = [
        (b"\x16\x03\x01\x02\x00", Why::Tls),
        (b"\x11\x22\x33\x44....", Why::Multifd),
        (b"GET / HT", Why::Magic),
        (b"QEVM\x00\x00\x00\x04", Why::Version(4)),
    ];
    for (bytes, why) in cases {
        let error = refused(&Made(bytes.to_vec()));
        assert_eq!((error.at, error.why, error.resume), (0, why, Resume::Verbatim));
    }
}

#[test]
fn a_record_of_another_kind_is_refused_inside_ram() {
    let good = Made::started().part().named(2, 1, b"bb").raw(&[0]);
    for flags in [0x40, 0x60, 0x80, 0x100, 0x200, 0x4, 0x1, 0xa] {
        let error = refused(&good.clone().be64(flags).raw(&[0; 16]));
        let resume = Resume::InRam { last_block: Some(BlockIdx(1)) };
        assert_eq!((error.at, error.why), (good.0.len() as u64, Why::RamFlags(flags as u16)));
        assert_eq!(error.resume, resume);
    }
}

#[test]
fn a_page_outside_its_block_is_refused() {
    let part = Made::started().part();
    assert_eq!(refused(&part.clone().named(2, 4, b"a").raw(&[0])).why, Why::Offset(4 * 4096));
    assert_eq!(refused(&part.clone().named(2, 0, b"c").raw(&[0])).why, Why::UnknownBlock);
    assert_eq!(refused(&part.clone().same(2, 0).raw(&[0])).why, Why::UnknownBlock);
    assert_eq!(refused(&part.clone().named(2, 0, b"a").raw(&[5])).why, Why::Fill(5));
    assert_eq!(refused(&part.be64(0x10).footer(RAM + 1)).why, Why::Footer);
}

#[test]
fn an_item_that_is_not_expected_is_refused_between_items() {
    let live = Made::started().part().named(2, 1, b"bb").raw(&[0]).close();
    let cases = [
        (live.clone().raw(b"\x00\x06"), Why::Item(0)),
        (live.clone().raw(b"\x08\x00\x07\x00\x04\x00\x00\x10\x00"), Why::Command { cmd: 7, len: 4 }),
        (live.clone().again(2, 77), Why::SectionId(77)),
        (live.clone().section(1, RAM, b"ram", 4), Why::RamSetup),
        (live.clone().section(4, RAM, b"x", 4), Why::SectionId(RAM)),
    ];
    for (made, why) in cases {
        let error = refused(&made);
        assert_eq!((error.at, error.why), (live.0.len() as u64, why));
        assert_eq!(error.resume, Resume::Item { last_block: Some(BlockIdx(1)) });
    }
}

#[test]
fn ram_that_is_not_as_expected_is_refused_verbatim() {
    let begin = Made::begin();
    let setups = [
        begin.clone().section(1, RAM, b"ram", 5),
        begin.clone().section(4, RAM, b"ram", 4),
        begin.clone().section(1, RAM, b"ram", 4).be64(0x4),
        begin.clone().section(1, RAM, b"ram", 4).be64(0x1004).raw(b"\x01a").be64(0x2000),
        begin.clone().section(1, RAM, b"ram", 4).be64(0x1004).raw(b"\x00").be64(0x1000),
        begin
            .clone()
            .section(1, RAM, b"ram", 4)
            .be64(0x2004)
            .raw(b"\x01a")
            .be64(0x1000)
            .raw(b"\x01a")
            .be64(0x1000),
        // multifd, from 8.1 on
        begin.section(1, RAM, b"ram", 4).be64(0x1004).raw(b"\x01a").be64(0x1000).be64(0x200).close(),
    ];
    for made in setups {
        let error = refused(&made);
        assert_eq!((error.why, error.resume), (Why::RamSetup, Resume::Verbatim));
    }
}

#[test]
fn the_configurations_known_parts_pass_and_others_are_refused() {
    let part = |name: &[u8], body: &[u8]| {
        Made::begin().raw(&[5, name.len() as u8]).raw(name).raw(&[0, 0, 0, 1]).raw(body)
    };
    let after = |made: Made| whole(&made.ram_setup(&[(b"a", 1, &[])])).1;
    assert!(after(part(b"configuration/uuid", &[7; 16])).is_ok());
    assert!(after(part(b"configuration/target-page-bits", &[0, 0, 0, 12])).is_ok());
    let refused = |made: Made| after(made).unwrap_err().why;
    assert_eq!(refused(part(b"configuration/target-page-bits", &[0, 0, 0, 16])), Why::Configuration);
    assert_eq!(refused(part(b"configuration/capabilities", b"\0\0\0\x01\x0amapped-ram")), Why::Configuration);
    assert_eq!(refused(part(b"configuration/new", &[])), Why::Configuration);
    let shared = part(b"configuration/capabilities", b"\0\0\0\x01\x0fx-ignore-shared");
    let (events, end) = whole(&shared.ram_setup(&[(b"a", 1, &[0, 0, 0, 1, 0, 0, 0, 0])]));
    assert!(end.is_ok());
    let Some(Ev::Blocks(layout)) = events.get(1) else { panic!("{events:?}") };
    assert_eq!(layout.blocks[0].gpa, Some(1 << 32));
}

/// When the guest is let run is not seen in it any more, and pages are asked for by the other side.
#[test]
fn what_may_become_postcopy_is_not_read() {
    let advised = Made::begin().raw(b"\x08\x00\x03\x00\x10").raw(&[0; 16]);
    let refused = refused(&advised.ram_setup(&[(b"a", 4, &[])]));
    assert_eq!((refused.why, refused.at), (Why::Postcopy, Made::begin().0.len() as u64));
    // Of bitmaps alone, RAM is none of it.
    let bitmaps = Made::begin().raw(b"\x08\x00\x03\x00\x00").ram_setup(&[(b"a", 4, &[])]);
    assert!(whole(&bitmaps).1.is_ok());
}

#[test]
fn a_foreign_section_passes_whole_with_footers_of_its_own_inside() {
    // What looks like its footer but is followed by nothing that may stand there is body.
    let body =
        Made::default().raw(b"x\x7e\x7e\x00\x00\x00\x09\x7e").footer(9).raw(b"\x01").footer(9).raw(&[0; 9]);
    let early = Made::started().section(4, 9, b"0000:00:02.0/virtio-mem-early", 1).raw(&body.0).footer(9);
    let made = early.clone().part().named(2, 1, b"a").raw(&[0]).close().again(3, RAM).close();
    let (events, end) = whole(&made);
    assert!(end.is_ok(), "{end:?}");
    let opaque: Vec<u8> = events
        .iter()
        .filter_map(|e| if let Ev::Opaque(b) = e { Some(&b[..]) } else { None })
        .flatten()
        .copied()
        .collect();
    assert_eq!(opaque, early.0);
    assert_eq!(
        events[events.len() - 4..],
        [Ev::Opaque(early.0[Made::started().0.len()..].to_vec()), Ev::Zero(0, 4096), Ev::Part(1), Ev::End(0)]
    );
}

#[test]
fn a_foreign_section_between_pages_says_which_block_was_last() {
    let vfio = Made::started().section(1, 9, b"vfio", 1).raw(b"set up").footer(9);
    let made = vfio.part().named(2, 2, b"bb").raw(&[0]).close().again(2, 9).raw(b"state").footer(9);
    let (events, end) = whole(
        &made.part().same(2, 1).raw(&[0]).close().again(3, 9).raw(b"end").footer(9).again(3, RAM).close(),
    );
    assert!(end.is_ok(), "{end:?}");
    let live = &events[events.iter().position(|e| matches!(e, Ev::Zero(1, 8192))).unwrap()..];
    let opaque = |kind, body: &[u8]| Ev::Opaque(Made::default().again(kind, 9).raw(body).footer(9).0);
    let want = [
        Ev::Zero(1, 8192),
        Ev::Part(1),
        Ev::Select(1),
        opaque(2, b"state"),
        Ev::Zero(1, 4096),
        Ev::Part(1),
        Ev::Select(1),
        opaque(3, b"end"),
        Ev::End(0),
    ];
    assert_eq!(live, want);
}

#[test]
fn a_foreign_section_without_end_is_given_up_at_the_limit() {
    let start = Made::started().section(4, 9, b"x", 1);
    let made = start.clone().raw(&[0x7e; 500]);
    let config = ParserConfig { max_foreign_bytes: 300, ..ParserConfig::default() };
    for piece in [1, 3, 1000] {
        let pieces = std::iter::repeat_n(piece, made.0.len());
        let error = parse_with(config.clone(), &made.0, pieces).1.unwrap_err();
        assert_eq!((error.at, error.why), (start.0.len() as u64 + 300, Why::EndlessSection));
        assert_eq!(error.resume, Resume::Verbatim);
    }
}

#[test]
fn a_writer_refuses_what_qemu_must_not_see_and_writes_nothing_then() {
    let (_, mut writer) = written();
    let mut out = Vec::new();
    let page = [1; PAGE_BYTES];
    assert_eq!(writer.page(&mut out, BlockIdx(2), 0, &page), Err(WriteError::UnknownBlock(2)));
    for (offset, run) in [(4 * 4096, 1), (3 * 4096, 2), (1, 1), (u64::MAX - 4095, 1), (0, 0), (0, u64::MAX)] {
        let error = writer.zero(&mut out, BlockIdx(0), offset, run).unwrap_err();
        assert_eq!(error, WriteError::OutsideBlock { block: 0, offset, pages: run });
    }
    let error = writer.xbzrle(&mut out, BlockIdx(0), 0, &[1, 0]).unwrap_err();
    assert_eq!(error, WriteError::Delta(XbzrleError::EmptyRun));
    assert!(matches!(writer.tail(&mut out, b"x"), Err(WriteError::Phase { .. })));
    assert!(out.is_empty());
    writer.finish_ram(&mut out).unwrap();
    assert!(matches!(writer.zero(&mut out, BlockIdx(0), 0, 1), Err(WriteError::Phase { .. })));
    assert!(matches!(writer.finish_ram(&mut out), Err(WriteError::Phase { .. })));
    assert!(matches!(writer.begin_relay(&mut out, Resume::Verbatim), Err(WriteError::Phase { .. })));
}

#[test]
fn a_page_written_by_header_is_the_same() {
    let (_, mut by_header) = written();
    let (_, mut whole) = written();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for offset in [0, 4096] {
        by_header.page_header(&mut a, BlockIdx(1), offset).unwrap();
        a.extend_from_slice(&[3; PAGE_BYTES]);
        whole.page(&mut b, BlockIdx(1), offset, &[3; PAGE_BYTES]).unwrap();
    }
    assert_eq!(a, b);
}

#[test]
fn sections_are_closed_at_their_size() {
    let (prefix, _) = written();
    let layout = Parsed::of(&prefix).layout;
    let mut writer = Writer::new(layout, WriterConfig { section_bytes: 2 * PAGE_BYTES });
    let mut out = prefix;
    for _ in 0..7 {
        writer.page(&mut out, BlockIdx(0), 0, &[1; PAGE_BYTES]).unwrap();
    }
    writer.finish_ram(&mut out).unwrap();
    let parts: Vec<_> =
        parse(&out, []).0.into_iter().filter(|e| matches!(e, Ev::Part(_) | Ev::End(_))).collect();
    assert_eq!(parts, [Ev::Part(2), Ev::Part(2), Ev::Part(2), Ev::Part(1), Ev::End(0)]);
}

/// A relay continues a stream whose last block is another one than the source's: the parser, which keeps that
/// state as QEMU does but refuses deltas, sees the selecting record; behind it all is as the source meant.
#[test]
fn a_relay_selects_the_sources_block_first() {
    for (resume, opens) in [
        (Resume::InRam { last_block: Some(BlockIdx(1)) }, true),
        (Resume::Item { last_block: Some(BlockIdx(1)) }, false),
    ] {
        let (_, mut writer) = written();
        let mut out = Vec::new();
        writer.zero(&mut out, BlockIdx(0), 0, 1).unwrap();
        let before = out.len();
        writer.begin_relay(&mut out, resume).unwrap();
        let select = Made::default().named(0x40, 0, b"bb").raw(&[1, 0, 0]);
        let want = if opens { select } else { select.close() };
        assert_eq!(out[before..], want.0);
    }
    // Nothing to select, nothing open: nothing is written.
    let (_, mut writer) = written();
    let mut out = Vec::new();
    writer.begin_relay(&mut out, Resume::Item { last_block: None }).unwrap();
    assert!(out.is_empty());
}

struct Parsed {
    layout: RamLayout,
}

impl Parsed {
    fn of(stream: &[u8]) -> Self {
        let found = parse(stream, []).0.into_iter().find_map(|e| match e {
            Ev::Blocks(layout) => Some(layout),
            _ => None,
        });
        Parsed { layout: found.unwrap() }
    }
}

fn written() -> (Vec<u8>, Writer) {
    let prefix = Made::started().0;
    let layout = Parsed::of(&prefix).layout;
    (prefix, Writer::new(layout, WriterConfig::default()))
}

#[derive(Clone, Debug)]
enum Op {
    Zero(u16, u64),
    Page(u16, u64, u8),
    Opaque,
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (0u16..2, 0u64..3);
    prop_oneof![
        place().prop_map(|(b, p)| Op::Zero(b, p * 4096)),
        (place(), any::<u8>()).prop_map(|((b, p), fill)| Op::Page(b, p * 4096, fill)),
        Just(Op::Opaque),
    ]
}

fn write(ops: &[Op], section_bytes: usize) -> Vec<u8> {
    let (mut out, _) = written();
    let mut writer = Writer::new(Parsed::of(&out).layout, WriterConfig { section_bytes });
    for op in ops {
        match op {
            Op::Zero(block, offset) => writer.zero(&mut out, BlockIdx(*block), *offset, 1).unwrap(),
            Op::Page(block, offset, fill) => {
                writer.page(&mut out, BlockIdx(*block), *offset, &[*fill; PAGE_BYTES]).unwrap();
            }
            Op::Opaque => writer.opaque(&mut out, b"\x08\x00\x0b\x00\x00").unwrap(),
        }
    }
    writer.finish_ram(&mut out).unwrap();
    writer.tail(&mut out, b"tail").unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        ops in prop::collection::vec(op(), 0..40),
        section_bytes in 1usize..20_000,
        cuts in prop::collection::vec(1usize..6000, 0..200),
    ) {
        let stream = write(&ops, section_bytes);
        let (events, end) = parse(&stream, []);
        prop_assert_eq!(end.as_ref().ok(), Some(&(stream.len() as u64)));
        let cut = parse(&stream, cuts);
        prop_assert_eq!(&cut.0, &events);
        prop_assert_eq!(&cut.1, &end);
        let read: Vec<_> = events.iter().filter(|e| matches!(e, Ev::Zero(..) | Ev::Page(..))).cloned().collect();
        let want: Vec<_> = ops.iter().filter_map(|op| match op {
            Op::Zero(b, o) => Some(Ev::Zero(*b, *o)),
            Op::Page(b, o, f) => Some(Ev::Page(*b, *o, *f)),
            Op::Opaque => None,
        }).collect();
        prop_assert_eq!(read, want);
    }

    /// One wrong byte anywhere: the same verdict and the same events however the stream is cut, and all bytes
    /// before the verdict accounted for.
    #[test]
    fn a_damaged_stream_gives_the_same_events_however_it_is_cut(
        ops in prop::collection::vec(op(), 0..6),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
        cuts in prop::collection::vec(1usize..3000, 0..100),
    ) {
        let mut stream = write(&ops, 5000);
        // The pages' bytes do not matter; aim at the others.
        let places: Vec<_> = (0..stream.len()).filter(|i| stream.get(i.wrapping_sub(1)) != stream.get(i + 1)).collect();
        let place = places[at.index(places.len())];
        stream[place] = to;
        let mut parser = Parser::new(ParserConfig::default());
        let mut lax = Lax;
        let once = parser.feed(&stream, &mut lax).map_err(|e| (e.at, e.why, e.resume));
        let mut parser = Parser::new(ParserConfig::default());
        let (mut from, mut till, mut again) = (0, 0, Ok(0));
        for piece in cuts.into_iter().chain([stream.len()]) {
            till = (till + piece).min(stream.len());
            match parser.feed(&stream[from..till], &mut lax) {
                Ok(n) => { from += n; again = Ok(from); }
                Err(e) => { again = Err((e.at, e.why, e.resume)); break; }
            }
        }
        prop_assert_eq!(once, again);
    }
}

/// Takes everything.
struct Lax;

impl Events for Lax {
    fn opaque(&mut self, _bytes: &[u8]) {}
    fn blocks(&mut self, _layout: &RamLayout) {}
    fn zero(&mut self, _block: BlockIdx, _offset: u64) {}
    fn page(&mut self, _block: BlockIdx, _offset: u64, _data: &[u8; PAGE_BYTES]) {}
    fn select_block(&mut self, _block: BlockIdx) {}
    fn ram_part(&mut self, _pages: u64) {}
    fn ram_end(&mut self, _pages: u64) {}
    fn tail(&mut self, _bytes: &[u8]) {}
}

#[test]
fn a_name_has_one_to_255_bytes() {
    assert!(BlockName::new(b"").is_none());
    assert!(BlockName::new(&[b'x'; 256]).is_none());
    assert_eq!(BlockName::new(b"pc.ram\x01").unwrap().to_string(), "pc.ram\\x01");
}
