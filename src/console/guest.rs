// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One guest's side of the console: what it sends, what waits for it, whether it is waiting.
//!
//! It does not know who else is there, nor who has the focus.
#![forbid(unsafe_code)]

use super::filter::Filter;
use super::pl011::{Received, Wire};
use super::ring::Ring;
use super::source::Source;
use super::{Console, Input, Name, TokenBucket};
use crate::id::VmId;

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
    /// There is room again, and nobody has told the guest.
    Freed,
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) name: Name,
    pub(super) source: Source,
    pub(super) filter: Filter,
    input: Ring,
    /// How many bytes of input are in front of the place where some were lost.
    gap: Option<usize>,
    pub(super) power: Power,
    pub(super) flow: Flow,
    pub(super) messages: TokenBucket,
}

impl Guest {
    /// Makes the console of a VM that is off, with `ring_bytes` for its output. This allocates.
    pub(super) fn new(name: Name, ring_bytes: usize, messages: TokenBucket) -> Self {
        Self {
            name,
            source: Source::new(ring_bytes),
            filter: Filter::default(),
            input: Ring::new(INPUT_BYTES),
            gap: None,
            power: Power::Off,
            flow: Flow::Free,
            messages,
        }
    }

    /// Makes the VM run, anew. What it has sent before stays; input that it has not read goes.
    pub(super) fn start(&mut self) {
        self.power = Power::Running;
        self.filter = Filter::default();
        self.input.truncate(0);
        self.gap = None;
    }

    /// Keeps a byte of input until the guest reads it.
    pub(super) fn receive(&mut self, vm: VmId, byte: u8) -> Input {
        if self.input.push(byte) {
            return Input::ToVm(vm);
        }
        self.source.counters.input_dropped += 1;
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
    console: &'a mut Console,
    vm: VmId,
}

impl<'a> GuestWire<'a> {
    pub(super) fn new(console: &'a mut Console, vm: VmId) -> Self {
        Self { console, vm }
    }
}

impl Wire for GuestWire<'_> {
    fn send(&mut self, byte: u8) {
        // A loss has been counted, and the guest was told that there is no room.
        let _ = self.console.push_guest(self.vm, byte);
    }
    fn room(&self) -> usize {
        self.console.room(self.vm)
    }
    fn receive(&mut self) -> Option<Received> {
        self.console.guests.get_mut(self.vm.index())?.take_input()
    }
}
