// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Holds the order of the rooms (docs/architecture.md): who may name whom, where `unsafe`, globals
//! and target `cfg`s are, and what every file looks like.
//!
//! Reads the tokens of `src/`, so comments, strings and line breaks do not matter. Every rule is
//! also given source that breaks it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A floor of the building.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Layer {
    Vocabulary,
    Machine,
    Models,
    Composition,
}

use Layer::{Composition, Machine, Models, Vocabulary};

const ROOMS: [(&str, Layer); 23] = [
    ("addr", Vocabulary),
    ("bits", Vocabulary),
    ("heap", Vocabulary),
    ("sort", Vocabulary),
    ("id", Vocabulary),
    ("spec", Vocabulary),
    ("arch", Machine),
    ("drivers", Machine),
    ("mmio", Machine),
    ("sync", Machine),
    ("console", Models),
    ("control", Models),
    ("devices", Models),
    ("gic", Models),
    ("memory", Models),
    ("plan", Models),
    ("psci", Models),
    ("smccc", Models),
    ("trace", Models),
    ("boot", Composition),
    ("hypervisor", Composition),
    ("vcpu", Composition),
    ("vm", Composition),
];

/// What a room may name although it lies on another floor, and why: the machine does what models
/// ask of a trait, in the words of that trait.
const EXCEPTIONS: [(&str, &str, &str); 12] = [
    ("arch", "gic::ListRegisters", "the trait through which delivery writes list registers"),
    ("arch", "memory::mapper", "the traits for table memory and its maintenance"),
    ("arch", "memory::stage2", "the trait for the TLB, implemented as `stage2::Tlb`"),
    ("arch", "memory::hyp_map", "EL2's own map is one of the mapper's, held by the machine"),
    ("arch", "smccc::Firmware", "what the firmware answers, in the words of the call router"),
    ("arch", "smccc::Workaround", "which mitigation to carry out, likewise"),
    ("arch", "smccc::Workarounds", "all of these together, likewise"),
    ("console", "sync::Lock", "each guest's bytes have one, so that no guest waits for another"),
    ("drivers", "console::SerialPort", "the trait through which the console sends and receives"),
    ("drivers", "console::Sent", "the answer of that trait"),
    ("drivers", "console::Switch", "an argument of that trait"),
    ("gic", "trace", "the counters of what goes into list registers"),
];

/// Crates that touch the machine or lock.
const MACHINE_CRATES: [&str; 4] =
    ["aarch64_cpu", "tock_registers", "spin", "buddy_system_allocator"];

/// Files outside `arch` that ask for the target, and what for.
const TARGET_CFG: [(&str, &str); 3] = [
    ("lib.rs", "the standard library on the host"),
    ("main.rs", "the image's entry and panic handler"),
    ("mmio.rs", "single loads and stores, or the fake machine's"),
];

/// Globals outside the machine layer and the final program.
const GLOBALS: [(&str, &str, &str); 4] = [
    ("boot/cores.rs", "MEETING", "where cores meet at boot"),
    ("hypervisor.rs", "HYPERVISOR", "what all cores share"),
    ("hypervisor.rs", "EARLY_PORT", "the port of the boot's lines"),
    ("spec/bundle.rs", "TABLE", "a constant that is computed at build time"),
];

/// The functions of `hypervisor` that write globals.
const GLOBAL_WRITERS: [&str; 4] =
    ["install", "install_logger", "set_early_port", "take_early_port"];

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

/// A rule that a file breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Breach {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A path from the root of the crate that a file names.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mention {
    path: Vec<String>,
    line: usize,
}

impl Mention {
    fn room(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }
    fn is_under(&self, path: &str) -> bool {
        let mut own = self.path.iter();
        path.split("::").all(|segment| own.next().is_some_and(|s| s == segment))
    }
}

/// A file of `src/`.
struct Source {
    /// Its path in `src/`.
    name: String,
    text: String,
    tokens: Vec<Token>,
}

