// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Making a VM and taking it apart: memory placed, stage 2 built, models made.
//!
//! What cannot be made leaves nothing behind: both ways end in `take_down`.
#![forbid(unsafe_code)]

use super::Vm;
use super::bus::Bus;
use super::crash::Capsule;
use super::fate::Fate;
use super::lifecycle::Lifecycle;
use super::load::{Image, Loader};
use crate::addr::{Ipa, IpaRange, PAGE_SIZE, PaRange};
use crate::arch::{self, HeapTables, HypMapError, HypMemory, Stage2Registers, Tlb};
use crate::gic::{ConfigError, SpiToken, Version, Vgic, Vits};
use crate::heap::NoMemory;
use crate::hypervisor::Estate;
use crate::id::{Mpidr, Pintid, VcpuId, Vintid, VmId};
use crate::memory::guest::{BadChunk, Chunk, GuestMemory};
use crate::memory::mapper::MapError;
use crate::memory::owners::{self, Owner};
use crate::memory::stage2::Stage2;
use crate::plan::machine::Gic;
use crate::plan::{Name, VgicFrames, VmPlan};
use crate::psci::Psci;
use crate::sort::sort_by_key;
use crate::spec::vmsa::{Geometry, HypAttributes, Stage2Attributes, ps};
use crate::sync::{Lock, OpenLock};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicU64;

/// The bits of an IPA. Every VM has the same, so that one root serves from 1 GiB to 1 TiB.
pub const IPA_BITS: u32 = 40;
/// The SPIs that every VM has at least: as many as QEMU's `virt` has.
const SPI_COUNT: u32 = 256;

/// Why a VM cannot be made.
#[derive(Debug)]
pub enum BuildError {
    /// There is no memory for it.
    NoRoom,
    /// EL2 has no memory left for what it keeps of a VM.
    NoMemory,
    /// All tags of TLB entries are in use.
    NoVmid,
    /// Stage 2 does not fit this machine.
    Geometry,
    /// A window of the plan wraps.
    Wraps,
    /// Its memory does not fit its address space.
    Memory(BadChunk),
    /// What it wants is somebody else's.
    Clash(owners::Refusal),
    /// Its addresses do not fit.
    Map(MapError<Ipa>),
    /// EL2 cannot map its memory.
    HypMap(HypMapError),
    /// Its interrupts do not fit.
    Interrupts(ConfigError),
    /// The bundle has no image of this name.
    NoImage(Name),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom => f.write_str("there is no memory for it"),
            Self::NoMemory => f.write_str("the hypervisor has no memory left for it"),
            Self::NoVmid => f.write_str("no VMID left"),
            Self::Geometry => f.write_str("stage 2 does not fit this machine"),
            Self::Wraps => f.write_str("a window of its devices wraps"),
            Self::Memory(e) => e.fmt(f),
            Self::Clash(e) => e.fmt(f),
            Self::Map(e) => e.fmt(f),
            Self::HypMap(e) => e.fmt(f),
            Self::Interrupts(e) => write!(f, "interrupts: {e}"),
            Self::NoImage(name) => write!(f, "the bundle has no {name}"),
        }
    }
}

/// Where an image of the bundle is, and its CRC32C.
pub type Source = (HypMemory, u32);

/// Makes a VM that is off; `find` has the bundle's images.
///
/// # Errors
/// Says why not; everything is then as before.
pub fn build(
    id: VmId,
    plan: VmPlan,
    find: impl Fn(&str) -> Option<Source>,
    estate: &mut Estate,
) -> Result<Vm, BuildError> {
    // First what needs nothing of the estate.
    let images = images(&plan, find)?;
    let models = Models::new(&plan)?;
    let mut made = Made { id, stage2: None, mapped: Vec::new() };
    let memory = match made.make(&plan, estate) {
        Ok(memory) => memory,
        Err(error) => {
            take_down(made, estate);
            return Err(error);
        }
    };
    let Made { stage2: Some(translation), mapped, .. } = made else {
        return Err(BuildError::Geometry);
    };
    let Models { vgic, spis, psci, vits, links, capsule } = models;
    Ok(Vm {
        id,
        stage2: Stage2Registers {
            vttbr: translation.vttbr_el2(),
            vtcr: translation.vtcr_el2(),
            encoding: estate.features.encoding,
        },
        translation,
        memory,
        psci,
        vgic,
        spis: OpenLock::new(spis),
        vits,
        serial: Lock::default(),
        platform: Lock::default(),
        bus: Bus::new(&plan.layout, plan.vcpus.len()),
        lifecycle: Lifecycle::new(),
        fate: Fate::new(),
        capsule: Lock::new(capsule),
        loader: Loader::new(images, mapped.into()),
        counter_offset_ticks: AtomicU64::new(0),
        links,
        pcpus: plan.vcpus.iter().copied().collect(),
        kicks: plan.vcpus.iter().map(|mpidr| arch::SgiTarget::new(*mpidr)).collect(),
        pa_range: ps(IPA_BITS),
        plan,
    })
}

/// Takes a VM apart that no core serves any more.
pub fn destroy(vm: Vm, estate: &mut Estate) {
    let Vm { id, translation, loader, .. } = vm;
    take_down(Made { id, stage2: Some(translation), mapped: loader.into_memory() }, estate);
}

/// What of a VM has a counterpart in the estate.
struct Made {
    id: VmId,
    stage2: Option<Stage2>,
    /// EL2's own mapping of the memory.
    mapped: Vec<(Chunk, HypMemory)>,
}

