// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Coffer: Cofferdam's host tool, as a library.
//!
//! A [`manifest`] and a [`board`] make a [`plan`]; the plan and the guests' files make a
//! [`bundle`]; [`build`] does it all and builds the hypervisor's image too.
#![forbid(unsafe_code)]

pub mod expect;
pub mod explain;
pub mod manifest;
pub mod message;
pub mod qemu;
