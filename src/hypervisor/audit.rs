// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What must be the same after a VM's life as before it, in rows of a name and a number; and
//! whether who owns memory and who reaches it are the same.
//!
//! A row is worked out when it is asked for, in bounded time, and stops nobody. Rows of interrupts
//! leave out those that somebody has: the VMs that are there, and the hypervisor itself.
#![forbid(unsafe_code)]

use super::{Estate, Hypervisor};
use crate::addr::{Address, Pa};
use crate::arch::{self, HeapTables};
use crate::drivers::gic::SpiState;
use crate::id::{Pintid, VmId};
use crate::memory::owners::{Kind, Owner, Owners, Region};
use crate::plan::VgicFrames;
use crate::spec::vmsa::Stage2Attributes;
use crate::vm::Vm;
use core::fmt;

/// A number and what it is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditRow {
    /// What it is of.
    pub name: &'static str,
    /// Which of several.
    pub index: Option<u32>,
    /// The number, or what stands for many of them.
    pub value: u64,
}

impl fmt::Display for AuditRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}{index}={:#x}", self.name, self.value),
            None => write!(f, "{}={:#x}", self.name, self.value),
        }
    }
}

/// The rows in front of those that there are several of.
const SINGLE: [&str; 5] = ["owners", "free_bytes", "heap_bytes", "vmids", "vms"];

impl Hypervisor {
    /// Returns a row by its number, from 0 on; `None` behind the last.
    #[must_use]
    pub fn audit_row(&self, number: usize) -> Option<AuditRow> {
        if let Some(name) = SINGLE.get(number) {
            let value = self.single(number);
            return Some(AuditRow { name, index: None, value });
        }
        let rest = number.checked_sub(SINGLE.len())?;
        if let Some(post) = self.posts.get(rest) {
            let index = u32::try_from(rest).ok();
            return Some(AuditRow { name: "cpu", index, value: post.residue() });
        }
        let word = u32::try_from(rest.checked_sub(self.posts.len())?).ok()?.checked_add(1)?;
        let first = word.checked_mul(32)?;
        let is_there = first < self.distributor.lock().spi_end();
        is_there.then(|| AuditRow { name: "spi", index: Some(first), value: self.spis(first) })
    }

    fn single(&self, number: usize) -> u64 {
        let estate = self.estate.acquire();
        match number {
            0 => estate.owners.regions().iter().fold(SEED, fold_region),
            1 => estate.owners.free_bytes(),
            2 => arch::heap_bytes() as u64,
            3 => estate.vmids.live() as u64,
            _ => {
                drop(estate);
                let vms = (0u64..).zip(&self.vms);
                vms.fold(0, |set, (n, slot)| {
                    set | u64::from(slot.look(|_| ()).is_some()) << (n & 63)
                })
            }
        }
    }

    /// Returns what stands for the state of 32 SPIs that nobody has.
    fn spis(&self, first: u32) -> u64 {
        let taken = self.taken(first);
        let mut digest = SEED;
        for n in (0..32).filter(|n| taken >> n & 1 == 0) {
            let state = self.distributor.lock().state(Pintid::new(first | n));
            if let Some(SpiState { bits, priority, route }) = state {
                digest = [bits.into(), priority.into(), route].into_iter().fold(digest, fold);
            }
        }
        digest
    }

    /// Returns which of 32 SPIs somebody has.
    fn taken(&self, first: u32) -> u32 {
        let mut taken = 0;
        let mut take = |intid: Pintid| {
            if intid.get() & !31 == first {
                taken |= 1 << (intid.get() & 31);
            }
        };
        self.uart_interrupt.into_iter().for_each(&mut take);
        self.control.interrupt().into_iter().for_each(&mut take);
        for slot in &self.vms {
            slot.look(|vm| vm.links.iter().for_each(|(_, pintid)| take(*pintid)));
        }
        taken
    }
}

