// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The call router: decides what becomes of a guest's HVC or SMC (DEN 0028).
//!
//! Both conduits are served alike and nothing is ever forwarded: a guest's register never reaches
//! EL3. PSCI's own functions are [`crate::psci`]'s; this file knows only that they are PSCI's.
#![forbid(unsafe_code)]

use crate::spec::{
    psci,
    smccc::{self, FunctionId, low_word},
};

/// How Cofferdam names itself to a guest that asks for the call UID:
/// c4f2ddea-a330-4f8f-b2b8-8e8bf742aedf, made at random once (RFC 4122, version 4).
///
/// W0 to W3 hold the 16 bytes of the UUID, four to a word, lowest first (DEN 0028 table 6-3).
pub const CALL_UID: [u32; 4] = [0xeadd_f2c4, 0x8f4f_30a3, 0x8b8e_b8b2, 0xdfae_42f7];
/// The revision of our vendor specific hypervisor services: major in W0, minor in W1.
pub const REVISION: [u32; 4] = [0, 1, 0, 0];

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// EL2 performs the mitigation on this core, then returns SUCCESS.
    Mitigate(Workaround),
    /// X0 gets this; nothing else changes.
    Return(u64),
    /// X0 to X3 get these, zero-extended.
    ReturnWords([u32; 4]),
}

/// The mitigations that firmware offers to a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workaround {
    /// SMCCC_ARCH_WORKAROUND_1.
    One,
    /// SMCCC_ARCH_WORKAROUND_2.
    Two,
    /// SMCCC_ARCH_WORKAROUND_3.
    Three,
}

/// What the firmware has said of a mitigation, for the core that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    /// The core does not need it.
    NotRequired,
    /// The core needs it and can have it.
    Required,
    /// The firmware does not know it.
    Unsupported,
}

/// What the firmware has said of each mitigation, for one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workarounds {
    /// SMCCC_ARCH_WORKAROUND_1.
    pub workaround_1: Firmware,
    /// SMCCC_ARCH_WORKAROUND_2.
    pub workaround_2: Firmware,
    /// SMCCC_ARCH_WORKAROUND_3.
    pub workaround_3: Firmware,
}

impl Workarounds {
    const fn get(&self, workaround: Workaround) -> Firmware {
        match workaround {
            Workaround::One => self.workaround_1,
            Workaround::Two => self.workaround_2,
            Workaround::Three => self.workaround_3,
        }
    }

    /// Returns what SMCCC_ARCH_FEATURES says of a mitigation (DEN 0028 sections 7.5 to 7.7).
    const fn features(&self, workaround: Workaround) -> u64 {
        match (self.get(workaround), workaround) {
            (Firmware::Required, _) => smccc::SUCCESS,
            (Firmware::NotRequired, Workaround::Two) => smccc::NOT_REQUIRED,
            (Firmware::NotRequired, _) => smccc::WORKAROUND_UNAFFECTED,
            (Firmware::Unsupported, _) => smccc::NOT_SUPPORTED,
        }
    }

    /// Decides about a call of a mitigation. One that the core does not need may be called.
    const fn call(&self, workaround: Workaround) -> Call {
        match self.get(workaround) {
            Firmware::Required => Call::Mitigate(workaround),
            Firmware::NotRequired => Call::Return(smccc::SUCCESS),
            Firmware::Unsupported => Call::Return(smccc::NOT_SUPPORTED),
        }
    }
}

/// Returns the function where PSCI answers an HVC or SMC with immediate `imm16`, given X0; what
/// becomes of the others [`route`] decides.
#[must_use]
#[inline(always)]
pub fn psci_function(x0: u64, imm16: u16) -> Option<FunctionId> {
    let function = FunctionId::from_x0(x0);
    (imm16 == 0 && psci::owns(function)).then_some(function)
}

/// Decides what becomes of an HVC or SMC with immediate `imm16`, given X0 and X1, that is none of
/// PSCI's.
///
/// `workarounds` is what holds on the core that calls. An immediate other than 0 is nobody's.
#[must_use]
pub fn route(x0: u64, x1: u64, imm16: u16, workarounds: &Workarounds) -> Call {
    if imm16 != 0 {
        return Call::Return(smccc::NOT_SUPPORTED);
    }
    match FunctionId::from_x0(x0) {
        smccc::VERSION => Call::Return(smccc::VERSION_1_1),
        smccc::ARCH_FEATURES => Call::Return(features(low_word(x1), workarounds)),
        smccc::VENDOR_HYP_CALL_UID => Call::ReturnWords(CALL_UID),
        smccc::VENDOR_HYP_REVISION => Call::ReturnWords(REVISION),
        function => match workaround(function) {
            Some(workaround) => workarounds.call(workaround),
            None => Call::Return(smccc::NOT_SUPPORTED),
        },
    }
}

