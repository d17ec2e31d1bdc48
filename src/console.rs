// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console multiplexer: the hypervisor's log and all guests' consoles on one serial port.
//!
//! It owns what is waiting to go out and to come in, and whose turn it is. It knows no registers
//! and no clock, and has no lock: the caller keeps it behind one, tells it the time and carries
//! out what it returns. On the wire, in both modes:
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

use crate::id::VmId;
use alloc::boxed::Box;
use core::fmt;
use filter::Verdict;
use guest::{Flow, Guest, Power};
use heapless::String;
use source::Source;

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

/// The multiplexer.
#[derive(Debug)]
pub struct Console {
    config: Config,
    log: Source,
    /// Messages lost since the last that got onto the log.
    log_missed: u64,
    guests: Box<[Guest]>,
    focus: Option<VmId>,
    out: drain::Out,
}

impl Console {
    /// Makes a console for VMs of these names, in the order of their [`VmId`]s, all off. This
    /// allocates; nothing else does.
    #[must_use]
    pub fn new(config: Config, names: &[Name]) -> Self {
        let ring_bytes = config.ring_bytes.max(2 * LINE_BYTES_MAX);
        let guest = |name: &Name| Guest::new(name.clone(), ring_bytes, config.messages.clone());
        Self {
            log: Source::new(ring_bytes),
            log_missed: 0,
            guests: names.iter().map(guest).collect(),
            focus: None,
            out: drain::Out::default(),
            config,
        }
    }

    /// Takes a byte that a guest sends. Follow with [`Self::drain`].
    pub fn push_guest(&mut self, vm: VmId, byte: u8) -> Push {
        let keeps_latest = self.keeps_latest(vm);
        let Some(guest) = self.guests.get_mut(vm.index()) else { return Push::Full };
        let verdict = match self.config.mode {
            Mode::Tagged => guest.filter.next(byte),
            Mode::Focus if byte == HYPERVISOR_MARK => Verdict::Remove,
            Mode::Focus => Verdict::Keep,
        };
        if verdict == Verdict::Remove {
            guest.source.counters.removed += 1;
            return Push::Accepted;
        }
        if keeps_latest {
            guest.source.make_room();
        }
        let push = guest.source.push(byte);
        if guest.source.room() < ROOM_LOW && !keeps_latest {
            guest.flow = Flow::Blocked;
        }
        push
    }

    /// Returns how many bytes of a guest there is room for.
    #[must_use]
    pub fn room(&self, vm: VmId) -> usize {
        match self.guests.get(vm.index()) {
            Some(guest) if self.keeps_latest(vm) => guest.source.size(),
            Some(guest) => guest.source.room(),
            None => 0,
        }
    }

    /// Returns a VM that may have waited for room and has it now, once: refresh its UART. Ask
    /// until there is none, after [`Self::drain`] and whenever the focus moves.
    pub fn take_unblocked(&mut self) -> Option<VmId> {
        let mut guests = (0u8..).zip(&mut self.guests);
        let (n, guest) = guests.find(|(_, guest)| guest.flow == Flow::Freed)?;
        guest.flow = Flow::Free;
        Some(VmId::new(n))
    }

