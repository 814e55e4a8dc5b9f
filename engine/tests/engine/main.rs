//! The engine as its callers see it.

mod base_store;
mod dictionary;
mod memory;
mod model;
mod payload;
mod receiver;
mod source;
