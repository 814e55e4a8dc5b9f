//! Guests that libvirt moves: what its two sides say to each other is carried, and nothing is decided here.
//!
//! ```text
//!  source host                                                              destination host
//!  virsh, libvirtd ─▶ DIR/ctl ┐                                          ┌─▶ libvirt's socket
//!  libvirtd, QEMU ──▶ DIR/ram ├─ near ══ sessions of one link ══ far ────┼─▶ DIR/ram   QEMU listens there
//!  QEMU ────────────▶ DIR/nbd ┘                                          └─▶ DIR/nbd   QEMU listens there
//! ```
//! A *carriage* is one migration: a directory with its sockets, at the same path at both hosts, since libvirt tells its other side the paths
//! that it was told. A *conduit* is one connection; it is made at the destination when it has been made at the source, and never before: who
//! connects to a waiting QEMU is taken for its guest.
//!
//! | module | what it is for |
//! |---|---|
//! | [`near`] | the source's side: sockets that libvirt and QEMU connect to |
//! | [`far`] | the destination's: connections to libvirt and to the QEMU that waits |
//! | [`tap`] | what has to be known of the calls between two libvirts |
//! | [`directory`] | where the sockets are |
//! | [`landing`] | where they are when libvirt is told of none: a name, an address, and ports |
//! | [`sockets`] | whose a TCP socket is |
//! | [`setup`] | what a host's files have to say for that |
//! | [`check`] | whether they do |
//! | [`hook`] | what libvirt says through its hook, and when a guest is turned away |
//!
//! The guest's pages go through the engine as those of any guest ([`near::ram`]); disks, and what is not understood, are passed on as they
//! are. libvirt stays the guest's owner: nobody here stops it, starts it, or tells QEMU that its migration is over.

pub mod check;
pub mod directory;
pub mod far;
pub mod hook;
pub mod landing;
pub mod near;
pub mod setup;
pub mod sockets;
mod tap;
mod watch;

pub use directory::Directory;
