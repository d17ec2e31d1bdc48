// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Links the bare-metal image with `linker/image.ld` and stamps it with the revision.

use std::env;
use std::path::Path;
use std::process::Command;

/// Runs git and returns what it says, or `None` where there is no git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

fn main() {
    println!("cargo:rerun-if-changed=linker/image.ld");
    println!("cargo:rerun-if-changed=scripts/build.rs");
    // A file that is not there would count as changed every time.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let revision = git(&["rev-parse", "--short=7", "HEAD"]);
    println!("cargo:rustc-env=COFFERDAM_REVISION={}", revision.unwrap_or_else(|| "unknown".into()));

    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in ["-pie", "--no-dynamic-linker", "-znorelro", "--build-id=none"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
        // Smaller: relocations as bits, and one copy of equal functions.
        for arg in ["--pack-dyn-relocs=relr", "--icf=all", "-O2"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
        println!("cargo:rustc-link-arg-bins=-T{root}/linker/image.ld");
    }
}
