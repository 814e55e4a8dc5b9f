//! What the load is, apart from the memory it is done in: what every page is made of, its versions, how much is due when.
//!
//! Kinds lie in extents of [`EXTENT_PAGES`] pages, spread evenly over memory. It says nothing of which page is written next:
//! [`Chooser`](super::pattern::Chooser).

use super::page::{Content, GROUP, HEADER_CHANGE_BYTES, Identity};
use super::params::{Params, Renewal};
use super::rng::Rng;

const EXTENT_PAGES: u32 = 16;
/// Different contents among the duplicated pages.
const DUP_GROUPS: u32 = 256;
/// In a table of versions: this page is known to be bad. No version ends in it.
pub const BAD: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Zero,
    Dup,
    Own(Content),
}

/// What a page is made of from the start: a function of its number alone.
pub fn kind(params: &Params, index: u32) -> Kind {
    // Golden-ratio steps: every stretch of memory has nearly the stated shares.
    let extent = (index / EXTENT_PAGES).wrapping_add(params.seed as u32);
    let place = (u64::from(extent.wrapping_mul(2_654_435_769)) * 1000) >> 32;
    let shares = params.shares;
    let place = place as u32;
    if place < shares.dup {
        Kind::Dup
    } else if place < shares.dup + shares.text {
        Kind::Own(Content::Text)
    } else if place < shares.dup + shares.text + shares.random {
        Kind::Own(Content::Random)
    } else {
        Kind::Zero
    }
}

/// Version 0 of a page.
pub fn first(index: u32, kind: Kind) -> Identity {
    let index = match kind {
        Kind::Dup => GROUP | Rng::new(u64::from(index), 0).below(DUP_GROUPS),
        _ => index,
    };
    Identity { index, version: 0 }
}

/// The low half is what a table of versions keeps: never 0 again, never [`BAD`].
pub fn next_version(version: u32) -> u32 {
    let next = version.wrapping_add(1);
    match next as u16 {
        BAD => next.wrapping_add(2),
        0 => next.wrapping_add(1),
        _ => next,
    }
}

/// What a write puts into a page of this kind.
pub fn written(params: &Params, kind: Kind) -> Content {
    match (params.renewal, kind) {
        (Renewal::Random, _) | (Renewal::Own, Kind::Own(Content::Random)) => Content::Random,
        _ => Content::Text,
    }
}

/// How many bytes a write changes; from a page's size on the whole page.
pub fn change_bytes(params: &Params, rng: &mut Rng) -> usize {
    let spread = params.change_max_bytes - params.change_min_bytes + 1;
    (params.change_min_bytes + rng.below(spread)) as usize
}

/// Of those, how many are not the header's.
pub fn body_change_bytes(bytes: usize) -> usize {
    bytes.saturating_sub(HEADER_CHANGE_BYTES)
}

/// Millionths of the mean rate at which pages are written now: bursts.
pub fn pace_ppm(params: &Params, since_start_us: u64) -> u64 {
    let (on, off) = (u64::from(params.burst_on_ms), u64::from(params.burst_off_ms));
    if off == 0 {
        1_000_000
    } else if since_start_us / 1000 % (on + off) < on {
        1_000_000 * (on + off) / on
    } else {
        0
    }
}

/// Where the working set begins among the non-zero pages, of which there are `room` more than it has.
pub fn window_start(params: &Params, since_start_us: u64, room: u64) -> u32 {
    let drifted = u64::from(params.drift_pages_per_s) * (since_start_us / 1000) / 1000;
    if room == 0 { 0 } else { (drifted % room) as u32 }
}
