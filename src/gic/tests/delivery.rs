// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Delivery, one rule at a time.
#![forbid(unsafe_code)]

use super::fake::{EoiMode, SPURIOUS};
use super::*;
use crate::spec::gic::Lr;
use crate::spec::gic::{LrState, ich_hcr};

const ICENABLER: u64 = 0x180;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;

/// Makes SPIs 32 to 47 edge-triggered.
fn with_edges(machine: &mut Machine) {
    machine.write(0xc08, 0xaaaa_aaaa);
}

fn state_of(machine: &mut Machine, vcpu: usize, intid: u32) -> Option<LrState> {
    machine.cpu(vcpu).find(intid).map(Lr::state)
}

#[test]
fn t66_any_number_of_list_registers_delivers_everything() {
    for count in 1..=16 {
        let mut machine = Machine::enabled(1, count);
        with_edges(&mut machine);
        machine.write(0x204, 0xffff);
        machine.write_private(0, ISPENDR, 0xffff);
        machine.settle(0);
        let mut taken: Vec<_> = (0..32).map(|_| machine.take(0)).collect();
        taken.sort_unstable();
        assert!(taken.into_iter().eq((0..16).chain(32..48)), "{count} list registers");
        assert_eq!(machine.take(0), SPURIOUS);
    }
}

#[test]
fn t67_more_pending_than_list_registers_come_most_urgent_first() {
    for count in [1, 2, 4] {
        let mut machine = Machine::enabled(1, count);
        // 48 interrupts, the later the more urgent, two of each priority.
        for intid in 32..80 {
            let priority = u8::try_from(8 * (31 - (intid - 32) / 2)).unwrap();
            machine.write_priority(0, intid, priority);
            machine.write_bit(0, ISPENDR, intid);
        }
        machine.settle(0);
        for pair in 0..24 {
            let mut both = [machine.take(0), machine.take(0)];
            both.sort_unstable();
            assert_eq!(both, [78 - 2 * pair, 79 - 2 * pair], "{count} list registers");
        }
        assert_eq!(machine.take(0), SPURIOUS);
        assert_eq!(machine.cpu(0).control() & ich_hcr::NPIE, 0, "nothing waits any more");
    }
}

#[test]
fn t67_urgent_arrival_takes_the_place_of_the_least_urgent() {
    let mut machine = Machine::enabled(1, 2);
    with_edges(&mut machine);
    for (intid, priority) in [(32, 0x40), (33, 0x80), (34, 0x20)] {
        machine.write_priority(0, intid, priority);
        machine.raise_edge(intid);
        machine.settle(0);
    }
    assert_eq!(state_of(&mut machine, 0, 33), None);
    assert_eq!([machine.take(0), machine.take(0), machine.take(0)], [34, 32, 33]);
    assert_eq!(machine.take(0), SPURIOUS);
}

#[test]
fn t67_preemption_works_with_one_list_register() {
    let mut machine = Machine::enabled(1, 1);
    with_edges(&mut machine);
    for (intid, priority) in [(32, 0x80), (33, 0x40), (34, 0xc0)] {
        machine.write_priority(0, intid, priority);
    }
    machine.raise_edge(32);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 32);
    machine.raise_edge(34);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), SPURIOUS, "34 must not preempt 32");
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 33, "33 must preempt 32");
    machine.cpu(0).end(33);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), SPURIOUS, "32 still runs");
    machine.cpu(0).end(32);
    machine.settle(0);
    assert_eq!(machine.take(0), 34);
    machine.reconcile(0);
    assert_eq!(machine.read(0x304), 0);
}

#[test]
fn t67_no_sgi_overtakes_what_waits() {
    let mut machine = Machine::enabled(1, 2);
    with_edges(&mut machine);
    // The SGI has been delivered before, so that it could take the quick route.
    machine.send_sgi(0, 1);
    machine.settle(0);
    assert_eq!(machine.take(0), 0);
    for (intid, priority) in [(32, 0x20), (33, 0x28), (34, 0x30)] {
        machine.write_priority(0, intid, priority);
        machine.raise_edge(intid);
    }
    machine.settle(0);
    let first = machine.cpu(0).acknowledge();
    machine.cpu(0).end(first);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
    machine.cpu(0).end(33);
    // Both list registers are empty, and the SGI comes before the maintenance interrupt does.
    machine.send_sgi(0, 1);
    machine.flush_without_maintenance(0);
    assert_eq!([machine.take(0), machine.take(0)], [34, 0]);
}

