//! Criteria: a line each, with the figure, the bound and what came of it; and what repeats come to.

use std::fmt;

/// Figures of the same thing, measured again and again.
#[derive(Debug, Clone, Default)]
pub struct Repeats {
    sorted: Vec<f64>,
}

impl Repeats {
    pub fn add(&mut self, figure: f64) {
        let at = self.sorted.partition_point(|one| *one <= figure);
        self.sorted.insert(at, figure);
    }

    /// The upper one of two in the middle; not a number without any.
    pub fn median(&self) -> f64 {
        self.sorted.get(self.sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn least(&self) -> f64 {
        self.sorted.first().copied().unwrap_or(f64::NAN)
    }

    pub fn most(&self) -> f64 {
        self.sorted.last().copied().unwrap_or(f64::NAN)
    }

    /// `98.1 (95.0-99.2)`, each multiplied first; what is without end is a dash.
    pub fn show(&self, factor: f64, digits: usize) -> String {
        let [median, least, most] =
            [self.median(), self.least(), self.most()].map(|one| match one * factor {
                one if one.is_finite() => format!("{one:.digits$}"),
                _ => "-".to_owned(),
            });
        if self.sorted.len() == 1 || least == most { median } else { format!("{median} ({least}-{most})") }
    }
}

impl FromIterator<f64> for Repeats {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        let mut repeats = Self::default();
        figures.into_iter().for_each(|figure| repeats.add(figure));
        repeats
    }
}

/// On which side of its bound a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone)]
pub struct Verdict {
    /// What was measured, in words.
    what: String,
    /// What it came to: a figure, or why there is none.
    figure: Result<f64, String>,
    bound: Bound,
    unit: &'static str,
}

impl Verdict {
    pub fn new(what: impl Into<String>, figure: f64, bound: Bound, unit: &'static str) -> Self {
        Self { what: what.into(), figure: Ok(figure), bound, unit }
    }

    /// It could not be measured, which is a failure.
    pub fn without(
        what: impl Into<String>,
        why: impl fmt::Display,
        bound: Bound,
        unit: &'static str,
    ) -> Self {
        Self { what: what.into(), figure: Err(why.to_string()), bound, unit }
    }

    pub fn passed(&self) -> bool {
        // What is not a number has not passed.
        self.figure.as_ref().is_ok_and(|figure| match self.bound {
            Bound::AtLeast(bound) => *figure >= bound,
            Bound::AtMost(bound) => *figure <= bound,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed() { "PASS" } else { "FAIL" };
        write!(f, "{word}  {}: ", self.what)?;
        match &self.figure {
            Ok(figure) => write!(f, "{}{}", rounded(*figure), self.unit)?,
            Err(why) => write!(f, "not measured ({why})")?,
        }
        let (word, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at least", bound),
            Bound::AtMost(bound) => ("at most", bound),
        };
        write!(f, ", {word} {}{} asked", rounded(bound), self.unit)
    }
}

/// Three significant digits, or all before the point.
fn rounded(figure: f64) -> String {
    let digits = match figure.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{figure:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_have_a_median_and_a_spread_in_any_order() {
        let repeats: Repeats = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!((repeats.least(), repeats.median(), repeats.most()), (1.0, 2.0, 3.0));
        assert_eq!(repeats.show(10.0, 1), "20.0 (10.0-30.0)");
        assert!(Repeats::default().median().is_nan());
        let without_end: Repeats = [1.0, f64::INFINITY].into_iter().collect();
        assert_eq!(without_end.show(1.0, 1), "- (1.0--)");
    }

    #[test]
    fn a_criterion_says_what_it_came_to_and_what_was_asked() {
        let good = Verdict::new("us, goodput", 97.25, Bound::AtLeast(95.0), " %");
        assert!(good.passed());
        assert_eq!(good.to_string(), "PASS  us, goodput: 97.2 %, at least 95.0 % asked");
        let bad = Verdict::new("us, memory", 130.0, Bound::AtMost(97.0), " MiB");
        assert_eq!(bad.to_string(), "FAIL  us, memory: 130 MiB, at most 97.0 MiB asked");
    }

    #[test]
    fn what_was_not_measured_has_not_passed() {
        for bound in [Bound::AtLeast(0.0), Bound::AtMost(1.0)] {
            assert!(!Verdict::new("nothing", f64::NAN, bound, "").passed());
            let without = Verdict::without("kills", "the session ended", bound, "");
            assert!(!without.passed());
            assert!(without.to_string().starts_with("FAIL  kills: not measured (the session ended)"));
        }
    }
}
