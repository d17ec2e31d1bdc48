// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Writes a tree again, with other memory.
#![forbid(unsafe_code)]

use super::guest::{cells, halves, node, property};
use super::{NodeId, Tree};
use cofferdam::addr::{Address, PaRange};
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

impl Tree {
    /// Returns the tree, flattened, with these banks in place of its memory nodes; `None` where
    /// the root's `#address-cells` and `#size-cells` cannot say them.
    #[must_use]
    pub fn with_memory(&self, banks: &[PaRange]) -> Option<Vec<u8>> {
        let (address_cells, size_cells) = self.bus_cells(self.root())?;
        let number = |value, count| match (halves(value), count) {
            ([0, low], 1) => Some(vec![low]),
            ([high, low], 2) => Some(vec![high, low]),
            _ => None,
        };
        let mut tree = DeviceTree::new();
        tree.root = self.model(self.root());
        for bank in banks {
            let start = number(bank.start().get(), address_cells)?;
            let reg = [start, number(bank.size(), size_cells)?].concat();
            let name = format!("memory@{:x}", bank.start().get());
            let memory = [property("device_type", "memory"), property("reg", cells(&reg))];
            tree.root.add_child(node(&name, memory));
        }
        let reserved = self.reservations.iter();
        tree.memory_reservations =
            reserved.map(|(start, size)| MemoryReservation::new(*start, *size)).collect();
        Some(tree.to_dtb())
    }

    /// Copies a node and what is below it, but memory.
    fn model(&self, id: NodeId) -> DeviceTreeNode {
        let mut copy = node(self.name(id), []);
        for (name, value) in self.properties(id) {
            copy.add_property(property(name, value));
        }
        for child in self.children(id) {
            let is_memory = id == self.root() && self.text(*child, "device_type") == Some("memory");
            if !is_memory {
                copy.add_child(self.model(*child));
            }
        }
        copy
    }
}
