// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stage 2 and EL2's own map on the fake machine: what another core reaches, at any moment, is what
//! was asked for. Each protection has a twin without it, and the machine notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cofferdam::addr::{Address, HypVa, Ipa, IpaRange, Pa};
use cofferdam::arch::fake::memory::{Context, TableMemory, Translation, Violation};
use cofferdam::id::Vmid;
use cofferdam::memory::hyp_map::{self, hyp_map};
use cofferdam::memory::mapper::{Maintenance, MapError, Roots, Tables};
use cofferdam::memory::stage2::{BY_ADDRESS_MAX, Stage2, Tlb};
use cofferdam::spec::vmsa::{Features, Geometry, HypAttributes, MemAttrEncoding, Stage2Attributes};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4 * KIB;
const FEATURES: Features =
    Features { pa_bits: 44, vmid_bits: 8, encoding: MemAttrEncoding::Combining };

type Shared = Rc<RefCell<TableMemory>>;

struct FakeTables(Shared);

impl Tables for FakeTables {
    fn read(&self, slot: Pa) -> u64 {
        self.0.borrow().read(slot.get())
    }
    fn write(&mut self, slot: Pa, descriptor: u64) {
        self.0.borrow_mut().write(slot.get(), descriptor);
    }
    fn allocate(&mut self) -> Option<Pa> {
        self.0.borrow_mut().allocate().map(Pa::new)
    }
    fn free(&mut self, table: Pa) {
        self.0.borrow_mut().free(table.get());
    }
}

impl Roots for FakeTables {
    fn allocate_root(&mut self, bytes: u64) -> Option<Pa> {
        Some(Pa::new(self.0.borrow_mut().allocate_root(bytes)))
    }
    fn free_root(&mut self, root: Pa, bytes: u64) {
        self.0.borrow_mut().free_root(root.get(), bytes, false);
    }
}

/// What a broken machine layer, or a broken order of steps, would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    Faithful,
    NoPublish,
    NoSelect,
    NoStage2,
    NoStage1,
    NoComplete,
    NoCompleteBetween,
    Stage1First,
    NoRestore,
}

struct FakeTlb {
    memory: Shared,
    mutant: Mutant,
    completed: bool,
}

impl Tlb for FakeTlb {
    fn publish(&mut self) {
        if self.mutant != Mutant::NoPublish {
            self.memory.borrow_mut().publish();
        }
    }
    fn select(&mut self, vttbr: u64) {
        self.completed = false;
        // The twin acts on whatever VM was current.
        let other = 0xff << 48;
        let vttbr = if self.mutant == Mutant::NoSelect { other } else { vttbr };
        self.memory.borrow_mut().select(vttbr);
        if self.mutant == Mutant::Stage1First {
            self.memory.borrow_mut().invalidate_stage1();
            self.memory.borrow_mut().complete();
        }
    }
    fn invalidate_ipa(&mut self, ipa: Ipa) {
        if self.mutant != Mutant::NoStage2 {
            self.memory.borrow_mut().invalidate_ipa(ipa.get());
        }
    }
    fn invalidate_stage1(&mut self) {
        if !matches!(self.mutant, Mutant::NoStage1 | Mutant::Stage1First) {
            self.memory.borrow_mut().invalidate_stage1();
        }
    }
    fn invalidate_vm(&mut self) {
        if self.mutant != Mutant::NoStage2 {
            self.memory.borrow_mut().invalidate_vm();
        }
    }
    fn complete(&mut self) {
        let between = self.mutant == Mutant::NoCompleteBetween && !self.completed;
        self.completed = true;
        if self.mutant != Mutant::NoComplete && !between {
            self.memory.borrow_mut().complete();
        }
    }
    fn restore(&mut self) {
        if self.mutant != Mutant::NoRestore {
            self.memory.borrow_mut().restore();
        }
    }
}

struct Vm {
    memory: Shared,
    tables: FakeTables,
    tlb: FakeTlb,
    stage2: Stage2,
}

