//! Which page of the working set is written next. Slots are numbers in `0..len`; what page a slot is, the load knows.

use super::params::Pattern;
use super::rng::Rng;

/// A number ≥ 0 in units of 2^-32; the guest has no floating point.
type Fixed = u64;
const FRACTION_BITS: u32 = 32;
const ONE: Fixed = 1 << FRACTION_BITS;

#[derive(Clone, Debug)]
pub struct Chooser {
    pattern: Pattern,
    len: u32,
    next: u32,
    /// Coprime to `len`: spreads ranks over the set, so that hot pages are no neighbours.
    spread: u64,
    zipf_root: u32,
    /// (len + 1)^(1 / zipf_root), the upper end of the range that is drawn from.
    zipf_top: Fixed,
}

impl Chooser {
    pub fn new(pattern: Pattern, len: u32, zipf_root: u32) -> Chooser {
        let mut spread = 2_654_435_761u64;
        while gcd(spread, u64::from(len.max(1))) != 1 {
            spread += 2;
        }
        Chooser { pattern, len, next: 0, spread, zipf_root, zipf_top: root(len.saturating_add(1), zipf_root) }
    }

    /// Must not be called on an empty set.
    pub fn next(&mut self, rng: &mut Rng) -> u32 {
        match self.pattern {
            Pattern::Seq => {
                let slot = self.next;
                self.next = if slot + 1 >= self.len { 0 } else { slot + 1 };
                slot
            }
            Pattern::Uniform => rng.below(self.len),
            Pattern::Hot => {
                let hot = (self.len / 10).max(1);
                let rank = if rng.below(10) < 9 { rng.below(hot) } else { hot + rng.below(self.len - hot) };
                self.scatter(rank.min(self.len - 1))
            }
            Pattern::Zipf => {
                // The inverse of the integral of x^-s from 1 to len + 1, with 1 - s = 1 / root.
                let x = power(ONE + times(rng.fraction(), self.zipf_top - ONE), self.zipf_root);
                self.scatter(((x >> FRACTION_BITS) as u32).clamp(1, self.len) - 1)
            }
        }
    }

    fn scatter(&self, rank: u32) -> u32 {
        (u64::from(rank) * self.spread % u64::from(self.len)) as u32
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What is too large becomes the largest.
fn times(a: Fixed, b: Fixed) -> Fixed {
    u64::try_from((u128::from(a) * u128::from(b)) >> FRACTION_BITS).unwrap_or(u64::MAX)
}

fn power(base: Fixed, exponent: u32) -> Fixed {
    let (mut result, mut square, mut left) = (ONE, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        left >>= 1;
    }
    result
}

/// `x^(1/n)` for `x ≥ 1`, by bisection: it is needed once.
fn root(x: u32, n: u32) -> Fixed {
    let x = u64::from(x) << FRACTION_BITS;
    let (mut low, mut high) = (ONE, x);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if power(middle, n) < x { low = middle } else { high = middle }
    }
    low
}
