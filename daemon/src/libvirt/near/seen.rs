//! What was seen of a migration of libvirt's, and what that says of its guest.

use crate::api::wire::Resolution;
use crate::libvirt::tap::Passed;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::protocol::libvirt::Place;
use hikyaku_qemu::libvirt::Answer;

#[derive(Debug, Default)]
pub struct Seen {
    /// Connections that are there.
    pub conduits: usize,
    pub ram: Connections,
    pub rpc: Connections,
    came: bool,
    /// libvirt there was asked to prepare for the guest, by this way.
    prepared: bool,
    /// It was asked to finish; cancelled or not.
    finish: Option<bool>,
    /// What it answered.
    pub answer: Option<Answer>,
    /// libvirt here was not there any more to be told of it.
    pub untold: bool,
    /// It cannot be told, and waits.
    pub held: bool,
    /// The waiting QEMU's last word.
    pub shut: Option<u32>,
    /// libvirt here keeps the guest, or has let it go; none: that could not be seen.
    pub kept: Option<bool>,
    /// Its memory is relayed as it is.
    pub relayed: bool,
    pub cancelled: bool,
    pub in_doubt: bool,
    pub resolved: Option<Resolution>,
    /// Nothing more is heard of the destination, for this reason.
    pub lost: Option<String>,
    /// Why the first connection that failed did.
    trouble: Option<String>,
}

/// To one place.
#[derive(Debug, Default)]
pub struct Connections {
    pub open: usize,
    pub came: usize,
}

impl Connections {
    fn were_and_are_not(&self) -> bool {
        self.came > 0 && self.open == 0
    }
}

impl Seen {
    pub fn came(&mut self, place: Place) {
        self.came = true;
        self.conduits += 1;
        if let Some(to) = self.to(place) {
            to.open += 1;
            to.came += 1;
        }
    }

    pub fn ended(&mut self, place: Place, trouble: Option<String>) {
        self.conduits -= 1;
        if let Some(to) = self.to(place) {
            to.open -= 1;
        }
        self.trouble = self.trouble.take().or(trouble);
    }

    fn to(&mut self, place: Place) -> Option<&mut Connections> {
        match place {
            Place::Rpc => Some(&mut self.rpc),
            Place::Ram => Some(&mut self.ram),
            Place::Disks => None,
        }
    }

    pub fn passed(&mut self, passed: Passed) {
        match passed {
            Passed::Prepare | Passed::Tunnel => self.prepared = true,
            Passed::Finish { cancelled } => self.finish = Some(cancelled),
            Passed::Finished(answer) => self.answer = Some(answer),
            Passed::Unheard(answer) => (self.answer, self.untold) = (Some(answer), true),
            Passed::Unanswered => {}
        }
    }

    /// All of the guest's memory may be there, and what the two libvirts say of it was not carried.
    pub fn is_unsaid(&self) -> bool {
        let said = self.resolved.is_some() || self.answer.is_some() || self.prepared;
        // Of a stream that was not looked into nobody knows how it ended.
        let all_there = self.shut == Some(0) || self.shut.is_none() && self.relayed;
        !said && all_there && self.ram.were_and_are_not()
    }

    pub fn is_unused(&self) -> bool {
        !self.prepared && self.conduits == 0
    }

    /// libvirt there may be letting the guest run, and has not said so.
    fn is_finishing(&self) -> bool {
        self.finish == Some(false) && self.answer.is_none()
    }

    /// Nothing more comes that could say something of the guest.
    pub fn is_over(&self) -> bool {
        if self.answer.is_some() || self.resolved.is_some() {
            return true;
        }
        if self.is_finishing() {
            return false;
        }
        if self.prepared {
            return self.rpc.open == 0;
        }
        // By hand, without libvirt's calls: then the guest's memory says what can be said. Somebody may have looked, and gone.
        self.ram.were_and_are_not() || (self.cancelled || self.lost.is_some()) && self.ram.open == 0
    }

    /// It runs there, and libvirt here may have continued it.
    pub fn is_at_both(&self) -> bool {
        self.untold
            && self.answer == Some(Answer::Done)
            && self.finish == Some(false)
            && self.resolved.is_none()
    }

    /// What is said while libvirt's answer may be had no more.
    pub fn doubt(&self, guest: &str, to: &str) -> Option<Outcome> {
        self.is_finishing().then(|| {
            let why = self.lost.as_deref().unwrap_or("nothing is heard");
            Outcome::new(
                Ending::InDoubt,
                Whereabouts::InDoubt,
                format!("libvirt at {to} was asked to run {guest}, and what it did is not known: {why}"),
            )
            .advise(format!(
                "Look there: virsh domstate {guest}. If it runs there, end the copy here: virsh destroy {guest}; hikyaku resolve ID --there. If not, and never will: hikyaku resolve ID --here"
            ))
        })
    }

