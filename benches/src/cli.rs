//! `cargo lab …`: one line per subcommand; each module parses and runs its own arguments.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bench, compare, demo, guest, libvirt, link, sim, soak};

#[derive(Debug, Parser)]
#[command(
    name = "lab",
    bin_name = "cargo lab",
    about = "The laboratory of hikyaku: links, guests, measurements"
)]
struct Lab {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Move a working guest over an ocean and back, and show what it cost
    Demo(demo::DemoArgs),
    /// Run commands inside hosts joined by an emulated long-fat link
    Link(link::cli::LinkArgs),
    /// Run the test guest and show its heartbeats
    Guest(guest::cli::GuestArgs),
    /// Move a guest by hikyaku and by its peers, in turns, and set them side by side
    Compare(compare::CompareArgs),
    /// Move a guest in virtual time, by any policy
    Sim(sim::cli::SimArgs),
    /// Measure parts of the product
    Bench(bench::BenchArgs),
    /// Move a guest there and back, again and again
    Soak(soak::SoakArgs),
    /// Move a guest that belongs to libvirt by hikyaku, and by libvirt alone
    Libvirt(libvirt::LibvirtArgs),
}

/// Parses the process's arguments and runs the subcommand they name.
pub fn main() -> ExitCode {
    let done = match Lab::parse().what {
        What::Demo(args) => demo::run(args),
        What::Link(args) => link::cli::run(args),
        What::Guest(args) => guest::cli::run(args),
        What::Compare(args) => compare::run(&args),
        What::Sim(args) => sim::cli::run(&args),
        What::Bench(args) => bench::run(args),
        What::Soak(args) => soak::run(&args),
        What::Libvirt(args) => libvirt::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
