// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Making a VM and taking it apart: memory placed, stage 2 built, models made.
//!
//! What cannot be made leaves nothing behind: both ways end in `take_down`.
#![forbid(unsafe_code)]

use super::Vm;
use super::bus::Bus;
use super::clock::Clock;
use super::crash::Capsule;
use super::fate::Fate;
use super::lifecycle::Lifecycle;
use super::load::Loader;
use super::payload::{Payload, Payloads};
use crate::addr::{Ipa, IpaRange, PAGE_SIZE, PaRange};
use crate::arch::{self, HeapTables, HypMapError, HypMemory, Stage2Registers, Tlb};
use crate::gic::{ConfigError, SpiToken, Version, Vgic, Vits};
use crate::heap::{self, NoMemory};
use crate::hypervisor::Estate;
use crate::id::{Pintid, VcpuId, Vintid, VmId};
use crate::memory::guest::{BadChunk, Chunk, GuestMemory, LayOutError};
use crate::memory::mapper::MapError;
use crate::memory::owners::{self, Owner};
use crate::memory::stage2::Stage2;
use crate::plan::check::Limits;
use crate::plan::machine::Gic;
use crate::plan::{Name, VgicFrames, VmPlan};
use crate::psci::Psci;
use crate::sort::sort_by_key;
use crate::spec::vmsa::{Geometry, HypAttributes, Stage2Attributes, ps};
use crate::sync::{Lock, OpenLock};
use crate::trace::ExitCounters;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

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

impl From<NoMemory> for BuildError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom => f.write_str("there is no memory for it"),
            Self::NoMemory => NoMemory.fmt(f),
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

/// Returns how far addresses reach.
#[must_use]
pub fn limits() -> Limits {
    let pa_bits = arch::features().translation().pa_bits;
    Limits { ipa_bits: IPA_BITS.min(pa_bits), pa_bits }
}

/// Where an image of the bundle is, and its CRC32C.
pub type Source = (HypMemory, u32);

/// Makes a VM that is off, with a `pause` now and then; `find` has the bundle's images.
///
/// # Errors
/// Says why not; everything is then as before.
pub fn build(
    id: VmId,
    plan: VmPlan,
    find: &dyn Fn(&str) -> Option<Source>,
    estate: &Lock<Estate>,
    pause: &mut dyn FnMut(),
) -> Result<Vm, BuildError> {
    // First what needs nothing of the estate.
    let payload = Payload::find(&plan, find)?;
    let Models { vgic, spis, psci, vits, links, capsule } = Models::new(&plan, pause)?;
    let pcpus = heap::collect(plan.vcpus.iter().copied())?;
    let kicks = heap::collect(pcpus.iter().map(|mpidr| arch::SgiTarget::new(*mpidr)))?;
    let counters = ExitCounters::of_vcpus(plan.vcpus.len(), pause)?;
    let Share { memory, stage2, registers, gicv } = claim(id, &plan, &mut estate.acquire())?;
    pause();
    let mut made = Made { id, stage2, mapped: Vec::new() };
    if let Err(error) = made.map(&plan, &memory, gicv, pause) {
        take_down(made, estate, pause);
        return Err(error);
    }
    let Made { stage2, mapped, .. } = made;
    Ok(Vm {
        id,
        translation: stage2,
        stage2: registers,
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
        // It is full, so this moves nothing.
        loader: Loader::new(mapped.into()),
        payloads: Lock::new(Payloads::new(payload)),
        clock: Clock::new(),
        links,
        pcpus,
        kicks,
        counters,
        pa_range: ps(IPA_BITS),
        plan,
    })
}

/// Takes a VM apart that no core serves any more, with a `pause` now and then.
pub fn destroy(vm: Vm, estate: &Lock<Estate>, pause: &mut dyn FnMut()) {
    let Vm { id, translation, loader, payloads, .. } = vm;
    for bundle in payloads.into_inner().bundles() {
        // It was mapped at once, and is unmapped at once.
        let unmapped = arch::unmap_hyp(bundle);
        debug_assert!(unmapped.is_ok());
    }
    estate.acquire().owners.release(Owner::Images(id));
    pause();
    take_down(Made { id, stage2: translation, mapped: loader.into_memory() }, estate, pause);
}

/// What a VM has of the estate: pages, registers of devices, a tag.
struct Share {
    memory: GuestMemory,
    /// Maps nothing yet.
    stage2: Stage2,
    registers: Stage2Registers,
    /// The machine's virtual CPU interfaces, where it has a GICv2.
    gicv: Option<PaRange>,
}

/// Takes a VM's share of the estate, or nothing.
fn claim(id: VmId, plan: &VmPlan, estate: &mut Estate) -> Result<Share, BuildError> {
    let claimed = claim_all(id, plan, estate);
    if claimed.is_err() {
        estate.owners.release(Owner::Vm(id));
    }
    claimed
}

