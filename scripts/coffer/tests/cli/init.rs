// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer init`: what it prints is planned as it stands, and has the board's own labels.

use crate::bed::Bed;
use coffer::board::project_root;
use coffer::manifest::Manifest;
use coffer::message::{Source, Style};
use std::sync::Arc;

/// Prints a manifest for a board, and plans it as it stands; returns it and the report.
fn planned(bed: &Bed, arguments: &[&str]) -> (String, String) {
    let said = bed.coffer(&[&["init"], arguments].concat());
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{arguments:?}");
    let planned = bed.plan_bytes(said.out.as_bytes());
    assert_eq!((planned.code, planned.err.as_str()), (0, ""), "{}", said.out);
    every_comment_is_read(&said.out);
    (said.out, planned.out)
}

/// Takes each line that is commented out, all at once, and reads the result.
fn every_comment_is_read(text: &str) {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let taken: Vec<_> = text.lines().map(uncommented).collect();
    assert!(taken.len() > 20 && taken.join("\n") != text.trim_end());
    let source = Arc::new(Source { path: "m.toml".into(), text: taken.join("\n") });
    let read = Manifest::parse(Arc::clone(&source), "".into());
    let said = read.map_err(|report| report.render(Style::Plain)).map(drop);
    assert_eq!(said, Ok(()), "{}", source.text);
}

#[test]
fn a_board_of_its_own_is_planned_with_its_labels() {
    let bed = Bed::new();
    let (text, report) = planned(&bed, &["--board", "board/board.toml"]);
    assert!(report.starts_with("board  board (Test board, 4 cpus, 2G)"), "{report}");
    for line in [
        "# Test board: 4 cores, 2G of memory of which VMs can have 1.9G.",
        "# The hypervisor keeps /soc/serial@0 as the console of all VMs.",
        "#   0-1  cortex-a55: cpu_l0 cpu_l1",
        "#   2-3  cortex-a76: cpu_b0 cpu_b1",
        "cpus      = \"2-3\"",
        "memory    = \"256M\"",
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    // Neither the console, nor what is switched off.
    let uarts = "UARTs of the board: &uart1 &uart2 &uart3 &uart4 &clocked &dmaing &other &uart5\n";
    assert!(text.contains(uarts), "{text}");
}

#[test]
fn qemus_machine_is_planned() {
    let (text, report) = planned(&Bed::new(), &["--board", "qemu-virt"]);
    assert!(text.contains("cpus      = \"0-1\"") && text.contains("cpus      = \"2-3\""), "{text}");
    assert!(report.starts_with("board  qemu-virt (linux,dummy-virt, 4 cpus, 2G)"), "{report}");
}

#[test]
fn the_raspberry_pi_is_planned() {
    // Its tree comes with the guests' kernels.
    let tree = ".cache/guests/linux/6.12/bcm2711-rpi-4-b.dtb";
    if project_root().join(tree).is_file() {
        let (text, report) = planned(&Bed::new(), &["--board", "raspi4b"]);
        assert!(report.starts_with("board  raspi4b ("), "{report}");
        assert!(text.contains("cortex-a72"), "{text}");
    }
}

#[test]
fn a_board_without_a_description_needs_one() {
    let bed = Bed::new();
    let said = bed.coffer(&["init", "--board", "board", "--dtb", "board/board.dtb"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.contains("# To fill in: board/board.toml, which is not there yet"));
    assert!(said.out.contains("\nboard  = \"board/board.toml\"\n"), "{}", said.out);
    // The bed has such a description.
    assert_eq!(bed.plan_bytes(said.out.as_bytes()).code, 0);
    let said = bed.coffer(&["init", "--board", "qemu-vitr"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.starts_with("error[E30]: there is no board `qemu-vitr`"), "{}", said.err);
    let said = bed.coffer(&["init", "--board", "x", "--dtb", "Image"]);
    assert!(said.code == 1 && said.err.starts_with("error[E31]"), "{}", said.err);
    assert_eq!(bed.coffer(&["init"]).code, 2);
}
