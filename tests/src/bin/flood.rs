//! `flood TO ATTEMPTS SECONDS`: see `hikyaku_tests::flood`. Prints how many connections it made.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match arguments.as_slice() {
        [to, attempts, seconds] => (to.parse().ok(), attempts.parse().ok(), seconds.parse().ok()),
        _ => (None, None, None),
    };
    let (Some(to), Some(attempts), Some(seconds)) = parsed else {
        eprintln!("usage: flood TO ATTEMPTS SECONDS");
        return ExitCode::from(2);
    };
    println!("{}", hikyaku_tests::flood::run(to, attempts, Duration::from_secs_f64(seconds)));
    ExitCode::SUCCESS
}
