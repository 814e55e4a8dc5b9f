//! The engine as its callers see it.

mod migration;
mod receiver;
mod sim;
