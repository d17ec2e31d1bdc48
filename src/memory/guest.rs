// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the bytes are that a guest points at.
//!
//! A guest's pointers are allegations: a range is taken only when every byte of it is this VM's own
//! memory and may be used so. Nothing is read or written here; the machine layer copies, once. The
//! work is bounded by the number of chunks, whatever the guest says.
#![forbid(unsafe_code)]

use crate::addr::{AddrRange, Address, Ipa, IpaRange, Pa, PaRange};
use crate::heap::{self, NoMemory};
use crate::sort::sort_by_key;
use alloc::vec::Vec;
use core::fmt;

/// What a VM may do with a chunk of its memory, or what somebody wants to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Memory of a VM that is contiguous on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// What the guest sees.
    pub ipa: IpaRange,
    /// Where its first byte is.
    pub pa: Pa,
    /// What the guest may do with it.
    pub access: Access,
}

/// Why a guest's range is not taken: a guest mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPointer {
    /// The range passes the top of the address space.
    Wraps,
    /// The byte at this address is not the VM's memory.
    NotMemory(Ipa),
    /// The byte at this address may only be read.
    ReadOnly(Ipa),
}

/// Why chunks are not a VM's memory: two of them overlap, or an output wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadChunk(pub Chunk);

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest memory {} overlaps other memory of the same VM or wraps", self.0.ipa)
    }
}

/// Why memory cannot be laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayOutError {
    /// It passes the top of the address space.
    Chunk(BadChunk),
    /// The hypervisor has no memory for the list.
    NoMemory,
}

/// All memory of one VM. Devices are not memory.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Sorted, without overlap.
    chunks: Vec<Chunk>,
}

impl GuestMemory {
    /// Takes a VM's chunks in any order.
    ///
    /// # Errors
    /// Names a chunk that overlaps another in the guest's view, or whose output wraps.
    pub fn new(mut chunks: Vec<Chunk>) -> Result<Self, BadChunk> {
        sort_by_key(&mut chunks, |chunk| chunk.ipa.start().get());
        let mut end = Ipa::new(0);
        for chunk in &chunks {
            if chunk.ipa.start() < end || PaRange::new(chunk.pa, chunk.ipa.size()).is_none() {
                return Err(BadChunk(*chunk));
            }
            end = chunk.ipa.end();
        }
        Ok(Self { chunks })
    }

    /// Lays writable memory side by side from `start` on, in the order of `ranges`.
    ///
    /// # Errors
    /// Names the chunk that would pass the top of the address space; or there is no memory.
    pub fn lay_out(start: Ipa, ranges: &[PaRange]) -> Result<Self, LayOutError> {
        let mut chunks = heap::list(ranges.len()).map_err(|NoMemory| LayOutError::NoMemory)?;
        let mut at = start;
        for range in ranges {
            let pa = range.start();
            let chunk = |ipa| Chunk { ipa, pa, access: Access::Write };
            let wraps = || LayOutError::Chunk(BadChunk(chunk(AddrRange::block(at, 2))));
            let ipa = IpaRange::new(at, range.size()).ok_or_else(wraps)?;
            chunks.push(chunk(ipa));
            at = ipa.end();
        }
        // They are in order, and where they lead does not wrap.
        Ok(Self { chunks })
    }

