// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The planner: from a manifest and a board to a plan, the guests' trees and the images.
//!
//! Works out what can be known before boot, and refuses what cannot work with a message that
//! points into the manifest. What it says is an allegation to EL2, which checks it again.
#![forbid(unsafe_code)]

mod accept;
mod cores;
mod devices;
mod images;
pub mod layout;
mod memory;
pub mod report;
mod seeds;
mod single;

pub use memory::HYPERVISOR_BYTES;

use crate::board::Board;
use crate::bundle::{Bundle, Kind};
use crate::explain::Code;
use crate::image::{self, ImageError, Kernel};
use crate::manifest::{
    CONSOLE_ARGUMENT, CONSOLE_PORT, Devices, KernelFormat, Manifest, Spanned, Vm, read_bytes,
};
use crate::message::{Message, Report, nearest, quote};
use crate::tree::NodeId;
use crate::tree::guest::{self, Guest};
use cofferdam::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use cofferdam::plan::{
    ConsoleMode, ConsolePlan, ControlPlan, GicClaim, ImagePlan, Knobs, List, MachineClaim, Name,
    Path as PlanPath, Placement, Plan, UartClaim, VmPlan,
};
use devices::Share;
use images::Images;
use std::path::{Path, PathBuf};

/// The most bytes of one image, packed or not.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// What a Linux is told that owns what others need too: it must not switch off what nobody in its
/// own tree uses.
const PROVIDER_ARGUMENTS: &str = "clk_ignore_unused pd_ignore_unused regulator_ignore_unused";

/// What the caller wants other than the manifest says.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// How the consoles share the UART.
    pub console_mode: Option<ConsoleMode>,
    /// The byte that moves the focus.
    pub escape: Option<u8>,
    /// Knobs for tests.
    pub knobs: Option<Knobs>,
    /// Fixes the guests' seeds.
    pub seed: Option<u64>,
}

/// What was planned.
#[derive(Debug)]
pub struct Planned {
    /// The plan and its images.
    pub bundle: Bundle,
    /// For each VM its cores by their places in /cpus.
    pub cores: Vec<Vec<usize>>,
    /// What is doubtful.
    pub warnings: Report,
}

/// Plans.
///
/// # Errors
/// Everything that stands in the way, with the warnings among it.
pub fn plan(manifest: &Manifest, board: &Board, choices: &Choices) -> Result<Planned, Report> {
    let mut planner = Planner::new(manifest, board, choices);
    let machine = planner.machine();
    let cores = cores::assign(&mut planner);
    let shares = planner.share_devices();
    let vms: Vec<_> = manifest
        .vms
        .iter()
        .enumerate()
        .map(|(index, vm)| {
            let share = shares.as_ref().and_then(|shares| shares.get(index));
            planner.vm(vm, cores.get(index).and_then(Option::as_deref), share)
        })
        .collect();
    planner.check_memory();
    let console = ConsolePlan {
        mode: choices.console_mode.unwrap_or(manifest.console.mode),
        escape: choices.escape.unwrap_or(manifest.console.escape),
    };
    let control = planner.control();
    let knobs = choices.knobs.as_ref().unwrap_or(&manifest.knobs).clone();
    let vms = vms.into_iter().collect::<Option<Vec<_>>>().and_then(List::new);
    let plan = vms.zip(machine).zip(control).map(|((vms, machine), control)| {
        let board = board.name.clone();
        Plan { board, machine, console, control, vms, knobs }
    });
    let Planner { report, images, .. } = planner;
    let (plan, mut warnings) = report.ok_with(plan)?;
    let bundle = Bundle { plan, images: images.0 };
    warnings.append(accept::objections(manifest, board, &bundle));
    let cores = cores.into_iter().flatten().collect();
    let (bundle, warnings) = warnings.ok_with(Some(bundle))?;
    Ok(Planned { bundle, cores, warnings })
}

struct Planner<'a> {
    manifest: &'a Manifest,
    board: &'a Board,
    seed: Option<u64>,
    report: Report,
    images: Images,
}

