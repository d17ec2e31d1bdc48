// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What all cores share: the VMs, the console, the physical distributor. Boot writes it once.
#![forbid(unsafe_code)]

pub mod audit;
mod control;
mod create;
mod dependents;
mod estate;
mod host_console;
mod upload;
mod watch;

use control::Left;
pub use control::{Control, ControlPort};
pub use estate::Estate;
pub use host_console::HostConsole;
pub use upload::Upload;
pub use watch::Watch;

use crate::arch;
use crate::console::HYPERVISOR_MARK;
use crate::drivers::bcm2835_pm::Bcm2835Pm;
use crate::drivers::gic::Distributor;
use crate::drivers::uart::Uart;
use crate::id::{Mpidr, Pintid, VcpuId, VmId};
use crate::smccc::Workarounds;
use crate::sync::{Lock, Once, Slot};
use crate::vcpu::{FaultAtStart, FromCore, Post};
use crate::vm::lifecycle::{Change, State};
use crate::vm::load::LoadCost;
use crate::vm::{Vm, build};
use alloc::boxed::Box;
use core::fmt;
use host_console::{Refresh, Server};

/// What all cores share.
pub struct Hypervisor {
    /// The VMs, by their identities.
    pub vms: Box<[Slot<Vm>]>,
    /// What each pCPU is given to do, in the order of /cpus.
    pub posts: Box<[Post]>,
    /// What VMs are made of.
    pub estate: Lock<Estate>,
    /// The one console and the port that it speaks through.
    pub console: HostConsole,
    /// Where requests come in.
    pub control: Control,
    /// What comes by there for later.
    pub upload: Upload,
    /// The physical distributor.
    pub distributor: Lock<Distributor>,
    /// The physical UART's interrupt, where it is known.
    pub uart_interrupt: Option<Pintid>,
    /// The core that has booted, which takes the UARTs' interrupts where every core has a VM.
    pub boot_core: Mpidr,
    /// The firmware that turns the machine off, where there is one.
    pub firmware: Option<arch::HostPsci>,
    /// What turns it off where that is not the firmware.
    pub power: Option<Bcm2835Pm>,
    /// What the firmware says of the mitigations that cores need.
    pub workarounds: Workarounds,
    /// Whether these are done.
    pub mitigations: arch::Mitigations,
    /// No more list registers than this are used.
    pub list_registers_max: Option<u8>,
    /// Whether the cost of each start goes to the log.
    pub reports_reset_cost: bool,
    /// Who watches the cores, where somebody does.
    pub watch: Option<Watch>,
    /// What goes wrong on purpose when a vCPU starts.
    pub fault_at_start: Option<FaultAtStart>,
}

/// How a machine ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineEnd {
    /// It goes off.
    Off,
    /// It starts again.
    Reset,
}

impl Hypervisor {
    /// Looks at a VM, where there is one of that identity.
    pub fn with_vm<R>(&self, id: VmId, look: impl FnOnce(&Vm) -> R) -> Option<R> {
        self.vms.get(id.index())?.look(look)
    }

    /// Lets the pCPUs of a VM serve its vCPUs; their posts are free or taken for it.
    pub fn post(&self, vm: &Vm) {
        for (mpidr, n) in vm.pcpus.iter().zip(0..) {
            if let Some(post) = self.posts.iter().find(|post| post.mpidr == *mpidr) {
                post.assign(vm.id, VcpuId::new(n));
            }
        }
    }

    /// Takes a VM apart that is gone, with a `pause` now and then; its core of vCPU 0 does that.
    /// Returns once all its other cores have left it.
    pub fn destroy(&self, id: VmId, pause: &mut dyn FnMut()) {
        let Some(slot) = self.vms.get(id.index()) else { return };
        // First, so that no core that has left the VM takes them over and over.
        slot.look(|vm| {
            for (_, pintid) in &vm.links {
                self.distributor.lock().release(*pintid);
            }
        });
        let Some(vm) = slot.remove() else { return };
        log::info!(target: "vm", "{} gone", vm.plan.name);
        self.console.send();
        pause();
        self.console.mux.detach(id);
        self.abandon(id);
        build::destroy(vm, &self.estate, pause);
        slot.free();
    }

    /// Has the UARTs' interrupts taken by a core that no VM has, where one is up: no guest is to
    /// pay for requests, or for what others say. Follows each change of the posts.
    #[cold]
    #[inline(never)]
    pub fn place_uarts(&self) {
        self.console.serve_by(|| {
            // Of cores that do this at once the last one sees what all have changed.
            let mut distributor = self.distributor.lock();
            let free = self.posts.iter().find(|post| post.is_free());
            let core = free.map_or(self.boot_core, |post| post.mpidr);
            for pintid in [self.uart_interrupt, self.control.interrupt()].into_iter().flatten() {
                distributor.route(pintid, core);
            }
            // A reply that is under way goes on where requests come in from now on.
            if let Some(pintid) = self.control.interrupt() {
                distributor.set_pending(pintid);
            }
            let has_server = free.is_some() && self.uart_interrupt.is_some();
            if has_server { Server::FreeCore } else { Server::GuestsCore }
        });
        self.console.send();
    }

