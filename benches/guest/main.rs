//! The test guest: a program without an operating system that keeps memory busy and knows what must be in it.
//!
//! ```text
//! boot.s ──▶ run: command line, memory map ──▶ load::fill ──▶ "ready …" ──▶ for ever:
//!    write the pages that are due │ sweep the pages that are due │ "hb=…" every 10 ms │ hlt until the next tick
//! ```
//!
//! What it prints, one line each:
//! * `ready pages= zero= dup= text= random= set= fill_ms= …` once;
//! * `hb=N t=MS writes=N sweeps=N bad=N` — heartbeat number, guest time, pages written, whole sweeps done, bad pages;
//! * `bad page=…` for each of the first few bad pages;
//! * `fatal …` and silence.
//!
//! It does not do I/O other than the console's, and never writes to a page it has not verified. It has no floats: x87 and
//! SSE are off (`build.rs` says how and why).
#![no_std]
#![no_main]

#[path = "cpu/sys.rs"]
mod cpu;
#[path = "memory/sys.rs"]
mod memory;

mod clock;
mod console;
mod load;
mod page;
mod params;
mod pattern;
mod plan;
mod rng;
mod text;

use clock::Clock;
use console::{Console, Show};
use load::Load;
use memory::{MAX_COMMAND_LINE, Memory};
use params::Params;

fn run(start_info: u64) -> ! {
    let mut console = Console::new();
    let mut command_line = [0; MAX_COMMAND_LINE];
    let Some((memory, length)) = Memory::from_pvh(start_info, &mut command_line) else {
        fatal(&[&"not started by PVH"])
    };
    let line = core::str::from_utf8(&command_line[..length]).unwrap_or("not=utf-8");
    let params = match Params::parse(line) {
        Ok(params) => params,
        Err(word) => fatal(&[&"command line: ", &word]),
    };

    cpu::start_timer(params.timer_hz);
    let mut clock = Clock::new(params.timer_hz);
    let mut load = match Load::new(memory, params.clone()) {
        Some(load) => load,
        None => fatal(&[&"too little memory"]),
    };
    load.fill(|| {
        clock.now_us();
    });
    let filled_us = clock.now_us();
    let counts = load.counts();
    console.line(&[
        &"ready pages=",
        &counts.pages,
        &" zero=",
        &counts.zero,
        &" dup=",
        &counts.dup,
        &" text=",
        &counts.text,
        &" random=",
        &counts.random,
        &" set=",
        &counts.set,
        &" rate=",
        &params.rate_pages_per_s,
        &" fill_ms=",
        &(filled_us / 1000),
    ]);

    let heartbeat_us = u64::from(params.heartbeat_ms) * 1000;
    let (mut heartbeat, mut due_us) = (0u64, filled_us);
    load.start(filled_us);
    loop {
        let tick = cpu::ticks();
        let now_us = clock.now_us();
        // Before the heartbeat that counts it: who hears of a bad page has heard what is bad about it.
        while let Some(report) = load.take_report() {
            console.line(&[&report]);
        }
        if now_us >= due_us {
            heartbeat += 1;
            // One line for a late beat, not one for each that was missed: silence must stay visible.
            due_us = (due_us + heartbeat_us).max(now_us.saturating_sub(heartbeat_us));
            console.line(&[
                &"hb=",
                &heartbeat,
                &" t=",
                &(now_us / 1000),
                &" writes=",
                &load.writes(),
                &" sweeps=",
                &load.sweeps(),
                &" bad=",
                &load.bad(),
            ]);
        }
        load.advance(now_us);
        while cpu::ticks() == tick && load.step() {}
        cpu::sleep_past(tick);
    }
}

fn fatal(what: &[&dyn Show]) -> ! {
    Console::new().line(&[&"fatal ", &what]);
    cpu::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    // The message is left out: whoever looks at it has all of `core::fmt` linked.
    match info.location() {
        Some(place) => fatal(&[&"panic at ", &place.file(), &":", &place.line()]),
        None => fatal(&[&"panic"]),
    }
}
