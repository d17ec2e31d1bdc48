// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Physical interrupts that arrive, and what the guest finds in its list registers.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::addr::Ipa;
use crate::arch::fake::machine::{Event, ExitKind, Scripted, with};
use crate::gic::SgiRegister;
use crate::id::{Pintid, VcpuId};
use crate::psci::Start;
use crate::spec::gic::Lr;
use crate::vm::lifecycle::Change;

const ICC_SGI1R_EL1: Encoding = [3, 0, 12, 11, 5];
const ICC_DIR_EL1: Encoding = [3, 0, 12, 11, 1];

/// Fields of ICH_LR<n>_EL2 (IHI 0069 H 12.4.10).
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 2 << 62;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;

/// ICH_HCR_EL2.TDIR.
const TDIR: u32 = 1 << 14;

const VTIMER: u32 = 27;
const KICK: Pintid = Pintid::new(0);

/// A list register of priority 0 with a hardware link, but for the state.
fn linked(pintid: u32, vintid: u32) -> u64 {
    HW | GROUP1 | u64::from(pintid) << 32 | u64::from(vintid)
}

fn set_list_register(slot: usize, value: u64) {
    with(|core| core.list_registers[slot] = Lr::from_register(value));
}

#[test]
fn t71_virtual_timer_comes_through_a_linked_list_register() {
    let mut bed = Bed::new();
    bed.enable(1 << VTIMER, 0);
    assert_eq!(bed.interrupt(VTIMER), None);
    assert_eq!(events(), [Event::Enter, Event::PriorityDrop(Pintid::new(VTIMER))]);
    assert_eq!(bed.state(), [PENDING | linked(VTIMER, VTIMER)]);
    // The guest has taken and ended it, and so the physical one: the next one comes the same way.
    set_list_register(0, linked(VTIMER, VTIMER));
    assert_eq!(bed.interrupt(VTIMER), None);
    assert_eq!(bed.state(), [PENDING | linked(VTIMER, VTIMER)]);
}

#[test]
fn t68_timer_that_is_disabled_stays_pending_until_it_is_enabled() {
    let mut bed = Bed::new();
    bed.enable(0, 0);
    assert_eq!(bed.interrupt(VTIMER), None);
    assert_eq!(bed.state(), []);
    assert_eq!(bed.read(VREDIST + 0x1_0200), 1 << VTIMER, "GICR_ISPENDR0");
    let is_over = |event: &Event| matches!(event, Event::Deactivate(_));
    assert!(!events().iter().any(is_over), "the guest will end it: {:?}", events());
    bed.write(VREDIST + 0x1_0100, 1 << VTIMER);
    assert_eq!(bed.state(), [PENDING | linked(VTIMER, VTIMER)]);
}

#[test]
fn t71_spi_whose_line_drops_is_withdrawn() {
    let mut bed = Bed::new();
    let (pintid, vintid) = SPI;
    bed.enable(0, 1 << (vintid - 32));
    assert_eq!(bed.interrupt(pintid), None);
    with(|core| core.devices.insert(GICD_ISPENDR1, 0));
    clear_events();
    assert_eq!(bed.read(VDIST + 0x204), 0, "GICD_ISPENDR1 of the guest");
    assert_eq!(bed.state(), []);
    assert!(events().contains(&Event::Deactivate(Pintid::new(pintid))));
}

#[test]
fn t71_spi_of_a_guests_device_is_linked() {
    let mut bed = Bed::new();
    let (pintid, vintid) = SPI;
    bed.enable(0, 1 << (vintid - 32));
    assert_eq!(bed.interrupt(pintid), None);
    assert_eq!(events(), [Event::Enter, Event::PriorityDrop(Pintid::new(pintid))]);
    assert_eq!(bed.state(), [PENDING | linked(pintid, vintid)]);
}

#[test]
fn t76_sgi_to_another_vcpu_kicks_its_pcpu() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    look_at_work(&bed);
    // INTID 5 in bits 27:24, a list of targets in bits 15:0.
    bed.core.registers.x[1] = 5 << 24 | 1 << 1;
    assert_eq!(bed.exit(msr(ICC_SGI1R_EL1, 1)), None);
    assert_eq!(events(), [Event::Enter, Event::Sgi(KICK, pcpu(0, 1))]);
    assert_eq!(bed.state(), []);
}

#[test]
fn t76_sgi_to_oneself_is_there_at_the_next_entry_without_a_kick() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    bed.core.registers.x[1] = 5 << 24 | 1;
    assert_eq!(bed.exit(msr(ICC_SGI1R_EL1, 1)), None);
    assert_eq!(events(), [Event::Enter]);
    assert_eq!(bed.state(), [PENDING | GROUP1 | 5]);
}

#[test]
fn t76_sgi_to_all_others_spares_the_sender_and_other_vms() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    look_at_work(&bed);
    bed.core.registers.x[1] = 1 << 40 | 7 << 24;
    assert_eq!(bed.exit(msr(ICC_SGI1R_EL1, 1)), None);
    assert_eq!(events(), [Event::Enter, Event::Sgi(KICK, pcpu(0, 1))]);
    assert_eq!(bed.state(), []);
}

