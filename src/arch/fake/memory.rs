// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Table memory with a table walker and TLBs, and a ledger of what lies in caches.
//!
//! Deliberately as unkind as the architecture allows: another core's walker looks at watched
//! addresses whenever something becomes visible, keeps what it saw until a TLBI *and* its barrier,
//! makes combined entries from old stage-2 ones, and sees no write before it was published. What
//! software must never do is noted as a [`Violation`]. Reads descriptors and registers by itself,
//! bit by bit from DDI 0487 D8, so that it can contradict the code under test.
#![forbid(unsafe_code)]

mod cache;
mod tlb;

pub use cache::CacheLedger;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;
use tlb::{Pending, TlbModel};

const PAGE: u64 = 0x1000;
const ADDRESS: u64 = 0xffff_ffff_f000;
const CONTIGUOUS: u64 = 1 << 52;

/// What software must never do, whether or not it goes wrong this time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A valid descriptor was replaced by another valid one at this address.
    ChangedWithoutBreak(u64),
    /// A descriptor was made while a TLB still held its last value.
    MadeBeforeInvalidate(u64),
    /// The way to a table was written before the table's contents were published.
    LinkedUnpublished(u64),
    /// Another core walked through a descriptor that was not published.
    WalkedUnpublished(u64),
    /// A leaf has the contiguous hint, and its 16 neighbours do not make one run.
    TornRun(u64),
    /// A table was freed that a TLB may still walk, or that is still linked.
    FreedInUse(u64),
    /// A page was freed that is no table.
    FreedTwice(u64),
    /// A TLBI was issued with no VM selected.
    InvalidatedNothing,
    /// A change ended with another VM's VTTBR_EL2 in place, or with work not waited for.
    LeftUnfinished,
}

/// What a guest's access meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address.
    pub pa: u64,
    /// S2AP allows writes.
    pub writable: bool,
    /// XN does not forbid fetches.
    pub executable: bool,
    /// MemAttr says Device.
    pub device: bool,
}

/// A guest's registers as a core holds them: which tables it walks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
}

/// A descriptor that leads to a table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Way {
    slot: u64,
    descriptor: u64,
    /// The first address that it holds for.
    start: u64,
    /// For how many bytes of addresses.
    bytes: u64,
}

/// What a walk met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Walk {
    ways: Vec<Way>,
    /// The descriptor at the end: where it is and what it says.
    slot: u64,
    descriptor: u64,
    /// Whether `descriptor` is a leaf, and then the bytes that it maps.
    leaf_bytes: Option<u64>,
}

/// The machine's table memory and the TLBs of its other cores.
#[derive(Debug, Default)]
pub struct TableMemory {
    /// What all cores see.
    visible: BTreeMap<u64, u64>,
    /// What was written and not published.
    pending: BTreeMap<u64, u64>,
    allocated: BTreeSet<u64>,
    free: Vec<u64>,
    /// The bytes of each root.
    roots: BTreeMap<u64, u64>,
    free_roots: Vec<(u64, u64)>,
    next: u64,
    tables_left: Option<usize>,
    tlb: TlbModel,
    watched: Vec<(Context, u64)>,
    violations: Vec<Violation>,
    accesses: Cell<u64>,
}

impl TableMemory {
    /// Makes memory whose tables begin at `base`, a multiple of 64 KiB.
    #[must_use]
    pub fn new(base: u64) -> Self {
        Self { next: base, ..Self::default() }
    }
    /// Takes `bytes` of zeros, aligned to `bytes`, for a root.
    pub fn allocate_root(&mut self, bytes: u64) -> u64 {
        let free = self.free_roots.iter().position(|(_, other)| *other == bytes);
        let root = free.map(|n| self.free_roots.swap_remove(n).0).unwrap_or_else(|| {
            let root = self.next.next_multiple_of(bytes);
            self.next = root + bytes;
            root
        });
        self.roots.insert(root, bytes);
        root
    }
    /// Gives back a root, which a core may still have in its VTTBR_EL2.
    pub fn free_root(&mut self, root: u64, bytes: u64, is_walked: bool) {
        if self.roots.remove(&root) != Some(bytes) {
            self.note(Violation::FreedTwice(root));
            return;
        }
        let table = root..root + bytes;
        let has_entries = self.visible.range(table.clone()).any(|(_, descriptor)| *descriptor != 0);
        if is_walked || has_entries || table.clone().step_by(8).any(|slot| self.tlb.walks_by(slot))
        {
            self.note(Violation::FreedInUse(root));
        }
        self.visible.retain(|slot, _| !table.contains(slot));
        self.pending.retain(|slot, _| !table.contains(slot));
        // No other core has it any more.
        self.watched.retain(|(context, _)| context.vttbr & ADDRESS != root);
        self.free_roots.push((root, bytes));
    }
    /// Lets only this many more tables be allocated.
    pub fn limit_tables(&mut self, tables: Option<usize>) {
        self.tables_left = tables;
    }
    /// Returns how many roots are allocated.
    #[must_use]
    pub fn roots_in_use(&self) -> usize {
        self.roots.len()
    }
    /// Returns how many tables are allocated, roots apart.
    #[must_use]
    pub fn tables_in_use(&self) -> usize {
        self.allocated.len()
    }
    /// Lets another core's walker look at an address from now on, whenever it likes.
    pub fn watch(&mut self, context: Context, address: u64) {
        self.watched.push((context, address));
        self.speculate();
    }
    /// Returns what has gone wrong so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
    /// Notes that a change is said to be finished.
    pub fn finish(&mut self) {
        let quiet = self.tlb.begun.is_empty() && self.pending.is_empty();
        if self.tlb.selected.is_some() || !quiet {
            self.note(Violation::LeftUnfinished);
        }
    }

