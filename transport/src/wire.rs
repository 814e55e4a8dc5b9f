//! Bytes on the wire: greetings, frames and control messages. Byte tables: `docs/wire-format.md`; everything is
//! little-endian. Codecs only: nothing here does I/O, keeps state or decides.

pub mod control;
pub mod frame;
pub mod greeting;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
