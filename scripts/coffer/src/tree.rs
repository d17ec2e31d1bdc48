// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A board's device tree, read once and owned (Devicetree Specification 0.4).
//!
//! Everything else asks this file and does not see what reads the blob: that is [`Tree::parse`]
//! alone, with EL2's own reader. A tree may be hostile; its size, depth and number of nodes are
//! bounded.
#![forbid(unsafe_code)]

pub mod guest;
mod write;

use cofferdam::spec::dtb::{self, DtbError, Entry, NODES_MAX};
use std::collections::HashMap;

/// The most bytes in a tree: what the arm64 boot protocol allows.
pub const BYTES_MAX: usize = 2 << 20;
/// The most levels of nodes.
pub const DEPTH_MAX: usize = dtb::DEPTH_MAX;
const HEADER_BYTES: usize = 40;
const MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];

/// The place of a node in its tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(usize);

impl NodeId {
    /// Returns its place in [`Tree::all`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// A device tree.
#[derive(Debug)]
pub struct Tree {
    /// The root first, and every parent before its children.
    nodes: Vec<Node>,
    phandles: HashMap<u32, NodeId>,
    /// What /memreserve/ keeps: addresses and sizes in bytes.
    pub reservations: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Node {
    name: String,
    parent: Option<NodeId>,
    children: Vec<NodeId>,
    properties: Vec<(String, Vec<u8>)>,
}

/// Why bytes are not a tree that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TreeError {
    /// It is longer than [`BYTES_MAX`].
    #[error("the tree has {0} bytes; 2M is the most that the boot protocol allows")]
    TooLong(usize),
    /// The blob is broken.
    #[error("the tree is broken: {0}")]
    Broken(String),
    /// It has more nodes or levels than any machine.
    #[error("the tree has more than {NODES_MAX} nodes or {DEPTH_MAX} levels")]
    TooLarge,
}

impl Tree {
    /// Reads a flattened tree; bytes behind its own size are left alone.
    ///
    /// # Errors
    /// Says why the bytes are no tree.
    pub fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        let exact = bytes.get(..size(bytes)?).unwrap_or(bytes);
        let (nodes, phandles) = Default::default();
        let mut tree = Self { nodes, phandles, reservations: reservations(exact) };
        // The nodes that are open, the root first.
        let mut open: Vec<NodeId> = Vec::new();
        let read = dtb::read(exact, &mut |entry| match entry {
            Entry::Node(depth, name) => {
                open.truncate(depth);
                let id = tree.add(open.last().copied(), name);
                open.push(id);
            }
            Entry::Property(name, value) => {
                if let Some(id) = open.last() {
                    tree.node_mut(*id).properties.push((name.to_owned(), value.to_vec()));
                }
            }
            Entry::Nop => {}
        });
        read.map_err(|error| match error {
            DtbError::Depth(_) | DtbError::Count(_) => TreeError::TooLarge,
            error => TreeError::Broken(error.to_string()),
        })?;
        tree.note_phandles();
        Ok(tree)
    }

    fn add(&mut self, parent: Option<NodeId>, name: &str) -> NodeId {
        let id = NodeId(self.nodes.len());
        let (children, properties) = Default::default();
        self.nodes.push(Node { name: name.to_owned(), parent, children, properties });
        if let Some(parent) = parent {
            self.node_mut(parent).children.push(id);
        }
        id
    }

