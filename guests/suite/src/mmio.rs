// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Single accesses to emulated registers and to addresses that belong to nobody.

use crate::insn;
use crate::under_hypervisor;
use guest_rt::console;
use guest_rt::device::{Width, try_read};
use guest_rt::exception::fsc;
use guest_rt::gic::{self, reg};
use guest_rt::mmu::{self, Access};
use guest_rt::sysreg::{ID_AA64MMFR0_EL1, PAR_EL1};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, code, tests, tree};

pub const TESTS: &[Test] = tests![
    t25_par_survives_exits,
    t26_abort_reports_the_exact_address,
    t29_loads_extend_as_the_instruction_says,
    t30_xzr_reads_zero_and_drops_writes,
    t32_cache_maintenance_on_a_device_is_no_access,
    t35_access_over_the_end_of_memory_aborts,
    t35_access_over_the_end_of_a_device,
    t38_every_power_of_two,
];

/// The word of priorities of the first SPIs, which a guest may write as it likes.
const PRIORITIES: u64 = reg::IPRIORITYR + 32;

fn t25_par_survives_exits() -> Outcome {
    // A translation that works: the attribute byte and the address are in PAR_EL1.
    let memory = tree::machine().memory.first().map_or(0, |range| range.0);
    let par = mmu::translate(memory + 0x20_0000);
    check!(par & 1 == 0, "AT failed: {par:#x}");
    for _ in 0..10 {
        let _ = gic::gicd().read32(reg::IIDR);
        gic::gicd().write32(PRIORITIES, 0);
        let _ = try_read(tree::machine().hole(), Width::Word);
        let _ = console::device().read32(console::reg::FR);
        check_eq!(PAR_EL1::get(), par, "PAR_EL1");
    }
    Ok(())
}

fn t26_abort_reports_the_exact_address() -> Outcome {
    let va = mmu::map(0, tree::machine().hole(), Access::Device);
    for offset in [0, 4, 0x7f8, 0xffc] {
        match try_read(va + offset, Width::Word) {
            Ok(value) => check!(false, "read {value:#x} from nowhere"),
            Err(exception) => {
                check!(exception.is_data_sea(), "{exception}");
                check_eq!(exception.far, va + offset, "FAR_EL1");
            }
        }
    }
    Ok(())
}

fn t29_loads_extend_as_the_instruction_says() -> Outcome {
    let gicd = gic::gicd();
    gicd.write32(PRIORITIES, 0xf8f8_f8f8);
    check_eq!(gicd.read32(PRIORITIES), 0xf8f8_f8f8, "the priorities that were written");
    let uart = console::device();
    // The divisor has 16 bits; the byte in it that is read has its top bit set.
    uart.write32(console::reg::IBRD, 0x80f8);
    check_eq!(uart.read32(console::reg::IBRD), 0x80f8, "UARTIBRD as written");
    let (priorities, divisor) = (gicd.at(PRIORITIES), uart.at(console::reg::IBRD));
    let cases = [
        ("ldrb w", insn::LDRB_W1, priorities, 0xf8),
        ("ldrsb w", insn::LDRSB_W1, priorities, 0xffff_fff8),
        ("ldrsb x", insn::LDRSB_X1, priorities, 0xffff_ffff_ffff_fff8),
        ("ldr w", insn::LDR_W1, priorities, 0xf8f8_f8f8),
        ("ldrsw", insn::LDRSW_X1, priorities, 0xffff_ffff_f8f8_f8f8),
        ("ldrb w", insn::LDRB_W1, divisor, 0xf8),
        ("ldrsb w", insn::LDRSB_W1, divisor, 0xffff_fff8),
        ("ldrsb x", insn::LDRSB_X1, divisor, 0xffff_ffff_ffff_fff8),
        ("ldrh w", insn::LDRH_W1, divisor, 0x80f8),
        ("ldrsh w", insn::LDRSH_W1, divisor, 0xffff_80f8),
        ("ldrsh x", insn::LDRSH_X1, divisor, 0xffff_ffff_ffff_80f8),
        ("ldr w", insn::LDR_W1, divisor, 0x80f8),
    ];
    for (name, load, address, want) in cases {
        // The old value shows whether the upper half is written at all.
        let ([_, got], exception) = code::run(&[load], address, u64::MAX);
        check!(exception.is_none(), "{name} of {address:#x}: {:?}", exception);
        check_eq!(got, want, "{name} of {address:#x}");
    }
    Ok(())
}

