// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which devices of the board each VM gets, and how its guest sees them.
//!
//! Owns who has what: devices that a manifest names, what comes along because these need it, and
//! "everything". What stands in the way is said of the device that was named; of "everything", what
//! cannot be given is left out and listed. Knows no device: see [`crate::closure`].
#![forbid(unsafe_code)]

mod layout;
mod nodes;
mod obstacles;
mod owners;
mod rates;

pub(super) use layout::Share;

use crate::board::Board;
use crate::closure::{Closure, Dma};
use crate::explain::Code;
use crate::manifest::{Devices, Manifest, Spanned, Vm};
use crate::message::{Message, nearest, quote};
use crate::plan::Planner;
use crate::tree::guest::PHANDLES;
use crate::tree::{NodeId, Tree};
use cofferdam::addr::PaRange;
use std::collections::BTreeMap;

/// Why a device cannot be given away.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The kind of error.
    pub code: Code,
    /// What is wrong.
    pub text: String,
    /// What to write instead.
    pub write: Option<String>,
}

impl Refusal {
    fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), write: None }
    }

    fn message(self, manifest: &Manifest, span: std::ops::Range<usize>) -> Message {
        let message = Message::new(self.code, self.text).at(manifest.mark(span, ""));
        match self.write {
            Some(write) => message.write(write),
            None => message,
        }
    }
}

/// How a VM came by a unit.
#[derive(Clone, Debug)]
enum Origin {
    /// The manifest names it, in these words, there.
    Named(Spanned<String>),
    /// Units of the VM, or of others, need it.
    Needed,
    /// The VM gets everything.
    Everything,
}

/// A VM's hold of a unit.
#[derive(Clone, Debug)]
struct Owner {
    vm: usize,
    origin: Origin,
}

/// The devices of the board while they are shared out. A device is a unit of the closure.
struct Shares<'a> {
    manifest: &'a Manifest,
    board: &'a Board,
    closure: Closure<'a>,
    /// The console's UART, where the hypervisor drives it.
    console: Option<NodeId>,
    /// What the machine keeps: who for, and which addresses.
    held: Vec<(String, PaRange)>,
    owners: BTreeMap<NodeId, Owner>,
    /// What a VM that gets everything does not get, and why.
    left_out: BTreeMap<NodeId, Refusal>,
}

impl Planner<'_> {
    /// Shares the devices out; says what stands in the way. One share for each VM.
    pub(super) fn share_devices(&mut self) -> Option<Vec<Share>> {
        let manifest = self.manifest;
        let wants = |vm: &Vm| !matches!(&vm.devices, Devices::Listed(named) if named.is_empty());
        if !manifest.vms.iter().any(wants) {
            return Some(manifest.vms.iter().map(|_| Share::default()).collect());
        }
        let refused = |text: String| {
            Message::new(Code::E32, text).at(manifest.mark(manifest.board.span(), ""))
        };
        let held = match super::accept::held(manifest, self.board) {
            Ok(held) => held,
            Err(message) => return self.error(message),
        };
        if self.board.tree.has_phandle_from(PHANDLES) {
            return self.error(refused("the board's tree uses phandles above 0xcd000000".into()));
        }
        let (closure, owners) = (Closure::read(&self.board.tree), BTreeMap::new());
        let left_out = BTreeMap::new();
        let board = self.board;
        let console = super::accept::console(board).map(|uart| uart.node);
        let mut shares = Shares { manifest, board, closure, console, held, owners, left_out };
        let mut errors = shares.take_named();
        shares.take_everything(&mut errors);
        if errors.is_empty() {
            shares.settle(&mut errors);
        }
        let shared = errors.is_empty().then(|| shares.lay_out(&mut errors)).flatten();
        errors.into_iter().for_each(|error| self.report.push(error));
        shared
    }
}

