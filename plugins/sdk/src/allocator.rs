//! The memory of a plugin: blocks by size class, kept when they are freed.
//!
//! A call of a plugin makes some dozens of short strings and lists for each row, and frees all of them at its end. The allocator of the
//! standard library (dlmalloc) searches and joins free blocks, which took more of such a call than the plugin's own work. Here a block comes
//! from a list of free ones of its class, in a few instructions, and goes back to it. Classes are multiples of 16 bytes up to 128, then four
//! for each doubling, so that at most a fifth of a block is unused; what is larger than [`LARGEST`] goes to the system's allocator, and so
//! does what is aligned to more than [`ALIGN`].
//!
//! Blocks of a class never serve another, so a plugin holds at most the sum of what each class held at its peak. The feature `allocator`, which
//! is on, makes it the global one in components; a plugin that has its own leaves the SDK's default features out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;

/// What blocks are aligned to, in bytes.
const ALIGN: usize = 16;
/// The largest block that has a class, in bytes.
const LARGEST: usize = 32 << 10;
/// Multiples of 16 up to 128, then four for each of eight doublings.
const CLASSES: usize = 8 + 4 * 8;
/// Blocks up to so many bytes are cut from chunks; larger ones are taken from the system one by one.
const CUT: usize = 2 << 10;
/// What is taken from the system at once to be cut, in bytes.
const CHUNK: usize = 64 << 10;

/// The class of blocks of at least `size` bytes (at most [`LARGEST`]), and how large these are.
#[inline]
fn class(size: usize) -> (usize, usize) {
    let last = size.max(1) - 1;
    if last < 128 {
        return (last / 16, last / 16 * 16 + 16);
    }
    let log = last.ilog2() as usize;
    // Two bits below the highest one: which quarter of the doubling.
    let quarter = (last >> (log - 2)) & 3;
    (8 + (log - 7) * 4 + quarter, (5 + quarter) << (log - 2))
}

/// Blocks by class over the system's allocator.
pub struct Allocator(UnsafeCell<Lists>);

struct Lists {
    /// Free blocks of each class; each begins with the address of the next.
    free: [*mut u8; CLASSES],
    /// What is left of the chunk that is being cut.
    next: *mut u8,
    left: usize,
}

impl Allocator {
    /// An empty one.
    #[allow(clippy::new_without_default)] // a `const fn` for a static
    pub const fn new() -> Self {
        Self(UnsafeCell::new(Lists { free: [ptr::null_mut(); CLASSES], next: ptr::null_mut(), left: 0 }))
    }
}

// SAFETY: a component has one thread, and nothing in the methods below calls out to code that allocates again.
#[cfg(target_arch = "wasm32")]
unsafe impl Sync for Allocator {}

impl Lists {
    /// A block where the list of its class is empty. Null if there is no memory.
    #[cold]
    fn more(&mut self, size: usize) -> *mut u8 {
        let from_system = |size| match Layout::from_size_align(size, ALIGN) {
            // SAFETY: no size of a class or of a chunk is zero.
            Ok(layout) => unsafe { System.alloc(layout) },
            Err(_) => ptr::null_mut(),
        };
        if size > CUT {
            return from_system(size);
        }
        if self.left < size {
            // The rest of the old chunk serves smaller classes: those that fit, largest first.
            while self.left >= ALIGN {
                let fits = if self.left >= 128 { 128 } else { self.left / ALIGN * ALIGN };
                self.put(self.next, class(fits).0);
                // SAFETY: `fits` is at most what is left of the chunk.
                self.next = unsafe { self.next.add(fits) };
                self.left -= fits;
            }
            let chunk = from_system(CHUNK);
            if chunk.is_null() {
                return chunk;
            }
            (self.next, self.left) = (chunk, CHUNK);
        }
        let block = self.next;
        // SAFETY: `size` is at most what is left of the chunk.
        self.next = unsafe { block.add(size) };
        self.left -= size;
        block
    }

    #[inline]
    fn put(&mut self, block: *mut u8, class: usize) {
        if let Some(head) = self.free.get_mut(class) {
            // SAFETY: every block has at least 16 bytes, is aligned to 16, and nobody uses it any more.
            unsafe { block.cast::<*mut u8>().write(*head) };
            *head = block;
        }
    }
}

/// Whether the system's allocator has a block.
#[inline]
fn is_systems(layout: Layout) -> bool {
    layout.size() > LARGEST || layout.align() > ALIGN
}

