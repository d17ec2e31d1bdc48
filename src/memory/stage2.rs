// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's stage-2 tables: what the VM reaches, and how a core forgets what it no longer does.
//!
//! Owns the order of the invalidation steps; the machine layer supplies each step. Must not know
//! who owns memory: the caller maps only what the owners' list has given this VM. DDI 0487 D8.2
//! (stage 2), D8.16 (TLB maintenance), D8.17 (break-before-make).
#![forbid(unsafe_code)]

use super::mapper::{Format, Leaf, Maintenance, MapError, Mapper, Roots, Tables, pieces};
use crate::addr::{Address, Ipa, IpaRange, PAGE_SIZE, Pa, PaRange};
use crate::id::Vmid;
use crate::spec::vmsa::{self, Features, Geometry, MemAttrEncoding, Stage2Attributes};

/// The steps of stage-2 maintenance, as the machine layer does them.
///
/// On cores where a broadcast TLBI may be incomplete (T08), [`complete`](Self::complete) issues
/// one more TLBI and another DSB.
pub trait Tlb {
    /// Makes descriptor writes visible to all walkers: DSB ISHST.
    fn publish(&mut self);
    /// Makes the following steps act on the VM of this VTTBR_EL2, where it is not the current one:
    /// write it, ISB, with what speculative walks on some cores need (T09).
    fn select(&mut self, vttbr: u64);
    /// Begins to drop stage-2 entries for one page, and the way to them: TLBI IPAS2E1IS.
    fn invalidate_ipa(&mut self, ipa: Ipa);
    /// Begins to drop all entries that stage 1 has a part in: TLBI VMALLE1IS.
    fn invalidate_stage1(&mut self);
    /// Begins to drop everything of the VM, both stages: TLBI VMALLS12E1IS.
    fn invalidate_vm(&mut self);
    /// Waits until what has begun is done on all cores: DSB ISH.
    fn complete(&mut self);
    /// Goes back to the VTTBR_EL2 from before [`select`](Self::select): write it, ISB.
    fn restore(&mut self);
}

/// The most pages that are invalidated one by one; more are done by dropping the whole VM.
pub const BY_ADDRESS_MAX: u64 = 64;

struct Stage2Format(MemAttrEncoding);

impl Format for Stage2Format {
    type Input = Ipa;
    type Attributes = Stage2Attributes;
    const ALL: &'static [Stage2Attributes] = &Stage2Attributes::ALL;

    fn bits(&self, attributes: Stage2Attributes) -> u64 {
        attributes.bits(self.0)
    }
}

/// One VM's stage-2 tables under its VMID.
pub struct Stage2 {
    mapper: Mapper<Stage2Format>,
    features: Features,
    vmid: Vmid,
}

impl Stage2 {
    /// Takes charge of the tables under `root`, which is zeroed and as big and aligned as
    /// [`Geometry::root_bytes`] says; `geometry` is of [`Geometry::stage2`].
    ///
    /// `features` are what *all* cores have (T40). `None` when there are more address bits in
    /// `geometry` than in `features`, or the root does not fit.
    pub fn new(geometry: Geometry, features: Features, root: Pa, vmid: Vmid) -> Option<Self> {
        if geometry.input_bits() > features.pa_bits {
            return None;
        }
        let format = Stage2Format(features.encoding);
        let mapper = Mapper::new(format, geometry, features.pa_bits, root)?;
        Some(Self { mapper, features, vmid })
    }

    /// Makes tables that map nothing, with a root of their own. What takes them down again is
    /// [`dismantle`](Self::dismantle).
    ///
    /// # Errors
    /// There is no memory for the root, or the geometry does not fit `features`. Nothing is
    /// allocated then.
    pub fn allocate(
        tables: &mut impl Roots,
        geometry: Geometry,
        features: Features,
        vmid: Vmid,
    ) -> Result<Self, MapError<Ipa>> {
        let bytes = geometry.root_bytes();
        let root = tables.allocate_root(bytes).ok_or(MapError::OutOfTables)?;
        let stage2 = Self::new(geometry, features, root, vmid);
        stage2.ok_or_else(|| {
            tables.free_root(root, bytes);
            MapError::TooHigh
        })
    }

    /// Takes everything from a VM that has gone, with a `pause` now and then, and gives back all
    /// tables with their root. Returns the VM's tag, of which no TLB knows anything any more.
    ///
    /// No core may have these tables in its VTTBR_EL2 any longer.
    pub fn dismantle(
        mut self,
        tables: &mut impl Roots,
        tlb: &mut impl Tlb,
        pause: &mut dyn FnMut(),
    ) -> Vmid {
        self.unmap_all(tables, tlb, pause);
        tables.free_root(self.mapper.root(), self.mapper.geometry().root_bytes());
        self.vmid
    }
    /// Returns the first byte of the root.
    pub fn root(&self) -> Pa {
        self.mapper.root()
    }
    /// Returns the VM's tag.
    pub fn vmid(&self) -> Vmid {
        self.vmid
    }
    /// Returns VTTBR_EL2 for the VM's vCPUs.
    pub fn vttbr_el2(&self) -> u64 {
        vmsa::vttbr_el2(self.mapper.root(), self.vmid)
    }
    /// Returns VTCR_EL2 for the VM's vCPUs.
    pub fn vtcr_el2(&self) -> u64 {
        vmsa::vtcr_el2(self.mapper.geometry(), self.features)
    }

