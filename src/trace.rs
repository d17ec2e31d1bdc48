// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each vCPU's exits cost and brought: counts, ticks at EL2, histograms, interrupts.
//!
//! A vCPU's counters are written by its core alone, so that counting is a load, an addition and a
//! store, and read by any core at any time, which stops nobody. They count from the making of
//! the VM on and never go back: a reset of the guest changes none. Numbers that are read while the
//! vCPU runs need not be of the same moment.
//!
//! An exit is counted right before the entry that ends it, in one place for each reason and for
//! whether the entry carries an SGI or PPI of the quick route. So the counts of exits, their ticks,
//! the time at EL2, the interrupts of the quick route and the time from a physical interrupt to the
//! entry that carries a virtual one are all sums over these places, and cost one addition of ticks
//! and one of a bucket.
#![forbid(unsafe_code)]

mod beat;
mod last;

use crate::heap::{self, NoMemory};
use alloc::boxed::Box;
pub use beat::{Beat, Found, Watched};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
pub use last::{LastExit, LastExits, Ring};

/// A number that one core writes and any core reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Makes a counter of 0.
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`. Its core alone does this.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Returns the number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Why a vCPU left its guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// HVC or SMC.
    Call,
    /// A system register.
    SystemRegister,
    /// A device model.
    Mmio,
    /// A physical interrupt.
    Interrupt,
    /// All else: aborts, hidden instructions, SErrors.
    Fault,
}

impl ExitReason {
    /// All reasons, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::Call, Self::SystemRegister, Self::Mmio, Self::Interrupt, Self::Fault];
}

/// What kind of interrupt a guest was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptKind {
    /// INTIDs 0 to 15.
    Sgi,
    /// INTIDs 16 to 31.
    Ppi,
    /// INTIDs 32 to 1019.
    Spi,
    /// INTIDs from 8192 on.
    Lpi,
}

impl InterruptKind {
    /// All kinds, by INTID.
    pub const ALL: [Self; 4] = [Self::Sgi, Self::Ppi, Self::Spi, Self::Lpi];
}

/// Numbers by powers of two of ticks.
#[derive(Debug)]
struct Buckets {
    /// How many took ticks with this many leading zeros.
    by_leading_zeros: [Counter; 65],
}

impl Buckets {
    const fn new() -> Self {
        Self { by_leading_zeros: [const { Counter::new() }; 65] }
    }

    #[inline(always)]
    fn count(&self, ticks: u64) {
        if let Some(bucket) = self.by_leading_zeros.get(ticks.leading_zeros() as usize) {
            bucket.add(1);
        }
    }

    fn all(&self) -> u64 {
        self.by_leading_zeros.iter().fold(0, |sum, bucket| sum.wrapping_add(bucket.get()))
    }

    /// Returns how many took from 2^n up to 2^(n+1) ticks; 0 ticks count as 1.
    fn get(&self, n: usize) -> u64 {
        let with_zeros = |zeros: usize| self.by_leading_zeros.get(zeros).map_or(0, Counter::get);
        match n {
            0 => with_zeros(63).wrapping_add(with_zeros(64)),
            _ => 63_usize.checked_sub(n).map_or(0, with_zeros),
        }
    }
}

/// Exits of one reason that ended alike.
#[derive(Debug)]
pub struct Exits {
    ticks: Counter,
    buckets: Buckets,
}

impl Exits {
    const fn new() -> Self {
        Self { ticks: Counter::new(), buckets: Buckets::new() }
    }

    /// Counts one exit that has kept the core at EL2 for `ticks`.
    #[inline(always)]
    pub fn count(&self, ticks: u64) {
        self.ticks.add(ticks);
        self.buckets.count(ticks);
    }
}

/// Exits of one reason, by what the next entry carries. Starts a cache line, so that cores do not
/// write to each other's.
#[derive(Debug)]
#[repr(align(64))]
pub struct Turns {
    /// No SGI that went the quick route.
    pub plain: Exits,
    /// An SGI that did.
    pub with_sgi: Exits,
    /// Whether the core is at EL2; of the first of [`AllTurns`] alone, see [`beat`].
    beat: Beat,
}

impl Turns {
    const fn new() -> Self {
        Self { plain: Exits::new(), with_sgi: Exits::new(), beat: Beat::new() }
    }

    /// Returns how many exits there were, and the ticks that they took.
    fn sum(&self) -> (u64, u64) {
        let Self { plain, with_sgi, .. } = self;
        let count = plain.buckets.all().wrapping_add(with_sgi.buckets.all());
        (count, plain.ticks.get().wrapping_add(with_sgi.ticks.get()))
    }
}

/// HVC and SMC, among [`AllTurns`].
pub const CALL: usize = 0;
/// System registers.
pub const SYSTEM_REGISTER: usize = 1;
/// Device models.
pub const MMIO: usize = 2;
/// Physical interrupts, but for those of the next kind.
pub const INTERRUPT: usize = 3;
/// Physical interrupts that went on to the guest as PPIs, the quick route.
pub const PPI: usize = 4;
/// All else.
pub const FAULT: usize = 5;
const KINDS: usize = 6;

/// The exits of one vCPU, as its core counts them.
pub type AllTurns = [Turns; KINDS];

/// Returns what the core says of itself. It lies where the core counts anyway.
#[inline(always)]
#[must_use]
pub const fn beat(turns: &AllTurns) -> &Beat {
    let [first, ..] = turns;
    &first.beat
}

/// What one vCPU's exits cost and brought.
#[derive(Debug)]
pub struct ExitCounters {
    /// [`AllTurns`], which are too large for a stack.
    turns: Box<[Turns]>,
    /// Those by a physical interrupt whose entry carries a virtual one that went another route.
    late: Exits,
    /// The cycles that the guest has executed, 0 where its core does not count them. These two are
    /// of the last exit that looked for interrupts the long way or ended the run; where event
    /// counters have 32 bits, they are no more than 2^32 behind.
    pub cycles: Counter,
    /// The instructions, likewise.
    pub instructions: Counter,
}

impl ExitCounters {
    /// Makes the counters of so many vCPUs.
    ///
    /// # Errors
    /// The heap has no room for them.
    pub fn of_vcpus(count: usize, pause: &mut dyn FnMut()) -> Result<Box<[Self]>, NoMemory> {
        let mut all = heap::list(count)?;
        for _ in 0..count {
            heap::push(&mut all, Self::new(pause)?)?;
        }
        Ok(all.into())
    }

    fn new(pause: &mut dyn FnMut()) -> Result<Self, NoMemory> {
        let mut turns = heap::list(KINDS)?;
        for _ in 0..KINDS {
            heap::push(&mut turns, Turns::new())?;
            pause();
        }
        Ok(Self {
            turns: turns.into(),
            late: Exits::new(),
            cycles: Counter::new(),
            instructions: Counter::new(),
        })
    }

    /// Returns what the vCPU's core counts its exits with; there always is one.
    #[must_use]
    pub fn turns(&self) -> Option<&AllTurns> {
        self.turns.first_chunk()
    }

    /// Returns what the vCPU's core says of itself.
    #[must_use]
    pub fn beat(&self) -> Option<&Beat> {
        self.turns().map(beat)
    }

    /// Returns how often the vCPU left for this reason, and the ticks that it was at EL2 then.
    ///
    /// A vCPU that its guest suspends is at EL2 meanwhile, and so is one of a VM that is frozen.
    #[must_use]
    pub fn get(&self, reason: ExitReason) -> (u64, u64) {
        let kinds = match reason {
            ExitReason::Call => CALL..=CALL,
            ExitReason::SystemRegister => SYSTEM_REGISTER..=SYSTEM_REGISTER,
            ExitReason::Mmio => MMIO..=MMIO,
            ExitReason::Interrupt => INTERRUPT..=PPI,
            ExitReason::Fault => FAULT..=FAULT,
        };
        let turns = self.turns.get(kinds).into_iter().flatten();
        turns.map(Turns::sum).fold((0, 0), |(count, ticks), (more, took)| {
            (count.wrapping_add(more), ticks.wrapping_add(took))
        })
    }

    /// Returns how many exits took from 2^n up to 2^(n+1) ticks, from behind the vector to before
    /// the entry; 0 ticks count as 1.
    #[must_use]
    pub fn at_el2(&self, n: usize) -> u64 {
        let exits = self.turns.iter().flat_map(|turns| [&turns.plain, &turns.with_sgi]);
        exits.map(|exits| exits.buckets.get(n)).fold(0, u64::wrapping_add)
    }

    /// Returns how many times it took from 2^n up to 2^(n+1) ticks from the exit by a physical
    /// interrupt to the entry that carries a virtual one.
    #[must_use]
    pub fn to_entry(&self, n: usize) -> u64 {
        self.carried().map(|exits| exits.buckets.get(n)).fold(0, u64::wrapping_add)
    }

    /// Returns the ticks that all of these took.
    #[must_use]
    pub fn to_entry_ticks(&self) -> u64 {
        self.carried().map(|exits| exits.ticks.get()).fold(0, u64::wrapping_add)
    }

    /// Returns the exits by a physical interrupt whose entry carries a virtual one.
    fn carried(&self) -> impl Iterator<Item = &Exits> {
        let quick = self
            .turns()
            .map(|turns| [&turns[PPI].plain, &turns[PPI].with_sgi, &turns[INTERRUPT].with_sgi]);
        quick.into_iter().flatten().chain([&self.late])
    }

    /// Counts an entry `ticks` after the exit of `turns` that carries an interrupt of the long
    /// route, where that exit was by a physical interrupt.
    pub fn count_late(&self, turns: &Turns, ticks: u64) {
        if self.turns().is_some_and(|all| core::ptr::eq(turns, &raw const all[INTERRUPT])) {
            self.late.count(ticks);
        }
    }

    /// Returns how many SGIs or PPIs went the quick route, which [`Injections`] does not know.
    #[must_use]
    pub fn quick(&self, kind: InterruptKind) -> u64 {
        match kind {
            InterruptKind::Sgi => {
                let with_sgi = self.turns.iter().map(|turns| turns.with_sgi.buckets.all());
                with_sgi.fold(0, u64::wrapping_add)
            }
            InterruptKind::Ppi => self.turns.get(PPI).map_or(0, |turns| turns.sum().0),
            InterruptKind::Spi | InterruptKind::Lpi => 0,
        }
    }
}

/// How many interrupts became pending in a list register of one vCPU, but for the first of each
/// exit that went the quick route.
///
/// One that had to make room counts again when it comes back.
#[derive(Debug, Default)]
pub struct Injections {
    by_kind: [Counter; InterruptKind::ALL.len()],
}

impl Injections {
    /// Counts `n` interrupts.
    pub fn count(&self, kind: InterruptKind, n: u64) {
        if let Some(counter) = self.by_kind.get(kind as usize) {
            counter.add(n);
        }
    }

    /// Returns how many there were.
    #[must_use]
    pub fn get(&self, kind: InterruptKind) -> u64 {
        self.by_kind.get(kind as usize).map_or(0, Counter::get)
    }

    /// Returns how many there were of all kinds.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.by_kind.iter().fold(0, |sum, counter| sum.wrapping_add(counter.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ticks_add_up_by_reason() {
        let counters = ExitCounters::new(&mut || {}).unwrap();
        counters.turns[CALL].plain.count(100);
        counters.turns[CALL].with_sgi.count(28);
        counters.turns[MMIO].plain.count(1);
        counters.turns[INTERRUPT].plain.count(5);
        counters.turns[PPI].plain.count(7);
        assert_eq!(counters.get(ExitReason::Call), (2, 128));
        assert_eq!(counters.get(ExitReason::Mmio), (1, 1));
        assert_eq!(counters.get(ExitReason::Interrupt), (2, 12));
        assert_eq!(counters.get(ExitReason::Fault), (0, 0));
    }

    #[test]
    fn histogram_buckets_are_powers_of_two() {
        let counters = ExitCounters::new(&mut || {}).unwrap();
        for ticks in [0, 1, 2, 3, 4, 1 << 31, u64::MAX] {
            counters.turns[CALL].plain.count(ticks);
        }
        let histogram: [u64; 64] = core::array::from_fn(|n| counters.at_el2(n));
        assert_eq!((histogram[0], histogram[1], histogram[2]), (2, 2, 1));
        assert_eq!((histogram[31], histogram[63]), (1, 1));
        assert_eq!(histogram.iter().sum::<u64>(), 7);
    }

    #[test]
    fn only_interrupts_that_carry_one_count_as_interrupt_to_entry() {
        let counters = ExitCounters::new(&mut || {}).unwrap();
        counters.turns[INTERRUPT].plain.count(1 << 3);
        counters.turns[CALL].with_sgi.count(1 << 4);
        counters.turns[INTERRUPT].with_sgi.count(1 << 5);
        counters.turns[PPI].plain.count(1 << 6);
        counters.turns[PPI].with_sgi.count(1 << 7);
        counters.count_late(&counters.turns[INTERRUPT], 1 << 8);
        counters.count_late(&counters.turns[MMIO], 1 << 9);
        let mut expected = [0_u64; 64];
        expected[5..=8].fill(1);
        assert_eq!(core::array::from_fn(|n| counters.to_entry(n)), expected);
        assert_eq!(counters.to_entry_ticks(), 0x1e0);
        assert_eq!(counters.to_entry(64), 0);
        assert_eq!(counters.quick(InterruptKind::Sgi), 3);
        assert_eq!(counters.quick(InterruptKind::Ppi), 2);
        assert_eq!(counters.quick(InterruptKind::Spi), 0);
    }

    #[test]
    fn injections_count_by_kind() {
        let injections = Injections::default();
        for (kind, n) in InterruptKind::ALL.into_iter().zip(1..) {
            injections.count(kind, n);
            injections.count(kind, n);
        }
        assert_eq!(InterruptKind::ALL.map(|kind| injections.get(kind)), [2, 4, 6, 8]);
        assert_eq!(injections.all(), 20);
    }
}
