// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=storm storm=NAME`: a guest that does its worst, on all its vCPUs at once.
//!
//! ```text
//! READY                        it is quiet until somebody resets it
//! STORM <name>                 at every start after that; then all vCPUs begin together
//! BACK <n>                     behind the last of `rounds=` restarts, n of them; quiet again
//! ```
//!
//! | name | what all vCPUs do | ends |
//! |---|---|---|
//! | `panic` | write to the panic port | by a crash |
//! | `hang` | spin with interrupts masked | by the watchdog |
//! | `hang_in_interrupts` | spin in the handler of a timer that nobody quiets | by the watchdog |
//! | `clocks` | write the oddest values to their timers | by the watchdog |
//! | `sgis` | send SGIs to all of them | |
//! | `levels` | take SPIs whose lines stay high | |
//! | `console` | write bytes, room or not | |
//! | `calls` | call what exists and what does not, and touch emulated registers | |
//! | `serror` | take the SError that has come, once | by a panic, where it is what it should be |
//! | `hole` | read and write a device that is not there | by a panic, where each access aborts |
//! | `caches` | maintain caches by set and way and TLBs, wait for events | |
//!
//! What the watchdog ends measures itself, in ticks of a counter that instructions move on:
//! `watchdog_ms=` is what the manifest has.

use crate::hang::{self, ALIVE, ROUND};
use crate::platform;
use core::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use guest_rt::console::{self, reg};
use guest_rt::cpu::Job;
use guest_rt::device::Width;
use guest_rt::exception::{self, Resume, ec};
use guest_rt::sysreg::{self, CNTKCTL_EL1, ID_AA64PFR0_EL1, relax, wfi};
use guest_rt::test::Tally;
use guest_rt::timer::{ENABLE, IMASK, Timer};
use guest_rt::{cpu, gic, irq, memory, println, psci, tree};

/// UARTIMSC: transmit, whose level is high when a byte has gone out.
const TRANSMITS: u32 = 1 << 5;
/// How many vCPUs are ready to begin.
static READY: AtomicUsize = AtomicUsize::new(0);

/// Looks at how the last round ended, where there was one, and begins the next.
pub fn run() -> ! {
    let name = tree::argument("storm").unwrap_or_default();
    let number = |name: &str| tree::argument(name).and_then(|n| n.parse::<u64>().ok());
    let start = memory::kept(ROUND);
    memory::keep(ROUND, start + 1);
    // The reset that has begun it all is no end of a round.
    let ended = start.saturating_sub(1);
    if let Some(ms) = number("watchdog_ms")
        && ended > 0
    {
        Tally::default().report("the_watchdog_fired_in_time", hang::was_noticed(hang::ticks(ms)));
    }
    if start == 0 || number("rounds") == Some(ended) {
        platform::quiet();
        if start == 0 {
            println!("READY")
        } else {
            println!("BACK {ended}")
        }
        rest();
    }
    println!("STORM {name}");
    let job = job(name);
    gic::init();
    gic::init_cpu();
    for index in 1..cpu::count() {
        if cpu::start(index, job).is_err() {
            println!("vCPU {index} does not start");
        }
    }
    job();
    rest()
}

fn job(name: &str) -> Job {
    match name {
        "panic" => panic_port,
        "serror" => serror,
        "hole" => hole,
        "hang" => || together(masked),
        "hang_in_interrupts" => || together(in_interrupts),
        "clocks" => || together(clocks),
        "sgis" => || together(sgis),
        "levels" => || together(levels),
        "console" => || together(console),
        "calls" => || together(calls),
        "caches" => || together(caches),
        _ => || rest(),
    }
}

fn rest() -> ! {
    irq::mask();
    loop {
        wfi();
    }
}

/// Waits for all vCPUs, then does one piece after the other for good.
fn together(mut piece: impl FnMut()) -> ! {
    READY.fetch_add(1, AcqRel);
    while READY.load(Acquire) < cpu::count() {
        relax();
    }
    loop {
        piece();
    }
}

/// Notes that the guest is alive; the boot vCPU speaks for all.
fn note_alive() {
    if cpu::index() == 0 {
        memory::keep(ALIVE, Timer::Virtual.now());
    }
}

fn panic_port() {
    together(panic)
}

fn panic() {
    tree::machine().panic_port.into_iter().for_each(|port| port.write8(0, 1));
}

