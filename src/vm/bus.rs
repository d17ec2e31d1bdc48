// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which device model stands at an address.
#![forbid(unsafe_code)]

use super::platform::Device;
use crate::addr::{Address, Ipa};
use crate::devices::watchdog::Frame;
use crate::plan::{Layout, VgicFrames};
use crate::spec::gicv2::{GICD_BYTES, gicc};
use crate::spec::its::GITS_BYTES;

/// Bytes of the distributor's window.
pub const VDIST_BYTES: u64 = 64 << 10;
/// Bytes of one redistributor's window.
pub const VREDIST_BYTES: u64 = 128 << 10;
/// Bytes of the PL011's window.
pub const VUART_BYTES: u64 = 4 << 10;

/// Where what a guest does not see stands: it has no address so long.
const HIDDEN: Ipa = Ipa::at(1 << 62);
/// The same, for redistributors.
const HIDDEN_VREDIST: Ipa = Ipa::at(1 << 63);
/// Bytes of the page of a CPU interface that has GICC_DIR.
const DIR_BYTES: u64 = 4 << 10;

/// Where a VM's device models stand.
#[derive(Clone, Copy, Debug)]
pub struct Bus {
    vdist: Ipa,
    vredist: Ipa,
    vredist_bytes: u64,
    vuart: Ipa,
    platform: Ipa,
    vits: Option<Ipa>,
    vdist_v2: Ipa,
    dir_v2: Ipa,
}

/// The model that an access meets, and the offset in its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The distributor.
    Vdist(u64),
    /// The redistributors, one behind the other.
    Vredists(u64),
    /// The PL011.
    Vuart(u64),
}

/// What an access meets that no other model has: the parts of a GICv2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetV2 {
    /// The distributor.
    Vdist(u64),
    /// The second page of the CPU interface. The first one is the machine's own.
    Dir(u64),
}

impl Bus {
    /// Takes where the plan has put the models of a VM with `vcpu_count` vCPUs.
    #[must_use]
    pub fn new(layout: &Layout, vcpu_count: usize) -> Self {
        let elsewhere = Self {
            vdist: HIDDEN,
            vredist: HIDDEN_VREDIST,
            vredist_bytes: VREDIST_BYTES.saturating_mul(vcpu_count as u64),
            vuart: layout.vuart,
            platform: layout.platform,
            vdist_v2: HIDDEN,
            dir_v2: HIDDEN,
            vits: None,
        };
        match layout.vgic {
            VgicFrames::V2 { gicc } => {
                // The checker has seen that all of the CPU interface is an address.
                let dir_v2 = gicc.checked_add(gicc::DIR).unwrap_or(HIDDEN);
                Self { vdist_v2: layout.vdist, dir_v2, ..elsewhere }
            }
            VgicFrames::V3 { vredist, vits } => {
                Self { vdist: layout.vdist, vredist, vits: Some(vits), ..elsewhere }
            }
        }
    }

    /// Finds the model in whose window an address is.
    ///
    /// An access that goes on behind the window's end is not aligned, since windows end at pages,
    /// and every model refuses what is not aligned (traps T35).
    #[must_use]
    #[inline(always)]
    pub fn find(&self, ipa: Ipa) -> Option<Target> {
        let within = |start, bytes| within(ipa, start, bytes);
        if let Some(offset) = within(self.vdist, VDIST_BYTES) {
            return Some(Target::Vdist(offset));
        }
        if let Some(offset) = within(self.vredist, self.vredist_bytes) {
            return Some(Target::Vredists(offset));
        }
        within(self.vuart, VUART_BYTES).map(Target::Vuart)
    }
    /// Returns the offset in the window of the ITS, which [`Self::find`] leaves out: accesses to it
    /// are rare.
    #[must_use]
    pub fn find_vits(&self, ipa: Ipa) -> Option<u64> {
        within(ipa, self.vits?, GITS_BYTES)
    }

    /// Finds which of the small devices an address is of, likewise.
    #[must_use]
    pub fn find_platform(&self, ipa: Ipa) -> Option<(Device, u64)> {
        let offset = within(ipa, self.platform, Layout::PLATFORM_BYTES)?;
        let device = match offset / Layout::PLATFORM_STRIDE {
            0 => Device::Gpio,
            1 => Device::Watchdog(Frame::Control),
            2 => Device::Watchdog(Frame::Refresh),
            _ => Device::Panic,
        };
        Some((device, offset % Layout::PLATFORM_STRIDE))
    }

    /// Returns where a register stands that a GICv2 guest reaches elsewhere: [`Self::find`] finds
    /// it there.
    #[must_use]
    pub fn hidden(&self, target: Target) -> Ipa {
        let (start, offset) = match target {
            Target::Vdist(offset) => (self.vdist, offset),
            Target::Vredists(offset) => (self.vredist, offset),
            Target::Vuart(offset) => (self.vuart, offset),
        };
        Ipa::new(start.get().wrapping_add(offset))
    }

