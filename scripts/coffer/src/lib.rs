// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Coffer: Cofferdam's host tool, as a library.
//!
//! [`init`] writes a manifest to start from. A [`manifest`] and a [`board`] make a [`plan`], with
//! what the [`closure`] says of the board's devices; the plan and the guests' files make a
//! [`bundle`]; [`build`] does it all and builds the hypervisor's image too. [`run`] boots the
//! result in [`qemu`], for a person, an [`expect`]ation, a [`demo`] or a [`mod@bench`];
//! [`symbolize`], [`crash`] and [`doctor`] read what a machine has left behind, [`vm`] asks one that
//! runs.
#![forbid(unsafe_code)]

pub mod bench;
pub mod board;
pub mod build;
pub mod bundle;
pub mod closure;
pub mod command;
pub mod crash;
pub mod demo;
pub mod doctor;
pub mod elf;
pub mod expect;
pub mod explain;
pub mod image;
pub mod init;
pub mod manifest;
pub mod message;
pub mod plan;
pub mod qemu;
pub mod run;
pub mod symbolize;
pub mod terminal;
pub mod tree;
pub mod vm;
