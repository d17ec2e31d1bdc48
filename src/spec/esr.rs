// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ESR_EL2: what an exit says, decoded without looking at anything else (DDI 0487 D24.2.40).
#![forbid(unsafe_code)]

use crate::bits::Width;

/// An exception syndrome as read from ESR_EL2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Syndrome(u64);

/// Why a guest left synchronously.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// HVC with its immediate. ELR_EL2 is behind the instruction.
    Hvc(u16),
    /// SMC with its immediate. ELR_EL2 is at the instruction.
    Smc(u16),
    /// MRS, MSR or SYS that is trapped.
    SystemRegister(SystemRegisterAccess),
    /// A data abort from a guest's EL1 or EL0.
    DataAbort(DataAbort),
    /// One of the others: see [`Syndrome::rare_cause`].
    Rare(Syndrome),
}

/// Why a guest left synchronously, where it had no reason to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RareCause {
    /// An instruction abort from a guest's EL1 or EL0.
    InstructionAbort(Abort),
    /// WFI or WFE, where these are trapped.
    Wait,
    /// All else that a guest can do to come here: an instruction that is hidden from it.
    Undefined,
}

/// What data and instruction aborts have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    iss: u64,
}

/// A data abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataAbort {
    iss: u64,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the register or memory to the guest.
    Read,
    /// From the guest.
    Write,
}

/// The access that a valid syndrome describes (ISV = 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Which way.
    pub direction: Direction,
    /// How wide at memory.
    pub width: Width,
    /// The general register, 31 for XZR (traps T30).
    pub register: u8,
    iss: u64,
}

/// A trapped access to a system register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemRegisterAccess {
    /// Which register.
    pub id: SystemRegister,
    /// Which way.
    pub direction: Direction,
    /// The general register, 31 for XZR.
    pub register: u8,
}

/// A system register's Op0, Op1, CRn, CRm and Op2, where the syndrome has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SystemRegister(u64);

const ISV: u64 = 1 << 24;
const SSE: u64 = 1 << 21;
const SF: u64 = 1 << 15;
const FNV: u64 = 1 << 10;
const EA: u64 = 1 << 9;
const CM: u64 = 1 << 8;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;
const STATUS: u64 = 0x3f;

impl Syndrome {
    /// Takes a value of ESR_EL2.
    #[must_use]
    #[inline(always)]
    pub const fn new(esr: u64) -> Self {
        Self(esr)
    }
    /// Returns the value of ESR_EL2.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns the exception class, EC.
    #[must_use]
    #[inline(always)]
    pub const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }
    /// Returns the bytes of the instruction that is trapped (IL).
    #[must_use]
    pub const fn instruction_bytes(self) -> u64 {
        if self.0 & 1 << 25 != 0 { 4 } else { 2 }
    }
    /// Returns the cause.
    #[must_use]
    #[inline(always)]
    pub const fn cause(self) -> Cause {
        match self.class() {
            0x16 => Cause::Hvc(immediate(self.iss())),
            0x17 => Cause::Smc(immediate(self.iss())),
            0x18 => Cause::SystemRegister(SystemRegisterAccess::from_iss(self.iss())),
            0x24 => Cause::DataAbort(DataAbort { iss: self.iss() }),
            _ => Cause::Rare(self),
        }
    }
    /// Returns the cause where [`Self::cause`] has no more to say.
    #[must_use]
    pub const fn rare_cause(self) -> RareCause {
        match self.class() {
            0x20 => RareCause::InstructionAbort(Abort { iss: self.iss() }),
            0x01 => RareCause::Wait,
            _ => RareCause::Undefined,
        }
    }
    #[inline(always)]
    const fn iss(self) -> u64 {
        self.0 & 0x1ff_ffff
    }
}

impl core::fmt::Debug for Syndrome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "esr {:#x} (ec {:#x}, iss {:#x})", self.0, self.class(), self.iss())
    }
}

const fn immediate(iss: u64) -> u16 {
    (iss & 0xffff) as u16
}

