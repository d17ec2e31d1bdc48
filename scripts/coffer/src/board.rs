// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A board: its description in `platform/<board>/board.toml`, and its device tree.
//!
//! Owns the format of board.toml (`format = 1`). A board is data: nothing here or in the planner
//! may depend on which one it is.
#![forbid(unsafe_code)]

mod hints;
mod machine;
pub mod qemu_tree;

pub use hints::Hints;
pub use machine::{Core, Gic, Machine, Uart};

use crate::explain::Code;
use crate::manifest::{Manifest, Spanned, read_bytes, read_text, value};
use crate::message::{Mark, Message, Report, Source, nearest, quote};
use crate::tree::{self, Tree};
use cofferdam::plan::{CPUS_MAX, Name};
use hints::{BankSection, DmaSection};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the caller changes about the board.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// QEMU's `-smp`.
    pub cpus: Option<u32>,
    /// QEMU's `-m`, in bytes.
    pub memory_bytes: Option<u64>,
    /// QEMU's `-cpu`.
    pub cpu: Option<String>,
    /// QEMU's `-machine gic-version=`.
    pub gic_version: Option<u32>,
    /// More options of QEMU's `-machine`, as `key=value`.
    pub machine_options: Vec<String>,
    /// More arguments for QEMU, also when its tree is asked for.
    pub qemu_arguments: Vec<String>,
    /// A device tree to use instead of the board's own.
    pub tree: Option<PathBuf>,
}

/// A board as it will be started.
#[derive(Debug)]
pub struct Board {
    /// Its name, for messages.
    pub name: Name,
    /// How QEMU starts it, where it does.
    pub qemu: Option<Qemu>,
    /// Its device tree, flattened.
    pub tree_bytes: Vec<u8>,
    /// Its device tree.
    pub tree: Tree,
    /// What the tree says of cores, memory, interrupt controller and UART.
    pub machine: Machine,
    /// What its description says beyond the tree.
    pub hints: Hints,
}

/// How QEMU starts a board.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qemu {
    /// The program.
    pub program: String,
    /// The machine and its options.
    pub machine: String,
    /// The model of the cores.
    pub cpu: String,
    /// The number of cores.
    pub cpus: u32,
    /// The bytes of memory.
    pub memory_bytes: u64,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Whether it has a second serial line, for requests.
    pub has_control_line: bool,
    /// The tree that QEMU completes, where it does not make one.
    tree: Option<PathBuf>,
    /// Options of the machine that make its tree the same every time.
    tree_options: String,
}

