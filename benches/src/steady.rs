//! Claims about time, judged only while the machine gives the time.
//!
//! A virtual machine whose host is short of CPU stands still for tenths of a second, and whatever was measured meanwhile
//! says nothing about the program. So a claim that is not found true while the machine stood still is neither right
//! nor wrong: it is measured again. One that could not be measured at all is listed where a test run ends
//! (`HIKYAKU_UNJUDGED_LOG`), and is no success.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// So much later than it asked a thread wakes now and then beside a test's own work; later is a machine that stood still.
/// It is long for what is counted in milliseconds.
const LATE: Duration = Duration::from_millis(8);
/// And for what takes seconds.
const VERY_LATE: Duration = Duration::from_millis(20);
/// Attempts that were disturbed: not more, and not for longer. They can take very long.
const DISTURBED_MOST: usize = 10;
const DISTURBED_FOR: Duration = Duration::from_secs(90);
/// A host that takes the CPU from who uses much of it gives it back to who rests.
const REST: Duration = Duration::from_secs(1);

/// True once in so many attempts: what may fail because something else happened on the machine.
#[track_caller]
pub fn within(attempts: usize, what: &str, mut measure: impl FnMut() -> Result<(), String>) {
    Judge { true_wanted: 1, false_most: attempts, late_most: LATE, rest: REST }
        .judge(what, || watched(&mut measure))
        .tell(what);
}

/// What holds always: once may be chance, so of `2 * times - 1` attempts more are true than are not.
#[track_caller]
pub fn mostly(times: usize, what: &str, mut measure: impl FnMut() -> Result<(), String>) {
    Judge { true_wanted: times, false_most: times, late_most: LATE, rest: REST }
        .judge(what, || watched(&mut measure))
        .tell(what);
}

/// What a test asserts about seconds, all of it, from its beginning.
#[track_caller]
pub fn asserted(attempts: usize, what: &str, mut test: impl FnMut()) {
    let mut measure = || catch_unwind(AssertUnwindSafe(&mut test)).map_err(|panic| message(&*panic));
    Judge { true_wanted: 1, false_most: attempts, late_most: VERY_LATE, rest: REST }
        .judge(what, || watched(&mut measure))
        .tell(what);
}

/// A test of which only the [`claim`]s are about time: whatever else fails in it fails it at once, however the machine is.
#[track_caller]
pub fn timed(attempts: usize, what: &str, mut test: impl FnMut()) {
    let mut measure = || {
        catch_unwind(AssertUnwindSafe(&mut test)).map_err(|panic| match panic.downcast::<Claim>() {
            Ok(claim) => claim.0,
            Err(other) => resume_unwind(other),
        })
    };
    Judge { true_wanted: 1, false_most: attempts, late_most: VERY_LATE, rest: REST }
        .judge(what, || watched(&mut measure))
        .tell(what);
}

/// What a [`timed`] test asserts about time.
pub fn claim(is_true: bool, otherwise: String) {
    if !is_true {
        panic_any(Claim(otherwise));
    }
}

struct Claim(String);

/// So many are to be true before so many are not.
struct Judge {
    true_wanted: usize,
    false_most: usize,
    late_most: Duration,
    rest: Duration,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    True,
    /// After so many attempts that were disturbed; in the last one the machine stood still for so long.
    NotJudged(usize, Duration),
}

impl Verdict {
    /// One line where a test run looks for what was not judged.
    fn tell(&self, what: &str) {
        let Verdict::NotJudged(disturbed, late) = self else { return };
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let line =
            format!("{test}: {what}: {disturbed} times the machine stood still, at last for {late:.0?}");
        println!("not judged: {line}");
        if let Some(log) = std::env::var_os("HIKYAKU_UNJUDGED_LOG") {
            let log = std::fs::OpenOptions::new().append(true).create(true).open(log);
            if let Err(error) = log.and_then(|mut log| writeln!(log, "{line}")) {
                panic!("a log of what was not judged: {error}");
            }
        }
    }
}

