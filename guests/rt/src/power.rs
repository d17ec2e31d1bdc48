// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The end of a guest: SYSTEM_OFF, or with an argument another way out:
//! `exit=semihosting` ends QEMU with a status, `exit=cpu_off` switches the last vCPU off.
#![expect(unsafe_code, reason = "semihosting")]

use crate::sysreg::relax;
use crate::{println, psci, tree};
use core::arch::asm;

/// How a guest ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Everything went well.
    Passed,
    /// Something did not.
    Failed,
}

/// Ends the guest.
pub fn exit(status: Status) -> ! {
    match tree::argument("exit") {
        Some("semihosting") => semihosting_exit(status),
        Some("cpu_off") => println!("CPU_OFF: {:?}", psci::cpu_off()),
        _ => println!("SYSTEM_OFF: {:#x}", psci::call(psci::id::SYSTEM_OFF, 0, 0, 0)),
    }
    loop {
        relax();
    }
}

/// SYS_EXIT_EXTENDED (Semihosting for AArch32 and AArch64, 7.8) with ADP_Stopped_ApplicationExit.
fn semihosting_exit(status: Status) {
    let parameters: [u64; 2] = [0x20026, u64::from(status == Status::Failed)];
    // SAFETY: the call reads the two words and does not come back where semihosting is on.
    unsafe {
        asm!("hlt #0xf000", inout("x0") 0x20u64 => _, in("x1") &raw const parameters, options(nostack));
    }
}
