// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T28: forms of loads and stores. Those that name one general register and do not write back have
//! a valid syndrome (DDI 0487 D24.2.40, ISV) and must work on every emulated device; all others
//! must end in an external abort with nothing changed, as the hypervisor's policy is. Bare
//! hardware carries them out.

use crate::{gicv3, insn, under_hypervisor};
use guest_rt::gic::{self, reg};
use guest_rt::mmu::{self, Access};
use guest_rt::sysreg::{CPACR_EL1, ID_AA64ISAR0_EL1, isb};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, code, console, tests};

pub const TESTS: &[Test] = tests![
    t28_forms_with_a_syndrome_work,
    t28_forms_without_a_syndrome_on_gicd,
    t28_forms_without_a_syndrome_on_gicr,
    t28_forms_without_a_syndrome_on_uart,
    t28_dc_zva_on_a_device,
];

fn t28_forms_with_a_syndrome_work() -> Outcome {
    let gicd = gic::gicd();
    let offset = reg::IPRIORITYR + 32;
    // The unprivileged forms need a page that EL0 may use.
    let address = mmu::map(0, gicd.base(), Access::DeviceEl0) + offset;
    for (name, store) in [("str", insn::STR_W1), ("stlr", insn::STLR_W1), ("sttr", insn::STTR_W1)] {
        gicd.write32(offset, 0);
        let (_, exception) = code::run(&[store], address, 0x1020_3040);
        check!(exception.is_none(), "{name}: {:?}", exception);
        // The lowest five bits of a priority need not exist.
        check_eq!(gicd.read32(offset) & 0xe0e0_e0e0, 0x0020_2040, "what {name} wrote");
    }
    gicd.write32(offset, 0x2040_6080);
    for (name, load) in [
        ("ldr", insn::LDR_W1),
        ("ldar", insn::LDAR_W1),
        ("ldtr", insn::LDTR_W1),
        ("ldur", insn::LDUR_W1),
    ] {
        let ([_, value], exception) = code::run(&[load], address, 0);
        check!(exception.is_none(), "{name}: {:?}", exception);
        check_eq!(value & 0xffff_ffff, 0x2040_6080, "what {name} read");
    }
    Ok(())
}

/// What a form without a syndrome needs, and how far its address is from x0.
struct Form(&'static str, u32, u64, Needs);

#[derive(PartialEq, Eq)]
enum Needs {
    Nothing,
    /// FEAT_LSE.
    Atomics,
    /// An exclusive, which a device may refuse with its own fault.
    Exclusive,
}

const FORMS: &[Form] = &[
    Form("ldp", insn::LDP, 0, Needs::Nothing),
    Form("stp", insn::STP, 0, Needs::Nothing),
    Form("ldr post-index", insn::LDR_POST, 0, Needs::Nothing),
    Form("ldr pre-index", insn::LDR_PRE, 4, Needs::Nothing),
    Form("str post-index", insn::STR_POST, 0, Needs::Nothing),
    Form("str pre-index", insn::STR_PRE, 4, Needs::Nothing),
    Form("ldr s", insn::LDR_S0, 0, Needs::Nothing),
    Form("ldr d", insn::LDR_D0, 0, Needs::Nothing),
    Form("ldr q", insn::LDR_Q0, 0, Needs::Nothing),
    Form("str d", insn::STR_D0, 0, Needs::Nothing),
    Form("ld1", insn::LD1, 0, Needs::Nothing),
    Form("ldxr", insn::LDXR, 0, Needs::Exclusive),
    Form("ldaxr", insn::LDAXR, 0, Needs::Exclusive),
    Form("ldadd", insn::LDADD, 0, Needs::Atomics),
    Form("swp", insn::SWP, 0, Needs::Atomics),
    Form("cas", insn::CAS, 0, Needs::Atomics),
];

/// Fault status: unsupported exclusive or atomic access (DDI 0487 D24.2.40).
const UNSUPPORTED_EXCLUSIVE: u64 = 0x35;

fn check_forms(address: u64, read: impl Fn() -> u32) -> Outcome {
    CPACR_EL1::set(3 << 20);
    isb();
    let has_atomics = ID_AA64ISAR0_EL1::get() >> 20 & 0xf >= 2;
    let before = read();
    for Form(name, instruction, distance, needs) in FORMS {
        if *needs == Needs::Atomics && !has_atomics {
            continue;
        }
        let ([base, _], exception) = code::run(&[*instruction], address, 0);
        let Some(exception) = exception else {
            check!(!under_hypervisor(), "{name} went through");
            continue;
        };
        let is_refused = *needs != Needs::Nothing && exception.fault() == UNSUPPORTED_EXCLUSIVE;
        check!(exception.is_data_sea() || is_refused, "{name}: {exception}");
        check_eq!(exception.count, 1, "exceptions of {name}");
        check_eq!(exception.far, address + distance, "FAR_EL1 of {name}");
        check_eq!(exception.elr, code::address_of(0), "ELR_EL1 of {name}");
        check_eq!(base, address, "base register of {name}");
        check_eq!(read(), before, "the register behind {name}");
    }
    Ok(())
}

fn t28_forms_without_a_syndrome_on_gicd() -> Outcome {
    let offset = reg::IPRIORITYR + 48;
    let gicd = gic::gicd();
    check_forms(gicd.at(offset), || gicd.read32(offset))
}

fn t28_forms_without_a_syndrome_on_gicr() -> Outcome {
    gicv3()?;
    let offset = reg::SGI_FRAME + reg::IPRIORITYR;
    let gicr = gic::gicr(0);
    check_forms(gicr.at(offset), || gicr.read32(offset))
}

fn t28_forms_without_a_syndrome_on_uart() -> Outcome {
    let uart = console::device();
    // IFLS, whose neighbours a store may hit without harm: IMSC and the read-only RIS.
    check_forms(uart.at(0x30), || uart.read32(console::reg::CR))
}

/// Zeroing a block goes to memory only; stage 1 has to call the device Normal for it to get out.
fn t28_dc_zva_on_a_device() -> Outcome {
    let gicd = gic::gicd();
    let offset = reg::IPRIORITYR + 64;
    let va = mmu::map(0, gicd.base(), Access::Normal) + offset;
    gicd.write32(offset, 0x6060_6060);
    let (_, exception) = code::run(&[insn::DC_ZVA], va, 0);
    let Some(exception) = exception else {
        check!(!under_hypervisor(), "dc zva went through");
        return Ok(());
    };
    check!(exception.is_data_sea(), "{exception}");
    check_eq!(exception.elr, code::address_of(0), "ELR_EL1");
    check_eq!(gicd.read32(offset), 0x6060_6060, "the register behind it");
    Ok(())
}
