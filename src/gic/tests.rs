// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the virtual GIC as a whole: a VM of fake cores, on which tests play the guest.
#![forbid(unsafe_code)]

mod delivery;
mod linked;
mod listed;
mod model;
mod races;
mod registers;
mod v2;
mod vits;

use super::fake::{Dir, FakeCpu, Recorder};
use super::*;
use crate::spec::gic::{GICR_BYTES, GICR_SGI_BASE};
use crate::trace::InterruptKind;
use std::collections::BTreeSet;
use std::vec::Vec;

/// The virtual timer's PPI, and that of the physical core's timer behind it.
const TIMER: u32 = 27;
/// The SPIs with a physical interrupt behind them, which has the number plus 100.
const LINKED_SPIS: [u32; 2] = [40, 41];

/// Returns the affinity of vCPU `n`.
fn affinity(n: u64) -> Mpidr {
    Mpidr::from_register((n >> 4) << 8 | n & 0xf)
}

/// A VM on fake cores. The physical side: which PPIs of which core and which SPIs are active.
struct Machine {
    vgic: Vgic,
    token: SpiToken,
    cores: Vec<(Delivery, FakeCpu)>,
    effects: Recorder,
    physical_ppis: BTreeSet<(usize, u32)>,
    physical_spis: BTreeSet<u32>,
    /// The SGIs and PPIs of each core that went the quick route: what its loop counts.
    quick: Vec<[u64; 2]>,
}

impl Machine {
    fn new(vcpus: usize, list_registers: usize) -> Self {
        let affinities: Vec<_> = (0..vcpus as u64).map(affinity).collect();
        let links = LINKED_SPIS.map(|spi| (Vintid::new(spi), Pintid::new(spi + 100)));
        let (vgic, token) = Vgic::new(Version::V3, &affinities, 64, &links).unwrap();
        let cores = affinities.iter().zip(0..).map(|(_, n)| {
            let mut cpu = FakeCpu::new(list_registers);
            let mut delivery = Delivery::new(VcpuId::new(n), list_registers);
            delivery.reset(vgic.vredist(VcpuId::new(n)).unwrap(), &mut cpu);
            (delivery, cpu)
        });
        let cores = cores.collect();
        let (physical_ppis, physical_spis) = Default::default();
        let effects = Recorder::default();
        let quick = std::vec![[0; 2]; vcpus];
        let mut machine = Self { vgic, token, cores, effects, physical_ppis, physical_spis, quick };
        machine.write(0, 3);
        machine
    }

    /// Makes a VM with all interrupts enabled, at priority 0xa0.
    fn enabled(vcpus: usize, list_registers: usize) -> Self {
        let mut machine = Self::new(vcpus, list_registers);
        for word in 1..=2 {
            machine.write(0x100 + 4 * word, 0xffff_ffff);
        }
        for word in 8..24 {
            machine.write(0x400 + 4 * word, 0xa0a0_a0a0);
        }
        for vcpu in 0..vcpus {
            machine.write_private(vcpu, 0x100, 0xffff_ffff);
            for word in 0..8 {
                machine.write_private(vcpu, 0x400 + 4 * word, 0xa0a0_a0a0);
            }
        }
        machine
    }

    fn own(&self, vcpu: usize) -> &Vredist {
        self.vgic.vredist(VcpuId::new(u8::try_from(vcpu).unwrap())).unwrap()
    }
    fn cpu(&mut self, vcpu: usize) -> &mut FakeCpu {
        &mut self.cores[vcpu].1
    }

    /// Writes a word to the distributor.
    fn write(&mut self, offset: u64, value: u64) {
        let access = (offset, Width::Word);
        self.vgic.write_vdist(&mut self.token, access, value, &self.effects).unwrap();
    }
    /// Writes a word to the second frame of a redistributor.
    fn write_private(&self, vcpu: usize, offset: u64, value: u64) {
        let offset = vcpu as u64 * GICR_BYTES + GICR_SGI_BASE + offset;
        self.vgic.write_vredists((offset, Width::Word), value, &self.effects).unwrap();
    }
    fn read(&self, offset: u64) -> u64 {
        self.vgic.vdist().read(offset, Width::Word).unwrap()
    }
    fn read_private(&self, vcpu: usize, offset: u64) -> u64 {
        let offset = vcpu as u64 * GICR_BYTES + GICR_SGI_BASE + offset;
        self.vgic.read_vredists(offset, Width::Word).unwrap()
    }
    /// Writes the bit of an interrupt to one of the bit registers, given by its first offset.
    fn write_bit(&mut self, vcpu: usize, first: u64, intid: u32) {
        let bit = 1 << (intid & 31);
        if intid < 32 {
            self.write_private(vcpu, first, bit);
        } else {
            self.write(first + 4 * u64::from(intid >> 5), bit);
        }
    }
    fn write_priority(&mut self, vcpu: usize, intid: u32, priority: u8) {
        let access = (0x400 + u64::from(intid), Width::Byte);
        if intid < 32 {
            let access = (vcpu as u64 * GICR_BYTES + GICR_SGI_BASE + access.0, access.1);
            self.vgic.write_vredists(access, priority.into(), &self.effects).unwrap();
        } else {
            let value = priority.into();
            self.vgic.write_vdist(&mut self.token, access, value, &self.effects).unwrap();
        }
    }
    fn write_router(&mut self, intid: u32, router: u64) {
        let access = (0x6000 + 8 * u64::from(intid), Width::Double);
        self.vgic.write_vdist(&mut self.token, access, router, &self.effects).unwrap();
    }

