// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs come to the console and go: the next one in a place finds nothing of the one before.

use super::*;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

/// All of the wire, however long it takes.
fn wire(console: &Console) -> Text {
    let mut port = Port::new();
    while console.drain(&mut port, usize::MAX, u64::MAX) != Drained::Empty {}
    port.take()
}

#[test]
fn t114_the_next_vm_in_a_place_finds_nothing_of_the_one_before() {
    for mode in [Mode::Tagged, Mode::Focus] {
        let console = console(mode);
        assert_eq!(console.focus(), Some(A));
        push(&console, A, "a secret that is not sent");
        assert_eq!(console.receive(b'p'), Input::ToVm(A));
        console.stopped(A);
        console.detach(A);
        assert_eq!(console.focus(), Some(B));
        // Of no VM nothing is taken, and it is sent nothing.
        assert_eq!(console.push_guest(A, b'x'), Push::Full);
        assert_eq!((console.room(A), console.counters(Some(A)).bytes), (0, 0));
        assert_eq!(console.tail(A, &mut [0; 8]), 0);
        console.attach(A, &name("next")).unwrap();
        assert_eq!(console.wire(A).receive(), None, "input of the one before");
        console.started(A);
        assert_eq!(console.wire(A).receive(), None);
        let counters = console.counters(Some(A));
        assert_eq!(counters, Counters::default());
        push(&console, A, "hello\n");
        while console.focus() != Some(A) {
            assert!(matches!(console.receive(ESCAPE), Input::FocusMoved(_)));
        }
        let wire = wire(&console);
        assert!(!wire.contains("secret"), "{wire:?}");
        let lost = "linux-a: 25 bytes of output are lost";
        assert_eq!(wire.matches(lost).count(), 1, "{wire:?}");
        let expected = if mode == Mode::Tagged { "next| hello\r\n" } else { "hello\n" };
        assert!(wire.contains(expected), "{wire:?}");
    }
}

#[test]
fn last_words_that_are_out_are_not_lost() {
    let console = console(Mode::Focus);
    push(&console, A, "goodbye\n");
    console.stopped(A);
    let sent = wire(&console);
    assert!(sent.starts_with("goodbye\n") && sent.contains("linux-b (linux-a is off)"), "{sent:?}");
    console.detach(A);
    assert_eq!(wire(&console), "");
}

/// Its focus is gone already, and that was to be said behind its last words.
#[test]
fn a_vm_that_vanishes_before_its_last_words_are_out_is_named_once() {
    let console = console(Mode::Focus);
    push(&console, A, "goodbye\n");
    console.stopped(A);
    console.detach(A);
    let sent = wire(&console);
    assert_eq!(sent.matches("linux-b (linux-a is off)").count(), 1, "{sent:?}");
    assert!(sent.contains("linux-a: 8 bytes of output are lost"), "{sent:?}");
    assert!(!sent.contains("goodbye"), "{sent:?}");
}

#[test]
fn the_line_of_a_vm_that_vanishes_ends_before_the_next_one() {
    let console = console(Mode::Tagged);
    let mut port = Port::new();
    push(&console, A, "half a line");
    console.drain(&mut port, usize::MAX, 0);
    console.drain(&mut port, usize::MAX, PARTIAL_AFTER + 1);
    assert_eq!(port.take(), "linux-a| half a line");
    console.stopped(A);
    console.detach(A);
    console.attach(A, &name("next")).unwrap();
    console.started(A);
    push(&console, A, "its own\n");
    console.drain(&mut port, usize::MAX, PARTIAL_AFTER + 2);
    let ended = "\r\n\x1econsole: linux-b (linux-a is off)\r\nnext| its own\r\n";
    assert_eq!(port.take(), ended);
}

#[test]
fn no_place_is_no_memory_and_the_last_vm_takes_the_focus_with_it() {
    let console = console(Mode::Tagged);
    assert_eq!(console.attach(VmId::new(4), &name("x")), Err(NoMemory));
    for vm in [B, C, A] {
        console.stopped(vm);
        console.detach(vm);
        console.detach(vm);
    }
    assert_eq!(console.focus(), None);
    assert_eq!(console.receive(b'x'), Input::Ignored);
    console.attach(C, &name("again")).unwrap();
    console.started(C);
    assert_eq!(console.focus(), Some(C));
    assert_eq!(console.take_unblocked(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The tail is what was sent last, shown or not, as long as the ring has it.
    #[test]
    fn tail_is_what_was_sent_last(
        sent in proptest::collection::vec("[a-z\n]{0,300}", 0..12),
        drained in proptest::collection::vec(0usize..400, 12),
        wanted in 0usize..2 * RING,
        tagged: bool,
    ) {
        let console = console(if tagged { Mode::Tagged } else { Mode::Focus });
        let (mut port, mut expected, mut now) = (Port::new(), Text::new(), 0);
        for (text, budget) in sent.iter().zip(drained) {
            for byte in text.bytes() {
                if console.push_guest(B, byte) == Push::Accepted {
                    expected.push(char::from(byte));
                }
            }
            now += 10;
            console.drain(&mut port, budget, now);
        }
        let mut buffer = std::vec![0; wanted];
        let count = console.tail(B, &mut buffer);
        let all = expected.as_bytes();
        prop_assert_eq!(count, wanted.min(RING).min(all.len()));
        prop_assert_eq!(&buffer[..count], &all[all.len() - count..]);
    }
}
