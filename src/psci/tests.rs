// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Expectations are DEN 0022's, by number.
use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

const CPU_SUSPEND: u32 = 0xc400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;
const CPU_ON_32: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0xc400_0004;
const SYSTEM_SUSPEND: u32 = 0xc400_000e;
const SYSTEM_RESET2: u32 = 0xc400_0012;

const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const DENIED: i64 = -3;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

const RAM: core::ops::Range<u64> = 0x4000_0000..0x6000_0000;
/// Affinities in which an index is of no use: two clusters, and one in Aff3.
const MPIDRS: [u64; 4] = [0x000, 0x001, 0x100, 0x3_0000_0000];

fn psci() -> Psci {
    let psci = Psci::new(&MPIDRS.map(|mpidr| Mpidr::from_affinity(mpidr).unwrap())).unwrap();
    psci.boot(VcpuId::new(0), START).unwrap();
    assert_eq!(psci.started(VcpuId::new(0)), Some(START));
    psci
}

const START: Start = Start { entry: Ipa::at(0x4008_0000), context: 0x4700_0000 };

fn call(psci: &Psci, function: u32, arguments: [u64; 3]) -> Action {
    psci.call(FunctionId::new(function), || arguments, |entry| RAM.contains(&entry.get()))
}

fn returns(value: i64) -> Action {
    Action::Return(value.cast_unsigned())
}

fn info(psci: &Psci, mpidr: u64) -> Action {
    call(psci, AFFINITY_INFO, [mpidr, 0, 0])
}

#[test]
fn t87_life_of_a_vcpu() {
    let psci = psci();
    let one = VcpuId::new(1);
    assert_eq!(info(&psci, 1), returns(1));
    assert_eq!(call(&psci, CPU_ON, [1, 0x4000_1000, !0]), Action::TurnOn(one));
    assert_eq!(info(&psci, 1), returns(2));
    assert_eq!(call(&psci, CPU_ON, [1, 0x4000_2000, 7]), returns(ON_PENDING));
    assert_eq!(psci.started(one), Some(Start { entry: Ipa::at(0x4000_1000), context: !0 }));
    assert_eq!(psci.started(one), None, "a second kick starts nothing");
    assert_eq!(info(&psci, 1), returns(0));
    assert_eq!(call(&psci, CPU_ON, [1, 0x4000_2000, 7]), returns(ALREADY_ON));
    assert_eq!(call(&psci, CPU_OFF, [0; 3]), Action::TurnOff);
    assert_eq!(info(&psci, 1), returns(0), "on until it has stopped");
    assert_eq!(psci.turned_off(one), Others::Remain);
    assert_eq!(info(&psci, 1), returns(1));
    assert_eq!(psci.started(one), None);
    assert_eq!(call(&psci, CPU_ON, [1, 0x4000_2000, 7]), Action::TurnOn(one));
    assert_eq!(psci.started(one), Some(Start { entry: Ipa::at(0x4000_2000), context: 7 }));
}

/// Where threads meet, closely: none sleeps before it goes on.
#[derive(Default)]
struct Meeting {
    arrived: AtomicU64,
}

impl Meeting {
    fn wait(&self, threads: u64) {
        let goal = (self.arrived.fetch_add(1, Ordering::SeqCst) / threads + 1) * threads;
        let mut spins = 0u32;
        while self.arrived.load(Ordering::SeqCst) < goal {
            spins += 1;
            // The machine may have fewer cores than there are threads.
            if spins.is_multiple_of(1000) {
                std::thread::yield_now()
            } else {
                core::hint::spin_loop()
            }
        }
    }
}

