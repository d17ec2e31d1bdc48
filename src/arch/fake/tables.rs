// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Translation tables of the fake machine, taken from the program's heap, and what walks them:
//! EL2, and the cores of VMs by way of TLBs that keep what they are not told to forget.
//!
//! All of it is a thread's own, as memory is.
#![forbid(unsafe_code)]

use super::board::{HypMapError, HypMemory};
use super::machine::{uncounted, with};
use super::memory::TableMemory;
use crate::addr::{AddrRange, Address, HypVa, Ipa, PAGE_SIZE, Pa, PaRange};
use crate::memory::hyp_map::{HypMap, hyp_map};
use crate::memory::mapper::{Maintenance, MapError, Roots, Tables, pieces};
use crate::memory::stage2;
use crate::spec::vmsa::HypAttributes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

std::thread_local! {
    static TABLES: RefCell<FakeTables> = RefCell::new(FakeTables {
        memory: TableMemory::new(TABLES_AT),
        heap: BTreeMap::new(),
    });
    /// EL2's map, as far as tests care: the memory of VMs.
    static HYP_MAP: RefCell<Option<HypMap>> = const { RefCell::new(None) };
    static HEAP_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Where translation tables are.
const TABLES_AT: u64 = 0xf_0000_0000;

/// The memory of tables, and the heap that it is taken from.
struct FakeTables {
    memory: TableMemory,
    /// What stands for each table on the program's heap, which a test lets run out.
    heap: BTreeMap<u64, Vec<u8>>,
}

/// Makes this thread's machine one without tables, for another hypervisor.
pub fn forget_tables() {
    let fresh = FakeTables { memory: TableMemory::new(TABLES_AT), heap: BTreeMap::new() };
    uncounted(|| drop(TABLES.replace(fresh)));
    HYP_MAP.set(None);
}

/// Looks at the memory of tables and at the TLBs of other cores.
pub fn with_tables<R>(look: impl FnOnce(&mut TableMemory) -> R) -> R {
    uncounted(|| TABLES.with_borrow_mut(|tables| look(&mut tables.memory)))
}

/// Takes memory for a table from the program's heap.
fn take_heap(bytes: u64) -> Option<Vec<u8>> {
    let mut page = Vec::new();
    page.try_reserve_exact(usize::try_from(bytes).ok()?).ok()?;
    Some(page)
}

/// Gives it back.
fn release_heap(table: Pa) {
    let held = uncounted(|| TABLES.with_borrow_mut(|tables| tables.heap.remove(&table.get())));
    // It was counted when it was taken.
    drop(held);
}

/// Notes that the program's heap holds so many bytes, for [`heap_bytes`].
pub fn set_heap_bytes(bytes: usize) {
    HEAP_BYTES.set(bytes);
}
/// Returns the bytes that a test says are allocated.
#[must_use]
pub fn heap_bytes() -> usize {
    HEAP_BYTES.get()
}

/// Translation tables in the fake memory.
#[derive(Debug)]
pub struct HeapTables;

impl HeapTables {
    /// Takes zeroed memory for a root.
    #[must_use]
    pub fn allocate_root(bytes: u64) -> Option<Pa> {
        let held = take_heap(bytes)?;
        let root = with_tables(|tables| tables.allocate_root(bytes));
        uncounted(|| TABLES.with_borrow_mut(|tables| tables.heap.insert(root, held)));
        Some(Pa::new(root))
    }
}

impl Tables for HeapTables {
    fn read(&self, slot: Pa) -> u64 {
        with_tables(|tables| tables.read(slot.get()))
    }
    fn write(&mut self, slot: Pa, descriptor: u64) {
        with_tables(|tables| tables.write(slot.get(), descriptor));
    }
    fn allocate(&mut self) -> Option<Pa> {
        let held = take_heap(PAGE_SIZE)?;
        let table = with_tables(TableMemory::allocate)?;
        uncounted(|| TABLES.with_borrow_mut(|tables| tables.heap.insert(table, held)));
        Some(Pa::new(table))
    }
    fn free(&mut self, table: Pa) {
        with_tables(|tables| tables.free(table.get()));
        release_heap(table);
    }
}

impl Roots for HeapTables {
    fn allocate_root(&mut self, bytes: u64) -> Option<Pa> {
        Self::allocate_root(bytes)
    }
    fn free_root(&mut self, root: Pa, bytes: u64) {
        let is_walked = with(|core| core.vttbr & 0xffff_ffff_f000 == root.get());
        with_tables(|tables| tables.free_root(root.get(), bytes, is_walked));
        release_heap(root);
    }
}

/// Maps memory at EL2, piece by piece.
///
/// # Errors
/// Part of it is mapped already, or memory for tables has run out; nothing is mapped then.
pub fn map_memory(
    range: PaRange,
    attributes: HypAttributes,
    pause: &mut dyn FnMut(),
) -> Result<HypMemory, HypMapError> {
    for (piece, pa) in pieces(identity(range)?, range.start()) {
        let mapped =
            with_hyp_map(|map| map.map(&mut HeapTables, &mut HypTlb, piece, pa, attributes));
        if let Err(error) = mapped {
            if let Some(mapped) = PaRange::between(range.start(), pa) {
                unmap_memory(HypMemory(mapped), pause);
            }
            return Err(error);
        }
        pause();
    }
    Ok(HypMemory(range))
}
/// Takes away what [`map_memory`] has mapped.
pub fn unmap_memory(memory: HypMemory, pause: &mut dyn FnMut()) {
    for (piece, _) in identity(memory.0).into_iter().flat_map(|all| pieces(all, memory.0.start())) {
        let unmapped = with_hyp_map(|map| map.unmap(&mut HeapTables, &mut HypTlb, piece));
        assert_eq!(unmapped, Ok(()), "{piece}");
        pause();
    }
}
/// Returns whether EL2 has mapped memory by [`map_memory`].
#[must_use]
pub fn is_mapped(pa: Pa) -> bool {
    let leads = |map: &mut HypMap| Ok(map.translate(&HeapTables, HypVa::new(pa.get())).is_some());
    with_hyp_map(leads) == Ok(true)
}

fn identity(range: PaRange) -> Result<AddrRange<HypVa>, HypMapError> {
    AddrRange::new(HypVa::new(range.start().get()), range.size()).ok_or(MapError::TooHigh)
}

/// The root is the boot's, on no heap.
fn with_hyp_map<R>(
    change: impl FnOnce(&mut HypMap) -> Result<R, HypMapError>,
) -> Result<R, HypMapError> {
    const ROOT: Pa = Pa::at(TABLES_AT - PAGE_SIZE);
    HYP_MAP.with_borrow_mut(|map| {
        if map.is_none() {
            *map = hyp_map(44, ROOT);
        }
        map.as_mut().map_or(Err(MapError::OutOfTables), change)
    })
}

/// EL2 walks these tables itself: in order, and no walker of another core is modelled.
struct HypTlb;

impl Maintenance<HypVa> for HypTlb {
    fn publish(&mut self) {
        with_tables(TableMemory::publish);
    }
    fn invalidate(&mut self, _range: AddrRange<HypVa>) {
        with_tables(TableMemory::publish);
    }
}

/// Forgets all translations.
pub fn forget_all_vmids() {
    with_tables(TableMemory::forget_all);
}

/// The TLBs of the machine's other cores.
#[derive(Debug, Default)]
pub struct Tlb {}

impl stage2::Tlb for Tlb {
    fn publish(&mut self) {
        with_tables(TableMemory::publish);
    }
    fn select(&mut self, vttbr: u64) {
        with_tables(|tables| tables.select(vttbr));
    }
    fn invalidate_ipa(&mut self, ipa: Ipa) {
        with_tables(|tables| tables.invalidate_ipa(ipa.get()));
    }
    fn invalidate_stage1(&mut self) {
        with_tables(TableMemory::invalidate_stage1);
    }
    fn invalidate_vm(&mut self) {
        if !with(|core| core.loses_invalidations) {
            with_tables(TableMemory::invalidate_vm);
        }
    }
    fn complete(&mut self) {
        with_tables(TableMemory::complete);
    }
    fn restore(&mut self) {
        with_tables(TableMemory::restore);
    }
}