    /// Finds what is of a GICv2, likewise.
    #[must_use]
    pub fn find_v2(&self, ipa: Ipa) -> Option<TargetV2> {
        let within = |start, bytes| within(ipa, start, bytes);
        if let Some(offset) = within(self.vdist_v2, GICD_BYTES) {
            return Some(TargetV2::Vdist(offset));
        }
        within(self.dir_v2, DIR_BYTES).map(TargetV2::Dir)
    }
}

/// Returns the offset of an address in a window.
#[inline(always)]
fn within(ipa: Ipa, start: Ipa, bytes: u64) -> Option<u64> {
    let offset = ipa.get().wrapping_sub(start.get());
    (offset < bytes).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Vintid;

    fn bus() -> Bus {
        bus_of(VgicFrames::V3 { vredist: Ipa::at(0x080a_0000), vits: Ipa::at(0x0808_0000) })
    }
    fn bus_of(vgic: VgicFrames) -> Bus {
        let layout = Layout {
            vdist: Ipa::at(0x0800_0000),
            vgic,
            vuart: Ipa::at(0x0900_0000),
            vuart_interrupt: Vintid::new(33),
            platform: Ipa::at(0x0903_0000),
            gpio_interrupt: Vintid::new(39),
            watchdog_interrupt: Vintid::new(40),
        };
        Bus::new(&layout, 2)
    }

    #[test]
    fn t79_gicv2_has_a_distributor_and_the_page_of_dir() {
        let bus = bus_of(VgicFrames::V2 { gicc: Ipa::at(0x0801_0000) });
        let find = |ipa| bus.find_v2(Ipa::at(ipa));
        assert_eq!(find(0x0800_0ffc), Some(TargetV2::Vdist(0xffc)));
        assert_eq!(find(0x0800_1000), None);
        assert_eq!(find(0x0801_0ffc), None, "the machine's own");
        assert_eq!(find(0x0801_1000), Some(TargetV2::Dir(0)));
        assert_eq!(find(0x0801_2000), None);
        assert_eq!(find(0), None);
        let find = |ipa| bus.find(Ipa::at(ipa));
        assert_eq!([0, 0x0800_0000, 0x0801_1000, 0x080a_0008].map(find), [None; 4]);
        assert_eq!(find(0x0900_0000), Some(Target::Vuart(0)));
        for target in [Target::Vdist(0xffc), Target::Vredists(0x3_fffc), Target::Vuart(8)] {
            assert_eq!(bus.find(bus.hidden(target)), Some(target));
        }
    }

    #[test]
    fn an_address_is_in_one_window_or_none() {
        let find = |ipa| bus().find(Ipa::at(ipa));
        assert_eq!(find(0x0800_0000), Some(Target::Vdist(0)));
        assert_eq!(find(0x0800_ffff), Some(Target::Vdist(0xffff)));
        assert_eq!(find(0x0801_0000), None);
        assert_eq!(find(0x07ff_ffff), None);
        assert_eq!(find(0x0900_0fff), Some(Target::Vuart(0xfff)));
        assert_eq!(find(0x0900_1000), None);
        assert_eq!(find(0x0807_ffff), None);
        assert_eq!(find(0x0808_0000), None);
        let find_vits = |ipa| bus().find_vits(Ipa::at(ipa));
        assert_eq!(find_vits(0x0807_ffff), None);
        assert_eq!(find_vits(0x0808_0000), Some(0));
        assert_eq!(find_vits(0x0809_ffff), Some(0x1_ffff));
        assert_eq!(find_vits(0x080a_0000), None);
        assert_eq!(find(u64::MAX), None);
    }

    #[test]
    fn each_small_device_has_64_kib() {
        let find = |ipa| bus().find_platform(Ipa::at(ipa));
        assert_eq!(find(0x0902_ffff), None);
        assert_eq!(find(0x0903_0000), Some((Device::Gpio, 0)));
        assert_eq!(find(0x0903_ffff), Some((Device::Gpio, 0xffff)));
        assert_eq!(find(0x0904_0008), Some((Device::Watchdog(Frame::Control), 8)));
        assert_eq!(find(0x0905_0000), Some((Device::Watchdog(Frame::Refresh), 0)));
        assert_eq!(find(0x0906_0000), Some((Device::Panic, 0)));
        assert_eq!(find(0x0906_ffff), Some((Device::Panic, 0xffff)));
        assert_eq!([0x0907_0000, 0x0900_0000, 0x0800_0000, 0].map(find), [None; 4]);
    }

    #[test]
    fn each_vcpu_has_a_redistributor_and_no_more() {
        let find = |ipa| bus().find(Ipa::at(ipa));
        assert_eq!(find(0x080a_0008), Some(Target::Vredists(8)));
        assert_eq!(find(0x080c_0000), Some(Target::Vredists(0x2_0000)));
        assert_eq!(find(0x080e_0000), None);
    }
}
