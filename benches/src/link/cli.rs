//! `cargo lab link …`: run commands inside hosts joined by an emulated link.

use clap::Args;

/// Run commands inside hosts joined by an emulated long-fat link.
#[derive(Debug, Args)]
pub struct LinkArgs {}

/// Runs the subcommand.
pub fn run(_args: LinkArgs) -> anyhow::Result<()> {
    anyhow::bail!("the link emulator is not built into this version")
}
