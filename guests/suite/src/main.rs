// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The conformance suite.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest_rt::{entry, test};

entry!(main);

fn main() {
    test::run_all(&[])
}
