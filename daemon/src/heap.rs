//! Where the daemon's memory for pages comes from: slabs of the size of a huge page.
//!
//! ```text
//!  slab, 2 MiB at a multiple of 2 MiB:  [ header | page | page | … | page ]      511 pages
//!                                           └─ free: the first page of a list through the pages that are free
//! ```
//! Whatever has the size of a page comes from here, everything else from the system's allocator. A guest's content passes through
//! memory that the daemon has never touched before: staging grows to some hundred MiB within a second. The system's allocator asks
//! the kernel for each of those pages apart, and each is a fault, which together take longer than all else that is done with a page before it is
//! encoded. In huge pages it is one fault for 511.
//!
//! A slab of which nothing is used any more goes back to the kernel, but for [`SPARE_MOST`].
//!
//! Invariants: a slab is in the list of those with room exactly if it has some; a page's slab is found by its address; everything
//! in a header is read and written under the one lock.

#![allow(unsafe_code)]

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

const PAGE_BYTES: usize = 4096;
const SLAB_BYTES: usize = 2 << 20;
/// The first is the header's.
const PAGES: u32 = (SLAB_BYTES / PAGE_BYTES - 1) as u32;
/// Slabs that are kept with nothing in them, for the next burst.
const SPARE_MOST: usize = 4;

/// The daemon's allocator.
pub struct Heap {
    pages: Mutex<Slabs>,
}

impl Heap {
    pub const fn new() -> Heap {
        Heap { pages: Mutex::new(Slabs { with_room: null_mut(), empty: 0 }) }
    }
}

impl Default for Heap {
    fn default() -> Self {
        Heap::new()
    }
}

// SAFETY: what has the size of a page is from a slab, at a multiple of that size, and is known by its size when it comes back; everything else is the system's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_page(&layout) {
            return self.pages.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_page(&layout) {
            // SAFETY: of that size, so `take` gave it.
            return unsafe { self.pages.lock().unwrap_or_else(PoisonError::into_inner).give_back(memory) };
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_page(&layout) {
            // SAFETY: as the caller promises.
            let memory = unsafe { self.alloc(layout) };
            if !memory.is_null() {
                // SAFETY: just given, of that size.
                unsafe { memory.write_bytes(0, PAGE_BYTES) };
            }
            return memory;
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // SAFETY: the size is the caller's, and the alignment was one.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        if !is_page(&layout) && !is_page(&new_layout) {
            // SAFETY: as the caller promises.
            return unsafe { System.realloc(memory, layout, new_bytes) };
        }
        // SAFETY: both are of at least the bytes that are copied, and are not the same memory.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                new.copy_from_nonoverlapping(memory, layout.size().min(new_bytes));
                self.dealloc(memory, layout);
            }
            new
        }
    }
}

fn is_page(layout: &Layout) -> bool {
    layout.size() == PAGE_BYTES && layout.align() <= PAGE_BYTES
}

#[derive(Debug)]
struct Slabs {
    with_room: *mut Header,
    /// Of them, those of which nothing is used.
    empty: usize,
}

// SAFETY: what it points to belongs to it, and is reached through it alone.
unsafe impl Send for Slabs {}

#[derive(Debug)]
struct Header {
    before: *mut Header,
    next: *mut Header,
    /// Its first words are the next of the list.
    free: *mut u8,
    used: u32,
    /// Pages that were ever given.
    begun: u32,
}

const _: () = assert!(size_of::<Header>() <= PAGE_BYTES);

impl Slabs {
    /// Null: there is no memory.
    fn take(&mut self) -> *mut u8 {
        let slab = if self.with_room.is_null() { self.map() } else { self.with_room };
        if slab.is_null() {
            return null_mut();
        }
        // SAFETY: a slab in the list is mapped and has a page that is free or was never given; a free page is ours to read.
        unsafe {
            self.empty -= usize::from((*slab).used == 0);
            (*slab).used += 1;
            let page = if (*slab).free.is_null() {
                (*slab).begun += 1;
                slab.cast::<u8>().add((*slab).begun as usize * PAGE_BYTES)
            } else {
                let page = (*slab).free;
                (*slab).free = page.cast::<*mut u8>().read();
                page
            };
            if (*slab).used == PAGES {
                self.unlink(slab);
            }
            page
        }
    }

    /// # Safety
    /// `page` is from [`Slabs::take`] and nobody's any more.
    unsafe fn give_back(&mut self, page: *mut u8) {
        let slab = page.map_addr(|at| at & !(SLAB_BYTES - 1)).cast::<Header>();
        // SAFETY: the slab of a page that was taken is mapped; the page is nobody's.
        unsafe {
            page.cast::<*mut u8>().write((*slab).free);
            (*slab).free = page;
            if (*slab).used == PAGES {
                self.link(slab);
            }
            (*slab).used -= 1;
            if (*slab).used == 0 {
                if self.empty >= SPARE_MOST {
                    self.unlink(slab);
                    unmap(slab.cast(), SLAB_BYTES);
                } else {
                    self.empty += 1;
                }
            }
        }
    }

