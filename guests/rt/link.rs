// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The build script of every guest program: links it with `linker/guest.ld` at a fixed address.

use std::env::var;

fn main() {
    let manifest = var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{manifest}/../../linker/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    // The target's flags ask for a position-independent image, which the hypervisor is.
    for argument in [&format!("-T{script}"), "--no-pie", "-znorelro", "-zmax-page-size=4096"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