impl Vm {
    fn new(memory: &Shared, ipa_bits: u32, vmid: u16) -> Self {
        let geometry = Geometry::stage2(ipa_bits).unwrap();
        let root = Pa::new(memory.borrow_mut().allocate_root(geometry.root_bytes()));
        Self {
            memory: memory.clone(),
            tables: FakeTables(memory.clone()),
            tlb: FakeTlb { memory: memory.clone(), mutant: Mutant::Faithful, completed: false },
            stage2: Stage2::new(geometry, FEATURES, root, Vmid::new(vmid)).unwrap(),
        }
    }
    fn single() -> Self {
        Self::new(&memory(), 40, 7)
    }
    fn context(&self) -> Context {
        Context { vtcr: self.stage2.vtcr_el2(), vttbr: self.stage2.vttbr_el2() }
    }
    fn map(
        &mut self,
        ipa: u64,
        size: u64,
        pa: u64,
        attributes: Stage2Attributes,
    ) -> Result<(), MapError<Ipa>> {
        let outcome = self.stage2.map(
            &mut self.tables,
            &mut self.tlb,
            range(ipa, size),
            Pa::new(pa),
            attributes,
        );
        self.memory.borrow_mut().finish();
        outcome
    }
    fn map_ram(&mut self, ipa: u64, size: u64, pa: u64) {
        self.map(ipa, size, pa, Stage2Attributes::Ram).unwrap();
    }
    fn unmap(&mut self, ipa: u64, size: u64) -> Result<(), MapError<Ipa>> {
        let outcome = self.stage2.unmap(&mut self.tables, &mut self.tlb, range(ipa, size));
        self.memory.borrow_mut().finish();
        outcome
    }
    fn unmap_all(&mut self) {
        self.stage2.unmap_all(&mut self.tables, &mut self.tlb, &mut || ());
        self.memory.borrow_mut().finish();
    }
    fn watch(&self, ipa: u64) {
        self.memory.borrow_mut().watch(self.context(), ipa);
    }
    /// What a vCPU on another core meets.
    fn access(&self, ipa: u64) -> Option<Translation> {
        self.memory.borrow_mut().access(self.context(), ipa)
    }
    fn pa(&self, ipa: u64) -> Option<u64> {
        self.access(ipa).map(|translation| translation.pa)
    }
    fn violations(&self) -> Vec<Violation> {
        self.memory.borrow().violations().to_vec()
    }
    fn tables_in_use(&self) -> usize {
        self.memory.borrow().tables_in_use()
    }
    /// All leaves as (address, bytes).
    fn leaf_sizes(&self) -> Vec<(u64, u64)> {
        let leaves = self.stage2.leaves(&self.tables);
        leaves.map(|leaf| (leaf.input.start().get(), leaf.input.size())).collect()
    }
    /// All mappings, neighbours merged: start, end, output, attributes.
    fn mappings(&self) -> Vec<Mapping> {
        let leaves = self.stage2.leaves(&self.tables).map(|leaf| {
            let (start, end) = (leaf.input.start().get(), leaf.input.end().get());
            (start, end, leaf.output.get(), self.stage2.attributes(&leaf).unwrap())
        });
        merged(leaves)
    }
}

type Mapping = (u64, u64, u64, Stage2Attributes);

fn merged(mappings: impl Iterator<Item = Mapping>) -> Vec<Mapping> {
    let mut merged: Vec<Mapping> = Vec::new();
    for next in mappings {
        match merged.last_mut() {
            Some(last)
                if last.1 == next.0 && last.2 + (last.1 - last.0) == next.2 && last.3 == next.3 =>
            {
                last.1 = next.1;
            }
            _ => merged.push(next),
        }
    }
    merged
}

fn memory() -> Shared {
    Rc::new(RefCell::new(TableMemory::new(0xf_0000_0000)))
}

fn range(start: u64, size: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), size).unwrap()
}

#[test]
fn the_largest_blocks_that_fit_are_used() {
    let mut vm = Vm::single();
    let size = 2 * GIB + 32 * MIB + 2 * MIB + 64 * KIB + PAGE;
    vm.map_ram(GIB, size, 5 * GIB);
    let mut at = GIB;
    let expected = [GIB, GIB, 32 * MIB, 2 * MIB, 64 * KIB, PAGE].map(|bytes| {
        at += bytes;
        (at - bytes, bytes)
    });
    assert_eq!(vm.leaf_sizes(), expected);
    assert_eq!(vm.pa(GIB + size - 1), Some(5 * GIB + size - 1));
    assert_eq!(vm.pa(GIB + size), None);
    assert_eq!(vm.violations(), []);
}

