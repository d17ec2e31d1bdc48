// SPDX-License-Identifier: Apache-2.0 OR MIT
//! EL2's own stage-1 translation: one to one, write-xor-execute (docs/memory.md).
//!
//! The boot core builds the first map with its MMU off, from a pool in the image, without a lock or
//! an atomic. All later changes are additions, behind a lock, with tables from the heap.
#![expect(unsafe_code, reason = "translation tables are reached by address")]

use super::el2::HCR_RW;
use super::layout::image;
use super::stage2::HeapTables;
use super::sysreg::set_hcr;
use crate::addr::{AddrRange, Address, HypVa, PAGE_SHIFT, Pa, PaRange};
use crate::memory::hyp_map::{self, HypMap};
use crate::memory::mapper::{self, Maintenance, MapError, Tables};
use crate::spec::vmsa::{HypAttributes, mair};
use crate::sync::Lock;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::*;
use core::arch::asm;
use core::cell::UnsafeCell;

/// The registers of EL2's translation regime.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Regime {
    pub(super) mair: u64,
    pub(super) tcr: u64,
    pub(super) ttbr0: u64,
    pub(super) sctlr: u64,
}

/// Memory that EL2 has mapped, one to one, and that no Rust object uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypMemory(PaRange);

/// Why EL2 could not map something.
pub type HypMapError = MapError<HypVa>;

/// SCTLR_EL2: RES1 bits, I, SA, C, M, and WXN: what can be written never executes.
const SCTLR: u64 = 0x30c5_0830 | 1 << 19 | 1 << 12 | 1 << 3 | 1 << 2 | 1 << 0;

/// Pages for the first map: a root, and three levels for each of the image and the tree.
const POOL_PAGES: usize = 12;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u64; 512]; POOL_PAGES]>);

// SAFETY: Only `HypTables` touches the pool: the boot core alone, before others start.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; 512]; POOL_PAGES]));
static MAP: Lock<Option<HypMap>> = Lock::new(None);

/// Returns the pages of the pool.
fn pool() -> impl Iterator<Item = Pa> {
    let first = POOL.0.get().addr() as u64;
    (0..POOL_PAGES as u64).map(move |n| Pa::new(first.wrapping_add(n << PAGE_SHIFT)))
}

impl HypMemory {
    /// Returns where the memory is.
    #[must_use]
    pub fn range(self) -> PaRange {
        self.0
    }
    /// Returns `bytes` bytes at `offset`; `None` when they are not inside.
    #[must_use]
    pub fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        let part = PaRange::new(self.0.start().checked_add(offset)?, bytes)?;
        self.0.covers(part).then_some(Self(part))
    }
}

/// Maps constants that nobody changes any more, and returns them.
///
/// # Errors
/// Part of the range is mapped already, or memory for tables has run out.
pub fn map_constant(range: PaRange) -> Result<(HypMemory, &'static [u8]), HypMapError> {
    let memory = map_hyp(range, HypAttributes::Rodata)?;
    let bytes = usize::try_from(range.size()).map_err(|_| MapError::TooHigh)?;
    // SAFETY: The range is mapped read-only just now and was not mapped otherwise, so nobody at EL2
    // writes it; it is the hypervisor's own memory, so no guest reaches it; whoever maps constants
    // keeps their token for as long as the machine runs and never unmaps it.
    let constant = unsafe { core::slice::from_raw_parts(range.start().get() as *const u8, bytes) };
    Ok((memory, constant))
}

/// Returns memory as it is addressed before translation is on.
#[must_use]
pub fn unmapped(range: PaRange) -> HypMemory {
    HypMemory(range)
}

/// Reads the size of the device tree at `at`; the MMU may be off. `None` where no tree can be.
#[must_use]
pub fn tree_size(at: Pa) -> Option<usize> {
    const MAGIC: u32 = 0xd00d_feed;
    if at.get() == 0 || !at.is_aligned(8) {
        return None;
    }
    // SAFETY: The boot protocol puts a tree at `at`; both words are aligned and are memory.
    let words = unsafe { (at.get() as *const [u32; 2]).read_volatile() };
    let [magic, size] = words.map(u32::from_be);
    (magic == MAGIC).then(|| usize::try_from(size).ok())?
}

