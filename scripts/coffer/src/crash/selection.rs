// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What of a guest's memory a backtrace needs: stacks, the code around each call, and the pages that
//! registers point to. A few hundred KiB, where all of it is most of an hour on a serial line.
#![forbid(unsafe_code)]

use super::backtrace::Frame;
use super::translate::{Mappings, Run, translate};
use super::{Memory, PAGE_U64, Registers};
use std::collections::BTreeMap;
use std::io;

/// How much is taken from the stack pointer on: the size of a kernel's stack.
const STACK_BYTES: u64 = 16 << 10;

/// A vCPU, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// Its registers.
    pub registers: &'a Registers,
    /// The calls that it is in.
    pub frames: &'a [Frame],
    /// What all of its registers hold: some of it are addresses.
    pub pointers: &'a [u64],
}

impl Around<'_> {
    /// Returns addresses, each of which stands for its page.
    fn addresses(&self) -> Vec<u64> {
        let Registers { sp, .. } = self.registers;
        let stack = (0..STACK_BYTES / PAGE_U64).map(|n| sp.wrapping_add(n * PAGE_U64));
        // What a function keeps lies behind its record, and what it runs around the call.
        let calls = self.frames.iter().flat_map(|frame| {
            let record = frame.record.into_iter();
            record.flat_map(|at| [at, at.wrapping_add(PAGE_U64)]).chain([frame.lookup()])
        });
        stack.chain(calls).chain(self.pointers.iter().copied()).collect()
    }
}

/// Lists these pages by virtual address. Where two vCPUs have different pages at an address, the
/// first one's is taken.
///
/// # Errors
/// The memory cannot be read.
pub fn for_backtraces(memory: &mut impl Memory, vcpus: &[Around<'_>]) -> io::Result<Mappings> {
    let ranges = memory.ranges();
    let mut pages = BTreeMap::new();
    for vcpu in vcpus {
        for address in vcpu.addresses() {
            let va = vcpu.registers.without_tag(address) & !(PAGE_U64 - 1);
            if pages.contains_key(&va) {
                continue;
            }
            let found = translate(memory, vcpu.registers, va)?;
            if let Some(ipa) = found.filter(|ipa| ranges.iter().any(|range| range.contains(ipa))) {
                pages.insert(va, ipa);
            }
        }
    }
    let mut mappings = Mappings::default();
    for (va, ipa) in pages {
        mappings.add(Run { va, ipa, bytes: PAGE_U64 });
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{REGIMES, Ram, Tables};
    use super::*;

    #[test]
    fn stacks_code_and_what_registers_point_to_are_taken() {
        const RAM: u64 = 0x4000_0000;
        let regime = REGIMES[1];
        let mut ram = Ram::new(RAM, 64);
        let mut tables = Tables::new(regime, &ram);
        let base = regime.base();
        for page in 0..16 {
            tables.map(&mut ram, base + page * 0x1000, RAM + page * 0x1000, 0);
        }
        // Mapped, and no memory.
        tables.map(&mut ram, base + 0x20_0000, 0x900_0000, 0);
        let mut registers = tables.registers();
        registers.sp = base + 0x2ff0;
        let frames = [
            Frame { pc: base + 0x8010, is_return: false, record: None },
            Frame { pc: base + 0xa000, is_return: true, record: Some(base + 0xe000) },
        ];
        let pointers = [0, base + 0xb123, base + 0xb456, base + 0x20_0000, u64::MAX, base - 1];
        let around = Around { registers: &registers, frames: &frames, pointers: &pointers };
        let found = for_backtraces(&mut ram, &[around, around]).unwrap();
        let pages = |first: u64, count: u64| Run {
            va: base + first * 0x1000,
            ipa: RAM + first * 0x1000,
            bytes: count * 0x1000,
        };
        // The stack, PC, in front of where a call returns to with the pointers, the record.
        let expected = [pages(2, 4), pages(8, 2), pages(0xb, 1), pages(0xe, 2)];
        assert_eq!(found, Mappings { runs: expected.to_vec(), is_cut: false });
    }
}
