// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Finds lines among bytes: from a mark to a line feed. It does not know what is in them.
#![forbid(unsafe_code)]

use super::{MARK, REQUEST_BYTES_MAX, Refusal};
use heapless::Vec;

/// The most bytes between the mark and the line feed.
const TEXT_BYTES_MAX: usize = REQUEST_BYTES_MAX - 2;

/// The line that is being received.
#[derive(Debug, Default)]
pub struct Frame {
    bytes: Vec<u8, TEXT_BYTES_MAX>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// No mark has come.
    #[default]
    Outside,
    /// A mark has come, and no line feed.
    Inside,
    /// The line has more bytes than it may have; what follows is passed over.
    TooLong,
    /// Such a line has ended, and no mark has come.
    WasTooLong,
}

/// What became of a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is no part of a line.
    Outside,
    /// It is part of a line.
    Inside,
    /// It ends a line: see [`Frame::line`].
    End,
}

impl Frame {
    /// Takes a byte. A mark starts a line anew wherever it comes: what was cut is left behind.
    pub fn take(&mut self, byte: u8) -> Taken {
        match (self.state, byte) {
            (_, MARK) => {
                self.bytes.clear();
                self.state = State::Inside;
            }
            (State::Outside | State::WasTooLong, _) => return Taken::Outside,
            (State::Inside, b'\n') => {
                self.state = State::Outside;
                return Taken::End;
            }
            (State::TooLong, b'\n') => {
                self.state = State::WasTooLong;
                return Taken::End;
            }
            (State::Inside, _) => {
                if self.bytes.push(byte).is_err() {
                    self.state = State::TooLong;
                }
            }
            (State::TooLong, _) => {}
        }
        Taken::Inside
    }

    /// Returns the line that has ended, without its mark and its end.
    ///
    /// # Errors
    /// It was too long.
    pub fn line(&self) -> Result<&[u8], Refusal> {
        match self.state {
            State::TooLong | State::WasTooLong => Err(Refusal::TooLong),
            _ => Ok(self.bytes.strip_suffix(b"\r").unwrap_or(&self.bytes)),
        }
    }
}
