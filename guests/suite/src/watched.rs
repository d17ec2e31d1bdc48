// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=watched`: a neighbour that would notice. It has a counter that goes on, knows the hash of
//! its memory, keeps a ledger of its interrupts, and leaves its guest so often and no oftener.
//!
//! ```text
//! WATCHED                      its memory is marked and hashed; it sleeps
//! g → nothing is said:         the script, `count=` rounds of every operation, then it sleeps;
//!                              the last exit of a script is a call, and no other exit is one
//! q → COST <script> <operation> <ticks> <how many took so many>
//!     TEST <name>: …
//!     RESULT …
//! ```
//!
//! Nothing is said while it is watched, so that every exit is one of the script. On QEMU's clock
//! of instructions a tick is one, of whichever core: what others do while an operation is under
//! way is in its ticks. So each operation begins when the others have had their turn, and the
//! least that it took is what it cost.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Release};
use guest_rt::console::{self, reg};
use guest_rt::sysreg::{ID_AA64PFR0_EL1, wfi};
use guest_rt::test::{Outcome, Tally};
use guest_rt::timer::{self, ENABLE, IMASK, Timer};
use guest_rt::{check, check_eq, cpu, gic, irq, memory, println, psci, tree};

/// To itself; to vCPU 1; back.
const OWN: u32 = 1;
const PING: u32 = 2;
const PONG: u32 = 3;
/// Nothing is expected.
const NOTHING: u32 = u32::MAX;
/// An SPI that nobody sends.
const QUIET_SPI: u32 = 40;
/// UARTIMSC: receive, at once and after a while.
const RECEIVES: u32 = 1 << 4 | 1 << 6;
/// UARTFR: receive FIFO empty.
const RXFE: u32 = 1 << 4;
/// In how many ticks all cores have their turn.
const TURN_TICKS: u64 = 20_000;
/// For how long what was said has consequences.
const SETTLE_US: u64 = 150_000;
const SCRIPTS_MAX: usize = 8;

/// What vCPU 0 is to take next, and vCPU 1.
static EXPECTED: [AtomicU32; 2] = [const { AtomicU32::new(NOTHING) }; 2];
/// What each has taken as expected, and what else.
static TAKEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static STRANGE: AtomicU32 = AtomicU32::new(0);
/// In how many scripts vCPU 1 has counted.
static COUNTED: AtomicU32 = AtomicU32::new(0);
/// What vCPU 1 counts.
static COUNTER: AtomicU64 = AtomicU64::new(0);
/// Whether a script is under way.
static IS_BUSY: AtomicBool = AtomicBool::new(false);
/// The last byte of input.
static COMMAND: AtomicU32 = AtomicU32::new(0);

