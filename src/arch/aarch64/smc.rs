// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls to the host's firmware: EL2's own, never a guest's (traps T93).
#![forbid(unsafe_code)]

use crate::id::Mpidr;
use crate::smccc::{Firmware, Workaround, Workarounds};
use smccc::{Smc, arch, psci};

/// The firmware's PSCI, called by SMC.
#[derive(Clone, Copy, Debug)]
pub struct HostPsci;

impl HostPsci {
    /// Returns the version, major and minor.
    ///
    /// # Errors
    /// The firmware answers with an error (traps T94: also with a negative version).
    pub fn version(self) -> Result<(u16, u16), psci::Error> {
        psci::version::<Smc>().map(|v| (v.major, v.minor))
    }

    /// Starts the core `target` at the physical address `entry` with `context` in X0.
    ///
    /// # Errors
    /// The firmware refuses; how, is the number below 0 that PSCI has for it (DEN 0022 section
    /// 5.2.2).
    pub fn cpu_on(self, target: Mpidr, entry: u64, context: u64) -> Result<(), u64> {
        psci::cpu_on::<Smc>(target.get(), entry, context)
            .map_err(|error| i64::from(error).unsigned_abs())
    }

    /// Turns the machine off; returns only when the firmware refuses.
    pub fn system_off(self) {
        let _ = psci::system_off::<Smc>();
    }

    /// Starts the machine again; returns only when the firmware refuses.
    pub fn system_reset(self) {
        let _ = psci::system_reset::<Smc>();
    }

    /// Asks the firmware which of the architecture's workarounds this machine needs.
    ///
    /// Only a PSCI of 1.0 or later can say whether calls of the architecture may be tried at all
    /// (DEN 0028, discovery of SMCCC_VERSION); without EL3 an SMC is UNDEF.
    #[must_use]
    pub fn workarounds(firmware: Option<Self>) -> Workarounds {
        let can_ask = firmware.is_some_and(|psci| {
            psci.version().is_ok_and(|version| version >= (1, 0))
                && psci::psci_features::<Smc>(arch::SMCCC_VERSION).is_ok()
                && arch::version::<Smc>().is_ok_and(|v| (v.major, v.minor) >= (1, 1))
        });
        let answer = |id: u32| match arch::features::<Smc>(id) {
            Ok(0) => Firmware::Required,
            Ok(_) | Err(arch::Error::NotRequired) => Firmware::NotRequired,
            Err(_) => Firmware::Unsupported,
        };
        let ask = |id| if can_ask { answer(id) } else { Firmware::Unsupported };
        Workarounds {
            workaround_1: ask(arch::SMCCC_ARCH_WORKAROUND_1),
            workaround_2: ask(arch::SMCCC_ARCH_WORKAROUND_2),
            workaround_3: ask(arch::SMCCC_ARCH_WORKAROUND_3),
        }
    }
}

/// Has the firmware mitigate on this core, as a guest's kernel has asked of its own.
pub fn mitigate(workaround: Workaround) {
    // A firmware that refuses what it has offered leaves nothing better to do.
    let _ = match workaround {
        Workaround::One => arch::arch_workaround_1::<Smc>(),
        Workaround::Two => arch::arch_workaround_2::<Smc>(true),
        Workaround::Three => arch::arch_workaround_3::<Smc>(),
    };
}