#[test]
fn t67_no_sgi_overtakes_in_the_list_register_it_had() {
    let mut machine = Machine::enabled(1, 2);
    with_edges(&mut machine);
    machine.send_sgi(0, 1);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 0);
    for (intid, priority) in [(32, 0x20), (33, 0x28)] {
        machine.write_priority(0, intid, priority);
        machine.raise_edge(intid);
    }
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 32);
    machine.cpu(0).end(32);
    machine.cpu(0).end(0);
    // Again the SGI comes before the maintenance interrupt does.
    machine.send_sgi(0, 1);
    machine.flush_without_maintenance(0);
    assert_eq!([machine.take(0), machine.take(0)], [33, 0]);
}

#[test]
fn t67_a_group_that_the_guest_has_not_enabled_keeps_nobody_out() {
    let mut machine = Machine::enabled(1, 1);
    with_edges(&mut machine);
    machine.write(0x84, 0xffff_fffe);
    machine.write_priority(0, 32, 0x08);
    machine.cpu(0).groups = 2;
    machine.raise_edge(32);
    machine.settle(0);
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
    machine.cpu(0).end(33);
    machine.settle(0);
    // Its group goes on, and it is the more urgent one; its group goes off again.
    machine.raise_edge(33);
    machine.settle(0);
    machine.cpu(0).groups = 3;
    machine.settle(0);
    assert_eq!(state_of(&mut machine, 0, 32), Some(LrState::Pending));
    machine.cpu(0).groups = 2;
    machine.settle(0);
    assert_eq!(machine.take(0), 33);
    machine.cpu(0).groups = 3;
    machine.settle(0);
    assert_eq!(machine.take(0), 32);
}

#[test]
fn t68_pending_while_disabled_stays_pending() {
    for intid in [3, 20, 33] {
        let mut machine = Machine::enabled(1, 4);
        machine.write_bit(0, ICENABLER, intid);
        machine.write_bit(0, ISPENDR, intid);
        machine.settle(0);
        assert_eq!(machine.take(0), SPURIOUS);
        machine.write_bit(0, ISENABLER, intid);
        machine.settle(0);
        assert_eq!(machine.take(0), intid);
    }
}

#[test]
fn t68_sgi_while_disabled_stays_pending() {
    let mut machine = Machine::enabled(2, 4);
    machine.write_bit(1, ICENABLER, 5);
    machine.settle_all();
    machine.send_sgi(0, 5 << 24 | 2);
    machine.settle(0);
    assert_eq!(machine.read_private(1, ISPENDR), 1 << 5);
    assert_eq!(machine.take(1), SPURIOUS);
    // Another core enables it.
    machine.write_bit(1, ISENABLER, 5);
    machine.settle(0);
    assert_eq!(machine.take(1), 5);
}

#[test]
fn t68_pending_while_the_group_is_off_or_masked_stays_pending() {
    let mut machine = Machine::enabled(1, 4);
    machine.write(0, 0);
    machine.write_bit(0, ISPENDR, 33);
    machine.write_bit(0, ISPENDR, 2);
    machine.settle(0);
    assert_eq!(machine.cpu(0).find(33), None);
    machine.write(0, 2);
    machine.cpu(0).priority_mask = 0xa0;
    machine.settle(0);
    assert_eq!(machine.take(0), SPURIOUS);
    machine.cpu(0).priority_mask = 0xa8;
    let mut both = [machine.take(0), machine.take(0)];
    both.sort_unstable();
    assert_eq!(both, [2, 33]);
}

#[test]
fn t68_each_interrupt_is_delivered_with_its_group() {
    let mut machine = Machine::enabled(1, 4);
    machine.write_private(0, 0x80, 0xffff_fff0);
    machine.write(0x84, 0xffff_fffe);
    machine.write(0, 1);
    machine.settle(0);
    for intid in [0, 4, 32, 33] {
        machine.write_bit(0, ISPENDR, intid);
    }
    machine.settle(0);
    let mut listed: Vec<_> = machine.cpu(0).lrs().iter().filter(|lr| lr.is_pending()).collect();
    listed.sort_unstable_by_key(|lr| lr.vintid());
    assert!(listed.iter().all(|lr| !lr.is_group1()));
    assert!(listed.iter().map(|lr| lr.vintid().get()).eq([0, 32]));
}

