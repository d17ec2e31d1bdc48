// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI 1.1 for the vCPUs of one VM (DEN 0022): who is on, and what a call does.
//!
//! All cores of the VM share one [`Psci`] without a lock: each vCPU has one state word, and what
//! it is to start with is published before that word says so. Carrying an [`Action`] out (kick,
//! stop, reset) is the caller's; how a call got here is [`crate::smccc`]'s.
#![forbid(unsafe_code)]

mod power;

use crate::addr::{Address, Ipa};
use crate::heap::{self, NoMemory};
use crate::id::{Mpidr, VcpuId};
use crate::spec::psci::{
    AffinityState, Function, MIGRATION_NOT_REQUIRED, PSCI_VERSION, SYSTEM_WARM_RESET, Status,
    VERSION_1_1, is_core_power_state, is_power_down,
};
use crate::spec::smccc::{self, FunctionId, low_word};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};
use power::Power;

pub use power::Start;

/// What the caller of [`Psci::call`] has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Put this into X0.
    Return(u64),
    /// Return SUCCESS, and kick the pCPU of that vCPU, which then asks [`Psci::started`].
    TurnOn(VcpuId),
    /// Stop the calling vCPU, then say [`Psci::turned_off`]. The call does not return.
    TurnOff,
    /// Wait for an interrupt as WFI does, then return SUCCESS.
    Suspend,
    /// Wait for an interrupt that the guest would take, then start the calling vCPU anew. The call
    /// does not return.
    SystemSuspend(Start),
    /// Stop all vCPUs; the VM is off.
    SystemOff,
    /// Stop all vCPUs, then start the VM again.
    SystemReset(Reset),
}

/// Which reset a guest asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// SYSTEM_RESET: as if power had gone and come back.
    Cold,
    /// SYSTEM_RESET2 with SYSTEM_WARM_RESET.
    Warm,
}

/// Whether vCPUs of a VM remain that are not off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// There is at least one.
    Remain,
    /// All are off.
    None,
}

/// The power states of a VM's vCPUs.
#[derive(Debug)]
pub struct Psci {
    vcpus: Box<[Power]>,
    /// How many vCPUs are not off. A CPU_ON counts one more while it is decided; that is never
    /// the difference between some and none, since its caller is on.
    not_off: AtomicU32,
}

