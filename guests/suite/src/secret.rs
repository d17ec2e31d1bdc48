// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=secret key=N`: looks for what an earlier owner of this memory and of these cores has left,
//! then fills all of both with a secret, for the next one to look for.
//!
//! ```text
//! BOOT                at every start
//! TEST <name>: …      what it has found
//! SECRET              all memory and registers are full of it, for good
//! ```
//!
//! The secret is the complement of the key, which is hexadecimal: who looks for it does not hold
//! it, and so does not find himself.

use crate::boot;
use crate::insn::Encoding;
use crate::sysreg::{ACKNOWLEDGE, all};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_rt::sysreg::{CPACR_EL1, isb, relax};
use guest_rt::test::{Outcome, Tally};
use guest_rt::{check, check_eq, code, cpu, irq, memory, println, timer, tree};
use heapless::Vec;

/// Registers that hold what is written to them and do not change how this program runs.
const HOLDING: &[Encoding] = &[
    Encoding(3, 0, 2, 1, 0),  // APIAKeyLo_EL1
    Encoding(3, 0, 2, 1, 1),  // APIAKeyHi_EL1
    Encoding(3, 0, 2, 3, 0),  // APGAKeyLo_EL1
    Encoding(3, 0, 4, 0, 0),  // SPSR_EL1
    Encoding(3, 0, 4, 0, 1),  // ELR_EL1
    Encoding(3, 0, 4, 1, 0),  // SP_EL0
    Encoding(3, 0, 5, 2, 0),  // ESR_EL1
    Encoding(3, 0, 6, 0, 0),  // FAR_EL1
    Encoding(3, 0, 7, 4, 0),  // PAR_EL1
    Encoding(3, 0, 13, 0, 1), // CONTEXTIDR_EL1
    Encoding(3, 3, 13, 0, 2), // TPIDR_EL0
    Encoding(3, 3, 13, 0, 3), // TPIDRRO_EL0
    Encoding(3, 3, 14, 2, 2), // CNTP_CVAL_EL0
    Encoding(3, 3, 14, 3, 2), // CNTV_CVAL_EL0
    Encoding(3, 3, 9, 13, 0), // PMCCNTR_EL0
    Encoding(3, 3, 14, 8, 0), // PMEVCNTR0_EL0
    Encoding(2, 0, 0, 0, 4),  // DBGBVR0_EL1
    Encoding(2, 0, 0, 0, 6),  // DBGWVR0_EL1
];
/// Of these at least so many hold the secret on any core, or the search would show nothing.
const HELD_LEAST: u64 = 8;

/// The time to look at all registers, most of which are UNDEF, with much to spare.
const LOOK_MS: u64 = 60_000;
/// Stands in [`FOUND`] while a vCPU looks.
const NOT_YET: u64 = u64::MAX;

static KEY: AtomicU64 = AtomicU64::new(0);
/// How many registers of the vCPU that has looked last hold the secret.
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Looks, and fills.
pub fn run() -> ! {
    println!("BOOT");
    let key = tree::argument("key").and_then(|key| u64::from_str_radix(key, 16).ok());
    KEY.store(key.unwrap_or(0), Relaxed);
    let mut tally = Tally::default();
    tally.report("t02_all_memory_is_zero", memory_is_zero());
    tally.report("t02_nothing_is_left_in_the_program", program_is_clean());
    let entry = boot::t58_boot_vcpu_enters_with_zero_state();
    tally.report("t58_boot_vcpu_enters_with_zero_state", entry);
    let entry = boot::t58_secondary_enters_with_zero_state();
    tally.report("t58_secondary_enters_with_zero_state", entry);
    tally.report("t02_no_register_holds_a_secret", registers_are_clean());
    tally.report("a_secret_in_registers_is_found", secret_is_found());
    fill()
}

fn memory_is_zero() -> Outcome {
    if let Some(address) = memory::find_nonzero() {
        check!(false, "memory at {address:#x} is not zero");
    }
    Ok(())
}

