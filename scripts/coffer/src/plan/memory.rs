// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether the VMs' memory is what a VM can have, and whether the board has as much.
#![forbid(unsafe_code)]

use super::{Planner, layout};
use crate::board::Board;
use crate::bundle::Bundle;
use crate::explain::Code;
use crate::manifest::Vm;
use crate::message::{Message, bytes};
use cofferdam::addr::IpaRange;

/// What the planner sets aside for the hypervisor: image, stacks, tables, heap, the board's tree.
pub const HYPERVISOR_BYTES: u64 = 16 << 20;

impl Planner<'_> {
    /// Returns a VM's memory as the guest sees it.
    pub(super) fn memory(&mut self, vm: &Vm) -> Option<IpaRange> {
        let size = *vm.memory.get_ref();
        let here = self.manifest.mark(vm.memory.span(), "");
        if !size.is_multiple_of(layout::RAM_ALIGNMENT) {
            let message = Message::new(Code::E04, "a VM's memory is a multiple of 2M").at(here);
            let Some(rounded) = size.checked_next_multiple_of(layout::RAM_ALIGNMENT) else {
                return self.error(message);
            };
            return self.error(message.write(format!("memory = \"{}M\"", rounded >> 20)));
        }
        match IpaRange::new(layout::RAM, size) {
            Some(memory) => Some(memory),
            None => self.error(Message::new(Code::E13, "no board has so much memory").at(here)),
        }
    }

    /// Compares what all VMs, the hypervisor and the bundle take with what the board has.
    pub(super) fn check_memory(&mut self) {
        let available = available_bytes(self.board);
        let bundle = Bundle::approximate_bytes(&self.images.0);
        let mut needed = HYPERVISOR_BYTES.saturating_add(bundle);
        let mut over = None;
        for vm in &self.manifest.vms {
            needed = needed.saturating_add(*vm.memory.get_ref());
            if needed > available && over.is_none() {
                over = Some(vm);
            }
        }
        let Some(over) = over else { return };
        let vms: Vec<_> = self
            .manifest
            .vms
            .iter()
            .map(|vm| format!("{} {}", vm.name.get_ref(), bytes(*vm.memory.get_ref())))
            .collect();
        let text = format!(
            "{} + hypervisor {} + bundle {} = {}, but the board has {} of memory to give",
            vms.join(" + "),
            bytes(HYPERVISOR_BYTES),
            bytes(bundle),
            bytes(needed),
            bytes(available)
        );
        let mark = self.manifest.mark(over.memory.span(), "this passes the end");
        let excess = needed.saturating_sub(available).next_multiple_of(layout::RAM_ALIGNMENT);
        let mut message = Message::new(Code::E13, text).at(mark);
        if let Some(left) = over.memory.get_ref().checked_sub(excess).filter(|left| *left > 0) {
            message = message.write(format!("memory = \"{}M\", or less elsewhere", left >> 20));
        }
        self.report.push(message);
    }
}

/// Returns the bytes of memory that are not reserved.
pub(super) fn available_bytes(board: &Board) -> u64 {
    board.machine.memory_bytes().saturating_sub(board.machine.reserved_bytes)
}
