// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The rows of `stats`: what each vCPU of a VM counts, read while it runs on.
//!
//! A row is one line; what is 0 in all buckets of a row is no row. Other cores' counters are only
//! loaded, so that nobody notices.
#![forbid(unsafe_code)]

use crate::control::{Line, Row, StatsAt};
use crate::gic::Vredist;
use crate::id::VcpuId;
use crate::trace::{ExitCounters, ExitReason, InterruptKind};
use crate::vm::Vm;
use core::fmt::{self, Write};

/// Buckets in a row: with the largest numbers they fit a line.
const BUCKETS: usize = 4;
/// Rows of a histogram of 64 buckets.
const HISTOGRAM: u8 = 16;
const REASONS: [&str; 5] = ["call", "sysreg", "mmio", "irq", "fault"];
const KINDS: [&str; 4] = ["sgi", "ppi", "spi", "lpi"];

/// What is told of a vCPU, in this order; [`StatsAt::part`] counts it from 1, and 0 is the VM.
const EXITS: u8 = 1;
const TICKS: u8 = 2;
const INJECTED: u8 = 3;
const EXECUTED: u8 = 4;
const AT_EL2: u8 = 5;
const TO_ENTRY: u8 = AT_EL2 + HISTOGRAM;
const END: u8 = TO_ENTRY + HISTOGRAM;

/// Writes the next row of a VM, where there is one at this place, and moves on; none is left behind
/// the last vCPU.
pub(super) fn write_next(vm: &Vm, at: &mut StatsAt, line: &mut Line) -> Row {
    let StatsAt { vcpu, part, .. } = *at;
    if part == 0 {
        at.part = EXITS;
        return write_vm(vm, line).into();
    }
    let id = VcpuId::new(vcpu);
    let (Some(counters), Some(vredist)) = (vm.counters.get(id.index()), vm.vgic.vredist(id)) else {
        return Row::End;
    };
    at.part = part.wrapping_add(1);
    if at.part >= END {
        (at.vcpu, at.part) = (vcpu.saturating_add(1), EXITS);
    }
    let written = PartOf { vm, vcpu, counters, vredist }.write(part, line);
    written.map_or(Row::Passed, Row::from)
}

fn write_vm(vm: &Vm, line: &mut Line) -> fmt::Result {
    let bytes =
        vm.memory.chunks().iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.ipa.size()));
    write!(line, " what=vm vm={} memory_bytes={bytes}", vm.plan.name)
}

struct PartOf<'a> {
    vm: &'a Vm,
    vcpu: u8,
    counters: &'a ExitCounters,
    vredist: &'a Vredist,
}

impl PartOf<'_> {
    fn begin(&self, what: &str, line: &mut Line) -> fmt::Result {
        write!(line, " what={what} vm={} vcpu={}", self.vm.plan.name, self.vcpu)
    }

    /// Writes a row, where there is one.
    fn write(&self, part: u8, line: &mut Line) -> Option<fmt::Result> {
        let Self { counters, vredist, .. } = self;
        let reasons = || REASONS.into_iter().zip(ExitReason::ALL);
        Some(match part {
            EXITS => {
                let exits = reasons().map(|(name, reason)| (name, counters.get(reason).0));
                self.fields("exits", exits, line)
            }
            TICKS => {
                let ticks = reasons().map(|(name, reason)| (name, counters.get(reason).1));
                self.fields("ticks", ticks, line)
            }
            INJECTED => {
                let all = KINDS.into_iter().zip(InterruptKind::ALL).map(|(name, kind)| {
                    (name, counters.quick(kind).wrapping_add(vredist.injections.get(kind)))
                });
                self.fields("injected", all, line)
            }
            EXECUTED => {
                let ExitCounters { cycles, instructions, .. } = counters;
                let executed = [
                    ("cycles", cycles.get()),
                    ("instructions", instructions.get()),
                    ("to_entry_ticks", counters.to_entry_ticks()),
                ];
                self.fields("executed", executed.into_iter(), line)
            }
            AT_EL2..TO_ENTRY => {
                return self.buckets("at_el2", part - AT_EL2, |n| counters.at_el2(n), line);
            }
            _ => {
                let row = part.wrapping_sub(TO_ENTRY);
                return self.buckets("to_entry", row, |n| counters.to_entry(n), line);
            }
        })
    }

    fn fields<'a>(
        &self,
        what: &str,
        mut fields: impl Iterator<Item = (&'a str, u64)>,
        line: &mut Line,
    ) -> fmt::Result {
        self.begin(what, line)?;
        fields.try_for_each(|(name, value)| write!(line, " {name}={value}"))
    }

    fn buckets(
        &self,
        what: &str,
        row: u8,
        get: impl Fn(usize) -> u64,
        line: &mut Line,
    ) -> Option<fmt::Result> {
        let first = usize::from(row).wrapping_mul(BUCKETS);
        let counts: [u64; BUCKETS] = core::array::from_fn(|n| get(first.wrapping_add(n)));
        if counts == [0; BUCKETS] {
            return None;
        }
        let mut write = || {
            self.begin(what, line)?;
            let counts = (first..).zip(counts).filter(|(_, count)| *count != 0);
            counts.into_iter().try_for_each(|(n, count)| write!(line, " b{n}={count}"))
        };
        Some(write())
    }
}

#[cfg(test)]
mod tests;