#[test]
fn the_output_must_be_aligned_too() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, 2 * MIB, 5 * GIB + 64 * KIB);
    assert!(vm.leaf_sizes().iter().all(|&(_, bytes)| bytes == 64 * KIB));
    vm.map_ram(2 * GIB, 128 * KIB, 6 * GIB + PAGE);
    assert_eq!(vm.leaf_sizes().last(), Some(&(2 * GIB + 124 * KIB, PAGE)));
    assert_eq!(vm.pa(2 * GIB + 124 * KIB + 5), Some(6 * GIB + 128 * KIB + 5));
    assert_eq!(vm.violations(), []);
}

#[test]
fn t39_a_block_never_rounds_beyond_the_region() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, 3 * MIB / 2, GIB);
    assert_eq!(vm.pa(GIB + 3 * MIB / 2 - 1), Some(GIB + 3 * MIB / 2 - 1));
    assert_eq!(vm.pa(GIB + 3 * MIB / 2), None);
    assert_eq!(vm.pa(GIB - 1), None);
}

#[test]
fn t38_the_last_page_is_reached_and_nothing_beyond() {
    for bits in 32..=44 {
        let mut vm = Vm::new(&memory(), bits, 1);
        let end = 1u64 << bits;
        vm.map_ram(end - PAGE, PAGE, 0x8000_0000);
        vm.map_ram(0, PAGE, 0x9000_0000);
        assert_eq!(vm.pa(end - 1), Some(0x8000_0fff), "{bits} bits");
        let ram = Stage2Attributes::Ram;
        assert_eq!(vm.map(end, PAGE, 0, ram), Err(MapError::TooHigh));
        assert_eq!(vm.map(end - 2 * PAGE, 3 * PAGE, 0, ram), Err(MapError::TooHigh));
        assert_eq!(vm.unmap(end, PAGE), Err(MapError::TooHigh));
        for k in 12..64 {
            assert_eq!(vm.access(1 << k), None, "2^{k} is no alias of 0");
            assert_eq!(vm.stage2.translate(&vm.tables, Ipa::new(1 << k)), None);
        }
        assert_eq!(vm.violations(), []);
    }
}

#[test]
fn t38_blocks_on_both_sides_of_two_concatenated_roots() {
    let mut vm = Vm::new(&memory(), 41, 1);
    let seam = 1 << 39;
    vm.map_ram(seam - GIB, 2 * GIB, 8 * GIB);
    assert_eq!(vm.leaf_sizes(), [(seam - GIB, GIB), (seam, GIB)]);
    assert_eq!(vm.pa(seam + 5), Some(9 * GIB + 5));
    assert_eq!(vm.tables_in_use(), 0);
    assert_eq!(vm.violations(), []);
}

#[test]
fn t40_outputs_past_the_smallest_core_are_refused() {
    let mut vm = Vm::single();
    let ram = Stage2Attributes::Ram;
    assert_eq!(vm.map(0, PAGE, 1 << 44, ram), Err(MapError::TooHigh));
    assert_eq!(vm.map(0, 2 * PAGE, (1 << 44) - PAGE, ram), Err(MapError::TooHigh));
    assert_eq!(vm.map(0, PAGE, (1 << 44) - PAGE, ram), Ok(()));
    assert_eq!(vm.map(PAGE, PAGE, u64::MAX - 0xfff, ram), Err(MapError::TooHigh));
    let wide = Geometry::stage2(48).unwrap();
    assert!(Stage2::new(wide, FEATURES, Pa::new(0), Vmid::new(1)).is_none());
}