/// A token, with groups flattened to their delimiters.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Token {
    text: String,
    line: usize,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        let stream: TokenStream = text.parse().unwrap_or_else(|e| panic!("src/{name}: {e}"));
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        Self { name: name.to_owned(), text: text.to_owned(), tokens }
    }

    /// The modules that lead to this file: `gic/vdist.rs` is `["gic", "vdist"]`.
    fn module(&self) -> Vec<&str> {
        self.name.trim_end_matches(".rs").split('/').filter(|s| !is_root(s)).collect()
    }
    fn room(&self) -> &str {
        self.module().first().copied().unwrap_or("")
    }
    fn layer(&self) -> Option<Layer> {
        layer(self.room())
    }
    fn is_test(&self) -> bool {
        self.name.ends_with("tests.rs") || self.name.contains("/tests/")
    }
    fn breach(&self, line: usize, what: impl Into<String>) -> Breach {
        Breach { file: self.name.clone(), line, what: what.into() }
    }
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |t| &t.text)
    }
    fn line(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(0, |t| t.line)
    }
    /// Says whether these tokens stand at `at`.
    fn has(&self, at: usize, texts: &[&str]) -> bool {
        texts.iter().enumerate().all(|(n, text)| self.text(at + n) == *text)
    }
    /// A breach wherever these tokens stand.
    fn find(&self, texts: &[&str], what: impl Into<String>) -> Vec<Breach> {
        let what = what.into();
        let found = (0..self.tokens.len()).filter(|at| self.has(*at, texts));
        found.map(|at| self.breach(self.line(at), what.clone())).collect()
    }

    /// All paths of the crate that the file names, by `crate::`, `cofferdam::` or enough `super::`.
    fn mentions(&self) -> Vec<Mention> {
        let mut found = Vec::new();
        let (mut at, mut depth) = (0, self.module().len());
        // For each open brace, whether it is a module's.
        let mut braces = Vec::new();
        while at < self.tokens.len() {
            match self.text(at) {
                "{" => {
                    let is_module = at >= 2 && self.text(at - 2) == "mod";
                    depth += usize::from(is_module);
                    braces.push(is_module);
                }
                "}" => depth -= usize::from(braces.pop().unwrap_or(false)),
                "crate" | "cofferdam" if self.has(at + 1, &["::"]) => {
                    self.tree(at + 2, &mut Vec::new(), &mut found);
                }
                "super" if at == 0 || self.text(at - 1) != "::" => {
                    let ups = (0..).take_while(|n| self.has(at + 2 * n, &["super", "::"])).count();
                    if ups >= depth {
                        self.tree(at + 2 * ups, &mut Vec::new(), &mut found);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        found
    }

    /// Reads what follows a `::`: a path, or a group of them. Returns where it ends.
    fn tree(&self, mut at: usize, path: &mut Vec<String>, found: &mut Vec<Mention>) -> usize {
        let (line, length) = (self.line(at), path.len());
        if self.text(at) == "{" {
            at += 1;
            while !matches!(self.text(at), "}" | "") {
                at = if self.text(at) == "," { at + 1 } else { self.tree(at, path, found) };
            }
            return at + 1;
        }
        path.push(self.text(at).to_owned());
        at += 1;
        if self.text(at) == "::" && self.text(at + 1) != "<" {
            at = self.tree(at + 1, path, found);
        } else {
            found.push(Mention { path: path.clone(), line });
            if self.text(at) == "as" {
                at += 2;
            }
        }
        path.truncate(length);
        at
    }
}

fn is_root(module: &str) -> bool {
    matches!(module, "lib" | "main")
}

fn layer(room: &str) -> Option<Layer> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, layer)| *layer)
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ("(", ")"),
                    proc_macro2::Delimiter::Brace => ("{", "}"),
                    proc_macro2::Delimiter::Bracket => ("[", "]"),
                    proc_macro2::Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), tokens);
                let line = group.span_close().start().line;
                tokens.push(Token { text: close.to_owned(), line });
            }
            TokenTree::Punct(p) => match tokens.last_mut() {
                // `::` is one token, and so are a lifetime and its quote.
                Some(last) if p.as_char() == ':' && last.text == ":" => last.text.push(':'),
                _ => tokens.push(Token { text: p.to_string(), line }),
            },
            TokenTree::Ident(i) => match tokens.last_mut() {
                Some(last) if last.text == "'" => last.text.push_str(&i.to_string()),
                _ => tokens.push(Token { text: i.to_string(), line }),
            },
            TokenTree::Literal(_) => tokens.push(Token { text: "literal".to_owned(), line }),
        }
    }
}

