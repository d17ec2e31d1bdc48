// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The terminal as a serial line: raw while a [`RawMode`] lives, and what the keys mean.
//!
//! All keys go to the machine, where the hypervisor takes Ctrl-] for itself. One prefix stays here,
//! Ctrl-a as in QEMU's own multiplexer, so that a machine that hangs can be left.
#![forbid(unsafe_code)]

use crate::expect::wire::HYPERVISOR_MARK;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io;

/// The key that starts a command to coffer, Ctrl-a.
pub const PREFIX: u8 = 0x01;
/// What is printed before the machine starts.
pub const HELP: &str =
    "Ctrl-] moves to the next console, Ctrl-a x quits, Ctrl-a Ctrl-a types Ctrl-a";

/// Keeps the terminal on standard input raw; dropping it gives the terminal back as it was.
#[derive(Debug)]
pub struct RawMode(Termios);

impl RawMode {
    /// Makes the terminal raw, or returns `None` where standard input is not a terminal. Output
    /// processing stays on: a bare line feed from the machine starts a new line.
    ///
    /// # Errors
    /// What the terminal driver says.
    pub fn enter() -> io::Result<Option<Self>> {
        let before = match tcgetattr(io::stdin()) {
            Ok(before) => before,
            Err(Errno::NOTTY) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes = before.output_modes;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nobody is left to whom a failure could be told.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Removes the marks of hypervisor lines, which mean nothing to a person.
#[must_use]
pub fn without_marks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|&byte| byte != HYPERVISOR_MARK).collect()
}

/// What a person's keys ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Typed {
    /// These bytes for the machine.
    Bytes(Vec<u8>),
    /// The end of the machine.
    Quit,
}

/// Finds the commands to coffer among the keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    has_prefix: bool,
}

impl Keys {
    /// Takes `bytes` from the keyboard; what follows [`Typed::Quit`] is lost.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.has_prefix), byte) {
                (false, PREFIX) => self.has_prefix = true,
                (true, b'x' | b'X') => return Typed::Quit,
                // Any other key behind the prefix: the person meant it for the machine.
                (true, PREFIX) | (false, _) => typed.push(byte),
                (true, _) => typed.extend([PREFIX, byte]),
            }
        }
        Typed::Bytes(typed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> Vec<Typed> {
        let mut keys = Keys::default();
        pieces.iter().map(|bytes| keys.feed(bytes)).collect()
    }

    #[test]
    fn the_focus_key_and_ctrl_c_go_to_the_machine() {
        assert_eq!(typed(&[b"a\x1d\x03"]), [Typed::Bytes(b"a\x1d\x03".to_vec())]);
    }

    #[test]
    fn ctrl_a_x_quits_also_in_two_pieces() {
        assert_eq!(typed(&[b"ls\x01", b"x"]), [Typed::Bytes(b"ls".to_vec()), Typed::Quit]);
    }

    #[test]
    fn ctrl_a_can_be_typed() {
        assert_eq!(typed(&[b"\x01\x01x"]), [Typed::Bytes(b"\x01x".to_vec())]);
        assert_eq!(typed(&[b"\x01e"]), [Typed::Bytes(b"\x01e".to_vec())]);
    }

    #[test]
    fn marks_are_removed() {
        assert_eq!(without_marks(b"\x1e[01] x\na| y"), b"[01] x\na| y");
    }
}
