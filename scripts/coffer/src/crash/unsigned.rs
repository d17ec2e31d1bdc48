// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory in which the return addresses of some calls have no pointer-authentication codes.
//!
//! A debugger that does not know the code's bits, as `gdb` of a core file of a kernel, follows a
//! signed address nowhere. Only the frame records of backtraces are changed.
#![forbid(unsafe_code)]

use super::backtrace::Frame;
use super::translate::translate;
use super::{Memory, PAGE, PAGE_U64, Page, Registers};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Where a frame record has the return address.
const RETURN_AT: u64 = 8;

/// Memory with other return addresses.
#[derive(Debug)]
pub struct Unsigned<'a, M> {
    memory: &'a mut M,
    /// By the address of the word.
    words: BTreeMap<u64, u64>,
}

impl<'a, M: Memory> Unsigned<'a, M> {
    /// Reads `memory`, all of whose words are as they are.
    pub fn new(memory: &'a mut M) -> Self {
        Self { memory, words: BTreeMap::new() }
    }

    /// Takes the codes off the return addresses of a backtrace.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn add(&mut self, registers: &Registers, frames: &[Frame]) -> io::Result<()> {
        for Frame { pc, record, .. } in frames {
            let Some(record) = record else { continue };
            let at = record.wrapping_add(RETURN_AT);
            if let Some(ipa) = translate(self.memory, registers, at)? {
                self.words.insert(ipa, *pc);
            }
        }
        Ok(())
    }
}

impl<M: Memory> Memory for Unsigned<'_, M> {
    fn ranges(&self) -> Vec<Range<u64>> {
        self.memory.ranges()
    }
    fn page(&mut self, ipa: u64) -> io::Result<Page> {
        let page = self.memory.page(ipa)?;
        let Page::Bytes(bytes) = &page else { return Ok(page) };
        let mut bytes = bytes.to_vec();
        bytes.resize(PAGE, 0);
        for (at, word) in self.words.range(ipa..ipa.saturating_add(PAGE_U64)) {
            let offset = usize::try_from(at - ipa).unwrap_or(PAGE);
            if let Some(place) = bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
                *place = word.to_le_bytes();
            }
        }
        Ok(Page::Bytes(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::backtrace::backtrace;
    use super::super::samples::{REGIMES, Ram, Tables};
    use super::*;

    #[test]
    fn return_addresses_alone_lose_their_codes() {
        const RAM: u64 = 0x4000_0000;
        const CODE: u64 = 0x45 << 48;
        let regime = REGIMES[1];
        let base = regime.base();
        let mut ram = Ram::new(RAM, 64);
        let mut tables = Tables::new(regime, &ram);
        for page in 0..2 {
            tables.map(&mut ram, base + page * 0x1000, RAM + page * 0x1000, 0);
        }
        // The codes are in bits 54:48: bit 55 says which half it is.
        let signed = |pc: u64| pc ^ CODE;
        ram.write(RAM + 0xff0, &[base + 0x1000, signed(base + 0x104)]);
        ram.write(RAM + 0x1000, &[0, signed(base + 0x204), signed(base + 0x304)]);
        let mut registers = tables.registers();
        registers.x[29] = base + 0xff0;
        let frames = backtrace(&mut ram, &registers).unwrap();
        let before: Vec<_> = (0..2).map(|n| ram.page(RAM + n * 0x1000).unwrap()).collect();
        let mut memory = Unsigned::new(&mut ram);
        assert_eq!(memory.page(RAM).unwrap(), before[0]);
        memory.add(&registers, &frames).unwrap();
        let after: Vec<_> = (0..2).map(|n| memory.page(RAM + n * 0x1000).unwrap()).collect();
        let word = |pages: &[Page], at: usize| {
            let Page::Bytes(bytes) = &pages[at / PAGE] else { panic!("it is not zero") };
            u64::from_le_bytes(bytes[at % PAGE..at % PAGE + 8].try_into().unwrap())
        };
        assert_eq!([0xff8, 0x1008].map(|at| word(&after, at)), [base + 0x104, base + 0x204]);
        assert_ne!(word(&before, 0xff8), base + 0x104);
        for same in [0xff0, 0x1000, 0x1010] {
            assert_eq!(word(&after, same), word(&before, same), "{same:#x}");
        }
    }
}