#[test]
fn misaligned_requests_are_refused() {
    let mut vm = Vm::single();
    let ram = Stage2Attributes::Ram;
    assert_eq!(vm.map(0x800, PAGE, 0, ram), Err(MapError::Unaligned));
    assert_eq!(vm.map(0, 0x800, 0, ram), Err(MapError::Unaligned));
    assert_eq!(vm.map(0, PAGE, 0x800, ram), Err(MapError::Unaligned));
    assert_eq!(vm.unmap(0x800, PAGE), Err(MapError::Unaligned));
    let geometry = Geometry::stage2(40).unwrap();
    let misaligned = Stage2::new(geometry, FEATURES, Pa::new(0x1000), Vmid::new(1));
    assert!(misaligned.is_none(), "two concatenated roots are aligned to 8 KiB");
}

#[test]
fn attributes_are_what_the_mmu_reads() {
    let mut vm = Vm::single();
    let all = Stage2Attributes::ALL;
    for (page, attributes) in (0..).zip(all) {
        vm.map(page * PAGE, PAGE, GIB, attributes).unwrap();
    }
    let expected = [(true, true, false), (false, true, false), (true, false, true)];
    for (page, expected) in (0..).zip(expected) {
        let met = vm.access(page * PAGE).unwrap();
        assert_eq!((met.writable, met.executable, met.device), expected);
    }
    for (page, attributes) in (0..).zip(all) {
        let translated = vm.stage2.translate(&vm.tables, Ipa::new(page * PAGE + 8));
        assert_eq!(translated, Some((Pa::new(GIB + 8), attributes)));
    }
}

#[test]
fn mapping_over_something_is_refused_and_changes_nothing() {
    let mut vm = Vm::single();
    vm.map_ram(GIB + 64 * KIB, PAGE, GIB);
    let (before, tables) = (vm.mappings(), vm.tables_in_use());
    let clash = Err(MapError::AlreadyMapped(Ipa::new(GIB + 64 * KIB)));
    let ram = Stage2Attributes::Ram;
    for (start, size) in [(GIB, GIB), (GIB, 64 * KIB + PAGE), (GIB + 64 * KIB, PAGE), (0, 4 * GIB)]
    {
        let refused = vm.map(start, size, 8 * GIB, ram);
        assert!(matches!(refused, Err(MapError::AlreadyMapped(_))));
        // Where the request is cut into pages the page is named.
        assert!(size != PAGE || refused == clash);
    }
    assert_eq!((vm.mappings(), vm.tables_in_use()), (before, tables));
    assert_eq!(vm.violations(), []);
}

#[test]
fn unmapping_what_is_not_mapped_is_refused_and_changes_nothing() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, 4 * PAGE, GIB);
    vm.map_ram(GIB + 5 * PAGE, PAGE, GIB);
    let before = vm.mappings();
    assert_eq!(vm.unmap(GIB, 6 * PAGE), Err(MapError::NotMapped(Ipa::new(GIB + 4 * PAGE))));
    assert_eq!(vm.unmap(GIB - PAGE, 2 * PAGE), Err(MapError::NotMapped(Ipa::new(GIB - PAGE))));
    assert_eq!(vm.mappings(), before);
}

#[test]
fn t05_a_part_of_a_run_is_unmapped_by_breaking_the_whole_run() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, 64 * KIB, 5 * GIB);
    vm.watch(GIB);
    vm.watch(GIB + 15 * PAGE);
    assert_eq!(vm.unmap(GIB + 3 * PAGE, PAGE), Ok(()));
    let expected = (0..16).filter(|&n| n != 3).map(|n| (GIB + n * PAGE, PAGE));
    assert_eq!(vm.leaf_sizes(), expected.collect::<Vec<_>>());
    assert_eq!(vm.pa(GIB + 3 * PAGE), None);
    assert_eq!(vm.pa(GIB + 15 * PAGE), Some(5 * GIB + 15 * PAGE));
    assert_eq!(vm.violations(), []);
}

#[test]
fn t05_a_page_is_taken_out_of_a_1_gib_block() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, GIB, 5 * GIB);
    vm.watch(GIB);
    vm.watch(GIB + 700 * MIB);
    assert_eq!(vm.unmap(GIB + 700 * MIB, PAGE), Ok(()));
    assert_eq!(vm.tables_in_use(), 2);
    let end = GIB + 700 * MIB;
    let ram = Stage2Attributes::Ram;
    let rest = [(GIB, end, 5 * GIB, ram), (end + PAGE, 2 * GIB, 5 * GIB + 700 * MIB + PAGE, ram)];
    assert_eq!(vm.mappings(), rest);
    assert_eq!((vm.pa(GIB), vm.pa(end)), (Some(5 * GIB), None));
    assert_eq!(vm.violations(), []);
}

