// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which devices of the board can be given to a guest, and how the guest sees them.
//!
//! Only devices that stand for themselves: registers in pages of their own, SPIs of their own,
//! fixed clocks and surely no DMA. The list of what is understood is closed: a property that is
//! not in it refuses the device by name.
#![forbid(unsafe_code)]

use super::layout::{DEVICE_INTERRUPTS, DEVICES};
use crate::board::Board;
use crate::explain::Code;
use crate::message::{nearest, quote};
use crate::tree::guest::GuestDevice;
use crate::tree::{NodeId, Tree};
use cofferdam::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use cofferdam::id::Vintid;
use cofferdam::plan::machine::{self, Interrupt};
use cofferdam::plan::{DevicePlan, List, Path, REGIONS_MAX, SpiPlan};

/// Arm's PrimeCells that have no bus master. Whatever is not here may do DMA.
const WITHOUT_DMA: [&str; 6] =
    ["arm,pl011", "arm,pl031", "arm,pl050", "arm,pl061", "arm,sp804", "arm,sp805"];
/// Properties that mean the same to the guest as to the board.
const COPIED: [&str; 12] = [
    "compatible",
    "clock-names",
    "clock-frequency",
    "current-speed",
    "interrupt-names",
    "label",
    "reg-io-width",
    "reg-names",
    "reg-shift",
    "arm,primecell-periphid",
    "gpio-controller",
    "#gpio-cells",
];
/// Properties that are written anew or are for the board alone.
const REPLACED: [&str; 7] =
    ["reg", "interrupts", "interrupt-parent", "clocks", "phandle", "linux,phandle", "status"];

/// Why a device cannot be given away.
#[derive(Debug)]
pub struct Refusal {
    /// The kind of error.
    pub code: Code,
    /// What is wrong.
    pub text: String,
    /// What to write instead.
    pub write: Option<String>,
}

fn refuse<T>(code: Code, text: String) -> Result<T, Refusal> {
    Err(Refusal { code, text, write: None })
}

/// The next free addresses and interrupts of one VM.
#[derive(Debug)]
pub struct Window {
    next: Ipa,
    next_interrupt: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { next: DEVICES.0, next_interrupt: DEVICE_INTERRUPTS }
    }
}

impl Window {
    fn take(&mut self, size: u64) -> Option<Ipa> {
        let start = self.next;
        self.next = start.checked_add(size).filter(|end| *end <= DEVICES.1)?;
        Some(start)
    }
}

/// Finds the device that a manifest names.
///
/// # Errors
/// There is none; names what was meant.
pub fn find(tree: &Tree, name: &str) -> Result<NodeId, Refusal> {
    let label = name.strip_prefix('&');
    let found = match label {
        Some(label) if !label.starts_with('/') => tree.resolve(label),
        _ if name.starts_with('/') => tree.find(name),
        _ => None,
    };
    if let Some(node) = found.filter(|node| *node != tree.root()) {
        return Ok(node);
    }
    let write = match label {
        None if !name.starts_with('/') && tree.resolve(name).is_some() => {
            Some(format!("\"&{name}\""))
        }
        None if !name.starts_with('/') => Some("\"&label\" or \"/full/path\"".into()),
        Some(label) => nearest(label, tree.labels()).map(|near| format!("\"&{near}\"")),
        None => {
            let paths: Vec<String> = tree.all().map(|id| tree.path(id)).collect();
            nearest(name, paths.iter().map(String::as_str)).map(|near| format!("\"{near}\""))
        }
    };
    let text = format!("the board has no device {}", quote(name));
    Err(Refusal { code: Code::E16, text, write })
}

/// Works out how a guest gets the device, or why it cannot.
///
/// # Errors
/// Says what stands in the way.
pub fn assign(
    board: &Board,
    name: &str,
    node: NodeId,
    window: &mut Window,
) -> Result<(DevicePlan, GuestDevice), Refusal> {
    let tree = &board.tree;
    stands_for_itself(board, name, node)?;
    let clocks = clocks(tree, name, node)?;
    let (regions, registers) = regions(tree, name, node, window)?;
    let interrupts = interrupts(board, name, node, window)?;
    let spis = interrupts.iter().map(|(spi, _)| *spi).collect();
    let path = tree.path(node);
    let Ok(path) = Path::try_from(path.as_str()) else {
        return refuse(Code::E18, format!("the path {} is too long for a plan", quote(&path)));
    };
    let (Some(regions), Some(spis)) = (List::new(regions), List::new(spis)) else {
        let text = format!("{} has more than {REGIONS_MAX} regions or interrupts", quote(name));
        return refuse(Code::E18, text);
    };
    let value = |name| tree.property(node, name).unwrap_or_default();
    let fingerprint = machine::fingerprint(&tree.path(node), value("compatible"), value("reg"));
    let plan = DevicePlan { path, fingerprint, regions, interrupts: spis };
    let copied = tree.properties(node).filter(|(name, _)| COPIED.contains(name));
    let guest = GuestDevice {
        name: tree.name(node).split('@').next().unwrap_or("device").into(),
        registers,
        interrupts: interrupts.iter().map(|(spi, flags)| (spi.vintid.get(), *flags)).collect(),
        clocks,
        properties: copied.map(|(name, value)| (name.into(), value.into())).collect(),
    };
    Ok((plan, guest))
}

