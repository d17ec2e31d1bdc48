// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T46: every system register encoding, read and written, from EL1 and EL0. Each either works or is
//! UNDEF, and none hangs. Left out are the few whose writing changes how this program itself runs.

use crate::insn::Encoding;
use guest_rt::exception::ec;
use guest_rt::test::{Outcome, Test, Verdict};
use guest_rt::{check, check_eq, code, gic, println, psci, tests, tree};
use heapless::Vec;

pub const TESTS: &[Test] = tests![
    t46_every_register_read_at_el1,
    t46_every_register_written_at_el1,
    t46_every_register_read_at_el0,
    t46_every_register_written_at_el0,
    t46_every_system_instruction_at_el1,
    t46_every_system_instruction_at_el0,
    t46_id_space_reads_as_zero_at_least,
    t46_registers_of_higher_levels_are_undef,
];

/// Registers that a test at EL1 must not write: our stage 1, vectors, stack, per-vCPU data, mask,
/// and the frequency, which EL1 may write where it is the highest level.
const OUR_REGIME: &[Encoding] = &[
    Encoding(3, 0, 1, 0, 0),  // SCTLR_EL1
    Encoding(3, 0, 2, 0, 0),  // TTBR0_EL1
    Encoding(3, 0, 2, 0, 1),  // TTBR1_EL1
    Encoding(3, 0, 2, 0, 2),  // TCR_EL1
    Encoding(3, 0, 10, 2, 0), // MAIR_EL1
    Encoding(3, 0, 12, 0, 0), // VBAR_EL1
    Encoding(3, 0, 12, 0, 2), // RMR_EL1
    Encoding(3, 0, 13, 0, 4), // TPIDR_EL1
    Encoding(3, 0, 4, 2, 0),  // SPSel
    Encoding(3, 3, 4, 2, 1),  // DAIF
    Encoding(3, 3, 14, 0, 0), // CNTFRQ_EL0
];

/// Registers whose reading is an action: an interrupt would be lost.
pub const ACKNOWLEDGE: &[Encoding] = &[
    Encoding(3, 0, 12, 8, 0),  // ICC_IAR0_EL1
    Encoding(3, 0, 12, 12, 0), // ICC_IAR1_EL1
    Encoding(3, 0, 12, 9, 5),  // ICC_NMIAR1_EL1
];

/// Returns every encoding of a group.
pub fn all(op0: u32) -> impl Iterator<Item = Encoding> {
    (0..0x4000u32).map(move |n| Encoding(op0, n >> 11 & 7, n >> 7 & 0xf, n >> 3 & 0xf, n & 7))
}

/// Where a sweep runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    El0,
    El1,
}

/// Runs one instruction for each encoding and gives each with the class of its exception to
/// `judge`.
fn sweep(
    level: Level,
    encodings: impl Iterator<Item = Encoding>,
    instruction: impl Fn(Encoding) -> u32,
    x0: u64,
    mut judge: impl FnMut(Encoding, Option<u64>) -> Outcome,
) -> Outcome {
    let mut encodings = encodings.peekable();
    while encodings.peek().is_some() {
        let batch: Vec<Encoding, { code::LEN_MAX }> =
            encodings.by_ref().take(code::LEN_MAX).collect();
        let words: Vec<u32, { code::LEN_MAX }> = batch.iter().map(|e| instruction(*e)).collect();
        match level {
            Level::El0 => code::sweep_at_el0(&words, x0, 0),
            Level::El1 => code::sweep(&words, x0, 0),
        }
        for (n, encoding) in batch.iter().enumerate() {
            judge(*encoding, code::noted(n))?;
        }
    }
    Ok(())
}

/// The classes with which EL1 may learn of a register access: UNDEF; at EL0 also the trap of EL1's
/// own controls; with FEAT_IDST that class in the ID space; and the vector units that are off.
fn check_class(level: Level, encoding: Encoding, class: Option<u64>) -> Outcome {
    let is_allowed = match class {
        None | Some(ec::UNKNOWN | ec::FP | ec::SVE | ec::SME) => true,
        Some(ec::SYSREG) => level == Level::El0 || encoding.is_id_space(),
        Some(_) => false,
    };
    check!(is_allowed, "{encoding:?} at {level:?} takes an exception of class {:x?}", class);
    Ok(())
}

