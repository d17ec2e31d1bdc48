// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupt specifiers of the GIC (bindings `arm,gic.yaml` and `arm,gic-v3.yaml`).
#![forbid(unsafe_code)]

use super::Interrupt;
use super::walk::{Properties, Walk};
use crate::bits::Trigger;
use crate::id::Pintid;
use crate::spec::dtb::{FdtNode, value};

/// A node's interrupts before it is known which controller is the GIC.
#[derive(Clone, Copy, Default)]
pub(super) struct Specifiers<'a> {
    /// Of `interrupts`.
    plain: Option<&'a [u8]>,
    /// Of `interrupts-extended`, which counts before `interrupts`.
    extended: Option<&'a [u8]>,
    names: Option<&'a [u8]>,
    parent: Option<u32>,
}

/// What specifiers for the GIC look like.
#[derive(Clone, Copy)]
pub(super) struct Domain {
    /// The GIC, as others refer to it.
    pub phandle: Option<u32>,
    /// The cells in a specifier: 3 or 4.
    pub cells: usize,
}

impl<'a> Specifiers<'a> {
    /// Notes the interrupts of the node that the walk has reached.
    pub fn new(walk: &Walk<'a>, node: FdtNode<'_, 'a>, properties: &Properties<'a>) -> Self {
        let property = |name| node.property(name).map(|property| property.value);
        Self {
            plain: properties.interrupts,
            extended: property("interrupts-extended"),
            names: property("interrupt-names"),
            parent: walk.interrupt_parent(),
        }
    }

    /// Reads the interrupt of this index; `None` when there is none, or it is not one of the GIC's
    /// PPIs and SPIs.
    pub fn get(&self, domain: Domain, index: usize) -> Option<Interrupt> {
        let own = |phandle: Option<u32>| phandle.is_some() && phandle == domain.phandle;
        let (words, stride) = match self.extended {
            Some(value) => (value, domain.cells + 1),
            None if own(self.parent) => (self.plain?, domain.cells),
            None => return None,
        };
        let mut words = words.chunks_exact(4).filter_map(value::cell).skip(index * stride);
        // Entries for other controllers have other lengths: what follows one cannot be found.
        if self.extended.is_some() && !own(words.next()) {
            return None;
        }
        Interrupt::decode([words.next()?, words.next()?, words.next()?])
    }

    /// Returns the index of the interrupt of this name, or `default` where the node has no names.
    pub fn index(&self, name: &str, default: usize) -> Option<usize> {
        match self.names {
            Some(names) => value::texts(names).position(|this| this == name),
            None => Some(default),
        }
    }

    /// Reads the GIC's own interrupt, which is its maintenance interrupt whatever its parent.
    pub fn own(&self, domain: Domain) -> Option<Interrupt> {
        let own = Self { parent: Some(0), ..*self };
        own.get(Domain { phandle: Some(0), ..domain }, 0)
    }
}

impl Interrupt {
    /// Decodes type, number and flags of a specifier; `None` where that is no SPI or PPI.
    #[must_use]
    pub fn decode([kind, number, flags]: [u32; 3]) -> Option<Self> {
        let pintid = match (kind, number) {
            (0, 0..=987) => number + 32,
            (1, 0..=15) => number + 16,
            // Extended ranges, or nothing.
            _ => return None,
        };
        let trigger = match flags & 0xf {
            1 | 2 => Trigger::Edge,
            4 | 8 => Trigger::Level,
            _ => return None,
        };
        Some(Self { pintid: Pintid::new(pintid), trigger })
    }

    /// Returns the interrupt if it is a PPI.
    pub(super) fn ppi(self) -> Option<Self> {
        (16..32).contains(&self.pintid.get()).then_some(self)
    }
}
