// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a VM is started from, and what it was started from before its last update.
#![forbid(unsafe_code)]

use super::build::{BuildError, Source};
use super::load::Image;
use crate::addr::Address;
use crate::arch::HypMemory;
use crate::heap;
use crate::plan::VmPlan;
use crate::psci::Start;
use alloc::boxed::Box;

/// What a VM is started from.
#[derive(Debug)]
pub struct Payload {
    /// What goes into its memory.
    pub images: Box<[Image]>,
    /// Where vCPU 0 starts.
    pub start: Start,
    /// The memory in which the images have come after boot, which is the VM's alone.
    pub bundle: Option<HypMemory>,
}

impl Payload {
    /// Finds what a plan names; `find` has a bundle's images.
    ///
    /// # Errors
    /// An image is missing, or there is no memory for the list.
    pub fn find(plan: &VmPlan, find: &dyn Fn(&str) -> Option<Source>) -> Result<Self, BuildError> {
        let mut images = heap::list(plan.images.len())?;
        for image in &plan.images {
            let (source, crc32c) =
                find(&image.name).ok_or_else(|| BuildError::NoImage(image.name.clone()))?;
            heap::push(&mut images, Image { source, ipa: image.ipa, crc32c })?;
        }
        let start = Start { entry: plan.entry, context: plan.tree.get() };
        // The list is full, so this moves nothing.
        Ok(Self { images: images.into(), start, bundle: None })
    }
}

/// What a VM is started from, and what it gets back when it does not keep that.
#[derive(Debug)]
pub struct Payloads {
    /// What it is started from.
    pub now: Payload,
    /// What it was started from before.
    pub before: Option<Payload>,
}

impl Payloads {
    /// Makes those of a VM that has never been updated.
    #[must_use]
    pub const fn new(now: Payload) -> Self {
        Self { now, before: None }
    }

    /// Returns the memory that is the VM's alone.
    pub fn bundles(&self) -> impl Iterator<Item = HypMemory> {
        let before = self.before.as_ref().and_then(|before| before.bundle);
        self.now.bundle.into_iter().chain(before)
    }

    /// Puts others in their place; these come back by [`Self::go_back`]. Returns what cannot come
    /// back any more.
    #[must_use]
    pub fn replace(&mut self, now: Payload) -> Option<Payload> {
        self.before.replace(core::mem::replace(&mut self.now, now))
    }

    /// Takes those before back, where there are any, and returns what is no longer used.
    pub fn go_back(&mut self) -> Option<Payload> {
        let before = self.before.take()?;
        Some(core::mem::replace(&mut self.now, before))
    }
}
