// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Odd machines: other numbers of cores, other memory, the wrong exception level.

use crate::harness::{
    self, Result, Vm, boot, edit_tree, hold, manifest, on_other_machine, prepare, script,
};
use crate::linux;
use coffer::expect::End;
use coffer::qemu::{Entry, Gic, Machine};
use libtest_mimic::Trial;

/// The tests of the suite that depend on how many cores there are; all of it runs on four.
const SOME: &str = "only=t31,t49,t74,t87,t88,t91";
const GIB: u64 = 1 << 30;
/// The machines whose clock a guest has.
const CLOCKS: [(&str, &str, Gic); 4] = [
    ("", "cortex-a72", Gic::V3),
    ("_on_a76", "cortex-a76", Gic::V3),
    ("_on_max", "max", Gic::V3),
    ("_with_a_gicv2", "cortex-a72", Gic::V2),
];

pub fn trials() -> Vec<Trial> {
    let clocks = CLOCKS.map(|(title, cpu, gic)| {
        let test = format!("machines::clock_passed_through{title}");
        harness::test(&test, move || clock_passed_through(cpu, gic))
    });
    let others = vec![
        harness::test("machines::six_cores_two_gib", || halves(6, 2 * GIB, "512M")),
        harness::test("machines::eight_cores_eight_gib", || halves(8, 8 * GIB, "3G")),
        harness::test("machines::one_core", halves_of_one_core),
        harness::test("machines::eight_single_core_guests", eight_guests),
        harness::test("machines::all_vcpus_turn_off", all_vcpus_turn_off),
        harness::test("machines::cores_in_a_spin_table", || {
            cores_in_a_spin_table("machines-spin-table", None)
        }),
        harness::test("machines::core_fails_to_come_up", || {
            cores_in_a_spin_table("machines-core-absent", Some(3))
        }),
        harness::test("machines::raspberry_pi_4", raspberry_pi_4),
        harness::test("machines::entered_at_el1", entered_at_el1),
        harness::test("machines::without_a_bundle", without_a_bundle),
    ];
    clocks.into_iter().chain(others).collect()
}

/// Boots two guests, each with half of the cores.
fn halves(smp: u32, memory_bytes: u64, memory: &'static str) -> Result<()> {
    let half = smp / 2;
    let cpus = [format!("0-{}", half - 1), format!("{half}-{}", smp - 1)];
    let names = ["low", "high"];
    let vms = [0, 1].map(|index| Vm {
        memory,
        ..Vm::of_guest(names[index], &cpus[index], "guest-suite", SOME)
    });
    let machine =
        Machine { smp: Some(smp), memory_bytes: Some(memory_bytes), ..Machine::default() };
    suites_pass(&format!("machines-{smp}"), &vms, &machine)
}

fn halves_of_one_core() -> Result<()> {
    let machine = Machine { smp: Some(1), ..Machine::default() };
    suites_pass("machines-1", &[Vm::of_guest("only", "0", "guest-suite", SOME)], &machine)
}

fn eight_guests() -> Result<()> {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let vms: Vec<_> = (0..)
        .zip(names)
        .map(|(cpu, name)| Vm::of_guest(name, &format!("{cpu}"), "guest-suite", SOME))
        .collect();
    let machine = Machine { smp: Some(8), ..Machine::default() };
    suites_pass("machines-8-guests", &vms, &machine)
}

/// Boots guests that all run a part of the suite; it has to pass in each of them, and the machine
/// goes off with the last one.
fn suites_pass(test: &str, vms: &[Vm], machine: &Machine) -> Result<()> {
    let script = script(End::Off, |script| {
        for vm in vms {
            script.expect(vm.name, r"^RESULT passed=[1-9]\d* failed=0 ")?;
        }
        script.never("hypervisor fault")?;
        Ok(())
    })?;
    boot(test, &manifest(vms, ""), machine, &script).map(drop)
}

/// A guest that ends by CPU_OFF alone is off, and the machine goes off with it.
fn all_vcpus_turn_off() -> Result<()> {
    let vms = [
        Vm::of_guest("one", "0", "guest-suite", "mode=off"),
        Vm::of_guest("three", "1-3", "guest-suite", "mode=off"),
    ];
    let script = script(End::Off, |script| {
        for _ in 0..2 {
            script.expect_hypervisor(r"^\[vm\] (one|three): all CPUs are off")?;
            script.expect_hypervisor(r"^\[vm\] (one|three) off")?;
        }
        script.never("^OFF:")?;
        Ok(())
    })?;
    boot("machines-cpu-off", &manifest(&vms, ""), &Machine::default(), &script).map(drop)
}

