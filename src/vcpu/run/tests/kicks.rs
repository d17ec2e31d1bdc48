// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who is kicked, and that the one who kicks holds no lock then: a vCPU that wakes takes the VM's
//! locks first of all, so it would wait for the core that has woken it.
#![forbid(unsafe_code)]

use super::bed::*;
use crate::arch::fake::machine::{Event, Hook, with};
use crate::arch::write_bytes;
use crate::id::{Pintid, VcpuId};
use crate::vcpu::FromCore;
use core::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

const KICK: Pintid = Pintid::new(0);
const IROUTER: u64 = VDIST + 0x6000;

/// The locks of a VM that were held when some SGI was sent. A panic there and then would be taken
/// for the end of the script.
type Held = Rc<RefCell<Vec<&'static str>>>;

/// Makes every SGI of this core look at the locks of its VM, from now on, when vCPU 1 has no work.
fn watch_locks(bed: &Bed) -> Held {
    look_at_work(bed);
    let held = Held::default();
    let (vm, found) = (bed.vm, held.clone());
    let look = move || {
        let locks = [
            ("SPIs", vm.spis.try_lock().is_none()),
            ("console port", vm.serial.try_lock().is_none()),
            ("ITS", vm.vits.as_ref().is_some_and(|vits| vits.try_lock().is_none())),
        ];
        found.borrow_mut().extend(locks.into_iter().filter(|lock| lock.1).map(|lock| lock.0));
    };
    with(|core| core.on_sgi = Hook::new(look));
    held
}

fn kick_of(vcpu: usize) -> Event {
    Event::Sgi(KICK, pcpu(0, vcpu))
}

/// Counts the kicks of vCPU 1, which have to come when no lock is held.
fn kicks(held: &Held) -> usize {
    assert_eq!(held.take(), [""; 0]);
    events().into_iter().filter(|event| *event == kick_of(1)).count()
}

#[test]
fn t67_kicks_wait_for_the_lock_and_come_once() {
    let bed = Bed::new();
    let own = Some(VcpuId::new(0));
    let by = FromCore { vm: bed.vm, own, hypervisor: bed.core.hypervisor };
    bed.vm.change_spis(by, |_, effects| {
        use crate::gic::Effects;
        for vcpu in [1, 0, 1] {
            effects.kick(VcpuId::new(vcpu));
        }
        assert_eq!(events(), []);
    });
    assert_eq!(events(), [kick_of(1)]);
    clear_events();
    bed.vm.change_spis(by, |_, _| ());
    assert_eq!(events(), []);
}

#[test]
fn t67_an_spi_wakes_its_vcpu_when_no_lock_is_held() {
    const INTID: u64 = 45;
    let mut bed = Bed::new();
    bed.enable(0, 1 << (INTID - 32) | 1 << (SPI.1 - 32));
    let held = watch_locks(&bed);
    bed.write(IROUTER + 8 * INTID, 1);
    bed.write(VDIST + 0x204, 1 << (INTID - 32));
    assert_eq!(kicks(&held), 1);
    look_at_work(&bed);
    bed.write(IROUTER + 8 * u64::from(SPI.1), 1);
    assert_eq!(bed.interrupt(SPI.0), None);
    assert_eq!(kicks(&held), 1);
}

#[test]
fn t67_the_uart_wakes_its_vcpu_when_no_lock_is_held() {
    let mut bed = Bed::new();
    let intid = u64::from(bed.vm.plan.layout.vuart_interrupt.get());
    bed.enable(0, 1 << (intid - 32));
    let held = watch_locks(&bed);
    bed.write(IROUTER + 8 * intid, 1);
    // A byte goes out; then UARTIMSC lets the transmit interrupt through.
    bed.write(VUART, b'\r'.into());
    bed.write(VUART + 0x38, 1 << 5);
    assert_eq!(kicks(&held), 1);
}

#[test]
fn t67_an_lpi_wakes_its_vcpu_when_no_lock_is_held() {
    const GITS: u64 = 0x0808_0000;
    const GICR: u64 = VREDIST + 0x2_0000;
    const VALID: u64 = 1 << 63;
    const QUEUE: u64 = RAM + 0x2000;
    const CONFIGURATION: u64 = RAM + 0x3000;
    let mut bed = Bed::new();
    bed.enable(0, 0);
    let held = watch_locks(&bed);
    let mut write = |register: u64, value: u64| {
        bed.write(register, value & 0xffff_ffff);
        bed.write(register + 4, value >> 32);
    };
    // GICR_PROPBASER with 14 bits of INTID, GICR_PENDBASER.PTZ, GICR_CTLR.EnableLPIs.
    write(GICR + 0x70, CONFIGURATION | 13);
    write(GICR + 0x78, 1 << 62);
    write(GICR, 1);
    // GITS_BASER of devices and of collections, GITS_CBASER, GITS_CTLR.
    write(GITS + 0x100, VALID | RAM);
    write(GITS + 0x108, VALID | RAM);
    write(GITS + 0x80, VALID | QUEUE);
    bed.write(GITS, 1);
    // MAPD, MAPC to vCPU 1, MAPTI, and INT twice (IHI 0069 H 5.3).
    let int = [3, 0, 0, 0];
    let commands =
        [[8, 3, VALID | RAM, 0], [9, 0, VALID | 1 << 16, 0], [0xa, 8192 << 32, 0, 0], int, int];
    let queue = commands.map(|words| words.map(u64::to_le_bytes));
    let at = |ipa: u64, bytes: &[u8]| {
        write_bytes(map(pa_range(RAM_PA + (ipa - RAM), bytes.len() as u64)), bytes);
    };
    at(CONFIGURATION, &[1]);
    at(QUEUE, queue.as_flattened().as_flattened());
    clear_events();
    bed.write(GITS + 0x88, 32 * commands.len() as u64);
    assert_eq!(kicks(&held), 1);
}
