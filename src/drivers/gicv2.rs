// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical GICv2: the CPU interfaces, the control of the virtual ones, and what the
//! distributor has for each core (IHI 0048 B 4.4, 5.3 and 4.3).
//!
//! All cores find their own registers at the same addresses. The number of a core's CPU interface
//! is read from the core's banked GICD_ITARGETSR0 and never assumed: it follows neither affinity
//! nor the order of the tree. EL2 runs with EOImode 1, as with GICv3 (traps T71).
#![forbid(unsafe_code)]

use super::gic::{PRIORITY, await_low, gicd};
use crate::id::{Mpidr, Pintid};
use crate::mmio::Registers;
use crate::spec::gic::{Lr, LrState};
use crate::spec::gicv2::{self, CPUS_MAX, INTID, gicc, gich};
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

/// INTIDs from here on are special: 1023 says that nothing is pending, 1022 that what is belongs to
/// the other group (IHI 0048 B 3.2.5).
const INTID_SPECIAL: u32 = 1020;
/// More list registers than this are not used: delivery knows no more.
const LIST_REGISTERS_MAX: usize = 16;
/// A bit that is in no affinity.
const IS_KNOWN: u64 = 1 << 63;

/// The CPU interfaces, physical and virtual.
#[derive(Debug)]
pub struct CpuInterfaces {
    gicd: Registers,
    gicc: Registers,
    gich: Registers,
    /// By the number of the CPU interface: its core's affinity with [`IS_KNOWN`], or 0.
    cores: [AtomicU64; CPUS_MAX],
}

impl CpuInterfaces {
    /// Takes charge of the registers, which EL2 has mapped.
    #[must_use]
    pub const fn new(gicd: Registers, gicc: Registers, gich: Registers) -> Self {
        Self { gicd, gicc, gich, cores: [const { AtomicU64::new(0) }; CPUS_MAX] }
    }

    /// Makes the CPU interface of this core, `own`, ready: every priority, priority drop apart from
    /// deactivation, the one group on. The bypass bits are the firmware's (traps T78).
    pub fn enable(&self, own: Mpidr) {
        let set = self.read_own_set();
        if let Some(core) = self.cores.get(set.trailing_zeros() as usize) {
            core.store(own.get() | IS_KNOWN, Release);
        }
        let bypass = self.gicc.read32(gicc::CTLR) & gicc::CTLR_BYPASS;
        self.gicc.write32(gicc::CTLR, bypass);
        for n in 0..4 {
            // Whoever ran before may have taken interrupts and not ended them.
            self.gicc.write32(gicc::APR + 4 * n, 0);
        }
        self.gicc.write32(gicc::PMR, 0xff);
        self.gicc.write32(gicc::BPR, 0);
        self.gicc.write32(gicc::CTLR, bypass | gicc::CTLR_EOI_MODE | gicc::CTLR_ENABLE);
    }

    /// Reads the set of this core's CPU interface alone. Each byte says the same, where it says
    /// anything; with one core all of them are RAZ (IHI 0048 B 4.3.12).
    fn read_own_set(&self) -> u8 {
        let mut set = 0;
        for n in 0..8 {
            let bytes = self.gicd.read32(gicv2::gicd::ITARGETSR + 4 * n).to_le_bytes();
            set |= bytes.into_iter().fold(0, |all, byte| all | byte);
        }
        if set == 0 { 1 } else { set & set.wrapping_neg() }
    }

    /// Returns the set of the CPU interface of the core `target`; empty before that has enabled it.
    #[must_use]
    pub fn set_of(&self, target: Mpidr) -> u8 {
        let wanted = target.get() | IS_KNOWN;
        let found = self.cores.iter().zip(0u32..).find(|(core, _)| core.load(Acquire) == wanted);
        found.map_or(0, |(_, number)| 1u8.wrapping_shl(number))
    }

    /// Takes the pending interrupt of this core with the highest priority and drops its priority.
    ///
    /// An SGI is deactivated as well: that takes the number of the CPU interface that sent it,
    /// which nobody else needs.
    pub fn take(&self) -> Option<Pintid> {
        let value = self.gicc.read32(gicc::IAR);
        let intid = value & INTID;
        if intid >= INTID_SPECIAL {
            return None;
        }
        self.gicc.write32(gicc::EOIR, value);
        if intid < 16 {
            self.gicc.write32(gicc::DIR, value);
        }
        Some(Pintid::new(intid))
    }

