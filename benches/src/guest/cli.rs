//! `cargo lab guest`: runs one test guest and shows what it says.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::load::Load;
use super::qemu::Qemu;
use super::spec::GuestSpec;

const READY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct GuestArgs {
    /// idle, seq, rand, hot, oltp, build, jbb or noise; NAME@MB for another rate
    #[arg(long, default_value = "oltp")]
    load: String,
    /// Memory, in MiB or with M or G
    #[arg(long, default_value = "512M", value_parser = parse_mib)]
    mem: u32,
    /// QEMU's machine type
    #[arg(long, default_value = "q35")]
    machine: String,
    /// tcg or kvm
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// How long to watch
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Print every heartbeat instead of one line per second
    #[arg(long)]
    beats: bool,
    /// Further arguments for QEMU
    #[arg(last = true)]
    qemu_args: Vec<String>,
}

pub fn run(args: GuestArgs) -> anyhow::Result<ExitCode> {
    let spec = GuestSpec::new(args.mem, Load::preset(&args.load)?)
        .machine(&args.machine)
        .accel(&args.accel)
        .args(args.qemu_args);
    let qemu = Qemu::start(&spec)?;
    let ready = qemu.wait_ready(READY_TIMEOUT)?;
    println!(
        "ready after {} ms (filled in {} ms): {} pages, {} zero, {} dup, {} text, {} random; {} in the working set",
        ready.at.duration_since(qemu.started()).as_millis(),
        ready.fill_ms,
        ready.pages,
        ready.zero,
        ready.dup,
        ready.text,
        ready.random,
        ready.set
    );
    let mut shown = 0;
    for second in 1..=args.seconds {
        thread::sleep(Duration::from_secs(1));
        let window = Qemu::last(Duration::from_secs(1));
        if args.beats {
            shown = qemu.console().look(|log| {
                for beat in &log.heartbeats[shown..] {
                    let since = beat.at.duration_since(ready.at).as_secs_f64() * 1e3;
                    println!(
                        "{since:10.1} ms hb={} t={} writes={} sweeps={} bad={}",
                        beat.number, beat.guest_ms, beat.writes, beat.sweeps, beat.bad
                    );
                }
                log.heartbeats.len()
            });
        } else {
            let (number, sweeps) =
                qemu.console().last_heartbeat().map_or((0, 0), |beat| (beat.number, beat.sweeps));
            println!(
                "{second:3} s  hb={number} writes/s={:.0} longest gap={:.1} ms sweeps={sweeps} bad={}",
                qemu.console().writes_per_s(window.clone()),
                qemu.console().longest_gap(window).length.as_secs_f64() * 1e3,
                qemu.console().bad()
            );
        }
    }
    let reports = qemu.console().reports();
    reports.iter().for_each(|report| println!("{report}"));
    Ok(if qemu.console().bad() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse_mib(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
        _ => (text, 1),
    };
    let mib = digits.parse::<u32>().ok().and_then(|value| value.checked_mul(factor));
    mib.filter(|mib| (32..=16384).contains(mib)).ok_or_else(|| format!("{text:?} is not between 32M and 16G"))
}
