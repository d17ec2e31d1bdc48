// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console multiplexer: the hypervisor's log and all guests' consoles on one serial port.
//!
//! It owns what is waiting to go out and to come in, and whose turn it is. It knows no registers
//! and no clock: the caller tells it the time and carries out what it returns. Each guest's bytes
//! have a lock of their own, so that no guest waits while another one's bytes go out. On the wire,
//! in both modes:
//!
//! - a line of the hypervisor starts with [`HYPERVISOR_MARK`], which no guest can send;
//! - lines end with CR LF;
//! - bytes of the log are never mixed into another line.
//!
//! In [`Mode::Tagged`] a guest's line is `name| text`, and its control functions are removed. In
//! [`Mode::Focus`] the guest that has the focus has the wire, unchanged but for the mark.
#![forbid(unsafe_code)]

mod bucket;
mod drain;
mod filter;
mod guest;
pub mod pl011;
mod ring;
mod source;

pub use bucket::{Admission, TokenBucket};
pub use drain::{Drained, Sent, SerialPort, Switch};
pub use guest::GuestWire;

use crate::heap::{self, NoMemory};
use crate::id::VmId;
use crate::sync::Lock;
use alloc::boxed::Box;
use core::fmt;
use core::ops::DerefMut;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::{Flow, Guest, Power, Shown};
use heapless::String;
use source::{Source, count};

/// What starts a line of the hypervisor: the record separator, which terminals do not show.
pub const HYPERVISOR_MARK: u8 = 0x1e;
/// The most bytes of text in a tagged line; a longer one is split.
pub const LINE_BYTES_MAX: usize = 256;
/// The most bytes in a VM's name.
pub const NAME_BYTES_MAX: usize = 31;
/// With less room than this (a PL011's FIFO) a guest may be waiting for more.
const ROOM_LOW: usize = 16;

/// A VM's name.
pub type Name = String<NAME_BYTES_MAX>;

/// How guests share the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Every VM's lines, each behind the VM's name.
    Tagged,
    /// The bytes of the VM that has the focus.
    Focus,
}

/// What a console is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// How guests share the wire.
    pub mode: Mode,
    /// The byte of input that moves the focus on.
    pub escape: u8,
    /// The bytes of output that wait for each VM, and for the log; at least two lines.
    pub ring_bytes: usize,
    /// How long an unfinished line waits for its end, in ticks.
    pub partial_after_ticks: u64,
    /// How often a VM may cause a message on the log.
    pub messages: TokenBucket,
}

/// What became of a guest's byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Push {
    /// It is on its way, or was removed because it must not be shown.
    Accepted,
    /// It is lost: the guest did not look whether there was room.
    Full,
}

/// What became of a byte of input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// It waits for that VM: raise its interrupt.
    ToVm(VmId),
    /// It moved the focus to that VM.
    FocusMoved(VmId),
    /// It is lost: that VM has not read what came before. The VM will see an overrun.
    Overflow(VmId),
    /// No VM is there to take it.
    Ignored,
}

/// What a source has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Bytes taken in.
    pub bytes: u64,
    /// Bytes lost because there was no room; of the log, messages.
    pub dropped: u64,
    /// Bytes removed because they must not be shown.
    pub removed: u64,
    /// Bytes of input lost.
    pub input_dropped: u64,
}

/// The multiplexer. A core that holds several of its locks takes them in the order of the fields.
#[derive(Debug)]
pub struct Console {
    config: Config,
    out: Lock<drain::Out>,
    guests: Box<[Lock<Guest>]>,
    log: Lock<Log>,
    /// The VMs that may have waited for room and have it now, a bit each.
    freed: AtomicU64,
    /// The VMs that are there, a bit each.
    attached: AtomicU64,
}

/// What the hypervisor has to say.
#[derive(Debug)]
struct Log {
    source: Source,
    /// Messages lost since the last that got into the source.
    missed: u64,
}

