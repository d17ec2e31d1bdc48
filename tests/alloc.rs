// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Allocation that fails at the Nth call, for all N, leaves no trace: whoever asks gets an error,
//! the heap holds what it held, and nothing that is kept elsewhere has changed.
//!
//! The allocator is this program's own; what the fake machine needs for itself is not counted.
#![expect(unsafe_code, reason = "a global allocator is unsafe by definition")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use cofferdam::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use cofferdam::arch::{self, HeapTables, Tlb, is_counting, uncounted, with_tables};
use cofferdam::bits::Trigger;
use cofferdam::console;
use cofferdam::gic::{Version, Vgic, Vits};
use cofferdam::hypervisor::Estate;
use cofferdam::id::{Mpidr, Pintid, Vintid, VmId};
use cofferdam::memory::guest::GuestMemory;
use cofferdam::memory::owners::{self, Owner, Owners};
use cofferdam::memory::stage2::Stage2;
use cofferdam::memory::vmid::Vmids;
use cofferdam::plan::check::{self, Limits};
use cofferdam::plan::machine::{self, Gic, Machine};
use cofferdam::plan::{
    ConsoleMode, ConsolePlan, ControlPlan, DevicePlan, GicClaim, ImagePlan, Knobs, Layout, List,
    MachineClaim, Placement, Plan, Policies, SpiPlan, VgicFrames, VmPlan,
};
use cofferdam::psci::Psci;
use cofferdam::spec::vmsa::{Features, Geometry, HypAttributes, MemAttrEncoding, Stage2Attributes};
use cofferdam::sync::Lock;
use cofferdam::vm::build::{build, destroy};
use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::fmt::Debug;

/// The system's allocator, with the calls of each thread counted, and failing when a test says so.
struct Failing;

