//! What the source makes of the pages it is fed: which go first, in which form, and when.

use hikyaku_engine::codec::{DecodeScratch, Decoded, decode};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{
    Action, Chunk, EncodeScratch, LinkStats, PAGE_BYTES, PageBytes, PageId, Source, SourceConfig, SyncInfo,
    Time,
};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

struct Rig {
    source: Source,
    scratch: EncodeScratch,
    now: u64,
    sent: Vec<Chunk>,
}

impl Rig {
    fn new(config: SourceConfig, pages: u32) -> Rig {
        let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
        source.layout(Time(0), pages).expect("a layout");
        // Nothing leaves before there is a link with room.
        source.link(Time(0), LinkStats { credit_bytes: 0, in_flight_bytes: 1, ..link(0) });
        Rig { source, scratch: EncodeScratch::default(), now: 0, sent: Vec::new() }
    }

    fn page(&mut self, page: u32, content: &PageBytes) {
        self.source.page(Time(self.now), PageId(page), content);
    }

    fn link(&mut self, stats: LinkStats) {
        self.source.link(Time(self.now), stats);
    }

    /// Does what the source wants done, for as long as it does.
    fn act(&mut self) {
        while let Some(action) = self.source.poll(Time(self.now)) {
            match action {
                Action::Encode(job) => {
                    let encoded = job.run(&mut self.scratch);
                    self.source.encoded(Time(self.now), encoded);
                }
                Action::Send(chunk) => self.sent.push(chunk),
                _ => {}
            }
        }
    }

    /// Everything sent so far has been applied, and as much as wanted may be sent.
    fn acked(&mut self) {
        let last = self.source.progress().chunks_issued;
        self.source.acked(Time(self.now), last, &[]);
        self.link(link(0));
    }

    fn after(&mut self, ms: u64) {
        self.now += ms * MS;
    }

    /// The pages of the chunks sent since the last call, in their order: of each its number and form.
    fn forms(&mut self) -> Vec<(u32, Form)> {
        let mut forms = Vec::new();
        for chunk in self.sent.drain(..) {
            let mut scratch = DecodeScratch::default();
            let Ok(Decoded::Pages(pages)) = decode(&chunk.payload, 1 << 20, &mut scratch) else {
                panic!("no pages")
            };
            forms.extend(pages.zero_runs().map(|(page, _)| (page.0, Form::Zero)));
            forms.extend(pages.wholes().map(|(page, _)| (page.0, Form::Whole)));
            forms.extend(pages.deltas().map(|(page, ..)| (page.0, Form::Delta)));
            forms.extend(pages.refs().map(|(page, ..)| (page.0, Form::Reference)));
        }
        forms
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Zero,
    Whole,
    Delta,
    Reference,
}

/// A link of 1 Gbit/s and 100 ms.
fn link(unsent_bytes: u64) -> LinkStats {
    LinkStats {
        rtt_ns: 100 * MS,
        min_rtt_ns: 100 * MS,
        goodput_bytes_per_s: 125_000_000,
        unsent_bytes,
        ..LinkStats::default()
    }
}

/// Bytes that do not compress, and differ from page to page.
fn noise(seed: u64) -> PageBytes {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut page = [0; PAGE_BYTES];
    for word in page.as_chunks_mut::<8>().0 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *word = x.to_le_bytes();
    }
    page
}

#[test]
fn what_comes_again_and_again_goes_last() {
    let one_page_chunks = SourceConfig { chunk_bytes: PAGE_BYTES, ..SourceConfig::default() };
    let mut rig = Rig::new(one_page_chunks, 64);
    for round in 0..8 {
        for page in 10..14 {
            rig.page(page, &noise(round * 100 + u64::from(page)));
        }
    }
    // Hotter than these, which come now.
    for page in [1, 2, 40, 41] {
        rig.page(page, &noise(page.into()));
    }
    rig.link(link(0));
    rig.act();
    let order: Vec<u32> = rig.forms().into_iter().map(|(page, _)| page).collect();
    assert_eq!(order, [1, 2, 40, 41, 10, 11, 12, 13]);
    assert_eq!(rig.source.progress().superseded, 28);
}

