// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM: its models, its memory, and its life from start to stop.
//!
//! Everything here is shared by the VM's cores. What belongs to one core is in [`crate::vcpu`].
#![forbid(unsafe_code)]

pub mod build;
pub mod bus;
pub mod clock;
pub mod crash;
pub mod fate;
pub mod lifecycle;
pub mod load;
pub mod payload;
pub mod platform;
pub mod serial;
pub mod spis;
mod tables;

use crate::addr::{Address, Ipa, IpaRange};
use crate::arch;
use crate::gic::{SpiToken, Vgic, Vits};
use crate::id::{Mpidr, Pintid, VcpuId, Vintid, VmId};
use crate::memory::guest::GuestMemory;
use crate::memory::stage2::Stage2;
use crate::plan::{PauseTime, VmPlan};
use crate::psci::Psci;
use crate::sync::{Lock, OpenLock};
use crate::trace::ExitCounters;
use crate::vcpu::FromCore;
use alloc::boxed::Box;
use bus::Bus;
use clock::Clock;
use crash::Capsule;
use fate::Fate;
use lifecycle::{Change, Lifecycle, Request, State};
use load::{Damaged, LoadCost, Loader};
use payload::Payloads;
use platform::Platform;
use serial::Serial;

/// A VM.
pub struct Vm {
    /// Which VM.
    pub id: VmId,
    /// What was planned, checked.
    pub plan: VmPlan,
    /// Its stage 2.
    pub translation: Stage2,
    /// The registers of that.
    pub stage2: arch::Stage2Registers,
    /// Where its memory is.
    pub memory: GuestMemory,
    /// Who is on.
    pub psci: Psci,
    /// Its interrupt controller.
    pub vgic: Vgic,
    /// The lock under which its SPIs change.
    pub spis: OpenLock<SpiToken>,
    /// Its ITS, where it has one.
    pub vits: Option<Lock<Vits>>,
    /// Its console port.
    pub serial: Lock<Serial>,
    /// Its watchdog, its GPIO controller.
    pub platform: Lock<Platform>,
    /// Where its devices stand.
    pub bus: Bus,
    /// Whether it runs, and what it was asked to do next.
    pub lifecycle: Lifecycle,
    /// What becomes of it.
    pub fate: Fate,
    /// What is kept of its last crash.
    pub capsule: Lock<Capsule>,
    /// What fills its memory at a start.
    pub loader: Loader,
    /// What goes there.
    pub payloads: Lock<Payloads>,
    /// Its guest's time.
    pub clock: Clock,
    /// What the guest sees of its physical SPIs, in the order of these.
    pub links: Box<[(Vintid, Pintid)]>,
    /// The pCPU of each vCPU.
    pub pcpus: Box<[Mpidr]>,
    /// The same as targets of kicks.
    pub kicks: Box<[arch::SgiTarget]>,
    /// What the exits of each vCPU cost and brought.
    pub counters: Box<[ExitCounters]>,
    /// What a guest sees of physical address bits: ID_AA64MMFR0_EL1.PARange.
    pub pa_range: u64,
}

impl Vm {
    /// Returns the affinity that a vCPU sees as its own: Aff0 counts to 16, as one list of an SGI
    /// does, then Aff1.
    #[must_use]
    pub fn mpidr_of(vcpu: VcpuId) -> Mpidr {
        let n = u64::from(vcpu.get());
        Mpidr::from_register(((n / 16) << 8) | (n % 16))
    }

    /// Returns the guest's memory as it sees it.
    #[must_use]
    pub fn ram(&self) -> IpaRange {
        self.plan.memory
    }

    /// Returns whether a vCPU may start at `entry`.
    #[must_use]
    pub fn is_entry(&self, entry: Ipa) -> bool {
        self.ram().contains(entry) && entry.is_aligned(4)
    }

    /// Returns what the guest sees of a physical SPI, where it is this VM's. SPIs are routed to
    /// cores of their VM alone.
    #[must_use]
    pub fn link(&self, pintid: Pintid) -> Option<Vintid> {
        let n = self.links.binary_search_by_key(&pintid, |link| link.1).ok()?;
        self.links.get(n).map(|link| link.0)
    }

    /// Makes another vCPU of this VM look at its work: it leaves its guest, or wakes.
    pub fn kick(&self, vcpu: VcpuId) {
        if let Some(core) = self.kicks.get(vcpu.index()) {
            arch::send_sgi(crate::vcpu::KICK, *core);
        }
    }

