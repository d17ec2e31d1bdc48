// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From the plan to VMs, and to the hypervisor that they run under.
//!
//! A VM that cannot start is left out with a line that says why; the others start.
#![forbid(unsafe_code)]

use super::bundle::Held;
use super::cores::{self, Cores};
use super::{Stage, Stop, fail, tree};
use crate::arch;
use crate::console::{Config, Console, Mode, TokenBucket};
use crate::control::Session;
use crate::drivers::bcm2835_pm::Bcm2835Pm;
use crate::drivers::gic::Distributor;
use crate::drivers::uart::Uart;
use crate::hypervisor::{
    self, Control, ControlPort, Estate, HostConsole, Hypervisor, Upload, Watch,
};
use crate::id::{Mpidr, VmId};
use crate::memory::owners::Owner;
use crate::plan::check::Report;
use crate::plan::machine::{Interrupt, Machine};
use crate::plan::{ConsoleMode, Plan, VMS_MAX, VmPlan};
use crate::spec::size::Size;
use crate::spec::vmsa::HypAttributes;
use crate::sync::{Lock, Slot};
use crate::vcpu::FaultAtStart;
use crate::vm::Vm;
use crate::vm::build::{self, BuildError};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// The bytes of output that wait for each VM.
const RING_BYTES: usize = 8 << 10;
/// Makes the console, on which no VM is yet.
#[inline(never)]
pub fn console(plan: &Plan) -> Result<Console, Stop> {
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
    Console::new(config, VMS_MAX).map_err(|e| fail(Stage::VM, &e))
}

/// Builds every VM that can start.
#[inline(never)]
pub fn build(
    plan: &Plan,
    report: &Report<'_>,
    held: &Held,
    machine: &Machine,
    cores: &Cores,
    estate: &Lock<Estate>,
) -> Result<Vec<Vm>, Stop> {
    let mut vms = Vec::new();
    for (id, vm) in (0..).map(VmId::new).zip(&plan.vms) {
        if let Some(made) = build_one(id, vm, report, held, (machine, cores), estate) {
            let (name, cpus, size) = (&vm.name, vm.vcpus.len(), Size(vm.memory.size()));
            Stage::VM.say(format_args!("{name} {cpus} cpus {size} → entering"));
            vms.push(made);
        }
    }
    if vms.is_empty() {
        return Err(fail(Stage::VM, &"no VM can start"));
    }
    Ok(vms)
}

/// Builds a VM; where it cannot start, the log says why.
fn build_one(
    id: VmId,
    vm: &VmPlan,
    report: &Report<'_>,
    held: &Held,
    (machine, cores): (&Machine, &Cores),
    estate: &Lock<Estate>,
) -> Option<Vm> {
    let refuse = |stage: Stage, why: &dyn fmt::Display| -> Option<Vm> {
        log::error!(target: stage.0, "{why}. Not starting {}.", vm.name);
        // Memory may have been set apart for it.
        estate.acquire().owners.release(Owner::Vm(id));
        None
    };
    if let Some(refusal) = report.refusal(id) {
        return refuse(Stage::MEMORY, refusal);
    }
    if let Some(cpu) = vm.vcpus.iter().find(|cpu| !cores.is_up(machine, **cpu)) {
        return refuse(Stage::CORES, &format_args!("cpu {cpu} has not come up"));
    }
    match build::build(id, vm.clone(), &|name| held.source(name), estate, &mut || ()) {
        Ok(made) => Some(made),
        Err(BuildError::NoRoom) => refuse(Stage::MEMORY, &report.no_room(id, vm)),
        Err(error @ BuildError::NoImage(_)) => refuse(Stage::BUNDLE, &error),
        Err(error @ BuildError::Interrupts(_)) => refuse(Stage::VM, &error),
        Err(error) => refuse(Stage::MEMORY, &error),
    }
}

