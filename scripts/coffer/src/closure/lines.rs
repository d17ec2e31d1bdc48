// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts, also those that pass a nexus (Devicetree Specification 0.4, 2.4).
#![forbid(unsafe_code)]

use super::{Budget, Problem};
use crate::tree::{DEPTH_MAX, NodeId, Tree};

/// More cells than any specifier has.
const CELLS_MAX: usize = 8;

/// An interrupt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Line {
    /// The controller, or the nexus, that the node names.
    pub parent: NodeId,
    /// The cells as the node has them.
    pub own_cells: Vec<u32>,
    /// The controller where it ends.
    pub end: NodeId,
    /// The cells as that controller takes them.
    pub cells: Vec<u32>,
}

type Found<T> = Result<T, (&'static str, Problem)>;

/// Returns the interrupts of a node.
pub(super) fn own(tree: &Tree, id: NodeId, budget: &Budget) -> Found<Vec<Line>> {
    let property = if tree.property(id, "interrupts-extended").is_some() {
        "interrupts-extended"
    } else if tree.property(id, "interrupts").is_some() {
        "interrupts"
    } else {
        return Ok(Vec::new());
    };
    let fault = |problem| (property, problem);
    let cells = tree.cells(id, property);
    let mut rest = cells.as_slice();
    if rest.is_empty() {
        return Err(fault(Problem::Malformed));
    }
    let fixed = match property {
        "interrupts" => Some(parent(tree, id).ok_or(fault(Problem::NoController))?),
        _ => None,
    };
    let mut lines = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        budget.step().ok_or(fault(Problem::TooMuch))?;
        let (parent, from) = match fixed {
            Some(parent) => (parent, rest),
            None if *first == 0 => {
                rest = behind;
                continue;
            }
            None => (tree.by_phandle(*first).ok_or(fault(Problem::Dangling))?, behind),
        };
        let width = width(tree, parent).ok_or(fault(Problem::NoController))?;
        let (one, behind) = from.split_at_checked(width).ok_or(fault(Problem::Malformed))?;
        rest = behind;
        let (end, cells) = follow(tree, parent, &unit_address(tree, id), one, budget)
            .ok_or(fault(Problem::NoController))?;
        lines.push(Line { parent, own_cells: one.to_vec(), end, cells });
    }
    Ok(lines)
}

/// Returns the interrupts that pass through a nexus.
pub(super) fn mapped(tree: &Tree, id: NodeId, budget: &Budget) -> Found<Vec<Line>> {
    let fault = |problem| ("interrupt-map", problem);
    if tree.property(id, "interrupt-map").is_none() {
        return Ok(Vec::new());
    }
    let map = tree.cells(id, "interrupt-map");
    let mut entries = Entries::new(tree, id, &map).ok_or(fault(Problem::Malformed))?;
    let mut lines: Vec<Line> = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(fault)?;
        budget.step().ok_or(fault(Problem::TooMuch))?;
        let (end, cells) = follow(tree, entry.parent, entry.address, entry.cells, budget)
            .ok_or(fault(Problem::NoController))?;
        let own_cells = entry.matched.to_vec();
        lines.push(Line { parent: entry.parent, own_cells, end, cells });
    }
    Ok(lines)
}

/// Finds the node that a node's `interrupts` go to: the next above that takes interrupts, where
/// nothing says otherwise.
fn parent(tree: &Tree, id: NodeId) -> Option<NodeId> {
    let mut at = id;
    for _ in 0..=DEPTH_MAX {
        at = match tree.u32(at, "interrupt-parent") {
            Some(phandle) => tree.by_phandle(phandle)?,
            None => tree.parent(at)?,
        };
        if tree.property(at, "#interrupt-cells").is_some() {
            return Some(at);
        }
    }
    None
}

/// Returns the cells of a specifier for this controller or nexus.
fn width(tree: &Tree, controller: NodeId) -> Option<usize> {
    let cells = usize::try_from(tree.u32(controller, "#interrupt-cells")?).ok()?;
    (1..=CELLS_MAX).contains(&cells).then_some(cells)
}