    /// Returns the chunks in order of their IPAs.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Returns where the `size` bytes at `start` are, in order; nothing for no bytes.
    ///
    /// # Errors
    /// Names the first byte that the guest may not use so; then no byte is to be touched.
    pub fn runs(
        &self,
        start: Ipa,
        size: u64,
        access: Access,
    ) -> Result<impl Iterator<Item = PaRange>, BadPointer> {
        let end = start.checked_add(size).ok_or(BadPointer::Wraps)?;
        let wanted = IpaRange::between(start, end);
        let first = self.chunks.partition_point(|chunk| chunk.ipa.end() <= start);
        let chunks = self.chunks.get(first..).unwrap_or_default();
        let mut at = start;
        for chunk in chunks {
            if at >= end || !chunk.ipa.contains(at) {
                break;
            }
            if access > chunk.access {
                return Err(BadPointer::ReadOnly(at));
            }
            at = chunk.ipa.end();
        }
        if at < end {
            return Err(BadPointer::NotMemory(at));
        }
        Ok(chunks.iter().map_while(move |chunk| {
            let part = chunk.ipa.intersection(wanted?)?;
            let offset = part.start().get().checked_sub(chunk.ipa.start().get())?;
            PaRange::new(chunk.pa.checked_add(offset)?, part.size())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(ipa: u64, size: u64, pa: u64, access: Access) -> Chunk {
        Chunk { ipa: IpaRange::new(Ipa::new(ipa), size).unwrap(), pa: Pa::new(pa), access }
    }

    /// Two chunks side by side that are far apart in memory, a read-only one, a hole, one at the
    /// top.
    fn memory() -> GuestMemory {
        GuestMemory::new(std::vec![
            chunk(0x9000, 0x1000, 0x70_0000, Access::Write),
            chunk(0x1000, 0x2000, 0x50_0000, Access::Write),
            chunk(0x3000, 0x1000, 0x20_0000, Access::Write),
            chunk(0x4000, 0x1000, 0x60_0000, Access::Read),
            chunk(u64::MAX - 0x1000, 0x1000, 0x80_0000, Access::Write),
        ])
        .unwrap()
    }

    fn runs(start: u64, size: u64, access: Access) -> Result<Vec<(u64, u64)>, BadPointer> {
        let memory = memory();
        let runs = memory.runs(Ipa::new(start), size, access)?;
        Ok(runs.map(|run| (run.start().get(), run.size())).collect())
    }

    #[test]
    fn t42_a_range_over_two_chunks_is_split() {
        let split = runs(0x2ff0, 0x20, Access::Write);
        assert_eq!(split, Ok(std::vec![(0x50_1ff0, 0x10), (0x20_0000, 0x10)]));
    }

    #[test]
    fn t42_edges() {
        use Access::{Read, Write};
        assert_eq!(runs(0xfff, 1, Read), Err(BadPointer::NotMemory(Ipa::new(0xfff))));
        assert_eq!(runs(0xfff, 2, Read), Err(BadPointer::NotMemory(Ipa::new(0xfff))));
        assert_eq!(runs(0x1000, 1, Read), Ok(std::vec![(0x50_0000, 1)]));
        assert_eq!(runs(0x4fff, 1, Read), Ok(std::vec![(0x60_0fff, 1)]));
        assert_eq!(runs(0x4fff, 2, Read), Err(BadPointer::NotMemory(Ipa::new(0x5000))));
        assert_eq!(runs(0x3fff, 2, Write), Err(BadPointer::ReadOnly(Ipa::new(0x4000))));
        assert_eq!(runs(0x8fff, 2, Read), Err(BadPointer::NotMemory(Ipa::new(0x8fff))));
        assert_eq!(runs(0x5000, 0, Read), Ok(std::vec![]));
        assert_eq!(runs(u64::MAX, 1, Read), Err(BadPointer::Wraps));
        assert_eq!(runs(0x1000, u64::MAX, Read), Err(BadPointer::Wraps));
        assert_eq!(runs(u64::MAX - 1, 1, Write), Ok(std::vec![(0x80_0fff, 1)]));
        assert_eq!(
            runs(0x1000, u64::MAX - 0x1000, Read),
            Err(BadPointer::NotMemory(Ipa::new(0x5000)))
        );
    }

    #[test]
    fn overlapping_chunks_are_refused() {
        let a = chunk(0x1000, 0x2000, 0, Access::Write);
        let b = chunk(0x2000, 0x1000, 0x10_0000, Access::Write);
        assert_eq!(GuestMemory::new(std::vec![b, a]).unwrap_err(), BadChunk(b));
        let wraps = chunk(0x1000, 0x1000, u64::MAX - 0xfff, Access::Read);
        assert!(GuestMemory::new(std::vec![wraps]).is_err());
    }

    #[test]
    fn lay_out_puts_chunks_side_by_side() {
        let ranges = [(0x8000_0000, 0x20_0000), (0x4000_0000, 0x1000)]
            .map(|(start, size)| PaRange::new(Pa::new(start), size).unwrap());
        let memory = GuestMemory::lay_out(Ipa::new(0x4000_0000), &ranges).unwrap();
        let expected = [
            chunk(0x4000_0000, 0x20_0000, 0x8000_0000, Access::Write),
            chunk(0x4020_0000, 0x1000, 0x4000_0000, Access::Write),
        ];
        assert_eq!(memory.chunks(), expected);
        assert!(GuestMemory::lay_out(Ipa::new(u64::MAX - 0xfff), &ranges).is_err());
        assert!(GuestMemory::lay_out(Ipa::new(u64::MAX), &ranges).is_err());
    }

    proptest! {
        /// Byte by byte: taken when each byte alone is in a chunk that allows it, and the runs name
        /// exactly those bytes in order.
        #[test]
        fn t42_runs_are_the_bytes_that_the_guest_means(
            start in 0..0xb000u64,
            size in 0..0x4000u64,
            write in any::<bool>(),
        ) {
            let access = if write { Access::Write } else { Access::Read };
            let memory = memory();
            let byte = |ipa: u64| {
                let chunk = memory.chunks().iter().find(|c| c.ipa.contains(Ipa::new(ipa)))?;
                (chunk.access == Access::Write || !write)
                    .then(|| chunk.pa.get() + (ipa - chunk.ipa.start().get()))
            };
            let expected: Option<Vec<u64>> = (start..start + size).map(byte).collect();
            let actual = memory.runs(Ipa::new(start), size, access).ok().map(|runs| {
                runs.flat_map(|run| run.start().get()..run.end().get()).collect::<Vec<_>>()
            });
            prop_assert_eq!(actual, expected);
        }
    }
}
