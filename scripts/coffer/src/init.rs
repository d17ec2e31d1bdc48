// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer init`: a commented manifest to start from, for any board.
//!
//! What it prints can be planned as soon as the files that it names are there: its cores, sizes and
//! labels are the board's own. Must not know any board.
#![forbid(unsafe_code)]

use crate::board::{Board, Overrides, is_path, located};
use crate::command::{Exit, refuse};
use crate::message::{Report, bytes};
use crate::plan::HYPERVISOR_BYTES;
use crate::plan::layout::RAM_ALIGNMENT;
use crate::tree::{NodeId, Tree};
use std::fmt::Write as _;
use std::path::PathBuf;

/// The most of a list that a comment shows.
const LISTED_MAX: usize = 12;
/// The most memory that a VM is offered, in bytes.
const MEMORY_MAX: u64 = 4 << 30;

/// Prints a commented manifest to start from.
#[derive(clap::Args, Debug)]
pub struct InitArgs {
    /// The board: a directory in platform/, the path of a board.toml, or with --dtb any name.
    #[arg(long, value_name = "NAME")]
    board: String,
    /// The board's device tree, instead of its own or where nothing else is known of it.
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
}

/// Carries out `coffer init`.
#[must_use]
pub fn init(args: &InitArgs) -> Exit {
    match manifest(args) {
        Ok(text) => {
            print!("{text}");
            Exit::Done
        }
        Err(report) => refuse(&report, false),
    }
}

/// Writes the manifest.
fn manifest(args: &InitArgs) -> Result<String, Report> {
    let overrides = Overrides { tree: args.dtb.clone(), ..Overrides::default() };
    match (located(&args.board), &args.dtb) {
        (Err(_), Some(tree)) if !is_path(&args.board) => {
            let board = Board::of_tree(tree)?;
            let path = format!("{}/board.toml", args.board);
            Ok(head(&board, &path) + &description(&path, tree) + &body(&board))
        }
        (path, _) => {
            let board = Board::described(&path?, &overrides)?;
            Ok(head(&board, &args.board) + &body(&board))
        }
    }
}

/// Writes what the board is, and the lines that every manifest has.
fn head(board: &Board, name: &str) -> String {
    let machine = &board.machine;
    let model: String = machine.model.chars().filter(|c| !c.is_control()).take(60).collect();
    let cores = machine.cores.len();
    let plural = if cores == 1 { "" } else { "s" };
    let (all, free) = (bytes(machine.memory_bytes()), bytes(available(board)));
    let name = toml::Value::from(name);
    format!(
        "# {model}: {cores} core{plural}, {all} of memory of which VMs can have {free}.\n\
         # `coffer plan FILE` shows what follows from this, or which line is wrong and what to write;\n\
         # docs/manifest.md has every key. To fill in: each `kernel`, and what you want of the comments.\n\
         format = 1\n\
         board  = {name}\n"
    )
}

/// Says how a board is described of which nothing is known but its tree.
fn description(path: &str, tree: &std::path::Path) -> String {
    let file = std::path::absolute(tree).unwrap_or_else(|_| tree.into());
    let file = toml::Value::from(file.to_string_lossy().into_owned());
    format!(
        "# To fill in: {path}, which is not there yet, with these lines:\n\
         #     format = 1\n\
         #     [tree]\n\
         #     file = {file}\n"
    )
}

/// Writes the VMs, with what else could be said.
fn body(board: &Board) -> String {
    let mut text = String::from("\n");
    let uarts = uarts(board);
    if let Some(console) = &board.machine.uart {
        let path = board.tree.path(console.node);
        let _ = writeln!(text, "# The hypervisor keeps {path} as the console of all VMs.");
    }
    let port = uarts.first().map_or("console", String::as_str);
    let _ = write!(
        text,
        "#[control]\n\
         #port = \"{port}\"  # where `coffer vm` speaks with the machine: \"console\", or a UART of the board\n\n\
         # Each core belongs to one VM alone. The board has:\n"
    );
    text += &cores(board);
    let last = board.machine.cores.len();
    let half = last.div_ceil(2);
    text += &vm(board, "one", 0..half, &uarts);
    if half < last {
        text.push('\n');
        text += &vm(board, "two", half..last, &uarts);
        text += "#after    = [\"one\"]  # starts behind it, and depends on it\n";
    }
    text
}

