// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The planner: from a manifest and a board to a plan, the guests' trees and the images.
//!
//! Works out what can be known before boot, and refuses what cannot work with a message that
//! points into the manifest. What it says is an allegation to EL2, which checks it again.
#![forbid(unsafe_code)]

mod cores;
pub mod devices;
pub mod layout;
pub mod report;

use crate::board::Board;
use crate::bundle::{Bundle, Image, Kind};
use crate::explain::Code;
use crate::image::{self, Kernel};
use crate::manifest::{CONSOLE_ARGUMENT, Manifest, Spanned, Vm, read_bytes};
use crate::message::{Message, Report, bytes, nearest, quote};
use crate::tree::NodeId;
use crate::tree::guest::{self, Guest, GuestDevice, Seeds};
use cofferdam::addr::{Ipa, IpaRange};
use cofferdam::plan::{
    ConsoleMode, ConsolePlan, DevicePlan, GicClaim, ImagePlan, Knobs, List, MachineClaim, NAME_MAX,
    Name, Path as PlanPath, Plan, UartClaim, VmPlan,
};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the planner sets aside for the hypervisor: image, stacks, tables, heap, the board's tree.
pub const HYPERVISOR_BYTES: u64 = 16 << 20;
/// The most bytes of one image, packed or not.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

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
    planner.check_devices_once();
    let vms: Vec<_> = manifest
        .vms
        .iter()
        .enumerate()
        .map(|(index, vm)| planner.vm(vm, cores.get(index).and_then(Option::as_deref)))
        .collect();
    planner.check_memory();
    let console = ConsolePlan {
        mode: choices.console_mode.unwrap_or(manifest.console.mode),
        escape: choices.escape.unwrap_or(manifest.console.escape),
    };
    let knobs = choices.knobs.as_ref().unwrap_or(&manifest.knobs).clone();
    let vms = vms.into_iter().collect::<Option<Vec<_>>>().and_then(List::new);
    let plan = vms.zip(machine).map(|(vms, machine)| {
        let board = board.name.clone();
        Plan { board, machine, console, vms, knobs }
    });
    let Planner { report, images, .. } = planner;
    let (plan, warnings) = report.ok_with(plan)?;
    let cores = cores.into_iter().flatten().collect();
    Ok(Planned { bundle: Bundle { plan, images: images.0 }, cores, warnings })
}

struct Planner<'a> {
    manifest: &'a Manifest,
    board: &'a Board,
    seed: Option<u64>,
    report: Report,
    images: Images,
}

/// The images so far, each kept once.
#[derive(Default)]
struct Images(Vec<Image>);

impl Images {
    /// Keeps an image, unless the same is there already, and returns its name.
    fn add(&mut self, kind: Kind, description: String, bytes: Vec<u8>) -> String {
        let same = |image: &&Image| image.kind == kind && *image.bytes == *bytes;
        if let Some(image) = self.0.iter().find(same) {
            return image.name.clone();
        }
        let number = self.0.iter().filter(|image| image.kind == kind).count();
        self.push(format!("{}-{number}", kind.word()), kind, description, bytes)
    }

    /// Keeps a VM's tree, under the VM's name where there is room for it.
    fn add_tree(&mut self, vm: &str, bytes: Vec<u8>) -> String {
        let description = format!("for {vm}");
        let name = format!("{vm}-tree");
        if name.len() > NAME_MAX {
            return self.add(Kind::Tree, description, bytes);
        }
        self.push(name, Kind::Tree, description, bytes)
    }

