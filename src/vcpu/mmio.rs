// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Data aborts: an access to a device model, or a guest mistake.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::addr::{Address, Ipa};
use crate::arch;
use crate::bits::MmioError;
use crate::spec::esr::{Access, DataAbort, Direction};
use crate::spec::exception::{AbortOn, Exception};
use crate::vm::bus::Target;

impl Core {
    /// Carries an access out, or gives the guest an external abort.
    #[inline(always)]
    pub(super) fn data_abort(&mut self, abort: DataAbort) -> Next {
        let Some(access) = abort.access() else { return self.no_access(abort) };
        // HPFAR_EL2 has the page, FAR_EL2 the offset in it (traps T26).
        let ipa = Ipa::new(arch::hpfar().get() | arch::far().page_offset());
        let done = match access.direction {
            Direction::Read => self.read_device(ipa, access),
            Direction::Write => self.write_device(ipa, access),
        };
        match done {
            Ok(()) => {
                arch::skip_instruction();
                Next::Enter
            }
            Err(MmioError::Width | MmioError::Unmapped) => self.external_abort(abort),
        }
    }

    /// Settles what is not an access to a device.
    fn no_access(&mut self, abort: DataAbort) -> Next {
        // Maintenance of addresses without memory does nothing (traps T32); a walk that fails
        // during it is a failed walk all the same.
        if abort.is_cache_maintenance() && !abort.abort().is_stage1_walk() {
            arch::skip_instruction();
            return Next::Enter;
        }
        self.external_abort(abort)
    }

    fn external_abort(&mut self, abort: DataAbort) -> Next {
        let far = abort.abort().has_address().then(arch::far);
        let on = if abort.abort().is_stage1_walk() { AbortOn::Walk } else { AbortOn::Access };
        let direction = if abort.is_write() { Direction::Write } else { Direction::Read };
        arch::inject(Exception::DataAbort { far, on, direction });
        Next::Enter
    }

    #[inline(always)]
    fn read_device(&mut self, ipa: Ipa, access: Access) -> Result<(), MmioError> {
        let (vm, width) = (self.vm, access.width);
        let value = match vm.bus.find(ipa).ok_or(MmioError::Unmapped)? {
            Target::Vdist(offset) => self.read_vdist(offset, width),
            Target::Vredists(offset) => self.read_vredists(offset, width),
            Target::Vuart(offset) => vm.read_serial(&self.effects(), offset, width),
            Target::Vits(offset) => self.read_vits(offset, width),
        }?;
        self.set_x(access.register, access.extend(value));
        Ok(())
    }

    #[inline(always)]
    fn write_device(&mut self, ipa: Ipa, access: Access) -> Result<(), MmioError> {
        let (vm, width) = (self.vm, access.width);
        let value = self.x(access.register) & width.mask();
        match vm.bus.find(ipa).ok_or(MmioError::Unmapped)? {
            Target::Vdist(offset) => self.write_vdist(offset, width, value),
            Target::Vredists(offset) => self.write_vredists(offset, width, value),
            Target::Vuart(offset) => vm.write_serial(&self.effects(), offset, width, value),
            Target::Vits(offset) => self.write_vits(offset, width, value),
        }
    }
}
