//! What can go wrong at the source, and what it means for the one who asked.

use super::guest::GuestError;
use super::pump::PumpError;
use crate::hooks::HookError;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Forbidden;
use crate::protocol::{ProtocolError, Refusal};
use crate::records::{Phase, RecordError};
use crate::registry::Wish;
use crate::units::Span;
use hikyaku_engine::AbortReason;
use hikyaku_transport::{LinkError, Lost, MessageError, OpenError};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("no peer \"{0}\" in the configuration")]
    UnknownPeer(String),
    #[error("no policy \"{0}\"")]
    UnknownPolicy(String),
    #[error("the configuration does not allow sending guests to \"{0}\"")]
    NotAllowedHere(String),
    #[error("{}", super::guest::ASLEEP)]
    Asleep,
    #[error("the guest cannot be asked: {0}")]
    Qmp(GuestError),
    #[error("the guest's QEMU: {0}")]
    Guest(#[from] GuestError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("the destination refused the guest: {text}")]
    Refused { code: u16, text: String },
    #[error("the session could not be opened: {0}")]
    Open(OpenError),
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error("the link was lost while the guest stood, before it was let go: {0}")]
    LostWhileStopped(String),
    /// It is begun again, and the destination asked before anything goes.
    #[error("the destination did not answer as it said it would: {0}")]
    Unforeseen(String),
    #[error("the destination gave up: {text}")]
    Closed { code: u16, text: String },
    #[error("the destination speaks another language: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("a message to the destination was not taken: {0}")]
    Message(#[from] MessageError),
    #[error("{0}")]
    Pump(#[from] PumpError),
    #[error("no resources for the migration: {0}")]
    Resources(std::io::Error),
    #[error(
        "not converging: after {} s{} stopping the guest would still take {}, {} ms are aimed at",
        .deadline.as_secs_f32(), slowed(.throttle), told(.stop), .downtime.as_millis()
    )]
    NotConverged {
        deadline: Duration,
        stop: Option<Duration>,
        downtime: Duration,
        throttle: Option<u8>,
        /// It may be slowed down: not everybody who decides can.
        may_throttle: bool,
        /// A limit is what holds it back, or may be.
        limited: bool,
        /// What stopping and starting alone took the last guest that went there, where that is much of it.
        handover: Option<Duration>,
    },
    #[error("{0}")]
    Engine(AbortReason),
    #[error("the destination sent {0}, which is not its to send now")]
    Unexpected(&'static str),
    #[error("the destination sends more messages than make sense")]
    Flood,
    #[error("{0}")]
    Cancelled(Wish),
    #[error("somebody continued the guest while it was stopped to be moved")]
    Meddled,
    #[error("{what} took longer than {} s", .after.as_secs_f32())]
    Slow { what: &'static str, after: Duration },
    #[error("this QEMU's guest is in the hands of migration {id}, which is not over ({phase:?})")]
    InHand { id: String, phase: Phase },
    #[error("this QEMU stopped the guest by itself, which must not happen while it is being moved")]
    StoppedItself,
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Hook(#[from] HookError),
    #[error("{0}")]
    Defect(#[from] Forbidden),
}

impl From<OpenError> for SourceError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Refused { code, text } => SourceError::Refused { code, text },
            OpenError::Lost(lost) => SourceError::Lost(lost),
            other => SourceError::Open(other),
        }
    }
}

impl SourceError {
    /// The migration socket is closed at QEMU's end, and QEMU may say why.
    pub fn is_qemu_closed(&self) -> bool {
        use PumpError::{QemuClosed, Read, Write};
        matches!(self, SourceError::Pump(QemuClosed | Read(_) | Write(_)))
    }

