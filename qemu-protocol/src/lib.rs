//! What QEMU speaks: its migration stream, the return path beside it, and QMP; and what libvirt says of a migration to another.
//!
//! | module | knows |
//! |---|---|
//! | [`stream`] | the forward channel: an incremental parser, a writer, XBZRLE, the end of the tail |
//! | [`return_path`] | the messages that travel the other way on the same socket |
//! | [`qmp`] | the control socket: commands, events, file descriptors |
//! | [`libvirt`] | the packets between two libvirts |
//! | [`command_line`] | what a QEMU was started with |
//!
//! All but `qmp` do no I/O and hold no clock: bytes in, events or bytes out. Nothing here knows
//! what lies between two QEMUs. `docs/qemu.md` has the byte tables and says on which QEMU each was verified.

#![forbid(unsafe_code)]

pub mod command_line;
pub mod libvirt;
pub mod qmp;
pub mod return_path;
pub mod stream;
