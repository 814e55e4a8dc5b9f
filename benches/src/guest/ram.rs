//! Every RAM block of a stopped QEMU as page hashes, read from the process's own memory; and what differs between two.
//!
//! QEMU lists its blocks in `info ramblock`, since 8.0 with the address where each lies. Before that the address is
//! found in the process's memory map: QEMU maps each block on its own, at a multiple of 2 MiB, and puts an inaccessible
//! page right behind it. Blocks of equal size are told apart by `gpa2hva` where the guest sees them, else by the order
//! in which they were made, which is the order of their addresses, falling.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::xxh3_128;

use super::qemu::Qemu;
use super::qmp::QmpError;

const PAGE_BYTES: usize = 4096;
/// Read at once; also the most that is held of a guest's memory.
const WINDOW_BYTES: usize = 1 << 20;
/// QEMU's alignment of anonymous RAM on x86-64.
const BLOCK_ALIGN: u64 = 2 << 20;

/// 16 bytes per page, whatever the guest's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamImage {
    pub blocks: Vec<RamBlock>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    pub name: String,
    pub bytes: u64,
    pages: Vec<u128>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only one of the two has this block.
    Block {
        name: String,
    },
    Size {
        name: String,
        bytes: (u64, u64),
    },
    Page {
        block: String,
        page: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum RamError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("the guest is {0}: its memory is read only while it is stopped")]
    NotStopped(String),
    #[error("`info ramblock` has a line that is not understood: {0:?}")]
    Listing(String),
    #[error("no mapping of QEMU's process looks like block {name} of {bytes} bytes")]
    NotFound { name: String, bytes: u64 },
    #[error("reading block {name}: {cause}")]
    Read { name: String, cause: io::Error },
    #[error("reading QEMU's memory map: {0}")]
    Io(#[from] io::Error),
}

/// One line of `info ramblock`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    used_bytes: u64,
    total_bytes: u64,
    address: Option<u64>,
}

impl RamImage {
    /// Reads all blocks. On success the guest was stopped before and after, so the image is of one moment.
    pub fn read(qemu: &mut Qemu) -> Result<RamImage, RamError> {
        must_be_stopped(qemu)?;
        let (memory, places) = places(qemu)?;
        let mut blocks = Vec::with_capacity(places.len());
        for place in places {
            let mut pages = Vec::with_capacity(place.bytes.div_ceil(PAGE_BYTES as u64) as usize);
            place.visit(&memory, |page| pages.push(xxh3_128(page)))?;
            blocks.push(RamBlock { name: place.name, bytes: place.bytes, pages });
        }
        must_be_stopped(qemu)?;
        Ok(RamImage { blocks })
    }

    /// Everything in which the two differ, block by block. Empty: equal to the byte.
    pub fn compare(&self, other: &RamImage) -> Vec<Difference> {
        let mut differences = Vec::new();
        for mine in &self.blocks {
            let name = mine.name.clone();
            match other.blocks.iter().find(|block| block.name == mine.name) {
                None => differences.push(Difference::Block { name }),
                Some(theirs) if theirs.bytes != mine.bytes => {
                    differences.push(Difference::Size { name, bytes: (mine.bytes, theirs.bytes) });
                }
                Some(theirs) => differences.extend(
                    (0..)
                        .zip(mine.pages.iter().zip(&theirs.pages))
                        .filter(|(_, (one, other))| one != other)
                        .map(|(page, _)| Difference::Page { block: name.clone(), page }),
                ),
            }
        }
        let only_theirs =
            other.blocks.iter().filter(|theirs| self.blocks.iter().all(|mine| mine.name != theirs.name));
        differences.extend(only_theirs.map(|block| Difference::Block { name: block.name.clone() }));
        differences
    }

    pub fn pages(&self) -> usize {
        self.blocks.iter().map(|block| block.pages.len()).sum()
    }
}

fn must_be_stopped(qemu: &mut Qemu) -> Result<(), RamError> {
    let status = qemu.status()?;
    if status == "running" { Err(RamError::NotStopped(status)) } else { Ok(()) }
}

