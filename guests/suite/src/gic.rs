// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Delivery of SPIs: many at once, in the order of their priorities, nested, and none lost while
//! something keeps them back (IHI 0069 4.8, traps T66 to T70).

use guest_rt::cpu_interface::{self, EOI_MODE, running_priority};
use guest_rt::gic::{self, PRIORITY};
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::sysreg::{ICC_BPR1_EL1, isb, relax};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, tests, timer};

pub const TESTS: &[Test] = tests![
    t67_200_pending_in_order_of_priority,
    t67_200_pending_through_the_vector,
    t67_200_pending_in_both_eoi_modes,
    t67_highest_priority_first_when_list_is_full,
    t68_pending_while_disabled_stays_pending,
    t68_pending_while_masked_by_priority,
    t68_pending_while_group_is_off,
    t69_disable_while_active,
    t69_disable_while_pending,
    t70_eoi_mode_0_deactivates,
    t70_eoi_mode_1_only_drops_priority,
    t70_many_active_in_eoi_mode_1,
    t70_nested_as_deep_as_priorities_go,
    t70_binary_point_says_who_preempts,
];

/// The first SPI.
const FIRST: u32 = 32;

/// How many SPIs the tests use at once.
fn many() -> u32 {
    200.min(gic::intids() - FIRST)
}

/// Acknowledges what is pending, giving a hypervisor the time to refill its list registers.
pub fn acknowledge_soon() -> u32 {
    for _ in 0..1000 {
        let intid = irq::acknowledge();
        if intid != SPURIOUS {
            return intid;
        }
        relax();
    }
    SPURIOUS
}

/// Prepares an SPI: edge-triggered, enabled, with a priority.
pub fn prepare(intid: u32, priority: u8) {
    gic::set_edge(intid);
    gic::set_priority(intid, priority);
    gic::enable(intid);
}

/// A priority for an SPI, spread over 16 levels so that neighbours differ.
fn spread(intid: u32) -> u8 {
    u8::try_from(intid * 7 % 15 * 16).unwrap_or(PRIORITY)
}

/// Makes many SPIs pending at once: everything is set up while the group is off.
fn pend_many() {
    gic::disable_groups();
    for intid in FIRST..FIRST + many() {
        prepare(intid, spread(intid));
        gic::set_pending(intid);
    }
    gic::enable_groups();
}

/// Checks that no SPI is left pending or active.
fn check_idle() -> Outcome {
    irq::take_pending();
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID at the end");
    check_eq!(running_priority(), 0xff, "running priority at the end");
    for intid in FIRST..FIRST + many() {
        check!(!gic::is_pending(intid), "{intid} is still pending");
        check!(!gic::is_active(intid), "{intid} is still active");
    }
    Ok(())
}

fn t67_200_pending_in_order_of_priority() -> Outcome {
    pend_many();
    let mut seen = [false; 256];
    let mut last = 0;
    for n in 0..many() {
        let intid = acknowledge_soon();
        check!(intid != SPURIOUS, "only {n} of {} came", many());
        check!((FIRST..FIRST + many()).contains(&intid), "INTID {intid} came from nowhere");
        let priority = spread(intid);
        check_eq!(running_priority(), u64::from(priority), "running priority of {intid}");
        check!(priority >= last, "{intid} of priority {priority:#x} came behind {last:#x}");
        last = priority;
        let index = usize::try_from(intid - FIRST).unwrap_or(0);
        check!(!seen[index], "{intid} came twice");
        seen[index] = true;
        irq::end(intid);
    }
    check_idle()
}

fn check_all_counted_once() -> Outcome {
    let all_came = || irq::total(0) >= many();
    irq::unmask();
    let came = timer::wait_for(timer::PATIENCE_MS, all_came);
    timer::delay(200);
    irq::mask();
    check!(came, "only {} of {} came", irq::total(0), many());
    for intid in FIRST..FIRST + many() {
        check_eq!(irq::count(0, intid), 1, "how often {intid} came");
    }
    check_eq!(irq::total(0), many(), "interrupts");
    check_idle()
}

fn t67_200_pending_through_the_vector() -> Outcome {
    pend_many();
    check_all_counted_once()
}

fn t67_200_pending_in_both_eoi_modes() -> Outcome {
    for mode in [EOI_MODE, 0] {
        cpu_interface::set_eoi_mode(mode);
        irq::reset();
        pend_many();
        check_all_counted_once()?;
    }
    Ok(())
}

