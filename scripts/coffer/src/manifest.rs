// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The manifest: what a person writes. Every value knows where it stands in the file.
//!
//! Owns the format (`format = 1`). Must not know any board. Everything in a manifest may be
//! wrong; reading one is bounded and reports all errors, not the first alone.
#![forbid(unsafe_code)]

mod keys;
mod read;
pub mod value;

pub use toml::Spanned;

use crate::explain::Code;
use crate::message::{Mark, Message, Report, Source, quote};
use cofferdam::plan::{ConsoleMode, Knobs, Policies};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most bytes in a manifest.
const BYTES_MAX: usize = 256 << 10;
/// What is added to a command line that names no console.
pub const CONSOLE_ARGUMENT: &str = "console=ttyAMA0";

/// The port for requests that is the console's UART.
pub const CONSOLE_PORT: &str = "console";

/// What a manifest says.
#[derive(Debug)]
pub struct Manifest {
    /// The file.
    pub source: Arc<Source>,
    /// The directory that paths are relative to.
    pub directory: PathBuf,
    /// The board: a name or a path.
    pub board: Spanned<String>,
    /// The VMs in the order in which they start: that of the file, as far as `after` allows.
    pub vms: Vec<Vm>,
    /// The VM that owns what several VMs' devices need: clocks, resets, pins, power domains.
    pub provider: Option<Spanned<String>>,
    /// Memory that VMs share, in the order of the file.
    pub shared: Vec<Shared>,
    /// How the consoles share the UART.
    pub console: Console,
    /// Where requests come in: [`CONSOLE_PORT`], or UARTs of the board.
    pub control: Vec<Spanned<String>>,
    /// Knobs for tests.
    pub knobs: Knobs,
    /// Fixes what guests get as random seeds, for tests that compare runs.
    pub seed: Option<u64>,
}

/// What a manifest says of the consoles.
#[derive(Clone, Debug)]
pub struct Console {
    /// What goes out.
    pub mode: ConsoleMode,
    /// The byte that moves the focus.
    pub escape: u8,
}

impl Default for Console {
    fn default() -> Self {
        Self { mode: ConsoleMode::Focus, escape: 0x1d }
    }
}

/// What a manifest says of one VM.
#[derive(Debug)]
pub struct Vm {
    /// Its name.
    pub name: Spanned<String>,
    /// Its cores.
    pub cpus: Spanned<Cores>,
    /// The bytes of its memory.
    pub memory: Spanned<u64>,
    /// Its kernel.
    pub kernel: Spanned<PathBuf>,
    /// What kind of file that is.
    pub kernel_format: KernelFormat,
    /// Its ramdisk.
    pub ramdisk: Option<Spanned<PathBuf>>,
    /// Its kernel's command line.
    pub cmdline: Option<Spanned<String>>,
    /// The devices of the board that it drives.
    pub devices: Devices,
    /// Those among its devices that may reach all memory, as nothing confines their DMA.
    pub unconfined_dma: Vec<Spanned<String>>,
    /// What is done when it ends, hangs, pauses or loses another.
    pub policies: Policies,
}

/// Devices as the manifest names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Devices {
    /// These.
    Listed(Vec<Spanned<String>>),
    /// All that nobody else has, but those excepted.
    Everything {
        /// Where that is written.
        span: Range<usize>,
        /// What it does not get.
        except: Vec<Spanned<String>>,
    },
}

impl Devices {
    /// Returns the devices that are named one by one.
    #[must_use]
    pub fn listed(&self) -> &[Spanned<String>] {
        match self {
            Self::Listed(devices) => devices,
            Self::Everything { .. } => &[],
        }
    }
}

/// Memory that VMs share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared {
    /// Its name.
    pub name: Spanned<String>,
    /// Its bytes, in whole pages of 4 KiB.
    pub size: Spanned<u64>,
    /// The VMs that write and read it: one at least.
    pub write: Vec<Spanned<String>>,
    /// The VMs that read it alone.
    pub read: Vec<Spanned<String>>,
    /// Whether they can interrupt each other. Where that is not said, no, at the region's name.
    pub doorbell: Spanned<bool>,
}

/// What kind of file a kernel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelFormat {
    /// The file says so itself.
    Detected,
    /// A file without a header, entered at its first byte. Its command line goes to it as it was
    /// written.
    Flat,
}

/// Cores as the manifest names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cores {
    /// Numbers in the order of /cpus.
    Numbers(Vec<u32>),
    /// Labels of the board's tree.
    Labels(Vec<Spanned<String>>),
}

impl Manifest {
    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// All that is wrong with the file itself.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let text = read_text(path, BYTES_MAX).map_err(|why| {
            Message::new(Code::E01, format!("{}: {why}", quote(&path.to_string_lossy())))
        })?;
        let source = Source { path: path.to_string_lossy().into_owned(), text };
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Self::parse(Arc::new(source), directory)
    }

    /// Reads the text of a manifest whose paths are relative to `directory`.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse(source: Arc<Source>, directory: PathBuf) -> Result<Self, Report> {
        read::manifest(source, directory)
    }

    /// Returns the UARTs of the board that requests come in by.
    pub fn control_uarts(&self) -> impl Iterator<Item = &Spanned<String>> {
        self.control.iter().filter(|port| port.get_ref() != CONSOLE_PORT)
    }

    /// Marks a place in the manifest.
    #[must_use]
    pub fn mark(&self, span: Range<usize>, label: impl Into<String>) -> Mark {
        Mark::new(&self.source, span, label)
    }

    /// Returns where the file that a key names is.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }
}

/// Reads a text file of no more than `bytes_max` bytes.
pub(crate) fn read_text(path: &Path, bytes_max: usize) -> Result<String, String> {
    let bytes = read_bytes(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| "this is not UTF-8 text".into())
}

/// Reads a regular file of no more than `bytes_max` bytes.
pub(crate) fn read_bytes(path: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    use std::io::Read;

    let reason = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        _ => error.to_string(),
    };
    // Asked before opening: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(reason)?;
    if !metadata.is_file() {
        return Err("this is not a regular file".into());
    }
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(reason)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(reason)?;
    if bytes.len() > bytes_max {
        let (size, limit) = (metadata.len(), crate::message::bytes(limit));
        return Err(format!("{} is more than {limit}", crate::message::bytes(size)));
    }
    Ok(bytes)
}
