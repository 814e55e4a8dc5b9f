//! The parts of the test guest that need no machine, run on the host: what a page holds and which one is next.
#![allow(dead_code, reason = "the modules belong to another program; not all of each is used here")]

#[path = "../guest/page.rs"]
mod page;
#[path = "../guest/params.rs"]
mod params;
#[path = "../guest/pattern.rs"]
mod pattern;
#[path = "../guest/rng.rs"]
mod rng;
#[path = "../guest/text.rs"]
mod text;

use page::{Content, Damage, Identity, Page, WORDS};
use params::{Corruption, Params, Pattern, Renewal};
use pattern::Chooser;
use rng::Rng;

fn page_of(index: u32, version: u32, content: Content) -> Page {
    let mut page = [0; WORDS];
    page::create(&mut page, Identity { index, version }, content, 1);
    page
}

#[test]
fn a_page_passes_only_as_itself() {
    let page = page_of(7, 3, Content::Text);
    assert_eq!(page::verify(&page, 7, 3), Ok(()));
    assert_eq!(page::verify(&page, 8, 3), Err(Damage::Identity));
    assert_eq!(page::verify(&page, 7, 2), Err(Damage::Identity));
    assert_eq!(page::verify(&[0; WORDS], 0, 0), Err(Damage::Sum));
}

#[test]
fn every_single_bit_counts() {
    let whole = page_of(7, 3, Content::Random);
    for word in 0..WORDS {
        for bit in [0, 17, 63] {
            let mut page = whole;
            page[word] ^= 1 << bit;
            assert_eq!(page::verify(&page, 7, 3), Err(Damage::Sum), "word {word} bit {bit}");
        }
    }
}

#[test]
fn a_page_of_halves_of_two_versions_is_bad_wherever_it_is_cut() {
    let (old, new) = (page_of(7, 3, Content::Text), page_of(7, 4, Content::Text));
    for cut in 1..WORDS {
        let mut page = old;
        page[..cut].copy_from_slice(&new[..cut]);
        assert!(page::verify(&page, 7, 4).is_err(), "cut at {cut}");
        assert!(page::verify(&page, 7, 3).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_changed_page_passes_and_has_changed_as_much_as_was_asked() {
    let mut rng = Rng::new(1, 2);
    let mut page = page_of(7, 0, Content::Text);
    for version in 1..2000 {
        let bytes = 8 + rng.below(4000) as usize;
        let before = page;
        page::change(&mut page, Identity { index: 7, version }, bytes, Content::Text, &mut rng);
        assert_eq!(page::verify(&page, 7, version as u16), Ok(()));
        let changed = (4..WORDS).filter(|&word| page[word] != before[word]).count();
        assert!(changed <= bytes / 8 && changed + 4 >= bytes / 8, "{changed} words for {bytes} bytes");
    }
}

#[test]
fn a_change_does_not_heal_a_damaged_page() {
    let mut page = page_of(7, 0, Content::Random);
    page[300] ^= 1;
    page::change(&mut page, Identity { index: 7, version: 1 }, 8, Content::Random, &mut Rng::new(1, 1));
    assert_eq!(page::verify(&page, 7, 1), Err(Damage::Sum));
}

#[test]
fn text_is_made_of_words_and_random_is_not() {
    let is_text =
        |word: &u64| word.to_le_bytes().iter().all(|byte| *byte == b' ' || byte.is_ascii_lowercase());
    assert!(page_of(7, 0, Content::Text)[4..].iter().all(is_text));
    assert!(!page_of(7, 0, Content::Random)[4..].iter().any(is_text));
}

#[test]
fn a_zero_page_is_zero_to_the_last_bit() {
    let mut page = [0; WORDS];
    assert!(page::is_zero(&page));
    for word in 0..WORDS {
        page[word] = 1 << 63;
        assert!(!page::is_zero(&page), "word {word}");
        page[word] = 0;
    }
}

/// How often each of `len` slots is drawn.
fn draws(pattern: Pattern, len: u32, count: u32) -> Vec<u32> {
    draws_with_root(pattern, len, count, 10)
}

fn draws_with_root(pattern: Pattern, len: u32, count: u32, zipf_root: u32) -> Vec<u32> {
    let (mut chooser, mut rng) = (Chooser::new(pattern, len, zipf_root), Rng::new(1, 1));
    let mut drawn = vec![0; len as usize];
    for _ in 0..count {
        drawn[chooser.next(&mut rng) as usize] += 1;
    }
    drawn
}

#[test]
fn seq_and_uniform_reach_every_slot() {
    assert_eq!(draws(Pattern::Seq, 100, 300), vec![3; 100]);
    assert!(draws(Pattern::Uniform, 100, 100_000).iter().all(|&count| (800..1200).contains(&count)));
}

#[test]
fn nine_in_ten_hot_writes_go_to_a_tenth_of_the_set() {
    let mut drawn = draws(Pattern::Hot, 1000, 100_000);
    drawn.sort_unstable_by(|a, b| b.cmp(a));
    let hot: u32 = drawn[..100].iter().sum();
    assert!((89_000..91_000).contains(&hot), "{hot}");
    assert!(drawn[999] > 0);
}

#[test]
fn zipf_draws_follow_the_ranks() {
    const LEN: u32 = 25_600;
    const DRAWS: u32 = 2_000_000;
    for root in [2, 10, 100] {
        let mut drawn = draws_with_root(Pattern::Zipf, LEN, DRAWS, root);
        drawn.sort_unstable_by(|a, b| b.cmp(a));
        let weight = |rank: u32| f64::from(rank).powf(1.0 / f64::from(root) - 1.0);
        let total: f64 = (1..=LEN).map(weight).sum();
        // What the most-written 100, 1,000 and 10,000 pages get, against the law itself.
        for top in [100, 1000, 10_000] {
            let law: f64 = (1..=top).map(weight).sum::<f64>() / total;
            let seen = f64::from(drawn[..top as usize].iter().sum::<u32>()) / f64::from(DRAWS);
            assert!(
                (seen - law).abs() < 0.04,
                "root {root}, top {top}: {seen:.3} of the writes, by the law {law:.3}"
            );
        }
    }
}

#[test]
fn sets_of_one_and_two_pages_work_with_every_pattern() {
    for pattern in [Pattern::Seq, Pattern::Uniform, Pattern::Hot, Pattern::Zipf] {
        assert_eq!(draws(pattern, 1, 100), [100]);
        assert_eq!(draws(pattern, 2, 100).iter().sum::<u32>(), 100);
    }
}

#[test]
fn the_command_line_is_understood_or_named() {
    let params = Params::parse(
        "console=ttyS0 seed=5 dup=1 text=2 random=3 pattern=zipf renewal=random corrupt=stale quiet",
    )
    .unwrap();
    assert_eq!((params.seed, params.shares.random), (5, 3));
    assert_eq!((params.pattern, params.renewal), (Pattern::Zipf, Renewal::Random));
    assert_eq!(params.corruption, Corruption::Stale);
    for wrong in ["rate=fast", "pattern=spiral", "hz=0"] {
        assert_eq!(Params::parse(wrong).unwrap_err(), wrong);
    }
    assert!(Params::parse("dup=500 text=400 random=101").is_err());
    assert!(Params::parse("change_min=9 change_max=8").is_err());
}
