// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What other cores do to a redistributor in the middle of a reconciliation: it takes no lock.
#![forbid(unsafe_code)]

use super::fake::SPURIOUS;
use super::*;
use crate::spec::gic::Lr;

/// List registers; as soon as one is emptied, another vCPU clears a pending SGI.
struct Meddler<'a> {
    cpu: &'a mut FakeCpu,
    own: &'a Vredist,
    cleared: Option<u32>,
}

impl ListRegisters for Meddler<'_> {
    fn read(&mut self, slot: usize) -> Lr {
        self.cpu.read(slot)
    }
    fn write(&mut self, slot: usize, lr: Lr) {
        self.cpu.write(slot, lr);
        if lr == Lr::EMPTY
            && let Some(intid) = self.cleared.take()
        {
            self.own.write(GICR_SGI_BASE + 0x280, Width::Word, 1 << intid, &()).unwrap();
        }
    }
    fn empty(&self) -> u32 {
        self.cpu.empty()
    }
    fn take_eoi_count(&mut self) -> u32 {
        self.cpu.take_eoi_count()
    }
    fn groups(&self) -> u32 {
        ListRegisters::groups(self.cpu)
    }
    fn set_control(&mut self, bits: u32) {
        self.cpu.set_control(bits);
    }
    fn deactivate(&mut self, pintid: Pintid) {
        self.cpu.deactivate(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        self.cpu.line(pintid)
    }
}

/// The SGI has thrown another interrupt out of the only list register when it is taken back: the
/// place stays free, and neither of the two is lost later.
#[test]
fn t67_sgi_that_is_cleared_while_it_gets_a_list_register_takes_none() {
    let mut machine = Machine::enabled(1, 1);
    machine.write(0xc08, 0xaaaa_aaaa);
    machine.write_priority(0, 5, 0x20);
    machine.send_sgi(0, 5 << 24 | 1);
    machine.settle(0);
    assert_eq!(machine.take(0), 5, "its list register's value is known now");
    machine.raise_edge(33);
    machine.settle(0);
    machine.send_sgi(0, 5 << 24 | 1);
    let own = machine.vgic.vredist(VcpuId::new(0)).unwrap();
    let (delivery, cpu) = &mut machine.cores[0];
    let mut meddler = Meddler { cpu, own, cleared: Some(5) };
    assert_eq!(delivery.flush(own, &mut meddler), Flush::Reconcile);
    delivery.reconcile(&machine.vgic, &mut machine.token, &mut meddler, &machine.effects);
    assert_eq!(meddler.cleared, None);
    machine.settle(0);
    assert_eq!([machine.take(0), machine.take(0)], [33, SPURIOUS]);
    // Both again, the SGI first.
    machine.send_sgi(0, 5 << 24 | 1);
    machine.settle(0);
    machine.raise_edge(33);
    machine.settle(0);
    assert_eq!([machine.take(0), machine.take(0), machine.take(0)], [5, 33, SPURIOUS]);
}
