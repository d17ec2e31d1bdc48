// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls to the host's firmware: EL2's own, never a guest's (traps T93).
#![forbid(unsafe_code)]

use crate::id::Mpidr;
use crate::smccc::{Firmware, Workaround, Workarounds};
use smccc::{Smc, psci};

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
    /// The firmware refuses.
    pub fn cpu_on(self, target: Mpidr, entry: u64, context: u64) -> Result<(), psci::Error> {
        psci::cpu_on::<Smc>(target.get(), entry, context)
    }

    /// Turns the machine off; returns only when the firmware refuses.
    pub fn system_off(self) {
        let _ = psci::system_off::<Smc>();
    }
}

/// Asks the firmware which of the architecture's workarounds this machine needs.
#[must_use]
pub fn workarounds() -> Workarounds {
    let ask = |id: u32| match smccc::arch::features::<Smc>(id) {
        Ok(0) => Firmware::Required,
        Ok(_) => Firmware::NotRequired,
        Err(_) => Firmware::Unsupported,
    };
    let none = Workarounds {
        workaround_1: Firmware::Unsupported,
        workaround_2: Firmware::Unsupported,
        workaround_3: Firmware::Unsupported,
    };
    let has_arch_calls = smccc::arch::version::<Smc>().is_ok_and(|v| (v.major, v.minor) >= (1, 1));
    if !has_arch_calls {
        return none;
    }
    Workarounds {
        workaround_1: ask(smccc::arch::SMCCC_ARCH_WORKAROUND_1),
        workaround_2: ask(smccc::arch::SMCCC_ARCH_WORKAROUND_2),
        workaround_3: ask(smccc::arch::SMCCC_ARCH_WORKAROUND_3),
    }
}

/// Has the firmware mitigate on this core, as a guest's kernel has asked of its own.
pub fn mitigate(workaround: Workaround) {
    // A firmware that refuses what it has offered leaves nothing better to do.
    let _ = match workaround {
        Workaround::One => smccc::arch::arch_workaround_1::<Smc>(),
        Workaround::Two => smccc::arch::arch_workaround_2::<Smc>(true),
        Workaround::Three => smccc::arch::arch_workaround_3::<Smc>(),
    };
}
