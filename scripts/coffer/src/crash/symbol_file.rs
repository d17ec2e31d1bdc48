// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An ELF file with the names of a kernel's functions where they run, for a debugger, which knows
//! nothing of kallsyms.
//!
//! It has no code, that is in the core file; and for all of the code one rule of how calls return
//! (`.debug_frame`, DWARF 5 section 6.4): by the frame record that X29 points at, which a kernel that
//! is built for backtraces has in every function but the smallest.
#![forbid(unsafe_code)]

use super::core_file::file_header;
use super::kallsyms::Kallsyms;
use object::LittleEndian as Le;
use object::elf::{
    ET_EXEC, FileHeader64, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, SHT_NULL, SHT_PROGBITS,
    SHT_STRTAB, SHT_SYMTAB, STB_GLOBAL, STB_LOCAL, STT_FUNC, SectionHeader64, Sym64,
};
use object::pod::bytes_of;
use object::{U16, U32, U64};

const HEADER_BYTES: u64 = 64;
const SECTION_BYTES: u64 = 64;
const SYMBOL_BYTES: u64 = 24;
/// The names of the sections; `.shstrtab` has them one behind the other, each behind a zero.
const NAMES: [&str; 5] = [".text", ".debug_frame", ".symtab", ".strtab", ".shstrtab"];
/// The number of `.text`, as symbols have it; of `.strtab`, as the header of `.symtab` has it.
const TEXT: u16 = 1;
const STRTAB: u32 = 4;
const SHSTRTAB: u16 = 5;

/// Makes the file of a kernel that runs at `base`.
#[must_use]
pub fn make(kallsyms: &Kallsyms, base: u64) -> Vec<u8> {
    let text_bytes = kallsyms.offset("_etext").unwrap_or_else(|| {
        kallsyms.symbols().last().map_or(0, |symbol| symbol.offset.saturating_add(4))
    });
    let (symbols, strings) = symbols(kallsyms, base, text_bytes);
    let mut names = vec![0];
    let mut name_at = Vec::new();
    for name in NAMES {
        name_at.push(u32::try_from(names.len()).unwrap_or(0));
        names.extend(name.bytes().chain([0]));
    }
    let contents = [Vec::new(), frames(base, text_bytes), symbols, strings, names];
    let kinds = [SHT_NOBITS, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_STRTAB];
    let mut sections = bytes_of(&section(0, SHT_NULL, (0, 0))).to_vec();
    let mut body = Vec::new();
    let body_at = HEADER_BYTES + SECTION_BYTES * (NAMES.len() as u64 + 1);
    for ((content, kind), name) in contents.iter().zip(kinds).zip(name_at) {
        body.resize(body.len().next_multiple_of(8), 0);
        let at = body_at + body.len() as u64;
        let mut header = match kind {
            SHT_NOBITS => section(name, kind, (at, text_bytes)),
            _ => section(name, kind, (at, content.len() as u64)),
        };
        if kind == SHT_NOBITS {
            header.sh_addr = U64::new(Le, base);
            header.sh_flags = U64::new(Le, u64::from(SHF_ALLOC | SHF_EXECINSTR));
        } else if kind == SHT_SYMTAB {
            header.sh_link = U32::new(Le, STRTAB);
            // All but the first are global.
            header.sh_info = U32::new(Le, 1);
            header.sh_entsize = U64::new(Le, SYMBOL_BYTES);
        }
        sections.extend(bytes_of(&header));
        body.extend(content);
    }
    [bytes_of(&header()).to_vec(), sections, body].concat()
}

/// Makes the table of symbols and that of their names. Each goes up to where the next one starts.
fn symbols(kallsyms: &Kallsyms, base: u64, text_bytes: u64) -> (Vec<u8>, Vec<u8>) {
    let mut strings = vec![0];
    let mut symbols = bytes_of(&symbol(0, STB_LOCAL, 0, (0, 0))).to_vec();
    let code = || kallsyms.functions().filter(|own| own.offset < text_bytes);
    let ends = code().map(|own| own.offset).chain([text_bytes]).collect::<Vec<_>>();
    for own in code() {
        let end = ends.get(ends.partition_point(|end| *end <= own.offset));
        let bytes = end.map_or(0, |end| end - own.offset);
        let name = u32::try_from(strings.len()).unwrap_or(0);
        strings.extend(own.name.bytes().chain([0]));
        let at = base.wrapping_add(own.offset);
        symbols.extend(bytes_of(&symbol(name, STB_GLOBAL, TEXT, (at, bytes))));
    }
    (symbols, strings)
}