#[test]
fn kick_is_ended_and_brings_what_it_was_for() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    bed.vm.vgic.send_sgi(VcpuId::new(1), SgiRegister::Sgi1, 9 << 24 | 1, &());
    assert_eq!(bed.interrupt(0), None);
    assert_eq!(events(), [Event::Enter, Event::PriorityDrop(KICK), Event::Deactivate(KICK)]);
    assert_eq!(bed.state(), [PENDING | GROUP1 | 9]);
}

#[test]
fn t91_kick_gets_a_vcpu_out_when_its_vm_changes() {
    let mut bed = Bed::new();
    assert_eq!(bed.interrupt(0), None);
    let _ = bed.vm.lifecycle.begin(Change::Stop);
    assert_eq!(bed.interrupt(0), Some(Next::Out));
}

#[test]
fn spurious_interrupt_does_nothing() {
    let mut bed = Bed::new();
    clear_events();
    bed.enable(0, 0);
    let none = Scripted { kind: ExitKind::Interrupt, esr: 0, far: 0, ipa: 0 };
    assert_eq!(bed.exit(none), None);
    assert_eq!(events(), [Event::Enter]);
    assert_eq!(bed.state(), []);
}

#[test]
fn interrupt_that_is_nobodys_is_ended() {
    let mut bed = Bed::new();
    bed.enable(u64::MAX >> 32, u64::MAX >> 32);
    for pintid in [5, 20, 70] {
        clear_events();
        assert_eq!(bed.interrupt(pintid), None);
        let pintid = Pintid::new(pintid);
        let expected = [Event::Enter, Event::PriorityDrop(pintid), Event::Deactivate(pintid)];
        assert_eq!(events(), expected);
        assert_eq!(bed.state(), []);
    }
}

#[test]
fn t67_more_pending_than_list_registers_all_come() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    bed.core.registers.x[1] = 1;
    for sgi in 0..16 {
        bed.core.registers.x[1] = sgi << 24 | 1;
        assert_eq!(bed.exit(msr(ICC_SGI1R_EL1, 1)), None);
    }
    let mut come = 0_u32;
    for _ in 0..16 {
        for slot in 0..4 {
            let lr = with(|core| core.list_registers[slot]);
            if lr.is_pending() {
                assert_eq!(come >> lr.vintid().get() & 1, 0, "twice");
                come |= 1 << lr.vintid().get();
                // Taken and ended by the guest.
                set_list_register(slot, lr.get() & !(3 << 62));
            }
        }
        // No pending interrupt is left: maintenance.
        assert_eq!(bed.interrupt(25), None);
    }
    assert_eq!(come, 0xffff);
}

#[test]
fn t70_deactivation_by_dir_is_trapped_at_every_entry() {
    let mut bed = Bed::new();
    assert_eq!(with(|core| core.control) & TDIR, TDIR, "first start");
    // CPU_OFF, then on again.
    bed.core.registers.x[0] = 0x8400_0002;
    assert_eq!(bed.exit(hvc(0)), Some(Next::Off));
    bed.core.stop(Next::Off);
    bed.core.start(Start { entry: Ipa::at(RAM), context: 0 });
    bed.hvc([0x8400_0000]);
    assert_eq!(with(|core| core.control) & TDIR, TDIR, "second start");
}

#[test]
fn t70_dir_ends_an_active_interrupt_and_its_physical_one() {
    let mut bed = Bed::new();
    let (pintid, vintid) = SPI;
    bed.enable(0, 1 << (vintid - 32));
    assert_eq!(bed.interrupt(pintid), None);
    set_list_register(0, ACTIVE | linked(pintid, vintid));
    clear_events();
    bed.core.registers.x[1] = u64::from(vintid);
    assert_eq!(bed.exit(msr(ICC_DIR_EL1, 1)), None);
    assert_eq!(events(), [Event::Enter, Event::Deactivate(Pintid::new(pintid))]);
    assert_eq!(bed.state(), []);
}

#[test]
fn t77_dir_of_special_and_absent_numbers_does_nothing() {
    let mut bed = Bed::new();
    bed.enable(u64::MAX >> 32, u64::MAX >> 32);
    for value in [96, 1019, 1020, 1023, 1024, 5120, 8192, 0xff_ffff, u64::MAX] {
        bed.core.registers.x[1] = value;
        assert_eq!(bed.exit(msr(ICC_DIR_EL1, 1)), None);
    }
    assert_eq!(bed.state(), []);
}

#[test]
fn t69_spi_of_a_vcpu_that_goes_off_is_not_lost() {
    let mut bed = Bed::new();
    let (pintid, vintid) = SPI;
    bed.enable(0, 1 << (vintid - 32));
    assert_eq!(bed.interrupt(pintid), None);
    assert_eq!(bed.state(), [PENDING | linked(pintid, vintid)]);
    // CPU_OFF. The SPI is pending at the distributor then, and goes to another vCPU once routed
    // there, as another vCPU does with GICD_IROUTER.
    bed.core.registers.x[0] = 0x8400_0002;
    assert_eq!(bed.exit(hvc(0)), Some(Next::Off));
    bed.core.stop(Next::Off);
    assert_eq!(bed.state(), []);
    let mut other = Bed { vm: bed.vm, core: core(bed.core.hypervisor, 0, 1) };
    other.write(VDIST + 0x6000 + 8 * u64::from(vintid), 1);
    assert_eq!(other.state(), [PENDING | linked(pintid, vintid)]);
}
