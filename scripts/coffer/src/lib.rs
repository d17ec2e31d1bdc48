// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stub.
pub mod expect;
pub mod qemu;
