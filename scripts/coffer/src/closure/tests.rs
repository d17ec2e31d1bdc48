// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A small tree with every form of reference, and trees that lie.

use super::*;
use cofferdam::addr::{Address, Pa};
use proptest::prelude::*;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOURCE: &str = r#"/dts-v1/;
/ {
    #address-cells = <2>; #size-cells = <2>; interrupt-parent = <&gic>;
    compatible = "test,closure";
    gic: intc@1000000 {
        compatible = "test,gic"; reg = <0 0x1000000 0 0x10000>;
        #interrupt-cells = <3>; #address-cells = <0>; interrupt-controller;
    };
    osc: oscillator { compatible = "test,osc"; #clock-cells = <0>; };
    vcc: regulator { compatible = "test,reg"; gpio = <&gpio 3 0>; };
    soc {
        #address-cells = <1>; #size-cells = <1>; ranges = <0 0 0x10000000 0x1000000>;
        cru: clock-controller@0 {
            compatible = "test,cru"; reg = <0 0x1000>;
            #clock-cells = <1>; #reset-cells = <1>; clocks = <&osc>;
        };
        pins: pinctrl@1000 {
            compatible = "test,pins"; reg = <0x1000 0x800>;
            uart_pins: uart-pins { pins = <1 2>; };
        };
        gpio: gpio@1800 {
            compatible = "test,gpio"; reg = <0x1800 0x800>; interrupts = <0 1 4>;
            gpio-controller; #gpio-cells = <2>; interrupt-controller; #interrupt-cells = <2>;
            gpio-ranges = <&pins 0 0 32>;
        };
        uart: serial@2000 {
            compatible = "test,uart"; reg = <0x2000 0x100>; interrupts = <0 2 4>;
            clocks = <&cru 5>, <0>, <&osc>; resets = <&cru 9>; pinctrl-0 = <&uart_pins>;
            dmas = <&dma 1 2>, <&dma 3 4>; vcc-supply = <&vcc>; nr-gpios = <2>;
        };
        dma: dma-controller@3000 {
            compatible = "test,dma"; reg = <0x3000 0x1000>; #dma-cells = <2>;
            interrupts-extended = <&gpio 7 8>, <&gic 0 2 1>;
        };
        wrapper {
            compatible = "test,wrapper"; clocks = <&cru 1>;
            #address-cells = <1>; #size-cells = <1>; ranges = <0 0x4000 0x2000>;
            usb: usb@100 { reg = <0x100 0x100>; iommus = <&smmu 4>; };
        };
        smmu: iommu@8000 { reg = <0x8000 0x1000>; #iommu-cells = <1>; };
        i2c@9000 {
            reg = <0x9000 0x1000>; #address-cells = <1>; #size-cells = <0>;
            chip@10 { reg = <0x10>; interrupt-parent = <&gpio>; interrupts = <1 2>; };
        };
        pcie@a000 {
            reg = <0xa000 0x1000>; #address-cells = <3>; #size-cells = <2>;
            #interrupt-cells = <1>; interrupt-map-mask = <0x1800 0 0 7>;
            interrupt-map = <0 0 0 1 &gic 0 40 4>, <0x800 0 0 1 &gic 0 41 4>;
            port@1,0 { reg = <0x800 0 0 0 0>; interrupts = <1>; };
        };
        outside@2000000 { reg = <0x2000000 0x100>; };
        broken@b000 { reg = <0xb000 0x100>; clocks = <99 1>; resets = <&osc>; dmas = <&dma 1>; };
    };
};
"#;

fn compile(source: &str) -> Vec<u8> {
    let mut dtc = Command::new("dtc");
    dtc.args(["-q", "-I", "dts", "-O", "dtb"]);
    let mut child = dtc.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn tree() -> Tree {
    Tree::parse(&compile(SOURCE)).unwrap()
}

fn find(tree: &Tree, path: &str) -> NodeId {
    tree.find(path).unwrap_or_else(|| panic!("{path}"))
}

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

/// Lists what a node refers to: kind, name of the provider, cells.
fn referred(tree: &Tree, closure: &Closure<'_>, path: &str) -> Vec<(Kind, String, Vec<u32>)> {
    let facts = closure.facts(find(tree, path));
    let shown = |found: &Reference| {
        (found.kind, tree.name(found.provider).to_owned(), found.specifier.clone())
    };
    facts.references.iter().map(shown).collect()
}

#[test]
fn references_are_split_as_their_providers_say() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let uart = [
        (Kind::Clock, "clock-controller@0", vec![5]),
        (Kind::Clock, "oscillator", vec![]),
        (Kind::Reset, "clock-controller@0", vec![9]),
        (Kind::Pins, "uart-pins", vec![]),
        (Kind::Dma, "dma-controller@3000", vec![1, 2]),
        (Kind::Dma, "dma-controller@3000", vec![3, 4]),
        (Kind::Supply, "regulator", vec![]),
    ]
    .map(|(kind, name, cells)| (kind, name.to_owned(), cells));
    assert_eq!(referred(&tree, &closure, "/soc/serial@2000"), uart);
    let gpio = (Kind::Pins, "pinctrl@1000".to_owned(), vec![0, 0, 32]);
    assert_eq!(referred(&tree, &closure, "/soc/gpio@1800"), [gpio]);
    // A place that is left empty counts.
    let uart = closure.facts(find(&tree, "/soc/serial@2000"));
    assert_eq!(uart.references[1].index, 2);
}

#[test]
fn interrupts_are_followed_to_their_end() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let (gic, gpio) = (find(&tree, "/intc@1000000"), find(&tree, "/soc/gpio@1800"));
    let ends = |path| {
        let facts = closure.facts(find(&tree, path));
        let end = |line: &Line| (line.end, line.cells.clone());
        facts.lines.iter().map(end).collect::<Vec<_>>()
    };
    assert_eq!(ends("/soc/serial@2000"), [(gic, vec![0, 2, 4])]);
    assert_eq!(ends("/soc/dma-controller@3000"), [(gpio, vec![7, 8]), (gic, vec![0, 2, 1])]);
    assert_eq!(ends("/soc/i2c@9000/chip@10"), [(gpio, vec![1, 2])]);
    // The port's own address chooses the entry of the nexus.
    assert_eq!(ends("/soc/pcie@a000/port@1,0"), [(gic, vec![0, 41, 4])]);
    let pcie = closure.facts(find(&tree, "/soc/pcie@a000"));
    let mapped: Vec<_> = pcie.mapped_lines.iter().map(|line| line.cells[1]).collect();
    assert_eq!(mapped, [40, 41]);
}

#[test]
fn who_shares_a_page_or_an_interrupt_is_known() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let names = |nodes: Vec<NodeId>| {
        nodes.into_iter().map(|id| tree.name(id).to_owned()).collect::<Vec<_>>()
    };
    let page = closure.on_pages(range(0x1000_1000, 0x1000)).collect();
    assert_eq!(names(page), ["pinctrl@1000", "gpio@1800"]);
    let gic = find(&tree, "/intc@1000000");
    let sharers = closure.on_interrupt(gic, &[0, 2, 4]).collect();
    assert_eq!(names(sharers), ["serial@2000", "dma-controller@3000"]);
    let users: Vec<_> = closure.users(find(&tree, "/soc/clock-controller@0")).collect();
    let users: Vec<_> =
        users.iter().map(|(id, used)| (tree.name(*id), used.property.as_str())).collect();
    assert_eq!(
        users,
        [("serial@2000", "clocks"), ("serial@2000", "resets"), ("wrapper", "clocks")]
    );
}

