// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The trees of real boards, from Debian's kernel package, and of QEMU's virt.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod golden;

use coffer::board::{project_root, target_directory};
use coffer::closure::{Closure, Dma, Kind};
use coffer::tree::Tree;
use cofferdam::addr::{Address, Pa, PaRange};
use std::process::Command;
use std::sync::OnceLock;

/// The trees of the package.
const BOARDS: [&str; 7] = [
    "bcm2711-rpi-4-b",
    "bcm2712-rpi-5-b",
    "imx8mm-evk",
    "rk3399-rockpro64",
    "rk3588-orangepi-5-plus",
    "rk3588-rock-5b",
    "zynqmp-zcu102-rev1.0",
];
/// QEMU's virt: what is said to `-machine`.
const VIRTS: [(&str, &str); 4] = [
    ("virt-gicv2", "gic-version=2"),
    ("virt-gicv2-smmu", "gic-version=2,iommu=smmuv3"),
    ("virt-gicv3", "gic-version=3"),
    ("virt-gicv3-smmu", "gic-version=3,iommu=smmuv3"),
];

/// Returns a board's tree, flattened.
fn blob(name: &str) -> Vec<u8> {
    static FETCHED: OnceLock<()> = OnceLock::new();
    FETCHED.get_or_init(|| coffer::demo::fetch_guests().unwrap());
    if let Some((_, options)) = VIRTS.iter().find(|(known, _)| *known == name) {
        return virt(name, options);
    }
    let file = format!(".cache/guests/linux/6.12/{name}.dtb");
    std::fs::read(project_root().join(file)).unwrap()
}

/// Asks QEMU for the tree of a machine.
fn virt(name: &str, options: &str) -> Vec<u8> {
    let directory = target_directory().join("coffer/test-trees");
    std::fs::create_dir_all(&directory).unwrap();
    let mut builder = tempfile::Builder::new();
    let file = builder.prefix(name).suffix(".dtb").tempfile_in(&directory).unwrap();
    let dump = format!("dumpdtb={}", file.path().display());
    let machine = format!("virt,virtualization=on,dtb-randomness=off,{options},{dump}");
    let arguments = ["-machine", &machine, "-cpu", "cortex-a72", "-smp", "4", "-m", "2G"];
    let mut qemu = Command::new("qemu-system-aarch64");
    let output = qemu.args(arguments).args(["-display", "none"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(file.path()).unwrap()
}

fn names() -> impl Iterator<Item = &'static str> {
    BOARDS.into_iter().chain(VIRTS.map(|(name, _)| name))
}

/// Gives every `compatible` of a flattened tree another first byte, but those that start like one
/// of these.
fn renamed(blob: &[u8], known: &[&str]) -> Vec<u8> {
    let tree = Tree::parse(blob).unwrap();
    let mut bytes = blob.to_vec();
    for id in tree.all() {
        let Some(value) = tree.property(id, "compatible") else { continue };
        let is_known = |text: &str| known.iter().any(|known| text.starts_with(known));
        if tree.texts(id, "compatible").any(is_known) {
            continue;
        }
        // Behind the token of a property and the length of the value.
        let length = u32::try_from(value.len()).unwrap();
        let head = [3, length].map(u32::to_be_bytes).concat();
        let places = (12..bytes.len())
            .step_by(4)
            .filter(|at| bytes[at - 12..].starts_with(&head) && bytes[*at..].starts_with(value));
        for at in places.collect::<Vec<_>>() {
            bytes[at] = b'~';
        }
    }
    bytes
}

#[test]
fn everything_that_is_switched_on_is_understood() {
    for name in names() {
        let tree = Tree::parse(&blob(name)).unwrap();
        let closure = Closure::read(&tree);
        for id in tree.all().filter(|id| closure.facts(*id).is_enabled) {
            assert_eq!(closure.facts(id).faults, [], "{name}");
        }
        assert!(closure.units().count() >= 8, "{name}");
    }
}

/// What the source of the tree says of one UART.
#[test]
fn a_uart_of_the_rk3588_has_what_its_source_gives_it() {
    let tree = Tree::parse(&blob("rk3588-rock-5b")).unwrap();
    let closure = Closure::read(&tree);
    let uart = tree.find("/serial@feb90000").unwrap();
    let facts = closure.facts(uart);
    assert_eq!(facts.registers, [PaRange::new(Pa::new(0xfeb9_0000), 0x100).unwrap()]);
    let [line] = &*facts.lines else { panic!("{:?}", facts.lines) };
    assert_eq!(line.cells, [0, 337, 4, 0]);
    let kinds: Vec<_> = facts.references.iter().map(|found| found.kind).collect();
    let expected = [Kind::Clock, Kind::Clock, Kind::Dma, Kind::Dma];
    assert_eq!(kinds, [&expected[..], &[Kind::Pins; 3]].concat());
    assert_eq!(closure.dma(uart, &[], &[]), Dma::Dropped);
    let needed: Vec<_> =
        closure.needs(&[uart]).nodes.iter().map(|id| tree.generic_name(*id)).collect();
    for name in ["clock-controller", "dma-controller", "pinctrl", "interrupt-controller"] {
        assert!(needed.contains(&name), "{needed:?}");
    }
}

#[test]
fn no_compatible_decides() {
    for name in names() {
        let blob = blob(name);
        let (tree, other) =
            (Tree::parse(&blob).unwrap(), Tree::parse(&renamed(&blob, &[])).unwrap());
        let model = tree.text(tree.root(), "compatible");
        assert!(model.is_some() && model != other.text(other.root(), "compatible"));
        let (one, two) = (Closure::read(&tree), Closure::read(&other));
        for id in tree.all() {
            assert_eq!(one.facts(id), two.facts(id), "{name}");
            assert_eq!(one.dma(id, &[], &[]), two.dma(id, &[], &[]), "{name}");
        }
    }
}
