// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bundle: moved out of the way, kept read-only, its plan decoded and checked.
#![forbid(unsafe_code)]

use super::{Stage, Stop, fail, memory, stop};
use crate::addr::{PAGE_SIZE, PaRange};
use crate::arch::{self, HypMemory};
use crate::memory::owners::{Owner, Owners};
use crate::plan::Plan;
use crate::plan::check::{self, Report};
use crate::plan::machine::Machine;
use crate::spec::bundle::{self, Bundle, HEADER_BYTES};
use crate::spec::size::Size;
use crate::spec::vmsa::HypAttributes;
use crate::vm::build::{self, Source};
use core::fmt::Display;

/// The bundle where it stays.
pub struct Held {
    /// All of it, read-only.
    pub memory: HypMemory,
    /// What is in it.
    pub bundle: Bundle<'static>,
}

impl Held {
    /// Returns where an image is, and its CRC32C.
    pub fn source(&self, name: &str) -> Option<Source> {
        let image = self.bundle.image(name)?;
        let bytes = u64::try_from(image.bytes.len()).ok()?;
        let place = self.memory.part(u64::try_from(image.offset).ok()?, bytes)?;
        Some((place, image.crc32c))
    }
}

/// Finds the bundle where the boot loader has put it as a ramdisk, and moves it to the top of
/// memory, away from where VMs want large blocks.
#[inline(never)]
pub fn take(machine: &Machine, owners: &mut Owners) -> Result<Held, Stop> {
    let fail = |e: &dyn Display| fail(Stage::BUNDLE, e);
    let Some(initrd) = machine.initrd else {
        return Err(fail(
            &"no bundle: load it as the ramdisk (QEMU: -initrd bundle.itb; booti: its address)",
        ));
    };
    let header =
        PaRange::new(initrd.start(), initrd.size().min(HEADER_BYTES as u64)).ok_or(Stop)?;
    let mapped = arch::map_hyp(header, HypAttributes::Rodata).map_err(|e| fail(&e))?;
    let mut start = [0; 24];
    arch::read_bytes(mapped, &mut start);
    arch::unmap_hyp(mapped).map_err(|_| Stop)?;
    let bytes = bundle::total_size(&start).map_err(|e| fail(&e))?;
    if bytes > initrd.size() {
        let error = bundle::BundleError::Truncated { expected: bytes, present: initrd.size() };
        return Err(stop(Stage::BUNDLE, format_args!("{error}; run coffer doctor")));
    }
    let range = PaRange::new(initrd.start(), bytes).ok_or(Stop)?;
    let pages = range.page_cover().ok_or(Stop)?;
    owners.claim(pages, Owner::Bundle).map_err(|e| fail(&e))?;
    let (memory, bytes) = keep(range, owners)?;
    let bundle = Bundle::parse(bytes).map_err(|e| fail(&e))?;
    for image in bundle.images() {
        let place = memory.part(image.offset as u64, image.bytes.len() as u64).ok_or(Stop)?;
        if let Err(e) = image.verify(|_| arch::crc32c(0, place)) {
            return Err(fail(&e));
        }
    }
    Ok(Held { memory, bundle })
}

/// Moves the bundle to the highest memory that holds it, and that no VM must have; where there is
/// none it stays.
fn keep(from: PaRange, owners: &mut Owners) -> Result<(HypMemory, &'static [u8]), Stop> {
    let fail = |e: &dyn Display| fail(Stage::BUNDLE, e);
    let bytes = from.size().next_multiple_of(PAGE_SIZE);
    let source = arch::map_hyp(from, HypAttributes::Data).map_err(|e| fail(&e))?;
    // What is wrong with it is said when it is where it stays.
    let plan = arch::with_bytes(source, |bytes| {
        Bundle::parse(bytes).ok().and_then(|bundle| Plan::decode(bundle.plan().bytes).ok())
    });
    if let Some(plan) = plan {
        memory::set_apart(&plan, owners)?;
    }
    let Some(to) = owners.highest(bytes, PAGE_SIZE) else {
        arch::unmap_hyp(source).map_err(|e| fail(&e))?;
        return arch::map_constant(from).map_err(|e| fail(&e));
    };
    let target = arch::map_hyp(to, HypAttributes::Data).map_err(|e| fail(&e))?;
    arch::copy(target, source);
    arch::unmap_hyp(source).map_err(|e| fail(&e))?;
    arch::unmap_hyp(target).map_err(|e| fail(&e))?;
    owners.release(Owner::Bundle);
    owners.claim(to, Owner::Bundle).map_err(|e| fail(&e))?;
    let kept = PaRange::new(to.start(), from.size()).ok_or(Stop)?;
    arch::map_constant(kept).map_err(|e| fail(&e))
}

/// Reads the plan.
#[inline(never)]
pub fn plan(held: &Held) -> Result<Plan, Stop> {
    let plan = Plan::decode(held.bundle.plan().bytes).map_err(|e| fail(Stage::PLAN, &e))?;
    let size = Size(held.memory.range().size());
    Stage::BUNDLE.say(format_args!("bundle {size} crc32c ok, plan for {}", plan.board));
    Ok(plan)
}

/// Compares the plan with the live machine: what is left is the VMs that can start.
#[inline(never)]
pub fn check<'a>(plan: &'a Plan, machine: &'a Machine, held: &Held) -> Result<Report<'a>, Stop> {
    let image_bytes = |name: &str| held.bundle.image(name).map(|image| image.bytes.len() as u64);
    check::check(plan, machine, build::limits(), &image_bytes)
        .map_err(|refusal| fail(Stage::PLAN, &refusal))
}