#[test]
fn the_closure_goes_to_the_end() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let needs = closure.needs(&[find(&tree, "/soc/serial@2000")]);
    let names: Vec<_> = needs.nodes.iter().map(|id| tree.name(*id)).collect();
    let all = [
        "intc@1000000",
        "oscillator",
        "regulator",
        "clock-controller@0",
        "pinctrl@1000",
        "uart-pins",
        "gpio@1800",
        "serial@2000",
        "dma-controller@3000",
    ];
    assert_eq!(names, all);
    assert!(needs.registers.contains(&range(0x1000_1800, 0x800)));
    assert_eq!(needs.registers.len(), 6);
}

#[test]
fn a_unit_is_the_topmost_node_that_is_no_bus() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let unit = |path| closure.facts(find(&tree, path)).unit.map(|id| tree.path(id));
    assert_eq!(unit("/soc"), None);
    assert_eq!(unit("/oscillator"), None);
    assert_eq!(unit("/soc/i2c@9000/chip@10").as_deref(), Some("/soc/i2c@9000"));
    assert_eq!(unit("/soc/wrapper/usb@100").as_deref(), Some("/soc/wrapper"));
    let usb = closure.facts(find(&tree, "/soc/wrapper/usb@100"));
    assert_eq!(usb.registers, [range(0x1000_4100, 0x100)]);
}

