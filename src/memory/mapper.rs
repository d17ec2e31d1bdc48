// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Maps and unmaps ranges in translation tables of either format.
//!
//! Everything that can fail is found out before the first descriptor changes, so an error leaves
//! the tables as they were. A valid descriptor is never overwritten by another valid one: mapping
//! over something is refused, and unmapping a part of a block breaks the block, invalidates, and
//! only then makes the rest again (break-before-make, DDI 0487 D8.17.1).
//!
//! Must not know where tables live, which instructions invalidate, or who owns memory. Takes no
//! lock, no atomic, no heap: EL2's own map is built with the MMU off.
#![forbid(unsafe_code)]

mod chain;
mod walk;

use crate::addr::{AddrRange, Address, PAGE_SIZE, Pa};
use crate::spec::vmsa::{self, Descriptor, ENTRIES, ENTRY_BYTES, Geometry, Level};
use chain::Chain;
use core::fmt;
use walk::{Unit, parts, units};

pub use walk::Leaf;

/// The memory that holds tables. A slot is the address of one descriptor.
pub trait Tables {
    /// Reads a descriptor.
    fn read(&self, slot: Pa) -> u64;
    /// Writes a descriptor with one 64-bit store.
    fn write(&mut self, slot: Pa, descriptor: u64);
    /// Takes a page full of zeros for a new table; `None` when there is none left.
    fn allocate(&mut self) -> Option<Pa>;
    /// Gives back a page that [`allocate`](Self::allocate) has handed out.
    fn free(&mut self, table: Pa);
}

/// The memory that holds roots too.
pub trait Roots: Tables {
    /// Takes `bytes` of zeros, aligned to their number, for a root; `None` when there are none.
    fn allocate_root(&mut self, bytes: u64) -> Option<Pa>;
    /// Gives back what [`allocate_root`](Self::allocate_root) has handed out.
    fn free_root(&mut self, root: Pa, bytes: u64);
}

/// What makes all cores see a change of tables.
pub trait Maintenance<A: Address> {
    /// Makes all writes so far visible to every core's table walker: DSB ISHST, and where the core
    /// itself goes on under these tables an ISB.
    fn publish(&mut self);
    /// Publishes, then makes every core forget all that it knows about the range: leaves and the
    /// tables on the way. Returns when that is done everywhere.
    fn invalidate(&mut self, range: AddrRange<A>);
}

/// How one translation regime writes what may be done with memory.
pub trait Format {
    /// What the tables translate from.
    type Input: Address + fmt::Display;
    /// What may be done with memory.
    type Attributes: Copy + PartialEq + fmt::Debug + 'static;
    /// All attributes there are.
    const ALL: &'static [Self::Attributes];
    /// Returns the attribute bits of a leaf.
    fn bits(&self, attributes: Self::Attributes) -> u64;
}

/// Why nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError<A> {
    /// An address or the size is not a multiple of 4 KiB.
    Unaligned,
    /// The range reaches past the addresses that these tables translate, or its output past what
    /// the cores can address.
    TooHigh,
    /// Something is mapped at this address.
    AlreadyMapped(A),
    /// Nothing is mapped at this address.
    NotMapped(A),
    /// There is no memory left for another table.
    OutOfTables,
}

impl<A: fmt::Display> fmt::Display for MapError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("not a whole number of 4 KiB pages"),
            Self::TooHigh => f.write_str("beyond the addresses that can be translated"),
            Self::AlreadyMapped(at) => write!(f, "{at} is mapped already"),
            Self::NotMapped(at) => write!(f, "{at} is not mapped"),
            Self::OutOfTables => f.write_str("no memory for another translation table"),
        }
    }
}

/// Translation tables of one format, known by their root.
#[derive(Debug)]
pub struct Mapper<F> {
    format: F,
    geometry: Geometry,
    pa_bits: u32,
    root: Pa,
}

type Outcome<F> = Result<(), MapError<<F as Format>::Input>>;