    /// A new one, in the list.
    fn map(&mut self) -> *mut Header {
        let Some(length) = NonZeroUsize::new(2 * SLAB_BYTES) else { return null_mut() };
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: new memory, at no place of our choice.
        let Ok(memory) = (unsafe { mmap_anonymous(None, length, rights, flags) }) else { return null_mut() };
        let memory = memory.as_ptr().cast::<u8>();
        let before = memory.align_offset(SLAB_BYTES);
        // SAFETY: of twice the length what stands before the multiple and behind the slab is not needed; the slab is within.
        unsafe {
            let slab = memory.add(before);
            unmap(memory, before);
            unmap(slab.add(SLAB_BYTES), SLAB_BYTES - before);
            let _ = madvise(NonNull::new_unchecked(slab).cast(), SLAB_BYTES, MmapAdvise::MADV_HUGEPAGE);
            let slab = slab.cast::<Header>();
            slab.write(Header { before: null_mut(), next: null_mut(), free: null_mut(), used: 0, begun: 0 });
            self.link(slab);
            self.empty += 1;
            slab
        }
    }

    /// # Safety
    /// It is mapped, and not in the list.
    unsafe fn link(&mut self, slab: *mut Header) {
        // SAFETY: slabs in the list are mapped.
        unsafe {
            ((*slab).before, (*slab).next) = (null_mut(), self.with_room);
            if let Some(next) = self.with_room.as_mut() {
                next.before = slab;
            }
        }
        self.with_room = slab;
    }

    /// # Safety
    /// It is in the list.
    unsafe fn unlink(&mut self, slab: *mut Header) {
        // SAFETY: slabs in the list are mapped.
        unsafe {
            let (before, next) = ((*slab).before, (*slab).next);
            match before.as_mut() {
                Some(before) => before.next = next,
                None => self.with_room = next,
            }
            if let Some(next) = next.as_mut() {
                next.before = before;
            }
        }
    }
}

/// # Safety
/// Mapped, and used by nobody.
unsafe fn unmap(memory: *mut u8, bytes: usize) {
    if let Some(memory) = NonNull::new(memory).filter(|_| bytes > 0) {
        // SAFETY: as the caller promises. It fails where the kernel has no room to note the hole; then the memory stays, unused.
        let _ = unsafe { munmap(memory.cast(), bytes) };
    }
}

#[cfg(test)]
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every page that is touched here was taken before and not given back"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: Layout = Layout::new::<[u8; PAGE_BYTES]>();

    /// Slabs with room, and pages used of them.
    fn with_room(heap: &Heap) -> (usize, u32) {
        let slabs = heap.pages.lock().unwrap();
        let (mut slab, mut counts) = (slabs.with_room, (0, 0));
        while let Some(header) = unsafe { slab.as_ref() } {
            counts = (counts.0 + 1, counts.1 + header.used);
            slab = header.next;
        }
        counts
    }

    proptest! {
        /// Each page is somebody's alone, keeps what was written, and all memory but the spare goes back.
        #[test]
        fn a_page_is_one_s_own_until_it_is_given_back(steps in prop::collection::vec((0..1500usize, any::<bool>()), 1..60)) {
            let heap = Heap::new();
            let mut taken: Vec<(*mut u8, u64)> = Vec::new();
            let mut mark = 0u64;
            for (count, take) in steps {
                for _ in 0..count {
                    if take {
                        let page = unsafe { heap.alloc(PAGE) };
                        prop_assert!(!page.is_null() && page.addr().is_multiple_of(PAGE_BYTES));
                        mark += 1;
                        unsafe {
                            page.cast::<u64>().write(mark);
                            page.add(PAGE_BYTES - 8).cast::<u64>().write(mark);
                        }
                        taken.push((page, mark));
                    } else if !taken.is_empty() {
                        let (page, mark) = taken.swap_remove(count % taken.len());
                        let (first, last) =
                            unsafe { (page.cast::<u64>().read(), page.add(PAGE_BYTES - 8).cast::<u64>().read()) };
                        prop_assert_eq!((first, last), (mark, mark));
                        unsafe { heap.dealloc(page, PAGE) };
                    }
                }
            }
            taken.into_iter().for_each(|(page, _)| unsafe { heap.dealloc(page, PAGE) });
            let (slabs, used) = with_room(&heap);
            prop_assert!(slabs <= SPARE_MOST && used == 0, "{} slabs, {} pages", slabs, used);
        }
    }

    #[test]
    fn what_changes_its_size_to_a_page_s_and_back_keeps_its_bytes() {
        let heap = Heap::new();
        let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
        unsafe {
            let small = heap.alloc(layout(100));
            small.write_bytes(7, 100);
            let page = heap.realloc(small, layout(100), PAGE_BYTES);
            let large = heap.realloc(page, layout(PAGE_BYTES), 3 * PAGE_BYTES);
            let page = heap.realloc(large, layout(3 * PAGE_BYTES), PAGE_BYTES);
            assert!((0..100).all(|at| page.add(at).read() == 7));
            heap.dealloc(page, layout(PAGE_BYTES));
            let page = heap.alloc_zeroed(PAGE);
            assert!((0..PAGE_BYTES).all(|at| page.add(at).read() == 0), "also one that was used before");
            heap.dealloc(page, PAGE);
        }
        assert_eq!(with_room(&heap).1, 0);
    }

    #[test]
    fn threads_share_it() {
        let heap = Heap::new();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let heap = &heap;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let pages: Vec<_> = (0..100).map(|_| unsafe { heap.alloc(PAGE) }).collect();
                        pages.iter().for_each(|page| unsafe { page.write_bytes(thread, PAGE_BYTES) });
                        for page in pages {
                            assert_eq!(unsafe { page.add(2000).read() }, thread);
                            unsafe { heap.dealloc(page, PAGE) };
                        }
                    }
                });
            }
        });
        assert_eq!(with_room(&heap).1, 0);
    }
}