/// A descriptor that is changed in place, as nothing of ours does.
#[test]
fn t05_the_machine_notices_a_change_without_break() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, GIB, 5 * GIB);
    let slot = Pa::new(vm.stage2.root().get() + 8);
    let block = vm.tables.read(slot);
    vm.tables.write(slot, block + GIB);
    assert_eq!(vm.violations(), [Violation::ChangedWithoutBreak(slot.get())]);
}

#[test]
fn t05_the_machine_notices_a_make_before_the_invalidation() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, GIB, 5 * GIB);
    vm.watch(GIB);
    let slot = Pa::new(vm.stage2.root().get() + 8);
    let block = vm.tables.read(slot);
    vm.tables.write(slot, 0);
    vm.tlb.publish();
    vm.tables.write(slot, block + GIB);
    assert_eq!(vm.violations(), [Violation::MadeBeforeInvalidate(slot.get())]);
}

/// Maps, lets a neighbour look, unmaps with a broken order, and returns what still is reached.
fn reached_after_unmap(pages: u64, mutant: Mutant) -> (Option<u64>, Vec<Violation>) {
    let memory = memory();
    let mut vm = Vm::new(&memory, 40, 7);
    vm.map_ram(GIB, pages * PAGE, 5 * GIB + PAGE);
    vm.watch(GIB + PAGE);
    assert_eq!(vm.pa(GIB + PAGE), Some(5 * GIB + 2 * PAGE));
    vm.tlb.mutant = mutant;
    vm.unmap(GIB, pages * PAGE).unwrap();
    (vm.pa(GIB + PAGE), vm.violations())
}

#[test]
fn t06_t07_after_unmap_nothing_is_reached() {
    for pages in [2, BY_ADDRESS_MAX, BY_ADDRESS_MAX + 1] {
        assert_eq!(reached_after_unmap(pages, Mutant::Faithful), (None, vec![]));
    }
}

#[test]
fn t06_t07_the_twins_without_a_step_are_noticed() {
    use Mutant::*;
    let stale = Some(5 * GIB + 2 * PAGE);
    for mutant in
        [NoPublish, NoSelect, NoStage2, NoStage1, NoComplete, NoCompleteBetween, Stage1First]
    {
        assert_eq!(reached_after_unmap(2, mutant).0, stale, "{mutant:?}");
    }
    for mutant in [NoPublish, NoSelect, NoStage2, NoComplete] {
        assert_eq!(reached_after_unmap(BY_ADDRESS_MAX + 1, mutant).0, stale, "{mutant:?}");
    }
    let (reached, violations) = reached_after_unmap(2, NoRestore);
    assert_eq!((reached, violations), (None, vec![Violation::LeftUnfinished]));
}

#[test]
fn a_table_is_freed_only_when_no_walker_can_be_in_it() {
    let (_, violations) = reached_after_unmap(2, Mutant::NoStage2);
    assert!(violations.iter().any(|v| matches!(v, Violation::FreedInUse(_))), "{violations:?}");
}

#[test]
fn t14_a_table_is_published_before_it_is_linked() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, PAGE, GIB);
    assert_eq!(vm.violations(), []);
    vm.tlb.mutant = Mutant::NoPublish;
    vm.map_ram(2 * GIB, PAGE, GIB);
    let _ = vm.access(2 * GIB);
    let violations = vm.violations();
    assert!(violations.iter().any(|v| matches!(v, Violation::LinkedUnpublished(_))));
    assert!(violations.iter().any(|v| matches!(v, Violation::WalkedUnpublished(_))));
}

#[test]
fn t07_one_vms_invalidation_leaves_the_other_alone() {
    let memory = memory();
    let mut a = Vm::new(&memory, 40, 1);
    let mut b = Vm::new(&memory, 40, 2);
    a.map_ram(GIB, 2 * MIB, 4 * GIB);
    b.map_ram(GIB, 2 * MIB, 5 * GIB);
    a.watch(GIB);
    b.watch(GIB);
    a.unmap(GIB, 2 * MIB).unwrap();
    assert_eq!((a.pa(GIB), b.pa(GIB)), (None, Some(5 * GIB)));
    a.map_ram(GIB, 2 * MIB, 6 * GIB);
    assert_eq!((a.pa(GIB), b.pa(GIB)), (Some(6 * GIB), Some(5 * GIB)));
    assert_eq!(a.violations(), []);
}

