// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Addresses: what cores have to say to reach a node's registers (Devicetree Specification 0.4,
//! 2.3.6 and 2.3.8).
#![forbid(unsafe_code)]

use super::{Budget, Problem};
use crate::tree::{NodeId, Tree, split};
use cofferdam::addr::{Address, Pa, PaRange};

/// How the buses of a tree translate.
#[derive(Debug)]
pub(super) struct Space<'a> {
    tree: &'a Tree,
    buses: Vec<Bus>,
}

/// How one bus translates from its children's addresses to its parent's.
#[derive(Debug)]
enum Bus {
    /// Not at all: what is below has addresses of another kind.
    Opaque,
    /// They are the same.
    Same,
    /// By windows: address below, address above, bytes.
    Windows(Vec<[u64; 3]>),
}

type Found<T> = Result<T, (&'static str, Problem)>;

impl<'a> Space<'a> {
    pub fn read(tree: &'a Tree) -> Self {
        let buses = tree.all().map(|id| Bus::read(tree, id)).collect();
        Self { tree, buses }
    }

    /// Returns a node's registers; none where they are not in cores' address space.
    pub fn registers(&self, id: NodeId, budget: &Budget) -> Found<Vec<PaRange>> {
        let fault = |problem| ("reg", problem);
        let (Some(bus), Some(value)) = (self.tree.parent(id), self.tree.property(id, "reg")) else {
            return Ok(Vec::new());
        };
        let Some((address_cells, size_cells)) = self.tree.bus_cells(bus) else {
            return Ok(Vec::new());
        };
        if size_cells == 0 || address_cells == 0 || !self.reaches_root(bus) {
            return Ok(Vec::new());
        }
        let cells = self.tree.cells(id, "reg");
        if cells.is_empty() != value.is_empty() {
            return Err(fault(Problem::Malformed));
        }
        let entries = split(&cells, [address_cells, size_cells]);
        let mut found = Vec::new();
        for [address, size] in entries.ok_or(fault(Problem::Malformed))? {
            budget.step().ok_or(fault(Problem::TooMuch))?;
            // Firmware fills in what is empty.
            if size > 0 {
                let start = self.translate(bus, None, address, size, budget);
                let range = start.and_then(|start| PaRange::new(Pa::new(start), size));
                found.push(range.ok_or(fault(Problem::Untranslated))?);
            }
        }
        Ok(found)
    }

    /// Returns whether every bus from this one up translates.
    fn reaches_root(&self, bus: NodeId) -> bool {
        let mut at = bus;
        while let Some(parent) = self.tree.parent(at) {
            if matches!(self.buses.get(at.index()), None | Some(Bus::Opaque)) {
                return false;
            }
            at = parent;
        }
        true
    }

    /// Follows an address below `bus` up to below `top`, or to what cores say.
    pub fn translate(
        &self,
        bus: NodeId,
        top: Option<NodeId>,
        mut address: u64,
        size: u64,
        budget: &Budget,
    ) -> Option<u64> {
        let mut at = bus;
        while Some(at) != top
            && let Some(parent) = self.tree.parent(at)
        {
            match self.buses.get(at.index())? {
                Bus::Opaque => return None,
                Bus::Same => {}
                Bus::Windows(windows) => {
                    let mut inside = None;
                    for [below, above, length] in windows {
                        budget.step()?;
                        let offset = address.checked_sub(*below);
                        let fits = |offset: &u64| {
                            offset.checked_add(size).is_some_and(|end| end <= *length)
                        };
                        if let Some(offset) = offset.filter(fits) {
                            inside = above.checked_add(offset);
                            break;
                        }
                    }
                    address = inside?;
                }
            }
            at = parent;
        }
        Some(address)
    }
}

impl Bus {
    fn read(tree: &Tree, id: NodeId) -> Self {
        if tree.children(id).is_empty() {
            return Self::Opaque;
        }
        let windows = || {
            let (child_cells, size_cells) = tree.bus_cells(id)?;
            let (parent_cells, _) = tree.bus_cells(tree.parent(id)?)?;
            split(&tree.cells(id, "ranges"), [child_cells, parent_cells, size_cells])
        };
        match tree.property(id, "ranges") {
            None => Self::Opaque,
            Some([]) => Self::Same,
            Some(_) => windows().map_or(Self::Opaque, Self::Windows),
        }
    }
}
