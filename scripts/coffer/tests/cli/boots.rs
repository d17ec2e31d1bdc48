// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Booting from outside, on a board whose QEMU is a shell script.

use crate::bed::{Bed, Said};
use crate::plans::hypervisor;
use std::os::unix::fs::PermissionsExt;

/// Plays a hypervisor with one guest, whose shell knows `off` alone.
const QEMU: &str = r"#!/bin/sh
echo $* >arguments
printf '\036[09] up in 1 ms; guest output follows\n'
printf '\036console: a\n'
printf 'a| # '
read -r word
printf '%s\na| bye\n' $word
[ $word = off ] || exec sleep 1000
printf '\036machine off\n'
";

const EXPECT: &str = "\
format = 1
limit = \"60s\"
[vm.a]
steps = [{ expect = '# $' }, { send = \"off\\n\" }, { expect = '^bye$' }]
";

fn bed() -> Bed {
    let bed = Bed::new();
    bed.write("qemu", QEMU.as_bytes());
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bed.path("qemu"), executable).unwrap();
    let program = bed.path("qemu").display().to_string();
    let board = format!(
        "format = 1\n[tree]\nfile = \"board.dtb\"\n[qemu]\nprogram = \"{program}\"\n\
         machine = \"virt,virtualization=on\"\ncpu = \"cortex-a72\"\ncpus = 4\nmemory = \"2G\"\n"
    );
    bed.write("board/board.toml", board.as_bytes());
    bed.write("hypervisor", &hypervisor());
    bed.write(
        "m.toml",
        b"format = 1\nboard = \"board/board.toml\"\n\
          [vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n",
    );
    bed
}

fn test(bed: &Bed, expect: &str) -> Said {
    bed.write("e.toml", expect.as_bytes());
    bed.coffer(&[
        "test",
        "m.toml",
        "--hypervisor",
        "hypervisor",
        "--expect",
        "e.toml",
        "--junit",
        "r.xml",
        "--smp",
        "6",
    ])
}

#[test]
fn what_was_expected_is_done_and_reported() {
    let bed = bed();
    let said = test(&bed, EXPECT);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    assert!(said.out.starts_with("[09] up in 1 ms; guest output follows\n"), "{}", said.out);
    let report = std::fs::read_to_string(bed.path("r.xml")).unwrap();
    assert!(report.contains("tests=\"3\" failures=\"0\""), "{report}");
    let arguments = std::fs::read_to_string(bed.path("arguments")).unwrap();
    assert!(arguments.starts_with("-machine virt,virtualization=on -cpu cortex-a72 -smp 6"));
    assert!(arguments.contains("/cofferdam.img -initrd "), "{arguments}");
}

#[test]
fn what_was_not_said_fails_with_the_log() {
    let bed = bed();
    let said = test(&bed, &EXPECT.replace("^bye$", "^hello$"));
    assert_eq!(said.code, 1);
    assert!(said.err.contains("a waits for /^hello$/; last line: \"bye\""), "{}", said.err);
    assert!(said.err.contains("machine off"), "{}", said.err);
    let report = std::fs::read_to_string(bed.path("r.xml")).unwrap();
    assert!(report.contains("failures=\"2\""), "{report}");
}

#[test]
fn a_hang_has_an_exit_code_of_its_own() {
    let bed = bed();
    let said = test(&bed, &EXPECT.replace("off\\n", "hang\\n").replace("60s", "1s"));
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("hung: not over after 1 s"), "{}", said.err);
}

#[test]
fn a_script_with_a_mistake_is_refused_with_its_place() {
    let bed = bed();
    let said = test(&bed, "format = 1\n[vm.a]\nstep = []\n");
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("e.toml") && said.err.contains("unknown field `step`"),
        "{}",
        said.err
    );
    assert!(said.err.contains("3 |"), "{}", said.err);
}

#[test]
fn an_unattended_machine_is_not_waited_for_for_ever() {
    let bed = bed();
    let run = ["run", "m.toml", "--hypervisor", "hypervisor", "--batch", "--limit", "1s"];
    let said = bed.coffer(&run);
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.out.ends_with("a| # "), "{}", said.out);
}

#[test]
fn a_board_that_qemu_does_not_play_is_named() {
    let bed = bed();
    bed.write("board/board.toml", b"format = 1\n[tree]\nfile = \"board.dtb\"\n");
    let said = bed.coffer(&["run", "m.toml", "--hypervisor", "hypervisor"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("QEMU does not play board: its board.toml has no [qemu]"),
        "{}",
        said.err
    );
}

#[test]
fn the_last_stage_of_a_log_is_explained() {
    let bed = bed();
    bed.write(
        "log.txt",
        b"\x1e[01] cofferdam at EL2\r\n\x1e[03!] bundle: 61M expected, 32M present\r\n",
    );
    let said = bed.coffer(&["doctor", "--serial", "log.txt"]);
    assert_eq!(said.code, 0);
    assert!(said.out.starts_with("refused:    [03!] bundle: 61M expected"), "{}", said.out);
}