impl Judge {
    /// `measure` says how late a thread was beside it. Panics if it is not true.
    #[track_caller]
    fn judge(&self, what: &str, mut measure: impl FnMut() -> (Result<(), String>, Duration)) -> Verdict {
        let (mut were_true, mut were_false) = (0, Vec::new());
        let (mut disturbed, mut disturbed_for) = (0, Duration::ZERO);
        while were_true < self.true_wanted {
            let began = Instant::now();
            let (measured, late) = measure();
            match measured {
                Ok(()) => were_true += 1,
                Err(why) if late > self.late_most => {
                    println!("{what}: not counted, for the machine stood still for {late:.0?}: {why}");
                    disturbed += 1;
                    disturbed_for += began.elapsed();
                    if disturbed == DISTURBED_MOST || disturbed_for > DISTURBED_FOR {
                        return Verdict::NotJudged(disturbed, late);
                    }
                    thread::sleep(self.rest);
                }
                Err(why) => were_false.push(why),
            }
            assert!(
                were_false.len() < self.false_most,
                "{what}: {were_false:?}, {were_true} were true, and {disturbed} times the machine stood still"
            );
        }
        Verdict::True
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Beside something, how late a thread was at most that wanted to sleep for a millisecond.
fn watched<T>(something: impl FnOnce() -> T) -> (T, Duration) {
    /// Also when that something panics: the scope waits for who watches.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (nap, mut late) = (Duration::from_millis(1), Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(nap);
                late = late.max(began.elapsed().saturating_sub(nap));
            }
            late
        });
        let ends = Over(&over);
        let value = something();
        drop(ends);
        (value, watch.join().unwrap_or(Duration::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each attempt says, and whether the machine stood still meanwhile; the last is repeated.
    fn judge(true_wanted: usize, false_most: usize, attempts: &[(bool, bool)]) -> (Option<Verdict>, usize) {
        let judge = Judge { true_wanted, false_most, late_most: LATE, rest: Duration::ZERO };
        let mut made = 0;
        let verdict = catch_unwind(AssertUnwindSafe(|| {
            judge.judge("a claim", || {
                let (is_true, stands) = attempts[made.min(attempts.len() - 1)];
                made += 1;
                let late = if stands { 2 * LATE } else { LATE / 2 };
                (if is_true { Ok(()) } else { Err("no".to_owned()) }, late)
            })
        }));
        (verdict.ok(), made)
    }

    const TRUE: (bool, bool) = (true, false);
    const FALSE: (bool, bool) = (false, false);
    const DISTURBED: (bool, bool) = (false, true);

    #[test]
    fn what_is_true_is_measured_once_and_what_is_false_as_often_as_it_may_be() {
        assert_eq!(judge(1, 3, &[TRUE]), (Some(Verdict::True), 1));
        assert_eq!(judge(1, 3, &[FALSE, FALSE, TRUE]), (Some(Verdict::True), 3));
        assert_eq!(judge(1, 3, &[FALSE]), (None, 3));
        assert_eq!(judge(2, 2, &[FALSE, TRUE, TRUE]), (Some(Verdict::True), 3));
        assert_eq!(judge(2, 2, &[TRUE, FALSE, FALSE]), (None, 3));
    }

    #[test]
    fn what_is_false_while_the_machine_stands_still_is_no_attempt() {
        assert_eq!(judge(1, 1, &[DISTURBED, DISTURBED, TRUE]), (Some(Verdict::True), 3));
        assert_eq!(judge(1, 1, &[DISTURBED, FALSE]), (None, 2), "it is false when nothing disturbs it");
        let not_judged = Verdict::NotJudged(DISTURBED_MOST, 2 * LATE);
        assert_eq!(judge(1, 1, &[DISTURBED]), (Some(not_judged), DISTURBED_MOST));
        assert_eq!(judge(1, 1, &[(true, true)]), (Some(Verdict::True), 1), "true is true in any case");
    }

    #[test]
    fn what_is_not_about_time_fails_at_once() {
        let mut made = 0;
        let mut fail = |how: fn()| {
            made = 0;
            let test = AssertUnwindSafe(|| {
                timed(3, "a test", || {
                    made += 1;
                    how();
                })
            });
            (message(&*catch_unwind(test).expect_err("it fails")), made)
        };
        let (why, made_of_memory) = fail(|| assert_eq!(1, 2, "memory differs"));
        assert!(why.contains("memory differs") && made_of_memory == 1, "{why} {made_of_memory}");
        let (why, made_of_time) = fail(|| claim(false, "too long".to_owned()));
        assert!(why.contains("too long") && made_of_time >= 3, "{why} {made_of_time}");
        let hangs = catch_unwind(|| within(1, "a measurement", || panic!("within it")));
        assert!(message(&*hangs.expect_err("it fails")).contains("within it"));
    }

    #[test]
    fn an_assertion_that_fails_says_why() {
        let panic =
            catch_unwind(|| asserted(1, "sums", || assert_eq!(1 + 1, 3, "a sum"))).expect_err("it fails");
        assert!(message(&*panic).contains("a sum"), "{}", message(&*panic));
    }
}
