// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine made of ordinary memory, for tests on the developer's computer.
#![forbid(unsafe_code)]

mod board;
pub mod machine;
pub mod memory;
mod tables;
mod time;