const fn register_number(field: u64) -> u8 {
    (field & 0x1f) as u8
}

impl Abort {
    /// Returns whether a stage-1 walk was what failed (S1PTW).
    #[must_use]
    pub const fn is_stage1_walk(self) -> bool {
        self.iss & S1PTW != 0
    }
    /// Returns whether the memory system answered with an error (DFSC or IFSC 0b01xxxx).
    #[must_use]
    pub const fn is_external(self) -> bool {
        self.iss & 0x30 == 0x10
    }
    /// Returns whether the fault is a permission fault, for which HPFAR_EL2 is not valid.
    #[must_use]
    pub const fn is_permission(self) -> bool {
        self.iss & STATUS & !3 == 0b1100
    }
    /// Returns whether FAR_EL2 holds the address.
    #[must_use]
    pub const fn has_address(self) -> bool {
        self.iss & FNV == 0
    }
}

impl DataAbort {
    /// Returns what data and instruction aborts have in common.
    #[must_use]
    pub const fn abort(self) -> Abort {
        Abort { iss: self.iss }
    }
    /// Returns whether a cache maintenance or address translation instruction was at fault.
    #[must_use]
    pub const fn is_cache_maintenance(self) -> bool {
        self.iss & CM != 0
    }
    /// Returns whether it was a write (or cache maintenance).
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.iss & WNR != 0
    }
    /// Returns whether this is an ordinary access that missed stage 2 with a valid syndrome, the
    /// only kind that a device model may see: not a walk, not an external abort, not cache
    /// maintenance, a translation fault.
    #[must_use]
    #[inline(always)]
    pub const fn access(self) -> Option<Access> {
        const WANTED: u64 = ISV | FNV | EA | CM | S1PTW | 0x3c;
        const TRANSLATION: u64 = 0b00_0100;
        if self.iss & WANTED != ISV | TRANSLATION {
            return None;
        }
        Some(Access {
            direction: if self.is_write() { Direction::Write } else { Direction::Read },
            width: Width::from_log2(self.iss >> 22),
            register: register_number(self.iss >> 16),
            iss: self.iss,
        })
    }
}

impl Access {
    /// Returns what the register takes when a model gives `value`, which is no wider than the
    /// access: extended by sign to the register's size when SSE says so, by zero otherwise (traps
    /// T29).
    #[must_use]
    #[inline(always)]
    pub const fn extend(self, value: u64) -> u64 {
        if self.iss & SSE != 0 { self.extend_sign(value) } else { value }
    }

    #[cold]
    #[inline(never)]
    const fn extend_sign(self, value: u64) -> u64 {
        let mask = self.width.mask();
        let sign = mask ^ (mask >> 1);
        let value = if value & sign != 0 { value | !mask } else { value };
        if self.iss & SF != 0 { value } else { value & 0xffff_ffff }
    }
}

impl SystemRegisterAccess {
    const fn from_iss(iss: u64) -> Self {
        Self {
            id: SystemRegister(iss & SystemRegister::FIELDS),
            direction: if iss & 1 != 0 { Direction::Read } else { Direction::Write },
            register: register_number(iss >> 5),
        }
    }
}

impl SystemRegister {
    const FIELDS: u64 = 0x3f_fc1e;

    /// Names a register by its encoding.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let fields = (op0 as u64) << 20
            | (op2 as u64) << 17
            | (op1 as u64) << 14
            | (crn as u64) << 10
            | (crm as u64) << 1;
        Self(fields & Self::FIELDS)
    }
    /// Returns CRm and Op2 when the register is one of the identification space, Op0 3, Op1 0,
    /// CRn 0, CRm 1 to 7, that HCR_EL2.TID3 traps.
    #[must_use]
    pub const fn identification(self) -> Option<(u8, u8)> {
        let crm = register_number(self.0 >> 1) & 0xf;
        let op2 = register_number(self.0 >> 17) & 7;
        if self.0 == Self::new(3, 0, 0, crm, op2).0 && crm >= 1 && crm <= 7 {
            Some((crm, op2))
        } else {
            None
        }
    }
}

