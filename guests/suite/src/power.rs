// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T87 to T93: PSCI 1.1 (DEN 0022) and SMCCC 1.1 (DEN 0028) as a guest sees them.

use crate::{insn, under_hypervisor};
use core::sync::atomic::{
    AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use guest_rt::psci::{self, Conduit, Error, id};
use guest_rt::sysreg::relax;
use guest_rt::test::{Outcome, Test};
use guest_rt::timer::{self, ENABLE, Timer};
use guest_rt::{boot, check, check_eq, code, cpu, gic, irq, println, skip, tests, tree};

pub const TESTS: &[Test] = tests![
    t87_cpu_on_and_off_in_a_loop: 2,
    t87_one_of_two_callers_wins: 3,
    t87_caller_races_with_the_vcpu_going_off: 2,
    t88_cpu_on_refuses_what_is_no_vcpu,
    t88_affinity_info_refuses_what_is_no_vcpu,
    t88_smc32_narrows_its_arguments: 2,
    t89_cpu_on_of_one_that_is_on: 2,
    t89_cpu_on_refuses_bad_entries: 2,
    t90_affinity_info_follows_the_vcpu: 2,
    t90_affinity_info_at_higher_levels,
    t90_cpu_suspend_standby_wakes,
    t90_cpu_suspend_refuses_bad_states,
    t91_system_reset2_refuses_unknown_types,
    t92_versions_and_features,
    t92_unknown_functions_are_not_supported,
    t92_registers_are_preserved,
    t93_immediate_must_be_zero,
    t93_both_conduits_work,
];

static RUNS: AtomicU32 = AtomicU32::new(0);

fn count_run() {
    RUNS.fetch_add(1, Relaxed);
}

fn t87_cpu_on_and_off_in_a_loop() -> Outcome {
    RUNS.store(0, Relaxed);
    for round in 1..=100 {
        for index in 1..cpu::count() {
            check!(cpu::run_on(index, count_run), "vCPU {index} fails in round {round}");
        }
    }
    let others = u32::try_from(cpu::count() - 1).unwrap_or(0);
    check_eq!(RUNS.load(Relaxed), 100 * others, "runs");
    Ok(())
}

/// vCPUs 0 and 1 ask for vCPU 2 at the same time: it starts exactly once.
fn t87_one_of_two_callers_wins() -> Outcome {
    static GO: AtomicU32 = AtomicU32::new(0);
    static WINS: AtomicU32 = AtomicU32::new(0);
    static LOSSES: AtomicU32 = AtomicU32::new(0);
    static HOLD: AtomicBool = AtomicBool::new(false);
    const ROUNDS: u32 = 25;
    fn ask() {
        match cpu::start(2, held) {
            Ok(()) => WINS.fetch_add(1, Relaxed),
            Err(Error::AlreadyOn | Error::OnPending) => LOSSES.fetch_add(1, Relaxed),
            Err(_) => 0,
        };
    }
    fn held() {
        count_run();
        while HOLD.load(Acquire) {
            relax();
        }
    }
    fn rival() {
        for round in 1..=ROUNDS {
            if !timer::wait_for(timer::PATIENCE_MS, || GO.load(Acquire) == 2 * round - 1) {
                return;
            }
            ask();
            GO.store(2 * round, Release);
        }
    }
    if !under_hypervisor() {
        skip!("QEMU lets both callers win now and then");
    }
    for counter in [&RUNS, &GO, &WINS, &LOSSES] {
        counter.store(0, Relaxed);
    }
    check_eq!(cpu::start(1, rival), Ok(()), "CPU_ON of the rival");
    for round in 1..=ROUNDS {
        HOLD.store(true, Release);
        GO.store(2 * round - 1, Release);
        ask();
        let done = timer::wait_for(timer::PATIENCE_MS, || GO.load(Acquire) == 2 * round);
        let ran = timer::wait_for(timer::PATIENCE_MS, || RUNS.load(Relaxed) == round);
        HOLD.store(false, Release);
        check!(done, "the rival is stuck in round {round}");
        check!(ran, "vCPU 2 does not run in round {round}");
        // The loser must not have taken back what the winner had started.
        check!(wait_off_by_psci(2), "vCPU 2 does not go off in round {round}");
        check_eq!(WINS.load(Relaxed), round, "successes");
        check_eq!(LOSSES.load(Relaxed), round, "refusals");
    }
    check_eq!(RUNS.load(Relaxed), ROUNDS, "runs of vCPU 2");
    Ok(())
}

fn wait_off_by_psci(index: usize) -> bool {
    timer::wait_for(timer::PATIENCE_MS, || psci::affinity_info(cpu::mpidr(index), 0) == Ok(1))
}

/// CPU_ON again and again until the vCPU that goes off is off: each success is one more run.
fn t87_caller_races_with_the_vcpu_going_off() -> Outcome {
    RUNS.store(0, Relaxed);
    for round in 1..=200 {
        let started = timer::wait_for(timer::PATIENCE_MS, || cpu::start(1, count_run).is_ok());
        check!(started, "vCPU 1 cannot be started in round {round}");
        let ran = timer::wait_for(timer::PATIENCE_MS, || RUNS.load(Relaxed) == round);
        check!(ran, "vCPU 1 ran {} times in round {round}", RUNS.load(Relaxed));
    }
    check!(cpu::wait_off(1), "vCPU 1 does not go off");
    Ok(())
}

fn is_vcpu(mpidr: u64) -> bool {
    (0..cpu::count()).any(|index| cpu::mpidr(index) == mpidr)
}

/// Affinities of no vCPU: every single bit, alone and beside that of a vCPU.
fn no_vcpus() -> impl Iterator<Item = u64> {
    let own = cpu::mpidr(0);
    let near = cpu::mpidr(cpu::count() - 1);
    (0..64)
        .flat_map(move |bit| [1 << bit, own ^ 1 << bit, near ^ 1 << bit])
        .chain([u64::MAX, 0xff_00ff_ffff, near + 1])
        .filter(|mpidr| !is_vcpu(*mpidr))
}

fn t88_cpu_on_refuses_what_is_no_vcpu() -> Outcome {
    for mpidr in no_vcpus() {
        let answer = psci::cpu_on(mpidr, boot::secondary_entry_address(), 0);
        check_eq!(answer, Err(Error::InvalidParameters), "CPU_ON of {mpidr:#x}");
    }
    Ok(())
}

fn t88_affinity_info_refuses_what_is_no_vcpu() -> Outcome {
    for mpidr in no_vcpus() {
        let answer = psci::affinity_info(mpidr, 0);
        check_eq!(answer, Err(Error::InvalidParameters), "AFFINITY_INFO of {mpidr:#x}");
    }
    check_eq!(psci::affinity_info(cpu::mpidr(0), 0), Ok(0), "AFFINITY_INFO of myself");
    if under_hypervisor() {
        for level in [4, 1 << 31, u64::MAX] {
            let answer = psci::affinity_info(cpu::mpidr(0), level);
            check_eq!(answer, Err(Error::InvalidParameters), "AFFINITY_INFO at level {level:#x}");
        }
    }
    Ok(())
}

/// The SMC32 form of CPU_ON has 32-bit arguments: what is above does not count.
fn t88_smc32_narrows_its_arguments() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU takes all 64 bits");
    }
    if cpu::mpidr(1) >> 32 != 0 {
        skip!("vCPU 1 has an affinity above 32 bits");
    }
    let entry = boot::probe_entry_address(tree::machine().conduit);
    let high = 0xdead_beef << 32;
    let state = boot::EntryState::of_probe();
    state.poison();
    let x0 = psci::call(id::CPU_ON_32, high | cpu::mpidr(1), high | entry, high | 0x1234_5678);
    check_eq!(psci::result(x0), Ok(0), "CPU_ON");
    check!(timer::wait_for(timer::PATIENCE_MS, || state.is_fresh()), "vCPU 1 does not enter");
    check!(wait_off_by_psci(1), "vCPU 1 does not go off");
    check_eq!(state.x().next(), Some(0x1234_5678), "x0 at entry");
    Ok(())
}

