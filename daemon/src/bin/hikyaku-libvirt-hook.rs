//! libvirt's hook.

fn main() -> std::process::ExitCode {
    hikyaku_daemon::libvirt::hook::main()
}