    fn push(&mut self, name: String, kind: Kind, description: String, bytes: Vec<u8>) -> String {
        self.0.push(Image { name: name.clone(), description, kind, bytes: bytes.into() });
        name
    }
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
        if machine.gic.version != 3 {
            let text = "this board has a GICv2; guests need a GICv3 in this version";
            return self.error(Message::new(Code::E32, text).at(board()));
        }
        let uart = machine.uart.as_ref().and_then(|uart| {
            let path = PlanPath::try_from(self.board.tree.path(uart.node).as_str()).ok()?;
            Some(UartClaim { path, registers: uart.registers })
        });
        if uart.is_none() {
            let text = "the board's tree names no UART for the console";
            self.report.push(Message::new(Code::W01, text).at(board()));
        }
        let gic = GicClaim::V3 { gicd: machine.gic.gicd };
        Some(MachineClaim { memory_bytes: machine.memory_bytes(), gic, uart })
    }

    fn vm(&mut self, vm: &Vm, cores: Option<&[usize]>) -> Option<VmPlan> {
        let memory = self.memory(vm);
        // Everything is looked at before the first error ends it, so that all are reported.
        let limit = (*vm.memory.get_ref()).min(IMAGE_BYTES_MAX);
        let kernel = self.kernel(vm, limit);
        let ramdisk = match &vm.ramdisk {
            Some(path) => self.file(path, limit).map(Some),
            None => Some(None),
        };
        let devices = self.devices(vm);
        let (memory, kernel, ramdisk, cores) = (memory?, kernel?, ramdisk?, cores?);
        let (plans, guests): (Vec<DevicePlan>, Vec<GuestDevice>) = devices?.into_iter().unzip();

        let ramdisk_bytes = ramdisk.as_ref().map_or(0, |ramdisk| length(ramdisk));
        let placed = layout::place(memory, kernel.placement, ramdisk_bytes);
        let places = match placed {
            Ok(places) => places,
            Err(error) => return self.does_not_fit(vm, &error),
        };
        let tree = self.tree(vm, memory, cores, places.ramdisk, &guests);
        if length(&tree) > layout::TREE_BYTES_MAX {
            let text = format!("the device tree of {} is too long", quote(vm.name.get_ref()));
            return self.error(Message::new(Code::E14, text));
        }

        let mut images = vec![(self.images.add_tree(vm.name.get_ref(), tree), layout::RAM)];
        let described = format!("{}: {}", shown(vm.kernel.get_ref()), kernel.format);
        let name = self.images.add(Kind::Kernel, described, kernel.bytes);
        images.push((name, places.kernel));
        if let Some((ramdisk, range)) = ramdisk.zip(places.ramdisk) {
            let path = vm.ramdisk.as_ref().map(|path| shown(path.get_ref()));
            let name = self.images.add(Kind::Ramdisk, path.unwrap_or_default(), ramdisk);
            images.push((name, range.start()));
        }
        let machine = &self.board.machine;
        let mpidrs = cores.iter().filter_map(|core| Some(machine.cores.get(*core)?.mpidr));
        Some(VmPlan {
            name: Name::try_from(vm.name.get_ref().as_str()).ok()?,
            vcpus: List::new(mpidrs.collect())?,
            memory,
            images: self.image_plans(images)?,
            entry: places.entry,
            tree: layout::RAM,
            layout: layout::virtual_devices(),
            devices: List::new(plans)?,
            on_reboot: vm.on_reboot,
        })
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

    fn memory(&mut self, vm: &Vm) -> Option<IpaRange> {
        let size = *vm.memory.get_ref();
        let here = self.manifest.mark(vm.memory.span(), "");
        if !size.is_multiple_of(layout::RAM_ALIGNMENT) {
            let message = Message::new(Code::E04, "a VM's memory is a multiple of 2M").at(here);
            let Some(rounded) = size.checked_next_multiple_of(layout::RAM_ALIGNMENT) else {
                return self.error(message);
            };
            return self.error(message.write(format!("memory = \"{}M\"", rounded >> 20)));
        }
        match IpaRange::new(layout::RAM, size) {
            Some(memory) => Some(memory),
            None => self.error(Message::new(Code::E13, "no board has so much memory").at(here)),
        }
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
        match image::kernel(file, limit) {
            Ok(kernel) => {
                for (code, text) in &kernel.warnings {
                    self.report.push(Message::new(*code, text).at(here.clone()));
                }
                Some(kernel)
            }
            Err(error) => self.error(Message::new(Code::E15, error.to_string()).at(here)),
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
        devices: &[GuestDevice],
    ) -> Vec<u8> {
        let given = vm.cmdline.as_ref().map_or("", |cmdline| cmdline.get_ref());
        let has_console = given.split(' ').any(|argument| argument.starts_with("console="));
        let bootargs = match (has_console, given) {
            (true, given) => given.into(),
            (false, "") => CONSOLE_ARGUMENT.to_owned(),
            (false, given) => format!("{CONSOLE_ARGUMENT} {given}"),
        };
        let machine = &self.board.machine;
        guest::write(&Guest {
            name: vm.name.get_ref(),
            vcpus: cores
                .iter()
                .filter_map(|core| Some(machine.cores.get(*core)?.compatible.as_slice()))
                .collect(),
            memory,
            layout: &layout::virtual_devices(),
            bootargs: &bootargs,
            ramdisk,
            has_pmu: machine.has_pmu,
            seeds: &seeds(self.seed, vm.name.get_ref()),
            devices,
        })
    }

    fn devices(&mut self, vm: &Vm) -> Option<Vec<(DevicePlan, GuestDevice)>> {
        let mut window = devices::Window::default();
        let assigned: Vec<_> = vm
            .devices
            .iter()
            .map(|device| {
                let name = device.get_ref();
                let result = devices::find(&self.board.tree, name)
                    .and_then(|node| devices::assign(self.board, name, node, &mut window));
                result.or_else(|refusal| {
                    let mark = self.manifest.mark(device.span(), "");
                    let mut message = Message::new(refusal.code, refusal.text).at(mark);
                    if let Some(write) = refusal.write {
                        message = message.write(write);
                    }
                    self.report.push(message);
                    Err(())
                })
            })
            .collect();
        assigned.into_iter().collect::<Result<_, ()>>().ok()
    }

    /// Reports every device that is given away a second time.
    fn check_devices_once(&mut self) {
        let mut given: Vec<(NodeId, &Vm, &Spanned<String>)> = Vec::new();
        for vm in &self.manifest.vms {
            for device in &vm.devices {
                let Ok(node) = devices::find(&self.board.tree, device.get_ref()) else { continue };
                if let Some((_, owner, first)) = given.iter().find(|(id, _, _)| *id == node) {
                    let (name, path) = (vm.name.get_ref(), self.board.tree.path(node));
                    let text = format!(
                        "{} is given to {} and to {}",
                        quote(&path),
                        quote(owner.name.get_ref()),
                        quote(name)
                    );
                    let message = Message::new(Code::E17, text)
                        .at(self.manifest.mark(device.span(), format!("{name} takes it again")))
                        .at(self
                            .manifest
                            .mark(first.span(), format!("{} has it", owner.name.get_ref())));
                    self.report.push(message);
                }
                given.push((node, vm, device));
            }
        }
    }

    /// Compares what all VMs, the hypervisor and the bundle take with what the board has.
    fn check_memory(&mut self) {
        let available = available_bytes(self.board);
        let bundle = Bundle::approximate_bytes(&self.images.0);
        let mut needed = HYPERVISOR_BYTES.saturating_add(bundle);
        let mut over = None;
        for vm in &self.manifest.vms {
            needed = needed.saturating_add(*vm.memory.get_ref());
            if needed > available && over.is_none() {
                over = Some(vm);
            }
        }
        let Some(over) = over else { return };
        let vms: Vec<_> = self
            .manifest
            .vms
            .iter()
            .map(|vm| format!("{} {}", vm.name.get_ref(), bytes(*vm.memory.get_ref())))
            .collect();
        let text = format!(
            "{} + hypervisor {} + bundle {} = {}, but the board has {} of memory to give",
            vms.join(" + "),
            bytes(HYPERVISOR_BYTES),
            bytes(bundle),
            bytes(needed),
            bytes(available)
        );
        let mark = self.manifest.mark(over.memory.span(), "this passes the end");
        let excess = needed.saturating_sub(available).next_multiple_of(layout::RAM_ALIGNMENT);
        let mut message = Message::new(Code::E13, text).at(mark);
        if let Some(left) = over.memory.get_ref().checked_sub(excess).filter(|left| *left > 0) {
            message = message.write(format!("memory = \"{}M\", or less elsewhere", left >> 20));
        }
        self.report.push(message);
    }
}

/// Returns the path of the file in the same directory that was probably meant.
fn nearest_file(given: &Path, resolved: &Path) -> Option<String> {
    const LOOKED_AT_MAX: usize = 1000;
    let wanted = resolved.file_name()?.to_str()?;
    let entries = std::fs::read_dir(resolved.parent()?).ok()?.flatten().take(LOOKED_AT_MAX);
    let names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let others = names.iter().map(String::as_str).filter(|name| *name != wanted);
    let near = nearest(wanted, others)?;
    Some(given.with_file_name(near).to_string_lossy().into_owned())
}

/// Returns the bytes of memory that are not reserved.
fn available_bytes(board: &Board) -> u64 {
    board.machine.memory_bytes().saturating_sub(board.machine.reserved_bytes)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Returns a path for the report, on one line and not without end.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Draws seeds, or derives them from a fixed one and the VM's name.
fn seeds(fixed: Option<u64>, vm: &str) -> Seeds {
    let mut seeds = Seeds { kaslr: 0, rng: [0; 64] };
    let mut random = [0; 72];
    match fixed {
        Some(fixed) => {
            use sha2::{Digest, Sha512};
            let first = Sha512::digest(format!("{fixed} {vm}"));
            let second = Sha512::digest(first);
            for (byte, value) in random.iter_mut().zip(first.iter().chain(&second)) {
                *byte = *value;
            }
        }
        None => {
            // Without it the seeds stay zero, which kernels take for none.
            let source = std::fs::File::open("/dev/urandom");
            let _ = source.and_then(|mut source| source.read_exact(&mut random));
        }
    }
    if let Some((rng, kaslr)) = random.split_first_chunk() {
        seeds.rng = *rng;
        seeds.kaslr = kaslr.try_into().map_or(0, u64::from_be_bytes);
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_seeds_are_the_same_for_a_vm_and_differ_between_vms() {
        assert_eq!(seeds(Some(1), "a"), seeds(Some(1), "a"));
        assert_ne!(seeds(Some(1), "a"), seeds(Some(1), "b"));
        assert_ne!(seeds(Some(1), "a"), seeds(Some(2), "a"));
        assert_ne!(seeds(None, "a"), seeds(None, "a"));
        assert_ne!(seeds(Some(1), "a").kaslr, 0);
    }

    #[test]
    fn equal_images_are_kept_once() {
        let mut images = Images::default();
        let mut add = |kind, bytes: &[u8]| images.add(kind, String::new(), bytes.to_vec());
        assert_eq!(add(Kind::Kernel, b"a"), "kernel-0");
        assert_eq!(add(Kind::Kernel, b"b"), "kernel-1");
        assert_eq!(add(Kind::Kernel, b"a"), "kernel-0");
        assert_eq!(add(Kind::Ramdisk, b"a"), "ramdisk-0");
        assert_eq!(images.add_tree("vm", b"a".to_vec()), "vm-tree");
        assert_eq!(images.add_tree(&"x".repeat(31), b"a".to_vec()), "vm-tree");
        assert_eq!(images.add_tree(&"x".repeat(31), b"b".to_vec()), "tree-1");
    }
}