fn t89_cpu_on_of_one_that_is_on() -> Outcome {
    static HOLD: AtomicBool = AtomicBool::new(false);
    fn held() {
        count_run();
        while HOLD.load(Acquire) {
            relax();
        }
    }
    let entry = boot::secondary_entry_address();
    check_eq!(psci::cpu_on(cpu::mpidr(0), entry, 0), Err(Error::AlreadyOn), "CPU_ON of myself");
    RUNS.store(0, Relaxed);
    HOLD.store(true, Release);
    check_eq!(cpu::start(1, held), Ok(()), "CPU_ON");
    let ran = timer::wait_for(timer::PATIENCE_MS, || RUNS.load(Relaxed) == 1);
    let answer = psci::cpu_on(cpu::mpidr(1), entry, 1);
    HOLD.store(false, Release);
    check!(ran, "vCPU 1 does not run");
    check_eq!(answer, Err(Error::AlreadyOn), "CPU_ON of one that is on");
    check!(cpu::wait_off(1), "vCPU 1 does not go off");
    check_eq!(RUNS.load(Relaxed), 1, "runs");
    Ok(())
}

fn t89_cpu_on_refuses_bad_entries() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU starts anywhere");
    }
    let machine = tree::machine();
    let start = machine.memory.first().map_or(0, |range| range.0);
    for entry in [
        0,
        start + 1,
        start + 2,
        start - 4,
        machine.hole(),
        machine.hole() + 4,
        u64::MAX,
        1 << 63,
        machine.gicd.base(),
        machine.uart.base(),
    ] {
        let answer = psci::cpu_on(cpu::mpidr(1), entry, 0);
        check!(
            matches!(answer, Err(Error::InvalidAddress | Error::InvalidParameters)),
            "CPU_ON at {entry:#x}: {answer:?}"
        );
        check_eq!(psci::affinity_info(cpu::mpidr(1), 0), Ok(1), "AFFINITY_INFO of vCPU 1");
    }
    check!(cpu::run_on(1, || ()), "vCPU 1 does not start after all that");
    Ok(())
}

