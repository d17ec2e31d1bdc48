// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What one source has to say: its bytes, and how many lines they make. It does not know its name.
#![forbid(unsafe_code)]

use super::filter::{Filter, Verdict};
use super::ring::Ring;
use super::{Counters, Push};
use crate::heap::NoMemory;
use core::fmt::{self, Write};

/// Bytes that wait for the wire.
#[derive(Debug)]
pub(super) struct Source {
    ring: Ring,
    /// Newlines in the ring.
    lines: usize,
    /// When the unfinished line was first seen with its last byte.
    partial_since: Option<u64>,
    /// The bytes that were added before this run.
    before: u64,
    pub(super) counters: Counters,
}

impl Source {
    /// Makes a source that keeps `size` bytes. This allocates.
    pub(super) fn new(size: usize) -> Result<Self, NoMemory> {
        Ok(Self { ring: Ring::new(size)?, ..Self::empty() })
    }
    /// Makes one that keeps nothing.
    pub(super) fn empty() -> Self {
        let counters = Counters::default();
        Self { ring: Ring::empty(), lines: 0, partial_since: None, before: 0, counters }
    }
    pub(super) fn size(&self) -> usize {
        self.ring.size()
    }
    pub(super) fn len(&self) -> usize {
        self.ring.len()
    }
    pub(super) fn room(&self) -> usize {
        self.ring.room()
    }
    pub(super) fn has_line(&self) -> bool {
        self.lines > 0
    }
    pub(super) fn peek(&self) -> Option<u8> {
        self.ring.peek(0)
    }

    /// Notes that another run begins.
    pub(super) fn begin_run(&mut self) {
        self.before = self.counters.bytes;
    }

    /// Copies the last bytes that were added in this run, as many as there still are, and returns
    /// how many.
    pub(super) fn tail(&self, buffer: &mut [u8]) -> usize {
        let added = self.counters.bytes.saturating_sub(self.before);
        let added = usize::try_from(added).unwrap_or(usize::MAX);
        let count = buffer.len().min(added).min(self.ring.size());
        if let Some(part) = buffer.get_mut(..count) {
            self.ring.copy_newest(part);
        }
        count
    }

    /// Adds a byte, or counts that it is lost.
    pub(super) fn push(&mut self, byte: u8) -> Push {
        if !self.ring.push(byte) {
            count(&mut self.counters.dropped, 1);
            return Push::Full;
        }
        count(&mut self.counters.bytes, 1);
        self.lines = self.lines.saturating_add((byte == b'\n').into());
        self.partial_since = None;
        Push::Accepted
    }

    /// Makes room for so many bytes at the price of the oldest, which count as lost.
    pub(super) fn make_room(&mut self, bytes: usize) {
        while self.room() < bytes && self.pop().is_some() {
            count(&mut self.counters.dropped, 1);
        }
    }

    /// Adds a line without control characters, whole or not at all. A loss is not counted here.
    pub(super) fn push_line(&mut self, line: fmt::Arguments<'_>) -> Push {
        let before = self.ring.len();
        let mut writer = Writer { ring: &mut self.ring, filter: Filter::default() };
        if writer.write_fmt(line).is_err() || !self.ring.push(b'\n') {
            self.ring.truncate(before);
            return Push::Full;
        }
        self.lines = self.lines.saturating_add(1);
        count(&mut self.counters.bytes, self.ring.len().saturating_sub(before));
        Push::Accepted
    }

    /// Takes the oldest byte.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.ring.pop()?;
        self.lines = self.lines.saturating_sub((byte == b'\n').into());
        self.partial_since = None;
        Some(byte)
    }

    /// Returns the oldest bytes, as many as lie together.
    pub(super) fn front(&self) -> &[u8] {
        self.ring.front()
    }
    /// Passes over the oldest bytes, none of which is a newline.
    pub(super) fn skip_text(&mut self, count: usize) {
        self.ring.skip(count);
        self.partial_since = None;
    }

    /// Returns when an unfinished line has waited for `after_ticks`; `None` when there is none.
    pub(super) fn partial_due(&mut self, now_ticks: u64, after_ticks: u64) -> Option<u64> {
        if self.ring.is_empty() || self.lines > 0 {
            return None;
        }
        Some(self.partial_since.get_or_insert(now_ticks).saturating_add(after_ticks))
    }
}

/// Counts so many more; a counter that is full stays so.
pub(super) fn count(counter: &mut u64, more: usize) {
    *counter = counter.saturating_add(more as u64);
}

/// Writes text of a line into a ring.
struct Writer<'a> {
    ring: &'a mut Ring,
    filter: Filter,
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let verdict = self.filter.next(byte);
            let byte = if byte == b'\n' { b' ' } else { byte };
            if verdict == Verdict::Keep && !self.ring.push(byte) {
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}
