// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can be seen in the hypervisor's ELF file without running it.
//!
//! Instructions are told apart by the bits of DDI 0487 C4.1; the mapping symbols of the ELF for the
//! Arm 64-bit Architecture (IHI 0056) say what is code and what is data.

use crate::harness::{Result, hypervisor, test, text};
use libtest_mimic::Trial;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, elf};

/// The one routine that may name FP, SIMD and SVE registers: it defines them for a vCPU's start.
const FP_ROUTINE: &str = "zero_fp_sve_keys";

pub fn trials() -> Vec<Trial> {
    vec![
        test("image::t51_el2_uses_no_fp_register", || check(fp_registers)),
        test("image::t60_no_eret_is_speculated_past", || check(open_erets)),
        test("image::t65_empty_list_registers_are_read_behind_an_isb", || check(early_elrsr)),
        test("image::its_relocations_are_relative", relocations),
        test("image::rules_catch_what_they_forbid", self_test),
    ]
}

/// The instructions of a program, in order.
#[derive(Default)]
struct Code {
    /// Address and instruction.
    words: Vec<(u64, u32)>,
    /// Where code starts that is not the one before: functions, sections, what follows data.
    starts: Vec<u64>,
    /// The addresses of [`FP_ROUTINE`].
    fp_routine: std::ops::Range<u64>,
}

/// Holds the hypervisor to a rule that returns the addresses that break it.
fn check(rule: fn(&Code) -> Result<Vec<u64>>) -> Result<()> {
    let code = read(&std::fs::read(hypervisor()?).map_err(text)?)?;
    let breaches = rule(&code)?;
    if breaches.is_empty() {
        return Ok(());
    }
    let words = breaches.iter().map(|at| {
        let word = code.words.iter().find(|(address, _)| address == at).map_or(0, |(_, w)| *w);
        format!("{at:#x}: {word:08x}\n")
    });
    Err(words.collect())
}

/// Reads all that is executable.
fn read(file: &[u8]) -> Result<Code> {
    let file = object::File::parse(file).map_err(text)?;
    let mut code = Code::default();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let mut marks: Vec<(u64, bool)> = Vec::new();
        for symbol in file.symbols().filter(|s| s.section_index() == Some(section.index())) {
            match symbol.name().map_err(text)? {
                name if is_mark(name, "$x") => marks.push((symbol.address(), true)),
                name if is_mark(name, "$d") => marks.push((symbol.address(), false)),
                name => {
                    code.starts.push(symbol.address());
                    if name == FP_ROUTINE {
                        code.fp_routine.start = symbol.address();
                    }
                }
            }
        }
        marks.sort_unstable();
        let is_code = |at| {
            let mark = marks.partition_point(|(start, _)| *start <= at).checked_sub(1);
            mark.and_then(|n| marks.get(n)).is_some_and(|(_, is_code)| *is_code)
        };
        let words = section.data().map_err(text)?.chunks_exact(4);
        let words = words.filter_map(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
        let words = (section.address()..).step_by(4).zip(words);
        code.words.extend(words.filter(|(at, _)| is_code(*at)));
    }
    code.starts.sort_unstable();
    let end = code.starts.iter().find(|start| **start > code.fp_routine.start);
    code.fp_routine.end = *end.ok_or(format!("nothing follows {FP_ROUTINE}"))?;
    if code.words.len() < 1000 || code.fp_routine.start == 0 {
        return Err("this is not the hypervisor, or its symbols are gone".to_owned());
    }
    Ok(code)
}

