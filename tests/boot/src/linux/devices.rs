// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Debian's own drivers for the small devices that every VM has. Its kernels have none for the
//! panic port, so one that panics is noticed by its watchdog.

use super::{ask, debian, fetch};
use crate::harness::{self, Result, boot, manifest, script};
use coffer::expect::{End, Script, ScriptError};
use coffer::qemu::{Gic, Machine};
use cofferdam::control::crc32c;
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("linux::drives_the_small_devices_6_1", || drivers("6.1", Gic::V3)),
        harness::test("linux::drives_the_small_devices_6_12", || drivers("6.12", Gic::V3)),
        harness::test("linux::drives_the_small_devices_with_a_gicv2", || drivers("6.12", Gic::V2)),
        harness::test("linux::a_panic_is_noticed_by_the_watchdog", panic_is_noticed),
        harness::test("linux::takes_the_power_button_and_goes_off", power_button),
        harness::test("linux::is_told_that_a_vm_is_gone_and_is_back", dependency_lost),
    ]
}

/// Loads the modules and waits until the shell is back.
fn load(script: &mut Script, vm: &str) -> std::result::Result<(), ScriptError> {
    ask(script, vm, "cd /lib/modules/$(uname -r) && for m in *.ko; do insmod $m; done; cd /\n")?;
    ask(script, vm, "ls -d /sys/bus/*/drivers/pl061_gpio/90* /sys/bus/*/drivers/sbsa-gwdt/90*\n")?;
    script.expect(vm, "/9030000.pl061$")?.expect(vm, "/9040000.watchdog$")?;
    Ok(())
}

/// The drivers bind, and the watchdog is refreshed by the one who holds it for far longer than it
/// would wait.
fn drivers(version: &'static str, gic: Gic) -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        load(script, "a")?;
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
        load(script, "a")?;
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

/// Reads so many key events, each with its SYN behind it, and shows type, code and value: with 64
/// bits, an event is 24 bytes and the time takes 16 of them (Linux, include/uapi/linux/input.h).
fn show_keys(count: usize) -> String {
    format!(
        "for n in $(seq {count}); do head -c 48 <&3 | head -c 24 | tail -c 8 | \
         hexdump -e '8/1 \"%02x\" \"\\n\"'; done 3</dev/input/event0"
    )
}

/// An orderly stop is the power button, pressed and let go; the guest does with it what it likes.
fn power_button() -> Result<()> {
    fetch()?;
    let request = "C1 1 stop a deadline_ms=200000";
    let request = format!("\x1e{request}*{:08x}\n", crc32c(request.as_bytes()));
    let script = script(End::Done, |script| {
        load(script, "a")?;
        ask(script, "a", &format!("({}; poweroff -f) & echo waits\n", show_keys(2)))?;
        script.expect("a", "^waits$")?.send("a", &request);
        // EV_KEY, KEY_POWER: 1 and 0.
        script.expect("a", "0100740001000000$")?.expect("a", "0100740000000000$")?;
        script.expect("a", "reboot: Power down")?;
        script.expect_hypervisor(r"^\[vm\] a off")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault|crashed")?;
        Ok(())
    })?;
    let vms = [debian("a", "6.12", "0-1")];
    let manifest = manifest(&vms, "") + "\n[control]\nport = \"console\"\n";
    boot("linux-power-button", &manifest, &Machine::default(), &script).map(drop)
}

/// A VM that starts after another one sees a button held while that one is gone.
fn dependency_lost() -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        load(script, "a")?;
        ask(script, "a", &format!("({}; poweroff -f) & echo waits\n", show_keys(2)))?;
        script.expect("a", "^waits$")?;
        load(script, "b")?;
        // Long enough for the other one to have opened its device.
        ask(
            script,
            "b",
            "watchdog -T 2 -t 1 /dev/watchdog; sleep 5; echo c >/proc/sysrq-trigger\n",
        )?;
        script.expect_hypervisor(r"^\[vm!\] b crashed: its watchdog has fired")?;
        // EV_KEY, BTN_0: 1 and 0.
        script.expect("a", "0100000101000000$")?.expect("a", "0100000100000000$")?;
        script.expect("b", "^READY .* 2$")?;
        ask(script, "b", "poweroff -f\n")?;
        script.never("(?i)rcu.*stall|hypervisor fault|a crashed")?;
        Ok(())
    })?;
    let vms = [debian("b", "6.1", "2-3"), debian("a", "6.12", "0-1")];
    let manifest = manifest(&vms, "")
        .replacen("[vm.a]\n", "[vm.a]\nafter = [\"b\"]\n", 1)
        .replacen("[vm.b]\n", "[vm.b]\non_crash = { restart = 3, backoff = \"2s\" }\n", 1);
    boot("linux-dependency", &manifest, &Machine::default(), &script).map(drop)
}
