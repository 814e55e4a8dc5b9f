//! The harness of the end-to-end tests: real daemons, real QEMUs, emulated links.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | which QEMUs and which Linux parts are here; skips said aloud |
//! | [`binaries`] | the daemon and the command as built from this checkout |
//! | [`site`] | a host with a daemon on it; the pair of them that every test needs |
//! | [`command`] | `hikyaku …` run to its end, within a time limit |
//! | [`linux`] | a Linux guest |
//! | [`rig`] | a link, two daemons and a guest: a whole move, and the checks of it |
//! | [`virt`] | the same with a libvirt at either end |
//! | [`crash`] | one fault at each point of a move (and the program `crash-soak`) |
//! | [`keeper`] | a service manager that keeps a daemon's sockets |
//! | [`flood`] | connections of strangers (the program `flood`) |
//! | [`proxy`] | a TCP proxy that damages what passes (the program `faulty-proxy`) |
//!
//! It does not know what a migration is made of: it sees what an operator sees (exit codes, lines, files, sockets)
//! and what a guest shows (heartbeats, memory).
//!
//! Everything a test starts ends with it, killed by its handle's `Drop` or by the kernel when the test dies.

pub mod binaries;
pub mod command;
pub mod crash;
pub mod flood;
pub mod keeper;
pub mod linux;
pub mod machine;
pub mod proxy;
pub mod rig;
pub mod site;
pub mod virt;
