// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual GIC of a VM: a distributor, a redistributor for each vCPU, and delivery.
//!
//! The models are those of GICv3; a GICv2 guest sees the same state through other registers
//! (`v2`): what is a redistributor's is banked in its distributor, and SGIs have senders.
//! Models keep what a guest can see; [`Delivery`], one for each vCPU, is the one place that moves
//! interrupts between models and list registers. A pending or active bit is in one place only: in
//! a model, or in a list register. Redistributors are lock-free: any core makes an SGI pending and
//! kicks its owner. SPIs change under the VM's lock, of which [`SpiToken`] is the proof; reading
//! needs none. Nobody here knows cores, addresses or system registers. IHI 0069 H, IHI 0048 B.
#![forbid(unsafe_code)]

mod bank;
mod delivery;
mod listed;
mod look;
mod lpi;
mod sgi;
mod v2;
mod vdist;
mod vits;
mod vredist;

#[cfg(test)]
pub mod fake;
#[cfg(test)]
mod tests;

pub use delivery::{Delivery, Flush, Injected, ListRegisters};
pub use listed::{
    Frame, changes_list_registers, changes_own_list_registers, only_adds, shows_list_registers,
};
pub use look::Asked;
pub use lpi::{GuestTables, Unreadable};
pub use sgi::SgiRegister;
pub use v2::{Home, home, home_of_write, is_sgi_state};
pub use vdist::{SpiToken, Vdist};
pub use vits::Vits;
pub use vredist::Vredist;

use crate::bits::{Level, MmioError, Width};
use crate::heap::{self, NoMemory};
use crate::id::{Mpidr, Pintid, VcpuId, Vintid};
use crate::spec::gic::{self, SgiRequest};
use crate::spec::gicv2;
use alloc::boxed::Box;
use alloc::vec::Vec;
use lpi::Lpis;
use vdist::{Cause, Net};
use vredist::Place;

/// GICD_IIDR and GICR_IIDR: Arm's JEP106 code, and a product of our own, `C`.
const IIDR: u32 = 0x4300_043b;
/// The most vCPUs of a VM.
const VCPUS_MAX: usize = 64;

/// The architecture that a guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// GICv2.
    V2,
    /// GICv3.
    V3,
}

/// What the models cause outside themselves.
pub trait Effects {
    /// Forces a vCPU out of its guest so that it looks at its work. For the vCPU of this very
    /// core there is nothing to do: it looks before it enters.
    fn kick(&self, vcpu: VcpuId);
    /// Deactivates a physical SPI that the guest has let go of.
    fn deactivate(&self, pintid: Pintid);
    /// Returns what the line of a physical SPI carries now; high where that is not known.
    fn line(&self, pintid: Pintid) -> Level;
    /// Returns whether a physical SPI is pending, also while it is active.
    fn is_pending(&self, pintid: Pintid) -> bool;
    /// Clears the pending bit of a physical SPI; a line that is high keeps it pending.
    fn clear_pending(&self, pintid: Pintid);
    /// Routes a physical SPI to the core of `vcpu`: the guest has routed the SPI linked to it.
    fn route(&self, pintid: Pintid, vcpu: VcpuId);
    /// Calls [`Vgic::control_lpis`], which takes more than a redistributor has.
    fn control_lpis(&self, vcpu: VcpuId, value: u32);
}

/// Why there cannot be such a GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// There are no vCPUs, or too many.
    Vcpus,
    /// Two vCPUs have this affinity.
    Affinity(Mpidr),
    /// There are too many SPIs.
    Spis,
    /// The link of this SPI is not to an SPI, or is its second one, or there is no such SPI.
    Link(Vintid),
    /// The hypervisor has no memory for it.
    NoMemory,
}

impl From<NoMemory> for ConfigError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Vcpus => f.write_str("no vCPUs, or too many"),
            Self::Affinity(affinity) => write!(f, "two vCPUs have affinity {affinity}"),
            Self::Spis => f.write_str("too many SPIs"),
            Self::Link(vintid) => write!(f, "INTID {vintid} cannot be a physical interrupt"),
            Self::NoMemory => NoMemory.fmt(f),
        }
    }
}

