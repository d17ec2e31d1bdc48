// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control protocol (docs/control.md): lines in, lines out, and nothing of what they do.
//!
//! Shared by EL2, which answers, and the host tool, which asks. It owns what a line looks like, how
//! a damaged one is told from a whole one, and that a request that is sent again is not carried out
//! again. Whoever is asked implements [`Executor`]; it is not known here how. Every byte may be
//! hostile: a line is bounded, and so is the work for it. Nothing here allocates.
#![forbid(unsafe_code)]

pub mod base64;
mod frame;
mod line;
mod refusal;
mod request;
mod session;
#[cfg(test)]
mod tests;

pub use crate::spec::bundle::crc32c;
pub use base64::PUT_BYTES_MAX;
pub use frame::{Frame, Taken};
pub use line::{Direction, Line, Seq, open};
pub use refusal::Refusal;
pub use request::{Action, PUT_USAGE, READ_BYTES_MAX, Request, VERBS};
pub use session::{CrashAt, Executor, ReadAt, Row, Rows, Session, StatsAt};

/// The version of the protocol, the digit behind `C` and `R`.
pub const VERSION: u8 = 1;
/// What starts a line: the record separator, which no guest can send and no keyboard has.
pub const MARK: u8 = 0x1e;
/// The most bytes in a request, from its mark to its line feed.
pub const REQUEST_BYTES_MAX: usize = 512;
/// The most bytes in a line of a reply, from its mark to its line feed: no more than a line of the
/// hypervisor's log, so that both go the same way.
pub const REPLY_BYTES_MAX: usize = 256;
