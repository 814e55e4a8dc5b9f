//! Finding where things end that do not say so: foreign sections, the configuration's parts, block entries.
//!
//! A section other than RAM has no length. Its footer (`7e`, its id) is looked for, and believed only if what
//! follows is an item that may stand there, checked as far as it can be. The bytes pass verbatim either way; a
//! wrong end can only turn into "not understood", or make bytes that are by chance a valid header of a known
//! section be read as one: ten fixed bytes and more in a row.

use std::collections::BTreeSet;

use super::wire::{self, Cursor, item, ram};
use super::{BlockIdx, PAGE_BYTES, RamLayout};

/// Header of a START or FULL section.
pub struct SectionHeader<'a> {
    pub id: u32,
    pub name: &'a [u8],
    pub version: u32,
    /// Bytes the header takes.
    pub len: usize,
}

impl<'a> SectionHeader<'a> {
    /// `None` while it is not all there.
    pub fn read(rest: &'a [u8]) -> Option<Self> {
        let mut at = Cursor::new(rest);
        at.u8()?;
        let id = at.be32()?;
        let name = at.counted()?;
        let _instance = at.be32()?;
        let version = at.be32()?;
        Some(Self { id, name, version, len: at.pos() })
    }

    fn is_plausible(&self) -> bool {
        /// Versions count up from 0 by hand; the highest in QEMU is a few dozen.
        const MAX_VERSION: u32 = 0xffff;
        !self.name.is_empty()
            && self.name.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
            && self.version <= MAX_VERSION
    }
}

pub enum Plausible {
    Yes,
    No,
    Need,
}

/// What is known of the stream when an item is judged.
pub struct Known<'a> {
    pub ram: Option<&'a RamLayout>,
    pub last_block: Option<BlockIdx>,
    pub started: &'a BTreeSet<u32>,
}

impl Known<'_> {
    /// Whether an item that may follow a section before RAM's end begins here.
    pub fn plausible_item(&self, rest: &[u8]) -> Plausible {
        let Some(&kind) = rest.first() else { return Plausible::Need };
        let judged = match kind {
            item::START | item::FULL => SectionHeader::read(rest).map(|head| {
                let taken =
                    self.started.contains(&head.id) || self.ram.is_some_and(|r| r.section_id == head.id);
                head.is_plausible() && !taken
            }),
            item::PART | item::END => self.section_again(rest),
            item::COMMAND => self.command(rest),
            _ => Some(false),
        };
        match judged {
            None => Plausible::Need,
            Some(true) => Plausible::Yes,
            Some(false) => Plausible::No,
        }
    }

    fn command(&self, rest: &[u8]) -> Option<bool> {
        let mut at = Cursor::new(rest);
        at.u8()?;
        let (cmd, len) = (at.be16()?, at.be16()?);
        Some(wire::is_precopy_command(cmd, len))
    }

    fn section_again(&self, rest: &[u8]) -> Option<bool> {
        let mut at = Cursor::new(rest);
        at.u8()?;
        let id = at.be32()?;
        match self.ram {
            Some(layout) if layout.section_id == id => self.ram_record(layout, at),
            _ => Some(self.started.contains(&id)),
        }
    }

    /// The first record decides nothing about what it is relayed as; it only has to be one QEMU might write.
    fn ram_record(&self, layout: &RamLayout, mut at: Cursor<'_>) -> Option<bool> {
        const PAGE_KINDS: [u64; 3] = [ram::ZERO, ram::PAGE, ram::XBZRLE];
        let word = at.be64()?;
        let (flags, offset) = (word & ram::FLAGS, word & !ram::FLAGS);
        if word == ram::EOS {
            return Some(true);
        }
        if !PAGE_KINDS.contains(&(flags & !ram::CONTINUE)) {
            return Some(false);
        }
        let block = if flags & ram::CONTINUE != 0 {
            self.last_block.and_then(|b| layout.block(b))
        } else {
            let name = at.counted()?;
            layout.blocks.iter().find(|b| b.name.as_bytes() == name)
        };
        Some(block.is_some_and(|b| b.holds_page(offset)))
    }
}

fn footer(id: u32) -> [u8; wire::FOOTER_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [item::FOOTER, a, b, c, d]
}

/// The first whole footer of section `id` at or after `from`.
pub fn footer_from(rest: &[u8], from: usize, id: u32) -> Option<usize> {
    let footer = footer(id);
    let mut at = from;
    loop {
        let hay = rest.get(at..)?;
        at += hay.iter().position(|b| *b == item::FOOTER)?;
        if rest.get(at..)?.starts_with(&footer) {
            return Some(at);
        }
        at += 1;
    }
}

/// How many bytes at the end of `rest` are the front of a footer that is not all there yet.
pub fn partial_footer(rest: &[u8], id: u32) -> usize {
    let footer = footer(id);
    (1..footer.len()).rev().find(|n| footer.get(..*n).is_some_and(|front| rest.ends_with(front))).unwrap_or(0)
}

pub enum ConfigurationPart {
    Need,
    Unknown,
    Known { len: usize, ignore_shared: bool },
}

/// A subsection of the configuration, which has no length either; three are known.
pub fn configuration_part(rest: &[u8]) -> ConfigurationPart {
    read_configuration_part(rest).unwrap_or(ConfigurationPart::Need)
}

fn read_configuration_part(rest: &[u8]) -> Option<ConfigurationPart> {
    /// QEMU lists at most the capabilities that change the stream; it has about twenty in all.
    const MAX_CAPABILITIES: u32 = 64;
    const UUID_BYTES: usize = 16;
    let mut at = Cursor::new(rest);
    at.u8()?;
    let name = at.counted()?;
    let _version = at.be32()?;
    let mut ignore_shared = false;
    match name {
        b"configuration/target-page-bits" => {
            if 1u64.checked_shl(at.be32()?) != Some(PAGE_BYTES as u64) {
                return Some(ConfigurationPart::Unknown);
            }
        }
        b"configuration/capabilities" => {
            let count = at.be32()?;
            if count > MAX_CAPABILITIES {
                return Some(ConfigurationPart::Unknown);
            }
            for _ in 0..count {
                match at.counted()? {
                    b"x-ignore-shared" => ignore_shared = true,
                    // Changes where pages are, or is not known.
                    _ => return Some(ConfigurationPart::Unknown),
                }
            }
        }
        b"configuration/uuid" => {
            at.bytes(UUID_BYTES)?;
        }
        _ => return Some(ConfigurationPart::Unknown),
    }
    Some(ConfigurationPart::Known { len: at.pos(), ignore_shared })
}
