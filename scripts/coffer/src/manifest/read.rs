// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From TOML to [`Manifest`], with every error and what to write instead.
#![forbid(unsafe_code)]

mod devices;
mod fault;
mod policies;
mod shared;
mod values;

use super::keys::{self, Kind};
use super::{CONSOLE_PORT, Console, Cores, KernelFormat, Manifest, Spanned, Vm, value};
use crate::explain::Code;
use crate::message::{Mark, Message, Report, Source, quote};
use cofferdam::plan::{CPUS_MAX, ConsoleMode, Knobs, VMS_MAX};
use std::path::PathBuf;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

type Value<'a> = Spanned<DeValue<'a>>;

/// Reads the manifest, or reports everything that is wrong with it.
pub(super) fn manifest(source: Arc<Source>, directory: PathBuf) -> Result<Manifest, Report> {
    let table = match DeTable::parse(&source.text) {
        Ok(table) => table,
        Err(error) => return Err(syntax(&source, &error).into()),
    };
    let mut reader = Reader { source: &source, report: Report::default() };
    let manifest = reader.top(table.get_ref(), directory);
    reader.report.ok_with(manifest).map(|(manifest, _)| manifest)
}

/// Says what the parser says, and adds the quotation marks that people forget.
fn syntax(source: &Arc<Source>, error: &toml::de::Error) -> Message {
    let end = source.text.len();
    let span = error.span().unwrap_or(end..end);
    let line_start = source.text.get(..span.start).and_then(|text| text.rfind('\n'));
    let line_start = line_start.map_or(0, |newline| newline + 1);
    let line = source.text.get(line_start..).and_then(|text| text.lines().next());
    let message = Message::new(Code::E02, format!("this is not TOML: {}", error.message()))
        .at(Mark::new(source, span, ""));
    match line.and_then(quoted_value) {
        Some(fixed) => message.write(fixed),
        None => message,
    }
}

/// Puts quotation marks around the bare word in `key = word`.
fn quoted_value(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let value = value.split('#').next()?.trim();
    let plain = |text: &str, more: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(char::from(byte));
        !text.is_empty() && text.len() <= 100 && text.bytes().all(allowed)
    };
    let key = key.trim();
    (plain(key, "_-") && plain(value, "_-./,&")).then(|| format!("{key} = \"{value}\""))
}

struct Reader<'a> {
    source: &'a Arc<Source>,
    report: Report,
}

