// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The vCPUs: what each has of its own, and how the others are started and stopped.
//!
//! A vCPU's index is its place among the `cpu` nodes of the tree, the boot vCPU's is 0.
#![expect(unsafe_code, reason = "per-vCPU data is found through TPIDR_EL1")]

use crate::exception::Guard;
use crate::sysreg::{MPIDR_EL1, relax, wfi};
use crate::{boot, console, gic, irq, power, println, psci, test, timer, tree};
use core::arch::asm;
use core::mem::transmute;
use core::ptr::null_mut;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed,
    Ordering::Release,
};

/// The most vCPUs that a guest uses.
pub const CPUS_MAX: usize = 8;
/// Bytes of a vCPU's stack.
pub const STACK_BYTES: usize = 64 << 10;
/// The affinity fields of MPIDR_EL1 (DDI 0487 D24.2.118).
pub const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// What a vCPU has of its own; assembly reaches the first field.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Where [`test::protect`] goes on when a test is given up.
    pub(crate) recover_sp: AtomicU64,
    index: AtomicU64,
    pub(crate) guard: Guard,
    pub(crate) irq_handler: AtomicPtr<()>,
    job: AtomicPtr<()>,
    /// From a successful `start` until the job has returned.
    is_busy: AtomicBool,
}

/// The per-vCPU data, by index.
pub(crate) static PERCPU: [PerCpu; CPUS_MAX] = [const {
    PerCpu {
        recover_sp: AtomicU64::new(0),
        index: AtomicU64::new(0),
        guard: Guard::new(),
        irq_handler: AtomicPtr::new(null_mut()),
        job: AtomicPtr::new(null_mut()),
        is_busy: AtomicBool::new(false),
    }
}; CPUS_MAX];

/// Returns the data of the vCPU that asks.
#[inline(always)]
pub(crate) fn this() -> &'static PerCpu {
    let address: *const PerCpu;
    // SAFETY: reading TPIDR_EL1 has no effect on memory.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) address, options(nomem, nostack)) };
    // SAFETY: the entry code has set the register to an element of `PERCPU` before any Rust code
    // ran, and nothing writes it later.
    unsafe { &*address }
}

/// Returns the index of the vCPU that asks.
#[must_use]
pub fn index() -> usize {
    usize::try_from(this().index.load(Relaxed)).unwrap_or(0)
}

/// Returns the affinity of the vCPU that asks, as PSCI and GICR_TYPER spell it.
#[must_use]
pub fn affinity() -> u64 {
    MPIDR_EL1::get() & AFFINITY_MASK
}

/// Returns how many vCPUs the tree names, at most [`CPUS_MAX`].
#[must_use]
pub fn count() -> usize {
    tree::machine().cpus.len()
}

/// Returns the affinity that the tree gives vCPU `index`.
#[must_use]
pub fn mpidr(index: usize) -> u64 {
    tree::machine().cpus.get(index).copied().unwrap_or(u64::MAX)
}

/// What a started vCPU runs before it goes off.
pub type Job = fn();

/// Starts vCPU `index` at `job`; it goes off when the job returns.
///
/// # Errors
/// Gives what PSCI answered.
pub fn start(index: usize, job: Job) -> Result<(), psci::Error> {
    let Some(percpu) = PERCPU.get(index) else { return Err(psci::Error::InvalidParameters) };
    // Pairs with the acquire in `secondary_main`.
    percpu.job.store(job as *mut (), Release);
    percpu.is_busy.store(true, Release);
    let answer = psci::cpu_on(mpidr(index), boot::secondary_entry_address(), index as u64);
    if answer.is_err() {
        percpu.is_busy.store(false, Release);
    }
    answer
}

/// Waits until vCPU `index` has done its job and is off; `false` when that takes too long.
///
/// QEMU says OFF for a moment after a successful CPU_ON, so PSCI alone cannot be asked.
#[must_use]
pub fn wait_off(index: usize) -> bool {
    timer::wait_for(timer::PATIENCE_MS, || {
        let is_busy = PERCPU.get(index).is_some_and(|percpu| percpu.is_busy.load(Acquire));
        !is_busy && psci::affinity_info(mpidr(index), 0) == Ok(1)
    })
}

/// Starts vCPU `index` at `job` and waits until it is off again; `false` when that fails.
#[must_use]
pub fn run_on(index: usize, job: Job) -> bool {
    start(index, job).is_ok() && wait_off(index)
}

/// Set from the end of a test until servers are started again.
static IS_OVER: AtomicBool = AtomicBool::new(false);
static READY: AtomicUsize = AtomicUsize::new(0);
/// The SGI that ends a [`serve`], which a test does not use for anything else.
pub const WAKE_SGI: u32 = 15;

/// Starts vCPU `index` at `job`, which has to come to [`serve`], and waits until it is there.
#[must_use]
pub fn start_server(index: usize, job: Job) -> bool {
    IS_OVER.store(false, Release);
    READY.store(0, Release);
    start(index, job).is_ok() && timer::wait_for(timer::PATIENCE_MS, || READY.load(Acquire) == 1)
}

/// Takes interrupts, with all SGIs enabled, until [`stop_servers`] or the end of the test.
pub fn serve() {
    for intid in 0..16 {
        gic::enable(intid);
    }
    READY.store(1, Release);
    // Masked until WFI is over, so that nothing is taken between the question and the waiting.
    irq::mask();
    while !IS_OVER.load(Acquire) {
        wfi();
        irq::take_pending();
    }
}

/// Ends every [`serve`]; `false` when a vCPU does not go off.
pub fn stop_servers() -> bool {
    IS_OVER.store(true, Release);
    (1..count()).all(|index| {
        let Some(percpu) = PERCPU.get(index) else { return false };
        if percpu.is_busy.load(Acquire) {
            gic::send_sgi(WAKE_SGI, index);
        }
        wait_off(index)
    })
}

pub(crate) extern "C" fn primary_main(tree_address: u64) -> ! {
    unsafe extern "Rust" {
        fn guest_main();
    }
    tree::read(tree_address);
    console::init();
    gic::find_redistributors();
    // SAFETY: `entry!` defines the function with this signature in each guest program.
    unsafe { guest_main() };
    power::exit(power::Status::Passed)
}

pub(crate) extern "C" fn secondary_main(index: u64) -> ! {
    let this = this();
    this.index.store(index, Relaxed);
    gic::init_cpu();
    irq::reset();
    let job = this.job.load(Acquire);
    if !job.is_null() {
        // SAFETY: only `start` stores to the field, and it stores a `Job`.
        let job = unsafe { transmute::<*mut (), Job>(job) };
        test::protect(job);
    }
    this.is_busy.store(false, Release);
    let error = psci::cpu_off();
    println!("vCPU {index} does not go off: {error:?}");
    loop {
        relax();
    }
}
