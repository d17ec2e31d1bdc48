// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One core of the fake machine: it scripts exits and records what the hypervisor does to it.
//!
//! A thread is a core: each has its own state, which a test reaches with [`with`].
#![forbid(unsafe_code)]

pub use super::board::*;
pub use super::tables::*;
pub use super::time::*;
use crate::addr::{Address, Gva, Ipa, Pa, PaRange};
use crate::arch::Exit;
use crate::bits::Level;
use crate::gic::ListRegisters;
use crate::id::{Mpidr, Pintid};
use crate::smccc::Workaround;
use crate::spec::esr::Syndrome;
use crate::spec::exception::{Exception, Origin};
use crate::spec::gic::Lr;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::vec::Vec;

/// What the hypervisor has done to the machine, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// It sent an SGI of its own.
    Sgi(Pintid, Mpidr),
    /// It dropped the priority of an interrupt.
    PriorityDrop(Pintid),
    /// It deactivated an interrupt.
    Deactivate(Pintid),
    /// It made the guest take an exception.
    Inject(Exception),
    /// It made an SError pending for the guest.
    InjectSerror,
    /// It wrote a list register.
    WriteListRegister(usize, Lr),
    /// It waited for an interrupt.
    Wait,
    /// It silenced the guest's timers.
    StopTimers,
    /// It emptied the virtual interface.
    ResetVirtualInterface,
    /// It wrote a device register.
    DeviceWrite(Pa, u64),
    /// It entered the guest.
    Enter,
    /// It set a vCPU's state to that after reset.
    ResetGuest(Mpidr),
    /// It set where a vCPU starts.
    StartGuest(Ipa),
    /// It mitigated on behalf of a guest.
    Mitigate(Workaround),
    /// It made a VM's stage 2 the one of this core.
    Activate(Stage2Registers),
    /// It took the VM's stage 2 from this core.
    Leave,
    /// It wrote zeroes to memory.
    Zero(PaRange),
    /// It copied memory.
    Copy {
        /// Where to: at the start of it.
        to: PaRange,
        /// What.
        from: PaRange,
    },
    /// It cleaned and invalidated caches.
    CleanInvalidate(PaRange),
    /// It made written instructions visible.
    PublishCode,
    /// It turned the machine off.
    SystemOff,
    /// It started the machine again.
    SystemReset,
}

/// An exit that the next entry ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scripted {
    /// Through which vector.
    pub kind: ExitKind,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// The page of HPFAR_EL2.
    pub ipa: u64,
}

/// The state of a core.
#[derive(Debug)]
pub struct FakeCore {
    /// What has happened.
    pub events: Vec<Event>,
    /// What happens next; when it is empty, an entry unwinds the thread.
    pub exits: VecDeque<Scripted>,
    /// The physical interrupts that are pending, first come first served.
    pub pending: VecDeque<Pintid>,
    /// The list registers.
    pub list_registers: [Lr; 4],
    /// What ICH_HCR_EL2 has beside En.
    pub control: u32,
    /// Device registers by address; what is not here reads as 0.
    pub devices: BTreeMap<u64, u64>,
    /// Whether cleaning caches does nothing: for the twins of tests.
    pub loses_cleaning: bool,
    /// Whether the TLBI of a whole VM does nothing, likewise.
    pub loses_invalidations: bool,
    /// VTTBR_EL2; 0 is none of a VM.
    pub vttbr: u64,
    /// Identification registers by CRm and Op2; what is not here reads as 0.
    pub id_registers: BTreeMap<(u8, u8), u64>,
    /// ELR_EL2.
    pub elr: u64,
    /// ELR_EL1.
    pub elr_el1: u64,
    /// ESR_EL1.
    pub esr_el1: u64,
    /// FAR_EL1.
    pub far_el1: u64,
    /// When EL2's timer fires, if it is armed.
    pub hyp_timer: Option<u64>,
    /// The physical counter; each look moves it on.
    pub counter: u64,
    /// By how much.
    pub counter_step: u64,
    /// What the guest puts into X0 before its next exit.
    pub x0: Option<u64>,
    /// The guest's timers.
    pub timers: GuestTimers,
    /// What the guest has executed.
    pub guest_counts: GuestCounts,
    /// Whose overflow the PMU's interrupt is about.
    pub overflow: Overflow,
    /// What happens when it sends an SGI.
    pub on_sgi: Hook,
    /// What happens when the script has ended or the core is asleep: it may bring more.
    pub on_idle: Hook,
    current: Scripted,
}

