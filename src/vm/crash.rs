// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is kept of a VM that cannot go on: why, and where each vCPU was.
#![forbid(unsafe_code)]

use crate::arch::GuestState;
use crate::heap::{self, NoMemory};
use crate::id::VcpuId;
use crate::trace::LastExits;
use alloc::boxed::Box;
use core::fmt;

/// How much is kept of what its guest has said: what Linux says of a panic fits.
const TAIL_BYTES: usize = 4096;

/// Why a VM cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashCause {
    /// Its guest has said that it panicked.
    Panicked,
    /// Its watchdog has not been refreshed, nor has its warning been answered.
    Watchdog,
    /// A vCPU cannot fetch the first instruction of its exception vector, for ever.
    NoVector,
    /// A core of it was stuck at EL2.
    Stuck,
}

impl CrashCause {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panicked => "panicked",
            Self::Watchdog => "watchdog",
            Self::NoVector => "no-vector",
            Self::Stuck => "stuck",
        }
    }
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "its guest has panicked",
            Self::Watchdog => "its watchdog has fired",
            Self::NoVector => "it cannot take an exception: its vector is no memory",
            Self::Stuck => "its core was stuck at EL2",
        })
    }
}

/// A vCPU where it was held.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// X0 to X30.
    pub x: [u64; 31],
    /// All else.
    pub state: GuestState,
    /// What it has left its guest for.
    pub last: LastExits,
}

/// A crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crash {
    /// Why.
    pub cause: CrashCause,
    /// On which vCPU.
    pub vcpu: VcpuId,
    /// When, in ticks of the physical counter.
    pub at_ticks: u64,
}

/// What is kept of a VM's last crash, also when it runs again.
#[derive(Debug)]
pub struct Capsule {
    /// The crash, where there was one.
    pub crash: Option<Crash>,
    /// Whether nobody has said yet what becomes of the VM.
    is_undecided: bool,
    /// Where each vCPU was that was on.
    pub vcpus: Box<[Option<Frozen>]>,
    tail: Box<[u8]>,
    tail_bytes: usize,
}

impl Capsule {
    /// Makes an empty capsule.
    ///
    /// # Errors
    /// The heap is exhausted.
    pub fn new(vcpu_count: usize) -> Result<Self, NoMemory> {
        let vcpus = heap::collect((0..vcpu_count).map(|_| None))?;
        let tail = heap::zeroes(TAIL_BYTES)?;
        Ok(Self { crash: None, is_undecided: false, vcpus, tail, tail_bytes: 0 })
    }

    /// Begins to keep another crash instead; `said` copies the last bytes that the guest has said
    /// and returns how many.
    pub fn begin(&mut self, crash: Crash, said: impl FnOnce(&mut [u8]) -> usize) {
        self.crash = Some(crash);
        self.is_undecided = true;
        self.vcpus.fill(None);
        self.tail_bytes = said(&mut self.tail);
    }

    /// Returns the last bytes that the guest had said when it crashed.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        self.tail.get(..self.tail_bytes).unwrap_or_default()
    }

    /// Returns of how many vCPUs it is known where they were.
    #[must_use]
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.iter().flatten().count()
    }

    /// Returns a crash of which nobody has said what follows from it, once it is known where
    /// `vcpu_count` vCPUs were, and once.
    pub fn take_undecided(&mut self, vcpu_count: usize) -> Option<Crash> {
        let is_complete = self.vcpu_count() >= vcpu_count;
        (is_complete && core::mem::take(&mut self.is_undecided)).then_some(self.crash)?
    }
}
