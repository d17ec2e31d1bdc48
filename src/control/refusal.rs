// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Why a request is not carried out: a code for programs, and a sentence that says what to write.
#![forbid(unsafe_code)]

use super::Action;
use core::fmt;

/// Why a request is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The checksum is not that of the line.
    Damaged,
    /// The line does not read.
    Malformed,
    /// The line has too many bytes.
    TooLong,
    /// The line is of another version.
    Version,
    /// There is no such verb.
    Verb,
    /// The verb's arguments are wrong: what to write.
    Arguments(&'static str),
    /// There is no VM of this name.
    NoVm,
    /// The VM is not in a state for this: which it is in.
    State(Action, &'static str),
    /// The VM has not crashed.
    NoCrash,
    /// The VM is not held: what state it is in.
    NotHeld(&'static str),
    /// That is not the VM's memory.
    NoMemory,
    /// A bundle is looked at just now.
    Busy,
    /// There is no bundle that this could be a piece of, or that this could be about.
    NoUpload,
    /// There is no memory for that many bytes.
    TooLarge,
    /// No core is free to do it.
    NoCore,
    /// This hypervisor cannot do it.
    NotSupported,
    /// What the rows are about is there no more, or has become another.
    Changed,
    /// A row of the reply did not fit a line, which is a mistake of the hypervisor's.
    Row,
}

impl Refusal {
    /// Returns the code, which keeps its meaning for ever.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Malformed => "malformed",
            Self::TooLong => "too-long",
            Self::Version => "version",
            Self::Verb => "verb",
            Self::Arguments(_) => "arguments",
            Self::NoVm => "no-vm",
            Self::State(..) => "state",
            Self::NoCrash => "no-crash",
            Self::NotHeld(_) => "not-held",
            Self::NoMemory => "no-memory",
            Self::Busy => "busy",
            Self::NoUpload => "no-upload",
            Self::TooLarge => "too-large",
            Self::NoCore => "no-core",
            Self::NotSupported => "not-supported",
            Self::Changed => "changed",
            Self::Row => "row",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Damaged => "the checksum is wrong: send it again",
            Self::Malformed => "write: C1 SEQ VERB ARGUMENTS*CRC32C",
            Self::TooLong => "a request has at most 512 bytes",
            Self::Version => "this is version 1: write C1",
            Self::Verb => {
                "no such verb: write hello, list, stats, audit, crash, read, start, stop, kill, \
                 reset, pause, resume, destroy, upload, put, uploaded, create, update or confirm"
            }
            Self::Arguments(write) => {
                f.write_str("write: ")?;
                write
            }
            Self::NoVm => "no VM of this name: write list",
            Self::State(action, state) => {
                let (verb, fits) = (action.verb(), action.fits());
                return write!(f, "the VM is {state}; {verb} is for one that is {fits}");
            }
            Self::NoCrash => "the VM has not crashed",
            Self::NotHeld(state) => {
                return write!(f, "the VM is {state}; write pause, or on_crash = \"preserve\"");
            }
            Self::NoMemory => "that is not its memory: write crash for where that is",
            Self::Busy => "an upload is being looked at: write uploaded",
            Self::NoUpload => "no upload has that: write upload and put all of it first",
            Self::TooLarge => "there is no free memory for that",
            Self::NoCore => "no core is free: destroy a VM that is off",
            Self::NotSupported => "not supported",
            Self::Changed => "the VM has crashed again or is gone: ask again",
            Self::Row => "a row did not fit",
        };
        f.write_str(text)
    }
}
