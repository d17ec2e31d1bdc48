// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a guest sees its devices: addresses in a window, numbers of interrupts.
#![forbid(unsafe_code)]

use super::obstacles::spi_of;
use super::{Origin, Shares};
use crate::closure::Kind;
use crate::explain::Code;
use crate::message::{Message, quote};
use crate::plan::layout::{DEVICE_INTERRUPTS, DEVICES};
use crate::tree::NodeId;
use cofferdam::addr::{Address, Ipa, Pa, PaRange};
use cofferdam::id::{Pintid, Vintid};
use cofferdam::plan::machine::{self, Interrupt};
use cofferdam::plan::{DEVICES_MAX, DevicePlan, List, Path, REGIONS_MAX, SpiPlan};
use dtoolkit::model::DeviceTreeNode;
use std::collections::BTreeMap;

/// What one VM gets.
#[derive(Clone, Debug, Default)]
pub(in crate::plan) struct Share {
    /// What EL2 maps and passes on.
    pub plans: Vec<DevicePlan>,
    /// The nodes of the guest's tree.
    pub nodes: Vec<DeviceTreeNode>,
    /// What was left out of everything, and why.
    pub left_out: Vec<String>,
    /// Whether other VMs or the hypervisor need what it could switch off.
    pub provides: bool,
}

/// A VM's devices in its address space.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Pages, by rising address, and where the guest sees them.
    runs: Vec<(PaRange, Ipa)>,
    /// The guest's numbers of interrupts.
    pub vintids: BTreeMap<Pintid, Vintid>,
}

impl Placed {
    /// Returns where the guest sees an address.
    pub fn ipa(&self, address: Pa) -> Option<Ipa> {
        let (run, ipa) = self.runs.iter().find(|(run, _)| run.contains(address))?;
        ipa.checked_add(address.get().checked_sub(run.start().get())?)
    }
}

