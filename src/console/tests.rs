// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the console as a whole: several guests and the hypervisor on one wire.
mod attach;
mod random;

use super::pl011::{Received, VirtualPl011, Wire};
use super::*;
use crate::bits::{Level, Width};
use std::string::String as Text;
use std::vec::Vec;

const A: VmId = VmId::new(0);
const B: VmId = VmId::new(1);
const C: VmId = VmId::new(2);
const ESCAPE: u8 = 0x1d;
const PARTIAL_AFTER: u64 = 20;
const RING: usize = 1024;

/// A port that takes so many bytes before it is busy.
struct Port {
    wire: Vec<u8>,
    room: usize,
    interrupt: Vec<Switch>,
}

impl Port {
    fn new() -> Self {
        Self { wire: Vec::new(), room: usize::MAX, interrupt: Vec::new() }
    }
    fn take(&mut self) -> Text {
        Text::from_utf8(core::mem::take(&mut self.wire)).unwrap()
    }
}

impl SerialPort for Port {
    fn try_send(&mut self, byte: u8) -> Sent {
        let Some(room) = self.room.checked_sub(1) else { return Sent::Busy };
        self.room = room;
        self.wire.push(byte);
        Sent::Yes
    }
    fn try_receive(&mut self) -> Option<u8> {
        None
    }
    fn set_send_interrupt(&mut self, switch: Switch) {
        self.interrupt.push(switch);
    }
}

fn console(mode: Mode) -> Console {
    let config = Config {
        mode,
        escape: ESCAPE,
        ring_bytes: RING,
        partial_after_ticks: PARTIAL_AFTER,
        messages: TokenBucket::new(3, 100),
    };
    let console = Console::new(config, 4).unwrap();
    for (vm, name) in [(A, "linux-a"), (B, "linux-b"), (C, "c")] {
        console.attach(vm, &Name::try_from(name).unwrap()).unwrap();
        console.started(vm);
    }
    console
}

fn push(console: &Console, vm: VmId, bytes: impl AsRef<[u8]>) {
    for byte in bytes.as_ref() {
        assert_eq!(console.push_guest(vm, *byte), Push::Accepted);
    }
}

fn log(console: &Console, text: &str) {
    console.log(format_args!("{text}"));
}

/// Drains all that is ready at a time.
fn drained(console: &Console, now: u64) -> (Text, Drained) {
    let mut port = Port::new();
    let drained = console.drain(&mut port, usize::MAX, now);
    (port.take(), drained)
}

#[test]
fn tagged_lines_are_whole_and_take_turns() {
    let console = console(Mode::Tagged);
    for (a, b) in b"one\ntwo\n".iter().zip(b"ONE\r\nTWO") {
        push(&console, A, [*a]);
        push(&console, B, [*b]);
    }
    log(&console, "[08] app 2 cpus 1G");
    let (text, left) = drained(&console, 0);
    assert_eq!(text, "\x1e[08] app 2 cpus 1G\r\nlinux-a| one\r\nlinux-b| ONE\r\nlinux-a| two\r\n");
    assert_eq!(left, Drained::HeldUntil(20), "TWO has no end yet");
    push(&console, B, "\n");
    assert_eq!(drained(&console, 1), ("linux-b| TWO\r\n".into(), Drained::Empty));
}

#[test]
fn prompt_goes_out_when_it_is_old_and_then_grows() {
    let console = console(Mode::Tagged);
    push(&console, A, "/ # ");
    assert_eq!(drained(&console, 100), (Text::new(), Drained::HeldUntil(120)));
    assert_eq!(drained(&console, 119), (Text::new(), Drained::HeldUntil(120)));
    assert_eq!(drained(&console, 120), ("linux-a| / # ".into(), Drained::Empty));
    // What is typed shows at once, on the same line.
    push(&console, A, "l");
    assert_eq!(drained(&console, 121).0, "l");
    push(&console, A, "s\n");
    assert_eq!(drained(&console, 122).0, "s\r\n");
}

#[test]
fn line_of_the_run_before_is_not_gone_on_with() {
    let console = console(Mode::Tagged);
    for sent in [&["half a li"][..], &["half", " a li"], &["half a li\n"]] {
        let mut shown = Text::new();
        for (part, now) in sent.iter().zip([0, 1000]) {
            push(&console, A, part);
            // Not sent yet, or sent and open.
            shown += &drained(&console, now).0;
            shown += &drained(&console, now + 20 * (sent.len() as u64 - 1)).0;
        }
        console.stopped(A);
        console.started(A);
        push(&console, A, "anew\n");
        shown += &drained(&console, 2000).0;
        let lines: Vec<_> = shown.lines().filter(|line| !line.starts_with('\x1e')).collect();
        assert_eq!(lines, ["linux-a| half a li", "linux-a| anew"]);
    }
}

