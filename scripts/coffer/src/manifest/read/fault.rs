// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What goes wrong on purpose, of the table `[test]`.
#![forbid(unsafe_code)]

use super::Reader;
use cofferdam::plan::{FaultKind, FaultPlan, Name};
use toml::de::DeTable;

const KINDS: [(&str, FaultKind); 9] = [
    ("panic", FaultKind::Panic),
    ("write-to-text", FaultKind::WriteToText),
    ("execute-data", FaultKind::ExecuteData),
    ("stack-overflow", FaultKind::StackOverflow),
    ("serror", FaultKind::SError),
    ("logged", FaultKind::Logged),
    ("guest-serror", FaultKind::GuestSError),
    ("hang", FaultKind::Hang),
    ("stall", FaultKind::Stall),
];

impl Reader<'_> {
    /// Reads what goes wrong, where something does: of which VM, whose vCPU, after how many starts.
    pub(super) fn fault(&mut self, table: &DeTable<'_>) -> Option<Option<FaultPlan>> {
        // Where nothing goes wrong, what is said of it is checked all the same.
        let kind = match table.get("fault_at_start") {
            Some(value) => Some(self.choice(value, "fault_at_start", &KINDS)?),
            None => None,
        };
        let (mut vm, mut vcpu, mut after) = (Name::new(), 0, 0);
        if let Some(value) = table.get("fault_vm") {
            let name = self.string(value, "fault_vm")?;
            let Ok(name) = Name::try_from(&*name) else {
                return self.malformed(value, "fault_vm: no VM has such a name", None);
            };
            vm = name;
        }
        for (key, number) in [("fault_vcpu", &mut vcpu), ("fault_after", &mut after)] {
            if let Some(value) = table.get(key) {
                *number = self.small(value, key, 0..64)?;
            }
        }
        Some(kind.map(|kind| FaultPlan { kind, vm, vcpu, after }))
    }
}
