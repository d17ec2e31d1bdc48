// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The heap of EL2: for boot and lifecycle, never for an exit.
#![expect(unsafe_code, reason = "a global allocator is unsafe by definition")]

use crate::sync::Lock;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};

/// Bytes in the heap: the plan, the models of all VMs, stage-2 tables.
const HEAP_BYTES: usize = 512 << 10;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; HEAP_BYTES]>);

// SAFETY: Only the allocator behind the lock below hands out parts of the arena.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; HEAP_BYTES]));

type Buddy = buddy_system_allocator::Heap<20>;

/// The one heap; it takes its memory at the first use.
static BUDDY: Lock<Option<Buddy>> = Lock::new(None);

/// The global allocator: a buddy heap over memory of the image.
#[derive(Debug)]
pub struct Heap;

/// Returns the bytes that are allocated now, as they were asked for, tables of pages among them.
#[must_use]
pub fn heap_bytes() -> usize {
    BUDDY.acquire().as_ref().map_or(0, Buddy::stats_alloc_user)
}

fn arena() -> Buddy {
    let mut buddy = Buddy::new();
    // SAFETY: The arena is this heap's alone, and this runs once: the result is kept in the lock.
    unsafe { buddy.init(ARENA.0.get().addr(), HEAP_BYTES) };
    buddy
}

// SAFETY: The buddy heap gives out blocks that do not overlap, of the size and alignment asked for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut buddy = BUDDY.acquire();
        let block = buddy.get_or_insert_with(arena).alloc(layout);
        block.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let (Some(buddy), Some(pointer)) = (&mut *BUDDY.acquire(), NonNull::new(pointer)) else {
            return;
        };
        // SAFETY: The caller returns a block of `alloc` with the same layout.
        unsafe { buddy.dealloc(pointer, layout) };
    }
}
