//! Throughput of the stages a page goes through, each alone and all together.
