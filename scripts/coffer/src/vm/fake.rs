// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A line to a machine that is none: EL2's own side of the protocol, and noise between.
#![forbid(unsafe_code)]

use super::port::Port;
use cofferdam::control::{Direction, Executor, Line, Row, Session};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Sees each line, by its place among all, with its direction, and returns what arrives.
pub(super) trait Noise: FnMut(usize, Direction, Vec<u8>) -> Vec<u8> {}

impl<F: FnMut(usize, Direction, Vec<u8>) -> Vec<u8>> Noise for F {}

/// A line that changes what goes over it.
pub(super) struct Wire<M> {
    session: Session,
    machine: Rc<M>,
    noise: Box<dyn Noise>,
    lines: usize,
    back: Vec<u8>,
}

impl<M> Wire<M> {
    pub(super) fn new(machine: &Rc<M>, noise: impl Noise + 'static) -> Self {
        let (machine, noise) = (Rc::clone(machine), Box::new(noise));
        Self { session: Session::default(), machine, noise, lines: 0, back: Vec::new() }
    }
}

impl<M: Executor> Port for Wire<M> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes = (self.noise)(self.lines, Direction::Request, bytes.to_vec());
        self.lines += 1;
        for byte in bytes {
            self.session.take(byte, &*self.machine);
            // Taken out as they come, as on a line that is fast enough.
            let mut line = Line::default();
            while self.session.has_reply() {
                if self.session.next_line(&mut line, &*self.machine) != Row::Written {
                    continue;
                }
                let bytes = format!("\x1e{}\r\n", line.as_str()).into_bytes();
                self.back.extend((self.noise)(self.lines, Direction::Reply, bytes));
                self.lines += 1;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        if self.back.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(std::mem::take(&mut self.back))
    }
}
