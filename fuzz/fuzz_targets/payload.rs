//! Any bytes as a payload: no panic, no memory beyond what its header may ask for, and what was understood is understood again when it is
//! written anew.
//!
//! Input: a payload.
#![no_main]

use hikyaku_engine::codec::{
    DecodeScratch, Decoded, Encoder, HEADER_BYTES, Kind, Method, PagesBody, decode, xbzrle,
};
use hikyaku_engine::{ChunkSeq, PageBytes, PageId};
use libfuzzer_sys::fuzz_target;

const LIMIT_BYTES: usize = 1 << 17;

fuzz_target!(|payload: &[u8]| {
    let mut scratch = DecodeScratch::default();
    let body_bytes = match payload {
        [_, _, _, _, a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
        _ => 0,
    };
    let decoded = decode(payload, LIMIT_BYTES, &mut scratch);
    let written = decoded.as_ref().ok().map(again);
    let understood = decoded.is_ok();
    let allowed = DecodeScratch::ZSTD_BYTES + if body_bytes <= LIMIT_BYTES { body_bytes } else { 0 };
    assert!(scratch.memory_bytes() <= allowed, "{} bytes for {body_bytes}", scratch.memory_bytes());
    assert!(!understood || payload.len() >= HEADER_BYTES);
    if let Some(written) = written {
        let again = decode(&written, LIMIT_BYTES, &mut scratch).expect("what was written");
        assert!(
            records(&again)
                == records(&decode(payload, LIMIT_BYTES, &mut DecodeScratch::default()).expect("as before"))
        );
    }
});

type Records = (
    Vec<(PageId, u32)>,
    Vec<(PageId, PageBytes)>,
    Vec<(PageId, ChunkSeq, Vec<u8>)>,
    Vec<(PageId, ChunkSeq, u16)>,
    Vec<(u16, PageBytes)>,
    Option<(Kind, u64, Vec<u8>)>,
);

fn records(decoded: &Decoded<'_>) -> Records {
    match *decoded {
        Decoded::Pages(pages) => (
            pages.zero_runs().collect(),
            pages.wholes().map(|(page, bytes)| (page, *bytes)).collect(),
            pages.deltas().map(|(page, base, delta)| (page, base, delta.to_vec())).collect(),
            pages.refs().collect(),
            pages.stores().map(|(slot, bytes)| (slot, *bytes)).collect(),
            None,
        ),
        Decoded::Stream { kind, offset, bytes } => {
            (vec![], vec![], vec![], vec![], vec![], Some((kind, offset, bytes.to_vec())))
        }
    }
}

/// The same written by the encoder.
fn again(decoded: &Decoded<'_>) -> Vec<u8> {
    let pages = match *decoded {
        Decoded::Pages(pages) => pages,
        Decoded::Stream { kind, offset, bytes } => {
            return Encoder::default().stream(kind, offset, bytes, Method::Lz4, 0).payload.to_vec();
        }
    };
    let zero_runs: Vec<_> = pages.zero_runs().collect();
    for (page, run) in &zero_runs {
        assert!(*run > 0 && page.0.checked_add(*run).is_some());
    }
    let wholes: Vec<_> = pages.wholes().collect();
    let mut delta_bytes = Vec::new();
    let deltas: Vec<_> = pages
        .deltas()
        .map(|(page, base, delta)| {
            xbzrle::check(delta).expect("a delta that was checked");
            delta_bytes.extend_from_slice(delta);
            (page, base, delta.len() as u16)
        })
        .collect();
    let refs: Vec<_> = pages.refs().collect();
    let index = |bytes: &PageBytes| wholes.iter().position(|(_, whole)| std::ptr::eq(*whole, bytes));
    let stores: Vec<_> = pages
        .stores()
        .map(|(slot, bytes)| (index(bytes).expect("one of the whole pages") as u16, slot))
        .collect();
    let (wholes, plain) = wholes.split_at(wholes.len() / 3);
    let body = PagesBody {
        zero_runs: &zero_runs,
        wholes,
        plain,
        deltas: &deltas,
        delta_bytes: &delta_bytes,
        refs: &refs,
        stores: &stores,
    };
    Encoder::default().pages(&body, Method::Zstd(1), 0).payload.to_vec()
}