/// Gives everything back. No core uses the VM's translations any more.
fn take_down(made: Made, estate: &mut Estate) {
    if let Some(stage2) = made.stage2 {
        // The TLBs forget the VM before its tag and its pages are anybody else's (traps T10).
        let vmid = stage2.dismantle(&mut HeapTables, &mut Tlb::default(), &mut || ());
        estate.vmids.release(vmid);
    }
    for (_, memory) in made.mapped {
        // What is mapped can be unmapped.
        let _ = arch::unmap_hyp(memory);
    }
    estate.owners.release(Owner::Vm(made.id));
}

impl Made {
    /// Finds memory and makes stage 2 map it, and EL2 too.
    fn make(&mut self, plan: &VmPlan, estate: &mut Estate) -> Result<GuestMemory, BuildError> {
        let memory = place(self.id, plan, estate)?;
        self.translate(plan, &memory, estate)?;
        for chunk in memory.chunks() {
            let range = PaRange::new(chunk.pa, chunk.ipa.size()).ok_or(BuildError::Wraps)?;
            let mapped = arch::map_hyp(range, HypAttributes::Data).map_err(BuildError::HypMap)?;
            self.mapped.push((*chunk, mapped));
        }
        Ok(memory)
    }

    /// Makes stage 2 map that memory and the devices that the VM drives, and nothing else.
    fn translate(
        &mut self,
        plan: &VmPlan,
        memory: &GuestMemory,
        estate: &mut Estate,
    ) -> Result<(), BuildError> {
        let stage2 = self.stage2.insert(empty_stage2(estate)?);
        let mut tlb = Tlb::default();
        let mut map = |ipa, pa, attributes| {
            stage2.map(&mut HeapTables, &mut tlb, ipa, pa, attributes).map_err(BuildError::Map)
        };
        for chunk in memory.chunks() {
            map(chunk.ipa, chunk.pa, Stage2Attributes::Ram)?;
        }
        for (registers, ipa) in plan.devices.iter().flat_map(|d| d.regions.iter()) {
            let owner = Owner::Vm(self.id);
            estate.owners.claim_device(*registers, owner).map_err(BuildError::Clash)?;
            let ipa = IpaRange::new(*ipa, registers.size()).ok_or(BuildError::Wraps)?;
            map(ipa, registers.start(), Stage2Attributes::Device)?;
        }
        if let (VgicFrames::V2 { gicc }, Gic::V2 { gicv: Some(gicv), .. }) =
            (plan.layout.vgic, &estate.machine.gic)
        {
            // The first page alone: GICV_DIR, in the second one, is answered by EL2 (ADR 9).
            let page = IpaRange::new(gicc, PAGE_SIZE).ok_or(BuildError::Wraps)?;
            map(page, gicv.start(), Stage2Attributes::Device)?;
        }
        Ok(())
    }
}

/// Finds memory, as few and as large pieces as there are.
fn place(id: VmId, plan: &VmPlan, estate: &mut Estate) -> Result<GuestMemory, BuildError> {
    let pieces = estate.owners.place(plan.memory.size(), Owner::Vm(id));
    let pieces = pieces.map_err(|_| BuildError::NoRoom)?;
    GuestMemory::lay_out(plan.memory.start(), &pieces).map_err(BuildError::Memory)
}

/// Makes tables that map nothing, with a tag of their own.
fn empty_stage2(estate: &mut Estate) -> Result<Stage2, BuildError> {
    let geometry = Geometry::stage2(IPA_BITS.min(estate.features.pa_bits));
    let geometry = geometry.ok_or(BuildError::Geometry)?;
    let vmid = estate.vmids.allocate(arch::forget_all_vmids).ok_or(BuildError::NoVmid)?;
    let stage2 = Stage2::allocate(&mut HeapTables, geometry, estate.features, vmid);
    stage2.map_err(|error| {
        estate.vmids.release(vmid);
        BuildError::Map(error)
    })
}

/// Finds the images that go into a VM's memory.
fn images(
    plan: &VmPlan,
    find: impl Fn(&str) -> Option<Source>,
) -> Result<Box<[Image]>, BuildError> {
    let found = plan.images.iter().map(|image| {
        let (source, crc32c) =
            find(&image.name).ok_or_else(|| BuildError::NoImage(image.name.clone()))?;
        Ok(Image { source, ipa: image.ipa, crc32c })
    });
    found.collect()
}

/// The models of a VM.
struct Models {
    vgic: Vgic,
    spis: SpiToken,
    psci: Psci,
    vits: Option<Lock<Vits>>,
    links: Box<[(Vintid, Pintid)]>,
    capsule: Capsule,
}

impl Models {
    fn new(plan: &VmPlan) -> Result<Self, BuildError> {
        let affinities: Vec<Mpidr> =
            (0..).take(plan.vcpus.len()).map(|n| Vm::mpidr_of(VcpuId::new(n))).collect();
        let spis = plan.devices.iter().flat_map(|d| d.interrupts.iter());
        let mut links: Vec<_> = spis.map(|spi| (spi.vintid, spi.pintid)).collect();
        sort_by_key(&mut links, |link| link.1.get().into());
        let (version, has_its) = match plan.layout.vgic {
            VgicFrames::V2 { .. } => (Version::V2, false),
            VgicFrames::V3 { .. } => (Version::V3, true),
        };
        let vgic = Vgic::new(version, &affinities, SPI_COUNT, &links);
        let (vgic, spis) = vgic.map_err(BuildError::Interrupts)?;
        Ok(Self {
            vgic: if has_its { vgic.with_lpis() } else { vgic },
            spis,
            psci: Psci::new(&affinities),
            vits: has_its.then(|| Lock::new(Vits::new())),
            links: links.into(),
            capsule: Capsule::new(affinities.len()).map_err(|NoMemory| BuildError::NoMemory)?,
        })
    }
}
