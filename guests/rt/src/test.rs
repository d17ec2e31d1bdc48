// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests: what one is, and running them with one line of result for each:
//!
//! ```text
//! TEST <name>: ok
//! TEST <name>: FAIL <why>
//! TEST <name>: skip <why>
//! RESULT passed=N failed=N skipped=N
//! ```
#![expect(unsafe_code, reason = "gives a test up by going back to the runner's stack")]

use crate::cpu::{self, CPUS_MAX};
use crate::power::Status;
use crate::sysreg::{CPACR_EL1, isb};
use crate::{console, gic, irq, mmu, power, println, timer, tree};
use core::arch::global_asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// The end of a test that is not ok; why is kept apart, see [`fail`] and [`skip`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A rule is broken.
    Fail,
    /// The rule does not apply here.
    Skip,
}

/// How a test ends.
pub type Outcome = Result<(), Verdict>;

/// A test.
pub struct Test {
    /// Its name, which starts with the number of the trap that it shows.
    pub name: &'static str,
    /// How many vCPUs it needs.
    pub vcpus: usize,
    /// Runs it on the boot vCPU, interrupts masked.
    pub run: fn() -> Outcome,
}

/// Makes a list of tests: `tests![name, other: 2]`, with the number of vCPUs where it is not 1.
#[macro_export]
macro_rules! tests {
    (@vcpus) => { 1 };
    (@vcpus $vcpus:literal) => { $vcpus };
    ($($name:ident $(: $vcpus:literal)?),* $(,)?) => {
        &[$($crate::test::Test {
            name: stringify!($name),
            vcpus: $crate::tests!(@vcpus $($vcpus)?),
            run: $name,
        }),*]
    };
}

/// Ends the test as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::test::fail(format_args!($($why)+)));
        }
    };
}

/// Ends the test as failed unless both are equal; numbers are printed in
/// hexadecimal, without 0x.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $want:expr, $($what:tt)+) => {
        match (&$got, &$want) {
            (got, want) => if *got != *want {
                return Err($crate::test::fail(format_args!(
                    "{}: {:x?}, not {:x?}", format_args!($($what)+), got, want
                )));
            }
        }
    };
}

/// Ends the test as skipped.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => { return Err($crate::test::skip(format_args!($($why)+))) };
}

/// Why the last test failed or was skipped: ASCII, cut off at the end.
static WHY: [AtomicU8; 200] = [const { AtomicU8::new(0) }; 200];
static WHY_LEN: AtomicUsize = AtomicUsize::new(0);
/// Whether a vCPU other than the boot vCPU has given up; its reason then stays.
static SECONDARY_GAVE_UP: AtomicBool = AtomicBool::new(false);

struct Why;

impl Write for Why {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let start = WHY_LEN.load(Relaxed);
        let room = WHY.iter().skip(start);
        let written = room.zip(s.bytes()).map(|(to, from)| {
            to.store(if from.is_ascii_graphic() { from } else { b' ' }, Relaxed);
        });
        WHY_LEN.store(start + written.count(), Release);
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = WHY.iter().take(WHY_LEN.load(Acquire));
        bytes.map(|byte| char::from(byte.load(Relaxed))).try_for_each(|c| f.write_char(c))
    }
}

fn keep(arguments: fmt::Arguments<'_>) {
    if !SECONDARY_GAVE_UP.load(Acquire) {
        WHY_LEN.store(0, Relaxed);
        let _ = Why.write_fmt(arguments);
    }
}

/// Makes the verdict of a failed test; `check!` is the way to call it.
#[must_use]
pub fn fail(arguments: fmt::Arguments<'_>) -> Verdict {
    keep(arguments);
    Verdict::Fail
}

/// Makes the verdict of a skipped test; `skip!` is the way to call it.
#[must_use]
pub fn skip(arguments: fmt::Arguments<'_>) -> Verdict {
    keep(arguments);
    Verdict::Skip
}

/// The results so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Prints and counts a result.
    pub fn report(&mut self, name: &str, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("TEST {name}: ok");
            }
            Err(Verdict::Fail) => {
                self.failed += 1;
                println!("TEST {name}: FAIL {Why}");
            }
            Err(Verdict::Skip) => {
                self.skipped += 1;
                println!("TEST {name}: skip {Why}");
            }
        }
    }

    /// Prints the sum and ends the guest.
    pub fn finish(self) -> ! {
        let Self { passed, failed, skipped } = self;
        println!("RESULT passed={passed} failed={failed} skipped={skipped}");
        power::exit(if failed == 0 { Status::Passed } else { Status::Failed })
    }
}

