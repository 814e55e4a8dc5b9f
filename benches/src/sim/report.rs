//! What a run came to, as a line and as a table of its passes.

use std::fmt;
use std::time::Duration;

use super::matrix::{Cell, show_mib};
use super::{End, PassTrace, Report, Scale};
use crate::floor::Content;

/// A run, in the real guest's figures.
pub struct Line {
    cell: Cell,
    scale: Scale,
    report: Report,
    content: Option<Content>,
}

impl Line {
    /// `content`: of the memory that arrived, before scaling.
    pub fn new(cell: Cell, scale: Scale, report: Report, content: Option<Content>) -> Self {
        Line { cell, scale, report, content }
    }

    /// Nothing is wrong with the engine: what arrived is what was sent. A guest that did not move is no defect.
    pub fn is_sound(&self) -> bool {
        self.report.memory_equal || !matches!(self.report.end, End::Moved)
    }

    pub fn end(&self) -> String {
        match &self.report.end {
            End::Moved if self.report.memory_equal => "moved".into(),
            End::Moved => "MEMORY DIFFERS".into(),
            End::Aborted(why) => why.to_string(),
            End::Unfinished => "not within the limit".into(),
        }
    }

    /// *U*, bytes.
    fn content_bytes(&self) -> Option<f64> {
        Some(self.content?.compressed_bytes as f64 * f64::from(self.scale.factor()))
    }

    fn floor(&self) -> Option<Duration> {
        let content = self.content?;
        let real = Content {
            pages: content.pages * u64::from(self.scale.factor()),
            compressed_bytes: content.compressed_bytes * u64::from(self.scale.factor()),
        };
        real.floor(&self.cell.profile)
    }

    pub fn score(&self) -> Option<f64> {
        Some(self.report.total.as_secs_f64() / self.floor()?.as_secs_f64())
    }
}

const COLUMNS: &str = "guest      memory   link          policy          total s   gap ms  pred. ms   sent MB  passes      U MB   floor s  score  end";

pub fn print_header() {
    println!("{COLUMNS}");
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { total, gap, predicted_gap, sent_bytes, passes, .. } = &self.report;
        let ms = |time: &Option<Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1e3))
        };
        let figure = |figure: Option<f64>, digits: usize| {
            figure.map_or("-".to_owned(), |figure| format!("{figure:.digits$}"))
        };
        write!(
            f,
            "{:10} {:8} {:13} {:14} {:>8.2} {:>8} {:>9} {:>9.1} {:>7} {:>9} {:>9} {:>6}  {}",
            self.cell.guest,
            show_mib(self.cell.mib),
            self.cell.link,
            self.cell.policy,
            total.as_secs_f64(),
            ms(gap),
            ms(predicted_gap),
            *sent_bytes as f64 * f64::from(self.scale.factor()) / 1e6,
            passes.len(),
            figure(self.content_bytes().map(|bytes| bytes / 1e6), 1),
            figure(self.floor().map(|floor| floor.as_secs_f64()), 2),
            figure(self.score(), 3),
            self.end(),
        )
    }
}

/// A line per pass of the source; the last one with the guest stopped.
pub fn print_trace(line: &Line) {
    let times = u64::from(line.scale.factor());
    println!("  pass      sent   skipped     dirty     at ms  took ms");
    for (number, pass) in (1..).zip(&line.report.passes) {
        let PassTrace { sent, skipped, dirty, began_ns, duration_ns } = pass;
        println!(
            "  {number:4} {:>9} {:>9} {:>9} {:>9} {:>8}",
            sent * times,
            skipped * times,
            dirty * times,
            began_ns / 1_000_000,
            duration_ns / 1_000_000,
        );
    }
}