    fn note_phandles(&mut self) {
        for id in self.all() {
            let phandle = self.u32(id, "phandle").or_else(|| self.u32(id, "linux,phandle"));
            if let Some(phandle) = phandle {
                self.phandles.entry(phandle).or_insert(id);
            }
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        // Only this file makes a NodeId, and no node is ever removed.
        &self.nodes[id.0]
    }
    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// Returns the root.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }
    /// Returns all nodes, every parent before its children.
    pub fn all(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }
    /// Returns the name with the unit address.
    #[must_use]
    pub fn name(&self, id: NodeId) -> &str {
        &self.node(id).name
    }
    /// Returns the name without the unit address.
    #[must_use]
    pub fn generic_name(&self, id: NodeId) -> &str {
        self.name(id).split('@').next().unwrap_or_default()
    }
    /// Returns the parent.
    #[must_use]
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).parent
    }
    /// Returns the children in the order of the tree.
    #[must_use]
    pub fn children(&self, id: NodeId) -> &[NodeId] {
        &self.node(id).children
    }
    /// Returns the child with this name, unit address included.
    #[must_use]
    pub fn child(&self, id: NodeId, name: &str) -> Option<NodeId> {
        self.children(id).iter().copied().find(|child| self.name(*child) == name)
    }
    /// Returns the full path.
    #[must_use]
    pub fn path(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            names.push(self.name(id));
            at = self.parent(id);
        }
        names.reverse();
        if names.len() == 1 { "/".into() } else { names.join("/") }
    }
    /// Finds the node with this full path.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(self.root(), |at, name| self.child(at, name))
    }
    /// Finds the node with this phandle.
    #[must_use]
    pub fn by_phandle(&self, phandle: u32) -> Option<NodeId> {
        self.phandles.get(&phandle).copied()
    }
    /// Returns whether a node has this phandle, or one above it.
    #[must_use]
    pub fn has_phandle_from(&self, first: u32) -> bool {
        self.phandles.keys().any(|phandle| *phandle >= first)
    }
    /// Finds what a label, or an alias, or a path with options behind a colon, leads to.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<NodeId> {
        let name = name.split(':').next().unwrap_or(name);
        if name.starts_with('/') {
            return self.find(name);
        }
        let in_node = |node: &str| self.text(self.find(node)?, name);
        self.find(in_node("/__symbols__").or_else(|| in_node("/aliases"))?)
    }
    /// Returns all labels and aliases.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let nodes = ["/__symbols__", "/aliases"].into_iter().filter_map(|path| self.find(path));
        nodes.flat_map(|id| self.properties(id)).map(|(name, _)| name)
    }

    /// Returns the properties in the order of the tree.
    pub fn properties(&self, id: NodeId) -> impl Iterator<Item = (&str, &[u8])> {
        self.node(id).properties.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
    /// Returns a property's value.
    #[must_use]
    pub fn property(&self, id: NodeId, name: &str) -> Option<&[u8]> {
        self.properties(id).find(|(property, _)| *property == name).map(|(_, value)| value)
    }
    /// Returns a property's one cell.
    #[must_use]
    pub fn u32(&self, id: NodeId, name: &str) -> Option<u32> {
        be_u32(self.property(id, name)?)
    }
    /// Returns a property's cells; empty when it has none or is not made of cells.
    #[must_use]
    pub fn cells(&self, id: NodeId, name: &str) -> Vec<u32> {
        let value = self.property(id, name).unwrap_or_default();
        if value.len().is_multiple_of(4) {
            value.chunks_exact(4).filter_map(be_u32).collect()
        } else {
            Vec::new()
        }
    }
    /// Returns a property's first string.
    #[must_use]
    pub fn text(&self, id: NodeId, name: &str) -> Option<&str> {
        self.texts(id, name).next()
    }
    /// Returns a property's strings.
    pub fn texts(&self, id: NodeId, name: &str) -> impl Iterator<Item = &str> {
        let value = self.property(id, name).and_then(|value| value.strip_suffix(&[0]));
        let parts = value.into_iter().flat_map(|value| value.split(|byte| *byte == 0));
        parts.filter_map(|part| str::from_utf8(part).ok())
    }
    /// Returns whether the node says that it is compatible with this.
    #[must_use]
    pub fn is_compatible(&self, id: NodeId, compatible: &str) -> bool {
        self.texts(id, "compatible").any(|text| text == compatible)
    }
    /// Returns whether the node and everything above it is switched on.
    #[must_use]
    pub fn is_enabled(&self, id: NodeId) -> bool {
        self.is_on(id) && self.parent(id).is_none_or(|parent| self.is_enabled(parent))
    }
    /// Returns whether the node itself is switched on.
    #[must_use]
    pub fn is_on(&self, id: NodeId) -> bool {
        matches!(self.text(id, "status"), None | Some("okay" | "ok"))
    }

    /// Returns the node's registers as the CPU sees them: addresses and sizes in bytes. `None`
    /// when it has none, or when a bus above it does not translate.
    #[must_use]
    pub fn registers(&self, id: NodeId) -> Option<Vec<(u64, u64)>> {
        let bus = self.parent(id)?;
        let (address_cells, size_cells) = self.bus_cells(bus)?;
        let entries = split(&self.cells(id, "reg"), [address_cells, size_cells])?;
        if entries.is_empty() {
            return None;
        }
        let translated = entries.into_iter().map(|[address, size]| {
            address.checked_add(size)?;
            Some((self.translate(bus, address, size)?, size))
        });
        translated.collect()
    }

    /// Follows an address up from `bus` to the root.
    fn translate(&self, bus: NodeId, mut address: u64, size: u64) -> Option<u64> {
        let mut bus = bus;
        while let Some(parent) = self.parent(bus) {
            let ranges = self.property(bus, "ranges")?;
            if !ranges.is_empty() {
                let (child_cells, size_cells) = self.bus_cells(bus)?;
                let (parent_cells, _) = self.bus_cells(parent)?;
                let cells = [child_cells, parent_cells, size_cells];
                let windows = split(&self.cells(bus, "ranges"), cells)?;
                let inside = windows.into_iter().find_map(|[child, up, length]| {
                    let offset = address.checked_sub(child)?;
                    let fits = offset.checked_add(size)? <= length;
                    fits.then(|| up.checked_add(offset)).flatten()
                });
                address = inside?;
            }
            bus = parent;
        }
        Some(address)
    }

    /// Returns the cells of an address and of a size below `bus`; `None` when 64 bits are not
    /// enough for them.
    #[must_use]
    pub fn bus_cells(&self, bus: NodeId) -> Option<(usize, usize)> {
        let cells = |name, default| match self.property(bus, name) {
            None => Some(default),
            Some(value) => usize::try_from(be_u32(value)?).ok().filter(|cells| *cells <= 2),
        };
        Some((cells("#address-cells", 2)?, cells("#size-cells", 1)?))
    }

    /// Returns the node's interrupts: the controller and the cells of each. `None` when the tree
    /// contradicts itself.
    #[must_use]
    pub fn interrupts(&self, id: NodeId) -> Option<Vec<(NodeId, Vec<u32>)>> {
        let mut interrupts = Vec::new();
        if self.property(id, "interrupts-extended").is_some() {
            let cells = self.cells(id, "interrupts-extended");
            let mut rest = cells.as_slice();
            while let Some((phandle, behind)) = rest.split_first() {
                let controller = self.by_phandle(*phandle)?;
                let (one, behind) = behind.split_at_checked(self.interrupt_cells(controller)?)?;
                interrupts.push((controller, one.to_vec()));
                rest = behind;
            }
        } else if self.property(id, "interrupts").is_some() {
            let controller = self.interrupt_parent(id)?;
            let width = self.interrupt_cells(controller)?;
            let cells = self.cells(id, "interrupts");
            if cells.is_empty() || !cells.len().is_multiple_of(width) {
                return None;
            }
            interrupts.extend(cells.chunks_exact(width).map(|one| (controller, one.to_vec())));
        }
        Some(interrupts)
    }

    fn interrupt_cells(&self, controller: NodeId) -> Option<usize> {
        let cells = usize::try_from(self.u32(controller, "#interrupt-cells")?).ok()?;
        (1..=8).contains(&cells).then_some(cells)
    }

    fn interrupt_parent(&self, id: NodeId) -> Option<NodeId> {
        let mut at = Some(id);
        while let Some(id) = at {
            if let Some(phandle) = self.u32(id, "interrupt-parent") {
                return self.by_phandle(phandle);
            }
            at = self.parent(id);
        }
        None
    }
}

