//! What can go wrong at the destination. Whatever it is, the guest has not run here, unless it is unclear.

use super::apply::ApplyError;
use super::guest::WaitingError;
use crate::hooks::HookError;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Forbidden;
use crate::protocol::{ProtocolError, Refusal};
use crate::records::RecordError;
use crate::registry::Wish;
use hikyaku_qemu::return_path::ReturnPathError;
use hikyaku_transport::{AcceptError, Lost, MessageError};

#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    #[error("the waiting QEMU: {0}")]
    Guest(#[from] WaitingError),
    #[error("no resources for the migration: {0}")]
    Resources(std::io::Error),
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error("the session could not be accepted: {0}")]
    Accept(#[from] AcceptError),
    #[error("the source gave up: {text}")]
    Closed { code: u16, text: String },
    #[error("the source sends more messages than make sense")]
    Flood,
    #[error("the source speaks another language: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("a message to the source was not taken: {0}")]
    Message(#[from] MessageError),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Hook(#[from] HookError),
    #[error("{0}")]
    Defect(#[from] Forbidden),
    #[error("{0}")]
    ReturnPath(#[from] ReturnPathError),
    #[error("{0}, at the destination")]
    Cancelled(Wish),
    #[error("its source keeps it, as somebody has said there (hikyaku resolve --here)")]
    Kept,
    #[error("the daemon is ending")]
    Ended,
}

impl DestinationError {
    /// The number the source gets.
    pub fn code(&self) -> Refusal {
        match self {
            DestinationError::Guest(_) => Refusal::QemuFailed,
            DestinationError::Apply(error) if error.is_qemus() => Refusal::QemuFailed,
            DestinationError::Protocol(_) | DestinationError::Apply(_) => Refusal::Protocol,
            DestinationError::Cancelled(_) => Refusal::Cancelled,
            _ => Refusal::Other,
        }
    }

    /// `let_go`: the source had said GO.
    pub fn outcome(&self, let_go: bool) -> Outcome {
        let ending = match self {
            DestinationError::Cancelled(_) => Ending::Cancelled,
            DestinationError::Closed { code, .. } => match Refusal::from(*code) {
                Refusal::Cancelled => Ending::Cancelled,
                Refusal::NotConverged => Ending::NotConverged,
                _ => Ending::Failed,
            },
            DestinationError::Protocol(_) => Ending::Incompatible,
            _ => Ending::Failed,
        };
        let guest = if let_go { Whereabouts::ReturnsToSource } else { Whereabouts::StaysAtSource };
        let advice = match self {
            DestinationError::Hook(_) if !let_go => "The waiting QEMU was not touched: hikyaku receive again",
            _ => "The QEMU here is of no use for another attempt: start a new one with -incoming defer",
        };
        Outcome::new(ending, guest, self.to_string()).advise(advice)
    }
}
