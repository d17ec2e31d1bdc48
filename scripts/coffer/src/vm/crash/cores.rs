// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Core files of a VM that is held, and the names that go with them. Each is written under another
//! name first: one that does not become whole is none.
#![forbid(unsafe_code)]

use super::report::CoreReport;
use super::rows::Crash;
use super::{CrashError, Extent, Held, WantedCore};
use crate::crash::core_file::{self, Written};
use crate::crash::names::Names;
use crate::crash::selection::{Around, for_backtraces};
use crate::crash::translate::{self, Mappings};
use crate::crash::unsigned::Unsigned;
use crate::crash::{Memory, symbol_file};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What is written, and where it is to be.
pub(super) struct Core {
    core: (NamedTempFile, PathBuf),
    symbols: Option<(NamedTempFile, PathBuf)>,
    written: Written,
}

impl Core {
    /// Writes the core file, and where names come from an Image the file of these.
    pub(super) fn write(
        wanted: WantedCore<'_>,
        memory: &mut impl Memory,
        crash: &Crash,
        vcpus: &[Held],
        names: Option<&Names>,
    ) -> Result<Self, CrashError> {
        let WantedCore { path, extent } = wanted;
        let first = vcpus.first().ok_or_else(|| CrashError::NoVcpu(crash.vm.clone()))?;
        let mappings = match extent {
            Extent::All => translate::mappings(memory, &first.registers),
            Extent::Brief => needed(memory, crash, vcpus),
        };
        let mappings = mappings.map_err(CrashError::of_memory)?;
        let failed = CrashError::of_file(path);
        let registers: Vec<_> = vcpus.iter().map(|own| own.registers).collect();
        let mut file = beside(path).map_err(&failed)?;
        let mut memory = Unsigned::new(memory);
        for Held { registers, frames, .. } in vcpus {
            memory.add(registers, frames).map_err(CrashError::of_memory)?;
        }
        let written = core_file::write(&mut file, &mut memory, &crash.vm, &registers, &mappings);
        let written = written.map_err(&failed)?;
        let symbols = match names {
            Some(Names::Kernel(kallsyms, base)) => {
                let path = symbols_path(path);
                let made = symbol_file::make(kallsyms, *base);
                let file = beside(&path).and_then(|mut file| {
                    file.write_all(&made)?;
                    Ok(file)
                });
                Some((file.map_err(CrashError::of_file(&path))?, path))
            }
            _ => None,
        };
        Ok(Self { core: (file, path.to_owned()), symbols, written })
    }

    /// Puts the files where they are to be.
    pub(super) fn keep(self) -> Result<CoreReport, CrashError> {
        let Self { core, symbols, written } = self;
        let symbols = symbols.map(keep).transpose()?;
        Ok(CoreReport::new(keep(core)?, symbols, written))
    }
}

fn needed(memory: &mut impl Memory, crash: &Crash, vcpus: &[Held]) -> io::Result<Mappings> {
    let pointers = |vcpu: &u64| {
        let registers = crash.vcpus.get(vcpu).map(|own| own.registers.iter());
        registers.into_iter().flatten().map(|(_, value)| *value).collect::<Vec<_>>()
    };
    let pointers: Vec<_> = vcpus.iter().map(|own| pointers(&own.vcpu)).collect();
    let all = vcpus.iter().zip(&pointers);
    let all = all.map(|(Held { registers, frames, .. }, pointers)| Around {
        registers,
        frames,
        pointers,
    });
    for_backtraces(memory, &all.collect::<Vec<_>>())
}

fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
}

fn keep((file, path): (NamedTempFile, PathBuf)) -> Result<PathBuf, CrashError> {
    file.persist(&path).map_err(|error| CrashError::of_file(&path)(error.error))?;
    Ok(path)
}

/// Returns where the names are that go with a core file.
fn symbols_path(core: &Path) -> PathBuf {
    let mut path = core.as_os_str().to_owned();
    path.push(".elf");
    path.into()
}