impl Qemu {
    /// Returns the arguments that make the machine: no kernel, no console.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let memory = format!("{}K", self.memory_bytes >> 10);
        let mut arguments: Vec<String> =
            ["-machine", &self.machine, "-cpu", &self.cpu].map(Into::into).into();
        arguments.extend(["-smp".into(), self.cpus.to_string(), "-m".into(), memory]);
        if let Some(tree) = &self.tree {
            arguments.extend(["-dtb".into(), tree.to_string_lossy().into_owned()]);
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: Spanned<u32>,
    qemu: Option<QemuSection>,
    tree: Option<TreeSection>,
    #[serde(default)]
    memory: Vec<BankSection>,
    #[serde(default)]
    clocks: BTreeMap<String, Vec<u32>>,
    #[serde(default)]
    dma: DmaSection,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QemuSection {
    #[serde(default = "default_program")]
    program: String,
    machine: String,
    cpu: String,
    cpus: Spanned<u32>,
    memory: Spanned<String>,
    #[serde(default)]
    arguments: Vec<String>,
    tree: Option<PathBuf>,
    #[serde(default)]
    tree_options: String,
}

fn default_program() -> String {
    "qemu-system-aarch64".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TreeSection {
    file: PathBuf,
}

/// Returns the root of the project's source, where `platform/` is.
#[must_use]
pub fn project_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_path_buf()
}

/// Returns cargo's directory for what is built.
#[must_use]
pub fn target_directory() -> PathBuf {
    let root = project_root();
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

impl Board {
    /// Reads the board that the manifest names, and its tree.
    ///
    /// # Errors
    /// The board or its tree cannot be had, or lacks what Cofferdam needs.
    pub fn load(manifest: &Manifest, overrides: &Overrides) -> Result<Self, Report> {
        let here = |message: Message| message.at(manifest.mark(manifest.board.span(), ""));
        let board = manifest.board.get_ref();
        let path =
            if is_path(board) { Ok(manifest.resolve(Path::new(board))) } else { located(board) };
        let path = path.map_err(here)?;
        Self::read(&path, overrides, manifest.control_uarts().count(), here)
    }

    /// Reads the board that a board.toml describes, and its tree.
    ///
    /// # Errors
    /// The board or its tree cannot be had, or lacks what Cofferdam needs.
    pub fn described(path: &Path, overrides: &Overrides) -> Result<Self, Report> {
        Self::read(path, overrides, 0, |message| message)
    }

    /// Reads a board of which nothing is known but its tree, and that QEMU does not play.
    ///
    /// # Errors
    /// The tree cannot be had, or lacks what Cofferdam needs.
    pub fn of_tree(path: &Path) -> Result<Self, Report> {
        let bytes = read_tree(path).map_err(|why| Message::new(Code::E31, why))?;
        Self::of_bytes(Name::new(), bytes, |message| message)
    }

    /// Reads it all, with `here` to say where the board is named.
    fn read(
        path: &Path,
        overrides: &Overrides,
        control_uarts: usize,
        here: impl Fn(Message) -> Message,
    ) -> Result<Self, Report> {
        let text = read_text(path, 64 << 10).map_err(|why| {
            here(Message::new(Code::E30, format!("{}: {why}", quote(&path.to_string_lossy()))))
        })?;
        let source = Arc::new(Source { path: path.to_string_lossy().into_owned(), text });
        let file = parse(&source)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut qemu = file.qemu.map(|section| qemu(section, &source, overrides)).transpose()?;
        if let Some(qemu) = &mut qemu {
            qemu.has_control_line = control_uarts > 0;
        }
        if let Some(tree) = qemu.as_mut().and_then(|qemu| qemu.tree.as_mut()) {
            *tree = directory.join(&tree);
        }
        let tree_file = overrides.tree.clone();
        let tree_file = tree_file.or_else(|| Some(directory.join(&file.tree.as_ref()?.file)));
        let tree_bytes = match (&tree_file, &qemu) {
            (Some(path), _) => read_tree(path),
            (None, Some(qemu)) => qemu_tree::obtain(qemu),
            (None, None) => Err("board.toml has neither [qemu] nor [tree] file = …".into()),
        };
        let wrong_tree = |why: String| Report::from(here(Message::new(Code::E31, why)));
        let mut tree_bytes = tree_bytes.map_err(wrong_tree)?;
        let banks = hints::banks(&file.memory, &source)?;
        if !banks.is_empty() {
            let tree = Tree::parse(&tree_bytes).map_err(|error| wrong_tree(error.to_string()))?;
            let why = "the memory of board.toml does not go into the tree's root";
            tree_bytes = tree.with_memory(&banks).ok_or_else(|| wrong_tree(why.into()))?;
        }
        let mut board = Self::of_bytes(name(path), tree_bytes, &here)?;
        board.hints = Hints::new(&board.tree, &file.dma, &file.clocks);
        Ok(Self { qemu, ..board })
    }

    /// Makes a board of its tree alone.
    fn of_bytes(
        name: Name,
        tree_bytes: Vec<u8>,
        here: impl Fn(Message) -> Message,
    ) -> Result<Self, Report> {
        let tree = Tree::parse(&tree_bytes)
            .map_err(|error| here(Message::new(Code::E31, error.to_string())))?;
        let machine =
            Machine::read(&tree).map_err(|why| here(Message::new(Code::E32, why.to_string())))?;
        let hints = Hints::new(&tree, &DmaSection::default(), &BTreeMap::new());
        Ok(Self { name, qemu: None, tree_bytes, tree, machine, hints })
    }

    /// Returns the digest of the tree, in hexadecimal.
    #[must_use]
    pub fn tree_sha256(&self) -> String {
        hexadecimal(&Sha256::digest(&self.tree_bytes))
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the name of the directory that a board.toml is in, as far as it goes into a plan.
fn name(path: &Path) -> Name {
    let directory = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut name = Name::new();
    for c in directory.chars().filter(allowed) {
        if name.push(c).is_err() {
            break;
        }
    }
    name
}

fn read_tree(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read_bytes(path, tree::BYTES_MAX);
    bytes.map_err(|why| format!("{}: {why}", quote(&path.to_string_lossy())))
}

/// Returns whether a board is given as the path of its description, and not by its name.
pub(crate) fn is_path(board: &str) -> bool {
    board.contains('/') || board.ends_with(".toml")
}

/// Finds the board.toml of a board.
///
/// # Errors
/// There is none; names what was meant.
pub(crate) fn located(board: &str) -> Result<PathBuf, Message> {
    if is_path(board) {
        return Ok(board.into());
    }
    let platform = project_root().join("platform");
    let boards = boards(&platform);
    if boards.iter().any(|known| known == board) {
        return Ok(platform.join(board).join("board.toml"));
    }
    let message = Message::new(Code::E30, format!("there is no board {}", quote(board)));
    let near = nearest(board, boards.iter().map(String::as_str));
    Err(match near.map(str::to_owned).or_else(|| boards.first().cloned()) {
        Some(write) => message.write(format!("board = \"{write}\"")),
        None => message,
    })
}

/// Lists the boards that are described, in alphabetical order.
fn boards(platform: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(platform).into_iter().flatten().flatten();
    let described = entries.filter(|entry| entry.path().join("board.toml").is_file());
    let mut names: Vec<_> =
        described.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn parse(source: &Arc<Source>) -> Result<File, Report> {
    let end = source.text.len();
    let file: File = toml::from_str(&source.text).map_err(|error| {
        let span = error.span().unwrap_or(end..end);
        Message::new(Code::E30, error.message()).at(Mark::new(source, span, ""))
    })?;
    if *file.format.get_ref() != 1 {
        let text = format!("format {} is not one that this tool reads", file.format.get_ref());
        let mark = Mark::new(source, file.format.span(), "");
        return Err(Message::new(Code::E30, text).at(mark).write("format = 1").into());
    }
    Ok(file)
}

/// Makes QEMU's machine from the description and what the caller changes.
fn qemu(section: QemuSection, source: &Arc<Source>, overrides: &Overrides) -> Result<Qemu, Report> {
    let described = value::size(section.memory.get_ref()).map_err(|wrong| {
        Message::new(Code::E30, wrong.why).at(Mark::new(source, section.memory.span(), ""))
    })?;
    let cpus = overrides.cpus.unwrap_or(*section.cpus.get_ref());
    if !(1..=CPUS_MAX).contains(&usize::try_from(cpus).unwrap_or(usize::MAX)) {
        let text = format!("{cpus} cores: a machine has 1 to {CPUS_MAX}");
        let mark = Mark::new(source, section.cpus.span(), "");
        return Err(Message::new(Code::E30, text).at(mark).into());
    }
    let mut machine = section.machine;
    if let Some(version) = overrides.gic_version {
        machine = with_option(&machine, &format!("gic-version={version}"));
    }
    for option in &overrides.machine_options {
        machine = with_option(&machine, option);
    }
    let mut arguments = section.arguments;
    arguments.extend(overrides.qemu_arguments.iter().cloned());
    Ok(Qemu {
        program: section.program,
        machine,
        cpu: overrides.cpu.clone().unwrap_or(section.cpu),
        cpus,
        memory_bytes: overrides.memory_bytes.unwrap_or(described),
        tree: section.tree,
        has_control_line: false,
        arguments,
        tree_options: section.tree_options,
    })
}

/// Sets one `key=value` among a machine's options.
fn with_option(machine: &str, option: &str) -> String {
    let key = |option: &str| option.split('=').next().unwrap_or("").to_owned();
    let others = machine.split(',').filter(|old| key(old) != key(option));
    others.chain([option]).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_replaces_its_namesake() {
        let machine = "virt,gic-version=3,virtualization=on";
        assert_eq!(with_option(machine, "gic-version=2"), "virt,virtualization=on,gic-version=2");
        assert_eq!(with_option("virt", "iommu=smmuv3"), "virt,iommu=smmuv3");
    }

    #[test]
    fn a_board_is_called_like_its_directory() {
        assert_eq!(name(Path::new("platform/qemu-virt/board.toml")), "qemu-virt");
        let long = format!("/{}/board.toml", "é b".repeat(100));
        assert_eq!(name(Path::new(&long)), "b".repeat(31).as_str());
        assert_eq!(name(Path::new("board.toml")), "");
    }
}
