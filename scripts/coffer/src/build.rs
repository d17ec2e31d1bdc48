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
    /// Where the files go.
    pub out: Option<PathBuf>,
}

/// What was built.
#[derive(Debug)]
pub struct Artifacts {
    /// The hypervisor.
    pub image: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// The board.
    pub board: Board,
}

/// Builds.
///
/// # Errors
/// Not yet.
pub fn build(_manifest: &Path, _options: &Options) -> Result<Artifacts, Report> {
    Err(Report::default())
}
