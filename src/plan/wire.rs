// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Reads a plan: the postcard bytes that serde's derived code reads too, with less code for the
//! image to carry (ADR 2). A [`Reader`] that has failed gives zeros, so that only the end has to be
//! looked at. Must not know what a plan means.
#![forbid(unsafe_code)]

use super::{
    ConsoleMode, ConsolePlan, ControlPlan, DecodeError, DevicePlan, FaultKind, FaultPlan, GicClaim,
    ImagePlan, Knobs, Layout, List, MachineClaim, OnCrash, OnEnd, OnLoss, PauseTime, Placement,
    Plan, Policies, Restarts, SpiPlan, UartClaim, VgicFrames, VmPlan,
};
use crate::addr::{AddrRange, Address, Ipa, Pa};
use crate::bits::Trigger;
use crate::heap::{self, NoMemory};
use crate::id::{Mpidr, Pintid, Vintid, VmId};
use alloc::vec::Vec;
use heapless::String;

/// Reads a whole plan, behind which nothing follows.
pub(super) fn read(bytes: &[u8]) -> Result<Plan, DecodeError> {
    let mut from = Reader { rest: bytes, failure: None };
    let plan = Plan::read(&mut from);
    let is_whole = from.rest.is_empty();
    from.failure.map_or(if is_whole { Ok(plan) } else { Err(DecodeError::Malformed) }, Err)
}

/// What is still to be read.
struct Reader<'a> {
    rest: &'a [u8],
    failure: Option<DecodeError>,
}

impl<'a> Reader<'a> {
    fn fail(&mut self) {
        self.fail_for(DecodeError::Malformed);
    }

    /// Fails for a reason, unless that has happened before.
    fn fail_for(&mut self, why: DecodeError) {
        self.rest = &[];
        self.failure = self.failure.or(Some(why));
    }

    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else {
            self.fail();
            return 0;
        };
        self.rest = rest;
        *byte
    }

    /// Reads a number of so many bits: seven in each byte, the lowest first, and bit 7 in all but
    /// the last.
    fn number(&mut self, bits: u32) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            let part = u64::from(byte & 0x7f);
            if shift >= bits || part >> (bits - shift).min(7) != 0 {
                self.fail();
                return 0;
            }
            number |= part << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return number;
            }
        }
    }

    /// Reads a length, no more than `max`.
    fn length(&mut self, max: usize) -> usize {
        match usize::try_from(self.number(u64::BITS)) {
            Ok(length) if length <= max => length,
            _ => {
                self.fail();
                0
            }
        }
    }

    fn text(&mut self, max: usize) -> &'a str {
        let length = self.length(max);
        let text = self.rest.split_at_checked(length);
        match text.and_then(|(text, rest)| Some((core::str::from_utf8(text).ok()?, rest))) {
            Some((text, rest)) => {
                self.rest = rest;
                text
            }
            None => {
                self.fail();
                ""
            }
        }
    }

    /// Reads which of so many variants it is: the first for one that there is not.
    fn variant(&mut self, count: u64) -> u64 {
        let variant = self.number(u32::BITS);
        if variant < count {
            return variant;
        }
        self.fail();
        0
    }
}

/// What a plan is made of.
trait Wire {
    /// Reads one.
    fn read(from: &mut Reader<'_>) -> Self;
}

macro_rules! fields_in_order {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Wire for $name {
            fn read(from: &mut Reader<'_>) -> Self {
                Self { $($field: Wire::read(from)),* }
            }
        }
    )*};
}

macro_rules! variants_in_order {
    ($($name:ident { $first:ident, $($other:ident),* })*) => {$(
        impl Wire for $name {
            fn read(from: &mut Reader<'_>) -> Self {
                let others = [$(Self::$other),*];
                let variant = from.variant(1 + others.len() as u64);
                others.into_iter().zip(1..).find(|(_, n)| *n == variant)
                    .map_or(Self::$first, |(other, _)| other)
            }
        }
    )*};
}

macro_rules! numbers {
    ($($name:ty: $bits:ident, $make:expr)*) => {$(
        impl Wire for $name {
            fn read(from: &mut Reader<'_>) -> Self {
                // As many bits as there may be are read.
                $make($bits::try_from(from.number($bits::BITS)).unwrap_or_default())
            }
        }
    )*};
}