/// The virtual GIC of a VM.
#[derive(Debug)]
pub struct Vgic {
    version: Version,
    vdist: Vdist,
    vredists: Box<[Vredist]>,
    lpis: Lpis,
    /// A bit for each vCPU.
    everybody: u64,
    /// The bits of an SGI request that ask for a search of its targets: few where vCPU n has
    /// Aff0 = n mod 16, Aff1 = n / 16 and no other affinity, else all.
    not_plain: u64,
}

impl Vgic {
    /// Makes the GIC of a VM whose vCPUs have the given affinities, with `spi_count` SPIs, of
    /// which `links` names those with a physical interrupt behind them.
    ///
    /// # Errors
    /// When the specification allows no such GIC, or there is no memory for it.
    pub fn new(
        version: Version,
        affinities: &[Mpidr],
        spi_count: u32,
        links: &[(Vintid, Pintid)],
    ) -> Result<(Self, SpiToken), ConfigError> {
        let vcpus_max = if version == Version::V2 { gicv2::CPUS_MAX } else { VCPUS_MAX };
        if affinities.is_empty() || affinities.len() > vcpus_max {
            return Err(ConfigError::Vcpus);
        }
        let mut vredists: Vec<Vredist> = heap::list(affinities.len())?;
        for (&affinity, number) in affinities.iter().zip(0u8..) {
            if vredists.iter().any(|other| other.affinity() == affinity) {
                return Err(ConfigError::Affinity(affinity));
            }
            let is_last = usize::from(number) + 1 == affinities.len();
            let place = if is_last { Place::Last } else { Place::Inner };
            heap::push(&mut vredists, Vredist::new(VcpuId::new(number), affinity, place, version))?;
        }
        let plain = (0u64..).map(|n| Mpidr::from_register((n >> 4) << 8 | n & 0xf));
        let is_plain = plain.zip(affinities).all(|(plain, &affinity)| plain == affinity);
        let not_plain = if is_plain { SgiRequest::NOT_PLAIN } else { u64::MAX };
        let (vdist, token) = Vdist::new(spi_count, links, version)?;
        let everybody = u64::MAX >> (VCPUS_MAX - affinities.len());
        let (vredists, lpis) = (vredists.into(), Lpis::none());
        let vgic = Self { version, vdist, vredists, lpis, everybody, not_plain };
        vgic.vdist.forget_routes(vgic.net(&()));
        Ok((vgic, token))
    }
    /// Adds the LPIs that a [`Vits`] needs.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn with_lpis(mut self) -> Result<Self, NoMemory> {
        self.lpis = Lpis::new()?;
        self.vredists.iter_mut().for_each(Vredist::add_lpis);
        self.vdist.add_lpis();
        Ok(self)
    }

    /// Returns the redistributors to the state after reset, with a `pause` behind each. All vCPUs
    /// have stopped and reset their [`Delivery`].
    pub fn reset_vredists(&self, pause: &mut dyn FnMut()) {
        for vredist in &self.vredists {
            vredist.reset();
            pause();
        }
    }

    /// Returns all else to the state after reset, once the redistributors are there.
    pub fn reset<E: Effects>(&self, token: &mut SpiToken, effects: &E) {
        self.lpis.reset(token);
        self.vdist.reset(token, self.net(effects));
    }

    /// Returns the architecture that the guest sees.
    pub fn version(&self) -> Version {
        self.version
    }
    /// Returns the distributor, for reads.
    #[inline(always)]
    pub fn vdist(&self) -> &Vdist {
        &self.vdist
    }
    /// Returns the redistributor of a vCPU.
    #[inline(always)]
    pub fn vredist(&self, vcpu: VcpuId) -> Option<&Vredist> {
        self.vredists.get(vcpu.index())
    }

    /// Writes to the distributor.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frame.
    #[inline]
    pub fn write_vdist<E: Effects>(
        &self,
        token: &mut SpiToken,
        (offset, width): (u64, Width),
        value: u64,
        effects: &E,
    ) -> Result<(), MmioError> {
        self.vdist.write(token, (offset, width), value, self.net(effects))
    }
    /// Reads in the window of all redistributors, 128 KiB for each vCPU.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    #[inline]
    pub fn read_vredists(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        let (vredist, offset) = self.frame(offset)?;
        vredist.read(offset, width)
    }
    /// Writes in the window of all redistributors.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    #[inline]
    pub fn write_vredists<E: Effects>(
        &self,
        (offset, width): (u64, Width),
        value: u64,
        effects: &E,
    ) -> Result<(), MmioError> {
        let (vredist, offset) = self.frame(offset)?;
        vredist.write(offset, width, value, effects)
    }
    /// Carries out a write to the GICR_CTLR of a vCPU whose redistributor has LPIs.
    pub fn control_lpis<T: GuestTables, E: Effects>(
        &self,
        token: &mut SpiToken,
        (vcpu, value): (VcpuId, u32),
        (tables, effects): (&T, &E),
    ) {
        let Some(vredist) = self.vredist(vcpu) else { return };
        if value & gic::gicr::CTLR_ENABLE_LPIS == 0 {
            self.lpis.disable_on(token, vredist, self.net(effects));
        } else {
            self.lpis.enable_on(token, vredist, tables, self.net(effects));
        }
    }
    /// Finds the redistributor at `offset` in the window of all of them.
    #[inline(always)]
    fn frame(&self, offset: u64) -> Result<(&Vredist, u64), MmioError> {
        let index = usize::try_from(offset / gic::GICR_BYTES).map_err(|_| MmioError::Unmapped)?;
        let vredist = self.vredists.get(index).ok_or(MmioError::Unmapped)?;
        Ok((vredist, offset % gic::GICR_BYTES))
    }

    /// Sets the level of the line of an SPI that EL2 drives.
    pub fn set_level<E: Effects>(
        &self,
        token: &mut SpiToken,
        vintid: Vintid,
        level: Level,
        effects: &E,
    ) {
        self.vdist.set_level(token, vintid, level, self.net(effects));
    }
    /// Latches an SPI, as an edge on its line does.
    pub fn raise_edge<E: Effects>(&self, token: &mut SpiToken, vintid: Vintid, effects: &E) {
        self.vdist.raise(token, vintid, Cause::Edge, self.net(effects));
    }
    /// Makes an SPI pending whose physical interrupt has been acknowledged and had its priority
    /// dropped; it stays active until the guest deactivates the SPI.
    pub fn raise_linked<E: Effects>(&self, token: &mut SpiToken, vintid: Vintid, effects: &E) {
        self.vdist.raise(token, vintid, Cause::Linked, self.net(effects));
    }
    /// Carries out a trapped write of `vintid` to ICC_DIR_EL1 on `vcpu`.
    pub fn deactivate<E: Effects>(
        &self,
        token: &mut SpiToken,
        vcpu: VcpuId,
        vintid: Vintid,
        effects: &E,
    ) {
        if vintid.get() >= gic::SPI_FIRST {
            self.vdist.deactivate(token, vintid, self.net(effects));
        } else if let Some(vredist) = self.vredist(vcpu) {
            vredist.deactivate(vintid.get(), effects);
        }
    }
    /// Chooses anew where 1-of-N SPIs go that are pending: what a vCPU that goes to sleep leaves.
    pub fn wake_all<E: Effects>(&self, _: &mut SpiToken, effects: &E) {
        self.vdist.wake_all(self.net(effects));
    }

    fn net<'a, E>(&'a self, effects: &'a E) -> Net<'a, E> {
        Net { vgic: self, effects }
    }
}

/// Effects on nothing: while a VM is being made there is nobody to tell.
impl Effects for () {
    fn kick(&self, _: VcpuId) {}
    fn deactivate(&self, _: Pintid) {}
    fn line(&self, _: Pintid) -> Level {
        Level::High
    }
    fn is_pending(&self, _: Pintid) -> bool {
        false
    }
    fn clear_pending(&self, _: Pintid) {}
    fn route(&self, _: Pintid, _: VcpuId) {}
    fn control_lpis(&self, _: VcpuId, _: u32) {}
}
