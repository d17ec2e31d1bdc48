// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that VMs share, and the VMs that keys at the top name.
#![forbid(unsafe_code)]

use super::{Reader, Value};
use crate::explain::Code;
use crate::manifest::{Shared, Spanned, Vm, keys, value};
use crate::message::{Message, nearest, quote};
use cofferdam::plan::VMS_MAX;
use toml::de::{DeString, DeTable, DeValue};

/// The most regions of shared memory.
const SHARED_MAX: usize = 16;
/// What a region is a multiple of: the page that every guest can map.
const PAGE_BYTES: u64 = 4 << 10;

impl Reader<'_> {
    /// Reads all regions of shared memory, in the order of the file.
    pub(super) fn shared(&mut self, table: &DeTable<'_>) -> Option<Vec<Shared>> {
        const EXAMPLE: &str = "[shared.NAME], and below it size, write and read";
        let Some(value) = table.get("shared") else { return Some(Vec::new()) };
        let DeValue::Table(regions) = value.get_ref() else {
            return self.wrong_type(value, "shared", "a table for each region", Some(EXAMPLE));
        };
        let mut regions: Vec<_> = regions.iter().collect();
        regions.sort_by_key(|(name, _)| name.span().start);
        if let Some((name, _)) = regions.get(SHARED_MAX) {
            let text = format!("{} regions, but at most {SHARED_MAX}", regions.len());
            let mark = self.mark(name.span(), "one too many");
            self.report.push(Message::new(Code::E04, text).at(mark));
            return None;
        }
        // Collected twice, so that the first error does not hide the others.
        let regions: Vec<_> =
            regions.into_iter().map(|(name, value)| self.region(name, value)).collect();
        regions.into_iter().collect()
    }

    fn region(&mut self, name: &Spanned<DeString<'_>>, value: &Value<'_>) -> Option<Shared> {
        let name = Spanned::new(name.span(), name.get_ref().to_string());
        self.name_of_region(&name)?;
        let DeValue::Table(table) = value.get_ref() else {
            let header = format!("[shared.{}]", name.get_ref());
            return self.wrong_type(value, name.get_ref(), "a region", Some(&header));
        };
        self.check_keys(table, &keys::SHARED);
        self.region_is_complete(&name, table)?;
        let size = self.field(table, "size", Self::pages);
        let write = self.sharers(table, "write");
        let read = self.sharers(table, "read");
        let doorbell = match table.get("doorbell") {
            Some(value) => self.spanned(value, "doorbell", Self::boolean),
            None => Some(Spanned::new(name.span(), false)),
        };
        let (size, write, read, doorbell) = (size?, write?, read?, doorbell?);
        self.has_two_sides(value, &write, &read)?;
        Some(Shared { name, size, write, read, doorbell })
    }

    fn name_of_region(&mut self, name: &Spanned<String>) -> Option<()> {
        let Err(wrong) = value::name(name.get_ref()) else { return Some(()) };
        let why = wrong.why.replace("a VM's", "a region's");
        let text = format!("{}: {why}", quote(name.get_ref()));
        let mut message = Message::new(Code::E04, text).at(self.mark(name.span(), ""));
        if let Some(instead) = wrong.instead {
            message = message.write(format!("[shared.{instead}]"));
        }
        self.report.push(message);
        None
    }

    fn region_is_complete(&mut self, name: &Spanned<String>, table: &DeTable<'_>) -> Option<()> {
        let wanted = [("size", "size = \"64K\""), ("write", "write = [\"NAME\"]")];
        let missing: Vec<_> = wanted.iter().filter(|(key, _)| table.get(*key).is_none()).collect();
        if missing.is_empty() {
            return Some(());
        }
        let keys: Vec<_> = missing.iter().map(|(key, _)| *key).collect();
        let lines: Vec<_> = missing.iter().map(|(_, line)| *line).collect();
        let text = format!("shared memory {} lacks {}", quote(name.get_ref()), keys.join(", "));
        let message = Message::new(Code::E05, text).at(self.mark(name.span(), ""));
        self.report.push(message.write(lines.join(", ")));
        None
    }

    /// Reads a size in whole pages.
    fn pages(&mut self, value: &Value<'_>, key: &str) -> Option<u64> {
        let size = self.size(value, key)?;
        if size.is_multiple_of(PAGE_BYTES) {
            return Some(size);
        }
        let rounded = size.checked_next_multiple_of(PAGE_BYTES);
        let instead = rounded.map(|bytes| format!("{key} = \"{}K\"", bytes >> 10));
        self.malformed(value, "shared memory is a multiple of 4K", instead)
    }

    fn sharers(&mut self, table: &DeTable<'_>, key: &str) -> Option<Vec<Spanned<String>>> {
        let Some(value) = table.get(key) else { return Some(Vec::new()) };
        match value.get_ref() {
            DeValue::Array(array) if array.len() > VMS_MAX => {
                let text = format!("there are at most {VMS_MAX} VMs");
                self.malformed(value, text, None)
            }
            DeValue::Array(array) => {
                array.iter().map(|item| self.spanned(item, key, Self::string)).collect()
            }
            DeValue::String(text) => {
                let fixed = format!("{key} = [{}]", quote(text).replace('`', "\""));
                self.wrong_type(value, key, "a list of VMs", Some(&fixed))
            }
            _ => self.wrong_type(value, key, "a list of VMs", None),
        }
    }

    /// Checks that somebody writes, that somebody else is there too, and that nobody is twice.
    fn has_two_sides(
        &mut self,
        value: &Value<'_>,
        write: &[Spanned<String>],
        read: &[Spanned<String>],
    ) -> Option<()> {
        let all: Vec<_> = write.iter().chain(read).collect();
        let again = all.iter().enumerate().find_map(|(index, name)| {
            let first = all.iter().take(index).find(|other| other.get_ref() == name.get_ref())?;
            Some((first, name))
        });
        let message = if let Some((first, name)) = again {
            let text =
                format!("{} has this memory twice; who writes reads too", quote(name.get_ref()));
            let again = self.mark(name.span(), "again");
            Message::new(Code::E04, text).at(again).at(self.mark(first.span(), ""))
        } else if write.is_empty() || all.len() < 2 {
            let text = "shared memory has one VM at least that writes, and one more";
            let message = Message::new(Code::E04, text).at(self.mark(value.span(), ""));
            message.write("write = [\"a\"] and read = [\"b\"], or write = [\"a\", \"b\"]")
        } else {
            return Some(());
        };
        self.report.push(message);
        None
    }

    /// Checks that the VMs which keys at the top name are there.
    pub(super) fn check_sharers(
        &mut self,
        vms: &[Vm],
        provider: Option<&Spanned<String>>,
        shared: &[Shared],
    ) -> Option<()> {
        let sharers = shared.iter().flat_map(|region| region.write.iter().chain(&region.read));
        let mut found = Some(());
        for wanted in provider.into_iter().chain(sharers) {
            if vms.iter().any(|vm| vm.name.get_ref() == wanted.get_ref()) {
                continue;
            }
            let text = format!("there is no VM {}", quote(wanted.get_ref()));
            let mut message = Message::new(Code::E25, text).at(self.mark(wanted.span(), ""));
            let names = vms.iter().map(|vm| vm.name.get_ref().as_str());
            if let Some(near) = nearest(wanted.get_ref(), names) {
                message = message.write(format!("\"{near}\""));
            }
            self.report.push(message);
            found = None;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Devices, Manifest};
    use crate::message::{Report, Source, Style};
    use std::sync::Arc;

    /// Reads two VMs with these lines before them and in the first; what it says, too.
    fn read(top: &str, vm: &str) -> (Option<Manifest>, String) {
        let vms = ["a", "b"].map(|name| {
            let own = if name == "a" { vm } else { "" };
            format!("[vm.{name}]\ncpus = \"0\"\nmemory = \"2M\"\nkernel = \"k\"\n{own}\n")
        });
        let text = format!("format = 1\nboard = \"x\"\n{}{top}", vms.concat());
        let source = Arc::new(Source { path: "m.toml".into(), text });
        let table = DeTable::parse(&source.text).unwrap();
        let mut reader = Reader { source: &source, report: Report::default() };
        let manifest = reader.top(table.get_ref(), "".into());
        (manifest, reader.report.render(Style::Plain))
    }

    fn names(list: &[Spanned<String>]) -> Vec<&str> {
        list.iter().map(|name| name.get_ref().as_str()).collect()
    }

    #[test]
    fn every_key_is_read() {
        let shared = "[shared.loop]\nsize = \"64K\"\nwrite = [\"a\"]\nread = [\"b\"]\n";
        let vm = "devices = \"everything\"\nexcept = [\"&x\"]\nunconfined_dma = [\"&y\", \"/z\"]";
        let top =
            format!("{shared}doorbell = true\n[shared.b]\nsize = \"8K\"\nwrite = [\"b\", \"a\"]");
        let (manifest, _) = read(&top, vm);
        let manifest = manifest.unwrap();
        let [vm, _] = &*manifest.vms else { panic!() };
        let Devices::Everything { span, except } = &vm.devices else { panic!() };
        assert_eq!(&manifest.source.text[span.clone()], "\"everything\"");
        assert_eq!((names(except), names(&vm.unconfined_dma)), (vec!["&x"], vec!["&y", "/z"]));
        let [first, second] = &*manifest.shared else { panic!() };
        assert_eq!((first.name.get_ref().as_str(), *first.size.get_ref()), ("loop", 64 << 10));
        assert_eq!((names(&first.write), names(&first.read)), (vec!["a"], vec!["b"]));
        assert_eq!((names(&second.write), names(&second.read)), (vec!["b", "a"], vec![]));
        assert!(*first.doorbell.get_ref() && !*second.doorbell.get_ref());
        let (manifest, _) = read("", "devices = [\"&x\"]");
        let manifest = manifest.unwrap();
        assert_eq!(names(manifest.vms[0].devices.listed()), ["&x"]);
        assert_eq!(manifest.vms[1].devices, Devices::Listed(Vec::new()));
    }

    #[track_caller]
    fn refused(top: &str, vm: &str, code: &str, text: &str) {
        let (manifest, said) = read(top, vm);
        let expected = format!("error[{code}]: {text}");
        assert!(manifest.is_none() && said.contains(&expected), "{said}");
    }

    #[test]
    fn form_is_checked() {
        let region = |lines: &str| format!("[shared.x]\n{lines}");
        let sized = |size: &str| region(&format!("size = {size}\nwrite = [\"a\", \"b\"]"));
        refused(&sized("\"5K\""), "", "E04", "shared memory is a multiple of 4K");
        refused(&sized("4096"), "", "E04", "size: a bare number is refused");
        refused(&region("write = [\"a\"]"), "", "E05", "shared memory `x` lacks size");
        let sides = |lines: &str| region(&format!("size = \"4K\"\n{lines}"));
        refused(&sides(""), "", "E05", "shared memory `x` lacks write");
        refused(&sides("write = [\"a\"]"), "", "E04", "shared memory has one VM at least");
        refused(&sides("write = []\nread = [\"a\", \"b\"]"), "", "E04", "shared memory has");
        let twice = "write = [\"a\", \"b\"]\nread = [\"b\"]";
        refused(&sides(twice), "", "E04", "`b` has this memory twice");
        refused(&sides("write = \"a\""), "", "E04", "`write` is a list of VMs");
        refused(&sides("write = [\"a\", \"c\"]"), "", "E25", "there is no VM `c`");
        let bell = "write = [\"a\", \"b\"]\ndoorbell = 1";
        refused(&sides(bell), "", "E04", "`doorbell` is true or false");
        refused("[shared.\"a b\"]", "", "E04", "`a b`: a region's name has");
        let many: String = (0..17).map(|n| format!("[shared.s{n}]\n")).collect();
        refused(&many, "", "E04", "17 regions, but at most 16");
        refused("", "except = [\"&x\"]", "E04", "`except` goes with");
        refused("", "devices = []\nexcept = [\"&x\"]", "E04", "`except` goes with");
        refused("", "unconfined_dma = \"&x\"", "E04", "`unconfined_dma` is a list of devices");
    }

    #[test]
    fn the_provider_is_one_of_the_vms() {
        let text = |name: &str| {
            let vm = "[vm.gateway]\ncpus = \"0\"\nmemory = \"2M\"\nkernel = \"k\"\n";
            let text = format!("format = 1\nboard = \"x\"\nprovider = \"{name}\"\n{vm}");
            let source = Arc::new(Source { path: "m.toml".into(), text });
            let table = DeTable::parse(&source.text).unwrap();
            let mut reader = Reader { source: &source, report: Report::default() };
            let manifest = reader.top(table.get_ref(), "".into());
            (manifest.map(|manifest| manifest.provider), reader.report.render(Style::Plain))
        };
        let (provider, _) = text("gateway");
        assert_eq!(provider.unwrap().unwrap().get_ref(), "gateway");
        let (provider, said) = text("gatway");
        assert!(provider.is_none() && said.contains("= write: \"gateway\""), "{said}");
    }
}