fn t90_affinity_info_follows_the_vcpu() -> Outcome {
    static HOLD: AtomicBool = AtomicBool::new(false);
    static SEEN: AtomicU32 = AtomicU32::new(0);
    fn held() {
        // From the inside it is on, and so is the caller.
        let of = |index| psci::affinity_info(cpu::mpidr(index), 0).unwrap_or(9);
        SEEN.store(of(1) * 10 + of(0), Relaxed);
        count_run();
        while HOLD.load(Acquire) {
            relax();
        }
    }
    for index in 1..cpu::count() {
        check_eq!(psci::affinity_info(cpu::mpidr(index), 0), Ok(1), "vCPU {index} at first");
    }
    RUNS.store(0, Relaxed);
    HOLD.store(true, Release);
    check_eq!(cpu::start(1, held), Ok(()), "CPU_ON");
    let ran = timer::wait_for(timer::PATIENCE_MS, || RUNS.load(Acquire) == 1);
    let answer = psci::affinity_info(cpu::mpidr(1), 0);
    HOLD.store(false, Release);
    check!(ran, "vCPU 1 does not run");
    check_eq!(answer, Ok(0), "AFFINITY_INFO of one that runs");
    check!(cpu::wait_off(1), "vCPU 1 does not go off");
    check_eq!(SEEN.load(Relaxed), 0, "what vCPU 1 saw of itself and of vCPU 0");
    Ok(())
}

/// Levels 1 to 3 ignore as many fields; whoever is left decides, and vCPU 0 is on.
fn t90_affinity_info_at_higher_levels() -> Outcome {
    if !under_hypervisor() {
        skip!("optional since PSCI 1.0, and QEMU leaves it out");
    }
    let own = cpu::mpidr(0);
    for (level, ignored) in [(1, 0xff), (2, 0xffff), (3, 0xff_ffff)] {
        for target in [own, own | ignored, own & !ignored] {
            let answer = psci::affinity_info(target, level);
            check_eq!(answer, Ok(0), "AFFINITY_INFO of {target:#x} at level {level}");
        }
    }
    for (level, bit) in [(1, 8), (1, 23), (2, 16), (3, 32), (1, 24), (1, 31), (3, 40), (3, 63)] {
        let target = own ^ 1 << bit;
        let answer = psci::affinity_info(target, level);
        let expected = Err(Error::InvalidParameters);
        check_eq!(answer, expected, "AFFINITY_INFO of {target:#x} at level {level}");
    }
    Ok(())
}

/// Ends without SYSTEM_OFF: vCPU 0 goes off while the others still run, then one after the other.
pub fn turn_all_off() {
    fn follow() {
        let before = cpu::index() - 1;
        while psci::affinity_info(cpu::mpidr(before), 0) != Ok(1) {
            relax();
        }
    }
    for index in 1..cpu::count() {
        let answer = cpu::start(index, follow);
        println!("vCPU {index}: {answer:?}");
    }
    println!("OFF: {:?}", psci::cpu_off());
}

