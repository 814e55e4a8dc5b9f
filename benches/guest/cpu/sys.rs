//! The processor and the board: entry, interrupts, ports. With `memory/sys.rs` the only unsafe code.
//!
//! Invariants: one processor; interrupts are open only between [`start_timer`] and [`halt`]; the one
//! handler that returns (the timer's) touches nothing but [`TICKS`] and the interrupt controller.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::console::Hex;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Timer interrupts so far; written by `timer_stub` alone.
#[unsafe(no_mangle)]
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Input clock of the 8254.
const PIT_HZ: u32 = 1_193_182;
const TIMER_VECTOR: usize = 32;
const IDT_LEN: usize = 48;

#[repr(C, align(16))]
struct Idt([[u64; 2]; IDT_LEN]);

static mut IDT: Idt = Idt([[0; 2]; IDT_LEN]);

unsafe extern "C" {
    fn timer_stub();
    fn ignore_stub();
    fn exception_stubs();
}

/// Called by `boot.s` with the physical address of PVH's `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    load_interrupt_table();
    crate::run(start_info)
}

#[unsafe(no_mangle)]
extern "C" fn guest_fault(vector: u64, code: u64, rip: u64, address: u64) -> ! {
    crate::fatal(&[
        &"fault vector=",
        &vector,
        &" code=",
        &Hex(code),
        &" rip=",
        &Hex(rip),
        &" address=",
        &Hex(address),
    ])
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: ports of emulated devices; none of them writes to our memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

pub fn ticks() -> u64 {
    TICKS.load(Relaxed)
}

/// Sleeps until a tick later than `seen`; returns at once if it has already come.
pub fn sleep_past(seen: u64) {
    while ticks() == seen {
        // SAFETY: `sti` takes effect after the next instruction, so a tick between the test and `hlt` is not lost.
        unsafe { asm!("cli", options(nomem, nostack)) };
        if ticks() == seen {
            // SAFETY: the timer is running and wakes us.
            unsafe { asm!("sti", "hlt", options(nostack)) };
        } else {
            // SAFETY: the table is installed.
            unsafe { asm!("sti", options(nostack)) };
        }
    }
}

/// Interrupts off, for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// From here on a fault is reported.
fn load_interrupt_table() {
    let gate = |handler: u64| {
        const PRESENT_INTERRUPT_GATE_IST1: u64 = 0x8e01;
        const CODE_SELECTOR: u64 = 0x08;
        [
            (handler & 0xffff)
                | (CODE_SELECTOR << 16)
                | (PRESENT_INTERRUPT_GATE_IST1 << 32)
                | ((handler >> 16 & 0xffff) << 48),
            handler >> 32,
        ]
    };
    let table = &raw mut IDT;
    let stub_bytes = 16;
    for vector in 0..IDT_LEN {
        let handler = match vector {
            TIMER_VECTOR => timer_stub as *const () as u64,
            0..TIMER_VECTOR => exception_stubs as *const () as u64 + vector as u64 * stub_bytes,
            _ => ignore_stub as *const () as u64,
        };
        // SAFETY: one processor, interrupts still closed: nobody else looks at the table.
        unsafe { (*table).0[vector] = gate(handler) };
    }
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let pointer = Pointer((size_of::<Idt>() - 1) as u16, table as u64);
    // SAFETY: the table is complete and lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) };
}

/// Opens IRQ 0 alone and lets the 8254 tick `hz` times a second.
pub fn start_timer(hz: u32) {
    // Both interrupt controllers: vectors from 32, everything masked but IRQ 0.
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, TIMER_VECTOR as u8),
        (0xa1, TIMER_VECTOR as u8 + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
    ] {
        out8(port, value);
    }
    let divisor = (PIT_HZ / hz).clamp(1, 0xffff);
    out8(0x43, 0x34);
    out8(0x40, divisor as u8);
    out8(0x40, (divisor >> 8) as u8);
    // SAFETY: the table is installed and the timer's handler is safe at any point.
    unsafe { asm!("sti", options(nostack)) };
}