    fn set_level(&mut self, intid: u32, level: Level) {
        self.vgic.set_level(&mut self.token, Vintid::new(intid), level, &self.effects);
    }
    fn raise_edge(&mut self, intid: u32) {
        self.vgic.raise_edge(&mut self.token, Vintid::new(intid), &self.effects);
    }
    fn send_sgi(&mut self, sender: usize, value: u64) {
        let sender = VcpuId::new(u8::try_from(sender).unwrap());
        self.vgic.send_sgi(sender, SgiRegister::Sgi1, value, &self.effects);
    }

    /// The physical timer of a core fires, unless it is active still.
    fn fire_timer(&mut self, vcpu: usize) -> bool {
        if !self.physical_ppis.insert((vcpu, TIMER)) {
            return false;
        }
        let own = self.vgic.vredist(VcpuId::new(u8::try_from(vcpu).unwrap())).unwrap();
        let (delivery, cpu) = &mut self.cores[vcpu];
        let injected = delivery.inject_private(own, Vintid::new(TIMER), Pintid::new(TIMER), cpu);
        self.quick[vcpu][1] += u64::from(injected == Injected::Now);
        true
    }
    /// The physical interrupt behind an SPI fires, unless it is active still.
    fn fire_spi(&mut self, intid: u32) -> bool {
        if !self.physical_spis.insert(intid + 100) {
            return false;
        }
        self.vgic.raise_linked(&mut self.token, Vintid::new(intid), &self.effects);
        true
    }

    /// Does what a core does with a maintenance interrupt, and before it enters its guest.
    fn flush(&mut self, vcpu: usize) {
        if self.cpu(vcpu).wants_maintenance() {
            self.own(vcpu).look_again();
        }
        self.flush_without_maintenance(vcpu);
    }
    /// Does what a core does before it enters its guest.
    fn flush_without_maintenance(&mut self, vcpu: usize) {
        let own = self.vgic.vredist(VcpuId::new(u8::try_from(vcpu).unwrap())).unwrap();
        let (delivery, cpu) = &mut self.cores[vcpu];
        if !own.has_work() {
            return;
        }
        match delivery.flush(own, cpu) {
            Flush::Done => {}
            Flush::Sgi => self.quick[vcpu][0] += 1,
            Flush::Reconcile => {
                delivery.reconcile(&self.vgic, &mut self.token, cpu, &self.effects);
            }
        }
    }
    /// Does what a core does before its guest's read of pending or active bits.
    fn reconcile(&mut self, vcpu: usize) {
        let (delivery, cpu) = &mut self.cores[vcpu];
        delivery.reconcile(&self.vgic, &mut self.token, cpu, &self.effects);
    }
    fn vacate(&mut self, vcpu: usize) {
        let (delivery, cpu) = &mut self.cores[vcpu];
        delivery.vacate(&self.vgic, &mut self.token, cpu, &self.effects);
        assert!(!self.vgic.vredists[vcpu].looks.is_going_on());
    }

    /// Lets things happen after something on core `vcpu`: it enters its guest, cores that were
    /// kicked or have a maintenance interrupt leave and enter theirs. Nobody else looks.
    fn settle(&mut self, vcpu: usize) {
        let mut due = BTreeSet::from([vcpu]);
        for _ in 0..20 {
            due.extend(self.effects.kicks.borrow_mut().drain(..).map(VcpuId::index));
            due.extend((0..self.cores.len()).filter(|&n| self.cores[n].1.wants_maintenance()));
            self.account_for_deactivations();
            let Some(next) = due.pop_first() else { return self.check_counts() };
            self.flush(next);
            if self.own(next).has_work() {
                due.insert(next);
            }
        }
        panic!("no rest: maintenance or work without end");
    }
    /// Settles everybody.
    fn settle_all(&mut self) {
        (0..self.cores.len()).for_each(|vcpu| self.settle(vcpu));
    }

    /// What is counted is what went into list registers.
    fn check_counts(&self) {
        for (vcpu, ((_, cpu), [sgis, ppis])) in self.cores.iter().zip(&self.quick).enumerate() {
            let mut counted = InterruptKind::ALL.map(|kind| self.own(vcpu).injections.get(kind));
            counted[0] += sgis;
            counted[1] += ppis;
            assert_eq!(counted, cpu.filled, "vCPU {vcpu}");
        }
    }

    fn account_for_deactivations(&mut self) {
        let mut spis = core::mem::take(&mut *self.effects.deactivated.borrow_mut());
        for (vcpu, (_, cpu)) in self.cores.iter_mut().enumerate() {
            for pintid in cpu.deactivated.drain(..) {
                if pintid.get() < 32 {
                    let was_active = self.physical_ppis.remove(&(vcpu, pintid.get()));
                    assert!(was_active, "PPI {pintid} of core {vcpu} deactivated twice");
                } else {
                    spis.push(pintid);
                }
            }
        }
        for pintid in spis {
            assert!(self.physical_spis.remove(&pintid.get()), "SPI {pintid} deactivated twice");
        }
    }

    /// The guest acknowledges and ends one interrupt.
    fn take(&mut self, vcpu: usize) -> u32 {
        let intid = self.cpu(vcpu).acknowledge();
        if intid != fake::SPURIOUS {
            self.settle(vcpu);
            self.cpu(vcpu).end(intid);
            self.settle(vcpu);
        }
        intid
    }
    /// The guest deactivates an interrupt.
    fn dir(&mut self, vcpu: usize, intid: u32) {
        if self.cpu(vcpu).dir(intid) == Dir::Trapped {
            let id = VcpuId::new(u8::try_from(vcpu).unwrap());
            self.vgic.deactivate(&mut self.token, id, Vintid::new(intid), &self.effects);
        }
    }
}