/// Opens the ports that requests come in by. The one that is not the console's interrupts `core`
/// at first.
fn control(
    plan: &Plan,
    machine: &Machine,
    distributor: &mut Distributor,
    core: Mpidr,
) -> Result<Control, Stop> {
    let on_console = plan.control.on_console.then(Session::default);
    let port = match &machine.control {
        None => None,
        Some(uart) => {
            let Interrupt { pintid, trigger } = uart.interrupt.ok_or(Stop)?;
            let registers = arch::map_hyp(uart.registers, HypAttributes::Device)
                .map_err(|e| fail(Stage::VM, &format_args!("{}: {e}", uart.path)))?;
            let port = Uart::beside(tree::kind(uart.kind), registers.range());
            let port = ControlPort::new(port, pintid);
            distributor.enable(pintid, core, trigger);
            Some(port)
        }
    };
    Ok(Control::new(plan.board.clone(), on_console, port))
}

/// Puts the hypervisor in its place and gives every core its vCPU.
#[inline(never)]
pub fn install(
    plan: &Plan,
    machine: &Machine,
    console: Console,
    vms: Vec<Vm>,
    cores: &mut Cores,
    estate: Lock<Estate>,
) -> Result<&'static Hypervisor, Stop> {
    let mut distributor = cores.distributor.take().ok_or(Stop)?;
    let mut port = hypervisor::take_early_port();
    let uart = machine.uart.as_ref().and_then(|uart| uart.interrupt);
    let core = arch::this_mpidr();
    if let (Some(uart), Some(port)) = (uart, &mut port) {
        port.enable_receive_interrupt();
        distributor.enable(uart.pintid, core, uart.trigger);
    }
    // Of others that there are, or may come.
    let watched = !plan.knobs.watch_off && (vms.len() > 1 || plan.control.is_there());
    let is_free = |mpidr: &Mpidr| {
        cores.is_up(machine, *mpidr) && !plan.vms.iter().any(|vm| vm.vcpus.contains(mpidr))
    };
    let watcher = machine.cpus.iter().map(|cpu| cpu.mpidr).find(is_free);
    let posts = cores.posts(machine);
    let watch = match Watch::new(watcher.unwrap_or(core), posts.len()) {
        Ok(watch) => watched.then_some(watch),
        Err(error) => return Err(fail(Stage::VM, &error)),
    };
    let control = control(plan, machine, &mut distributor, core)?;
    let slots: Box<[Slot<Vm>]> = (0..VMS_MAX).map(|_| Slot::new()).collect();
    let firmware = cores::firmware(machine);
    let hypervisor = hypervisor::install(Hypervisor {
        vms: slots,
        posts,
        watch,
        console: HostConsole::new(console, port),
        control,
        upload: Upload::default(),
        distributor: Lock::new(distributor),
        uart_interrupt: uart.map(|uart| uart.pintid),
        boot_core: core,
        firmware,
        power: machine.power.map(cores::map_registers).transpose()?.map(Bcm2835Pm::new),
        workarounds: arch::HostPsci::workarounds(firmware),
        mitigations: cores::mitigations(plan),
        list_registers_max: plan.knobs.list_registers_max,
        fault_at_start: plan.knobs.fault_at_start.clone().map(FaultAtStart::new),
        reports_reset_cost: plan.knobs.report_reset_cost,
        estate,
    });
    for vm in vms {
        hypervisor.console.mux.attach(vm.id, &vm.plan.name).map_err(|e| fail(Stage::VM, &e))?;
        hypervisor.console.mux.started(vm.id);
        if let Some(slot) = hypervisor.vms.get(vm.id.index()) {
            let _ = slot.take();
        }
        hypervisor.admit(vm);
    }
    for slot in &hypervisor.vms {
        slot.look(|vm| hypervisor.post(vm));
    }
    hypervisor.place_uarts();
    hypervisor.start_all();
    Ok(hypervisor)
}
