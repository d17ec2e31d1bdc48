// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the guest did, and what it finds: calls, aborts, system registers.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::arch::fake::machine::{Event, ExitKind, GuestCounts, Overflow, Scripted, with};
use crate::id::{Pintid, VcpuId};
use crate::spec::gic::Lr;
use crate::trace::{ExitReason, InterruptKind, Ring};
use std::vec::Vec;

const NOT_SUPPORTED: u64 = u64::MAX;
const PSCI_VERSION: u64 = 0x8400_0000;

const ID_AA64PFR0_EL1: Encoding = [3, 0, 0, 4, 0];
const ID_AA64MMFR0_EL1: Encoding = [3, 0, 0, 7, 0];
const ACTLR_EL1: Encoding = [3, 0, 1, 0, 1];
const MDRAR_EL1: Encoding = [2, 0, 1, 0, 0];
const ICC_SGI1R_EL1: Encoding = [3, 0, 12, 11, 5];
/// Of the AMU extension.
const AMCR_EL0: Encoding = [3, 3, 13, 2, 0];

/// ESR_EL1 of an external abort at the same level: data and instruction; IL, and DFSC 0x10.
const DATA_SEA: u64 = 0x25 << 26 | 1 << 25 | 0x10;
const FETCH_SEA: u64 = 0x21 << 26 | 1 << 25 | 0x10;
/// The same on a walk, at level 0: DFSC 0x14.
const WALK: u64 = 0x4;
/// ESR_EL1 of an undefined instruction: EC 0, IL.
const UNDEFINED: u64 = 1 << 25;
/// Where the exception goes that is taken from EL1h.
const VECTOR: u64 = 0x200;

/// Asserts that an exit made the guest take an exception at the instruction, and nothing else.
fn assert_taken(bed: &mut Bed, exit: Scripted, esr: u64, why: &str) {
    let before = bed.core.registers.x;
    with(|core| core.elr = RAM + 0x40);
    assert_eq!(bed.exit(exit), None, "{why}");
    let (elr, elr_el1, esr_el1) = with(|core| (core.elr, core.elr_el1, core.esr_el1));
    assert_eq!(esr_el1, esr, "{why}: {esr_el1:#x}");
    assert_eq!((elr, elr_el1), (VECTOR, RAM + 0x40), "{why}");
    assert_eq!(bed.core.registers.x, before, "{why}");
}

#[test]
fn t92_psci_version_by_hvc_and_smc_is_1_1() {
    let mut bed = Bed::new();
    assert_eq!(bed.hvc([PSCI_VERSION]), 0x1_0001);
    bed.core.registers.x[0] = PSCI_VERSION;
    assert_eq!(bed.exit(smc(0)), None);
    assert_eq!(bed.core.registers.x[0], 0x1_0001);
}

#[test]
fn t92_unknown_call_says_so_and_touches_no_other_register() {
    let mut bed = Bed::new();
    for call in [hvc as fn(u64) -> Scripted, smc] {
        for function in [0x8400_ffff, 0xc300_0000, 0, u64::MAX] {
            let mut expected: Vec<u64> = (100..131).collect();
            bed.core.registers.x[..31].copy_from_slice(&expected);
            bed.core.registers.x[0] = function;
            assert_eq!(bed.exit(call(0)), None);
            expected[0] = NOT_SUPPORTED;
            assert_eq!(bed.core.registers.x[..31], expected, "{function:#x}");
        }
    }
}

#[test]
fn t93_immediate_that_is_not_0_is_refused() {
    let mut bed = Bed::new();
    for exit in [smc(1), smc(0xffff), hvc(1), hvc(0x8000)] {
        bed.core.registers.x[0] = PSCI_VERSION;
        assert_eq!(bed.exit(exit), None);
        assert_eq!(bed.core.registers.x[0], NOT_SUPPORTED);
    }
    // SYSTEM_OFF, the most harmful of all.
    bed.core.registers.x[0] = 0x8400_0008;
    assert_eq!(bed.exit(smc(1)), None);
}

