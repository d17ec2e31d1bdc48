// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts: physical ones that arrive, virtual ones on their way to this core's guest.
#![forbid(unsafe_code)]

use super::{Core, GO_ON, HALT, KICK, Next};
use crate::arch::{self, GuestCounts, Overflow};
use crate::bits::{MmioError, Width};
use crate::gic::{self, Flush, Frame, Injected, SgiRegister};
use crate::id::{Pintid, Vintid};
use crate::trace::{self, Exits, InterruptKind, LastExit, Turns};

/// The virtual interface wants maintenance.
pub const MAINTENANCE: Pintid = Pintid::new(25);
/// EL2's physical timer.
pub const HYP_TIMER: Pintid = Pintid::new(26);
/// PPIs whose devices belong to the guest of their core: the PMU, the virtual and the physical
/// timer (the numbers of the Base System Architecture, DEN 0094, which boot has confirmed).
pub const PMU: Pintid = Pintid::new(23);
/// The virtual timer.
pub const VIRTUAL_TIMER: Pintid = Pintid::new(27);
/// The physical timer.
pub const PHYSICAL_TIMER: Pintid = Pintid::new(30);
/// These three, a bit each.
pub const OWN_PPIS: u32 = 1 << 23 | 1 << 27 | 1 << 30;

impl<'a> Core<'a> {
    /// Serves one physical interrupt of a GICv3; more come back at once after the entry.
    #[inline(always)]
    pub(super) fn serve_interrupt(&mut self, left_at: u64) -> (Next, &'a Turns) {
        let turns = &self.turns[trace::INTERRUPT];
        let Some(pintid) = arch::take_interrupt_v3() else { return (Next::Enter, turns) };
        self.last.answered.keep(LastExit::interrupt(pintid.get(), arch::elr(), left_at));
        if matches!(pintid, VIRTUAL_TIMER | PHYSICAL_TIMER) {
            return (Next::Enter, self.pass_private(pintid));
        }
        if pintid == KICK {
            arch::deactivate_v3(pintid);
            return (self.after_kick(), turns);
        }
        self.serve_rare(pintid)
    }

    /// Does the same with a GICv2.
    #[cold]
    #[inline(never)]
    pub(super) fn serve_interrupt_v2(&mut self, left_at: u64) -> (Next, &'a Turns) {
        let turns = &self.turns[trace::INTERRUPT];
        let Some(pintid) = arch::take_interrupt() else { return (Next::Enter, turns) };
        self.last.answered.keep(LastExit::interrupt(pintid.get(), arch::elr(), left_at));
        self.serve_any(pintid)
    }

    /// Serves what was taken from either GIC.
    fn serve_any(&mut self, pintid: Pintid) -> (Next, &'a Turns) {
        let turns = &self.turns[trace::INTERRUPT];
        if matches!(pintid, VIRTUAL_TIMER | PHYSICAL_TIMER) {
            return (Next::Enter, self.pass_private(pintid));
        }
        if pintid == KICK {
            arch::deactivate(pintid);
            return (self.after_kick(), turns);
        }
        self.serve_rare(pintid)
    }

    /// Serves an interrupt that ends no exit.
    pub(super) fn serve_apart(&mut self) -> Next {
        self.beat();
        let Some(pintid) = arch::take_interrupt() else { return Next::Enter };
        let (next, turns) = self.serve_any(pintid);
        self.count_apart(turns);
        next
    }

    /// Counts what has come the quick way without an exit that would be counted.
    pub(super) fn count_apart(&self, turns: &Turns) {
        if core::ptr::eq(turns, &raw const self.turns[trace::PPI]) {
            self.vredist.injections.count(InterruptKind::Ppi, 1);
        }
    }

