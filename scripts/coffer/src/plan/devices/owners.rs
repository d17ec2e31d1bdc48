// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who owns what nobody names: everything else, and what devices need.
#![forbid(unsafe_code)]

use super::{Origin, Owner, Refusal, Shares, find};
use crate::closure::Kind;
use crate::explain::Code;
use crate::manifest::Devices;
use crate::message::{Message, quote};
use crate::tree::NodeId;
use std::collections::BTreeMap;

/// More passes than any board's devices take to settle.
const PASSES_MAX: usize = 64;

/// Who needs a unit: for each VM, one of its units and the property that says so.
type Users = BTreeMap<usize, (NodeId, String)>;

impl Shares<'_> {
    /// Gives what nobody names to the VM that gets everything.
    pub(super) fn take_everything(&mut self, errors: &mut Vec<Message>) {
        let mut taken: Option<(usize, std::ops::Range<usize>)> = None;
        for (vm, of) in self.manifest.vms.iter().enumerate() {
            let Devices::Everything { span, except } = &of.devices else { continue };
            if let Some((first, at)) = &taken {
                let (name, first) = (of.name.get_ref(), self.vm_name(*first));
                let text = format!("{} and {} both get everything", quote(first), quote(name));
                let message = Message::new(Code::E17, text)
                    .at(self.manifest.mark(span.clone(), format!("{name} takes it again")))
                    .at(self.manifest.mark(at.clone(), format!("{first} has it")));
                errors.push(message);
                continue;
            }
            taken = Some((vm, span.clone()));
            let mut excepted = Vec::new();
            for name in except {
                match find(self.tree(), name.get_ref()) {
                    Ok(node) => excepted.push(node),
                    Err(refusal) => errors.push(refusal.message(self.manifest, name.span())),
                }
            }
            self.take_the_rest(vm, &excepted);
        }
    }

    fn take_the_rest(&mut self, vm: usize, excepted: &[NodeId]) {
        let is_excepted = |unit: NodeId| {
            let mut above = Some(unit);
            while let Some(id) = above {
                if excepted.contains(&id) {
                    return true;
                }
                above = self.tree().parent(id);
            }
            excepted.iter().any(|id| self.closure.facts(*id).unit == Some(unit))
        };
        let wanted: Vec<NodeId> = self
            .closure
            .units()
            .filter(|unit| self.closure.facts(*unit).is_enabled && self.owner(*unit).is_none())
            .filter(|unit| !is_excepted(*unit) && self.held_by(*unit).is_none())
            .collect();
        for unit in wanted {
            match self.cannot_be_given(unit) {
                Some(why) => drop(self.left_out.insert(unit, why)),
                None => drop(self.owners.insert(unit, Owner { vm, origin: Origin::Everything })),
            }
        }
    }

    /// Returns why nobody can have a unit, if so.
    fn cannot_be_given(&self, unit: NodeId) -> Option<Refusal> {
        let path = quote(&self.tree().path(unit));
        let no = |why: String| Some(Refusal::new(Code::E18, format!("{path} {why}")));
        if !self.closure.facts(unit).is_enabled {
            return no("is switched off".into());
        }
        if let Some(holder) = self.held_by(unit) {
            return no(format!("is kept by the hypervisor for {holder}"));
        }
        if self.dma(unit).is_master() {
            return no("may do DMA".into());
        }
        self.fault(unit).and_then(no)
    }

    /// Settles who has what devices need, and takes away what cannot be given after all.
    pub(super) fn settle(&mut self, errors: &mut Vec<Message>) {
        let mut passes = 0..PASSES_MAX;
        while self.take_needed(errors) || self.leave_out() {
            if passes.next().is_none() {
                let text = "the devices of the board's tree hang on each other without end";
                let mark = self.manifest.mark(self.manifest.board.span(), "");
                errors.push(Message::new(Code::E32, text).at(mark));
            }
            if !errors.is_empty() {
                return;
            }
        }
        for (unit, owner) in &self.owners {
            if let Origin::Named(name) = &owner.origin
                && let Some(why) = self.obstacle(*unit)
            {
                errors.push(why.message(self.manifest, name.span()));
            }
        }
        if errors.is_empty() {
            self.check_owners(errors);
        }
    }

    /// Gives what devices need, and nobody has, to who needs it; returns whether there was any.
    fn take_needed(&mut self, errors: &mut Vec<Message>) -> bool {
        let mut users = self.users();
        users.retain(|unit, _| {
            let is_free = self.owner(*unit).is_none() && !self.left_out.contains_key(unit);
            is_free && self.cannot_be_given(*unit).is_none()
        });
        for (unit, users) in &users {
            match self.keeper(*unit, users) {
                Ok(owner) => drop(self.owners.insert(*unit, owner)),
                Err(message) => errors.push(message),
            }
        }
        !users.is_empty()
    }

    /// Takes away what nobody names and cannot be given; returns whether there was any. Taking more
    /// away never makes room for what was taken, so the order does not matter.
    fn leave_out(&mut self) -> bool {
        let soft = self.owners.iter().filter(|(_, o)| !matches!(o.origin, Origin::Named(_)));
        let refused: Vec<(NodeId, Refusal)> =
            soft.filter_map(|(unit, _)| Some((*unit, self.obstacle(*unit)?))).collect();
        let is_any = !refused.is_empty();
        for (unit, why) in refused {
            self.owners.remove(&unit);
            self.left_out.insert(unit, why);
        }
        is_any
    }

    /// Chooses who gets a unit that nobody has and these need.
    fn keeper(&self, unit: NodeId, users: &Users) -> Result<Owner, Message> {
        let mut vms = users.keys().copied();
        let vm = match (vms.next(), vms.next()) {
            (Some(only), None) => Some(only),
            _ => self.provider(),
        };
        let owner = vm.map(|vm| Owner { vm, origin: Origin::Needed });
        owner.ok_or_else(|| self.shared(unit, users))
    }

    fn provider(&self) -> Option<usize> {
        let name = self.manifest.provider.as_ref()?.get_ref();
        self.manifest.vms.iter().position(|vm| vm.name.get_ref() == name)
    }

    /// Refuses that a VM needs what another has which is not the provider.
    fn check_owners(&self, errors: &mut Vec<Message>) {
        let provider = self.provider();
        for (unit, mut users) in self.users() {
            let Some(owner) = self.owner(unit) else { continue };
            if Some(owner) != provider && users.keys().any(|vm| *vm != owner) {
                users.entry(owner).or_insert((unit, String::new()));
                errors.push(self.shared(unit, &users));
            }
        }
    }

    /// Says who needs a unit, by which way, and what can be done.
    fn shared(&self, unit: NodeId, users: &Users) -> Message {
        let needs: Vec<String> = users
            .iter()
            .map(|(vm, (user, property))| {
                let called = self.called(*user);
                match property.as_str() {
                    "" => format!("{} has it", self.vm_name(*vm)),
                    property => format!("{called} ({}) by its {property}", self.vm_name(*vm)),
                }
            })
            .collect();
        let text = format!("{} is needed by {}", self.tree().path(unit), needs.join(", and "));
        let span = users.values().find_map(|(user, _)| match &self.owners.get(user)?.origin {
            Origin::Named(name) => Some(name.span()),
            _ => None,
        });
        let span = span.unwrap_or_else(|| self.manifest.board.span());
        let owner = self.owner(unit).or_else(|| users.keys().next().copied()).unwrap_or(0);
        Message::new(Code::E12, text)
            .at(self.manifest.mark(span, ""))
            .write(format!("provider = \"{}\", or put all of them in one VM", self.vm_name(owner)))
    }

    /// Returns the units that devices of VMs need beside their own, and who needs them.
    fn users(&self) -> BTreeMap<NodeId, Users> {
        let mut found: BTreeMap<NodeId, Users> = BTreeMap::new();
        for (unit, owner) in &self.owners {
            for part in self.parts(*unit) {
                let facts = self.closure.facts(part);
                let needed = facts.references.iter().filter(|reference| is_needed(reference.kind));
                let of_lines = facts.lines.iter().map(|line| (line.end, "interrupts"));
                let providers = needed.map(|one| (one.provider, one.property.as_str()));
                for (provider, property) in providers.chain(of_lines) {
                    let Some(provider) = self.closure.facts(provider).unit else { continue };
                    if provider != *unit && !self.is_machine(provider) {
                        let users = found.entry(provider).or_default();
                        users.entry(owner.vm).or_insert_with(|| (*unit, property.to_owned()));
                    }
                }
            }
        }
        found
    }

    /// Returns whether a unit is the interrupt controller.
    fn is_machine(&self, unit: NodeId) -> bool {
        self.board.machine.gic.node == unit
    }
}

/// Returns whether a device does not work without what a reference of this kind leads to.
fn is_needed(kind: Kind) -> bool {
    match kind {
        Kind::Clock
        | Kind::Reset
        | Kind::PowerDomain
        | Kind::Supply
        | Kind::Pins
        | Kind::Gpio
        | Kind::Phy
        | Kind::Other => true,
        Kind::AssignedClock | Kind::Dma | Kind::Iommu | Kind::Msi | Kind::Memory => false,
        Kind::Endpoint => false,
    }
}