#[test]
fn t93_workaround_is_el2s_own_call() {
    let mut bed = Bed::new();
    bed.core.registers.x[..31].fill(7);
    bed.core.registers.x[0] = 0x8000_8000;
    clear_events();
    assert_eq!(bed.exit(smc(0)), None);
    assert!(matches!(events()[..], [Event::Enter, Event::Mitigate(_)]), "{:?}", events());
    assert_eq!(bed.core.registers.x[1..31], [7; 30]);
}

#[test]
fn t31_pc_advances_once_by_the_class_of_exit() {
    let mut bed = Bed::new();
    let fetch = |iss| Scripted { far: RAM, ipa: RAM, ..synchronous(0x20, iss) };
    let asynchronous = |kind| Scripted { kind, esr: 0, far: 0, ipa: 0 };
    // HVC's preferred return address is behind it; a trapped instruction's is at it.
    let classes = [
        ("HVC", hvc(0), Some(0)),
        ("SMC", smc(0), Some(4)),
        ("SMC with an immediate", smc(1), Some(4)),
        ("load", load(VDIST + 8, WORD), Some(4)),
        ("store", store(VDIST + 8, 2, 31), Some(4)),
        ("cache maintenance", data_abort(VDIST, CM | WNR | FAULT), Some(4)),
        ("MRS", mrs(ID_AA64PFR0_EL1, 0), Some(4)),
        ("MSR", msr(ICC_SGI1R_EL1, 31), Some(4)),
        ("WFI", synchronous(0x01, 0), Some(4)),
        ("interrupt", asynchronous(ExitKind::Interrupt), Some(0)),
        ("SError", asynchronous(ExitKind::SError), Some(0)),
        ("no syndrome", data_abort(VDIST, FAULT), None),
        ("nothing there", load(0x1000, WORD), None),
        ("fetch", fetch(FAULT), None),
        ("hidden register", mrs(AMCR_EL0, 0), None),
        ("SVE", synchronous(0x19, 0), None),
    ];
    for (class, exit, advance) in classes {
        with(|core| core.elr = RAM + 0x100);
        bed.core.registers.x[..31].fill(u64::MAX);
        assert_eq!(bed.exit(exit), None, "{class}");
        let expected = advance.map_or(VECTOR, |bytes| RAM + 0x100 + bytes);
        assert_eq!(elr(), expected, "{class}");
    }
}

#[test]
fn reads_and_writes_reach_the_distributor() {
    let mut bed = Bed::new();
    // GICD_IIDR: the implementer is Arm. GICD_TYPER: ITLinesNumber 8 is up to INTID 287.
    assert_eq!(bed.read(VDIST + 8) & 0xfff, 0x43b);
    assert_eq!(bed.read(VDIST + 4) & 0x1f, 8);
    bed.write(VDIST + 0x104, 1 << 8);
    assert_eq!(bed.read(VDIST + 0x104), 1 << 8, "GICD_ISENABLER1");
    bed.write(VDIST + 0x184, 1 << 8);
    assert_eq!(bed.read(VDIST + 0x104), 0, "GICD_ICENABLER1");
}

#[test]
fn t74_each_redistributor_says_whose_it_is() {
    let mut bed = Bed::new();
    for (vcpu, last) in [(0, 0), (1, 1 << 4)] {
        let typer = load(VREDIST + vcpu * 0x2_0000 + 8, Load { size: 3, sixty_four: 1, ..WORD });
        assert_eq!(bed.exit(typer), None);
        // Affinity 63:32, Processor_Number 23:8, Last 4, PLPIS 0.
        assert_eq!(bed.core.registers.x[0], vcpu << 32 | vcpu << 8 | last | 1);
    }
    assert_taken(&mut bed, load(VREDIST + 0x4_0008, WORD), DATA_SEA, "past the last one");
}

