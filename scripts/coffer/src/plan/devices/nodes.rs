// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The nodes of a guest's tree for its devices: their own, with what is below them, and fixed,
//! always-on ones for what somebody else switches.
//!
//! Phandles stay those of the board, so that also references by properties that nobody here knows
//! lead where they should; what the guest has in their stead has numbers of its own.
#![forbid(unsafe_code)]

use super::Shares;
use super::layout::Placed;
use super::obstacles::spi_of;
use crate::closure::{Kind, Reference};
use crate::tree::NodeId;
use crate::tree::guest::{self, DEVICE_PHANDLES, EMPTY, GIC_PHANDLE, cells, halves, property};
use cofferdam::addr::{Address, Ipa};
use dtoolkit::model::DeviceTreeNode;
use std::collections::{BTreeMap, BTreeSet};

/// Properties that are written anew, or mean nothing without the board.
const REPLACED: [&str; 20] = [
    "assigned-clock-parents",
    "assigned-clock-rates",
    "assigned-clocks",
    "dma-coherent",
    "dma-noncoherent",
    "dma-ranges",
    "interrupt-map",
    "interrupt-map-mask",
    "interrupt-parent",
    "interrupts",
    "interrupts-extended",
    "iommu-map",
    "iommu-map-mask",
    "iommus",
    "linux,phandle",
    "memory-region",
    "memory-region-names",
    "msi-map",
    "msi-parent",
    "status",
];
/// Writes the nodes of one VM.
struct Writer<'s, 'a> {
    shares: &'s Shares<'a>,
    vm: usize,
    placed: &'s Placed,
    /// Fixed clocks by frequency in Hz.
    clocks: BTreeMap<u32, u32>,
    /// Fixed regulators by the board's.
    regulators: BTreeMap<NodeId, u32>,
}

impl Shares<'_> {
    /// Writes a VM's nodes: what stands in for others first.
    pub(super) fn nodes(
        &self,
        vm: usize,
        units: &[NodeId],
        placed: &Placed,
    ) -> Vec<DeviceTreeNode> {
        let (clocks, regulators) = Default::default();
        let mut writer = Writer { shares: self, vm, placed, clocks, regulators };
        writer.collect(units);
        let mut nodes = writer.stand_ins();
        nodes.extend(units.iter().map(|unit| writer.unit(*unit)));
        nodes
    }
}

impl Writer<'_, '_> {
    fn has(&self, node: NodeId) -> bool {
        self.shares.has(self.vm, node)
    }

    /// Numbers the clocks and regulators that have to be made up.
    fn collect(&mut self, units: &[NodeId]) {
        let (mut rates, mut supplies) = (BTreeSet::new(), BTreeSet::new());
        for part in units.iter().flat_map(|unit| self.shares.parts(*unit)) {
            for reference in &self.shares.closure.facts(part).references {
                match reference.kind {
                    _ if self.has(reference.provider) => {}
                    Kind::Clock => rates.extend(self.shares.rate(part, reference)),
                    Kind::Supply => drop(supplies.insert(reference.provider)),
                    _ => {}
                }
            }
        }
        self.clocks = rates.into_iter().zip(DEVICE_PHANDLES..).collect();
        let first = DEVICE_PHANDLES.saturating_add(0x1_0000);
        self.regulators = supplies.into_iter().zip(first..).collect();
    }

    fn stand_ins(&self) -> Vec<DeviceTreeNode> {
        let clocks = self
            .clocks
            .iter()
            .map(|(hz, phandle)| guest::clock(&format!("clock-{hz}"), *phandle, *hz));
        let tree = self.shares.tree();
        let regulators = self.regulators.iter().map(|(board, phandle)| {
            let name = tree.text(*board, "regulator-name").unwrap_or(tree.generic_name(*board));
            let number = phandle & 0xffff;
            let mut node = guest::node(&format!("regulator-{number}"), []);
            node.add_property(property("compatible", "regulator-fixed"));
            node.add_property(property("regulator-name", name));
            let volts = ["regulator-min-microvolt", "regulator-max-microvolt"]
                .map(|name| tree.u32(*board, name));
            if let [Some(min), Some(max)] = volts
                && min == max
            {
                node.add_property(property("regulator-min-microvolt", min));
                node.add_property(property("regulator-max-microvolt", max));
            }
            node.add_property(property("regulator-always-on", EMPTY));
            node.add_property(property("phandle", *phandle));
            node
        });
        clocks.chain(regulators).collect()
    }

