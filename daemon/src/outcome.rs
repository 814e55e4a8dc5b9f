//! How a migration ended, in the three ways it is told: an exit code, a word for programs, a sentence for people.
//!
//! Every ending says what happened, **where the guest runs now**, and what to do next.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kinds of ending; each is an exit code of `hikyaku`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    Moved,
    Other,
    Usage,
    Configuration,
    Unreachable,
    NotAllowed,
    Incompatible,
    NotConverged,
    Cancelled,
    Failed,
    InDoubt,
}

impl Ending {
    pub fn exit_code(self) -> u8 {
        match self {
            Ending::Moved => 0,
            Ending::Other => 1,
            Ending::Usage => 2,
            Ending::Configuration => 3,
            Ending::Unreachable => 4,
            Ending::NotAllowed => 5,
            Ending::Incompatible => 6,
            Ending::NotConverged => 7,
            Ending::Cancelled => 8,
            Ending::Failed => 9,
            Ending::InDoubt => 10,
        }
    }
}

/// Where the guest is when a message is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whereabouts {
    /// It was not touched.
    Untouched,
    /// A question or a command came to nothing: wherever the guest is, it still is.
    AsItWas,
    /// It runs on at the source.
    RunsAtSource,
    /// It is the source's, which knows more; told at the destination.
    StaysAtSource,
    /// The source has let go of it, and takes it back when it hears that the destination does not take it; told at the destination.
    ReturnsToSource,
    /// Nobody could be asked.
    Unknown,
    /// It is stopped at the source, because it was stopped before the migration began.
    StoppedAtSource,
    /// It is stopped at the source and could not be continued yet.
    StuckAtSource,
    /// Its QEMU at the source has ended, and the guest with it; it was never given away.
    EndedAtSource,
    /// It runs at the destination.
    RunsAtDestination,
    /// It is at the destination, stopped as asked (or as it was).
    StoppedAtDestination,
    /// It is the destination's, which knows more; told at the source.
    LeftToDestination,
    /// Its QEMU at the destination has ended, and the guest with it.
    EndedAtDestination,
    /// Neither side may start it before both have been asked.
    InDoubt,
    /// Both have it, for a person has said what was not so.
    AtBoth,
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Whereabouts::Untouched => "the guest was not touched",
            Whereabouts::AsItWas => "nothing was changed",
            Whereabouts::RunsAtSource => "the guest runs on at the source",
            Whereabouts::StaysAtSource => "the guest is the source's: hikyaku list there says how it is",
            Whereabouts::ReturnsToSource => {
                "the guest goes back to the source, which continues it as soon as it hears of this"
            }
            Whereabouts::Unknown => {
                "where the guest is shows when hikyakud runs again: hikyaku list, at both hosts; if neither names it, ask its QEMUs (query-status)"
            }
            Whereabouts::StoppedAtSource => "the guest is at the source, stopped as it was before",
            Whereabouts::StuckAtSource => {
                "the guest is at the source, stopped; hikyakud goes on trying to continue it"
            }
            Whereabouts::EndedAtSource => {
                "the guest's QEMU at the source has ended, and the guest with it: start it there again"
            }
            Whereabouts::RunsAtDestination => "the guest runs at the destination",
            Whereabouts::StoppedAtDestination => "the guest is at the destination, stopped",
            Whereabouts::LeftToDestination => "the guest is the destination's: hikyaku list there says how it is",
            Whereabouts::EndedAtDestination => {
                "the guest's QEMU at the destination has ended, and the guest with it: boot it there from its disks"
            }
            Whereabouts::InDoubt => {
                "the guest is IN DOUBT: do not start either copy by hand; the daemons go on asking each other"
            }
            Whereabouts::AtBoth => "the guest is AT BOTH: two copies of it may run, and write to the same disks",
        })
    }
}

/// Longer descriptions are cut.
const MAX_DESC_CHARS: usize = 1000;

/// The last word on a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub ending: Ending,
    /// What happened.
    pub desc: String,
    pub guest: Whereabouts,
    /// What the operator can do about it; empty when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Outcome {
    pub fn new(ending: Ending, guest: Whereabouts, desc: impl Into<String>) -> Outcome {
        // Parts of it may be a peer's or QEMU's words: they are not to move the reader's cursor.
        let mut desc: String = desc.into().replace(|c: char| c.is_control(), " ");
        // It travels in messages and records, and QEMU's part of it may be of any length.
        if let Some((end, _)) = desc.char_indices().nth(MAX_DESC_CHARS) {
            desc.truncate(end);
            desc.push('…');
        }
        Outcome { ending, guest, desc, advice: String::new() }
    }

    pub fn advise(mut self, advice: impl Into<String>) -> Outcome {
        self.advice = advice.into();
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.desc, self.guest)?;
        if !self.advice.is_empty() {
            write!(f, ". {}", self.advice)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_of_any_length_fits_a_message() {
        let outcome = Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "飛".repeat(100_000));
        assert!(outcome.desc.len() < 4096 && outcome.desc.ends_with('…'));
        assert_eq!(Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "short").desc, "short");
    }

    #[test]
    fn a_peers_words_do_not_move_the_cursor() {
        let outcome = Outcome::new(Ending::Failed, Whereabouts::Unknown, "no\r\n\u{1b}[2Jmoved\u{9b}");
        assert_eq!(outcome.desc, "no   [2Jmoved ");
    }

    #[test]
    fn every_ending_has_an_exit_code_of_its_own() {
        use Ending::*;
        let all = [
            Moved,
            Other,
            Usage,
            Configuration,
            Unreachable,
            NotAllowed,
            Incompatible,
            NotConverged,
            Cancelled,
            Failed,
            InDoubt,
        ];
        assert!(all.into_iter().map(Ending::exit_code).eq(0..=10));
    }
}
