// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Flattened device trees: one pass that says whether hostile bytes are one, and what is read of
//! it afterwards.
//!
//! The pass owns the structure: header, blocks, tokens, names, depth (Devicetree Specification
//! 0.4, chapter 5). Nodes and properties are then read with the `fdt` crate, which trusts its
//! input and panics on anything else; only [`Dtb::nodes`], a node's `properties()` and
//! `property()`, and [`Dtb::reservations`] are used, because they hold on every tree that passes.
//! What the properties mean is not known here.
#![forbid(unsafe_code)]

#[cfg(test)]
pub(crate) mod builder;
mod structure;
pub mod value;

pub use fdt::node::FdtNode;
pub use structure::Entry;

use crate::heap::{self, NoMemory};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The most bytes in a tree (the arm64 boot protocol's limit).
pub const SIZE_MAX: usize = 2 << 20;
/// The most nodes on the way from the root to a leaf, both included.
pub const DEPTH_MAX: usize = 32;
/// The most nodes in a tree.
pub const NODES_MAX: usize = 4096;
/// The most properties in a tree.
pub const PROPERTIES_MAX: usize = 32 << 10;
/// The most bytes in the name of a node or a property.
pub const NAME_MAX: usize = 127;
/// The most entries in the memory reservation block.
pub const RESERVATIONS_MAX: usize = 64;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const HEADER_BYTES: usize = 40;
/// Where the header says how long the structure block is.
const STRUCT_SIZE_FIELD: Range<usize> = 36..40;

/// Why bytes are not a device tree. Offsets are from the start of the structure block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DtbError {
    /// The first word is not the magic.
    Magic,
    /// The tree says that it has so many bytes: too few, too many, or more than there are.
    Size(u32),
    /// The tree is of this version and does not say that it can be read as version 17.
    Version(u32),
    /// The block lies outside the tree, is not aligned, or overlaps another.
    Block(&'static str),
    /// The memory reservation block does not end, or is too long.
    Reservations,
    /// There is no token, or not one that may stand here.
    Token(usize),
    /// The name does not end, is too long, or has a character that names do not have.
    Name(usize),
    /// The value of the property reaches past the structure block.
    Value(usize),
    /// The node is nested too deeply.
    Depth(usize),
    /// There are too many nodes or properties.
    Count(usize),
    /// There are NOP tokens in a tree that cannot be changed.
    Nops,
    /// The hypervisor has no memory for what it notes of the tree.
    NoMemory,
}

impl fmt::Display for DtbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "no device tree: the magic is missing"),
            Self::Size(size) => write!(f, "device tree of {size} bytes is cut short or too long"),
            Self::Version(version) => write!(f, "device tree of version {version}, not 17"),
            Self::Block(name) => write!(f, "device tree's {name} block is misplaced"),
            Self::Reservations => write!(f, "device tree's memory reservations do not end"),
            Self::Token(at) => write!(f, "device tree has a wrong token at {at:#x}"),
            Self::Name(at) => write!(f, "device tree has a malformed name at {at:#x}"),
            Self::Value(at) => write!(f, "device tree has a value that is too long at {at:#x}"),
            Self::Depth(at) => write!(f, "device tree is nested too deeply at {at:#x}"),
            Self::Count(at) => write!(f, "device tree has too many nodes by {at:#x}"),
            Self::Nops => write!(f, "device tree has NOPs"),
            Self::NoMemory => NoMemory.fmt(f),
        }
    }
}

/// A device tree that has passed.
pub struct Dtb<'a> {
    fdt: fdt::Fdt<'a>,
    /// The depth of each node in their order, 0 for the root: what `fdt` does not tell.
    depths: Vec<u8>,
}

/// Returns the size in bytes that the tree at the start of `bytes` says it has, for whoever has
/// to find out how much to copy; 40 bytes suffice.
///
/// # Errors
/// There is no tree, or it is longer than [`SIZE_MAX`].
pub fn total_size(bytes: &[u8]) -> Result<usize, DtbError> {
    if word(bytes, 0) != Some(MAGIC) {
        return Err(DtbError::Magic);
    }
    let total = word(bytes, 4).ok_or(DtbError::Size(0))?;
    match usize::try_from(total) {
        Ok(size @ HEADER_BYTES..=SIZE_MAX) => Ok(size),
        _ => Err(DtbError::Size(total)),
    }
}

impl<'a> Dtb<'a> {
    /// Checks the tree at the start of `bytes`, which may have more behind it.
    ///
    /// # Errors
    /// Says what is wrong; NOP tokens are an error because `fdt` stumbles over them.
    pub fn new(bytes: &'a [u8]) -> Result<Self, DtbError> {
        let (depths, nops) = check(bytes, &Header::read(bytes)?)?;
        if nops > 0 {
            return Err(DtbError::Nops);
        }
        let fdt = fdt::Fdt::new(bytes).map_err(|_| DtbError::Magic)?;
        Ok(Self { fdt, depths })
    }