    /// What the caller is told, when the guest is where `guest` says.
    pub fn outcome(&self, guest: Whereabouts) -> Outcome {
        let (ending, advice) = match self {
            SourceError::UnknownPeer(_) => {
                (Ending::Usage, "Peers stand in the configuration file, under [[peer]]")
            }
            SourceError::UnknownPolicy(_) => (Ending::Usage, ""),
            SourceError::NotAllowedHere(_) => (Ending::NotAllowed, "Give the peer allow = [\"send\"]"),
            SourceError::Link(LinkError::UnknownPeer(_)) => (Ending::Usage, ""),
            SourceError::Link(LinkError::NotAllowedHere(_)) => {
                (Ending::NotAllowed, "Give the peer allow = [\"send\"] in the configuration here")
            }
            SourceError::Link(LinkError::NotAllowedThere { .. }) => (
                Ending::NotAllowed,
                "There this host must stand as a peer with its key (hikyaku fingerprint) and allow = [\"receive\"]",
            ),
            SourceError::Link(LinkError::WrongKey { .. }) => (
                Ending::NotAllowed,
                "Compare both sides' keys (hikyaku fingerprint) with their configurations",
            ),
            SourceError::Link(
                LinkError::Version { .. } | LinkError::Suite { .. } | LinkError::Protocol { .. },
            ) => (Ending::Incompatible, "Update the older daemon"),
            SourceError::Link(_) => (Ending::Unreachable, "Is hikyakud running there, and its port open?"),
            SourceError::Refused { code, .. } | SourceError::Closed { code, .. } => {
                match Refusal::from(*code) {
                    Refusal::NotAwaited => (
                        Ending::Failed,
                        "Start a QEMU with -incoming defer there, and: hikyaku receive GUEST --qmp PATH",
                    ),
                    Refusal::Incompatible => (
                        Ending::Incompatible,
                        "Start the QEMU there with the source's machine type and memory, then: hikyaku receive",
                    ),
                    Refusal::Protocol => (Ending::Incompatible, ""),
                    Refusal::NotAllowed => (Ending::NotAllowed, ""),
                    Refusal::Cancelled => (Ending::Cancelled, ""),
                    _ => (Ending::Failed, ""),
                }
            }
            SourceError::NotConverged { throttle, may_throttle, limited, handover, .. } => {
                let advice = match handover {
                    Some(handover) => no_copying_helps(*handover),
                    None => converging(throttle.is_some(), *may_throttle, *limited),
                };
                return Outcome::new(Ending::NotConverged, guest, self.to_string()).advise(advice);
            }
            SourceError::Qmp(GuestError::NoThrottle) => {
                (Ending::Incompatible, "Choose another --on-deadline")
            }
            SourceError::Cancelled(Wish::Cancel) => (Ending::Cancelled, ""),
            SourceError::Cancelled(Wish::End) => (Ending::Cancelled, "Move it when hikyakud runs again"),
            SourceError::Protocol(_) => (Ending::Incompatible, "Update the older daemon"),
            SourceError::Lost(_) | SourceError::LostWhileStopped(_) => (
                Ending::Failed,
                "To try again: a new QEMU and hikyaku receive there, then hikyaku migrate here",
            ),
            SourceError::InHand { .. } => (Ending::Other, "See: hikyaku list"),
            SourceError::StoppedItself => (Ending::Failed, "Try again; QEMU 8.1 or newer does not do this"),
            _ => (Ending::Failed, ""),
        };
        Outcome::new(ending, guest, self.to_string()).advise(advice)
    }
}

/// It is not what is left to be copied that takes so long.
fn no_copying_helps(handover: Duration) -> String {
    format!(
        "{} of this are what the last guest that went there took to stop and to start, hooks that held it included: allow a longer stop (--downtime), or force it (--on-deadline force)",
        Span(handover)
    )
}

/// What makes a guest converge that did not.
fn converging(throttled: bool, may_throttle: bool, limited: bool) -> String {
    let mut ways = vec!["allow a longer stop (--downtime)", "more time (--deadline)"];
    ways.extend(limited.then_some("more of the path (--limit, or hikyaku set while it runs)"));
    ways.extend(match (throttled, may_throttle) {
        (true, _) => Some("take more of its time (--throttle-max)"),
        (false, true) => Some("slow it down (--on-deadline throttle)"),
        (false, false) => None,
    });
    let mut advice = ways.join(", ");
    advice.replace_range(..1, "A");
    advice + ", or force it (--on-deadline force)"
}

fn slowed(throttle: &Option<u8>) -> String {
    throttle.map_or_else(String::new, |percent| format!(", and slowed down by {percent} % for some of them,"))
}

/// A stop that was foretold, or not.
fn told(stop: &Option<Duration>) -> String {
    stop.map_or_else(|| "an unknown time".into(), |stop| Span(stop).to_string())
}