    /// Returns how many descriptors software has read and written since the last time.
    pub fn take_accesses(&self) -> u64 {
        self.accesses.take()
    }

    /// Reads a descriptor as the writing core sees it.
    #[must_use]
    pub fn read(&self, slot: u64) -> u64 {
        self.accesses.set(self.accesses.get() + 1);
        let written = self.pending.get(&slot).or_else(|| self.visible.get(&slot));
        written.copied().unwrap_or(0)
    }
    /// Writes a descriptor.
    pub fn write(&mut self, slot: u64, new: u64) {
        let old = self.read(slot);
        let valid = |descriptor: u64| descriptor & 1 != 0;
        if valid(old) && valid(new) && old != new {
            self.note(Violation::ChangedWithoutBreak(slot));
        }
        if valid(new) && self.tlb.holds_other(slot, new) {
            self.note(Violation::MadeBeforeInvalidate(slot));
        }
        let table = new & ADDRESS;
        let links = new & 3 == 3 && self.allocated.contains(&table);
        if links && self.pending.range(table..table + PAGE).next().is_some() {
            self.note(Violation::LinkedUnpublished(table));
        }
        self.pending.insert(slot, new);
    }
    /// Takes a page and writes zeros to it.
    pub fn allocate(&mut self) -> Option<u64> {
        if let Some(left) = &mut self.tables_left {
            *left = left.checked_sub(1)?;
        }
        let table = self.free.pop().unwrap_or_else(|| {
            self.next += PAGE;
            self.next - PAGE
        });
        self.allocated.insert(table);
        // What was there before is visible until the zeros are published.
        self.visible.insert(table, 0xdead_b001);
        self.pending.extend((table..table + PAGE).step_by(8).map(|slot| (slot, 0)));
        Some(table)
    }
    /// Gives a page back.
    pub fn free(&mut self, table: u64) {
        if !self.allocated.remove(&table) {
            self.note(Violation::FreedTwice(table));
            return;
        }
        let linked = |(&slot, &descriptor): (&u64, &u64)| {
            descriptor & ADDRESS == table
                && descriptor & 3 == 3
                && self.allocated.contains(&(slot & !0xfff))
        };
        if self.tlb.walks_through(table) || self.visible.iter().any(linked) {
            self.note(Violation::FreedInUse(table));
        }
        self.pending.retain(|slot, _| slot & !0xfff != table);
        self.free.push(table);
    }

    /// DSB ISHST: all writes so far become visible.
    pub fn publish(&mut self) {
        self.speculate();
        self.visible.append(&mut self.pending);
        self.visible.retain(|_, descriptor| *descriptor != 0);
        self.speculate();
    }
    /// Writes VTTBR_EL2 for the invalidations that follow.
    pub fn select(&mut self, vttbr: u64) {
        self.tlb.selected = Some(vttbr >> 48);
    }
    /// Writes back the VTTBR_EL2 from before.
    pub fn restore(&mut self) {
        self.tlb.selected = None;
    }
    /// TLBI IPAS2E1IS.
    pub fn invalidate_ipa(&mut self, ipa: u64) {
        self.begin(|vmid| Pending::Stage2 { vmid, ipa });
    }
    /// TLBI VMALLE1IS.
    pub fn invalidate_stage1(&mut self) {
        self.begin(|vmid| Pending::Combined { vmid });
    }
    /// TLBI VMALLS12E1IS.
    pub fn invalidate_vm(&mut self) {
        self.begin(|vmid| Pending::All { vmid });
    }
    /// TLBI ALLE1IS and all that belongs to it.
    pub fn forget_all(&mut self) {
        self.publish();
        self.tlb.forget_all();
        self.speculate();
    }
    /// DSB ISH: what was begun is done, in the worst order, while other cores walk on.
    pub fn complete(&mut self) {
        let mut begun = std::mem::take(&mut self.tlb.begun);
        begun.sort_by_key(|pending| !matches!(pending, Pending::Combined { .. }));
        for pending in begun {
            self.tlb.apply(&pending);
            self.speculate();
        }
        self.publish();
    }

