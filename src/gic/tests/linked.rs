// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of interrupts with a physical one behind them whose line drops before they are taken.
#![forbid(unsafe_code)]

use super::fake::SPURIOUS;
use super::*;
use crate::spec::gic::Lr;

/// A device is quieted without an exit: what waits for the guest, in a list register or in the
/// models, is taken back when somebody looks, and the physical interrupt is free to come again.
#[test]
fn t71_linked_spi_whose_line_is_low_is_withdrawn() {
    for is_enabled in [true, false] {
        let mut machine = Machine::enabled(1, 4);
        machine.write_bit(0, if is_enabled { 0x100 } else { 0x180 }, 40);
        for _ in 0..3 {
            assert!(machine.fire_spi(40));
            machine.settle(0);
            assert_eq!(machine.cpu(0).find(40).is_some(), is_enabled);
            assert_ne!(machine.read(0x204) & 1 << 8, 0, "high: it stays");
            machine.effects.low_lines.borrow_mut().push(Pintid::new(140));
            machine.reconcile(0);
            assert_eq!(machine.cpu(0).find(40), None, "low: it is withdrawn");
            assert_eq!(machine.read(0x204) & 1 << 8, 0);
            machine.effects.low_lines.borrow_mut().clear();
            machine.settle(0);
        }
        machine.fire_spi(40);
        machine.write_bit(0, 0x100, 40);
        machine.settle(0);
        assert_eq!(machine.take(0), 40, "the next one comes");
    }
}

/// What the guest has begun to handle goes on, whatever the line does meanwhile.
#[test]
fn t71_linked_spi_that_is_active_stays_when_its_line_drops() {
    let mut machine = Machine::enabled(1, 4);
    machine.fire_spi(40);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 40);
    machine.effects.low_lines.borrow_mut().push(Pintid::new(140));
    machine.reconcile(0);
    assert_ne!(machine.read(0x304) & 1 << 8, 0, "active");
    machine.cpu(0).end(40);
    machine.settle(0);
    assert!(machine.physical_spis.is_empty());
}

/// Pending by register alone: there is no physical interrupt that could say otherwise.
#[test]
fn t71_linked_spi_that_software_made_pending_stays_when_its_line_is_low() {
    let mut machine = Machine::enabled(1, 4);
    machine.effects.low_lines.borrow_mut().push(Pintid::new(140));
    machine.write_bit(0, 0x200, 40);
    machine.reconcile(0);
    machine.settle(0);
    assert_eq!(machine.take(0), 40);
}

/// Made pending by register while it is active in no list register: its line is low because the
/// guest has served the device, and says nothing about what the guest asks for.
#[test]
fn t71_linked_spi_that_software_made_pending_while_active_stays_when_its_line_is_low() {
    {
        let mut machine = Machine::enabled(1, 1);
        machine.fire_spi(40);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), 40);
        machine.write_priority(0, 50, 0x20);
        machine.write_bit(0, 0x200, 50);
        machine.settle(0);
        assert_eq!(machine.cpu(0).find(40), None, "something more urgent has its list register");
        machine.effects.low_lines.borrow_mut().push(Pintid::new(140));
        machine.write_bit(0, 0x200, 40);
        machine.reconcile(0);
        assert_eq!(state(&machine, 40), (true, true));
        assert_eq!(machine.take(0), 50);
        machine.cpu(0).end(40);
        machine.settle(0);
        assert_eq!(machine.take(0), 40, "once more");
        assert!(machine.physical_spis.is_empty());
    }
}

/// The same with a list register, which says that it is pending and active: when the guest has
/// ended the one, the other is not the physical interrupt's.
#[test]
fn t71_linked_spi_that_software_made_pending_while_listed_stays_when_its_line_is_low() {
    let mut machine = Machine::enabled(1, 4);
    machine.fire_spi(40);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 40);
    machine.effects.low_lines.borrow_mut().push(Pintid::new(140));
    machine.write_bit(0, 0x200, 40);
    machine.reconcile(0);
    assert_eq!(state(&machine, 40), (true, true));
    machine.cpu(0).end(40);
    for look in 0..3 {
        machine.reconcile(0);
        assert_eq!(state(&machine, 40), (true, false), "look {look}");
        machine.settle(0);
        assert!(machine.physical_spis.is_empty(), "free to come again");
    }
    assert_eq!(machine.take(0), 40, "once more");
}

