// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests and changes at once: one wins, and nothing is lost; a VM whose core is stuck.
#![forbid(unsafe_code)]

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

/// Starts a VM as its core does.
fn start(l: &Lifecycle) {
    l.request(Request::Start).unwrap();
    assert_eq!(l.take_asked(), Some(Change::Start));
    assert_eq!(l.take_asked(), None);
    l.finish(Change::Start);
}

#[test]
fn of_two_leaders_one_wins() {
    let l = Lifecycle::new();
    start(&l);
    assert_eq!(l.begin(Change::Start), Leadership::Mine);
    assert_eq!(l.begin(Change::Start), Leadership::Others);
    l.finish(Change::Start);
    assert_eq!(l.begin(Change::Stop), Leadership::Mine);
    assert_eq!(l.begin(Change::Start), Leadership::Others);
    l.finish(Change::Stop);
    assert_eq!(l.begin(Change::Stop), Leadership::Others);
}

/// Cores ask for resets as fast as they can; each is about the run in which it was asked for.
#[test]
fn t91_a_reset_is_about_the_run_that_asked() {
    const RUNS: u64 = 200;
    let l = Lifecycle::new();
    start(&l);
    let run = AtomicU64::new(0);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while run.load(SeqCst) < RUNS {
                    if l.enter() == Entry::Refused {
                        thread::yield_now();
                        continue;
                    }
                    let asked_in = run.load(SeqCst);
                    let leadership = l.begin(Change::Start);
                    l.leave();
                    if leadership == Leadership::Mine {
                        while !l.is_empty() {
                            thread::yield_now();
                        }
                        assert_eq!(run.fetch_add(1, SeqCst), asked_in);
                        l.finish(Change::Start);
                    }
                }
            });
        }
    });
}

#[test]
fn t91_no_core_is_inside_while_a_leader_changes_the_vm() {
    const ROUNDS: u64 = 100;
    let l = Lifecycle::new();
    start(&l);
    let (done, changing, entered) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while !done.load(SeqCst) {
                    if l.enter() == Entry::Granted {
                        assert!(!changing.load(SeqCst), "inside during a change");
                        entered.fetch_add(1, SeqCst);
                        l.leave();
                    }
                }
            });
        }
        for _ in 0..ROUNDS {
            assert_eq!(l.begin(Change::Start), Leadership::Mine);
            while !l.is_empty() {
                thread::yield_now();
            }
            changing.store(true, SeqCst);
            thread::yield_now();
            changing.store(false, SeqCst);
            l.finish(Change::Start);
        }
        while entered.load(SeqCst) == 0 {
            thread::yield_now();
        }
        done.store(true, SeqCst);
    });
}

/// What each request does in each state: the new state, where it fits.
fn expected(request: Request, state: State) -> Option<State> {
    match (request, state) {
        (Request::Start, State::Off | State::Crashed) => Some(State::Starting),
        (Request::Kill, State::Running | State::Paused | State::Resuming | State::Crashed) => {
            Some(State::Stopping)
        }
        (Request::Reset, State::Running | State::Paused | State::Resuming | State::Crashed) => {
            Some(State::Starting)
        }
        (Request::Pause, State::Running | State::Resuming) => Some(State::Paused),
        (Request::Resume, State::Paused) => Some(State::Resuming),
        (Request::Destroy, State::Off) => Some(State::Gone),
        _ => None,
    }
}

#[test]
fn every_request_fits_some_states_and_changes_nothing_in_others() {
    use Request::{Destroy, Kill, Pause, Reset, Resume, Start};
    for request in [Start, Kill, Reset, Pause, Resume, Destroy] {
        for state in State::ALL {
            let l = Lifecycle::new();
            l.state.store(state as u8, SeqCst);
            let answer = l.request(request);
            match expected(request, state) {
                Some(to) => {
                    assert_eq!((answer, l.state()), (Ok(()), to), "{request:?} when {state}");
                    let led = match to {
                        State::Starting => Some(Change::Start),
                        State::Stopping => Some(Change::Stop),
                        _ => None,
                    };
                    assert_eq!(l.take_asked(), led);
                }
                None => {
                    assert_eq!((answer, l.state()), (Err(state), state), "{request:?}");
                    assert_eq!(l.take_asked(), None);
                }
            }
        }
    }
}

