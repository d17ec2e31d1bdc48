// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a node stands: the nodes above it, and what they say about addresses and interrupts.
#![forbid(unsafe_code)]

use crate::addr::{Address, Pa, PaRange};
use crate::plan::Path;
use crate::spec::bundle::crc32c_behind;
use crate::spec::dtb::{FdtNode, value};
use alloc::vec::Vec;

/// The most entries of a bus's `ranges` that are looked at.
const RANGES_MAX: usize = 64;

/// The properties that matter in any node. The first of a name counts.
#[derive(Clone, Copy, Default)]
pub(super) struct Properties<'a> {
    pub compatible: Option<&'a [u8]>,
    pub device_type: Option<&'a [u8]>,
    pub reg: Option<&'a [u8]>,
    pub interrupts: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    ranges: Option<&'a [u8]>,
    address_cells: Option<&'a [u8]>,
    size_cells: Option<&'a [u8]>,
    interrupt_parent: Option<&'a [u8]>,
}

impl<'a> Properties<'a> {
    fn read(node: FdtNode<'_, 'a>) -> Self {
        let mut all = Self::default();
        for property in node.properties() {
            let field = match property.name {
                "compatible" => &mut all.compatible,
                "device_type" => &mut all.device_type,
                "reg" => &mut all.reg,
                "interrupts" => &mut all.interrupts,
                "status" => &mut all.status,
                "ranges" => &mut all.ranges,
                "#address-cells" => &mut all.address_cells,
                "#size-cells" => &mut all.size_cells,
                "interrupt-parent" => &mut all.interrupt_parent,
                _ => continue,
            };
            field.get_or_insert(property.value);
        }
        all
    }

    /// Returns whether `device_type` is this.
    pub fn is_type(&self, device_type: &str) -> bool {
        self.device_type.and_then(value::text) == Some(device_type)
    }
}

/// What a node says to those below it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: &'a str,
    /// The CRC32C of the path, the root's being empty.
    path_crc32c: u32,
    enabled: bool,
    /// Malformed ones are too wide to be used.
    address_cells: u32,
    size_cells: u32,
    ranges: Option<&'a [u8]>,
    interrupt_parent: Option<u32>,
}

/// The way from the root to the node that the walk has reached.
#[derive(Default)]
pub(super) struct Walk<'a> {
    frames: Vec<Frame<'a>>,
}

impl<'a> Walk<'a> {
    /// Goes on to the next node and returns its properties.
    pub fn enter(&mut self, depth: usize, node: FdtNode<'_, 'a>) -> Properties<'a> {
        let properties = Properties::read(node);
        self.frames.truncate(depth);
        let above = self.frames.last();
        let okay = properties
            .status
            .is_none_or(|status| matches!(value::text(status), Some("okay" | "ok")));
        let cells = |property: Option<_>, default| {
            property.map_or(default, |bytes| value::cell(bytes).unwrap_or(u32::MAX))
        };
        let path_crc32c = above.map_or(0, |frame| {
            crc32c_behind(crc32c_behind(frame.path_crc32c, b"/"), node.name.as_bytes())
        });
        self.frames.push(Frame {
            name: node.name,
            path_crc32c,
            enabled: okay && above.is_none_or(|frame| frame.enabled),
            // The defaults of section 2.3.5.
            address_cells: cells(properties.address_cells, 2),
            size_cells: cells(properties.size_cells, 1),
            ranges: properties.ranges,
            interrupt_parent: match properties.interrupt_parent {
                Some(bytes) => value::cell(bytes),
                None => above.and_then(|frame| frame.interrupt_parent),
            },
        });
        properties
    }

    /// Returns whether the node and all above it are in use.
    pub fn is_enabled(&self) -> bool {
        self.frames.last().is_some_and(|frame| frame.enabled)
    }

    /// Returns what tells the node from another that stands there, see [`super::fingerprint`].
    pub fn fingerprint(&self, properties: &Properties<'_>) -> u32 {
        let path = self.frames.last().map_or(0, |frame| frame.path_crc32c);
        let own = [properties.compatible, properties.reg];
        own.into_iter().flatten().fold(path, crc32c_behind)
    }

    /// Returns the phandle of the controller that the node's interrupts go to.
    pub fn interrupt_parent(&self) -> Option<u32> {
        self.frames.last()?.interrupt_parent
    }

    /// Returns the name of the node above.
    pub fn parent_name(&self) -> &'a str {
        self.parent().map_or("", |frame| frame.name)
    }

    /// Returns the path of the node, `None` when it is too long for a plan.
    pub fn path(&self) -> Option<Path> {
        let mut path = Path::new();
        for frame in self.frames.iter().skip(1) {
            path.push('/').ok()?;
            path.push_str(frame.name).ok()?;
        }
        Some(path)
    }

    /// Walks the entries of `reg`: address and size as the bus above counts, not translated.
    /// `None` when it is malformed.
    pub fn entries(&self, reg: &'a [u8]) -> Option<impl Iterator<Item = (u64, u64)> + use<'a>> {
        let bus = self.parent()?;
        if bus.address_cells == 0 {
            return None;
        }
        let entries = value::entries(reg, [bus.address_cells, bus.size_cells])?;
        Some(entries.map(|[address, size]| (address, size)))
    }

    /// Returns the entry of `reg` of this index as the PEs see it; `None` when it is not there, is
    /// empty, or some bus on the way does not pass it on.
    pub fn registers(&self, reg: &'a [u8], index: usize) -> Option<PaRange> {
        let (mut address, size) = self.entries(reg)?.nth(index)?;
        let buses = self.frames.get(..self.frames.len().checked_sub(1)?)?;
        for pair in buses.windows(2).rev() {
            let [above, bus] = pair else { continue };
            address = bus.translate(above, address, size)?;
        }
        PaRange::new(Pa::new(address), size)
    }

    fn parent(&self) -> Option<&Frame<'a>> {
        self.frames.get(self.frames.len().checked_sub(2)?)
    }
}

impl Frame<'_> {
    /// Translates an address on this bus to one on the bus above (section 2.3.8).
    fn translate(&self, above: &Self, address: u64, size: u64) -> Option<u64> {
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return Some(address);
        }
        let cells = [self.address_cells, above.address_cells, self.size_cells];
        value::entries(ranges, cells)?.take(RANGES_MAX).find_map(|[child, parent, length]| {
            let offset = address.checked_sub(child)?;
            if offset.checked_add(size)? > length {
                return None;
            }
            parent.checked_add(offset)
        })
    }
}
