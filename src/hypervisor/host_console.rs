// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console and the one physical UART.
//!
//! Whoever has bytes to send tries to get the UART, and never waits for it: who holds it looks for
//! more when it has given it back. So a guest waits for no other guest's output.
//!
//! What does not go out at once goes out by the UART's interrupt on a core that no VM has. Where
//! every core has one, the interrupt would be at the cost of whichever guest is on the core that
//! takes it; so whoever wrote last looks again, by its own core's timer.
#![forbid(unsafe_code)]

use crate::arch;
use crate::console::{Console, Drained, Input, Sent, SerialPort, Switch};
use crate::drivers::uart::Uart;
use crate::id::VmId;
use crate::sync::Lock;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// How many bytes one visit sends: the time at EL2 stays bounded, the UART's interrupt goes on.
const SEND_BUDGET_BYTES: usize = 32;
/// How many bytes one visit takes in.
pub(super) const RECEIVE_MAX: usize = 16;
/// How often in a second who has written looks whether the UART takes more: before a FIFO of 16
/// bytes is empty at 460,800 baud.
const LOOKS_PER_SECOND: u64 = 4000;
/// Nobody looks after the rest, in place of an affinity.
const NOBODY: u64 = u64::MAX;
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
    /// Whose core looks after what did not go out at once, where the UART's interrupt does not.
    looker: AtomicU64,
}

impl HostConsole {
    /// Joins a console and the UART, where there is one.
    #[must_use]
    pub fn new(mux: Console, port: Option<Uart>) -> Self {
        Self {
            mux,
            port: Lock::new(Port { uart: port, wanted: Switch::Off, server: Server::FreeCore }),
            has_more: AtomicBool::new(false),
            has_replies: AtomicBool::new(false),
            looker: AtomicU64::new(NOBODY),
        }
    }

    /// Says who takes the UART's interrupt from now on, once `route` has seen to it. Follow with
    /// [`Self::send`].
    pub(super) fn serve_by(&self, route: impl FnOnce() -> Server) {
        let mut port = self.port.acquire();
        port.server = route();
        // Whoever sends next finds out who looks after the rest.
        self.looker.store(NOBODY, Ordering::Relaxed);
        let wanted = port.wanted;
        port.set_send_interrupt(wanted);
    }