#[test]
fn dma_is_told_by_signs_and_generic_names() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let node = |path| find(&tree, path);
    let dma = |path| closure.dma(node(path), &[], &[]);
    assert_eq!(dma("/soc/serial@2000"), Dma::Dropped);
    assert_eq!(dma("/soc/gpio@1800"), Dma::None);
    assert_eq!(dma("/soc/dma-controller@3000"), Dma::Possible);
    assert_eq!(dma("/soc/pcie@a000"), Dma::Possible);
    assert_eq!(dma("/soc/wrapper"), Dma::Iommu);
    let (gpio, pcie) = ("/soc/gpio@1800", "/soc/pcie@a000");
    assert_eq!(closure.dma(node(gpio), &[], &[node(gpio)]), Dma::Possible);
    assert_eq!(closure.dma(node(pcie), &[node(pcie)], &[]), Dma::None);
}

#[test]
fn what_is_wrong_is_said_with_its_path() {
    let tree = tree();
    let closure = Closure::read(&tree);
    let said = |path| {
        let faults = &closure.facts(find(&tree, path)).faults;
        faults.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let expected = [
        "/soc/broken@b000: clocks: it names a node that the tree does not have",
        "/soc/broken@b000: resets: it names a node that is no provider of this kind",
        "/soc/broken@b000: dmas: it is not made as its binding says",
    ];
    assert_eq!(said("/soc/broken@b000"), expected);
    let outside = "/soc/outside@2000000: reg: a bus above does not translate it";
    assert_eq!(said("/soc/outside@2000000"), [outside]);
}

#[test]
fn an_intertwined_tree_is_given_up_in_time() {
    let nodes: String = (0..4000)
        .map(|n| format!("d{n}@{n:x} {{ reg = <{n} 0 0>; interrupts = <1>; }};"))
        .collect();
    let source = format!(
        "/dts-v1/; / {{ g: g {{ #interrupt-cells = <1>; interrupt-controller; }};
         n {{ #address-cells = <3>; #size-cells = <0>; #interrupt-cells = <1>;
         interrupt-map = {}; {nodes} }}; }};",
        vec!["<0xfffff 0 0 1 &g 1>"; 4000].join(", ")
    );
    let tree = Tree::parse(&compile(&source)).unwrap();
    let started = Instant::now();
    let closure = Closure::read(&tree);
    let last = tree.all().last().unwrap();
    let fault = closure.facts(last).faults.first().map(|fault| fault.problem);
    assert!(matches!(fault, Some(Problem::NoController | Problem::TooMuch)));
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// Replaces every `compatible` by as many other bytes.
fn renamed(blob: &[u8]) -> Vec<u8> {
    let mut bytes = blob.to_vec();
    let found: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"test,")).collect();
    found.into_iter().for_each(|at| bytes[at..at + 5].copy_from_slice(b"zzzz-"));
    bytes
}

#[test]
fn no_compatible_is_read() {
    let (tree, other) = (tree(), Tree::parse(&renamed(&compile(SOURCE))).unwrap());
    assert!(other.is_compatible(find(&other, "/soc/serial@2000"), "zzzz-uart"));
    let (one, two) = (Closure::read(&tree), Closure::read(&other));
    for id in tree.all() {
        assert_eq!(one.facts(id), two.facts(id));
        assert_eq!(one.dma(id, &[], &[]), two.dma(id, &[], &[]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_tree_makes_a_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        static BLOB: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| compile(SOURCE));
        let mut bytes = BLOB.clone();
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Ok(tree) = Tree::parse(&bytes) {
            let closure = Closure::read(&tree);
            for id in closure.units() {
                prop_assert!(closure.needs(&[id]).nodes.contains(&id));
                let _ = closure.dma(id, &[], &[]);
            }
        }
    }
}
