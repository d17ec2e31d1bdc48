// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The names of a guest's functions, out of a file: an ELF file that runs where it is linked, or
//! the Image of a Linux kernel, wherever that runs.
#![forbid(unsafe_code)]

use super::kallsyms::{self, Kallsyms};
use super::{Memory, Registers};
use object::{Object, ObjectSymbol, SymbolKind};
use std::io;

/// The names of functions, by address.
#[derive(Debug)]
pub enum Names {
    /// Of an ELF file.
    Elf(Vec<Function>),
    /// Of a kernel, and where it runs.
    Kernel(Box<Kallsyms>, u64),
}

/// A function of an ELF file.
#[derive(Debug)]
pub struct Function {
    start: u64,
    bytes: u64,
    name: String,
}

impl Names {
    /// Reads a file; a kernel is looked for in the memory of a vCPU.
    ///
    /// # Errors
    /// There are no names in it, the kernel does not run there, or the memory cannot be read.
    pub fn read(
        file: &[u8],
        memory: &mut impl Memory,
        registers: &Registers,
    ) -> io::Result<Result<Self, &'static str>> {
        // An Image is a PE file too, without symbols.
        if file.starts_with(&object::elf::ELFMAG) {
            let Ok(elf) = object::File::parse(file) else { return Ok(Err("it does not read")) };
            let functions = functions(&elf);
            let is_empty = functions.is_empty();
            return Ok(if is_empty { Err("it has no symbols") } else { Ok(Self::Elf(functions)) });
        }
        let Some(kallsyms) = Kallsyms::find(file) else {
            return Ok(Err("this is neither an ELF file nor a Linux Image with kallsyms"));
        };
        let base = kallsyms::find_base(memory, registers, &kallsyms)?;
        Ok(base.map_or(Err("this kernel is not in the memory that is held"), |base| {
            Ok(Self::Kernel(Box::new(kallsyms), base))
        }))
    }

    /// Returns the function that an address is in, and how far.
    #[must_use]
    pub fn function(&self, address: u64) -> Option<(&str, u64)> {
        match self {
            Self::Elf(functions) => {
                let before =
                    functions.partition_point(|own| own.start <= address).checked_sub(1)?;
                let found = functions.get(before)?;
                let offset = address - found.start;
                // What an assembler has made may come without a size.
                (found.bytes == 0 || offset < found.bytes).then_some((&found.name, offset))
            }
            Self::Kernel(kallsyms, base) => kallsyms.function(address.checked_sub(*base)?),
        }
    }
}

fn functions(elf: &object::File<'_>) -> Vec<Function> {
    let code = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    let functions = code.filter(|symbol| symbol.is_definition()).filter_map(|symbol| {
        let name = addr2line::demangle_auto(symbol.name().ok()?.into(), None).into_owned();
        Some(Function { start: symbol.address(), bytes: symbol.size(), name })
    });
    let mut functions: Vec<_> = functions.collect();
    functions.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    functions
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Ram, flat};
    use super::*;

    #[test]
    fn an_address_has_the_name_of_the_function_that_it_is_in() {
        let function = |start, bytes, name: &str| Function { start, bytes, name: name.to_owned() };
        let names = Names::Elf(vec![
            function(0x1000, 0x20, "a"),
            function(0x1020, 0, "asm"),
            function(0x2000, 8, "b"),
        ]);
        for (address, expected) in [
            (0xfff, None),
            (0x1000, Some(("a", 0))),
            (0x101f, Some(("a", 0x1f))),
            (0x1ffc, Some(("asm", 0xfdc))),
            (0x2007, Some(("b", 7))),
            (0x2008, None),
        ] {
            assert_eq!(names.function(address), expected, "{address:#x}");
        }
    }

    #[test]
    fn files_without_names_are_refused() {
        let mut ram = Ram::new(0x4000_0000, 1);
        let mut read = |file: &[u8]| Names::read(file, &mut ram, &flat()).unwrap();
        assert!(read(b"text").unwrap_err().starts_with("this is neither"));
        assert_eq!(read(b"\x7fELF").unwrap_err(), "it does not read");
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let Names::Elf(functions) = read(&own).unwrap() else { panic!("this is an ELF file") };
        let found = functions.iter().find(|own| own.name.contains("files_without_names")).unwrap();
        let names = read(&own).unwrap();
        assert_eq!(names.function(found.start + 4).map(|(_, offset)| offset), Some(4));
    }
}
