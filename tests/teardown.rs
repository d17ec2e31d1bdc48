// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tables that are taken down on the fake machine: nobody walks them any more when their memory is
//! given back, none is lost, and no piece of the work is long. Each protection has a twin without
//! it, and the machine notices.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cofferdam::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use cofferdam::arch::fake::memory::{Context, Violation};
use cofferdam::arch::{
    HeapTables, Stage2Registers, Tlb, activate, is_mapped, leave, map_memory, unmap_memory, with,
    with_tables,
};
use cofferdam::memory::mapper::MapError;
use cofferdam::memory::stage2::Stage2;
use cofferdam::memory::vmid::Vmids;
use cofferdam::spec::vmsa::{Features, Geometry, HypAttributes, MemAttrEncoding, Stage2Attributes};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4 * KIB;
const FEATURES: Features =
    Features { pa_bits: 44, vmid_bits: 8, encoding: MemAttrEncoding::Combining };
/// Loads and stores of descriptors in a row, at up to 30 instructions each: well below the 20,000
/// that nobody may be kept waiting for.
const ACCESSES_MAX: u64 = 400;

fn range(start: u64, size: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), size).unwrap()
}

fn pa_range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

/// Tables in use, roots and their violations.
fn tables() -> (usize, usize, Vec<Violation>) {
    with_tables(|t| (t.tables_in_use(), t.roots_in_use(), t.violations().to_vec()))
}

/// A VM that has run: its memory at 1 GiB, as blocks and single pages, was seen by another core.
fn vm_that_has_run(vmids: &mut Vmids<2>) -> (Stage2, Context) {
    let vmid = vmids.allocate(|| ()).unwrap();
    let geometry = Geometry::stage2(40).unwrap();
    let mut stage2 = Stage2::allocate(&mut HeapTables, geometry, FEATURES, vmid).unwrap();
    let mut map = |ipa, size, pa| {
        let (ipa, pa, ram) = (range(ipa, size), Pa::new(pa), Stage2Attributes::Ram);
        stage2
            .map_in_pieces(&mut HeapTables, &mut Tlb::default(), ipa, pa, ram, &mut || ())
            .unwrap();
    };
    map(GIB, 34 * MIB + 68 * KIB, 4 * GIB);
    map(2 * GIB, 3 * MIB, 5 * GIB + PAGE);
    map(1 << 39, PAGE, 6 * GIB);
    let context = Context { vtcr: stage2.vtcr_el2(), vttbr: stage2.vttbr_el2() };
    with_tables(|tables| {
        for at in [GIB, GIB + 34 * MIB, 2 * GIB + 5 * PAGE, 1 << 39, 3 * GIB] {
            tables.watch(context, at);
        }
    });
    (stage2, context)
}

fn reached(context: Context, ipa: u64) -> Option<u64> {
    with_tables(|tables| tables.access(context, ipa)).map(|met| met.pa)
}

#[test]
fn t10_of_a_vm_that_is_dismantled_nothing_is_reached_and_no_table_is_left() {
    let mut vmids = Vmids::new(8);
    let (stage2, context) = vm_that_has_run(&mut vmids);
    assert_eq!(reached(context, GIB + 5), Some(4 * GIB + 5));
    assert_eq!(tables().1, 1);
    let tag = stage2.vmid();
    let mut pauses = 0;
    let returned = stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || pauses += 1);
    assert_eq!(returned, tag);
    vmids.release(returned);
    assert!(pauses > 10, "{pauses}");
    assert_eq!(tables(), (0, 0, vec![]));
    for ipa in [GIB, GIB + 34 * MIB, 2 * GIB + 5 * PAGE, 1 << 39] {
        assert_eq!(reached(context, ipa), None, "{ipa:#x}");
    }
}

/// The tag and the root are the next VM's: it reaches its own memory and not that of the one before.
#[test]
fn t10_the_next_vm_with_the_same_tag_finds_nothing_of_the_one_before() {
    for (loses_invalidations, expected) in [(false, Some(7 * GIB)), (true, Some(4 * GIB))] {
        let (stage2, _) = vm_that_has_run(&mut Vmids::new(8));
        with(|core| core.loses_invalidations = loses_invalidations);
        stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
        with(|core| core.loses_invalidations = false);
        let noticed = |v: &Violation| matches!(v, Violation::FreedInUse(_));
        assert_eq!(tables().2.iter().any(noticed), loses_invalidations);
        let vmid = Vmids::<2>::new(8).allocate(|| ()).unwrap();
        let geometry = Geometry::stage2(40).unwrap();
        let mut next = Stage2::allocate(&mut HeapTables, geometry, FEATURES, vmid).unwrap();
        let ram = Stage2Attributes::Ram;
        let (tables, tlb) = (&mut HeapTables, &mut Tlb::default());
        next.map(tables, tlb, range(GIB, 2 * MIB), Pa::new(7 * GIB), ram).unwrap();
        let context = Context { vtcr: next.vtcr_el2(), vttbr: next.vttbr_el2() };
        assert_eq!(reached(context, GIB), expected);
        next.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
    }
}

#[test]
fn t10_a_core_has_left_the_tables_before_they_go() {
    for leaves in [true, false] {
        let (stage2, context) = vm_that_has_run(&mut Vmids::new(8));
        let encoding = FEATURES.encoding;
        activate(Stage2Registers { vttbr: context.vttbr, vtcr: context.vtcr, encoding });
        let root = stage2.root().get();
        if leaves {
            leave();
        }
        stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
        let noticed = tables().2.contains(&Violation::FreedInUse(root));
        assert_eq!(noticed, !leaves);
        leave();
    }
}

