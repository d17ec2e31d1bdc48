// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How vCPUs are entered, and what they agree on: entry state, identification, counters, FP.

use crate::insn::{self, Encoding};
use crate::under_hypervisor;
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use guest_rt::boot::{EntryState, probe_entry_address};
use guest_rt::cpu::{self, AFFINITY_MASK, CPUS_MAX};
use guest_rt::device::Device;
use guest_rt::gic::{self, reg};
use guest_rt::sysreg::{CNTPCT_EL0, CNTVCT_EL0, CPACR_EL1, CSSELR_EL1, MPIDR_EL1, isb, relax};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, code, psci, tests, timer, tree};

pub const TESTS: &[Test] = tests![
    t58_boot_vcpu_enters_with_zero_state,
    t58_secondary_enters_with_zero_state: 2,
    t89_cpu_on_entry_state: 2,
    t48_id_registers_are_equal_on_all_vcpus: 2,
    t49_mpidr_agrees_with_tree_and_gicr,
    t51_fp_state_survives_exits,
    t57_counter_is_monotonic_across_vcpus: 2,
    t57_counter_offset_is_the_same_on_all_vcpus_and_kept: 2,
];

/// The general registers that the protocol gives a meaning to: x0 alone; QEMU's boot stub leaves
/// the entry in x4.
pub fn check_general_registers(state: EntryState) -> Outcome {
    for (n, value) in state.x().enumerate().skip(1) {
        let is_stub = n == 4 && !under_hypervisor();
        check!(is_stub || value == 0, "x{n} is {value:#x} at entry");
    }
    Ok(())
}

/// Every register of EL1 and EL0 that a previous owner could have left something in.
pub fn check_system_registers(state: EntryState) -> Outcome {
    for (name, value) in state.registers() {
        let (mask, want) = match name {
            "CurrentEL" => (u64::MAX, 1 << 2),
            "DAIF" => (u64::MAX, 0x3c0),
            "SPSel" => (u64::MAX, 1),
            // MMU, data and instruction caches, endianness.
            "SCTLR_EL1" => (1 << 25 | 1 << 24 | 1 << 12 | 1 << 2 | 1, 0),
            // Only ENABLE: what it shows while off is UNKNOWN.
            "CNTV_CTL_EL0" | "CNTP_CTL_EL0" => (1, 0),
            // Compare values are UNKNOWN, and nothing of anybody's hides in PSTATE's flags.
            "CNTVCT_EL0" | "CNTV_CVAL_EL0" | "CNTP_CVAL_EL0" | "NZCV" => (0, 0),
            _ => (u64::MAX, 0),
        };
        check!(value & mask == want, "{name} is {value:#x} at entry");
    }
    for (n, word) in state.vector_words().enumerate() {
        check!(word == 0, "V{}, word {} is {word:#x} at entry", n / 2, n % 2);
    }
    Ok(())
}

/// Checks the state in which the boot vCPU was entered.
pub fn t58_boot_vcpu_enters_with_zero_state() -> Outcome {
    let state = EntryState::of(0);
    let tree = state.x().next().unwrap_or(0);
    check!(tree.is_multiple_of(8) && tree != 0, "x0 is {tree:#x}, not the address of a tree");
    check_general_registers(state)?;
    check_system_registers(state)
}

/// Checks the state in which the others are entered.
pub fn t58_secondary_enters_with_zero_state() -> Outcome {
    for index in 1..cpu::count() {
        EntryState::of(index).poison();
        check!(cpu::run_on(index, || ()), "vCPU {index} does not start and stop");
        let state = EntryState::of(index);
        check_eq!(state.x().next(), Some(index as u64), "x0 of vCPU {index}");
        check_general_registers(state)?;
        check_system_registers(state)?;
    }
    Ok(())
}

fn t89_cpu_on_entry_state() -> Outcome {
    let entry = probe_entry_address(tree::machine().conduit);
    for context in [0, 1, u64::MAX, 1 << 63, 0xffff_ffff, 0x1234_5678_9abc_def0] {
        let state = EntryState::of_probe();
        state.poison();
        check_eq!(psci::cpu_on(cpu::mpidr(1), entry, context), Ok(()), "CPU_ON");
        check!(timer::wait_for(timer::PATIENCE_MS, || state.is_fresh()), "vCPU 1 does not enter");
        check!(cpu::wait_off(1), "vCPU 1 does not go off");
        check_eq!(state.x().next(), Some(context), "x0 at entry");
        check_general_registers(state)?;
        check_system_registers(state)?;
    }
    Ok(())
}