/// What a VM is made of.
struct Parts {
    memory: IpaRange,
    kernel: Kernel,
    ramdisk: Option<Vec<u8>>,
}

impl<'a> Planner<'a> {
    fn new(manifest: &'a Manifest, board: &'a Board, choices: &Choices) -> Self {
        let seed = choices.seed.or(manifest.seed);
        Self { manifest, board, seed, report: Report::default(), images: Images::default() }
    }

    fn error<T>(&mut self, message: Message) -> Option<T> {
        self.report.push(message);
        None
    }

    /// Claims what the board's tree says of the machine.
    fn machine(&mut self) -> Option<MachineClaim> {
        let machine = &self.board.machine;
        let board = || self.manifest.mark(self.manifest.board.span(), "");
        let uart = accept::console(self.board).and_then(|uart| {
            let path = PlanPath::try_from(self.board.tree.path(uart.node).as_str()).ok()?;
            Some(UartClaim { path, registers: uart.registers })
        });
        if uart.is_none() {
            let text = match &machine.uart {
                Some(uart) => {
                    let path = quote(&self.board.tree.path(uart.node));
                    format!("the hypervisor has no driver for the console's UART {path}")
                }
                None => "the board's tree names no UART for the console".into(),
            };
            self.report.push(Message::new(Code::W01, text).at(board()));
        }
        let gicd = machine.gic.gicd;
        let is_v2 = machine.gic.version == 2;
        let gic = if is_v2 { GicClaim::V2 { gicd } } else { GicClaim::V3 { gicd } };
        Some(MachineClaim { memory_bytes: machine.memory_bytes(), gic, uart })
    }

    /// Finds the UART that requests come in by.
    fn control(&mut self) -> Option<ControlPlan> {
        let mut control = ControlPlan::default();
        for port in &self.manifest.control {
            if port.get_ref() == CONSOLE_PORT {
                control.on_console = true;
            } else {
                control.uart = Some(self.control_uart(port)?);
            }
        }
        Some(control)
    }

    fn control_uart(&mut self, port: &Spanned<String>) -> Option<UartClaim> {
        let (board, name) = (self.board, port.get_ref());
        let mark = self.manifest.mark(port.span(), "");
        let Some(node) = self.resolve(name) else {
            let text = format!("the board has no UART {}", quote(name));
            let mut message = Message::new(Code::E16, text).at(mark);
            let label = name.trim_start_matches('&');
            let known = board.tree.labels().chain([CONSOLE_PORT]);
            if let Some(near) = nearest(label, known) {
                message = message.write(format!("port = \"{near}\""));
            }
            return self.error(message);
        };
        if board.machine.uart.as_ref().is_some_and(|uart| uart.node == node) {
            let text = format!("{} is the console's UART", quote(name));
            return self.error(Message::new(Code::E18, text).at(mark).write("port = \"console\""));
        }
        let claim = || {
            let path = PlanPath::try_from(board.tree.path(node).as_str()).ok()?;
            let (start, size) = *board.tree.registers(node)?.first()?;
            Some(UartClaim { path, registers: PaRange::new(Pa::new(start), size)? })
        };
        let text = format!("{} has no registers that a core can reach", quote(name));
        claim().or_else(|| self.error(Message::new(Code::E18, text).at(mark)))
    }

