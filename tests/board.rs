// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A manifest of more than the board has: whatever a plan asks for, each VM that starts has cores
//! and memory that are there, nobody else's, and one that would have had room is not refused. The
//! twins go by what the plan was made for, where they are to go by what is there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cofferdam::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use cofferdam::bits::Trigger;
use cofferdam::id::{Mpidr, Pintid, Vintid, VmId};
use cofferdam::memory::owners::{Owner, Owners};
use cofferdam::plan::check::{self, Limits};
use cofferdam::plan::machine::{self, Gic, Machine};
use cofferdam::plan::{
    ConsoleMode, ConsolePlan, ControlPlan, GicClaim, ImagePlan, Knobs, Layout, List, MachineClaim,
    Placement, Plan, Policies, VgicFrames, VmPlan,
};
use proptest::prelude::*;

const RAM: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
const GICD: u64 = 0x800_0000;

/// What there is of a board.
#[derive(Clone, Copy, Debug)]
struct Board {
    cpus: u64,
    memory_mib: u64,
    /// Of the memory, somebody else's, at its end.
    reserved_mib: u64,
}

/// What a manifest wants for a VM: its first core, how many, and its memory.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    first_cpu: u64,
    cpus: u64,
    memory_mib: u64,
}

/// What a VM that starts has.
#[derive(Debug)]
struct Started {
    cpus: Vec<u64>,
    memory: Vec<PaRange>,
}

fn name<const MAX: usize>(text: &str) -> heapless::String<MAX> {
    text.try_into().unwrap()
}

fn list<T: std::fmt::Debug, const MAX: usize>(elements: Vec<T>) -> List<T, MAX> {
    List::new(elements).unwrap()
}

fn mib(start: u64, count: u64) -> Option<PaRange> {
    PaRange::new(Pa::new(RAM + start * MIB), count * MIB)
}