impl<F: Format> Mapper<F> {
    /// Takes charge of the tables under `root`: zeros, [`Geometry::root_bytes`] in size and
    /// alignment. `None` when the root is not so aligned or lies past `pa_bits`.
    pub fn new(format: F, geometry: Geometry, pa_bits: u32, root: Pa) -> Option<Self> {
        let bytes = geometry.root_bytes();
        let fits = AddrRange::new(root, bytes).is_some_and(|r| fits(r, pa_bits));
        (root.is_aligned(bytes) && fits).then_some(Self { format, geometry, pa_bits, root })
    }
    /// Returns the shape of the tables.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
    /// Returns the number of output address bits.
    pub fn pa_bits(&self) -> u32 {
        self.pa_bits
    }
    /// Returns the first byte of the root.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Maps `input` to the memory at `output`, in the largest blocks that fit.
    ///
    /// # Errors
    /// Nothing is changed when any page of `input` is mapped already, when something is out of
    /// range or unaligned, or when memory for tables runs out.
    pub fn map(
        &mut self,
        tables: &mut impl Tables,
        maintenance: &mut impl Maintenance<F::Input>,
        input: AddrRange<F::Input>,
        output: Pa,
        attributes: F::Attributes,
    ) -> Outcome<F> {
        let outputs = AddrRange::new(output, input.size()).ok_or(MapError::TooHigh)?;
        self.check(input)?;
        if !outputs.is_aligned(PAGE_SIZE) {
            return Err(MapError::Unaligned);
        }
        if !fits(outputs, self.pa_bits) {
            return Err(MapError::TooHigh);
        }
        let missing = self.missing_tables(tables, input, output)?;
        let mut spare = Chain::reserve(tables, missing).ok_or(MapError::OutOfTables)?;
        let bits = self.format.bits(attributes);
        let filled = self.fill(tables, maintenance, &mut spare, input, output, bits);
        spare.free(tables);
        filled
    }

    /// Unmaps `input`; when this returns, no core reaches the memory through these addresses.
    ///
    /// A block that lies only partly in `input` is split: the rest of it is unmapped for a moment,
    /// and a core that touches it then takes a translation fault which is gone when it tries again.
    ///
    /// # Errors
    /// Nothing is changed when any page of `input` is not mapped, when something is out of range or
    /// unaligned, or when splitting a block needs a table for which there is no memory.
    pub fn unmap(
        &mut self,
        tables: &mut impl Tables,
        maintenance: &mut impl Maintenance<F::Input>,
        input: AddrRange<F::Input>,
    ) -> Outcome<F> {
        self.check(input)?;
        let mut at = input.start();
        while at < input.end() {
            at = self.leaf_at(tables, at).ok_or(MapError::NotMapped(at))?.input.end();
        }
        let last = F::Input::new(input.end().get().saturating_sub(1));
        let rest = [
            self.leaf_at(tables, input.start()).and_then(|leaf| leaf.part_before(input.start())),
            self.leaf_at(tables, last).and_then(|leaf| leaf.part_from(input.end())),
        ];
        // A part of a leaf needs at most one table for each level below the leaf.
        let needed = rest.iter().flatten().map(Leaf::levels_below).sum();
        let mut spare = Chain::reserve(tables, needed).ok_or(MapError::OutOfTables)?;
        let broken = rest.iter().flatten().fold(input, |all, leaf| all.hull(leaf.input));
        let detached = self.tear(tables, maintenance, broken, &rest);
        let mut made = Ok(());
        for Leaf { input, output, bits, .. } in rest.into_iter().flatten() {
            made = made.and(self.fill(tables, maintenance, &mut spare, input, output, bits));
        }
        detached.free(tables);
        spare.free(tables);
        made
    }

    /// Unmaps everything and gives back all tables but the root, with a `pause` now and then. Who
    /// still uses these tables loses one part after the other.
    pub fn unmap_all(
        &mut self,
        tables: &mut impl Tables,
        maintenance: &mut impl Maintenance<F::Input>,
        pause: &mut dyn FnMut(),
    ) {
        let whole = self.whole();
        let mut detached = Chain::default();
        let mut at = whole.start();
        while at < whole.end() {
            for _ in 0..ENTRIES_PER_PIECE {
                if at < whole.end() {
                    at = self.break_leaf(tables, at, whole, &[None, None], &mut detached);
                }
            }
            pause();
        }
        maintenance.invalidate(whole);
        while let Some(table) = detached.pop(tables) {
            tables.free(table);
            pause();
        }
    }