/// Shows the content of every page, block by block. On success the guest was stopped before and after, so it was all of one
/// moment.
pub fn visit_pages(qemu: &mut Qemu, mut visit: impl FnMut(&[u8])) -> Result<(), RamError> {
    must_be_stopped(qemu)?;
    let (memory, places) = places(qemu)?;
    for place in places {
        place.visit(&memory, &mut visit)?;
    }
    must_be_stopped(qemu)
}

/// Where a block lies in the memory of QEMU's process.
struct Place {
    name: String,
    bytes: u64,
    address: u64,
}

/// All blocks, and the memory they are in.
fn places(qemu: &mut Qemu) -> Result<(File, Vec<Place>), RamError> {
    let mut listed = parse_listing(&qemu.hmp("info ramblock")?)?;
    if listed.iter().any(|block| block.address.is_none()) {
        find_addresses(&mut listed, qemu)?;
    }
    let memory = File::open(format!("/proc/{}/mem", qemu.pid()))?;
    let places = listed.into_iter().map(|Listed { name, used_bytes, total_bytes, address }| match address {
        Some(address) => Ok(Place { name, bytes: used_bytes, address }),
        None => Err(RamError::NotFound { name, bytes: total_bytes }),
    });
    Ok((memory, places.collect::<Result<_, _>>()?))
}

impl Place {
    fn visit(&self, memory: &File, mut visit: impl FnMut(&[u8])) -> Result<(), RamError> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut at = 0;
        while at < self.bytes {
            let length = (self.bytes - at).min(WINDOW_BYTES as u64) as usize;
            let read = memory.read_exact_at(&mut window[..length], self.address + at);
            read.map_err(|cause| RamError::Read { name: self.name.clone(), cause })?;
            window[..length].chunks(PAGE_BYTES).for_each(&mut visit);
            at += length as u64;
        }
        Ok(())
    }
}

/// `name  4 KiB  0xoffset 0xused 0xtotal [0xaddress rw]`, below a line of titles. A name has no blanks.
fn parse_listing(text: &str) -> Result<Vec<Listed>, RamError> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    text.lines()
        .skip(1)
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let parsed = match words[..] {
                [name, _, _, _, used, total, ref rest @ ..] => {
                    number(used).zip(number(total)).map(|(used_bytes, total_bytes)| Listed {
                        name: name.into(),
                        used_bytes,
                        total_bytes,
                        address: rest.first().and_then(|word| number(word)),
                    })
                }
                _ => None,
            };
            parsed.ok_or_else(|| RamError::Listing(line.into()))
        })
        .collect()
}

/// For a QEMU that does not tell.
fn find_addresses(listed: &mut [Listed], qemu: &mut Qemu) -> Result<(), RamError> {
    let mut candidates = block_mappings(&fs::read_to_string(format!("/proc/{}/maps", qemu.pid()))?);
    candidates.sort_unstable_by_key(|&(start, _)| std::cmp::Reverse(start));
    let seen = seen_by_guest(qemu)?;
    let mut taken = HashSet::new();
    for block in listed.iter_mut() {
        block.address = seen.iter().find(|(name, _)| *name == block.name).map(|&(_, address)| address);
        taken.extend(block.address);
    }
    for block in listed.iter_mut().filter(|block| block.address.is_none()) {
        let bytes = block.total_bytes.next_multiple_of(PAGE_BYTES as u64);
        let found = candidates.iter().find(|&&(start, length)| length == bytes && !taken.contains(&start));
        let &(start, _) = found.ok_or_else(|| RamError::NotFound { name: block.name.clone(), bytes })?;
        taken.insert(start);
        block.address = Some(start);
    }
    Ok(())
}

/// (start, length) of every mapping that QEMU could have made for a RAM block.
fn block_mappings(maps: &str) -> Vec<(u64, u64)> {
    let lines: Vec<(u64, u64, &str)> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let permissions = words.next()?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?, permissions))
        })
        .collect();
    lines
        .windows(2)
        .filter(|pair| {
            let ((start, end, permissions), (guard, _, guarded)) = (pair[0], pair[1]);
            start % BLOCK_ALIGN == 0
                && permissions.starts_with("rw")
                && guard == end
                && guarded.starts_with("---")
        })
        .map(|pair| (pair[0].0, pair[0].1 - pair[0].0))
        .collect()
}

