//! What the guest does with its memory, as numbers; and the named presets that measurements quote.
//!
//! The guest itself knows no presets: [`Load::command_line`] spells everything out.

use std::fmt::Write as _;

const PAGE_BYTES: u32 = 4096;
const PAGES_PER_MIB: u32 = 256;
const WHOLE_PAGE: u32 = PAGE_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    Seq,
    Uniform,
    /// 90 % of the writes go to 10 % of the set.
    Hot,
    /// s = 1 - 1/root: 10 is Zipf 0.9.
    Zipf {
        root: u32,
    },
}

/// What a write puts into the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// More of what the page is made of.
    Own,
    Text,
    Random,
}

/// How the guest damages itself, to show that its checks can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// One bit of a page's body.
    Flip,
    /// One byte of a page that should be zero.
    Dirty,
    /// A page goes back to an older version, whole.
    Stale,
    /// A page loses its content.
    Wipe,
    /// Two pages change places, whole.
    Swap,
}

impl Corruption {
    pub const ALL: [Corruption; 5] =
        [Corruption::Flip, Corruption::Dirty, Corruption::Stale, Corruption::Wipe, Corruption::Swap];

    /// Bad pages it makes.
    pub fn pages(self) -> u64 {
        if self == Corruption::Swap { 2 } else { 1 }
    }
}

/// One load. Shares are thousandths of all pages; what is left over is zero pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub name: String,
    pub seed: u64,
    pub dup_permille: u32,
    pub text_permille: u32,
    pub random_permille: u32,
    /// Pages that are ever written; more than there are non-zero pages means all of those.
    pub set_pages: u32,
    pub pattern: Pattern,
    /// Each write makes one page dirty. 0 = none.
    pub rate_pages_per_s: u32,
    /// Changed by a write, header of the page included; inclusive bounds; 4096 = the whole page.
    pub change_bytes: (u32, u32),
    pub renewal: Renewal,
    pub drift_pages_per_s: u32,
    /// (on, off): the writes of `on + off` happen in `on`.
    pub burst_ms: Option<(u32, u32)>,
    /// Pages the background check reads per second; `None` = all of memory in 4 s, at most 128 MiB/s.
    pub sweep_pages_per_s: Option<u32>,
    /// What goes wrong, and how long after `ready`.
    pub corruption: Option<(Corruption, u32)>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoadError {
    #[error("no load is called {0:?}; there are: {names}", names = Load::NAMES.join(", "))]
    UnknownPreset(String),
    #[error("{0:?} is not a rate: write PRESET@MB, as in rand@100 (MB of dirtied pages per second)")]
    Rate(String),
}

impl Load {
    pub const NAMES: [&str; 8] = ["idle", "seq", "rand", "hot", "oltp", "build", "jbb", "noise"];

    /// `NAME`, or `NAME@MB` for another rate, in 10^6 bytes of dirtied pages per second.
    pub fn preset(text: &str) -> Result<Load, LoadError> {
        let (name, rate) = match text.split_once('@') {
            Some((name, rate)) => {
                let mb_per_s: f64 = rate.parse().map_err(|_| LoadError::Rate(text.into()))?;
                if !(0.0..=1e5).contains(&mb_per_s) {
                    return Err(LoadError::Rate(text.into()));
                }
                (name, Some(mb_per_s))
            }
            None => (text, None),
        };
        let mut load = Load::named(name).ok_or_else(|| LoadError::UnknownPreset(name.into()))?;
        if let Some(mb_per_s) = rate {
            load = load.with_rate_mb_per_s(mb_per_s);
        }
        Ok(load)
    }

