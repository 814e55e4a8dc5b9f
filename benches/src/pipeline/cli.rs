//! `cargo lab bench pipeline`

use std::process::ExitCode;

use clap::Args;

use super::content::{Content, Corpus};
use super::meter::{Figure, Meter};
use super::{codec, intake, stages};

/// What the codec's parts go over at most: they need no more to be measured, and some are slow.
const CODEC_PAGES: u32 = 32 * 256;

#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// Guest memory each stage goes over, in MiB
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(8..=1024))]
    mib: u32,
    /// How often each stage is run; the median is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: u32,
    /// One JSON object per figure instead of a table
    #[arg(long)]
    json: bool,
    /// Fail if intake and staging are slower than this on a stream of pages, in GB/s, first pass and all
    #[arg(long)]
    require_pages: Option<f64>,
    /// Fail if intake and staging are slower than this on zero pages, in GB/s of guest memory
    #[arg(long)]
    require_zero: Option<f64>,
    /// Fail if the difference of a page that is mostly equal to its base is found slower than this, in GB/s
    #[arg(long)]
    require_delta: Option<f64>,
}

pub fn run(args: &PipelineArgs) -> anyhow::Result<ExitCode> {
    let meter = Meter::new(args.repeats);
    let pages = args.mib * 256;
    let mut figures = Vec::new();
    let mut show = |figure: Figure| {
        println!("{}", if args.json { figure.json() } else { figure.line() });
        figures.push(figure);
    };
    if !args.json {
        println!("{}", Figure::headline());
    }
    let mut slow = Vec::new();
    for (intake, least) in
        [(intake::pages(&meter, pages)?, args.require_pages), (intake::zero(&meter)?, args.require_zero)]
    {
        if least.is_some_and(|least| intake.whole.gb_per_s() < least) {
            slow.push("intake and staging");
        }
        for figure in [intake.first, intake.later, intake.whole] {
            show(figure);
        }
    }
    show(stages::zero_test(&meter, pages)?);
    for content in [Content::Text, Content::Random, Content::Mixed] {
        let corpus = Corpus::new(content, pages);
        stages::all(&meter, &corpus, &mut show)?;
    }
    let deltas = codec::all(&meter, pages.min(CODEC_PAGES), &mut show)?;
    if args.require_delta.is_some_and(|least| deltas < least) {
        slow.push("deltas");
    }
    if !slow.is_empty() {
        eprintln!("lab: slower than required: {}", slow.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
