//! The command.

fn main() -> std::process::ExitCode {
    hikyaku_daemon::cli::main()
}