impl Shares<'_> {
    /// Makes the shares of all VMs.
    pub(super) fn lay_out(&self, errors: &mut Vec<Message>) -> Option<Vec<Share>> {
        let shares: Vec<Option<Share>> =
            (0..self.manifest.vms.len()).map(|vm| self.share(vm, errors)).collect();
        shares.into_iter().collect()
    }

    fn share(&self, vm: usize, errors: &mut Vec<Message>) -> Option<Share> {
        let owned = self.owners.iter().filter(|(_, owner)| owner.vm == vm);
        let units: Vec<NodeId> = owned.clone().map(|(unit, _)| *unit).collect();
        let mut fails = |text: String| {
            let name = self.manifest.vms.get(vm).map(|vm| vm.name.span());
            let mark = self.manifest.mark(name.unwrap_or_default(), "");
            errors.push(Message::new(Code::E18, text).at(mark));
        };
        let name = quote(self.vm_name(vm));
        let Some(placed) = self.place(&units) else {
            fails(format!("the devices of {name} do not fit into a guest's window for devices"));
            return None;
        };
        let plans = self.plans(&units, &placed);
        if plans.len() > DEVICES_MAX {
            fails(format!("{name} has {} devices, but at most {DEVICES_MAX}", plans.len()));
            return None;
        }
        let has_everything = owned.clone().any(|(_, o)| matches!(o.origin, Origin::Everything));
        let left_out = self.left_out.values().filter(|_| has_everything);
        let left_out = left_out.map(|why| why.text.clone()).collect();
        let provides = units.iter().any(|unit| self.provides(vm, *unit));
        Some(Share { plans, nodes: self.nodes(vm, &units, &placed), left_out, provides })
    }

    /// Returns whether somebody else needs a clock or the like of a unit.
    fn provides(&self, vm: usize, unit: NodeId) -> bool {
        self.closure.subtree(unit).into_iter().any(|provider| {
            self.closure.users(provider).any(|(user, used)| {
                let is_kept_on =
                    matches!(used.kind, Kind::Clock | Kind::PowerDomain | Kind::Supply);
                is_kept_on && !self.has(vm, user)
            })
        })
    }

    /// Finds places for the pages and numbers for the interrupts of units.
    fn place(&self, units: &[NodeId]) -> Option<Placed> {
        let mut pages: Vec<PaRange> = units.iter().flat_map(|unit| self.pages(*unit)).collect();
        pages.sort_by_key(|range| range.start());
        let mut merged: Vec<PaRange> = Vec::new();
        for range in pages {
            match merged.last_mut() {
                Some(last) if range.start() <= last.end() => {
                    *last = PaRange::between(last.start(), last.end().max(range.end()))?;
                }
                _ => merged.push(range),
            }
        }
        let mut placed = Placed::default();
        let mut next = DEVICES.0;
        for run in merged {
            placed.runs.push((run, next));
            next = next.checked_add(run.size()).filter(|end| *end <= DEVICES.1)?;
        }
        let mut vintid = DEVICE_INTERRUPTS;
        for interrupt in units.iter().flat_map(|unit| self.interrupts(*unit)) {
            placed.vintids.entry(interrupt.pintid).or_insert_with(|| {
                vintid += 1;
                Vintid::new(vintid - 1)
            });
        }
        Some(placed)
    }

    fn interrupts(&self, unit: NodeId) -> Vec<Interrupt> {
        let nodes = self.parts(unit).into_iter().map(|id| self.closure.facts(id));
        let gic = self.board.machine.gic.node;
        let lines = nodes.flat_map(|facts| &facts.lines).filter(|line| line.end == gic);
        lines.filter_map(spi_of).collect()
    }

    /// Describes units to EL2, every page and every interrupt once.
    fn plans(&self, units: &[NodeId], placed: &Placed) -> Vec<DevicePlan> {
        let mut plans = Vec::new();
        let (mut taken_pages, mut taken_lines) = (Vec::new(), Vec::new());
        for unit in units {
            let (mut regions, mut spis) = (Vec::new(), Vec::new());
            for pages in self.pages(*unit) {
                for range in minus(pages, &taken_pages) {
                    taken_pages.push(range);
                    regions.extend(placed.ipa(range.start()).map(|ipa| (range, ipa)));
                }
            }
            for interrupt in self.interrupts(*unit) {
                let (pintid, trigger) = (interrupt.pintid, interrupt.trigger);
                if !taken_lines.contains(&pintid) {
                    taken_lines.push(pintid);
                    let vintid = placed.vintids.get(&pintid);
                    spis.extend(vintid.map(|v| SpiPlan { pintid, vintid: *v, trigger }));
                }
            }
            let tree = self.tree();
            let path = shortened(&tree.path(*unit));
            let value = |name| tree.property(*unit, name).unwrap_or_default();
            let fingerprint =
                machine::fingerprint(&tree.path(*unit), value("compatible"), value("reg"));
            let (mut regions, mut spis) = (regions.chunks(REGIONS_MAX), spis.chunks(REGIONS_MAX));
            loop {
                let (some, lines) = (regions.next(), spis.next());
                if some.is_none() && lines.is_none() {
                    break;
                }
                let regions = List::new(some.unwrap_or_default().to_vec());
                let interrupts = List::new(lines.unwrap_or_default().to_vec());
                if let (Some(regions), Some(interrupts)) = (regions, interrupts) {
                    plans.push(DevicePlan { path: path.clone(), fingerprint, regions, interrupts });
                }
            }
        }
        plans
    }
}

/// Cuts a path to what a plan holds; EL2 has it for messages alone.
fn shortened(path: &str) -> Path {
    let mut short = Path::new();
    for c in path.chars() {
        if short.push(c).is_err() {
            break;
        }
    }
    short
}

/// Returns what is left of a range without others.
fn minus(range: PaRange, others: &[PaRange]) -> Vec<PaRange> {
    let mut left = vec![range];
    for other in others {
        let cut = |part: PaRange| {
            if !part.overlaps(*other) {
                return vec![part];
            }
            let before = PaRange::between(part.start(), other.start());
            let behind = PaRange::between(other.end(), part.end());
            before.into_iter().chain(behind).collect()
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}