#[test]
fn bytes_to_the_uart_come_out_of_the_physical_one() {
    let mut bed = Bed::new();
    clear_events();
    for byte in *b"hi" {
        bed.core.registers.x[5] = u64::from(byte) | 0xffff_ff00;
        assert_eq!(bed.exit(store(VUART, 0, 5)), None);
    }
    let sent: Vec<u64> = with(|core| {
        let data = |event: &Event| match event {
            Event::DeviceWrite(at, value) if *at == pa_range(UART, 1).start() => Some(*value),
            _ => None,
        };
        core.events.iter().filter_map(data).collect()
    });
    assert!(sent.ends_with(&b"hi".map(u64::from)), "{sent:?}");
    // UARTFR: the receive FIFO is empty.
    assert_eq!(bed.read(VUART + 0x18) & 1 << 4, 1 << 4);
}

#[test]
fn t26_address_is_the_page_of_hpfar_and_the_offset_of_far() {
    let mut bed = Bed::new();
    // GICD_PIDR2.ArchRev is 3; at every other offset of its page it would not be read.
    assert_eq!(bed.read(VDIST + 0xffe8) >> 4 & 0xf, 3);
}

#[test]
fn t35_access_that_straddles_gets_an_external_abort() {
    let mut bed = Bed::new();
    for (ipa, size) in [
        (VUART + 0xffd, 2),
        (VUART + 0xffc, 3),
        (VDIST + 0xffff, 1),
        (VREDIST + 0x3_fffc, 3),
        (VDIST - 1, 1),
    ] {
        let wide = load(ipa, Load { size, ..WORD });
        assert_taken(&mut bed, wide, DATA_SEA, "straddles");
        assert_eq!(with(|core| core.far_el1), wide.far);
        assert_taken(&mut bed, store(ipa, size, 0), DATA_SEA | WNR, "straddles");
    }
}

#[test]
fn t37_nothing_there_is_an_external_abort() {
    let mut bed = Bed::new();
    for ipa in [0, 0x1000, VUART + 0x1000, RAM - 4, RAM + RAM_BYTES, (1 << 40) - 4, 1 << 47] {
        assert_taken(&mut bed, load(ipa, WORD), DATA_SEA, "load");
        assert_taken(&mut bed, store(ipa, 2, 1), DATA_SEA | WNR, "store");
    }
}

#[test]
fn t28_access_without_a_syndrome_gets_an_external_abort() {
    let mut bed = Bed::new();
    assert_taken(&mut bed, data_abort(VDIST + 8, FAULT), DATA_SEA, "LDP");
    assert_taken(&mut bed, data_abort(VDIST + 8, WNR | FAULT), DATA_SEA | WNR, "STP");
    // The other fields say nothing then.
    let junk = 3 << 22 | 1 << 21 | 4 << 16 | 1 << 15;
    assert_taken(&mut bed, data_abort(VUART, junk | FAULT), DATA_SEA, "SIMD");
}

#[test]
fn t27_fault_of_a_walk_is_an_abort_on_a_walk() {
    let mut bed = Bed::new();
    let esr = DATA_SEA | WALK;
    assert_taken(&mut bed, data_abort(VDIST, S1PTW | FAULT), esr, "table in the GIC");
    assert_taken(&mut bed, data_abort(VDIST, ISV | 2 << 22 | S1PTW | FAULT), esr, "with ISV");
    let update = data_abort(VDIST, S1PTW | WNR | FAULT);
    assert_taken(&mut bed, update, esr | WNR, "hardware update of a table");
    let maintenance = data_abort(0x1000, S1PTW | CM | WNR | FAULT);
    assert_taken(&mut bed, maintenance, esr | WNR, "walk for a DC instruction");
    let fetch = Scripted { far: 0x40, ipa: 0, ..synchronous(0x20, S1PTW | FAULT) };
    assert_taken(&mut bed, fetch, FETCH_SEA | WALK, "walk for a fetch");
}