/// ID registers in op0 3, op1 0, CRn 0, CRm 0 to 7, and what else describes a vCPU.
const ID_WORDS: usize = 64 + 2 + 16;

/// Reads what every vCPU must show alike; 0 stands for what may differ.
fn read_id_registers(words: &[AtomicU64; ID_WORDS]) {
    let read = |register: Encoding| code::run(&[register.mrs()], 0, 0).0[0];
    let id = (0..8).flat_map(|crm| (0..8).map(move |op2| Encoding(3, 0, 0, crm, op2)));
    let ctr = Encoding(3, 3, 0, 0, 1);
    let dczid = Encoding(3, 3, 0, 0, 7);
    let ids = id.chain([ctr, dczid]).map(|register| {
        let is_mpidr = register == Encoding(3, 0, 0, 0, 5);
        if is_mpidr { 0 } else { read(register) }
    });
    let clidr = read(Encoding(3, 1, 0, 0, 1));
    let caches = (0..16).map(|cache| {
        CSSELR_EL1::set(cache);
        isb();
        // Of a cache that CLIDR_EL1 does not name, CCSIDR_EL1 is UNKNOWN.
        let class = clidr >> (3 * (cache / 2)) & 7;
        let exists = cache < 14 && if cache % 2 == 1 { class & 1 != 0 } else { class & 6 != 0 };
        if exists { read(Encoding(3, 1, 0, 0, 0)) } else { 0 }
    });
    for (word, value) in words.iter().zip(ids.chain(caches)) {
        word.store(value, Release);
    }
}

fn t48_id_registers_are_equal_on_all_vcpus() -> Outcome {
    static WORDS: [[AtomicU64; ID_WORDS]; CPUS_MAX] =
        [const { [const { AtomicU64::new(0) }; ID_WORDS] }; CPUS_MAX];
    fn record() {
        if let Some(words) = WORDS.get(cpu::index()) {
            read_id_registers(words);
        }
    }
    record();
    for round in 0..2 {
        for (index, words) in WORDS.iter().enumerate().take(cpu::count()).skip(1) {
            check!(cpu::run_on(index, record), "vCPU {index} does not start and stop");
            for (n, (mine, theirs)) in WORDS[0].iter().zip(words).enumerate() {
                let (mine, theirs) = (mine.load(Acquire), theirs.load(Acquire));
                check!(
                    mine == theirs,
                    "ID word {n}: {mine:#x} on vCPU 0, {theirs:#x} on vCPU {index}, round {round}"
                );
            }
        }
    }
    check!(WORDS[0][0].load(Acquire) != 0, "MIDR_EL1 is 0");
    Ok(())
}

fn t49_mpidr_agrees_with_tree_and_gicr() -> Outcome {
    static MPIDR: [AtomicU64; CPUS_MAX] = [const { AtomicU64::new(0) }; CPUS_MAX];
    fn record() {
        if let Some(word) = MPIDR.get(cpu::index()) {
            word.store(MPIDR_EL1::get(), Release);
        }
    }
    record();
    for (index, mpidr) in MPIDR.iter().enumerate().take(cpu::count()) {
        let tree = cpu::mpidr(index);
        // CPU_ON takes what the tree says, so a vCPU that answers is the PSCI target of that name.
        check!(index == 0 || cpu::run_on(index, record), "vCPU {index} does not start and stop");
        let mpidr = mpidr.load(Acquire);
        check_eq!(mpidr & AFFINITY_MASK, tree, "MPIDR_EL1 of vCPU {index}");
        check!(mpidr & 1 << 31 != 0, "MPIDR_EL1 {mpidr:#x} of vCPU {index} lacks its RES1 bit");
        let has_gicr = gic::gicr(index).base() != 0;
        let is_known = if gic::is_v2() { gic::target(index) != 0 } else { has_gicr };
        check!(is_known, "the GIC does not know vCPU {index}");
        check_eq!(psci::affinity_info(tree, 0).is_ok(), true, "AFFINITY_INFO of vCPU {index}");
        for other in 0..index {
            check!(cpu::mpidr(other) != tree, "vCPUs {other} and {index} are both {tree:#x}");
        }
    }
    Ok(())
}

/// Loads every V register from the page at x0, or stores it there: `ldp`/`stp q<n>, q<n+1>`.
fn vector_moves(base: u32) -> impl Iterator<Item = u32> {
    (0..32).step_by(2).map(move |n| base | (n << 15) | ((n + 1) << 10) | n)
}