impl Board {
    /// Returns what EL2 reads in the tree of this board.
    fn machine(self) -> Machine {
        let psci = machine::EnableMethod::Psci;
        let region = |range| machine::Region { name: name("reserved"), range };
        let cpu = |n| machine::Cpu { mpidr: Mpidr::from_register(n), enable: psci };
        Machine {
            model: name("machine"),
            cpus: (0..self.cpus).map(cpu).collect(),
            memory: mib(0, self.memory_mib).into_iter().collect(),
            reserved: self.reserved().into_iter().map(region).collect(),
            kept: vec![],
            fingerprints: vec![],
            power: None,
            gic: Gic::V3 {
                gicd: PaRange::new(Pa::new(GICD), 0x1_0000).unwrap(),
                redistributors: vec![PaRange::new(Pa::new(0x80a_0000), 0xf6_0000).unwrap()],
                stride_bytes: None,
                maintenance: None,
            },
            timer: machine::Timer {
                secure: None,
                physical: None,
                virt: machine::Interrupt { pintid: Pintid::new(27), trigger: Trigger::Level },
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

    fn reserved(self) -> Option<PaRange> {
        mib(self.memory_mib - self.reserved_mib, self.reserved_mib)
    }
}

fn vm_plan(n: usize, wanted: Wanted) -> VmPlan {
    let at = |offset| Ipa::new(RAM + offset);
    let image = |image, offset| ImagePlan { name: name(image), ipa: at(offset), size_bytes: 4096 };
    VmPlan {
        name: name(&format!("vm{n}")),
        vcpus: list((0..wanted.cpus).map(|n| Mpidr::from_register(wanted.first_cpu + n)).collect()),
        memory: IpaRange::new(at(0), wanted.memory_mib * MIB).unwrap(),
        placement: Placement::Anywhere,
        images: list(vec![image("kernel", 0), image("tree", MIB / 2)]),
        entry: at(0),
        tree: at(MIB / 2),
        layout: Layout {
            vdist: Ipa::new(GICD),
            vgic: VgicFrames::V3 { vredist: Ipa::new(0x80a_0000), vits: Ipa::new(0x808_0000) },
            vuart: Ipa::new(0x900_0000),
            vuart_interrupt: Vintid::new(33),
            platform: Ipa::new(0x903_0000),
            gpio_interrupt: Vintid::new(39),
            watchdog_interrupt: Vintid::new(40),
        },
        devices: list(vec![]),
        policies: Policies::default(),
    }
}

/// Does what a boot does with a plan that was made for one board: checks it against a machine, and
/// places the memory of those that pass in what a board has. Both are to be the board that is there.
fn start(planned: Board, wanted: &[Wanted], live: (Board, Board)) -> Vec<Option<Started>> {
    let plan = Plan {
        board: name("board"),
        machine: MachineClaim {
            memory_bytes: planned.memory_mib * MIB,
            gic: GicClaim::V3 { gicd: Pa::new(GICD) },
            uart: None,
        },
        console: ConsolePlan { mode: ConsoleMode::Tagged, escape: 0x1d },
        vms: list(wanted.iter().enumerate().map(|(n, wanted)| vm_plan(n, *wanted)).collect()),
        control: ControlPlan::default(),
        knobs: Knobs::default(),
    };
    let (has_cores, has_memory) = (live.0.machine(), live.1.machine());
    let limits = Limits { ipa_bits: 40, pa_bits: 44 };
    let report = check::check(&plan, &has_cores, limits, &|_| Some(4096)).unwrap();
    let mut owners = Owners::new();
    has_memory.memory.iter().for_each(|bank| owners.add_bank(*bank).unwrap());
    has_memory
        .reserved
        .iter()
        .for_each(|region| owners.reserve(region.range, Owner::Firmware).unwrap());
    let mut place = |(vm, id): (&VmPlan, VmId)| {
        if report.refusal(id).is_some() {
            return None;
        }
        let memory = owners.place(vm.memory.size(), Owner::Vm(id)).ok()?;
        Some(Started { cpus: vm.vcpus.iter().map(|cpu| cpu.get()).collect(), memory })
    };
    plan.vms.iter().zip((0..).map(VmId::new)).map(&mut place).collect()
}

/// Says what is wrong with what was started of what was wanted, on the board that is there.
fn wrong(board: Board, wanted: &[Wanted], started: &[Option<Started>]) -> Option<String> {
    let (mut cpus, mut free_mib) = (vec![true; 64], board.memory_mib - board.reserved_mib);
    let mut taken: Vec<PaRange> = board.reserved().into_iter().collect();
    for (n, (wanted, started)) in wanted.iter().zip(started).enumerate() {
        let wants = wanted.first_cpu..wanted.first_cpu + wanted.cpus;
        // A VM has its cores where it passes the check, whether it then has memory or not.
        let has_cores =
            wants.clone().all(|cpu| cpu < board.cpus && cpus[usize::try_from(cpu).unwrap()]);
        if has_cores {
            wants.clone().for_each(|cpu| cpus[usize::try_from(cpu).unwrap()] = false);
        }
        let fits = has_cores && wanted.memory_mib <= free_mib;
        let Some(Started { cpus, memory }) = started else {
            if fits {
                return Some(format!("VM {n} has room and is refused"));
            }
            continue;
        };
        if !fits || !wants.eq(cpus.iter().copied()) {
            return Some(format!("VM {n} starts without cores or memory for it"));
        }
        let bank = mib(0, board.memory_mib).unwrap();
        for piece in memory {
            if !bank.covers(*piece) || taken.iter().any(|taken| taken.overlaps(*piece)) {
                return Some(format!("VM {n} has {piece:?}"));
            }
            taken.push(*piece);
        }
        if memory.iter().map(|piece| piece.size()).sum::<u64>() != wanted.memory_mib * MIB {
            return Some(format!("VM {n} has more or less than it wants"));
        }
        free_mib -= wanted.memory_mib;
    }
    None
}

fn board() -> impl Strategy<Value = Board> {
    (1..9u64, 4..64u64, 0..4u64).prop_map(|(cpus, memory_mib, reserved_mib)| Board {
        cpus,
        memory_mib,
        reserved_mib,
    })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (0..8u64, 1..4u64, 1..40u64).prop_map(|(first_cpu, cpus, memory_mib)| Wanted {
        first_cpu,
        cpus,
        memory_mib,
    })
}

proptest! {
    #[test]
    fn manifest_says_more_than_board_has(
        planned in board(),
        live in board(),
        wanted in proptest::collection::vec(wanted(), 1..6),
    ) {
        let started = start(planned, &wanted, (live, live));
        prop_assert_eq!(wrong(live, &wanted, &started), None);
    }
}

const PLANNED: Board = Board { cpus: 8, memory_mib: 64, reserved_mib: 0 };
const LIVE: Board = Board { cpus: 4, memory_mib: 32, reserved_mib: 8 };

/// What is said where VMs for the larger board are started on the smaller by what these know.
fn said(wanted: Wanted, cores: Board, memory: Board) -> Option<String> {
    let wanted = [wanted, Wanted { first_cpu: 0, cpus: 1, memory_mib: 8 }];
    wrong(LIVE, &wanted, &start(PLANNED, &wanted, (cores, memory)))
}

#[test]
fn twin_that_believes_the_plan_about_cores_is_noticed() {
    let wanted = Wanted { first_cpu: 6, cpus: 2, memory_mib: 8 };
    assert_eq!(said(wanted, LIVE, LIVE), None);
    assert!(said(wanted, PLANNED, LIVE).is_some());
}

#[test]
fn twin_that_believes_the_plan_about_memory_is_noticed() {
    let wanted = Wanted { first_cpu: 1, cpus: 2, memory_mib: 40 };
    assert_eq!(said(wanted, LIVE, LIVE), None);
    assert!(said(wanted, LIVE, PLANNED).is_some());
}

#[test]
fn twin_that_forgets_what_is_reserved_is_noticed() {
    let wanted = Wanted { first_cpu: 1, cpus: 2, memory_mib: 28 };
    assert_eq!(said(wanted, LIVE, LIVE), None);
    assert!(said(wanted, LIVE, Board { reserved_mib: 0, ..LIVE }).is_some());
}