    fn unit(&self, unit: NodeId) -> DeviceTreeNode {
        let tree = self.shares.tree();
        let facts = self.shares.closure.facts(unit);
        let registers: Vec<(Ipa, u64)> = facts
            .registers
            .iter()
            .filter_map(|range| Some((self.placed.ipa(range.start())?, range.size())))
            .collect();
        let windows = self.windows(unit);
        let first = registers.first().map(|(at, _)| *at);
        let at = first.or_else(|| windows.first().map(|(_, at, _)| *at));
        let name = tree.generic_name(unit);
        let mut node = match at {
            Some(at) => guest::node(&format!("{name}@{:x}", at.get()), []),
            None => guest::node(name, []),
        };
        let pairs = registers.iter().flat_map(|(at, size)| [at.get(), *size].map(halves));
        let reg: Vec<u32> = pairs.flatten().collect();
        self.fill(unit, &mut node);
        if !reg.is_empty() {
            node.add_property(property("reg", cells(&reg)));
        }
        if !windows.is_empty() {
            let ranges = windows.iter().flat_map(|(below, at, size)| {
                let below = self.address_cells(unit, *below);
                let size = self.size_cells(unit, *size);
                [below, halves(at.get()).to_vec(), size].concat()
            });
            let ranges: Vec<u32> = ranges.collect();
            node.add_property(property("ranges", cells(&ranges)));
        }
        node
    }

    /// Returns the windows of a unit that has nodes with registers below it: their addresses there
    /// and in the guest, and bytes.
    fn windows(&self, unit: NodeId) -> Vec<(u64, Ipa, u64)> {
        let mut windows = Vec::new();
        for part in self.shares.parts(unit).into_iter().filter(|part| *part != unit) {
            let tree = self.shares.tree();
            let Some(bus) = tree.parent(part) else { continue };
            let Some((address_cells, size_cells)) = tree.bus_cells(bus) else { continue };
            let registers = &self.shares.closure.facts(part).registers;
            let own = tree.cells(part, "reg");
            let own = crate::tree::split(&own, [address_cells, size_cells]).unwrap_or_default();
            let own = own.into_iter().filter(|[_, size]| *size > 0);
            for ([address, size], range) in own.zip(registers) {
                let below = self.shares.closure.address_below(bus, unit, address, size);
                let window = below.zip(self.placed.ipa(range.start()));
                windows.extend(window.map(|(below, at)| (below, at, size)));
            }
        }
        windows.sort_unstable();
        windows.dedup();
        windows
    }

    fn address_cells(&self, bus: NodeId, address: u64) -> Vec<u32> {
        let (count, _) = self.shares.tree().bus_cells(bus).unwrap_or((2, 2));
        narrowed(address, count)
    }

    fn size_cells(&self, bus: NodeId, size: u64) -> Vec<u32> {
        let (_, count) = self.shares.tree().bus_cells(bus).unwrap_or((2, 2));
        narrowed(size, count)
    }

    /// Writes a node's properties, but for registers of a unit, and what is below it.
    fn fill(&self, id: NodeId, node: &mut DeviceTreeNode) {
        let (tree, facts) = (self.shares.tree(), self.shares.closure.facts(id));
        let is_unit = facts.unit == Some(id);
        let dropped = self.dropped(id);
        for (name, value) in tree.properties(id) {
            let is_place = is_unit && matches!(name, "reg" | "ranges");
            if is_place || REPLACED.contains(&name) || dropped.contains(name) {
                continue;
            }
            let own = || facts.references.iter().filter(|found| found.property == name);
            let value = match own().next().map(|found| found.kind) {
                Some(Kind::Clock) => self.clocks(id, own()),
                Some(Kind::Supply) => self.supplies(own()),
                _ => value.to_vec(),
            };
            node.add_property(property(name, value.as_slice()));
        }
        self.assigned_clocks(id, node);
        self.interrupts(id, node);
        for child in tree.children(id) {
            if self.shares.closure.facts(*child).is_enabled && !self.is_loose_end(*child) {
                let mut below = guest::node(tree.name(*child), []);
                self.fill(*child, &mut below);
                node.add_child(below);
            }
        }
    }

    /// Returns the properties that lead to what the guest does not have, with those that name their
    /// entries.
    fn dropped(&self, id: NodeId) -> BTreeSet<String> {
        let mut dropped = BTreeSet::new();
        for reference in &self.shares.closure.facts(id).references {
            let is_made = matches!(reference.kind, Kind::Clock | Kind::Supply);
            let is_gone = matches!(reference.kind, Kind::Dma | Kind::Iommu | Kind::Msi);
            if is_made || (self.has(reference.provider) && !is_gone) {
                continue;
            }
            if reference.property.starts_with("pinctrl-") {
                let names = self.shares.tree().properties(id).map(|(name, _)| name);
                dropped.extend(names.filter(|name| name.starts_with("pinctrl-")).map(Into::into));
            }
            dropped.insert(names_of(&reference.property));
            dropped.insert(reference.property.clone());
        }
        dropped
    }

