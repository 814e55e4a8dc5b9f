//! What the originals of the historical policies decide by: every constant of theirs, with its unit and where it is written.
//! The policies themselves have none.
//!
//! | policy | constant | value | unit | source |
//! |---|---|---|---|---|
//! | `xen-3`, `xen-3-limited`, `smart-stop` | [`XEN_3_LIVE_PASSES`] | 29 | passes | Xen 3.4, `tools/libxc/xc_domain_save.c`, `DEF_MAX_ITERS`: "limit us to 30 times round loop", the last one with the guest stopped |
//! | the same | [`XEN_3_RAM_FACTOR`] | 3 | guest memories | the same, `DEF_MAX_FACTOR`: more than this sent ends it; pages skipped are not sent |
//! | the same | [`XEN_3_FEW_PAGES`] | 50 | pages | the same, `sent_this_iter + skip_this_iter < 50`: a pass that went over fewer ends it |
//! | the same | [`XEN_3_PEEK_PAGES`] | 1024 | pages sent | Xen 3.4, `tools/libxc/xg_save_restore.h`, `MAX_BATCH_SIZE`: after so many the dirty bitmap is looked at again for pages to skip |
//! | `xen-3-limited` | [`XEN_3_START_MBIT`] | 100 | 2^20 bit/s | the same, built with `ADAPTIVE_SAVE`, `START_MBIT_RATE`; Clark et al., NSDI 2005, §5.3 |
//! | `xen-3-limited` | [`XEN_3_STEP_MBIT`] | 50 | 2^20 bit/s | the same, `print_stats`: a pass that dirtied more per second than the limit sets it to that and 50 more |
//! | `xen-3-limited` | [`XEN_3_MOST_MBIT`] | 500 | 2^20 bit/s | the same, `MAX_MBIT_RATE`; once there, a pass that sends more than the one before ends it |
//! | `xen-4.6` | [`XEN_46_LIVE_PASSES`] | 5 | passes | Xen 4.6, `tools/libxc/xc_sr_save.c`, `max_iterations` |
//! | `xen-4.6` | [`XEN_46_FEW_PAGES`] | 50 | pages | the same, `dirty_threshold`: a pass of no more than this ends it; nothing is skipped |
//! | `qemu` | [`QEMU_MOST_BYTES_PER_S`] | 128 MiB | bytes/s | QEMU 10.0, `migration/options.c`, `MAX_THROTTLE` |
//! | `qemu`, `qemu-uncapped` | [`QEMU_DOWNTIME`] | 300 | ms | the same, `DEFAULT_MIGRATE_SET_DOWNTIME`; the user's own where one is asked for |
//! | `smart-stop` | [`SMART_STOP_WINDOW_PASSES`] | 3 | passes | Wood et al., CloudNet, VEE 2011, has a window; its length is **assumed**, see `docs/policies.md` |
//! | all | [`STAGING_BYTES`] | 1 MiB | bytes | ours: eight chunks, enough to keep two workers busy, so little that a pass of the source is a pass on the link |
//!
//! Facts alone are taken from the originals, no code. What was not theirs is off: none of them but QEMU knows pages of zeros
//! (`is_zero_range`), and none compresses or sends deltas unless it is told to. CloudNet did both, apart from its Smart Stop; here only
//! this is meant.

use std::time::Duration;

pub const XEN_3_LIVE_PASSES: u32 = 29;
pub const XEN_3_RAM_FACTOR: u64 = 3;
pub const XEN_3_FEW_PAGES: u64 = 50;
pub const XEN_3_PEEK_PAGES: u64 = 1024;

pub const XEN_3_START_MBIT: u64 = 100;
pub const XEN_3_STEP_MBIT: u64 = 50;
pub const XEN_3_MOST_MBIT: u64 = 500;
/// A burst of 100 KiB every 781250 / limit µs: Xen's limiter means 2^20 bits by a megabit.
pub const XEN_3_LIMIT_BYTES_PER_MBIT: u64 = 131_072;
/// Its measure of what was dirtied means 10^6.
pub const XEN_3_DIRTIED_BITS_PER_MBIT: u64 = 1_000_000;

pub const XEN_46_LIVE_PASSES: u32 = 5;
pub const XEN_46_FEW_PAGES: u64 = 50;

pub const QEMU_MOST_BYTES_PER_S: u64 = 128 << 20;
pub const QEMU_DOWNTIME: Duration = Duration::from_millis(300);

pub const SMART_STOP_WINDOW_PASSES: usize = 3;

pub const STAGING_BYTES: usize = 1 << 20;