/// Somebody reaches what is not his, or not what is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Breach {
    /// A VM's stage 2 leads to what is somebody else's.
    Foreign {
        /// The VM.
        vm: VmId,
        /// Where.
        pa: Pa,
        /// What stands there.
        held: Option<Region>,
    },
    /// A VM's memory is not where its stage 2 leads, or not all of it is reached.
    Astray {
        /// The VM.
        vm: VmId,
        /// Where.
        pa: Pa,
    },
}

impl Estate {
    /// Compares what a VM's stage 2 maps with what the VM owns, with a `pause` behind each step:
    /// all that it reaches is its own, and all of its memory is reached once, in its place.
    ///
    /// Since a page has one owner, a VM that passes reaches no page of another, nor of EL2.
    ///
    /// # Errors
    /// Names the first difference.
    pub fn check_partition(&self, vm: &Vm, pause: &mut dyn FnMut()) -> Result<(), Breach> {
        check_partition(&self.owners, vm, pause)
    }
}

fn check_partition(owners: &Owners, vm: &Vm, pause: &mut dyn FnMut()) -> Result<(), Breach> {
    let (id, owner) = (vm.id, Owner::Vm(vm.id));
    let mut mapped_bytes = 0u64;
    for leaf in vm.translation.steps(&HeapTables) {
        pause();
        let Some(leaf) = leaf else { continue };
        let pa = leaf.output;
        let is_memory = vm.translation.attributes(&leaf) != Some(Stage2Attributes::Device);
        let is_gicv = !is_memory && is_gicv(vm, leaf.input.start());
        let held = owners.at(pa);
        let end = pa.checked_add(leaf.input.size()).ok_or(Breach::Astray { vm: id, pa })?;
        let kind = if is_memory { Kind::Memory } else { Kind::Device };
        let is_own = |r: Region| r.owner == owner && r.kind == kind && end <= r.range.end();
        if !is_gicv && !held.is_some_and(is_own) {
            return Err(Breach::Foreign { vm: id, pa, held });
        }
        if is_memory {
            let in_place = vm.memory.chunks().iter().any(|chunk| {
                let offset = leaf.input.start().get().wrapping_sub(chunk.ipa.start().get());
                chunk.ipa.covers(leaf.input) && chunk.pa.checked_add(offset) == Some(pa)
            });
            if !in_place {
                return Err(Breach::Astray { vm: id, pa });
            }
            mapped_bytes = mapped_bytes.saturating_add(leaf.input.size());
        }
    }
    let owned_bytes: u64 = owners.memory_of(owner).map(|range| range.size()).sum();
    let laid_out: u64 = vm.memory.chunks().iter().map(|chunk| chunk.ipa.size()).sum();
    if (mapped_bytes, laid_out) != (owned_bytes, owned_bytes) {
        let pa = vm.memory.chunks().first().map_or(Pa::new(0), |chunk| chunk.pa);
        return Err(Breach::Astray { vm: id, pa });
    }
    Ok(())
}

/// Returns whether this is where the machine's virtual CPU interface is seen: that shows each core
/// its own registers, so VMs may share it.
fn is_gicv(vm: &Vm, ipa: crate::addr::Ipa) -> bool {
    matches!(vm.plan.layout.vgic, VgicFrames::V2 { gicc } if gicc == ipa)
}

/// FNV-1a over words: enough to tell states apart.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

fn fold(digest: u64, word: u64) -> u64 {
    (digest ^ word).wrapping_mul(0x100_0000_01b3)
}

fn fold_region(digest: u64, region: &Region) -> u64 {
    let owner = match region.owner {
        Owner::Free => 0,
        Owner::Hypervisor => 1,
        Owner::Bundle => 2,
        Owner::HostTree => 3,
        Owner::Firmware => 4,
        Owner::Upload => 5,
        Owner::Vm(id) => 0x100 | u64::from(id.get()),
        Owner::Images(id) => 0x200 | u64::from(id.get()),
    };
    let kind = u64::from(region.kind == Kind::Device);
    [region.range.start().get(), region.range.size(), owner, kind].into_iter().fold(digest, fold)
}
