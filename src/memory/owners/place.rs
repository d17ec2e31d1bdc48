// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Chooses free memory: for EL2 one piece, for a VM few, large and aligned ones.
//!
//! A VM's memory begins at a round IPA, so pieces that are handed out in order of falling alignment
//! keep IPA and PA congruent, and stage 2 maps them with the largest blocks. The choice depends on
//! the list alone: the same machine and plan give the same placement.
#![forbid(unsafe_code)]

use super::{Owner, Owners, Refusal};
use crate::addr::{Address, PAGE_SIZE, Pa, PaRange};
use alloc::vec::Vec;

/// What stage 2 can map at once: blocks, and runs under the contiguous hint.
const ALIGNMENTS: [u64; 5] = [1 << 30, 32 << 20, 2 << 20, 64 << 10, PAGE_SIZE];

impl Owners {
    /// Gives `owner` the lowest free `size` bytes that begin at a multiple of `align`, a power of
    /// two.
    ///
    /// # Errors
    /// Says how much is free when nothing fits.
    pub fn allocate(&mut self, size: u64, align: u64, owner: Owner) -> Result<PaRange, Refusal> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::Unaligned);
        }
        let align = align.max(PAGE_SIZE);
        let fit = |free: PaRange| {
            let range = PaRange::new(free.start().align_up(align)?, size)?;
            free.covers(range).then_some(range)
        };
        let found = self.memory_of(Owner::Free).find_map(fit);
        let range = found.ok_or_else(|| self.exhausted(size, owner))?;
        self.claim(range, owner)?;
        Ok(range)
    }

    /// Returns the highest free `size` bytes that begin at a multiple of `align`, a power of two:
    /// away from where VMs want large blocks.
    #[must_use]
    pub fn highest(&self, size: u64, align: u64) -> Option<PaRange> {
        let fit = |free: PaRange| {
            let start = Pa::new(free.end().get().checked_sub(size)?).align_down(align);
            let range = PaRange::new(start, size)?;
            free.covers(range).then_some(range)
        };
        self.memory_of(Owner::Free).filter_map(fit).max_by_key(|range| range.end())
    }

    /// Gives `owner` `size` bytes in pieces, the most aligned first.
    ///
    /// # Errors
    /// Says how much is free when it is not enough. For want of memory for the list a part may be
    /// given, and only then.
    pub fn place(&mut self, size: u64, owner: Owner) -> Result<Vec<PaRange>, Refusal> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::Unaligned);
        }
        if self.free_bytes() < size {
            return Err(self.exhausted(size, owner));
        }
        let mut pieces: Vec<PaRange> = Vec::new();
        let mut left = size;
        while left > 0 {
            let last = pieces.last().copied();
            let piece = self.best_piece(left, last).ok_or_else(|| self.exhausted(size, owner))?;
            self.claim(piece, owner)?;
            match pieces.last_mut() {
                Some(last) if last.end() == piece.start() => *last = last.hull(piece),
                _ => {
                    pieces.try_reserve(1).map_err(|_| Refusal::ListFull)?;
                    pieces.push(piece);
                }
            }
            left = left.saturating_sub(piece.size());
        }
        Ok(pieces)
    }

    /// Finds the free piece of at most `left` bytes with the largest alignment that is to be had,
    /// and of these the largest; of equal ones the one right behind `last`, else the lowest.
    fn best_piece(&self, left: u64, last: Option<PaRange>) -> Option<PaRange> {
        let follows = |piece: PaRange| last.is_some_and(|last| last.end() == piece.start());
        let rank = |piece: PaRange| (piece.size(), follows(piece));
        for align in ALIGNMENTS {
            let mut best: Option<PaRange> = None;
            for free in self.memory_of(Owner::Free) {
                if let Some(piece) = aligned_part(free, align, left)
                    && best.is_none_or(|best| rank(piece) > rank(best))
                {
                    best = Some(piece);
                }
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    fn exhausted(&self, size_bytes: u64, wanted: Owner) -> Refusal {
        Refusal::Exhausted { wanted, size_bytes, free_bytes: self.free_bytes() }
    }
}

/// Returns the largest part of at most `bytes_max` bytes that begins at the first multiple of
/// `align` and is a multiple of it.
fn aligned_part(free: PaRange, align: u64, bytes_max: u64) -> Option<PaRange> {
    let part = PaRange::between(free.start().align_up(align)?, free.end())?;
    PaRange::new(part.start(), part.size().min(bytes_max) & !align.wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use crate::id::VmId;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const VM: Owner = Owner::Vm(VmId::new(0));

    fn range(start: u64, size: u64) -> PaRange {
        PaRange::new(Pa::new(start), size).unwrap()
    }

    fn machine(banks: &[(u64, u64)]) -> Owners {
        let mut owners = Owners::new();
        for &(start, size) in banks {
            owners.add_bank(range(start, size)).unwrap();
        }
        owners
    }

    #[test]
    fn a_vm_gets_1_gib_blocks_where_they_fit() {
        let mut owners = machine(&[(GIB, 4 * GIB)]);
        owners.claim(range(GIB + 2 * MIB, MIB), Owner::Hypervisor).unwrap();
        assert_eq!(owners.place(2 * GIB, VM), Ok(std::vec![range(2 * GIB, 2 * GIB)]));
    }

    #[test]
    fn the_rest_follows_the_aligned_piece() {
        let mut owners = machine(&[(GIB, 8 * GIB)]);
        owners.claim(range(GIB, MIB), Owner::Firmware).unwrap();
        let size = GIB + 512 * MIB + 12 * 1024;
        assert_eq!(owners.place(size, VM), Ok(std::vec![range(2 * GIB, size)]));
    }

    #[test]
    fn pieces_come_from_several_banks_and_fall_in_alignment() {
        let banks = [(0x8000_1000, 3 * MIB), (GIB, GIB), (0x1_0000_0000, GIB + 4 * MIB)];
        let mut owners = machine(&banks);
        let pieces = owners.place(2 * GIB + 5 * MIB, VM).unwrap();
        assert_eq!(
            pieces,
            [range(GIB, GIB), range(0x1_0000_0000, GIB + 4 * MIB), range(0x8001_0000, MIB)]
        );
    }

    #[test]
    fn allocate_takes_the_lowest_fit() {
        let mut owners = machine(&[(GIB, 4 * MIB)]);
        owners.claim(range(GIB + 0x1000, 0x1000), Owner::HostTree).unwrap();
        let root = owners.allocate(0x4000, 0x4000, Owner::Hypervisor);
        assert_eq!(root, Ok(range(GIB + 0x4000, 0x4000)));
        assert_eq!(owners.allocate(0x1000, 1, VM), Ok(range(GIB, 0x1000)));
    }

    #[test]
    fn t110_a_refused_placement_changes_nothing() {
        for pages in 1..40 {
            let mut owners = machine(&[(0x3000, pages * PAGE_SIZE), (GIB, PAGE_SIZE)]);
            owners.claim_device(range(0x10_0000, 0x1000), VM).unwrap();
            let before = owners.regions().to_vec();
            let size = (pages + 2) * PAGE_SIZE;
            let free_bytes = size - PAGE_SIZE;
            let refusal = Refusal::Exhausted { wanted: VM, size_bytes: size, free_bytes };
            assert_eq!(owners.place(size, VM), Err(refusal));
            assert_eq!(owners.regions(), before);
            assert_eq!(owners.allocate(size, 1, VM), Err(refusal));
            assert_eq!(owners.regions(), before);
            // The twin: one page less is there.
            assert!(owners.place(size - PAGE_SIZE, VM).is_ok());
        }
    }

    #[test]
    fn sizes_that_are_no_pages_are_refused() {
        let mut owners = machine(&[(GIB, GIB)]);
        for size in [0, 1, 0xfff, 0x1001] {
            assert_eq!(owners.place(size, VM), Err(Refusal::Unaligned));
            assert_eq!(owners.allocate(size, 1, VM), Err(Refusal::Unaligned));
        }
        assert!(matches!(owners.place(!0xfff, VM), Err(Refusal::Exhausted { .. })));
        assert!(matches!(owners.allocate(!0xfff, 1 << 63, VM), Err(Refusal::Exhausted { .. })));
    }
}