    /// Passes a PPI on to the guest; it stays active until the guest deactivates it (traps T71,
    /// T81).
    #[inline(always)]
    pub(super) fn pass_private(&mut self, pintid: Pintid) -> &'a Turns {
        let vintid = Vintid::new(pintid.get());
        let own = self.vredist;
        match self.delivery.inject_private(own, vintid, pintid, &mut self.list_registers) {
            Injected::Now => &self.turns[trace::PPI],
            Injected::Later => &self.turns[trace::INTERRUPT],
        }
    }

    /// Looks at what a kick can be for; virtual interrupts are looked at before every entry.
    #[inline(always)]
    pub(super) fn after_kick(&mut self) -> Next {
        if self.vm.lifecycle.wants_out() { self.stand_aside() } else { Next::Enter }
    }

    #[inline(never)]
    pub(super) fn serve_rare(&mut self, pintid: Pintid) -> (Next, &'a Turns) {
        let turns = &self.turns[trace::INTERRUPT];
        if pintid == PMU {
            return (Next::Enter, self.serve_pmu());
        }
        (self.serve_shared(pintid), turns)
    }

    /// Keeps what the guest has executed, where that is what the PMU's interrupt is about; else
    /// passes it on.
    fn serve_pmu(&mut self) -> &'a Turns {
        let overflow = arch::pmu_overflow();
        self.keep_guest_counts();
        match overflow {
            Overflow::Guest => self.pass_private(PMU),
            Overflow::Own => {
                arch::deactivate(PMU);
                &self.turns[trace::INTERRUPT]
            }
        }
    }

    /// Adds what the guest has executed to what others read. That takes a while, so only the
    /// longer routes do it.
    pub(super) fn keep_guest_counts(&self) {
        let GuestCounts { cycles, instructions } = arch::take_guest_counts();
        self.counters.cycles.add(cycles);
        self.counters.instructions.add(instructions);
    }

    fn serve_shared(&mut self, pintid: Pintid) -> Next {
        let vm = self.vm;
        if let Some(vintid) = vm.link(pintid) {
            // Stays active until the guest deactivates it.
            vm.change_spis(self.effects(), |token, effects| {
                vm.vgic.raise_linked(token, vintid, effects);
            });
            return Next::Enter;
        }
        arch::deactivate(pintid);
        match pintid {
            HALT => arch::halt(),
            MAINTENANCE => self.vredist.look_again(),
            _ => return self.serve_long(pintid),
        }
        Next::Enter
    }

    /// Serves an interrupt of the hypervisor's own that may take a while.
    fn serve_long(&mut self, pintid: Pintid) -> Next {
        self.looks.begin();
        let next = match pintid {
            GO_ON => {
                self.work_on_vits();
                self.serve_vm()
            }
            HYP_TIMER => {
                self.hypervisor.serve_timer();
                self.serve_vm()
            }
            // Or nobody's: its enable bit is off, so this one was on its way before that.
            _ => {
                self.hypervisor.serve_own(pintid);
                Next::Enter
            }
        };
        self.looks.look();
        next
    }

    /// Brings work to the list registers. What others add meanwhile has its kick; what this core
    /// adds for itself when it compares has none, so it looks again.
    #[inline(always)]
    pub(super) fn flush(&mut self, turns: &'a Turns, left_at: u64) -> &'a Exits {
        match self.delivery.flush(self.vredist, &mut self.list_registers) {
            Flush::Done => &turns.plain,
            Flush::Sgi => &turns.with_sgi,
            Flush::Reconcile => self.flush_late(turns, left_at),
        }
    }

    /// Brings work to the list registers the long way, after the exit of `turns` at `left_at`.
    #[cold]
    #[inline(never)]
    fn flush_late(&mut self, turns: &'a Turns, left_at: u64) -> &'a Exits {
        self.keep_guest_counts();
        let before = self.vredist.injections.all();
        self.reconcile_until_done();
        if self.vredist.injections.all() != before {
            self.counters.count_late(turns, arch::counter().wrapping_sub(left_at));
        }
        &turns.plain
    }

    /// Compares while there is work, a few times and then at the next exit.
    #[inline(never)]
    pub(super) fn reconcile_until_done(&mut self) {
        const ROUNDS_MAX: usize = 4;
        for _ in 0..ROUNDS_MAX {
            self.reconcile();
            if !self.vredist.has_work() {
                return;
            }
        }
        // What is left has had no kick.
        self.vm.kick(self.vcpu);
    }

    /// Compares list registers and models.
    pub(super) fn reconcile(&mut self) {
        let vm = self.vm;
        vm.change_spis(self.effects(), |token, effects| {
            self.delivery.reconcile(&vm.vgic, token, &mut self.list_registers, effects);
        });
    }

    #[inline(always)]
    pub(super) fn read_vdist(&mut self, offset: u64, width: Width) -> Result<u64, MmioError> {
        if gic::shows_list_registers(offset) {
            let word = self.read_listed(Frame::Vdist, (offset, width));
            return word.map(u64::from).ok_or(MmioError::Width);
        }
        self.vm.vgic.vdist().read(offset, width)
    }

    #[inline(always)]
    pub(super) fn write_vdist(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), MmioError> {
        if gic::changes_list_registers(offset) {
            return self.write_listed(Frame::Vdist, (offset, width), value);
        }
        let vm = self.vm;
        vm.change_own_spis(self.effects(), |token, effects| {
            vm.vgic.write_vdist(token, (offset, width), value, effects)
        })
    }

    #[inline(always)]
    pub(super) fn read_vredists(&mut self, offset: u64, width: Width) -> Result<u64, MmioError> {
        if gic::shows_list_registers(offset) {
            let word = self.read_listed(Frame::Vredists, (offset, width));
            return word.map(u64::from).ok_or(MmioError::Width);
        }
        self.vm.vgic.read_vredists(offset, width)
    }

    #[inline(always)]
    pub(super) fn write_vredists(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), MmioError> {
        if gic::changes_own_list_registers(offset) {
            return self.write_listed(Frame::Vredists, (offset, width), value);
        }
        self.vm.vgic.write_vredists((offset, width), value, &self.effects())
    }

    /// Brings into the models what a register of GICv2's own, at `offset`, shows or changes and
    /// list registers have: those of this core alone, since all such registers are banked.
    pub(super) fn settle_for_v2(&mut self, offset: u64) {
        if gic::shows_list_registers(offset) {
            self.reconcile();
        } else if gic::is_sgi_state(offset) {
            let vm = self.vm;
            vm.change_spis(self.effects(), |token, effects| {
                self.delivery.recall_sgis(&vm.vgic, token, &mut self.list_registers, effects);
            });
        }
    }

    /// Sends the SGI that the guest asks for.
    #[inline(always)]
    pub(super) fn send_sgi(&self, register: SgiRegister, value: u64) {
        self.vm.vgic.send_sgi(self.vcpu, register, value, &self.effects());
    }

    /// Carries out a write to ICC_DIR_EL1 of an interrupt that is in no list register here.
    pub(super) fn deactivate(&mut self, value: u64) {
        let Ok(intid) = u32::try_from(value & 0xff_ffff) else { return };
        let (vm, vintid) = (self.vm, Vintid::new(intid));
        vm.change_spis(self.effects(), |token, effects| {
            let (delivery, list_registers) = (&mut self.delivery, &mut self.list_registers);
            delivery.reconcile(&vm.vgic, token, list_registers, effects);
            vm.vgic.deactivate(token, self.vcpu, vintid, effects);
            delivery.reconcile(&vm.vgic, token, list_registers, effects);
        });
    }

    /// Takes this core out of its VM's interrupts: at the end of the VM everything goes, at the
    /// end of the vCPU alone what waits for it stays in the models, and others may take it.
    pub(super) fn stop_interrupts(&mut self, next: Next) {
        let vm = self.vm;
        if next == Next::Off {
            vm.change_spis(self.effects(), |token, effects| {
                self.delivery.vacate(&vm.vgic, token, &mut self.list_registers, effects);
                vm.vgic.note_off(self.vcpu);
                vm.vgic.wake_all(token, effects);
            });
        } else {
            self.delivery.reset(self.vredist, &mut self.list_registers);
        }
        self.clear_interrupts();
    }

    /// Empties the virtual interface and ends the interrupts of this core's own devices.
    pub(super) fn clear_interrupts(&mut self) {
        arch::stop_timers();
        arch::reset_virtual_interface();
        // After that, since it says what the virtual interface traps.
        self.delivery.reset(self.vredist, &mut self.list_registers);
        self.private_interrupts.quiet(OWN_PPIS);
    }
}