/// One of the highest priority that becomes pending last overtakes all others.
fn t67_highest_priority_first_when_list_is_full() -> Outcome {
    let late = FIRST + many() - 1;
    for intid in FIRST..late {
        prepare(intid, PRIORITY);
        gic::set_pending(intid);
    }
    for round in 0..20 {
        prepare(late, 0x20);
        gic::set_pending(late);
        check_eq!(acknowledge_soon(), late, "first of round {round}");
        irq::end(late);
        let other = acknowledge_soon();
        check!((FIRST..late).contains(&other), "INTID {other} came behind it");
        irq::end(other);
    }
    for _ in 20..many() - 1 {
        let intid = acknowledge_soon();
        check!((FIRST..late).contains(&intid), "INTID {intid} at the end");
        irq::end(intid);
    }
    check_idle()
}

fn t68_pending_while_disabled_stays_pending() -> Outcome {
    let intid = FIRST + 1;
    prepare(intid, PRIORITY);
    gic::disable(intid);
    gic::set_pending(intid);
    check!(gic::is_pending(intid), "it is not pending");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while disabled");
    check!(!irq::is_waiting(), "ISR_EL1.I while disabled");
    gic::enable(intid);
    check_eq!(acknowledge_soon(), intid, "INTID once enabled");
    check!(!gic::is_pending(intid) && gic::is_active(intid), "it is not just active");
    irq::end(intid);
    check_idle()
}

fn t68_pending_while_masked_by_priority() -> Outcome {
    let intid = FIRST + 2;
    prepare(intid, 0x80);
    cpu_interface::set_priority_mask(0x80);
    gic::set_pending(intid);
    check!(gic::is_pending(intid), "it is not pending");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while masked");
    check!(!irq::is_waiting(), "ISR_EL1.I while masked");
    cpu_interface::set_priority_mask(0xf0);
    check_eq!(cpu_interface::highest_pending(), intid, "highest pending");
    check_eq!(acknowledge_soon(), intid, "INTID once let through");
    irq::end(intid);
    check_idle()
}

fn t68_pending_while_group_is_off() -> Outcome {
    let intid = FIRST + 3;
    prepare(intid, PRIORITY);
    cpu_interface::set_group(0);
    gic::set_pending(intid);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with the interface's group off");
    gic::disable_groups();
    check!(gic::wait_for_writes(), "GICD_CTLR.RWP stays set");
    cpu_interface::set_group(1);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with GICD_CTLR off");
    check!(gic::is_pending(intid), "it is not pending");
    gic::enable_groups();
    check!(gic::wait_for_writes(), "GICD_CTLR.RWP stays set");
    check_eq!(acknowledge_soon(), intid, "INTID with everything on");
    irq::end(intid);
    check_idle()
}

fn t69_disable_while_active() -> Outcome {
    let intid = FIRST + 4;
    for mode in [0, EOI_MODE] {
        cpu_interface::set_eoi_mode(mode);
        prepare(intid, PRIORITY);
        gic::set_pending(intid);
        check_eq!(acknowledge_soon(), intid, "INTID");
        gic::disable(intid);
        check!(gic::is_active(intid), "it is not active");
        irq::end(intid);
        if mode == EOI_MODE {
            irq::deactivate(intid);
        }
        check!(!gic::is_active(intid), "it is still active after its end");
        gic::set_pending(intid);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID while disabled");
        gic::enable(intid);
        check_eq!(acknowledge_soon(), intid, "INTID once enabled again");
        irq::end(intid);
        if mode == EOI_MODE {
            irq::deactivate(intid);
        }
    }
    check_idle()
}

fn t69_disable_while_pending() -> Outcome {
    let intid = FIRST + 5;
    prepare(intid, PRIORITY);
    gic::set_pending(intid);
    // A list register holds it by now.
    check!(irq::is_waiting(), "ISR_EL1.I is clear");
    gic::disable(intid);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while disabled");
    check!(gic::is_pending(intid), "it is no longer pending");
    gic::clear_pending(intid);
    check!(!gic::is_pending(intid), "it is still pending");
    gic::enable(intid);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID after ICPENDR");
    check_idle()
}

fn t70_eoi_mode_0_deactivates() -> Outcome {
    let intid = FIRST + 6;
    prepare(intid, 0x90);
    gic::set_pending(intid);
    check_eq!(acknowledge_soon(), intid, "INTID");
    check!(gic::is_active(intid), "it is not active");
    // Pending again while active: it comes once more after the end, not before.
    gic::set_pending(intid);
    check!(gic::is_pending(intid) && gic::is_active(intid), "it is not pending and active");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while active");
    irq::end(intid);
    check_eq!(acknowledge_soon(), intid, "INTID after the end");
    irq::end(intid);
    check!(!gic::is_active(intid), "it is still active");
    check_idle()
}

