// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What all cores share: the VMs, the console, the physical distributor. Boot writes it once.
#![forbid(unsafe_code)]

use crate::arch;
use crate::console::{Console, Drained, HYPERVISOR_MARK, Input, Sent, SerialPort, Switch};
use crate::drivers::gicv3::Distributor;
use crate::drivers::uart::Uart;
use crate::id::{Pintid, Vintid, VmId};
use crate::plan::FaultKind;
use crate::smccc::Workarounds;
use crate::sync::{Lock, Once};
use crate::vcpu::FromCore;
use crate::vm::Vm;
use crate::vm::load::LoadCost;
use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes one visit sends: the time at EL2 stays bounded, the UART's interrupt goes on.
const SEND_BUDGET_BYTES: usize = 256;

/// What all cores share.
pub struct Hypervisor {
    /// The VMs that could start.
    pub vms: Box<[Vm]>,
    /// The one console and the port that it speaks through.
    pub console: Lock<HostConsole>,
    /// The physical distributor.
    pub distributor: Lock<Distributor>,
    /// The physical UART's interrupt, where it is known.
    pub uart_interrupt: Option<Pintid>,
    /// Whose each physical SPI is, in order.
    pub spis: Box<[SpiOwner]>,
    /// The firmware that turns the machine off, where there is one.
    pub firmware: Option<arch::HostPsci>,
    /// What the firmware says of the mitigations that cores need.
    pub workarounds: Workarounds,
    /// Whether these are done.
    pub mitigations: arch::Mitigations,
    /// No more list registers than this are used.
    pub list_registers_max: Option<u8>,
    /// Whether the cost of each start goes to the log.
    pub reports_reset_cost: bool,
    /// How EL2 faults on purpose once a vCPU starts, to show the dump.
    pub fault_at_start: Option<FaultKind>,
    /// How many VMs are not off.
    pub live: AtomicUsize,
}

/// A physical SPI that a guest handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpiOwner {
    /// The physical interrupt.
    pub pintid: Pintid,
    /// Whose it is.
    pub vm: VmId,
    /// What the guest sees.
    pub vintid: Vintid,
}

impl Hypervisor {
    /// Returns a VM.
    #[must_use]
    pub fn vm(&self, id: VmId) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.id == id)
    }

    /// Returns whose a physical SPI is.
    #[must_use]
    pub fn spi_owner(&self, pintid: Pintid) -> Option<SpiOwner> {
        let n = self.spis.binary_search_by_key(&pintid, |owner| owner.pintid).ok()?;
        self.spis.get(n).copied()
    }

    /// Notes that a VM has begun, for the first time or anew, and says what that took.
    pub fn vm_has_begun(&self, vm: &Vm, cost: LoadCost, asked_at_ticks: u64) {
        self.console.lock().mux.started(vm.id);
        if self.reports_reset_cost {
            let LoadCost { scrub_ticks, hash_ticks, copy_ticks, clean_ticks, .. } = cost;
            let LoadCost { image_bytes, memory_bytes, .. } = cost;
            // What grows with the size of images and memory is told apart from what does not.
            let loading = scrub_ticks + hash_ticks + copy_ticks + clean_ticks;
            let ticks = arch::counter().wrapping_sub(asked_at_ticks).wrapping_sub(loading);
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

    /// Counts a VM that has gone off; the last one takes the machine with it.
    pub fn vm_is_off(&self, vm: &Vm) {
        log::info!(target: "vm", "{} off", vm.plan.name);
        self.console.lock().mux.stopped(vm.id);
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            log::info!(target: "vm", "all off");
            self.console.lock().send_all();
            self.power_off();
        }
    }

    /// Turns the machine off. Where no firmware does, the core halts.
    fn power_off(&self) -> ! {
        if let Some(firmware) = self.firmware {
            firmware.system_off();
        }
        log::error!(target: "vm", "no firmware turns the machine off");
        arch::halt()
    }

    /// Serves the physical UART's interrupt: input to its VM, output that has waited.
    pub fn serve_uart(&self) {
        const INPUT_MAX: usize = 64;
        let mut refresh: u64 = 0;
        let mut console = self.console.lock();
        for _ in 0..INPUT_MAX {
            let Some(byte) = console.port.as_mut().and_then(SerialPort::try_receive) else { break };
            if let Input::ToVm(vm) | Input::Overflow(vm) = console.mux.receive(byte) {
                refresh |= 1 << (vm.get() & 63);
            }
        }
        console.send();
        while let Some(vm) = console.mux.take_unblocked() {
            refresh |= 1 << (vm.get() & 63);
        }
        drop(console);
        for vm in self.vms.iter().filter(|vm| refresh & 1 << (vm.id.get() & 63) != 0) {
            vm.refresh_serial(&FromCore { vm, own: None, hypervisor: self });
        }
    }

    /// Serves EL2's own timer: unfinished lines whose time has come.
    pub fn serve_timer(&self) {
        arch::cancel_hyp_timer();
        self.console.lock().send();
    }
}

