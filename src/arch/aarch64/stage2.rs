// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stage 2 on this machine: tables on the heap, TLB maintenance, VTTBR_EL2.
#![expect(unsafe_code, reason = "translation tables are reached by address; TLBI is assembly")]

use crate::addr::{Address, Ipa, PAGE_SHIFT, PAGE_SIZE, Pa};
use crate::memory::mapper::{Roots, Tables};
use crate::memory::stage2;
use crate::spec::vmsa::MemAttrEncoding;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::*;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::arch::asm;

/// Translation tables on the heap. EL2 maps itself one to one, so a table's address serves as both.
#[derive(Debug)]
pub struct HeapTables;

impl HeapTables {
    /// Takes zeroed memory for a root of `bytes`, which is also its alignment.
    pub fn allocate_root(bytes: u64) -> Option<Pa> {
        let layout = layout(bytes)?;
        // SAFETY: The layout's size is not 0.
        let root = unsafe { alloc_zeroed(layout) };
        (!root.is_null()).then(|| Pa::new(root.addr() as u64))
    }

    /// Returns memory of so many bytes to the heap.
    fn release(table: Pa, bytes: u64) {
        let Some(layout) = layout(bytes) else { return };
        // SAFETY: The mapper gives back what `allocate_root` handed out with the same layout.
        unsafe { dealloc(table.get() as *mut u8, layout) };
    }
}

fn layout(bytes: u64) -> Option<Layout> {
    let bytes = usize::try_from(bytes).ok().filter(|&b| b > 0)?;
    Layout::from_size_align(bytes, bytes).ok()
}

impl Tables for HeapTables {
    #[inline]
    fn read(&self, slot: Pa) -> u64 {
        // SAFETY: A slot lies in a table that a mapper owns; nobody has a reference to it.
        unsafe { (slot.get() as *const u64).read_volatile() }
    }
    #[inline]
    fn write(&mut self, slot: Pa, descriptor: u64) {
        // SAFETY: As above; one 64-bit store, as the walker must see it.
        unsafe { (slot.get() as *mut u64).write_volatile(descriptor) };
    }
    fn allocate(&mut self) -> Option<Pa> {
        Self::allocate_root(PAGE_SIZE)
    }
    fn free(&mut self, table: Pa) {
        Self::release(table, PAGE_SIZE);
    }
}

impl Roots for HeapTables {
    fn allocate_root(&mut self, bytes: u64) -> Option<Pa> {
        Self::allocate_root(bytes)
    }
    fn free_root(&mut self, root: Pa, bytes: u64) {
        Self::release(root, bytes);
    }
}

/// The registers of one VM's stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Registers {
    /// VTTBR_EL2: root and VMID.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// How its tables say write-back, which HCR_EL2.FWB must match on every core (traps T17).
    pub encoding: MemAttrEncoding,
}

/// Makes a VM's stage 2 the one of this core, with nothing of another VM's left (traps T10).
pub fn activate(stage2: Stage2Registers) {
    VTCR_EL2.set(stage2.vtcr);
    VTTBR_EL2.set(stage2.vttbr);
    barrier::isb(barrier::SY);
    super::el2::enable_stage2(stage2.encoding);
    // SAFETY: Forgetting translations and instructions of this VMID on this core changes none.
    unsafe {
        asm!(
            "tlbi vmalls12e1",
            "dsb nsh",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        );
    }
}

/// Takes a VM's stage 2 from this core, whose EL1 is as after reset: its tables may go, and its tag
/// may become another's (traps T09, T10).
pub fn leave() {
    super::el2::disable_stage2();
    VTTBR_EL2.set(0);
    barrier::isb(barrier::SY);
}

/// The TLB of all cores, as `memory::stage2` drives it.
#[derive(Debug, Default)]
pub struct Tlb {
    before: u64,
}

impl stage2::Tlb for Tlb {
    fn publish(&mut self) {
        barrier::dsb(barrier::ISHST);
    }
    fn select(&mut self, vttbr: u64) {
        // TLBI acts on the current VMID (traps T07). A core selects no VM but those that it serves
        // or has not yet started, so no guest's walks run under another's tag (traps T09).
        self.before = VTTBR_EL2.get();
        VTTBR_EL2.set(vttbr);
        barrier::isb(barrier::SY);
    }
    fn invalidate_ipa(&mut self, ipa: Ipa) {
        let page = ipa.get() >> PAGE_SHIFT;
        // SAFETY: Forgetting translations changes none.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page, options(nostack, preserves_flags)) };
    }
    fn invalidate_stage1(&mut self) {
        // SAFETY: Forgetting translations changes none.
        unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    }
    fn invalidate_vm(&mut self) {
        // SAFETY: Forgetting translations changes none.
        unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    }
    fn complete(&mut self) {
        barrier::dsb(barrier::ISH);
        if super::el2::repeats_tlbi() {
            // SAFETY: Forgetting translations changes none. A second TLBI of any kind and its DSB
            // complete the ones before (CVE-2025-10263, traps T08).
            unsafe { asm!("tlbi vale1is, xzr", "dsb ish", options(nostack, preserves_flags)) };
        }
    }
    fn restore(&mut self) {
        VTTBR_EL2.set(self.before);
        barrier::isb(barrier::SY);
    }
}

/// Forgets all translations of all VMs on all cores.
pub fn forget_all_vmids() {
    // SAFETY: Forgetting translations changes none.
    unsafe { asm!("dsb ishst", "tlbi alle1is", "dsb ish", options(nostack, preserves_flags)) };
    if super::el2::repeats_tlbi() {
        // SAFETY: As above (traps T08).
        unsafe { asm!("tlbi alle1is", "dsb ish", options(nostack, preserves_flags)) };
    }
    barrier::isb(barrier::SY);
}
