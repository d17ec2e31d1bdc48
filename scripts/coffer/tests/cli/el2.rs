// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tool writes, EL2 reads and accepts: its own code is asked.

use crate::bed::Bed;
use coffer::board::Overrides;
use coffer::build::{Options, build};
use cofferdam::plan::Plan;
use cofferdam::plan::check::{self, Limits};
use cofferdam::plan::machine::Machine;
use cofferdam::spec::bundle::{Bundle, crc32c};
use cofferdam::spec::dtb::Dtb;

/// The least that a core supports, so that more is fine as well.
const LIMITS: Limits = Limits { ipa_bits: 40, pa_bits: 40 };

/// Builds a manifest and lets EL2's checker look at the bundle and at the board's tree.
fn accepted(manifest: &str, overrides: Overrides) {
    let bed = Bed::new();
    bed.write("m.toml", manifest.as_bytes());
    bed.write("hypervisor", &crate::plans::hypervisor());
    let options = Options {
        overrides,
        out: Some(bed.path("out")),
        hypervisor: Some(bed.path("hypervisor")),
        ..Options::default()
    };
    let built = build(&bed.path("m.toml"), &options).unwrap();
    let bytes = std::fs::read(built.bundle).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    bundle.images().iter().for_each(|image| image.verify(crc32c).unwrap());
    let plan = Plan::decode(bundle.plan().bytes).unwrap();
    assert_eq!(plan, built.contents.plan);
    let size = coffer::tree::size(&built.board.tree_bytes).unwrap();
    let tree = Dtb::new(&built.board.tree_bytes[..size]).unwrap();
    let machine = Machine::read(&tree).unwrap();
    let bytes_of = |name: &str| u64::try_from(bundle.image(name)?.bytes.len()).ok();
    let report = check::check(&plan, &machine, LIMITS, &bytes_of).unwrap();
    assert_eq!((report.refusals, report.shortfall), (vec![], None));
}

#[test]
fn el2_accepts_a_plan_for_the_test_board() {
    accepted(
        "format = 1\nboard = \"board/board.toml\"\n\
         [vm.little]\ncpus = \"0-1\"\nmemory = \"64M\"\nkernel = \"Image\"\nramdisk = \"initrd\"\n\
         [vm.big]\ncpus = [\"cpu_b1\", \"cpu_b0\"]\nmemory = \"128M\"\nkernel = \"Image\"\n\
         devices = [\"&rtc\"]\n",
        Overrides::default(),
    );
}

#[test]
fn el2_accepts_plans_for_qemus_machine() {
    let one = |name: &str, cpus: &str| {
        format!("[vm.{name}]\ncpus = \"{cpus}\"\nmemory = \"64M\"\nkernel = \"Image\"\n")
    };
    let head = "format = 1\nboard = \"qemu-virt\"\n";
    let two = one("a", "0-1") + &one("b", "2-3");
    accepted(&format!("{head}{two}devices = [\"/pl031@9010000\"]\n"), Overrides::default());
    let eight: String = (0..8).map(|n| one(&format!("v{n}"), &n.to_string())).collect();
    let large = Overrides { cpus: Some(8), memory_bytes: Some(8 << 30), ..Overrides::default() };
    accepted(&format!("{head}{eight}"), large);
}

#[test]
fn what_el2_misses_in_a_tree_is_said_in_advance() {
    let bed = Bed::new();
    let tree = bed.path("board/board.dtb");
    // The name of the binding, once in the timer's node; its length stays.
    let bytes = std::fs::read(&tree).unwrap();
    let at = bytes.windows(15).position(|text| text == b"arm,armv8-timer").unwrap();
    let without = [&bytes[..at], b"arm,armv8-tamer", &bytes[at + 15..]].concat();
    std::fs::write(tree, without).unwrap();
    let said = bed.refused("[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n");
    crate::bed::expect_text(&said, "E32", "device tree: timer is missing");
}
