//! `cargo lab bench memory`: what the daemons hold in memory while a guest moves, beside what they were allowed.
//!
//! A guest that keeps writing is moved once, between daemons that have done nothing before. What counts is the largest
//! resident size the kernel has seen of each (`VmHWM`). Each daemon is judged by the budgets of its own part in the move, not by
//! those of both. Sockets' buffers are the kernel's memory and are not in it.

use crate::guest::Load;
use crate::guest::locate::QemuBinary;
use crate::link::Link;
use crate::link::cli::named;
use crate::site::{Programs, Site};
use crate::travel::{Manner, Traveller};
use anyhow::ensure;
use clap::Args;
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{
    Action, ChunkSeq, EncodeScratch, LinkStats, PageBytes, PageId, Receiver, ReceiverConfig, Sink, Source,
    SourceConfig, Time,
};
use std::convert::Infallible;
use std::process::ExitCode;

/// What a daemon may need beside its budgets.
const BASE_BYTES: u64 = 256 << 20;
/// Metadata per page of the guest.
const SOURCE_BYTES_PER_PAGE: f64 = 16.0;
const DESTINATION_BYTES_PER_PAGE: f64 = 4.0;
const PAGES_PER_MIB: u32 = 256;
const HOSTS: [&str; 2] = ["tokyo", "seattle"];

#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// The link, by name: lan, jgn, us, eu, …
    #[arg(long, default_value = "us")]
    link: String,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 1024)]
    mem: u32,
    /// What the guest does: NAME[@MB/s]
    #[arg(long, default_value = "rand@20")]
    load: String,
    /// The source's budget for pages that wait, in MiB
    #[arg(long, default_value_t = 256)]
    staging: u64,
    /// The destination's budget for what has arrived and is not in QEMU yet, in MiB
    #[arg(long, default_value_t = 128)]
    credit: u64,
    /// The destination's budget for device state, in MiB
    #[arg(long, default_value_t = 128)]
    tail: u64,
    /// The source's budget for bases of deltas, in MiB
    #[arg(long, default_value_t = 256)]
    bases: u64,
    /// The budget of each for contents that occur on many pages, in MiB
    #[arg(long, default_value_t = 16)]
    dictionary: u64,
}