/// Returns the bytes that a flattened tree says that it has.
///
/// # Errors
/// It is not a tree, or longer than any can be.
pub fn size(bytes: &[u8]) -> Result<usize, TreeError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(TreeError::Broken("it does not start like a device tree".into()));
    }
    let size = bytes.get(4..8).and_then(be_u32).unwrap_or(0);
    match usize::try_from(size).unwrap_or(usize::MAX) {
        size if size > BYTES_MAX => Err(TreeError::TooLong(size)),
        size => Ok(size.max(HEADER_BYTES)),
    }
}

/// Returns the entries of the reservation block; none where it does not lie in the tree.
fn reservations(bytes: &[u8]) -> Vec<(u64, u64)> {
    let start = bytes.get(16..20).and_then(be_u32).and_then(|at| usize::try_from(at).ok());
    let block = start.and_then(|start| bytes.get(start..)).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_be_bytes);
    let entries = block.chunks_exact(16).map(|entry| {
        let (address, size) = entry.split_at(8);
        (number(address), number(size))
    });
    entries.take(dtb::RESERVATIONS_MAX).take_while(|entry| *entry != (0, 0)).collect()
}

/// Splits cells into entries of `N` numbers, each as wide as `widths` says, at most two cells.
pub(crate) fn split<const N: usize>(cells: &[u32], widths: [usize; N]) -> Option<Vec<[u64; N]>> {
    let width: usize = widths.iter().sum();
    if width == 0 || !cells.len().is_multiple_of(width) {
        return None;
    }
    let entry = |mut entry: &[u32]| {
        widths.map(|width| {
            let (number, rest) = entry.split_at(width);
            entry = rest;
            number.iter().fold(0, |number, cell| (number << 32) | u64::from(*cell))
        })
    };
    Some(cells.chunks_exact(width).map(entry).collect())
}

