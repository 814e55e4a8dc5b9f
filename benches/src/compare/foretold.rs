//! Whether a guest's stop took what was foretold.

use super::record::Figures;
use crate::verdict::{Bound, Verdict};

/// What was foretold is right within this share, or this time.
const WITHIN: f64 = 0.3;
const WITHIN_S: f64 = 0.02;
/// In so many of all moves.
const OFTEN: f64 = 0.9;

/// How often a stop took what was foretold.
#[derive(Debug, Default)]
pub struct Told {
    moves: u32,
    right: u32,
}

impl Told {
    /// A move of ours; one that was called off has no stop, and does not count.
    pub fn count(&mut self, figures: &Figures) {
        if let Some(gap_s) = figures.gap_s {
            self.add(foretold_s(figures), gap_s);
        }
    }

    fn add(&mut self, foretold_s: Option<f64>, gap_s: f64) {
        self.moves += 1;
        let off_s = foretold_s.map_or(f64::INFINITY, |foretold_s| (foretold_s - gap_s).abs());
        self.right += u32::from(off_s <= WITHIN_S.max(WITHIN * gap_s));
    }

    /// `None`: nothing was counted.
    pub fn verdict(&self) -> Option<Verdict> {
        let share = f64::from(self.right) / f64::from(self.moves);
        let what = format!("stops that took what was foretold, within 30 % or 20 ms, of {}", self.moves);
        (self.moves > 0).then(|| Verdict::new(what, share, Bound::AtLeast(OFTEN), ""))
    }
}

/// What the command said when the guest was to be stopped.
pub fn foretold_s(figures: &Figures) -> Option<f64> {
    let said = figures.said.as_ref()?;
    Some(said["data"]["report"]["predicted"]["total_ms"].as_f64()? / 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::figures;
    use super::*;

    #[test]
    fn what_was_foretold_is_right_within_a_share_or_a_time() {
        let mut told = Told::default();
        assert!(told.verdict().is_none());
        told.count(&figures(None, 1.0));
        assert!(told.verdict().is_none(), "nobody stopped it");
        [(Some(0.08), 0.1), (Some(0.031), 0.05), (Some(0.26), 0.2), (Some(0.11), 0.2)]
            .into_iter()
            .for_each(|(foretold, gap)| told.add(foretold, gap));
        told.count(&Figures { said: None, ..figures(Some((2.0, 0.1)), 1.0) });
        assert_eq!((told.right, told.moves), (3, 5));
        assert_eq!(
            told.verdict().unwrap().to_string(),
            "FAIL  stops that took what was foretold, within 30 % or 20 ms, of 5: 0.60, at least 0.90 asked"
        );
        let mut told = Told::default();
        told.count(&figures(Some((2.0, 0.1)), 1.0));
        assert!(told.verdict().unwrap().passed());
    }
}
