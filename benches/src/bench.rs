//! `cargo lab bench …`: one line per benchmark; each module parses and runs its own arguments.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{bytes, gap, goodput, memory, pipeline, switchover, transport};

/// Measure parts of the product
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// GB/s per core of each stage a page goes through, and of all together
    Pipeline(pipeline::cli::PipelineArgs),
    /// What a move puts on the wire, encoding by encoding, beside what an oracle would
    Bytes(bytes::BytesArgs),
    /// How long a guest is silent that is moved over a link whose queue is full
    Gap(gap::GapArgs),
    /// The gap of the fast switch-over beside that of the safe one
    Switchover(switchover::SwitchoverArgs),
    /// What the daemons hold in memory while a guest moves, beside their budgets
    Memory(memory::MemoryArgs),
    /// What the transport makes of a long fat link
    Goodput(goodput::GoodputArgs),
    /// The transport beside plain TCP, and the criteria it has to meet
    Transport(transport::TransportArgs),
}

pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        Bench::Pipeline(args) => pipeline::cli::run(&args),
        Bench::Bytes(args) => bytes::run(&args),
        Bench::Gap(args) => gap::run(&args),
        Bench::Switchover(args) => switchover::run(&args),
        Bench::Memory(args) => memory::run(&args),
        Bench::Goodput(args) => goodput::run(&args),
        Bench::Transport(args) => transport::run(&args),
    }
}
