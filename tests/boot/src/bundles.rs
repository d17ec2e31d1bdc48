// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bundles that are broken, or planned for another machine: each is refused with one line that
//! names both sides.

use crate::harness::{
    self, Result, Vm, edit_tree, hold, manifest, on_other_machine, prepare, script,
};
use coffer::board::Overrides;
use coffer::build::Options;
use coffer::expect::End;
use coffer::qemu::Machine;
use cofferdam::plan::GicClaim;
use libtest_mimic::Trial;
use std::process::Command;

/// Reserves the upper three quarters of 2 GiB.
const RESERVED: &str = "\
    reserved-memory {
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        radio@60000000 { reg = <0x0 0x60000000 0x0 0x60000000>; no-map; };
    };
";

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
    manifest(&[Vm::of_guest("app", "0-1", "guest-suite", "only=t31")], "")
}

/// Boots a bundle that `alter` has changed; a line of the hypervisor has to match.
fn altered(test: &str, alter: impl FnOnce(&mut Vec<u8>), refusal: &str) -> Result<()> {
    let prepared = prepare(test, &one_guest(), &Machine::default(), Options::default())?;
    let bundle = &prepared.artifacts.bundle;
    let mut bytes = std::fs::read(bundle).map_err(harness::text)?;
    alter(&mut bytes);
    std::fs::write(bundle, bytes).map_err(harness::text)?;
    refused(prepared.command, refusal)
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

/// The planner has no GICv2 yet, so this plan is made by hand.
fn planned_for_the_other_gic() -> Result<()> {
    let prepared = prepare("bundles-gic", &one_guest(), &Machine::default(), Options::default())?;
    let mut contents = prepared.artifacts.contents.clone();
    let GicClaim::V3 { gicd } = contents.plan.machine.gic else {
        return Err("the plan is not for a GICv3".to_owned());
    };
    contents.plan.machine.gic = GicClaim::V2 { gicd };
    let bytes = contents.write().map_err(harness::text)?;
    std::fs::write(&prepared.artifacts.bundle, bytes).map_err(harness::text)?;
    refused(prepared.command, r"^\[\d\d!\] .*(?i)gicv?-?2.*gicv?-?3")
}

/// Boots; a line of the hypervisor has to match, and no guest starts.
fn refused(command: Command, refusal: &str) -> Result<()> {
    let script = script(End::Done, |script| {
        script.never("entering")?;
        script.expect_hypervisor(refusal).map(drop)
    })?;
    hold(command, &script).map(drop)
}

fn planned_for_more_cores() -> Result<()> {
    let planned = Machine { smp: Some(8), ..Machine::default() };
    let manifest = manifest(&[Vm::of_guest("app", "6-7", "guest-suite", "only=t31")], "");
    let prepared = prepare("bundles-cores", &manifest, &planned, Options::default())?;
    refused(on_other_machine(&prepared, &Machine::default())?, r"^\[\d\d!\] .*\bapp\b")
}

/// The VM that does not fit is not started; the other one is.
fn planned_for_more_memory() -> Result<()> {
    let vms = [
        Vm { memory: "4G", ..Vm::of_guest("big", "0-1", "guest-suite", "only=t31") },
        Vm::of_guest("small", "2-3", "guest-suite", "only=t31"),
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
    refused(prepared.command, r"^\[\d\d!\] .*0x9050000.*0x9000000")
}

fn reserved_memory_over_a_guest() -> Result<()> {
    let vms = [
        Vm { memory: "1G", ..Vm::of_guest("big", "0-1", "guest-suite", "only=t31") },
        Vm::of_guest("small", "2-3", "guest-suite", "only=t31"),
    ];
    let machine = Machine::default();
    let test = "bundles-reserved";
    let mut prepared = prepare(test, &manifest(&vms, ""), &machine, Options::default())?;
    let tree = harness::folder(test)?.join("reserved.dtb");
    edit_tree(&prepared, &tree, |source| {
        let root_end = source.rfind("};").unwrap_or(source.len());
        let (root, end) = source.split_at(root_end);
        format!("{root}{RESERVED}{end}")
    })?;
    prepared.command.arg("-dtb").arg(tree);
    let script = script(End::Off, |script| {
        script.expect_hypervisor(r#"^\[06!\] .*"?big"?"#)?;
        script.expect("small", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        Ok(())
    })?;
    hold(prepared.command, &script).map(drop)
}