/// Runs the tests that the arguments select and ends the guest.
///
/// `only=a,b` keeps the tests whose name contains one of the words, `not=a,b` drops such tests.
pub fn run_all(groups: &[&[Test]]) -> ! {
    let mut tally = Tally::default();
    for test in groups.iter().copied().flatten().filter(|test| is_selected(test.name)) {
        tally.report(test.name, run_one(test));
    }
    tally.finish()
}

/// Prints the names of the tests, `LIST <name>` each.
pub fn list_all(groups: &[&[Test]]) {
    for test in groups.iter().copied().flatten() {
        println!("LIST {}", test.name);
    }
}

fn is_selected(name: &str) -> bool {
    let matches = |list: &str| list.split(',').any(|word| name.contains(word));
    tree::argument("only").is_none_or(matches) && !tree::argument("not").is_some_and(matches)
}

/// Runs one test and cleans up behind it.
pub fn run_one(test: &Test) -> Outcome {
    if test.vcpus > cpu::count() {
        skip!("needs {} vCPUs", test.vcpus);
    }
    if tree::has_argument("verbose") {
        println!("RUN {}", test.name);
    }
    clean_up();
    // A test that is given up leaves its reason and no outcome.
    let mut outcome = Err(Verdict::Fail);
    protect(|| outcome = (test.run)());
    clean_up();
    let all_off = cpu::stop_servers();
    if outcome.is_ok() && !all_off {
        outcome = Err(fail(format_args!("a vCPU did not go off")));
    }
    if SECONDARY_GAVE_UP.swap(false, Acquire) { Err(Verdict::Fail) } else { outcome }
}

/// Brings this vCPU and the interrupt controller back into their working state.
fn clean_up() {
    irq::mask();
    cpu::this().guard.reset();
    timer::stop_all();
    gic::init();
    gic::init_cpu();
    irq::reset();
    mmu::unmap_all();
    console::init();
    CPACR_EL1::set(0);
    isb();
}

global_asm!(
    ".text",
    "protect_enter:",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mrs x9, tpidr_el1",
    "mov x10, sp",
    "str x10, [x9]",
    "mov x9, x0",
    "mov x0, x1",
    "blr x9",
    "b 1f",
    "protect_leave:",
    "mrs x9, tpidr_el1",
    "ldr x10, [x9]",
    "mov sp, x10",
    "1: mrs x9, tpidr_el1",
    "str xzr, [x9]",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #96",
    "ret",
);

unsafe extern "C" {
    fn protect_enter(function: extern "C" fn(*mut ()), argument: *mut ());
    fn protect_leave() -> !;
}

/// Runs `f` until it returns or is given up.
pub(crate) fn protect<F: FnMut()>(mut f: F) {
    extern "C" fn call<F: FnMut()>(f: *mut ()) {
        // SAFETY: `protect` passes a pointer to its own `f`, which nobody else uses meanwhile.
        let f = unsafe { &mut *f.cast::<F>() };
        f();
    }
    // SAFETY: the assembly calls `call` with the pointer and keeps the registers that the call
    // standard asks for; what a given-up function had on its stack is never used again.
    unsafe { protect_enter(call::<F>, (&raw mut f).cast()) };
}

/// Gives up what this vCPU does: the test that it belongs to has failed.
pub(crate) fn give_up(why: fmt::Arguments<'_>) -> ! {
    let this = cpu::this();
    if this.recover_sp.load(Relaxed) == 0 {
        println!("GUEST FAILED {why}");
        power::exit(Status::Failed)
    }
    irq::mask();
    this.guard.reset();
    keep(format_args!("vCPU {}: {why}", cpu::index()));
    if cpu::index() != 0 {
        SECONDARY_GAVE_UP.store(true, Release);
    }
    // SAFETY: `protect_enter` of this vCPU has not returned, which the field says.
    unsafe { protect_leave() }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    give_up(format_args!("{info}"))
}

const _: () = assert!(CPUS_MAX >= 4, "tests count on four vCPUs");
