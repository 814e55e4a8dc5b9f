//! From plain copying to all that the engine does, one thing more at each rung.
//!
//! The same policy decides on every rung, and on all but the last nothing is superseded: the source is read at the rate of the link, as
//! by a program that copies pass by pass.

use hikyaku_engine::Time;
use hikyaku_engine::precopy::{Decision, Encodings, Policy, View};

/// In the order in which they are climbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    Raw,
    Zero,
    Compression,
    Same,
    Delta,
    Supersede,
}

impl Rung {
    pub const ALL: [Rung; 6] =
        [Rung::Raw, Rung::Zero, Rung::Compression, Rung::Same, Rung::Delta, Rung::Supersede];

    pub fn name(self) -> &'static str {
        match self {
            Rung::Raw => "raw",
            Rung::Zero => "+ zero",
            Rung::Compression => "+ LZ4/zstd",
            Rung::Same => "+ same",
            Rung::Delta => "+ delta",
            Rung::Supersede => "+ supersede",
        }
    }

    pub fn encodings(self) -> Encodings {
        let at_least = |rung: Rung| self as u8 >= rung as u8;
        Encodings {
            zero: at_least(Rung::Zero),
            compression: at_least(Rung::Compression),
            dictionary: at_least(Rung::Same),
            delta: at_least(Rung::Delta),
        }
    }

    /// `policy`, with what this rung has.
    pub fn of(self, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        Box::new(On { rung: self, policy })
    }
}

/// What may wait at the source where nothing is to be superseded: a few chunks, so that workers and wire have something to do.
const IN_HAND_BYTES: usize = 1 << 20;

struct On {
    rung: Rung,
    policy: Box<dyn Policy>,
}

impl Policy for On {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn decide(&mut self, view: &View) -> Decision {
        self.policy.decide(view)
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        match self.rung {
            Rung::Supersede => self.policy.staging_bytes(configured),
            _ => IN_HAND_BYTES,
        }
    }

    fn encodings(&self) -> Encodings {
        self.rung.encodings()
    }

    fn paces_passes(&self) -> bool {
        self.policy.paces_passes()
    }

    fn skips_redirtied(&self) -> bool {
        self.policy.skips_redirtied()
    }

    fn limit_bytes_per_s(&self) -> Option<u64> {
        self.policy.limit_bytes_per_s()
    }

    fn resumed(&mut self, now: Time) {
        self.policy.resumed(now);
    }

    fn late(&mut self, now: Time) {
        self.policy.late(now);
    }

    fn throttled(&mut self, now: Time, share: f32) {
        self.policy.throttled(now, share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rung_has_what_the_one_before_has_and_one_thing_more() {
        let count = |rung: Rung| {
            let Encodings { zero, compression, dictionary, delta } = rung.encodings();
            [zero, compression, dictionary, delta].into_iter().filter(|has| *has).count()
        };
        assert_eq!(Rung::ALL.map(count), [0, 1, 2, 3, 4, 4]);
        assert_eq!(Rung::Raw.encodings(), Encodings::NONE);
        assert_eq!(Rung::Supersede.encodings(), Encodings::default());
    }
}