fn be_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty as Property};
    use proptest::prelude::*;

    fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> Property {
        Property::new(name, value).unwrap()
    }

    fn example() -> Vec<u8> {
        let device = DeviceTreeNode::builder("device@100").unwrap();
        let device = device
            .property(property("reg", [0x100u32, 0x10].as_slice()))
            .property(property("interrupts", [0u32, 5, 4].as_slice()));
        let soc = DeviceTreeNode::builder("soc").unwrap();
        let soc = soc
            .property(property("#address-cells", 1u32))
            .property(property("#size-cells", 1u32))
            .property(property("ranges", [0u32, 0x10, 0x8000_0000, 0x1000].as_slice()))
            .child(device.build());
        let gic = DeviceTreeNode::builder("gic").unwrap();
        let gic =
            gic.property(property("phandle", 7u32)).property(property("#interrupt-cells", 3u32));
        let aliases = DeviceTreeNode::builder("aliases").unwrap();
        let aliases = aliases.property(property("d0", "/soc/device@100"));
        let mut tree = DeviceTree::new();
        tree.root.add_property(property("#address-cells", 2u32));
        tree.root.add_property(property("interrupt-parent", 7u32));
        for node in [soc.build(), gic.build(), aliases.build()] {
            tree.root.add_child(node);
        }
        tree.to_dtb()
    }

    #[test]
    fn registers_are_translated_up_to_the_root() {
        let tree = Tree::parse(&example()).unwrap();
        let device = tree.resolve("d0:115200n8").unwrap();
        assert_eq!(tree.path(device), "/soc/device@100");
        assert_eq!(tree.registers(device), Some(vec![(0x10_8000_0100, 0x10)]));
    }

    #[test]
    fn interrupts_find_their_controller() {
        let tree = Tree::parse(&example()).unwrap();
        let gic = tree.find("/gic").unwrap();
        let device = tree.find("/soc/device@100").unwrap();
        assert_eq!(tree.interrupts(device), Some(vec![(gic, vec![0, 5, 4])]));
    }

    #[test]
    fn bytes_behind_the_tree_are_left_alone() {
        let mut bytes = example();
        bytes.resize(bytes.len() + 100, 0xff);
        assert!(Tree::parse(&bytes).is_ok());
        let cut = example();
        for length in 0..cut.len() {
            assert!(Tree::parse(&cut[..length]).is_err(), "{length}");
        }
    }

    /// Writes a tree of so many nodes, each in the one before.
    fn nested(depth: usize) -> Vec<u8> {
        let begin = [1, 0].map(u32::to_be_bytes).concat();
        let ends = [2u32, 9].map(u32::to_be_bytes);
        let mut nodes = begin;
        for _ in 1..depth {
            nodes.extend([1, 0x7800_0000].map(u32::to_be_bytes).concat());
        }
        nodes.extend(ends[0].repeat(depth));
        nodes.extend(ends[1]);
        let size = u32::try_from(nodes.len()).unwrap();
        let end = 56 + size;
        let header = [0xd00d_feed, end, 56, end, 40, 17, 16, 0, 0, size, 0, 0, 0, 0];
        [header.map(u32::to_be_bytes).concat(), nodes].concat()
    }

    #[test]
    fn a_tree_of_many_levels_is_refused() {
        assert!(Tree::parse(&nested(DEPTH_MAX)).is_ok());
        for depth in [DEPTH_MAX + 1, 100_000] {
            assert_eq!(Tree::parse(&nested(depth)).err(), Some(TreeError::TooLarge));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_tree_makes_a_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut bytes = example();
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Ok(tree) = Tree::parse(&bytes) {
                for id in tree.all() {
                    let _ = (tree.registers(id), tree.interrupts(id), tree.is_enabled(id));
                    prop_assert!(tree.path(id).starts_with('/'));
                }
                let _ = tree.resolve("d0");
            }
        }
    }
}
