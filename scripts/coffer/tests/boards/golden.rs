// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One manifest for every board: one VM gets everything but a device and two cores, the other gets
//! these. The guests' trees are kept as text beside the boards' descriptions.
//!
//! `COFFER_RENEW=1 cargo test -p coffer --test boards` writes them anew.

use crate::{blob, names, renamed};
use coffer::build::{Options, plan};
use coffer::bundle::Kind;
use coffer::message::{Report, Style};
use coffer::plan::Planned;
use coffer::tree::{NodeId, Tree};
use cofferdam::plan::DevicePlan;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Returns a board's files in the repository.
fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boards").join(name)
}

/// Plans the board's manifest with this tree.
fn planned(name: &str, blob: &[u8]) -> Planned {
    match try_plan(name, blob) {
        Ok(planned) => planned,
        Err(report) => panic!("{name}: {}", report.render(Style::Plain)),
    }
}

fn try_plan(name: &str, blob: &[u8]) -> Result<Planned, Report> {
    let bed = TempDir::new().unwrap();
    let write = |file: &str, bytes: &[u8]| std::fs::write(bed.path().join(file), bytes).unwrap();
    for file in ["board.toml", "manifest.toml"] {
        write(file, &std::fs::read(directory(name).join(file)).unwrap());
    }
    write("board.dtb", blob);
    let mut image = vec![0; 4096];
    let fields = [0u64, 4 << 20, 0b1010].map(u64::to_le_bytes).concat();
    image[8..32].copy_from_slice(&fields);
    image[56..60].copy_from_slice(b"ARM\x64");
    write("Image", &image);
    plan(&bed.path().join("manifest.toml"), &Options::default()).map(|(_, planned)| planned)
}

/// Returns the VMs' trees by the VMs' names.
fn trees(planned: &Planned) -> Vec<(String, Vec<u8>)> {
    let of = |vm: &cofferdam::plan::VmPlan| {
        let own = |name: &str| vm.images.iter().any(|image| image.name == name);
        let mut images = planned.bundle.images.iter();
        let tree = images.find(|image| image.kind == Kind::Tree && own(&image.name)).unwrap();
        (vm.name.to_string(), tree.bytes.to_vec())
    };
    planned.bundle.plan.vms.iter().map(of).collect()
}

/// Writes a tree as source, but for what is random.
fn source(tree: &Tree, id: NodeId, depth: usize, text: &mut String) {
    let indent = "\t".repeat(depth);
    let name = if depth == 0 { "/" } else { tree.name(id) };
    writeln!(text, "{indent}{name} {{").unwrap();
    for (name, value) in tree.properties(id) {
        let value = match name {
            "kaslr-seed" | "rng-seed" => " = \"random\"".into(),
            _ => shown(value),
        };
        writeln!(text, "{indent}\t{name}{value};").unwrap();
    }
    for child in tree.children(id) {
        source(tree, *child, depth + 1, text);
    }
    writeln!(text, "{indent}}};").unwrap();
}

fn shown(value: &[u8]) -> String {
    let texts = value.strip_suffix(&[0]).map(|value| value.split(|byte| *byte == 0));
    let is_text = |text: &[u8]| {
        !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte) && *byte != b'"')
    };
    if value.is_empty() {
        return String::new();
    }
    if let Some(texts) = texts.filter(|texts| texts.clone().all(is_text)) {
        let texts = texts.map(|text| format!("\"{}\"", String::from_utf8_lossy(text)));
        return format!(" = {}", texts.collect::<Vec<_>>().join(", "));
    }
    let cells = value.chunks_exact(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap()));
    if value.len().is_multiple_of(4) {
        let cells: Vec<_> = cells.map(|cell| format!("{cell:#x}")).collect();
        format!(" = <{}>", cells.join(" "))
    } else {
        let bytes: Vec<_> = value.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(" = [{}]", bytes.join(" "))
    }
}

/// Every check that dtc has by default or not.
const CHECKS: [&str; 3] = ["node_name_chars_strict", "property_name_chars_strict", "alias_paths"];

/// Returns what dtc complains of: which check, at a node of which name, and why.
fn complaints(blob: &[u8]) -> BTreeSet<(String, String, String)> {
    let bed = TempDir::new().unwrap();
    let file = bed.path().join("tree.dtb");
    std::fs::write(&file, blob).unwrap();
    let mut dtc = Command::new("dtc");
    dtc.args(["-I", "dtb", "-O", "dtb", "-o", "/dev/null"]);
    dtc.args(CHECKS.map(|check| format!("-W{check}")));
    let output = dtc.arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let line = |line: &str| {
        let (_, behind) = line.split_once("Warning (")?;
        let (check, behind) = behind.split_once("): ")?;
        let (path, why) = behind.split_once(": ").unwrap_or((behind, ""));
        let node = path.rsplit('/').next()?.split('@').next()?.split(':').next()?;
        let why: String = why.chars().filter(|c| c.is_ascii_alphabetic()).take(24).collect();
        Some((check.to_owned(), node.to_owned(), why))
    };
    said.lines().filter_map(line).collect()
}

