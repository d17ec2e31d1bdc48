// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=reset`: a guest that is reset in the worst moment must start as if it were the first time
//! (traps T02, T58, T73, T91, T109). The console drives it:
//!
//! ```text
//! BOOT                         at every start
//! TEST <name>: …               the state it has found
//! READY                        now it reads one byte
//! r → DIRTY, then a reset:     all memory marked, timers and the watchdog armed, interrupts
//!                              pending and active, the ITS and the other vCPUs busy; so BOOT
//!                              comes next
//! q → RESULT …                 and the end, as in the other mode
//! ```
//!
//! `mode=cycle` does without a console: it says what state it has found and DIRTY, and goes on
//! until somebody ends it.

use crate::{boot, lines, platform, under_hypervisor};
use core::iter;
use guest_rt::device::Device;
use guest_rt::gic::{self, reg};
use guest_rt::sysreg::relax;
use guest_rt::test::{Outcome, Tally};
use guest_rt::timer::{self, ENABLE, Timer};
use guest_rt::{
    check, check_eq, console, cpu, cpu_interface, irq, its, memory, println, psci, skip,
};

/// Looks at the state at entry, then does what the console says.
pub fn run() -> ! {
    let tally = look();
    loop {
        println!("READY");
        match console::get() {
            b'r' => reset(),
            b'q' => tally.finish(),
            other => println!("not a command: {other:#x}"),
        }
    }
}

/// Looks at the state at entry, then is as busy as can be, its vCPUs in every state of PSCI.
pub fn cycle() -> ! {
    look();
    make_dirty();
    busy();
    loop {
        relax();
    }
}

fn look() -> Tally {
    println!("BOOT");
    let mut tally = Tally::default();
    tally.report(
        "t58_boot_vcpu_enters_with_zero_state",
        boot::t58_boot_vcpu_enters_with_zero_state(),
    );
    tally.report("t73_gic_is_in_its_reset_state", gic_is_fresh());
    tally.report("t84_its_is_in_its_reset_state", its_is_fresh());
    tally.report("t81_timers_are_off", timers_are_off());
    tally.report("t91_other_vcpus_are_off", others_are_off());
    tally.report("t91_small_devices_are_in_their_reset_state", platform::are_fresh());
    tally.report("t109_image_is_copied_again", image_is_fresh());
    tally.report("t109_console_is_in_its_reset_state", console_is_fresh());
    tally.report("t02_memory_holds_nothing_foreign", memory_is_own());
    tally
}

/// Reset values of IHI 0069 12.9 and 12.11; what is UNKNOWN there is left out.
fn gic_is_fresh() -> Outcome {
    let gicd = gic::gicd();
    check_eq!(gicd.read32(reg::CTLR) & 3, 0, "the group enables of GICD_CTLR");
    for offset in (4..u64::from(gic::intids() / 32 * 4)).step_by(4) {
        for register in [reg::ISENABLER, reg::ISPENDR, reg::ISACTIVER] {
            check_eq!(gicd.read32(register + offset), 0, "GICD at {:#x}", register + offset);
        }
    }
    // A GICv2 shows a vCPU its own registers only.
    let seen = if gic::is_v2() { 1 } else { cpu::count() };
    for index in 0..seen {
        let (own, frame) = gic::private();
        let own = if gic::is_v2() { own } else { gic::gicr(index) };
        // SGIs may be enabled from the start.
        let enabled = own.read32(frame + reg::ISENABLER) & 0xffff_0000;
        check_eq!(enabled, 0, "ISENABLER0 of vCPU {index}");
        for register in [reg::ISPENDR, reg::ISACTIVER] {
            let value = own.read32(frame + register);
            check_eq!(value, 0, "{register:#x} of vCPU {index}");
        }
    }
    check_eq!(cpu_interface::group(), 0, "the interface's group enable");
    check_eq!(cpu_interface::priority_mask(), 0, "the priority mask");
    check_eq!(cpu_interface::eoi_mode(), 0, "EOImode");
    check_eq!(cpu_interface::active_priorities(), 0, "active priorities");
    check_eq!(cpu_interface::running_priority(), 0xff, "the running priority");
    check!(!irq::is_waiting(), "an interrupt waits");
    Ok(())
}

