// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From an ELF file to the bytes that a loader would put into memory (System V ABI, ELF-64).
//!
//! Knows neither the hypervisor nor guests. The file may be hostile.
#![forbid(unsafe_code)]

use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, LittleEndian};

/// Which of a segment's addresses counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The virtual one, for programs that run where they are linked, wherever they are loaded.
    VirtualAddress,
    /// The physical one, for programs that are loaded at fixed addresses.
    PhysicalAddress,
}

/// What a loader would have put into memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flat {
    /// The address of the first byte.
    pub base: u64,
    /// The bytes, zeros between the segments included, up to the last one in the file.
    pub bytes: Vec<u8>,
    /// The first address behind what the segments take in memory: `.bss` is not in `bytes`.
    pub end: u64,
    /// The entry, as an address of the same kind as `base`.
    pub entry: u64,
}

/// Why an ELF file cannot be flattened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlattenError {
    /// The file is broken or of another class.
    #[error("not a usable ELF file: {0}")]
    Broken(String),
    /// The file is for another machine.
    #[error("the ELF file is not for 64-bit Arm (e_machine {0})")]
    Machine(u16),
    /// The file is an object file or a core dump.
    #[error("the ELF file is not a program (e_type {0})")]
    Type(u16),
    /// There is nothing to load.
    #[error("the ELF file has nothing to load")]
    Empty,
    /// A segment that contradicts itself.
    #[error("segment {0} of the ELF file is broken: {1}")]
    Segment(usize, &'static str),
    /// The segments lie too far apart.
    #[error("the ELF file spreads over {spread:#x} bytes; {limit:#x} are the most")]
    Spread {
        /// The bytes from the lowest to the highest address.
        spread: u64,
        /// The most that were allowed.
        limit: u64,
    },
    /// The entry lies in no segment.
    #[error("the entry {0:#x} of the ELF file lies in no segment")]
    Entry(u64),
}

struct Segment<'a> {
    address: u64,
    virtual_address: u64,
    data: &'a [u8],
    memory_bytes: u64,
}

/// Flattens an ELF file whose memory spreads over no more than `limit` bytes.
///
/// # Errors
/// Says what is wrong with the file.
pub fn flatten(file: &[u8], by: By, limit: u64) -> Result<Flat, FlattenError> {
    let broken = |error: object::read::Error| FlattenError::Broken(error.to_string());
    let header = FileHeader64::<Endianness>::parse(file).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if !matches!(endian, Endianness::Little) {
        return Err(FlattenError::Broken("it is big-endian".into()));
    }
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(broken)?;
    if header.e_machine.get(LittleEndian) != elf::EM_AARCH64 {
        return Err(FlattenError::Machine(header.e_machine.get(LittleEndian)));
    }
    let kind = header.e_type.get(LittleEndian);
    if !matches!(kind, elf::ET_EXEC | elf::ET_DYN) {
        return Err(FlattenError::Type(kind));
    }
    let segments = segments(file, header, by).map_err(|error| match error {
        SegmentsError::Object(error) => broken(error),
        SegmentsError::Flatten(error) => error,
    })?;
    let base = segments.iter().map(|segment| segment.address).min().ok_or(FlattenError::Empty)?;
    // `segments` has checked that none of these sums wraps.
    let ends = segments.iter().map(|segment| segment.address.wrapping_add(segment.memory_bytes));
    let end = ends.max().ok_or(FlattenError::Empty)?;
    if end - base > limit {
        return Err(FlattenError::Spread { spread: end - base, limit });
    }
    let entry = header.e_entry.get(LittleEndian);
    let entry = find_entry(&segments, entry).ok_or(FlattenError::Entry(entry))?;
    Ok(Flat { base, bytes: copy(&segments, base), end, entry })
}

enum SegmentsError {
    Object(object::read::Error),
    Flatten(FlattenError),
}

fn segments<'a>(
    file: &'a [u8],
    header: &FileHeader64<LittleEndian>,
    by: By,
) -> Result<Vec<Segment<'a>>, SegmentsError> {
    let headers = header.program_headers(LittleEndian, file).map_err(SegmentsError::Object)?;
    let mut segments = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let bad = |why| SegmentsError::Flatten(FlattenError::Segment(index, why));
        let memory_bytes = header.p_memsz(LittleEndian);
        if header.p_type(LittleEndian) != elf::PT_LOAD || memory_bytes == 0 {
            continue;
        }
        let data = header.data(LittleEndian, file);
        let data = data.map_err(|()| bad("its bytes lie outside the file"))?;
        if header.p_filesz(LittleEndian) > memory_bytes {
            return Err(bad("it has more bytes in the file than in memory"));
        }
        let virtual_address = header.p_vaddr(LittleEndian);
        let address = match by {
            By::VirtualAddress => virtual_address,
            By::PhysicalAddress => header.p_paddr(LittleEndian),
        };
        for start in [address, virtual_address] {
            start.checked_add(memory_bytes).ok_or_else(|| bad("its addresses wrap"))?;
        }
        segments.push(Segment { address, virtual_address, data, memory_bytes });
    }
    Ok(segments)
}

