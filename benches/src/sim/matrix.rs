//! Runs of the simulator, several at once, told in order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hikyaku_engine::SourceConfig;
use hikyaku_engine::precopy::{self, Common};

use super::report::Line;
use super::{End, GuestConfig, HostConfig, LinkConfig, Scale, Setup};
use crate::floor::Content;
use crate::guest::Load;
use crate::link::Profile;

/// One guest over one link by one policy.
#[derive(Debug, Clone)]
pub struct Cell {
    /// As it was asked for.
    pub guest: String,
    pub load: Load,
    pub mib: u64,
    pub link: String,
    pub profile: Profile,
    pub policy: String,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { guest, mib, link, policy, .. } = self;
        write!(f, "{guest}, {}, {link}, {policy}", show_mib(*mib))
    }
}

/// What is run, and under which assumptions.
#[derive(Debug)]
pub struct Plan {
    pub cells: Vec<Cell>,
    pub workers: usize,
    pub hold_mib: u64,
    pub grow: bool,
    pub cold: bool,
    pub queue: Duration,
    pub loss_factor: f64,
    pub over_qemu: bool,
    pub common: Common,
    pub limit: Duration,
}

/// The memory that the loads are stated for.
const STATED_MIB: u64 = 512;
/// Taking the dirty bitmap costs this and, per GiB of guest, that: KVM's log is read whole, set bits are few.
const SYNC_NS: u64 = 500_000;
const SYNC_NS_PER_GIB: u64 = 100_000;

impl Plan {
    /// Runs all cells, at most `jobs` at once; tells of them in order.
    pub fn run(&self, jobs: usize, mut tell: impl FnMut(&Cell, anyhow::Result<Line>)) {
        let next = Mutex::new(0..self.cells.len());
        let (done, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(self.cells.len()) {
                let (next, done) = (&next, done.clone());
                scope.spawn(move || {
                    while let Some(at) = next.lock().unwrap_or_else(PoisonError::into_inner).next() {
                        let run = self.cells.get(at).map(|cell| self.cell(cell));
                        if run.is_none_or(|run| done.send((at, run)).is_err()) {
                            return;
                        }
                    }
                });
            }
            drop(done);
            let mut early = BTreeMap::new();
            let mut due = 0;
            for (at, run) in told {
                early.insert(at, run);
                while let Some(run) = early.remove(&due) {
                    tell(&self.cells[due], run);
                    due += 1;
                }
            }
        });
    }

    fn cell(&self, cell: &Cell) -> anyhow::Result<Line> {
        let scale = Scale::to_hold(cell.mib, self.hold_mib);
        let setup = scale.apply(self.setup(cell, scale)?);
        let policy = precopy::by_name(&cell.policy, &self.common).context("no such policy")?;
        let report = super::run(&setup, scale.policy(policy))?;
        let content = match report.end {
            End::Moved => Some(Content::of_pages(report.ram.pages())?),
            _ => None,
        };
        Ok(Line::new(cell.clone(), scale, report, content))
    }

    /// Of the real guest, but for the number of pages.
    fn setup(&self, cell: &Cell, scale: Scale) -> anyhow::Result<Setup> {
        let rate = cell.profile.rate.context("a link without a rate")?;
        let mut load = cell.load.clone();
        let mut pages_per_s = f64::from(load.rate_pages_per_s);
        if self.grow && cell.mib > STATED_MIB {
            let grown = (cell.mib as f64 / STATED_MIB as f64).sqrt();
            pages_per_s *= grown;
            load.set_pages = (f64::from(load.set_pages) * grown) as u32;
        }
        let mib = u32::try_from(cell.mib / u64::from(scale.factor()))?;
        let guest = GuestConfig { pages_per_s, ..GuestConfig::new(load, mib) };
        let through = if cell.profile.loss > 0.0 { self.loss_factor } else { 1.0 };
        let link = LinkConfig {
            standing_queue: self.queue,
            warm: !self.cold,
            ..LinkConfig::new(rate.payload_bit_per_s() as f64 * through, cell.profile.rtt)
        };
        let mut setup = Setup::new(guest, link);
        setup.host =
            HostConfig { sync_ns: SYNC_NS + SYNC_NS_PER_GIB * cell.mib / 1024, ..HostConfig::default() };
        setup.source =
            SourceConfig { workers: self.workers, encode_jobs: 2 * self.workers, ..SourceConfig::default() };
        setup.over_qemu = self.over_qemu;
        setup.limit = self.limit;
        Ok(setup)
    }
}

pub(super) fn show_mib(mib: u64) -> String {
    match mib {
        _ if mib.is_multiple_of(1 << 20) => format!("{} TiB", mib >> 20),
        _ if mib.is_multiple_of(1 << 10) => format!("{} GiB", mib >> 10),
        _ => format!("{mib} MiB"),
    }
}
