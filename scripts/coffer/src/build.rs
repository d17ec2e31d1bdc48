// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From a manifest to the two files that boot: `cofferdam.img` and `bundle.itb`, with what they were
//! built from beside them.
#![forbid(unsafe_code)]

mod origin;

pub use origin::Origin;

use crate::board::{Board, Overrides, project_root, target_directory};
use crate::bundle::Bundle;
use crate::elf::flatten::{By, flatten};
use crate::explain::Code;
use crate::manifest::{Manifest, read_bytes};
use crate::message::{Message, Report, quote};
use crate::plan::{self, Choices, Planned};
use crate::tree;
use cofferdam::plan::{ConsoleMode, Knobs};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that the hypervisor is built for.
const TARGET: &str = "aarch64-unknown-none-softfloat";
/// The most bytes of the hypervisor's ELF file, which has debug information, and in memory.
const ELF_BYTES_MAX: usize = 256 << 20;
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// What the caller wants other than manifest and board say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The board.
    pub overrides: Overrides,
    /// How the consoles share the UART.
    pub console: Option<ConsoleMode>,
    /// The byte that moves the focus.
    pub escape: Option<u8>,
    /// Knobs for tests, instead of all that the manifest has.
    pub knobs: Option<Knobs>,
    /// Fixes the guests' seeds.
    pub seed: Option<u64>,
    /// The directory for the files, instead of one under target/.
    pub out: Option<PathBuf>,
    /// The hypervisor's ELF file, instead of building it.
    pub hypervisor: Option<PathBuf>,
}

/// What was built.
#[derive(Debug)]
pub struct Artifacts {
    /// The hypervisor as a boot loader takes it.
    pub image: PathBuf,
    /// The hypervisor's ELF file, which has the symbols.
    pub elf: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// The plan and the images, for callers who alter them and write another bundle.
    pub contents: Bundle,
    /// The board.
    pub board: Board,
    /// What is doubtful.
    pub warnings: Report,
}

/// Reads manifest and board, and plans.
///
/// # Errors
/// Everything that stands in the way.
pub fn plan(manifest: &Path, options: &Options) -> Result<(Board, Planned), Report> {
    plan_manifest(&Manifest::load(manifest)?, options)
}

/// Reads the board of a manifest, and plans.
///
/// # Errors
/// Everything that stands in the way.
pub fn plan_manifest(manifest: &Manifest, options: &Options) -> Result<(Board, Planned), Report> {
    let board = Board::load(manifest, &options.overrides)?;
    let choices = Choices {
        console_mode: options.console,
        escape: options.escape,
        knobs: options.knobs.clone(),
        seed: options.seed,
    };
    let planned = plan::plan(manifest, &board, &choices)?;
    Ok((board, planned))
}

/// Plans, builds the hypervisor and writes both files.
///
/// # Errors
/// Everything that stands in the way.
pub fn build(manifest: &Path, options: &Options) -> Result<Artifacts, Report> {
    let (board, planned) = plan(manifest, options)?;
    let Planned { bundle: contents, warnings, .. } = planned;
    let elf = match &options.hypervisor {
        Some(elf) => elf.clone(),
        None => build_hypervisor("release")?,
    };
    let out = options.out.clone().unwrap_or_else(|| default_directory(manifest));
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        Message::new(Code::E41, format!("{}: {error}", quote(&path.to_string_lossy())))
    };
    std::fs::create_dir_all(&out).map_err(|error| failed(&out, &error))?;
    let (image, bundle) = (out.join("cofferdam.img"), out.join("bundle.itb"));
    std::fs::write(&image, flatten_hypervisor(&elf)?).map_err(|error| failed(&image, &error))?;
    let bytes = contents.write().map_err(|error| failed(&bundle, &error))?;
    std::fs::write(&bundle, bytes).map_err(|error| failed(&bundle, &error))?;
    let tree = board.tree_bytes.get(..tree::size(&board.tree_bytes).unwrap_or(usize::MAX));
    let tree = tree.unwrap_or(&board.tree_bytes);
    Origin::keep(&out, manifest, tree).map_err(|error| failed(&out, &error))?;
    Ok(Artifacts { image, elf, bundle, contents, board, warnings })
}

/// Returns a directory of the manifest's own under target/.
fn default_directory(manifest: &Path) -> PathBuf {
    let name = manifest.file_stem().unwrap_or("manifest".as_ref());
    target_directory().join("coffer").join(name)
}

/// Builds the hypervisor with a profile of Cargo's and returns its ELF file.
///
/// # Errors
/// Cargo does not succeed; it has said why by itself.
pub fn build_hypervisor(profile: &str) -> Result<PathBuf, Report> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--profile", profile, "--target", TARGET, "--package", "cofferdam"])
        .current_dir(project_root())
        .status();
    let why = match status {
        Ok(status) if status.success() => {
            return Ok(target_directory().join(TARGET).join(profile).join("cofferdam"));
        }
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Message::new(Code::E40, format!("cargo does not build the hypervisor: {why}")).into())
}

/// Returns what a boot loader puts into memory. The program zeroes the rest by itself; how much
/// that is stands in the Image header that it starts with.
fn flatten_hypervisor(elf: &Path) -> Result<Vec<u8>, Message> {
    let wrong =
        |why: String| Message::new(Code::E40, format!("{}: {why}", quote(&elf.to_string_lossy())));
    let file = read_bytes(elf, ELF_BYTES_MAX).map_err(wrong)?;
    let flat = flatten(&file, By::VirtualAddress, MEMORY_BYTES_MAX);
    Ok(flat.map_err(|error| wrong(error.to_string()))?.bytes)
}