/// Two VMs under one VMID: the second gets the first one's memory. The twin of T10.
#[test]
fn t10_a_shared_vmid_is_noticed() {
    let memory = memory();
    let mut a = Vm::new(&memory, 40, 1);
    let mut b = Vm::new(&memory, 40, 1);
    a.map_ram(GIB, 2 * MIB, 4 * GIB);
    b.map_ram(GIB, 2 * MIB, 5 * GIB);
    a.watch(GIB);
    assert_eq!(b.pa(GIB), Some(4 * GIB), "the neighbour's memory");
}

#[test]
fn t110_map_without_a_table_at_any_point_changes_nothing() {
    let attempt = |tables| {
        let mut vm = Vm::single();
        vm.map_ram(GIB + 4 * MIB, PAGE, GIB);
        let (before, in_use) = (vm.mappings(), vm.tables_in_use());
        vm.memory.borrow_mut().limit_tables(Some(tables));
        // Both ends of two different GiB are pages.
        let ram = Stage2Attributes::Ram;
        let outcome = vm.map(2 * GIB - PAGE, 2 * GIB + 2 * PAGE, 8 * GIB - PAGE, ram);
        if outcome.is_err() {
            assert_eq!(outcome, Err(MapError::OutOfTables));
            assert_eq!((vm.mappings(), vm.tables_in_use()), (before, in_use));
        }
        assert_eq!(vm.violations(), []);
        outcome.is_ok()
    };
    let needed = 3;
    for tables in 0..8 {
        assert_eq!(attempt(tables), tables >= needed, "{tables} tables");
    }
}

#[test]
fn t110_unmap_without_a_table_at_any_point_changes_nothing() {
    let attempt = |tables| {
        let mut vm = Vm::single();
        vm.map_ram(GIB, 2 * GIB, 4 * GIB);
        let before = vm.mappings();
        vm.memory.borrow_mut().limit_tables(Some(tables));
        let outcome = vm.unmap(2 * GIB - PAGE, 2 * PAGE);
        if outcome.is_err() {
            assert_eq!(outcome, Err(MapError::OutOfTables));
            assert_eq!((vm.mappings(), vm.tables_in_use()), (before, 0));
        } else {
            assert_eq!(vm.tables_in_use(), 4);
        }
        assert_eq!(vm.violations(), []);
        outcome.is_ok()
    };
    for tables in 0..6 {
        assert_eq!(attempt(tables), tables >= 4, "{tables} tables");
    }
}

#[test]
fn whole_leaves_are_unmapped_without_any_memory() {
    let mut vm = Vm::single();
    vm.map_ram(GIB, GIB + 2 * MIB + 64 * KIB, 4 * GIB);
    vm.memory.borrow_mut().limit_tables(Some(0));
    assert_eq!(vm.unmap(GIB, GIB + 2 * MIB + 64 * KIB), Ok(()));
    assert_eq!((vm.mappings(), vm.tables_in_use()), (vec![], 0));
    assert_eq!(vm.violations(), []);
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        ipa: u64,
        size: u64,
        shift: u64,
        attributes: Stage2Attributes,
    },
    Unmap {
        ipa: u64,
        size: u64,
    },
    /// Cuts so many pages from both ends of a mapping and unmaps the rest.
    UnmapInside {
        which: usize,
        cut_pages: (u64, u64),
    },
}

