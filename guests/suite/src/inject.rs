// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T31, T33 and T34: what a guest sees of an exit. A completed one moves the PC on by one
//! instruction; one that is answered with an exception leaves the state that DDI 0487 D1.3 says.

use crate::{insn, under_hypervisor};
use guest_rt::exception::{Exception, ec, fsc, vector};
use guest_rt::gic::{self, reg};
use guest_rt::mmu::{self, Access};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, code, console, el0, psci, tests, tree};

pub const TESTS: &[Test] = tests![
    t31_pc_advances_once,
    t33_abort_from_el1h,
    t33_abort_from_el1t,
    t33_abort_from_el0,
    t33_fetch_abort_from_el1h,
    t33_fetch_abort_from_el1t,
    t33_fetch_abort_from_el0,
    t34_undef_from_el1h,
    t34_undef_from_el1t,
    t34_undef_from_el0,
    t93_hvc_and_smc_from_el0_are_undef,
];

fn t31_pc_advances_once() -> Outcome {
    let gicd = gic::gicd().at(reg::IPRIORITYR + 32);
    let uart = console::device().at(console::reg::FR);
    let version = u64::from(psci::id::VERSION);
    let conduit = match tree::machine().conduit {
        psci::Conduit::Hvc => insn::HVC_0,
        psci::Conduit::Smc => insn::SMC_0,
    };
    // One that stays pending and masked wakes WFI at once.
    gic::enable(1);
    gic::send_sgi(1, 0);
    let cases = [
        ("PSCI call", conduit, version),
        ("HVC", if under_hypervisor() { insn::HVC_0 } else { conduit }, version),
        ("SMC", if under_hypervisor() { insn::SMC_0 } else { conduit }, version),
        ("GICD read", insn::LDR_W1, gicd),
        ("GICD write", insn::STR_WZR, gicd),
        ("GICD byte read", insn::LDRB_W1, gicd),
        ("UART read", insn::LDR_W1, uart),
        ("UART write", insn::STR_WZR, console::device().at(console::reg::ICR)),
        ("ICC_SGI1R_EL1", insn::MSR_SGI1R_XZR, 0),
        ("ID register", insn::MRS_X0_PFR0, 0),
        ("WFI", insn::WFI, 0),
        ("YIELD", insn::YIELD, 0),
        ("DC CIVAC", insn::DC_CIVAC, gicd),
    ];
    for (name, instruction, x0) in cases {
        if gic::is_v2() && name.starts_with("ICC") {
            continue;
        }
        // Twice in a row, so that a PC that moves too far also shows between the two.
        let code = [
            insn::MOV_X9_0,
            instruction,
            insn::ADD_X9[0],
            insn::ADD_X9[1],
            insn::ADD_X9[2],
            instruction,
            insn::ADD_X9[0],
            insn::ADD_X9[1],
            insn::ADD_X9[2],
            insn::MOV_X0_X9,
        ];
        for _ in 0..10 {
            let ([sum, _], exception) = code::run(&code, x0, 0);
            let is_allowed = name == "DC CIVAC" && under_hypervisor();
            check!(exception.is_none() || is_allowed, "{name}: {:?}", exception);
            check_eq!(sum, 14, "what ran behind {name}");
        }
    }
    // WFE with an event that waits: SEVL sends it.
    let code = [
        insn::MOV_X9_0,
        insn::SEVL,
        insn::WFE,
        insn::ADD_X9[0],
        insn::ADD_X9[1],
        insn::ADD_X9[2],
        insn::MOV_X0_X9,
    ];
    check_eq!(code::run(&code, 0, 0).0[0], 7, "what ran behind WFE");
    Ok(())
}

/// Condition flags before the exception: N and C.
const NZCV: u64 = 0xa << 28;
/// SPSR_EL1: the flags, software step, illegal state, DAIF and the mode.
const SPSR_MASK: u64 = 0xf030_03df;
const DAIF: u64 = 0x3c0;
const EL1H: u64 = 5;
const EL1T: u64 = 4;
/// What the handler runs with: everything masked, EL1, SP_EL1.
const HANDLER: u64 = DAIF | 1 << 2 | 1;

/// Where an exception comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    El1h,
    El1t,
    El0,
}

impl From {
    fn vector(self) -> u64 {
        match self {
            Self::El1h => vector::SYNC_EL1H,
            Self::El1t => vector::SYNC_EL1T,
            Self::El0 => vector::SYNC_EL0,
        }
    }
    fn mode(self) -> u64 {
        match self {
            Self::El1h => EL1H,
            Self::El1t => EL1T,
            Self::El0 => 0,
        }
    }

    /// Runs one instruction with x0 and returns the exception with the address that ELR_EL1 has to
    /// hold.
    fn run(self, instruction: u32, x0: u64) -> (Option<Exception>, u64) {
        match self {
            Self::El1h => {
                let code = [insn::MSR_NZCV_X1, instruction];
                (code::run(&code, x0, NZCV).1, code::address_of(1))
            }
            Self::El1t => {
                let code = [insn::MSR_NZCV_X1, insn::SPSEL_0, instruction, insn::SPSEL_1];
                (code::run(&code, x0, NZCV).1, code::address_of(2))
            }
            // `el0::run` sets the flags itself.
            Self::El0 => (code::run_at_el0(&[instruction], x0, 0).0, code::el0_address()),
        }
    }
}

