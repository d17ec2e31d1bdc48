// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A directory with a board and guests' files, and the tool running in it.

use assert_cmd::Command;
use std::path::PathBuf;
use tempfile::TempDir;

/// A test's own directory.
pub struct Bed(TempDir);

/// How the tool ended and what it said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Makes an Image that takes so many bytes of memory; `fill` tells images apart.
pub fn image(memory_bytes: u64, fill: u8) -> Vec<u8> {
    let mut image = vec![fill; 4096];
    let fields = [0, memory_bytes, 0b1010].map(u64::to_le_bytes).concat();
    image[8..32].copy_from_slice(&fields);
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// Runs dtc on a file and returns what it writes to standard output; it must not complain.
pub fn dtc(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("dtc").args(arguments).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "dtc: {complaints}");
    output.stdout
}

impl Bed {
    /// Makes a directory with a board, two kernels and a ramdisk.
    pub fn new() -> Self {
        let bed = Self(TempDir::new().unwrap());
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/board.dts");
        // `dmas` leads to a node that is no DMA controller, on purpose.
        let checks = ["-Wno-dmas_property", "-Wno-clocks_property", "-Wno-unit_address_vs_reg"];
        let arguments = [&checks[..], &["-q", "-@", "-I", "dts", "-O", "dtb", source]].concat();
        bed.write("board/board.dtb", &dtc(&arguments));
        bed.write("board/board.toml", b"format = 1\n[tree]\nfile = \"board.dtb\"\n");
        bed.write("Image", &image(4 << 20, 1));
        bed.write("Other", &image(4 << 20, 2));
        bed.write("initrd", b"a ramdisk");
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Runs the tool in the directory.
    pub fn coffer(&self, arguments: &[&str]) -> Said {
        let mut command = Command::cargo_bin("coffer").unwrap();
        let output = command.current_dir(self.0.path()).args(arguments).output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Plans a manifest as it stands.
    pub fn plan_bytes(&self, manifest: &[u8]) -> Said {
        self.write("m.toml", manifest);
        self.coffer(&["plan", "m.toml"])
    }

    /// Plans what follows the lines that every manifest has.
    pub fn plan(&self, rest: &str) -> Said {
        self.plan_bytes(format!("format = 1\nboard = \"board/board.toml\"\n{rest}").as_bytes())
    }

    /// Plans and expects a refusal; returns what is said.
    pub fn refused(&self, rest: &str) -> String {
        let said = self.plan(rest);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
        said.err
    }

    /// Plans one VM to which these lines are added and expects a refusal.
    pub fn vm_refused(&self, lines: &str) -> String {
        self.refused(&format!(
            "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n{lines}"
        ))
    }

    /// Plans and expects success; returns the report.
    pub fn planned(&self, rest: &str) -> String {
        let said = self.plan(rest);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
        said.out
    }
}

/// Expects one message with this code that says to write this.
#[track_caller]
pub fn expect(said: &str, code: &str, write: &str) {
    assert!(said.starts_with(&format!("error[{code}]: ")), "{said}");
    assert_eq!(said.matches("error[").count(), 1, "{said}");
    assert!(said.contains(&format!("= write: {write}\n")), "{said}");
}

/// Expects one message with this code and this text in it.
#[track_caller]
pub fn expect_text(said: &str, code: &str, text: &str) {
    assert!(said.starts_with(&format!("error[{code}]: ")), "{said}");
    assert_eq!(said.matches("error[").count(), 1, "{said}");
    assert!(said.contains(text), "{said}");
}