#[test]
fn t32_maintenance_of_what_is_no_memory_does_nothing() {
    let mut bed = Bed::new();
    let before = bed.core.registers.x;
    clear_events();
    for ipa in [VDIST, VUART, 0x1000] {
        assert_eq!(bed.exit(data_abort(ipa, CM | WNR | FAULT)), None);
    }
    assert_eq!(events(), [Event::Enter, Event::Enter, Event::Enter]);
    assert_eq!(bed.core.registers.x, before);
}

#[test]
fn t18_fetch_from_a_device_or_from_nothing_is_an_external_abort() {
    let mut bed = Bed::new();
    for ipa in [VDIST, VUART, 0x1000] {
        let fetch = Scripted { far: ipa, ipa, ..synchronous(0x20, FAULT) };
        assert_taken(&mut bed, fetch, FETCH_SEA, "fetch");
        assert_eq!(with(|core| core.far_el1), ipa);
    }
}

#[test]
fn t41_external_abort_of_an_access_goes_to_the_guest() {
    let mut bed = Bed::new();
    let hole = data_abort(VDIST, EA | 0x10);
    assert_taken(&mut bed, hole, DATA_SEA, "external abort");
    // With FnV the address is not known, which the guest is told: FnV, bit 10.
    let unknown = data_abort(VDIST, 1 << 10 | 0x10);
    assert_taken(&mut bed, unknown, DATA_SEA | 1 << 10, "address unknown");
}

#[test]
fn t30_register_31_is_zero() {
    let mut bed = Bed::new();
    bed.write(VDIST + 0x104, 1 << 3);
    bed.core.registers.x[..31].fill(u64::MAX);
    // GICD_IROUTER32 takes all 64 bits of Xt.
    assert_eq!(bed.exit(store(VDIST + 0x6100, 3, 31)), None);
    assert_eq!(bed.exit(load(VDIST + 0x6100, Load { size: 3, sixty_four: 1, ..WORD })), None);
    assert_eq!(bed.core.registers.x[0], 0);
    let before = bed.core.registers.x;
    assert_eq!(bed.exit(load(VDIST + 4, Load { register: 31, ..WORD })), None);
    assert_eq!(bed.exit(mrs(ID_AA64PFR0_EL1, 31)), None);
    assert_eq!(bed.core.registers.x, before);
    // X30 is a register like others.
    assert_eq!(bed.exit(load(VDIST + 0x104, Load { register: 30, ..WORD })), None);
    assert_eq!(bed.core.registers.x[30], 1 << 3);
}

#[test]
fn t29_loads_extend_as_the_instruction_says() {
    let mut bed = Bed::new();
    // GICD_IPRIORITYR of SPI 33 takes bytes; the priority's top bit is set.
    let at = VDIST + 0x421;
    bed.core.registers.x[1] = 0xf8;
    assert_eq!(bed.exit(store(at, 0, 1)), None);
    let cases = [
        ("LDRB", at, 0, 0, 0, 0xf8),
        ("LDRSB W", at, 0, 1, 0, 0xffff_fff8),
        ("LDRSB X", at, 0, 1, 1, 0xffff_ffff_ffff_fff8),
        ("LDR W", at - 1, 2, 0, 0, 0xf800),
        ("LDRSW positive", at - 1, 2, 1, 1, 0xf800),
    ];
    for (name, ipa, size, sign, sixty_four, expected) in cases {
        bed.core.registers.x[0] = 0x5555_5555_5555_5555;
        assert_eq!(bed.exit(load(ipa, Load { size, sign, sixty_four, register: 0 })), None);
        assert_eq!(bed.core.registers.x[0], expected, "{name}");
    }
    bed.write(VDIST + 0x420, 0xf8f8_f8f8);
    let ldrsw = Load { size: 2, sign: 1, sixty_four: 1, register: 0 };
    assert_eq!(bed.exit(load(VDIST + 0x420, ldrsw)), None);
    assert_eq!(bed.core.registers.x[0], 0xffff_ffff_f8f8_f8f8);
}

