// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a VM's policies are, and the order in which VMs start.
#![forbid(unsafe_code)]

use super::{Reader, Value};
use crate::explain::Code;
use crate::manifest::keys;
use crate::manifest::{Spanned, Vm, value};
use crate::message::{Message, nearest, quote};
use cofferdam::id::VmId;
use cofferdam::plan::{List, OnCrash, OnEnd, OnLoss, PauseTime, Policies, Restarts, VMS_MAX};
use toml::de::{DeTable, DeValue};

/// What other tools call it, and ours.
const WORDS: [(&str, &str); 6] = [
    ("destroy", "stop"),
    ("off", "stop"),
    ("poweroff", "stop"),
    ("reboot", "restart"),
    ("reset", "restart"),
    ("host", "machine"),
];

impl Reader<'_> {
    /// Reads the policies of a VM, and the names of those that it starts after.
    pub(super) fn policies(
        &mut self,
        table: &DeTable<'_>,
    ) -> Option<(Policies, Vec<Spanned<String>>)> {
        let or = Policies::default();
        // All are looked at before the first error ends it.
        let on_crash = self.policy(table, "on_crash", or.on_crash, Self::on_crash);
        let on_reboot = self.policy(table, "on_reboot", or.on_reboot, Self::on_end);
        let on_poweroff = self.policy(table, "on_poweroff", or.on_poweroff, Self::on_end);
        let on_loss = self.policy(table, "on_loss", or.on_loss, Self::on_loss);
        let watchdog_ms = self.policy(table, "watchdog", None, |reader, value, key| {
            reader.duration_ms(value, key).map(Some)
        });
        let pause_time = self.policy(table, "pause_time", or.pause_time, |reader, value, key| {
            let stops = reader.boolean(value, key)?;
            Some(if stops { PauseTime::Stops } else { PauseTime::Runs })
        });
        let after = self.policy(table, "after", Vec::new(), Self::after);
        let policies = Policies {
            on_crash: on_crash?,
            on_reboot: on_reboot?,
            on_poweroff: on_poweroff?,
            on_loss: on_loss?,
            watchdog_ms: watchdog_ms?,
            pause_time: pause_time?,
            ..or
        };
        Some((policies, after?))
    }

    fn policy<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        default: T,
        read: impl FnOnce(&mut Self, &Value<'_>, &str) -> Option<T>,
    ) -> Option<T> {
        match table.get(key) {
            Some(value) => read(self, value, key),
            None => Some(default),
        }
    }

    fn on_crash(&mut self, value: &Value<'_>, key: &str) -> Option<OnCrash> {
        let DeValue::Table(table) = value.get_ref() else {
            let restart = OnCrash::Restart(Restarts::default());
            let actions = [
                ("restart", restart),
                ("stop", OnCrash::Stop),
                ("preserve", OnCrash::Preserve),
                ("machine", OnCrash::Machine),
            ];
            return self.action(value, key, &actions);
        };
        self.check_keys(table, &keys::ON_CRASH);
        let most = match table.get("restart") {
            Some(value) => self.integer(value, "restart", 1..1 << 16)?,
            None => {
                let text = "`on_crash` does not say how often to restart";
                let message = Message::new(Code::E05, text).at(self.mark(value.span(), ""));
                self.report.push(message.write("on_crash = { restart = 5, backoff = \"1s\" }"));
                return None;
            }
        };
        let backoff_ms = match table.get("backoff") {
            Some(value) => self.duration_ms(value, "backoff")?,
            None => 0,
        };
        Some(OnCrash::Restart(Restarts { most: u16::try_from(most).ok(), backoff_ms }))
    }

    fn on_end(&mut self, value: &Value<'_>, key: &str) -> Option<OnEnd> {
        let actions =
            [("restart", OnEnd::Restart), ("stop", OnEnd::Stop), ("machine", OnEnd::Machine)];
        self.action(value, key, &actions)
    }

    fn on_loss(&mut self, value: &Value<'_>, key: &str) -> Option<OnLoss> {
        let actions = [("tell", OnLoss::Tell), ("stop", OnLoss::Stop), ("ignore", OnLoss::Ignore)];
        self.action(value, key, &actions)
    }

    /// Reads a choice, and translates the words of other tools.
    fn action<T: Copy>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        if let DeValue::String(text) = value.get_ref() {
            let ours = WORDS.iter().find(|(theirs, _)| theirs == text).map(|(_, ours)| *ours);
            if let Some(ours) = ours.filter(|ours| choices.iter().any(|(name, _)| name == ours)) {
                let text = format!("{} is called otherwise here", quote(text));
                return self.malformed(value, text, Some(format!("{key} = \"{ours}\"")));
            }
        }
        self.choice(value, key, choices)
    }

    fn duration_ms(&mut self, value: &Value<'_>, key: &str) -> Option<u32> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().into(),
            _ => return self.wrong_type(value, key, "a time in a string", Some("\"200ms\"")),
        };
        self.well_formed(value, key, value::duration_ms(&text))
    }

    fn after(&mut self, value: &Value<'_>, key: &str) -> Option<Vec<Spanned<String>>> {
        match value.get_ref() {
            DeValue::Array(array) if array.len() >= VMS_MAX => {
                let text = format!("there are at most {} other VMs", VMS_MAX - 1);
                self.malformed(value, text, None)
            }
            DeValue::Array(array) => {
                array.iter().map(|item| self.spanned(item, key, Self::string)).collect()
            }
            DeValue::String(text) => {
                let fixed = format!("after = [\"{text}\"]");
                self.wrong_type(value, key, "a list of VMs", Some(&fixed))
            }
            _ => self.wrong_type(value, key, "a list of VMs", None),
        }
    }

    /// Puts the VMs into the order in which they start: each behind those that it starts after, and
    /// otherwise as they stand in the file.
    pub(super) fn in_order(&mut self, vms: Vec<(Vm, Vec<Spanned<String>>)>) -> Option<Vec<Vm>> {
        let afters = self.resolve(&vms)?;
        let mut order: Vec<usize> = Vec::new();
        while order.len() < vms.len() {
            let is_ready = |vm: &usize| {
                let after = afters.get(*vm).map_or(&[][..], Vec::as_slice);
                !order.contains(vm) && after.iter().all(|other| order.contains(other))
            };
            match (0..vms.len()).find(is_ready) {
                Some(vm) => order.push(vm),
                None => return self.circle(&vms, &afters, &order),
            }
        }
        let place = |vm: &usize| order.iter().position(|other| other == vm);
        let mut vms: Vec<_> = vms.into_iter().zip(&afters).zip(0..).collect();
        vms.sort_by_key(|(_, index)| place(index));
        let in_place = |((vm, _), after): ((Vm, _), &Vec<usize>)| {
            let places = after.iter().filter_map(place).map(u8::try_from);
            let after = List::new(places.map(|n| n.ok().map(VmId::new)).collect::<Option<_>>()?)?;
            Some(Vm { policies: Policies { after, ..vm.policies }, ..vm })
        };
        vms.into_iter().map(|(vm, _)| in_place(vm)).collect()
    }

    /// Finds the VMs that others start after by their names.
    fn resolve(&mut self, vms: &[(Vm, Vec<Spanned<String>>)]) -> Option<Vec<Vec<usize>>> {
        let name = |(vm, _): &(Vm, _)| vm.name.get_ref().clone();
        let mut all = Some(Vec::new());
        for (_, after) in vms {
            let mut found: Vec<usize> = Vec::new();
            for other in after {
                let wanted = other.get_ref();
                match vms.iter().position(|vm| name(vm) == *wanted) {
                    Some(vm) if !found.contains(&vm) => found.push(vm),
                    Some(_) => {}
                    None => {
                        let text = format!("there is no VM {} to start after", quote(wanted));
                        let mark = self.mark(other.span(), "");
                        let mut message = Message::new(Code::E22, text).at(mark);
                        let names: Vec<_> = vms.iter().map(name).collect();
                        if let Some(near) = nearest(wanted, names.iter().map(String::as_str)) {
                            message = message.write(format!("\"{near}\""));
                        }
                        self.report.push(message);
                        all = None;
                    }
                }
            }
            if let Some(all) = &mut all {
                all.push(found);
            }
        }
        all
    }

    /// Reports a circle among the VMs that are not in order.
    fn circle<T>(
        &mut self,
        vms: &[(Vm, Vec<Spanned<String>>)],
        afters: &[Vec<usize>],
        order: &[usize],
    ) -> Option<T> {
        // Each of them starts after another of them: whoever goes on from one to the next comes to
        // a place where he has been.
        let mut way: Vec<usize> =
            (0..vms.len()).find(|vm| !order.contains(vm)).into_iter().collect();
        loop {
            let last = *way.last()?;
            let next = *afters.get(last)?.iter().find(|other| !order.contains(other))?;
            if let Some(start) = way.iter().position(|vm| *vm == next) {
                way.drain(..start);
                break;
            }
            way.push(next);
        }
        let name = |vm: usize| vms.get(vm).map_or("", |(vm, _)| vm.name.get_ref().as_str());
        let mut text = "this is a circle: ".to_owned();
        for vm in &way {
            text.push_str(&format!("{} starts after ", quote(name(*vm))));
        }
        text.push_str(&quote(way.first().map_or("", |vm| name(*vm))));
        let mut message = Message::new(Code::E22, text);
        for (vm, next) in way.iter().zip(way.iter().cycle().skip(1)) {
            let after = vms.get(*vm).map_or(&[][..], |(_, after)| after.as_slice());
            if let Some(named) = after.iter().find(|other| other.get_ref() == name(*next)) {
                message = message.at(self.mark(named.span(), ""));
            }
        }
        self.report.push(message);
        None
    }
}