    /// Notes that a VM has begun, for the first time or anew, and says what that took.
    pub fn vm_has_begun(&self, vm: &Vm, cost: LoadCost, asked_at_ticks: u64) {
        self.console.mux.started(vm.id);
        self.console.send();
        self.vm_is_there(vm);
        if self.reports_reset_cost {
            let LoadCost { scrub_ticks, hash_ticks, copy_ticks, clean_ticks, .. } = cost;
            let LoadCost { image_bytes, memory_bytes, .. } = cost;
            // What grows with the size of images and memory is told apart from what does not.
            let loading = [scrub_ticks, hash_ticks, copy_ticks, clean_ticks];
            let all = arch::counter().wrapping_sub(asked_at_ticks);
            let ticks = loading.into_iter().fold(all, u64::wrapping_sub);
            let what = if scrub_ticks > 0 { "start" } else { "reset" };
            log::info!(
                target: "vm",
                "{what} {}: {ticks} ticks, hash {hash_ticks}, copy {copy_ticks}, \
                 clean {clean_ticks}, scrub {scrub_ticks}, \
                 images {image_bytes}, memory {memory_bytes}",
                vm.plan.name
            );
        }
    }

    /// Ends the stop of a VM; the last one that goes off takes the machine with it, unless requests
    /// can come that start another.
    pub fn vm_is_off(&self, vm: &Vm) {
        // Before somebody can start it again.
        self.console.mux.stopped(vm.id);
        let _ = vm.fate.take_doom();
        vm.lifecycle.finish(Change::Stop);
        log::info!(target: "vm", "{} off", vm.plan.name);
        // Who has the focus now may have bytes that waited for it.
        self.console.send();
        self.vm_is_lost(vm, State::Off);
        let is_off =
            |slot: &Slot<Vm>| slot.look(|vm| vm.lifecycle.state() == State::Off).unwrap_or(true);
        if self.vms.iter().all(is_off) && !self.control.keeps_on() {
            log::info!(target: "vm", "all off");
            self.end_machine(MachineEnd::Off);
        }
    }

    /// Ends the machine, with all VMs. Where nothing does, the core halts.
    pub fn end_machine(&self, end: MachineEnd) -> ! {
        self.watch.iter().for_each(Watch::end);
        self.console.send_all();
        if let Some(firmware) = self.firmware {
            match end {
                MachineEnd::Off => firmware.system_off(),
                MachineEnd::Reset => firmware.system_reset(),
            }
        }
        let Some(power) = &self.power else {
            log::error!(target: "vm", "nothing turns the machine off");
            arch::halt()
        };
        match end {
            MachineEnd::Off => power.power_off(),
            MachineEnd::Reset => power.reset(),
        }
        arch::halt()
    }

    /// Serves an interrupt that is no guest's.
    pub fn serve_own(&self, pintid: Pintid) {
        if Some(pintid) == self.uart_interrupt {
            self.serve_uart();
        }
        if Some(pintid) == self.control.interrupt() {
            self.serve_control();
        }
    }

    /// Serves the physical UART's interrupt: input to its VM, output that has waited.
    fn serve_uart(&self) {
        let mut refresh = self.console.receive(|byte| self.take_on_console(byte));
        self.console.send_rest();
        self.give_turn();
        refresh.add_unblocked(&self.console.mux);
        self.refresh(refresh);
    }

    /// Serves EL2's own timer: unfinished lines whose time has come, and guests that have room.
    pub fn serve_timer(&self) {
        arch::cancel_hyp_timer();
        self.watch_cores();
        // Replies and output take turns: a step of either is enough for one visit.
        if self.control.take_turn() && self.go_on_with_replies() == Left::More {
            arch::arm_hyp_timer(arch::counter());
        } else {
            self.console.send_rest();
            self.give_turn();
        }
        let mut refresh = Refresh::default();
        refresh.add_unblocked(&self.console.mux);
        self.refresh(refresh);
    }

    fn refresh(&self, refresh: Refresh) {
        for (id, slot) in (0..).map(VmId::new).zip(&self.vms) {
            if refresh.has(id) {
                slot.look(|vm| vm.refresh_serial(&FromCore { vm, own: None, hypervisor: self }));
            }
        }
    }
}

static HYPERVISOR: Once<Hypervisor> = Once::new();
/// The port of the lines that come before there is a hypervisor to speak for.
static EARLY_PORT: Lock<Option<Uart>> = Lock::new(None);

/// Puts a hypervisor in its place; only boot does this, once.
pub fn install(hypervisor: Hypervisor) -> &'static Hypervisor {
    HYPERVISOR.call_once(|| hypervisor)
}

/// Returns the hypervisor, once it is there.
#[must_use]
pub fn get() -> Option<&'static Hypervisor> {
    HYPERVISOR.get()
}

/// Gives the lines of the boot a port.
pub fn set_early_port(port: Uart) {
    *EARLY_PORT.acquire() = Some(port);
}

/// Takes the port back for the console.
pub fn take_early_port() -> Option<Uart> {
    EARLY_PORT.acquire().take()
}

/// Ends a boot that cannot go on: the line that says why is out.
pub fn stop_machine() -> ! {
    arch::halt()
}

/// Where `log` goes: one line each, with the stage or the topic in front.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mark = if record.level() == log::Level::Error { "!" } else { "" };
        let line = format_args!("[{}{mark}] {}", record.target(), record.args());
        if let Some(hypervisor) = get() {
            hypervisor.console.mux.log(line);
            hypervisor.console.send();
        } else if let Some(port) = EARLY_PORT.acquire().as_mut() {
            write_line(port, line);
        }
    }

    fn flush(&self) {}
}

/// Lets `log`'s macros come here.
pub fn install_logger() {
    // A second call changes nothing.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// Writes a line of the hypervisor to a port that nobody else uses, waiting for it.
pub fn write_line(port: &mut Uart, line: fmt::Arguments<'_>) {
    // A UART that has failed swallows the line; there is nobody else to tell.
    let _ = fmt::write(port, format_args!("{}{line}\n", char::from(HYPERVISOR_MARK)));
}