#[test]
fn a_page_that_cools_is_as_good_as_any_other() {
    let one_page_chunks = SourceConfig { chunk_bytes: PAGE_BYTES, ..SourceConfig::default() };
    let mut rig = Rig::new(one_page_chunks, 64);
    for round in 0..8 {
        rig.page(10, &noise(round));
    }
    rig.link(link(0));
    rig.act();
    rig.forms();
    rig.after(60_000);
    rig.act();
    rig.link(LinkStats { credit_bytes: 0, in_flight_bytes: 1, ..link(0) });
    rig.page(10, &noise(99));
    rig.page(11, &noise(100));
    rig.link(link(0));
    rig.act();
    let order: Vec<u32> = rig.forms().into_iter().map(|(page, _)| page).collect();
    assert_eq!(order, [10, 11]);
}

#[test]
fn each_page_goes_in_the_cheapest_form_there_is() {
    let mut rig = Rig::new(SourceConfig::default(), 64);
    let shared = noise(7);
    for page in 0..3 {
        rig.page(page, &shared);
    }
    rig.page(5, &[0; PAGE_BYTES]);
    let mut changed = noise(8);
    rig.page(6, &changed);
    rig.link(link(0));
    rig.act();
    let mut forms = rig.forms();
    forms.sort_by_key(|(page, _)| *page);
    let whole = Form::Whole;
    assert_eq!(forms, [(0, whole), (1, whole), (2, Form::Reference), (5, Form::Zero), (6, whole)]);

    rig.acked();
    changed[100..164].fill(1);
    rig.page(6, &changed);
    rig.page(2, &shared);
    rig.act();
    assert_eq!(rig.forms(), [(6, Form::Delta)], "page 2 is what it was");
    assert_eq!(rig.source.progress().unchanged, 1);
}

#[test]
fn a_gigabyte_of_zeros_takes_less_than_a_hundred_bytes() {
    let pages = 1 << 18;
    let mut rig = Rig::new(SourceConfig::default(), pages);
    rig.source.zero(Time(0), PageId(0), pages);
    rig.link(link(0));
    rig.act();
    let bytes: usize = rig.sent.iter().map(|chunk| chunk.payload.len()).sum();
    assert!(bytes < 100, "{bytes}");
}

#[test]
fn credit_covers_records_too() {
    let mut rig = Rig::new(SourceConfig { ahead_bytes: 1 << 30, ..SourceConfig::default() }, 1 << 16);
    let shared = noise(1);
    for page in 0..1 << 15 {
        match page % 3 {
            0 => rig.source.zero(Time(0), PageId(2 * page), 1),
            1 => rig.page(2 * page, &shared),
            _ => rig.page(2 * page, &noise(page.into())),
        }
    }
    for credit_bytes in [200 << 10, 300 << 10, 1 << 20] {
        rig.link(LinkStats { credit_bytes, in_flight_bytes: 1, ..link(0) });
        rig.act();
        let bytes: usize = rig.sent.drain(..).map(|chunk| chunk.payload.len()).sum();
        assert!(bytes as u64 <= credit_bytes, "{bytes} of {credit_bytes}");
    }
}

/// A source may not look for zeros: `zero-page-detection=none` of QEMU.
#[test]
fn pages_that_turn_out_to_be_zero_fill_no_chunk_beyond_its_runs() {
    let config = SourceConfig { chunk_zero_runs: 16, ..SourceConfig::default() };
    let mut rig = Rig::new(config, 2048);
    (0..1024).for_each(|page| rig.page(2 * page, &[0; PAGE_BYTES]));
    rig.link(link(0));
    rig.act();
    // Too few for a chunk wait until the wire is dry.
    rig.acked();
    rig.act();
    let mut zeros = 0;
    for chunk in &rig.sent {
        let mut scratch = DecodeScratch::default();
        let Ok(Decoded::Pages(pages)) = decode(&chunk.payload, 1 << 20, &mut scratch) else {
            panic!("no pages")
        };
        let runs = pages.zero_runs().count();
        assert!(runs <= 16, "{runs} runs in a chunk");
        zeros += pages.zero_runs().map(|(_, run)| run).sum::<u32>();
    }
    assert_eq!(zeros, 1024);
}

