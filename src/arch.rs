// SPDX-License-Identifier: Apache-2.0 OR MIT
//! stub
#![forbid(unsafe_code)]

#[cfg(not(target_os = "none"))]
pub mod fake;