    /// The table of the measurements; where it gives two rates, the lower one.
    fn named(name: &str) -> Option<Load> {
        let mixed = Load {
            name: name.into(),
            seed: 1,
            dup_permille: 125,
            text_permille: 375,
            random_permille: 250,
            set_pages: 128 * PAGES_PER_MIB,
            pattern: Pattern::Uniform,
            rate_pages_per_s: pages_per_s(20.0),
            change_bytes: (64, 64),
            renewal: Renewal::Own,
            drift_pages_per_s: 0,
            burst_ms: None,
            sweep_pages_per_s: None,
            corruption: None,
        };
        Some(match name {
            "idle" => Load {
                dup_permille: 50,
                text_permille: 350,
                random_permille: 50,
                set_pages: 8 * PAGES_PER_MIB,
                rate_pages_per_s: 50,
                ..mixed
            },
            "seq" => Load { set_pages: 64 * PAGES_PER_MIB, pattern: Pattern::Seq, ..mixed },
            "rand" => mixed,
            "hot" => Load {
                pattern: Pattern::Hot,
                change_bytes: (WHOLE_PAGE, WHOLE_PAGE),
                renewal: Renewal::Text,
                ..mixed
            },
            "oltp" => Load {
                dup_permille: 160,
                text_permille: 540,
                random_permille: 200,
                set_pages: 100 * PAGES_PER_MIB,
                pattern: Pattern::Zipf { root: 10 },
                rate_pages_per_s: pages_per_s(5.0),
                change_bytes: (100, 500),
                ..mixed
            },
            "build" => Load {
                dup_permille: 80,
                text_permille: 770,
                random_permille: 100,
                set_pages: 150 * PAGES_PER_MIB,
                rate_pages_per_s: pages_per_s(5.0),
                change_bytes: (2048, WHOLE_PAGE),
                drift_pages_per_s: 2 * PAGES_PER_MIB,
                burst_ms: Some((300, 700)),
                ..mixed
            },
            "jbb" => Load {
                dup_permille: 40,
                text_permille: 280,
                random_permille: 50,
                set_pages: 83 * PAGES_PER_MIB,
                rate_pages_per_s: pages_per_s(80.0),
                change_bytes: (200, 2000),
                ..mixed
            },
            // Twice what a link of 1 Gbit/s carries.
            "noise" => Load {
                dup_permille: 0,
                text_permille: 0,
                random_permille: 1000,
                set_pages: u32::MAX,
                rate_pages_per_s: pages_per_s(240.0),
                change_bytes: (WHOLE_PAGE, WHOLE_PAGE),
                renewal: Renewal::Random,
                ..mixed
            },
            _ => return None,
        })
    }

    pub fn with_rate_mb_per_s(mut self, mb_per_s: f64) -> Load {
        self.rate_pages_per_s = pages_per_s(mb_per_s);
        self
    }

    pub fn with_seed(mut self, seed: u64) -> Load {
        self.seed = seed;
        self
    }

    pub fn with_corruption(mut self, what: Corruption, after_ms: u32) -> Load {
        self.corruption = Some((what, after_ms));
        self
    }

    /// The guest's kernel command line.
    pub fn command_line(&self, memory_mib: u32) -> String {
        let pages = memory_mib.saturating_mul(PAGES_PER_MIB);
        let sweep = self.sweep_pages_per_s.unwrap_or((pages / 4).min(128 * PAGES_PER_MIB));
        let pattern = match self.pattern {
            Pattern::Seq => "seq",
            Pattern::Uniform => "uniform",
            Pattern::Hot => "hot",
            Pattern::Zipf { .. } => "zipf",
        };
        let renewal = match self.renewal {
            Renewal::Own => "own",
            Renewal::Text => "text",
            Renewal::Random => "random",
        };
        let mut line = format!(
            "seed={} dup={} text={} random={} set={} pattern={pattern} rate={} change_min={} change_max={} \
             renewal={renewal} drift={} sweep={sweep}",
            self.seed,
            self.dup_permille,
            self.text_permille,
            self.random_permille,
            self.set_pages,
            self.rate_pages_per_s,
            self.change_bytes.0,
            self.change_bytes.1,
            self.drift_pages_per_s,
        );
        // Writing to a String cannot fail.
        if let Pattern::Zipf { root } = self.pattern {
            let _ = write!(line, " zipf_root={root}");
        }
        if let Some((on, off)) = self.burst_ms {
            let _ = write!(line, " burst_on={on} burst_off={off}");
        }
        if let Some((what, after_ms)) = self.corruption {
            let what = match what {
                Corruption::Flip => "flip",
                Corruption::Dirty => "dirty",
                Corruption::Stale => "stale",
                Corruption::Wipe => "wipe",
                Corruption::Swap => "swap",
            };
            let _ = write!(line, " corrupt={what} corrupt_after={after_ms}");
        }
        line
    }
}

fn pages_per_s(mb_per_s: f64) -> u32 {
    (mb_per_s * 1e6 / f64::from(PAGE_BYTES)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_load_exists_and_fits_into_memory() {
        for name in Load::NAMES {
            let load = Load::preset(name).unwrap();
            assert!(load.dup_permille + load.text_permille + load.random_permille <= 1000, "{name}");
        }
    }

    #[test]
    fn a_rate_after_the_name_replaces_the_preset_s() {
        assert_eq!(Load::preset("rand@100").unwrap().rate_pages_per_s, 24_414);
        assert!(matches!(Load::preset("rand@fast"), Err(LoadError::Rate(_))));
        assert!(matches!(Load::preset("rand@-1"), Err(LoadError::Rate(_))));
        assert!(matches!(Load::preset("dance"), Err(LoadError::UnknownPreset(_))));
    }
}