impl core::fmt::Debug for SystemRegister {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let r = self.0;
        let (op0, op1, crn) = (r >> 20 & 3, r >> 14 & 7, r >> 10 & 0xf);
        write!(f, "S{op0}_{op1}_C{crn}_C{}_{}", r >> 1 & 0xf, r >> 17 & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DABT: u64 = 0x24 << 26 | 1 << 25;

    fn access(iss: u64) -> Option<Access> {
        match Syndrome::new(DABT | iss).cause() {
            Cause::DataAbort(abort) => abort.access(),
            other => panic!("{other:?}"),
        }
    }

    /// A valid translation fault at level 3 that reads, SAS and flags as given.
    fn load(sas: u64, flags: u64) -> Access {
        access(ISV | sas << 22 | flags | 0b00_0111).unwrap()
    }

    #[test]
    fn t29_sign_extension_before_register_size() {
        // (SAS, SSE, SF, bus, register)
        let cases = [
            (0, 0, 0, 0x80, 0x80),
            (0, 1, 0, 0x80, 0xffff_ff80),
            (0, 1, 1, 0x80, 0xffff_ffff_ffff_ff80),
            (0, 1, 1, 0x7f, 0x7f),
            (1, 0, 1, 0x8000, 0x8000),
            (1, 1, 0, 0x8000, 0xffff_8000),
            (1, 1, 1, 0x8000, 0xffff_ffff_ffff_8000),
            (2, 0, 0, 0x8000_0000, 0x8000_0000),
            (2, 1, 1, 0x8000_0000, 0xffff_ffff_8000_0000),
            (3, 0, 1, u64::MAX, u64::MAX),
        ];
        for (sas, sse, sf, bus, expected) in cases {
            let a = load(sas, sse << 21 | sf << 15);
            assert_eq!(a.extend(bus), expected, "sas {sas} sse {sse} sf {sf} {bus:#x}");
        }
    }

    #[test]
    fn t30_register_31_is_reported_as_such() {
        assert_eq!(load(2, 31 << 16).register, 31);
    }

    #[test]
    fn t27_t28_t32_what_is_no_access_has_none() {
        let fault = 0b00_0111;
        assert!(access(ISV | fault).is_some());
        assert!(access(fault).is_none(), "ISV = 0");
        assert!(access(ISV | S1PTW | fault).is_none(), "stage-1 walk");
        assert!(access(ISV | CM | fault).is_none(), "cache maintenance");
        assert!(access(ISV | EA | 0b01_0000).is_none(), "external abort");
        assert!(access(ISV | FNV | fault).is_none(), "no address");
        assert!(access(ISV | 0b00_1111).is_none(), "permission fault");
        assert!(access(ISV | 0b10_0001).is_none(), "alignment fault");
    }

    #[test]
    fn system_register_round_trips_through_a_syndrome() {
        // MRS X5, ID_AA64PFR0_EL1 = S3_0_C0_C4_0.
        let iss = 3 << 20 | 5 << 5 | 4 << 1 | 1;
        let Cause::SystemRegister(a) = Syndrome::new(0x18 << 26 | 1 << 25 | iss).cause() else {
            panic!("not a system register");
        };
        assert_eq!(a.id, SystemRegister::new(3, 0, 0, 4, 0));
        assert_eq!((a.register, a.direction), (5, Direction::Read));
        assert_eq!(a.id.identification(), Some((4, 0)));
        assert_eq!(SystemRegister::new(3, 0, 12, 11, 5).identification(), None);
    }

    #[test]
    fn calls_carry_their_immediate() {
        assert_eq!(Syndrome::new(0x16 << 26 | 0xbeef).cause(), Cause::Hvc(0xbeef));
        assert_eq!(Syndrome::new(0x17 << 26 | 1).cause(), Cause::Smc(1));
    }
}