    /// Deactivates a PPI or SPI; an SGI already is.
    pub fn deactivate(&self, intid: Pintid) {
        if intid.get() >= 16 {
            self.gicc.write32(gicc::DIR, intid.get());
        }
    }

    /// Sends an SGI: see [`SgiWrite`](gicv2::SgiWrite).
    pub fn send_sgi(&self, value: u32) {
        self.gicd.write32(gicv2::gicd::SGIR, value);
    }

    /// Empties this core's virtual interface: no list register, no active priority, reset view.
    pub fn reset_virtual(&self) {
        self.gich.write32(gich::HCR, 0);
        for slot in 0..self.list_register_count() {
            self.gich.write32(lr_offset(slot), 0);
        }
        self.gich.write32(gich::APR, 0);
        self.gich.write32(gich::VMCR, 0);
        self.set_control(0);
    }
    /// Returns how many list registers there are, no more than can be used (traps T66).
    #[must_use]
    pub fn list_register_count(&self) -> usize {
        let last = self.gich.read32(gich::VTR) & gich::VTR_LIST_REGISTERS;
        (last as usize + 1).min(LIST_REGISTERS_MAX)
    }
    /// Reads a list register of this core, whose links are `links`, and deactivates the physical
    /// interrupt behind one whose guest has ended what was in it.
    #[must_use]
    pub fn read_lr(&self, links: &mut Links, slot: usize) -> Lr {
        let lr = gicv2::lr(self.gich.read32(lr_offset(slot)));
        match links.get(slot) {
            None => lr,
            Some(pintid) if lr.state() == LrState::Invalid => {
                links.set(slot, None);
                self.deactivate(pintid);
                lr
            }
            Some(pintid) => lr.with_link(pintid),
        }
    }
    /// Writes a list register of this core, whose links are `links`.
    pub fn write_lr(&self, links: &mut Links, slot: usize, lr: Lr) {
        links.set(slot, lr.pintid());
        let reported = if lr.is_linked() { lr.without_link().with_eoi() } else { lr };
        self.gich.write32(lr_offset(slot), gicv2::gich_lr(reported));
    }
    /// Reads which list registers are empty.
    #[must_use]
    pub fn empty_lrs(&self) -> u32 {
        self.gich.read32(gich::ELRSR0) & 0xffff
    }
    /// Reads EOICount and sets it to 0; what the guest ends counts only in EOImode 0.
    pub fn take_eoi_count(&self) -> u32 {
        let hcr = self.gich.read32(gich::HCR);
        self.gich.write32(gich::HCR, hcr & !gich::HCR_EOI_COUNT);
        let is_counted = self.gich.read32(gich::VMCR) & gich::VMCR_EOI_MODE == 0;
        if is_counted { hcr >> gich::HCR_EOI_COUNT.trailing_zeros() } else { 0 }
    }
    /// Sets the control bits, in the form of GICv3; there is no trap of GICV_DIR.
    pub fn set_control(&self, bits: u32) {
        self.gich.write32(gich::HCR, 1 | bits & gich::HCR_CONTROL);
    }
    /// Reads which groups the guest has enabled.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.gich.read32(gich::VMCR) & gich::VMCR_GROUPS
    }
}

/// The links of one core's list registers to physical interrupts.
///
/// None is linked by `GICH_LR<n>.HW`: a line that is still high when the guest ends the interrupt
/// has to make it pending again at once, and QEMU's GICv2 does not look at lines then. Instead the
/// end of a linked interrupt is reported to EL2, which deactivates the physical one.
#[derive(Debug, Default)]
pub struct Links([u16; LIST_REGISTERS_MAX]);

impl Links {
    fn get(&self, slot: usize) -> Option<Pintid> {
        let pintid = u32::from(*self.0.get(slot)?);
        (pintid != 0).then_some(Pintid::new(pintid))
    }
    fn set(&mut self, slot: usize, pintid: Option<Pintid>) {
        let number = pintid.map_or(0, Pintid::get) & INTID;
        if let (Some(link), Ok(number)) = (self.0.get_mut(slot), u16::try_from(number)) {
            *link = number;
        }
    }
}