#[test]
fn chunks_are_made_ahead_only_while_the_windows_open() {
    for (ms, least, most) in [(200, 20 << 20, 30 << 20), (1500, 2 << 20, 4 << 20)] {
        let mut rig = Rig::new(SourceConfig { ahead_bytes: 24 << 20, ..SourceConfig::default() }, 1 << 14);
        (0..1 << 14).for_each(|page| rig.page(page, &noise(page.into())));
        rig.after(ms);
        // Nothing is taken by a lane.
        rig.link(link(0));
        rig.act();
        let bytes: usize = rig.sent.iter().map(|chunk| chunk.payload.len()).sum();
        assert!((least..most).contains(&bytes), "{ms} ms: {bytes}");
    }
}

#[test]
fn the_next_pass_is_not_due_before_some_of_what_waits_has_gone() {
    let mut rig = Rig::new(SourceConfig::default(), 1 << 15);
    rig.link(LinkStats { credit_bytes: 0, in_flight_bytes: 1, ..link(0) });
    (0..25_000).for_each(|page| rig.page(page, &noise(page.into())));
    assert_eq!(rig.source.intake_resumes_at(), None);
    rig.page(0, &noise(1));
    // 100 MB take 0.8 s, an eighth of which is 0.1 s.
    let due = rig.source.intake_resumes_at().expect("a pass has ended");
    assert!((90..120).contains(&(due.0 / MS)), "{} ms", due.0 / MS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is fed, sent, lost for a while and acknowledged: what is held stays within the budgets.
    #[test]
    fn budgets_are_never_exceeded(
        staging_kib in 64..2048usize,
        bases_kib in 0..2048usize,
        dictionary_slots in 0..64u16,
        steps in prop::collection::vec((0..6u8, 0..512u32, any::<u8>()), 1..400),
    ) {
        let config = SourceConfig {
            staging_bytes: staging_kib << 10,
            pool_bytes: 64 << 10,
            delta: hikyaku_engine::Delta::Always { base_budget_bytes: bases_kib << 10 },
            dictionary_slots,
            ahead_bytes: 0,
            window_bytes: 64 << 10,
            ..SourceConfig::default()
        };
        let tables_bytes = 256 << 10;
        let allowed = config.staging_bytes
            + (bases_kib << 10)
            + usize::from(dictionary_slots) * (PAGE_BYTES + 256)
            + config.pool_bytes
            + tables_bytes;
        let mut rig = Rig::new(config, 512);
        for (what, page, content) in steps {
            match what {
                // A page may be fed whenever there is room for it.
                0..=2 => {
                    for at in 0..16 {
                        if rig.source.intake_room() >= 2 * PAGE_BYTES {
                            rig.page((page + at) % 512, &noise(u64::from(content % 8)));
                        }
                    }
                }
                3 => rig.source.zero(Time(rig.now), PageId(page.min(500)), 8),
                4 => {
                    rig.link(link(0));
                    rig.act();
                    rig.sent.clear();
                }
                _ => rig.acked(),
            }
            rig.after(u64::from(content));
            let held = rig.source.memory_bytes() - rig.source.metadata_bytes();
            prop_assert!(held <= allowed, "{held} of {allowed}");
        }
    }
}

#[test]
fn what_is_encoded_and_waits_for_its_turn_is_left_once() {
    let mut rig = Rig::new(SourceConfig { chunk_bytes: PAGE_BYTES, ..SourceConfig::default() }, 16);
    rig.link(link(0));
    (0..4).for_each(|page| rig.page(page, &noise(page.into())));
    let mut jobs = Vec::new();
    while let Some(action) = rig.source.poll(Time(0)) {
        if let Action::Encode(job) = action {
            jobs.push(job);
        }
    }
    assert_eq!(jobs.len(), 4);
    let before = rig.source.progress().residual_bytes_encoded;
    // All but the first come back.
    for job in jobs.drain(1..) {
        let encoded = job.run(&mut rig.scratch);
        rig.source.encoded(Time(0), encoded);
    }
    let after = rig.source.progress().residual_bytes_encoded;
    assert!(after <= before + 1000, "{before}, then {after}");
}

#[test]
fn what_comes_again_is_sampled_before_its_turn() {
    const PER_CHUNK: u32 = 4;
    let chunk_bytes = PER_CHUNK as usize * PAGE_BYTES;
    let mut rig = Rig::new(SourceConfig { chunk_bytes, ..SourceConfig::default() }, 4096);
    let again = 0..16;
    again.clone().for_each(|page| rig.page(page, &noise(page.into())));
    rig.link(link(0));
    rig.act();
    rig.acked();
    rig.sent.clear();
    // Nothing may leave, while these become hot, and many come for the first time.
    rig.link(LinkStats { credit_bytes: 0, in_flight_bytes: 1, ..link(0) });
    for round in 0..8 {
        for page in again.clone() {
            let mut content = noise(page.into());
            content[0] = round;
            rig.page(page, &content);
        }
    }
    (1000..3000).for_each(|page| rig.page(page, &noise(page.into())));
    // Of the pages of the next hundred chunks, those that went as deltas.
    let mut next = |ms| {
        rig.after(ms);
        rig.link(link(0));
        let mut jobs = 0;
        while jobs < 100
            && let Some(action) = rig.source.poll(Time(rig.now))
        {
            match action {
                Action::Encode(job) => {
                    jobs += 1;
                    let encoded = job.run(&mut rig.scratch);
                    rig.source.encoded(Time(rig.now), encoded);
                }
                Action::Send(chunk) => rig.sent.push(chunk),
                _ => {}
            }
        }
        rig.forms().into_iter().filter(|(_, form)| *form == Form::Delta).count()
    };
    assert_eq!(next(10), PER_CHUNK as usize);
    // Believed for a while, and then looked at again.
    assert_eq!(next(10), 0);
    assert_eq!(next(500), PER_CHUNK as usize);
}

#[test]
fn a_guest_is_not_stopped_while_nothing_comes_back() {
    let mut rig = Rig::new(SourceConfig::default(), 64);
    (0..64).for_each(|page| rig.page(page, &noise(page.into())));
    // All of it was gone over, and nothing is dirty since.
    rig.source.idle(Time(0));
    rig.source.idle(Time(0));
    rig.source.sync(Time(0), SyncInfo { count: Some(3), dirty_pages: Some(0) });
    let stopped = |rig: &mut Rig, ms: u64| {
        (0..ms / 10).find(|_| {
            rig.after(10);
            rig.link(link(0));
            let mut switch = false;
            while let Some(action) = rig.source.poll(Time(rig.now)) {
                match action {
                    Action::Encode(job) => {
                        let encoded = job.run(&mut rig.scratch);
                        rig.source.encoded(Time(rig.now), encoded);
                    }
                    Action::Switch => switch = true,
                    _ => {}
                }
            }
            switch
        })
    };
    // By the figures next to nothing is left; but of what went, nothing was applied.
    rig.source.outage(Time(0), true);
    assert_eq!(stopped(&mut rig, 1500), None);
    rig.source.outage(Time(rig.now), false);
    assert_eq!(stopped(&mut rig, 10_000), None);
    let last = rig.source.progress().chunks_issued;
    rig.source.acked(Time(rig.now), last, &[]);
    assert!(stopped(&mut rig, 500).is_some());
}
