// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pages of docs/errors are carried out: what is wrong gives the message that the page shows,
//! and what is right gives none.
//!
//! On a page stand `## Wrong` and `## Right`, in each a manifest (`m.toml`) and a command: both are
//! those of the section before where they are missing.

use crate::bed::{Bed, dtc, image};
use crate::create::Running;
use coffer::board::project_root;
use coffer::explain::{Code, Severity};
use std::collections::BTreeSet;

/// What nothing gives yet, and why the page has no example.
const NOT_YET: [(Code, &str); 1] = [(Code::W07, "DMA is not given away")];
/// The board's tree without a console, and what is none.
const FRAGMENT: &str = "\
/dts-v1/;
/ { memory@80000000 { device_type = \"memory\"; reg = <0x80000000 0x1000000>; }; };
";
/// The manifest of the machine that `coffer vm` speaks with.
const MACHINE: &str = "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n";

/// What a page has to show in one section.
#[derive(Clone, Default)]
struct Section {
    manifest: String,
    command: String,
    said: String,
}

impl Section {
    /// Reads the section; what it does not say is as before.
    fn read(text: &str, before: &Self) -> Self {
        let mut section = Self { said: String::new(), ..before.clone() };
        for block in text.split("\n```").skip(1).step_by(2) {
            let (kind, body) = block.split_once('\n').unwrap();
            match kind {
                "toml" => section.manifest = format!("{body}\n"),
                "console" => {
                    let (command, said) = body.split_once('\n').unwrap_or((body, ""));
                    section.command = command.strip_prefix("$ coffer ").unwrap().into();
                    section.said = said.into();
                }
                other => assert_eq!(other, "toml or console"),
            }
        }
        section
    }

    /// Carries it out on a board, or beside a machine that runs, and returns the exit code and what
    /// was said.
    fn carry_out(&self) -> (i32, String) {
        let mut arguments: Vec<_> = self.command.split(' ').collect();
        let running = (arguments[0] == "vm").then(|| Running::new(MACHINE));
        let own = running.is_none().then(Bed::new);
        let bed = own.as_ref().unwrap_or_else(|| &running.as_ref().unwrap().bed);
        if running.is_some() {
            arguments.extend(["--port", "out/control.sock"]);
        }
        furnish(bed);
        if !self.manifest.is_empty() {
            bed.write("m.toml", self.manifest.as_bytes());
        }
        let said = bed.coffer(&arguments);
        (said.code, said.err)
    }
}

/// Writes what the pages name beside what each bed has.
fn furnish(bed: &Bed) {
    let board = include_str!("board.dts");
    let silent = board.replace("chosen { stdout-path = \"console:115200n8\"; };", "");
    assert_ne!(silent, board);
    for (name, source) in [("silent", &*silent), ("fragment", FRAGMENT)] {
        bed.write(&format!("{name}.dts"), source.as_bytes());
        let path = bed.path(&format!("{name}.dts"));
        let arguments = ["-q", "-@", "-I", "dts", "-O", "dtb", path.to_str().unwrap()];
        bed.write(&format!("{name}.dtb"), &dtc(&arguments));
    }
    bed.write("Image-3.16", &image(0, 1));
    let mut large_pages = image(4 << 20, 3);
    large_pages[24] = 0b1110;
    bed.write("Image-64k", &large_pages);
    bed.write("hypervisor", &crate::plans::hypervisor());
}

fn check(code: Code) {
    let page = code.source();
    let Some((_, sections)) = page.split_once("\n## Wrong\n") else {
        let is_known = NOT_YET.iter().any(|(known, _)| *known == code);
        assert!(is_known, "{}: the page has no example", code.name());
        return;
    };
    let (wrong, right) = sections.split_once("\n## Right\n").unwrap();
    let wrong = Section::read(wrong, &Section::default());
    let right = Section::read(right, &wrong);
    let (exit, said) = wrong.carry_out();
    let (expected, kind) = match code.severity() {
        Severity::Error => (1, "error"),
        Severity::Warning => (0, "warning"),
    };
    assert!(wrong.said.starts_with(&format!("{kind}[{}]: ", code.name())), "{}", wrong.said);
    assert_eq!((exit, said.trim_end()), (expected, wrong.said.as_str()), "{}", code.name());
    let (exit, said) = right.carry_out();
    assert_eq!((exit, said.as_str()), (0, ""), "{}", code.name());
    assert!(right.manifest != wrong.manifest || right.command != wrong.command, "{}", code.name());
}

/// Checks all pages of a kind, side by side: most of the time is waiting for a machine.
fn check_all(severity: Severity) {
    std::thread::scope(|scope| {
        for code in Code::ALL.iter().filter(|code| code.severity() == severity) {
            scope.spawn(|| check(*code));
        }
    });
}

#[test]
fn the_page_of_each_error_is_carried_out() {
    check_all(Severity::Error);
}

#[test]
fn the_page_of_each_warning_is_carried_out() {
    check_all(Severity::Warning);
}

/// Returns the text of all Rust files of the tool but the one with the codes.
fn sources(folder: &std::path::Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, text);
        } else if entry.file_name().unwrap() != "explain.rs" {
            *text += &std::fs::read_to_string(&entry).unwrap();
        }
    }
}

#[test]
fn each_code_has_a_page_and_each_page_a_code() {
    let folder = project_root().join("docs/errors");
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
    let pages = std::fs::read_dir(folder).unwrap().map(|entry| name(entry.unwrap()));
    let codes = Code::ALL.iter().map(|code| format!("{}.md", code.name()));
    assert_eq!(pages.collect::<BTreeSet<_>>(), codes.collect::<BTreeSet<_>>());
    let bed = Bed::new();
    for code in Code::ALL {
        let said = bed.coffer(&["explain", code.name()]);
        let source = code.source().lines().skip(1).collect::<Vec<_>>().join("\n");
        assert_eq!(said.out.trim_end(), source.trim_start_matches("# "), "{}", code.name());
    }
}

#[test]
fn a_code_that_is_given_has_an_example() {
    let mut text = String::new();
    sources(&project_root().join("scripts/coffer/src"), &mut text);
    for (code, _) in NOT_YET {
        let name = format!("Code::{}", code.name());
        assert!(!text.contains(&name), "{name} is given now: show it on its page");
    }
}