fn t51_fp_state_survives_exits() -> Outcome {
    const LDP_Q: u32 = 0xad40_0000;
    const STP_Q: u32 = 0xad00_0000;
    static BUFFER: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    CPACR_EL1::set(3 << 20);
    isb();
    let pattern = |n: usize| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n as u64 + 1);
    for (n, word) in BUFFER.iter().enumerate() {
        word.store(pattern(n), Relaxed);
    }
    let address = BUFFER.as_ptr().addr() as u64;
    let loads: heapless::Vec<u32, 16> = vector_moves(LDP_Q).collect();
    code::run(&loads, address, 0);
    for _ in 0..100 {
        exit_in_every_way(gic::gicd());
    }
    for word in &BUFFER {
        word.store(0, Relaxed);
    }
    let stores: heapless::Vec<u32, 16> = vector_moves(STP_Q).collect();
    code::run(&stores, address, 0);
    for (n, word) in BUFFER.iter().enumerate() {
        check_eq!(word.load(Relaxed), pattern(n), "V{}, word {}", n / 2, n % 2);
    }
    Ok(())
}

fn exit_in_every_way(gicd: Device) {
    let _ = psci::call(psci::id::VERSION, 0, 0, 0);
    let _ = gicd.read32(reg::IIDR);
    gicd.write32(reg::IPRIORITYR + 32, 0);
    if gic::is_v2() {
        gicd.write32(reg::SGIR, 0);
        code::run(&[insn::MRS_X0_PFR0], 0, 0);
    } else {
        let _ = gic::gicr(0).read32(reg::CTLR);
        code::run(&[insn::MSR_SGI1R_XZR, insn::MRS_X0_PFR0], 0, 0);
    }
}

fn t57_counter_is_monotonic_across_vcpus() -> Outcome {
    /// The count that a vCPU hands to the next one; the lowest two bits say whose turn it is.
    static BATON: AtomicU64 = AtomicU64::new(0);
    static BACKWARDS: AtomicU32 = AtomicU32::new(0);
    const ROUNDS: u32 = 3_000;
    fn play(me: u64) {
        for _ in 0..ROUNDS {
            let mut baton = BATON.load(Acquire);
            let start = timer::now();
            while baton & 1 != me {
                if timer::now().wrapping_sub(start) > timer::ticks(5_000_000) {
                    BACKWARDS.fetch_or(1 << 31, Relaxed);
                    return;
                }
                relax();
                baton = BATON.load(Acquire);
            }
            let now = timer::now();
            if now < baton >> 1 {
                BACKWARDS.fetch_add(1, Relaxed);
            }
            BATON.store(now << 1 | (1 - me), Release);
        }
    }
    BATON.store(0, Release);
    BACKWARDS.store(0, Relaxed);
    check_eq!(cpu::start(1, || play(1)), Ok(()), "CPU_ON");
    play(0);
    check!(cpu::wait_off(1), "vCPU 1 does not go off");
    let backwards = BACKWARDS.load(Relaxed);
    check!(backwards & 1 << 31 == 0, "a vCPU stopped playing");
    check_eq!(backwards, 0, "steps back");
    Ok(())
}

fn t57_counter_offset_is_the_same_on_all_vcpus_and_kept() -> Outcome {
    static LOW: [AtomicU64; CPUS_MAX] = [const { AtomicU64::new(0) }; CPUS_MAX];
    static HIGH: [AtomicU64; CPUS_MAX] = [const { AtomicU64::new(0) }; CPUS_MAX];
    /// Narrows down CNTPCT − CNTVCT: a physical count before and one behind a virtual one.
    fn record() {
        let (mut low, mut high) = (0, u64::MAX);
        for _ in 0..1000 {
            isb();
            let before = CNTPCT_EL0::get();
            isb();
            let count = CNTVCT_EL0::get();
            isb();
            let behind = CNTPCT_EL0::get();
            low = low.max(before.wrapping_sub(count) ^ 1 << 63);
            high = high.min(behind.wrapping_sub(count) ^ 1 << 63);
        }
        LOW[cpu::index()].fetch_max(low, Release);
        HIGH[cpu::index()].fetch_min(high, Release);
    }
    for index in 0..cpu::count() {
        LOW[index].store(0, Release);
        HIGH[index].store(u64::MAX, Release);
    }
    record();
    for _ in 0..5 {
        for index in 1..cpu::count() {
            check!(cpu::run_on(index, record), "vCPU {index} does not start and stop");
        }
    }
    let low = LOW.iter().take(cpu::count()).map(|word| word.load(Acquire)).max();
    let high = HIGH.iter().take(cpu::count()).map(|word| word.load(Acquire)).min();
    check!(low <= high, "no CNTVOFF explains the counts of all vCPUs");
    Ok(())
}