/// (block, address of its first byte) for every block that is mapped into the guest's memory.
fn seen_by_guest(qemu: &mut Qemu) -> Result<Vec<(String, u64)>, RamError> {
    let mut seen: Vec<(String, u64)> = Vec::new();
    for (name, guest_address, offset) in parse_tree(&qemu.hmp("info mtree -f")?) {
        if seen.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let reply = qemu.hmp(&format!("gpa2hva {guest_address:#x}"))?;
        let address =
            reply.rsplit_once("0x").and_then(|(_, digits)| u64::from_str_radix(digits.trim(), 16).ok());
        if let Some(start) = address.and_then(|address| address.checked_sub(offset)) {
            seen.push((name, start));
        }
    }
    Ok(seen)
}

/// (region, guest address, offset in the region) of the RAM and ROM lines of the view called `memory`.
fn parse_tree(text: &str) -> Vec<(String, u64, u64)> {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut regions = Vec::new();
    let mut in_memory = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("FlatView") {
            in_memory = false;
        } else if line.starts_with("AS \"memory\"") {
            in_memory = true;
        } else if let (true, Some((place, what))) = (in_memory, line.split_once(" (prio ")) {
            let Some((_, what)) = what.split_once(", ram): ").or_else(|| what.split_once(", rom): ")) else {
                continue;
            };
            let mut words = what.split_ascii_whitespace();
            let offset = words.clone().find_map(|word| word.strip_prefix('@')).map_or(Some(0), hex);
            let start = place.split_once('-').and_then(|(start, _)| hex(start));
            if let (Some(name), Some(start), Some(offset)) = (words.next(), start, offset) {
                regions.push((name.to_owned(), start, offset));
            }
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_listings_of_blocks_are_understood() {
        let new = "              Block Name    PSize              Offset               Used              Total                HVA  RO\n\
                   \x20   /rom@etc/acpi/tables    4 KiB  0x00000000050c0000 0x0000000000020000 0x0000000000200000 0x00007fbef1e00000  ro\n";
        let old = "              Block Name    PSize              Offset               Used              Total\n\
                   \x20   /rom@etc/acpi/tables    4 KiB  0x00000000050c0000 0x0000000000020000 0x0000000000200000\n";
        let listed = |address| Listed {
            name: "/rom@etc/acpi/tables".into(),
            used_bytes: 0x20000,
            total_bytes: 0x200000,
            address,
        };
        assert_eq!(parse_listing(new).unwrap(), [listed(Some(0x7fbe_f1e0_0000))]);
        assert_eq!(parse_listing(old).unwrap(), [listed(None)]);
        assert!(matches!(parse_listing("titles\npc.ram 4 KiB\n"), Err(RamError::Listing(_))));
    }

    #[test]
    fn blocks_are_mappings_that_are_aligned_and_guarded() {
        let maps = "7fbf3c200000-7fbf3c210000 rw-p 00000000 00:00 0\n\
                    7fbf3c210000-7fbf3c211000 ---p 00000000 00:00 0\n\
                    7fbf3c400000-7fbf3c420000 rw-p 00000000 00:00 0\n\
                    7fbf3c501000-7fbf3c502000 rw-p 00000000 00:00 0\n\
                    7fbf3c502000-7fbf3c503000 ---p 00000000 00:00 0\n";
        assert_eq!(block_mappings(maps), [(0x7fbf_3c20_0000, 0x10000)]);
    }

    #[test]
    fn a_flipped_page_and_a_missing_block_are_differences() {
        let block = |name: &str, pages: &[u128]| RamBlock {
            name: name.into(),
            bytes: pages.len() as u64 * 4096,
            pages: pages.into(),
        };
        let one = RamImage { blocks: vec![block("pc.ram", &[1, 2, 3]), block("vga.rom", &[9])] };
        let other = RamImage { blocks: vec![block("pc.ram", &[1, 7, 3]), block("vga.vram", &[9])] };
        assert_eq!(one.compare(&one), []);
        assert_eq!(
            one.compare(&other),
            [
                Difference::Page { block: "pc.ram".into(), page: 1 },
                Difference::Block { name: "vga.rom".into() },
                Difference::Block { name: "vga.vram".into() },
            ]
        );
    }
}