thread_local! {
    /// How many more allocations of this thread succeed.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// What this thread has allocated and not given back.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: All memory is the system allocator's.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Memory) -> *mut u8 {
        if is_counting() {
            let Some(left) = LEFT.get().checked_sub(1) else { return std::ptr::null_mut() };
            LEFT.set(if left == usize::MAX - 1 { usize::MAX } else { left });
            BYTES.set(BYTES.get().wrapping_add(layout.size()));
        }
        // SAFETY: The caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Memory) {
        if is_counting() {
            BYTES.set(BYTES.get().wrapping_sub(layout.size()));
        }
        // SAFETY: The caller returns a block of `alloc` with the same layout.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Does `work` with the Nth allocation failing, for all N until it succeeds. What it has made is
/// taken apart by `undo`; `state` is the same before and after both. Returns how many allocations
/// it takes.
fn fails_without_a_trace<T, E: Debug, S: PartialEq + Debug>(
    state: impl Fn() -> S,
    mut work: impl FnMut() -> Result<T, E>,
    mut undo: impl FnMut(T),
) -> usize {
    for n in 0..10_000 {
        let before = uncounted(&state);
        let held = BYTES.get();
        LEFT.set(n);
        let result = work();
        let all_were_asked_for = LEFT.replace(usize::MAX) == 0;
        let is_done = result.is_ok();
        match result {
            Ok(made) => undo(made),
            // It says so without an allocation of its own.
            Err(error) => drop(error),
        }
        assert_eq!(BYTES.get(), held, "bytes are lost when allocation {n} fails");
        uncounted(|| assert_eq!(state(), before, "when allocation {n} fails"));
        if is_done {
            assert!(all_were_asked_for, "it fails for another reason");
            return n;
        }
    }
    panic!("it never succeeds");
}

fn pa_range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

fn affinities(count: u64) -> Vec<Mpidr> {
    (0..count).map(Mpidr::from_register).collect()
}

/// The twin: an allocation that nobody looks at, and one that is not given back.
#[test]
fn t110_twin_without_a_check_is_noticed() {
    let leaks = || {
        let kept = Vec::<u8>::new();
        let mut more: Vec<u8> = Vec::new();
        more.try_reserve(1).map(|()| std::mem::forget(more)).map(|()| kept)
    };
    let outcome = std::panic::catch_unwind(|| fails_without_a_trace(|| (), leaks, drop));
    assert!(outcome.is_err());
}

#[test]
fn t110_models_are_made_or_not() {
    for version in [Version::V2, Version::V3] {
        let affinities = affinities(4);
        let links = [(Vintid::new(40), Pintid::new(50)), (Vintid::new(41), Pintid::new(51))];
        let make = || Vgic::new(version, &affinities, 256, &links);
        assert!(fails_without_a_trace(|| (), make, drop) >= 4);
    }
    let affinities = affinities(4);
    let with_lpis =
        || Vgic::new(Version::V3, &affinities, 256, &[])?.0.with_lpis().map_err(Into::into);
    let with_lpis = || -> Result<Vgic, cofferdam::gic::ConfigError> { with_lpis() };
    assert!(fails_without_a_trace(|| (), with_lpis, drop) >= 5);
    assert_eq!(fails_without_a_trace(|| (), Vits::new, drop), 3);
    assert_eq!(fails_without_a_trace(|| (), || Psci::new(&affinities), drop), 1);
    let pieces = [pa_range(0x4000_0000, 0x1000), pa_range(0x8000_0000, 0x1000)];
    let lay_out = || GuestMemory::lay_out(Ipa::new(0x4000_0000), &pieces);
    assert_eq!(fails_without_a_trace(|| (), lay_out, drop), 1);
}

/// A console with a VM to which another comes, and that goes on as it was where that fails.
#[test]
fn t110_a_vm_comes_to_the_console_or_not() {
    let config = console::Config {
        mode: console::Mode::Tagged,
        escape: 0x1d,
        ring_bytes: 1024,
        partial_after_ticks: 0,
        messages: console::TokenBucket::new(1, 1),
    };
    let new = || console::Console::new(config.clone(), 2);
    assert_eq!(fails_without_a_trace(|| (), new, drop), 2);
    let console = new().unwrap();
    let [a, b] = [0, 1].map(VmId::new);
    console.attach(a, &name("a")).unwrap();
    console.started(a);
    let state =
        || (console.focus(), [a, b].map(|vm| (console.room(vm), console.counters(Some(vm)))));
    let attach = || console.attach(b, &name("b"));
    assert_eq!(fails_without_a_trace(state, attach, |()| console.detach(b)), 2);
}

fn name<const MAX: usize>(text: &str) -> heapless::String<MAX> {
    text.try_into().unwrap()
}

fn list<T: Debug, const MAX: usize>(elements: Vec<T>) -> List<T, MAX> {
    List::new(elements).unwrap()
}

const RAM: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
/// Of the one device of the machine.
const FINGERPRINT: u32 = 7;

/// A VM with memory that is no round number of anything, and a device.
fn vm_plan(vm: &str, first_cpu: u64, device: u64, pintid: u32) -> VmPlan {
    let image = |image, offset| ImagePlan {
        name: name(image),
        ipa: Ipa::new(RAM + offset),
        size_bytes: 0x1000,
    };
    VmPlan {
        name: name(vm),
        vcpus: list([0, 1].map(|n| Mpidr::from_register(first_cpu + n)).to_vec()),
        memory: IpaRange::new(Ipa::new(RAM), 35 * MIB + 0x5000).unwrap(),
        placement: Placement::Anywhere,
        images: list(vec![image("kernel", 0), image("tree", MIB)]),
        entry: Ipa::new(RAM),
        tree: Ipa::new(RAM + MIB),
        layout: Layout {
            vdist: Ipa::new(0x800_0000),
            vgic: VgicFrames::V3 { vredist: Ipa::new(0x80a_0000), vits: Ipa::new(0x808_0000) },
            vuart: Ipa::new(0x900_0000),
            vuart_interrupt: Vintid::new(33),
            platform: Ipa::new(0x903_0000),
            gpio_interrupt: Vintid::new(39),
            watchdog_interrupt: Vintid::new(40),
        },
        devices: list(vec![DevicePlan {
            path: name("/device"),
            fingerprint: FINGERPRINT,
            regions: list(vec![(pa_range(device, 0x2000), Ipa::new(0xa00_0000))]),
            interrupts: list(vec![SpiPlan {
                pintid: Pintid::new(pintid),
                vintid: Vintid::new(pintid),
                trigger: Trigger::Level,
            }]),
        }]),
        policies: Policies::default(),
    }
}

fn plan() -> Plan {
    Plan {
        board: name("board"),
        machine: MachineClaim {
            memory_bytes: 1 << 30,
            gic: GicClaim::V3 { gicd: Pa::new(0x800_0000) },
            uart: None,
        },
        console: ConsolePlan { mode: ConsoleMode::Tagged, escape: 0x1d },
        vms: list(vec![
            vm_plan("a", 0, 0xa00_0000, 48),
            vm_plan("b", 2, 0xb00_0000, 49),
            // Refused: it has the device of the first.
            vm_plan("c", 4, 0xa00_0000, 50),
        ]),
        control: ControlPlan::default(),
        knobs: Knobs::default(),
    }
}

fn machine() -> Machine {
    let cpu =
        |n| machine::Cpu { mpidr: Mpidr::from_register(n), enable: machine::EnableMethod::Psci };
    let interrupt = |n| machine::Interrupt { pintid: Pintid::new(n), trigger: Trigger::Level };
    Machine {
        model: name("machine"),
        cpus: (0..8).map(cpu).collect(),
        memory: vec![pa_range(RAM, 1 << 30)],
        reserved: vec![],
        kept: vec![],
        fingerprints: vec![FINGERPRINT],
        power: None,
        gic: Gic::V3 {
            gicd: pa_range(0x800_0000, 0x1_0000),
            redistributors: vec![pa_range(0x80a_0000, 0xf6_0000)],
            stride_bytes: None,
            maintenance: None,
        },
        timer: machine::Timer {
            secure: None,
            physical: None,
            virt: interrupt(27),
            hypervisor: None,
        },
        pmu: None,
        psci: None,
        uart: None,
        control: None,
        spare_uarts: vec![],
        initrd: None,
    }
}

#[test]
fn t110_a_plan_is_read_and_checked_or_not() {
    let mut buffer = vec![0; 4096];
    let bytes = plan().encode(&mut buffer).unwrap();
    let count = fails_without_a_trace(|| (), || Plan::decode(bytes), drop);
    assert!(count >= 15, "{count}");
    let (plan, machine) = (plan(), machine());
    let limits = Limits { ipa_bits: 40, pa_bits: 44 };
    let check = || {
        let report = check::check(&plan, &machine, limits, &|_| Some(0x1000));
        let report = report.map_err(|_| ())?;
        // A VM that could not be looked at for want of memory is refused for that.
        let is_short = |refusal: &check::VmRefusal<'_>| refusal.why == check::Refusal::NoMemory;
        if report.refusals.iter().any(is_short) { Err(()) } else { Ok(report) }
    };
    let count = fails_without_a_trace(
        || (),
        check,
        |report| {
            assert_eq!(report.refusals.len(), 1);
            assert_eq!(report.refusals[0].id, VmId::new(2));
        },
    );
    assert!(count >= 4, "{count}");
}

/// The list of owners keeps the room that it has grown to, so each attempt begins with a new one.
#[test]
fn t110_pages_are_placed_and_claimed_or_not() {
    let vm = Owner::Vm(VmId::new(1));
    let attempt = |n| {
        let mut owners = Owners::new();
        for bank in 0..8 {
            owners.add_bank(pa_range(RAM + bank * 64 * MIB, (bank + 1) * 0x1_1000)).unwrap();
        }
        let before = owners.regions().to_vec();
        LEFT.set(n);
        let placed = owners.place(0x20_0000, vm);
        let claimed = placed.and_then(|pieces| {
            owners.claim_device(pa_range(0xa00_0000, 0x1000), vm)?;
            Ok(pieces)
        });
        LEFT.set(usize::MAX);
        match &claimed {
            Ok(pieces) => assert!(pieces.len() > 1),
            Err(refusal) => assert_eq!(*refusal, owners::Refusal::ListFull),
        }
        owners.release(vm);
        assert_eq!(owners.regions(), before, "when allocation {n} fails");
        claimed.is_ok()
    };
    let held = BYTES.get();
    let n = (0..100).find(|n| attempt(*n)).unwrap();
    assert!(n >= 2, "{n}");
    assert_eq!(BYTES.get(), held);
}

/// What of the machine belongs to somebody.
fn tables() -> (usize, usize, usize) {
    with_tables(|t| (t.tables_in_use(), t.roots_in_use(), t.violations().len()))
}

const FEATURES: Features =
    Features { pa_bits: 44, vmid_bits: 8, encoding: MemAttrEncoding::Combining };

#[test]
fn t110_stage_2_is_made_and_changed_or_not() {
    let vmid = Vmids::<1>::new(8).allocate(|| ()).unwrap();
    let geometry = Geometry::stage2(40).unwrap();
    let allocate = || Stage2::allocate(&mut HeapTables, geometry, FEATURES, vmid);
    let dismantle = |stage2: Stage2| {
        stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
    };
    assert_eq!(fails_without_a_trace(tables, allocate, dismantle), 1);
    let ram = Stage2Attributes::Ram;
    let range = IpaRange::new(Ipa::new(RAM - 0x1000), 4 * MIB).unwrap();
    let stage2 = Lock::new(Some(allocate().unwrap()));
    let leaves = || {
        let stage2 = stage2.acquire();
        (tables(), stage2.as_ref().unwrap().leaves(&HeapTables).collect::<Vec<_>>())
    };
    let map = || {
        let mut stage2 = stage2.acquire();
        let (tables, tlb) = (&mut HeapTables, &mut Tlb::default());
        stage2.as_mut().unwrap().map(tables, tlb, range, Pa::new(1 << 32), ram)
    };
    let unmap = |()| {
        let mut stage2 = stage2.acquire();
        let (tables, tlb) = (&mut HeapTables, &mut Tlb::default());
        stage2.as_mut().unwrap().unmap(tables, tlb, range).unwrap();
    };
    assert!(fails_without_a_trace(leaves, map, unmap) >= 2);
    // A page out of the middle takes tables, which fail too.
    map().unwrap();
    let page = IpaRange::new(Ipa::new(RAM + MIB), 0x1000).unwrap();
    let split = || {
        let mut stage2 = stage2.acquire();
        let (tables, tlb) = (&mut HeapTables, &mut Tlb::default());
        stage2.as_mut().unwrap().unmap(tables, tlb, page)
    };
    let mut n = 0;
    loop {
        let before = uncounted(leaves);
        LEFT.set(n);
        let outcome = split();
        LEFT.set(usize::MAX);
        if outcome.is_ok() {
            break;
        }
        uncounted(|| assert_eq!(leaves(), before, "when allocation {n} fails"));
        n += 1;
    }
    dismantle(stage2.acquire().take().unwrap());
    assert_eq!(tables(), (0, 0, 0));
    let memory = pa_range(RAM + 0x1000, 3 * MIB);
    let map = || arch::map_memory(memory, HypAttributes::Data, &mut || ());
    assert!(fails_without_a_trace(tables, map, |m| arch::unmap_memory(m, &mut || ())) >= 3);
}

fn estate() -> Lock<Estate> {
    let mut owners = Owners::new();
    // Room for one VM in one piece, and for another in many.
    owners.add_bank(pa_range(RAM, 64 * MIB)).unwrap();
    owners.add_bank(pa_range(3 * RAM + 0x3000, 30 * MIB)).unwrap();
    let machine = Box::leak(Box::new(machine()));
    Lock::new(Estate { machine, features: FEATURES, owners, vmids: Vmids::new(8) })
}

#[test]
fn t110_a_vm_is_built_or_not() {
    let estate = &estate();
    let source = |at, bytes: [u8; 8]| {
        let memory = arch::map_hyp(pa_range(at, 8), HypAttributes::Rodata).unwrap();
        arch::write_bytes(memory, &bytes);
        (memory, arch::crc32c(0, memory))
    };
    let images = [source(0x1_0000_0000, *b"a kernel"), source(0x1_0000_1000, *b"treetree")];
    let find = |name: &str| Some(images[usize::from(name != "kernel")]);
    let state = || {
        let estate = estate.acquire();
        (estate.owners.regions().to_vec(), estate.vmids.live(), tables())
    };
    let [a, b] = [0, 1].map(|n: u8| (VmId::new(n), plan().vms[usize::from(n)].clone()));
    let make = |(id, plan): &(VmId, VmPlan)| {
        // The plan is there before anything is asked for.
        let left = LEFT.replace(usize::MAX);
        let plan = plan.clone();
        LEFT.set(left);
        build(*id, plan, &find, estate, &mut || ())
    };
    let end = |vm| destroy(vm, estate, &mut || ());
    // Once it has grown, the list of owners keeps its room: that is no VM's.
    end(make(&a).unwrap());
    let alone = fails_without_a_trace(state, || make(&a), end);
    assert!(alone >= 20, "{alone}");
    let neighbour = make(&a).unwrap();
    end(make(&b).unwrap());
    let beside = fails_without_a_trace(state, || make(&b), end);
    assert!(beside >= 20, "{beside}");
    end(neighbour);
    assert_eq!((tables(), estate.acquire().vmids.live()), ((0, 0, 0), 0));
}
