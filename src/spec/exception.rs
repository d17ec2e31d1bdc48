// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Taking an exception to EL1 as the architecture does (DDI 0487 J1, AArch64.TakeException).
#![forbid(unsafe_code)]

use crate::addr::Gva;

/// An exception that EL2 makes a guest take at EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// The instruction is undefined.
    Undefined,
    /// A synchronous external abort of a data access.
    DataAbort {
        /// The address that was accessed, where it is known.
        far: Option<Gva>,
        /// What failed.
        on: AbortOn,
        /// Whether a write failed.
        direction: super::esr::Direction,
    },
    /// A synchronous external abort of an instruction fetch.
    InstructionAbort {
        /// The address that was fetched, where it is known.
        far: Option<Gva>,
        /// What failed.
        on: AbortOn,
    },
}

/// What an external abort hit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbortOn {
    /// The access itself.
    Access,
    /// The walk of the guest's own tables.
    Walk,
}

/// The guest's state when the exception comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// SPSR_EL2: PSTATE of the guest.
    pub pstate: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// How EL1 is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// ESR_EL1.
    pub esr: u64,
    /// The vector's offset from VBAR_EL1.
    pub vector: u64,
    /// The new PSTATE.
    pub pstate: u64,
}

mod pstate {
    pub const MODE: u64 = 0x1f;
    pub const EL1H: u64 = 0x5;
    pub const AARCH32: u64 = 1 << 4;
    pub const SP: u64 = 1;
    pub const BTYPE: u64 = 3 << 10;
    pub const SS: u64 = 1 << 21;
    pub const DAIF: u64 = 0xf << 6;
    pub const SSBS: u64 = 1 << 12;
    pub const PAN: u64 = 1 << 22;
    /// In SPSR_EL2 it is here for AArch32 too; there it is bit 21 only in AArch32's own CPSR.
    pub const DIT: u64 = 1 << 24;
    pub const NZCV: u64 = 0xf << 28;
}

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const IL: u64 = 1 << 25;
const STATUS_EXTERNAL: u64 = 0b01_0000;
/// An external abort on a walk, at a level that EL2 does not look up: 0.
const STATUS_EXTERNAL_WALK: u64 = 0b01_0100;
const ISS_FNV: u64 = 1 << 10;
const ISS_WNR: u64 = 1 << 6;

impl Exception {
    /// Returns what FAR_EL1 takes.
    #[must_use]
    pub const fn far(self) -> Option<Gva> {
        match self {
            Self::Undefined => None,
            Self::DataAbort { far, .. } | Self::InstructionAbort { far, .. } => far,
        }
    }

    /// Returns how EL1 is entered from `origin`.
    #[must_use]
    pub const fn enter(self, origin: Origin) -> Entry {
        let from_el0 = origin.pstate & (pstate::MODE & !pstate::AARCH32) == 0
            || origin.pstate & pstate::AARCH32 != 0;
        Entry {
            esr: self.syndrome(from_el0),
            vector: vector(origin.pstate),
            pstate: new_pstate(origin),
        }
    }

    const fn syndrome(self, from_el0: bool) -> u64 {
        // The class for an abort from the same level is that from a lower one plus 1.
        let same_level = if from_el0 { 0 } else { 1 };
        match self {
            Self::Undefined => IL,
            Self::DataAbort { far, on, direction } => {
                let wnr = match direction {
                    super::esr::Direction::Read => 0,
                    super::esr::Direction::Write => ISS_WNR,
                };
                (0x24 + same_level) << 26 | IL | wnr | fnv(far) | on.status()
            }
            Self::InstructionAbort { far, on } => {
                (0x20 + same_level) << 26 | IL | fnv(far) | on.status()
            }
        }
    }
}

impl AbortOn {
    const fn status(self) -> u64 {
        match self {
            Self::Access => STATUS_EXTERNAL,
            Self::Walk => STATUS_EXTERNAL_WALK,
        }
    }
}

/// Returns whether PSTATE is that of AArch32.
#[must_use]
#[inline(always)]
pub const fn is_aarch32(pstate: u64) -> bool {
    pstate & pstate::AARCH32 != 0
}

/// Returns whether an emulated instruction may leave another PSTATE behind it than it found.
#[must_use]
#[inline(always)]
pub const fn changes_behind(pstate: u64) -> bool {
    pstate & (pstate::AARCH32 | pstate::BTYPE | pstate::SS) != 0
}

/// Returns PSTATE behind an A64 instruction that was emulated: a single step ends with it and BTYPE
/// does not outlive it, as if it had run (DDI 0487 D1.3.4).
#[must_use]
#[inline(always)]
pub const fn behind(pstate: u64) -> u64 {
    pstate & !(pstate::BTYPE | pstate::SS)
}

/// Returns PSTATE behind an A32 or T32 instruction that was emulated: in an IT block the next
/// condition comes up (DDI 0487 F1.2.3). SPSR_EL2 has IT\[7:2\] in 15:10 and IT\[1:0\] in 26:25.
#[must_use]
pub const fn behind_aarch32(pstate: u64) -> u64 {
    const IT: u64 = 0x3f << 10 | 3 << 25;
    let it = pstate >> 10 & 0x3f;
    let it = it << 2 | pstate >> 25 & 3;
    let next = if it & 7 == 0 { 0 } else { it & 0xe0 | it << 1 & 0x1f };
    pstate & !(IT | pstate::SS) | next >> 2 << 10 | (next & 3) << 25
}

const fn fnv(far: Option<Gva>) -> u64 {
    if far.is_none() { ISS_FNV } else { 0 }
}

