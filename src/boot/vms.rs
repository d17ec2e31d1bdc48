// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From the plan to VMs: memory placed, stage 2 built, models made, cores assigned.
//!
//! A VM that cannot start is left out with a line that says why; the others start.
#![forbid(unsafe_code)]

use super::bundle::Held;
use super::cores::{self, Cores};
use super::{Stage, Stop, fail};
use crate::addr::{IpaRange, PAGE_SIZE, PaRange};
use crate::arch::{self, HeapTables, Stage2Registers, Tlb};
use crate::console::{Config, Console, Mode, TokenBucket};
use crate::drivers::bcm2835_pm::Bcm2835Pm;
use crate::gic::{Version, Vgic, Vits};
use crate::hypervisor::{self, HostConsole, Hypervisor, SpiOwner};
use crate::id::{Mpidr, Pintid, VcpuId, Vintid, VmId};
use crate::memory::guest::GuestMemory;
use crate::memory::owners::{Owner, Owners};
use crate::memory::stage2::Stage2;
use crate::memory::vmid::Vmids;
use crate::plan::check::Report;
use crate::plan::machine::{Gic, Machine};
use crate::plan::{ConsoleMode, Plan, SpiPlan, VMS_MAX, VgicFrames, VmPlan};
use crate::psci::Psci;
use crate::sort::sort_by_key;
use crate::spec::size::Size;
use crate::spec::vmsa::{Geometry, HypAttributes, Stage2Attributes};
use crate::sync::{Lock, OpenLock};
use crate::trace::ExitCounters;
use crate::vcpu::Core;
use crate::vm::Vm;
use crate::vm::bus::Bus;
use crate::vm::lifecycle::Lifecycle;
use crate::vm::load::{Image, Loader};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize};

/// The bits of an IPA. Every VM has the same, so that one root serves from 1 GiB to 1 TiB.
pub const IPA_BITS: u32 = 40;
/// The bytes of output that wait for each VM.
const RING_BYTES: usize = 8 << 10;
/// The SPIs that every VM has at least: as many as QEMU's `virt` has.
const SPI_COUNT: u32 = 256;

/// Makes the console and names the VMs on it.
#[inline(never)]
pub fn console(plan: &Plan) -> Console {
    let hz = arch::counter_frequency_hz();
    let mode = match plan.console.mode {
        ConsoleMode::Tagged => Mode::Tagged,
        ConsoleMode::Focus => Mode::Focus,
    };
    let config = Config {
        mode,
        escape: plan.console.escape,
        ring_bytes: RING_BYTES,
        partial_after_ticks: hz / 10,
        messages: TokenBucket::new(8, hz / 4),
    };
    Console::new(config, plan.vms.iter().map(|vm| vm.name.clone()).collect())
}

/// Builds every VM that can start.
#[inline(never)]
pub fn build(
    plan: &'static Plan,
    report: &Report<'_>,
    held: &Held,
    machine: &Machine,
    owners: &mut Owners,
    cores: &Cores,
) -> Result<Vec<Vm>, Stop> {
    let bits = cores.features.vmid_bits.min(plan.knobs.vmid_bits_max.map_or(16, u32::from));
    let mut vmids = Vmids::<VMS_MAX>::new(bits);
    let mut vms = Vec::new();
    for (vm, n) in plan.vms.iter().zip(0u8..) {
        let id = VmId::new(n);
        let mut builder =
            Builder { id, vm, report, held, machine, cores, owners, vmids: &mut vmids };
        match builder.build() {
            Ok(vm) => vms.push(vm),
            Err(Refused) => owners.release(Owner::Vm(id)),
        }
    }
    if vms.is_empty() {
        return Err(fail(Stage::VM, &"no VM can start"));
    }
    Ok(vms)
}

/// A VM does not start; the log says why.
struct Refused;

/// What it takes to build one VM.
struct Builder<'a> {
    id: VmId,
    vm: &'static VmPlan,
    report: &'a Report<'a>,
    held: &'a Held,
    machine: &'a Machine,
    cores: &'a Cores,
    owners: &'a mut Owners,
    vmids: &'a mut Vmids<VMS_MAX>,
}

