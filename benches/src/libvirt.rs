//! libvirt's migrations by us, beside libvirt alone. The two hosts with a libvirt each are the tests': a program of theirs.

use std::process::{Command, ExitCode};

use anyhow::Context;

#[derive(Debug, clap::Args)]
pub struct LibvirtArgs {
    /// The link, by name: jgn, us, eu, …
    #[arg(long, default_value = "us")]
    link: String,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 512)]
    mem: u32,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, default_value = "oltp@5")]
    load: String,
    /// Of each
    #[arg(long, default_value_t = 3)]
    repeats: u32,
}

pub fn run(args: &LibvirtArgs) -> anyhow::Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut beside = Command::new(cargo);
    beside.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "hikyaku-tests",
        "--bin",
        "libvirt-beside",
        "--",
    ]);
    beside.args([&args.link, &args.mem.to_string(), &args.load, &args.repeats.to_string()]);
    beside.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = beside.status().context("cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
