// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What keeps a unit from being given to the VM that is to have it.
#![forbid(unsafe_code)]

use super::{Refusal, Shares};
use crate::closure::{Kind, Line};
use crate::explain::Code;
use crate::message::quote;
use crate::tree::NodeId;
use cofferdam::addr::PaRange;
use cofferdam::plan::machine::Interrupt;

impl Shares<'_> {
    /// Returns the pages of a unit's registers.
    pub(super) fn pages(&self, unit: NodeId) -> Vec<PaRange> {
        let nodes = self.parts(unit).into_iter().map(|id| self.closure.facts(id));
        nodes.flat_map(|facts| &facts.registers).filter_map(|range| range.page_cover()).collect()
    }

    /// Returns for whom the machine keeps pages of a unit.
    pub(super) fn held_by(&self, unit: NodeId) -> Option<&str> {
        let pages = self.pages(unit);
        let held = self.held.iter().find(|(_, held)| pages.iter().any(|own| own.overlaps(*held)));
        held.map(|(holder, _)| holder.as_str())
    }

    /// Returns what keeps the owner of a unit from having it.
    pub(super) fn obstacle(&self, unit: NodeId) -> Option<Refusal> {
        let vm = self.owner(unit)?;
        let name = quote(&self.called(unit));
        if let Some(holder) = self.held_by(unit) {
            let text = format!("{name} is in pages that the hypervisor keeps for {holder}");
            return Some(Refusal::new(Code::E18, text));
        }
        let pages = self.pages(unit);
        let neighbour = pages.iter().find_map(|range| self.neighbour(vm, unit, *range));
        neighbour.or_else(|| self.line_obstacle(vm, unit)).or_else(|| self.unknown_clock(vm, unit))
    }

    /// Refuses pages in which somebody else has registers. What is switched off counts where it
    /// could do DMA: the hardware is there all the same.
    fn neighbour(&self, vm: usize, unit: NodeId, pages: PaRange) -> Option<Refusal> {
        let other = self.closure.on_pages(pages).find_map(|id| {
            let other = self.closure.facts(id).unit?;
            let is_free = self.owner(other).is_none();
            let is_foreign = self.owner(other) != Some(vm) && other != unit;
            let is_on = self.closure.facts(id).is_enabled;
            (is_foreign && (!is_free || is_on || self.dma(other).is_master())).then_some(id)
        })?;
        let text = format!(
            "{} and {} share page {:#x}",
            quote(&self.called(unit)),
            quote(&self.tree().path(other)),
            cofferdam::addr::Address::get(pages.start())
        );
        Some(Refusal::new(Code::E21, text))
    }

    fn line_obstacle(&self, vm: usize, unit: NodeId) -> Option<Refusal> {
        let name = quote(&self.called(unit));
        let no = |why: &str| Some(Refusal::new(Code::E18, format!("{name} {why}")));
        for part in self.parts(unit) {
            let facts = self.closure.facts(part);
            if !facts.mapped_lines.is_empty() {
                return no("passes interrupts of others on, which is not supported yet");
            }
            for line in &facts.lines {
                if line.end == self.board.machine.gic.node {
                    if let Some(why) = self.spi_obstacle(vm, unit, line) {
                        return Some(why);
                    }
                } else if !self.has(vm, line.end) && part == unit {
                    let path = self.tree().path(line.end);
                    return no(&format!("has an interrupt that goes through {path}"));
                }
            }
        }
        None
    }

    fn spi_obstacle(&self, vm: usize, unit: NodeId, line: &Line) -> Option<Refusal> {
        let name = quote(&self.called(unit));
        let no = |why: &str| Some(Refusal::new(Code::E18, format!("{name} {why}")));
        let [0, spi, ..] = *line.cells else { return no("has an interrupt that is not an SPI") };
        if spi_of(line).is_none() {
            return no("has an interrupt that is no SPI of the GIC, by edge or by level");
        }
        let mut others = self.closure.on_interrupt(line.end, &line.cells);
        let sharer = others.find(|other| {
            let other = self.closure.facts(*other).unit;
            other != Some(unit) && other.and_then(|other| self.owner(other)) != Some(vm)
        })?;
        let sharer = quote(&self.tree().path(sharer));
        let text = format!("{name} and {sharer} share SPI {spi}; one interrupt cannot serve two");
        Some(Refusal::new(Code::E21, text))
    }

    /// Refuses a unit one of whose clocks would have to be described to the guest and cannot.
    fn unknown_clock(&self, vm: usize, unit: NodeId) -> Option<Refusal> {
        let parts = self.parts(unit).into_iter();
        let clocks = parts.flat_map(|id| {
            let clocks = &self.closure.facts(id).references;
            clocks.iter().filter(|one| one.kind == Kind::Clock).map(move |clock| (id, clock))
        });
        let (user, clock) = clocks
            .into_iter()
            .find(|(id, clock)| !self.has(vm, clock.provider) && self.rate(*id, clock).is_none())?;
        let text = format!(
            "{} has a clock that is not fixed: the board's tree does not say how fast {} runs it",
            quote(&self.called(unit)),
            quote(&self.tree().path(clock.provider))
        );
        let mut refusal = Refusal::new(Code::E18, text);
        let path = self.tree().path(user);
        refusal.write = Some(format!("in board.toml: [clocks] \"{path}\" = [hertz of each clock]"));
        Some(refusal)
    }
}

/// Returns the SPI that a line of the GIC is.
pub(super) fn spi_of(line: &Line) -> Option<Interrupt> {
    let [0, spi, flags, ..] = *line.cells else { return None };
    Interrupt::decode([0, spi, flags])
}