impl Default for FakeCore {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            exits: VecDeque::new(),
            pending: VecDeque::new(),
            list_registers: [Lr::EMPTY; 4],
            control: 0,
            devices: BTreeMap::new(),
            loses_cleaning: false,
            loses_invalidations: false,
            vttbr: 0,
            id_registers: BTreeMap::new(),
            elr: 0,
            elr_el1: 0,
            esr_el1: 0,
            far_el1: 0,
            hyp_timer: None,
            counter: 0,
            counter_step: 1,
            x0: None,
            timers: GuestTimers::default(),
            guest_counts: GuestCounts::default(),
            overflow: Overflow::default(),
            on_sgi: Hook::default(),
            on_idle: Hook::default(),
            current: Scripted { kind: ExitKind::Interrupt, esr: 0, far: 0, ipa: 0 },
        }
    }
}

/// Something that a test lets happen.
#[derive(Clone, Default)]
pub struct Hook(Option<Rc<dyn Fn()>>);

impl Hook {
    /// Makes what calls `happens`.
    pub fn new(happens: impl Fn() + 'static) -> Self {
        Self(Some(Rc::new(happens)))
    }
}

impl core::fmt::Debug for Hook {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Hook").finish_non_exhaustive()
    }
}

/// Lets it happen; the core's state is free for it.
fn happen(hook: impl FnOnce(&FakeCore) -> &Hook) {
    let Hook(happens) = with(|core| hook(core).clone());
    happens.into_iter().for_each(|happens| happens());
}

std::thread_local! {
    static CORE: RefCell<FakeCore> = RefCell::default();
    static COUNTING: Cell<bool> = const { Cell::new(true) };
}

/// Reaches the state of this thread's core.
pub fn with<R>(look: impl FnOnce(&mut FakeCore) -> R) -> R {
    uncounted(|| CORE.with_borrow_mut(look))
}

/// Does what the machine does and not the hypervisor: a test that counts allocations, or lets them
/// fail, asks [`is_counting`].
pub fn uncounted<R>(work: impl FnOnce() -> R) -> R {
    let before = COUNTING.replace(false);
    let result = work();
    COUNTING.set(before);
    result
}
/// Returns whether this thread's allocations are the hypervisor's.
#[must_use]
pub fn is_counting() -> bool {
    COUNTING.get()
}

pub(super) fn record(event: Event) {
    with(|core| core.events.push(event));
}

/// Which vector the exit came through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitKind {
    /// A synchronous exception.
    Synchronous,
    /// A physical interrupt.
    Interrupt,
    /// An SError.
    SError,
}

/// The general registers of a guest.
#[derive(Debug, Default)]
pub struct GuestRegisters {
    /// X0 to X30, and XZR, which stays 0.
    pub x: [u64; 32],
}

impl GuestRegisters {
    /// Makes the registers of a vCPU, all zero.
    #[must_use]
    pub fn new(_mitigations: Mitigations) -> Self {
        Self::default()
    }
}

/// Whether what a core's errata need is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mitigations {
    /// As the core needs it.
    On,
    /// Left out.
    Off,
}

/// The SGI that tells a core to halt.
pub const HALT_SGI: u32 = 1;

/// Ends with the next scripted exit.
///
/// # Panics
/// The script has ended: the test has seen enough.
pub fn enter(registers: &mut GuestRegisters) -> Exit {
    if with(|core| core.exits.is_empty()) {
        happen(|core| &core.on_idle);
    }
    let exit = with(|core| {
        let exit = core.exits.pop_front()?;
        core.events.push(Event::Enter);
        core.current = exit;
        let [x0, ..] = &mut registers.x;
        *x0 = core.x0.take().unwrap_or(*x0);
        Some(match exit.kind {
            ExitKind::Synchronous => Exit::Synchronous(Syndrome::new(exit.esr)),
            ExitKind::Interrupt => Exit::Interrupt,
            ExitKind::SError => Exit::SError,
        })
    });
    exit.unwrap_or_else(|| std::panic::resume_unwind(std::boxed::Box::new("end of script")))
}

/// Leaves the guest by an SError before it has begun.
pub fn serror_instead_of_entry(_registers: &mut GuestRegisters) -> Exit {
    Exit::SError
}

