// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whatever guests, log, port and user do, in any order: the wire is lines with an author.

use super::*;
use proptest::prelude::*;

/// What may happen to a console.
#[derive(Clone, Debug)]
enum Event {
    Guest(usize, Vec<u8>),
    Log(u8),
    Drain(usize),
    Wait(u64),
    Receive(u8),
    Stop(usize),
    Start(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        "[a-z \n\r\u{1b}\u{1e}\\[é€]{0,80}".prop_map(Text::into_bytes),
    ];
    let event = prop_oneof![
        6 => (0usize..3, bytes).prop_map(|(n, bytes)| Event::Guest(n, bytes)),
        3 => any::<u8>().prop_map(Event::Log),
        6 => (0usize..400).prop_map(Event::Drain),
        2 => (0u64..30).prop_map(Event::Wait),
        1 => prop_oneof![Just(ESCAPE), any::<u8>()].prop_map(Event::Receive),
        1 => (0usize..3).prop_map(Event::Stop),
        1 => (0usize..3).prop_map(Event::Start),
    ];
    proptest::collection::vec(event, 0..60)
}

/// Runs events; returns the wire once all is out, and the messages that got onto the log.
fn run(mode: Mode, events: &[Event]) -> (Console, Vec<u8>, Vec<Text>) {
    let vms = [A, B, C];
    let (console, mut port, mut now) = (console(mode), Port::new(), 0);
    let mut messages = Vec::new();
    for event in events {
        match event {
            Event::Guest(n, bytes) => {
                for byte in bytes {
                    let room = console.room(vms[*n]);
                    let push = console.push_guest(vms[*n], *byte);
                    assert!(room == 0 || push == Push::Accepted, "room was promised");
                }
            }
            Event::Log(n) => {
                let dropped = console.counters(None).dropped;
                log(&console, &std::format!("message {n}"));
                if console.counters(None).dropped == dropped {
                    messages.push(std::format!("message {n}"));
                }
            }
            Event::Drain(budget) => {
                port.room = *budget;
                console.drain(&mut port, usize::MAX, now);
            }
            Event::Wait(ticks) => now += ticks,
            Event::Receive(byte) => {
                console.receive(*byte);
            }
            Event::Stop(n) => console.stopped(vms[*n]),
            Event::Start(n) => console.started(vms[*n]),
        }
    }
    port.room = usize::MAX;
    while let Drained::HeldUntil(due) = console.drain(&mut port, usize::MAX, now) {
        assert!(due > now, "what is due is not held");
        now = due;
    }
    (console, port.wire, messages)
}

/// Returns the hypervisor's messages among lines; all else about it is checked.
fn marked(wire: &[u8]) -> Vec<Text> {
    let lines = wire.split(|byte| *byte == b'\n');
    let marked = lines.filter(|line| line.first() == Some(&HYPERVISOR_MARK));
    let text = |line: &[u8]| {
        let line = line[1..].strip_suffix(b"\r").expect("a line of the log is never cut");
        Text::from_utf8(line.to_vec()).expect("nothing is mixed into the log")
    };
    marked
        .map(text)
        .filter(|line| !line.starts_with("console: ") && !line.starts_with("log: "))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn t114_tagged_wire_is_lines_with_an_author(events in events()) {
        let (console, wire, messages) = run(Mode::Tagged, &events);
        prop_assert_eq!(marked(&wire), messages, "all messages, in order, and no others");
        let names = [&b"linux-a| "[..], b"linux-b| ", b"c| "];
        let mut text = [0u64; 3];
        for line in wire.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            prop_assert!(!line[1..].contains(&HYPERVISOR_MARK));
            if line[0] == HYPERVISOR_MARK {
                continue;
            }
            let author = names.iter().position(|name| line.starts_with(name));
            prop_assert!(author.is_some(), "{:?}", line.escape_ascii());
            let author = author.unwrap();
            let line = &line[names[author].len()..];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            prop_assert!(line.len() <= LINE_BYTES_MAX);
            text[author] += line.len() as u64;
        }
        // Nothing is lost on the way: what was taken in and is not a newline has come out.
        for (n, vm) in [A, B, C].into_iter().enumerate() {
            prop_assert!(text[n] <= console.counters(Some(vm)).bytes);
            prop_assert_eq!(console.room(vm), RING);
        }
        let newlines = newlines_taken(&events);
        for n in 0..3 {
            let taken = console.counters(Some(VmId::new(u8::try_from(n).unwrap()))).bytes;
            prop_assert!(text[n] + newlines[n] >= taken);
        }
    }

    #[test]
    fn t114_focus_wire_keeps_the_log_whole(events in events()) {
        let (_, wire, messages) = run(Mode::Focus, &events);
        prop_assert_eq!(marked(&wire), messages);
        let marks = wire.iter().filter(|byte| **byte == HYPERVISOR_MARK).count();
        let lines = wire.split(|byte| *byte == b'\n');
        let starts = lines.filter(|line| line.first() == Some(&HYPERVISOR_MARK));
        prop_assert_eq!(marks, starts.count(), "a mark is nowhere else");
    }
}

/// Counts the newlines that each guest sent, and those that a start may have added.
fn newlines_taken(events: &[Event]) -> [u64; 3] {
    let mut newlines = [0; 3];
    for event in events {
        if let Event::Start(n) = event {
            newlines[*n] += 1;
        }
        if let Event::Guest(n, bytes) = event {
            newlines[*n] += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
    }
    newlines
}
