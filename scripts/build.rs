// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Links the bare-metal image with `linker/image.ld` and stamps it with the revision.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=linker/image.ld");
    println!("cargo:rerun-if-changed=scripts/build.rs");
    println!("cargo:rerun-if-changed=.git/HEAD");
    let revision = Command::new("git").args(["rev-parse", "--short=7", "HEAD"]).output();
    let revision = revision.ok().filter(|o| o.status.success());
    let revision = revision.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    println!("cargo:rustc-env=COFFERDAM_REVISION={}", revision.unwrap_or_else(|| "unknown".into()));

    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in ["-pie", "--no-dynamic-linker", "-znorelro", "--build-id=none"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
        println!("cargo:rustc-link-arg-bins=-T{root}/linker/image.ld");
    }
}
