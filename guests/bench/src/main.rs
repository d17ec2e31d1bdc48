// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bench.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest_rt::entry;

entry!(main);

fn main() {}
