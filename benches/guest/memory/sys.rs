//! The machine's memory as a numbered row of pages that this program owns.
//!
//! What PVH's start_info says is read once, before a page is handed out; nothing else in the guest knows addresses.

use crate::page::Page;

/// Memory below this belongs to the firmware.
const LOW_LIMIT: u64 = 1 << 20;
/// What `boot.s` maps.
const MAPPED_LIMIT: u64 = 16 << 30;
const PAGE_BYTES: u64 = 4096;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const MEMMAP_RAM: u32 = 1;
const MAX_RANGES: usize = 8;
pub const MAX_COMMAND_LINE: usize = 4096;

unsafe extern "C" {
    static __bss_end: u8;
}

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_address: u64,
    command_line: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

#[derive(Clone, Copy, Default)]
struct Range {
    address: u64,
    pages: u64,
}

/// Every page of RAM above the program itself, numbered from 0 in order of address.
pub struct Memory {
    ranges: [Range; MAX_RANGES],
    used: usize,
}

impl Memory {
    /// Reads what the loader left at `start_info`: the memory map, and the command line into `command_line`;
    /// gives back how long that is. `None` if the loader does not speak PVH version 1.
    pub fn from_pvh(start_info: u64, command_line: &mut [u8; MAX_COMMAND_LINE]) -> Option<(Memory, usize)> {
        // SAFETY: PVH passes a valid address below 4 GiB, which is mapped; the firmware no longer runs.
        let info = unsafe { &*(start_info as *const StartInfo) };
        if info.magic != START_INFO_MAGIC || info.version < 1 || info.memmap == 0 {
            return None;
        }
        let mut length = 0;
        if info.command_line != 0 {
            while length < MAX_COMMAND_LINE {
                // SAFETY: a NUL-terminated string in mapped memory; reading stops at the NUL or at our limit.
                let byte = unsafe { *((info.command_line + length as u64) as *const u8) };
                if byte == 0 {
                    break;
                }
                command_line[length] = byte;
                length += 1;
            }
        }
        // SAFETY: the loader's table of `memmap_entries` entries.
        let map = unsafe {
            core::slice::from_raw_parts(info.memmap as *const MemmapEntry, info.memmap_entries as usize)
        };
        let program_end = (&raw const __bss_end) as u64;
        let floor = LOW_LIMIT.max(program_end);
        let mut memory = Memory { ranges: [Range::default(); MAX_RANGES], used: 0 };
        for entry in map.iter().filter(|entry| entry.kind == MEMMAP_RAM) {
            let start = entry.address.max(floor).next_multiple_of(PAGE_BYTES);
            let end = entry.address.saturating_add(entry.bytes).min(MAPPED_LIMIT) / PAGE_BYTES * PAGE_BYTES;
            if start < end && memory.used < MAX_RANGES {
                memory.ranges[memory.used] = Range { address: start, pages: (end - start) / PAGE_BYTES };
                memory.used += 1;
            }
        }
        Some((memory, length))
    }

    pub fn pages(&self) -> u32 {
        self.ranges[..self.used].iter().map(|range| range.pages as u32).sum()
    }

    /// Physical address of a page; past the end, the last page's.
    pub fn address(&self, index: u32) -> u64 {
        let mut rest = u64::from(index);
        let mut last = 0;
        for range in &self.ranges[..self.used] {
            if rest < range.pages {
                return range.address + rest * PAGE_BYTES;
            }
            rest -= range.pages;
            last = range.address + (range.pages - 1) * PAGE_BYTES;
        }
        last
    }

    pub fn page(&mut self, index: u32) -> &mut Page {
        // SAFETY: `address` is a page of a RAM range that only this row owns; the borrow of `self` makes it unique.
        unsafe { &mut *(self.address(index) as *mut Page) }
    }

    /// Cuts a zeroed table of `len` elements off the front of the first range that can hold it.
    pub fn take_table<T: Element>(&mut self, len: usize) -> Option<&'static mut [T]> {
        let pages = (len * size_of::<T>()).div_ceil(PAGE_BYTES as usize).max(1) as u64;
        let range = self.ranges[..self.used].iter_mut().find(|range| range.pages > pages)?;
        let address = range.address;
        range.address += pages * PAGE_BYTES;
        range.pages -= pages;
        // SAFETY: these pages have just left the row and are ours alone; all-zero bytes are a valid `T` (see `Element`).
        unsafe {
            core::ptr::write_bytes(address as *mut u8, 0, (pages * PAGE_BYTES) as usize);
            Some(core::slice::from_raw_parts_mut(address as *mut T, len))
        }
    }
}

/// Plain integers: any bytes are a value.
pub trait Element: Copy {}
impl Element for u16 {}
impl Element for u32 {}