/// Returns the cells of a unit address below a node, none where it does not say.
fn address_width(tree: &Tree, id: NodeId) -> Option<usize> {
    let cells = tree.u32(id, "#address-cells").unwrap_or(0);
    usize::try_from(cells).ok().filter(|cells| *cells <= CELLS_MAX)
}

/// Returns the cells of a node's own unit address.
fn unit_address(tree: &Tree, id: NodeId) -> Vec<u32> {
    let width = tree.parent(id).and_then(|parent| address_width(tree, parent)).unwrap_or(0);
    tree.cells(id, "reg").into_iter().take(width).collect()
}

/// Follows an interrupt from a controller or nexus to the controller at its end.
fn follow(
    tree: &Tree,
    parent: NodeId,
    address: &[u32],
    cells: &[u32],
    budget: &Budget,
) -> Option<(NodeId, Vec<u32>)> {
    let (mut at, mut address, mut cells) = (parent, address.to_vec(), cells.to_vec());
    for _ in 0..=DEPTH_MAX {
        let is_controller = tree.property(at, "interrupt-controller").is_some();
        if is_controller || tree.property(at, "interrupt-map").is_none() {
            return Some((at, cells));
        }
        let map = tree.cells(at, "interrupt-map");
        budget.steps(map.len() / CELLS_MAX)?;
        let mask = tree.cells(at, "interrupt-map-mask");
        let width = address_width(tree, at)?;
        address.resize(width, 0);
        let wanted = [address.as_slice(), cells.as_slice()].concat();
        let same = |matched: &[u32]| {
            let pairs = matched.iter().zip(&wanted).enumerate();
            pairs.into_iter().all(|(index, (have, want))| {
                (have ^ want) & mask.get(index).copied().unwrap_or(u32::MAX) == 0
            })
        };
        let mut entries = Entries::new(tree, at, &map)?;
        let found = loop {
            let entry = entries.next()?.ok()?;
            budget.step()?;
            if same(entry.matched) {
                break entry;
            }
        };
        (address, cells) = (found.address.to_vec(), found.cells.to_vec());
        at = found.parent;
    }
    None
}

/// One entry of an `interrupt-map`.
struct Entry<'m> {
    /// The address and the specifier that it is for.
    matched: &'m [u32],
    /// Where it goes.
    parent: NodeId,
    /// The address there.
    address: &'m [u32],
    /// The specifier there.
    cells: &'m [u32],
}

/// The entries of an `interrupt-map`.
struct Entries<'t, 'm> {
    tree: &'t Tree,
    rest: &'m [u32],
    width: usize,
}

impl<'t, 'm> Entries<'t, 'm> {
    fn new(tree: &'t Tree, nexus: NodeId, map: &'m [u32]) -> Option<Self> {
        let width = address_width(tree, nexus)?.checked_add(width(tree, nexus)?)?;
        Some(Self { tree, rest: map, width })
    }

    fn next(&mut self) -> Option<Result<Entry<'m>, Problem>> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.entry().inspect_err(|_| self.rest = &[]))
    }

    fn entry(&mut self) -> Result<Entry<'m>, Problem> {
        let take = |rest: &mut &'m [u32], count| {
            let (taken, behind) = rest.split_at_checked(count).ok_or(Problem::Malformed)?;
            *rest = behind;
            Ok(taken)
        };
        let mut rest = self.rest;
        let matched = take(&mut rest, self.width)?;
        let phandle = take(&mut rest, 1)?.first().copied().unwrap_or(0);
        let parent = self.tree.by_phandle(phandle).ok_or(Problem::Dangling)?;
        let width = width(self.tree, parent).ok_or(Problem::NoController)?;
        let addresses = address_width(self.tree, parent).ok_or(Problem::Malformed)?;
        let address = take(&mut rest, addresses)?;
        let cells = take(&mut rest, width)?;
        self.rest = rest;
        Ok(Entry { matched, parent, address, cells })
    }
}
