//! Whether it is worth trying to compress a page.

use crate::types::PageBytes;

/// Whether a compressor would make the page much smaller. Not looked at yet: every page is tried.
pub fn looks_compressible(_page: &PageBytes) -> bool {
    true
}