    pub fn outcome(&self, guest: &str, to: &str) -> (Phase, Outcome) {
        let moved =
            |desc: String| (Phase::Moved, Outcome::new(Ending::Moved, Whereabouts::RunsAtDestination, desc));
        let failed = |ending: Ending, guest: Whereabouts, desc: String| {
            (Phase::Failed, Outcome::new(ending, guest, desc))
        };
        match (self.resolved, self.answer, self.finish) {
            (Some(Resolution::There), ..) => return moved(format!("moved to {to}, as somebody has said")),
            (Some(Resolution::Here), ..) => {
                let desc = "libvirt here continues it, as somebody has said".to_owned();
                return failed(Ending::Failed, Whereabouts::RunsAtSource, desc);
            }
            (None, Some(Answer::Done), Some(false)) => return moved(format!("moved to {to}, by libvirt")),
            (None, Some(Answer::Failed), Some(false)) if self.untold => {
                let desc = format!(
                    "libvirt at {to} has not run {guest}; the one here was not told so, and continues it, or has left it paused if virsh was ended"
                );
                return failed(Ending::Failed, Whereabouts::AsItWas, desc).advised(guest);
            }
            (None, Some(Answer::Failed), Some(false)) => {
                let desc = format!("libvirt at {to} could not run {guest}; the one here continues it");
                return failed(Ending::Failed, Whereabouts::RunsAtSource, desc);
            }
            _ => {}
        }
        if self.is_unsaid() {
            return match self.kept {
                Some(false) => moved(format!("moved to {to}, by libvirt")),
                // A stream that was given up ends like one that is complete.
                Some(true) if self.shut.is_none() => {
                    let desc = format!("libvirt has not moved {guest} to {to}, as far as can be seen here");
                    failed(Ending::Failed, Whereabouts::AsItWas, desc).advised(guest)
                }
                Some(true) => {
                    let desc = format!(
                        "all of {guest} was at {to}, and the one here was not ended: libvirt has kept it, or has not come to it yet"
                    );
                    failed(Ending::InDoubt, Whereabouts::InDoubt, desc).advised(guest)
                }
                None => {
                    let desc = format!(
                        "{guest} was sent to {to}; where it runs is libvirt's to say, which was not carried"
                    );
                    let outcome = Outcome::new(Ending::Moved, Whereabouts::Unknown, desc);
                    (Phase::Moved, outcome).advised(guest)
                }
            };
        }
        if self.prepared && self.shut == Some(0) && self.finish.is_none() {
            let desc = format!(
                "all of {guest} was at {to}, and libvirt was not asked to run it there: the one here continues it, or has left it paused if virsh was ended"
            );
            return failed(Ending::Failed, Whereabouts::AsItWas, desc).advised(guest);
        }
        let why = match (&self.lost, &self.trouble) {
            (Some(lost), _) => format!("the link to {to} was lost: {lost}"),
            (None, Some(trouble)) => trouble.clone(),
            (None, None) if self.cancelled && !self.came => "nobody used it".into(),
            (None, None) if self.cancelled => "cancelled".into(),
            (None, None) => "libvirt gave it up".into(),
        };
        let ending = match self.cancelled {
            true => Ending::Cancelled,
            false => Ending::Failed,
        };
        let stays = if self.came { Whereabouts::RunsAtSource } else { Whereabouts::Untouched };
        failed(ending, stays, why)
    }
}

trait Advised {
    fn advised(self, guest: &str) -> Self;
}