#[test]
fn t69_disabled_while_pending_in_a_list_register_is_withdrawn() {
    for intid in [3, 20, TIMER, 33, 40] {
        let mut machine = Machine::enabled(1, 4);
        match intid {
            TIMER => assert!(machine.fire_timer(0)),
            40 => assert!(machine.fire_spi(40)),
            _ => machine.write_bit(0, ISPENDR, intid),
        }
        machine.settle(0);
        assert_eq!(state_of(&mut machine, 0, intid), Some(LrState::Pending));
        let link = machine.cpu(0).find(intid).unwrap().pintid();
        machine.write_bit(0, ICENABLER, intid);
        machine.settle(0);
        assert_eq!(machine.cpu(0).find(intid), None, "{intid}");
        machine.write_bit(0, ISENABLER, intid);
        machine.settle(0);
        assert_eq!(machine.cpu(0).find(intid).unwrap().pintid(), link);
        assert_eq!(machine.take(0), intid);
        assert!(machine.physical_ppis.is_empty() && machine.physical_spis.is_empty());
    }
}

#[test]
fn t69_what_was_delivered_quickly_is_not_when_disabled() {
    let mut machine = Machine::enabled(1, 4);
    for _ in 0..2 {
        machine.send_sgi(0, 1);
        machine.fire_timer(0);
        machine.settle(0);
        let mut both = [machine.take(0), machine.take(0)];
        both.sort_unstable();
        assert_eq!(both, [0, TIMER]);
    }
    // The timer fires before its core has looked at the change.
    machine.write_bit(0, ICENABLER, TIMER);
    machine.fire_timer(0);
    assert_eq!(machine.cpu(0).find(TIMER), None);
    machine.settle(0);
    assert_eq!(machine.cpu(0).find(TIMER), None);
    // The change is taken in by a look on the occasion of a read.
    machine.send_sgi(0, 1);
    machine.settle(0);
    assert_eq!(machine.take(0), 0);
    machine.write_bit(0, ICENABLER, 0);
    machine.reconcile(0);
    machine.send_sgi(0, 1);
    machine.settle(0);
    assert_eq!(machine.cpu(0).find(0), None);
}

#[test]
fn t69_end_of_a_disabled_interrupt_deactivates_it() {
    for intid in [3, TIMER, 33, 40] {
        let mut machine = Machine::enabled(1, 4);
        machine.fire_timer(0);
        machine.fire_spi(40);
        machine.write_bit(0, ISPENDR, 3);
        machine.write_bit(0, ISPENDR, 33);
        machine.write_priority(0, intid, 0);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        machine.write_bit(0, ICENABLER, intid);
        machine.settle(0);
        machine.cpu(0).end(intid);
        machine.settle(0);
        machine.reconcile(0);
        assert_eq!(machine.read_private(0, ISACTIVER) | machine.read(0x304), 0, "{intid}");
        assert!(!machine.physical_ppis.contains(&(0, intid)));
        assert!(!machine.physical_spis.contains(&(intid + 100)));
    }
}

#[test]
fn t70_deactivation_apart_from_the_priority_drop() {
    for (intid, count) in [(3, 1), (33, 1), (TIMER, 4), (40, 1), (34, 4)] {
        let mut machine = Machine::enabled(1, count);
        machine.cpu(0).eoi_mode = EoiMode::DropOnly;
        machine.fire_timer(0);
        machine.fire_spi(40);
        for spi in [3, 33, 34] {
            machine.write_bit(0, ISPENDR, spi);
        }
        machine.write_priority(0, intid, 0);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        machine.cpu(0).end(intid);
        machine.settle(0);
        // The others come while it is active; with one list register it has to leave it.
        for _ in 0..4 {
            let other = machine.cpu(0).acknowledge();
            assert!(other != SPURIOUS && other != intid);
            machine.settle(0);
            machine.cpu(0).end(other);
            machine.dir(0, other);
            machine.settle(0);
        }
        machine.reconcile(0);
        let active = machine.read_private(0, ISACTIVER) | machine.read(0x304) << 32;
        assert_eq!(active, 1 << intid);
        machine.dir(0, intid);
        machine.settle(0);
        machine.reconcile(0);
        assert_eq!(machine.read_private(0, ISACTIVER) | machine.read(0x304), 0);
        assert!(machine.physical_ppis.is_empty() && machine.physical_spis.is_empty());
    }
}

