//! What a process has on its heap.
//!
//! Resident memory says little of leaks: an allocator keeps what was freed, each thread some of it.
//! What is in use does.

#![expect(
    unsafe_code,
    reason = "the C library's counts and allocators have no safe form"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The heap of this process, as its C library counts it: everybody's, not only Rust's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heap {
    /// Bytes in use. What a thread keeps for its own next allocations counts as used, so the figure
    /// is exact only where threads keep nothing (`glibc.malloc.tcache_count=0`).
    pub used_bytes: usize,
    /// Bytes that were freed and not given back to the kernel.
    pub free_bytes: usize,
}

/// Returns what is on the heap now; nothing where the C library does not tell.
#[cfg(target_env = "gnu")]
pub fn heap() -> Option<Heap> {
    // SAFETY: it takes the allocator's own locks, may be called at any time by any thread, and
    // returns a plain structure by value.
    let found = unsafe { libc::mallinfo2() };
    Some(Heap {
        used_bytes: found.uordblks.saturating_add(found.hblkhd),
        free_bytes: found.fordblks,
    })
}

/// Returns what is on the heap now; nothing where the C library does not tell.
#[cfg(not(target_env = "gnu"))]
pub fn heap() -> Option<Heap> {
    None
}

/// The system's allocator, with the bytes in use counted exactly: for tests of what is kept.
///
/// ```
/// use pinfold_linux::memory::Counted;
///
/// #[global_allocator]
/// static ALLOCATOR: Counted = Counted::new();
///
/// let before = ALLOCATOR.used_bytes();
/// let kept = vec![0u8; 4096];
/// assert!(ALLOCATOR.used_bytes() >= before + 4096);
/// drop(kept);
/// assert!(ALLOCATOR.used_bytes() < before + 4096);
/// ```
#[derive(Debug, Default)]
pub struct Counted {
    used: AtomicUsize,
}

impl Counted {
    /// Makes an allocator that counts from nothing.
    pub const fn new() -> Self {
        Self {
            used: AtomicUsize::new(0),
        }
    }

    /// Returns the bytes that were allocated and not freed.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// SAFETY: each call is handed on unchanged to the system's allocator, which keeps the contract; the
// count touches no memory that is handed out.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps this method's contract, which is the same.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            self.used.fetch_add(layout.size(), Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.dealloc(block, layout) };
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps this method's contract, which is the same.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            self.used.fetch_add(size, Ordering::Relaxed);
            self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        moved
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// More than other tests of this process allocate and free meanwhile.
    const BLOCK: usize = 64 << 20;

    #[test]
    fn what_is_allocated_is_in_use_until_it_is_freed() {
        let used = || heap().unwrap().used_bytes;
        let before = used();
        let block = std::hint::black_box(vec![1u8; BLOCK]);
        assert!(used() > before + BLOCK / 2);
        drop(block);
        assert!(used() < before + BLOCK / 2);
    }
}