fn lr_offset(slot: usize) -> u64 {
    gich::LR + 4 * (slot as u64 & 0x3f)
}

/// The SGIs and PPIs of the core that this runs on.
#[derive(Debug)]
pub struct BankedInterrupts {
    gicd: Registers,
}

impl BankedInterrupts {
    /// Takes charge of the banked registers of the distributor.
    #[must_use]
    pub const fn new(gicd: Registers) -> Self {
        Self { gicd }
    }
    /// Makes SGIs and PPIs disabled, inactive and of the one group that is used.
    pub fn wake(&mut self) {
        self.gicd.write32(gicd::ICENABLER, u32::MAX);
        self.gicd.write32(gicd::ICPENDR, u32::MAX);
        self.gicd.write32(gicd::ICACTIVER, u32::MAX);
        self.gicd.write32(gicd::IGROUPR, 0);
        for n in 0..4 {
            // ICPENDR does not concern SGIs.
            self.gicd.write32(gicv2::gicd::CPENDSGIR + 4 * n, u32::MAX);
        }
        for intid in 0..32 {
            self.gicd.write8(gicd::IPRIORITYR + intid, PRIORITY);
        }
    }
    /// Enables an SGI or PPI.
    pub fn enable(&mut self, intid: Pintid) {
        if intid.get() < 32 {
            self.gicd.write32(gicd::ISENABLER, 1 << intid.get());
        }
    }
    /// Ends whatever the PPIs of `mask` are in: not pending, not active (traps T73). One that was
    /// on its way to the CPU interface is called back by being disabled for a moment.
    pub fn quiet(&mut self, mask: u32) {
        let enabled = self.gicd.read32(gicd::ISENABLER) & mask;
        self.gicd.write32(gicd::ICENABLER, mask);
        await_low(mask, || self.gicd.read32(gicd::ISPENDR));
        self.gicd.write32(gicd::ICPENDR, mask);
        self.gicd.write32(gicd::ICACTIVER, mask);
        self.gicd.write32(gicd::ISENABLER, enabled);
    }

    /// Reads which SGIs and PPIs are enabled, pending and active.
    #[must_use]
    pub fn state(&self) -> [u32; 3] {
        [gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER].map(|register| self.gicd.read32(register))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Address, Pa, PaRange};
    use crate::arch::fake::machine::{Event, with};
    use crate::id::Vintid;
    use std::vec::Vec;

    const GICD: u64 = 0x800_0000;
    const GICC: u64 = 0x801_0000;
    const GICH: u64 = 0x803_0000;

    fn interfaces() -> CpuInterfaces {
        let block = |at, size| Registers::new(PaRange::new(Pa::new(at), size).unwrap());
        CpuInterfaces::new(block(GICD, 0x1000), block(GICC, 0x2000), block(GICH, 0x1000))
    }
    fn set(at: u64, value: u64) {
        with(|core| core.devices.insert(at, value));
    }
    fn get(at: u64) -> u64 {
        with(|core| core.devices.get(&at).copied().unwrap_or(0))
    }
    fn writes(between: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        with(|core| {
            let of = |event: &Event| match event {
                Event::DeviceWrite(at, value) if between(at.get()) => Some((at.get(), *value)),
                _ => None,
            };
            core.events.iter().filter_map(of).collect()
        })
    }

    #[test]
    fn number_of_a_cpu_interface_is_read_not_assumed() {
        let all = interfaces();
        let (a, b) = (Mpidr::from_register(0x100), Mpidr::from_register(0));
        assert_eq!(all.set_of(a), 0, "before it has come");
        set(GICD + 0x800, 0x2020_2020);
        all.enable(a);
        set(GICD + 0x800, 0);
        // Some implementations answer in a later word only.
        set(GICD + 0x810, 0x0404_0404);
        all.enable(b);
        assert_eq!((all.set_of(a), all.set_of(b)), (0x20, 0x04));
        assert_eq!(all.set_of(Mpidr::from_register(0x200)), 0, "nobody");
        all.send_sgi(0x0020_0001);
        assert_eq!(get(GICD + 0xf00), 0x0020_0001);
    }

