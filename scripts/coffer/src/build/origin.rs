// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine was built from. It is left beside the image, so that who changes the machine
//! while it runs plans with the same manifest, for the same tree.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

/// The name of the link to the manifest.
const MANIFEST: &str = "manifest";
/// The name of the board's tree.
const TREE: &str = "board.dtb";

/// What a machine was built from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The manifest, where it stands: paths in it are relative to its folder.
    pub manifest: PathBuf,
    /// The board's device tree.
    pub tree: PathBuf,
}

impl Origin {
    /// Leaves it in the folder of what was built.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep(folder: &Path, manifest: &Path, tree: &[u8]) -> io::Result<()> {
        std::fs::write(folder.join(TREE), tree)?;
        let link = folder.join(MANIFEST);
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(std::path::absolute(manifest)?, link)
    }

    /// Finds it beside something that was built, or a socket of the machine.
    #[must_use]
    pub fn beside(file: &Path) -> Option<Self> {
        let manifest = std::fs::read_link(file.with_file_name(MANIFEST)).ok()?;
        Some(Self { manifest, tree: file.with_file_name(TREE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_last_is_found() {
        let bed = tempfile::tempdir().unwrap();
        let socket = bed.path().join("control.sock");
        assert_eq!(Origin::beside(&socket), None);
        for name in ["first.toml", "second.toml"] {
            let manifest = bed.path().join("elsewhere").join(name);
            Origin::keep(bed.path(), &manifest, name.as_bytes()).unwrap();
            let origin = Origin::beside(&socket).unwrap();
            assert_eq!(origin.manifest, manifest);
            assert_eq!(std::fs::read(origin.tree).unwrap(), name.as_bytes());
        }
        Origin::keep(bed.path(), Path::new("m.toml"), b"").unwrap();
        assert!(Origin::beside(&socket).unwrap().manifest.is_absolute());
    }
}