    /// Checks the tree at the start of `bytes` and squeezes out its NOP tokens in place.
    ///
    /// # Errors
    /// Says what is wrong; `bytes` are as they were then.
    pub fn squeeze(bytes: &'a mut [u8]) -> Result<Self, DtbError> {
        let header = Header::read(bytes)?;
        let (depths, nops) = check(bytes, &header)?;
        if nops > 0 {
            let block = bytes.get_mut(header.structs).ok_or(DtbError::Block("structure"))?;
            let used = structure::squeeze(block)?;
            let used = u32::try_from(used).map_err(|_| DtbError::Block("structure"))?;
            if let Some(field) = bytes.get_mut(STRUCT_SIZE_FIELD) {
                field.copy_from_slice(&used.to_be_bytes());
            }
        }
        let fdt = fdt::Fdt::new(bytes).map_err(|_| DtbError::Magic)?;
        Ok(Self { fdt, depths })
    }

    /// Returns the size of the tree in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.fdt.total_size()
    }

    /// Walks all nodes, a parent before its children, each with its depth (0 for the root).
    pub fn nodes(&self) -> impl Iterator<Item = (usize, FdtNode<'_, 'a>)> {
        self.depths.iter().map(|depth| usize::from(*depth)).zip(self.fdt.all_nodes())
    }

    /// Walks the memory reservation block: address and size in bytes, neither checked.
    pub fn reservations(&self) -> impl Iterator<Item = (u64, u64)> {
        self.fdt.memory_reservations().map(|r| (r.address().addr() as u64, r.size() as u64))
    }
}

/// Shows the nodes and properties of the tree at the start of `bytes` in their order while it
/// checks them, and returns the size of the tree in bytes. What is shown of one that is refused
/// then is worth nothing.
///
/// # Errors
/// Says what is wrong.
pub fn read<'a>(bytes: &'a [u8], show: &mut dyn FnMut(Entry<'a>)) -> Result<usize, DtbError> {
    structure::check(bytes, &Header::read(bytes)?, show)?;
    total_size(bytes)
}

/// Checks a tree and returns the depth of each node, and how many NOPs there are.
fn check(bytes: &[u8], header: &Header) -> Result<(Vec<u8>, usize), DtbError> {
    let mut depths = Ok(Vec::new());
    let nops = structure::check(bytes, header, &mut |entry| {
        if let (Entry::Node(depth, _), Ok(all)) = (entry, &mut depths) {
            // Below DEPTH_MAX.
            if heap::push(all, u8::try_from(depth).unwrap_or(u8::MAX)).is_err() {
                depths = Err(DtbError::NoMemory);
            }
        }
    })?;
    Ok((depths?, nops))
}

/// Where the blocks are; they lie in the tree and do not overlap.
struct Header {
    structs: Range<usize>,
    strings: Range<usize>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, DtbError> {
        let total = total_size(bytes)?;
        let bytes = bytes.get(..total).ok_or(DtbError::Size(word(bytes, 4).unwrap_or(0)))?;
        let field = |at| word(bytes, at).ok_or(DtbError::Size(0));
        let (version, compatible) = (field(20)?, field(24)?);
        if version < VERSION || compatible > VERSION {
            return Err(DtbError::Version(version));
        }
        let block = |name, offset, size: Option<usize>, align| {
            let start = usize::try_from(field(offset)?).ok();
            let range = start.and_then(|start| Some(start..start.checked_add(size?)?));
            match range {
                Some(r) if r.start >= HEADER_BYTES && r.end <= total && r.start % align == 0 => {
                    Ok(r)
                }
                _ => Err(DtbError::Block(name)),
            }
        };
        let structs = block("structure", 8, usize::try_from(field(36)?).ok(), 4)?;
        let strings = block("strings", 12, usize::try_from(field(32)?).ok(), 1)?;
        let reservations = reservation_bytes(bytes, block("reservation", 16, Some(0), 8)?.start)?;
        let reservations = block("reservation", 16, Some(reservations), 8)?;
        for (name, a, b) in [
            ("strings", &structs, &strings),
            ("reservation", &structs, &reservations),
            ("reservation", &strings, &reservations),
        ] {
            if a.start < b.end && b.start < a.end {
                return Err(DtbError::Block(name));
            }
        }
        Ok(Self { structs, strings })
    }
}

/// Returns the size in bytes of the reservation block at `start`, with the entry that ends it.
fn reservation_bytes(bytes: &[u8], start: usize) -> Result<usize, DtbError> {
    let entries = bytes.get(start..).unwrap_or_default().chunks_exact(16);
    let last = entries
        .take(RESERVATIONS_MAX + 1)
        .position(|entry| entry.iter().all(|byte| *byte == 0))
        .ok_or(DtbError::Reservations)?;
    Ok((last + 1) * 16)
}

/// Returns the big-endian word at a byte offset.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
