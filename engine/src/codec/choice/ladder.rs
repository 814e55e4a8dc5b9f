//! The methods between which it is stepped.
//!
//! From stored to the densest, those that no mixture of two others beats at once in size and time: the lower hull of their sizes over their times.
//! Between two of them there are three mixtures: one, two or three chunks in four go by the denser. To go from zstd -1 to none at all and back, as
//! the wire runs dry and fills, takes a quarter more bytes of text than zstd -2 does in the same time (by [`super::ChooserConfig::first_guess`]).
//!
//! ```text
//!  size
//!    1 ┤ ● stored
//!      │   ·
//!      │      ·       ● LZ4         not on the ladder of text; of other contents it is
//!      │         ● zstd -2
//!      │             · · · ● zstd -1 · · · ● 1 …
//!      └──────────────────────────────────▶ time
//! ```

use crate::codec::choice::{Figure, METHODS, STORED};

/// Methods, each faster than the next and less dense; see the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ladder {
    methods: [usize; METHODS],
    rungs: usize,
}

/// Steps from one rung to the next.
pub(super) const STEPS: usize = 4;

impl Ladder {
    pub(super) fn new(figures: [Figure; METHODS]) -> Self {
        let of = |at: usize| figures.get(at).copied().unwrap_or(Figure { size: 1.0, ns: 1.0 });
        let mut by_time: [usize; METHODS] = std::array::from_fn(|at| at);
        by_time.sort_by(|a, b| of(*a).ns.total_cmp(&of(*b).ns));
        let saved_per_ns = |from: usize, to: usize| {
            (of(from).size - of(to).size) / (of(to).ns - of(from).ns).max(f64::MIN_POSITIVE)
        };
        let mut ladder = Ladder { methods: [STORED; METHODS], rungs: 1 };
        for at in by_time {
            if of(at).size >= of(ladder.rung(ladder.rungs - 1)).size {
                continue;
            }
            while ladder.rungs > 1 {
                let (before, last) = (ladder.rung(ladder.rungs - 2), ladder.rung(ladder.rungs - 1));
                if saved_per_ns(before, last) > saved_per_ns(before, at) {
                    break;
                }
                ladder.rungs -= 1;
            }
            if let Some(rung) = ladder.methods.get_mut(ladder.rungs) {
                *rung = at;
                ladder.rungs += 1;
            }
        }
        ladder
    }

    /// The step of the densest.
    pub(super) fn top(&self) -> usize {
        (self.rungs - 1) * STEPS
    }

    /// Beyond the last one, that.
    pub(super) fn rung(&self, at: usize) -> usize {
        self.methods.get(at.min(self.rungs - 1)).copied().unwrap_or(STORED)
    }

    /// Where a method is; of one that is not on the ladder, where the next less dense one is.
    pub(super) fn step_of(&self, method: usize) -> usize {
        let rung = (0..self.rungs).rev().find(|at| self.rung(*at) <= method);
        rung.unwrap_or_default() * STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Method;
    use crate::codec::choice::method;
    use crate::codec::choice::tests::{Machine, REAL, TEXT};

    #[test]
    fn it_has_what_no_mixture_beats() {
        let of = |machine: &Machine| {
            let ladder = Ladder::new(machine.map(|(size, mb_per_s)| Figure { size, ns: 1000.0 / mb_per_s }));
            ladder.methods[..ladder.rungs].iter().map(|at| method(*at)).collect::<Vec<_>>()
        };
        let all = Method::ALL;
        assert_eq!(of(&TEXT), [all[0], all[2], all[3], all[4], all[5], all[6]]);
        assert_eq!(of(&REAL), [all[0], all[1], all[3], all[4], all[5], all[6]]);
        assert_eq!(of(&[(1.0, 400.0); METHODS]), [Method::Stored]);
    }
}
