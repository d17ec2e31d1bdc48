// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer symbolize`: puts functions and source lines under the addresses of a hypervisor fault.
//!
//! The dump says where the image was (`base 0x…`); `pc`, `lr` and the frames `#n` are offsets from
//! there, or addresses above it. Return addresses point behind the call, so the byte before counts.
#![forbid(unsafe_code)]

use crate::command::Exit;
use crate::run::{self, Error};
use addr2line::Loader;
use object::{Object, ObjectSegment};
use regex::Regex;
use std::borrow::Cow;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Resolves the addresses in a hypervisor fault dump, read from standard input
#[derive(Clone, Debug, clap::Args)]
pub struct SymbolizeArgs {
    /// The ELF file of the image that printed the dump; found in the target folder unless told
    pub elf: Option<PathBuf>,
}

/// Carries out `coffer symbolize`.
///
/// # Errors
/// Says what does not read.
pub fn symbolize(args: &SymbolizeArgs) -> Result<Exit, Error> {
    let mut log = Vec::new();
    io::stdin().read_to_end(&mut log).map_err(Error::io("standard input"))?;
    let elf = args.elf.clone().unwrap_or_else(|| run::built("cofferdam"));
    let dump = resolve(&elf, &String::from_utf8_lossy(&log))?;
    print!("{}", dump.text);
    if dump.resolved_count == 0 {
        eprintln!("error: no address of {} in this log", elf.display());
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// A dump with its functions and lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The log, each resolved line followed by the functions it is in, the inlined ones first.
    pub text: String,
    /// How many addresses were resolved.
    pub resolved_count: usize,
}

/// Resolves the addresses of `log` with the symbols of the ELF file `elf`.
///
/// # Errors
/// Says what does not read.
pub fn resolve(elf: &Path, log: &str) -> Result<Resolved, Error> {
    let what = || elf.display().to_string();
    let broken = |why: String| Error::Io { what: what(), source: io::Error::other(why) };
    let loader = Loader::new(elf).map_err(|error| broken(error.to_string()))?;
    let file = std::fs::read(elf).map_err(Error::io(what()))?;
    let extent = extent(&file).map_err(|error| broken(error.to_string()))?;
    let frames = |offset| match extent.contains(&offset) {
        true => frames(&loader, offset),
        false => Vec::new(),
    };
    Ok(annotate(log, frames))
}

/// Copies `log` and puts what `frames` knows about an offset under the line that has it.
fn annotate(log: &str, frames: impl Fn(u64) -> Vec<String>) -> Resolved {
    let mut resolved = Resolved { text: String::new(), resolved_count: 0 };
    let base = log.lines().find_map(|line| number_behind(line, "base")).unwrap_or(0);
    for line in log.lines() {
        resolved.text.push_str(line);
        resolved.text.push('\n');
        for (place, address) in addresses(line) {
            let offset = address.checked_sub(base).unwrap_or(address);
            let found = frames(place.lookup(offset));
            resolved.resolved_count += usize::from(!found.is_empty());
            for frame in found {
                resolved.text.push_str(&format!("        {frame}\n"));
            }
        }
    }
    resolved
}

/// What an address of a dump is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// An instruction that did not complete.
    Instruction,
    /// The instruction behind a call.
    Return,
}

impl Place {
    /// Returns the offset whose function and line are meant.
    fn lookup(self, offset: u64) -> u64 {
        match self {
            Self::Instruction => offset,
            Self::Return => offset.saturating_sub(1),
        }
    }
}

/// Finds `pc 0x…`, `elr 0x…`, `lr 0x…` and `#n 0x…` in a line; frame 0 is where the fault happened.
fn addresses(line: &str) -> Vec<(Place, u64)> {
    let Ok(pattern) = Regex::new(r"(?:^|[\s,])(pc|elr|lr|#\d+)[ :=]+0x([0-9a-fA-F]+)") else {
        return Vec::new();
    };
    let found = pattern.captures_iter(line).filter_map(|found| {
        let place = match &found[1] {
            "pc" | "elr" | "#0" => Place::Instruction,
            _ => Place::Return,
        };
        Some((place, u64::from_str_radix(&found[2], 16).ok()?))
    });
    found.collect()
}