fn features(asked: u32, workarounds: &Workarounds) -> u64 {
    match FunctionId::new(asked) {
        smccc::VERSION | smccc::ARCH_FEATURES => smccc::SUCCESS,
        function => match workaround(function) {
            Some(workaround) => workarounds.features(workaround),
            None => smccc::NOT_SUPPORTED,
        },
    }
}

fn workaround(function: FunctionId) -> Option<Workaround> {
    match function {
        smccc::ARCH_WORKAROUND_1 => Some(Workaround::One),
        smccc::ARCH_WORKAROUND_2 => Some(Workaround::Two),
        smccc::ARCH_WORKAROUND_3 => Some(Workaround::Three),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIXED: Workarounds = Workarounds {
        workaround_1: Firmware::Required,
        workaround_2: Firmware::NotRequired,
        workaround_3: Firmware::Unsupported,
    };
    const NONE: Call = Call::Return(u64::MAX);

    fn call(x0: u64) -> Call {
        route(x0, 0, 0, &MIXED)
    }

    #[test]
    fn t92_every_function_of_every_owner_is_unknown_but_ours() {
        let ours = [
            (0x8000_0000, Call::Return(0x1_0001)),
            (0x8000_0001, NONE), // X1 asks for function 0, which there is not
            (0x8000_8000, Call::Mitigate(Workaround::One)),
            (0x8000_7fff, Call::Return(0)),
            (0x8600_ff01, Call::ReturnWords(CALL_UID)),
            (0x8600_ff03, Call::ReturnWords(REVISION)),
        ];
        // Fast and yielding, SMC32 and SMC64, every owner, every function number.
        for head in (0..4u64).flat_map(|kind| (0..64).map(move |owner| kind << 30 | owner << 24)) {
            for number in 0..=0xffff {
                let x0 = head | number;
                let is_psci = x0 & 0xbfff_ffe0 == 0x8400_0000;
                let function = FunctionId::new(u32::try_from(x0).unwrap());
                assert_eq!(psci_function(x0, 0), is_psci.then_some(function), "{x0:#x}");
                let ours = ours.iter().find(|(id, _)| *id == x0);
                assert_eq!(call(x0), ours.map_or(NONE, |(_, call)| *call), "{x0:#x}");
            }
        }
    }

    #[test]
    fn t92_features_are_what_the_firmware_says() {
        let asked = [
            (0x8000_0000, 0),
            (0x8000_0001, 0),
            (0x8000_0002, u64::MAX), // SOC_ID
            (0x8000_8000, 0),
            (0x8000_7fff, u64::MAX - 1),
            (0x8000_3fff, u64::MAX),
            (0x8400_0000, u64::MAX),
            (0x1_8000_8000, 0), // a 32-bit parameter: the upper half is not part of it
        ];
        for (x1, expected) in asked {
            assert_eq!(route(0x8000_0001, x1, 0, &MIXED), Call::Return(expected), "{x1:#x}");
        }
        let fine = Workarounds {
            workaround_1: Firmware::NotRequired,
            workaround_2: Firmware::Required,
            workaround_3: Firmware::NotRequired,
        };
        for (x1, expected) in [(0x8000_8000, 1), (0x8000_7fff, 0), (0x8000_3fff, 1)] {
            assert_eq!(route(0x8000_0001, x1, 0, &fine), Call::Return(expected), "{x1:#x}");
        }
    }

    #[test]
    fn t92_what_features_refuses_is_refused_when_called() {
        assert_eq!(call(0x8000_3fff), NONE);
    }

    #[test]
    fn uid_is_a_random_uuid() {
        let bytes: std::vec::Vec<u8> =
            CALL_UID.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(&bytes[..4], [0xc4, 0xf2, 0xdd, 0xea]);
        assert_eq!(bytes[6] >> 4, 4, "version");
        assert_eq!(bytes[8] >> 6, 2, "variant");
    }

    proptest! {
        #[test]
        fn t92_upper_half_and_sve_hint_do_not_count(x0: u64, x1: u64) {
            let bare = x0 & 0xfffe_ffff;
            prop_assert_eq!(route(x0, x1, 0, &MIXED), route(bare, x1, 0, &MIXED));
        }

        #[test]
        fn t93_other_immediates_are_refused(n in 0usize..8, imm16 in 1u16..) {
            let known = [
                0x8400_0000, 0x8400_0008, 0xc400_0003, 0x8000_0000, 0x8000_0001, 0x8000_8000,
                0x8600_ff01, 0x8600_ff03,
            ];
            prop_assert_eq!(route(known[n], 0x8000_0000, imm16, &MIXED), NONE);
        }
    }
}