#[test]
fn t36_a_store_is_as_wide_as_the_instruction() {
    let mut bed = Bed::new();
    bed.core.registers.x[1] = 0xffff_ffff_ffff_ff08;
    assert_eq!(bed.exit(store(VDIST + 0x420, 0, 1)), None);
    assert_eq!(bed.read(VDIST + 0x420), 0x08, "one byte of GICD_IPRIORITYR8");
}

#[test]
fn t47_identification_registers_hide_what_is_hidden() {
    let mut bed = Bed::new();
    // EL0 and EL1 with AArch32, EL2, EL3, GIC, RAS, SVE, MPAM, AMU, RME: all there.
    let core_has = 0x0011_0111_1100_2222_u64 | 1 << 52;
    with(|core| core.id_registers.insert((4, 0), core_has));
    assert_eq!(bed.exit(mrs(ID_AA64PFR0_EL1, 9)), None);
    let seen = bed.core.registers.x[9];
    for (shift, name) in [(8, "EL2"), (12, "EL3"), (28, "RAS"), (40, "MPAM"), (44, "AMU")] {
        assert_eq!(seen >> shift & 0xf, 0, "{name}: {seen:#x}");
    }
    assert_eq!((seen & 0xf, seen >> 24 & 0xf), (2, 1), "EL0, GIC");
    // PARange is no more than the VM's own: 2 is 40 bits.
    with(|core| core.id_registers.insert((7, 0), 6));
    assert_eq!(bed.exit(mrs(ID_AA64MMFR0_EL1, 9)), None);
    assert_eq!(bed.core.registers.x[9] & 0xf, 2);
}

#[test]
fn t46_unknown_registers_are_undefined() {
    let mut bed = Bed::new();
    assert_taken(&mut bed, mrs(AMCR_EL0, 0), UNDEFINED, "read");
    assert_taken(&mut bed, msr(AMCR_EL0, 0), UNDEFINED, "write");
    assert_taken(&mut bed, msr(ID_AA64PFR0_EL1, 0), UNDEFINED, "write to what is read-only");
    assert_taken(&mut bed, mrs(ICC_SGI1R_EL1, 0), UNDEFINED, "read of what is write-only");
    for class in (0..64).filter(|class| ![0x01, 0x16, 0x17, 0x18, 0x20, 0x24].contains(class)) {
        assert_taken(&mut bed, synchronous(class, 0), UNDEFINED, "unknown class");
    }
}

#[test]
fn t46_every_encoding_has_an_answer() {
    let mut bed = Bed::new();
    for iss in (0..1 << 22).step_by(37) {
        let exit = synchronous(0x18, iss);
        with(|core| core.elr = RAM);
        assert_eq!(bed.exit(exit), None, "{iss:#x}");
        let moved = elr();
        assert!(moved == RAM + 4 || moved == VECTOR, "{iss:#x}: {moved:#x}");
        clear_events();
    }
}

#[test]
fn harmless_registers_are_answered() {
    let mut bed = Bed::new();
    for register in [ACTLR_EL1, MDRAR_EL1] {
        bed.core.registers.x[2] = 9;
        assert_eq!(bed.exit(mrs(register, 2)), None);
        assert_eq!(bed.core.registers.x[2], 0);
    }
    with(|core| core.elr = RAM);
    assert_eq!(bed.exit(msr(ACTLR_EL1, 2)), None);
    assert_eq!(elr(), RAM + 4);
}

#[test]
fn t62_serror_becomes_the_guests() {
    let mut bed = Bed::new();
    clear_events();
    let serror = Scripted { kind: ExitKind::SError, esr: 0x2f << 26, far: 0, ipa: 0 };
    assert_eq!(bed.exit(serror), None::<Next>);
    assert_eq!(events(), [Event::Enter, Event::InjectSerror]);
}

