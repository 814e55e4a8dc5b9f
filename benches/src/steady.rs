//! Claims about time, judged only while the machine gives the time.
//!
//! A virtual machine whose host is short of CPU stands still for tenths of a second, and whatever was measured meanwhile
//! says nothing about the program. So a claim that is not found true while the machine stood still is neither right
//! nor wrong: it is measured again. One that could not be measured at all is listed where a test run ends
//! (`HIKYAKU_UNJUDGED_LOG`), and is no success.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
pub fn within(attempts: usize, what: &str, measure: impl FnMut() -> Result<(), String>) {
    judged(1, attempts, LATE, what, measure);
}

/// What holds always: once may be chance, so of `2 * times - 1` attempts more are true than are not.
#[track_caller]
pub fn mostly(times: usize, what: &str, measure: impl FnMut() -> Result<(), String>) {
    judged(times, times, LATE, what, measure);
}

/// What a test asserts about seconds, all of it, from its beginning.
#[track_caller]
pub fn asserted(attempts: usize, what: &str, mut test: impl FnMut()) {
    let measure = || catch_unwind(AssertUnwindSafe(&mut test)).map_err(|panic| message(&*panic));
    judged(1, attempts, VERY_LATE, what, measure);
}

/// So many are true before so many are not.
#[track_caller]
fn judged(
    true_wanted: usize,
    false_most: usize,
    late_most: Duration,
    what: &str,
    mut measure: impl FnMut() -> Result<(), String>,
) {
    let (mut were_true, mut were_false, mut disturbed, mut disturbed_for) =
        (0, Vec::new(), 0, Duration::ZERO);
    while were_true < true_wanted {
        let began = Instant::now();
        let (measured, late) = watched(&mut measure);
        match measured {
            Ok(()) => were_true += 1,
            Err(why) if late > late_most => {
                println!("{what}: not counted, for the machine stood still for {late:.0?}: {why}");
                disturbed += 1;
                disturbed_for += began.elapsed();
                if disturbed == DISTURBED_MOST || disturbed_for > DISTURBED_FOR {
                    return unjudged(what, disturbed, late);
                }
                thread::sleep(REST);
            }
            Err(why) => were_false.push(why),
        }
        assert!(
            were_false.len() < false_most,
            "{what}: {were_false:?}, {were_true} were true, and {disturbed} times the machine stood still"
        );
    }
}

fn unjudged(what: &str, disturbed: usize, late: Duration) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("{test}: {what}: {disturbed} times the machine stood still, at last for {late:.0?}");
    println!("not judged: {line}");
    if let Some(log) = std::env::var_os("HIKYAKU_UNJUDGED_LOG") {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(log);
        if let Err(error) = log.and_then(|mut log| writeln!(log, "{line}")) {
            panic!("a log of what was not judged: {error}");
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Beside something, how late a thread was at most that wanted to sleep for a millisecond.
fn watched<T>(something: impl FnOnce() -> T) -> (T, Duration) {
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
        let value = something();
        over.store(true, Ordering::Relaxed);
        (value, watch.join().unwrap_or(Duration::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_true_is_measured_once_and_what_is_false_as_often_as_it_may_be() {
        let mut measured = 0;
        within(3, "true", || {
            measured += 1;
            Ok(())
        });
        assert_eq!(measured, 1);
        let mut answers = [Err("no".to_owned()), Ok(()), Err("no".to_owned()), Ok(())].into_iter();
        mostly(2, "mostly true", || answers.next().unwrap());
        let panic = catch_unwind(|| within(2, "false", || Err("no".to_owned()))).unwrap_err();
        assert!(message(&*panic).contains("false: [\"no\", \"no\"]"), "{}", message(&*panic));
        assert!(catch_unwind(|| asserted(2, "false", || assert_eq!(1, 2, "numbers"))).is_err());
    }

    #[test]
    fn who_sleeps_too_long_is_noticed() {
        // A thread is late if it is not let: here by a clock of its own.
        let ((), late) = watched(|| thread::sleep(Duration::from_millis(20)));
        assert!(late < Duration::from_secs(5), "{late:?}");
    }
}