#[test]
fn unfinished_line_is_ended_for_another_and_tagged_again() {
    let console = console(Mode::Tagged);
    push(&console, A, "login: ");
    assert_eq!(drained(&console, 0).1, Drained::HeldUntil(20));
    assert_eq!(drained(&console, 20).0, "linux-a| login: ");
    push(&console, A, "ro");
    push(&console, B, "hello\n");
    log(&console, "up");
    // A line that was just added to is not cut, and others learn when they may speak.
    assert_eq!(drained(&console, 21), ("ro".into(), Drained::HeldUntil(41)));
    assert_eq!(drained(&console, 40), (Text::new(), Drained::HeldUntil(41)));
    let (text, left) = drained(&console, 41);
    assert_eq!((text.as_str(), left), ("\r\nlinux-b| hello\r\n\x1eup\r\n", Drained::Empty));
    push(&console, A, "ot\n");
    assert_eq!(drained(&console, 42).0, "linux-a| ot\r\n");
    // Who can finish the line on the wire does so before others speak.
    push(&console, A, "x");
    drained(&console, 50);
    assert_eq!(drained(&console, 70).0, "linux-a| x");
    push(&console, B, "late\n");
    push(&console, A, "y\n");
    assert_eq!(drained(&console, 71).0, "y\r\nlinux-b| late\r\n");
}

#[test]
fn t114_line_that_dribbles_keeps_the_wire_for_a_bounded_time() {
    let console = console(Mode::Tagged);
    push(&console, A, "x");
    drained(&console, 0);
    assert_eq!(drained(&console, PARTIAL_AFTER).0, "linux-a| x");
    push(&console, B, "here\n");
    let heard = (PARTIAL_AFTER..).find(|&now| {
        push(&console, A, "x");
        drained(&console, now).0.contains("linux-b| here")
    });
    assert_eq!(heard, Some(5 * PARTIAL_AFTER), "four times the patience after the line began");
}