fn number_behind(line: &str, word: &str) -> Option<u64> {
    let rest = &line[line.find(&format!("{word} 0x"))? + word.len() + 3..];
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok()
}

/// Returns the functions at `offset` in the image, the innermost first.
fn frames(loader: &Loader, offset: u64) -> Vec<String> {
    let Some(address) = loader.relative_address_base().checked_add(offset) else {
        return Vec::new();
    };
    let mut frames = Vec::new();
    if let Ok(mut found) = loader.find_frames(address) {
        while let Ok(Some(frame)) = found.next() {
            let name = frame.function.as_ref().and_then(|name| name.demangle().ok());
            let location = frame.location.and_then(|l| Some(format!("{}:{}", l.file?, l.line?)));
            frames.push((name.map(Cow::into_owned), location));
        }
    }
    // The function that the inlined ones are in has its full name in the symbol table alone.
    let symbol = loader.find_symbol(address);
    let symbol = symbol.map(|name| addr2line::demangle_auto(name.into(), None).into_owned());
    match frames.last_mut() {
        Some((name, _)) => *name = symbol.or(name.take()),
        None => frames.push((symbol, None)),
    }
    let text = |(name, location): (Option<String>, Option<String>)| match (name, location) {
        (Some(name), Some(location)) => Some(format!("{name} at {location}")),
        (name, location) => name.or(location),
    };
    frames.into_iter().filter_map(text).collect()
}

/// Returns what the image takes in memory, as offsets from its first byte.
fn extent(file: &[u8]) -> Result<Range<u64>, object::Error> {
    let elf = object::File::parse(file)?;
    let base = elf.relative_address_base();
    let ends = elf.segments().map(|s| s.address().saturating_add(s.size()).saturating_sub(base));
    Ok(0..ends.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
        hypervisor fault on cpu 1, base 0x40200000\n\
        pc 0x1000 lr 0x2004\n\
        x0 0x3000 x1 0x4000\n\
        #0 0x1000\n\
        #1 0x40205008\n";

    #[test]
    fn code_addresses_are_resolved_and_data_is_left_alone() {
        let resolved = annotate(DUMP, |offset| vec![format!("f{offset:x}")]);
        let found: Vec<&str> =
            resolved.text.lines().filter(|l| l.starts_with("        f")).collect();
        let expected = ["f1000", "f2003", "f1000", "f5007"].map(|name| format!("        {name}"));
        assert_eq!(found, expected);
        assert_eq!(resolved.resolved_count, 4);
    }

    #[test]
    fn a_log_without_a_dump_comes_out_as_it_went_in() {
        let log = "[01] cofferdam\napp| pc is fine\n";
        let resolved = annotate(log, |_| vec!["f".into()]);
        assert_eq!(resolved, Resolved { text: log.into(), resolved_count: 0 });
    }

    #[test]
    fn this_program_resolves_its_own_functions() {
        // The address of a function in memory is no offset, so take one from the symbol table.
        let path = std::env::current_exe().unwrap();
        let loader = Loader::new(&path).unwrap();
        let file = std::fs::read(&path).unwrap();
        let elf = object::File::parse(&*file).unwrap();
        use object::ObjectSymbol;
        let symbol =
            elf.symbols().find(|s| s.name().unwrap_or("").contains("number_behind")).unwrap();
        let offset = symbol.address() - loader.relative_address_base();
        let resolved = resolve(&path, &format!("pc {offset:#x}\n")).unwrap();
        assert!(resolved.text.contains("symbolize::number_behind"), "{}", resolved.text);
        assert!(resolved.text.contains("symbolize.rs:"), "{}", resolved.text);
    }
}
