//! What earlier moves have taught of the parts of a stop that the engine cannot see: how long QEMU takes to stop, to hand its
//! device state over, and to run. Kept per peer while the daemon runs; no more than a guess for another guest, and a better one than none.

use crate::report::Stop;
use hikyaku_engine::precopy::Terms;
use std::collections::HashMap;
use std::time::Duration;

/// Before any move: what `cargo test -p hikyaku-tests --test check -- --nocapture foretold` measures, on two cores under TCG, and half as much again or more. A
/// guest with many devices takes longer, and its first move teaches how long.
const FIRST: Learnt = Learnt { pause_ms: 6.0, state_ms: 5.0, resume_ms: 2.0 };
/// A bitmap of 32 KiB per GiB of RAM is synced with the guest stopped.
const PAUSE_PER_GIB: Duration = Duration::from_millis(1);
/// What the last move says, of what is believed afterwards.
const WEIGHT: f64 = 0.5;
/// A move that had more than this left to send tells nothing: its last pages were waited for.
const RESIDUAL_MS_MOST: f64 = 50.0;
/// No part of a stop is believed to be longer: a machine that stood still for once is not to hold up the next guest.
const TERM_MS_MOST: f64 = 2000.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Experience {
    peers: HashMap<String, Learnt>,
}

/// Milliseconds; `pause` without what grows with RAM.
#[derive(Debug, Clone, Copy)]
struct Learnt {
    pause_ms: f64,
    state_ms: f64,
    resume_ms: f64,
}

impl Experience {
    /// What to expect of a guest with so much RAM that goes to `peer`.
    pub fn terms(&self, peer: &str, ram_bytes: u64) -> Terms {
        let learnt = self.peers.get(peer).unwrap_or(&FIRST);
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        Terms {
            pause: ms(learnt.pause_ms) + syncing(ram_bytes),
            state: ms(learnt.state_ms),
            resume: ms(learnt.resume_ms),
            ..Terms::default()
        }
    }

    /// A guest was not moved because of what is believed of `peer`: less of it is believed from now on.
    pub fn doubt(&mut self, peer: &str) {
        self.peers.entry(peer.to_owned()).and_modify(|learnt| *learnt = learnt.towards(&FIRST));
    }

    pub fn learn(&mut self, peer: &str, ram_bytes: u64, stop: &Stop) {
        if stop.residual_ms > RESIDUAL_MS_MOST {
            return;
        }
        let syncing_ms = syncing(ram_bytes).as_secs_f64() * 1e3;
        let new = Learnt {
            pause_ms: bounded(stop.pause_ms - syncing_ms),
            state_ms: bounded(stop.state_ms),
            resume_ms: bounded(stop.resume_ms),
        };
        self.peers.entry(peer.to_owned()).and_modify(|old| *old = old.towards(&new)).or_insert(new);
    }
}

impl Learnt {
    fn towards(&self, new: &Learnt) -> Learnt {
        let mix = |old: f64, new: f64| old + WEIGHT * (new - old);
        Learnt {
            pause_ms: mix(self.pause_ms, new.pause_ms),
            state_ms: mix(self.state_ms, new.state_ms),
            resume_ms: mix(self.resume_ms, new.resume_ms),
        }
    }
}

fn syncing(ram_bytes: u64) -> Duration {
    PAUSE_PER_GIB.mul_f64(ram_bytes as f64 / f64::from(1 << 30))
}

fn bounded(ms: f64) -> f64 {
    ms.clamp(0.0, TERM_MS_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn stop(pause_ms: f64, state_ms: f64, residual_ms: f64) -> Stop {
        Stop { pause_ms, state_ms, residual_ms, resume_ms: 4.0, ..Stop::default() }
    }

    /// Milliseconds.
    fn terms(experience: &Experience, peer: &str, ram_bytes: u64) -> (u128, u128, u128) {
        let terms = experience.terms(peer, ram_bytes);
        (terms.pause.as_millis(), terms.state.as_millis(), terms.resume.as_millis())
    }

    #[test]
    fn before_any_move_there_is_a_guess_and_ram_counts() {
        let none = Experience::default();
        assert_eq!(terms(&none, "osaka", GIB), (7, 5, 2));
        assert_eq!(terms(&none, "osaka", 64 * GIB), (70, 5, 2));
    }

    #[test]
    fn a_move_teaches_of_its_peer_and_of_no_other() {
        let mut experience = Experience::default();
        experience.learn("osaka", GIB, &stop(9.0, 50.0, 1.0));
        assert_eq!(terms(&experience, "osaka", GIB), (9, 50, 4));
        assert_eq!(terms(&experience, "kyoto", GIB), (7, 5, 2));
        experience.learn("osaka", GIB, &stop(9.0, 70.0, 1.0));
        assert_eq!(terms(&experience, "osaka", 3 * GIB), (11, 60, 4));
    }

    #[test]
    fn what_keeps_guests_from_being_moved_is_believed_less_and_less() {
        let mut experience = Experience::default();
        experience.learn("osaka", GIB, &Stop { resume_ms: 1002.0, ..stop(9.0, 5.0, 1.0) });
        assert_eq!(terms(&experience, "osaka", GIB).2, 1002);
        experience.doubt("osaka");
        assert_eq!(terms(&experience, "osaka", GIB).2, 502);
        experience.doubt("osaka");
        assert_eq!(terms(&experience, "osaka", GIB).2, 252);
        experience.doubt("kyoto");
        assert_eq!(terms(&experience, "kyoto", GIB), (7, 5, 2));
    }

    #[test]
    fn a_move_that_had_much_left_teaches_nothing_and_one_that_hung_is_not_believed() {
        let mut experience = Experience::default();
        experience.learn("osaka", GIB, &stop(9.0, 50.0, 900.0));
        assert_eq!(terms(&experience, "osaka", GIB), (7, 5, 2));
        experience.learn("osaka", GIB, &stop(0.0, 1e9, 0.0));
        assert_eq!(terms(&experience, "osaka", GIB).1, 2000);
    }
}
