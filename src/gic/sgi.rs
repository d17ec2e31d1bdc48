// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Software-generated interrupts: from the value a guest writes to the vCPUs it names.
//!
//! Names outside the VM reach nobody. The work is bounded by the vCPUs of the VM. IHI 0069 H 12.2
//! (ICC_SGI1R_EL1, ICC_SGI0R_EL1, ICC_ASGI1R_EL1).
#![forbid(unsafe_code)]

use super::bank::bit;
use super::{Effects, Vgic};
use crate::id::VcpuId;
use crate::spec::gic::SgiRequest;

/// The register that a guest writes to send an SGI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiRegister {
    /// ICC_SGI1R_EL1, which reaches SGIs of both groups.
    Sgi1,
    /// ICC_SGI0R_EL1, which reaches SGIs of Group 0 only; with one Security state
    /// ICC_ASGI1R_EL1 is the same.
    Sgi0,
}

impl Vgic {
    /// Sends the SGI that `sender` asks for with a write of `value`.
    #[inline(always)]
    pub fn send_sgi<E: Effects>(
        &self,
        sender: VcpuId,
        register: SgiRegister,
        value: u64,
        effects: &E,
    ) {
        let request = SgiRequest::from_register(value);
        let intid = request.intid();
        let mut targets = self.sgi_targets(sender, request);
        while targets != 0 {
            let target = targets.trailing_zeros();
            targets &= targets.wrapping_sub(1);
            let Some(vredist) = self.vredists.get(target as usize) else { return };
            if register == SgiRegister::Sgi1 || vredist.bank.group1() & bit(intid) == 0 {
                vredist.raise(intid, effects);
            }
        }
    }

    /// Returns a bit for each vCPU that the request names.
    #[inline(always)]
    fn sgi_targets(&self, sender: VcpuId, request: SgiRequest) -> u64 {
        match request.plain_targets(self.not_plain) {
            Some(targets) => targets & self.everybody,
            None => self.sgi_targets_by_search(sender, request),
        }
    }

    #[cold]
    fn sgi_targets_by_search(&self, sender: VcpuId, request: SgiRequest) -> u64 {
        if request.is_for_all_others() {
            return self.everybody & !(1 << (sender.get() & 63));
        }
        let mut targets = 0;
        for vredist in &self.vredists {
            if request.names(vredist.affinity()) {
                targets |= 1 << (vredist.id().get() & 63);
            }
        }
        targets
    }
}
