//! What this process takes of the machine, by `/proc/self`.

use std::fs;
use std::time::Duration;

use anyhow::Context;

use super::super::plan::Usage;

/// Names of the threads that drive lanes, and of those that io_uring starts for them.
const LANE_THREADS: [&str; 2] = ["hikyaku-lane", "iou-"];

/// What there was before the link.
#[derive(Debug)]
pub struct Before {
    rss_bytes: u64,
    cpu: Cpu,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cpu {
    lanes: Duration,
    all: Duration,
}

impl Before {
    /// Everything that does not belong to the link is in memory now; the largest resident size is counted from here on.
    pub fn now() -> anyhow::Result<Before> {
        // 5: forget the largest resident size so far.
        fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")?;
        Ok(Before { rss_bytes: status_bytes("VmRSS:")?, cpu: Cpu::now()? })
    }

    /// To be called while the lane threads live.
    pub fn until_now(&self) -> anyhow::Result<Usage> {
        let cpu = Cpu::now()?;
        Ok(Usage {
            rss_before_bytes: self.rss_bytes,
            rss_peak_bytes: status_bytes("VmHWM:")?,
            lane_cpu: cpu.lanes.saturating_sub(self.cpu.lanes),
            cpu: cpu.all.saturating_sub(self.cpu.all),
        })
    }
}

impl Cpu {
    fn now() -> anyhow::Result<Cpu> {
        let mut cpu = Cpu::default();
        for task in fs::read_dir("/proc/self/task")?.flatten() {
            // A thread that has just ended is not looked at.
            let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
            let Ok(stat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let ns = stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).context("schedstat")?;
            let spent = Duration::from_nanos(ns);
            cpu.all += spent;
            if LANE_THREADS.iter().any(|prefix| name.starts_with(prefix)) {
                cpu.lanes += spent;
            }
        }
        Ok(cpu)
    }
}

fn status_bytes(line: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib =
        status.lines().find_map(|text| text.strip_prefix(line)?.trim().strip_suffix(" kB")?.parse().ok());
    let kib: u64 = kib.with_context(|| format!("{line} is not in /proc/self/status"))?;
    Ok(kib << 10)
}
