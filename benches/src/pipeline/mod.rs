//! Throughput of the stages a page goes through, each alone and all together.
//!
//! ```text
//!  source       read + parse ─▶ stage ─▶ zero test, LZ4 ─▶ seal        destination   open ─▶ decompress, order ─▶ write
//!                 (one thread)             (workers)      (lanes)                   (lanes)       (one thread)
//! ```
//!
//! Every figure is guest memory (not wire bytes) per second of *CPU time* of the thread that does the stage, so a machine that is busy
//! with other things hardly changes it. Stages are run in turn, several times; the median counts.
//!
//! | file | what it holds |
//! |---|---|
//! | `content` | pages as guests have them, and a QEMU stream of them |
//! | `meter` | CPU time, repeats, medians |
//! | `stages` | each stage alone, and chains of them on one thread |
//! | `codec` | the parts of the codec on the test guest's own pages |
//! | `intake` | the daemon's way in: a unix socket that another thread fills |

pub mod cli;
mod codec;
mod content;
mod intake;
mod meter;
mod stages;
