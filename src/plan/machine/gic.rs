// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The interrupt controller's node (bindings `arm,gic.yaml` and `arm,gic-v3.yaml`).
#![forbid(unsafe_code)]

use super::irq::{Domain, Specifiers};
use super::walk::{Properties, Walk};
use super::{Gic, MachineError, Problem, REDISTRIBUTORS_MAX};
use crate::addr::{Address, PAGE_SIZE, PaRange};
use crate::spec::dtb::{FdtNode, value};
use alloc::vec::Vec;

/// The GIC, and how others refer to its interrupts.
pub(super) struct Found<'a> {
    pub node: &'a str,
    pub gic: Gic,
    pub domain: Domain,
}

/// Which architecture a node's `compatible` states.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V2,
    V3,
}

/// Reads the node that the walk has reached.
pub(super) fn read<'a>(
    walk: &Walk<'a>,
    node: FdtNode<'_, 'a>,
    properties: &Properties<'a>,
    version: Version,
) -> Result<Found<'a>, MachineError<'a>> {
    let error = |problem| MachineError { node: node.name, problem };
    let reg = properties.reg.ok_or(error(Problem::Property("reg")))?;
    let cell = |name| node.property(name).map(|property| value::cell(property.value));
    let cells = match cell("#interrupt-cells") {
        Some(Some(3)) => 3,
        Some(Some(4)) => 4,
        _ => return Err(error(Problem::Property("#interrupt-cells"))),
    };
    let phandle = cell("phandle").or_else(|| cell("linux,phandle")).flatten();
    let domain = Domain { phandle, cells };
    let maintenance = Specifiers::new(walk, node, properties).own(domain).and_then(|i| i.ppi());
    // Frames that are smaller than the architecture has them would fault when driven.
    let frame = |index, least: u64| {
        let range = walk.registers(reg, index)?;
        (range.size() >= least && range.start().is_aligned(PAGE_SIZE)).then_some(range)
    };
    let needed = |range: Option<PaRange>| range.ok_or(error(Problem::Address("reg")));
    let gic = match version {
        Version::V2 => Gic::V2 {
            gicd: needed(frame(0, 0x1000))?,
            gicc: needed(frame(1, 0x2000))?,
            gich: frame(2, 0x1000),
            gicv: frame(3, 0x2000),
            maintenance,
        },
        Version::V3 => {
            let mut redistributors = Vec::new();
            for index in 1..=region_count(node)? {
                redistributors.push(needed(frame(index, 0x2_0000))?);
            }
            Gic::V3 {
                gicd: needed(frame(0, 0x1_0000))?,
                redistributors,
                stride_bytes: stride(node)?,
                maintenance,
            }
        }
    };
    Ok(Found { node: node.name, gic, domain })
}

/// Returns how many regions of redistributors there are, at least one.
fn region_count<'a>(node: FdtNode<'_, 'a>) -> Result<usize, MachineError<'a>> {
    let name = "#redistributor-regions";
    let error = |problem| MachineError { node: node.name, problem };
    let count = match node.property(name).map(|property| value::cell(property.value)) {
        None => 1,
        Some(Some(count @ 1..)) => usize::try_from(count).unwrap_or(usize::MAX),
        Some(_) => return Err(error(Problem::Property(name))),
    };
    (count <= REDISTRIBUTORS_MAX)
        .then_some(count)
        .ok_or(error(Problem::TooMany(REDISTRIBUTORS_MAX)))
}

/// Returns the bytes from one redistributor to the next, where the tree states them.
fn stride<'a>(node: FdtNode<'_, 'a>) -> Result<Option<u64>, MachineError<'a>> {
    let name = "redistributor-stride";
    match node.property(name).map(|property| value::number(property.value)) {
        None => Ok(None),
        Some(Some(bytes @ 0x2_0000..)) if bytes.is_multiple_of(0x1_0000) => Ok(Some(bytes)),
        Some(_) => Err(MachineError { node: node.name, problem: Problem::Property(name) }),
    }
}

impl Gic {
    /// Returns the distributor.
    #[must_use]
    pub fn gicd(&self) -> PaRange {
        match self {
            Self::V2 { gicd, .. } | Self::V3 { gicd, .. } => *gicd,
        }
    }

    /// Walks all frames: the distributor, and what the version has besides.
    pub fn frames(&self) -> impl Iterator<Item = PaRange> {
        let (one, many): ([Option<PaRange>; 4], &[PaRange]) = match self {
            Self::V2 { gicd, gicc, gich, gicv, .. } => {
                ([Some(*gicd), Some(*gicc), *gich, *gicv], &[])
            }
            Self::V3 { gicd, redistributors, .. } => {
                ([Some(*gicd), None, None, None], redistributors)
            }
        };
        one.into_iter().flatten().chain(many.iter().copied())
    }
}
