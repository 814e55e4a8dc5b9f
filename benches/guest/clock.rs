//! Guest time in microseconds: the ACPI power-management timer, which ticks at one fixed rate on every host
//! (the TSC's rate changes with a migration). Stands still while the guest is stopped.
//!
//! Without that timer (its port reads as all ones) time is counted in interrupts.

use crate::cpu;

/// Where SeaBIOS puts it on `pc` and `q35`.
const PM_TIMER_PORT: u16 = 0x608;
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0xff_ffff;

pub struct Clock {
    timer_hz: u32,
    present: bool,
    last: u32,
    /// Timer counts since the start.
    counts: u64,
}

impl Clock {
    pub fn new(timer_hz: u32) -> Clock {
        let last = cpu::in32(PM_TIMER_PORT);
        Clock { timer_hz, present: last != u32::MAX, last: last & PM_TIMER_MASK, counts: 0 }
    }

    /// To be called at least every 4 s: the timer has 24 bits.
    pub fn now_us(&mut self) -> u64 {
        if !self.present {
            return cpu::ticks() * 1_000_000 / u64::from(self.timer_hz);
        }
        let count = cpu::in32(PM_TIMER_PORT) & PM_TIMER_MASK;
        self.counts += u64::from(count.wrapping_sub(self.last) & PM_TIMER_MASK);
        self.last = count;
        (u128::from(self.counts) * 1_000_000 / u128::from(PM_TIMER_HZ)) as u64
    }
}
