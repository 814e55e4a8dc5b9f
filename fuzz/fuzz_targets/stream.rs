//! Any bytes as a migration stream: no panic; the same events however they are cut; what is written from the
//! events reads as the same pages; a relay may begin where parsing stopped.
//!
//! The first byte chooses the cuts.
#![no_main]

use std::collections::BTreeMap;

use hikyaku_qemu::stream::{
    BlockIdx, Events, PAGE_BYTES, Parser, ParserConfig, RamLayout, Resume, TailScanner, Why, Writer,
    WriterConfig,
};
use libfuzzer_sys::fuzz_target;

#[derive(Default, PartialEq, Debug)]
struct Seen {
    opaque: Vec<u8>,
    tail: Vec<u8>,
    layout: Option<RamLayout>,
    pages: BTreeMap<(BlockIdx, u64), Option<Box<[u8; PAGE_BYTES]>>>,
    /// Everything else, in order, with where in `opaque` it came.
    order: Vec<(usize, char, u64, u64)>,
}

impl Seen {
    fn note(&mut self, what: char, a: u64, b: u64) {
        self.order.push((self.opaque.len(), what, a, b));
    }
}

impl Events for Seen {
    fn opaque(&mut self, bytes: &[u8]) {
        self.opaque.extend_from_slice(bytes);
    }
    fn blocks(&mut self, layout: &RamLayout) {
        assert!(self.layout.is_none());
        self.layout = Some(layout.clone());
        self.note('b', 0, 0);
    }
    fn zero(&mut self, block: BlockIdx, offset: u64) {
        self.pages.insert((block, offset), None);
        self.note('z', u64::from(block.0), offset);
    }
    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        self.pages.insert((block, offset), Some(Box::new(*data)));
        self.note('p', u64::from(block.0), offset);
    }
    fn select_block(&mut self, block: BlockIdx) {
        self.note('s', u64::from(block.0), 0);
    }
    fn ram_part(&mut self, pages: u64) {
        self.note('e', pages, 0);
    }
    fn ram_end(&mut self, pages: u64) {
        self.note('E', pages, 0);
    }
    fn tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }
}

type Verdict = Result<usize, (u64, Why, Resume)>;

fn parse(stream: &[u8], mut next_cut: impl FnMut() -> usize) -> (Seen, Verdict, bool) {
    let config = ParserConfig { max_blocks: 64, max_foreign_sections: 16, max_foreign_bytes: 1000 };
    let (mut parser, mut seen) = (Parser::new(config), Seen::default());
    let (mut from, mut to) = (0, 0);
    while to < stream.len() {
        to = (to + next_cut()).min(stream.len());
        match parser.feed(&stream[from..to], &mut seen) {
            Ok(n) => from += n,
            Err(e) => {
                assert_eq!(e.at, (from + e.consumed_before) as u64);
                assert_eq!(e.resume, parser.resume());
                return (seen, Err((e.at, e.why, e.resume)), false);
            }
        }
        assert_eq!(parser.position(), from as u64);
    }
    (seen, Ok(from), parser.finish().is_ok())
}

fuzz_target!(|data: &[u8]| {
    let Some((&cuts, stream)) = data.split_first() else { return };
    let (seen, verdict, finished) = parse(stream, || stream.len());
    let mut state = u32::from(cuts) | 1;
    let cut = parse(stream, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 16) as usize % if cuts & 1 == 0 { 16 } else { 5000 }
    });
    assert_eq!((&cut.0, &cut.1), (&seen, &verdict));

    let mut scanner = TailScanner::new();
    scanner.push(&seen.tail);
    assert!(!scanner.complete() || scanner.could_be_complete());

    let Some(layout) = &seen.layout else { return };
    // Commands and foreign sections between pages are left out: only where they stand can be judged there.
    let Some(start) = seen.order.iter().find(|o| o.1 == 'b').map(|o| o.0) else { return };
    let mut writer = Writer::new(layout.clone(), WriterConfig { section_bytes: 9000 });
    let mut out = seen.opaque[..start].to_vec();
    // Whether a foreign section has ended is told by a whole item behind it, which may reach past RAM's set-up:
    // with other bytes there, the parser may rightly still wait for more.
    if parse(&out, || out.len()).1 != Ok(start) {
        return;
    }
    for ((block, offset), data) in seen.pages.iter().rev() {
        match data {
            None => writer.zero(&mut out, *block, *offset, 1).unwrap(),
            Some(page) => writer.page(&mut out, *block, *offset, page).unwrap(),
        }
    }
    if let Err((.., resume)) = verdict {
        writer.begin_relay(&mut out, resume).unwrap();
        return;
    }
    writer.finish_ram(&mut out).unwrap();
    if finished {
        writer.tail(&mut out, &seen.tail).unwrap();
    }
    let (again, verdict, whole) = parse(&out, || out.len());
    assert_eq!(verdict, Ok(out.len()));
    assert!(whole);
    assert_eq!((&again.pages, &again.layout), (&seen.pages, &seen.layout));
});
