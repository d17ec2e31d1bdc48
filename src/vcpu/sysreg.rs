// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System registers that are trapped: a few are answered, all others are UNDEF (traps T46).
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::arch;
use crate::gic::{SgiRegister, Version};
use crate::spec::esr::{Direction, SystemRegister, SystemRegisterAccess};
use crate::spec::idregs;
use crate::trace::LastExit;

const ICC_SGI1R_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 11, 5);
const ICC_ASGI1R_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 11, 6);
const ICC_SGI0R_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 11, 7);
const ICC_DIR_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 11, 1);
const ACTLR_EL1: SystemRegister = SystemRegister::new(3, 0, 1, 0, 1);
const REVIDR_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 0, 6);
const AIDR_EL1: SystemRegister = SystemRegister::new(3, 1, 0, 0, 7);
/// There is no debug ROM table.
const MDRAR_EL1: SystemRegister = SystemRegister::new(2, 0, 1, 0, 0);

impl Core<'_> {
    /// Answers a trapped MRS or MSR and moves on, or makes it UNDEF.
    #[inline(always)]
    pub(super) fn system_register(&mut self, access: SystemRegisterAccess, left_at: u64) -> Next {
        if access.id == ICC_SGI1R_EL1 && access.direction == Direction::Write {
            self.send_sgi(SgiRegister::Sgi1, self.x(access.register));
            arch::skip_instruction();
            return Next::Enter;
        }
        self.rare_system_register(access, left_at)
    }

    fn rare_system_register(&mut self, access: SystemRegisterAccess, left_at: u64) -> Next {
        let (syndrome, pc) = (arch::esr(), arch::elr());
        self.last.answered.keep(LastExit { syndrome, pc, at_ticks: left_at, detail: 0 });
        let SystemRegisterAccess { id, direction, register } = access;
        match direction {
            Direction::Read => {
                let Some(value) = self.read_system_register(id) else {
                    return self.inject_undefined();
                };
                self.set_x(register, value);
            }
            Direction::Write => match id {
                ICC_ASGI1R_EL1 | ICC_SGI0R_EL1 => {
                    self.send_sgi(SgiRegister::Sgi0, self.x(register));
                }
                ACTLR_EL1 => {}
                ICC_DIR_EL1 => self.deactivate(self.x(register)),
                _ if self.write_time(id, self.x(register)).is_some() => {}
                _ => return self.inject_undefined(),
            },
        }
        arch::skip_instruction();
        Next::Enter
    }

    fn read_system_register(&self, id: SystemRegister) -> Option<u64> {
        if let Some((crm, op2)) = id.identification() {
            let value = arch::id_register(crm, op2);
            let view = idregs::guest_view(crm, op2, value, self.vm.pa_range);
            let has_gicv2 = self.vm.vgic.version() == Version::V2;
            return Some(if has_gicv2 { idregs::without_gic(crm, op2, view) } else { view });
        }
        match id {
            // The guest has this very core; SMIDR_EL1, which the same control traps, is hidden.
            REVIDR_EL1 => Some(arch::revidr()),
            AIDR_EL1 => Some(arch::aidr()),
            ACTLR_EL1 | MDRAR_EL1 => Some(0),
            _ => self.read_time(id),
        }
    }
}
