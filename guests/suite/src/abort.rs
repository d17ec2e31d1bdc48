// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Aborts that are not data accesses: translation tables and code where there is no memory.

use crate::under_hypervisor;
use guest_rt::device::{Width, try_read};
use guest_rt::exception::{ec, fsc};
use guest_rt::mmu::{self, Access};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, code, console, gic, skip, tests, tree};

pub const TESTS: &[Test] = tests![
    t27_translation_table_in_a_device,
    t27_translation_table_nowhere,
    t18_code_in_a_device,
    t18_code_nowhere,
];

fn t27_translation_table_in_a_device() -> Outcome {
    for (name, pa) in [("GICD", gic::gicd().base()), ("UART", console::device().base())] {
        let va = mmu::map_table(pa);
        match try_read(va, Width::Word) {
            Ok(value) => check!(false, "{name}: read {value:#x} through a device"),
            Err(exception) => {
                check_eq!(exception.class(), ec::DABT_EL1, "{name}: class");
                check_eq!(exception.far, va, "{name}: FAR_EL1");
                // A bare device answers the walk, with something that is no descriptor.
                let is_answered = !under_hypervisor() && fsc::is_translation(exception.fault());
                let is_abort = fsc::is_sea_on_walk(exception.fault());
                check!(is_abort || is_answered, "{name}: {exception}");
            }
        }
    }
    Ok(())
}

fn t27_translation_table_nowhere() -> Outcome {
    let va = mmu::map_table(tree::machine().hole());
    match try_read(va + 8, Width::Word) {
        Ok(value) => check!(false, "read {value:#x} through nothing"),
        Err(exception) => {
            check!(fsc::is_sea_on_walk(exception.fault()), "{exception}");
            check_eq!(exception.class(), ec::DABT_EL1, "class");
            check_eq!(exception.far, va + 8, "FAR_EL1");
        }
    }
    Ok(())
}

fn check_unfetchable(name: &str, pa: u64) -> Outcome {
    let va = mmu::map(0, pa, Access::Normal);
    let Some(exception) = code::call_unfetchable(va, 0, &[], &[]) else {
        return Err(guest_rt::test::fail(format_args!("{name}: something was executed")));
    };
    check_eq!(exception.class(), ec::IABT_EL1, "{name}: class");
    check_eq!(exception.fault(), fsc::SEA, "{name}: fault status");
    check_eq!(exception.far, va, "{name}: FAR_EL1");
    check_eq!(exception.elr, va, "{name}: ELR_EL1");
    Ok(())
}

fn t18_code_in_a_device() -> Outcome {
    if !under_hypervisor() {
        skip!("bare devices answer a fetch");
    }
    check_unfetchable("GICD", gic::gicd().base())?;
    if !gic::is_v2() {
        check_unfetchable("GICR", gic::gicr(0).base())?;
    }
    check_unfetchable("UART", console::device().base())
}

fn t18_code_nowhere() -> Outcome {
    check_unfetchable("hole", tree::machine().hole())
}