    /// Lets a guest on another core use an address: `None` is a translation fault.
    pub fn access(&mut self, context: Context, address: u64) -> Option<Translation> {
        let walk = self.walk(context, address)?;
        for slot in walk.ways.iter().map(|way| way.slot).chain([walk.slot]) {
            if self.pending.contains_key(&slot) {
                self.note(Violation::WalkedUnpublished(slot));
            }
        }
        if walk.descriptor & CONTIGUOUS != 0 && !self.is_run(&walk) {
            self.note(Violation::TornRun(walk.slot));
        }
        let walk = self.tlb.lookup(context.vttbr >> 48, address, walk);
        translation(&walk, address)
    }

    /// Walks as the MMU does, by registers and memory alone.
    fn walk(&self, Context { vtcr, vttbr }: Context, address: u64) -> Option<Walk> {
        let input_bits = 64 - (vtcr & 0x3f);
        let start_level = match vtcr >> 6 & 3 {
            2 => 0,
            1 => 1,
            _ => 2,
        };
        (address >> input_bits == 0).then(|| self.walk_from(vttbr & ADDRESS, start_level, address))
    }

    /// Walks from a root at a level, whatever the regime.
    fn walk_from(&self, root: u64, start_level: u32, address: u64) -> Walk {
        let mut walk = Walk::default();
        let mut slot = root + (address >> (39 - 9 * start_level)) * 8;
        for level in start_level..4 {
            let shift = 39 - 9 * level;
            let descriptor = self.visible.get(&slot).copied().unwrap_or(0);
            (walk.slot, walk.descriptor) = (slot, descriptor);
            match (descriptor & 3, level) {
                (3, 3) | (1, 1 | 2) => {
                    walk.leaf_bytes = Some(1 << shift);
                    break;
                }
                (3, _) => {
                    let bytes = 1 << shift;
                    walk.ways.push(Way { slot, descriptor, start: address & !(bytes - 1), bytes });
                    slot = (descriptor & ADDRESS) + (address >> (shift - 9) & 0x1ff) * 8;
                }
                _ => break,
            }
        }
        walk
    }

    /// Returns where a stage-1 walk of EL2 leads, and the leaf's descriptor.
    #[must_use]
    pub fn walk_el2(&self, tcr: u64, ttbr0: u64, address: u64) -> Option<(u64, u64)> {
        let input_bits = 64 - (tcr & 0x3f);
        if address >> input_bits != 0 {
            return None;
        }
        let start_level = if input_bits > 39 { 0 } else { 1 };
        let walk = self.walk_from(ttbr0, start_level, address);
        let bytes = walk.leaf_bytes?;
        Some((walk.descriptor & ADDRESS | address & (bytes - 1), walk.descriptor))
    }

    /// Returns whether the 16 leaves around one are alike, side by side, and aligned to their size.
    fn is_run(&self, walk: &Walk) -> bool {
        let bytes = walk.leaf_bytes.unwrap_or(0);
        let first = walk.slot & !0x7f;
        let base = self.read(first);
        base & ADDRESS & (16 * bytes).wrapping_sub(1) == 0
            && (0..16).all(|n| self.read(first + 8 * n) == base + n * bytes)
    }

    fn begin(&mut self, make: impl FnOnce(u64) -> Pending) {
        match self.tlb.selected {
            Some(vmid) => self.tlb.begun.push(make(vmid)),
            None => self.note(Violation::InvalidatedNothing),
        }
    }

    fn speculate(&mut self) {
        for index in 0..self.watched.len() {
            let Some(&(context, address)) = self.watched.get(index) else { return };
            if let Some(walk) = self.walk(context, address) {
                self.tlb.fill(context.vttbr >> 48, address, walk);
            }
        }
    }

    fn note(&mut self, violation: Violation) {
        self.violations.push(violation);
    }
}

/// Reads a stage-2 leaf: S2AP 7:6, XN 54, MemAttr 5:2.
fn translation(walk: &Walk, address: u64) -> Option<Translation> {
    let bytes = walk.leaf_bytes?;
    // A leaf without its access flag (bit 10) faults.
    (walk.descriptor >> 10 & 1 == 1).then_some(Translation {
        pa: walk.descriptor & ADDRESS | address & (bytes - 1),
        writable: walk.descriptor >> 7 & 1 == 1,
        executable: walk.descriptor >> 54 & 1 == 0,
        device: walk.descriptor >> 4 & 3 == 0,
    })
}
