// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console and the one physical UART.
//!
//! Whoever has bytes to send tries to get the UART, and never waits for it: who holds it looks for
//! more when it has given it back. So a guest waits for no other guest's output.
#![forbid(unsafe_code)]

use crate::arch;
use crate::console::{Console, Drained, Input, Sent, SerialPort, Switch};
use crate::drivers::uart::Uart;
use crate::id::VmId;
use crate::sync::Lock;
use core::sync::atomic::{AtomicBool, Ordering, fence};

/// How many bytes one visit sends: the time at EL2 stays bounded, the UART's interrupt goes on.
const SEND_BUDGET_BYTES: usize = 256;
/// How many bytes one visit takes in.
pub(super) const RECEIVE_MAX: usize = 64;
/// How often who holds the UART goes on for others.
const SEND_ROUNDS_MAX: u32 = 4;

/// The one console and the port that it speaks through.
pub struct HostConsole {
    /// Who speaks when.
    pub mux: Console,
    /// The physical UART, where there is one.
    port: Lock<Port>,
    /// Whether somebody has bytes that the holder of the port may have overlooked.
    has_more: AtomicBool,
    /// Whether lines wait for room in the log.
    has_replies: AtomicBool,
}

impl HostConsole {
    /// Joins a console and the UART, where there is one.
    #[must_use]
    pub fn new(mux: Console, port: Option<Uart>) -> Self {
        Self {
            mux,
            port: Lock::new(Port(port)),
            has_more: AtomicBool::new(false),
            has_replies: AtomicBool::new(false),
        }
    }

    /// Sends what is ready, or leaves that to who is sending; what is not ready has the UART's
    /// interrupt or this core's timer set, as have guests that wait for the room that this makes.
    pub fn send(&self) {
        self.has_more.store(true, Ordering::Relaxed);
        for _ in 0..SEND_ROUNDS_MAX {
            // This one and the one below: either the flag is seen by who holds the port, or the
            // port is seen to be free here.
            fence(Ordering::SeqCst);
            let Some(mut port) = self.port.try_lock() else { return };
            self.has_more.store(false, Ordering::Relaxed);
            let drained = self.mux.drain(&mut *port, SEND_BUDGET_BYTES, arch::counter());
            drop(port);
            if let Drained::HeldUntil(ticks) = drained {
                arch::arm_hyp_timer(ticks);
            }
            // Where more is left the port's interrupt comes, and with it the time for replies.
            let replies = drained != Drained::MoreLeft && self.has_replies.load(Ordering::Relaxed);
            if replies || self.mux.has_unblocked() {
                arch::arm_hyp_timer(arch::counter());
            }
            fence(Ordering::SeqCst);
            if !self.has_more.load(Ordering::Relaxed) {
                return;
            }
        }
        // Enough for others; this core's own guest comes in between.
        arch::arm_hyp_timer(arch::counter());
    }

    /// Sends everything, waiting for the port: at boot, and before the machine goes off.
    pub fn send_all(&self) {
        const ROUNDS_MAX: u32 = 10_000_000;
        let mut port = self.port.acquire();
        for _ in 0..ROUNDS_MAX {
            if self.mux.drain(&mut *port, SEND_BUDGET_BYTES, u64::MAX) == Drained::Empty {
                return;
            }
            arch::relax();
        }
    }

    /// Takes the port for good, as who dies while it sends.
    pub fn keep_port(&self) {
        core::mem::forget(self.port.acquire());
    }

    /// Says whether lines wait for room in the log: who sends sees to it that they get it.
    pub(super) fn set_replies(&self, waits: bool) {
        self.has_replies.store(waits, Ordering::Relaxed);
    }

    /// Takes in what the port has received, less what `is_request` takes for itself, and returns
    /// for which VMs.
    pub(super) fn receive(&self, is_request: impl Fn(u8) -> bool) -> Refresh {
        let mut refresh = Refresh::default();
        for byte in self.received() {
            if is_request(byte) {
                continue;
            }
            if let Input::ToVm(vm) | Input::Overflow(vm) = self.mux.receive(byte) {
                refresh.add(vm);
            }
        }
        refresh
    }

