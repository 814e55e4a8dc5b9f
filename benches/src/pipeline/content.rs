//! Pages as guests have them, and QEMU's stream of them.

use hikyaku_qemu::stream::{
    Block, BlockIdx, BlockName, PAGE_BYTES, RamLayout, WriteError, Writer, WriterConfig,
};

/// What the pages hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Words and pointers, as in a heap.
    Text,
    /// Does not compress.
    Random,
    /// As the non-zero part of the benchmarks' `seq` guest: text, random and repeated pages 3 : 2 : 1.
    Mixed,
}

impl Content {
    pub fn name(self) -> &'static str {
        match self {
            Content::Text => "text",
            Content::Random => "random",
            Content::Mixed => "mixed",
        }
    }
}

/// The memory of a small guest, none of it zero.
pub struct Corpus {
    pub content: Content,
    pub pages: Vec<[u8; PAGE_BYTES]>,
}

impl Corpus {
    pub fn new(content: Content, pages: u32) -> Self {
        let mut rng = Rng(7);
        let repeated = text(&mut rng);
        let pages = (0..pages)
            .map(|page| match (content, page % 6) {
                (Content::Text, _) | (Content::Mixed, 0..3) => text(&mut rng),
                (Content::Random, _) | (Content::Mixed, 3..5) => random(&mut rng),
                (Content::Mixed, _) => repeated,
            })
            .collect();
        Corpus { content, pages }
    }

    pub fn bytes(&self) -> u64 {
        (self.pages.len() * PAGE_BYTES) as u64
    }
}

/// A guest of one block.
pub fn layout(pages: u32) -> RamLayout {
    let name = BlockName::new(b"pc.ram").into_iter();
    let blocks = name
        .map(|name| Block { name, used_bytes: u64::from(pages) * PAGE_BYTES as u64, gpa: None })
        .collect();
    RamLayout { section_id: RAM_SECTION, blocks }
}

const RAM_SECTION: u32 = 2;

/// What QEMU sends before the first page of such a guest.
pub fn prefix(pages: u32) -> Vec<u8> {
    const MEM_SIZE: u64 = 4;
    const EOS: u64 = 0x10;
    let bytes = u64::from(pages) * PAGE_BYTES as u64;
    let mut out = b"QEVM\0\0\0\x03".to_vec();
    out.push(1);
    out.extend(RAM_SECTION.to_be_bytes());
    out.extend(b"\x03ram");
    out.extend([0, 0, 0, 0, 0, 0, 0, 4]);
    out.extend((bytes | MEM_SIZE).to_be_bytes());
    out.extend(b"\x06pc.ram");
    out.extend(bytes.to_be_bytes());
    out.extend(EOS.to_be_bytes());
    out.push(0x7e);
    out.extend(RAM_SECTION.to_be_bytes());
    out
}

/// One pass of QEMU over the pages, zero where there is none.
pub fn pass(pages: &[Option<&[u8; PAGE_BYTES]>]) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(layout(pages.len() as u32), WriterConfig::default());
    let mut out = Vec::new();
    for (at, page) in pages.iter().enumerate() {
        let offset = (at * PAGE_BYTES) as u64;
        match page {
            Some(page) => writer.page(&mut out, BlockIdx(0), offset, page)?,
            None => writer.zero(&mut out, BlockIdx(0), offset, 1)?,
        }
    }
    writer.close_section(&mut out)?;
    Ok(out)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

fn random(rng: &mut Rng) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    for word in page.as_chunks_mut::<8>().0 {
        *word = rng.next().to_le_bytes();
    }
    page
}

fn text(rng: &mut Rng) -> [u8; PAGE_BYTES] {
    const WORDS: [&[u8; 8]; 16] = [
        b"station ",
        b"courier ",
        b"the road",
        b" carries",
        b" letters",
        b"0000000 ",
        b"from Edo",
        b"to Kyoto",
        b"running ",
        b"name=\"a\"",
        b"</entry>",
        b"\0\0\0\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\0",
        b"return 0",
        b"value = ",
        b"struct {",
    ];
    let mut page = [0; PAGE_BYTES];
    for word in page.as_chunks_mut::<8>().0 {
        let draw = rng.next();
        // Every fourth word a pointer into a small heap, of which the low bytes differ.
        *word = match WORDS.get((draw % 16) as usize) {
            Some(text) if draw >> 8 & 3 != 0 => **text,
            _ => (0x0000_7f3a_5c00_0000 | draw >> 40 & 0x00ff_fff8).to_le_bytes(),
        };
    }
    page
}
