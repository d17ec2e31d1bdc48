// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Debian's own drivers for the small devices that every VM has. Its kernels have none for the panic
//! port, so one that panics is noticed by its watchdog.

use super::{ask, debian, fetch};
use crate::harness::{self, Result, boot, manifest, script};
use coffer::expect::{End, Script, ScriptError};
use coffer::qemu::{Gic, Machine};
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("linux::drives_the_small_devices_6_1", || drivers("6.1", Gic::V3)),
        harness::test("linux::drives_the_small_devices_6_12", || drivers("6.12", Gic::V3)),
        harness::test("linux::drives_the_small_devices_with_a_gicv2", || drivers("6.12", Gic::V2)),
        harness::test("linux::a_panic_is_noticed_by_the_watchdog", panic_is_noticed),
    ]
}

/// Loads the modules and waits until the shell is back.
fn load(script: &mut Script) -> std::result::Result<(), ScriptError> {
    ask(script, "a", "cd /lib/modules/$(uname -r) && for m in *.ko; do insmod $m; done; cd /\n")?;
    ask(script, "a", "ls -d /sys/bus/*/drivers/pl061_gpio/90* /sys/bus/*/drivers/sbsa-gwdt/90*\n")?;
    script.expect("a", "/9030000.pl061$")?.expect("a", "/9040000.watchdog$")?;
    Ok(())
}

/// The drivers bind, and the watchdog is refreshed by the one who holds it for far longer than it
/// would wait.
fn drivers(version: &'static str, gic: Gic) -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        load(script)?;
        ask(script, "a", "dmesg | grep sbsa-gwdt\n")?;
        script.expect("a", r"Initialized with 10s timeout @ [1-9]\d* Hz, action=0\.$")?;
        ask(script, "a", "grep -A4 gpio-keys /proc/bus/input/devices\n")?;
        script.expect("a", r#"^N: Name="gpio-keys""#)?;
        ask(script, "a", "cat /sys/firmware/devicetree/base/gpio-keys/*/label | tr '\\0' '\\n'\n")?;
        script.expect("a", "^VM dependency lost$")?.expect("a", "^GPIO Key Poweroff$")?;
        ask(script, "a", "watchdog -T 2 -t 1 /dev/watchdog; sleep 7; cat /proc/interrupts\n")?;
        script.expect("a", r"9030000.pl061 +3 Edge +GPIO Key Poweroff$")?;
        ask(script, "a", "echo still there\n")?;
        script.expect("a", "^still there$")?;
        ask(script, "a", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault|crashed")?;
        Ok(())
    })?;
    let test = format!("linux-devices-{version}-{gic:?}");
    let machine = Machine { gic: Some(gic), ..Machine::default() };
    boot(&test, &manifest(&[debian("a", version, "0-1")], ""), &machine, &script).map(drop)
}

/// A kernel that panics refreshes its watchdog no more; the VM starts again, and no other notices.
fn panic_is_noticed() -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        load(script)?;
        ask(script, "b", "while sleep 1; do echo beat; done\n")?;
        script.expect("b", "^beat$")?;
        ask(script, "a", "watchdog -T 2 -t 1 /dev/watchdog; echo c >/proc/sysrq-trigger\n")?;
        script.expect("a", "Kernel panic")?;
        script.expect_hypervisor(r"^\[vm!\] a crashed: its watchdog has fired")?;
        script.expect("a", "^READY .* 2$")?;
        ask(script, "a", "poweroff -f\n")?;
        script.after("b", "a").expect("b", "^beat$")?.send("b", "\x03");
        ask(script, "b", "poweroff -f\n")?;
        script.never("hypervisor fault|b crashed|rcu.*stall")?;
        Ok(())
    })?;
    let vms = [debian("a", "6.12", "0-1"), debian("b", "6.1", "2-3")];
    boot("linux-panic", &manifest(&vms, ""), &Machine::default(), &script).map(drop)
}
