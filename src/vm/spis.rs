// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lock under which a VM's SPIs and LPIs change.
//!
//! Whoever changes them has vCPUs to kick, and kicks them when it holds the lock no more: a vCPU
//! that wakes takes this lock first of all. Were it held still, the one that wakes would wait for
//! the one that has woken it; on a machine whose cores share host cores, for a time slice.
#![forbid(unsafe_code)]

use super::Vm;
use crate::bits::Level;
use crate::gic::{Effects, SpiToken};
use crate::id::{Pintid, VcpuId};
use crate::sync::OpenGuard;
use crate::vcpu::FromCore;
use core::cell::Cell;

/// The vCPUs to kick (bit n = vCPU n).
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Kicks(u64);

/// What a core causes while it holds the lock.
pub struct Holder<'a> {
    by: FromCore<'a>,
    kicks: Cell<u64>,
}

impl Vm {
    /// Changes SPIs and LPIs, on behalf of a core's `by` for this VM, and kicks whom that concerns.
    #[inline(always)]
    pub fn change_spis<R>(
        &self,
        by: FromCore<'_>,
        change: impl FnOnce(&mut SpiToken, &Holder<'_>) -> R,
    ) -> R {
        self.change_held_spis(self.hold_spis(by), by, change)
    }

    /// Does the same for what guests ask most often, with the lock taken in place.
    #[inline(always)]
    pub fn change_own_spis<R>(
        &self,
        by: FromCore<'_>,
        change: impl FnOnce(&mut SpiToken, &Holder<'_>) -> R,
    ) -> R {
        self.change_held_spis(self.spis.lock(), by, change)
    }

    #[inline(always)]
    fn change_held_spis<R>(
        &self,
        mut spis: OpenGuard<'_, SpiToken>,
        by: FromCore<'_>,
        change: impl FnOnce(&mut SpiToken, &Holder<'_>) -> R,
    ) -> R {
        let holder = Holder { by, kicks: Cell::new(0) };
        let result = change(&mut spis, &holder);
        drop(spis);
        self.send_kicks(Kicks(holder.kicks.get()));
        result
    }

    /// Waits for the lock; a core of another VM waits for none of the guests that this VM runs.
    #[inline(never)]
    fn hold_spis(&self, by: FromCore<'_>) -> OpenGuard<'_, SpiToken> {
        if by.own.is_some() { self.spis.lock() } else { self.spis.lock_first() }
    }

    /// Changes them on behalf of a core that holds another lock of the VM, for which others wait.
    /// It leaves the kicks to the caller, which gives that back before.
    #[inline(always)]
    pub fn change_spis_before_kicks<R>(
        &self,
        by: FromCore<'_>,
        change: impl FnOnce(&mut SpiToken, &Holder<'_>) -> R,
    ) -> (R, Kicks) {
        let holder = Holder { by, kicks: Cell::new(0) };
        let result = change(&mut self.spis.lock_first(), &holder);
        (result, Kicks(holder.kicks.get()))
    }

    /// Sends kicks.
    #[inline(always)]
    pub fn send_kicks(&self, Kicks(vcpus): Kicks) {
        if vcpus != 0 {
            self.kick_each(vcpus);
        }
    }
}

impl Kicks {
    /// Adds others, so that who is in both is kicked once.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Effects for Holder<'_> {
    #[inline(always)]
    fn kick(&self, vcpu: VcpuId) {
        if Some(vcpu) != self.by.own {
            self.kicks.set(self.kicks.get() | 1 << (vcpu.get() & 63));
        }
    }
    fn deactivate(&self, pintid: Pintid) {
        self.by.deactivate(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        self.by.line(pintid)
    }
    fn is_pending(&self, pintid: Pintid) -> bool {
        self.by.is_pending(pintid)
    }
    fn clear_pending(&self, pintid: Pintid) {
        self.by.clear_pending(pintid);
    }
    fn route(&self, pintid: Pintid, vcpu: VcpuId) {
        self.by.route(pintid, vcpu);
    }
    /// Does nothing: it takes this very lock, so the one register that needs it is written without.
    fn control_lpis(&self, _: VcpuId, _: u32) {}
}