#[test]
fn one_manifest_is_planned_for_every_board() {
    let renews = std::env::var_os("COFFER_RENEW").is_some();
    let mut differs = Vec::new();
    for name in names() {
        let blob = blob(name);
        let theirs = complaints(&blob);
        let planned = planned(name, &blob);
        for (vm, bytes) in trees(&planned) {
            let ours: Vec<_> = complaints(&bytes).difference(&theirs).cloned().collect();
            assert_eq!(ours, [], "{name}: {vm}");
            let tree = Tree::parse(&bytes).unwrap();
            let mut text = String::from("/dts-v1/;\n");
            source(&tree, tree.root(), 0, &mut text);
            let file = directory(name).join(format!("{vm}.dts"));
            if renews {
                std::fs::write(&file, &text).unwrap();
            }
            let kept = std::fs::read_to_string(&file).unwrap_or_default();
            let lines = kept.lines().zip(text.lines());
            if let Some((old, new)) = lines.clone().find(|(old, new)| old != new) {
                differs.push(format!("{}:\n-{old}\n+{new}", file.display()));
            } else if kept.len() != text.len() {
                differs.push(format!("{} has another length", file.display()));
            }
        }
    }
    assert!(differs.is_empty(), "COFFER_RENEW=1 writes them anew:\n{}", differs.join("\n"));
}

/// What EL2 drives or keeps itself, and the architecture: the rest of the names means nothing.
const KNOWN: [&str; 15] = [
    "arm,armv8-pmuv3",
    "arm,armv8-timer",
    "arm,cortex-",
    "arm,gic-400",
    "arm,gic-v2m-frame",
    "arm,gic-v3",
    "arm,gic-v3-its",
    "arm,mmu-500",
    "arm,pl011",
    "arm,psci",
    "arm,smmu-v",
    "brcm,bcm2835-aux-uart",
    "brcm,bcm2835-pm-wdt",
    "ns16550a",
    "snps,dw-apb-uart",
];

/// Returns a tree as source without what it is compatible with, nor command lines.
fn anonymous(blob: &[u8]) -> String {
    let tree = Tree::parse(blob).unwrap();
    let mut text = String::new();
    source(&tree, tree.root(), 0, &mut text);
    text.lines().filter(|line| !line.trim().starts_with("compatible =")).collect()
}

#[test]
fn a_tree_whose_names_mean_nothing_is_planned_the_same() {
    for name in names() {
        let blob = blob(name);
        let other = renamed(&blob, &KNOWN);
        assert_ne!(blob, other);
        let (one, two) = (planned(name, &blob), planned(name, &other));
        let devices = |planned: &Planned| {
            let devices = planned.bundle.plan.vms.iter().flat_map(|vm| vm.devices.iter().cloned());
            // What tells a device from another is also its name.
            let devices = devices.map(|device| DevicePlan { fingerprint: 0, ..device });
            devices.collect::<Vec<_>>()
        };
        assert_eq!(devices(&one), devices(&two), "{name}");
        for ((_, one), (_, two)) in trees(&one).iter().zip(trees(&two)) {
            assert_eq!(anonymous(one), anonymous(&two), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Words are changed, not bytes: what is broken as a tree is not what this is about.
    #[test]
    fn a_tree_that_lies_is_planned_or_refused_in_time(
        name in prop::sample::select(vec!["virt-gicv3", "imx8mm-evk", "rk3588-rock-5b"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), word()), 1..20),
    ) {
        static BLOBS: LazyLock<Vec<(&str, Vec<u8>)>> =
            LazyLock::new(|| names().map(|name| (name, blob(name))).collect());
        let (_, blob) = BLOBS.iter().find(|(known, _)| *known == name).unwrap();
        let mut bytes = blob.clone();
        for (at, value) in changes {
            // Behind the header.
            let at = 40 + 4 * at.index(bytes.len() / 4 - 10);
            bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        let started = Instant::now();
        match try_plan(name, &bytes) {
            Ok(planned) => prop_assert_eq!(trees(&planned).len(), 2),
            Err(report) => prop_assert!(!report.messages().is_empty()),
        }
        // Without optimization, beside other tests.
        prop_assert!(started.elapsed() < Duration::from_secs(20));
    }
}

/// Returns numbers that trees are made of, and any.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![0..0x200u32, any::<u32>(), Just(u32::MAX), (0..32u32).prop_map(|bit| 1 << bit)]
}
