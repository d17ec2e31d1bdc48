// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A line with a conversation on it: what comes in, what goes out, and that both are bounded.

use super::*;
use crate::control::{Direction, crc32c, open};
use std::collections::VecDeque;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// Answers `list` with so many rows.
struct Rowed(u8);

impl Executor for Rowed {
    fn carry_out(&self, _: Request<'_>) -> Result<Rows, Refusal> {
        Ok(Rows::Vms(0))
    }
    fn next_row(&self, rows: &mut Rows, line: &mut Line) -> Row {
        let Rows::Vms(place) = *rows else { return Row::End };
        if place == self.0 {
            return Row::End;
        }
        *rows = Rows::Vms(place + 1);
        // As long as a row can be.
        while line.write_str("x").is_ok() {}
        Row::Written
    }
}

/// A port that takes so many bytes between two interrupts.
#[derive(Default)]
struct Port {
    input: VecDeque<u8>,
    output: Vec<u8>,
    room: usize,
    send_interrupt: Switch,
}

impl SerialPort for Port {
    fn try_send(&mut self, byte: u8) -> Sent {
        if self.room == 0 {
            return Sent::Busy;
        }
        self.room -= 1;
        self.output.push(byte);
        Sent::Yes
    }
    fn try_receive(&mut self) -> Option<u8> {
        self.input.pop_front()
    }
    fn set_send_interrupt(&mut self, switch: Switch) {
        self.send_interrupt = switch;
    }
}

fn request(text: &str) -> Vec<u8> {
    format!("\x1e{text}*{:08x}\n", crc32c(text.as_bytes())).into_bytes()
}

/// Returns the bodies of the lines, each of which is whole and framed as documented.
fn bodies(output: &[u8]) -> Vec<String> {
    let text = core::str::from_utf8(output).unwrap();
    let lines = text.split_terminator("\r\n").map(|line| {
        let line = line.strip_prefix('\x1e').unwrap();
        open(Direction::Reply, line.as_bytes()).unwrap().1.to_string()
    });
    lines.collect()
}

/// Has all of a request taken in, in as many visits as it takes.
fn take(wire: &mut Wire<Port>, text: &str, executor: &Rowed) {
    wire.port.input.extend(request(text));
    while !wire.port.input.is_empty() {
        wire.serve(executor);
    }
}

#[test]
fn reply_goes_out_as_the_port_takes_it() {
    const FIFO_BYTES: usize = 16;
    let mut wire = Wire::new(Port::default());
    take(&mut wire, "C1 1 list", &Rowed(5));
    loop {
        wire.port.room = FIFO_BYTES;
        let left = wire.reply(&Rowed(5));
        if wire.port.send_interrupt == Switch::On {
            assert_eq!((left, wire.port.room), (Left::Nothing, 0), "the port's interrupt goes on");
        } else if left == Left::Nothing {
            break;
        }
    }
    let said = bodies(&wire.port.output);
    assert_eq!(said.len(), 6);
    assert_eq!(said[5], "ok rows=5");
}

/// A port that always has room, as QEMU's, does not keep a core.
#[test]
fn visit_sends_no_more_than_its_budget() {
    let mut wire = Wire::new(Port { room: usize::MAX, ..Port::default() });
    take(&mut wire, "C1 1 list", &Rowed(200));
    let mut before = 0;
    while wire.reply(&Rowed(200)) == Left::More {
        let sent = &wire.port.output[before..];
        assert!(sent.len() <= SEND_BUDGET_BYTES, "{}", sent.len());
        assert_eq!(wire.port.send_interrupt, Switch::Off);
        before = wire.port.output.len();
    }
    assert_eq!(bodies(&wire.port.output).len(), 201);
}

#[test]
fn visit_takes_in_no_more_than_its_share() {
    let mut wire = Wire::new(Port::default());
    wire.port.input.extend(vec![b'x'; 1000]);
    wire.serve(&Rowed(0));
    assert_eq!(wire.port.input.len(), 1000 - RECEIVE_MAX);
}

/// The next request ends a reply, but not in the middle of a line.
#[test]
fn line_that_is_begun_is_sent_whole() {
    let mut wire = Wire::new(Port::default());
    take(&mut wire, "C1 1 list", &Rowed(9));
    wire.port.room = 300;
    while wire.reply(&Rowed(9)) == Left::More {}
    take(&mut wire, "C1 2 start a", &Rowed(0));
    wire.port.room = usize::MAX;
    while wire.reply(&Rowed(0)) == Left::More {}
    let said = bodies(&wire.port.output);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[1].starts_with("row 1") && said[2] == "ok rows=0", "{said:?}");
}
