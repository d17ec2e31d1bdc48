// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One guest's side of the console: what it sends, what waits for it, whether it is waiting.
//!
//! It does not know who else is there, nor the wire.
#![forbid(unsafe_code)]

use super::filter::{Filter, Verdict};
use super::pl011::{Received, Wire};
use super::ring::Ring;
use super::source::{Source, count};
use super::{Console, HYPERVISOR_MARK, Input, Name, Push, ROOM_LOW, TokenBucket};
use crate::heap::NoMemory;
use crate::id::VmId;
use core::cell::Cell;

/// The bytes of input that wait for a VM that does not read.
const INPUT_BYTES: usize = 256;

/// Whether a VM takes input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Power {
    Off,
    Running,
}

/// Whether a guest may be waiting for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    Free,
    Blocked,
    /// It may have waited, and there is room again.
    Freed,
}

/// What is shown of what a guest sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    /// Its lines, without control functions.
    Lines,
    /// Its bytes.
    Bytes,
    /// Its latest bytes, once somebody looks.
    Later,
}

#[derive(Debug)]
pub(super) struct Guest {
    /// Empty where no VM is.
    pub(super) name: Name,
    pub(super) source: Source,
    pub(super) filter: Filter,
    input: Ring,
    /// How many bytes of input are in front of the place where some were lost.
    gap: Option<usize>,
    pub(super) power: Power,
    shown: Shown,
    flow: Flow,
    pub(super) messages: TokenBucket,
}

impl Guest {
    /// Makes the console of a VM that is off, with `ring_bytes` for its output. This allocates.
    pub(super) fn new(
        name: Name,
        ring_bytes: usize,
        shown: Shown,
        messages: TokenBucket,
    ) -> Result<Self, NoMemory> {
        let (source, input) = (Source::new(ring_bytes)?, Ring::new(INPUT_BYTES)?);
        Ok(Self { name, source, input, ..Self::nobody(shown, messages) })
    }

    /// Makes the console of no VM: whatever is sent and received is lost.
    pub(super) fn nobody(shown: Shown, messages: TokenBucket) -> Self {
        Self {
            name: Name::new(),
            source: Source::empty(),
            filter: Filter::default(),
            input: Ring::empty(),
            gap: None,
            power: Power::Off,
            shown,
            flow: Flow::Free,
            messages,
        }
    }

    /// Makes the VM run, anew. What it has sent before stays, its last line ended; input that it
    /// has not read goes.
    pub(super) fn start(&mut self) {
        let mut last = [b'\n'];
        self.source.tail(&mut last);
        if self.shown == Shown::Lines && last != [b'\n'] {
            // Where it does not fit the lines are one.
            let _ = self.source.push(b'\n');
        }
        self.source.begin_run();
        self.power = Power::Running;
        self.filter = Filter::default();
        self.input.truncate(0);
        self.gap = None;
    }

    /// Takes a byte that the guest sends.
    pub(super) fn send(&mut self, byte: u8) -> Push {
        let verdict = match self.shown {
            Shown::Lines => self.filter.next(byte),
            Shown::Bytes | Shown::Later if byte == HYPERVISOR_MARK => Verdict::Remove,
            Shown::Bytes | Shown::Later => Verdict::Keep,
        };
        if verdict == Verdict::Remove {
            count(&mut self.source.counters.removed, 1);
            return Push::Accepted;
        }
        if self.shown == Shown::Later {
            self.source.make_room(1);
            return self.source.push(byte);
        }
        let push = self.source.push(byte);
        if self.source.room() < ROOM_LOW {
            self.flow = Flow::Blocked;
        }
        push
    }

    /// Returns how many bytes there is room for.
    pub(super) fn room(&self) -> usize {
        if self.shown == Shown::Later { self.source.size() } else { self.source.room() }
    }

    /// Says whether the guest may have waited, and enough bytes have gone since.
    pub(super) fn update_flow(&mut self) -> Flow {
        if self.source.room() >= self.source.size() / 4 { self.free() } else { self.flow }
    }

    /// Changes what is shown, and says whether the guest may have waited and has room now.
    pub(super) fn show(&mut self, shown: Shown) -> Flow {
        let before = core::mem::replace(&mut self.shown, shown);
        if shown == Shown::Later {
            // At the price of its oldest bytes.
            return self.free();
        }
        if before == Shown::Later {
            // It was promised room for a full FIFO, and may be about to use it.
            self.source.make_room(ROOM_LOW);
        }
        if self.source.room() < self.source.size() / 4 {
            self.flow = Flow::Blocked;
        }
        self.flow
    }

    fn free(&mut self) -> Flow {
        match core::mem::replace(&mut self.flow, Flow::Free) {
            Flow::Blocked => Flow::Freed,
            flow => flow,
        }
    }

    /// Keeps a byte of input until the guest reads it; nobody reads it where the guest is off.
    pub(super) fn receive(&mut self, vm: VmId, byte: u8) -> Input {
        if self.power == Power::Off {
            return Input::Ignored;
        }
        if self.input.push(byte) {
            return Input::ToVm(vm);
        }
        count(&mut self.source.counters.input_dropped, 1);
        self.gap = self.gap.or(Some(self.input.len()));
        Input::Overflow(vm)
    }

    fn take_input(&mut self) -> Option<Received> {
        let byte = self.input.pop()?;
        let ahead = self.gap.take();
        self.gap = ahead.and_then(|ahead| ahead.checked_sub(1));
        Some(Received { byte, overrun: ahead == Some(0) })
    }
}

/// A VM's end of the wire.
#[derive(Debug)]
pub struct GuestWire<'a> {
    console: &'a Console,
    vm: VmId,
    has_sent: bool,
    is_full: Cell<bool>,
}

impl<'a> GuestWire<'a> {
    pub(super) fn new(console: &'a Console, vm: VmId) -> Self {
        Self { console, vm, has_sent: false, is_full: Cell::new(false) }
    }
    /// Returns whether the console is to be drained: a byte was sent over it, or its guest was told
    /// that there is no room, and may ask again and again until there is.
    #[must_use]
    pub fn wants_drain(&self) -> bool {
        self.has_sent || self.is_full.get()
    }
}

impl Wire for GuestWire<'_> {
    fn send(&mut self, byte: u8) {
        self.has_sent = true;
        // A loss has been counted, and the guest was told that there is no room.
        let _ = self.console.push_guest(self.vm, byte);
    }
    fn room(&self) -> usize {
        let room = self.console.room(self.vm);
        self.is_full.set(room == 0);
        room
    }
    fn receive(&mut self) -> Option<Received> {
        self.console.guest(self.vm)?.take_input()
    }
}