    fn vm(&mut self, vm: &Vm, cores: Option<&[usize]>, share: Option<&Share>) -> Option<VmPlan> {
        let parts = self.parts(vm);
        let (parts, cores, share) = (parts?, cores?, share?);
        let ramdisk_bytes = parts.ramdisk.as_ref().map_or(0, |ramdisk| length(ramdisk));
        let places = match layout::place(parts.memory, parts.kernel.placement, ramdisk_bytes) {
            Ok(places) => places,
            Err(error) => return self.does_not_fit(vm, &error),
        };
        let tree = self.tree(vm, parts.memory, cores, places.ramdisk, share);
        if length(&tree) > layout::TREE_BYTES_MAX {
            let text = format!("the device tree of {} is too long", quote(vm.name.get_ref()));
            let mark = self.manifest.mark(vm.name.span(), "");
            return self.error(Message::new(Code::E14, text).at(mark));
        }
        self.warn_left_out(vm, share);
        let images = self.keep(vm, tree, parts.kernel, parts.ramdisk, &places);
        let machine = &self.board.machine;
        let mpidrs = cores.iter().filter_map(|core| Some(machine.cores.get(*core)?.mpidr));
        Some(VmPlan {
            name: Name::try_from(vm.name.get_ref().as_str()).ok()?,
            vcpus: List::new(mpidrs.collect())?,
            memory: parts.memory,
            placement: Placement::Anywhere,
            images: self.image_plans(images)?,
            entry: places.entry,
            tree: layout::RAM,
            layout: layout::virtual_devices(machine.gic.version),
            devices: List::new(share.plans.clone())?,
            policies: vm.policies.clone(),
        })
    }

    /// Says what a VM that gets everything does not get.
    fn warn_left_out(&mut self, vm: &Vm, share: &Share) {
        const SHOWN: usize = 8;
        let Devices::Everything { span, .. } = &vm.devices else { return };
        if share.left_out.is_empty() {
            return;
        }
        let shown: Vec<&str> = share.left_out.iter().take(SHOWN).map(String::as_str).collect();
        let more = match share.left_out.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let (name, count) = (quote(vm.name.get_ref()), share.left_out.len());
        let text = format!("{name} does not get {count} devices: {}{more}", shown.join("; "));
        let mark = self.manifest.mark(span.clone(), "");
        self.report.push(Message::new(Code::W10, text).at(mark));
    }

    /// Looks at everything that a VM is made of before the first error ends it.
    fn parts(&mut self, vm: &Vm) -> Option<Parts> {
        let memory = self.memory(vm);
        let limit = (*vm.memory.get_ref()).min(IMAGE_BYTES_MAX);
        let kernel = self.kernel(vm, limit);
        let ramdisk = match &vm.ramdisk {
            Some(path) => self.file(path, limit).map(Some),
            None => Some(None),
        };
        Some(Parts { memory: memory?, kernel: kernel?, ramdisk: ramdisk? })
    }

    /// Puts a VM's images into the bundle and returns their names and addresses.
    fn keep(
        &mut self,
        vm: &Vm,
        tree: Vec<u8>,
        kernel: Kernel,
        ramdisk: Option<Vec<u8>>,
        places: &layout::Places,
    ) -> Vec<(String, Ipa)> {
        let mut images = vec![(self.images.add_tree(vm.name.get_ref(), tree), layout::RAM)];
        let described = format!("{}: {}", shown(vm.kernel.get_ref()), kernel.format);
        images.push((self.images.add(Kind::Kernel, described, kernel.bytes), places.kernel));
        if let Some((ramdisk, range)) = ramdisk.zip(places.ramdisk) {
            let path = vm.ramdisk.as_ref().map(|path| shown(path.get_ref()));
            let name = self.images.add(Kind::Ramdisk, path.unwrap_or_default(), ramdisk);
            images.push((name, range.start()));
        }
        images
    }

    fn image_plans<const MAX: usize>(
        &self,
        images: Vec<(String, Ipa)>,
    ) -> Option<List<ImagePlan, MAX>> {
        let plan = |(name, ipa): (String, Ipa)| {
            let image = self.images.0.iter().find(|image| image.name == name)?;
            let size_bytes = length(&image.bytes);
            Some(ImagePlan { name: Name::try_from(name.as_str()).ok()?, ipa, size_bytes })
        };
        List::new(images.into_iter().map(plan).collect::<Option<Vec<_>>>()?)
    }

    /// Reads a file of no more than `limit` bytes and at least one.
    fn file(&mut self, path: &Spanned<PathBuf>, limit: u64) -> Option<Vec<u8>> {
        let resolved = self.manifest.resolve(path.get_ref());
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let why = match read_bytes(&resolved, limit) {
            Ok(bytes) if !bytes.is_empty() => return Some(bytes),
            Ok(_) => "this file is empty".into(),
            Err(why) => why,
        };
        let text = format!("{}: {why}", quote(&resolved.to_string_lossy()));
        let mut message = Message::new(Code::E07, text).at(self.manifest.mark(path.span(), ""));
        if let Some(near) = nearest_file(path.get_ref(), &resolved) {
            message = message.write(quote(&near).replace('`', "\""));
        }
        self.error(message)
    }

