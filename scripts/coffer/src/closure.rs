// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a node of a board's tree consists of and needs: registers, interrupts, and everything that
//! it refers to; and who else has a part of that.
//!
//! Works by the bindings' conventions alone (Devicetree Specification 0.4; Linux,
//! Documentation/devicetree/bindings): a provider is a node with `#…-cells`, and a property's name
//! says which. No `compatible` is read here, and none may be. A tree may be hostile: the work on
//! one is bounded, and what is wrong is said of the node that is asked about.
#![forbid(unsafe_code)]

mod dma;
mod lines;
mod references;
mod report;
mod space;

pub use dma::Dma;
pub use lines::Line;
pub use references::{Kind, Reference};

use crate::tree::{NodeId, Tree};
use cofferdam::addr::PaRange;
use references::Properties;
use space::Space;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

/// The most steps that reading a tree takes: hundreds for each node of the largest boards.
const STEPS_MAX: usize = 1 << 20;
/// Nodes whose properties are names of other nodes.
const NAMES: [&str; 2] = ["aliases", "__symbols__"];
/// Nodes below the root that describe no device.
const NO_DEVICES: [&str; 7] =
    ["aliases", "chosen", "cpus", "firmware", "memory", "reserved-memory", "__symbols__"];

/// What is wrong with a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{path}: {property}: {problem}")]
pub struct Fault {
    /// The node's full path.
    pub path: String,
    /// The property.
    pub property: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a property.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The value is no list of cells, or ends within an entry.
    #[error("it is not made as its binding says")]
    Malformed,
    /// It names a node that there is not.
    #[error("it names a node that the tree does not have")]
    Dangling,
    /// It names a node that does not say how many cells follow.
    #[error("it names a node that is no provider of this kind")]
    NoProvider,
    /// No bus above translates these addresses.
    #[error("a bus above does not translate it")]
    Untranslated,
    /// No interrupt controller is found.
    #[error("it leads to no interrupt controller")]
    NoController,
    /// The tree refers back and forth more than any board's.
    #[error("the tree is too intertwined to follow it")]
    TooMuch,
}

/// What the tree says of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Whether it and everything above it is switched on.
    pub is_enabled: bool,
    /// Its registers as cores see them.
    pub registers: Vec<PaRange>,
    /// Its interrupts.
    pub lines: Vec<Line>,
    /// The interrupts that pass through it, where it is a nexus.
    pub mapped_lines: Vec<Line>,
    /// The other nodes that it refers to, in the order of its properties.
    pub references: Vec<Reference>,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
    /// The node that is given away with it: itself, one above it, or none.
    pub unit: Option<NodeId>,
}

/// All that a set of nodes consists of and needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// The nodes, with those below them and those that all of these need, in the tree's order.
    pub nodes: Vec<NodeId>,
    /// Their registers.
    pub registers: Vec<PaRange>,
    /// Their interrupts: the controller at the end, and its cells.
    pub interrupts: Vec<(NodeId, Vec<u32>)>,
}

/// What the nodes of a tree consist of and need.
#[derive(Debug)]
pub struct Closure<'a> {
    tree: &'a Tree,
    space: Space<'a>,
    facts: Vec<Facts>,
    users: HashMap<NodeId, Vec<(NodeId, usize)>>,
}

/// Counts the steps of reading.
#[derive(Debug)]
struct Budget(Cell<usize>);

impl Budget {
    /// Takes one step; `None` when there is none left.
    fn step(&self) -> Option<()> {
        self.steps(1)
    }

    /// Takes so many steps; `None` when there are not so many left.
    fn steps(&self, count: usize) -> Option<()> {
        let left = self.0.get().checked_sub(count);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ())
    }
}

impl<'a> Closure<'a> {
    /// Reads the whole tree.
    #[must_use]
    pub fn read(tree: &'a Tree) -> Self {
        let budget = Budget(Cell::new(STEPS_MAX));
        let space = Space::read(tree);
        let known = Properties::new();
        let mut facts: Vec<Facts> = Vec::new();
        let mut users: HashMap<NodeId, Vec<(NodeId, usize)>> = HashMap::new();
        for id in tree.all() {
            let mut node = Facts::default();
            let parent = tree.parent(id).and_then(|parent| facts.get(parent.index()));
            node.is_enabled = parent.is_none_or(|parent| parent.is_enabled) && tree.is_on(id);
            let mut faults = Vec::new();
            let mut fault = |(property, problem): (&str, Problem)| {
                let property = property.to_owned();
                faults.push(Fault { path: tree.path(id), property, problem });
            };
            space.registers(id, &budget).map_or_else(&mut fault, |found| node.registers = found);
            lines::own(tree, id, &budget).map_or_else(&mut fault, |found| node.lines = found);
            lines::mapped(tree, id, &budget)
                .map_or_else(&mut fault, |found| node.mapped_lines = found);
            if !NAMES.contains(&tree.name(id)) {
                known.references(tree, id, &budget, &mut node.references, &mut fault);
            }
            node.faults = faults;
            for (index, reference) in node.references.iter().enumerate() {
                users.entry(reference.provider).or_default().push((id, index));
            }
            facts.push(node);
        }
        let mut closure = Self { tree, space, facts, users };
        closure.find_units();
        closure
    }

    /// Returns what the tree says of a node.
    #[must_use]
    pub fn facts(&self, id: NodeId) -> &Facts {
        // There is one entry for each node of the tree that was read.
        &self.facts[id.index()]
    }

