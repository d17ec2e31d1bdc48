// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Why a request has failed, and how the tool ends then.
#![forbid(unsafe_code)]

use super::client::ClientError;
use super::crash::CrashError;
use super::upload::UploadError;
use crate::command::Exit;
use crate::message::Report;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No machine was found.
    #[error("no machine with [control] on a UART runs here; write --port, or coffer run MANIFEST")]
    NoMachine,
    /// More than one was found.
    #[error("several machines run here; write one of{}", listed(.0))]
    Machines(Vec<PathBuf>),
    /// The port cannot be opened.
    #[error("{}: {source}", path.display())]
    Port {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The machine did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The crash cannot be shown.
    #[error(transparent)]
    Crash(#[from] CrashError),
    /// The manifest, or what it names, is refused.
    #[error("the manifest is refused")]
    Refused(Report),
    /// Nobody says which manifest is the machine's.
    #[error("coffer run has not started this machine; write --manifest FILE, with all its VMs")]
    NoManifest,
    /// The manifest is not for this machine.
    #[error("the machine is a {machine} and the manifest is for a {manifest}: write another one")]
    Board {
        /// What the machine says that it is.
        machine: String,
        /// What the manifest is for.
        manifest: String,
    },
    /// There is such a VM.
    #[error("the machine has a VM {0}; write coffer vm update {0}, or destroy it first")]
    Taken(String),
    /// There is no such VM.
    #[error("the machine has no VM {0}; write coffer vm create {0}")]
    NotThere(String),
    /// What is to be done did not arrive, or is refused.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// It was begun, and is not done.
    #[error("{name} is still {state} after {} s", waited.as_secs())]
    Timeout {
        /// The VM.
        name: String,
        /// The state that it is in.
        state: String,
        /// For how long.
        waited: Duration,
    },
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("\n  --port {}", path.display())).collect()
}

impl Error {
    /// Returns how the tool ends.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Timeout { .. }
            | Self::Client(ClientError::Silent(_))
            | Self::Crash(CrashError::Client(ClientError::Silent(_)))
            | Self::Upload(
                UploadError::Stuck { .. } | UploadError::Client(ClientError::Silent(_)),
            ) => Exit::Timeout,
            _ => Exit::Failed,
        }
    }

    /// Returns the code in JSON: the hypervisor's own where it has refused.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::NoMachine | Self::Machines(_) | Self::Port { .. } => "port",
            Self::Client(error) | Self::Crash(CrashError::Client(error)) => error.code(),
            Self::Crash(error) => error.code(),
            Self::Refused(_) | Self::NoManifest | Self::Board { .. } => "manifest",
            Self::Taken(_) => "taken",
            Self::NotThere(_) => "no-vm",
            Self::Upload(error) => error.code(),
            Self::Timeout { .. } => "timeout",
        }
    }
}