    fn kernel(&mut self, vm: &Vm, limit: u64) -> Option<Kernel> {
        let file = self.file(&vm.kernel, limit)?;
        let here = self.manifest.mark(vm.kernel.span(), "");
        if vm.kernel_format == KernelFormat::Flat {
            return Some(image::flat(file));
        }
        match image::kernel(file, limit) {
            Ok(kernel) => {
                for (code, text) in &kernel.warnings {
                    self.report.push(Message::new(*code, text).at(here.clone()));
                }
                Some(kernel)
            }
            Err(error) => {
                let message = Message::new(Code::E15, error.to_string()).at(here);
                self.error(match error {
                    ImageError::Unknown => {
                        message.write("kernel_format = \"flat\" below it, if it is bare code")
                    }
                    _ => message,
                })
            }
        }
    }

    fn does_not_fit<T>(&mut self, vm: &Vm, error: &layout::PlaceError) -> Option<T> {
        let text = format!("{}: {error}", quote(vm.name.get_ref()));
        let mut message =
            Message::new(Code::E14, text).at(self.manifest.mark(vm.memory.span(), ""));
        if let Some(needed) = error.memory_needed() {
            message = message.write(format!("memory = \"{}M\", or more", needed >> 20));
        }
        self.error(message)
    }

    fn tree(
        &mut self,
        vm: &Vm,
        memory: IpaRange,
        cores: &[usize],
        ramdisk: Option<IpaRange>,
        share: &Share,
    ) -> Vec<u8> {
        let given = vm.cmdline.as_ref().map_or("", |cmdline| cmdline.get_ref());
        let is_complete = vm.kernel_format == KernelFormat::Flat
            || given.split(' ').any(|argument| argument.starts_with("console="));
        let mut bootargs = match (is_complete, given) {
            (true, given) => given.into(),
            (false, "") => CONSOLE_ARGUMENT.to_owned(),
            (false, given) => format!("{CONSOLE_ARGUMENT} {given}"),
        };
        if share.provides && vm.kernel_format != KernelFormat::Flat {
            bootargs = format!("{PROVIDER_ARGUMENTS} {bootargs}");
        }
        let machine = &self.board.machine;
        guest::write(&Guest {
            name: vm.name.get_ref(),
            vcpus: cores
                .iter()
                .filter_map(|core| Some(machine.cores.get(*core)?.compatible.as_slice()))
                .collect(),
            memory,
            layout: &layout::virtual_devices(machine.gic.version),
            bootargs: &bootargs,
            ramdisk,
            has_pmu: machine.has_pmu,
            seeds: &seeds::seeds(self.seed, vm.name.get_ref()),
            devices: share.nodes.clone(),
        })
    }

    /// Finds a node by its path, alias or label, with or without `&`.
    fn resolve(&self, name: &str) -> Option<NodeId> {
        self.board.tree.resolve(name.strip_prefix('&').unwrap_or(name))
    }
}

/// Returns the path of the file in the same directory that was probably meant.
fn nearest_file(given: &Path, resolved: &Path) -> Option<String> {
    const LOOKED_AT_MAX: usize = 1000;
    let wanted = resolved.file_name()?.to_str()?;
    let directory = resolved.parent().filter(|parent| *parent != Path::new(""));
    let entries = std::fs::read_dir(directory.unwrap_or(Path::new("."))).ok()?;
    let entries = entries.flatten().take(LOOKED_AT_MAX);
    let names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let others = names.iter().map(String::as_str).filter(|name| *name != wanted);
    let near = nearest(wanted, others)?;
    Some(given.with_file_name(near).to_string_lossy().into_owned())
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Returns a path for the report, on one line and not without end.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().filter(|c| !c.is_control()).take(100).collect()
}
