//! Text-like bytes: words of 2 to 7 letters from a fixed vocabulary, about three to one for zstd.

use super::rng::Rng;

const VOCABULARY_BITS: u32 = 9;
const VOCABULARY: usize = 1 << VOCABULARY_BITS;
/// Draws from one random number.
const DRAWS: u32 = 64 / VOCABULARY_BITS;

/// Each word with the blank after it, first letter lowest, zero above.
static WORD: [u64; VOCABULARY] = vocabulary();

/// Fills `out` with text, which starts and ends anywhere in a word.
///
/// Never inlined: merged into a caller its loop loses its registers, and more than half of its speed.
#[inline(never)]
pub fn write(out: &mut [u64], rng: &mut Rng) {
    let (mut pending, mut pending_bits) = (0u64, 0u32);
    let (mut draws, mut left) = (0u64, 0u32);
    for slot in out {
        loop {
            if left == 0 {
                draws = rng.next();
                left = DRAWS;
            }
            let word = WORD[draws as usize % VOCABULARY];
            draws >>= VOCABULARY_BITS;
            left -= 1;
            let bits = 64 - (word.leading_zeros() & !7);
            pending |= word << pending_bits;
            pending_bits += bits;
            if pending_bits >= 64 {
                *slot = pending;
                pending_bits -= 64;
                // `bits - pending_bits` bits went into the slot; at most 63, unless nothing is left over.
                pending = if pending_bits == 0 { 0 } else { word >> (bits - pending_bits) };
                break;
            }
        }
    }
}

const fn vocabulary() -> [u64; VOCABULARY] {
    const LETTERS: [&[u8]; 2] = [b"tnshrdlcmwfgypbvk", b"eaoiu"];
    let mut words = [0u64; VOCABULARY];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut at = 0;
    while at < VOCABULARY {
        let letters = 2 + at % 6;
        let mut word = 0u64;
        let mut letter = 0;
        while letter < letters {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let set = LETTERS[(letter + at) % 2];
            word |= (set[(state >> 33) as usize % set.len()] as u64) << (8 * letter);
            letter += 1;
        }
        words[at] = word | (b' ' as u64) << (8 * letters);
        at += 1;
    }
    words
}