fn t90_cpu_suspend_standby_wakes() -> Outcome {
    if psci::result(psci::call(id::FEATURES, id::CPU_SUSPEND.into(), 0, 0)).is_err() {
        skip!("PSCI_FEATURES has no CPU_SUSPEND");
    }
    let timer = Timer::Virtual;
    gic::enable(timer.intid());
    for round in 0..10 {
        let deadline = timer.now() + timer::ticks(300);
        timer.set_cval(deadline);
        timer.set_ctl(ENABLE);
        // Standby, level 0; interrupts are masked, which does not keep them from waking.
        let x0 = psci::call(id::CPU_SUSPEND, 0, 0, 0);
        check_eq!(psci::result(x0), Ok(0), "CPU_SUSPEND in round {round}");
        let came = timer::wait_for(timer::PATIENCE_MS, irq::is_waiting);
        check!(came, "the timer does not fire in round {round}");
        irq::take_pending();
    }
    Ok(())
}

fn t90_cpu_suspend_refuses_bad_states() -> Outcome {
    if psci::result(psci::call(id::FEATURES, id::CPU_SUSPEND.into(), 0, 0)).is_err() {
        skip!("PSCI_FEATURES has no CPU_SUSPEND");
    }
    // An interrupt that waits makes a state that is accepted return at once.
    gic::enable(1);
    gic::send_sgi(1, 0);
    // Bits that are reserved in the original format of power_state (DEN 0022 5.4.2).
    for bit in (17..24).chain(26..32) {
        let x0 = psci::call(id::CPU_SUSPEND, 1 << bit, boot::secondary_entry_address(), 0);
        check_eq!(psci::result(x0), Err(Error::InvalidParameters), "power_state bit {bit}");
    }
    Ok(())
}

fn t91_system_reset2_refuses_unknown_types() -> Outcome {
    // Architectural types other than SYSTEM_WARM_RESET, which is 0, and vendor ones; none may
    // reset anything, so getting on is half of the test.
    for kind in [1u64, 2, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_ffff] {
        let answer = psci::result(psci::call(id::SYSTEM_RESET2, kind, 0, 0));
        let is_refused = matches!(answer, Err(Error::InvalidParameters | Error::NotSupported));
        check!(is_refused, "SYSTEM_RESET2 of type {kind:#x}: {answer:?}");
    }
    Ok(())
}

fn t92_versions_and_features() -> Outcome {
    let version = psci::result(psci::call(id::VERSION, 0, 0, 0));
    check!(version.is_ok_and(|version| version >= 0x1_0000), "PSCI_VERSION: {version:x?}");
    let features = |function: u32| psci::result(psci::call(id::FEATURES, function.into(), 0, 0));
    for function in [
        id::VERSION,
        id::CPU_OFF,
        id::CPU_ON,
        id::AFFINITY_INFO,
        id::SYSTEM_OFF,
        id::SYSTEM_RESET,
        id::FEATURES,
    ] {
        check!(features(function).is_ok(), "PSCI_FEATURES of {function:#x}");
    }
    for function in [0x8400_001e, 0x8400_0fff, 0xc400_0fff, 0x9400_0000, 0] {
        check_eq!(features(function), Err(Error::NotSupported), "PSCI_FEATURES of {function:#x}");
    }
    if !under_hypervisor() {
        skip!("PSCI holds; QEMU has no SMCCC calls");
    }
    check_eq!(version, Ok(0x1_0001), "PSCI_VERSION");
    check!(features(id::SMCCC_VERSION).is_ok(), "PSCI_FEATURES of SMCCC_VERSION");
    let smccc = psci::result(psci::call(id::SMCCC_VERSION, 0, 0, 0));
    check!(smccc.is_ok_and(|version| version >= 0x1_0001), "SMCCC_VERSION: {smccc:x?}");
    let arch = |function: u32| psci::result(psci::call(id::ARCH_FEATURES, function.into(), 0, 0));
    check!(arch(id::SMCCC_VERSION).is_ok(), "SMCCC_ARCH_FEATURES of SMCCC_VERSION");
    check!(arch(id::ARCH_FEATURES).is_ok(), "SMCCC_ARCH_FEATURES of itself");
    check_eq!(arch(0x8000_1234), Err(Error::NotSupported), "SMCCC_ARCH_FEATURES of nothing");
    // WORKAROUND_1, 2, 3: whatever is offered can be called.
    for workaround in [0x8000_8000u32, 0x8000_7fff, 0x8000_3fff] {
        if arch(workaround).is_ok() {
            let answer = psci::result(psci::call(workaround, 0, 0, 0));
            check!(answer != Err(Error::NotSupported), "{workaround:#x} is offered, not there");
        }
    }
    Ok(())
}