/// Panics as a kernel does that takes an SError; where none has come nothing follows.
fn serror() {
    if cpu::index() != 0 {
        rest();
    }
    let take = || exception::catch(Resume::Here, irq::take_pending_serror).1;
    match (take(), take()) {
        (Some(first), None) if first.class() == ec::SERROR && first.count == 1 => panic(),
        (first, second) => println!("SERROR {first:?} {second:?}"),
    }
}

/// Panics as a kernel does whose device aborts every access; where one is answered nothing follows.
fn hole() {
    let Some((device, _)) = tree::machine().rtc else { return println!("there is no device") };
    for width in Width::ALL {
        for offset in [0, 0xff8] {
            let (read, at) = (device.try_read(offset, width), device.at(offset));
            for answer in [read, device.try_write(offset, width, u64::MAX).map(|()| 0)] {
                match answer {
                    Err(exception) if exception.is_data_sea() && exception.far == at => {}
                    // One speaks for all.
                    _ if cpu::index() != 0 => return,
                    Err(exception) => return println!("HOLE {offset:#x} {width:?}: {exception}"),
                    Ok(value) => return println!("HOLE {offset:#x} {width:?} answers {value:#x}"),
                }
            }
        }
    }
    panic_port();
}

fn masked() {
    irq::mask();
    note_alive();
}

fn in_interrupts() {
    gic::enable(Timer::Virtual.intid());
    irq::handle_with(|| {
        note_alive();
        irq::end(irq::acknowledge());
    });
    Timer::Virtual.set_cval(0);
    Timer::Virtual.set_ctl(ENABLE);
    irq::unmask();
    loop {
        relax();
    }
}

fn clocks() {
    for timer in Timer::ALL {
        gic::enable(timer.intid());
        for value in [0, u64::MAX, 1 << 63, i64::MAX.cast_unsigned(), 1] {
            note_alive();
            timer.set_cval(value);
            for ctl in [ENABLE, ENABLE | IMASK, u64::MAX, 0] {
                timer.set_ctl(ctl);
                irq::take_pending();
            }
            timer.set_tval(value);
            timer.set_ctl(ENABLE);
            irq::take_pending();
        }
    }
    for value in [u64::MAX, 0] {
        CNTKCTL_EL1::set(value);
    }
}

fn sgis() {
    irq::handle_with(|| irq::end(irq::acknowledge()));
    for intid in 0..16 {
        gic::enable(intid);
    }
    irq::unmask();
    loop {
        for index in 0..cpu::count() {
            (0..16).for_each(|intid| gic::send_sgi(intid, index));
        }
    }
}

/// The lines of the PL061, of the watchdog and of the console stay high, whoever takes them.
fn levels() {
    irq::handle_with(|| irq::end(irq::acknowledge()));
    if cpu::index() == 0 {
        platform::tangle();
        console::put(b'\r');
        console::device().write32(reg::IMSC, TRANSMITS);
        let machine = tree::machine();
        let gpio = machine.gpio.map(|(_, intid)| intid);
        let watchdog = machine.watchdog.map(|watchdog| watchdog.intid);
        for intid in [gpio, watchdog, Some(machine.uart_intid)].into_iter().flatten() {
            gic::route(intid, cpu::mpidr(usize::try_from(intid).unwrap_or(0) % cpu::count()));
            gic::enable(intid);
        }
    }
    irq::unmask();
    loop {
        relax();
    }
}

fn console() {
    let uart = console::device();
    for byte in b"y\r\n\x1e\x1b[2J\xff" {
        (0..50).for_each(|_| uart.write32(reg::DR, u32::from(*byte)));
    }
    uart.write32(reg::DR, 10);
}

fn calls() {
    let gicd = gic::gicd();
    for function in [psci::id::VERSION, psci::id::FEATURES, 0x8400_ff00, 0xc600_0000, u32::MAX, 0] {
        let _ = psci::call(function, u64::MAX, 0, 1 << 63);
        let _ = psci::try_call(function | 0xff0000, 0, 0, 0);
        let _ = psci::affinity_info(cpu::mpidr(0), 0);
        let _ = gicd.read32(gic::reg::IIDR);
        gic::enable(32 + (function & 31));
        let _ = console::device().read32(reg::FR);
        let _ = ID_AA64PFR0_EL1::get();
    }
}

fn caches() {
    for set_way in (0..1 << 12).step_by(64) {
        sysreg::maintain(set_way);
        sysreg::sev();
        sysreg::wfe();
    }
}