    /// Returns where `address` leads and what may be done there, `None` when it is not mapped.
    pub fn translate(
        &self,
        tables: &impl Tables,
        address: F::Input,
    ) -> Option<(Pa, F::Attributes)> {
        if address.get() >> self.geometry.input_bits() != 0 {
            return None;
        }
        let leaf = self.leaf_at(tables, address)?;
        let offset = address.get() - leaf.input.start().get();
        Some((leaf.output.checked_add(offset)?, self.attributes(&leaf)?))
    }

    /// Returns all leaves in order of their addresses; contiguous ones that share the hint as one.
    pub fn leaves(&self, tables: &impl Tables) -> impl Iterator<Item = Leaf<F::Input>> {
        self.steps(tables).flatten()
    }
    /// Returns all leaves, and `None` for each descriptor on the way that leads nowhere: for
    /// whoever must not look for long at once.
    pub fn steps(&self, tables: &impl Tables) -> impl Iterator<Item = Option<Leaf<F::Input>>> {
        let whole = self.whole();
        let mut at = whole.start();
        core::iter::from_fn(move || {
            if at >= whole.end() {
                return None;
            }
            let step = self.step_at(tables, at);
            at = step.input.end();
            Some(step.leaf)
        })
    }
    /// Returns what may be done with a leaf's memory; `None` when this mapper has not written it.
    pub fn attributes(&self, leaf: &Leaf<F::Input>) -> Option<F::Attributes> {
        F::ALL.iter().copied().find(|&a| self.format.bits(a) == leaf.bits)
    }

    fn whole(&self) -> AddrRange<F::Input> {
        AddrRange::block(F::Input::new(0), 1 << self.geometry.input_bits())
    }

    fn check(&self, input: AddrRange<F::Input>) -> Outcome<F> {
        if !input.is_aligned(PAGE_SIZE) {
            return Err(MapError::Unaligned);
        }
        if !fits(input, self.geometry.input_bits()) {
            return Err(MapError::TooHigh);
        }
        Ok(())
    }

    /// Counts the tables that mapping needs, or finds what is in the way.
    fn missing_tables(
        &self,
        tables: &impl Tables,
        input: AddrRange<F::Input>,
        output: Pa,
    ) -> Result<u64, MapError<F::Input>> {
        let mut missing = 0u64;
        for unit in units(input, output) {
            for at in parts(unit.input, unit.level.bytes()) {
                let slot = self.walk(tables, at, unit.level);
                if slot.descriptor != Descriptor::Invalid {
                    return Err(MapError::AlreadyMapped(at));
                }
                // Every table that is not there is counted where the range enters its span.
                let enters = |span: u64| at == input.start() || at.is_aligned(span);
                let mut level = slot.level;
                while level < unit.level
                    && let Some(below) = level.below()
                {
                    missing = missing.saturating_add(enters(level.bytes()).into());
                    level = below;
                }
            }
        }
        Ok(missing)
    }

    /// Writes leaves into invalid descriptors, with tables from `spare` where some are missing.
    fn fill(
        &self,
        tables: &mut impl Tables,
        maintenance: &mut impl Maintenance<F::Input>,
        spare: &mut Chain,
        input: AddrRange<F::Input>,
        output: Pa,
        bits: u64,
    ) -> Outcome<F> {
        for Unit { input, output, level } in units(input, output) {
            let hint = if input.size() > level.bytes() { vmsa::CONTIGUOUS } else { 0 };
            let mut slot = self.walk(tables, input.start(), level);
            while slot.level < level {
                // There is one: the caller has counted before it reserved.
                let table = spare.pop(tables).ok_or(MapError::OutOfTables)?;
                // No walker may come to the new table before the zeros are there.
                maintenance.publish();
                tables.write(slot.place, vmsa::table(table));
                slot = self.walk(tables, input.start(), level);
            }
            // Neither wraps: `map` has looked.
            let mut place = slot.place.get();
            let to_output = output.get().wrapping_sub(input.start().get());
            for at in parts(input, level.bytes()) {
                let output = Pa::new(at.get().wrapping_add(to_output));
                tables.write(Pa::new(place), vmsa::leaf(level, output, bits | hint));
                place = place.wrapping_add(ENTRY_BYTES);
            }
        }
        maintenance.publish();
        Ok(())
    }