fn t30_xzr_reads_zero_and_drops_writes() -> Outcome {
    let gicd = gic::gicd();
    gicd.write32(PRIORITIES, 0x5050_5050);
    let address = gicd.at(PRIORITIES);
    // A return to the wrong place or with the wrong stack would not get here.
    let (_, exception) = code::run(&[insn::LDR_WZR, insn::LDR_WZR], address, 0);
    check!(exception.is_none(), "ldr wzr: {:?}", exception);
    check_eq!(gicd.read32(PRIORITIES), 0x5050_5050, "the register after ldr wzr");
    let (_, exception) = code::run(&[insn::STR_WZR], address, u64::MAX);
    check!(exception.is_none(), "str wzr: {:?}", exception);
    check_eq!(gicd.read32(PRIORITIES), 0, "the register after str wzr");
    Ok(())
}

/// A clean or invalidate by address is not an access to the device: it does nothing there, or
/// aborts like one, but it never reads or writes a register.
fn t32_cache_maintenance_on_a_device_is_no_access() -> Outcome {
    let gicd = gic::gicd();
    gicd.write32(PRIORITIES, 0x4040_4040);
    let page = PRIORITIES & !0xfff;
    let hole = tree::machine().hole();
    for (pa, at) in [(gicd.at(page), PRIORITIES - page), (console::device().base(), 0), (hole, 0)] {
        for access in [Access::Device, Access::Normal] {
            let va = mmu::map(0, pa, access) + at;
            for (name, instruction) in [
                ("dc civac", insn::DC_CIVAC),
                ("dc cvac", insn::DC_CVAC),
                ("dc cvau", insn::DC_CVAU),
                ("dc ivac", insn::DC_IVAC),
                ("ic ivau", insn::IC_IVAU),
                ("prfm", insn::PRFM),
            ] {
                let (_, exception) = code::run(&[instruction], va, 0);
                if let Some(exception) = exception {
                    check!(name != "prfm", "prfm on {pa:#x}: {exception}");
                    check!(exception.is_data_sea(), "{name} on {pa:#x}: {exception}");
                    check_eq!(exception.far, va, "FAR_EL1 of {name}");
                }
            }
        }
    }
    check_eq!(gicd.read32(PRIORITIES), 0x4040_4040, "the register behind it all");
    Ok(())
}

/// Maps the pages before and behind a border side by side, and returns where the border is.
fn map_border(border: u64) -> u64 {
    mmu::map(0, border - 4096, Access::NonCacheable);
    mmu::map(1, border, Access::NonCacheable)
}

fn t35_access_over_the_end_of_memory_aborts() -> Outcome {
    let va = map_border(tree::machine().hole());
    for back in 1..8 {
        match try_read(va - back, Width::Double) {
            Ok(value) => check!(false, "read {value:#x} over the end of memory"),
            Err(exception) => {
                check!(exception.is_data_sea(), "{back} bytes before the end: {exception}");
                let far = exception.far.wrapping_sub(va - back);
                check!(far < 8, "FAR_EL1 {:#x} is outside of the access", exception.far);
            }
        }
    }
    Ok(())
}

/// An access that no device holds entirely has a defined end: an abort under the hypervisor; on
/// bare hardware whatever the bus makes of its two halves.
fn t35_access_over_the_end_of_a_device() -> Outcome {
    let gicd = gic::gicd();
    let uart = console::device();
    for (name, end) in [("GICD", gicd.base() + gicd.size()), ("UART", uart.base() + 0x1000)] {
        let va = map_border(end);
        for back in [1, 2, 4, 7] {
            match try_read(va - back, Width::Double) {
                Ok(value) => {
                    check!(!under_hypervisor(), "{name}: read {value:#x} over the end");
                }
                Err(exception) => check!(exception.is_data_sea(), "{name}: {exception}"),
            }
        }
    }
    Ok(())
}

/// Physical address bits for each value of ID_AA64MMFR0_EL1.PARange (DDI 0487 D24.2.82).
const PA_BITS: [u32; 7] = [32, 36, 40, 42, 44, 48, 52];

fn t38_every_power_of_two() -> Outcome {
    let range = usize::try_from(ID_AA64MMFR0_EL1::get() & 0xf).unwrap_or(0);
    // Stage 1 with 4 KiB pages and no LPA2 reaches 48 bits.
    let bits = PA_BITS.get(range).copied().unwrap_or(48).min(48);
    let machine = tree::machine();
    for bit in 20..48 {
        for pa in [1u64 << bit, (1 << bit) + 0x20_0000, (2 << bit) - 4096] {
            if machine.describes(pa) {
                continue;
            }
            let va = mmu::map_gib(pa, Access::Device);
            match try_read(va, Width::Word) {
                Ok(value) => check!(false, "read {value:#x} at {pa:#x}, which is nobody's"),
                Err(exception) if pa >> bits != 0 => {
                    check!(fsc::is_address_size(exception.fault()), "at {pa:#x}: {exception}");
                }
                Err(exception) => {
                    check!(exception.is_data_sea(), "at {pa:#x}: {exception}");
                    check_eq!(exception.far, va, "FAR_EL1 at {pa:#x}");
                }
            }
        }
    }
    Ok(())
}
