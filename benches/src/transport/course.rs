//! How long, how often: what all parts of the measurement have in common.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Course {
    pub repeats: u32,
    /// Of one run.
    pub time: Duration,
    /// Slow start is over by then on every link that is measured.
    pub steady_from: Duration,
    /// A smoke run: the figures mean nothing.
    pub quick: bool,
    /// Lanes of the link; `None`: the transport's default.
    pub lanes: Option<u16>,
}

impl Course {
    pub fn new(repeats: u32, quick: bool, lanes: Option<u16>) -> Course {
        let (repeats, time_s, steady_s) = if quick { (1, 2, 1) } else { (repeats, 8, 3) };
        let (time, steady_from) = (Duration::from_secs(time_s), Duration::from_secs(steady_s));
        Course { repeats, time, steady_from, quick, lanes }
    }

    /// Where packets are lost, windows that slow start made too large take longer to become what losses allow.
    pub fn with_losses(&self) -> Course {
        if self.quick {
            return self.clone();
        }
        Course { time: Duration::from_secs(20), steady_from: Duration::from_secs(10), ..self.clone() }
    }

    /// The volume whose time is taken: what half a run would carry at the full rate, so that slow starts end in time.
    pub fn volume(&self, bytes_per_s: f64) -> u64 {
        (bytes_per_s * self.time.as_secs_f64() / 2.0) as u64
    }
}

/// A congestion control to go by: the transport's own choice, or `cubic`, as where there is nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// For what is printed.
    pub name: &'static str,
    pub congestion: Option<&'static str>,
}

pub const CONTROLS: [Control; 2] =
    [Control { name: "", congestion: None }, Control { name: " with cubic only", congestion: Some("cubic") }];

impl Control {
    pub fn congestion(&self) -> Option<String> {
        self.congestion.map(str::to_owned)
    }
}

/// The machine's, over the last minute: other work shows in the figures.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}
