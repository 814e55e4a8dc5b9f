//! The engine as its callers see it.

mod base_store;
mod dictionary;
mod interleaved;
mod memory;
mod model;
mod payload;
mod receiver;
mod source;