/// A boot loader of ours parks three cores; the tree says where. Of an absent one it names a place
/// at which nobody looks: the VM that needs it is refused, the other one runs.
fn cores_in_a_spin_table(test: &str, absent: Option<usize>) -> Result<()> {
    const RESERVED: &str = "reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges; \
        parked@40200000 { reg = <0 0x40200000 0 0x1000>; }; };";
    let vms = ["0,2", "1,3"]
        .map(|cpus| Vm::of_guest(if cpus == "0,2" { "a" } else { "b" }, cpus, "guest-suite", SOME));
    let prepared = prepare(test, &manifest(&vms, ""), &Machine::default(), Default::default())?;
    let tree = harness::folder(test)?.join("parked.dtb");
    edit_tree(&prepared, &tree, |source| {
        let mut parts = source.split("enable-method = \"psci\";");
        let mut edited = parts.next().unwrap_or_default().to_owned();
        for (core, part) in parts.enumerate() {
            let table = if absent == Some(core) { 0x4020_0800 } else { 0x4020_0100 };
            let release = table + 8 * core;
            edited +=
                &format!("enable-method = \"spin-table\"; cpu-release-addr = <0 {release:#x}>;");
            edited += part;
        }
        let root_end = edited.rfind("};").unwrap_or(edited.len());
        edited.insert_str(root_end, RESERVED);
        edited
    })?;
    let image = &prepared.artifacts.image;
    let loaded = format!("loader,file={},addr=0x60000000,force-raw=on", image.display());
    let qemu = prepared.artifacts.board.qemu.as_ref().ok_or("the board has no QEMU")?;
    let loader = harness::flat_guest(test, "guest-spin-table")?;
    let mut command = Machine::default().command(qemu, &loader, Some(&prepared.artifacts.bundle));
    command.args(["-device", &loaded, "-dtb"]).arg(tree);
    let script = script(End::Off, |script| {
        let up = 4 - absent.iter().count();
        script.expect_hypervisor(&format!(r"^\[05\] gicv3, cpus {up}/4 \(spin-table\)"))?;
        if let Some(core) = absent {
            let refusal = format!(r"^\[05!\] cpu {core:#x} has not come up\. Not starting b");
            script.expect_hypervisor(&refusal)?;
        } else {
            script.expect("b", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        }
        script.expect("a", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        Ok(())
    })?;
    hold(command, &script).map(drop)
}

/// A board with a GICv2, a spin table, the console where its tree says, and no PSCI: two guests of
/// ours and a Debian, and the power goes off with the last one.
fn raspberry_pi_4() -> Result<()> {
    linux::fetch()?;
    let bare = ["a", "b"].map(|name| {
        let (cpu, tests) = if name == "a" { ("0", "t70,t79") } else { ("1", "t67,t81") };
        Vm::of_guest(name, cpu, "guest-suite", &format!("only={tests}"))
    });
    let debian = linux::debian("debian", "6.12", "2-3");
    let [a, b] = bare;
    let manifest = manifest(&[a, b, debian], "").replace("qemu-virt", "raspi4b");
    let script = script(End::Off, |script| {
        script.expect_hypervisor(r"^\[01\] .* Raspberry Pi 4 Model B")?;
        script.expect_hypervisor(r"^\[05\] gicv2, cpus 4/4 \(spin-table\)")?;
        for name in ["a", "b"] {
            script.expect(name, r"^RESULT passed=[1-9]\d* failed=0 ")?;
        }
        script.expect("debian", "^READY .* 2$")?;
        linux::ask(script, "debian", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    boot("machines-raspi4b", &manifest, &Machine::default(), &script).map(drop)
}

fn entered_at_el1() -> Result<()> {
    let vms = [Vm::of_guest("a", "0", "guest-suite", SOME)];
    let prepared =
        prepare("machines-el1", &manifest(&vms, ""), &Machine::default(), Default::default())?;
    let machine = Machine { entry: Entry::El1, ..Machine::default() };
    let script =
        script(End::Done, |script| script.expect_hypervisor(r"^\[01!\] entered at EL1").map(drop))?;
    hold(on_other_machine(&prepared, &machine)?, &script).map(drop)
}

fn without_a_bundle() -> Result<()> {
    let vms = [Vm::of_guest("a", "0", "guest-suite", SOME)];
    let machine = Machine::default();
    let prepared =
        prepare("machines-no-bundle", &manifest(&vms, ""), &machine, Default::default())?;
    let qemu = prepared.artifacts.board.qemu.as_ref().ok_or("the board has no QEMU")?;
    let command = machine.command(qemu, &prepared.artifacts.image, None);
    let script =
        script(End::Done, |script| script.expect_hypervisor(r"^\[03!\] no bundle: ").map(drop))?;
    hold(command, &script).map(drop)
}

/// The machine's clock is a guest's own: registers mapped, its interrupt linked.
fn clock_passed_through(cpu: &str, gic: Gic) -> Result<()> {
    let guest = Vm::of_guest("owner", "0-1", "guest-suite", "only=t71");
    let mut manifest = manifest(&[guest], "");
    manifest = manifest.replacen("\nmemory", "\ndevices = [\"/pl031@9010000\"]\nmemory", 1);
    let script =
        script(End::Off, |script| script.expect("owner", r"^RESULT passed=4 failed=0 ").map(drop))?;
    let machine = Machine { cpu: Some(cpu.to_owned()), gic: Some(gic), ..Machine::default() };
    boot(&format!("machines-clock-{cpu}-{gic:?}"), &manifest, &machine, &script).map(drop)
}