/// Every file is in a room.
fn unknown_rooms(file: &Source) -> Vec<Breach> {
    let known = file.module().is_empty() || file.layer().is_some();
    if known { vec![] } else { vec![file.breach(1, "is in no room: see ROOMS")] }
}

/// Which exception allows a room to name something.
fn exception(room: &str, to: &Mention) -> Option<&'static str> {
    let found = EXCEPTIONS.iter().find(|(from, path, _)| *from == room && to.is_under(path));
    found.map(|(_, path, _)| *path)
}

/// Who may name whom.
fn layering(file: &Source) -> Vec<Breach> {
    let Some(here) = file.layer() else { return vec![] };
    let may = |to: &Mention| match (here, layer(to.room())) {
        _ if to.room() == file.room() => true,
        (Vocabulary | Models, Some(there)) => there == Vocabulary,
        (Machine, Some(there)) => there <= Machine,
        (Composition, Some(_)) => true,
        (_, None) => false,
    };
    let bad = |to: &Mention| !may(to) && exception(file.room(), to).is_none();
    let to_breach = |to: Mention| {
        file.breach(to.line, format!("{here:?} must not name crate::{}", to.path.join("::")))
    };
    file.mentions().into_iter().filter(bad).map(to_breach).collect()
}

/// The crates for the machine and for locks stay in the machine layer.
fn machine_crates(file: &Source) -> Vec<Breach> {
    if file.layer() == Some(Machine) {
        return vec![];
    }
    let found = |name| file.find(&[name], format!("{name} is for the machine layer"));
    MACHINE_CRATES.into_iter().flat_map(found).collect()
}

/// Only `vcpu` enters a guest.
fn entering(file: &Source) -> Vec<Breach> {
    if matches!(file.room(), "vcpu" | "arch") {
        return vec![];
    }
    let named = file.mentions().into_iter().filter(|m| m.is_under("arch::enter"));
    let what = "only vcpu enters a guest";
    let mut breaches: Vec<_> = named.map(|m| file.breach(m.line, what)).collect();
    if breaches.is_empty() {
        breaches = file.find(&["arch", "::", "enter"], what);
    }
    breaches
}

/// Only `vm/spis.rs` takes the distributor's lock: it sees to it that kicks come after.
fn locking_spis(file: &Source) -> Vec<Breach> {
    if file.name == "vm/spis.rs" {
        return vec![];
    }
    file.find(&["spis", ".", "lock"], "only vm/spis.rs locks SPIs")
}

/// Globals are where the list says, private, and written by `boot` alone.
fn globals(file: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    if file.room() != "boot" {
        for writer in GLOBAL_WRITERS {
            let what = format!("only boot calls hypervisor::{writer}");
            breaches.extend(file.find(&["hypervisor", "::", writer], what));
        }
    }
    if file.layer() == Some(Machine) || file.name == "main.rs" {
        return breaches;
    }
    for at in (0..file.tokens.len()).filter(|at| file.has(*at, &["static"])) {
        let name = file.text(at + 1);
        let known = GLOBALS.iter().any(|(f, n, _)| *f == file.name && *n == name);
        if !known || (at > 0 && matches!(file.text(at - 1), "pub" | ")")) {
            breaches.push(file.breach(file.line(at), format!("global {name}: see GLOBALS")));
        }
    }
    breaches
}