/// Returns what counts the descriptors that are read or written between two pauses: the most.
fn most_between_pauses(work: impl FnOnce(&mut dyn FnMut())) -> u64 {
    let take = || with_tables(|tables| tables.take_accesses());
    let mut most = 0;
    take();
    work(&mut || most = most.max(take()));
    most.max(take())
}

/// Every other page, so that there are single leaves and full tables.
#[test]
fn no_piece_of_a_large_vms_tables_is_long() {
    let vmid = Vmids::<1>::new(8).allocate(|| ()).unwrap();
    let geometry = Geometry::stage2(40).unwrap();
    let mut stage2 = Stage2::allocate(&mut HeapTables, geometry, FEATURES, vmid).unwrap();
    let mut tlb = Tlb::default();
    let ram = Stage2Attributes::Ram;
    let mapping = most_between_pauses(|pause| {
        for (ipa, size, pa) in [
            // Runs of blocks, runs of pages, and single pages.
            (GIB, GIB + 6 * MIB, 4 * GIB),
            (3 * GIB - 2 * MIB, 4 * MIB, 8 * GIB + 64 * KIB),
            (4 * GIB - 2 * MIB, 4 * MIB, 9 * GIB + PAGE),
        ] {
            let (ipa, pa) = (range(ipa, size), Pa::new(pa));
            stage2.map_in_pieces(&mut HeapTables, &mut tlb, ipa, pa, ram, pause).unwrap();
        }
    });
    assert!((1..ACCESSES_MAX).contains(&mapping), "{mapping}");
    let dismantling = most_between_pauses(|pause| {
        stage2.dismantle(&mut HeapTables, &mut tlb, pause);
    });
    assert!((1..ACCESSES_MAX).contains(&dismantling), "{dismantling}");
    assert_eq!(tables(), (0, 0, vec![]));
}

#[test]
fn pieces_are_refused_as_the_whole_is() {
    let vmid = Vmids::<1>::new(8).allocate(|| ()).unwrap();
    let geometry = Geometry::stage2(40).unwrap();
    let mut stage2 = Stage2::allocate(&mut HeapTables, geometry, FEATURES, vmid).unwrap();
    let mut map = |ipa, size, pa| {
        let (ipa, pa, ram) = (range(ipa, size), Pa::new(pa), Stage2Attributes::Ram);
        stage2.map_in_pieces(&mut HeapTables, &mut Tlb::default(), ipa, pa, ram, &mut || ())
    };
    assert_eq!(map(0x800, PAGE, 0), Err(MapError::Unaligned));
    assert_eq!(map(0, 0x800, 0), Err(MapError::Unaligned));
    assert_eq!(map(0, PAGE, 0x800), Err(MapError::Unaligned));
    assert_eq!(map((1 << 40) - PAGE, 2 * PAGE, 0), Err(MapError::TooHigh));
    assert_eq!(map(0, 2 * PAGE, u64::MAX - 0xfff), Err(MapError::TooHigh));
    let too_wide = Stage2::allocate(&mut HeapTables, Geometry::stage2(48).unwrap(), FEATURES, vmid);
    assert_eq!(too_wide.err(), Some(MapError::TooHigh));
    assert_eq!(tables().1, 1, "its root was given back");
    stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
    assert_eq!(tables(), (0, 0, vec![]));
}

/// Memory of a machine: where it begins and how large it is, at the corners of what a block holds.
fn any_memory() -> impl Strategy<Value = PaRange> {
    let unit = prop_oneof![Just(PAGE), Just(64 * KIB), Just(2 * MIB), Just(32 * MIB), Just(GIB)];
    (1..40u64, unit, 1..5u64, 0..3u64, 0..3u64).prop_map(|(gib, unit, count, before, less)| {
        let size = (count * unit).saturating_sub(less * PAGE).max(PAGE);
        pa_range(gib * GIB + unit + before * PAGE, size)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// EL2 maps the memory of a VM and unmaps it beside that of another: the tables are those from
    /// before, also when there is not enough memory for them at any point.
    #[test]
    fn el2_maps_a_vms_memory_and_unmaps_it_without_a_trace(
        neighbour in any_memory(), memory in any_memory(), tables_left in 0..6usize,
    ) {
        let nothing = tables();
        prop_assert_eq!(&nothing, &(0, 0, vec![]));
        let neighbour = map_memory(neighbour, HypAttributes::Data, &mut || ()).unwrap();
        let before = tables();
        with_tables(|tables| tables.limit_tables(Some(tables_left)));
        let clashes = memory.overlaps(neighbour.range());
        let mapped = map_memory(memory, HypAttributes::Data, &mut || ());
        with_tables(|tables| tables.limit_tables(None));
        let ends = [memory.start(), Pa::new(memory.end().get() - 1)];
        match mapped {
            Ok(mapped) => {
                prop_assert!(!clashes);
                prop_assert!(ends.iter().all(|at| is_mapped(*at)));
                let most = most_between_pauses(|pause| unmap_memory(mapped, pause));
                // Up to three tables are looked through for an entry, each in 6 instructions.
                prop_assert!(most < 3 * 512 + ACCESSES_MAX, "{}", most);
            }
            Err(MapError::OutOfTables) => {}
            Err(MapError::AlreadyMapped(_)) => prop_assert!(clashes),
            Err(other) => prop_assert!(false, "{}", other),
        }
        let seen = neighbour.range();
        prop_assert!(ends.iter().all(|at| is_mapped(*at) == seen.contains(*at)));
        prop_assert_eq!(tables(), before);
        unmap_memory(neighbour, &mut || ());
        prop_assert_eq!(tables(), nothing);
    }
}