fn check_state(
    from: From,
    exception: Option<Exception>,
    elr: u64,
) -> Result<Exception, guest_rt::test::Verdict> {
    let Some(exception) = exception else {
        return Err(guest_rt::test::fail(format_args!("no exception")));
    };
    check_eq!(exception.count, 1, "exceptions");
    check_eq!(exception.vector, from.vector(), "vector");
    check_eq!(exception.elr, elr, "ELR_EL1");
    check_eq!(exception.spsr & SPSR_MASK, NZCV | DAIF | from.mode(), "SPSR_EL1");
    check_eq!(exception.pstate, HANDLER, "PSTATE in the handler");
    check_eq!(exception.esr >> 25 & 1, 1, "ESR_EL1.IL");
    Ok(exception)
}

fn check_undef(from: From) -> Outcome {
    assert_flags();
    let mut undefs = heapless::Vec::<u32, 8>::new();
    // UDF itself never leaves EL1; the system registers of EL2 may be trapped on the way.
    let _ = undefs.push(insn::UDF);
    for encoding in [
        insn::Encoding(3, 4, 1, 1, 0),
        insn::Encoding(3, 4, 12, 0, 0),
        insn::Encoding(3, 6, 1, 1, 0),
        insn::Encoding(3, 0, 15, 15, 7),
        insn::Encoding(2, 7, 15, 15, 7),
    ] {
        let _ = undefs.push(encoding.mrs());
    }
    for instruction in undefs {
        let (exception, elr) = from.run(instruction, 0);
        let exception = check_state(from, exception, elr)?;
        check!(exception.is_undef(), "{instruction:#010x}: {exception}");
    }
    Ok(())
}

fn assert_flags() {
    const _: () = assert!(el0::SPSR & SPSR_MASK == NZCV | DAIF);
}

fn check_data_abort(from: From) -> Outcome {
    let access = if from == From::El0 { Access::DeviceEl0 } else { Access::Device };
    let va = mmu::map(0, tree::machine().hole(), access) + 0x124;
    let class = if from == From::El0 { ec::DABT_EL0 } else { ec::DABT_EL1 };
    for (instruction, write) in [(insn::LDR_W1, 0), (insn::STR_W1, 1), (insn::LDP, 0)] {
        let (exception, elr) = from.run(instruction, va);
        let exception = check_state(from, exception, elr)?;
        check_eq!(exception.class(), class, "class");
        check_eq!(exception.fault(), fsc::SEA, "fault status");
        check_eq!(exception.far, va, "FAR_EL1");
        check_eq!(exception.esr >> 10 & 1, 0, "ESR_EL1.FnV");
        check_eq!(exception.esr >> 8 & 1, 0, "ESR_EL1.CM");
        check_eq!(exception.esr >> 7 & 1, 0, "ESR_EL1.S1PTW");
        check_eq!(exception.esr >> 6 & 1, write, "ESR_EL1.WnR");
    }
    Ok(())
}

fn check_fetch_abort(from: From) -> Outcome {
    let hole = tree::machine().hole();
    let access = if from == From::El0 { Access::CodeEl0 } else { Access::Normal };
    let va = mmu::map(0, hole, access) + 0x40;
    let exception = match from {
        From::El1h => code::call_unfetchable(va, NZCV, &[insn::MSR_NZCV_X1], &[]),
        From::El1t => {
            let prepare = [insn::MSR_NZCV_X1, insn::SPSEL_0];
            code::call_unfetchable(va, NZCV, &prepare, &[insn::SPSEL_1])
        }
        From::El0 => code::run_at_el0(&[insn::BR_X0], va, 0).0,
    };
    let exception = check_state(from, exception, va)?;
    let class = if from == From::El0 { ec::IABT_EL0 } else { ec::IABT_EL1 };
    check_eq!(exception.class(), class, "class");
    check_eq!(exception.fault(), fsc::SEA, "fault status");
    check_eq!(exception.far, va, "FAR_EL1");
    Ok(())
}

fn t33_abort_from_el1h() -> Outcome {
    check_data_abort(From::El1h)
}
fn t33_abort_from_el1t() -> Outcome {
    check_data_abort(From::El1t)
}
fn t33_abort_from_el0() -> Outcome {
    check_data_abort(From::El0)
}
fn t33_fetch_abort_from_el1h() -> Outcome {
    check_fetch_abort(From::El1h)
}
fn t33_fetch_abort_from_el1t() -> Outcome {
    check_fetch_abort(From::El1t)
}
fn t33_fetch_abort_from_el0() -> Outcome {
    check_fetch_abort(From::El0)
}
fn t34_undef_from_el1h() -> Outcome {
    check_undef(From::El1h)
}
fn t34_undef_from_el1t() -> Outcome {
    check_undef(From::El1t)
}
fn t34_undef_from_el0() -> Outcome {
    check_undef(From::El0)
}

fn t93_hvc_and_smc_from_el0_are_undef() -> Outcome {
    for instruction in [insn::HVC_0, insn::HVC_1, insn::SMC_0, insn::SMC_1] {
        let (exception, elr) = From::El0.run(instruction, psci::id::VERSION.into());
        let exception = check_state(From::El0, exception, elr)?;
        check!(exception.is_undef(), "{instruction:#010x}: {exception}");
    }
    Ok(())
}