/// The one console and the port that it speaks through.
pub struct HostConsole {
    /// Who speaks when.
    pub mux: Console,
    /// The physical UART, where there is one.
    pub port: Option<Uart>,
}

impl HostConsole {
    /// Sends what is ready; what is not has its interrupt or this core's timer set.
    pub fn send(&mut self) {
        match self.drain(arch::counter()) {
            Drained::HeldUntil(ticks) => arch::arm_hyp_timer(ticks),
            Drained::Empty | Drained::MoreLeft => {}
        }
    }

    /// Sends everything, waiting for the port: at boot, and before the machine goes off.
    pub fn send_all(&mut self) {
        const ROUNDS_MAX: u32 = 10_000_000;
        for _ in 0..ROUNDS_MAX {
            if self.drain(u64::MAX) == Drained::Empty {
                return;
            }
            arch::relax();
        }
    }

    fn drain(&mut self, now_ticks: u64) -> Drained {
        match &mut self.port {
            Some(port) => self.mux.drain(port, SEND_BUDGET_BYTES, now_ticks),
            None => self.mux.drain(&mut Nowhere, SEND_BUDGET_BYTES, now_ticks),
        }
    }
}

/// The port of a machine without a UART: a guest that waits for room must not wait for ever.
struct Nowhere;

impl SerialPort for Nowhere {
    fn try_send(&mut self, _: u8) -> Sent {
        Sent::Yes
    }
    fn try_receive(&mut self) -> Option<u8> {
        None
    }
    fn set_send_interrupt(&mut self, _: Switch) {}
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
    *EARLY_PORT.lock() = Some(port);
}

/// Takes the port back for the console.
pub fn take_early_port() -> Option<Uart> {
    EARLY_PORT.lock().take()
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
            let mut console = hypervisor.console.lock();
            console.mux.log(line);
            console.send();
        } else if let Some(port) = EARLY_PORT.lock().as_mut() {
            write_early(port, line);
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

fn write_early(port: &mut Uart, line: fmt::Arguments<'_>) {
    // A UART that has failed swallows the line; there is nobody else to tell.
    let _ = fmt::write(port, format_args!("{}{line}\n", char::from(HYPERVISOR_MARK)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Config, Mode, Push, TokenBucket};

    #[test]
    fn without_a_port_nobody_waits_for_room() {
        let config = Config {
            mode: Mode::Tagged,
            escape: 0x1d,
            ring_bytes: 1024,
            partial_after_ticks: 100,
            messages: TokenBucket::new(1, 1),
        };
        let names = [crate::console::Name::try_from("a").unwrap()];
        let mut console = HostConsole { mux: Console::new(config, &names), port: None };
        let vm = VmId::new(0);
        console.mux.started(vm);
        for n in 0..10_000 {
            let byte = if n % 40 == 0 { b'\n' } else { b'x' };
            assert_eq!(console.mux.push_guest(vm, byte), Push::Accepted, "byte {n}");
            console.send();
        }
    }
}
