//! `faulty-proxy LISTEN TO first|later OFFSET xor=BITS|truncate`: see `hikyaku_tests::proxy`.

use std::process::ExitCode;

use hikyaku_tests::proxy::{Fault, serve};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, to, on, at, kind] = arguments.as_slice() else {
        eprintln!("usage: faulty-proxy LISTEN TO first|later OFFSET xor=BITS|truncate");
        return ExitCode::from(2);
    };
    let (Ok(listen), Ok(to), Some(fault)) = (listen.parse(), to.parse(), Fault::parse([on, at, kind])) else {
        eprintln!("faulty-proxy: cannot understand {arguments:?}");
        return ExitCode::from(2);
    };
    match serve(listen, to, fault) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faulty-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}