#[test]
fn exits_are_counted_by_their_reason() {
    let mut bed = Bed::new();
    let count = |bed: &Bed| ExitReason::ALL.map(|reason| bed.core.counters.get(reason).0);
    let before = count(&bed);
    bed.hvc([PSCI_VERSION]);
    bed.hvc([PSCI_VERSION]);
    bed.read(VDIST + 8);
    let _ = bed.exit(mrs(ID_AA64PFR0_EL1, 0));
    let _ = bed.exit(synchronous(0, 0));
    let _ = bed.interrupt(0);
    let counted: Vec<_> = count(&bed).iter().zip(before).map(|(now, was)| now - was).collect();
    // Calls, system registers, devices, interrupts, faults.
    assert_eq!(counted, [2, 1, 1, 1, 1]);
}

#[test]
fn interrupts_are_counted_by_kind_and_so_is_how_long_they_take() {
    const VTIMER: u32 = 27;
    let mut bed = Bed::new();
    bed.enable(0xffff | 1 << VTIMER, 1 << (SPI.1 - 32));
    let injected = |bed: &Bed| {
        let vredist = bed.vm.vgic.vredist(VcpuId::new(0)).unwrap();
        let counters = &bed.vm.counters[0];
        InterruptKind::ALL.map(|kind| counters.quick(kind) + vredist.injections.get(kind))
    };
    let entries = |bed: &Bed| -> u64 { (0..64).map(|n| bed.vm.counters[0].to_entry(n)).sum() };
    assert_eq!((injected(&bed), entries(&bed)), ([0; 4], 0));
    // To itself: INTID 5 in bits 27:24, a list of targets in bits 15:0.
    bed.core.registers.x[1] = 5 << 24 | 1;
    for expected in [1, 2] {
        let _ = bed.exit(msr(ICC_SGI1R_EL1, 1));
        assert_eq!((injected(&bed), entries(&bed)), ([expected, 0, 0, 0], 0));
        with(|core| core.list_registers.fill(Lr::EMPTY));
    }
    let _ = bed.interrupt(VTIMER);
    assert_eq!((injected(&bed), entries(&bed)), ([2, 1, 0, 0], 1), "the long way");
    set_inactive();
    let _ = bed.interrupt(VTIMER);
    assert_eq!((injected(&bed), entries(&bed)), ([2, 2, 0, 0], 2), "the quick way");
    let _ = bed.interrupt(SPI.0);
    assert_eq!((injected(&bed), entries(&bed)), ([2, 2, 1, 0], 3));
    let _ = bed.interrupt(0);
    assert_eq!((injected(&bed), entries(&bed)), ([2, 2, 1, 0], 3), "a kick for nothing");
}

/// The guest has taken and ended what is in its list registers.
fn set_inactive() {
    with(|core| {
        for lr in &mut core.list_registers {
            *lr = Lr::from_register(lr.get() & !(3 << 62));
        }
    });
}

#[test]
fn each_exit_is_in_the_histogram_once() {
    let mut bed = Bed::new();
    let all = |bed: &Bed| -> u64 {
        ExitReason::ALL.iter().map(|&reason| bed.vm.counters[0].get(reason).0).sum()
    };
    for _ in 0..10 {
        bed.hvc([PSCI_VERSION]);
        bed.read(VDIST + 8);
        let _ = bed.interrupt(27);
        let in_buckets: u64 = (0..64).map(|n| bed.vm.counters[0].at_el2(n)).sum();
        assert_eq!(all(&bed), in_buckets);
    }
    assert_eq!(all(&bed), 30);
    // A fake counter moves on by one with each look: at the exit, and at its end.
    assert!(ExitReason::ALL.iter().all(|&r| {
        let (count, ticks) = bed.vm.counters[0].get(r);
        ticks >= count
    }));
}

#[test]
fn a_reset_leaves_the_counters_as_they_are() {
    let mut bed = Bed::new();
    for _ in 0..3 {
        bed.hvc([PSCI_VERSION]);
    }
    let _ = bed.exit(synchronous(0, 0));
    let before = bed.vm.counters[0].get(ExitReason::Call);
    bed.vm.reset_models(&bed.core.effects(), &mut || {});
    assert_eq!(bed.vm.counters[0].get(ExitReason::Call), before);
    assert_eq!(before.0, 3);
}

