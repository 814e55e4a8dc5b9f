//! The first serial port, for writing only; and how numbers are written on it.
//!
//! `core::fmt` is not used: as it comes precompiled it works with SSE, which is off.

use crate::cpu;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Polls before a byte is given up: a reader that is gone must not stop the guest.
const PATIENCE: u32 = 100_000;

pub struct Console;

/// What can stand in a line.
pub trait Show {
    fn show(&self, console: &mut Console);
}

/// `0x` and lower-case digits.
pub struct Hex(pub u64);

impl Console {
    /// 115200 8N1.
    pub fn new() -> Console {
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            cpu::out8(DATA + offset, value);
        }
        Console
    }

    pub fn line(&mut self, parts: &[&dyn Show]) {
        parts.show(self);
        self.byte(b'\n');
    }

    fn byte(&mut self, byte: u8) {
        let mut polls = 0;
        while cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 && polls < PATIENCE {
            polls += 1;
        }
        cpu::out8(DATA, byte);
    }

    fn digits(&mut self, mut number: u64, base: u64) {
        const MOST_DIGITS: usize = 20;
        let mut reversed = [0; MOST_DIGITS];
        let mut len = 0;
        for digit in &mut reversed {
            *digit = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            len += 1;
            if number == 0 {
                break;
            }
        }
        for &digit in reversed[..len].iter().rev() {
            self.byte(digit);
        }
    }
}

impl Show for &[&dyn Show] {
    fn show(&self, console: &mut Console) {
        for part in *self {
            part.show(console);
        }
    }
}

impl Show for &str {
    fn show(&self, console: &mut Console) {
        for byte in self.bytes() {
            console.byte(byte);
        }
    }
}

impl Show for u64 {
    fn show(&self, console: &mut Console) {
        console.digits(*self, 10);
    }
}

impl Show for u32 {
    fn show(&self, console: &mut Console) {
        console.digits(u64::from(*self), 10);
    }
}

impl Show for u16 {
    fn show(&self, console: &mut Console) {
        console.digits(u64::from(*self), 10);
    }
}

impl Show for Hex {
    fn show(&self, console: &mut Console) {
        "0x".show(console);
        console.digits(self.0, 16);
    }
}
