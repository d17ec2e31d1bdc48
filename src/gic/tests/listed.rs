// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers whose bits are in list registers too: which they are, that the careful way to them is
//! a way to the same registers, and who is asked.
#![forbid(unsafe_code)]

use super::*;
use crate::spec::gic::GICD_BYTES;

const ICACTIVER: u64 = 0x380;

/// A VM of two vCPUs whose registers hold something.
fn marked() -> Machine {
    let mut machine = Machine::new(2, 4);
    for word in 0..3 {
        for first in [0x100, 0x200, 0x300] {
            machine.write(first + 4 * word, 0x1234_5678);
            machine.write_private(1, first, 0x0f0f_5678);
        }
    }
    machine
}

#[test]
fn t75_registers_that_are_in_list_registers_are_known() {
    for offset in (0..GICD_BYTES).step_by(4) {
        let shows = (0x200..0x400).contains(&offset);
        let changes = (0x180..0x400).contains(&offset);
        assert_eq!(changes_list_registers(offset), changes || offset == 0);
        assert_eq!(only_adds(offset), (0x200..0x280).contains(&offset));
        for frame in [0, GICR_SGI_BASE, GICR_BYTES + GICR_SGI_BASE] {
            assert_eq!(shows_list_registers(frame + offset), shows);
            assert_eq!(changes_own_list_registers(frame + offset), changes, "GICR_CTLR is at 0");
        }
    }
}

/// Reads everything that can be read as a word.
fn all(machine: &Machine) -> Vec<u64> {
    let gicd = (0..GICD_BYTES).step_by(4).map(|offset| machine.read(offset));
    let gicr = (0..2 * GICR_BYTES).step_by(4);
    let gicr = gicr.map(|offset| machine.vgic.read_vredists(offset, Width::Word).unwrap());
    gicd.chain(gicr).collect()
}

#[test]
fn t75_careful_accesses_are_accesses_to_the_same_registers() {
    let mut machine = marked();
    let offsets = (0..0x400).chain((0..0x400).map(|offset| GICR_SGI_BASE + offset));
    let offsets = offsets.chain((0..0x400).map(|offset| GICR_BYTES + GICR_SGI_BASE + offset));
    for offset in offsets.filter(|&offset| shows_list_registers(offset)) {
        for width in Width::ALL {
            if offset < GICD_BYTES {
                let careful =
                    machine.vgic.read_listed(&machine.token, Frame::Vdist, (offset, width), &());
                let plain = machine.vgic.vdist().read(offset, width);
                assert_eq!(careful.map(u64::from).ok_or(MmioError::Width), plain, "{offset:#x}");
            }
            let access = (offset, width);
            let careful = machine.vgic.read_listed(&machine.token, Frame::Vredists, access, &());
            let plain = machine.vgic.read_vredists(offset, width);
            assert_eq!(careful.map(u64::from).ok_or(MmioError::Width), plain, "{offset:#x}");
        }
    }
    let frames = [
        (Frame::Vdist, 0, 4),
        (Frame::Vredists, GICR_SGI_BASE, 4),
        (Frame::Vredists, GICR_BYTES + GICR_SGI_BASE, 4),
    ];
    for (frame, base, step) in frames {
        for offset in (base..base + 0x400).step_by(step).filter(|&at| changes_list_registers(at)) {
            let mut plain = marked();
            machine = marked();
            let (access, value) = ((offset, Width::Word), 0x0100_0003);
            let Machine { vgic, token, effects, .. } = &mut machine;
            vgic.write_listed(token, frame, access, value, effects).unwrap();
            let Machine { vgic, token, effects, .. } = &mut plain;
            match frame {
                Frame::Vdist => vgic.write_vdist(token, access, value, effects),
                Frame::Vredists => vgic.write_vredists(access, value, effects),
            }
            .unwrap();
            assert_eq!(all(&machine), all(&plain), "{frame:?} {offset:#x}");
            assert_eq!(*machine.effects.kicks.borrow(), *plain.effects.kicks.borrow());
            for width in [Width::Byte, Width::Half, Width::Double] {
                let Machine { vgic, token, effects, .. } = &mut machine;
                let refused = vgic.write_listed(token, frame, (offset, width), 0, effects);
                assert_eq!(refused, Err(MmioError::Width));
            }
        }
    }
}

#[test]
fn t75_holders_are_those_whose_list_registers_have_it() {
    let mut machine = Machine::enabled(3, 4);
    let holders =
        |machine: &Machine, offset, bits| machine.vgic.holders(Frame::Vdist, offset, bits);
    machine.settle_all();
    assert_eq!(holders(&machine, ICACTIVER + 4, u64::MAX), 0);
    for (intid, vcpu) in [(33, 1), (34, 2), (70, 1)] {
        machine.write_router(intid, affinity(vcpu).get());
        machine.write_bit(0, 0x200, intid);
    }
    machine.settle_all();
    for register in [0x180, 0x200, 0x280, 0x300, ICACTIVER] {
        assert_eq!(holders(&machine, register + 4, u64::MAX), 0b110);
        assert_eq!(holders(&machine, register + 4, 1 << 2), 0b100, "what is written");
        assert_eq!(holders(&machine, register + 4, 1 << 3), 0);
        assert_eq!(holders(&machine, register + 8, u64::MAX), 0b010);
        assert_eq!(holders(&machine, register, u64::MAX), 0, "SGIs and PPIs are not here");
        assert_eq!(holders(&machine, register + 0x7c, u64::MAX), 0, "there is no such SPI");
    }
    assert_eq!(holders(&machine, 0, 0), 0b111, "GICD_CTLR is everybody's");
    for vcpu in 0..3 {
        let offset = vcpu * GICR_BYTES + GICR_SGI_BASE + 0x200;
        assert_eq!(machine.vgic.holders(Frame::Vredists, offset, 0), 1 << vcpu);
    }
    assert_eq!(machine.vgic.holders(Frame::Vredists, 3 * GICR_BYTES, 0), 0);
    assert_eq!([machine.take(1), machine.take(1), machine.take(2)], [33, 70, 34]);
    machine.reconcile(1);
    machine.reconcile(2);
    assert_eq!(holders(&machine, ICACTIVER + 4, u64::MAX), 0);
}

#[test]
fn t70_look_that_was_asked_for_shows_what_the_guest_has_done() {
    let mut machine = Machine::enabled(2, 4);
    machine.write(0xc08, 0xaaaa_aaaa);
    machine.write_router(33, affinity(1).get());
    machine.raise_edge(33);
    machine.settle_all();
    assert_eq!(machine.cpu(1).acknowledge(), 33);
    assert_eq!([machine.read(0x204), machine.read(0x304)], [2, 0], "as of its last exit");
    machine.effects.kicks.borrow_mut().clear();
    let asked = machine.own(1).ask_for_look(&machine.effects);
    assert_eq!(*machine.effects.kicks.borrow(), [VcpuId::new(1)]);
    assert!(!machine.own(1).has_looked_since(asked));
    machine.settle(0);
    assert!(machine.own(1).has_looked_since(asked));
    assert_eq!([machine.read(0x204), machine.read(0x304)], [0, 2]);
    // What goes off has looked too.
    machine.cpu(1).end(33);
    let asked = machine.own(1).ask_for_look(&machine.effects);
    machine.vacate(1);
    assert!(machine.own(1).has_looked_since(asked));
    assert_eq!(machine.read(0x304), 0);
}
