// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether a device may write to memory by itself, as far as a tree says.
#![forbid(unsafe_code)]

use super::{Closure, Kind};
use crate::tree::NodeId;

/// Generic names (Devicetree Specification 0.4, 2.2.2, and Linux' bindings) of devices that cores
/// work register by register.
const PROGRAMMED: [&str; 45] = [
    "adc",
    "clock",
    "clock-controller",
    "counter",
    "dac",
    "efuse",
    "eeprom",
    "gpio",
    "hdmi-phy",
    "hwlock",
    "i2c",
    "i2c-mux",
    "interrupt-controller",
    "keypad",
    "mailbox",
    "mux-controller",
    "nvmem",
    "otp",
    "pcie-phy",
    "phy",
    "pinctrl",
    "pinmux",
    "power-controller",
    "power-domain",
    "power-management",
    "pwm",
    "regulator",
    "reset-controller",
    "rng",
    "rtc",
    "saradc",
    "sata-phy",
    "serial",
    "spi",
    "sram",
    "syscon",
    "system-controller",
    "temperature-sensor",
    "thermal",
    "thermal-sensor",
    "timer",
    "tsadc",
    "usb-phy",
    "usb2phy",
    "watchdog",
];

/// How a device reaches memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dma {
    /// Not at all.
    None,
    /// Through channels of a DMA controller alone: not at all without these.
    Dropped,
    /// It may be a bus master: nothing says that it is not.
    Possible,
    /// It is a bus master behind an IOMMU.
    Iommu,
}

impl Dma {
    /// Returns whether it may write to memory by itself.
    #[must_use]
    pub const fn is_master(self) -> bool {
        matches!(self, Self::Possible | Self::Iommu)
    }

    /// Returns what is said of it in reports.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dropped => "none (dmas dropped)",
            Self::Possible => "possible: nothing in the tree says that it is no bus master",
            Self::Iommu => "bus master behind an IOMMU, which nobody programs yet",
        }
    }
}

impl Closure<'_> {
    /// Returns how a unit reaches memory: as the worst of what has registers in it does. A tree
    /// can mislead; `no_dma` are the nodes of which the board's description knows better, and
    /// `masters` those that look harmless and are not.
    #[must_use]
    pub fn dma(&self, unit: NodeId, no_dma: &[NodeId], masters: &[NodeId]) -> Dma {
        let nodes = self.subtree(unit);
        let has_registers = |id: &NodeId| *id == unit || !self.facts(*id).registers.is_empty();
        let of = |id: NodeId| {
            if masters.contains(&id) {
                Dma::Possible
            } else if no_dma.contains(&id) {
                Dma::None
            } else {
                self.own_dma(id)
            }
        };
        nodes.into_iter().filter(has_registers).map(of).max().unwrap_or(Dma::None)
    }

    fn own_dma(&self, id: NodeId) -> Dma {
        let has = |kind| self.facts(id).references.iter().any(|found| found.kind == kind);
        let has_property = |name| self.tree.property(id, name).is_some();
        if has(Kind::Iommu) || has_property("iommus") || has_property("iommu-map") {
            return Dma::Iommu;
        }
        let is_programmed = PROGRAMMED.contains(&self.tree.generic_name(id));
        let says_otherwise = has_property("dma-coherent")
            || has_property("memory-region")
            || has_property("dma-ranges")
            || has_property("#dma-cells");
        match (says_otherwise, has_property("dmas"), is_programmed) {
            (true, _, _) => Dma::Possible,
            (false, true, _) => Dma::Dropped,
            (false, false, true) => Dma::None,
            (false, false, false) => Dma::Possible,
        }
    }
}