fn t92_unknown_functions_are_not_supported() -> Outcome {
    // Every owner, fast and yielding, 32 and 64 bits; PSCI 0.1 numbers; what firmware may offer.
    let owners = (0..64u32).flat_map(|owner| {
        [0x8000_0000, 0xc000_0000, 0, 0x4000_0000].map(|kind| kind | owner << 24 | 0xabc)
    });
    let known_elsewhere = [
        0xc400_0020, // SDEI_1_0_SDEI_VERSION
        0x8400_0063, // FFA_VERSION
        0x8200_0000, // SiP: SCMI lives here on some boards
        0xbf00_ff01, // UID of a trusted OS
        0x8400_0005, // MIGRATE
        0x8400_001e,
        0xffff_ffff,
        0x95c1_ba5e, // QEMU's own CPU_SUSPEND of PSCI 0.1, which it carries out
    ];
    let known_elsewhere = known_elsewhere.into_iter();
    for function in owners.chain(known_elsewhere).filter(|f| under_hypervisor() || *f >> 24 != 0x95)
    {
        let answer = psci::try_call(function, 0, 0, 0);
        match answer {
            Ok(x0) => {
                check_eq!(psci::result(x0), Err(Error::NotSupported), "function {function:#x}");
            }
            Err(exception) => {
                check!(!under_hypervisor(), "function {function:#x}: {exception}");
            }
        }
    }
    Ok(())
}

/// A call changes x0 to x3 at most (DEN 0028 2.6 since 1.1), whether it is known or not.
fn t92_registers_are_preserved() -> Outcome {
    // x4 to x17 count up from x1 on, then the call, then their sum goes to x0.
    let mut code = heapless::Vec::<u32, 64>::new();
    for register in 4..18u32 {
        // add x<register>, x1, #<register>.
        let _ = code.push(0x9100_0020 | register << 10 | register);
    }
    let conduit = match tree::machine().conduit {
        Conduit::Hvc => insn::HVC_0,
        Conduit::Smc => insn::SMC_0,
    };
    let _ = code.push(conduit);
    // mov x1, #0, then add x1, x1, x<register>.
    let _ = code.push(0xd280_0001);
    for register in 4..18u32 {
        let _ = code.push(0x8b00_0021 | register << 16);
    }
    let base = 0x1234_5678_9abc;
    let wanted = (4..18).map(|register| base + register).sum::<u64>();
    for function in [id::VERSION, id::FEATURES, 0x8400_0fff, 0x8600_ff01, 0xc200_0000] {
        let ([_, sum], exception) = code::run(&code, function.into(), base);
        if exception.is_none() {
            check_eq!(sum, wanted, "sum of x4 to x17 after {function:#x}");
        } else {
            check!(!under_hypervisor(), "{function:#x}: {exception:?}");
        }
    }
    Ok(())
}

/// SMCCC calls have an immediate of 0 (DEN 0028 2.9); any other is no call.
fn t93_immediate_must_be_zero() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU does not look at the immediate");
    }
    for instruction in [insn::HVC_1, insn::SMC_1] {
        let ([x0, _], exception) = code::run(&[instruction], id::VERSION.into(), 0);
        match exception {
            None => check_eq!(psci::result(x0), Err(Error::NotSupported), "{instruction:#x}"),
            Some(exception) => check!(exception.is_undef(), "{instruction:#x}: {exception}"),
        }
    }
    Ok(())
}

fn t93_both_conduits_work() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has one conduit");
    }
    for conduit in [Conduit::Hvc, Conduit::Smc] {
        let [x0, ..] = psci::call_by(conduit, [id::VERSION.into(), 0, 0, 0]);
        check_eq!(x0, 0x1_0001, "PSCI_VERSION by {conduit:?}");
    }
    Ok(())
}
