// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cost of leaving a guest, in ticks of CNTVCT_EL0. Under QEMU's `-icount shift=0` with
//! `cntfrq=1000000000` a tick is an instruction, of whichever CPU. One line for each operation:
//!
//! ```text
//! BENCH <operation> <instructions per operation, rounded to nearest>
//! ```
//!
//! then `RESULT benched=N`. `mode=compute` prints the cost of a computation that leaves the guest
//! nowhere; `mode=reset` resets until told otherwise, see [`reset`]; `mode=paused` waits for a byte
//! before it measures; `mode=calls` makes 10,000 calls for each byte; `mode=sleep` prints `ASLEEP` and is a quiet neighbour from then on.
#![no_std]
#![no_main]

mod measure;
mod reset;

use guest_rt::gic::{self, reg};
use guest_rt::psci::{self, Conduit, id};
use guest_rt::timer::Timer;
use guest_rt::{console, cpu, entry, exception, irq, power, println, sysreg, tree};

entry!(main);

/// Operations in one measured loop.
const BATCH: u64 = 1000;
/// Operations that are measured one at a time.
const ONE_SHOTS: u64 = 100;

fn main() {
    match tree::argument("mode") {
        Some("reset") => reset::run(),
        Some("compute") => compute(),
        Some("sleep") => sleep(),
        Some("calls") => count_calls(),
        Some("paused") => {
            println!("READY");
            let _ = console::get();
            exits();
        }
        _ => exits(),
    }
    power::exit(power::Status::Passed)
}

/// Prints `total / count`, rounded to nearest.
fn report(operation: &str, total: u64, count: u64) {
    println!("BENCH {operation} {}", (total + count / 2) / count);
}

/// The sum of `count` measurements.
fn sum(count: u64, mut measure: impl FnMut() -> u64) -> u64 {
    (0..count).map(|_| measure()).sum()
}

fn sleep() -> ! {
    println!("ASLEEP");
    loop {
        sysreg::wfi();
    }
}

fn compute() {
    // Twice: the second run shows that the count is exact.
    for operation in ["compute", "compute_again"] {
        report(operation, measure::compute(), 1);
    }
    println!("RESULT benched=2");
}

fn exits() {
    gic::init();
    gic::init_cpu();
    irq::reset();
    let mut count = calls() + registers() + interrupts();
    if cpu::count() > 1 {
        count += between_vcpus();
    }
    println!("RESULT benched={count}");
}

/// Makes so many calls for each byte, and no others.
fn count_calls() -> ! {
    const CALLS: usize = 10_000;
    println!("READY");
    loop {
        let _ = console::get();
        for _ in 0..CALLS {
            let _ = psci::call_by(Conduit::Hvc, [id::VERSION.into(), 0, 0, 0]);
        }
        println!("CALLED {CALLS}");
    }
}

/// Calls: the conduit that the tree does not name may not exist.
fn calls() -> u32 {
    let mut count = 0;
    for (conduit, operation) in
        [(Conduit::Hvc, "hvc_psci_version"), (Conduit::Smc, "smc_psci_version")]
    {
        let version = [id::VERSION.into(), 0, 0, 0];
        let probe = || psci::call_by(conduit, version);
        if exception::catch(exception::Resume::Next, probe).1.is_some() {
            println!("# {operation}: no such conduit");
            continue;
        }
        report(operation, measure::calls(conduit, id::VERSION.into(), BATCH), BATCH);
        count += 1;
    }
    count
}

/// Accesses to registers that a hypervisor emulates.
fn registers() -> u32 {
    let gicd = gic::gicd();
    let gicr = gic::gicr(0);
    let uart = console::device();
    report("gicd_iidr_read", measure::reads(gicd.at(reg::IIDR), BATCH), BATCH);
    let isenabler = gicd.at(reg::ISENABLER + 4);
    report("gicd_isenabler_write", measure::writes(isenabler, 1 << 8, BATCH), BATCH);
    let isenabler = gicr.at(reg::SGI_FRAME + reg::ISENABLER);
    report("gicr_isenabler_write", measure::writes(isenabler, 1, BATCH), BATCH);
    report("uart_fr_read", measure::reads(uart.at(console::reg::FR), BATCH), BATCH);
    report("idreg_read", measure::id_register_reads(BATCH), BATCH);
    gic::disable(40);
    5
}

/// Interrupts of one vCPU.
fn interrupts() -> u32 {
    let this = cpu::mpidr(0);
    gic::enable(measure::SGI);
    let writes = sum(BATCH, || {
        let ticks = measure::sgi_write(this);
        irq::end(irq::acknowledge());
        ticks
    });
    report("sgi1r_write", writes, BATCH);
    report("self_sgi_to_vector", sum(BATCH, || measure::sgi_to_vector(this)), BATCH);
    gic::enable(Timer::Virtual.intid());
    report("vtimer_to_vector", sum(BATCH, measure::timer_to_vector), BATCH);
    3
}

/// What takes two vCPUs.
fn between_vcpus() -> u32 {
    let target = cpu::mpidr(1);
    gic::enable(measure::SGI);
    measure::start_responder();
    let mut round_trips = 0;
    let one_ways = sum(BATCH, || {
        let (there, back) = measure::ping(target);
        round_trips += back;
        there
    });
    report("ipi_one_way", one_ways, BATCH);
    report("ipi_round_trip", round_trips, BATCH);
    if !measure::stop_responder(target) {
        println!("# vCPU 1 does not go off");
        return 2;
    }
    let conduit = tree::machine().conduit;
    report("cpu_on", sum(ONE_SHOTS, || measure::cpu_on(conduit, target)), ONE_SHOTS);
    3
}