/// An operation and what it is called.
type Operation = (&'static str, fn());

/// Each leaves the guest by a different route, and comes back with nothing left to do.
const OPERATIONS: [Operation; 7] = [
    ("id_register", || ignore(ID_AA64PFR0_EL1::get())),
    ("distributor_read", || ignore(gic::gicd().read32(gic::reg::IIDR))),
    ("distributor_write", || gic::enable(QUIET_SPI)),
    ("console_flags", || ignore(console::device().read32(reg::FR))),
    ("own_sgi", || {
        gic::send_sgi(OWN, 0);
        irq::take_pending();
    }),
    ("own_timer", || {
        Timer::Virtual.set_ctl(ENABLE);
        irq::take_pending();
    }),
    ("call", || ignore(psci::call(psci::id::VERSION, 0, 0, 0))),
];

fn ignore<T>(_: T) {}

/// What an operation cost.
#[derive(Clone, Copy)]
struct Cost {
    least_ticks: u64,
    /// How many cost the least.
    same: u32,
}

/// What the operations of one script cost.
type Costs = [Cost; OPERATIONS.len()];

/// Is watched until the console says that it is enough.
pub fn run() -> ! {
    let count = tree::argument("count").and_then(|count| count.parse().ok()).unwrap_or(100);
    set_up();
    memory::mark_all();
    let hash = memory::hash();
    println!("WATCHED");
    settle();
    let costs = obey(count);
    console::device().write32(reg::IMSC, 0);
    for (script, costs) in costs.iter().enumerate() {
        for ((name, _), Cost { least_ticks, same }) in OPERATIONS.iter().zip(costs) {
            println!("COST {script} {name} {least_ticks} {same}");
        }
    }
    let scripts = u32::try_from(costs.len()).unwrap_or(0);
    let mut tally = Tally::default();
    tally.report("counter_goes_on", goes_on(scripts));
    tally.report("memory_is_as_it_was", is_as_it_was(hash));
    tally.report("each_interrupt_came_once", came_once(scripts * count));
    tally.finish()
}

/// Carries out scripts until there have been enough.
fn obey(count: u32) -> heapless::Vec<Costs, SCRIPTS_MAX> {
    let mut all = heapless::Vec::new();
    console::device().write32(reg::IMSC, RECEIVES);
    loop {
        wfi();
        irq::take_pending();
        match u8::try_from(COMMAND.swap(0, Acquire)) {
            Ok(b'g') => {
                IS_BUSY.store(true, Release);
                let before = COUNTER.load(Acquire);
                let mut costs = [Cost { least_ticks: u64::MAX, same: 0 }; OPERATIONS.len()];
                for _ in 0..count {
                    ping();
                    costs.iter_mut().zip(OPERATIONS).for_each(|(cost, what)| measure(cost, what));
                }
                COUNTED.fetch_add(u32::from(has_counted(before)), Release);
                let _ = all.push(costs);
                IS_BUSY.store(false, Release);
            }
            Ok(b'q') => return all,
            _ => {}
        }
    }
}

fn set_up() {
    gic::init();
    gic::init_cpu();
    for intid in [OWN, PONG, Timer::Virtual.intid(), tree::machine().uart_intid] {
        gic::enable(intid);
    }
    irq::handle_with(take);
    Timer::Virtual.set_cval(0);
    if cpu::start(1, answer).is_err() || !timer::wait_for(timer::PATIENCE_MS, || has_counted(0)) {
        println!("vCPU 1 does not start");
    }
}

/// Sleeps until what was said has no consequences any more: the console looks once more for
/// lines that are not complete.
fn settle() {
    let timer = Timer::Virtual;
    expect(0, timer.intid());
    timer.set_cval(timer.now() + timer::ticks(SETTLE_US));
    timer.set_ctl(ENABLE);
    while EXPECTED[0].load(Acquire) != NOTHING {
        wfi();
        irq::take_pending();
    }
    timer.set_cval(0);
    TAKEN[0].store(0, Release);
}

fn has_counted(before: u64) -> bool {
    COUNTER.load(Acquire) != before
}

/// Answers pings, and counts.
fn answer() {
    gic::enable(PING);
    irq::handle_with(take);
    irq::unmask();
    loop {
        let count = COUNTER.load(Acquire).wrapping_add(1);
        COUNTER.store(count, Release);
        if count.is_multiple_of(1024) && !IS_BUSY.load(Acquire) {
            take_turns();
        }
    }
}

/// Lets all other cores have their turn, then does the operation and notes what it took.
fn measure(cost: &mut Cost, (name, operation): Operation) {
    let intid = match name {
        "own_sgi" => OWN,
        "own_timer" => Timer::Virtual.intid(),
        _ => NOTHING,
    };
    expect(0, intid);
    take_turns();
    let before = timer::now();
    operation();
    let took = timer::now().wrapping_sub(before);
    wait_until_taken();
    if took < cost.least_ticks {
        *cost = Cost { least_ticks: took, same: 0 };
    }
    cost.same += u32::from(took == cost.least_ticks);
}

/// Sends vCPU 1 an interrupt and waits for its own.
fn ping() {
    expect(0, PONG);
    expect(1, PING);
    gic::send_sgi(PING, 1);
    wait_until_taken();
}

fn expect(vcpu: usize, intid: u32) {
    EXPECTED.iter().skip(vcpu).take(1).for_each(|expected| expected.store(intid, Release));
}

fn wait_until_taken() {
    let _ = timer::wait_for(timer::PATIENCE_MS, || {
        irq::take_pending();
        let is_taken = EXPECTED[0].load(Acquire) == NOTHING;
        if !is_taken {
            take_turns();
        }
        is_taken
    });
}

/// Has QEMU's one thread give all other cores their turn, and do so again soon: that comes with
/// the next deadline of any timer.
fn take_turns() {
    Timer::Physical.set_cval(Timer::Physical.now() + TURN_TICKS);
    Timer::Physical.set_ctl(ENABLE | IMASK);
}

/// Takes one interrupt.
fn take() {
    let intid = irq::acknowledge();
    if intid == tree::machine().uart_intid {
        receive();
        return irq::end(intid);
    }
    let own = cpu::index();
    if intid == Timer::Virtual.intid() {
        Timer::Virtual.set_ctl(0);
    }
    irq::end(intid);
    let (Some(expected), Some(taken)) = (EXPECTED.get(own), TAKEN.get(own)) else { return };
    let is_expected = expected.swap(NOTHING, Acquire) == intid;
    (if is_expected { taken } else { &STRANGE }).fetch_add(1, Release);
    if intid == PING {
        gic::send_sgi(PONG, 0);
    }
}

fn receive() {
    let uart = console::device();
    while uart.read32(reg::FR) & RXFE == 0 {
        COMMAND.store(uart.read32(reg::DR) & 0xff, Release);
    }
}

fn goes_on(scripts: u32) -> Outcome {
    check_eq!(COUNTED.load(Acquire), scripts, "scripts in which it has counted");
    let before = COUNTER.load(Acquire);
    check!(timer::wait_for(timer::PATIENCE_MS, || has_counted(before)), "it counts no more");
    Ok(())
}

fn is_as_it_was(hash: u64) -> Outcome {
    check_eq!(memory::hash(), hash, "the hash of memory");
    Ok(())
}

/// In each round its own SGI, its timer and a ping's answer; vCPU 1 the ping.
fn came_once(rounds: u32) -> Outcome {
    // Whatever comes now is one too many.
    timer::delay(2000);
    irq::take_pending();
    let taken = TAKEN.each_ref().map(|taken| taken.load(Acquire));
    check_eq!(taken, [3 * rounds, rounds], "taken by each vCPU in {rounds} rounds");
    check_eq!(STRANGE.load(Acquire), 0, "interrupts that nobody had sent");
    Ok(())
}