/// Only the machine layer and the final program use `unsafe`; all else forbids it.
fn unsafety(file: &Source) -> Vec<Breach> {
    // The root cannot forbid what one of its rooms may do.
    if file.layer() == Some(Machine) || is_root(file.name.trim_end_matches(".rs")) {
        return vec![];
    }
    let mut breaches = file.find(&["unsafe"], "unsafe is the machine layer's".to_owned());
    // A module of tests is forbidden what its parent is.
    let forbids = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    if !file.is_test() && file.find(&forbids, String::new()).is_empty() {
        breaches.push(file.breach(1, "lacks #![forbid(unsafe_code)]"));
    }
    breaches
}

/// Only the machine layer's interface asks what the target is.
fn target_cfg(file: &Source) -> Vec<Breach> {
    if file.room() == "arch" || TARGET_CFG.iter().any(|(name, _)| *name == file.name) {
        return vec![];
    }
    let is_target = |at: &usize| file.text(*at).starts_with("target_") && file.has(at + 1, &["="]);
    let found = (0..file.tokens.len()).filter(is_target);
    found.map(|at| file.breach(file.line(at), "a target cfg: see TARGET_CFG")).collect()
}

/// A licence, a sentence on what the file owns, lines and files of a readable size.
fn looks(file: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut lines = file.text.lines();
    if lines.next() != Some("// SPDX-License-Identifier: Apache-2.0 OR MIT") {
        breaches.push(file.breach(1, "lacks the SPDX line"));
    }
    if !lines.next().is_some_and(|line| line.starts_with("//! ")) {
        breaches.push(file.breach(2, "does not say what the file owns"));
    }
    let wide = file.text.lines().zip(1..).filter(|(l, _)| l.chars().count() > COLUMNS_MAX);
    breaches.extend(wide.map(|(_, line)| file.breach(line, "is wider than 100 columns")));
    let tests = file.text.lines().position(|line| line == "mod tests {");
    let lines = tests.unwrap_or(file.text.lines().count());
    if !file.is_test() && lines > LINES_MAX {
        breaches.push(file.breach(lines, "is longer than 600 lines"));
    }
    breaches
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All of `src/`.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut files = Vec::new();
    list(&root(), &mut files);
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        Source::new(name, &fs::read_to_string(path).unwrap())
    };
    files.iter().map(read).collect()
});

fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn check(rule: fn(&Source) -> Vec<Breach>) {
    let breaches: Vec<_> = SOURCES.iter().flat_map(rule).map(|b| b.to_string()).collect();
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// Says which lines of made-up source a rule objects to.
fn lines(rule: fn(&Source) -> Vec<Breach>, name: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(name, text)).iter().map(|breach| breach.line).collect()
}

#[test]
fn every_file_is_in_a_room() {
    check(unknown_rooms);
    assert_eq!(lines(unknown_rooms, "utils.rs", ""), [1]);
    assert_eq!(lines(unknown_rooms, "utils/strings.rs", ""), [1]);
    assert_eq!(lines(unknown_rooms, "gic/vdist.rs", ""), []);
    // A room that is gone leaves the list.
    let used: BTreeSet<_> = SOURCES.iter().map(|file| file.room().to_owned()).collect();
    assert!(ROOMS.iter().all(|(room, _)| used.contains(*room)), "{used:?}");
}

