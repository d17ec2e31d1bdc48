// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory: who owns each page, and the tables that hold everybody to it.
//!
//! - [`owners`]: one owner for each page, by construction;
//! - [`mapper`]: maps and unmaps in translation tables, for [`stage2`] (guests) and [`hyp_map`]
//!   (EL2 itself);
//! - [`vmid`]: the tags of the VMs' TLB entries;
//! - [`guest`]: where the bytes are that a guest points at;
//! - [`cache_range`]: which cache lines hold a range.
#![forbid(unsafe_code)]

pub mod cache_range;
pub mod guest;
pub mod hyp_map;
pub mod mapper;
pub mod owners;
pub mod stage2;
pub mod vmid;
