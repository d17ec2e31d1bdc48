// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ELF files: what is loaded from them.
#![forbid(unsafe_code)]

pub mod flatten;
