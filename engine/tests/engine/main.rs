//! The engine as its callers see it.

mod dictionary;
mod migration;
mod payload;
mod receiver;
mod sim;
mod source;