/// Lists the cores, those of a kind in one line.
fn cores(board: &Board) -> String {
    let mut text = String::new();
    let numbered: Vec<_> = board.machine.cores.iter().enumerate().collect();
    for kind in numbered.chunk_by(|(_, a), (_, b)| a.short_name() == b.short_name()) {
        let (Some((first, core)), Some((last, _))) = (kind.first(), kind.last()) else { continue };
        let labels = kind.iter().filter_map(|(_, core)| label(&board.tree, core.node));
        let _ = write!(text, "#   {}  {}", range(*first, *last), core.short_name());
        let labels: Vec<_> = labels.take(LISTED_MAX).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!(": {}", labels.join(" ")) };
        text += &format!("{labels}\n");
    }
    text
}

fn range(first: usize, last: usize) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn vm(board: &Board, name: &str, cores: std::ops::Range<usize>, uarts: &[String]) -> String {
    let cpus = range(cores.start, cores.end.saturating_sub(1));
    let memory = bytes(memory(board));
    let device = uarts.first().map_or("&label", String::as_str);
    let listed = if uarts.is_empty() {
        "a device is \"&label\", or a full path".into()
    } else {
        format!("UARTs of the board: {}", uarts.join(" "))
    };
    format!(
        "[vm.{name}]\n\
         cpus      = \"{cpus}\"\n\
         memory    = \"{memory}\"\n\
         kernel    = \"Image\"  # to fill in: an arm64 Image, one packed with gzip, or an ELF file\n\
         #ramdisk  = \"initrd.img\"  # to fill in, for a Linux that needs one\n\
         #cmdline  = \"root=/dev/ram0\"\n\
         #devices  = [\"{device}\"]  # {listed}\n\
         #watchdog = \"30s\"  # who does not serve it within this time has crashed\n\
         #on_crash = {{ restart = 5, backoff = \"1s\" }}\n"
    )
}

/// Returns the bytes of memory that VMs can have.
fn available(board: &Board) -> u64 {
    let machine = &board.machine;
    let kept = machine.reserved_bytes.saturating_add(HYPERVISOR_BYTES);
    machine.memory_bytes().saturating_sub(kept)
}

/// Returns the bytes of a VM: a quarter of the board's or of its largest bank, a power of two, so
/// that two find room beside what is loaded.
fn memory(board: &Board) -> u64 {
    let largest = board.machine.memory.iter().map(|bank| bank.size()).max().unwrap_or(0);
    let quarter = (available(board).min(largest) / 4).clamp(RAM_ALIGNMENT, MEMORY_MAX);
    1 << quarter.ilog2()
}

/// Names the serial lines of the board that are switched on, but the console.
fn uarts(board: &Board) -> Vec<String> {
    let tree = &board.tree;
    let console = board.machine.uart.as_ref().map(|uart| uart.node);
    let is_uart = |id: &NodeId| {
        // Devicetree Specification 0.4, 2.2.2: the generic name of a serial line.
        let generic = tree.name(*id).split('@').next().unwrap_or("");
        let is_named = matches!(generic, "serial" | "uart") || generic.starts_with("pl011");
        is_named && Some(*id) != console && tree.is_enabled(*id) && tree.registers(*id).is_some()
    };
    let uarts = tree.all().filter(is_uart).take(LISTED_MAX);
    uarts
        .map(|id| label(tree, id).map_or_else(|| tree.path(id), |label| format!("&{label}")))
        .collect()
}

/// Finds a label or an alias that leads to a node.
fn label(tree: &Tree, node: NodeId) -> Option<&str> {
    tree.labels().find(|label| tree.resolve(label) == Some(node))
}
