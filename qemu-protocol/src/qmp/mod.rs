//! QMP, QEMU's control socket: JSON lines, one client per socket.
//!
//! Fifteen commands are needed, on QEMUs of many years, so this is a small client of our own that takes unknown
//! fields, events and capabilities as they come.
//!
//! | module | is |
//! |---|---|
//! | [`codec`] | bytes to lines to messages, without I/O; bounded |
//! | [`Client`] | the socket: commands with time-outs, descriptors, who gets which reply |
//! | [`within`] | time-outs, as long as this process runs |
//! | [`Events`] | one subscriber's queue, bounded, floods merged |
//! | [`commands`](Client) | typed helpers |
//!
//! It does not reconnect, does not decide anything, and never sends a command twice. While QEMU completes a
//! migration it holds its big lock and answers nothing until its stream has been drained: give such a command
//! a time-out of its own ([`Client::execute_within`]) and keep reading the stream.

pub mod codec;

mod awake;
mod client;
mod commands;
mod error;
mod events;

pub use awake::{Overdue, within};
pub use client::{Client, ClientConfig};
pub use commands::{Capabilities, MemorySummary, MigrateInfo, RamInfo, RunState, Version};
pub use error::{ErrorKind, QmpError};
pub use events::{Event, Events};
