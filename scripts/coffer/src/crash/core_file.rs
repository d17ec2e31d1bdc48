// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An ELF core file of a guest, as `gdb` opens it.
//!
//! One thread for each vCPU (NT_PRSTATUS), one segment for each run of virtual addresses that leads
//! to memory in order. The file has the memory as it lies, once, however often it is mapped; what
//! is mapped nowhere or all zero is a hole of it. Layout: the System V ABI's ELF-64, with notes as
//! Linux writes them for AArch64 (`struct elf_prstatus`).
#![forbid(unsafe_code)]

use super::translate::{Mappings, Run};
use super::{Memory, PAGE, PAGE_U64, Page, Registers};
use object::LittleEndian as Le;
use object::elf::{
    EM_AARCH64, ET_CORE, FileHeader64, Ident, NT_PRPSINFO, NT_PRSTATUS, NoteHeader64, PF_R, PF_W,
    PF_X, PT_LOAD, PT_NOTE, ProgramHeader64,
};
use object::pod::bytes_of;
use object::{U16, U32, U64};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;

/// What memory in the file is aligned to, so that offsets agree with addresses in all granules.
const ALIGN: u64 = 1 << 16;
const HEADER_BYTES: u64 = 64;
const SEGMENT_BYTES: u64 = 56;

/// What a core file has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Pages that are in the file; others are holes.
    pub pages: u64,
    /// Segments.
    pub segments: usize,
    /// Whether the guest maps more than a file has room for.
    pub is_cut: bool,
}

/// Writes the core file of a VM called `name`: its vCPUs, the one that a debugger is to show first
/// in front, and what they map.
///
/// # Errors
/// The memory cannot be read or the file not be written.
pub fn write(
    file: &mut (impl Write + Seek),
    memory: &mut impl Memory,
    name: &str,
    vcpus: &[Registers],
    mappings: &Mappings,
) -> io::Result<Written> {
    let runs = &mappings.runs;
    let notes = notes(name, vcpus);
    let notes_at = HEADER_BYTES + SEGMENT_BYTES * (runs.len() as u64 + 1);
    let memory_at = (notes_at + notes.len() as u64).next_multiple_of(ALIGN);
    file.write_all(&header(runs.len() + 1)?)?;
    file.write_all(&segment(PT_NOTE, (notes_at, 0), (notes.len() as u64, 0)))?;
    let ranges = memory.ranges();
    let offset = |ipa: u64| {
        let mut at = memory_at;
        for range in &ranges {
            if range.contains(&ipa) {
                return at + (ipa - range.start);
            }
            at += (range.end - range.start).next_multiple_of(ALIGN);
        }
        at
    };
    for Run { va, ipa, bytes } in runs {
        file.write_all(&segment(PT_LOAD, (offset(*ipa), *va), (*bytes, *bytes)))?;
    }
    file.write_all(&notes)?;
    let mut written = Written { pages: 0, segments: runs.len(), is_cut: mappings.is_cut };
    let mapped = merged(runs);
    let last = mapped.iter().map(|range| range.end - PAGE_U64).max_by_key(|ipa| offset(*ipa));
    for ipa in mapped.into_iter().flat_map(|range| range.step_by(PAGE)) {
        let page = memory.page(ipa)?;
        let bytes = match &page {
            Page::Bytes(bytes) if bytes.iter().any(|byte| *byte != 0) => &bytes[..],
            // The file is as long as its segments say.
            _ if Some(ipa) == last => &[0; PAGE][..],
            _ => continue,
        };
        file.seek(SeekFrom::Start(offset(ipa)))?;
        file.write_all(bytes)?;
        written.pages += 1;
    }
    Ok(written)
}

/// Returns the pages that runs lead to, each once.
fn merged(runs: &[Run]) -> Vec<Range<u64>> {
    let pages =
        |run: &Run| run.ipa & !(PAGE_U64 - 1)..(run.ipa + run.bytes).next_multiple_of(PAGE_U64);
    let mut ranges: Vec<_> = runs.iter().map(pages).collect();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    ranges
}