/// Returns the syndrome of the last exit.
pub fn esr() -> u64 {
    with(|core| core.current.esr)
}
/// Returns where the guest goes on.
pub fn elr() -> u64 {
    with(|core| core.elr)
}
/// Returns the virtual address of the last abort.
pub fn far() -> Gva {
    with(|core| Gva::new(core.current.far))
}
/// Returns the page of the last stage-2 abort.
pub fn hpfar() -> Ipa {
    with(|core| Ipa::new(core.current.ipa))
}
/// Moves the guest past an instruction.
pub fn skip_instruction() {
    with(|core| core.elr = core.elr.wrapping_add(4));
}
/// Makes the guest take an exception: from EL1h, to vectors at 0.
pub fn inject(exception: Exception) {
    const EL1H: u64 = 5;
    let entry = exception.enter(Origin { pstate: EL1H, sctlr: 0 });
    with(|core| {
        core.elr_el1 = core.elr;
        core.elr = entry.vector;
        core.esr_el1 = entry.esr;
        if let Some(far) = exception.far() {
            core.far_el1 = far.get();
        }
    });
    record(Event::Inject(exception));
}
/// Returns whether the guest is at the vector that an exception would take it to: VBAR_EL1 is 0.
pub fn is_at_own_vector() -> bool {
    with(|core| core.elr == 0x200)
}
/// Makes an SError pending for the guest.
pub fn inject_serror() {
    record(Event::InjectSerror);
}
/// Defines a vCPU's state.
pub fn reset_guest(mpidr: Mpidr) {
    with(|core| {
        let GuestTimers { cntvoff_ticks, way, .. } = core.timers;
        core.timers = GuestTimers { cntvoff_ticks, way, ..GuestTimers::default() };
    });
    record(Event::ResetGuest(mpidr));
}
/// Sets when and where the vCPU starts.
pub fn start_guest(entry: Ipa, cntvoff_ticks: u64) {
    with(|core| {
        core.elr = entry.get();
        core.timers.cntvoff_ticks = cntvoff_ticks;
    });
    record(Event::StartGuest(entry));
}
/// Returns what this core still has of a guest: stage 2 and list registers.
pub fn residue() -> u32 {
    with(|core| {
        let is_listed = core.list_registers.iter().any(|lr| *lr != Lr::EMPTY);
        u32::from(core.vttbr != 0) << 2 | u32::from(is_listed) << 3
    })
}
/// Returns where the guest is and what its registers hold.
pub fn guest_state() -> crate::arch::GuestState {
    with(|core| crate::arch::GuestState([core.elr, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
}
/// What a guest has executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestCounts {
    /// Cycles.
    pub cycles: u64,
    /// Instructions.
    pub instructions: u64,
}
/// Whose overflow an interrupt of the PMU is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// EL2's alone.
    Own,
    /// The guest's, or nobody's any more.
    #[default]
    Guest,
}
/// Returns what the guest has executed since the last time.
pub fn take_guest_counts() -> GuestCounts {
    with(|core| core::mem::take(&mut core.guest_counts))
}
/// Returns whose overflow the PMU's interrupt is about.
pub fn pmu_overflow() -> Overflow {
    with(|core| core.overflow)
}
/// Silences the guest's timers.
pub fn stop_timers() {
    record(Event::StopTimers);
}
/// Reads an identification register.
pub fn id_register(crm: u8, op2: u8) -> u64 {
    with(|core| core.id_registers.get(&(crm, op2)).copied().unwrap_or(0))
}

/// Reads REVIDR_EL1.
pub fn revidr() -> u64 {
    0
}
/// Reads AIDR_EL1.
pub fn aidr() -> u64 {
    0
}

/// Takes the next pending interrupt and drops its priority.
pub fn take_interrupt() -> Option<Pintid> {
    let intid = with(|core| core.pending.pop_front())?;
    record(Event::PriorityDrop(intid));
    Some(intid)
}
/// Does the same: what a GICv3 does otherwise is not seen here.
pub fn take_interrupt_v3() -> Option<Pintid> {
    take_interrupt()
}
/// Deactivates an interrupt.
pub fn deactivate(intid: Pintid) {
    record(Event::Deactivate(intid));
}
/// Does the same.
pub fn deactivate_v3(intid: Pintid) {
    deactivate(intid);
}
/// A core as the target of SGIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgiTarget(Mpidr);

impl SgiTarget {
    /// Makes the target of a core.
    #[must_use]
    pub fn new(target: Mpidr) -> Self {
        Self(target)
    }
}
/// Sends an SGI.
pub fn send_sgi(intid: Pintid, SgiTarget(target): SgiTarget) {
    record(Event::Sgi(intid, target));
    happen(|core| &core.on_sgi);
}
/// Names the GICv2: a test that has one reaches it by its driver.
pub fn use_gicv2(_interfaces: &'static crate::drivers::gicv2::CpuInterfaces) {}
/// Makes the CPU interface ready.
pub fn enable_cpu_interface() {}
/// Empties the virtual interface.
pub fn reset_virtual_interface() {
    with(|core| {
        core.list_registers = [Lr::EMPTY; 4];
        core.control = 0;
        core.events.push(Event::ResetVirtualInterface);
    });
}

/// This core's list registers: four.
#[derive(Debug)]
pub struct ListRegisterFile(usize);

impl ListRegisterFile {
    /// Takes the list registers, no more than `max`.
    #[must_use]
    pub fn new(max: Option<u8>) -> Self {
        Self(max.map_or(4, usize::from).clamp(1, 4))
    }
    /// Returns how many list registers are used.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0
    }
}

impl ListRegisters for ListRegisterFile {
    fn read(&mut self, slot: usize) -> Lr {
        with(|core| core.list_registers.get(slot).copied().unwrap_or(Lr::EMPTY))
    }
    fn write(&mut self, slot: usize, lr: Lr) {
        with(|core| {
            if let Some(register) = core.list_registers.get_mut(slot) {
                *register = lr;
            }
        });
        record(Event::WriteListRegister(slot, lr));
    }
    fn empty(&self) -> u32 {
        with(|core| {
            let empty = |lr: &Lr| !lr.is_pending() && !lr.is_active();
            let bits = core.list_registers.iter().enumerate();
            bits.map(|(n, lr)| u32::from(empty(lr)) << n).sum()
        })
    }
    fn take_eoi_count(&mut self) -> u32 {
        0
    }
    fn groups(&self) -> u32 {
        3
    }
    fn set_control(&mut self, bits: u32) {
        with(|core| core.control = bits);
    }
    fn deactivate(&mut self, pintid: Pintid) {
        deactivate(pintid);
    }
    fn line(&self, _pintid: Pintid) -> Level {
        Level::High
    }
}

/// Returns whether no list register holds an interrupt.
#[must_use]
pub fn list_registers_are_empty(used: &ListRegisterFile) -> bool {
    used.empty() == 0xf
}

/// Returns the counter and moves it on.
pub fn counter() -> u64 {
    with(|core| {
        core.counter += core.counter_step;
        core.counter
    })
}
/// Returns the counter, behind all that comes before.
pub fn counter_now() -> u64 {
    counter()
}
/// Returns the counter's frequency.
pub fn counter_frequency_hz() -> u64 {
    1_000_000_000
}
/// Arms EL2's timer, unless it fires before.
pub fn arm_hyp_timer(deadline_ticks: u64) {
    with(|core| {
        let earlier = core.hyp_timer.filter(|armed| *armed <= deadline_ticks);
        core.hyp_timer = earlier.or(Some(deadline_ticks));
    });
}
/// Silences EL2's timer.
pub fn cancel_hyp_timer() {
    with(|core| core.hyp_timer = None);
}
/// Waits a moment.
pub fn relax() {
    std::thread::yield_now();
}
/// Waits for an interrupt; where none is pending, none will come.
///
/// # Panics
/// The core would sleep for good: the test has seen enough.
pub fn wait_for_interrupt() {
    record(Event::Wait);
    if with(|core| core.pending.is_empty()) {
        happen(|core| &core.on_idle);
    }
    if with(|core| core.pending.is_empty()) {
        std::panic::resume_unwind(std::boxed::Box::new("asleep"));
    }
}
/// Waits for an event.
pub fn wait_for_event() {
    std::thread::yield_now();
}
/// Wakes other cores.
pub fn send_event() {}
/// Ends the thread.
///
/// # Panics
/// Always: that is how a core of this machine stops.
pub fn halt() -> ! {
    std::panic::resume_unwind(std::boxed::Box::new("halted"))
}
