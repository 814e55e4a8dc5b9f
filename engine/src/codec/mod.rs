//! The payload of a chunk.