/// Says whether a symbol's name is a mapping symbol's, which may go on behind a dot.
fn is_mark(name: &str, mark: &str) -> bool {
    name.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Says whether an instruction names a register of FP, SIMD, SVE or SME.
fn names_fp(word: u32) -> bool {
    // MRS and MSR of FPCR and FPSR: S3_3_C4_C4_0 and 1, to read (bit 21) and to write.
    if word & 0xffdf_ffc0 == 0xd51b_4400 {
        return true;
    }
    match word >> 25 & 0xf {
        0b0111 | 0b1111 => true, // scalar FP and Advanced SIMD
        0b0100 | 0b0110 | 0b1100 | 0b1110 => word >> 26 & 1 == 1, // loads and stores, V
        0b0010 => true,          // SVE
        0b0000 => word >> 31 == 1, // SME
        _ => false,
    }
}

fn fp_registers(code: &Code) -> Result<Vec<u64>> {
    let (inside, outside): (Vec<_>, Vec<_>) = code
        .words
        .iter()
        .filter(|(_, word)| names_fp(*word))
        .partition(|(at, _)| code.fp_routine.contains(at));
    // 32 registers as SIMD's, 32 as SVE's and 16 predicates at least.
    if inside.len() < 80 {
        return Err(format!("{FP_ROUTINE} writes only {} registers", inside.len()));
    }
    Ok(outside.into_iter().map(|(at, _)| at).collect())
}

/// Returns the ERETs that SB, or DSB and ISB, do not follow.
fn open_erets(code: &Code) -> Result<Vec<u64>> {
    const ERETS: [u32; 3] = [0xd69f_03e0, 0xd69f_0bff, 0xd69f_0fff];
    const SB: u32 = 0xd503_30ff;
    let is_dsb = |word: u32| word & 0xffff_f0ff == 0xd503_309f;
    let is_isb = |word: u32| word & 0xffff_f0ff == 0xd503_30df;
    let word = |n: usize| code.words.get(n).map_or(0, |(_, word)| *word);
    let mut erets = 0;
    let mut open = Vec::new();
    for (n, (at, _)) in code.words.iter().enumerate().filter(|(_, (_, w))| ERETS.contains(w)) {
        erets += 1;
        if word(n + 1) != SB && !(is_dsb(word(n + 1)) && is_isb(word(n + 2))) {
            open.push(*at);
        }
    }
    if erets == 0 {
        return Err("there is no ERET, so guests are not entered".to_owned());
    }
    Ok(open)
}

/// Returns the reads of ICH_ELRSR_EL2 (S3_4_C12_C11_5) that are not the first system instruction
/// behind an ISB: what was written to a list register before would not show.
fn early_elrsr(code: &Code) -> Result<Vec<u64>> {
    let is_read = |word: u32| word & 0xffff_ffe0 == 0xd53c_cba0;
    // All of barriers, hints, MSR and MRS (DDI 0487 C4.1.93).
    let is_system = |word: u32| word >> 22 == 0b11_0101_0100;
    let is_isb = |word: u32| word & 0xffff_f0ff == 0xd503_30df;
    let reads = || code.words.iter().enumerate().filter(|(_, (_, word))| is_read(*word));
    if reads().next().is_none() {
        return Err("nobody reads ICH_ELRSR_EL2".to_owned());
    }
    let is_early = |n: usize| {
        let before = code.words.iter().take(n).rev();
        before.map(|(_, word)| *word).find(|word| is_system(*word)).is_none_or(|w| !is_isb(w))
    };
    Ok(reads().filter(|(n, _)| is_early(*n)).map(|(_, (at, _))| *at).collect())
}

/// The image relocates itself by SHT_RELR and knows no other kind.
fn relocations() -> Result<()> {
    let bytes = std::fs::read(hypervisor()?).map_err(text)?;
    let file = object::File::parse(&*bytes).map_err(text)?;
    // Sections that are not loaded, such as the debugger's, have no address.
    let loaded = file.sections().filter(|section| section.address() != 0 && section.size() != 0);
    let names: Vec<_> =
        loaded.filter_map(|section| section.name().map(str::to_owned).ok()).collect();
    known_relocations(names.iter().map(String::as_str))
}

/// Looks for relocations among the names of the sections that are loaded.
fn known_relocations<'a>(mut sections: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    let unknown = |name: &&str| name.starts_with(".rel") && *name != ".relr.dyn";
    if let Some(name) = sections.clone().find(unknown) {
        return Err(format!("{name} is not looked at by the image"));
    }
    match sections.any(|name| name == ".relr.dyn") {
        true => Ok(()),
        false => Err("there is no relocation, so this is not the image".to_owned()),
    }
}

