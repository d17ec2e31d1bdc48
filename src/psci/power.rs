// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One vCPU's power: a state word, and what to start with, handed from the core that turns a vCPU
//! on to the core that runs it. It knows nothing of calls.
//!
//! ```text
//!            turn_on: CAS            turn_on: release
//!   Off ──────────────────→ Claimed ──────────────────→ OnPending
//!    ↑                      (start is written)              │ started: CAS, acquire
//!    └───────────────────────────────────────────────────── On
//!                      turned_off: release
//! ```
#![forbid(unsafe_code)]

use crate::addr::{Address, Ipa};
use crate::id::Mpidr;
use crate::spec::psci::{AffinityState, Status};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const OFF: u8 = 0;
/// One caller has won and writes the start; to all others that is as good as pending.
const CLAIMED: u8 = 1;
const ON_PENDING: u8 = 2;
const ON: u8 = 3;

/// What a vCPU starts with: everything else is as after reset (DEN 0022 section 6.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// The address of its first instruction.
    pub entry: Ipa,
    /// What X0 holds.
    pub context: u64,
}

/// The power of one vCPU.
#[derive(Debug)]
pub(super) struct Power {
    mpidr: Mpidr,
    state: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

impl Power {
    pub(super) fn new(mpidr: Mpidr) -> Self {
        Self {
            mpidr,
            state: AtomicU8::new(OFF),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        }
    }

    pub(super) fn mpidr(&self) -> Mpidr {
        self.mpidr
    }

    /// Makes the vCPU pending; of many callers at once, one wins.
    pub(super) fn turn_on(&self, start: Start) -> Result<(), Status> {
        // Acquire pairs with the release in `turned_off`: the start that the vCPU had before has
        // been read by then.
        match self.state.compare_exchange(OFF, CLAIMED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ON) => return Err(Status::AlreadyOn),
            Err(_) => return Err(Status::OnPending),
        }
        self.entry.store(start.entry.get(), Ordering::Relaxed);
        self.context.store(start.context, Ordering::Relaxed);
        // Release pairs with the acquire in `started`.
        self.state.store(ON_PENDING, Ordering::Release);
        Ok(())
    }

    /// Takes the start, once there is one.
    pub(super) fn started(&self) -> Option<Start> {
        // Acquire pairs with the release in `turn_on`.
        self.state.compare_exchange(ON_PENDING, ON, Ordering::Acquire, Ordering::Relaxed).ok().map(
            |_| Start {
                entry: Ipa::new(self.entry.load(Ordering::Relaxed)),
                context: self.context.load(Ordering::Relaxed),
            },
        )
    }

    pub(super) fn turned_off(&self) {
        // Release pairs with the acquire in `turn_on`.
        self.state.store(OFF, Ordering::Release);
    }

    pub(super) fn state(&self) -> AffinityState {
        match self.state.load(Ordering::Acquire) {
            OFF => AffinityState::Off,
            ON => AffinityState::On,
            _ => AffinityState::OnPending,
        }
    }
}
