// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Finds descriptors, and cuts ranges into the leaves that map them.
//!
//! Reads tables and changes nothing. DDI 0487 D8.2 (walks), D8.7.1 (contiguous hint).
#![forbid(unsafe_code)]

use super::{Format, Mapper, Tables};
use crate::addr::{AddrRange, Address, Pa};
use crate::spec::vmsa::{CONTIGUOUS_COUNT, Descriptor, ENTRIES, ENTRY_BYTES, Level};
use core::iter::{from_fn, successors};

/// A leaf, or a run of leaves under one contiguous hint, or a part of either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf<A: Address> {
    /// The addresses that it translates.
    pub input: AddrRange<A>,
    /// Where the first of them leads.
    pub output: Pa,
    pub(super) bits: u64,
    level: Level,
}

impl<A: Address> Leaf<A> {
    /// Returns the part in front of `end`, if any.
    pub(super) fn part_before(self, end: A) -> Option<Self> {
        Some(Self { input: AddrRange::between(self.input.start(), end)?, ..self })
    }
    /// Returns the part that begins at `start`, if any.
    pub(super) fn part_from(self, start: A) -> Option<Self> {
        let input = AddrRange::between(start, self.input.end())?;
        let skipped = start.get().checked_sub(self.input.start().get())?;
        let output = self.output.checked_add(skipped)?;
        Some(Self { input, output, ..self })
    }
    /// Returns the number of levels below the leaf's.
    pub(super) fn levels_below(&self) -> u64 {
        match self.level {
            Level::L0 => 3,
            Level::L1 => 2,
            Level::L2 => 1,
            Level::L3 => 0,
        }
    }
}

/// The last descriptor of a walk.
pub(super) struct Slot {
    pub level: Level,
    /// Where the descriptor is.
    pub place: Pa,
    pub descriptor: Descriptor,
    /// Where the descriptor is that leads to this table; `None` in the root.
    pub parent: Option<Pa>,
}

/// What a walk to the end finds, and for which addresses it holds.
pub(super) struct Step<A: Address> {
    pub input: AddrRange<A>,
    pub leaf: Option<Leaf<A>>,
}

impl<F: Format> Mapper<F> {
    /// Walks to the descriptor for `address` at level `stop`, or to the one where the way ends.
    pub(super) fn walk(&self, tables: &impl Tables, address: F::Input, stop: Level) -> Slot {
        let mut level = self.geometry.start();
        // Not taken modulo 512: concatenated roots lie side by side.
        let mut place = entry(self.root, address.get() >> level.shift());
        let mut parent = None;
        loop {
            let descriptor = Descriptor::decode(level, tables.read(place));
            match (descriptor, level.below()) {
                (Descriptor::Table(next), Some(below)) if level < stop => {
                    let index = (address.get() >> below.shift()) % ENTRIES;
                    parent = Some(place);
                    place = entry(next, index);
                    level = below;
                }
                _ => return Slot { level, place, descriptor, parent },
            }
        }
    }

    /// Walks to the end of the way for `address`.
    pub(super) fn step_at(&self, tables: &impl Tables, address: F::Input) -> Step<F::Input> {
        let Slot { level, descriptor, .. } = self.walk(tables, address, Level::L3);
        let Descriptor::Leaf { output, attributes, contiguous } = descriptor else {
            let bytes = level.bytes();
            return Step { input: AddrRange::block(address, bytes), leaf: None };
        };
        let bytes = if contiguous { run_bytes(level) } else { level.bytes() };
        let input = AddrRange::block(address, bytes);
        let output = output.align_down(bytes);
        Step { input, leaf: Some(Leaf { input, output, bits: attributes, level }) }
    }

    /// Returns the leaf that translates `address`.
    pub(super) fn leaf_at(
        &self,
        tables: &impl Tables,
        address: F::Input,
    ) -> Option<Leaf<F::Input>> {
        self.step_at(tables, address).leaf
    }
}

/// What one step of mapping writes: a leaf, or 16 under a contiguous hint.
pub(super) struct Unit<A: Address> {
    pub input: AddrRange<A>,
    pub output: Pa,
    pub level: Level,
}

/// The levels and bytes of units, largest first. 16 GiB runs at level 1 are left out: no core is
/// known to make use of them.
const SIZES: [(Level, u64); 5] = [
    (Level::L1, Level::L1.bytes()),
    (Level::L2, run_bytes(Level::L2)),
    (Level::L2, Level::L2.bytes()),
    (Level::L3, run_bytes(Level::L3)),
    (Level::L3, Level::L3.bytes()),
];

/// Returns the bytes of the leaves that share a contiguous hint.
const fn run_bytes(level: Level) -> u64 {
    level.bytes() << CONTIGUOUS_COUNT.ilog2()
}

/// Returns where the entry of this number is in a table, which is aligned to its size.
fn entry(table: Pa, number: u64) -> Pa {
    Pa::new(table.get() | number << ENTRY_BYTES.ilog2())
}

/// Cuts whole pages into the largest units that fit. Level 1 is below or in every root.
pub(super) fn units<A: Address>(input: AddrRange<A>, output: Pa) -> impl Iterator<Item = Unit<A>> {
    let (mut left, mut output) = (Some(input), output);
    from_fn(move || {
        let here = left?;
        let fits = |&&(_, bytes): &&(Level, u64)| {
            let is_aligned = here.start().is_aligned(bytes) && output.is_aligned(bytes);
            is_aligned && bytes <= here.size()
        };
        let &(level, bytes) = SIZES.iter().find(fits)?;
        let unit = Unit { input: AddrRange::block(here.start(), bytes), output, level };
        left = AddrRange::between(unit.input.end(), here.end());
        output = output.checked_add(bytes)?;
        Some(unit)
    })
}

/// Returns the start of each `bytes` of the range, whose size is a multiple of it.
pub(super) fn parts<A: Address>(range: AddrRange<A>, bytes: u64) -> impl Iterator<Item = A> {
    let next = move |at: &A| at.checked_add(bytes).filter(|at| *at < range.end());
    successors(Some(range.start()), next)
}
