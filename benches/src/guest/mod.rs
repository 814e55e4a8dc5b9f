//! The test guest as the host sees it: a real QEMU that runs `benches/guest`, and what its console says.
//!
//! | module | what it gives |
//! |---|---|
//! | [`load`] | what the guest does: the named presets of the measurements |
//! | [`spec`] | what machine it runs on: QEMU's command line |
//! | [`locate`] | which QEMU |
//! | [`kvm`] | whether there is KVM |
//! | [`qemu`] | a running QEMU: start, QMP, stop, kill on drop |
//! | [`qmp`] | a small blocking QMP client |
//! | [`console`] | heartbeats, time-stamped as they arrive |
//! | [`timeline`] | several consoles as one story: the gap, lost beats, two guests at once |
//! | [`ram`] | every RAM block of a stopped QEMU, and what differs between two |
//! | [`cli`] | `cargo lab guest` |
//!
//! ```no_run
//! use hikyaku_lab::guest::{GuestSpec, Load, Qemu, Timeline};
//! use std::time::Duration;
//!
//! let spec = GuestSpec::new(512, Load::preset("oltp")?);
//! let mut source = Qemu::start(&spec)?;
//! let mut destination = Qemu::await_migration(&spec)?; // -incoming defer
//! source.wait_ready(Duration::from_secs(20))?;
//! // … a daemon moves it, through source.qmp_path() and destination.qmp_path() …
//! let timeline = Timeline::merge(&[source.console(), destination.console()]);
//! println!("gap {:?}", timeline.longest_gap(timeline.span()).length);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! It knows nothing of daemons or links: a caller who wants QEMU inside a namespace brings the [`Command`] that enters it.
//!
//! [`Command`]: std::process::Command

pub mod cli;
pub mod console;
pub mod kvm;
pub mod load;
pub mod locate;
pub mod qemu;
pub mod qmp;
pub mod ram;
pub mod runs;
pub mod spec;
mod sys;
pub mod timeline;

pub use console::{Console, Heartbeat, Ready};
pub use kvm::Kvm;
pub use load::Load;
pub use qemu::{IMAGE, Qemu, StartError, WaitError};
pub use ram::RamImage;
pub use spec::GuestSpec;
pub use timeline::Timeline;