impl Builder<'_> {
    fn refuse(&self, stage: Stage, why: fmt::Arguments<'_>) -> Refused {
        log::error!(target: stage.0, "{why}. Not starting {}.", self.vm.name);
        Refused
    }

    #[inline(never)]
    /// Refuses for a reason that the error tells.
    fn no_memory(&self, error: &dyn fmt::Display) -> Refused {
        self.refuse(Stage::MEMORY, format_args!("{error}"))
    }

    fn build(&mut self) -> Result<Vm, Refused> {
        if let Some(refusal) = self.report.refusal(self.id) {
            return Err(self.no_memory(refusal));
        }
        if let Some(cpu) = self.vm.vcpus.iter().find(|cpu| !self.cores.is_up(self.machine, **cpu)) {
            return Err(self.refuse(Stage::CORES, format_args!("cpu {cpu} has not come up")));
        }
        let memory = self.place()?;
        let stage2 = self.translate(&memory)?;
        let loader = self.loader(&memory)?;
        let vm = self.vm;
        let affinities: Vec<Mpidr> =
            (0..).take(vm.vcpus.len()).map(|n| Vm::mpidr_of(VcpuId::new(n))).collect();
        let links: Vec<(Vintid, Pintid)> = vm
            .devices
            .iter()
            .flat_map(|d| d.interrupts.iter())
            .map(|spi| (spi.vintid, spi.pintid))
            .collect();
        let version = match vm.layout.vgic {
            VgicFrames::V2 { .. } => Version::V2,
            VgicFrames::V3 { .. } => Version::V3,
        };
        let (vgic, spis) = Vgic::new(version, &affinities, SPI_COUNT, &links)
            .map_err(|e| self.refuse(Stage::VM, format_args!("interrupts: {e}")))?;
        let vits = vm.layout.vits_range().map(|_| Lock::new(Vits::new()));
        let vgic = if vits.is_some() { vgic.with_lpis() } else { vgic };
        let bus = Bus::new(&vm.layout, vm.vcpus.len());
        let name = &vm.name;
        let (cpus, size) = (vm.vcpus.len(), Size(vm.memory.size()));
        Stage::VM.say(format_args!("{name} {cpus} cpus {size} → entering"));
        Ok(Vm {
            id: self.id,
            plan: vm,
            stage2,
            memory,
            psci: Psci::new(&affinities),
            vgic,
            spis: OpenLock::new(spis),
            vits,
            serial: Lock::default(),
            bus,
            lifecycle: Lifecycle::new(),
            loader,
            counter_offset_ticks: AtomicU64::new(0),
            pcpus: vm.vcpus.iter().copied().collect(),
            kicks: vm.vcpus.iter().map(|mpidr| arch::SgiTarget::new(*mpidr)).collect(),
            counters: vm.vcpus.iter().map(|_| ExitCounters::default()).collect(),
            pa_range: crate::spec::vmsa::ps(IPA_BITS),
        })
    }

    /// Finds memory, as few and as large pieces as there are.
    fn place(&mut self) -> Result<GuestMemory, Refused> {
        let pieces = self.owners.place(self.vm.memory.size(), Owner::Vm(self.id));
        let pieces = pieces.map_err(|_| {
            let refusal = self.report.no_room(self.id, self.vm);
            self.no_memory(&refusal)
        })?;
        GuestMemory::lay_out(self.vm.memory.start(), &pieces).map_err(|e| self.no_memory(&e))
    }

    /// Makes stage 2 map that memory and the devices that the VM drives, and nothing else.
    fn translate(&mut self, memory: &GuestMemory) -> Result<Stage2Registers, Refused> {
        let geometry = Geometry::stage2(IPA_BITS.min(self.cores.features.pa_bits))
            .ok_or_else(|| self.no_memory(&"no such IPA size"))?;
        let root = HeapTables::allocate_root(geometry.root_bytes())
            .ok_or_else(|| self.no_memory(&"no memory for stage 2"))?;
        let vmid = self.vmids.allocate(arch::forget_all_vmids);
        let vmid = vmid.ok_or_else(|| self.no_memory(&"no VMID left"))?;
        let stage2 = Stage2::new(geometry, self.cores.features, root, vmid);
        let mut stage2 =
            stage2.ok_or_else(|| self.no_memory(&"stage 2 does not fit this machine"))?;
        let mut tlb = Tlb::default();
        let mut map =
            |ipa, pa, attributes| stage2.map(&mut HeapTables, &mut tlb, ipa, pa, attributes);
        for chunk in memory.chunks() {
            map(chunk.ipa, chunk.pa, Stage2Attributes::Ram).map_err(|e| self.no_memory(&e))?;
        }
        for (registers, ipa) in self.vm.devices.iter().flat_map(|d| d.regions.iter()) {
            let claimed = self.owners.claim_device(*registers, Owner::Vm(self.id));
            claimed.map_err(|e| self.no_memory(&e))?;
            let ipa = IpaRange::new(*ipa, registers.size());
            let ipa = ipa.ok_or_else(|| self.no_memory(&"a device's window wraps"))?;
            map(ipa, registers.start(), Stage2Attributes::Device)
                .map_err(|e| self.no_memory(&e))?;
        }
        if let (VgicFrames::V2 { gicc }, Gic::V2 { gicv: Some(gicv), .. }) =
            (self.vm.layout.vgic, &self.machine.gic)
        {
            // The first page alone: GICV_DIR, in the second one, is answered by EL2 (ADR 9).
            let page =
                IpaRange::new(gicc, PAGE_SIZE).ok_or_else(|| self.no_memory(&"GICC wraps"))?;
            map(page, gicv.start(), Stage2Attributes::Device).map_err(|e| self.no_memory(&e))?;
        }
        let encoding = self.cores.features.encoding;
        Ok(Stage2Registers { vttbr: stage2.vttbr_el2(), vtcr: stage2.vtcr_el2(), encoding })
    }

    /// Maps the memory at EL2 and finds the images that go into it.
    fn loader(&mut self, memory: &GuestMemory) -> Result<Loader, Refused> {
        let mut mapped = Vec::new();
        for chunk in memory.chunks() {
            let range = PaRange::new(chunk.pa, chunk.ipa.size()).ok_or(Refused)?;
            let memory =
                arch::map_hyp(range, HypAttributes::Data).map_err(|e| self.no_memory(&e))?;
            mapped.push((*chunk, memory));
        }
        let mut images = Vec::new();
        for image in self.vm.images.iter() {
            let found = self.held.bundle.image(&image.name);
            let source = found.and_then(|found| {
                let bytes = u64::try_from(found.bytes.len()).ok()?;
                self.held.memory.part(u64::try_from(found.offset).ok()?, bytes)
            });
            let (Some(found), Some(source)) = (found, source) else {
                let name = &image.name;
                return Err(self.refuse(Stage::BUNDLE, format_args!("the bundle has no {name}")));
            };
            images.push(Image { source, ipa: image.ipa, crc32c: found.crc32c });
        }
        Ok(Loader::new(images.into(), mapped.into()))
    }
}

