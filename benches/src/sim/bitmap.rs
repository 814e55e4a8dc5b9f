//! A bit per page.

/// See the module.
#[derive(Debug, Clone)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// All bits clear.
    pub fn new(len: u32) -> Self {
        Bitmap { words: vec![0; (len as usize).div_ceil(64)] }
    }

    /// The first `len` bits set.
    pub fn full(len: u32) -> Self {
        let mut bitmap = Bitmap { words: vec![u64::MAX; (len as usize).div_ceil(64)] };
        if let Some(last) = bitmap.words.last_mut().filter(|_| !len.is_multiple_of(64)) {
            *last = (1 << (len % 64)) - 1;
        }
        bitmap
    }

    pub fn set(&mut self, at: u32) {
        self.words[at as usize / 64] |= 1 << (at % 64);
    }

    pub fn clear(&mut self, at: u32) {
        self.words[at as usize / 64] &= !(1 << (at % 64));
    }

    pub fn contains(&self, at: u32) -> bool {
        self.words[at as usize / 64] >> (at % 64) & 1 == 1
    }

    /// The first bit set at or after `from`.
    pub fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize / 64;
        let mut word = self.words.get(at)? & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some((at * 64) as u32 + word.trailing_zeros())
    }

    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    pub fn copy_from(&mut self, other: &Bitmap) {
        self.words.copy_from_slice(&other.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_bit_is_found_across_words_and_none_after_the_last() {
        let mut bitmap = Bitmap::new(200);
        for at in [0, 63, 64, 191, 199] {
            bitmap.set(at);
        }
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(at) = bitmap.next(from) {
            found.push(at);
            from = at + 1;
        }
        assert_eq!(found, [0, 63, 64, 191, 199]);
        assert_eq!((bitmap.count(), Bitmap::full(70).count()), (5, 70));
        assert_eq!(Bitmap::full(70).next(70), None);
        bitmap.clear(63);
        assert!(!bitmap.contains(63) && bitmap.contains(64));
    }
}