/// Reset values of IHI 0069 12.11 and 12.19.
fn its_is_fresh() -> Outcome {
    let Some(its) = its::device() else { skip!("there is no ITS") };
    check_eq!(its.read32(its::reg::CTLR) & its::ENABLED, 0, "GITS_CTLR.Enabled");
    check_eq!(its.read64(its::reg::CBASER) & its::VALID, 0, "GITS_CBASER.Valid");
    check_eq!(its.read64(its::reg::CREADR), 0, "GITS_CREADR");
    for offset in (its::reg::BASER..its::reg::BASER + 64).step_by(8) {
        check_eq!(its.read64(offset) & its::VALID, 0, "Valid of GITS_BASER at {offset:#x}");
    }
    for index in 0..cpu::count() {
        check_eq!(gic::gicr(index).read32(reg::CTLR) & 1, 0, "EnableLPIs of vCPU {index}");
    }
    Ok(())
}

fn timers_are_off() -> Outcome {
    for timer in Timer::ALL {
        check_eq!(timer.ctl() & ENABLE, 0, "ENABLE of {timer:?}");
    }
    Ok(())
}

fn others_are_off() -> Outcome {
    for index in 1..cpu::count() {
        check_eq!(psci::affinity_info(cpu::mpidr(index), 0), Ok(1), "AFFINITY_INFO of {index}");
    }
    Ok(())
}

fn image_is_fresh() -> Outcome {
    check!(memory::is_image_pristine(), "the image's data are those of the last run");
    Ok(())
}

fn console_is_fresh() -> Outcome {
    check_eq!(console::device().read32(console::reg::IMSC), 0, "UARTIMSC");
    Ok(())
}

/// A reset keeps memory, as hardware does, so the marks may be there; nobody else's data may.
fn memory_is_own() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU leaves its boot stub at the start of memory");
    }
    if let Some(address) = memory::find_foreign() {
        check!(false, "memory at {address:#x} is neither zero nor our own");
    }
    Ok(())
}

/// Leaves interrupts of this vCPU pending and active and its timers firing.
fn tangle() {
    for intid in 0..32 {
        gic::enable(intid);
    }
    gic::send_sgi(9, cpu::index());
    let _ = irq::acknowledge();
    for timer in Timer::ALL {
        timer.set_cval(0);
        timer.set_ctl(ENABLE);
    }
    gic::set_priority(timer_ppi(), 0x40);
    let _ = irq::acknowledge();
}

fn timer_ppi() -> u32 {
    Timer::Virtual.intid()
}

/// Leaves LPIs pending for all vCPUs.
fn tangle_lpis(its: Device) {
    println!("ITS set up: {}", its::init(its));
    its::post(its, [its::mapd(1, 8)]);
    for (lpi, n) in (its::LPI_FIRST..).zip(0..100) {
        its::configure(lpi, 0x40, its::Enable::On);
        let event = (1, n);
        let vcpu = usize::try_from(n).unwrap_or(0) % cpu::count();
        its::post(its, [its::mapti(event, lpi, vcpu), its::int(event)]);
    }
}

fn busy() {
    tangle();
    // Nothing is said here: the boot vCPU speaks.
    if cpu::index() == 2 {
        let _ = psci::cpu_off();
    }
    loop {
        match its::device() {
            _ if cpu::index() == 3 => {
                let _ = psci::call(psci::id::CPU_SUSPEND, 0, 0, 0);
            }
            // The reset comes in the middle of the queue.
            Some(its) if cpu::index() == 1 => {
                its::post(its, iter::repeat_n(its::invall(0), its::QUEUE_PLACES - 1));
            }
            _ => relax(),
        }
    }
}

fn reset() -> ! {
    make_dirty();
    println!("SYSTEM_RESET: {:?}", psci::system_reset());
    loop {
        relax();
    }
}

fn make_dirty() {
    gic::init();
    gic::init_cpu();
    its::device().into_iter().for_each(tangle_lpis);
    for index in 1..cpu::count() {
        if let Err(error) = cpu::start(index, busy) {
            println!("vCPU {index} does not start: {error:?}");
        }
    }
    for intid in 32..gic::intids() {
        gic::enable(intid);
        gic::route(intid, cpu::mpidr(usize::try_from(intid).unwrap_or(0) % cpu::count()));
        gic::set_pending(intid);
        if intid % 3 == 0 {
            gic::set_active(intid);
        }
    }
    if let Ok((clock, intid)) = lines::clock() {
        let _ = lines::raise_clock(clock, intid);
    }
    platform::tangle();
    tangle();
    timer::delay(2000);
    println!("DIRTY");
    console::device().write32(console::reg::IMSC, 0x7ff);
    memory::mark_all();
}