impl Advised for (Phase, Outcome) {
    fn advised(self, guest: &str) -> Self {
        (self.0, self.1.advise(format!("Look at both hosts: virsh domstate {guest}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(passed: &[Passed]) -> Seen {
        let mut seen = Seen::default();
        seen.came(Place::Rpc);
        passed.iter().for_each(|passed| seen.passed(*passed));
        seen
    }

    fn ending(seen: &Seen) -> (Phase, Ending, Whereabouts) {
        let (phase, outcome) = seen.outcome("web", "osaka");
        (phase, outcome.ending, outcome.guest)
    }

    const PREPARE: Passed = Passed::Prepare;
    const FINISH: Passed = Passed::Finish { cancelled: false };
    const GIVEN_UP: Passed = Passed::Finish { cancelled: true };
    const HERE: (Phase, Ending, Whereabouts) = (Phase::Failed, Ending::Failed, Whereabouts::RunsAtSource);
    const THERE: (Phase, Ending, Whereabouts) = (Phase::Moved, Ending::Moved, Whereabouts::RunsAtDestination);

    #[test]
    fn where_a_guest_is_libvirt_says() {
        let answered = |finish, answer| seen(&[PREPARE, finish, Passed::Finished(answer)]);
        assert_eq!(ending(&answered(FINISH, Answer::Done)), THERE);
        assert_eq!(ending(&answered(FINISH, Answer::Failed)), HERE);
        // Of one that was given up the answer is an error, when all went well.
        assert_eq!(ending(&seen(&[PREPARE, GIVEN_UP, Passed::Finished(Answer::Failed)])), HERE);
        assert!(answered(FINISH, Answer::Done).is_over());
    }

    /// virsh is gone: whoever it asked has left the guest paused, or continued it.
    #[test]
    fn where_libvirt_here_was_not_told_nobody_says_what_it_does() {
        let failed = seen(&[PREPARE, FINISH, Passed::Unheard(Answer::Failed)]);
        assert_eq!(ending(&failed), (Phase::Failed, Ending::Failed, Whereabouts::AsItWas));
        assert!(seen(&[PREPARE, FINISH, Passed::Unheard(Answer::Done)]).is_at_both());
        assert!(!seen(&[PREPARE, FINISH, Passed::Finished(Answer::Done)]).is_at_both());
    }

    #[test]
    fn a_finish_that_is_not_answered_is_in_doubt_until_somebody_knows() {
        let mut seen = seen(&[PREPARE, FINISH]);
        seen.lost = Some("the link was lost".into());
        assert!(!seen.is_over());
        assert_eq!(seen.doubt("web", "osaka").map(|doubt| doubt.ending), Some(Ending::InDoubt));
        seen.resolved = Some(Resolution::There);
        assert!(seen.is_over());
        assert_eq!(ending(&seen), THERE);
        seen.resolved = Some(Resolution::Here);
        assert_eq!(ending(&seen), HERE);
    }

    #[test]
    fn before_finish_nothing_is_in_doubt() {
        let mut seen = seen(&[PREPARE]);
        seen.lost = Some("the link was lost".into());
        assert_eq!(seen.doubt("web", "osaka"), None);
        assert!(!seen.is_over(), "libvirt has not heard of it");
        seen.ended(Place::Rpc, None);
        assert!(seen.is_over());
        assert_eq!(ending(&seen), HERE);
    }

    /// virsh was killed between the two, or the link was lost there.
    #[test]
    fn one_that_was_all_there_and_was_not_asked_for_may_stand_here() {
        let mut seen = seen(&[PREPARE]);
        seen.shut = Some(0);
        seen.ended(Place::Rpc, None);
        assert!(seen.is_over());
        assert_eq!(ending(&seen), (Phase::Failed, Ending::Failed, Whereabouts::AsItWas));
    }

    #[test]
    fn who_looked_and_went_away_has_not_ended_it() {
        let mut seen = seen(&[]);
        seen.ended(Place::Rpc, None);
        assert!(!seen.is_over() && seen.is_unused());
        seen.cancelled = true;
        assert!(seen.is_over());
    }

    #[test]
    fn by_hand_the_waiting_qemu_has_the_last_word() {
        let mut seen = Seen::default();
        seen.came(Place::Disks);
        seen.came(Place::Ram);
        assert!(!seen.is_over());
        seen.shut = Some(0);
        seen.ended(Place::Ram, None);
        assert!(seen.is_over() && seen.is_unsaid());
        assert_eq!(ending(&seen), (Phase::Moved, Ending::Moved, Whereabouts::Unknown));
        seen.kept = Some(false);
        assert_eq!(ending(&seen), THERE);
        seen.kept = Some(true);
        assert_eq!(ending(&seen), (Phase::Failed, Ending::InDoubt, Whereabouts::InDoubt));
        seen.shut = Some(1);
        assert_eq!(ending(&seen), HERE);
    }

    /// One that was given up and one that is complete end alike.
    #[test]
    fn of_a_stream_that_was_relayed_its_qemu_here_tells() {
        let mut seen = Seen { relayed: true, ..Seen::default() };
        seen.came(Place::Ram);
        assert!(!seen.is_unsaid(), "it has not ended");
        seen.ended(Place::Ram, None);
        assert!(seen.is_unsaid());
        seen.kept = Some(false);
        assert_eq!(ending(&seen), THERE);
        seen.kept = Some(true);
        assert_eq!(ending(&seen), (Phase::Failed, Ending::Failed, Whereabouts::AsItWas));
    }

    #[test]
    fn one_that_nobody_used_touched_nothing() {
        let seen = Seen { cancelled: true, ..Seen::default() };
        assert!(seen.is_over());
        assert_eq!(ending(&seen), (Phase::Failed, Ending::Cancelled, Whereabouts::Untouched));
    }
}