    /// Kicks every vCPU of the set (bit n = vCPU n).
    pub fn kick_each(&self, vcpus: u64) {
        let mut left = vcpus;
        while left != 0 {
            let n = left.trailing_zeros();
            left &= left - 1;
            self.kick(VcpuId::new(u8::try_from(n).unwrap_or(0)));
        }
    }

    /// Carries a request out, from any core: what it takes of the VM's own cores, these do.
    ///
    /// # Errors
    /// Returns the state that it does not fit; nothing has changed.
    pub fn request(&self, request: Request) -> Result<(), State> {
        self.lifecycle.request(request)?;
        if request == Request::Start {
            // By hand: what was before does not count.
            self.fate.forget_crashes();
        }
        self.kick_each(self.all_vcpus());
        Ok(())
    }

    /// Has it turned off: now, or right behind a start that it is in the middle of.
    pub fn kill_now_or_then(&self) {
        if self.request(Request::Kill).is_err() && self.lifecycle.will_start() {
            self.fate.doom();
        }
    }

    /// Asks the guest to turn itself off, as by its power button, and has it turned off when it has
    /// not done so `within_ticks`.
    ///
    /// # Errors
    /// Returns the state of a VM that does not run; nothing has changed.
    pub fn stop(&self, by: &FromCore<'_>, within_ticks: u64) -> Result<(), State> {
        let state = self.lifecycle.state();
        if !matches!(state, State::Running | State::Resuming) {
            return Err(state);
        }
        self.fate.kill_at(arch::counter().saturating_add(within_ticks));
        self.press_power(by);
        self.ask_to_serve_platform();
        Ok(())
    }

    /// Returns the set of all vCPUs.
    #[must_use]
    pub fn all_vcpus(&self) -> u64 {
        u64::MAX >> (64 - self.pcpus.len().clamp(1, 64))
    }
}

impl Vm {
    /// Makes all models as after reset, with a `pause` now and then. Only the leader of a change
    /// calls this, when no core runs the guest.
    pub fn reset_models(&self, by: &FromCore<'_>, pause: &mut dyn FnMut()) {
        self.psci.reset();
        self.reset_serial(by);
        self.reset_platform(by);
        pause();
        // First, so that nobody goes on with its commands.
        if let Some(vits) = &self.vits {
            vits.acquire().reset();
        }
        self.vgic.reset_vredists(pause);
        self.change_spis(*by, |token, effects| self.vgic.reset(token, effects));
    }

    /// Fills the memory, with a `pause` now and then. Only the leader of a start calls this.
    ///
    /// # Errors
    /// The VM cannot start again, since an image is damaged.
    pub fn load(&self, pause: &mut dyn FnMut()) -> Result<LoadCost, Damaged> {
        self.loader.load(&self.payloads.acquire().now.images, pause)
    }

    /// Returns whether the guest's time stops while the VM is paused.
    #[must_use]
    pub fn stops_time(&self) -> bool {
        self.plan.policies.pause_time == PauseTime::Stops
    }

    /// Stops the guest's time where the plan says so. The core of vCPU 0 calls this when all vCPUs
    /// stand aside: from then on none of them sees it, so none can see it run backwards.
    pub fn stop_time(&self) {
        if self.stops_time() {
            self.clock.stop(arch::counter_now());
        }
    }

    /// Lets the guest's time and the small devices go on, before any vCPU does. The core of vCPU 0
    /// calls this when all vCPUs stand aside.
    pub fn resume(&self, by: &FromCore<'_>) {
        let platform = self.platform.acquire();
        self.clock.go_on(arch::counter_now());
        drop(platform);
        self.resume_platform(by);
        // A watchdog may have fired while somebody asked for the pause.
        self.ask_to_serve_platform();
    }

    /// Lets vCPU 0 begin. Only the leader of a start calls this.
    pub fn begin(&self) {
        self.clock.begin(arch::counter());
        self.start_platform();
        let start = self.payloads.acquire().now.start;
        // Nobody else turns on a vCPU of a VM that has just begun.
        let _ = self.psci.boot(VcpuId::new(0), start);
        self.lifecycle.finish(Change::Start);
        // Now that it runs: of one that does not yet, nothing is due.
        self.ask_to_serve_platform();
    }
}
