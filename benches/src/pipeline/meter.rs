//! CPU time of a piece of work, repeated.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Measures.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    repeats: u32,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Figure {
    pub stage: String,
    pub content: &'static str,
    /// Guest memory that was worked on.
    bytes: u64,
    /// CPU time it took: the median of the repeats, and the least and most.
    cpu: Duration,
    spread: (Duration, Duration),
    pub note: String,
}

impl Meter {
    pub fn new(repeats: u32) -> Self {
        Meter { repeats: repeats.max(1) }
    }

    /// Runs `work` on this thread, once unmeasured, then so often; each run goes over `bytes` of guest memory.
    pub fn run(
        &self,
        stage: &str,
        content: &'static str,
        bytes: u64,
        mut work: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Figure> {
        self.part(stage, content, bytes, || cpu_of(&mut work))
    }

    /// The same for work of which only a part is measured: it says how long that took.
    pub fn part(
        &self,
        stage: &str,
        content: &'static str,
        bytes: u64,
        mut work: impl FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<Figure> {
        work()?;
        let times = (0..self.repeats).map(|_| work()).collect::<anyhow::Result<_>>()?;
        Ok(Figure::of(stage, content, bytes, times))
    }
}

impl Figure {
    /// Of the CPU times of several runs, each over `bytes`. There must be at least one.
    pub fn of(stage: &str, content: &'static str, bytes: u64, mut times: Vec<Duration>) -> Figure {
        times.sort_unstable();
        let at = |i: usize| times.get(i).copied().unwrap_or_default();
        Figure {
            stage: stage.to_owned(),
            content,
            bytes,
            cpu: at(times.len() / 2),
            spread: (at(0), at(times.len().saturating_sub(1))),
            note: String::new(),
        }
    }

    pub fn note(self, note: String) -> Figure {
        Figure { note, ..self }
    }

    /// 10^9 bytes of guest memory per second of one core.
    pub fn gb_per_s(&self) -> f64 {
        rate(self.bytes, self.cpu)
    }

    pub fn headline() -> String {
        format!("{:<28} {:<8} {:>10} {:>15}", "stage", "content", "GB/s/core", "(least-most)")
    }

    pub fn line(&self) -> String {
        let (most, least) = (rate(self.bytes, self.spread.0), rate(self.bytes, self.spread.1));
        let range = format!("({least:.2}-{most:.2})");
        let line = format!(
            "{:<28} {:<8} {:>10.2} {range:>15}  {}",
            self.stage,
            self.content,
            self.gb_per_s(),
            self.note
        );
        line.trim_end().to_owned()
    }

    pub fn json(&self) -> String {
        serde_json::json!({
            "stage": self.stage,
            "content": self.content,
            "gb_per_s_per_core": self.gb_per_s(),
            "least": rate(self.bytes, self.spread.1),
            "most": rate(self.bytes, self.spread.0),
            "note": self.note,
        })
        .to_string()
    }
}

fn rate(bytes: u64, cpu: Duration) -> f64 {
    bytes as f64 / cpu.as_secs_f64().max(1e-9) / 1e9
}

/// CPU time that `work` takes on this thread.
pub fn cpu_of(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let before = thread_cpu()?;
    work()?;
    Ok(thread_cpu()?.saturating_sub(before))
}

/// CPU time of this thread so far, in the kernel and outside it. (`getrusage` counts in ticks of a few milliseconds.)
pub fn thread_cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