impl<'a> Shares<'a> {
    fn tree(&self) -> &'a Tree {
        &self.board.tree
    }

    fn vm_name(&self, vm: usize) -> &'a str {
        self.manifest.vms.get(vm).map_or("", |vm| vm.name.get_ref())
    }

    /// Gives the devices that are named to who names them.
    fn take_named(&mut self) -> Vec<Message> {
        let mut errors = Vec::new();
        for (vm, of) in self.manifest.vms.iter().enumerate() {
            for device in of.devices.listed() {
                let unit = match self.named(device.get_ref()) {
                    Ok(unit) => unit,
                    Err(refusal) => {
                        errors.push(refusal.message(self.manifest, device.span()));
                        continue;
                    }
                };
                let owner = Owner { vm, origin: Origin::Named(device.clone()) };
                if let Some(first) = self.owners.insert(unit, owner)
                    && let Origin::Named(named) = first.origin
                {
                    errors.push(self.twice(unit, (first.vm, &named), (vm, device)));
                }
            }
        }
        errors
    }

    fn twice(
        &self,
        unit: NodeId,
        (first, named): (usize, &Spanned<String>),
        (vm, device): (usize, &Spanned<String>),
    ) -> Message {
        let (path, name) = (quote(&self.tree().path(unit)), self.vm_name(vm));
        let owner = self.vm_name(first);
        let text = format!("{path} is given to {} and to {}", quote(owner), quote(name));
        Message::new(Code::E17, text)
            .at(self.manifest.mark(device.span(), format!("{name} takes it again")))
            .at(self.manifest.mark(named.span(), format!("{owner} has it")))
    }

    /// Finds the unit that a manifest names, where it can be given away at all.
    fn named(&self, name: &str) -> Result<NodeId, Refusal> {
        let node = find(self.tree(), name)?;
        let no = |why: &str| Err(Refusal::new(Code::E18, format!("{} {why}", quote(name))));
        if self.console == Some(node) {
            return no("is the console's UART, which the hypervisor keeps");
        }
        if self.is_port(node) {
            return no("is the port for requests, which the hypervisor keeps");
        }
        match self.closure.facts(node).unit {
            None => return no("has no registers that a core can reach"),
            Some(unit) if unit != node => {
                let unit = self.tree().path(unit);
                let mut refusal =
                    Refusal::new(Code::E18, format!("{} is a part of {unit}", quote(name)));
                refusal.write = Some(format!("\"{unit}\""));
                return Err(refusal);
            }
            Some(_) => {}
        }
        if !self.closure.facts(node).is_enabled {
            return no("is switched off in the board's tree (status)");
        }
        if let Some(fault) = self.fault(node) {
            return no(&format!("cannot be understood: {fault}"));
        }
        if self.dma(node).is_master() {
            let compatible = quote(self.tree().text(node, "compatible").unwrap_or("nothing"));
            return Err(Refusal::new(
                Code::E18,
                format!(
                    "{} ({compatible}) may do DMA, which this version cannot confine",
                    quote(name)
                ),
            ));
        }
        Ok(node)
    }

    /// Returns whether requests come in by this UART.
    fn is_port(&self, node: NodeId) -> bool {
        let mut ports = self.manifest.control_uarts();
        ports.any(|port| {
            let name = port.get_ref();
            self.tree().resolve(name.strip_prefix('&').unwrap_or(name)) == Some(node)
        })
    }

    fn dma(&self, unit: NodeId) -> Dma {
        self.closure.dma(unit, &self.board.hints.no_dma, &self.board.hints.bus_masters)
    }

    /// Returns the first thing that is wrong with what is switched on in a unit.
    fn fault(&self, unit: NodeId) -> Option<String> {
        let facts = self.parts(unit).into_iter().map(|id| self.closure.facts(id));
        facts.flat_map(|facts| &facts.faults).next().map(ToString::to_string)
    }

    /// Returns the nodes of a unit that are switched on.
    fn parts(&self, unit: NodeId) -> Vec<NodeId> {
        let mut parts = self.closure.subtree(unit);
        parts.retain(|id| self.closure.facts(*id).is_enabled);
        parts
    }

    /// Returns the VM that has a unit.
    fn owner(&self, unit: NodeId) -> Option<usize> {
        self.owners.get(&unit).map(|owner| owner.vm)
    }

    /// Returns whether a VM has a node.
    fn has(&self, vm: usize, node: NodeId) -> bool {
        self.closure.facts(node).unit.is_some_and(|unit| self.owner(unit) == Some(vm))
    }

    /// Returns what a unit is called in messages: as the manifest does, where it does.
    fn called(&self, unit: NodeId) -> String {
        match self.owners.get(&unit).map(|owner| &owner.origin) {
            Some(Origin::Named(name)) => name.get_ref().clone(),
            _ => self.tree().path(unit),
        }
    }
}

/// Finds the device that a manifest names.
///
/// # Errors
/// There is none; names what was meant.
fn find(tree: &Tree, name: &str) -> Result<NodeId, Refusal> {
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