fn claim_all(id: VmId, plan: &VmPlan, estate: &mut Estate) -> Result<Share, BuildError> {
    let owner = Owner::Vm(id);
    let pieces = match plan.identity() {
        // As few and as large pieces as there are.
        None => {
            estate.owners.place(plan.memory.size(), owner).map_err(|refusal| match refusal {
                owners::Refusal::ListFull => BuildError::NoMemory,
                _ => BuildError::NoRoom,
            })?
        }
        Some(range) => {
            // At boot some of it is its own already.
            estate.owners.release(owner);
            estate.owners.claim(range, owner).map_err(BuildError::Clash)?;
            heap::collect([range].into_iter())?.into()
        }
    };
    let memory =
        GuestMemory::lay_out(plan.memory.start(), &pieces).map_err(|error| match error {
            LayOutError::Chunk(chunk) => BuildError::Memory(chunk),
            LayOutError::NoMemory => BuildError::NoMemory,
        })?;
    for (registers, _) in plan.devices.iter().flat_map(|device| device.regions.iter()) {
        estate.owners.claim_device(*registers, owner).map_err(BuildError::Clash)?;
    }
    let gicv = match &estate.machine.gic {
        Gic::V2 { gicv, .. } => *gicv,
        Gic::V3 { .. } => None,
    };
    // Last, since it is undone by itself.
    let geometry = Geometry::stage2(IPA_BITS.min(estate.features.pa_bits));
    let geometry = geometry.ok_or(BuildError::Geometry)?;
    let vmid = estate.vmids.allocate(arch::forget_all_vmids).ok_or(BuildError::NoVmid)?;
    let stage2 = Stage2::allocate(&mut HeapTables, geometry, estate.features, vmid);
    let stage2 = stage2.map_err(|error| {
        estate.vmids.release(vmid);
        BuildError::Map(error)
    })?;
    let (vttbr, vtcr) = (stage2.vttbr_el2(), stage2.vtcr_el2());
    let registers = Stage2Registers { vttbr, vtcr, encoding: estate.features.encoding };
    Ok(Share { memory, stage2, registers, gicv })
}

/// What of a VM has a counterpart outside of it.
struct Made {
    id: VmId,
    stage2: Stage2,
    /// EL2's own mapping of the memory.
    mapped: Vec<(Chunk, HypMemory)>,
}

/// Gives everything back. No core uses the VM's translations any more.
fn take_down(made: Made, estate: &Lock<Estate>, pause: &mut dyn FnMut()) {
    // The TLBs forget the VM before its tag and its pages are anybody else's (traps T10).
    let vmid = made.stage2.dismantle(&mut HeapTables, &mut Tlb::default(), pause);
    for (_, memory) in made.mapped {
        arch::unmap_memory(memory, pause);
    }
    let mut estate = estate.acquire();
    estate.vmids.release(vmid);
    estate.owners.release(Owner::Vm(made.id));
}

impl Made {
    /// Makes stage 2 map the memory and the devices that the VM drives, and nothing else; and EL2
    /// the memory.
    fn map(
        &mut self,
        plan: &VmPlan,
        memory: &GuestMemory,
        gicv: Option<PaRange>,
        pause: &mut dyn FnMut(),
    ) -> Result<(), BuildError> {
        let mut map = |ipa, pa, attributes| {
            let (tables, tlb) = (&mut HeapTables, &mut Tlb::default());
            let mapped = self.stage2.map_in_pieces(tables, tlb, ipa, pa, attributes, pause);
            mapped.map_err(BuildError::Map)
        };
        for chunk in memory.chunks() {
            map(chunk.ipa, chunk.pa, Stage2Attributes::Ram)?;
        }
        for (registers, ipa) in plan.devices.iter().flat_map(|device| device.regions.iter()) {
            let ipa = IpaRange::new(*ipa, registers.size()).ok_or(BuildError::Wraps)?;
            map(ipa, registers.start(), Stage2Attributes::Device)?;
        }
        if let (VgicFrames::V2 { gicc }, Some(gicv)) = (plan.layout.vgic, gicv) {
            // The first page alone: GICV_DIR, in the second one, is answered by EL2 (ADR 9).
            let page = IpaRange::new(gicc, PAGE_SIZE).ok_or(BuildError::Wraps)?;
            map(page, gicv.start(), Stage2Attributes::Device)?;
        }
        self.mapped = heap::list(memory.chunks().len())?;
        for chunk in memory.chunks() {
            let range = PaRange::new(chunk.pa, chunk.ipa.size()).ok_or(BuildError::Wraps)?;
            let mapped = arch::map_memory(range, HypAttributes::Data, pause);
            let mapped = mapped.map_err(BuildError::HypMap)?;
            heap::push(&mut self.mapped, (*chunk, mapped))?;
        }
        Ok(())
    }
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
    fn new(plan: &VmPlan, pause: &mut dyn FnMut()) -> Result<Self, BuildError> {
        let vcpus = (0..).take(plan.vcpus.len());
        let affinities = heap::collect(vcpus.map(|n| Vm::mpidr_of(VcpuId::new(n))))?;
        let spis = plan.devices.iter().flat_map(|d| d.interrupts.iter());
        let mut links = heap::collect(spis.map(|spi| (spi.vintid, spi.pintid)))?;
        sort_by_key(&mut links, |link| link.1.get().into());
        let (version, has_its) = match plan.layout.vgic {
            VgicFrames::V2 { .. } => (Version::V2, false),
            VgicFrames::V3 { .. } => (Version::V3, true),
        };
        pause();
        let vgic = Vgic::new(version, &affinities, SPI_COUNT, &links);
        let (vgic, spis) = vgic.map_err(BuildError::Interrupts)?;
        pause();
        let vgic = if has_its { vgic.with_lpis()? } else { vgic };
        pause();
        let vits = if has_its { Some(Lock::new(Vits::new()?)) } else { None };
        let psci = Psci::new(&affinities)?;
        pause();
        let capsule = Capsule::new(affinities.len())?;
        pause();
        Ok(Self { vgic, spis, psci, vits, links, capsule })
    }
}
