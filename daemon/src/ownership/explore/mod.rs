//! Every way in which two daemons, two QEMUs and a link can go on, with crashes, restarts, losses and failing disks, as far as there is anything
//! new: at no state may two guests run, and from every state one must be able to run for good, without another fault.
//!
//! What the daemons do is what [`Source`], [`Destination`] and [`known`] allow; the rest of the world is here. The order in which things come is
//! anybody's: each state is left by every step that is possible in it.

mod world;

use std::collections::HashMap;
use std::fmt;
use world::{Broken, Ways, World};

/// What was found.
struct Explored {
    states: usize,
    depth: usize,
    wrong: Option<Trace>,
}

/// The shortest way to something that must not be.
struct Trace {
    what: String,
    steps: Vec<&'static str>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, after\n  {}", self.what, self.steps.join("\n  "))
    }
}

fn explore(faults: u8, broken: Broken, safe: bool) -> Explored {
    let begin = World::begin(faults);
    let mut numbers = HashMap::from([(begin.clone(), 0_usize)]);
    let mut worlds = vec![begin];
    // How each was come to first, and from where all it is come to without a fault.
    let mut came: Vec<Option<(usize, &'static str)>> = vec![None];
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut depths = vec![0];
    let mut at = 0;
    let trace = |came: &[Option<(usize, &'static str)>], mut at: usize, what: String| {
        let mut steps = Vec::new();
        while let Some((from, step)) = came[at] {
            steps.push(step);
            at = from;
        }
        steps.reverse();
        Trace { what, steps }
    };
    while at < worlds.len() {
        if let Some(what) = worlds[at].wrong() {
            let wrong = Some(trace(&came, at, what.to_owned()));
            return Explored { states: worlds.len(), depth: depths[at], wrong };
        }
        for way in Ways::all(&worlds[at].clone(), broken, safe) {
            let next = *numbers.entry(way.to.clone()).or_insert(worlds.len());
            if next == worlds.len() {
                worlds.push(way.to);
                came.push(Some((at, way.what)));
                before.push(Vec::new());
                depths.push(depths[at] + 1);
            }
            if !way.fault {
                before[next].push(at);
            }
        }
        at += 1;
    }
    // Backwards from where it is settled: what is not met can never be.
    let mut ends = vec![false; worlds.len()];
    let mut open: Vec<usize> = (0..worlds.len()).filter(|at| worlds[*at].is_settled()).collect();
    open.iter().for_each(|at| ends[*at] = true);
    while let Some(at) = open.pop() {
        for from in &before[at] {
            if !std::mem::replace(&mut ends[*from], true) {
                open.push(*from);
            }
        }
    }
    let lost = ends.iter().position(|ends| !ends);
    let wrong = lost.map(|at| trace(&came, at, format!("no guest runs, for good: {:?}", worlds[at])));
    Explored { states: worlds.len(), depth: depths.iter().copied().max().unwrap_or_default(), wrong }
}

/// Crashes and failing writes, of either side.
const FAULTS: u8 = 3;

#[test]
fn never_two_and_never_none_whatever_comes_when() {
    for safe in [false, true] {
        let explored = explore(FAULTS, Broken::Not, safe);
        println!("safe {safe}: {} states, {} steps deep", explored.states, explored.depth);
        assert!(explored.wrong.is_none(), "safe {safe}: {:?}", explored.wrong);
        assert!(explored.states > 1000, "it has not seen much: {} states", explored.states);
    }
}

#[test]
fn each_way_to_be_wrong_is_caught() {
    use Broken::*;
    for broken in [
        StopsUnmarked,
        GoesUncovered,
        TakesSilenceForNo,
        RunsUncovered,
        RefusesWhatIsUnderWay,
        RefusesUncovered,
        TakesSilenceForDisobedience,
        SaysArrivedTooSoon,
        ForgetsTooSoon,
        IsToldUnfenced,
    ] {
        let explored = explore(FAULTS, broken, false);
        let wrong = explored.wrong.unwrap_or_else(|| panic!("{broken:?} is not caught"));
        println!("{broken:?}: {wrong:?}");
    }
}
