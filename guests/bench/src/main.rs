// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stub, replaced by the next commits.
fn main() {}
