// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bundles that are broken, or planned for another machine: each is refused with one line that
//! names both sides.

use crate::harness::{
    self, Result, Vm, edit_tree, hold, manifest, on_other_machine, prepare, script,
};
use coffer::board::Overrides;
use coffer::build::Options;
use coffer::expect::End;
use coffer::qemu::{Gic, Machine};
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("bundles::truncated", truncated),
        harness::test("bundles::one_bit_flipped", one_bit_flipped),
        harness::test("bundles::planned_for_the_other_gic", planned_for_the_other_gic),
        harness::test("bundles::planned_for_more_memory", planned_for_more_memory),
        harness::test("bundles::planned_for_a_moved_uart", planned_for_a_moved_uart),
        harness::test("bundles::reserved_memory_over_a_guest", reserved_memory_over_a_guest),
        harness::test("bundles::planned_for_more_cores", planned_for_more_cores),
    ]
}

fn one_guest() -> String {
    manifest(&[Vm::of_guest("app", "0-1", "guest-suite", "")], "")
}

/// Boots a bundle that `alter` has changed; a line of the hypervisor has to match.
fn altered(test: &str, alter: impl FnOnce(&mut Vec<u8>), refusal: &str) -> Result<()> {
    let prepared = prepare(test, &one_guest(), &Machine::default(), Options::default())?;
    let bundle = &prepared.artifacts.bundle;
    let mut bytes = std::fs::read(bundle).map_err(harness::text)?;
    alter(&mut bytes);
    std::fs::write(bundle, bytes).map_err(harness::text)?;
    let script = script(End::Done, |script| {
        script.never("entering")?;
        script.expect_hypervisor(refusal).map(drop)
    })?;
    hold(prepared.command, &script).map(drop)
}

fn truncated() -> Result<()> {
    let halve = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    altered("bundles-truncated", halve, r"^\[03!\] bundle: .+ expected, .+ present")
}

fn one_bit_flipped() -> Result<()> {
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    };
    altered("bundles-flipped", flip, r"^\[03!\] .*(?i)(crc32c|checksum)")
}

/// Plans for one machine, boots on another; a line of the hypervisor has to match.
fn on_another(
    test: &str,
    manifest: &str,
    planned: &Machine,
    booted: &Machine,
    refusal: &str,
) -> Result<()> {
    let prepared = prepare(test, manifest, planned, Options::default())?;
    let script = script(End::Done, |script| script.expect_hypervisor(refusal).map(drop))?;
    hold(on_other_machine(&prepared, booted)?, &script).map(drop)
}

fn planned_for_the_other_gic() -> Result<()> {
    let planned = Machine { gic: Some(Gic::V2), ..Machine::default() };
    let refusal = r"^\[06!\] .*(?i)gicv?-?2.*gicv?-?3";
    on_another("bundles-gic", &one_guest(), &planned, &Machine::default(), refusal)
}

fn planned_for_more_cores() -> Result<()> {
    let planned = Machine { smp: Some(8), ..Machine::default() };
    let manifest = manifest(&[Vm::of_guest("app", "6-7", "guest-suite", "")], "");
    let refusal = r#"^\[06!\] .*"?app"?.*"#;
    on_another("bundles-cores", &manifest, &planned, &Machine::default(), refusal)
}

/// The VM that does not fit is not started; the other one is.
fn planned_for_more_memory() -> Result<()> {
    let vms = [
        Vm { memory: "4G", ..Vm::of_guest("big", "0-1", "guest-suite", "") },
        Vm::of_guest("small", "2-3", "guest-suite", ""),
    ];
    let planned = Machine { memory_bytes: Some(8 << 30), ..Machine::default() };
    let prepared = prepare("bundles-memory", &manifest(&vms, ""), &planned, Options::default())?;
    let script = script(End::Off, |script| {
        script.expect_hypervisor(r#"^\[06!\] .*8G.*2G.*"?big"?"#)?;
        script.expect("small", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        Ok(())
    })?;
    hold(on_other_machine(&prepared, &Machine::default())?, &script).map(drop)
}

fn planned_for_a_moved_uart() -> Result<()> {
    let machine = Machine::default();
    let test = "bundles-uart";
    let as_it_is = prepare(test, &one_guest(), &machine, Options::default())?;
    let tree = harness::folder(test)?.join("moved.dtb");
    edit_tree(&as_it_is, &tree, |source| {
        source.replace("reg = <0x00 0x9000000 0x00 0x1000>", "reg = <0x00 0x9050000 0x00 0x1000>")
    })?;
    let overrides = Overrides { tree: Some(tree), ..Overrides::default() };
    let options = Options { overrides, ..Options::default() };
    let prepared = prepare(test, &one_guest(), &machine, options)?;
    let script = script(End::Done, |script| {
        script.expect_hypervisor(r"^\[06!\] .*0x9050000.*0x9000000").map(drop)
    })?;
    hold(prepared.command, &script).map(drop)
}

/// The machine's own tree reserves the upper three quarters of its 2 GiB.
fn reserved_memory_over_a_guest() -> Result<()> {
    let vms = [
        Vm { memory: "1G", ..Vm::of_guest("big", "0-1", "guest-suite", "") },
        Vm::of_guest("small", "2-3", "guest-suite", ""),
    ];
    let machine = Machine::default();
    let test = "bundles-reserved";
    let mut prepared = prepare(test, &manifest(&vms, ""), &machine, Options::default())?;
    let tree = harness::folder(test)?.join("reserved.dtb");
    edit_tree(&prepared, &tree, |source| {
        source.replacen(
            "/ {",
            "/ {\n\treserved-memory {\n\t\t#address-cells = <2>;\n\t\t#size-cells = <2>;\n\t\tranges;\n\
             \t\tradio@60000000 { reg = <0x0 0x60000000 0x0 0x60000000>; no-map; };\n\t};\n",
            1,
        )
    })?;
    prepared.command.arg("-dtb").arg(tree);
    let script = script(End::Off, |script| {
        script.expect_hypervisor(r#"^\[06!\] .*"?big"?"#)?;
        script.expect("small", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        Ok(())
    })?;
    hold(prepared.command, &script).map(drop)
}