    fn clocks<'r>(&self, id: NodeId, clocks: impl Iterator<Item = &'r Reference>) -> Vec<u8> {
        let mut list = Vec::new();
        let mut next = 0;
        for clock in clocks {
            // Places that are left empty stay so.
            list.extend((next..clock.index).map(|_| 0));
            next = clock.index + 1;
            if self.has(clock.provider) {
                list.push(self.phandle(clock.provider));
                list.extend(&clock.specifier);
            } else {
                let hz = self.shares.rate(id, clock);
                let phandle = hz.and_then(|hz| self.clocks.get(&hz));
                list.push(phandle.copied().unwrap_or(0));
            }
        }
        cells(&list)
    }

    fn supplies<'r>(&self, supplies: impl Iterator<Item = &'r Reference>) -> Vec<u8> {
        let phandle = |supply: &Reference| match self.regulators.get(&supply.provider) {
            Some(phandle) => *phandle,
            None => self.phandle(supply.provider),
        };
        cells(&supplies.map(phandle).collect::<Vec<_>>())
    }

    fn phandle(&self, id: NodeId) -> u32 {
        self.shares.tree().u32(id, "phandle").unwrap_or(0)
    }

    /// Keeps how clocks are set up where all of them are the guest's own.
    fn assigned_clocks(&self, id: NodeId, node: &mut DeviceTreeNode) {
        let references = &self.shares.closure.facts(id).references;
        let mut set = references.iter().filter(|found| found.kind == Kind::AssignedClock);
        if set.all(|found| self.has(found.provider)) {
            for name in ["assigned-clocks", "assigned-clock-parents", "assigned-clock-rates"] {
                if let Some(value) = self.shares.tree().property(id, name) {
                    node.add_property(property(name, value));
                }
            }
        }
    }

    fn interrupts(&self, id: NodeId, node: &mut DeviceTreeNode) {
        let lines = &self.shares.closure.facts(id).lines;
        let gic = self.shares.board.machine.gic.node;
        let is_ours = |end: NodeId| end == gic || self.has(end);
        if lines.is_empty() || !lines.iter().all(|line| is_ours(line.end)) {
            return;
        }
        let specifier = |line: &crate::closure::Line| {
            if line.end != gic {
                return Some([vec![self.phandle(line.end)], line.cells.clone()].concat());
            }
            let vintid = self.placed.vintids.get(&spi_of(line)?.pintid)?;
            let flags = line.cells.get(2).copied().unwrap_or(0);
            Some(vec![GIC_PHANDLE, 0, vintid.get().checked_sub(32)?, flags & 0xf])
        };
        let Some(list) = lines.iter().map(specifier).collect::<Option<Vec<_>>>() else { return };
        let (name, list): (&str, Vec<u32>) =
            if self.leads_to_gic(id) && lines.iter().all(|l| l.end == gic) {
                let list = list.iter().flat_map(|one| one.iter().skip(1).copied());
                ("interrupts", list.collect())
            } else {
                ("interrupts-extended", list.concat())
            };
        node.add_property(property(name, cells(&list)));
    }

    /// Returns whether `interrupts` without a parent are those of the GIC: nothing above it in the
    /// guest's tree takes interrupts.
    fn leads_to_gic(&self, id: NodeId) -> bool {
        let (tree, unit) = (self.shares.tree(), self.shares.closure.facts(id).unit);
        let mut at = id;
        while Some(at) != unit
            && let Some(parent) = tree.parent(at)
        {
            if tree.property(parent, "#interrupt-cells").is_some() {
                return false;
            }
            at = parent;
        }
        true
    }

    /// Returns whether a node is one end of a connection whose other end the guest does not have.
    fn is_loose_end(&self, id: NodeId) -> bool {
        matches!(self.shares.tree().generic_name(id), "port" | "ports")
            && self.shares.closure.subtree(id).into_iter().any(|below| {
                let mut references = self.shares.closure.facts(below).references.iter();
                references.any(|one| one.kind == Kind::Endpoint && !self.has(one.provider))
            })
    }
}

/// Returns the property that names the entries of another.
fn names_of(property: &str) -> String {
    format!("{}-names", property.strip_suffix('s').unwrap_or(property))
}

/// Writes a number in so many cells.
fn narrowed(number: u64, count: usize) -> Vec<u32> {
    let [high, low] = halves(number);
    match count {
        0 => Vec::new(),
        1 => vec![low],
        _ => vec![high, low],
    }
}
