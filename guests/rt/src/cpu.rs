// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The vCPUs: what each has of its own, and how the others are started and stopped.
//!
//! A vCPU's index is its place among the `cpu` nodes of the tree, the boot vCPU's is 0.
#![expect(unsafe_code, reason = "per-vCPU data is found through TPIDR_EL1")]

use crate::exception::Guard;
use crate::sysreg::{MPIDR_EL1, relax};
use crate::{boot, console, gic, irq, power, psci, println, test, timer, tree};
use core::arch::asm;
use core::mem::transmute;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

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
}

/// The per-vCPU data, by index.
pub(crate) static PERCPU: [PerCpu; CPUS_MAX] = [const {
    PerCpu {
        recover_sp: AtomicU64::new(0),
        index: AtomicU64::new(0),
        guard: Guard::new(),
        irq_handler: AtomicPtr::new(null_mut()),
        job: AtomicPtr::new(null_mut()),
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
    psci::cpu_on(mpidr(index), boot::secondary_entry_address(), index as u64)
}

/// Waits until vCPU `index` is off; `false` when that takes too long.
#[must_use]
pub fn wait_off(index: usize) -> bool {
    timer::wait_for(timer::PATIENCE_MS, || psci::affinity_info(mpidr(index), 0) == Ok(1))
}

/// Starts vCPU `index` at `job` and waits until it is off again; `false` when that fails.
#[must_use]
pub fn run_on(index: usize, job: Job) -> bool {
    start(index, job).is_ok() && wait_off(index)
}

pub(crate) extern "C" fn primary_main(tree_address: u64) -> ! {
    unsafe extern "Rust" {
        fn guest_main();
    }
    tree::read(tree_address);
    console::init();
    gic::init();
    gic::init_cpu();
    irq::reset();
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
    let error = psci::cpu_off();
    println!("vCPU {index} does not go off: {error:?}");
    loop {
        relax();
    }
}
