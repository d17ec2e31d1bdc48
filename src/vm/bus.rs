// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which device model stands at an address.
#![forbid(unsafe_code)]

use crate::addr::{Address, Ipa};
use crate::plan::Layout;

/// Bytes of the distributor's window.
pub const VDIST_BYTES: u64 = 64 << 10;
/// Bytes of one redistributor's window.
pub const VREDIST_BYTES: u64 = 128 << 10;
/// Bytes of the PL011's window.
pub const VUART_BYTES: u64 = 4 << 10;

/// Where a VM's device models stand.
#[derive(Clone, Copy, Debug)]
pub struct Bus {
    vdist: Ipa,
    vredist: Ipa,
    vredist_bytes: u64,
    vuart: Ipa,
    vits: Option<Ipa>,
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
    /// The ITS.
    Vits(u64),
}

impl Bus {
    /// Takes where the plan has put the models of a VM with `vcpu_count` vCPUs.
    #[must_use]
    pub fn new(layout: &Layout, vcpu_count: usize) -> Self {
        Self {
            vdist: layout.vdist,
            vredist: layout.vredist,
            vredist_bytes: VREDIST_BYTES * vcpu_count as u64,
            vuart: layout.vuart,
            vits: layout.vits,
        }
    }

    /// Finds the model in whose window an address is.
    ///
    /// An access that goes on behind the window's end is not aligned, since windows end at pages,
    /// and every model refuses what is not aligned (traps T35).
    #[must_use]
    #[inline(always)]
    pub fn find(&self, ipa: Ipa) -> Option<Target> {
        let within = |start: Ipa, bytes: u64| {
            let offset = ipa.get().wrapping_sub(start.get());
            (offset < bytes).then_some(offset)
        };
        if let Some(offset) = within(self.vdist, VDIST_BYTES) {
            return Some(Target::Vdist(offset));
        }
        if let Some(offset) = within(self.vredist, self.vredist_bytes) {
            return Some(Target::Vredists(offset));
        }
        if let Some(offset) = within(self.vuart, VUART_BYTES) {
            return Some(Target::Vuart(offset));
        }
        within(self.vits?, Layout::VITS_BYTES).map(Target::Vits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Vintid;

    fn bus() -> Bus {
        let layout = Layout {
            vdist: Ipa::at(0x0800_0000),
            vredist: Ipa::at(0x080a_0000),
            vits: Some(Ipa::at(0x0808_0000)),
            vuart: Ipa::at(0x0900_0000),
            vuart_interrupt: Vintid::new(33),
        };
        Bus::new(&layout, 2)
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
        assert_eq!(find(0x0808_0000), Some(Target::Vits(0)));
        assert_eq!(find(0x0809_ffff), Some(Target::Vits(0x1_ffff)));
        assert_eq!(find(u64::MAX), None);
    }

    #[test]
    fn each_vcpu_has_a_redistributor_and_no_more() {
        let find = |ipa| bus().find(Ipa::at(ipa));
        assert_eq!(find(0x080a_0008), Some(Target::Vredists(8)));
        assert_eq!(find(0x080c_0000), Some(Target::Vredists(0x2_0000)));
        assert_eq!(find(0x080e_0000), None);
    }
}