/// Turns EL2's translation on, with the image and the host tree mapped.
///
/// # Errors
/// The tree overlaps the image or lies beyond what this core can address.
pub fn boot_map(tree: PaRange) -> Result<HypMemory, HypMapError> {
    let mut tables = HypTables::Pool(0);
    let root = tables.allocate().ok_or(MapError::OutOfTables)?;
    let pa_bits = super::features().translation().pa_bits;
    let mut map = hyp_map::hyp_map(pa_bits, root).ok_or(MapError::Unaligned)?;
    let parts = image();
    let tree_pages = tree.page_cover().ok_or(MapError::TooHigh)?;
    for (range, attributes) in [
        (parts.text, HypAttributes::Text),
        (parts.rodata, HypAttributes::Rodata),
        (parts.data, HypAttributes::Data),
        (parts.boot_stack, HypAttributes::Data),
        (tree_pages, HypAttributes::Data),
    ] {
        map.map(&mut tables, &mut HypTlb, identity(range)?, range.start(), attributes)?;
    }
    turn_on(regime_of(&map));
    // From here on locks work.
    *MAP.acquire() = Some(map);
    Ok(HypMemory(tree))
}

/// Maps more memory at EL2, one to one.
///
/// # Errors
/// Part of it is mapped already, or memory for tables has run out.
pub fn map_hyp(range: PaRange, attributes: HypAttributes) -> Result<HypMemory, HypMapError> {
    let pages = range.page_cover().ok_or(MapError::TooHigh)?;
    let mut map = MAP.acquire();
    let map = map.as_mut().ok_or(MapError::NotMapped(HypVa::new(range.start().get())))?;
    map.map(&mut HypTables::Heap, &mut HypTlb, identity(pages)?, pages.start(), attributes)?;
    Ok(HypMemory(range))
}

/// Takes a mapping away again.
///
/// # Errors
/// Part of it is not mapped.
pub fn unmap_hyp(memory: HypMemory) -> Result<(), HypMapError> {
    let pages = memory.0.page_cover().ok_or(MapError::TooHigh)?;
    let mut map = MAP.acquire();
    let map = map.as_mut().ok_or(MapError::NotMapped(HypVa::new(pages.start().get())))?;
    map.unmap(&mut HypTables::Heap, &mut HypTlb, identity(pages)?)
}

/// Maps memory at EL2, one to one, piece by piece with a `pause` behind each: what is large takes
/// long.
///
/// # Errors
/// Part of it is mapped already, or memory for tables has run out; nothing is mapped then.
pub fn map_memory(
    range: PaRange,
    attributes: HypAttributes,
    pause: &mut dyn FnMut(),
) -> Result<HypMemory, HypMapError> {
    let pages = range.page_cover().ok_or(MapError::TooHigh)?;
    for (piece, pa) in mapper::pieces(identity(pages)?, pages.start()) {
        let piece = PaRange::new(pa, piece.size()).ok_or(MapError::TooHigh)?;
        if let Err(error) = map_hyp(piece, attributes) {
            if let Some(mapped) = PaRange::between(pages.start(), pa) {
                unmap_memory(HypMemory(mapped), pause);
            }
            return Err(error);
        }
        pause();
    }
    Ok(HypMemory(range))
}

/// Takes away what [`map_memory`] has mapped, with a `pause` now and then.
pub fn unmap_memory(memory: HypMemory, pause: &mut dyn FnMut()) {
    let pages = memory.0.page_cover();
    let input = pages.and_then(|pages| identity(pages).ok());
    let (Some(pages), Some(input)) = (pages, input) else { return };
    for (piece, pa) in mapper::pieces(input, pages.start()) {
        if let Some(piece) = PaRange::new(pa, piece.size()) {
            // It is whole leaves, so nothing is wanting for it.
            let unmapped = unmap_hyp(HypMemory(piece));
            debug_assert!(unmapped.is_ok());
        }
        pause();
    }
}

