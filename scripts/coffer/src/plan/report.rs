// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer plan` prints: the board, who has what, and where things stand in each guest.
#![forbid(unsafe_code)]

mod policies;

use super::memory::available_bytes;
use super::{HYPERVISOR_BYTES, Planned, cores};
use crate::board::Board;
use crate::bundle::Bundle;
use crate::message::{JsonMessage, bytes};
use crate::plan::layout::VUART_BYTES;
use cofferdam::addr::{Address, Ipa};
use cofferdam::plan::{ConsoleMode, Layout, SpiPlan, VgicFrames, VmPlan};
use policies::JsonPolicies;
use serde::Serialize;
use std::fmt::Write;

/// The version of the JSON.
const FORMAT: u32 = 1;

impl Planned {
    /// Writes the report for people, without the warnings.
    #[must_use]
    pub fn to_text(&self, board: &Board) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.head(board, &mut text);
        let _ = self.table(&mut text);
        text
    }

    fn head(&self, board: &Board, text: &mut String) -> std::fmt::Result {
        let machine = &board.machine;
        let plan = &self.bundle.plan;
        let digest: String = board.tree_sha256().chars().take(12).collect();
        let (count, memory) = (machine.cores.len(), bytes(machine.memory_bytes()));
        let model = machine.model.escape_debug();
        writeln!(
            text,
            "board  {} ({model}, {count} cpus, {memory})  tree sha256:{digest}…",
            plan.board
        )?;
        let groups: Vec<_> = self.core_groups(board).iter().map(CoreGroup::to_text).collect();
        writeln!(text, "cpus   {}", groups.join(" | "))?;
        write!(text, "ram   ")?;
        for vm in &plan.vms {
            write!(text, " {} {} ", vm.name, bytes(vm.memory.size()))?;
        }
        let (bundle, free) = self.bundle_and_free_bytes(board);
        let (hypervisor, bundle, free) = (bytes(HYPERVISOR_BYTES), bytes(bundle), bytes(free));
        writeln!(text, " hypervisor {hypervisor}  bundle {bundle}  free {free}")?;
        if let Some(uart) = &plan.machine.uart {
            let key = char::from(plan.console.escape | 0x40);
            match plan.console.mode {
                ConsoleMode::Focus => {
                    writeln!(text, "uart   {}, Ctrl-{key} moves the focus", uart.path)?
                }
                ConsoleMode::Tagged => writeln!(text, "uart   {}, every line tagged", uart.path)?,
            }
        }
        if plan.control.is_there() {
            let console = plan.control.on_console.then_some("on the console");
            let uart = plan.control.uart.as_ref().map(|uart| uart.path.as_str());
            let ports: Vec<_> = console.into_iter().chain(uart).collect();
            writeln!(text, "ctrl   {}", ports.join(", "))?;
        }
        for vm in &plan.vms {
            let chosen = JsonPolicies::new(&vm.policies, &plan.vms).chosen();
            if !chosen.is_empty() {
                writeln!(text, "policy {}: {chosen}", vm.name)?;
            }
        }
        Ok(())
    }

    fn table(&self, text: &mut String) -> std::fmt::Result {
        let vms = &self.bundle.plan.vms;
        let width = vms.iter().map(|vm| vm.name.len()).max().unwrap_or(0).max(2);
        writeln!(text, "\n{:width$}  {:8}  {:24}  {:>6}", "VM", "WHAT", "WHERE", "SIZE")?;
        for vm in vms {
            for row in self.rows(vm) {
                let Row { what, ipa, size_bytes, note } = row;
                let place = format!("{ipa:#010x}..{:#010x}", ipa.saturating_add(size_bytes));
                let size = bytes(size_bytes);
                let line = format!("{:width$}  {what:8}  {place:24}  {size:>6}  {note}", vm.name);
                writeln!(text, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }

    fn rows(&self, vm: &VmPlan) -> Vec<Row> {
        let row = |what, ipa: Ipa, size_bytes, note: &str| Row {
            what,
            ipa: ipa.get(),
            size_bytes,
            note: note.into(),
        };
        let mut rows = vec![row("memory", vm.memory.start(), vm.memory.size(), "")];
        for image in &vm.images {
            let stored = self.bundle.images.iter().find(|stored| *stored.name == *image.name);
            let note = stored.map_or("", |stored| stored.description.as_str());
            let what = stored.map_or("image", |stored| stored.kind.word());
            rows.push(row(what, image.ipa, image.size_bytes, note));
        }
        let layout = &vm.layout;
        let (version, what) = match layout.vgic {
            VgicFrames::V2 { .. } => ("GICv2", "vgicc"),
            VgicFrames::V3 { .. } => ("GICv3", "vredist"),
        };
        let frames = [
            ("vdist", layout.vdist_range(), version),
            (what, layout.vgic_range(vm.vcpus.len()), ""),
        ];
        let vits = layout.vits_range().map(|range| ("vits", Some(range), ""));
        rows.extend(frames.into_iter().chain(vits).filter_map(|(what, range, note)| {
            Some(row(what, range?.start(), range?.size(), note))
        }));
        let interrupt = format!("PL011, INTID {}", layout.vuart_interrupt);
        rows.push(row("vuart", layout.vuart, VUART_BYTES, &interrupt));
        let (gpio, watchdog) = (layout.gpio_interrupt, layout.watchdog_interrupt);
        let small = format!("PL061, INTID {gpio}; watchdog, INTID {watchdog}; panic port");
        rows.push(row("platform", layout.platform, Layout::PLATFORM_BYTES, &small));
        for device in &vm.devices {
            let interrupt = |SpiPlan { pintid, vintid, .. }: &SpiPlan| {
                format!(", SPI {} as INTID {vintid}", pintid.get().wrapping_sub(32))
            };
            let interrupts: String = device.interrupts.iter().map(interrupt).collect();
            for (range, ipa) in &device.regions {
                let note = format!("{} at {}{interrupts}, no DMA", device.path, range.start());
                rows.push(row("device", *ipa, range.size(), &note));
            }
        }
        rows
    }

    /// Returns the bytes of the bundle, and what is left of the board's memory.
    fn bundle_and_free_bytes(&self, board: &Board) -> (u64, u64) {
        let bundle = Bundle::approximate_bytes(&self.bundle.images);
        let vms = self.bundle.plan.vms.iter().map(|vm| vm.memory.size());
        let used = vms.fold(HYPERVISOR_BYTES.saturating_add(bundle), u64::saturating_add);
        (bundle, available_bytes(board).saturating_sub(used))
    }

    /// Groups the cores by owner and kind, in the order of /cpus.
    fn core_groups<'a>(&'a self, board: &'a Board) -> Vec<CoreGroup<'a>> {
        let mut groups: Vec<CoreGroup<'a>> = Vec::new();
        for (index, core) in board.machine.cores.iter().enumerate() {
            let owner = self.cores.iter().position(|cores| cores.contains(&index));
            let vm = owner.and_then(|owner| self.bundle.plan.vms.get(owner)).map(|vm| &*vm.name);
            let kind = core.short_name();
            match groups.last_mut() {
                Some(last) if last.vm == vm && last.kind == kind => last.cores.push(index),
                _ => groups.push(CoreGroup { cores: vec![index], kind, vm }),
            }
        }
        groups
    }

    /// Returns the report for `--json`.
    #[must_use]
    pub fn to_json<'a>(&'a self, board: &'a Board) -> Json<'a> {
        let (bundle_bytes, free_bytes) = self.bundle_and_free_bytes(board);
        Json {
            format: FORMAT,
            board: JsonBoard {
                name: &self.bundle.plan.board,
                model: &board.machine.model,
                memory_bytes: board.machine.memory_bytes(),
                reserved_bytes: board.machine.reserved_bytes,
                tree_sha256: board.tree_sha256(),
            },
            cpus: self.core_groups(board),
            hypervisor_bytes: HYPERVISOR_BYTES,
            bundle_bytes,
            free_bytes,
            vms: self.bundle.plan.vms.iter().map(|vm| self.json_vm(vm)).collect(),
            warnings: self.warnings.to_json(),
        }
    }

    fn json_vm<'a>(&'a self, vm: &'a VmPlan) -> JsonVm<'a> {
        let owner = self.bundle.plan.vms.iter().position(|other| other.name == vm.name);
        JsonVm {
            name: &vm.name,
            cpus: owner.and_then(|owner| self.cores.get(owner)).map_or(&[], Vec::as_slice),
            memory_bytes: vm.memory.size(),
            entry: vm.entry.get(),
            policies: JsonPolicies::new(&vm.policies, &self.bundle.plan.vms),
            places: self.rows(vm),
        }
    }
}

#[derive(Serialize, Debug)]
struct CoreGroup<'a> {
    cores: Vec<usize>,
    kind: &'a str,
    vm: Option<&'a str>,
}

impl CoreGroup<'_> {
    fn to_text(&self) -> String {
        let kind = self.kind.escape_debug();
        format!("{} {kind} {}", cores::list(&self.cores), self.vm.unwrap_or("idle"))
    }
}

/// One line of the table: something in a guest's memory map.
#[derive(Serialize, Debug)]
struct Row {
    what: &'static str,
    ipa: u64,
    size_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// The report as `--json` prints it.
#[derive(Serialize, Debug)]
pub struct Json<'a> {
    format: u32,
    board: JsonBoard<'a>,
    cpus: Vec<CoreGroup<'a>>,
    hypervisor_bytes: u64,
    bundle_bytes: u64,
    free_bytes: u64,
    vms: Vec<JsonVm<'a>>,
    warnings: Vec<JsonMessage<'a>>,
}

#[derive(Serialize, Debug)]
struct JsonBoard<'a> {
    name: &'a str,
    model: &'a str,
    memory_bytes: u64,
    reserved_bytes: u64,
    tree_sha256: String,
}

#[derive(Serialize, Debug)]
struct JsonVm<'a> {
    name: &'a str,
    cpus: &'a [usize],
    memory_bytes: u64,
    entry: u64,
    #[serde(flatten)]
    policies: JsonPolicies<'a>,
    places: Vec<Row>,
}