#[test]
fn rooms_name_only_those_below() {
    check(layering);
    let objects = |name, text| !lines(layering, name, text).is_empty();
    for (name, text) in [
        ("addr.rs", "use crate::arch;"),
        ("spec/esr.rs", "use crate::{bits::Width, gic::Vgic};"),
        ("arch/aarch64/mmu.rs", "use crate::hypervisor;"),
        ("arch/aarch64/mmu.rs", "use crate::memory::owners::Owners;"),
        ("arch.rs", "use super::vm;"),
        ("drivers/uart.rs", "use crate::console::Console;"),
        ("gic/vdist.rs", "fn f() { crate::arch::relax() }"),
        ("gic/vdist.rs", "fn f() { log!(\"{}\", crate::arch::relax()) }"),
        ("gic/vdist.rs", "use super::super::psci::Psci;"),
        ("gic.rs", "mod tests { use super::super::sync::Lock; }"),
        ("gic.rs", "use super::{addr, sync};"),
        ("psci.rs", "use crate::smccc::Call as Other;"),
        ("console.rs", "use crate::{addr::{Ipa, Pa}, id as i, vm::{self, Vm}};"),
        ("plan.rs", "use crate::*;"),
        ("plan.rs", "pub(in crate::vm) fn f() {}"),
        ("vm.rs", "use crate::nowhere;"),
    ] {
        assert!(objects(name, text), "{name}: {text}");
    }
    for (name, text) in [
        (
            "gic/vdist.rs",
            "use crate::{addr::{Ipa, Pa}, id::Vintid}; use super::bank; // crate::arch",
        ),
        ("gic.rs", "mod vdist { use super::bank; } pub(crate) fn f() {}"),
        (
            "gic.rs",
            "//! Not [`crate::arch`]'s.\n/// Nor `crate::vm`'s.\nconst A: &str = \"crate::vm\";",
        ),
        ("arch/fake.rs", "use crate::gic::ListRegisters;"),
        ("drivers/uart.rs", "use crate::console::{Sent, SerialPort};"),
        ("vcpu/run.rs", "use crate::{arch, gic, hypervisor, vm};"),
    ] {
        assert!(!objects(name, text), "{name}: {text}");
    }
}

#[test]
fn no_exception_is_left_over() {
    let used: BTreeSet<_> = SOURCES
        .iter()
        .flat_map(|file| {
            let found = file.mentions().into_iter().filter_map(|to| exception(file.room(), &to));
            found.map(|path| (file.room().to_owned(), path)).collect::<Vec<_>>()
        })
        .collect();
    for (room, path, _) in EXCEPTIONS {
        assert!(used.contains(&(room.to_owned(), path)), "{room} no longer names {path}");
    }
    for (name, global, _) in GLOBALS {
        let file = SOURCES.iter().find(|file| file.name == name).unwrap();
        assert_ne!(file.find(&["static", global], String::new()), [], "{name} has no {global}");
    }
    for (name, _) in TARGET_CFG {
        let file = SOURCES.iter().find(|file| file.name == name).unwrap();
        assert_ne!(file.find(&["target_os"], String::new()), [], "{name} has no target cfg");
    }
}

#[test]
fn only_the_machine_layer_uses_the_machines_crates() {
    check(machine_crates);
    assert_eq!(lines(machine_crates, "gic/vdist.rs", "\nuse spin::Mutex;"), [2]);
    assert_eq!(lines(machine_crates, "vm.rs", "fn f() { aarch64_cpu::asm::wfi() }"), [1]);
    assert_eq!(lines(machine_crates, "sync.rs", "use spin::Mutex;"), []);
}

#[test]
fn only_vcpu_enters_a_guest() {
    check(locking_spis);
    assert_eq!(lines(locking_spis, "vcpu/run.rs", "fn f() {\n let t = vm.spis.lock(); }"), [2]);
    check(entering);
    assert_eq!(lines(entering, "vm/load.rs", "fn f() {\n arch::enter(r) }"), [2]);
    assert_eq!(lines(entering, "boot.rs", "use crate::arch::enter;"), [1]);
    assert_eq!(lines(entering, "boot.rs", "use crate::arch::{halt, enter as go};"), [1]);
    assert_eq!(lines(entering, "vcpu/run.rs", "fn f() { arch::enter(r) }"), []);
    // The rule knows the name that the run loop uses.
    let enters =
        |file: &&Source| !file.find(&["arch", "::", "enter", "("], String::new()).is_empty();
    let entered: Vec<_> = SOURCES.iter().filter(enters).map(|file| &file.name).collect();
    assert_eq!(entered, ["vcpu/run.rs"]);
}

