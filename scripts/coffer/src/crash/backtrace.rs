// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Backtraces by frame records (the AAPCS64's chain of X29), of a kernel that runs or has run.
#![forbid(unsafe_code)]

use super::{Memory, Registers, read_virtual};
use std::io;

/// The most frames of a backtrace.
const FRAMES_MAX: usize = 64;

/// A function call that has not returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The instruction: the next one in the innermost frame, the one behind the call in others.
    pub pc: u64,
    /// Whether `pc` is behind a call.
    pub is_return: bool,
    /// Where the record is that it was found in.
    pub record: Option<u64>,
}

impl Frame {
    /// Returns an address within the instruction that is meant, to look its function up.
    #[must_use]
    pub fn lookup(&self) -> u64 {
        self.pc.wrapping_sub(u64::from(self.is_return))
    }
}

/// Returns the calls that a vCPU is in, the innermost first.
///
/// The chain ends where it ends, at memory that is not there, or where a record repeats itself:
/// stacks of a kernel follow one another in no order, but each record is visited once.
///
/// # Errors
/// The memory cannot be read.
pub fn backtrace(memory: &mut impl Memory, registers: &Registers) -> io::Result<Vec<Frame>> {
    let mut frames = vec![Frame { pc: registers.pc, is_return: false, record: None }];
    let mut visited = Vec::new();
    let mut record = registers.x[29];
    while frames.len() < FRAMES_MAX
        && record != 0
        && record.is_multiple_of(8)
        && !visited.contains(&record)
    {
        visited.push(record);
        let mut bytes = [0; 16];
        if !read_virtual(memory, registers, record, &mut bytes)? {
            break;
        }
        let [next, pc] = [0, 8].map(|at| {
            let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
            u64::from_le_bytes(word.unwrap_or_default())
        });
        if pc == 0 {
            break;
        }
        let pc = registers.without_tag(pc);
        frames.push(Frame { pc, is_return: true, record: Some(record) });
        record = next;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Ram, flat};
    use super::*;

    fn pcs(ram: &mut Ram, registers: &Registers) -> Vec<u64> {
        backtrace(ram, registers).unwrap().iter().map(|frame| frame.pc).collect()
    }

    #[test]
    fn the_chain_is_followed_to_its_end() {
        let mut ram = Ram::new(0x4000_0000, 4);
        ram.write(0x4000_1000, &[0x4000_1100, 0x4000_0104]);
        ram.write(0x4000_1100, &[0x4000_0f00, 0x4000_0204]);
        ram.write(0x4000_0f00, &[0, 0x4000_0304]);
        let mut registers = flat();
        registers.pc = 0x4000_0010;
        registers.x[29] = 0x4000_1000;
        let expected = [0x4000_0010, 0x4000_0104, 0x4000_0204, 0x4000_0304];
        assert_eq!(pcs(&mut ram, &registers), expected);
        let frames = backtrace(&mut ram, &registers).unwrap();
        assert_eq!((frames[0].lookup(), frames[1].lookup()), (0x4000_0010, 0x4000_0103));
    }

    #[test]
    fn a_chain_without_end_or_in_no_memory_ends() {
        let mut ram = Ram::new(0x4000_0000, 4);
        ram.write(0x4000_1000, &[0x4000_1100, 1]);
        ram.write(0x4000_1100, &[0x4000_1000, 2]);
        let mut registers = flat();
        registers.x[29] = 0x4000_1000;
        assert_eq!(pcs(&mut ram, &registers), [0, 1, 2]);
        for record in [4, u64::MAX, u64::MAX - 7, 0x4000_0000 - 8, 0x4000_4000 - 8] {
            registers.x[29] = record;
            assert_eq!(pcs(&mut ram, &registers), [0], "{record:#x}");
        }
        // As long as there is memory, with an upper bound.
        for n in 0..200 {
            ram.write(0x4000_0000 + 16 * n, &[0x4000_0000 + 16 * (n + 1), n + 1]);
        }
        registers.x[29] = 0x4000_0000;
        assert_eq!(pcs(&mut ram, &registers).len(), FRAMES_MAX);
    }
}
