//! What a non-zero page holds, how it is changed, and how a wrong one is found out.
//!
//! | words | content |
//! |---|---|
//! | 0 | index of the page (low half), version (high half) |
//! | 1 | [`TAG`] |
//! | 2, 3 | sums over words 4.., salted with word 0 |
//! | 4.. | body |
//!
//! The two sums are a Fletcher pair over 128-bit lanes: order counts, so a page made of halves of two
//! versions is found; both are linear, so changing `n` words costs `n`, not the page.
//!
//! A page that is old but whole passes its own sums: whoever verifies must bring the version he expects.
//! Pages of one *duplicate group* are equal to the byte: their index is [`GROUP`] | group and their version 0.

use super::rng::Rng;
use super::text;

pub const WORDS: usize = 512;
pub type Page = [u64; WORDS];

/// First word of the body.
pub const BODY: usize = 4;
/// Bytes of the header that every write changes: version and sums.
pub const HEADER_CHANGE_BYTES: usize = 20;
/// Marks the index of a page that is one of several equal ones.
pub const GROUP: u32 = 1 << 31;

const TAG: u64 = u64::from_le_bytes(*b"hikyaku\n");
/// Odd, so that no lane of the sums is lost when the two are joined.
const LANE: u64 = 0xd6e8_feb8_6659_fd93;

/// Which page, and which of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub index: u32,
    pub version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Text,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Whole, but another page's content or another version's.
    Identity,
    /// Neither this page nor any other.
    Sum,
}

/// Makes the page from nothing. The content is a function of the arguments.
pub fn create(page: &mut Page, identity: Identity, content: Content, seed: u64) {
    let stream = u64::from(identity.index) | u64::from(identity.version) << 32;
    let mut rng = Rng::new(seed, stream);
    fill(&mut page[BODY..], content, &mut rng);
    page[1] = TAG;
    page[0] = stream;
    let (a, b) = body_sums(page);
    let (salt_a, salt_b) = salts(stream);
    page[2] = a.wrapping_add(salt_a);
    page[3] = b.wrapping_add(salt_b);
}

/// Writes `bytes` (rounded down to words, at least one) of new `content` at a random place, as version `to`.
/// The page must have been verified: what is wrong in it stays wrong.
pub fn change(page: &mut Page, to: Identity, bytes: usize, content: Content, rng: &mut Rng) {
    let words = (bytes / 8).clamp(1, WORDS - BODY);
    let start = BODY + rng.below((WORDS - BODY - words + 1) as u32) as usize;
    let (mut a, mut b) = run_sums(page, start, words);
    fill(&mut page[start..start + words], content, rng);
    let (new_a, new_b) = run_sums(page, start, words);
    let (old_salt_a, old_salt_b) = salts(page[0]);
    page[0] = u64::from(to.index) | u64::from(to.version) << 32;
    let (salt_a, salt_b) = salts(page[0]);
    a = new_a.wrapping_sub(a).wrapping_add(salt_a).wrapping_sub(old_salt_a);
    b = new_b.wrapping_sub(b).wrapping_add(salt_b).wrapping_sub(old_salt_b);
    page[2] = page[2].wrapping_add(a);
    page[3] = page[3].wrapping_add(b);
}

pub fn identity(page: &Page) -> Identity {
    Identity { index: page[0] as u32, version: (page[0] >> 32) as u32 }
}

/// Is this page whole, and `index` in a version that ends in `version`?
pub fn verify(page: &Page, index: u32, version: u16) -> Result<(), Damage> {
    let (a, b) = body_sums(page);
    let (salt_a, salt_b) = salts(page[0]);
    if page[1] != TAG || page[2] != a.wrapping_add(salt_a) || page[3] != b.wrapping_add(salt_b) {
        return Err(Damage::Sum);
    }
    let found = identity(page);
    if found.index != index || found.version as u16 != version { Err(Damage::Identity) } else { Ok(()) }
}

pub fn is_zero(page: &Page) -> bool {
    page.chunks_exact(16).all(|words| words.iter().fold(0, |all, word| all | word) == 0)
}

fn fill(words: &mut [u64], content: Content, rng: &mut Rng) {
    match content {
        Content::Text => text::write(words, rng),
        Content::Random => words.iter_mut().for_each(|word| *word = rng.next()),
    }
}

/// Mixes the identity into the sums, so that a body under a foreign header is found.
fn salts(identity: u64) -> (u64, u64) {
    let mixed = (identity ^ TAG).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29, mixed.rotate_left(31).wrapping_mul(LANE))
}

fn body_sums(page: &Page) -> (u64, u64) {
    // Two lanes side by side: neither waits for the other.
    let (mut a, mut b) = ([0u64; 2], [0u64; 2]);
    for pair in page[BODY..].as_chunks::<2>().0 {
        for lane in 0..2 {
            a[lane] = a[lane].wrapping_add(pair[lane]);
            b[lane] = b[lane].wrapping_add(a[lane]);
        }
    }
    (join(a), join(b))
}

fn join([low, high]: [u64; 2]) -> u64 {
    low.wrapping_add(high.wrapping_mul(LANE))
}

/// What words `start..start + words` contribute to [`body_sums`].
fn run_sums(page: &Page, start: usize, words: usize) -> (u64, u64) {
    let (mut a, mut b) = (0u64, 0u64);
    for (at, &word) in page.iter().enumerate().skip(start).take(words) {
        let term = if at % 2 == 0 { word } else { word.wrapping_mul(LANE) };
        let weight = ((WORDS - at).div_ceil(2)) as u64;
        a = a.wrapping_add(term);
        b = b.wrapping_add(term.wrapping_mul(weight));
    }
    (a, b)
}