/// The same for a timer, in a list register and in none.
#[test]
fn t81_linked_timer_that_software_made_pending_while_active_stays_when_its_line_is_low() {
    for list_registers in [1, 4] {
        let mut machine = Machine::enabled(1, list_registers);
        machine.fire_timer(0);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), TIMER);
        if list_registers == 1 {
            machine.write_priority(0, 50, 0x20);
            machine.write_bit(0, 0x200, 50);
            machine.settle(0);
        }
        machine.cpu(0).low_lines.push(Pintid::new(TIMER));
        machine.write_private(0, 0x200, 1 << TIMER);
        machine.reconcile(0);
        if list_registers == 1 {
            assert_eq!(machine.take(0), 50);
        }
        machine.cpu(0).end(TIMER);
        for look in 0..3 {
            machine.settle(0);
            machine.reconcile(0);
            assert_ne!(machine.read_private(0, 0x200) & 1 << TIMER, 0, "look {look}");
            machine.settle(0);
            assert!(machine.physical_ppis.is_empty(), "free to come again");
        }
        assert_eq!(machine.take(0), TIMER, "once more");
    }
}

/// A guest turns its timer off without an exit: what was linked and not yet taken is taken back
/// when somebody looks, and the physical interrupt is free to come again.
#[test]
fn t81_linked_timer_whose_line_is_low_is_withdrawn() {
    let (vgic, mut token) = Vgic::new(Version::V3, &[Mpidr::default()], 32, &[]).unwrap();
    let mut lrs = FakeCpu::new(4);
    let mut delivery = Delivery::new(VcpuId::new(0), 4);
    let own = vgic.vredist(VcpuId::new(0)).unwrap();
    let write = |offset, value| vgic.write_vredists((offset, Width::Word), value, &()).unwrap();
    vgic.write_vdist(&mut token, (0, Width::Word), 0x12, &()).unwrap();
    write(0x1_0080, 0xffff_ffff);
    write(0x1_0100, 1 << 27);
    for is_listed in [true, false] {
        delivery.reconcile(&vgic, &mut token, &mut lrs, &());
        let _ = delivery.inject_private(own, Vintid::new(27), Pintid::new(27), &mut lrs);
        if is_listed {
            delivery.reconcile(&vgic, &mut token, &mut lrs, &());
            assert!(lrs.find(27).is_some_and(Lr::is_pending), "high: it stays");
        }
        lrs.low_lines = std::vec![Pintid::new(27)];
        lrs.deactivated.clear();
        delivery.reconcile(&vgic, &mut token, &mut lrs, &());
        assert_eq!(lrs.find(27), None, "low: it is withdrawn");
        assert_eq!(lrs.deactivated, [Pintid::new(27)]);
        lrs.low_lines.clear();
    }
}

/// A vCPU goes off while its timer is pending: the timer stops with it, and its interrupt goes.
#[test]
fn t81_timer_that_stops_with_its_vcpu_is_not_pending_afterwards() {
    for is_listed in [true, false] {
        let mut machine = Machine::enabled(1, 4);
        if !is_listed {
            machine.write_private(0, 0x180, 1 << TIMER);
        }
        assert!(machine.fire_timer(0));
        machine.settle(0);
        machine.vacate(0);
        let (delivery, cpu) = &mut machine.cores[0];
        delivery.reset(&machine.vgic.vredists[0], cpu);
        assert_eq!(machine.read_private(0, 0x200) & 1 << TIMER, 0);
        machine.write_private(0, 0x100, 1 << TIMER);
        machine.settle(0);
        assert_eq!(machine.take(0), SPURIOUS);
    }
}

/// A level-sensitive timer that is active reads as pending too for as long as its line is high; its
/// list register never says so, and the next one comes by the line alone.
#[test]
fn t81_active_timer_whose_line_is_high_reads_as_pending() {
    for (trigger, pending) in [(0, 1 << TIMER), (0xffff_ffff, 0)] {
        let mut machine = Machine::enabled(1, 4);
        machine.write_private(0, 0xc04, trigger);
        assert!(machine.fire_timer(0));
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), TIMER);
        machine.reconcile(0);
        let state = [machine.read_private(0, 0x200), machine.read_private(0, 0x300)];
        assert_eq!(state, [pending, 1 << TIMER], "high, ICFGR1 {trigger:#x}");
        assert!(machine.cpu(0).find(TIMER).is_some_and(|lr| !lr.is_pending() && lr.is_linked()));
        machine.cpu(0).low_lines.push(Pintid::new(TIMER));
        machine.reconcile(0);
        let state = [machine.read_private(0, 0x200), machine.read_private(0, 0x300)];
        assert_eq!(state, [0, 1 << TIMER], "low");
        machine.cpu(0).end(TIMER);
        machine.settle(0);
        assert_eq!(machine.read_private(0, 0x200), 0);
        assert!(machine.physical_ppis.is_empty());
    }
}

