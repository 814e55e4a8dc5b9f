//! The kernel command line: `key=value`, separated by blanks. The host resolves presets; here everything is explicit.
//!
//! Unknown keys are ignored (QEMU and loaders add their own); a value that is not understood stops the guest.

/// Shares in thousandths; what is left over is zero pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    pub dup: u32,
    pub text: u32,
    pub random: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One page after the other.
    Seq,
    /// Any page of the set alike.
    Uniform,
    /// 90 % of the writes go to 10 % of the set.
    Hot,
    /// Zipf with s = 1 - 1/`root`.
    Zipf,
}

/// What a write puts into the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// More of what the page is made of.
    Own,
    Text,
    Random,
}

/// How the guest damages itself, so that a test sees its checks fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    None,
    /// One bit of a page's body.
    Flip,
    /// One byte of a page that should be zero.
    Dirty,
    /// A page goes back to its last version, whole.
    Stale,
    /// A page loses its content.
    Wipe,
    /// Two pages change places, whole.
    Swap,
}

#[derive(Clone, Debug)]
pub struct Params {
    pub seed: u64,
    pub shares: Shares,
    /// Pages in the working set; more than there are non-zero pages means all of them.
    pub set_pages: u32,
    pub pattern: Pattern,
    pub zipf_root: u32,
    /// Pages written per second; 0 = none.
    pub rate_pages_per_s: u32,
    /// Bytes changed per write, inclusive bounds; ≥ 4096 = the whole page.
    pub change_min_bytes: u32,
    pub change_max_bytes: u32,
    pub renewal: Renewal,
    /// How fast the working set moves through memory.
    pub drift_pages_per_s: u32,
    /// The writes of `on + off` happen in `on`; `off` 0 = evenly.
    pub burst_on_ms: u32,
    pub burst_off_ms: u32,
    /// Pages verified per second by the background sweep.
    pub sweep_pages_per_s: u32,
    pub heartbeat_ms: u32,
    pub timer_hz: u32,
    pub corruption: Corruption,
    pub corrupt_after_ms: u32,
}

impl Params {
    const DEFAULT: Params = Params {
        seed: 1,
        shares: Shares { dup: 0, text: 0, random: 0 },
        set_pages: 0,
        pattern: Pattern::Uniform,
        zipf_root: 10,
        rate_pages_per_s: 0,
        change_min_bytes: 64,
        change_max_bytes: 64,
        renewal: Renewal::Own,
        drift_pages_per_s: 0,
        burst_on_ms: 1,
        burst_off_ms: 0,
        sweep_pages_per_s: 16384,
        heartbeat_ms: 10,
        timer_hz: 500,
        corruption: Corruption::None,
        corrupt_after_ms: 1000,
    };

    /// `Err` is the word that was not understood.
    pub fn parse(line: &str) -> Result<Params, &str> {
        let mut params = Params::DEFAULT;
        for word in line.split_ascii_whitespace() {
            if let Some((key, value)) = word.split_once('=') {
                params.set(key, value).ok_or(word)?;
            }
        }
        let Shares { dup, text, random } = params.shares;
        let change_in_order = params.change_min_bytes <= params.change_max_bytes;
        if dup.saturating_add(text).saturating_add(random) > 1000 || !change_in_order {
            return Err("shares above 1000 or change out of order");
        }
        Ok(params)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let target = match key {
            "seed" => {
                self.seed = value.parse().ok()?;
                return Some(());
            }
            "pattern" => {
                self.pattern = match value {
                    "seq" => Pattern::Seq,
                    "uniform" => Pattern::Uniform,
                    "hot" => Pattern::Hot,
                    "zipf" => Pattern::Zipf,
                    _ => return None,
                };
                return Some(());
            }
            "renewal" => {
                self.renewal = match value {
                    "own" => Renewal::Own,
                    "text" => Renewal::Text,
                    "random" => Renewal::Random,
                    _ => return None,
                };
                return Some(());
            }
            "corrupt" => {
                self.corruption = match value {
                    "none" => Corruption::None,
                    "flip" => Corruption::Flip,
                    "dirty" => Corruption::Dirty,
                    "stale" => Corruption::Stale,
                    "wipe" => Corruption::Wipe,
                    "swap" => Corruption::Swap,
                    _ => return None,
                };
                return Some(());
            }
            "dup" => &mut self.shares.dup,
            "text" => &mut self.shares.text,
            "random" => &mut self.shares.random,
            "set" => &mut self.set_pages,
            "zipf_root" => &mut self.zipf_root,
            "rate" => &mut self.rate_pages_per_s,
            "change_min" => &mut self.change_min_bytes,
            "change_max" => &mut self.change_max_bytes,
            "drift" => &mut self.drift_pages_per_s,
            "burst_on" => &mut self.burst_on_ms,
            "burst_off" => &mut self.burst_off_ms,
            "sweep" => &mut self.sweep_pages_per_s,
            "hb" => &mut self.heartbeat_ms,
            "hz" => &mut self.timer_hz,
            "corrupt_after" => &mut self.corrupt_after_ms,
            _ => return Some(()),
        };
        *target = value.parse().ok()?;
        let never_zero = matches!(key, "zipf_root" | "burst_on" | "hb" | "hz");
        (!never_zero || *target > 0).then_some(())
    }
}