#[test]
fn t70_deactivation_on_another_vcpu() {
    let mut machine = Machine::enabled(2, 4);
    machine.cores.iter_mut().for_each(|(_, cpu)| cpu.eoi_mode = EoiMode::DropOnly);
    machine.fire_spi(40);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 40);
    machine.cpu(0).end(40);
    machine.dir(1, 40);
    machine.settle(1);
    assert_eq!(machine.cpu(0).find(40), None);
    assert!(machine.physical_spis.is_empty());
}

#[test]
fn t70_end_is_that_of_what_still_is_active() {
    let mut machine = Machine::enabled(1, 1);
    machine.write_priority(0, 1, 0x40);
    machine.write_priority(0, 3, 0x20);
    // SGI 1 leaves the list register while active, and is deactivated.
    machine.cpu(0).eoi_mode = EoiMode::DropOnly;
    machine.send_sgi(0, 1 << 24 | 1);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 1);
    machine.cpu(0).end(1);
    machine.send_sgi(0, 2 << 24 | 1);
    machine.settle(0);
    machine.dir(0, 1);
    machine.settle(0);
    // So does SGI 2, which the guest ends.
    machine.cpu(0).eoi_mode = EoiMode::DropAndDeactivate;
    assert_eq!(machine.cpu(0).acknowledge(), 2);
    machine.send_sgi(0, 3 << 24 | 1);
    machine.settle(0);
    assert_eq!(machine.take(0), 3);
    machine.cpu(0).end(2);
    machine.settle(0);
    machine.reconcile(0);
    assert_eq!(machine.read_private(0, ISACTIVER), 0);
}

#[test]
fn t70_ends_of_nothing_deactivate_nothing() {
    let mut machine = Machine::enabled(1, 1);
    with_edges(&mut machine);
    machine.write_priority(0, 33, 0x20);
    machine.write_bit(0, ISPENDR, 32);
    machine.settle(0);
    // The guest ends what is not there: EOIcount goes up, for nothing in our books.
    assert_eq!(machine.cpu(0).acknowledge(), 32);
    machine.cpu(0).end(99);
    machine.settle(0);
    // 32 still is active, and leaves its list register to 33.
    machine.write_bit(0, ISPENDR, 33);
    machine.settle(0);
    machine.reconcile(0);
    assert_eq!(machine.read(0x304), 1 << 0);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
}

#[test]
fn t71_linked_interrupt_is_deactivated_by_the_guests_end_alone() {
    let mut machine = Machine::enabled(1, 4);
    for round in 0..3 {
        assert!(machine.fire_timer(0));
        let has_work = machine.own(0).has_work();
        assert_eq!(has_work, round == 0, "T81: only the first one is looked at");
        machine.settle(0);
        let lr = machine.cpu(0).find(TIMER).unwrap();
        assert_eq!((lr.state(), lr.pintid()), (LrState::Pending, Some(Pintid::new(TIMER))));
        assert_eq!(machine.cpu(0).acknowledge(), TIMER);
        assert!(!machine.fire_timer(0), "T81: it is active, so it does not fire again");
        machine.cpu(0).end(TIMER);
        assert_eq!(machine.cpu(0).deactivated, [Pintid::new(TIMER)]);
        machine.account_for_deactivations();
    }
}

