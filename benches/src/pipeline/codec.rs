//! What the codec does with pages of the test guest, each of its parts alone.

use std::hint::black_box;

use anyhow::{anyhow, ensure};
use hikyaku_engine::codec::marks::Marker;
use hikyaku_engine::codec::page_pack::{PagePacker, unpack};
use hikyaku_engine::codec::xbzrle::{self, Encoding};
use hikyaku_engine::codec::{
    DecodeScratch, Decoded, Encoder, Method, Packed, PagesBody, decode, looks_compressible,
};
use hikyaku_engine::{PAGE_BYTES, PageBytes, PageId};

use super::meter::{Figure, Meter};
use crate::page::{self, Content, Identity};
use crate::rng::Rng;

const CHUNK_PAGES: usize = 32;
const SEED: u64 = 7;
/// Of a page, beside its header, by each write of the guests whose pages hardly change.
const CHANGED_BYTES: usize = 64;

/// The slowest of the deltas, in GB/s.
pub fn all(meter: &Meter, pages: u32, show: &mut impl FnMut(Figure)) -> anyhow::Result<f64> {
    let text = create(Content::Text, pages);
    let random = create(Content::Random, pages);
    sampling(meter, &text, "text", true, show)?;
    sampling(meter, &random, "random", false, show)?;
    let slowest = deltas(meter, &text, show)?;
    methods(meter, &text, show)?;
    packing(meter, &text, show)?;
    Ok(slowest)
}

fn sampling(
    meter: &Meter,
    pages: &[PageBytes],
    name: &'static str,
    compressible: bool,
    show: &mut impl FnMut(Figure),
) -> anyhow::Result<()> {
    let mut wrong = 0;
    let figure = meter.run("looks compressible", name, bytes(pages), || {
        wrong = pages.iter().filter(|page| looks_compressible(black_box(page)) != compressible).count();
        Ok(())
    })?;
    show(figure.note(format!("{wrong} of {} misjudged", pages.len())));
    Ok(())
}

fn deltas(meter: &Meter, pages: &[PageBytes], show: &mut impl FnMut(Figure)) -> anyhow::Result<f64> {
    let mut rng = Rng::new(SEED, 1);
    let changed: Vec<PageBytes> = pages
        .iter()
        .zip(0..)
        .map(|(bytes, index)| {
            let mut words = words(bytes);
            page::change(&mut words, Identity { index, version: 2 }, CHANGED_BYTES, Content::Text, &mut rng);
            page_of(&words)
        })
        .collect();
    let mut slowest = f64::INFINITY;
    for (stage, new) in [("delta, page unchanged", pages), ("delta, 84 bytes changed", &changed)] {
        let mut delta_bytes = 0;
        let mut out = Vec::with_capacity(PAGE_BYTES);
        let figure = meter.run(stage, "text", bytes(pages), || {
            delta_bytes = 0;
            for (base, page) in pages.iter().zip(new) {
                out.clear();
                match xbzrle::encode(base, page, PAGE_BYTES, &mut out) {
                    Encoding::Delta(bytes) => delta_bytes += bytes,
                    Encoding::Same => {}
                    Encoding::TooLong => return Err(anyhow!("a delta as long as the page")),
                }
            }
            Ok(())
        })?;
        slowest = slowest.min(figure.gb_per_s());
        show(figure.note(format!("{} bytes each", delta_bytes / pages.len())));
    }
    let marker = Marker::any();
    let marks: Vec<_> = pages.iter().map(|page| marker.marks(page)).collect();
    let mut delta_bytes = 0;
    let mut out = Vec::with_capacity(PAGE_BYTES);
    let figure = meter.run("delta from marks, 84 bytes changed", "text", bytes(pages), || {
        delta_bytes = 0;
        for (marks, page) in marks.iter().zip(&changed) {
            out.clear();
            if let Encoding::Delta(bytes) = marker.delta(marks, page, PAGE_BYTES, &mut out) {
                delta_bytes += bytes;
            }
        }
        Ok(())
    })?;
    show(figure.note(format!("{} bytes each", delta_bytes / pages.len())));
    Ok(slowest)
}

fn methods(meter: &Meter, pages: &[PageBytes], show: &mut impl FnMut(Figure)) -> anyhow::Result<()> {
    let mut encoder = Encoder::default();
    for method in Method::ALL {
        let name = match method {
            Method::Stored => "stored".to_owned(),
            Method::Lz4 => "LZ4".to_owned(),
            Method::Zstd(level) => format!("zstd -{level}"),
        };
        let mut chunks: Vec<Packed> = Vec::new();
        let figure = meter.run(&format!("chunk, {name}"), "text", bytes(pages), || {
            chunks.clear();
            chunks.extend(pages.chunks(CHUNK_PAGES).zip(0..).map(|(pages, chunk)| {
                let first = chunk * CHUNK_PAGES as u32;
                let wholes: Vec<_> = pages.iter().zip(first..).map(|(page, at)| (PageId(at), page)).collect();
                encoder.pages(&PagesBody { wholes: &wholes, ..PagesBody::default() }, method, 30)
            }));
            Ok(())
        })?;
        let packed: usize = chunks.iter().map(|chunk| chunk.payload.len()).sum();
        show(figure.note(format!("to {:.1} %", packed as f64 * 100.0 / bytes(pages) as f64)));

        let mut scratch = DecodeScratch::default();
        show(meter.run(&format!("decode, {name}"), "text", bytes(pages), || {
            for chunk in &chunks {
                let Decoded::Pages(decoded) = decode(&chunk.payload, 1 << 20, &mut scratch)? else {
                    return Err(anyhow!("not pages"));
                };
                ensure!(decoded.count() > 0, "an empty chunk");
                black_box(decoded);
            }
            Ok(())
        })?);
    }
    Ok(())
}

/// As the source's store of bases does.
fn packing(meter: &Meter, pages: &[PageBytes], show: &mut impl FnMut(Figure)) -> anyhow::Result<()> {
    let mut packer = PagePacker::default();
    let mut packed: Vec<Box<[u8]>> = Vec::new();
    let figure = meter.run("page packed", "text", bytes(pages), || {
        packed.clear();
        packed.extend(pages.iter().filter_map(|page| packer.pack(page).map(Box::from)));
        Ok(())
    })?;
    let sum: usize = packed.iter().map(|packed| packed.len()).sum();
    show(figure.note(format!("to {:.1} %", sum as f64 * 100.0 / (packed.len().max(1) * PAGE_BYTES) as f64)));
    let mut page = [0; PAGE_BYTES];
    show(meter.run("page unpacked", "text", (packed.len() * PAGE_BYTES) as u64, || {
        for packed in &packed {
            unpack(packed, &mut page)?;
            black_box(&page);
        }
        Ok(())
    })?);
    Ok(())
}

fn create(content: Content, pages: u32) -> Vec<PageBytes> {
    let page = |index| {
        let mut words = [0; page::WORDS];
        page::create(&mut words, Identity { index, version: 1 }, content, SEED);
        page_of(&words)
    };
    (0..pages).map(page).collect()
}

fn bytes(pages: &[PageBytes]) -> u64 {
    (pages.len() * PAGE_BYTES) as u64
}

fn page_of(words: &page::Page) -> PageBytes {
    let mut bytes = [0; PAGE_BYTES];
    for (target, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *target = word.to_le_bytes();
    }
    bytes
}

fn words(bytes: &PageBytes) -> page::Page {
    let mut words = [0; page::WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
