// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which machine is meant, and the line to it.
#![forbid(unsafe_code)]

use super::Error;
use super::client::Client;
use super::port::{SystemPort, running};
use crate::run::work_folder;
use std::path::{Path, PathBuf};

/// The line to a machine.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LineArgs {
    /// The socket or serial device (default: that of the machine that coffer run has started)
    #[arg(long, value_name = "PATH")]
    pub port: Option<PathBuf>,
    /// The speed of a serial device
    #[arg(long, default_value_t = 115_200)]
    pub baud: u32,
    /// Write JSON (format 1)
    #[arg(long)]
    pub json: bool,
}

impl LineArgs {
    /// Returns the port that is named, or that of the only machine that runs.
    pub(super) fn path(&self) -> Result<PathBuf, Error> {
        match &self.port {
            Some(path) => Ok(path.clone()),
            None => only(running(&work_folder(""))),
        }
    }

    /// Opens the port at `path`.
    pub(super) fn open(&self, path: &Path) -> Result<Client<SystemPort>, Error> {
        let port = SystemPort::open(path, self.baud);
        let port = port.map_err(|source| Error::Port { path: path.to_owned(), source })?;
        Ok(Client::new(port, first_seq()))
    }
}

fn only(mut paths: Vec<PathBuf>) -> Result<PathBuf, Error> {
    match (paths.pop(), paths.is_empty()) {
        (Some(path), true) => Ok(path),
        (Some(path), false) => {
            paths.push(path);
            Err(Error::Machines(paths))
        }
        (None, _) => Err(Error::NoMachine),
    }
}

/// Draws a number: whoever was here before must not have used it of late.
fn first_seq() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Opens the port of a machine that was started with this image, for other programs.
///
/// # Errors
/// Nobody listens there yet.
pub fn connect(image: &Path) -> std::io::Result<Client<SystemPort>> {
    let port = SystemPort::open(&crate::qemu::control_socket(image), 0)?;
    Ok(Client::new(port, first_seq()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_is_found_and_two_are_named() {
        assert_eq!(only(vec!["a".into()]).unwrap(), PathBuf::from("a"));
        assert!(only(vec![]).unwrap_err().to_string().ends_with("coffer run MANIFEST"));
        let said = only(vec!["a".into(), "b".into()]).unwrap_err().to_string();
        assert!(said.ends_with("write one of\n  --port a\n  --port b"), "{said}");
    }
}