/// Puts the hypervisor in its place and gives every core its vCPU.
#[inline(never)]
pub fn install(
    plan: &Plan,
    machine: &Machine,
    console: Console,
    vms: Vec<Vm>,
    cores: &mut Cores,
) -> Result<&'static Hypervisor, Stop> {
    let mut distributor = cores.distributor.take().ok_or(Stop)?;
    let mut port = hypervisor::take_early_port();
    let uart = machine.uart.as_ref().and_then(|uart| uart.interrupt);
    if let (Some(uart), Some(port)) = (uart, &mut port) {
        port.enable_receive_interrupt();
        distributor.enable(uart.pintid, arch::this_mpidr(), uart.trigger);
    }
    let mut spis = Vec::new();
    for vm in &vms {
        console.started(vm.id);
        for device in vm.plan.devices.iter() {
            for SpiPlan { pintid, vintid, trigger } in device.interrupts.iter().copied() {
                spis.push(SpiOwner { pintid, vm: vm.id, vintid });
                if let Some(target) = vm.pcpus.first() {
                    distributor.enable(pintid, *target, trigger);
                }
            }
        }
    }
    sort_by_key(&mut spis, |owner| owner.pintid.get().into());
    let firmware = cores::firmware(machine);
    let hypervisor = hypervisor::install(Hypervisor {
        live: AtomicUsize::new(vms.len()),
        vms: vms.into(),
        console: HostConsole::new(console, port),
        distributor: Lock::new(distributor),
        uart_interrupt: uart.map(|uart| uart.pintid),
        spis: spis.into(),
        firmware,
        power: machine.power.map(cores::map_registers).transpose()?.map(Bcm2835Pm::new),
        workarounds: arch::HostPsci::workarounds(firmware),
        mitigations: cores::mitigations(plan),
        list_registers_max: plan.knobs.list_registers_max,
        fault_at_start: plan.knobs.fault_at_start,
        reports_reset_cost: plan.knobs.report_reset_cost,
    });
    for vm in &hypervisor.vms {
        for (mpidr, n) in vm.pcpus.iter().zip(0..) {
            let taken = cores.take_private_interrupts(machine, *mpidr);
            let (pcpu, private) = taken.ok_or(Stop)?;
            let core = Core::new(hypervisor, vm, VcpuId::new(n), private).ok_or(Stop)?;
            cores.assign(pcpu, Box::new(core));
        }
    }
    Ok(hypervisor)
}
