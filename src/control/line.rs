// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What stands in every line: direction and version, the sequence number, a body, the checksum.
//! It does not know what bodies mean.
#![forbid(unsafe_code)]

use super::{REPLY_BYTES_MAX, Refusal, VERSION, crc32c};
use core::fmt::{self, Write};
use heapless::String;

/// The bytes of `*` and the checksum.
const SEAL_BYTES: usize = 9;
/// The most bytes of a reply between the mark and the carriage return in front of the line feed.
const TEXT_BYTES_MAX: usize = REPLY_BYTES_MAX - 3;

/// A sequence number; `None` is written `-`, for a request whose own cannot be trusted.
pub type Seq = Option<u32>;

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The client: `C1`.
    Request,
    /// The hypervisor: `R1`.
    Reply,
}

impl Direction {
    const fn letter(self) -> char {
        match self {
            Self::Request => 'C',
            Self::Reply => 'R',
        }
    }
}

/// A line of a reply, without mark and line feed.
#[derive(Debug, Default)]
pub struct Line(String<TEXT_BYTES_MAX>);

impl Line {
    /// Begins a line anew.
    pub fn begin(&mut self, seq: Seq) {
        self.0.clear();
        // It has room for far more.
        let _ = match seq {
            Some(seq) => write!(self, "R{VERSION} {seq} "),
            None => write!(self, "R{VERSION} - "),
        };
    }

    /// Ends the line with its checksum. There is room: see [`Self::write_str`].
    pub fn seal(&mut self) {
        let crc = crc32c(self.0.as_bytes());
        let _ = write!(self.0, "*{crc:08x}");
    }

    /// Adds bytes, two digits for each.
    ///
    /// # Errors
    /// They do not fit.
    pub fn write_hex(&mut self, bytes: &[u8]) -> fmt::Result {
        let digit = |n: u8| char::from(if n < 10 { b'0' + n } else { b'a' - 10 + n });
        bytes.iter().try_for_each(|byte| {
            self.write_char(digit(byte >> 4))?;
            self.write_char(digit(byte & 0xf))
        })
    }

    /// Returns the line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Adds text; what would leave no room for the checksum is an error. What is not printable becomes
/// a question mark, so that nothing can end a line or begin one.
impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_printable = |byte: u8| matches!(byte, b' '..=b'~');
        let room = (TEXT_BYTES_MAX - SEAL_BYTES).saturating_sub(self.0.len());
        if text.len() <= room && text.bytes().all(is_printable) {
            return self.0.push_str(text).map_err(|_| fmt::Error);
        }
        for (n, byte) in text.bytes().enumerate() {
            if n >= room {
                return Err(fmt::Error);
            }
            let shown = if is_printable(byte) { char::from(byte) } else { '?' };
            self.0.push(shown).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// Reads what stands in every line, given without its mark and its end. Returns the sequence number
/// and the body.
///
/// # Errors
/// The line is of another version, is not what was sent, or does not read.
pub fn open(direction: Direction, line: &[u8]) -> Result<(Seq, &str), Refusal> {
    let head = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    let version = match head {
        [letter, version @ ..] if char::from(*letter) == direction.letter() => version,
        _ => return Err(Refusal::Malformed),
    };
    if version.is_empty() || !version.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed);
    }
    if version != [b'0' + VERSION] {
        return Err(Refusal::Version);
    }
    let text = unseal(line).ok_or(Refusal::Damaged)?;
    let is_printable = |byte: &u8| matches!(byte, b' '..=b'~');
    let text =
        core::str::from_utf8(text).ok().filter(|text| text.bytes().all(|b| is_printable(&b)));
    let words = text.ok_or(Refusal::Malformed)?.split_once(' ');
    let (seq, body) = words.and_then(|(_, rest)| rest.split_once(' ')).ok_or(Refusal::Malformed)?;
    match seq {
        "-" if direction == Direction::Reply => Ok((None, body)),
        _ => Ok((Some(number(seq).ok_or(Refusal::Malformed)?), body)),
    }
}

/// Returns what stands before the checksum, where that is right.
fn unseal(line: &[u8]) -> Option<&[u8]> {
    let (text, seal) = line.split_at_checked(line.len().checked_sub(SEAL_BYTES)?)?;
    let stated = seal.strip_prefix(b"*")?.iter().try_fold(0u32, |crc, digit| {
        // As it is written: in lower case.
        let digit = char::from(*digit);
        let digit = if digit.is_ascii_uppercase() { None } else { digit.to_digit(16) }?;
        Some(crc << 4 | digit)
    })?;
    (crc32c(text) == stated).then_some(text)
}

/// Reads a number as it is written: decimal, no sign, no leading zero.
pub(super) fn number(word: &str) -> Option<u32> {
    let is_plain = word == "0" || word.bytes().next().is_some_and(|b| matches!(b, b'1'..=b'9'));
    is_plain.then(|| word.parse().ok())?
}