/// Instructions as the assembler makes them, with what each is.
const FP: [(u32, &str); 12] = [
    (0x4ea1_1c20, "mov v0.16b, v1.16b"),
    (0x1e60_4020, "fmov d0, d1"),
    (0x9e67_0000, "fmov d0, x0"),
    (0x3dc0_0000, "ldr q0, [x0]"),
    (0xad00_07e0, "stp q0, q1, [sp]"),
    (0xfd00_0000, "str d0, [x0]"),
    (0x1c00_0000, "ldr s0, literal"),
    (0x4c00_7000, "st1 {v0.16b}, [x0]"),
    (0x05e0_3800, "dup z0.d, x0"),
    (0x2518_e400, "pfalse p0.b"),
    (0xd51b_441f, "msr fpcr, xzr"),
    (0xd53b_4420, "mrs x0, fpsr"),
];
const GENERAL: [(u32, &str); 12] = [
    (0xd503_201f, "nop"),
    (0xf940_0000, "ldr x0, [x0]"),
    (0xa9bf_7bfd, "stp x29, x30, [sp, #-16]!"),
    (0x5800_0000, "ldr x0, literal"),
    (0xc85f_7c00, "ldxr x0, [x0]"),
    (0xf820_0000, "ldadd x0, x0, [x0]"),
    (0x9b01_7c00, "mul x0, x0, x1"),
    (0x1ac1_5000, "crc32cb w0, w0, w1"),
    (0xd51c_1100, "msr hcr_el2, x0"),
    (0x1400_0000, "b ."),
    (0xd69f_03e0, "eret"),
    (0xd503_3fdf, "isb"),
];

fn self_test() -> Result<()> {
    let expect = |what: &str, holds: bool| if holds { Ok(()) } else { Err(what.to_owned()) };
    for (word, name) in FP {
        expect(name, names_fp(word))?;
    }
    for (word, name) in GENERAL {
        expect(name, !names_fp(word))?;
    }
    let listed = |words: &[u32], fp_routine| Code {
        words: (0x1000..).step_by(4).zip(words.iter().copied()).collect(),
        starts: Vec::new(),
        fp_routine,
    };
    let mut words = vec![0x4ea1_1c20; 81];
    expect("FP in its routine", fp_registers(&listed(&words, 0x1000..0x1144))?.is_empty())?;
    expect("FP elsewhere", fp_registers(&listed(&words, 0x1000..0x1140))? == [0x1140])?;
    words.truncate(3);
    expect("an empty routine", fp_registers(&listed(&words, 0x1000..0x100c)).is_err())?;

    let (eret, dsb, isb, sb) = (0xd69f_03e0, 0xd503_379f, 0xd503_3fdf, 0xd503_30ff);
    let closed = |words: &[u32]| open_erets(&listed(words, 0..0)).is_ok_and(|open| open.is_empty());
    expect("DSB and ISB", closed(&[eret, dsb, isb]))?;
    expect("SB", closed(&[eret, sb]))?;
    for open in [&[eret][..], &[eret, dsb], &[eret, isb, dsb], &[eret, 0, sb], &[eret, sb, eret]] {
        expect("an ERET that is open", !closed(open))?;
    }
    expect("no ERET at all", !closed(&[sb]))?;

    let (read_elrsr, write_lr0, add) = (0xd53c_cba8, 0xd51c_cc09, 0x9100_0400);
    let early = |words: &[u32]| early_elrsr(&listed(words, 0..0));
    expect("ELRSR behind an ISB", early(&[write_lr0, isb, add, read_elrsr])?.is_empty())?;
    expect("ELRSR behind an LR", early(&[isb, write_lr0, add, read_elrsr])? == [0x100c])?;
    expect("ELRSR behind nothing", early(&[add, read_elrsr])? == [0x1004])?;
    expect("no ELRSR at all", early(&[isb]).is_err())?;

    let known = |names: &[&'static str]| known_relocations(names.iter().copied()).is_ok();
    expect("SHT_RELR", known(&[".text", ".relr.dyn"]))?;
    expect("SHT_RELA", !known(&[".relr.dyn", ".rela.dyn"]))?;
    expect("no relocation", !known(&[".text"]))
}
