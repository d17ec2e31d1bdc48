// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tool from outside: manifests go in, text and exit codes come out.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod bed;
mod boots;
mod control;
mod create;
mod devices;
mod el2;
mod first;
mod grammar;
mod hostile;
mod init;
mod manifests;
mod pages;
mod plans;
mod policies;
mod schema;
