// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM by itself: its address space, its images and the interrupt numbers that it sees.
#![forbid(unsafe_code)]

use super::{Claim, Limits, Part, Refusal};
use crate::addr::{Address, Ipa, IpaRange, PAGE_SIZE, PaRange};
use crate::heap;
use crate::plan::{Layout, VgicFrames, VmPlan};
use alloc::vec::Vec;

/// Interrupts that can be shared by PEs (IHI 0069, section 2.2).
pub(super) const SPIS: core::ops::RangeInclusive<u32> = 32..=1019;

/// What a redistributor, the distributor of GICv3 and an ITS are aligned to (IHI 0069, section
/// 12.1).
const FRAME_ALIGN: u64 = 0x1_0000;
/// What a device tree is aligned to, and an instruction.
const TREE_ALIGN: u64 = 8;
const ENTRY_ALIGN: u64 = 4;

type Check<'a> = Result<(), Refusal<'a>>;

/// Checks everything that does not depend on the machine or on other VMs.
pub(super) fn check<'a>(
    vm: &'a VmPlan,
    limits: Limits,
    image_bytes: &dyn Fn(&str) -> Option<u64>,
) -> Check<'a> {
    if vm.vcpus.is_empty() {
        return Err(Refusal::NoVcpu);
    }
    check_address_space(vm, limits)?;
    check_images(vm, image_bytes)?;
    check_addresses(vm)?;
    check_interrupts(vm)
}

/// Checks that nothing in the address space overlaps, or lies beyond its end.
fn check_address_space<'a>(vm: &'a VmPlan, limits: Limits) -> Check<'a> {
    let mut claims: Vec<Claim<'a>> = Vec::new();
    let mut add = |part, range: Option<IpaRange>, align| {
        let range = range.filter(|range| ends_within(range.end(), limits.ipa_bits));
        let range = range.ok_or(Refusal::Beyond(part, limits.ipa_bits))?;
        if !range.is_aligned(PAGE_SIZE) || !range.start().is_aligned(align) {
            return Err(Refusal::Misaligned(part, align));
        }
        let claim = Claim { part, range };
        if let Some(other) = claims.iter().find(|other| other.range.overlaps(range)) {
            return Err(Refusal::Overlap(claim, *other));
        }
        heap::push(&mut claims, claim).map_err(|_| Refusal::NoMemory)
    };
    add(Part::Memory, Some(vm.memory), PAGE_SIZE)?;
    let (part, frame_align) = match vm.layout.vgic {
        VgicFrames::V2 { .. } => (Part::VcpuInterface, PAGE_SIZE),
        VgicFrames::V3 { .. } => (Part::Vredist, FRAME_ALIGN),
    };
    add(Part::Vdist, vm.layout.vdist_range(), frame_align)?;
    add(part, vm.layout.vgic_range(vm.vcpus.len()), frame_align)?;
    if let VgicFrames::V3 { .. } = vm.layout.vgic {
        add(Part::Vits, vm.layout.vits_range(), FRAME_ALIGN)?;
    }
    add(Part::Vuart, vm.layout.vuart_range(), PAGE_SIZE)?;
    add(Part::Platform, vm.layout.platform_range(), PAGE_SIZE)?;
    for device in &vm.devices {
        let part = Part::Device(&device.path);
        for (registers, ipa) in &device.regions {
            check_registers(part, *registers, limits)?;
            add(part, IpaRange::new(*ipa, registers.size()), PAGE_SIZE)?;
        }
    }
    Ok(())
}

/// Checks that registers are whole pages and that there are such addresses.
fn check_registers<'a>(part: Part<'a>, registers: PaRange, limits: Limits) -> Check<'a> {
    if !registers.is_aligned(PAGE_SIZE) {
        return Err(Refusal::Misaligned(part, PAGE_SIZE));
    }
    if !ends_within(registers.end(), limits.pa_bits) {
        return Err(Refusal::Beyond(part, limits.pa_bits));
    }
    Ok(())
}

/// Returns whether a range that ends before `end` has no address of more than `bits` bits.
fn ends_within(end: impl Address, bits: u32) -> bool {
    1_u64.checked_shl(bits).is_none_or(|limit| end.get() <= limit)
}

/// Checks that the images are those of the bundle and do not overlap in the VM's memory.
fn check_images<'a>(vm: &'a VmPlan, image_bytes: &dyn Fn(&str) -> Option<u64>) -> Check<'a> {
    let mut claims: Vec<Claim<'a>> = Vec::new();
    for image in &vm.images {
        let name = image.name.as_str();
        let found = image_bytes(name).ok_or(Refusal::NoImage(name))?;
        let expected = image.size_bytes;
        if found != expected {
            return Err(Refusal::ImageSize { name, expected, found });
        }
        let part = Part::Image(name);
        let range = IpaRange::new(image.ipa, expected).filter(|range| vm.memory.covers(*range));
        let claim = Claim { part, range: range.ok_or(Refusal::Outside(part, vm.memory))? };
        if let Some(other) = claims.iter().find(|other| other.range.overlaps(claim.range)) {
            return Err(Refusal::Overlap(claim, *other));
        }
        heap::push(&mut claims, claim).map_err(|_| Refusal::NoMemory)?;
    }
    Ok(())
}

/// Checks where vCPU 0 starts and where it finds its device tree.
fn check_addresses<'a>(vm: &'a VmPlan) -> Check<'a> {
    let inside = |part, address: Ipa, align| {
        if !vm.memory.contains(address) {
            return Err(Refusal::Outside(part, vm.memory));
        }
        address.is_aligned(align).then_some(()).ok_or(Refusal::Misaligned(part, align))
    };
    inside(Part::Entry, vm.entry, ENTRY_ALIGN)?;
    inside(Part::Tree, vm.tree, TREE_ALIGN)
}

/// Checks that the VM sees each interrupt under a number of its own.
fn check_interrupts<'a>(vm: &'a VmPlan) -> Check<'a> {
    let mut seen = Vec::new();
    let devices = vm.devices.iter().flat_map(|device| &device.interrupts);
    let Layout { vuart_interrupt, gpio_interrupt, watchdog_interrupt, .. } = vm.layout;
    let own = [vuart_interrupt, gpio_interrupt, watchdog_interrupt];
    for vintid in devices.map(|spi| spi.vintid).chain(own) {
        if !SPIS.contains(&vintid.get()) {
            return Err(Refusal::NoVirtualSpi(vintid));
        }
        if seen.contains(&vintid) {
            return Err(Refusal::VintidTwice(vintid));
        }
        heap::push(&mut seen, vintid).map_err(|_| Refusal::NoMemory)?;
    }
    Ok(())
}