fn header(segments: usize) -> io::Result<Vec<u8>> {
    let count = u16::try_from(segments).map_err(|_| io::Error::other("too many segments"))?;
    let header = FileHeader64 {
        e_phoff: U64::new(Le, HEADER_BYTES),
        e_phentsize: U16::new(Le, 56),
        e_phnum: U16::new(Le, count),
        ..file_header(ET_CORE)
    };
    Ok(bytes_of(&header).to_vec())
}

/// Makes the header of a file of this type for AArch64, with neither segments nor sections yet.
pub(super) fn file_header(kind: u16) -> FileHeader64<Le> {
    FileHeader64 {
        e_ident: Ident {
            magic: object::elf::ELFMAG,
            class: object::elf::ELFCLASS64,
            data: object::elf::ELFDATA2LSB,
            version: object::elf::EV_CURRENT,
            os_abi: object::elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(Le, kind),
        e_machine: U16::new(Le, EM_AARCH64),
        e_version: U32::new(Le, object::elf::EV_CURRENT.into()),
        e_entry: U64::new(Le, 0),
        e_phoff: U64::new(Le, 0),
        e_shoff: U64::new(Le, 0),
        e_flags: U32::new(Le, 0),
        e_ehsize: U16::new(Le, 64),
        e_phentsize: U16::new(Le, 0),
        e_phnum: U16::new(Le, 0),
        e_shentsize: U16::new(Le, 0),
        e_shnum: U16::new(Le, 0),
        e_shstrndx: U16::new(Le, 0),
    }
}

/// Makes a program header: type, offset and address, bytes in the file and in memory.
fn segment(kind: u32, (offset, va): (u64, u64), (file, memory): (u64, u64)) -> Vec<u8> {
    let flags = if kind == PT_LOAD { PF_R | PF_W | PF_X } else { PF_R };
    let header = ProgramHeader64::<Le> {
        p_type: U32::new(Le, kind),
        p_flags: U32::new(Le, flags),
        p_offset: U64::new(Le, offset),
        p_vaddr: U64::new(Le, va),
        p_paddr: U64::new(Le, 0),
        p_filesz: U64::new(Le, file),
        p_memsz: U64::new(Le, memory),
        p_align: U64::new(Le, if kind == PT_LOAD { PAGE_U64 } else { 4 }),
    };
    bytes_of(&header).to_vec()
}

fn notes(name: &str, vcpus: &[Registers]) -> Vec<u8> {
    let mut notes = note(NT_PRPSINFO, &process(name));
    for (registers, thread) in vcpus.iter().zip(1..) {
        notes.extend(note(NT_PRSTATUS, &status(registers, thread)));
    }
    notes
}

fn note(kind: u32, content: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"CORE\0\0\0\0";
    let header = NoteHeader64::<Le> {
        n_namesz: U32::new(Le, 5),
        n_descsz: U32::new(Le, u32::try_from(content.len()).unwrap_or(0)),
        n_type: U32::new(Le, kind),
    };
    let mut note = bytes_of(&header).to_vec();
    note.extend(NAME);
    note.extend(content);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Makes the `struct elf_prpsinfo` of a guest: 136 bytes, names at 40 and 56.
fn process(name: &str) -> Vec<u8> {
    let mut info = vec![0; 136];
    for (at, room) in [(40, 15), (56, 79)] {
        for (byte, c) in info.iter_mut().skip(at).take(room).zip(name.bytes()) {
            *byte = c;
        }
    }
    info
}

/// Makes the `struct elf_prstatus` of a vCPU: the thread's number at 32, X0 to X30, SP, PC and
/// PSTATE from 112 on.
fn status(registers: &Registers, thread: u32) -> Vec<u8> {
    let mut status = vec![0; 32];
    status.extend(thread.to_le_bytes());
    status.resize(112, 0);
    let Registers { x, sp, pc, pstate, .. } = registers;
    for word in x.iter().chain([sp, pc, pstate]) {
        status.extend(word.to_le_bytes());
    }
    status.resize(392, 0);
    status
}

#[cfg(test)]
mod tests;