#[test]
fn aborts_and_hidden_instructions_are_remembered_as_they_were() {
    let mut bed = Bed::new();
    with(|core| core.elr = RAM + 0x40);
    let abort = load(0x7777_0000, WORD);
    let _ = bed.exit(abort);
    with(|core| core.elr = RAM + 0x80);
    let hidden = synchronous(0, 0);
    let _ = bed.exit(hidden);
    bed.hvc([PSCI_VERSION]);
    let last = kept(&bed.core.last.faults);
    assert_eq!(last, [(abort.esr, RAM + 0x40, abort.far), (hidden.esr, RAM + 0x80, hidden.far)]);
}

/// Syndrome, PC and detail of what a ring has kept.
fn kept(ring: &Ring) -> Vec<(u64, u64, u64)> {
    let all = (0..ring.len()).filter_map(|n| ring.get(n));
    all.map(|exit| (exit.syndrome, exit.pc, exit.detail)).collect()
}

#[test]
fn what_was_answered_is_remembered_as_it_was() {
    let mut bed = Bed::new();
    with(|core| core.elr = RAM + 0x40);
    let mut expected = Vec::new();
    let mut exit = |bed: &mut Bed, scripted: Scripted, detail| {
        expected.push((scripted.esr, elr(), detail));
        assert_eq!(bed.exit(scripted), None);
    };
    bed.core.registers.x[0] = PSCI_VERSION;
    exit(&mut bed, synchronous(0x16, 0), PSCI_VERSION);
    bed.core.registers.x[0] = PSCI_VERSION;
    exit(&mut bed, synchronous(0x17, 0), PSCI_VERSION);
    exit(&mut bed, load(VUART + 0x18, WORD), VUART + 0x18);
    exit(&mut bed, mrs(ID_AA64PFR0_EL1, 1), 0);
    // Not SGIs, and neither what is a mistake without an access.
    assert_eq!(bed.exit(msr(ICC_SGI1R_EL1, 31)), None);
    assert_eq!(bed.exit(data_abort(VUART, FAULT)), None);
    let pc = elr();
    assert_eq!(bed.interrupt(27), None);
    expected.push((1 << 63 | 27, pc, 0));
    assert_eq!(kept(&bed.core.last.answered), expected);
    let at: Vec<_> =
        (0..expected.len()).map(|n| bed.core.last.answered.get(n).unwrap().at_ticks).collect();
    assert!(at.is_sorted() && at[0] < at[4]);
    bed.core.stop(Next::Off);
    assert!(bed.core.last.answered.is_empty() && bed.core.last.faults.is_empty());
}

const PMU: u32 = 23;

#[test]
fn overflow_of_el2s_own_counters_is_kept_from_the_guest() {
    let mut bed = Bed::new();
    bed.enable(1 << PMU, 0);
    with(|core| {
        core.guest_counts = GuestCounts { cycles: 1 << 32, instructions: 7 };
        core.overflow = Overflow::Own;
    });
    let _ = bed.interrupt(PMU);
    assert_eq!(bed.state(), []);
    let pmu = Pintid::new(PMU);
    assert_eq!(events(), [Event::Enter, Event::PriorityDrop(pmu), Event::Deactivate(pmu)]);
    let counters = &bed.vm.counters[0];
    assert_eq!((counters.cycles.get(), counters.instructions.get()), (1 << 32, 7));
    with(|core| core.guest_counts = GuestCounts { cycles: 3, instructions: 2 });
    with(|core| core.overflow = Overflow::Guest);
    let _ = bed.interrupt(PMU);
    assert_eq!(bed.state().len(), 1, "the guest's own");
    let counters = &bed.vm.counters[0];
    assert_eq!((counters.cycles.get(), counters.instructions.get()), ((1 << 32) + 3, 9));
}