/// The same, when something more urgent has taken its list register; and what has ended in none
/// is no longer pending.
#[test]
fn t81_active_timer_in_no_list_register_reads_as_pending() {
    for (trigger, pending) in [(0, 1 << TIMER), (0xffff_ffff, 0)] {
        let mut machine = Machine::enabled(1, 1);
        machine.write_private(0, 0xc04, trigger);
        machine.fire_timer(0);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), TIMER);
        machine.write_priority(0, 50, 0x20);
        machine.write_bit(0, 0x200, 50);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), 50);
        for low_lines in [0, 1, 0] {
            machine.cpu(0).low_lines = std::vec![Pintid::new(TIMER); low_lines];
            machine.reconcile(0);
            let state = [machine.read_private(0, 0x200), machine.read_private(0, 0x300)];
            let wanted = if low_lines == 0 { pending } else { 0 };
            assert_eq!(state, [wanted, 1 << TIMER], "{low_lines} low, ICFGR1 {trigger:#x}");
        }
        for intid in [50, TIMER] {
            machine.cpu(0).end(intid);
            machine.settle(0);
        }
        assert!(machine.physical_ppis.is_empty());
        let state = [machine.read_private(0, 0x200), machine.read_private(0, 0x300)];
        assert_eq!(state, [0, 0], "the next one has not come yet");
    }
}

/// What a guest reads of an SPI: whether it is pending, and whether it is active.
fn state(machine: &Machine, intid: u32) -> (bool, bool) {
    let read = |first| {
        let access = (first + 4 * u64::from(intid >> 5), Width::Word);
        let Machine { vgic, token, effects, .. } = machine;
        vgic.read_listed(token, Frame::Vdist, access, effects).unwrap() >> (intid & 31) & 1 == 1
    };
    assert_eq!([read(0x280), read(0x380)], [read(0x200), read(0x300)]);
    (read(0x200), read(0x300))
}

/// An SPI that is active reads as pending too where its physical interrupt is: its line is high, or
/// there was another edge. No list register says so, and ICPENDR reaches the physical interrupt.
#[test]
fn t71_active_spi_whose_physical_interrupt_is_pending_reads_so() {
    for list_registers in [1, 4] {
        let mut machine = Machine::enabled(1, list_registers);
        let again = |machine: &Machine| machine.effects.pending.borrow_mut().push(Pintid::new(140));
        machine.fire_spi(40);
        machine.settle(0);
        assert_eq!(state(&machine, 40), (true, false));
        assert_eq!(machine.cpu(0).acknowledge(), 40);
        if list_registers == 1 {
            // Something more urgent takes its list register.
            machine.write_priority(0, 50, 0x20);
            machine.write_bit(0, 0x200, 50);
            machine.settle(0);
            assert_eq!(machine.cpu(0).find(40), None);
        }
        machine.reconcile(0);
        assert_eq!(state(&machine, 40), (false, true));
        again(&machine);
        machine.reconcile(0);
        assert_eq!(state(&machine, 40), (true, true));
        assert!(machine.cpu(0).find(40).is_none_or(|lr| !lr.is_pending()));
        machine.write_bit(0, 0x280, 41);
        assert_eq!(state(&machine, 40), (true, true), "another one's");
        machine.write_bit(0, 0x280, 40);
        assert_eq!(state(&machine, 40), (false, true), "an edge that the guest has taken back");
        again(&machine);
        if list_registers == 1 {
            assert_eq!(machine.take(0), 50);
        }
        machine.cpu(0).end(40);
        machine.settle(0);
        assert!(machine.physical_spis.is_empty(), "free to come again");
        assert_eq!(state(&machine, 40), (false, false), "not before it does");
        assert!(machine.fire_spi(40));
        machine.settle(0);
        assert_eq!(machine.take(0), 40);
    }
}

/// The machine's distributor is asked only about what is active and linked, and for no other
/// register.
#[test]
fn t71_physical_interrupts_are_asked_for_only_where_that_matters() {
    let mut machine = Machine::enabled(1, 4);
    for intid in [40, 41, 50] {
        machine.write_bit(0, 0x300, intid);
    }
    machine.write_bit(0, 0x200, 41);
    assert_eq!(state(&machine, 50), (false, true));
    let asked = machine.effects.asked.take();
    assert!(!asked.is_empty() && asked.iter().all(|pintid| pintid.get() == 140), "{asked:?}");
    machine.write_bit(0, 0x380, 40);
    assert_eq!(state(&machine, 40), (false, false));
    assert!(machine.effects.asked.take().is_empty());
}