/// Ranges around the corners: the seam of two roots, a GiB, 32 MiB; a page more or less.
fn any_range() -> impl Strategy<Value = (u64, u64)> {
    let base =
        prop_oneof![Just(0), Just(GIB), Just((1 << 39) - 2 * MIB), Just((1 << 40) - 3 * GIB)];
    let unit = prop_oneof![Just(PAGE), Just(64 * KIB), Just(2 * MIB), Just(32 * MIB), Just(GIB)];
    (base, unit, 0..3u64, 1..4u64, 0..3u64, 0..3u64).prop_map(
        |(base, unit, skip, count, pages_before, pages_less)| {
            let start = base + skip * unit + pages_before * PAGE;
            let size = (count * unit).saturating_sub(pages_less * PAGE).max(PAGE);
            (start, size)
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let attributes = proptest::sample::select(&Stage2Attributes::ALL[..]);
    // How far outputs are off: nothing, 2 MiB or, for what is not too big, one page or 64 KiB.
    let shift = prop_oneof![3 => Just(0), 1 => Just(2 * MIB), 1 => Just(PAGE), 1 => Just(64 * KIB)];
    let map = (any_range(), shift, attributes).prop_map(|((ipa, size), shift, attributes)| {
        let shift = if size > 8 * MIB && shift < 2 * MIB { 0 } else { shift };
        Step::Map { ipa, size, shift, attributes }
    });
    let unmap = any_range().prop_map(|(ipa, size)| Step::Unmap { ipa, size });
    let cut = prop_oneof![Just(0), Just(1), Just(16), Just(512), Just(700)];
    let inside = (0..8usize, (cut.clone(), cut))
        .prop_map(|(which, cut_pages)| Step::UnmapInside { which, cut_pages });
    prop_oneof![3 => map, 1 => unmap, 3 => inside]
}

/// What is mapped: end, output and attributes by start.
#[derive(Default)]
struct Model(BTreeMap<u64, (u64, u64, Stage2Attributes)>);

impl Model {
    fn all(&self) -> Vec<Mapping> {
        merged(self.0.iter().map(|(&start, &(end, pa, attributes))| (start, end, pa, attributes)))
    }
    fn at(&self, ipa: u64) -> Option<(u64, Stage2Attributes)> {
        let (start, (end, pa, attributes)) = self.0.range(..=ipa).next_back()?;
        (ipa < *end).then_some((pa + (ipa - start), *attributes))
    }
    fn is_free(&self, start: u64, end: u64) -> bool {
        self.0.iter().all(|(&s, &(e, ..))| e <= start || end <= s)
    }
    fn is_mapped(&self, start: u64, end: u64) -> bool {
        let ranges = self.0.iter().map(|(&start, mapping)| (start, mapping.0));
        ranges.fold(start, |at, (s, e)| if s <= at && at < e { e } else { at }) >= end
    }
    fn unmap(&mut self, start: u64, end: u64) {
        for (s, (e, pa, attributes)) in std::mem::take(&mut self.0) {
            let (left, right) = (e.min(start), s.max(end));
            if s < left {
                self.0.insert(s, (left, pa, attributes));
            }
            if right < e {
                self.0.insert(right, (e, pa + (right - s), attributes));
            }
        }
    }
}

/// Carries a step out on both, and checks whether it was to be refused.
fn carry_out(vm: &mut Vm, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    let (ipa, size) = match step {
        Step::Map { ipa, size, shift, attributes } => {
            let pa = ipa + 16 * GIB + shift;
            let expected = ipa + size <= 1 << 40 && model.is_free(ipa, ipa + size);
            prop_assert_eq!(vm.map(ipa, size, pa, attributes).is_ok(), expected);
            if expected {
                model.0.insert(ipa, (ipa + size, pa, attributes));
            }
            return Ok(());
        }
        Step::Unmap { ipa, size } => (ipa, size),
        Step::UnmapInside { which, cut_pages: (first, last) } => {
            let all = model.all();
            let Some(&(start, end, ..)) = all.get(which % all.len().max(1)) else { return Ok(()) };
            let cut = (first + last) * PAGE;
            if end - start <= cut {
                (start, end - start)
            } else {
                (start + first * PAGE, end - start - cut)
            }
        }
    };
    let expected = model.is_mapped(ipa, ipa + size);
    prop_assert_eq!(vm.unmap(ipa, size).is_ok(), expected);
    if expected {
        model.unmap(ipa, ipa + size);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// The mapped set is the requested set, with outputs and attributes; no other address changes;
    /// other cores, whose TLBs keep all they can, reach exactly that; no table is lost.
    #[test]
    fn t39_tables_and_tlbs_are_the_model(
        steps in proptest::collection::vec(any_step(), 1..16),
        watched in proptest::collection::vec(any_range(), 4),
    ) {
        let mut vm = Vm::single();
        let mut model = Model::default();
        for (start, size) in &watched {
            vm.watch(*start);
            vm.watch(start + size - 1);
        }
        for step in steps {
            carry_out(&mut vm, &mut model, step)?;
            prop_assert_eq!(vm.mappings(), model.all());
            let edges = model.all().into_iter().flat_map(|m| [m.0, m.1 - 1, m.1, m.0.max(1) - 1]);
            let watched = watched.iter().flat_map(|(start, size)| [*start, start + size - 1]);
            for ipa in edges.chain(watched) {
                let expected = model.at(ipa);
                let met = vm.access(ipa);
                prop_assert_eq!(met.map(|m| m.pa), expected.map(|e| e.0), "{:#x}", ipa);
                let device = expected.map(|e| e.1 == Stage2Attributes::Device);
                prop_assert_eq!(met.map(|m| m.device), device);
                let translated = vm.stage2.translate(&vm.tables, Ipa::new(ipa));
                prop_assert_eq!(translated.map(|t| (t.0.get(), t.1)), expected);
            }
            prop_assert_eq!(vm.violations(), vec![]);
        }
        // Half of the cases take it down piece by piece.
        if model.0.len() % 2 == 0 {
            for (start, end, ..) in model.all() {
                vm.unmap(start, end - start).unwrap();
            }
        } else {
            vm.unmap_all();
        }
        prop_assert_eq!(vm.mappings(), vec![]);
        prop_assert_eq!(vm.tables_in_use(), 0, "tables are lost");
        prop_assert_eq!(vm.violations(), vec![]);
    }
}

/// The one core that builds EL2's map: its MMU is off.
struct MmuOff(Shared);

impl Maintenance<HypVa> for MmuOff {
    fn publish(&mut self) {
        self.0.borrow_mut().publish();
    }
    fn invalidate(&mut self, _: cofferdam::addr::AddrRange<HypVa>) {
        self.0.borrow_mut().publish();
    }
}

#[test]
fn el2_map_is_what_the_mmu_reads() {
    let memory = memory();
    let root = memory.borrow_mut().allocate_root(PAGE);
    let mut tables = FakeTables(memory.clone());
    let mut maintenance = MmuOff(memory.clone());
    let mut map = hyp_map(40, Pa::new(root)).unwrap();
    let image = 0x4020_0000;
    let parts = [
        (image, 0x2_3000, HypAttributes::Text),
        (image + 0x2_3000, 0x8000, HypAttributes::Rodata),
        (image + 0x2_c000, 0x4000, HypAttributes::Data),
        (0x900_0000, PAGE, HypAttributes::Device),
        (0x1_0000_0000, 4 * GIB, HypAttributes::Data),
    ];
    for (start, size, attributes) in parts {
        let range = cofferdam::addr::AddrRange::new(HypVa::new(start), size).unwrap();
        map.map(&mut tables, &mut maintenance, range, Pa::new(start), attributes).unwrap();
    }
    let tcr = hyp_map::tcr_el2(&map);
    let walk = |address| memory.borrow().walk_el2(tcr, root, address);
    for (start, size, attributes) in parts {
        for address in [start, start + size - 1] {
            let (pa, descriptor) = walk(address).unwrap();
            assert_eq!(pa, address);
            let (xn, read_only) = (descriptor >> 54 & 1 == 1, descriptor >> 7 & 1 == 1);
            assert_eq!(!xn, attributes == HypAttributes::Text);
            assert_eq!(
                !read_only,
                matches!(attributes, HypAttributes::Data | HypAttributes::Device)
            );
            // T45, of every page that is mapped.
            assert!(xn || read_only);
        }
    }
    assert_eq!(walk(image + 0x2_b000), None, "the guard page");
    assert_eq!(walk(0x2_0000_0000), None);
    assert_eq!(map.leaves(&tables).filter(|leaf| leaf.input.size() == GIB).count(), 4);
    assert_eq!(memory.borrow().violations(), []);
}
