// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of core files, read back by others: the `object` crate and, where it is there, `gdb`.
#![forbid(unsafe_code)]

use super::super::samples::{REGIMES, Ram, Tables, flat};
use super::super::translate::mappings;
use super::*;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Object, ObjectSegment};
use std::io::Cursor;
use std::process::Command;

const RAM: u64 = 0x4000_0000;

/// A guest with two vCPUs whose memory is mapped twice, in part and the other way round.
fn guest() -> (Ram, Vec<Registers>) {
    let regime = REGIMES[1];
    let mut ram = Ram::new(RAM, 64);
    let mut tables = Tables::new(regime, &ram);
    for page in 0..4 {
        tables.map(&mut ram, regime.base() + page * 0x1000, RAM + page * 0x1000, 0);
        tables.map(&mut ram, u64::MAX - (page + 1) * 0x1000 + 1, RAM + page * 0x1000, 0);
    }
    // Page 2 stays zero, and page 7 is mapped nowhere.
    ram.write(RAM, &[0x1122_3344_5566_7788]);
    ram.write(RAM + 0x1ff8, &[0x0102_0304_0506_0708]);
    ram.write(RAM + 0x3000, &[3]);
    ram.write(RAM + 0x7000, &[7]);
    let vcpus = (0..2).map(|vcpu| {
        let mut registers = tables.registers();
        registers.x = std::array::from_fn(|n| 0x100 * vcpu + n as u64);
        registers.sp = regime.base() + 0x3000;
        registers.pc = regime.base() + 0x10 + vcpu;
        registers
    });
    let vcpus = vcpus.collect();
    (ram, vcpus)
}

fn core(ram: &mut Ram, vcpus: &[Registers]) -> (Vec<u8>, Written) {
    let found = mappings(ram, &vcpus[0]).unwrap();
    ram.asked.clear();
    let mut file = Cursor::new(Vec::new());
    let written = write(&mut file, ram, "linux", vcpus, &found).unwrap();
    (file.into_inner(), written)
}

#[test]
fn every_address_has_the_bytes_that_the_guest_sees_there() {
    let (mut ram, vcpus) = guest();
    let (bytes, written) = core(&mut ram, &vcpus);
    let elf = ElfFile64::<Le>::parse(&*bytes).unwrap();
    assert_eq!(elf.elf_header().e_type(Le), ET_CORE);
    let base = REGIMES[1].base();
    let word = |va: u64| {
        let data = elf.segments().find_map(|segment| segment.data_range(va, 8).ok().flatten());
        data.map(|data| u64::from_le_bytes(data.try_into().unwrap()))
    };
    assert_eq!(word(base), Some(0x1122_3344_5566_7788));
    assert_eq!(word(u64::MAX - 0xfff), Some(0x1122_3344_5566_7788));
    assert_eq!(word(base + 0x1ff8), Some(0x0102_0304_0506_0708));
    assert_eq!(word(base + 0x2000), Some(0), "a page of zeroes");
    assert_eq!(word(base + 0x3000), Some(3));
    assert_eq!(word(base + 0x4000), None, "mapped nowhere");
    assert_eq!(written, Written { pages: 3, segments: 5, is_cut: false });
}

#[test]
fn only_what_is_mapped_is_asked_for_and_each_page_once_is_in_the_file() {
    let (mut ram, vcpus) = guest();
    let (bytes, _) = core(&mut ram, &vcpus);
    assert_eq!(ram.asked.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3].map(|n| RAM + n * 0x1000));
    let pattern = 0x1122_3344_5566_7788_u64.to_le_bytes();
    assert_eq!(bytes.windows(8).filter(|window| *window == pattern).count(), 1);
}

#[test]
fn notes_have_the_registers_of_each_vcpu() {
    let (mut ram, vcpus) = guest();
    let (bytes, _) = core(&mut ram, &vcpus);
    let header = FileHeader64::<Le>::parse(&*bytes).unwrap();
    let segments = header.program_headers(Le, &*bytes).unwrap();
    let notes = segments.iter().find_map(|s| s.notes(Le, &*bytes).unwrap());
    let mut notes = notes.unwrap();
    let mut kinds = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        assert_eq!(note.name(), b"CORE");
        kinds.push((note.n_type(Le), note.desc().len()));
        if note.n_type(Le) == NT_PRSTATUS {
            let vcpu = kinds.len() - 2;
            let word = |n: usize| {
                u64::from_le_bytes(note.desc()[112 + 8 * n..120 + 8 * n].try_into().unwrap())
            };
            assert_eq!((0..31).map(word).collect::<Vec<_>>(), vcpus[vcpu].x);
            assert_eq!((word(31), word(32), word(33)), (vcpus[vcpu].sp, vcpus[vcpu].pc, 0x3c5));
        }
    }
    assert_eq!(kinds, [(NT_PRPSINFO, 136), (NT_PRSTATUS, 392), (NT_PRSTATUS, 392)]);
}

#[test]
fn the_memory_of_a_guest_without_mmu_is_at_its_own_addresses() {
    let mut ram = Ram::new(RAM, 4);
    ram.write(RAM + 0x1000, &[42]);
    let (bytes, written) = core(&mut ram, &[flat()]);
    let elf = ElfFile64::<Le>::parse(&*bytes).unwrap();
    let segment = elf.segments().next().unwrap();
    assert_eq!((segment.address(), segment.size()), (RAM, 0x4000));
    assert_eq!(segment.data_range(RAM + 0x1000, 8).unwrap().unwrap()[0], 42);
    assert_eq!(segment.data().unwrap().len(), 0x4000, "the zeroes at the end too");
    assert_eq!(written.segments, 1);
}

#[test]
fn gdb_reads_registers_and_memory() {
    if Command::new("gdb-multiarch").arg("--version").output().is_err() {
        eprintln!("gdb-multiarch is not installed: only the object crate has read core files");
        return;
    }
    let (mut ram, vcpus) = guest();
    let (bytes, _) = core(&mut ram, &vcpus);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = Command::new("gdb-multiarch")
        .args(["-nx", "-batch", "-ex"])
        .arg(format!("core-file {}", file.path().display()))
        .args(["-ex", "info threads", "-ex", "p/x $x7", "-ex", "p/x $pc", "-ex", "thread 2"])
        .args(["-ex", "p/x $x7", "-ex", "x/gx 0xffff000000001ff8"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = [
        "LWP 1",
        "LWP 2",
        "$1 = 0x7",
        "$2 = 0xffff000000000010",
        "$3 = 0x107",
        "0x0102030405060708",
    ];
    for wanted in wanted {
        assert!(
            text.contains(wanted),
            "{wanted}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