fn program_is_clean() -> Outcome {
    if let Some(address) = memory::find_complement_in_program(KEY.load(Relaxed)) {
        check!(false, "the secret is at {address:#x}");
    }
    Ok(())
}

fn registers_are_clean() -> Outcome {
    for index in 0..cpu::count() {
        FOUND.store(NOT_YET, Relaxed);
        if index == 0 {
            look_everywhere();
        } else {
            check_eq!(cpu::start(index, look_everywhere), Ok(()), "CPU_ON of vCPU {index}");
            let has_looked = || FOUND.load(Relaxed) != NOT_YET;
            check!(timer::wait_for(LOOK_MS, has_looked), "vCPU {index} still looks");
            check!(cpu::wait_off(index), "vCPU {index} does not go off");
        }
        let found = FOUND.load(Relaxed);
        check!(found == 0, "{found} registers of vCPU {index} hold the secret");
    }
    Ok(())
}

/// What [`registers_are_clean`] looks at is not blind.
fn secret_is_found() -> Outcome {
    write_held();
    look_everywhere();
    let found = FOUND.load(Relaxed);
    check!(found >= HELD_LEAST, "{found} registers hold the secret");
    Ok(())
}

fn look_everywhere() {
    let registers = [2, 3].into_iter().flat_map(all);
    let mut registers = registers.filter(|e| !ACKNOWLEDGE.contains(e)).peekable();
    let mut found = 0;
    while registers.peek().is_some() {
        let batch: Vec<Encoding, { code::LEN_MAX / 5 }> =
            registers.by_ref().take(code::LEN_MAX / 5).collect();
        found += holders(&batch);
    }
    FOUND.store(found, Relaxed);
}

/// Returns how many of some registers hold the lower half of the secret.
fn holders(registers: &[Encoding]) -> u64 {
    const MOV_X2_0: u32 = 0xd280_0002;
    const MVN_X2_X2: u32 = 0xaa22_03e2;
    const CMP_W2_W1: u32 = 0x6b01_005f;
    const CINC_X0_X0_EQ: u32 = 0x9a80_1400;
    // A register that is not there leaves 0.
    let look = |e: &Encoding| [MOV_X2_0, e.mrs() | 2, MVN_X2_X2, CMP_W2_W1, CINC_X0_X0_EQ];
    let instructions: Vec<u32, { code::LEN_MAX }> = registers.iter().flat_map(look).collect();
    code::run(&instructions, 0, KEY.load(Relaxed)).0[0]
}

fn write_held() {
    // Each by itself: some cores do not have some.
    for register in HOLDING {
        code::run(&[register.msr_x0()], !KEY.load(Relaxed), 0);
    }
}

fn fill() -> ! {
    for index in 1..cpu::count() {
        if let Err(error) = cpu::start(index, fill_registers) {
            println!("vCPU {index} does not start: {error:?}");
        }
    }
    memory::fill(!KEY.load(Relaxed));
    println!("SECRET");
    fill_registers();
    loop {
        relax();
    }
}

/// Fills all registers of this vCPU, the stack pointer too, and stays there.
fn fill_registers() {
    const MOV_SP_X0: u32 = 0x9100_001f;
    const MOV_X0: u32 = 0xaa00_03e0;
    const DUP_V0_2D_X0: u32 = 0x4e08_0c00;
    const B_SELF: u32 = 0x1400_0000;
    const TPIDR_EL1: Encoding = Encoding(3, 0, 13, 0, 4);
    irq::mask();
    write_held();
    CPACR_EL1::set(3 << 20);
    isb();
    let vectors = (0..32).map(|n| DUP_V0_2D_X0 | n);
    let general = (1..31).map(|n| MOV_X0 | n);
    let all = vectors.chain(general).chain([TPIDR_EL1.msr_x0(), MOV_SP_X0, B_SELF]);
    let instructions: Vec<u32, 80> = all.collect();
    code::run(&instructions, !KEY.load(Relaxed), 0);
}
