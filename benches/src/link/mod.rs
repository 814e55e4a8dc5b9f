//! The link emulator: network namespaces joined by a user-space long-fat link.

pub mod cli;