impl Reader<'_> {
    fn top(&mut self, table: &DeTable<'_>, directory: PathBuf) -> Option<Manifest> {
        self.check_keys(table, &keys::TOP);
        self.format(table)?;
        let board = self.field(table, "board", Self::string);
        if table.get("board").is_none() {
            let message = Message::new(Code::E05, "the manifest names no board");
            self.report.push(message.at(self.mark(0..0, "")).write("board = \"qemu-virt\""));
        }
        let vms = self.vms(table);
        let provider = self.optional(table, "provider", Self::string);
        let shared = self.shared(table);
        let console = match table.get("console") {
            Some(value) => self.console(value),
            None => Some(Console::default()),
        };
        let control = match table.get("control") {
            Some(value) => self.control(value),
            None => Some(Vec::new()),
        };
        let knobs = match table.get("test") {
            Some(value) => self.knobs(value),
            None => Some((Knobs::default(), None)),
        };
        let source = Arc::clone(self.source);
        let (board, vms, console, control) = (board?, vms?, console?, control?);
        let (provider, shared) = (provider?, shared?);
        self.check_sharers(&vms, provider.as_ref(), &shared)?;
        let (knobs, seed) = knobs?;
        Some(Manifest {
            source,
            directory,
            board,
            vms,
            provider,
            shared,
            console,
            control,
            knobs,
            seed,
        })
    }

    fn format(&mut self, table: &DeTable<'_>) -> Option<()> {
        let Some(value) = table.get("format") else {
            let message = Message::new(Code::E05, "the manifest does not say its format");
            self.report.push(message.at(self.mark(0..0, "")).write("format = 1"));
            return Some(());
        };
        let format = match value.get_ref() {
            DeValue::Integer(format) if format.radix() == 10 => format.as_str(),
            _ => return self.wrong_type(value, "format", "the number 1", Some("format = 1")),
        };
        if format == "1" {
            return Some(());
        }
        let text = format!("format {} is not one that this tool reads", quote(format));
        let message = Message::new(Code::E09, text).at(self.mark(value.span(), ""));
        self.report.push(message.write("format = 1"));
        None
    }

    fn vms(&mut self, table: &DeTable<'_>) -> Option<Vec<Vm>> {
        const EXAMPLE: &str = "[vm.NAME], and below it cpus, memory and kernel";
        let Some(value) = table.get("vm") else {
            let message = Message::new(Code::E08, "the manifest has no VM");
            self.report.push(message.at(self.mark(0..0, "")).write(EXAMPLE));
            return None;
        };
        let DeValue::Table(vms) = value.get_ref() else {
            return self.wrong_type(value, "vm", "a table for each VM", Some(EXAMPLE));
        };
        // The parser sorts by name; what counts is the order in the file.
        let mut vms: Vec<_> = vms.iter().collect();
        vms.sort_by_key(|(name, _)| name.span().start);
        let message = match vms.get(VMS_MAX) {
            None if !vms.is_empty() => None,
            None => Some(Message::new(Code::E08, "the manifest has no VM").write(EXAMPLE)),
            Some((name, _)) => {
                let text = format!("{} VMs, but at most {VMS_MAX} are possible", vms.len());
                Some(Message::new(Code::E08, text).at(self.mark(name.span(), "one too many")))
            }
        };
        if let Some(message) = message {
            self.report.push(message);
            return None;
        }
        let vms: Vec<_> = vms.iter().map(|(name, value)| self.vm(name, value)).collect();
        self.in_order(vms.into_iter().collect::<Option<_>>()?)
    }

    /// Reads a VM and the names of those that it starts after.
    fn vm(
        &mut self,
        name: &Spanned<toml::de::DeString<'_>>,
        value: &Value<'_>,
    ) -> Option<(Vm, Vec<Spanned<String>>)> {
        let name = Spanned::new(name.span(), name.get_ref().to_string());
        if let Err(wrong) = value::name(name.get_ref()) {
            let text = format!("{}: {}", quote(name.get_ref()), wrong.why);
            let mut message = Message::new(Code::E08, text).at(self.mark(name.span(), ""));
            if let Some(instead) = wrong.instead {
                message = message.write(format!("[vm.{instead}]"));
            }
            self.report.push(message);
            return None;
        }
        let DeValue::Table(table) = value.get_ref() else {
            let header = format!("[vm.{}]", name.get_ref());
            return self.wrong_type(value, name.get_ref(), "a VM", Some(&header));
        };
        self.check_keys(table, &keys::VM);
        self.check_complete(&name, table);
        let cpus = self.field(table, "cpus", Self::cores);
        let memory = self.field(table, "memory", Self::size);
        let kernel = self.field(table, "kernel", Self::path);
        let kernel_format = match table.get("kernel_format") {
            Some(value) => self.choice(value, "kernel_format", &[("flat", KernelFormat::Flat)]),
            None => Some(KernelFormat::Detected),
        };
        let ramdisk = self.optional(table, "ramdisk", Self::path);
        let cmdline = self.optional(table, "cmdline", Self::cmdline);
        let devices = self.devices(table);
        let unconfined_dma = self.names_of_devices(table, "unconfined_dma");
        let (policies, after) = self.policies(table)?;
        let vm = Vm {
            name,
            cpus: cpus?,
            memory: memory?,
            kernel: kernel?,
            kernel_format: kernel_format?,
            ramdisk: ramdisk?,
            cmdline: cmdline?,
            devices: devices?,
            unconfined_dma: unconfined_dma?,
            policies,
        };
        Some((vm, after))
    }

    /// Names all keys that a VM lacks in one message, with those in mind that stand for them.
    fn check_complete(&mut self, name: &Spanned<String>, table: &DeTable<'_>) {
        let examples =
            [("cpus", "cpus = \"0\""), ("memory", "memory = \"512M\""), ("kernel", "kernel = …")];
        let meant = |key: &str| match keys::VM.kind(key) {
            Kind::Foreign(ours) | Kind::Unknown(Some(ours)) => Some(ours),
            _ => None,
        };
        let present = |wanted: &str| {
            table.keys().any(|key| key.get_ref() == wanted || meant(key.get_ref()) == Some(wanted))
        };
        let missing: Vec<_> = examples.iter().filter(|(key, _)| !present(key)).collect();
        if missing.is_empty() {
            return;
        }
        let keys: Vec<_> = missing.iter().map(|(key, _)| *key).collect();
        let lines: Vec<_> = missing.iter().map(|(_, example)| *example).collect();
        let text = format!("VM {} lacks {}", quote(name.get_ref()), keys.join(", "));
        let message = Message::new(Code::E05, text).at(self.mark(name.span(), ""));
        self.report.push(message.write(lines.join(", ")));
    }

    fn console(&mut self, value: &Value<'_>) -> Option<Console> {
        let table = self.table(value, "console")?;
        self.check_keys(table, &keys::CONSOLE);
        let mut console = Console::default();
        if let Some(value) = table.get("mode") {
            let modes = [("focus", ConsoleMode::Focus), ("tagged", ConsoleMode::Tagged)];
            console.mode = self.choice(value, "mode", &modes)?;
        }
        if let Some(value) = table.get("escape") {
            let text = self.string(value, "escape")?;
            console.escape = self.well_formed(value, "escape", value::control_key(&text))?;
        }
        Some(console)
    }

    /// Reads where requests come in: one port, or the console and one more.
    fn control(&mut self, value: &Value<'_>) -> Option<Vec<Spanned<String>>> {
        const EXAMPLE: &str = "port = \"console\", or a UART: port = \"serial1\"";
        let table = self.table(value, "control")?;
        self.check_keys(table, &keys::CONTROL);
        let Some(value) = table.get("port") else {
            let message = Message::new(Code::E05, "[control] does not say its port");
            self.report.push(message.at(self.mark(value.span(), "")).write(EXAMPLE));
            return None;
        };
        let ports = match value.get_ref() {
            DeValue::Array(ports) if ports.is_empty() || ports.len() > 2 => {
                let text = "requests come in by the console, by one UART of their own, or by both";
                return self.malformed(value, text, Some(EXAMPLE.into()));
            }
            DeValue::Array(ports) => {
                let ports = ports.iter().map(|port| self.spanned(port, "port", Self::string));
                ports.collect::<Option<Vec<_>>>()?
            }
            _ => vec![self.spanned(value, "port", Self::string)?],
        };
        if let [first, second] = &*ports
            && (first.get_ref() == CONSOLE_PORT) == (second.get_ref() == CONSOLE_PORT)
        {
            let text = "two ports are the console and one UART";
            return self.malformed(value, text, Some("port = [\"console\", \"serial1\"]".into()));
        }
        Some(ports)
    }

    fn knobs(&mut self, value: &Value<'_>) -> Option<(Knobs, Option<u64>)> {
        let table = self.table(value, "test")?;
        self.check_keys(table, &keys::TEST);
        let mut knobs = Knobs::default();
        if let Some(value) = table.get("list_registers_max") {
            knobs.list_registers_max = Some(self.small(value, "list_registers_max", 1..17)?);
        }
        if let Some(value) = table.get("vmid_bits_max") {
            knobs.vmid_bits_max = Some(self.small(value, "vmid_bits_max", 1..17)?);
        }
        if let Some(value) = table.get("mitigations_off") {
            knobs.mitigations_off = self.boolean(value, "mitigations_off")?;
        }
        if let Some(value) = table.get("report_reset_cost") {
            knobs.report_reset_cost = self.boolean(value, "report_reset_cost")?;
        }
        if let Some(value) = table.get("watch_off") {
            knobs.watch_off = self.boolean(value, "watch_off")?;
        }
        knobs.fault_at_start = self.fault(table)?;
        let seed = match table.get("seed") {
            Some(value) => Some(self.integer(value, "seed", 0..u64::MAX)?),
            None => None,
        };
        Some((knobs, seed))
    }

    fn cores(&mut self, value: &Value<'_>, key: &str) -> Option<Cores> {
        match value.get_ref() {
            DeValue::String(list) => {
                self.well_formed(value, key, value::cpulist(list)).map(Cores::Numbers)
            }
            DeValue::Array(array) if array.iter().all(|item| item.get_ref().is_str()) => {
                if array.is_empty() || array.len() > CPUS_MAX {
                    let text = format!("a VM has 1 to {CPUS_MAX} cores");
                    return self.malformed(value, text, None);
                }
                let labels: Option<Vec<_>> =
                    array.iter().map(|item| self.spanned(item, key, Self::string)).collect();
                labels.map(Cores::Labels)
            }
            DeValue::Array(array) => {
                let numbers = array.iter().map(|item| match item.get_ref() {
                    DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
                    _ => None,
                });
                let list = numbers.take(CPUS_MAX).collect::<Option<Vec<_>>>();
                let fixed = list.map(|list| format!("cpus = \"{}\"", list.join(",")));
                let wanted = "a list in a string, or labels";
                self.wrong_type(value, key, wanted, fixed.as_deref())
            }
            DeValue::Integer(_) => {
                let fixed = count_as_list(value.get_ref());
                self.wrong_type(value, key, "a list in a string", Some(&fixed))
            }
            _ => self.wrong_type(value, key, "a list in a string, or labels", Some("cpus = \"0\"")),
        }
    }

    fn size(&mut self, value: &Value<'_>, key: &str) -> Option<u64> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().into(),
            _ => return self.wrong_type(value, key, "a size in a string", Some("\"512M\"")),
        };
        self.well_formed(value, key, value::size(&text))
    }

    fn path(&mut self, value: &Value<'_>, key: &str) -> Option<PathBuf> {
        let text = self.string(value, key)?;
        if text.is_empty() || text.contains('\0') {
            return self.malformed(value, format!("{key} is no path"), None);
        }
        Some(text.into())
    }

    fn cmdline(&mut self, value: &Value<'_>, key: &str) -> Option<String> {
        let text = self.string(value, key)?;
        match value::cmdline(&text) {
            Ok(text) => Some(text),
            Err(wrong) => self.malformed(value, wrong.why, None),
        }
    }
}

/// Returns the list that somebody means who writes the number of vCPUs.
fn count_as_list(value: &DeValue<'_>) -> String {
    let count = match value {
        DeValue::Integer(count) if count.radix() == 10 => count.as_str().parse::<u32>().ok(),
        _ => None,
    };
    match count {
        Some(count @ 2..=64) => {
            format!("cpus = \"0-{}\" (which cores; the count follows)", count - 1)
        }
        _ => "cpus = \"0\" (which cores; the count follows)".into(),
    }
}