fn t70_eoi_mode_1_only_drops_priority() -> Outcome {
    cpu_interface::set_eoi_mode(EOI_MODE);
    check_eq!(cpu_interface::eoi_mode(), EOI_MODE, "EOImode");
    let (low, high) = (FIRST + 7, FIRST + 8);
    prepare(low, 0xb0);
    prepare(high, 0x30);
    gic::set_pending(low);
    check_eq!(acknowledge_soon(), low, "first INTID");
    gic::set_pending(high);
    check_eq!(acknowledge_soon(), high, "INTID that preempts");
    irq::end(high);
    check_eq!(running_priority(), 0xb0, "running priority after one EOI");
    irq::end(low);
    check_eq!(running_priority(), 0xff, "running priority after both EOIs");
    check!(gic::is_active(low) && gic::is_active(high), "EOI has deactivated");
    gic::set_pending(high);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while active");
    // In the order in which they came, which is not how they nested.
    irq::deactivate(low);
    check!(!gic::is_active(low) && gic::is_active(high), "DIR hit the wrong one");
    irq::deactivate(high);
    check!(!gic::is_active(high), "DIR did not deactivate");
    check_eq!(acknowledge_soon(), high, "INTID once inactive");
    irq::end(high);
    irq::deactivate(high);
    check_idle()
}

/// More active interrupts than there are list registers, deactivated in the wrong order.
fn t70_many_active_in_eoi_mode_1() -> Outcome {
    const COUNT: u32 = 40;
    cpu_interface::set_eoi_mode(EOI_MODE);
    for intid in FIRST..FIRST + COUNT {
        prepare(intid, PRIORITY);
        gic::set_pending(intid);
    }
    for n in 0..COUNT {
        let intid = acknowledge_soon();
        check!((FIRST..FIRST + COUNT).contains(&intid), "INTID {intid} as number {n}");
        irq::end(intid);
    }
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with all active");
    for intid in (FIRST..FIRST + COUNT).rev() {
        check!(gic::is_active(intid), "{intid} is not active");
        irq::deactivate(intid);
        check!(!gic::is_active(intid), "{intid} is still active");
    }
    for intid in FIRST..FIRST + COUNT {
        gic::set_pending(intid);
        check_eq!(acknowledge_soon(), intid, "INTID in the second round");
        irq::end(intid);
        irq::deactivate(intid);
    }
    check_idle()
}

fn t70_nested_as_deep_as_priorities_go() -> Outcome {
    let bits = cpu_interface::priority_bits();
    check!(bits >= 4, "only {bits} bits of priority");
    let levels = (1 << bits.min(5)) - 1;
    let step = 256 >> bits.min(5);
    let priority = |level: u32| u8::try_from((levels - 1 - level) * step).unwrap_or(0);
    for level in 0..levels {
        let intid = FIRST + level;
        prepare(intid, priority(level));
        gic::set_pending(intid);
        check_eq!(acknowledge_soon(), intid, "INTID at depth {level}");
        check_eq!(running_priority(), u64::from(priority(level)), "depth {level}");
        // An equal does not preempt.
        let equal = FIRST + 64 + level;
        prepare(equal, priority(level));
        gic::set_pending(equal);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID of equal priority at depth {level}");
    }
    for level in (0..levels).rev() {
        irq::end(FIRST + level);
        let equal = FIRST + 64 + level;
        check_eq!(acknowledge_soon(), equal, "INTID of equal priority behind depth {level}");
        irq::end(equal);
        let below = if level == 0 { 0xff } else { u64::from(priority(level - 1)) };
        check_eq!(running_priority(), below, "running priority behind depth {level}");
    }
    check_idle()
}

/// With a binary point only the upper bits of a priority let one interrupt preempt another; all of
/// them say who comes first.
fn t70_binary_point_says_who_preempts() -> Outcome {
    crate::gicv3()?;
    // Bits 7:6 are the group priority, or bit 7 alone: the cases below hold for both.
    ICC_BPR1_EL1::set(6);
    isb();
    check_eq!(ICC_BPR1_EL1::get() & 7, 6, "ICC_BPR1_EL1");
    let [running, same_group, later, urgent] = [16, 17, 18, 19].map(|n| FIRST + n);
    for (intid, priority) in [(running, 0xb0), (same_group, 0x90), (later, 0xa0), (urgent, 0x40)] {
        prepare(intid, priority);
    }
    for round in 0..20 {
        gic::set_pending(running);
        check_eq!(acknowledge_soon(), running, "first INTID, round {round}");
        gic::set_pending(later);
        gic::set_pending(same_group);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID of the same group priority, round {round}");
        check!(!irq::is_waiting(), "ISR_EL1.I for the same group priority, round {round}");
        gic::set_pending(urgent);
        check_eq!(acknowledge_soon(), urgent, "INTID that preempts, round {round}");
        irq::end(urgent);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID behind it, round {round}");
        irq::end(running);
        for intid in [same_group, later] {
            check_eq!(acknowledge_soon(), intid, "INTID by the whole priority, round {round}");
            irq::end(intid);
        }
    }
    check_idle()
}
