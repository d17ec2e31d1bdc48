// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests: verbs and their arguments.
#![forbid(unsafe_code)]

use super::Refusal;
use super::line::number;
use core::fmt;

/// The most bytes of memory that one request reads.
pub const READ_BYTES_MAX: u32 = 4096;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Who answers.
    Hello,
    /// Which VMs there are, and what they do.
    List,
    /// What has been counted.
    Stats {
        /// Of this VM alone.
        vm: Option<&'a str>,
    },
    /// What must be the same after a VM's life as before it.
    Audit,
    /// Why a VM has crashed, and where it was.
    Crash {
        /// The VM's name.
        vm: &'a str,
    },
    /// What is in the memory of a VM that is held.
    Read {
        /// The VM's name.
        vm: &'a str,
        /// Where, as the guest sees it.
        at: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// Something for one VM.
    Change {
        /// The VM's name.
        vm: &'a str,
        /// What is to become of it.
        action: Action,
    },
}

/// What is to become of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It starts.
    Start,
    /// It is asked to go off; when the time is up it is turned off.
    Stop {
        /// The time that it has, in milliseconds; the hypervisor's default where it is not said.
        deadline_ms: Option<u32>,
    },
    /// It is turned off at once.
    Kill,
    /// It starts anew, at once.
    Reset,
    /// It stands still.
    Pause,
    /// It goes on.
    Resume,
    /// It is forgotten, and what it had is free.
    Destroy,
}

/// How each verb is written, behind its name.
pub const VERBS: [(&str, &str); 13] = [
    ("hello", "hello"),
    ("list", "list"),
    ("stats", "stats [NAME]"),
    ("audit", "audit"),
    ("crash", "crash NAME"),
    ("read", "read NAME 0xADDRESS 1..4096"),
    ("start", "start NAME"),
    ("stop", "stop NAME [deadline_ms=0..4294967295]"),
    ("kill", "kill NAME"),
    ("reset", "reset NAME"),
    ("pause", "pause NAME"),
    ("resume", "resume NAME"),
    ("destroy", "destroy NAME"),
];

impl<'a> Request<'a> {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// There is no such verb, or its arguments are wrong.
    pub fn parse(body: &'a str) -> Result<Self, Refusal> {
        let mut words = body.split(' ');
        let verb = words.next().unwrap_or_default();
        let (_, usage) = VERBS.iter().find(|(name, _)| *name == verb).ok_or(Refusal::Verb)?;
        let wrong = Refusal::Arguments(usage);
        let request = match verb {
            "hello" => Self::Hello,
            "list" => Self::List,
            "audit" => Self::Audit,
            "stats" => {
                let vm = words.next();
                Self::Stats { vm: if vm == Some("") { return Err(wrong) } else { vm } }
            }
            _ => {
                let vm = words.next().filter(|name| !name.is_empty()).ok_or(wrong)?;
                match verb {
                    "crash" => Self::Crash { vm },
                    "read" => {
                        let at = words.next().and_then(address).ok_or(wrong)?;
                        let bytes = words.next().and_then(number);
                        let bytes = bytes.filter(|n| (1..=READ_BYTES_MAX).contains(n));
                        Self::Read { vm, at, bytes: bytes.ok_or(wrong)? }
                    }
                    _ => Self::Change { vm, action: Action::parse(verb, &mut words).ok_or(wrong)? },
                }
            }
        };
        if words.next().is_some() { Err(wrong) } else { Ok(request) }
    }

    /// Returns whether carrying it out twice is not the same as once.
    #[must_use]
    pub const fn has_effect(&self) -> bool {
        matches!(self, Self::Change { .. })
    }
}

/// Reads an address as it is written: hexadecimal digits in lower case behind `0x`.
fn address(word: &str) -> Option<u64> {
    let digits = word.strip_prefix("0x")?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let reads = digits.bytes().all(is_digit) && (digits == "0" || !digits.starts_with('0'));
    reads.then(|| u64::from_str_radix(digits, 16).ok())?
}

impl Action {
    fn parse<'a>(verb: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(match verb {
            "start" => Self::Start,
            "stop" => {
                let deadline = words.next().map(|word| number(word.strip_prefix("deadline_ms=")?));
                Self::Stop { deadline_ms: deadline.map_or(Some(None), |ms| ms.map(Some))? }
            }
            "kill" => Self::Kill,
            "reset" => Self::Reset,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "destroy" => Self::Destroy,
            _ => return None,
        })
    }

    /// Returns the verb.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Kill => "kill",
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
        }
    }
}

impl Action {
    /// Returns in which states a VM can be for this.
    pub(super) const fn fits(self) -> &'static str {
        match self {
            Self::Start => "off or crashed",
            Self::Stop { .. } | Self::Pause => "running",
            Self::Kill | Self::Reset => "running, paused or crashed",
            Self::Resume => "paused",
            Self::Destroy => "off",
        }
    }
}

/// Writes the body of the request.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello => f.write_str("hello"),
            Self::List => f.write_str("list"),
            Self::Stats { vm: None } => f.write_str("stats"),
            Self::Stats { vm: Some(vm) } => write!(f, "stats {vm}"),
            Self::Audit => f.write_str("audit"),
            Self::Crash { vm } => write!(f, "crash {vm}"),
            Self::Read { vm, at, bytes } => write!(f, "read {vm} {at:#x} {bytes}"),
            Self::Change { vm, action } => {
                write!(f, "{} {vm}", action.verb())?;
                match action {
                    Action::Stop { deadline_ms: Some(ms) } => write!(f, " deadline_ms={ms}"),
                    _ => Ok(()),
                }
            }
        }
    }
}
