// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a board's description says beyond its tree: memory that the firmware alone knows, clocks
//! that it sets, and where a tree misleads about DMA.
#![forbid(unsafe_code)]

use crate::explain::Code;
use crate::manifest::{Spanned, value};
use crate::message::{Mark, Message, Report, Source};
use crate::tree::{NodeId, Tree};
use cofferdam::addr::{Address, Pa, PaRange};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the planner needs to know of nodes beyond the tree. A node that the tree does not have is
/// passed over: the tree may be another one's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// Nodes that look like bus masters and are none.
    pub no_dma: Vec<NodeId>,
    /// Nodes that do not look like bus masters and are some.
    pub bus_masters: Vec<NodeId>,
    /// The frequencies in Hz of nodes' clocks, in the order of their `clocks`.
    pub clocks: Vec<(NodeId, Vec<u32>)>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct DmaSection {
    #[serde(default)]
    no_dma: Vec<String>,
    #[serde(default)]
    bus_masters: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BankSection {
    start: Spanned<u64>,
    size: Spanned<String>,
}

impl Hints {
    pub(super) fn new(tree: &Tree, dma: &DmaSection, clocks: &BTreeMap<String, Vec<u32>>) -> Self {
        let node = |name: &String| tree.resolve(name.strip_prefix('&').unwrap_or(name));
        let rates = |(name, rates): (&String, &Vec<u32>)| Some((node(name)?, rates.clone()));
        Self {
            no_dma: dma.no_dma.iter().filter_map(node).collect(),
            bus_masters: dma.bus_masters.iter().filter_map(node).collect(),
            clocks: clocks.iter().filter_map(rates).collect(),
        }
    }
}

/// Reads the banks of memory.
pub(super) fn banks(
    sections: &[BankSection],
    source: &Arc<Source>,
) -> Result<Vec<PaRange>, Report> {
    let bank = |section: &BankSection| {
        let wrong = |why: String| {
            Message::new(Code::E30, why).at(Mark::new(source, section.size.span(), ""))
        };
        let size =
            value::size(section.size.get_ref()).map_err(|wrong_size| wrong(wrong_size.why))?;
        let range = PaRange::new(Pa::new(*section.start.get_ref()), size);
        range.ok_or_else(|| wrong("no machine has memory there".into()))
    };
    let banks: Result<Vec<_>, Message> = sections.iter().map(bank).collect();
    banks.map_err(Report::from)
}
