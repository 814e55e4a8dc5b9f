//! All rungs of one guest, and what an oracle would send of it.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hikyaku_engine::PAGE_BYTES;
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig, OnDeadline};

use super::oracle::Deltas;
use super::rungs::Rung;
use crate::compare::Cell;
use crate::floor::Content;
use crate::sim::{self, End, Guest, GuestConfig, LinkConfig, Report, Setup};

/// See the module.
#[derive(Debug)]
pub struct Ladder {
    steps: Vec<Step>,
    content_bytes: u64,
    delta_bytes: u64,
    /// Of the last rung: versions of pages in chunks.
    pages_sent: u64,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    sent_bytes: u64,
    converged: bool,
}

/// Moves a guest in virtual time, once for each rung.
pub fn climb(cell: &Cell, mem_mib: u32, deadline: Duration, stop: Duration) -> anyhow::Result<Ladder> {
    let rate = cell.profile().rate.context("a link without a rate")?;
    let link = LinkConfig::new(rate.payload_bit_per_s() as f64, cell.profile().rtt);
    let mut setup = Setup::new(GuestConfig::new(cell.load().clone(), mem_mib), link);
    // Of a guest that writes faster than the link carries, all of its memory goes after the deadline.
    setup.limit = deadline * 10;
    let step = |rung: Rung| -> anyhow::Result<(Step, Report)> {
        let policy = AdaptiveConfig {
            downtime_target: stop,
            deadline,
            on_deadline: OnDeadline::Force,
            ..AdaptiveConfig::default()
        };
        let policy = Adaptive::new(policy);
        let report = sim::run(&setup, rung.of(Box::new(policy)))?;
        match report.end {
            End::Moved if report.memory_equal => {}
            End::Moved => return Err(anyhow!("{cell}, {}: what arrived is not what was sent", rung.name())),
            ref other => return Err(anyhow!("{cell}, {}: {other:?}", rung.name())),
        }
        let step = Step { sent_bytes: report.sent_bytes, converged: report.total < deadline };
        Ok((step, report))
    };
    // Two at a time: each holds the guest's memory twice.
    let mut steps = Vec::new();
    let mut last = None;
    for pair in Rung::ALL.chunks(2) {
        let done: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|&rung| scope.spawn(move || step(rung))).collect();
            running
                .into_iter()
                .map(|run| run.join().unwrap_or_else(|_| Err(anyhow!("{cell}: a run panicked"))))
                .collect()
        });
        for run in done {
            let (step, report) = run?;
            steps.push(step);
            last = Some(report);
        }
    }
    let report = last.context("no rung")?;
    let content_bytes = Content::of_pages(report.ram.pages())?.compressed_bytes;
    let before = Guest::new(&setup.guest)?;
    let (mut deltas, mut page) = (Deltas::default(), [0; PAGE_BYTES]);
    for (index, after) in (0..before.len()).zip(report.ram.pages()) {
        before.read(index, &mut page);
        deltas.add(&page, after.try_into().context("a page of another size")?);
    }
    Ok(Ladder {
        steps,
        content_bytes,
        delta_bytes: deltas.finish().compressed_bytes,
        pages_sent: report.progress.pages_sent,
    })
}

impl Ladder {
    /// An oracle's.
    pub fn delta_bytes(&self) -> u64 {
        self.delta_bytes
    }

    fn sent_bytes(&self) -> f64 {
        self.steps.last().map_or(f64::NAN, |step| step.sent_bytes as f64)
    }

    /// What all rungs together send, by what an oracle would.
    pub fn by_oracle(&self) -> f64 {
        self.sent_bytes() / (self.content_bytes + self.delta_bytes) as f64
    }

    /// The same by the pages that were sent, as they are.
    pub fn by_pages(&self) -> f64 {
        self.sent_bytes() / (self.pages_sent * PAGE_BYTES as u64) as f64
    }

    /// All rungs together move it in time.
    pub fn converges(&self) -> bool {
        self.steps.last().is_some_and(|step| step.converged)
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { sent_bytes, converged } in &self.steps {
            let mark = if *converged { ' ' } else { '*' };
            write!(f, "{:>11.1}{mark}", *sent_bytes as f64 / 1e6)?;
        }
        let [content, deltas] = [self.content_bytes, self.delta_bytes].map(|bytes| bytes as f64 / 1e6);
        write!(f, "{content:>10.1}{deltas:>8.1}{:>9.1}{:>11.2}", content + deltas, self.by_oracle())
    }
}