// SAFETY: blocks are at least as large as asked for (`class` rounds up), aligned to 16 where no more is asked for, and come from the system's
// allocator, or from blocks of the same class that were freed. Which of both is decided by the layout alone, which callers give again.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_systems(layout) {
            // SAFETY: as the caller promises for this layout.
            return unsafe { System.alloc(layout) };
        }
        let (class, size) = class(layout.size());
        // SAFETY: one thread, and the reference ends before anything else can run.
        let lists = unsafe { &mut *self.0.get() };
        match lists.free.get_mut(class) {
            Some(head) if !head.is_null() => {
                let block = *head;
                // SAFETY: a block in the list begins with the address of the next.
                *head = unsafe { block.cast::<*mut u8>().read() };
                block
            }
            _ => lists.more(size),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_systems(layout) {
            // SAFETY: it came from there, by the same rule.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: one thread, and the reference ends before anything else can run.
        unsafe { &mut *self.0.get() }.put(block, class(layout.size()).0);
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return ptr::null_mut() };
        match (is_systems(layout), is_systems(new)) {
            // SAFETY: it came from there, and goes back there by the same rule.
            (true, true) => return unsafe { System.realloc(block, layout, size) },
            (false, false) if class(layout.size()).0 == class(size).0 => return block,
            _ => {}
        }
        // SAFETY: the new block is another one of at least the smaller size, and the old one is the caller's until it is freed.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for() {
        let mut before = (0, 0);
        for size in 0..=LARGEST {
            let (class, bytes) = class(size);
            assert!(class < CLASSES && bytes >= size && bytes % ALIGN == 0, "{size}: {class} of {bytes}");
            assert!(bytes <= 128 || bytes - size <= bytes / 5, "{size} in {bytes}");
            assert!((class, bytes) == before || class == before.0 + 1 && bytes > before.1 || size == 0, "{size}");
            before = (class, bytes);
        }
        assert_eq!(before, (CLASSES - 1, LARGEST));
    }

    /// A block of a test: its place, its layout, and what its bytes are.
    struct Block(*mut u8, Layout, u8);

    impl Block {
        fn check(&self) {
            // SAFETY: the block is alive and was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, self.1.size()) };
            assert!(bytes.iter().all(|b| *b == self.2), "a block of {} was written over", self.1.size());
        }

        fn fill(&self) {
            // SAFETY: the block is alive and this large.
            unsafe { ptr::write_bytes(self.0, self.2, self.1.size()) };
        }
    }

    #[test]
    fn blocks_keep_their_bytes_whatever_is_allocated_and_freed() {
        let allocator = Allocator::new();
        let mut live: Vec<Block> = Vec::new();
        let mut state = 3407_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for step in 0..60_000_usize {
            let most = [20, 200, 3000, 70_000][random(4)];
            let size = 1 + random(most);
            match random(5) {
                0 | 1 => {
                    let layout = Layout::from_size_align(size, 1 << random(7)).unwrap();
                    // SAFETY: the size is not zero.
                    let block = Block(unsafe { allocator.alloc(layout) }, layout, step as u8);
                    assert_eq!(block.0 as usize % layout.align(), 0);
                    block.fill();
                    live.push(block);
                }
                2 if !live.is_empty() => {
                    let at = random(live.len());
                    let block = &mut live[at];
                    block.check();
                    let kept = block.1.size().min(size);
                    let layout = Layout::from_size_align(size, block.1.align()).unwrap();
                    // SAFETY: the block is alive, with this layout.
                    block.0 = unsafe { allocator.realloc(block.0, block.1, size) };
                    block.1 = Layout::from_size_align(kept, layout.align()).unwrap();
                    block.check();
                    block.1 = layout;
                    block.fill();
                }
                _ if live.len() > random(400) => {
                    let block = live.swap_remove(random(live.len()));
                    block.check();
                    // SAFETY: the block is alive, with this layout, and forgotten here.
                    unsafe { allocator.dealloc(block.0, block.1) };
                }
                _ => {}
            }
        }
        live.iter().for_each(Block::check);
    }

    #[test]
    fn what_was_freed_is_used_again() {
        let allocator = Allocator::new();
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the size is not zero, and blocks are freed once with their own layout.
        unsafe {
            let first = allocator.alloc(layout);
            allocator.dealloc(first, layout);
            let again = allocator.alloc(Layout::from_size_align(112, 16).unwrap());
            assert_eq!(first, again, "one class");
            assert_eq!(allocator.realloc(again, Layout::from_size_align(112, 16).unwrap(), 97), again, "and still that one");
        }
    }
}
