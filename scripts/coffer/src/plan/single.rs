// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The part of a plan that a machine takes while it runs: one VM and its images.
#![forbid(unsafe_code)]

use crate::bundle::Bundle;
use cofferdam::plan::{Knobs, List, Plan};

impl Bundle {
    /// Returns the part with the VM of this name alone; `None` where the plan has none.
    ///
    /// It depends on nobody: a plan names other VMs by their places in it, and these are not in it.
    #[must_use]
    pub fn single(&self, name: &str) -> Option<Self> {
        let mut vm = self.plan.vms.iter().find(|vm| vm.name == name)?.clone();
        vm.policies.after = List::default();
        let is_own = |image: &str| vm.images.iter().any(|own| own.name == image);
        let images = self.images.iter().filter(|image| is_own(&image.name)).cloned().collect();
        let vms = List::new(vec![vm])?;
        let plan = Plan { vms, knobs: Knobs::default(), ..self.plan.clone() };
        Some(Self { plan, images })
    }
}
