// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Finds descriptors, and cuts ranges into the leaves that map them.
//!
//! Reads tables and changes nothing. DDI 0487 D8.2 (walks), D8.7.1 (contiguous hint).
#![forbid(unsafe_code)]

use super::{Format, Mapper, Tables};
use crate::addr::{AddrRange, Address, Pa};
use crate::spec::vmsa::{CONTIGUOUS_COUNT, Descriptor, ENTRIES, ENTRY_BYTES, Level};

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
        let output = self.output.checked_add(start.get() - self.input.start().get())?;
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
        let mut place = self.root.get() + (address.get() >> level.shift()) * ENTRY_BYTES;
        let mut parent = None;
        loop {
            let descriptor = Descriptor::decode(level, tables.read(Pa::new(place)));
            match (descriptor, level.below()) {
                (Descriptor::Table(next), Some(below)) if level < stop => {
                    let index = (address.get() >> below.shift()) % ENTRIES;
                    parent = Some(Pa::new(place));
                    place = next.get() + index * ENTRY_BYTES;
                    level = below;
                }
                _ => return Slot { level, place: Pa::new(place), descriptor, parent },
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
        let bytes = level.bytes() * if contiguous { CONTIGUOUS_COUNT } else { 1 };
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

/// The sizes of units, largest first. 16 GiB runs at level 1 are left out: no core is known to
/// make use of them.
const SIZES: [(Level, u64); 5] = [
    (Level::L1, 1),
    (Level::L2, CONTIGUOUS_COUNT),
    (Level::L2, 1),
    (Level::L3, CONTIGUOUS_COUNT),
    (Level::L3, 1),
];

/// Cuts whole pages into the largest units that fit. Level 1 is below or in every root.
pub(super) fn units<A: Address>(input: AddrRange<A>, output: Pa) -> impl Iterator<Item = Unit<A>> {
    let mut at = input.start();
    core::iter::from_fn(move || {
        let left = AddrRange::between(at, input.end())?;
        let output = Pa::new(output.get() + (at.get() - input.start().get()));
        let fits = |&&(level, count): &&(Level, u64)| {
            let bytes = level.bytes() * count;
            let aligned = at.is_aligned(bytes) && output.is_aligned(bytes);
            aligned && bytes <= left.size()
        };
        let &(level, count) = SIZES.iter().find(fits)?;
        let unit = Unit { input: AddrRange::block(at, level.bytes() * count), output, level };
        at = unit.input.end();
        Some(unit)
    })
}

/// Returns the start of each `bytes` of the range, whose size is a multiple of it.
pub(super) fn parts<A: Address>(range: AddrRange<A>, bytes: u64) -> impl Iterator<Item = A> {
    (0..range.size() / bytes).map(move |n| A::new(range.start().get() + n * bytes))
}