fn symbol(name: u32, binding: u8, section: u16, (at, bytes): (u64, u64)) -> Sym64<Le> {
    Sym64 {
        st_name: U32::new(Le, name),
        st_info: binding << 4 | if section == 0 { 0 } else { STT_FUNC },
        st_other: 0,
        st_shndx: U16::new(Le, section),
        st_value: U64::new(Le, at),
        st_size: U64::new(Le, bytes),
    }
}

/// Makes the one rule for `bytes` of code at `base`: the caller's frame is 16 bytes behind X29, and in
/// front of that are its X29 and where it goes on.
fn frames(base: u64, bytes: u64) -> Vec<u8> {
    const DEF_CFA: u8 = 0x0c;
    const OFFSET: u8 = 0x80;
    const NOP: u8 = 0;
    // Version 4, no augmentation, addresses of 8 bytes without segments, code in units of 4, data in
    // units of -8, X30 returns.
    let mut cie = u32::MAX.to_le_bytes().to_vec();
    cie.extend([4, 0, 8, 0, 4, 0x78, 30, DEF_CFA, 29, 16, OFFSET | 29, 2, OFFSET | 30, 1]);
    cie.resize((cie.len() + 4).next_multiple_of(8) - 4, NOP);
    let mut fde = 0_u32.to_le_bytes().to_vec();
    fde.extend([base.to_le_bytes(), bytes.to_le_bytes()].concat());
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(0).to_le_bytes().to_vec();
    [length(&cie), cie, length(&fde), fde].concat()
}

fn section(name: u32, kind: u32, (at, bytes): (u64, u64)) -> SectionHeader64<Le> {
    SectionHeader64 {
        sh_name: U32::new(Le, name),
        sh_type: U32::new(Le, kind),
        sh_flags: U64::new(Le, 0),
        sh_addr: U64::new(Le, 0),
        sh_offset: U64::new(Le, at),
        sh_size: U64::new(Le, bytes),
        sh_link: U32::new(Le, 0),
        sh_info: U32::new(Le, 0),
        sh_addralign: U64::new(Le, 8),
        sh_entsize: U64::new(Le, 0),
    }
}

fn header() -> FileHeader64<Le> {
    FileHeader64 {
        e_shoff: U64::new(Le, HEADER_BYTES),
        e_shentsize: U16::new(Le, 64),
        e_shnum: U16::new(Le, SHSTRTAB + 1),
        e_shstrndx: U16::new(Le, SHSTRTAB),
        ..file_header(ET_EXEC)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kallsyms::Symbol;
    use super::*;
    use object::read::elf::ElfFile64;
    use object::{Object, ObjectSection, ObjectSymbol};

    #[test]
    fn functions_are_where_the_kernel_runs() {
        const BASE: u64 = 0xffff_8000_8000_0000;
        let symbol = |offset, kind, name: &str| Symbol { offset, kind, name: name.to_owned() };
        let kallsyms = Kallsyms::of(vec![
            symbol(0, b'T', "_text"),
            symbol(0x100, b'T', "panic"),
            symbol(0x100, b't', "$x"),
            symbol(0x140, b't', "other"),
            symbol(0x140, b'T', "alias"),
            symbol(0x200, b'T', "_etext"),
            symbol(0x300, b'D', "data"),
        ]);
        let bytes = make(&kallsyms, BASE);
        let elf = ElfFile64::<Le>::parse(&*bytes).unwrap();
        let found: Vec<_> = elf
            .symbols()
            .map(|own| (own.name().unwrap().to_owned(), own.address() - BASE, own.size()))
            .collect();
        let expected = [
            ("_text", 0, 0x100),
            ("panic", 0x100, 0x40),
            ("other", 0x140, 0xc0),
            ("alias", 0x140, 0xc0),
        ];
        let expected = expected.map(|(name, at, size)| (name.to_owned(), at, size));
        assert_eq!(found, expected);
        let text = elf.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (BASE, 0x200));
        let rules = elf.section_by_name(".debug_frame").unwrap().data().unwrap().to_vec();
        assert_eq!(rules.len() % 8, 0);
        assert_eq!(rules[rules.len() - 16..rules.len() - 8], BASE.to_le_bytes());
    }
}