pub fn run(args: &MemoryArgs) -> anyhow::Result<ExitCode> {
    let profile = named(&args.link).map_err(anyhow::Error::msg)?;
    let load = Load::preset(&args.load)?;
    QemuBinary::find()?;
    println!("building hikyakud (release) …");
    let programs = Programs::build()?;
    let network = Link::builder().hosts(HOSTS).profile(profile).build()?;
    let sites = Site::pair(&network, HOSTS, &programs, &budgets(args))?;
    let at_rest = [sites[0].rss_bytes()?, sites[1].rss_bytes()?];

    println!("a guest of {} MiB ({}) moves over: {profile}", args.mem, args.load);
    let mut guest = Traveller::start(args.mem, &load)?;
    let row = guest.travel(&network, &sites[0], &sites[1], &Manner::default())?;
    println!(
        "total {:.2?}, gap {} ms, {:.1} MB on the wire, {:.0} writes/s, bad={}\n",
        row.total,
        row.gap.as_millis(),
        row.wire_bytes as f64 / 1e6,
        row.writes_per_s,
        row.bad
    );

    let dictionary = ("dictionary", args.dictionary);
    let source = vec![("staging", args.staging), ("bases", args.bases), dictionary];
    let destination = vec![("credit", args.credit), ("tail", args.tail), dictionary];
    let parts =
        [Part { role: "source", budgets: source }, Part { role: "destination", budgets: destination }];
    let mut passed = row.is_whole();
    for ((site, part), at_rest) in sites.iter().zip(parts).zip(at_rest) {
        passed &= part.print(site, at_rest)?;
    }
    passed &= print_metadata(args.mem * PAGES_PER_MIB)?;
    println!("{}", if passed { "PASS" } else { "FAIL" });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn budgets(args: &MemoryArgs) -> String {
    format!(
        "[memory]\nstaging = \"{}MiB\"\ncredit = \"{}MiB\"\ntail = \"{}MiB\"\nbases = \"{}MiB\"\n\
         dictionary = \"{}MiB\"\n",
        args.staging, args.credit, args.tail, args.bases, args.dictionary
    )
}

/// A daemon's part in the move, and its budgets in MiB.
struct Part {
    role: &'static str,
    budgets: Vec<(&'static str, u64)>,
}

impl Part {
    /// Is the daemon's peak below what it may be?
    fn print(&self, site: &Site, at_rest_bytes: u64) -> anyhow::Result<bool> {
        let peak_bytes = site.rss_peak_bytes()?;
        let limit_bytes = BASE_BYTES + self.budgets.iter().map(|(_, mib)| mib << 20).sum::<u64>();
        let below = peak_bytes < limit_bytes;
        let budgets: Vec<_> = self.budgets.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
        println!(
            "{:<12} {:<8} resident: peak {:>4} MiB, at rest {:>3}, now {:>4}; budgets: {}; limit {} + those = {} MiB: {}",
            self.role,
            site.name(),
            peak_bytes >> 20,
            at_rest_bytes >> 20,
            site.rss_bytes()? >> 20,
            budgets.join(", "),
            BASE_BYTES >> 20,
            limit_bytes >> 20,
            verdict(below),
        );
        Ok(below)
    }
}

fn print_metadata(pages: u32) -> anyhow::Result<bool> {
    let metadata = Metadata::of(pages)?;
    let below =
        metadata.source <= SOURCE_BYTES_PER_PAGE && metadata.destination <= DESTINATION_BYTES_PER_PAGE;
    println!(
        "metadata per page of {pages}: source {:.2} bytes (limit {SOURCE_BYTES_PER_PAGE}), destination {:.2} (limit \
         {DESTINATION_BYTES_PER_PAGE}): {}",
        metadata.source,
        metadata.destination,
        verdict(below)
    );
    Ok(below)
}

fn verdict(passed: bool) -> &'static str {
    if passed { "PASS" } else { "FAIL" }
}

/// Bytes per page of the guest, every page of which has been moved.
struct Metadata {
    source: f64,
    destination: f64,
}

impl Metadata {
    /// By the engine's own account, from both of its ends and a guest that is all zero between them.
    fn of(pages: u32) -> anyhow::Result<Metadata> {
        let mut source =
            Source::new(SourceConfig::default(), Box::new(Adaptive::new(AdaptiveConfig::default())));
        source.layout(Time(0), pages)?;
        source.zero(Time(0), PageId(0), pages);
        let mut receiver = Receiver::new(ReceiverConfig::default());
        receiver.layout(pages)?;

        let mut written = Written(0);
        let mut scratch = EncodeScratch::default();
        source.guest_stopped(Time(0));
        while let Some(action) = source.poll(Time(0)) {
            match action {
                Action::Encode(job) => source.encoded(Time(0), job.run(&mut scratch)),
                Action::Send(chunk) => {
                    receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut written)?;
                    source.link(Time(0), LinkStats::default());
                    source.acked(Time(0), chunk.seq, &[] as &[(ChunkSeq, ChunkSeq)]);
                }
                Action::Abort(why) => return Err(why.into()),
                Action::Switch | Action::Throttle(_) | Action::WakeAt(_) => {}
            }
        }
        ensure!(written.0 == u64::from(pages), "{} of {pages} pages were written", written.0);
        let per_page = |bytes: usize| bytes as f64 / f64::from(pages);
        Ok(Metadata {
            source: per_page(source.metadata_bytes()),
            destination: per_page(receiver.metadata_bytes()),
        })
    }
}

/// Pages written so far.
struct Written(u64);

impl Sink for Written {
    type Error = Infallible;
    fn opaque(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn zero(&mut self, _: PageId, run: u32) -> Result<(), Infallible> {
        self.0 += u64::from(run);
        Ok(())
    }
    fn page(&mut self, _: PageId, _: &PageBytes) -> Result<(), Infallible> {
        self.0 += 1;
        Ok(())
    }
    fn delta(&mut self, _: PageId, _: &[u8]) -> Result<(), Infallible> {
        self.0 += 1;
        Ok(())
    }
    fn raw(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn tail(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_within_its_limits_for_any_size() {
        for pages in [512, 100_000, 1 << 20] {
            let metadata = Metadata::of(pages).unwrap();
            assert!(metadata.source <= SOURCE_BYTES_PER_PAGE, "{}", metadata.source);
            assert!(metadata.destination <= DESTINATION_BYTES_PER_PAGE, "{}", metadata.destination);
        }
    }
}