    /// Takes bytes from the port, which is free again when they are looked at.
    fn received(&self) -> heapless::Vec<u8, RECEIVE_MAX> {
        let mut port = self.port.acquire();
        core::iter::from_fn(|| port.try_receive()).take(RECEIVE_MAX).collect()
    }
}

/// VMs whose UART is to look at the console again.
#[derive(Clone, Copy, Default)]
pub(super) struct Refresh(u64);

impl Refresh {
    fn add(&mut self, vm: VmId) {
        self.0 |= 1 << (vm.get() & 63);
    }
    /// Adds those that may have waited for room and have it now.
    pub(super) fn add_unblocked(&mut self, mux: &Console) {
        while let Some(vm) = mux.take_unblocked() {
            self.add(vm);
        }
    }
    pub(super) fn has(self, vm: VmId) -> bool {
        self.0 & 1 << (vm.get() & 63) != 0
    }
}

/// The physical UART. A machine without one swallows what is sent: a guest that waits for room must
/// not wait for ever.
struct Port(Option<Uart>);

impl SerialPort for Port {
    fn try_send(&mut self, byte: u8) -> Sent {
        self.0.as_mut().map_or(Sent::Yes, |uart| uart.try_send(byte))
    }
    fn try_receive(&mut self) -> Option<u8> {
        self.0.as_mut()?.try_receive()
    }
    fn set_send_interrupt(&mut self, switch: Switch) {
        if let Some(uart) = &mut self.0 {
            uart.set_send_interrupt(switch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::fake::machine::with;
    use crate::console::{Config, Mode, Push, TokenBucket};
    use std::sync::Barrier;

    fn console(config: Config, names: &[&str]) -> Console {
        let console = Console::new(config, names.len()).unwrap();
        for (name, n) in names.iter().zip(0..) {
            console.attach(VmId::new(n), &(*name).try_into().unwrap()).unwrap();
        }
        console
    }

    #[test]
    fn without_a_port_nobody_waits_for_room() {
        let config = Config {
            mode: Mode::Tagged,
            escape: 0x1d,
            ring_bytes: 1024,
            partial_after_ticks: 100,
            messages: TokenBucket::new(1, 1),
        };
        let console = HostConsole::new(console(config, &["a"]), None);
        let vm = VmId::new(0);
        console.mux.started(vm);
        for n in 0..10_000 {
            let byte = if n % 40 == 0 { b'\n' } else { b'x' };
            assert_eq!(console.mux.push_guest(vm, byte), Push::Accepted, "byte {n}");
            console.send();
        }
    }

    /// Cores that send at once leave nothing behind, though none waits for another: what one does
    /// not send another does, or a timer is armed for now.
    #[test]
    fn what_is_left_to_another_core_is_sent() {
        const ROUNDS: usize = 20_000;
        let config = Config {
            mode: Mode::Tagged,
            escape: 0x1d,
            ring_bytes: 1024,
            partial_after_ticks: u64::MAX,
            messages: TokenBucket::new(1, 1),
        };
        let console = HostConsole::new(console(config, &["a", "b"]), None);
        let (vms, step) = ([0, 1].map(VmId::new), Barrier::new(2));
        let is_due = || with(|core| core.hyp_timer.take()).is_some_and(|at| at < u64::MAX);
        std::thread::scope(|scope| {
            for vm in vms {
                let (console, step) = (&console, &step);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        step.wait();
                        console.mux.push_guest(vm, b'\n');
                        console.send();
                        while is_due() {
                            console.send();
                        }
                        step.wait();
                        let rooms = vms.map(|vm| console.mux.room(vm));
                        assert_eq!(rooms, [1024, 1024], "round {round}");
                    }
                });
            }
        });
    }
}