    /// Lets the VM reach the memory at `pa` through `ipa`.
    ///
    /// # Errors
    /// As [`Mapper::map`]; nothing is changed then.
    pub fn map(
        &mut self,
        tables: &mut impl Tables,
        tlb: &mut impl Tlb,
        ipa: IpaRange,
        pa: Pa,
        attributes: Stage2Attributes,
    ) -> Result<(), MapError<Ipa>> {
        let mut maintenance = self.maintenance(tlb);
        self.mapper.map(tables, &mut maintenance, ipa, pa, attributes)
    }

    /// Does the same piece by piece, with a `pause` behind each: what is large takes long.
    ///
    /// # Errors
    /// As [`map`](Self::map), but what was mapped before the piece that fails stays mapped.
    pub fn map_in_pieces(
        &mut self,
        tables: &mut impl Tables,
        tlb: &mut impl Tlb,
        ipa: IpaRange,
        pa: Pa,
        attributes: Stage2Attributes,
        pause: &mut dyn FnMut(),
    ) -> Result<(), MapError<Ipa>> {
        if !ipa.is_aligned(PAGE_SIZE) || !pa.is_aligned(PAGE_SIZE) {
            return Err(MapError::Unaligned);
        }
        PaRange::new(pa, ipa.size()).ok_or(MapError::TooHigh)?;
        for (ipa, pa) in pieces(ipa, pa) {
            self.map(tables, tlb, ipa, pa, attributes)?;
            pause();
        }
        Ok(())
    }

    /// Takes addresses from the VM; on return none of its vCPUs reaches memory through them.
    ///
    /// # Errors
    /// As [`Mapper::unmap`]; nothing is changed then.
    pub fn unmap(
        &mut self,
        tables: &mut impl Tables,
        tlb: &mut impl Tlb,
        ipa: IpaRange,
    ) -> Result<(), MapError<Ipa>> {
        let mut maintenance = self.maintenance(tlb);
        self.mapper.unmap(tables, &mut maintenance, ipa)
    }

    /// Takes everything from the VM, with a `pause` now and then; only the root is left.
    pub fn unmap_all(
        &mut self,
        tables: &mut impl Tables,
        tlb: &mut impl Tlb,
        pause: &mut dyn FnMut(),
    ) {
        let mut maintenance = self.maintenance(tlb);
        self.mapper.unmap_all(tables, &mut maintenance, pause);
    }

    /// Returns where an address leads, as the tables say.
    pub fn translate(&self, tables: &impl Tables, ipa: Ipa) -> Option<(Pa, Stage2Attributes)> {
        self.mapper.translate(tables, ipa)
    }
    /// Returns all that is mapped, in order.
    pub fn leaves(&self, tables: &impl Tables) -> impl Iterator<Item = Leaf<Ipa>> {
        self.mapper.leaves(tables)
    }
    /// Returns the same, and `None` for each descriptor on the way that leads nowhere.
    pub fn steps(&self, tables: &impl Tables) -> impl Iterator<Item = Option<Leaf<Ipa>>> {
        self.mapper.steps(tables)
    }
    /// Returns what the VM may do with a leaf's memory; `None` is a damaged table.
    pub fn attributes(&self, leaf: &Leaf<Ipa>) -> Option<Stage2Attributes> {
        self.mapper.attributes(leaf)
    }

    fn maintenance<'a, T: Tlb>(&self, tlb: &'a mut T) -> VmMaintenance<'a, T> {
        VmMaintenance { tlb, vttbr: self.vttbr_el2() }
    }
}

/// The steps in their order, for one VM.
struct VmMaintenance<'a, T> {
    tlb: &'a mut T,
    vttbr: u64,
}

impl<T: Tlb> Maintenance<Ipa> for VmMaintenance<'_, T> {
    fn publish(&mut self) {
        self.tlb.publish();
    }

    fn invalidate(&mut self, range: IpaRange) {
        // Walks that begin after this see the break, so what is dropped below does not come back.
        self.tlb.publish();
        // A TLBI acts on the current VMID (T07).
        self.tlb.select(self.vttbr);
        let pages = range.size() / PAGE_SIZE;
        if pages <= BY_ADDRESS_MAX {
            for page in 0..pages {
                self.tlb.invalidate_ipa(Ipa::new(range.start().get() + page * PAGE_SIZE));
            }
            // Stage 2 must be gone before stage 1 goes: a walk in between would make a new combined
            // entry from the old stage-2 one (T06).
            self.tlb.complete();
            self.tlb.invalidate_stage1();
        } else {
            self.tlb.invalidate_vm();
        }
        self.tlb.complete();
        self.tlb.restore();
    }
}