    /// Returns all nodes that are given away as a whole, in the tree's order.
    pub fn units(&self) -> impl Iterator<Item = NodeId> {
        self.tree.all().filter(|id| self.facts(*id).unit == Some(*id))
    }

    /// Returns the references to a node.
    pub fn users(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Reference)> {
        let users = self.users.get(&id).map_or(&[][..], Vec::as_slice);
        users.iter().filter_map(|(user, index)| {
            Some((*user, self.facts.get(user.index())?.references.get(*index)?))
        })
    }

    /// Returns the nodes of units that have registers in these pages.
    pub fn on_pages(&self, pages: PaRange) -> impl Iterator<Item = NodeId> {
        self.tree.all().filter(move |id| {
            let facts = self.facts(*id);
            facts.unit.is_some() && facts.registers.iter().any(|own| own.overlaps(pages))
        })
    }

    /// Returns the nodes that are switched on and have this interrupt; a trigger that differs does
    /// not make it another.
    pub fn on_interrupt(&self, controller: NodeId, cells: &[u32]) -> impl Iterator<Item = NodeId> {
        let kind_and_number = cells.get(..2).unwrap_or(cells).to_owned();
        self.tree.all().filter(move |id| {
            let facts = self.facts(*id);
            let mut lines = facts.lines.iter().chain(&facts.mapped_lines);
            facts.is_enabled
                && lines
                    .any(|line| line.end == controller && line.cells.starts_with(&kind_and_number))
        })
    }

    /// Returns everything below a node, itself first.
    #[must_use]
    pub fn subtree(&self, id: NodeId) -> Vec<NodeId> {
        let mut found = vec![id];
        let mut next = 0;
        while let Some(id) = found.get(next) {
            found.extend(self.tree.children(*id));
            next += 1;
        }
        found
    }

    /// Returns what nodes consist of and need, and what that needs, to the end.
    #[must_use]
    pub fn needs(&self, nodes: &[NodeId]) -> Needs {
        let mut found = BTreeSet::new();
        let mut open: Vec<NodeId> = nodes.to_vec();
        while let Some(id) = open.pop() {
            if !found.insert(id) {
                continue;
            }
            let facts = self.facts(id);
            open.extend(self.tree.children(id));
            open.extend(facts.unit);
            open.extend(facts.references.iter().map(|reference| reference.provider));
            open.extend(facts.lines.iter().map(|line| line.parent));
        }
        let (mut registers, mut interrupts) = (BTreeSet::new(), BTreeSet::new());
        for facts in found.iter().map(|id| self.facts(*id)) {
            registers.extend(facts.registers.iter().map(|range| (range.start(), range.end())));
            let lines = facts.lines.iter().chain(&facts.mapped_lines);
            interrupts.extend(lines.map(|line| (line.end, line.cells.clone())));
        }
        let range = |(start, end)| PaRange::between(start, end);
        Needs {
            nodes: found.into_iter().collect(),
            registers: registers.into_iter().filter_map(range).collect(),
            interrupts: interrupts.into_iter().collect(),
        }
    }

    /// Returns where an address below `bus` is below `top`, a bus above it or itself.
    #[must_use]
    pub fn address_below(&self, bus: NodeId, top: NodeId, address: u64, size: u64) -> Option<u64> {
        let budget = Budget(Cell::new(STEPS_MAX));
        self.space.translate(bus, Some(top), address, size, &budget)
    }

    /// Returns whether a node may have registers of a device.
    fn is_device(&self, id: NodeId) -> bool {
        let mut top = id;
        while let Some(parent) = self.tree.parent(top).filter(|up| *up != self.tree.root()) {
            top = parent;
        }
        let name = self.tree.generic_name(top);
        top != self.tree.root() && !NO_DEVICES.contains(&name)
    }

    /// Finds for each node what is given away with it: the topmost node above it, or itself, that
    /// is a device and not a bus.
    fn find_units(&mut self) {
        for id in self.tree.all() {
            let above = self.tree.parent(id).and_then(|parent| self.facts(parent).unit);
            let unit = above.or_else(|| self.is_unit(id).then_some(id));
            if let Some(facts) = self.facts.get_mut(id.index()) {
                facts.unit = unit;
            }
        }
    }

    /// Returns whether a node that is below no unit is one: it has registers, or wraps nodes that
    /// have some and manages their clocks, resets or phys.
    fn is_unit(&self, id: NodeId) -> bool {
        if !self.is_device(id) || is_bus(self.tree, id) {
            return false;
        }
        let manages =
            |reference: &Reference| matches!(reference.kind, Kind::Clock | Kind::Reset | Kind::Phy);
        let facts = self.facts(id);
        let wraps = || {
            let mut below = self.tree.children(id).iter();
            self.tree.property(id, "ranges").is_some()
                && facts.references.iter().any(manages)
                && below.any(|child| !self.facts(*child).registers.is_empty())
        };
        !facts.registers.is_empty() || wraps()
    }
}

/// Returns whether a node's generic name is that of a bus.
fn is_bus(tree: &Tree, id: NodeId) -> bool {
    let name = tree.generic_name(id);
    let is_named = matches!(name, "soc" | "axi" | "amba" | "apb" | "ahb") || name.ends_with("bus");
    is_named && tree.property(id, "ranges").is_some()
}

#[cfg(test)]
mod tests;
