//! The laboratory: what hikyaku is measured with, and nothing the daemon needs.
//!
//! | module | what it gives |
//! |---|---|
//! | [`link`] | hosts (network namespaces) joined by an emulated long-fat link |
//! | [`guest`] | the bare-metal test guest and a QEMU that runs it |
//! | [`pipeline`] | GB/s per core of each stage a page goes through |
//! | [`cli`] | `cargo lab …` |
//!
//! Only tests may depend on this crate.
#![deny(unsafe_code)]

pub mod cli;
pub mod guest;
pub mod link;
pub mod pipeline;
