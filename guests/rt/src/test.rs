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
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use heapless::String;

/// Why a test failed or was skipped.
pub type Message = String<200>;

/// The end of a test that is not ok.
#[derive(Debug)]
pub enum Verdict {
    /// A rule is broken.
    Fail(Message),
    /// The rule does not apply here.
    Skip(Message),
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

fn message(arguments: fmt::Arguments<'_>) -> Message {
    let mut message = Message::new();
    // What does not fit is cut off.
    let _ = message.write_fmt(arguments);
    message
}

/// Makes the verdict of a failed test; `check!` is the way to call it.
#[must_use]
pub fn fail(arguments: fmt::Arguments<'_>) -> Verdict {
    Verdict::Fail(message(arguments))
}

/// Makes the verdict of a skipped test; `skip!` is the way to call it.
#[must_use]
pub fn skip(arguments: fmt::Arguments<'_>) -> Verdict {
    Verdict::Skip(message(arguments))
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
            Err(Verdict::Fail(why)) => {
                self.failed += 1;
                println!("TEST {name}: FAIL {why}");
            }
            Err(Verdict::Skip(why)) => {
                self.skipped += 1;
                println!("TEST {name}: skip {why}");
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
    let mut outcome = None;
    if !protect(|| outcome = Some((test.run)())) {
        outcome = Some(Err(fail(format_args!("{}", given_up_message().as_str()))));
    }
    clean_up();
    let all_off = cpu::stop_servers();
    if matches!(outcome, Some(Ok(()))) && !all_off {
        outcome = Some(Err(fail(format_args!("a vCPU did not go off"))));
    }
    if SECONDARY_GAVE_UP.swap(false, Acquire) {
        outcome = Some(Err(fail(format_args!("{}", given_up_message().as_str()))));
    }
    outcome.unwrap_or_else(|| Err(fail(format_args!("no outcome"))))
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
    // protect_enter(function, argument): 0 when the function returned, 1 when it was given up.
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
    "mov x0, #0",
    "b 1f",
    "protect_leave:",
    "mrs x9, tpidr_el1",
    "ldr x10, [x9]",
    "mov sp, x10",
    "mov x0, #1",
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
    fn protect_enter(function: extern "C" fn(*mut ()), argument: *mut ()) -> u64;
    fn protect_leave() -> !;
}

/// Runs `f`; returns `false` when it was given up.
pub(crate) fn protect<F: FnMut()>(mut f: F) -> bool {
    extern "C" fn call<F: FnMut()>(f: *mut ()) {
        // SAFETY: `protect` passes a pointer to its own `f`, which nobody else uses meanwhile.
        let f = unsafe { &mut *f.cast::<F>() };
        f();
    }
    // SAFETY: the assembly calls `call` with the pointer and keeps the registers that the call
    // standard asks for; what a given-up function had on its stack is never used again.
    unsafe { protect_enter(call::<F>, (&raw mut f).cast()) == 0 }
}

static MESSAGE: [AtomicU8; 200] = [const { AtomicU8::new(0) }; 200];
static MESSAGE_LEN: AtomicUsize = AtomicUsize::new(0);
static SECONDARY_GAVE_UP: AtomicBool = AtomicBool::new(false);

fn given_up_message() -> Message {
    let bytes = MESSAGE.iter().take(MESSAGE_LEN.load(Acquire)).map(|byte| byte.load(Relaxed));
    bytes.map(char::from).collect()
}

/// Gives up what this vCPU does: the test that it belongs to has failed.
pub(crate) fn give_up(why: fmt::Arguments<'_>) -> ! {
    let text = message(format_args!("vCPU {}: {why}", cpu::index()));
    for (to, from) in MESSAGE.iter().zip(text.bytes()) {
        to.store(if from.is_ascii() { from } else { b'?' }, Relaxed);
    }
    MESSAGE_LEN.store(text.len(), Release);
    let this = cpu::this();
    if this.recover_sp.load(Relaxed) == 0 {
        println!("GUEST FAILED {why}");
        power::exit(Status::Failed)
    }
    irq::mask();
    this.guard.reset();
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