#[test]
fn only_boot_writes_globals() {
    check(globals);
    assert_eq!(lines(globals, "vm.rs", "static VMS: Once<Vm> = Once::new();"), [1]);
    assert_eq!(lines(globals, "gic/vdist.rs", "\nstatic COUNT: AtomicU64 = ZERO;"), [2]);
    assert_eq!(lines(globals, "gic.rs", "thread_local! { static COUNT: u8 = 0; }"), [1]);
    assert_eq!(lines(globals, "hypervisor.rs", "pub static HYPERVISOR: u8 = 0;"), [1]);
    assert_eq!(lines(globals, "hypervisor.rs", "static HYPERVISOR: u8 = 0;"), []);
    assert_eq!(lines(globals, "vm.rs", "fn f(_: &'static u8) -> impl Sized + 'static {}"), []);
    assert_eq!(lines(globals, "vcpu/run.rs", "fn f() { hypervisor::install(h); }"), [1]);
    assert_eq!(lines(globals, "vcpu.rs", "use crate::hypervisor::take_early_port;"), [1]);
    assert_eq!(lines(globals, "boot/vms.rs", "fn f() { hypervisor::install(h); }"), []);
}

#[test]
fn unsafe_is_the_machine_layers() {
    const FORBID: &str = "#![forbid(unsafe_code)]\n";
    check(unsafety);
    assert_eq!(lines(unsafety, "gic.rs", &format!("{FORBID}fn f() {{ unsafe {{ g() }} }}")), [2]);
    assert_eq!(lines(unsafety, "vm/load.rs", "fn f() {}"), [1]);
    assert_eq!(lines(unsafety, "vm/load.rs", "#![deny(unsafe_code)]"), [1]);
    assert_eq!(lines(unsafety, "vm/load.rs", FORBID), []);
    assert_eq!(lines(unsafety, "gic/tests.rs", "fn f() {}"), []);
    assert_eq!(lines(unsafety, "mmio.rs", "fn f() { unsafe { g() } }"), []);
}

#[test]
fn only_the_machines_interface_asks_for_the_target() {
    check(target_cfg);
    let text = "#[cfg(test)]\n#[cfg(not(target_os = \"none\"))]\nfn f() {}";
    assert_eq!(lines(target_cfg, "vm.rs", text), [2]);
    assert_eq!(lines(target_cfg, "spec/dtb.rs", "const A: bool = cfg!(target_arch = \"x\");"), [1]);
    assert_eq!(lines(target_cfg, "arch/fake.rs", text), []);
}

#[test]
fn files_say_what_they_own_and_are_of_a_readable_size() {
    const HEAD: &str = "// SPDX-License-Identifier: Apache-2.0 OR MIT\n//! Owns.\n";
    check(looks);
    assert_eq!(lines(looks, "vm.rs", "//! Owns.\n"), [1, 2]);
    assert_eq!(lines(looks, "vm.rs", &HEAD.replace("//! Owns.", "use core::fmt;")), [2]);
    assert_eq!(lines(looks, "vm.rs", &format!("{HEAD}// {}", "é".repeat(97))), []);
    assert_eq!(lines(looks, "vm.rs", &format!("{HEAD}// {}", "é".repeat(98))), [3]);
    let long = HEAD.to_owned() + &"// \n".repeat(LINES_MAX - 2);
    assert_eq!(lines(looks, "vm.rs", &long), []);
    assert_eq!(lines(looks, "vm.rs", &format!("{long}// ")), [601]);
    assert_eq!(lines(looks, "vm.rs", &format!("{long}mod tests {{\n}}")), []);
    assert_eq!(lines(looks, "vm/tests.rs", &format!("{long}// ")), []);
}