    /// Sends what is ready as [`Self::send`] does, unless another core looks after that: then it
    /// goes on doing so, though this one was interrupted.
    pub(super) fn send_rest(&self) {
        self.has_more.store(true, Ordering::Relaxed);
        // Pairs with the second one of `send`: either that core sees the flag when it has sent
        // everything, or it is seen here that nobody looks any more.
        fence(Ordering::SeqCst);
        let looker = self.looker.load(Ordering::Relaxed);
        if looker == NOBODY || looker == own() {
            self.send();
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
            let Some(mut port) = self.port.try_lock() else {
                // Who holds it may only take in, and leaves the rest to the one who looks after it.
                if self.looker.load(Ordering::Relaxed) == own() {
                    arch::arm_hyp_timer(look_again_at());
                }
                return;
            };
            self.has_more.store(false, Ordering::Relaxed);
            let drained = self.mux.drain(&mut *port, SEND_BUDGET_BYTES, arch::counter());
            let looks = drained == Drained::MoreLeft && port.server == Server::GuestsCore;
            self.looker.store(if looks { own() } else { NOBODY }, Ordering::Relaxed);
            drop(port);
            if looks {
                arch::arm_hyp_timer(look_again_at());
            }
            if let Drained::HeldUntil(ticks) = drained {
                arch::arm_hyp_timer(ticks);
            }
            // Where more is left the port's interrupt or timer comes, and the time for replies.
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

    /// Sends everything, waiting for the port: at boot, and before the machine goes off. Not for
    /// ever: who holds it may be stuck.
    pub fn send_all(&self) {
        const ROUNDS_MAX: u32 = 10_000_000;
        for _ in 0..ROUNDS_MAX {
            if let Some(mut port) = self.port.try_lock()
                && self.mux.drain(&mut *port, SEND_BUDGET_BYTES, u64::MAX) == Drained::Empty
            {
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

    /// Returns whether a reply waits whose next line has room.
    pub(super) fn can_reply(&self) -> bool {
        self.has_replies.load(Ordering::Relaxed) && self.mux.has_log_room()
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

/// Returns when who looks after the rest looks again.
fn look_again_at() -> u64 {
    arch::counter().saturating_add(arch::counter_frequency_hz() / LOOKS_PER_SECOND)
}

/// Returns who this core is, among those that look after the rest.
fn own() -> u64 {
    arch::this_mpidr().get()
}

/// Whose core takes the UART's interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Server {
    /// One that no VM has.
    FreeCore,
    /// A guest's, since there is no other one: it is not to be interrupted for what others send.
    GuestsCore,
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
struct Port {
    uart: Option<Uart>,
    /// Whether the console wants to hear when bytes can be sent again.
    wanted: Switch,
    server: Server,
}

impl SerialPort for Port {
    fn try_send(&mut self, byte: u8) -> Sent {
        self.uart.as_mut().map_or(Sent::Yes, |uart| uart.try_send(byte))
    }
    fn try_receive(&mut self) -> Option<u8> {
        self.uart.as_mut()?.try_receive()
    }
    fn set_send_interrupt(&mut self, switch: Switch) {
        self.wanted = switch;
        if let Some(uart) = &mut self.uart {
            let is_served = self.server == Server::FreeCore;
            uart.set_send_interrupt(if is_served { switch } else { Switch::Off });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Address, Pa, PaRange};
    use crate::arch::fake::machine::Event;
    use crate::arch::fake::machine::with;
    use crate::console::{Config, Mode, Push, TokenBucket};
    use crate::drivers::uart::UartKind;
    use std::sync::Barrier;

    const UART: u64 = 0x1200_0000;
    /// UARTIMSC, and the bit of what is sent (DDI 0183 3.3.10).
    const IMSC: u64 = UART + 0x38;
    const TX: u64 = 1 << 5;

    /// A guest that has written more than goes out at once, on a machine whose UART has this
    /// server.
    fn flooded(server: Server) -> HostConsole {
        let config = Config {
            mode: Mode::Tagged,
            escape: 0x1d,
            ring_bytes: 2048,
            partial_after_ticks: 100,
            messages: TokenBucket::new(1, 1),
        };
        let uart = Uart::new(UartKind::Pl011, PaRange::new(Pa::new(UART), 0x1000).unwrap());
        let console = HostConsole::new(console(config, &["a"]), Some(uart));
        console.serve_by(|| server);
        console.mux.started(VmId::new(0));
        for _ in 0..1000 {
            assert_eq!(console.mux.push_guest(VmId::new(0), b'\n'), Push::Accepted);
        }
        with(|core| core.events.clear());
        console.send();
        console
    }

    /// Returns whether the UART is to interrupt for what is left, and whether this core's timer is.
    fn comes_back() -> (bool, bool) {
        with(|core| {
            (core.devices.get(&IMSC).is_some_and(|m| m & TX != 0), core.hyp_timer.is_some())
        })
    }

    fn sent() -> usize {
        let is_sent =
            |event: &&Event| matches!(event, Event::DeviceWrite(at, _) if at.get() == UART);
        with(|core| core.events.iter().filter(is_sent).count())
    }

    #[test]
    fn a_flood_interrupts_no_guest_but_its_own_and_is_not_lost() {
        let console = flooded(Server::GuestsCore);
        let mut looks = 0;
        while with(|core| core.hyp_timer.take()).is_some() {
            assert_eq!(comes_back(), (false, false));
            console.send_rest();
            looks += 1;
        }
        assert_eq!(console.looker.load(Ordering::Relaxed), NOBODY);
        // Each line is a tag of three bytes and its end of two.
        assert_eq!((sent(), console.mux.room(VmId::new(0))), (5000, 2048));
        assert!((5000 / SEND_BUDGET_BYTES..2 * 5000 / SEND_BUDGET_BYTES).contains(&looks));
    }

    #[test]
    fn twin_by_the_interrupt_somebody_else_hears_of_a_flood() {
        flooded(Server::FreeCore);
        assert_eq!(comes_back(), (true, false));
    }

    /// What is left when the last free core gets a VM, or one becomes free, comes back by the other
    /// way.
    #[test]
    fn what_is_left_follows_who_serves() {
        let console = flooded(Server::FreeCore);
        console.serve_by(|| Server::GuestsCore);
        console.send();
        assert_eq!(comes_back(), (false, true));
        console.serve_by(|| Server::FreeCore);
        assert!(comes_back().0);
    }

    #[test]
    fn the_rest_is_whose_core_wrote_last() {
        let console = flooded(Server::GuestsCore);
        let (before, other) = (sent(), 7);
        with(|core| core.hyp_timer = None);
        console.looker.store(other, Ordering::Relaxed);
        console.send_rest();
        assert_eq!((sent(), comes_back()), (before, (false, false)), "that is the other's");
        assert!(console.has_more.load(Ordering::Relaxed), "which looks once more");
        console.send();
        assert_eq!(console.looker.load(Ordering::Relaxed), own(), "who writes takes over");
        assert_eq!(comes_back(), (false, true));
    }

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
