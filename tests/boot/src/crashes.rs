// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests that cannot go on: each comes back as its policy says.

use crate::harness::{self, Result, Vm, boot, manifest, script};
use coffer::expect::End;
use coffer::qemu::{Clock, Gic, Machine};
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("crashes::a_hang_is_ended_in_time", || hang("crashes-hang", Gic::V3)),
        harness::test("crashes::a_hang_is_ended_in_time_with_a_gicv2", || {
            hang("crashes-hang-gicv2", Gic::V2)
        }),
    ]
}

/// A guest that hangs with interrupts masked is back within a tenth of its watchdog's time; the
/// guest measures that itself, in ticks of a counter that instructions move on.
fn hang(test: &str, gic: Gic) -> Result<()> {
    let guest = Vm::of_guest("a", "0-1", "guest-suite", "mode=hang watchdog_ms=200");
    let manifest = manifest(&[guest], "").replacen("\nmemory", "\nwatchdog = \"200ms\"\nmemory", 1);
    let script = script(End::Off, |script| {
        for round in 0..3 {
            script.expect("a", &format!("^HANG {round}$"))?;
            script.expect_hypervisor(
                r"^\[vm!\] a crashed: its watchdog has fired; it starts again$",
            )?;
            script.expect("a", "^TEST hang_was_noticed_in_time: ok$")?;
        }
        script.expect("a", "^RESULT passed=1 failed=0 ")?;
        script.never("TEST .*: FAIL|hypervisor fault")?;
        Ok(())
    })?;
    let machine = Machine { gic: Some(gic), clock: Clock::Instructions, ..Machine::default() };
    boot(test, &manifest, &machine, &script).map(drop)
}
