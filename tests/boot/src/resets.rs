// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that is reset in the worst moment finds everything as at its first start, and its
//! neighbour finds nothing.

use crate::harness::{self, Result, Vm, boot, manifest, script};
use coffer::expect::End;
use coffer::qemu::Machine;
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("resets::leave_nothing_behind", || resets("resets", 5)),
        harness::test("resets::many_leave_nothing_behind", || resets("resets-many", 300))
            .with_ignored_flag(true),
    ]
}

/// Resets one VM with its memory marked, timers armed, interrupts active and all vCPUs busy, while
/// another one runs the whole suite.
fn resets(test: &str, count: usize) -> Result<()> {
    let vms = [
        Vm::of_guest("phoenix", "0-1", "guest-suite", "mode=reset"),
        Vm::of_guest("neighbour", "2-3", "guest-suite", ""),
    ];
    let script = script(End::Off, |script| {
        for _ in 0..count {
            script.expect("phoenix", "^READY")?.send("phoenix", "r");
            script.expect("phoenix", "^DIRTY")?.expect("phoenix", "^BOOT")?;
        }
        script.expect("phoenix", "^READY")?.send("phoenix", "q");
        script.expect("phoenix", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        script.expect("neighbour", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        script.never("TEST .*: FAIL|hypervisor fault")?;
        Ok(())
    })?;
    boot(test, &manifest(&vms, ""), &Machine::default(), &script).map(drop)
}
