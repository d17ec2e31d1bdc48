// SPDX-License-Identifier: Apache-2.0 OR MIT
//! References from node to node: which properties have them, and what follows each.
//!
//! The table is that of the generic bindings: a property's name leads to the `#…-cells` of the
//! provider. Properties that are not in it are taken for numbers.
#![forbid(unsafe_code)]

use super::{Budget, Problem};
use crate::tree::{NodeId, Tree};
use std::collections::HashMap;

/// More cells than any specifier has.
const CELLS_MAX: u32 = 16;

/// What a reference is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A clock.
    Clock,
    /// Clocks as they are set up before the device is used.
    AssignedClock,
    /// A reset line.
    Reset,
    /// A power domain.
    PowerDomain,
    /// A regulator.
    Supply,
    /// A state of pins.
    Pins,
    /// A GPIO line.
    Gpio,
    /// A phy.
    Phy,
    /// A channel of a DMA controller.
    Dma,
    /// An IOMMU.
    Iommu,
    /// A controller of message-signalled interrupts.
    Msi,
    /// Memory that is kept for the device.
    Memory,
    /// The other end of a connection between two devices.
    Endpoint,
    /// Something else of another device.
    Other,
}

/// How many cells follow the phandle.
#[derive(Clone, Copy, Debug)]
enum Follow {
    /// As many as the provider's property says.
    Cells(&'static str),
    /// As many as the provider's property says, or none where it says nothing.
    CellsOrNone(&'static str),
    /// So many.
    Fixed(usize),
    /// It is the second of four cells, as in `iommu-map`.
    Map,
}

use Follow::{Cells, CellsOrNone, Fixed, Map};

/// Properties by name.
const TABLE: [(&str, Kind, Follow); 51] = [
    ("access-controllers", Kind::Other, Cells("#access-controller-cells")),
    ("affinity", Kind::Other, Fixed(0)),
    ("assigned-clock-parents", Kind::AssignedClock, Cells("#clock-cells")),
    ("assigned-clocks", Kind::AssignedClock, Cells("#clock-cells")),
    ("backlight", Kind::Other, Fixed(0)),
    ("clocks", Kind::Clock, Cells("#clock-cells")),
    ("cooling-device", Kind::Other, Cells("#cooling-cells")),
    ("cpu", Kind::Other, Fixed(0)),
    ("cpu-idle-states", Kind::Other, Fixed(0)),
    ("dais", Kind::Other, Fixed(0)),
    ("ddc-i2c-bus", Kind::Other, Fixed(0)),
    ("dmas", Kind::Dma, Cells("#dma-cells")),
    ("extcon", Kind::Other, Fixed(0)),
    ("firmware", Kind::Other, Fixed(0)),
    ("gpio-ranges", Kind::Pins, Fixed(3)),
    ("hwlocks", Kind::Other, Cells("#hwlock-cells")),
    ("interconnects", Kind::Other, Cells("#interconnect-cells")),
    ("interrupt-affinity", Kind::Other, Fixed(0)),
    ("io-backends", Kind::Other, CellsOrNone("#io-backend-cells")),
    ("io-channels", Kind::Other, Cells("#io-channel-cells")),
    ("iommu-map", Kind::Iommu, Map),
    ("iommus", Kind::Iommu, Cells("#iommu-cells")),
    ("leds", Kind::Other, CellsOrNone("#led-cells")),
    ("mboxes", Kind::Other, Cells("#mbox-cells")),
    ("memory-region", Kind::Memory, Fixed(0)),
    ("mmc-pwrseq", Kind::Other, Fixed(0)),
    ("msi-map", Kind::Msi, Map),
    ("msi-parent", Kind::Msi, CellsOrNone("#msi-cells")),
    ("mux-controls", Kind::Other, Cells("#mux-control-cells")),
    ("next-level-cache", Kind::Other, Fixed(0)),
    ("nvmem", Kind::Other, Fixed(0)),
    ("nvmem-cells", Kind::Other, CellsOrNone("#nvmem-cell-cells")),
    ("operating-points-v2", Kind::Other, Fixed(0)),
    ("panel", Kind::Other, Fixed(0)),
    ("phy-handle", Kind::Other, Fixed(0)),
    ("phys", Kind::Phy, Cells("#phy-cells")),
    ("ports", Kind::Other, Fixed(0)),
    ("power-domains", Kind::PowerDomain, Cells("#power-domain-cells")),
    ("pwms", Kind::Other, Cells("#pwm-cells")),
    ("remote-endpoint", Kind::Endpoint, Fixed(0)),
    ("required-opps", Kind::Other, Fixed(0)),
    ("resets", Kind::Reset, Cells("#reset-cells")),
    ("shmem", Kind::Memory, Fixed(0)),
    ("sound-dai", Kind::Other, Cells("#sound-dai-cells")),
    ("sram", Kind::Other, Fixed(0)),
    ("syscon", Kind::Other, Fixed(0)),
    ("thermal-sensors", Kind::Other, Cells("#thermal-sensor-cells")),
    ("trigger-sources", Kind::Other, Cells("#trigger-source-cells")),
    ("trip", Kind::Other, Fixed(0)),
    ("usb-phy", Kind::Phy, Fixed(0)),
    ("wakeup-parent", Kind::Other, Fixed(0)),
];

/// A reference from a property to another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference {
    /// What it is for.
    pub kind: Kind,
    /// The property.
    pub property: String,
    /// Which entry of the property, from 0.
    pub index: usize,
    /// The node that it names.
    pub provider: NodeId,
    /// What follows.
    pub specifier: Vec<u32>,
}

/// The table, by name.
pub(super) struct Properties(HashMap<&'static str, (Kind, Follow)>);

impl Properties {
    pub fn new() -> Self {
        Self(TABLE.iter().map(|(name, kind, follow)| (*name, (*kind, *follow))).collect())
    }

    /// Returns what a property of this name has.
    fn get(&self, name: &str) -> Option<(Kind, Follow)> {
        if let Some(known) = self.0.get(name) {
            return Some(*known);
        }
        let numbered = |prefix| {
            name.strip_prefix(prefix).is_some_and(|n: &str| n.bytes().all(|b| b.is_ascii_digit()))
        };
        if numbered("pinctrl-") {
            return Some((Kind::Pins, Fixed(0)));
        }
        if name.ends_with("-supply") {
            return Some((Kind::Supply, Fixed(0)));
        }
        // `nr-gpios` and the like are numbers.
        let is_gpio = matches!(name, "gpio" | "gpios")
            || name.ends_with("-gpio")
            || (name.ends_with("-gpios") && !name.ends_with("nr-gpios"));
        is_gpio.then_some((Kind::Gpio, Cells("#gpio-cells")))
    }

    /// Adds the references that a node has; says what is wrong with each property.
    pub fn references(
        &self,
        tree: &Tree,
        id: NodeId,
        budget: &Budget,
        found: &mut Vec<Reference>,
        fault: &mut dyn FnMut((&str, Problem)),
    ) {
        // A hog's lines are its controller's own.
        let is_hog = tree.property(id, "gpio-hog").is_some();
        for (name, value) in tree.properties(id) {
            let Some((kind, follow)) = self.get(name) else { continue };
            if value.is_empty() || (is_hog && kind == Kind::Gpio) {
                continue;
            }
            let cells = tree.cells(id, name);
            let mut list = List { tree, rest: &cells, follow };
            let mut index = 0;
            loop {
                if budget.step().is_none() {
                    fault((name, Problem::TooMuch));
                    break;
                }
                match list.next() {
                    Ok(None) => break,
                    Ok(Some((Some(provider), specifier))) => found.push(Reference {
                        kind,
                        property: name.to_owned(),
                        index,
                        provider,
                        specifier: specifier.to_vec(),
                    }),
                    Ok(Some((None, _))) => {}
                    Err(problem) => {
                        fault((name, problem));
                        break;
                    }
                }
                index += 1;
            }
            if cells.is_empty() {
                fault((name, Problem::Malformed));
            }
        }
    }
}

/// The entries of a list of references.
struct List<'t, 'c> {
    tree: &'t Tree,
    rest: &'c [u32],
    follow: Follow,
}

/// An entry: the provider, or none where a place is left empty, and the specifier.
type One<'c> = (Option<NodeId>, &'c [u32]);

impl<'c> List<'_, 'c> {
    /// Takes the next entry.
    fn next(&mut self) -> Result<Option<One<'c>>, Problem> {
        let [first, behind @ ..] = self.rest else { return Ok(None) };
        if let Map = self.follow {
            let [_, phandle, _, _, behind @ ..] = self.rest else {
                return Err(Problem::Malformed);
            };
            let specifier = self.rest.get(2..3).unwrap_or_default();
            let provider = self.tree.by_phandle(*phandle).ok_or(Problem::Dangling)?;
            self.rest = behind;
            return Ok(Some((Some(provider), specifier)));
        }
        if *first == 0 {
            self.rest = behind;
            return Ok(Some((None, &[])));
        }
        let provider = self.tree.by_phandle(*first).ok_or(Problem::Dangling)?;
        let stated = |name| match self.tree.u32(provider, name) {
            Some(count) if count <= CELLS_MAX => usize::try_from(count).ok(),
            _ => None,
        };
        let count = match self.follow {
            Cells(name) => stated(name).ok_or(Problem::NoProvider)?,
            CellsOrNone(name) if self.tree.property(provider, name).is_none() => 0,
            CellsOrNone(name) => stated(name).ok_or(Problem::NoProvider)?,
            Fixed(count) => count,
            Map => return Err(Problem::Malformed),
        };
        let (specifier, behind) = behind.split_at_checked(count).ok_or(Problem::Malformed)?;
        self.rest = behind;
        Ok(Some((Some(provider), specifier)))
    }
}