fields_in_order! {
    Plan { board, machine, console, control, vms, knobs }
    MachineClaim { memory_bytes, gic, uart }
    UartClaim { path, registers }
    ConsolePlan { mode, escape }
    ControlPlan { on_console, uart }
    VmPlan {
        name, vcpus, memory, placement, images, entry, tree, layout, devices, policies
    }
    Policies { on_crash, on_reboot, on_poweroff, on_loss, after, watchdog_ms, pause_time }
    Restarts { most, backoff_ms }
    ImagePlan { name, ipa, size_bytes }
    Layout { vdist, vgic, vuart, vuart_interrupt, platform, gpio_interrupt, watchdog_interrupt }
    DevicePlan { path, fingerprint, regions, interrupts }
    SpiPlan { pintid, vintid, trigger }
    Knobs {
        list_registers_max, vmid_bits_max, mitigations_off, report_reset_cost, watch_off,
        fault_at_start
    }
    FaultPlan { kind, vm, vcpu, after }
}

variants_in_order! {
    ConsoleMode { Tagged, Focus }
    OnEnd { Restart, Stop, Machine }
    OnLoss { Tell, Stop, Ignore }
    PauseTime { Runs, Stops }
    Placement { Anywhere, Identity }
    Trigger { Edge, Level }
    FaultKind {
        Panic, WriteToText, ExecuteData, StackOverflow, SError, Logged, GuestSError, Hang, Stall
    }
}

numbers! {
    u64: u64, |number| number
    u32: u32, |number| number
    u16: u16, |number| number
    Pa: u64, Pa::at
    Ipa: u64, Ipa::at
    Pintid: u32, Pintid::new
    Vintid: u32, Vintid::new
}

impl Wire for u8 {
    fn read(from: &mut Reader<'_>) -> Self {
        from.byte()
    }
}

impl Wire for VmId {
    fn read(from: &mut Reader<'_>) -> Self {
        Self::new(from.byte())
    }
}

impl Wire for OnCrash {
    fn read(from: &mut Reader<'_>) -> Self {
        match from.variant(4) {
            0 => Self::Restart(Restarts::read(from)),
            1 => Self::Stop,
            2 => Self::Preserve,
            _ => Self::Machine,
        }
    }
}

impl Wire for bool {
    fn read(from: &mut Reader<'_>) -> Self {
        let byte = from.byte();
        if byte > 1 {
            from.fail();
        }
        byte == 1
    }
}

impl Wire for Mpidr {
    fn read(from: &mut Reader<'_>) -> Self {
        Self::from_affinity(u64::read(from)).unwrap_or_else(|| {
            from.fail();
            Self::default()
        })
    }
}

impl<A: Address + Wire> Wire for AddrRange<A> {
    fn read(from: &mut Reader<'_>) -> Self {
        let (start, size) = (A::read(from), u64::read(from));
        Self::new(start, size).unwrap_or_else(|| {
            from.fail();
            Self::block(start, 2)
        })
    }
}

impl<const MAX: usize> Wire for String<MAX> {
    fn read(from: &mut Reader<'_>) -> Self {
        from.text(MAX).try_into().unwrap_or_default()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn read(from: &mut Reader<'_>) -> Self {
        bool::read(from).then(|| T::read(from))
    }
}

impl<T: Wire, U: Wire> Wire for (T, U) {
    fn read(from: &mut Reader<'_>) -> Self {
        (T::read(from), U::read(from))
    }
}

/// Allocates for what is there, not for what the length says.
impl<T: Wire, const MAX: usize> Wire for List<T, MAX> {
    fn read(from: &mut Reader<'_>) -> Self {
        let mut elements = Vec::new();
        for _ in 0..from.length(MAX) {
            if from.failure.is_some() {
                break;
            }
            let element = T::read(from);
            if let Err(NoMemory) = heap::push(&mut elements, element) {
                from.fail_for(DecodeError::NoMemory);
            }
        }
        Self::new(elements).unwrap_or_default()
    }
}

impl Wire for GicClaim {
    fn read(from: &mut Reader<'_>) -> Self {
        match from.variant(2) {
            0 => Self::V2 { gicd: Pa::read(from) },
            _ => Self::V3 { gicd: Pa::read(from) },
        }
    }
}

impl Wire for VgicFrames {
    fn read(from: &mut Reader<'_>) -> Self {
        match from.variant(2) {
            0 => Self::V2 { gicc: Ipa::read(from) },
            _ => Self::V3 { vredist: Ipa::read(from), vits: Ipa::read(from) },
        }
    }
}
