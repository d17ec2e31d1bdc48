// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What device models read of a guest's memory.
#![forbid(unsafe_code)]

use super::Vm;
use crate::addr::Ipa;
use crate::arch;
use crate::gic::{GuestTables, Unreadable};
use crate::memory::guest::Access;

impl GuestTables for Vm {
    fn read(&self, start: Ipa, bytes: &mut [u8]) -> Result<(), Unreadable> {
        let size = u64::try_from(bytes.len()).map_err(|_| Unreadable)?;
        let runs = self.memory.runs(start, size, Access::Read).map_err(|_| Unreadable)?;
        let mut rest = bytes;
        for run in runs {
            let from = self.loader.mapped(run).ok_or(Unreadable)?;
            let size = usize::try_from(run.size()).map_err(|_| Unreadable)?;
            let (part, behind) = rest.split_at_mut_checked(size).ok_or(Unreadable)?;
            arch::read_bytes(from, part);
            rest = behind;
        }
        Ok(())
    }
}
