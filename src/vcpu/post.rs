// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a pCPU is given to do: a vCPU to serve for as long as its VM exists, and nothing before
//! and after that but the hypervisor's own interrupts.
#![forbid(unsafe_code)]

use super::life::ASIDE_MAX;
use super::looks::Looks;
use super::{Core, HALT, HYP_TIMER, KICK, OWN_PPIS};
use crate::arch;
use crate::drivers::gic::PrivateInterrupts;
use crate::hypervisor::Hypervisor;
use crate::id::{Mpidr, PcpuId, Pintid, VcpuId, VmId};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A pCPU's post: which vCPU it serves.
#[derive(Debug)]
pub struct Post {
    /// The pCPU.
    pub mpidr: Mpidr,
    kick: arch::SgiTarget,
    word: AtomicU32,
    /// What the pCPU kept of the last vCPU that it has served.
    residue: AtomicU64,
}

impl Post {
    /// Nobody's.
    const FREE: u32 = 0;
    /// Somebody's, who has not said yet what is to be done.
    const TAKEN: u32 = 1;
    /// Of a core that is not there.
    const ABSENT: u32 = 2;
    /// Somebody's who wants a VM made.
    const MAKER: u32 = 3;
    /// A vCPU's: its VM in bits 15:8, its number in bits 7:0.
    const SERVES: u32 = 1 << 31;

    /// Makes the post of a core that is up, free.
    #[must_use]
    pub fn new(mpidr: Mpidr) -> Self {
        Self {
            mpidr,
            kick: arch::SgiTarget::new(mpidr),
            word: AtomicU32::new(Self::FREE),
            residue: AtomicU64::new(0),
        }
    }

    /// Makes the post of a core that has not come up.
    #[must_use]
    pub fn absent(mpidr: Mpidr) -> Self {
        Self { word: AtomicU32::new(Self::ABSENT), ..Self::new(mpidr) }
    }

    /// Takes a free post; of many, one wins.
    #[must_use]
    pub fn take(&self) -> bool {
        let (free, taken) = (Self::FREE, Self::TAKEN);
        self.word.compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Has the pCPU, whose post is taken, make a VM.
    pub fn make(&self) {
        // Release pairs with the acquire in `task`: what is to be made is known.
        self.word.store(Self::MAKER, Ordering::Release);
        arch::send_sgi(KICK, self.kick);
    }

    /// Gives the post up, unless there is a vCPU to serve by now.
    pub fn has_made(&self) {
        let (maker, free) = (Self::MAKER, Self::FREE);
        let _ = self.word.compare_exchange(maker, free, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Gives the pCPU, whose post is taken, a vCPU to serve.
    pub fn assign(&self, vm: VmId, vcpu: VcpuId) {
        let word = Self::SERVES | u32::from(vm.get()) << 8 | u32::from(vcpu.get());
        // Release pairs with the acquire in `task`: the VM is in its slot.
        self.word.store(word, Ordering::Release);
        arch::send_sgi(KICK, self.kick);
    }

    /// Gives the post up.
    pub fn free(&self) {
        self.word.store(Self::FREE, Ordering::Release);
    }

    /// Returns whether nobody has the post.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == Self::FREE
    }

    /// Notes what this pCPU still has of the vCPU that it has served.
    fn note_residue(&self, private: &PrivateInterrupts) {
        let [_, pending, active] = private.state();
        let interrupts = u64::from((pending | active) & OWN_PPIS);
        self.residue.store(u64::from(arch::residue()) << 32 | interrupts, Ordering::Relaxed);
    }

    /// Returns what the pCPU kept of the last vCPU that it has served: what of it still is on, as
    /// [`arch::residue`] has it, above the PPIs of its devices that are pending or active. 0 is
    /// what is right.
    #[must_use]
    pub fn residue(&self) -> u64 {
        self.residue.load(Ordering::Relaxed)
    }

    /// Returns whose vCPU the pCPU serves.
    #[must_use]
    pub fn serves(&self) -> Option<(VmId, VcpuId)> {
        match self.task() {
            Task::Serve(vm, vcpu) => Some((vm, vcpu)),
            Task::Nothing | Task::Make => None,
        }
    }

    /// Returns what the pCPU is to do.
    fn task(&self) -> Task {
        let word = self.word.load(Ordering::Acquire);
        let [vcpu, vm, ..] = word.to_le_bytes();
        match word {
            Self::MAKER => Task::Make,
            _ if word & Self::SERVES != 0 => Task::Serve(VmId::new(vm), VcpuId::new(vcpu)),
            _ => Task::Nothing,
        }
    }
}

/// What a pCPU is to do.
enum Task {
    Nothing,
    /// Serve a vCPU.
    Serve(VmId, VcpuId),
    /// Make a VM.
    Make,
}

/// Does what a pCPU is given to do, for good.
pub fn work(hypervisor: &Hypervisor, here: PcpuId, mut private: PrivateInterrupts) -> ! {
    let Some(post) = hypervisor.posts.get(here.index()) else { arch::halt() };
    hypervisor.watch_cores();
    loop {
        match post.task() {
            Task::Serve(vm, vcpu) => {
                hypervisor.with_vm(vm, |vm| {
                    if let Some(mut core) = Core::new(hypervisor, vm, vcpu, &mut private) {
                        core.serve();
                    }
                });
                post.note_residue(&private);
                if vcpu.get() == 0 {
                    in_pieces(hypervisor, |pause| hypervisor.destroy(vm, pause));
                }
                post.free();
                hypervisor.place_uarts();
            }
            Task::Make => {
                in_pieces(hypervisor, |pause| hypervisor.make_vm(post.mpidr, pause));
                post.has_made();
                hypervisor.place_uarts();
            }
            Task::Nothing => idle(hypervisor),
        }
    }
}

/// Does long work that looks for interrupts now and then, and says how long it did not where a plan
/// wants to know.
#[cold]
#[inline(never)]
fn in_pieces(hypervisor: &Hypervisor, work: impl FnOnce(&mut dyn FnMut())) {
    let mut looks = Looks::new();
    work(&mut || {
        for _ in 0..ASIDE_MAX {
            looks.look();
            let Some(pintid) = arch::take_interrupt() else { return };
            serve_own(hypervisor, pintid);
        }
    });
    looks.look();
    if hypervisor.reports_reset_cost {
        looks.report("core");
    }
}

/// Sleeps until there is an interrupt, and serves the hypervisor's own.
fn idle(hypervisor: &Hypervisor) {
    arch::wait_for_interrupt();
    if let Some(pintid) = arch::take_interrupt() {
        serve_own(hypervisor, pintid);
    }
}

/// Serves an interrupt of the hypervisor's own. Others may come: a device of a VM that is just made
/// may interrupt before its core serves it, on and on.
fn serve_own(hypervisor: &Hypervisor, pintid: Pintid) {
    arch::deactivate(pintid);
    match pintid {
        HALT => arch::halt(),
        HYP_TIMER => hypervisor.serve_timer(),
        _ => hypervisor.serve_own(pintid),
    }
}
