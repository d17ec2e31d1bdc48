// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's ITS: its registers, and its commands, some at each exit.
//!
//! Whatever a guest puts into its queue, an exit does no more than [`BUDGET`] of it; the core then
//! sends itself an interrupt, which comes when the guest has been entered, and goes on. Other
//! interrupts of the core are served in between.
#![forbid(unsafe_code)]

use super::{Core, GO_ON};
use crate::arch;
use crate::bits::{MmioError, Width};
use crate::vm::spis::Kicks;

/// What the commands of one exit may cost, in what [`Vits::step`](crate::gic::Vits::step) counts:
/// some thousand instructions.
const BUDGET: u32 = 16;

impl Core<'_> {
    pub(super) fn read_vits(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        let vits = self.vm.vits.as_ref().ok_or(MmioError::Unmapped)?;
        vits.lock().read(offset, width)
    }

    pub(super) fn write_vits(
        &self,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), MmioError> {
        let vits = self.vm.vits.as_ref().ok_or(MmioError::Unmapped)?;
        vits.lock().write(offset, width, value)?;
        self.work_on_vits();
        Ok(())
    }

    /// Does what the guest has put into its ITS's queue, as much as one exit takes. A core whose
    /// vCPU is off does so too.
    pub(super) fn work_on_vits(&self) {
        let vm = self.vm;
        let Some(vits) = &vm.vits else { return };
        let mut vits = vits.lock();
        let mut kicks = Kicks::default();
        let mut left = BUDGET;
        while vits.has_work() {
            if left == 0 {
                if let Some(own) = vm.kicks.get(self.vcpu.index()) {
                    arch::send_sgi(GO_ON, *own);
                }
                break;
            }
            let (cost, more) = vm.change_spis_before_kicks(self.effects(), |token, effects| {
                vits.step(&vm.vgic, token, vm, effects)
            });
            kicks = kicks.and(more);
            left = left.saturating_sub(cost);
        }
        drop(vits);
        vm.send_kicks(kicks);
    }
}