impl Psci {
    /// Makes the vCPUs of a VM, all off, in the order of their [`VcpuId`]s. This allocates.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn new(vcpus: &[Mpidr]) -> Result<Self, NoMemory> {
        let vcpus = heap::collect(vcpus.iter().map(|mpidr| Power::new(*mpidr)))?;
        Ok(Self { vcpus, not_off: AtomicU32::new(0) })
    }

    /// Decides what a call does, given X1 to X3.
    ///
    /// `is_entry` says whether a vCPU may start at an address: whether the VM has memory there.
    #[inline(always)]
    pub fn call(
        &self,
        function: FunctionId,
        arguments: impl FnOnce() -> [u64; 3],
        is_entry: impl FnOnce(Ipa) -> bool,
    ) -> Action {
        // The cheapest of all calls is not to wait for the others' preparations.
        if function == PSCI_VERSION {
            return Action::Return(VERSION_1_1);
        }
        self.decide(function, arguments, is_entry)
            .unwrap_or_else(|status| Action::Return(status.x0()))
    }

    /// Makes a vCPU start at `start` without a call: the first vCPU of a VM that boots.
    ///
    /// # Errors
    /// As CPU_ON, when there is no such vCPU or it is not off.
    pub fn boot(&self, vcpu: VcpuId, start: Start) -> Result<(), Status> {
        self.power_on(self.vcpus.get(vcpu.index()).ok_or(Status::InvalidParameters)?, start)
    }

    /// Takes what a vCPU is to start with, and makes it on. `None` when nobody has turned it on,
    /// as after a kick for another reason. Only the pCPU of that vCPU asks.
    pub fn started(&self, vcpu: VcpuId) -> Option<Start> {
        self.vcpus.get(vcpu.index())?.started()
    }

    /// Makes a vCPU that was on off, once it runs no more. Only the pCPU of that vCPU says so; from
    /// here on another vCPU may turn it on again. Returns whether there is another one: where all
    /// are off, no call will ever turn one on.
    #[must_use]
    pub fn turned_off(&self, vcpu: VcpuId) -> Others {
        let Some(power) = self.vcpus.get(vcpu.index()) else { return Others::Remain };
        // Before the state says so: who sees all others off may suspend the system.
        let was = self.not_off.fetch_sub(1, Ordering::AcqRel);
        power.turned_off();
        if was == 1 { Others::None } else { Others::Remain }
    }

    /// Makes all vCPUs off: for a VM that starts again. The caller has stopped all of them.
    pub fn reset(&self) {
        self.vcpus.iter().for_each(Power::turned_off);
        self.not_off.store(0, Ordering::Release);
    }

    /// Returns the state of a vCPU.
    pub fn state(&self, vcpu: VcpuId) -> Option<AffinityState> {
        Some(self.vcpus.get(vcpu.index())?.state())
    }

    #[inline(never)]
    fn decide(
        &self,
        function: FunctionId,
        arguments: impl FnOnce() -> [u64; 3],
        is_entry: impl FnOnce(Ipa) -> bool,
    ) -> Result<Action, Status> {
        // The 32-bit variants see the low halves only.
        let [x1, x2, x3] = arguments().map(|argument| function.narrow(argument));
        match Function::decode(function).ok_or(Status::NotSupported)? {
            Function::Version => Ok(Action::Return(VERSION_1_1)),
            Function::CpuSuspend => suspend(low_word(x1), x2, is_entry),
            Function::CpuOff => Ok(Action::TurnOff),
            Function::CpuOn => self.turn_on(x1, x2, x3, is_entry),
            Function::AffinityInfo => self.affinity_info(x1, low_word(x2)),
            Function::MigrateInfoType => Ok(Action::Return(MIGRATION_NOT_REQUIRED)),
            Function::SystemOff => Ok(Action::SystemOff),
            Function::SystemReset => Ok(Action::SystemReset(Reset::Cold)),
            Function::SystemSuspend => self.suspend_system(x1, x2, is_entry),
            Function::SystemReset2 => reset_2(low_word(x1)),
            Function::Features => features(FunctionId::new(low_word(x1))),
        }
    }

    /// CPU_ON (DEN 0022 section 5.6). The order of the checks is TF-A's: who, where, then state.
    fn turn_on(
        &self,
        target: u64,
        entry: u64,
        context: u64,
        is_entry: impl FnOnce(Ipa) -> bool,
    ) -> Result<Action, Status> {
        let (vcpu, power) = self.find(target).ok_or(Status::InvalidParameters)?;
        let entry = checked_entry(entry, is_entry)?;
        self.power_on(power, Start { entry, context })?;
        Ok(Action::TurnOn(vcpu))
    }

    /// Makes a vCPU pending, and counts it.
    fn power_on(&self, power: &Power, start: Start) -> Result<(), Status> {
        self.not_off.fetch_add(1, Ordering::AcqRel);
        power.turn_on(start).inspect_err(|_| {
            self.not_off.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// AFFINITY_INFO (DEN 0022 section 5.7): of all vCPUs that have the target's affinity from
    /// `lowest_level` up. One that is on makes them on, else a pending one makes them pending.
    fn affinity_info(&self, target: u64, lowest_level: u32) -> Result<Action, Status> {
        let ignored: u64 = match lowest_level {
            0 => 0,
            1 => 0xff,
            2 => 0xffff,
            3 => 0xff_ffff,
            _ => return Err(Status::InvalidParameters),
        };
        let target = Mpidr::from_affinity(target & !ignored).ok_or(Status::InvalidParameters)?;
        let named = self.vcpus.iter().filter(|v| v.mpidr().get() & !ignored == target.get());
        let state = named.map(Power::state).min_by_key(|state| match state {
            AffinityState::On => 0,
            AffinityState::OnPending => 1,
            AffinityState::Off => 2,
        });
        state.map(|state| Action::Return(state as u64)).ok_or(Status::InvalidParameters)
    }

    /// SYSTEM_SUSPEND (DEN 0022 section 5.20): the caller must be the only vCPU that is not off.
    fn suspend_system(
        &self,
        entry: u64,
        context: u64,
        is_entry: impl FnOnce(Ipa) -> bool,
    ) -> Result<Action, Status> {
        let entry = checked_entry(entry, is_entry)?;
        if self.not_off.load(Ordering::Acquire) != 1 {
            return Err(Status::Denied);
        }
        Ok(Action::SystemSuspend(Start { entry, context }))
    }

    /// Finds the vCPU that an MPIDR names; all 64 bits count.
    fn find(&self, mpidr: u64) -> Option<(VcpuId, &Power)> {
        let mpidr = Mpidr::from_affinity(mpidr)?;
        let (n, power) = (0u8..).zip(&self.vcpus).find(|(_, power)| power.mpidr() == mpidr)?;
        Some((VcpuId::new(n), power))
    }
}

/// CPU_SUSPEND (DEN 0022 section 5.4). Power down may be answered with standby,
/// but only once the parameters are known to be good.
fn suspend(
    power_state: u32,
    entry: u64,
    is_entry: impl FnOnce(Ipa) -> bool,
) -> Result<Action, Status> {
    if !is_core_power_state(power_state) {
        return Err(Status::InvalidParameters);
    }
    if is_power_down(power_state) {
        checked_entry(entry, is_entry)?;
    }
    Ok(Action::Suspend)
}

/// SYSTEM_RESET2 (DEN 0022 section 5.1.12). No vendor type is known, so all of them are invalid.
fn reset_2(reset_type: u32) -> Result<Action, Status> {
    match reset_type {
        SYSTEM_WARM_RESET => Ok(Action::SystemReset(Reset::Warm)),
        _ => Err(Status::InvalidParameters),
    }
}

/// PSCI_FEATURES (DEN 0022 section 5.16). No function has a feature flag set: CPU_SUSPEND takes
/// the original format and knows no OS-initiated mode.
fn features(asked: FunctionId) -> Result<Action, Status> {
    if asked == smccc::VERSION || Function::decode(asked).is_some() {
        Ok(Action::Return(Status::Success.x0()))
    } else {
        Err(Status::NotSupported)
    }
}

fn checked_entry(entry: u64, is_entry: impl FnOnce(Ipa) -> bool) -> Result<Ipa, Status> {
    let entry = Ipa::new(entry);
    // A64 instructions are aligned; whether there is memory is the VM's knowledge.
    if entry.is_aligned(4) && is_entry(entry) { Ok(entry) } else { Err(Status::InvalidAddress) }
}

#[cfg(test)]
mod tests;