#[test]
fn t71_linked_interrupt_is_never_pending_and_active() {
    for (intid, edge) in [(TIMER, false), (40, false), (40, true)] {
        let mut machine = Machine::enabled(1, 4);
        if edge {
            with_edges(&mut machine);
        }
        let fire = |machine: &mut Machine| {
            let fired =
                if intid == TIMER { machine.fire_timer(0) } else { machine.fire_spi(intid) };
            machine.settle(0);
            fired
        };
        // Linked first, then pending by software: the link is cut, EL2 deactivates.
        assert!(fire(&mut machine));
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        machine.write_bit(0, ISPENDR, intid);
        machine.settle(0);
        assert_eq!(state_of(&mut machine, 0, intid), Some(LrState::PendingActive));
        assert!(!fire(&mut machine));
        machine.cpu(0).end(intid);
        machine.settle(0);
        assert_eq!(machine.take(0), intid);
        // By software first, then linked.
        machine.write_bit(0, ISPENDR, intid);
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        assert!(fire(&mut machine));
        machine.cpu(0).end(intid);
        machine.settle(0);
        assert_eq!(machine.take(0), intid);
        assert!(fire(&mut machine), "it has been deactivated");
        // Both before the guest looks: one interrupt.
        machine.write_bit(0, ISPENDR, intid);
        machine.settle(0);
        assert_eq!(machine.take(0), intid);
        assert_eq!(machine.take(0), SPURIOUS);
        assert!(machine.physical_ppis.is_empty() && machine.physical_spis.is_empty());
    }
}

#[test]
fn t71_cleared_linked_interrupt_can_fire_again() {
    let mut machine = Machine::enabled(1, 4);
    // Cleared while pending: in a list register, and while disabled in the model.
    assert!(machine.fire_timer(0));
    machine.settle(0);
    machine.own(0).retract(Vintid::new(TIMER), &machine.effects);
    machine.settle(0);
    assert_eq!(machine.take(0), SPURIOUS);
    machine.write_bit(0, ICENABLER, TIMER);
    machine.write_bit(0, ICENABLER, 40);
    machine.settle(0);
    assert!(machine.fire_timer(0) && machine.fire_spi(40));
    machine.settle(0);
    machine.write_bit(0, ICPENDR, TIMER);
    machine.write_bit(0, ICPENDR, 40);
    machine.settle(0);
    assert!(machine.fire_timer(0) && machine.fire_spi(40));
    // Cleared while active.
    machine.write_bit(0, ISENABLER, TIMER);
    machine.write_bit(0, ISENABLER, 40);
    machine.settle(0);
    machine.write_priority(0, 40, 0);
    machine.settle(0);
    assert_eq!([machine.cpu(0).acknowledge(), machine.cpu(0).acknowledge()], [40, SPURIOUS]);
    machine.write_bit(0, ICACTIVER, 40);
    machine.settle(0);
    assert!(machine.fire_spi(40));
}

#[test]
fn t72_line_still_high_at_the_end_is_delivered_again() {
    for intid in [20, 33] {
        let mut machine = Machine::enabled(1, 1);
        let set = |machine: &mut Machine, level| {
            if intid < 32 {
                machine.own(0).set_level(Vintid::new(intid), level, &machine.effects);
            } else {
                machine.set_level(intid, level);
            }
            machine.settle(0);
        };
        set(&mut machine, Level::High);
        assert_eq!([machine.take(0), machine.take(0)], [intid; 2]);
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        set(&mut machine, Level::Low);
        machine.cpu(0).end(intid);
        machine.settle(0);
        assert_eq!(machine.take(0), SPURIOUS);
        // Low while pending in a list register: withdrawn.
        set(&mut machine, Level::High);
        assert_eq!(state_of(&mut machine, 0, intid), Some(LrState::Pending));
        set(&mut machine, Level::Low);
        assert_eq!(machine.cpu(0).find(intid), None);
        // But not what was made pending by a register.
        machine.write_bit(0, ISPENDR, intid);
        set(&mut machine, Level::High);
        set(&mut machine, Level::Low);
        assert_eq!([machine.take(0), machine.take(0)], [intid, SPURIOUS]);
    }
}

#[test]
fn t72_line_counts_from_when_the_trigger_is_level() {
    let mut machine = Machine::enabled(1, 4);
    with_edges(&mut machine);
    machine.set_level(33, Level::High);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
    machine.write(0xc08, 0);
    machine.settle(0);
    machine.cpu(0).end(33);
    machine.settle(0);
    assert_eq!(machine.take(0), 33, "the line is high");
}

