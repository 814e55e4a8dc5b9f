//! Payloads made by hand, and a receiver that takes them.

use crate::model::ModelRam;
use hikyaku_engine::codec::{Encoder, Kind, Method, PagesBody};
use hikyaku_engine::{ChunkSeq, PAGE_BYTES, PageId, ReceiveError, Receiver, ReceiverConfig};

/// Of the guest.
pub const PAGES: u32 = 24;

/// A pages payload, whole pages filled with a value.
pub fn payload(zero_runs: &[(u32, u32)], wholes: &[(u32, u8)], deltas: &[(u32, u32, &[u8])]) -> Vec<u8> {
    stored_payload(zero_runs, wholes, deltas, &[], &[])
}

/// The same with references (page, chunk that stored it, slot) and stores (which of `wholes`, slot).
pub fn stored_payload(
    zero_runs: &[(u32, u32)],
    wholes: &[(u32, u8)],
    deltas: &[(u32, u32, &[u8])],
    refs: &[(u32, u32, u16)],
    stores: &[(u16, u16)],
) -> Vec<u8> {
    let zero_runs: Vec<_> = zero_runs.iter().map(|(page, run)| (PageId(*page), *run)).collect();
    let contents: Vec<_> = wholes.iter().map(|(page, value)| (PageId(*page), [*value; PAGE_BYTES])).collect();
    let wholes: Vec<_> = contents.iter().map(|(page, bytes)| (*page, bytes)).collect();
    let delta_bytes: Vec<u8> = deltas.iter().flat_map(|(_, _, delta)| *delta).copied().collect();
    let deltas: Vec<_> = deltas
        .iter()
        .map(|(page, base, delta)| (PageId(*page), ChunkSeq(*base), delta.len() as u16))
        .collect();
    let refs: Vec<_> = refs.iter().map(|(page, seq, slot)| (PageId(*page), ChunkSeq(*seq), *slot)).collect();
    // Some in the body, some plain: it is all the same to a receiver.
    let (wholes, plain) = wholes.split_at(wholes.len() / 2);
    let body = PagesBody {
        zero_runs: &zero_runs,
        wholes,
        plain,
        deltas: &deltas,
        delta_bytes: &delta_bytes,
        refs: &refs,
        stores,
    };
    Encoder::default().pages(&body, Method::Stored, 0).payload.to_vec()
}

pub fn opaque(offset: u64, bytes: &[u8]) -> Vec<u8> {
    stream(Kind::Opaque, offset, bytes)
}

pub fn stream(kind: Kind, offset: u64, bytes: &[u8]) -> Vec<u8> {
    Encoder::default().stream(kind, offset, bytes, Method::Stored, 0).payload.to_vec()
}

pub struct Pair {
    pub receiver: Receiver,
    pub ram: ModelRam,
}

impl Pair {
    pub fn new(config: ReceiverConfig) -> Self {
        let mut receiver = Receiver::new(config);
        receiver.layout(PAGES).expect("a layout");
        Pair { receiver, ram: ModelRam::new(PAGES) }
    }

    pub fn chunk(
        &mut self,
        seq: u32,
        after: u32,
        payload: Vec<u8>,
    ) -> Result<(), ReceiveError<std::convert::Infallible>> {
        self.receiver.chunk(ChunkSeq(seq), ChunkSeq(after), payload, &mut self.ram)
    }
}

/// Changes the first byte of a page to `value`.
pub fn first_byte(value: u8) -> [u8; 3] {
    [0, 1, value]
}
