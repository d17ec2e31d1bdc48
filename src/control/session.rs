// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One port's side of the conversation: bytes of requests in, lines of replies out.
//!
//! A request that has come is carried out when the caller has time for it, at the latest with the
//! next byte; its reply is written line by line, when the caller has room. One request is answered
//! at a time: the next one ends the reply before it. A
//! reply can be lost, so a request that changes something can come twice: the second time it gets
//! the answer of the first.
#![forbid(unsafe_code)]

use super::line::{Direction, open};
use super::{Frame, Line, Refusal, Request, Seq, Taken};
use core::fmt::{self, Write};

/// Whoever is asked.
pub trait Executor {
    /// Carries a request out and returns the rows that tell of it: in bounded time, what takes
    /// longer goes on by itself.
    ///
    /// # Errors
    /// Says why not.
    fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal>;

    /// Writes the next of the rows, as ` key=value` for each of its fields, and moves on: in
    /// bounded time, also where many places have nothing to tell.
    fn next_row(&self, rows: &mut Rows, line: &mut Line) -> Row;
}

/// Rows that are still to be written: what they are about, and which is next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// No more.
    None,
    /// The one about the hypervisor.
    Hello,
    /// The one about the bundle that comes.
    Uploaded,
    /// One for each VM: the first place that was not looked at.
    Vms(u8),
    /// What has been counted of some VMs.
    Stats(StatsAt),
    /// What must be the same after a VM's life as before it: the row's number.
    Audit(u16),
    /// What is kept of a crash.
    Crash(CrashAt),
    /// What is in the memory of the VM at this place.
    Memory(u8, ReadAt),
}

/// Where among the rows of what is kept of a crash one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashAt {
    /// The VM's place.
    pub place: u8,
    /// The row's number.
    pub row: u16,
    /// When it has crashed, in ticks: later it may have crashed again.
    pub at_ticks: u64,
    /// Of how many vCPUs it is known where they were.
    pub vcpus: usize,
}

/// What of a VM's memory is still to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadAt {
    /// The address, as the guest sees it.
    pub at: u64,
    /// How many bytes.
    pub bytes: u32,
}

/// Where among the rows of what is counted one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatsAt {
    /// The VM's place.
    pub place: u8,
    /// The place behind the last VM that is asked for.
    pub end: u8,
    /// The vCPU.
    pub vcpu: u8,
    /// What of it.
    pub part: u8,
}

/// Whether there was a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    /// There was, and it is written.
    Written,
    /// There was, and it does not fit the line.
    TooLong,
    /// There was none at this place; others follow.
    Passed,
    /// It would be of something else than the rows before it.
    Changed,
    /// None is left.
    End,
}

impl From<fmt::Result> for Row {
    fn from(written: fmt::Result) -> Self {
        written.map_or(Self::TooLong, |()| Self::Written)
    }
}

/// One port's side of the conversation.
#[derive(Debug, Default)]
pub struct Session {
    frame: Frame,
    /// Whether a line has ended and nobody has looked at it.
    is_asked: bool,
    reply: Option<Reply>,
    last: Option<Last>,
}

/// What is still to be said.
#[derive(Clone, Copy, Debug)]
struct Reply {
    seq: Seq,
    result: Result<Rows, Refusal>,
    /// The rows that were written.
    count: u32,
}

/// The last request that changed something, and its answer.
#[derive(Clone, Copy, Debug)]
struct Last {
    seq: u32,
    /// The checksum in the line: another client may have come upon the same number.
    crc: [u8; 8],
    result: Result<Rows, Refusal>,
}

impl Session {
    /// Takes a byte; what the last one of a request asks for is left to [`Self::next_line`].
    pub fn take(&mut self, byte: u8, executor: &impl Executor) -> Taken {
        if self.is_asked {
            self.answer(executor);
        }
        let taken = self.frame.take(byte);
        self.is_asked = taken == Taken::End;
        taken
    }

    /// Returns whether a request is to be carried out.
    #[must_use]
    pub const fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// Returns whether a request is to be carried out, or a reply has lines left.
    #[must_use]
    pub const fn has_reply(&self) -> bool {
        self.is_asked || self.reply.is_some()
    }

    /// Has the request carried out that has come. One that does not read has no number that can be
    /// trusted.
    fn answer(&mut self, executor: &impl Executor) {
        let opened = self.frame.line().and_then(|line| Ok((line, open(Direction::Request, line)?)));
        let (seq, result) = match opened {
            Ok((line, (seq, body))) => {
                (seq, carry_out(&mut self.last, (seq, line, body), executor))
            }
            Err(refusal) => (None, Err(refusal)),
        };
        self.reply = Some(Reply { seq, result, count: 0 });
        self.is_asked = false;
    }

    /// Carries out the request that has come, or writes the next line of the reply, where one is
    /// left. Nothing is written with the former, or where a place was passed over.
    pub fn next_line(&mut self, line: &mut Line, executor: &impl Executor) -> Row {
        if self.is_asked {
            self.answer(executor);
            return Row::Passed;
        }
        let Some(reply) = &mut self.reply else { return Row::End };
        line.begin(reply.seq);
        if let Ok(rows) = &mut reply.result {
            let written = match write!(line, "row {}", reply.count) {
                Ok(()) => executor.next_row(rows, line),
                Err(_) => Row::TooLong,
            };
            match written {
                Row::Written => {
                    reply.count = reply.count.saturating_add(1);
                    line.seal();
                    return Row::Written;
                }
                Row::Passed => return Row::Passed,
                Row::TooLong => reply.result = Err(Refusal::Row),
                Row::Changed => reply.result = Err(Refusal::Changed),
                Row::End => {}
            }
            line.begin(reply.seq);
        }
        // The longest sentence fits: see the tests.
        let _ = match reply.result {
            Ok(_) => write!(line, "ok rows={}", reply.count),
            Err(refusal) => write!(line, "error code={} text={refusal}", refusal.code()),
        };
        line.seal();
        self.reply = None;
        Row::Written
    }
}

/// Carries a request out, unless it is the last that changed something, which has its answer.
fn carry_out(
    last: &mut Option<Last>,
    (seq, line, body): (Seq, &[u8], &str),
    executor: &impl Executor,
) -> Result<Rows, Refusal> {
    let request = Request::parse(body)?;
    let Some(seq) = seq.filter(|_| request.has_effect()) else {
        return executor.carry_out(request);
    };
    let crc = line.last_chunk().copied().unwrap_or_default();
    if let Some(last) = last.as_ref().filter(|last| (last.seq, last.crc) == (seq, crc)) {
        return last.result;
    }
    let result = executor.carry_out(request);
    *last = Some(Last { seq, crc, result });
    result
}