#[test]
fn t72_edge_while_active_is_delivered_once_more() {
    let mut machine = Machine::enabled(1, 4);
    with_edges(&mut machine);
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
    machine.raise_edge(33);
    machine.raise_edge(33);
    machine.settle(0);
    machine.cpu(0).end(33);
    machine.settle(0);
    assert_eq!([machine.take(0), machine.take(0)], [33, SPURIOUS]);
}

#[test]
fn t73_reset_leaves_no_physical_interrupt_active() {
    // Killed with linked interrupts pending, active, active outside list registers, disabled.
    for count in [1, 4] {
        let mut machine = Machine::enabled(2, count);
        assert!(machine.fire_timer(0) && machine.fire_timer(1) && machine.fire_spi(40));
        machine.settle_all();
        machine.cpu(0).acknowledge();
        machine.settle(0);
        machine.write_bit(1, ICENABLER, TIMER);
        machine.write_bit(0, ICENABLER, 41);
        machine.settle_all();
        assert!(machine.fire_spi(41));
        machine.settle_all();
        let before = machine.physical_ppis.len() + machine.physical_spis.len();
        assert_eq!(before, 4);
        for vcpu in 0..2u8 {
            let own = machine.vgic.vredist(VcpuId::new(vcpu)).unwrap();
            let (delivery, cpu) = &mut machine.cores[usize::from(vcpu)];
            delivery.reset(own, cpu);
        }
        machine.vgic.reset_vredists(&mut || {});
        machine.vgic.reset(&mut machine.token, &machine.effects);
        machine.account_for_deactivations();
        assert!(machine.physical_ppis.is_empty() && machine.physical_spis.is_empty());
        machine.settle_all();
        for vcpu in 0..2 {
            assert!(machine.cpu(vcpu).lrs().iter().all(|&lr| lr == Lr::EMPTY));
            assert_eq!(machine.read_private(vcpu, ISENABLER), 0);
            assert_eq!(machine.read_private(vcpu, ISPENDR), 0);
            assert_eq!(machine.read_private(vcpu, ISACTIVER), 0);
        }
        assert_eq!(machine.read(0), 0x50);
        assert_eq!(machine.read(0x104) | machine.read(0x204) | machine.read(0x304), 0);
    }
}

#[test]
fn t75_pending_interrupt_follows_its_route() {
    for first in [LrState::Pending, LrState::Active] {
        for intid in [33, 40, 48] {
            let mut machine = Machine::enabled(2, 4);
            with_edges(&mut machine);
            let raise = |machine: &mut Machine| match intid {
                33 => machine.raise_edge(33),
                40 => drop(machine.fire_spi(40)),
                _ => machine.set_level(48, Level::High),
            };
            raise(&mut machine);
            machine.settle(0);
            if first == LrState::Active {
                assert_eq!(machine.cpu(0).acknowledge(), intid);
                machine.write_bit(0, ISPENDR, intid);
                machine.settle(0);
            }
            machine.write_router(intid, affinity(1).get());
            machine.settle(1);
            if first == LrState::Active {
                assert_eq!(machine.cpu(1).acknowledge(), SPURIOUS, "it is active on vCPU 0");
                machine.cpu(0).end(intid);
                machine.settle(0);
            }
            machine.set_level(48, Level::Low);
            assert_eq!(machine.cpu(0).acknowledge(), SPURIOUS);
            assert_eq!(machine.take(1), intid, "{first:?}");
            assert!(machine.physical_spis.is_empty());
        }
    }
}

#[test]
fn t75_pending_again_elsewhere_while_active_here() {
    let mut machine = Machine::enabled(2, 4);
    with_edges(&mut machine);
    for intid in [33, 40, 41] {
        match intid {
            41 => assert!(machine.fire_spi(41)),
            _ => machine.raise_edge(intid),
        }
        machine.settle(0);
        assert_eq!(machine.cpu(0).acknowledge(), intid);
        machine.write_router(intid, affinity(1).get());
        machine.settle(0);
        machine.raise_edge(intid);
        machine.settle(1);
        machine.cpu(0).end(intid);
        machine.settle(0);
        assert_eq!(machine.take(1), intid);
    }
}