impl Console {
    /// Makes a console for so many VMs, none of which is there yet. This allocates, and
    /// [`Self::attach`]; nothing else does.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(config: Config, vms_max: usize) -> Result<Self, NoMemory> {
        let source = Source::new(config.ring_bytes())?;
        let nobody = || Lock::new(Guest::nobody(config.shown(), config.messages.clone()));
        let guests = heap::collect((0..vms_max).map(|_| nobody()))?;
        Ok(Self {
            out: Lock::default(),
            guests,
            log: Lock::new(Log { source, missed: 0 }),
            freed: AtomicU64::new(0),
            attached: AtomicU64::new(0),
            config,
        })
    }

    /// Takes a VM that is off and not there yet.
    ///
    /// # Errors
    /// There is no memory for what it says, or no place for it.
    pub fn attach(&self, vm: VmId, name: &Name) -> Result<(), NoMemory> {
        let Config { messages, .. } = &self.config;
        let shown = self.config.shown();
        let new = Guest::new(name.clone(), self.config.ring_bytes(), shown, messages.clone())?;
        *self.guest(vm).ok_or(NoMemory)? = new;
        self.attached.fetch_or(bit(vm), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets a VM that is off, with all that it has said and was told: what was not sent by now
    /// is lost, and the log says how much. The focus moves on.
    pub fn detach(&self, vm: VmId) {
        let mut out = self.out.acquire();
        out.forget(vm);
        let is_last_words = out.has_last_words() == Some(vm);
        if is_last_words {
            out.no_last_words();
        }
        if out.focus == Some(vm) {
            out.focus = None;
            if let Some(next) = self.next_running(Some(vm)) {
                self.set_focus(&mut out, next);
                self.announce(next, Some(vm));
            }
        }
        // Where it has lost the focus before, that was to be said once its last words are out.
        if let Some(focus) = out.focus.filter(|_| is_last_words) {
            self.announce(focus, Some(vm));
        }
        let Some(mut guest) = self.guest(vm) else { return };
        let nobody = Guest::nobody(self.config.shown(), self.config.messages.clone());
        let gone = core::mem::replace(&mut *guest, nobody);
        drop(guest);
        self.attached.fetch_and(!bit(vm), Ordering::Relaxed);
        self.freed.fetch_and(!bit(vm), Ordering::Relaxed);
        drop(out);
        if gone.source.len() > 0 {
            let (name, bytes) = (&gone.name, gone.source.len());
            self.log(format_args!("{name}: {bytes} bytes of output are lost"));
        }
    }

    /// Copies the last bytes that a VM has sent, shown or not, and returns how many.
    pub fn tail(&self, vm: VmId, buffer: &mut [u8]) -> usize {
        self.guest(vm).map_or(0, |guest| guest.source.tail(buffer))
    }

    /// Takes a byte that a guest sends. Follow with [`Self::drain`].
    pub fn push_guest(&self, vm: VmId, byte: u8) -> Push {
        self.guest(vm).map_or(Push::Full, |mut guest| guest.send(byte))
    }

    /// Returns how many bytes of a guest there is room for.
    #[must_use]
    pub fn room(&self, vm: VmId) -> usize {
        self.guest(vm).map_or(0, |guest| guest.room())
    }

    /// Returns a VM that may have waited for room and has it now, once: refresh its UART. Ask
    /// until there is none, after [`Self::drain`] and whenever the focus moves.
    pub fn take_unblocked(&self) -> Option<VmId> {
        let n = self.freed.load(Ordering::Relaxed).trailing_zeros();
        if n == u64::BITS {
            return None;
        }
        self.freed.fetch_and(!(1 << n), Ordering::Relaxed);
        u8::try_from(n).ok().map(VmId::new)
    }

    /// Returns whether [`Self::take_unblocked`] has one.
    #[must_use]
    pub fn has_unblocked(&self) -> bool {
        self.freed.load(Ordering::Relaxed) != 0
    }

    /// Returns a VM's end of the wire, for its virtual UART.
    pub fn wire(&self, vm: VmId) -> GuestWire<'_> {
        GuestWire::new(self, vm)
    }

    /// Puts a line on the log, whole or not at all. Control characters in it are removed. Follow
    /// with [`Self::drain`].
    ///
    /// After a loss nothing more is taken until half of the ring is free, and then how much was
    /// lost: so there is one gap, with its size in its place.
    pub fn log(&self, message: fmt::Arguments<'_>) {
        self.log.acquire().add(message);
    }

    /// Returns whether half of the log's room is free: what can wait goes no further.
    #[must_use]
    pub fn has_log_room(&self) -> bool {
        let log = self.log.acquire();
        log.source.room() >= log.source.size() / 2
    }

    /// Puts a line on the log that a VM has caused, behind its name, unless that VM has caused too
    /// many of late. What is kept back is counted, and told with the next that goes out.
    pub fn log_for(&self, vm: VmId, now_ticks: u64, message: fmt::Arguments<'_>) {
        let Some(mut guest) = self.guest(vm) else { return };
        let Admission::Yes { kept_back } = guest.messages.admit(now_ticks) else { return };
        drop(guest);
        let name = self.name(vm);
        if kept_back > 0 {
            self.log(format_args!("[vm!] {name}: {kept_back} messages dropped"));
        }
        self.log(format_args!("[vm!] {name} {message}"));
    }

    /// Takes a byte of input from the serial port.
    pub fn receive(&self, byte: u8) -> Input {
        let mut out = self.out.acquire();
        if byte == self.config.escape {
            return self.next_running(out.focus).map_or(Input::Ignored, |vm| {
                self.move_focus(&mut out, vm);
                Input::FocusMoved(vm)
            });
        }
        let Some(vm) = out.focus else { return Input::Ignored };
        self.guest(vm).map_or(Input::Ignored, |mut guest| guest.receive(vm, byte))
    }

    /// Says that a VM runs, or runs anew: input for what ran before is gone. It gets the focus when
    /// nobody has it.
    pub fn started(&self, vm: VmId) {
        let mut out = self.out.acquire();
        let is_taken = out.focus.is_some_and(|focus| self.is_running(focus));
        let Some(mut guest) = self.guest(vm) else { return };
        guest.start();
        drop(guest);
        match out.focus {
            None => self.set_focus(&mut out, vm),
            Some(focus) if !is_taken && focus != vm => {
                self.set_focus(&mut out, vm);
                out.no_last_words();
                self.announce(vm, Some(focus));
            }
            Some(_) => {}
        }
    }

    /// Says that a VM runs no more, and not that it starts again. The focus moves on from it once
    /// its last bytes are out.
    pub fn stopped(&self, vm: VmId) {
        let mut out = self.out.acquire();
        let Some(mut guest) = self.guest(vm) else { return };
        guest.power = Power::Off;
        drop(guest);
        if out.focus == Some(vm)
            && let Some(next) = self.next_running(out.focus)
        {
            self.set_focus(&mut out, next);
            out.last_words(vm);
        }
    }

    /// Returns the VM that input goes to.
    #[must_use]
    pub fn focus(&self) -> Option<VmId> {
        self.out.acquire().focus
    }

    /// Returns what a VM has done; what the log has, for `None`.
    #[must_use]
    pub fn counters(&self, vm: Option<VmId>) -> Counters {
        match vm {
            None => self.log.acquire().source.counters,
            Some(vm) => self.guest(vm).map_or_else(Counters::default, |g| g.source.counters),
        }
    }

    /// Gives a VM the focus and says so.
    fn move_focus(&self, out: &mut drain::Out, vm: VmId) {
        self.set_focus(out, vm);
        out.no_last_words();
        self.announce(vm, None);
    }

    fn set_focus(&self, out: &mut drain::Out, vm: VmId) {
        out.focus = Some(vm);
        if self.config.mode == Mode::Tagged {
            return;
        }
        for other in self.all() {
            let shown = if other == vm { Shown::Bytes } else { Shown::Later };
            if self.guest(other).is_some_and(|mut guest| guest.show(shown) == Flow::Freed) {
                self.has_room(other);
            }
        }
    }

    /// Says who has the focus, and that nobody asked for it where it is because another one is off:
    /// who counts key presses and answers must not take this for an answer.
    fn announce(&self, vm: VmId, off: Option<VmId>) {
        let name = self.name(vm);
        match off {
            None => self.log(format_args!("console: {name}")),
            Some(off) => self.log(format_args!("console: {name} ({} is off)", self.name(off))),
        }
    }

    /// Notes that somebody has to tell a VM that there is room again.
    fn has_room(&self, vm: VmId) {
        self.freed.fetch_or(bit(vm), Ordering::Relaxed);
    }

    /// Returns the running VM that follows the one with the focus, which may be that one itself.
    fn next_running(&self, focus: Option<VmId>) -> Option<VmId> {
        let mut first = None;
        for vm in self.all().filter(|vm| self.is_running(*vm)) {
            if Some(vm) > focus {
                return Some(vm);
            }
            first = first.or(Some(vm));
        }
        first
    }

    fn is_running(&self, vm: VmId) -> bool {
        self.guest(vm).is_some_and(|guest| guest.power == Power::Running)
    }

    /// Returns the number of places up to the last that a VM has.
    fn places(&self) -> usize {
        (u64::BITS - self.attached.load(Ordering::Relaxed).leading_zeros()) as usize
    }

    fn all(&self) -> impl Iterator<Item = VmId> {
        (0u8..).map(VmId::new).take(self.places())
    }

    fn name(&self, vm: VmId) -> Name {
        self.guest(vm).map(|guest| guest.name.clone()).unwrap_or_default()
    }

    /// Locks a VM's side.
    fn guest(&self, vm: VmId) -> Option<impl DerefMut<Target = Guest>> {
        Some(self.guests.get(vm.index())?.acquire())
    }
}

impl Config {
    /// Returns the bytes that wait for each.
    fn ring_bytes(&self) -> usize {
        self.ring_bytes.max(2 * LINE_BYTES_MAX)
    }
    /// Returns what is shown of a VM at first.
    fn shown(&self) -> Shown {
        if self.mode == Mode::Tagged { Shown::Lines } else { Shown::Later }
    }
}

/// Returns the bit of a VM.
fn bit(vm: VmId) -> u64 {
    1 << (vm.get() & 63)
}

impl Log {
    fn add(&mut self, message: fmt::Arguments<'_>) {
        let missed = self.missed;
        if missed > 0 && self.source.room() >= self.source.size() / 2 {
            self.missed = 0;
            self.push(format_args!("log: {missed} messages dropped"));
        }
        self.push(message);
    }

    fn push(&mut self, message: fmt::Arguments<'_>) {
        if self.missed > 0 || self.source.push_line(message) == Push::Full {
            count(&mut self.source.counters.dropped, 1);
            count(&mut self.missed, 1);
        }
    }
}

#[cfg(test)]
mod tests;