/// Returns the offset of the synchronous vector (DDI 0487 D1.3.1).
const fn vector(from: u64) -> u64 {
    if from & pstate::AARCH32 != 0 {
        0x600
    } else if from & pstate::MODE == 0 {
        0x400
    } else if from & pstate::SP == 0 {
        0x000
    } else {
        0x200
    }
}

/// Returns PSTATE at the first instruction of the handler: EL1h, all masked, IL, SS and BTYPE
/// clear, PAN set unless SCTLR_EL1.SPAN, SSBS from SCTLR_EL1.DSSBS; flags and DIT are kept.
const fn new_pstate(origin: Origin) -> u64 {
    let from = origin.pstate;
    let pan = if origin.sctlr & SCTLR_SPAN == 0 { pstate::PAN } else { from & pstate::PAN };
    let ssbs = if origin.sctlr & SCTLR_DSSBS != 0 { pstate::SSBS } else { 0 };
    from & (pstate::NZCV | pstate::DIT) | pan | ssbs | pstate::DAIF | pstate::EL1H
}

#[cfg(test)]
mod tests {
    use super::super::esr::Direction;
    use super::*;

    const EL0: u64 = 0;
    const EL0_AARCH32: u64 = 0x10;
    const EL1T: u64 = 4;
    const EL1H: u64 = 5;

    fn enter(e: Exception, pstate: u64, sctlr: u64) -> Entry {
        e.enter(Origin { pstate, sctlr })
    }

    #[test]
    fn t33_vector_and_class_follow_the_source_level() {
        let dabt = Exception::DataAbort {
            far: Some(Gva::at(8)),
            on: AbortOn::Access,
            direction: Direction::Read,
        };
        let iabt = Exception::InstructionAbort { far: Some(Gva::at(8)), on: AbortOn::Access };
        // (source, vector, EC of a data abort, EC of an instruction abort)
        let cases = [
            (EL0, 0x400, 0x24, 0x20),
            (EL0_AARCH32, 0x600, 0x24, 0x20),
            (EL1T, 0x000, 0x25, 0x21),
            (EL1H, 0x200, 0x25, 0x21),
        ];
        for (source, vector, data, instruction) in cases {
            let e = enter(dabt, source, SCTLR_SPAN);
            assert_eq!((e.vector, e.esr >> 26, e.esr & 0x3f), (vector, data, 0x10));
            assert_eq!(enter(iabt, source, SCTLR_SPAN).esr >> 26, instruction);
            assert_ne!(e.esr & IL, 0);
        }
    }

    #[test]
    fn t33_pstate_masks_and_clears() {
        // SS, IL, BTYPE set; flags set; PAN clear.
        let from = EL1H | 1 << 21 | 1 << 20 | 3 << 10 | 0xf << 28;
        let e = enter(Exception::Undefined, from, SCTLR_SPAN);
        assert_eq!(e.pstate, 0xf000_03c5);
        assert_ne!(enter(Exception::Undefined, from, 0).pstate & pstate::PAN, 0);
        let ssbs = enter(Exception::Undefined, from, SCTLR_SPAN | SCTLR_DSSBS).pstate;
        assert_ne!(ssbs & pstate::SSBS, 0);
    }

    /// SPSR_EL2 has SS in bit 21 and DIT in bit 24 whatever state the exception came from.
    #[test]
    fn t33_dit_is_kept_and_single_step_is_not() {
        for source in [EL0, EL0_AARCH32, EL1H] {
            let keeps = enter(Exception::Undefined, source | pstate::DIT, SCTLR_SPAN).pstate;
            assert_eq!(keeps, 0x3c5 | 1 << 24);
            let steps = enter(Exception::Undefined, source | 1 << 21, SCTLR_SPAN).pstate;
            assert_eq!(steps, 0x3c5);
        }
    }

    #[test]
    fn t31_emulated_instruction_ends_step_and_branch_type() {
        assert_eq!(behind(EL1H | 1 << 21 | 3 << 10 | 0xf << 28), EL1H | 0xf << 28);
    }

    /// The blocks of IT, ITE EQ and ITTTT NE: firstcond:mask as the instruction has them.
    #[test]
    fn t31_it_block_moves_on() {
        let pstate = |it: u64| EL0_AARCH32 | 1 << 5 | (it >> 2) << 10 | (it & 3) << 25;
        for (it, next) in [(0, 0), (0x08, 0), (0x0c, 0x18), (0x18, 0), (0x1f, 0x1e), (0x1e, 0x1c)] {
            assert_eq!(behind_aarch32(pstate(it)), pstate(next), "IT {it:#x}");
        }
        // A32 has no IT state; flags, GE, Q and DIT stay, a step ends.
        let flags = 0xf << 28 | 1 << 27 | 1 << 24 | 0xf << 16;
        assert_eq!(behind_aarch32(EL0_AARCH32 | flags | 1 << 21), EL0_AARCH32 | flags);
    }

    #[test]
    fn t34_undefined_is_class_0_with_il() {
        assert_eq!(enter(Exception::Undefined, EL1H, 0).esr, 1 << 25);
    }

    #[test]
    fn t27_walk_abort_says_so_and_unknown_address_too() {
        let e = Exception::DataAbort { far: None, on: AbortOn::Walk, direction: Direction::Write };
        let esr = enter(e, EL1H, 0).esr;
        assert_eq!(esr & 0x3f, 0b01_0100);
        assert_ne!(esr & ISS_FNV, 0);
        assert_ne!(esr & ISS_WNR, 0);
    }
}