#[test]
fn t75_one_of_n_goes_to_who_is_awake() {
    let mut machine = Machine::enabled(3, 4);
    with_edges(&mut machine);
    machine.write_router(33, 1 << 31);
    let wake = |machine: &Machine, vcpu: u64, value| {
        let access = (vcpu * GICR_BYTES + 0x14, Width::Word);
        machine.vgic.write_vredists(access, value, &machine.effects).unwrap();
    };
    wake(&machine, 2, 0);
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!(machine.take(2), 33);
    wake(&machine, 1, 0);
    machine.vacate(2);
    machine.settle(2);
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!(machine.take(1), 33);
    // It waits for vCPU 1, which goes to sleep.
    machine.raise_edge(33);
    wake(&machine, 1, 2);
    machine.vacate(1);
    machine.vgic.wake_all(&mut machine.token, &machine.effects);
    machine.settle(1);
    assert_eq!(machine.take(2), 33);
}

#[test]
fn t76_sgi_list_reaches_those_named_and_nobody_else() {
    let mut machine = Machine::enabled(4, 4);
    machine.settle_all();
    for list in 0..=0xffff {
        machine.send_sgi(1, 7 << 24 | list);
        machine.settle(1);
        for vcpu in 0..4 {
            let expected = if list >> vcpu & 1 != 0 { 7 } else { SPURIOUS };
            let intid = machine.cpu(vcpu).acknowledge();
            machine.cpu(vcpu).end(intid);
            assert_eq!(intid, expected, "list {list:#x} vCPU {vcpu}");
        }
    }
}

#[test]
fn t76_sgi_to_all_others_and_to_names_outside_the_vm() {
    let mut machine = Machine::enabled(3, 4);
    machine.send_sgi(1, 1 << 40 | 15 << 24 | 2);
    machine.settle(1);
    assert_eq!([0, 1, 2].map(|vcpu| machine.take(vcpu)), [15, SPURIOUS, 15]);
    for outside in [1 << 16, 4 << 16, 1 << 32, 1 << 44, 1 << 48, 0xff << 16, 0xff << 48] {
        machine.send_sgi(1, outside | 0xffff);
        machine.settle(1);
    }
    machine.send_sgi(1, 0xfff8);
    machine.settle(1);
    assert_eq!([0, 1, 2].map(|vcpu| machine.take(vcpu)), [SPURIOUS; 3]);
}

#[test]
fn t76_sgi_by_range_and_cluster_where_affinities_are_not_plain() {
    let affinities = [0x12_0034_5635, 0x12_0034_5625, 0x00_0034_5635].map(Mpidr::from_register);
    let (vgic, _) = Vgic::new(Version::V3, &affinities, 0, &[]).unwrap();
    let effects = Recorder::default();
    vgic.send_sgi(VcpuId::new(2), SgiRegister::Sgi1, 0x0012_3034_0156_0020, &effects);
    assert_eq!(*effects.kicks.borrow(), [VcpuId::new(0)]);
    effects.kicks.borrow_mut().clear();
    vgic.send_sgi(VcpuId::new(0), SgiRegister::Sgi1, 1 << 40, &effects);
    // vCPU 0 is the sender.
    assert_eq!(*effects.kicks.borrow(), [VcpuId::new(1), VcpuId::new(2)]);
}

#[test]
fn t76_sgi_of_group_0_register_reaches_group_0_only() {
    let mut machine = Machine::enabled(1, 4);
    machine.write_private(0, 0x80, 0xffff_fffd);
    machine.settle(0);
    for intid in [0, 1] {
        let value = intid << 24 | 1;
        machine.vgic.send_sgi(VcpuId::new(0), SgiRegister::Sgi0, value, &machine.effects);
    }
    machine.settle(0);
    assert_eq!([machine.take(0), machine.take(0)], [1, SPURIOUS]);
    machine.send_sgi(0, 1 << 24 | 1);
    machine.settle(0);
    assert_eq!(machine.take(0), 1);
}

