//! What the source holds.

use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{Delta, Source, SourceConfig, Time};

#[test]
fn metadata_is_at_most_sixteen_bytes_per_page() {
    // Sizes just above a power of two have the most to spare, or the least.
    for pages in [300, 512, (1 << 17) + 64, (1 << 18) - 1, 1 << 18] {
        let config =
            SourceConfig { delta: Delta::Always { base_budget_bytes: 1 << 20 }, ..SourceConfig::default() };
        let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
        source.layout(Time(0), pages).expect("a layout");
        let per_page = source.metadata_bytes() as f64 / f64::from(pages);
        assert!(per_page <= 16.0, "{per_page}");
        assert!(source.memory_bytes() - source.metadata_bytes() < 64 << 10);
    }
}