#[test]
fn vm_whose_core_is_stuck_is_lost_from_any_state_and_takes_no_request() {
    use Request::{Destroy, Kill, Pause, Reset, Resume, Start};
    for state in State::ALL {
        let l = Lifecycle::new();
        l.state.store(state as u8, SeqCst);
        let is_new = !matches!(state, State::Lost | State::Gone);
        assert_eq!(l.lose(), is_new.then_some(state));
        assert_eq!(l.will_start(), state == State::Starting);
        if state == State::Gone {
            continue;
        }
        assert!(l.is_lost() && l.has_ended() && l.wants_out());
        for request in [Start, Kill, Reset, Pause, Resume, Destroy] {
            assert_eq!(l.request(request), Err(State::Lost), "{request:?}");
        }
        // Who led a change ends nothing any more.
        l.finish(Change::Stop);
        l.finish(Change::Start);
        assert_eq!(l.take_asked(), None);
        assert_eq!(l.begin(Change::Start), Leadership::Others);
        assert!(l.is_lost());
    }
}

#[test]
fn vm_whose_last_stuck_core_is_back_has_crashed_where_it_ran() {
    for state in State::ALL {
        let l = Lifecycle::new();
        l.state.store(state as u8, SeqCst);
        if matches!(state, State::Lost | State::Gone) {
            continue;
        }
        assert_eq!((l.lose(), l.lose()), (Some(state), None));
        l.find();
        assert!(l.is_lost(), "one is left");
        l.find();
        let ran = state == State::Running || state.is_frozen();
        assert_eq!(l.state(), if ran { State::Crashed } else { state }, "{state}");
        assert_eq!(l.take_asked(), None);
    }
}

/// A change of a VM that is lost meanwhile ends once its core is back, whoever was stuck: the
/// leader goes on, or it is led anew where that has given up, before or after.
#[test]
fn change_of_a_vm_that_was_lost_meanwhile_ends() {
    for (change, state, ends) in [
        (Change::Start, State::Starting, State::Running),
        (Change::Stop, State::Stopping, State::Off),
    ] {
        let lost = || {
            let l = Lifecycle::new();
            l.state.store(state as u8, SeqCst);
            assert_eq!(l.lose(), Some(state));
            l
        };
        let l = lost();
        l.find();
        l.finish(change);
        assert_eq!((l.state(), l.take_asked()), (ends, None));
        let l = lost();
        l.finish(change);
        assert_eq!((l.is_lost(), l.take_asked()), (true, None));
        l.find();
        assert_eq!((l.state(), l.take_asked()), (state, Some(change)));
        // Who waited for the stuck one gives up when that has just come back.
        let l = lost();
        l.find();
        l.give_up(change);
        assert_eq!((l.state(), l.take_asked()), (state, Some(change)));
    }
}

/// Whatever the order in which the leader ends a start and the watcher loses and finds its core,
/// the VM runs, and nothing is left to be led.
#[test]
fn start_ends_whenever_its_vm_is_lost() {
    for _ in 0..2_000 {
        let l = &Lifecycle::new();
        l.state.store(State::Starting as u8, SeqCst);
        thread::scope(|s| {
            s.spawn(|| l.finish(Change::Start));
            s.spawn(|| {
                let _ = l.lose();
                l.find();
            });
        });
        if l.state() == State::Starting {
            assert_eq!(l.take_asked(), Some(Change::Start));
            l.finish(Change::Start);
        }
        // Lost while it ran it has crashed.
        assert!(matches!(l.state(), State::Running | State::Crashed), "{}", l.state());
        assert_eq!(l.take_asked(), None);
    }
}

/// Two clients and the VM's own core: every request that was granted has its effect once.
#[test]
fn t91_of_two_clients_one_is_granted_and_nothing_is_lost() {
    const ROUNDS: usize = 300;
    let l = &Lifecycle::new();
    let done = &AtomicBool::new(false);
    let led = &AtomicU64::new(0);
    let granted = thread::scope(|s| {
        s.spawn(move || {
            while !done.load(SeqCst) || l.asked.load(SeqCst) != 0 {
                if let Some(change) = l.take_asked() {
                    led.fetch_add(1, SeqCst);
                    l.finish(change);
                }
                thread::yield_now();
            }
        });
        let client = |requests: [Request; 4]| {
            s.spawn(move || {
                let mut granted = 0;
                for request in requests.into_iter().cycle().take(ROUNDS) {
                    let is_led = request.table().2.is_some();
                    granted += u64::from(l.request(request).is_ok() && is_led);
                    thread::yield_now();
                }
                granted
            })
        };
        let clients = [
            client([Request::Start, Request::Pause, Request::Kill, Request::Resume]),
            client([Request::Reset, Request::Resume, Request::Start, Request::Kill]),
        ];
        let granted: u64 = clients.into_iter().map(|c| c.join().unwrap()).sum();
        done.store(true, SeqCst);
        granted
    });
    assert_eq!(led.load(SeqCst), granted);
    assert!(granted > 0);
    assert!(!matches!(l.state(), State::Starting | State::Stopping), "left undone");
}