fn stands_for_itself(board: &Board, name: &str, node: NodeId) -> Result<(), Refusal> {
    let tree = &board.tree;
    let no = |why: String| refuse(Code::E18, format!("{} {why}", quote(name)));
    if board.machine.uart.as_ref().is_some_and(|uart| uart.node == node) {
        return no("is the console's UART, which the hypervisor keeps".into());
    }
    if !tree.is_enabled(node) {
        return no("is switched off in the board's tree (status)".into());
    }
    let compatible = tree.text(node, "compatible").unwrap_or("nothing");
    if !WITHOUT_DMA.iter().any(|known| tree.is_compatible(node, known)) {
        let compatible = quote(compatible);
        return no(format!("({compatible}) may do DMA, which this version cannot confine"));
    }
    if let Some(child) = tree.children(node).first() {
        return no(format!("has nodes below it ({}): not supported yet", quote(tree.name(*child))));
    }
    let understood = |name: &str| COPIED.contains(&name) || REPLACED.contains(&name);
    if let Some((property, _)) = tree.properties(node).find(|(name, _)| !understood(name)) {
        return no(format!("needs what its property {} says: not supported yet", quote(property)));
    }
    Ok(())
}

/// Returns the frequencies of the device's clocks, which all have to be fixed ones.
fn clocks(tree: &Tree, name: &str, node: NodeId) -> Result<Vec<u32>, Refusal> {
    let frequency = |phandle: u32| {
        let clock = tree.by_phandle(phandle)?;
        tree.is_compatible(clock, "fixed-clock").then(|| tree.u32(clock, "clock-frequency"))?
    };
    tree.cells(node, "clocks")
        .into_iter()
        .map(|phandle| match frequency(phandle) {
            Some(hz) => Ok(hz),
            None => refuse(Code::E18, format!("{} has a clock that is not fixed", quote(name))),
        })
        .collect()
}

type Regions = (Vec<(PaRange, Ipa)>, Vec<IpaRange>);

fn regions(tree: &Tree, name: &str, node: NodeId, window: &mut Window) -> Result<Regions, Refusal> {
    let no = |why: &str| refuse(Code::E18, format!("{} {why}", quote(name)));
    let Some(registers) = tree.registers(node) else {
        return no("has no registers that a core can reach");
    };
    let (mut regions, mut seen) = (Vec::new(), Vec::new());
    for (start, size) in registers {
        let range = PaRange::new(Pa::new(start), size).and_then(|range| {
            let pages = range.page_cover()?;
            let at = window.take(pages.size())?;
            let offset = start.checked_sub(pages.start().get())?;
            Some((pages, at, IpaRange::new(at.checked_add(offset)?, size)?))
        });
        let Some((pages, at, guest)) = range else {
            return no("has registers that do not fit into a guest's window for devices");
        };
        if let Some(neighbour) = neighbour(tree, node, pages) {
            let text = format!(
                "{} and {} share page {:#x}",
                quote(name),
                quote(&tree.path(neighbour)),
                pages.start().get()
            );
            return refuse(Code::E21, text);
        }
        regions.push((pages, at));
        seen.push(guest);
    }
    Ok((regions, seen))
}

/// Finds another node that is switched on and has registers in these pages.
fn neighbour(tree: &Tree, node: NodeId, pages: PaRange) -> Option<NodeId> {
    let others = tree.all().filter(|other| *other != node && tree.is_enabled(*other));
    others.into_iter().find(|other| {
        let registers = tree.registers(*other).unwrap_or_default();
        let mut ranges =
            registers.iter().filter_map(|(start, size)| PaRange::new(Pa::new(*start), *size));
        ranges.any(|range| range.overlaps(pages))
    })
}

fn interrupts(
    board: &Board,
    name: &str,
    node: NodeId,
    window: &mut Window,
) -> Result<Vec<(SpiPlan, u32)>, Refusal> {
    let tree = &board.tree;
    let no = |why: &str| refuse(Code::E18, format!("{} {why}", quote(name)));
    let Some(specifiers) = tree.interrupts(node) else {
        return no("has interrupts that contradict the board's tree");
    };
    let mut interrupts: Vec<(SpiPlan, u32)> = Vec::new();
    for (controller, cells) in specifiers {
        let [0, spi, flags, ..] = *cells else {
            return no("has an interrupt that is not an SPI");
        };
        if controller != board.machine.gic.node {
            return no("has an interrupt that is not an SPI of the GIC");
        }
        let Some(Interrupt { pintid, trigger }) = Interrupt::decode([0, spi, flags]) else {
            return no("has an interrupt that is no SPI of the GIC, by edge or by level");
        };
        let sharer =
            tree.all().filter(|other| *other != node && tree.is_enabled(*other)).find(|other| {
                let theirs = tree.interrupts(*other).unwrap_or_default();
                theirs
                    .iter()
                    .any(|(parent, cells)| *parent == controller && cells.starts_with(&[0, spi]))
            });
        if let Some(sharer) = sharer {
            let (name, sharer) = (quote(name), quote(&tree.path(sharer)));
            let text =
                format!("{name} and {sharer} share SPI {spi}; one interrupt cannot serve two");
            return refuse(Code::E21, text);
        }
        if interrupts.iter().any(|(known, _)| known.pintid == pintid) {
            return no("names an interrupt twice");
        }
        let vintid = Vintid::new(window.next_interrupt);
        interrupts.push((SpiPlan { pintid, vintid, trigger }, flags));
        window.next_interrupt += 1;
    }
    Ok(interrupts)
}
