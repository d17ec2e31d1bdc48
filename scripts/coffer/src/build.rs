// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stub, replaced by the builder.
#![forbid(unsafe_code)]

use crate::board::{Board, Overrides};
use crate::message::Report;
use cofferdam::plan::ConsoleMode;
use std::path::{Path, PathBuf};

/// What the caller changes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The board.
    pub overrides: Overrides,
    /// The console's mode.
    pub console: Option<ConsoleMode>,
    /// Knobs.
    pub knobs: Option<cofferdam::plan::Knobs>,
    /// Seeds.
    pub seed: Option<u64>,
    /// Where the files go.
    pub out: Option<PathBuf>,
}

/// What was built.
#[derive(Debug)]
pub struct Artifacts {
    /// The hypervisor.
    pub image: PathBuf,
    /// The ELF file.
    pub elf: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// The board.
    pub board: Board,
    /// Warnings.
    pub warnings: Report,
}

/// Builds.
///
/// # Errors
/// Not yet.
pub fn build(_manifest: &Path, _options: &Options) -> Result<Artifacts, Report> {
    Err(Report::default())
}
