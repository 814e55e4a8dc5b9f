//! The first serial port, for writing only.

use core::fmt;

use crate::cpu;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Polls before a byte is given up: a reader that is gone must not stop the guest.
const PATIENCE: u32 = 100_000;

pub struct Console;

impl Console {
    /// 115200 8N1.
    pub fn new() -> Console {
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            cpu::out8(DATA + offset, value);
        }
        Console
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let mut polls = 0;
            while cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 && polls < PATIENCE {
                polls += 1;
            }
            cpu::out8(DATA, byte);
        }
        Ok(())
    }
}
