// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Data aborts: an access to a device model, or a guest mistake.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::addr::{Address, Ipa};
use crate::arch;
use crate::bits::{MmioError, Width};
use crate::gic::{self, Home};
use crate::spec::esr::{Access, DataAbort, Direction};
use crate::spec::exception::{AbortOn, Exception};
use crate::spec::gicv2::INTID;
use crate::trace::LastExit;
use crate::vm::bus::{Target, TargetV2};
use crate::vm::crash::CrashCause;

/// What became of an access to a GICv2.
enum V2<T> {
    /// It is done.
    Done(T),
    /// The models have the register here: see [`crate::vm::bus::Bus::hidden`].
    At(Ipa),
}

impl Core<'_> {
    /// Carries an access out, or gives the guest an external abort.
    #[inline(always)]
    pub(super) fn data_abort(&mut self, abort: DataAbort, exit: impl Fn(u64) -> LastExit) -> Next {
        let Some(access) = abort.access() else { return self.no_access(abort, exit(0).at_ticks) };
        // HPFAR_EL2 has the page, FAR_EL2 the offset in it (traps T26).
        let ipa = Ipa::new(arch::hpfar().get() | arch::far().page_offset());
        let exit = exit(ipa.get());
        self.last.answered.keep(exit);
        let done = match access.direction {
            Direction::Read => self.read_device(ipa, access),
            Direction::Write => self.write_device(ipa, access),
        };
        match done {
            Ok(()) => {
                arch::skip_instruction();
                Next::Enter
            }
            Err(MmioError::Width | MmioError::Unmapped) => {
                self.external_abort(abort, exit.at_ticks)
            }
            Err(MmioError::Panicked) => {
                arch::skip_instruction();
                self.crash(CrashCause::Panicked)
            }
        }
    }

    /// Settles what is not an access to a device.
    fn no_access(&mut self, abort: DataAbort, left_at: u64) -> Next {
        // Maintenance of addresses without memory does nothing (traps T32); a walk that fails
        // during it is a failed walk all the same.
        if abort.is_cache_maintenance() && !abort.abort().is_stage1_walk() {
            arch::skip_instruction();
            return Next::Enter;
        }
        self.external_abort(abort, left_at)
    }

    fn external_abort(&mut self, abort: DataAbort, left_at: u64) -> Next {
        self.keep_fault(left_at);
        let far = abort.abort().has_address().then(arch::far);
        let on = if abort.abort().is_stage1_walk() { AbortOn::Walk } else { AbortOn::Access };
        let direction = if abort.is_write() { Direction::Write } else { Direction::Read };
        arch::inject(Exception::DataAbort { far, on, direction });
        Next::Enter
    }

    #[inline(always)]
    fn read_device(&mut self, mut ipa: Ipa, access: Access) -> Result<(), MmioError> {
        let (vm, width) = (self.vm, access.width);
        let value = loop {
            break match vm.bus.find(ipa) {
                Some(Target::Vdist(offset)) => self.read_vdist(offset, width),
                Some(Target::Vredists(offset)) => self.read_vredists(offset, width),
                Some(Target::Vuart(offset)) => vm.read_serial(&self.effects(), offset, width),
                None => match self.read_rare(ipa, width)? {
                    V2::Done(value) => Ok(value),
                    V2::At(home) => {
                        ipa = home;
                        continue;
                    }
                },
            }?;
        };
        self.set_x(access.register, access.extend(value));
        Ok(())
    }

    #[inline(always)]
    fn write_device(&mut self, mut ipa: Ipa, access: Access) -> Result<(), MmioError> {
        let (vm, width) = (self.vm, access.width);
        let value = self.x(access.register) & width.mask();
        loop {
            return match vm.bus.find(ipa) {
                Some(Target::Vdist(offset)) => self.write_vdist(offset, width, value),
                Some(Target::Vredists(offset)) => self.write_vredists(offset, width, value),
                Some(Target::Vuart(offset)) => {
                    vm.write_serial(&self.effects(), offset, width, value)
                }
                None => match self.write_rare(ipa, width, value)? {
                    V2::Done(()) => Ok(()),
                    V2::At(home) => {
                        ipa = home;
                        continue;
                    }
                },
            };
        }
    }

    /// Reads from what guests seldom use: an ITS, the small devices, a GICv2.
    #[cold]
    #[inline(never)]
    fn read_rare(&mut self, ipa: Ipa, width: Width) -> Result<V2<u64>, MmioError> {
        let vm = self.vm;
        if let Some(offset) = vm.bus.find_vits(ipa) {
            return Ok(V2::Done(self.read_vits(offset, width)?));
        }
        if let Some(register) = vm.bus.find_platform(ipa) {
            return Ok(V2::Done(vm.read_platform(&self.effects(), register, width)?));
        }
        let home = match vm.bus.find_v2(ipa).ok_or(MmioError::Unmapped)? {
            TargetV2::Vdist(offset) => gic::home(self.vcpu, offset, width)?,
            // GICC_DIR is write-only, and the page has nothing else (IHI 0048 B 4.4.9).
            TargetV2::Dir(_) => return Ok(V2::Done(0)),
        };
        Ok(match home {
            Home::Vdist(offset) => V2::At(vm.bus.hidden(Target::Vdist(offset))),
            Home::Vredists(offset) => V2::At(vm.bus.hidden(Target::Vredists(offset))),
            Home::Own(offset) => {
                self.settle_for_v2(offset);
                V2::Done(vm.vgic.read_v2(self.vcpu, offset, width)?)
            }
        })
    }

    /// Writes to the same.
    #[cold]
    #[inline(never)]
    fn write_rare(&mut self, ipa: Ipa, width: Width, value: u64) -> Result<V2<()>, MmioError> {
        let vm = self.vm;
        if let Some(offset) = vm.bus.find_vits(ipa) {
            return Ok(V2::Done(self.write_vits(offset, width, value)?));
        }
        if let Some(register) = vm.bus.find_platform(ipa) {
            return Ok(V2::Done(vm.write_platform(&self.effects(), register, width, value)?));
        }
        let home = match vm.bus.find_v2(ipa).ok_or(MmioError::Unmapped)? {
            TargetV2::Vdist(offset) => gic::home_of_write(self.vcpu, offset, width)?,
            TargetV2::Dir(offset) => return Ok(V2::Done(self.write_dir(offset, width, value)?)),
        };
        Ok(match home {
            Home::Vdist(offset) => V2::At(vm.bus.hidden(Target::Vdist(offset))),
            Home::Vredists(offset) => V2::At(vm.bus.hidden(Target::Vredists(offset))),
            Home::Own(offset) => {
                self.settle_for_v2(offset);
                let access = (offset, width);
                V2::Done(vm.change_spis(self.effects(), |token, effects| {
                    vm.vgic.write_v2(token, self.vcpu, access, value, effects)
                })?)
            }
        })
    }

    /// Writes to the second page of a GICv2's CPU interface: GICC_DIR, which no trap of its own
    /// keeps from a guest as ICH_HCR_EL2.TDIR does, so the page is not mapped.
    fn write_dir(&mut self, offset: u64, width: Width, value: u64) -> Result<(), MmioError> {
        if width != Width::Word || offset & 3 != 0 {
            return Err(MmioError::Width);
        }
        if offset == 0 {
            // Above the INTID is the sender of an SGI.
            self.deactivate(value & u64::from(INTID));
        }
        Ok(())
    }
}
