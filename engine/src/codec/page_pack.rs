//! One page, made smaller to be kept in memory. Not for the wire: there, pages of a chunk are compressed together.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::codec::looks_compressible;
use crate::types::{PAGE_BYTES, PageBytes};

/// A packed page is never larger: a quarter has to be saved, or it is not worth the time of packing and unpacking.
pub const MAX_PACKED_BYTES: usize = PAGE_BYTES * 3 / 4;

/// The bytes are not a packed page: memory was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was kept of a page is damaged")]
pub struct Damaged;

/// Packs pages. Kept between them for its table and its room.
pub struct PagePacker {
    table: CompressTable,
    out: Vec<u8>,
}

impl Default for PagePacker {
    fn default() -> Self {
        PagePacker { table: CompressTable::default(), out: vec![0; get_maximum_output_size(PAGE_BYTES)] }
    }
}

impl std::fmt::Debug for PagePacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagePacker").finish_non_exhaustive()
    }
}

impl PagePacker {
    /// The page in at most [`MAX_PACKED_BYTES`]; None if it does not go into so few.
    pub fn pack(&mut self, page: &PageBytes) -> Option<&[u8]> {
        if !looks_compressible(page) {
            return None;
        }
        let bytes = compress_into_with_table(page, &mut self.out, &mut self.table).ok()?;
        self.out.get(..bytes).filter(|packed| packed.len() <= MAX_PACKED_BYTES)
    }
}

/// The page that [`PagePacker::pack`] packed. On an error `page` holds anything.
pub fn unpack(packed: &[u8], page: &mut PageBytes) -> Result<(), Damaged> {
    match decompress_into(packed, page) {
        Ok(PAGE_BYTES) => Ok(()),
        _ => Err(Damaged),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_that_saves_less_than_a_quarter_is_not_packed() {
        let mut packer = PagePacker::default();
        let mut x = 1u64;
        let noise: PageBytes = std::array::from_fn(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        });
        assert!(packer.pack(&noise).is_none());
        for (zeros, packs) in [(800, false), (1300, true)] {
            let mut page = noise;
            page[..zeros].fill(0);
            assert_eq!(packer.pack(&page).is_some(), packs, "{zeros} bytes of zeros");
        }
    }

    #[test]
    fn what_is_damaged_is_told_where_it_can_be() {
        let mut packer = PagePacker::default();
        let packed = packer.pack(&[7; PAGE_BYTES]).unwrap().to_vec();
        let mut page = [0; PAGE_BYTES];
        for bytes in [&packed[..packed.len() - 1], &[&packed[..], &packed].concat(), &[], &[0xff; 4000]] {
            assert_eq!(unpack(bytes, &mut page), Err(Damaged));
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            seed in any::<[u8; 32]>(),
            changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..1000),
        ) {
            let mut page: PageBytes = std::array::from_fn(|i| seed[i % 32]);
            for (at, value) in changes {
                page[at] = value;
            }
            let mut packer = PagePacker::default();
            if let Some(packed) = packer.pack(&page) {
                prop_assert!(packed.len() <= MAX_PACKED_BYTES);
                let mut back = [1; PAGE_BYTES];
                prop_assert_eq!(unpack(packed, &mut back), Ok(()));
                prop_assert!(back == page);
            }
        }
    }
}
