//! `cargo lab`: see [`hikyaku_lab::cli`].

fn main() -> std::process::ExitCode {
    hikyaku_lab::cli::main()
}