/// Turns vCPU 1 on; the start says who did it. Returns whether that was a success.
fn race(psci: &Psci, token: u64) -> bool {
    match call(psci, CPU_ON, [1, RAM.start + token * 4, token]) {
        Action::TurnOn(vcpu) => vcpu == VcpuId::new(1),
        Action::Return(x0) => {
            let x0 = x0.cast_signed();
            assert!(x0 == ALREADY_ON || x0 == ON_PENDING, "{x0}");
            false
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn t87_of_two_cpu_on_at_once_one_succeeds() {
    let (psci, meeting) = (&psci(), &Meeting::default());
    // Judged at the end: who leaves early keeps the other waiting.
    let (wins, bad) = (&AtomicU64::new(0), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        for side in 0..2 {
            scope.spawn(move || {
                for round in 0..10_000 {
                    meeting.wait(2);
                    wins.fetch_add(race(psci, round << 8 | side).into(), Ordering::Relaxed);
                    meeting.wait(2);
                    if side == 0 {
                        let is_good = wins.swap(0, Ordering::Relaxed) == 1
                            && psci.started(VcpuId::new(1)).is_some();
                        bad.fetch_add((!is_good).into(), Ordering::Relaxed);
                        let is_alone = psci.turned_off(VcpuId::new(1)) == Others::None;
                        bad.fetch_add(is_alone.into(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(bad.load(Ordering::Relaxed), 0);
}

#[test]
fn t87_target_sees_the_start_whole_once_it_sees_it() {
    const ROUNDS: u64 = 10_000;
    let (psci, meeting) = (&psci(), &Meeting::default());
    let starts: Vec<Start> = std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                meeting.wait(2);
                race(psci, round);
            }
        });
        let take = |_| {
            meeting.wait(2);
            // The target already looks while the caller publishes.
            let start = loop {
                match psci.started(VcpuId::new(1)) {
                    Some(start) => break start,
                    None => core::hint::spin_loop(),
                }
            };
            assert_eq!(psci.turned_off(VcpuId::new(1)), Others::Remain);
            start
        };
        (0..ROUNDS).map(take).collect()
    });
    for (round, start) in (0..).zip(starts) {
        assert_eq!((start.entry.get(), start.context), (RAM.start + round * 4, round));
    }
}

#[test]
fn t88_only_the_exact_mpidr_names_a_vcpu() {
    for bit in 0..64 {
        for mpidr in MPIDRS {
            let target = mpidr ^ 1 << bit;
            let expected = match MPIDRS.iter().position(|known| *known == target) {
                Some(0) => returns(ALREADY_ON),
                Some(n) => Action::TurnOn(VcpuId::new(u8::try_from(n).unwrap())),
                None => returns(INVALID_PARAMETERS),
            };
            assert_eq!(call(&psci(), CPU_ON, [target, RAM.start, 0]), expected, "{target:#x}");
            let expected = match MPIDRS.iter().position(|known| *known == target) {
                Some(0) => returns(0),
                Some(_) => returns(1),
                None => returns(INVALID_PARAMETERS),
            };
            assert_eq!(info(&psci(), target), expected, "{target:#x}");
        }
    }
}

#[test]
fn t88_smc32_narrows_all_arguments() {
    let psci = psci();
    let high = 0xdead_beef_0000_0000;
    assert_eq!(
        call(&psci, CPU_ON_32, [high | 0x100, high | 0x4000_1000, high | 5]),
        Action::TurnOn(VcpuId::new(2))
    );
    let expected = Start { entry: Ipa::at(0x4000_1000), context: 5 };
    assert_eq!(psci.started(VcpuId::new(2)), Some(expected));
    // Aff3 cannot be named in 32 bits: that is vCPU 0.
    assert_eq!(call(&psci, CPU_ON_32, [MPIDRS[3], RAM.start, 0]), returns(ALREADY_ON));
    assert_eq!(call(&psci, CPU_ON, [high | 1, RAM.start, 0]), returns(INVALID_PARAMETERS));
}

#[test]
fn t89_entry_lies_in_memory() {
    for entry in [0, RAM.start - 4, RAM.end, !3, RAM.start + 1, RAM.start + 2] {
        assert_eq!(call(&psci(), CPU_ON, [1, entry, 0]), returns(INVALID_ADDRESS), "{entry:#x}");
        // A call that fails leaves the vCPU off.
        let psci = psci();
        call(&psci, CPU_ON, [1, entry, 0]);
        assert_eq!(info(&psci, 1), returns(1));
    }
    assert_eq!(call(&psci(), CPU_ON, [1, RAM.end - 4, 0]), Action::TurnOn(VcpuId::new(1)));
    // Who comes before where.
    assert_eq!(call(&psci(), CPU_ON, [9, 0, 0]), returns(INVALID_PARAMETERS));
    assert_eq!(call(&psci(), CPU_ON, [0, 0, 0]), returns(INVALID_ADDRESS));
}

#[test]
fn t90_last_vcpu_may_turn_off() {
    let psci = psci();
    assert_eq!(call(&psci, CPU_OFF, [0; 3]), Action::TurnOff);
    assert_eq!(psci.turned_off(VcpuId::new(0)), Others::None);
    for mpidr in MPIDRS {
        assert_eq!(info(&psci, mpidr), returns(1));
    }
}

/// Two vCPUs go off and turn each other on as fast as they can. Whoever is told that nobody
/// remains is right: until it boots again, none runs and none is about to. (One that has stopped
/// before may not say yet that it is off.)
#[test]
fn t90_exactly_the_last_one_is_told_so() {
    const ENDS: u64 = 2_000;
    let psci = &Psci::new(&[0, 1].map(|n| Mpidr::from_affinity(n).unwrap())).unwrap();
    let (ends, wrong) = (&AtomicU64::new(0), &AtomicU64::new(0));
    let running = &AtomicU64::new(0);
    psci.boot(VcpuId::new(0), START).unwrap();
    std::thread::scope(|scope| {
        for n in 0..2u8 {
            scope.spawn(move || {
                let own = VcpuId::new(n);
                let mut lives = 0u64;
                while ends.load(Ordering::SeqCst) < ENDS {
                    if psci.started(own).is_none() {
                        std::thread::yield_now();
                        continue;
                    }
                    running.fetch_add(1, Ordering::SeqCst);
                    lives += 1;
                    // Now and then it leaves the other one alone, so that all ends.
                    if !lives.is_multiple_of(3) {
                        let _ = call(psci, CPU_ON, [u64::from(1 - n), START.entry.get(), 0]);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                    if psci.turned_off(own) == Others::None {
                        let is_pending =
                            |n| psci.state(VcpuId::new(n)) == Some(AffinityState::OnPending);
                        let runs = running.load(Ordering::SeqCst) != 0;
                        wrong.fetch_add((runs || (0..2).any(is_pending)).into(), Ordering::SeqCst);
                        ends.fetch_add(1, Ordering::SeqCst);
                        psci.boot(own, START).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
}

#[test]
fn t90_affinity_info_takes_levels_0_to_3() {
    // Pending is vCPU 1, off are 0x100 and the one in Aff3.
    let psci = psci();
    assert_eq!(psci.turned_off(VcpuId::new(0)), Others::None);
    call(&psci, CPU_ON, [1, RAM.start, 0]);
    let at = |target, level| call(&psci, AFFINITY_INFO, [target, level, 0]);
    for (target, level, expected) in [
        (0, 0, 1),
        (1, 0, 2),
        (0, 1, 2),
        (0xff, 1, 2),
        (0x100, 1, 1),
        (0x1ff, 1, 1),
        (0x200, 1, INVALID_PARAMETERS),
        (0x200, 2, 2),
        (0xffff, 2, 2),
        (0x1_0000, 2, INVALID_PARAMETERS),
        (0x1_0000, 3, 2),
        (0xff_ffff, 3, 2),
        (0x3_0000_0000, 3, 1),
        (0x3_00ff_ffff, 3, 1),
        (0x4_0000_0000, 3, INVALID_PARAMETERS),
        (0x100_0000, 3, INVALID_PARAMETERS),
        (0x8000_0000, 1, INVALID_PARAMETERS),
        (0, 4, INVALID_PARAMETERS),
        (0, 0xffff_ffff, INVALID_PARAMETERS),
        // The level is a 32-bit parameter in either convention.
        (0, 1 << 32, 1),
    ] {
        assert_eq!(at(target, level), returns(expected), "{target:#x} at level {level}");
    }
    psci.started(VcpuId::new(1)).unwrap();
    assert_eq!(at(0, 1), returns(0), "one that is on makes them on");
}

#[test]
fn t90_system_suspend_is_for_the_last_one() {
    let psci = psci();
    let start = Start { entry: Ipa::at(RAM.start), context: 9 };
    let suspend = || call(&psci, SYSTEM_SUSPEND, [RAM.start, 9, 0]);
    assert_eq!(suspend(), Action::SystemSuspend(start));
    call(&psci, CPU_ON, [0x100, RAM.start, 0]);
    assert_eq!(suspend(), returns(DENIED), "one is pending");
    psci.started(VcpuId::new(2)).unwrap();
    assert_eq!(suspend(), returns(DENIED), "one is on");
    assert_eq!(psci.turned_off(VcpuId::new(2)), Others::Remain);
    assert_eq!(suspend(), Action::SystemSuspend(start));
    // A CPU_ON that fails leaves nothing behind.
    call(&psci, CPU_ON, [0, RAM.start, 0]);
    assert_eq!(suspend(), Action::SystemSuspend(start));
    for entry in [0, RAM.end, RAM.start + 2, !3] {
        assert_eq!(call(&psci, SYSTEM_SUSPEND, [entry, 0, 0]), returns(INVALID_ADDRESS));
    }
    // Its 32-bit form.
    let high = 0xdead_beef_0000_0000;
    let narrow = call(&psci, 0x8400_000e, [high | RAM.start, high | 9, 0]);
    assert_eq!(narrow, Action::SystemSuspend(start));
    psci.reset();
    psci.boot(VcpuId::new(0), START).unwrap();
    assert_eq!(suspend(), Action::SystemSuspend(start), "a reset counts anew");
}

#[test]
fn t90_suspend_checks_its_power_state() {
    let psci = psci();
    for bit in 0..32 {
        // StateID and StateType are good; the level and the reserved bits must be 0.
        let expected = if bit <= 16 { Action::Suspend } else { returns(INVALID_PARAMETERS) };
        assert_eq!(call(&psci, CPU_SUSPEND, [1 << bit, RAM.start, 0]), expected, "bit {bit}");
    }
    assert_eq!(call(&psci, CPU_SUSPEND, [1 << 16, 0, 0]), returns(INVALID_ADDRESS));
    assert_eq!(call(&psci, CPU_SUSPEND, [0, 0, 0]), Action::Suspend, "standby has no entry");
    assert_eq!(info(&psci, 0), returns(0), "who is suspended is on");
}

#[test]
fn t91_reset_types() {
    let psci = psci();
    assert_eq!(call(&psci, 0x8400_0008, [0; 3]), Action::SystemOff);
    assert_eq!(call(&psci, 0x8400_0009, [0; 3]), Action::SystemReset(Reset::Cold));
    for (reset_type, expected) in [
        (0, Action::SystemReset(Reset::Warm)),
        (0xffff_ffff_0000_0000, Action::SystemReset(Reset::Warm)),
        (1, returns(INVALID_PARAMETERS)),
        (0x7fff_ffff, returns(INVALID_PARAMETERS)),
        (0x8000_0000, returns(INVALID_PARAMETERS)),
    ] {
        let action = call(&psci, SYSTEM_RESET2, [reset_type, 0x1234, 0]);
        assert_eq!(action, expected, "{reset_type:#x}");
    }
}

#[test]
fn t109_reset_leaves_nothing_on() {
    let psci = psci();
    call(&psci, CPU_ON, [1, RAM.start, 0]);
    call(&psci, CPU_ON, [0x100, RAM.start, 0]);
    psci.started(VcpuId::new(1)).unwrap();
    psci.reset();
    for n in 0..4 {
        assert_eq!(psci.state(VcpuId::new(n)), Some(AffinityState::Off));
        assert_eq!(psci.started(VcpuId::new(n)), None);
    }
    assert_eq!(psci.boot(VcpuId::new(4), START), Err(Status::InvalidParameters));
    psci.boot(VcpuId::new(0), START).unwrap();
    assert_eq!(psci.boot(VcpuId::new(0), START), Err(Status::OnPending));
}

/// Everything PSCI 1.1 makes mandatory, and what else is there.
const KNOWN: [u32; 16] = [
    0x8400_0000,
    0x8400_0001,
    0xc400_0001,
    0x8400_0002,
    0x8400_0003,
    0xc400_0003,
    0x8400_0004,
    0xc400_0004,
    0x8400_0006,
    0x8400_0008,
    0x8400_0009,
    0x8400_000a,
    0x8400_000e,
    0xc400_000e,
    0x8400_0012,
    0xc400_0012,
];

#[test]
fn t92_features_and_calls_agree() {
    let psci = psci();
    for function in (0..0x20).flat_map(|n| [0x8400_0000 + n, 0xc400_0000 + n]) {
        let known = KNOWN.contains(&function);
        let feature = if known { SUCCESS } else { NOT_SUPPORTED };
        let asked = call(&psci, 0x8400_000a, [function.into(), 0, 0]);
        assert_eq!(asked, returns(feature), "{function:#x}");
        // Arguments that are wrong for all: only what is unknown says NOT_SUPPORTED.
        let called = call(&psci, function, [!0, !0, !0]);
        let features_of_nonsense = function == 0x8400_000a;
        let refused = called == returns(NOT_SUPPORTED);
        assert_eq!(refused, !known || features_of_nonsense, "{function:#x}");
    }
    let features = |asked| call(&psci, 0x8400_000a, [asked, 0, 0]);
    assert_eq!(features(0x8000_0000), returns(SUCCESS), "SMCCC_VERSION");
    assert_eq!(features(0xffff_ffff_8400_0000), returns(SUCCESS), "the upper half is no part");
    assert_eq!(features(0x8000_0001), returns(NOT_SUPPORTED));
    assert_eq!(call(&psci, 0x8400_0000, [0; 3]), returns(0x1_0001));
    assert_eq!(call(&psci, 0x8400_0006, [0; 3]), returns(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any sequence of events leaves each vCPU where a plain table says.
    #[test]
    fn t90_random_lives_follow_the_model(
        events in proptest::collection::vec((0usize..5, 0usize..4), 0..60)
    ) {
        let psci = Psci::new(&MPIDRS.map(|mpidr| Mpidr::from_affinity(mpidr).unwrap())).unwrap();
        let mut model = [1i64; 4];
        for (event, n) in events {
            let vcpu = VcpuId::new(u8::try_from(n).unwrap());
            match event {
                0 | 1 => {
                    let expected = match model[n] {
                        1 => Action::TurnOn(vcpu),
                        2 => returns(ON_PENDING),
                        _ => returns(ALREADY_ON),
                    };
                    prop_assert_eq!(call(&psci, CPU_ON, [MPIDRS[n], RAM.start, 3]), expected);
                    model[n] = model[n].max(if model[n] == 0 { 0 } else { 2 });
                }
                2 => {
                    prop_assert_eq!(psci.started(vcpu).is_some(), model[n] == 2);
                    model[n] = if model[n] == 2 { 0 } else { model[n] };
                }
                3 if model[n] == 0 => {
                    model[n] = 1;
                    let expected =
                        if model == [1; 4] { Others::None } else { Others::Remain };
                    prop_assert_eq!(psci.turned_off(vcpu), expected);
                }
                _ => {}
            }
            let seen: Vec<_> = MPIDRS.iter().map(|mpidr| info(&psci, *mpidr)).collect();
            prop_assert_eq!(seen, model.map(returns).to_vec());
        }
    }
}