#[test]
fn t76_one_kick_for_many_sgis_until_the_target_has_looked() {
    let mut machine = Machine::enabled(2, 4);
    machine.settle_all();
    for intid in 0..3 {
        machine.send_sgi(0, intid << 24 | 2);
    }
    assert_eq!(*machine.effects.kicks.borrow(), [VcpuId::new(1)]);
    machine.settle(0);
    assert_eq!([0; 3].map(|_| machine.take(1)), [0, 1, 2]);
    machine.send_sgi(0, 2);
    assert_eq!(*machine.effects.kicks.borrow(), [VcpuId::new(1)]);
}

#[test]
fn t76_cleared_sgi_is_not_delivered() {
    let mut machine = Machine::enabled(2, 4);
    machine.settle_all();
    // Before its target has looked, and after.
    machine.send_sgi(0, 3 << 24 | 2);
    machine.write_bit(1, ICPENDR, 3);
    machine.settle(0);
    machine.send_sgi(0, 4 << 24 | 2);
    machine.settle(0);
    machine.write_bit(1, ICPENDR, 4);
    machine.settle(0);
    assert_eq!(machine.take(1), SPURIOUS);
}

#[test]
fn t77_numbers_without_an_spi_are_ignored() {
    let mut machine = Machine::enabled(1, 4);
    machine.settle(0);
    // 96 is behind the last SPI of this VM.
    for intid in [0, 15, 31, 96, 1019, 1020, 1023, 1024, 1120, 5120, 8191, 8192, 1 << 31, !0] {
        machine.raise_edge(intid);
        machine.set_level(intid, Level::High);
        machine.vgic.raise_linked(&mut machine.token, Vintid::new(intid), &machine.effects);
        let (vcpu, vintid) = (VcpuId::new(0), Vintid::new(intid));
        machine.own(0).retract(vintid, &machine.effects);
        machine.own(0).set_level(Vintid::new(intid | 32), Level::High, &machine.effects);
        machine.vgic.deactivate(&mut machine.token, vcpu, vintid, &machine.effects);
        machine.settle(0);
        assert_eq!(machine.take(0), SPURIOUS, "{intid}");
    }
    machine.own(0).set_level(Vintid::new(3), Level::High, &machine.effects);
    machine.settle(0);
    assert_eq!(machine.take(0), SPURIOUS, "SGIs have no line");
}

#[test]
fn nothing_to_do_is_seen_without_a_flush() {
    let mut machine = Machine::enabled(2, 4);
    machine.settle_all();
    for vcpu in 0..2 {
        assert!(!machine.own(vcpu).has_work());
        assert_eq!(machine.cpu(vcpu).control(), ich_hcr::TDIR);
    }
    // Writes that change nothing for delivery leave no work, and kick nobody.
    machine.write_private(1, ISENABLER, 0xffff_ffff);
    machine.write(0x104, 0xffff_ffff);
    machine.write_router(33, affinity(1).get());
    machine.write(0, 3);
    assert!(!machine.own(0).has_work() && !machine.own(1).has_work());
    assert!(machine.effects.kicks.borrow().is_empty());
}

#[test]
fn active_state_is_read_on_another_vcpu_and_moves_with_vacate() {
    let mut machine = Machine::enabled(2, 4);
    with_edges(&mut machine);
    machine.raise_edge(33);
    machine.raise_edge(34);
    machine.settle(0);
    assert_eq!(machine.cpu(0).acknowledge(), 33);
    machine.reconcile(0);
    assert_eq!((machine.read(0x204), machine.read(0x304)), (1 << 2, 1 << 1));
    machine.vacate(0);
    assert!(machine.cpu(0).lrs().iter().all(|lr| lr.state() == LrState::Invalid));
    assert_eq!((machine.read(0x204), machine.read(0x304)), (1 << 2, 1 << 1));
    // vCPU 0 is off; 34 goes to vCPU 1 once it is routed there.
    machine.write_router(34, affinity(1).get());
    machine.settle(1);
    assert_eq!(machine.take(1), 34);
    machine.write_bit(1, ICACTIVER, 33);
    assert_eq!(machine.read(0x304), 0);
}

#[test]
fn linked_spi_is_routed_with_its_virtual_one() {
    let mut machine = Machine::enabled(2, 4);
    machine.write_router(40, affinity(1).get());
    machine.write_router(33, affinity(1).get());
    assert_eq!(*machine.effects.routes.borrow(), [(Pintid::new(140), VcpuId::new(1))]);
}