/// Finds the entry, a virtual address, in the segments and returns it as their kind of address.
fn find_entry(segments: &[Segment<'_>], entry: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let offset = entry.checked_sub(segment.virtual_address)?;
        (offset < segment.memory_bytes).then(|| segment.address.wrapping_add(offset))
    })
}

fn copy(segments: &[Segment<'_>], base: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments.iter().filter(|segment| !segment.data.is_empty()) {
        // Within the limit that `flatten` has checked; `usize` has 64 bits on every host.
        let start = usize::try_from(segment.address - base).unwrap_or(usize::MAX);
        let end = start.saturating_add(segment.data.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        if let Some(target) = bytes.get_mut(start..end) {
            target.copy_from_slice(segment.data);
        }
    }
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A program header: offset, virtual and physical address, bytes in the file and in memory.
    pub(crate) type Header = (u64, u64, u64, u64, u64);

    /// Writes an ELF file with these segments; `tail` stands behind the headers.
    pub(crate) fn elf(entry: u64, headers: &[Header], tail: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([2u16, 183].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        let count = u16::try_from(headers.len()).unwrap();
        file.extend([64u16, 56, count, 64, 0, 0].map(u16::to_le_bytes).concat());
        for (offset, virt, phys, in_file, in_memory) in headers {
            file.extend([1u32, 7].map(u32::to_le_bytes).concat());
            let fields = [*offset, *virt, *phys, *in_file, *in_memory, 4096];
            file.extend(fields.map(u64::to_le_bytes).concat());
        }
        file.extend(tail);
        file
    }

    const LIMIT: u64 = 1 << 20;

    #[test]
    fn segments_stand_where_they_are_linked() {
        let tail = 64 + 2 * 56;
        let headers = [(tail, 0x1000, 0x8_1000, 4, 4), (tail + 4, 0x2000, 0x8_2000, 2, 0x100)];
        let file = elf(0x1002, &headers, b"abcdef");
        let flat = flatten(&file, By::PhysicalAddress, LIMIT).unwrap();
        assert_eq!((flat.base, flat.end, flat.entry), (0x8_1000, 0x8_2100, 0x8_1002));
        assert_eq!(flat.bytes.len(), 0x1002);
        assert_eq!((&flat.bytes[..5], &flat.bytes[0x1000..]), (&b"abcd\0"[..], &b"ef"[..]));
        let flat = flatten(&file, By::VirtualAddress, LIMIT).unwrap();
        assert_eq!((flat.base, flat.entry), (0x1000, 0x1002));
    }

    #[test]
    fn broken_files_are_refused() {
        let one = |header: Header, entry| {
            flatten(&elf(entry, &[header], b"abcd"), By::PhysicalAddress, LIMIT)
        };
        assert!(one((120, 0, 0, 4, 4), 0).is_ok());
        assert_eq!(one((120, 0, 0, 4, 4), 4), Err(FlattenError::Entry(4)));
        assert!(matches!(one((121, 0, 0, 4, 4), 0), Err(FlattenError::Segment(0, _))));
        assert!(matches!(one((u64::MAX, 0, 0, 4, 4), 0), Err(FlattenError::Segment(0, _))));
        assert!(matches!(one((120, 0, 0, 4, 3), 0), Err(FlattenError::Segment(0, _))));
        assert!(matches!(one((120, u64::MAX, 0, 4, 4), 0), Err(FlattenError::Segment(0, _))));
        assert!(matches!(one((120, 0, u64::MAX, 4, 4), 0), Err(FlattenError::Segment(0, _))));
        assert_eq!(one((120, 0, 0, 4, 0), 0), Err(FlattenError::Empty));
        let spread = FlattenError::Spread { spread: LIMIT + 1, limit: LIMIT };
        assert_eq!(one((120, 0, 0, 4, LIMIT + 1), 0), Err(spread));
        assert!(flatten(b"", By::PhysicalAddress, LIMIT).is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_a_panic(
            changes in prop::collection::vec((0usize..180, any::<u8>()), 1..12),
            length in 0usize..182,
        ) {
            let headers = [(176, 0x1000, 0x1000, 4, 4), (178, 0x2000, 0x2000, 2, 0x100)];
            let mut file = elf(0x1002, &headers, b"abcdef");
            for (at, value) in changes {
                file[at] = value;
            }
            for file in [&file[..], &file[..length]] {
                if let Ok(flat) = flatten(file, By::PhysicalAddress, LIMIT) {
                    let length = u64::try_from(flat.bytes.len()).unwrap();
                    prop_assert!(flat.end - flat.base <= LIMIT && length <= flat.end - flat.base);
                    prop_assert!((flat.base..flat.end).contains(&flat.entry));
                }
            }
        }
    }
}