    /// Returns a VM's end of the wire, for its virtual UART.
    pub fn wire(&mut self, vm: VmId) -> GuestWire<'_> {
        GuestWire::new(self, vm)
    }

    /// Puts a line on the log, whole or not at all. Control characters in it are removed. Follow
    /// with [`Self::drain`].
    ///
    /// After a loss nothing more is taken until half of the ring is free, and then how much was
    /// lost: so there is one gap, with its size in its place.
    pub fn log(&mut self, message: fmt::Arguments<'_>) {
        let missed = self.log_missed;
        if missed > 0 && self.log.room() >= self.log.size() / 2 {
            self.log_missed = 0;
            self.push_log(format_args!("log: {missed} messages dropped"));
        }
        self.push_log(message);
    }

    /// Puts a line on the log that a VM has caused, behind its name, unless that VM has caused too
    /// many of late. What is kept back is counted, and told with the next that goes out.
    pub fn log_for(&mut self, vm: VmId, now_ticks: u64, message: fmt::Arguments<'_>) {
        let Some(guest) = self.guests.get_mut(vm.index()) else { return };
        let Admission::Yes { kept_back } = guest.messages.admit(now_ticks) else { return };
        let name = guest.name.clone();
        if kept_back > 0 {
            self.log(format_args!("{name}: {kept_back} messages dropped"));
        }
        self.log(format_args!("{name}: {message}"));
    }

    /// Takes a byte of input from the serial port.
    pub fn receive(&mut self, byte: u8) -> Input {
        if byte == self.config.escape {
            return self.next_running().map_or(Input::Ignored, |vm| {
                self.move_focus(vm);
                Input::FocusMoved(vm)
            });
        }
        let Some(vm) = self.focus else { return Input::Ignored };
        match self.guests.get_mut(vm.index()) {
            Some(guest) if guest.power == Power::Running => guest.receive(vm, byte),
            _ => Input::Ignored,
        }
    }

    /// Says that a VM runs, or runs anew: input for what ran before is gone. It gets the focus when
    /// nobody has it.
    pub fn started(&mut self, vm: VmId) {
        let is_taken = self.focus.is_some_and(|focus| self.is_running(focus));
        let Some(guest) = self.guests.get_mut(vm.index()) else { return };
        guest.start();
        match self.focus {
            None => self.set_focus(vm),
            Some(focus) if !is_taken && focus != vm => self.move_focus(vm),
            Some(_) => {}
        }
    }

    /// Says that a VM runs no more, and not that it starts again. The focus moves on from it once
    /// its last bytes are out.
    pub fn stopped(&mut self, vm: VmId) {
        let Some(guest) = self.guests.get_mut(vm.index()) else { return };
        guest.power = Power::Off;
        if self.focus == Some(vm)
            && let Some(next) = self.next_running()
        {
            self.set_focus(next);
            self.out.last_words(vm);
        }
    }

    /// Returns the VM that input goes to.
    #[must_use]
    pub fn focus(&self) -> Option<VmId> {
        self.focus
    }

    /// Returns what a VM has done; what the log has, for `None`.
    #[must_use]
    pub fn counters(&self, vm: Option<VmId>) -> Counters {
        let source = match vm {
            None => Some(&self.log),
            Some(vm) => self.guests.get(vm.index()).map(|guest| &guest.source),
        };
        source.map_or(Counters::default(), |source| source.counters)
    }

    fn push_log(&mut self, message: fmt::Arguments<'_>) {
        if self.log_missed > 0 || self.log.push_line(message) == Push::Full {
            self.log.counters.dropped += 1;
            self.log_missed += 1;
        }
    }

    /// Gives a VM the focus and says so.
    fn move_focus(&mut self, vm: VmId) {
        self.set_focus(vm);
        self.out.no_last_words();
        self.announce_focus();
    }

    fn set_focus(&mut self, vm: VmId) {
        self.focus = Some(vm);
        if self.config.mode == Mode::Tagged {
            return;
        }
        // Who has lost the focus has room now, at the price of its oldest bytes; who has it may
        // have none until those that were kept are out.
        for (n, guest) in self.guests.iter_mut().enumerate() {
            if n == vm.index() && guest.source.room() < ROOM_LOW {
                guest.flow = Flow::Blocked;
            } else if n != vm.index() && guest.flow == Flow::Blocked {
                guest.flow = Flow::Freed;
            }
        }
    }

    fn announce_focus(&mut self) {
        let guest = self.focus.and_then(|vm| self.guests.get(vm.index()));
        if let Some(name) = guest.map(|guest| guest.name.clone()) {
            self.log(format_args!("console: {name}"));
        }
    }

    /// Returns the running VM that follows the one with the focus, which may be that one itself.
    fn next_running(&self) -> Option<VmId> {
        let after = self.focus.map_or(0, |vm| vm.index() + 1);
        let all = || (0u8..).map(VmId::new).take(self.guests.len());
        let (before, behind) = (all().take(after), all().skip(after));
        behind.chain(before).find(|vm| self.is_running(*vm))
    }

    fn is_running(&self, vm: VmId) -> bool {
        self.guests.get(vm.index()).is_some_and(|guest| guest.power == Power::Running)
    }

    /// Returns whether of a VM's bytes the latest are kept, until somebody looks.
    fn keeps_latest(&self, vm: VmId) -> bool {
        self.config.mode == Mode::Focus && self.focus != Some(vm)
    }
}

#[cfg(test)]
mod tests;