fn sweep_registers(
    level: Level,
    instruction: impl Fn(Encoding) -> u32,
    except: &[Encoding],
) -> Outcome {
    let (mut works, mut undefs) = (0u32, 0u32);
    for op0 in [2, 3] {
        let encodings = all(op0).filter(|encoding| !except.contains(encoding));
        sweep(level, encodings, &instruction, 0, |encoding, class| {
            if class.is_none() {
                works += 1
            } else {
                undefs += 1
            }
            check_class(level, encoding, class)
        })?;
    }
    if tree::has_argument("verbose") {
        println!("# {works} work, {undefs} do not");
    }
    check!(undefs > 16 * works, "{works} encodings work and only {undefs} do not");
    // Whatever was written, the vCPU still works.
    gic::init_cpu();
    check!(psci::affinity_info(guest_rt::cpu::mpidr(0), 0) == Ok(0), "PSCI does not answer");
    Ok(())
}

fn t46_every_register_read_at_el1() -> Outcome {
    sweep_registers(Level::El1, Encoding::mrs, ACKNOWLEDGE)
}

fn t46_every_register_read_at_el0() -> Outcome {
    sweep_registers(Level::El0, Encoding::mrs, ACKNOWLEDGE)
}

fn t46_every_register_written_at_el1() -> Outcome {
    sweep_registers(Level::El1, Encoding::msr_xzr, OUR_REGIME)
}

fn t46_every_register_written_at_el0() -> Outcome {
    sweep_registers(Level::El0, Encoding::msr_xzr, &[])
}

/// A page for the system instructions that take an address, some of which zero it.
#[repr(C, align(4096))]
struct Scratch([core::sync::atomic::AtomicU64; 512]);
static SCRATCH: Scratch = Scratch([const { core::sync::atomic::AtomicU64::new(0) }; 512]);

fn t46_every_system_instruction_at_el1() -> Outcome {
    let address = SCRATCH.0.as_ptr().addr() as u64;
    let mut undefs = 0;
    sweep(Level::El1, all(1), Encoding::sys, address, |encoding, class| {
        undefs += u32::from(class.is_some());
        check_class(Level::El1, encoding, class)
    })?;
    check!(undefs > 15_000, "only {undefs} of the encodings are UNDEF");
    Ok(())
}

fn t46_every_system_instruction_at_el0() -> Outcome {
    // EL0 has no mapping of the page: what EL1 lets it do aborts.
    sweep(Level::El0, all(1), Encoding::sys, 0, |encoding, class| {
        let is_abort = class == Some(ec::DABT_EL0);
        if is_abort { Ok(()) } else { check_class(Level::El0, encoding, class) }
    })
}

/// The space of ID registers reads as zero where nothing is defined (DDI 0487 D24.3.1).
fn t46_id_space_reads_as_zero_at_least() -> Outcome {
    let space = (1..8).flat_map(|crm| (0..8).map(move |op2| Encoding(3, 0, 0, crm, op2)));
    sweep(Level::El1, space.clone(), Encoding::mrs, 0, |encoding, class| {
        check!(class.is_none(), "reading {encoding:?} takes an exception of class {:x?}", class);
        Ok(())
    })?;
    sweep(Level::El1, space, Encoding::msr_xzr, 0, |encoding, class| {
        check_eq!(class, Some(ec::UNKNOWN), "class of writing {encoding:?}");
        Ok(())
    })
}

/// Checks that there is none of some registers, to read or to write.
pub fn check_undef(registers: &[Encoding]) -> Outcome {
    for instruction in [Encoding::mrs, Encoding::msr_xzr] {
        sweep(Level::El1, registers.iter().copied(), instruction, 0, |encoding, class| {
            check_eq!(class, Some(ec::UNKNOWN), "class of {encoding:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// op1 4 and 5 belong to EL2, 6 to EL3, 7 to Secure EL1 (DDI 0487 table D24-2).
fn t46_registers_of_higher_levels_are_undef() -> Outcome {
    let check = |encoding: Encoding, class: Option<u64>| -> Result<(), Verdict> {
        check_eq!(class, Some(ec::UNKNOWN), "class of {encoding:?}");
        Ok(())
    };
    for instruction in [Encoding::mrs, Encoding::msr_xzr] {
        for level in [Level::El1, Level::El0] {
            let encodings = all(3).filter(|encoding| encoding.1 >= 4);
            sweep(level, encodings, instruction, 0, check)?;
        }
    }
    Ok(())
}