/// Returns the translation registers for the other cores.
#[must_use]
pub fn regime() -> Option<Regime> {
    MAP.acquire().as_ref().map(regime_of)
}

/// Returns whether EL2 may read this address, by asking the MMU; takes no lock.
pub(super) fn is_mapped(address: u64) -> bool {
    // SAFETY: An address translation changes nothing but PAR_EL1, which only a dump may lose.
    unsafe { asm!("at s1e2r, {}", "isb", in(reg) address, options(nostack, preserves_flags)) };
    PAR_EL1.get() & 1 == 0
}

fn identity(range: PaRange) -> Result<AddrRange<HypVa>, HypMapError> {
    AddrRange::new(HypVa::new(range.start().get()), range.size()).ok_or(MapError::TooHigh)
}

fn regime_of(map: &HypMap) -> Regime {
    Regime {
        mair: mair::MAIR_EL2,
        tcr: hyp_map::tcr_el2(map),
        ttbr0: map.root().get(),
        sctlr: SCTLR,
    }
}

fn turn_on(regime: Regime) {
    // With E2H, which a kernel that went before may have set, TCR_EL2 has another layout.
    set_hcr(HCR_RW);
    barrier::isb(barrier::SY);
    forget_speculated_lines();
    MAIR_EL2.set(regime.mair);
    TCR_EL2.set(regime.tcr);
    TTBR0_EL2.set(regime.ttbr0);
    // SAFETY: The map holds the image one to one with the rights that its parts need, so the next
    // instruction, the stack and all data stay where they are. Nothing is in the TLB or caches:
    // translation was off, and the image's lines were invalidated.
    unsafe {
        asm!(
            "dsb sy",
            "isb",
            "ic iallu",
            "tlbi alle2",
            "dsb sy",
            "isb",
            "msr sctlr_el2, {}",
            "isb",
            in(reg) regime.sctlr,
            options(nostack, preserves_flags)
        );
    }
}

/// Drops the cache lines of all that was written past the caches: fetches and other cores may have
/// speculated them in since the image relocated itself, and walks and loads are about to look
/// there.
fn forget_speculated_lines() {
    let parts = image();
    for range in [parts.rodata, parts.data, parts.boot_stack] {
        super::cache::invalidate(range);
    }
}

/// Where EL2's tables come from.
enum HypTables {
    /// The first map's from the pool, of which so many pages are taken.
    Pool(usize),
    /// Those of all later changes from the heap; what the pool gave does not go there.
    Heap,
}

impl Tables for HypTables {
    fn read(&self, slot: Pa) -> u64 {
        HeapTables.read(slot)
    }
    fn write(&mut self, slot: Pa, descriptor: u64) {
        HeapTables.write(slot, descriptor);
    }
    fn allocate(&mut self) -> Option<Pa> {
        match self {
            Self::Heap => HeapTables.allocate(),
            Self::Pool(taken) => {
                let page = pool().nth(*taken)?;
                *taken = taken.saturating_add(1);
                Some(page)
            }
        }
    }
    fn free(&mut self, table: Pa) {
        if !pool().any(|page| page == table) {
            HeapTables.free(table);
        }
    }
}

/// Makes changes of EL2's map visible.
struct HypTlb;

impl Maintenance<HypVa> for HypTlb {
    fn publish(&mut self) {
        barrier::dsb(barrier::ISHST);
        // The walker's reads are not explicit accesses (traps T14).
        barrier::isb(barrier::SY);
    }
    fn invalidate(&mut self, _range: AddrRange<HypVa>) {
        // SAFETY: Forgetting translations changes none.
        unsafe {
            asm!("dsb ishst", "tlbi alle2is", "dsb ish", options(nostack, preserves_flags));
        }
        if super::el2::repeats_tlbi() {
            // SAFETY: As above; the second pass is for CVE-2025-10263 (traps T08).
            unsafe { asm!("tlbi alle2is", "dsb ish", options(nostack, preserves_flags)) };
        }
        barrier::isb(barrier::SY);
    }
}