#[test]
fn long_line_is_split_between_characters() {
    let console = console(Mode::Tagged);
    let exact = "x".repeat(256);
    push(&console, A, std::format!("{exact}\n"));
    assert_eq!(drained(&console, 0).0, std::format!("linux-a| {exact}\r\n"));
    push(&console, A, std::format!("{exact}y\n"));
    assert_eq!(drained(&console, 0).0, std::format!("linux-a| {exact}\r\nlinux-a| y\r\n"));
    // It goes out without waiting for its end.
    push(&console, A, &exact);
    assert_eq!(drained(&console, 0).0, std::format!("linux-a| {exact}"));
    push(&console, A, "z\n");
    assert_eq!(drained(&console, 0).0, "\r\nlinux-a| z\r\n");
    let wide = std::format!("{}€€\n", "x".repeat(252));
    push(&console, A, wide);
    let (text, _) = drained(&console, 0);
    assert_eq!(text.matches('€').count(), 2);
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn a_full_open_line_starves_nobody() {
    let console = console(Mode::Tagged);
    push(&console, A, "x".repeat(256));
    drained(&console, 0);
    push(&console, B, "here\n");
    assert_eq!(drained(&console, 0), ("\r\nlinux-b| here\r\n".into(), Drained::Empty));
}

#[test]
fn t114_flood_starves_neither_the_log_nor_others() {
    for flood in ["yes\n", "y", "\x1b[31m"] {
        let console = console(Mode::Tagged);
        let mut port = Port::new();
        let (mut waiting, mut asked) = (0, 0);
        for round in 0..100_000u64 {
            for byte in flood.bytes() {
                console.push_guest(A, byte);
            }
            if round % 1000 == 0 {
                push(&console, B, "b\n");
                log(&console, "log");
                asked += 1;
            }
            port.room = 3;
            console.drain(&mut port, 3, round);
            let heard = port.wire.ends_with(b"linux-b| b\r\n");
            waiting = if heard || round % 1000 == 0 { 0 } else { waiting + 1 };
        }
        let text = port.take();
        // The last few may still be waiting behind one line of the flood each.
        assert!(text.matches("linux-b| b\r\n").count() >= asked - 1, "{flood:?}");
        assert!(text.matches("\x1elog\r\n").count() >= asked - 1, "{flood:?}");
        let a = console.counters(Some(A));
        let offered = 100_000 * flood.len() as u64;
        assert_eq!(a.bytes + a.dropped + a.removed, offered, "every byte is accounted for");
        assert_eq!(console.counters(Some(B)).dropped + console.counters(None).dropped, 0);
    }
}

#[test]
fn t114_guest_cannot_forge_or_overwrite_a_line() {
    let console = console(Mode::Tagged);
    let hostile = "a\r\x1e[01] forged\x1b[A\x1b[2K\x0b\x0cb\x08\x08\u{9b}2J\x7f\x1b]0;t\x07\n";
    push(&console, A, hostile);
    let mut port = Port::new();
    console.drain(&mut port, usize::MAX, 0);
    assert_eq!(port.wire, b"linux-a| a[01] forgedb\xc22J\r\n");
    assert!(console.counters(Some(A)).removed > 10);
}

#[test]
fn t114_focused_guest_cannot_forge_a_line_either() {
    let console = console(Mode::Focus);
    push(&console, A, "\x1b[1mraw\x1e[01] forged\r\n");
    assert_eq!(drained(&console, 0).0, "\x1b[1mraw[01] forged\r\n");
    assert_eq!(console.counters(Some(A)).removed, 1);
}

#[test]
fn focused_guest_has_the_wire_and_the_log_its_own_line() {
    let console = console(Mode::Focus);
    push(&console, A, "\x1b[2J\x00\x07/ # ");
    assert_eq!(drained(&console, 0), ("\x1b[2J\x00\x07/ # ".into(), Drained::Empty));
    push(&console, B, "not seen\n");
    log(&console, "seen");
    assert_eq!(drained(&console, 0).0, "\r\n\x1eseen\r\n");
    push(&console, A, "x\r\n");
    assert_eq!(drained(&console, 0).0, "x\r\n");
    log(&console, "no empty line before");
    assert_eq!(drained(&console, 0).0, "\x1eno empty line before\r\n");
    // In the middle of a control function, the terminal is told to forget it.
    push(&console, A, "\x1b[3");
    drained(&console, 0);
    log(&console, "up");
    assert_eq!(drained(&console, 0).0, "\x18\r\n\x1eup\r\n");
}

#[test]
fn unfocused_guest_keeps_its_latest_bytes() {
    let console = console(Mode::Focus);
    for n in 0..2000 {
        assert_eq!(console.room(B), RING);
        push(&console, B, std::format!("{n:04}\n"));
    }
    assert_eq!(console.counters(Some(B)).dropped, 10_000 - RING as u64);
    assert_eq!(console.receive(ESCAPE), Input::FocusMoved(B));
    assert_eq!(
        console.room(B),
        ROOM_LOW,
        "it was promised a FIFO's room; what was kept goes first"
    );
    let (text, _) = drained(&console, 0);
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!(first, "\x1econsole: linux-b\r");
    assert!(rest.ends_with("\n1998\n1999\n"));
    assert_eq!(rest.len(), RING - ROOM_LOW);
    assert_eq!(console.room(B), RING);
}

#[test]
fn escape_moves_on_past_vms_that_are_off() {
    let console = console(Mode::Tagged);
    assert_eq!(console.focus(), Some(A), "who starts first");
    console.stopped(B);
    assert_eq!(console.receive(b'a'), Input::ToVm(A));
    assert_eq!(console.receive(ESCAPE), Input::FocusMoved(C));
    assert_eq!(console.receive(b'c'), Input::ToVm(C));
    assert_eq!(console.receive(ESCAPE), Input::FocusMoved(A));
    console.stopped(C);
    assert_eq!(console.receive(ESCAPE), Input::FocusMoved(A), "nobody else is there");
    let moves = "\x1econsole: c\r\n\x1econsole: linux-a\r\n\x1econsole: linux-a\r\n";
    assert_eq!(drained(&console, 0).0, moves);
    console.stopped(A);
    assert_eq!(console.receive(ESCAPE), Input::Ignored);
    assert_eq!(console.receive(b'x'), Input::Ignored);
    console.started(B);
    assert_eq!(console.focus(), Some(B));
    assert_eq!(console.receive(b'x'), Input::ToVm(B));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    while let Some(received) = console.wire(A).receive() {
        a.push(received.byte);
    }
    while let Some(received) = console.wire(B).receive() {
        b.push(received.byte);
    }
    assert_eq!((a.as_slice(), b.as_slice()), (&b"a"[..], &b"x"[..]));
}

#[test]
fn focus_waits_for_last_words() {
    let console = console(Mode::Focus);
    push(&console, A, "reboot: Power down\r\n");
    push(&console, B, "b\r\n");
    console.stopped(A);
    assert_eq!(console.focus(), Some(B));
    assert_eq!(console.receive(b'x'), Input::ToVm(B));
    let expected = "reboot: Power down\r\n\x1econsole: linux-b (linux-a is off)\r\nb\r\n";
    assert_eq!(drained(&console, 0).0, expected);
    // The last VM of all keeps the wire.
    console.stopped(C);
    push(&console, B, "bye\r\n");
    console.stopped(B);
    assert_eq!(drained(&console, 0).0, "bye\r\n");
}

#[test]
fn input_overflow_is_counted_and_seen_behind_the_gap() {
    let console = console(Mode::Tagged);
    let mut uart = VirtualPl011::new();
    uart.write(0x2c, Width::Word, 0x70, &mut console.wire(A)).unwrap();
    for n in 0..256u16 {
        assert_eq!(console.receive(n.to_le_bytes()[0].max(0x20)), Input::ToVm(A));
    }
    assert_eq!(console.receive(b'!'), Input::Overflow(A));
    assert_eq!(console.receive(b'!'), Input::Overflow(A));
    assert_eq!(console.counters(Some(A)).input_dropped, 2);
    for _ in 0..256 {
        let data = uart.read(0, Width::Word, &mut console.wire(A)).unwrap();
        assert_eq!(data & 0xf00, 0, "nothing is missing before this byte");
    }
    assert_eq!(console.receive(b'z'), Input::ToVm(A));
    assert_eq!(uart.read(0, Width::Word, &mut console.wire(A)), Ok(0x800 | u64::from(b'z')));
    assert_eq!(console.receive(b'z'), Input::ToVm(A));
    assert_eq!(uart.read(0, Width::Word, &mut console.wire(A)), Ok(u64::from(b'z')));
}

#[test]
fn t109_vm_that_starts_anew_has_no_input_of_the_old() {
    let console = console(Mode::Tagged);
    for _ in 0..300 {
        console.receive(b'x');
    }
    push(&console, A, "unfinished \x1b[");
    console.started(A);
    assert_eq!(console.wire(A).receive(), None);
    assert_eq!(console.receive(b'n'), Input::ToVm(A));
    assert_eq!(console.wire(A).receive(), Some(Received { byte: b'n', overrun: false }));
    push(&console, A, "31\n");
    assert_eq!(drained(&console, 0).0, "linux-a| unfinished \r\nlinux-a| 31\r\n");
}

#[test]
fn t114_guest_that_fills_its_ring_is_held_back_and_told_of_room_once() {
    let console = console(Mode::Tagged);
    let mut uart = VirtualPl011::new();
    let mut port = Port::new();
    let read = |uart: &mut VirtualPl011, console: &Console, offset| {
        uart.read(offset, Width::Word, &mut console.wire(A)).unwrap()
    };
    uart.write(0x2c, Width::Word, 0x70, &mut console.wire(A)).unwrap();
    uart.write(0x38, Width::Word, 1 << 5, &mut console.wire(A)).unwrap();
    let mut sent = 0;
    while read(&mut uart, &console, 0x18) & 0x20 == 0 {
        uart.write(0, Width::Word, b'x'.into(), &mut console.wire(A)).unwrap();
        sent += 1;
    }
    assert_eq!((sent, console.room(A)), (RING, 0));
    assert_eq!(uart.interrupt_level(), Level::Low);
    assert_eq!(console.push_guest(A, b'y'), Push::Full);
    assert_eq!(console.counters(Some(A)).dropped, 1);
    assert_eq!(console.take_unblocked(), None);
    assert_eq!(console.drain(&mut port, 600, 0), Drained::MoreLeft);
    assert_eq!(console.take_unblocked(), Some(A));
    assert_eq!(console.take_unblocked(), None);
    uart.refresh(&mut console.wire(A));
    assert_eq!(uart.interrupt_level(), Level::High);
}

#[test]
fn t114_focus_moves_tell_who_waits() {
    let console = console(Mode::Focus);
    while console.room(A) > 0 {
        push(&console, A, "a");
    }
    assert_eq!(console.take_unblocked(), None);
    while console.counters(Some(B)).dropped == 0 {
        push(&console, B, "b");
    }
    console.receive(ESCAPE);
    assert_eq!(console.take_unblocked(), Some(A), "it has lost the focus, and its latest count");
    assert_eq!(console.room(B), ROOM_LOW);
    assert_eq!(console.take_unblocked(), None);
    drained(&console, 0);
    assert_eq!(console.take_unblocked(), Some(B), "what was kept is out");
}

/// A guest that polls for room drives the wire: nobody else may have anything to say.
#[test]
fn t114_guest_that_polls_without_room_wants_a_drain() {
    let console = console(Mode::Tagged);
    assert_eq!((console.wire(A).room(), console.wire(A).wants_drain()), (RING, false));
    while console.room(A) > 0 {
        push(&console, A, "a");
    }
    let wire = console.wire(A);
    assert!(!wire.wants_drain());
    assert_eq!(wire.room(), 0);
    assert!(wire.wants_drain());
}

#[test]
fn log_line_goes_whole_or_not_at_all() {
    let console = console(Mode::Tagged);
    let line = "l".repeat(99);
    for _ in 0..15 {
        log(&console, &line);
    }
    log(&console, "short, and yet behind the gap");
    assert_eq!(console.counters(None), Counters { bytes: 1000, dropped: 6, ..Counters::default() });
    let (text, _) = drained(&console, 0);
    assert_eq!(text, std::format!("\x1e{line}\r\n").repeat(10));
    log(&console, "again");
    assert_eq!(drained(&console, 0).0, "\x1elog: 6 messages dropped\r\n\x1eagain\r\n");
    log(&console, "a\nb\x1b[31m\rc\x1e");
    assert_eq!(drained(&console, 0).0, "\x1ea bc\r\n", "one call, one line");
    log(&console, &"m".repeat(300));
    let (text, _) = drained(&console, 0);
    assert_eq!(text, std::format!("\x1e{}\r\n\x1e{}\r\n", "m".repeat(256), "m".repeat(44)));
}

#[test]
fn t114_messages_that_a_guest_causes_are_limited_and_counted() {
    let console = console(Mode::Tagged);
    for n in 0..1000 {
        console.log_for(A, 0, format_args!("read of {n:#x}"));
    }
    console.log_for(B, 0, format_args!("mine"));
    let (text, _) = drained(&console, 0);
    assert_eq!(text.lines().count(), 4);
    assert!(text.contains("\x1e[vm!] linux-b mine\r\n"), "another VM has its own measure");
    console.log_for(A, 100, format_args!("again"));
    assert_eq!(
        drained(&console, 0).0,
        "\x1e[vm!] linux-a: 997 messages dropped\r\n\x1e[vm!] linux-a again\r\n"
    );
    assert_eq!(console.counters(None).dropped, 0);
}

#[test]
fn draining_stops_at_the_budget_and_goes_on_where_it_was() {
    let console = console(Mode::Tagged);
    let mut port = Port::new();
    push(&console, A, "first\n");
    log(&console, "second");
    assert_eq!(console.drain(&mut port, 0, 0), Drained::MoreLeft);
    assert_eq!(console.drain(&mut port, 3, 0), Drained::MoreLeft);
    assert_eq!(port.wire.len(), 3);
    port.room = 1;
    assert_eq!(console.drain(&mut port, 100, 0), Drained::MoreLeft);
    assert_eq!(port.wire.len(), 4);
    assert_eq!(port.interrupt, [Switch::On], "told once");
    port.room = usize::MAX;
    assert_eq!(console.drain(&mut port, 100, 0), Drained::Empty);
    assert_eq!(port.interrupt, [Switch::On, Switch::Off]);
    assert_eq!(port.take(), "\x1esecond\r\nlinux-a| first\r\n");
}

#[test]
fn t112_vm_that_is_not_there_gets_nothing() {
    let console = console(Mode::Focus);
    let nobody = VmId::new(200);
    assert_eq!(console.push_guest(nobody, b'x'), Push::Full);
    assert_eq!(console.room(nobody), 0);
    assert_eq!(console.wire(nobody).receive(), None);
    console.started(nobody);
    console.stopped(nobody);
    console.log_for(nobody, 0, format_args!("x"));
    assert_eq!(console.focus(), Some(A));
    assert_eq!(drained(&console, 0), (Text::new(), Drained::Empty));
}
