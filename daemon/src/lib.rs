//! `hikyakud`, the daemon on every KVM host, and `hikyaku`, its command: the only place that joins pages, lanes and QEMU.
//!
//! ```text
//! cli ── api/client ═unix socket═ api/server ─▶ daemon ─┬─▶ source       (one per guest that leaves)
//!                                                       └─▶ destination  (one per guest that comes)
//! source:       controller (QMP, ownership) + pump  (QEMU's socket ─▶ intake ─▶ engine ─▶ lanes)
//! destination:  controller (QMP, ownership) + apply (lanes ─▶ receiver ─▶ sink ─▶ QEMU's socket)
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`ownership`], [`records`] | who owns a guest, and what of that survives a power cut |
//! | [`settings`] | what was set in a source's QEMU before, and is to be set again |
//! | [`service`] | what the service manager keeps for the next daemon |
//! | [`protocol`] | what two daemons say to each other about a guest |
//! | [`estimate`], [`report`] | how a move would go, and what came of what was foretold |
//! | [`standing`] | links that are there before a guest is to be moved |
//! | [`fail`] | where tests make a daemon fail |
//! | [`awaited`] | what the other side has said it awaits |
//! | [`pages`] | QEMU's blocks in the engine's page numbers |
//! | [`libvirt`] | guests that libvirt moves: what its two sides say to each other is carried |
//! | [`hooks`] | the operator's programs, called as a guest moves |
//! | [`heap`] | where memory for pages comes from |
//! | [`outcome`] | how a migration ended: exit code, where the guest runs, what to do |
//!
//! Controllers run on one thread, in tokio; each migration has one thread for its bytes; encoding is done by a pool.
#![deny(unsafe_code)]

pub mod api;
pub mod awaited;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod destination;
pub mod estimate;
pub mod fail;
pub mod heap;
pub mod hooks;
pub mod id;
pub mod inbox;
pub mod keyfile;
pub mod libvirt;
mod mailbox;
mod outage;
pub mod outcome;
pub mod ownership;
pub mod pages;
mod process;
pub mod protocol;
pub mod records;
pub mod registry;
pub mod report;
pub mod restart;
pub mod runtime;
pub mod service;
pub mod settings;
pub mod source;
pub mod standing;
mod sys;
pub mod units;
pub mod workers;

/// Where the command finds its daemon if nothing else is said.
pub const DEFAULT_API: &str = "/run/hikyaku/api.sock";
