// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What VMs are made of: the machine as boot has found it, and who owns which part of it.
#![forbid(unsafe_code)]

use crate::memory::owners::Owners;
use crate::memory::vmid::Vmids;
use crate::plan::VMS_MAX;
use crate::plan::machine::Machine;
use crate::spec::vmsa::Features;

/// The machine and what of it is given away.
#[derive(Debug)]
pub struct Estate {
    /// What the host's tree says.
    pub machine: &'static Machine,
    /// What all cores can do.
    pub features: Features,
    /// The owner of each page.
    pub owners: Owners,
    /// The tags of TLB entries.
    pub vmids: Vmids<VMS_MAX>,
}
