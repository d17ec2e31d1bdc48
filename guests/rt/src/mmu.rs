// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stage 1: memory one to one (4 KiB granule, 39 bits, DDI 0487 D8.3), and windows in which a test
//! maps what it wants to look at with the attributes that it wants.
#![expect(unsafe_code, reason = "TLB maintenance")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// MAIR_EL1: Device-nGnRnE, Normal write-back, Normal non-cacheable.
pub(crate) const MAIR: u64 = 0x44_ff00;
/// TCR_EL1 without IPS: 39 bits through TTBR0, walks inner shareable write-back, TTBR1 off.
pub(crate) const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// SCTLR_EL1: the bits that are RES1 in Armv8.0, stack alignment check, caches, MMU.
pub(crate) const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 3 | 1 << 2 | 1;

const GIB: u64 = 1 << 30;
const VALID: u64 = 1;
/// Set in the descriptor of a table, and of a page at the last level.
const TABLE: u64 = 1 << 1;
const ACCESS_FLAG: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
const EL0: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const WRITE_BACK: u64 = 1 << 2 | INNER_SHAREABLE;
const NON_CACHEABLE: u64 = 2 << 2 | INNER_SHAREABLE;

/// A 1 GiB block of Normal memory at address 0; the entry code adds an address.
pub(crate) const NORMAL_BLOCK: u64 = VALID | ACCESS_FLAG | WRITE_BACK | UXN;
const DEVICE_BLOCK: u64 = VALID | ACCESS_FLAG | UXN | PXN;

/// The entry of the root for the small windows, and for a window of 1 GiB.
const WINDOW_ENTRY: usize = 511;
const GIB_ENTRY: usize = 510;
const WINDOW: u64 = 511 * GIB;
const GIB_WINDOW: u64 = 510 * GIB;

#[repr(C, align(4096))]
pub(crate) struct Table([AtomicU64; 512]);

impl Table {
    const fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }
    fn address(&self) -> u64 {
        (&raw const *self).addr() as u64
    }
}

/// The root: devices below 1 GiB, then memory.
pub(crate) static ROOT: Table = {
    let table = Table::empty();
    let mut entries = table.0;
    entries[0] = AtomicU64::new(DEVICE_BLOCK);
    entries[1] = AtomicU64::new(NORMAL_BLOCK | GIB);
    Table(entries)
};
static MIDDLE: Table = Table::empty();
static PAGES: Table = Table::empty();

/// How a window is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Device-nGnRnE for EL1.
    Device,
    /// Device-nGnRnE for EL0 and EL1.
    DeviceEl0,
    /// Normal write-back memory for EL1, executable.
    Normal,
    /// Normal non-cacheable memory for EL1, executable.
    NonCacheable,
    /// Code for EL0: read-only.
    CodeEl0,
}

impl Access {
    const fn bits(self) -> u64 {
        ACCESS_FLAG
            | match self {
                Self::Device => UXN | PXN,
                Self::DeviceEl0 => EL0 | UXN | PXN,
                Self::Normal => WRITE_BACK | UXN,
                Self::NonCacheable => NON_CACHEABLE | UXN,
                Self::CodeEl0 => WRITE_BACK | EL0 | READ_ONLY | PXN,
            }
    }
}

/// Maps the page at `pa` in window `slot` (below 512) and returns its virtual address.
pub fn map(slot: usize, pa: u64, access: Access) -> u64 {
    link();
    replace(&PAGES.0[slot], pa | access.bits() | TABLE | VALID);
    WINDOW + 4096 * slot as u64
}

/// Uses the page at `pa` as a translation table of the last level and returns the first virtual
/// address that it translates.
pub fn map_table(pa: u64) -> u64 {
    link();
    replace(&MIDDLE.0[1], pa | TABLE | VALID);
    WINDOW + (2 << 20)
}

/// Maps the 1 GiB of memory around `pa` and returns the virtual address of `pa`.
pub fn map_gib(pa: u64, access: Access) -> u64 {
    replace(&ROOT.0[GIB_ENTRY], pa & !(GIB - 1) | access.bits() | VALID);
    GIB_WINDOW + pa % GIB
}

/// Maps the 1 GiB at `pa` one to one as Normal memory, unless that is done.
pub(crate) fn add_memory(pa: u64) {
    let index = usize::try_from(pa / GIB).unwrap_or(usize::MAX);
    if (1..GIB_ENTRY).contains(&index) && ROOT.0[index].load(Relaxed) == 0 {
        replace(&ROOT.0[index], pa & !(GIB - 1) | NORMAL_BLOCK);
    }
}

/// Removes everything that a test has mapped.
pub fn unmap_all() {
    replace(&ROOT.0[GIB_ENTRY], 0);
    replace(&MIDDLE.0[1], 0);
    for entry in &PAGES.0 {
        entry.store(0, Relaxed);
    }
    forget();
}

fn link() {
    let middle = MIDDLE.address() | TABLE | VALID;
    if ROOT.0[WINDOW_ENTRY].load(Relaxed) != middle {
        MIDDLE.0[0].store(PAGES.address() | TABLE | VALID, Relaxed);
        replace(&ROOT.0[WINDOW_ENTRY], middle);
    }
}

/// Changes a descriptor, break before make (DDI 0487 D8.16.1).
fn replace(entry: &AtomicU64, descriptor: u64) {
    entry.store(0, Relaxed);
    forget();
    entry.store(descriptor, Relaxed);
    // SAFETY: barriers have no effect but order: the walker must see the descriptor.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
}

fn forget() {
    // SAFETY: dropping TLB entries makes the walker read the tables again, no more.
    unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// Runs the translation of an EL1 read at `va` and returns PAR_EL1.
#[must_use]
pub fn translate(va: u64) -> u64 {
    // SAFETY: a translation reads tables and writes PAR_EL1, on which no Rust code depends.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack)) };
    crate::sysreg::PAR_EL1::get()
}