    /// Breaks all leaves of `broken` and invalidates; returns the tables that are empty now and not
    /// needed for `rest`. When it returns, no walker is inside them any more.
    fn tear(
        &mut self,
        tables: &mut impl Tables,
        maintenance: &mut impl Maintenance<F::Input>,
        broken: AddrRange<F::Input>,
        rest: &[Option<Leaf<F::Input>>; 2],
    ) -> Chain {
        let mut detached = Chain::default();
        let mut at = broken.start();
        while at < broken.end() {
            at = self.break_leaf(tables, at, broken, rest, &mut detached);
        }
        maintenance.invalidate(broken);
        detached
    }

    /// Makes the entry for `at` invalid and detaches the tables that become empty; all leaves of
    /// `broken` before it already are. Returns where the next entry begins.
    fn break_leaf(
        &self,
        tables: &mut impl Tables,
        at: F::Input,
        broken: AddrRange<F::Input>,
        rest: &[Option<Leaf<F::Input>>; 2],
        detached: &mut Chain,
    ) -> F::Input {
        let slot = self.walk(tables, at, Level::L3);
        if slot.descriptor != Descriptor::Invalid {
            tables.write(slot.place, 0);
        }
        let entry = AddrRange::block(at, slot.level.bytes());
        let leaves_table = entry.end().is_aligned(table_span(slot.level));
        if leaves_table || entry.end() >= broken.end() {
            self.prune(tables, entry, broken, rest, detached);
        }
        entry.end()
    }

    /// Detaches the table that holds an entry, the last one broken so far, when it is empty and not
    /// needed for `rest`, then the table above it, and so on.
    fn prune(
        &self,
        tables: &mut impl Tables,
        entry: AddrRange<F::Input>,
        broken: AddrRange<F::Input>,
        rest: &[Option<Leaf<F::Input>>; 2],
        detached: &mut Chain,
    ) {
        let (at, end) = (entry.start(), entry.end());
        loop {
            let slot = self.walk(tables, at, Level::L3);
            let Some(parent) = slot.parent else { return };
            let span = AddrRange::block(at, table_span(slot.level));
            let table = slot.place.align_down(PAGE_SIZE);
            let needed = rest.iter().flatten().any(|leaf| leaf.input.overlaps(span));
            // A table all of which is broken goes with its last entry, and is not looked through.
            let stays =
                if broken.covers(span) { end < span.end() } else { !is_empty(tables, table) };
            if needed || stays {
                return;
            }
            tables.write(parent, 0);
            detached.push(tables, table);
        }
    }
}

/// Returns whether a table has no entry.
fn is_empty(tables: &impl Tables, table: Pa) -> bool {
    (0..ENTRIES).all(|n| tables.read(Pa::new(table.get() | n << ENTRY_BYTES.ilog2())) == 0)
}

/// Cuts what is to be mapped or unmapped into pieces, for whoever must not work for long at once:
/// each is a leaf, or a run of 16. Mapped piece by piece, memory is unmapped so without a table
/// that has to be allocated.
pub fn pieces<A: Address>(
    input: AddrRange<A>,
    output: Pa,
) -> impl Iterator<Item = (AddrRange<A>, Pa)> {
    units(input, output).map(|unit| (unit.input, unit.output))
}

/// The entries that are broken between two pauses, at some 200 instructions each.
const ENTRIES_PER_PIECE: u32 = 32;

/// Returns the bytes that a table of this level covers.
const fn table_span(level: Level) -> u64 {
    level.bytes() << ENTRIES.ilog2()
}

/// Returns whether all addresses of the range have at most `bits` bits.
fn fits<A: Address>(range: AddrRange<A>, bits: u32) -> bool {
    // There are no more than 52.
    range.end().get() <= 1u64.wrapping_shl(bits)
}