    #[test]
    fn t78_bypass_bits_of_the_firmware_stay() {
        set(GICC, 0x61);
        interfaces().enable(Mpidr::default());
        assert_eq!(get(GICC), 0x261);
        assert_eq!(get(GICC + 4), 0xff);
    }

    #[test]
    fn sgi_is_ended_with_its_source_and_others_are_left_active() {
        let all = interfaces();
        set(GICC + 0xc, 0x1401);
        assert_eq!(all.take(), Some(Pintid::new(1)));
        all.deactivate(Pintid::new(1));
        let ends = |at| at == GICC + 0x10 || at == GICC + 0x1000;
        assert_eq!(writes(ends), [(GICC + 0x10, 0x1401), (GICC + 0x1000, 0x1401)]);
        with(|core| core.events.clear());
        set(GICC + 0xc, 27);
        assert_eq!(all.take(), Some(Pintid::new(27)));
        assert_eq!(writes(ends), [(GICC + 0x10, 27)]);
        all.deactivate(Pintid::new(27));
        assert_eq!(get(GICC + 0x1000), 27);
        for special in [1020, 1022, 1023] {
            set(GICC + 0xc, special);
            assert_eq!(all.take(), None);
        }
    }

    #[test]
    fn t66_any_number_of_list_registers_is_served() {
        let all = interfaces();
        for (said, used) in [(0, 1), (3, 4), (15, 16), (63, 16)] {
            set(GICH + 4, 0x9000_0000 | said);
            assert_eq!(all.list_register_count(), used);
        }
        let lr = Lr::pending(Vintid::new(40), 0xa0).with_eoi();
        let links = &mut Links::default();
        all.write_lr(links, 15, lr);
        assert_eq!(get(GICH + 0x13c), 0x1a08_0028);
        assert_eq!(all.read_lr(links, 15), lr);
    }

    /// The physical interrupt is ended when the guest's end is seen, once, and not while a list
    /// register still has it.
    #[test]
    fn t71_link_is_kept_by_software_until_the_guest_ends_the_interrupt() {
        let (all, links) = (interfaces(), &mut Links::default());
        let ends = || writes(|at| at == GICC + 0x1000);
        for (round, intid) in [27, 40].into_iter().enumerate() {
            let lr = Lr::pending(Vintid::new(40), 0xa0).with_link(Pintid::new(intid));
            all.write_lr(links, 2, lr);
            // Pending with EOI in place of HW, and no physical INTID.
            assert_eq!(get(GICH + 0x108), 0x1a08_0028);
            assert_eq!(all.read_lr(links, 2), lr);
            set(GICH + 0x108, 0x2a08_0028);
            let active = lr.with_state(LrState::Active);
            assert_eq!(all.read_lr(links, 2), active);
            all.write_lr(links, 2, active);
            assert_eq!(get(GICH + 0x108), 0x2a08_0028);
            assert_eq!(ends().len(), round, "the guest has not ended it");
            set(GICH + 0x108, 0x0a08_0028);
            for _ in 0..2 {
                let ended = all.read_lr(links, 2);
                assert!(ended.state() == LrState::Invalid && ended.has_eoi(), "{ended:?}");
                assert_eq!(ends().len(), round + 1);
            }
            assert_eq!(ends()[round], (GICC + 0x1000, u64::from(intid)));
        }
        // Overwritten, it is somebody else's to end.
        let lr = Lr::pending(Vintid::new(40), 0xa0);
        all.write_lr(links, 2, lr.with_link(Pintid::new(40)));
        for lr in [lr, Lr::EMPTY] {
            all.write_lr(links, 2, lr);
            assert_eq!(all.read_lr(links, 2), lr);
        }
        assert_eq!(ends().len(), 2);
    }

    #[test]
    fn t70_ends_are_counted_in_eoi_mode_0_alone() {
        let all = interfaces();
        for (vmcr, count) in [(0, 5), (1 << 9, 0)] {
            set(GICH, 5 << 27 | 0x0d);
            set(GICH + 8, vmcr);
            assert_eq!(all.take_eoi_count(), count);
            assert_eq!(get(GICH), 0x0d);
        }
        all.set_control(crate::spec::gic::ich_hcr::TDIR | crate::spec::gic::ich_hcr::NPIE);
        assert_eq!(get(GICH), 0x09, "GICv2 has no TDIR");
    }
}
