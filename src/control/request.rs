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
    /// Memory for a bundle that comes in pieces; what came before is forgotten.
    Upload {
        /// How many bytes it has.
        bytes: u32,
        /// The CRC32C of all of them.
        crc32c: u32,
    },
    /// A piece of the bundle.
    Put {
        /// Where it goes.
        offset: u32,
        /// What goes there, in base64, not read yet: at least one byte and at most
        /// [`PUT_BYTES_MAX`](super::PUT_BYTES_MAX).
        data: &'a str,
    },
    /// How it stands with the bundle.
    Uploaded,
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
    /// It is made of the bundle that has come, and starts.
    Create,
    /// It gets the images of the bundle that has come, and starts anew if it is on.
    Update {
        /// After how many milliseconds it gets the old ones back, unless it is confirmed.
        confirm_ms: Option<u32>,
    },
    /// It keeps the images that it has got.
    Confirm,
}

/// How `put` is written.
pub const PUT_USAGE: &str = "put OFFSET BASE64, at most 348 bytes";
/// How each verb is written, behind its name.
pub const VERBS: [(&str, &str); 19] = [
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
    ("upload", "upload BYTES CRC32C"),
    ("put", PUT_USAGE),
    ("uploaded", "uploaded"),
    ("create", "create NAME"),
    ("update", "update NAME [confirm_ms=0..4294967295]"),
    ("confirm", "confirm NAME"),
];

impl<'a> Request<'a> {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// There is no such verb, or its arguments are wrong.
    pub fn parse(body: &'a str) -> Result<Self, Refusal> {
        let (verb, rest) = body.split_once(' ').map_or((body, None), |(v, rest)| (v, Some(rest)));
        let (_, usage) = VERBS.iter().find(|(name, _)| *name == verb).ok_or(Refusal::Verb)?;
        let wrong = Refusal::Arguments(usage);
        if verb == "put" {
            // Who reads the long word finds what does not belong there.
            let (offset, data) = rest.and_then(|rest| rest.split_once(' ')).ok_or(wrong)?;
            return Ok(Self::Put { offset: number(offset).ok_or(wrong)?, data });
        }
        let mut words = rest.into_iter().flat_map(|rest| rest.split(' '));
        let request = match verb {
            "hello" => Self::Hello,
            "list" => Self::List,
            "audit" => Self::Audit,
            "uploaded" => Self::Uploaded,
            "upload" => {
                let bytes = words.next().and_then(number).ok_or(wrong)?;
                Self::Upload { bytes, crc32c: words.next().and_then(crc).ok_or(wrong)? }
            }
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
        matches!(self, Self::Change { .. } | Self::Upload { .. })
    }
}

/// Reads an address as it is written: hexadecimal digits in lower case behind `0x`.
fn address(word: &str) -> Option<u64> {
    let digits = word.strip_prefix("0x")?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let reads = digits.bytes().all(is_digit) && (digits == "0" || !digits.starts_with('0'));
    reads.then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Reads a checksum as it is written: 8 hexadecimal digits in lower case.
fn crc(word: &str) -> Option<u32> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let reads = word.len() == 8 && word.bytes().all(is_digit);
    reads.then(|| u32::from_str_radix(word, 16).ok())?
}

/// Reads an argument that may be left out: `None` where what stands there is another.
fn milliseconds(word: Option<&str>, key: &str) -> Option<Option<u32>> {
    let Some(word) = word else { return Some(None) };
    number(word.strip_prefix(key)?).map(Some)
}

impl Action {
    fn parse<'a>(verb: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(match verb {
            "start" => Self::Start,
            "stop" => Self::Stop { deadline_ms: milliseconds(words.next(), "deadline_ms=")? },
            "kill" => Self::Kill,
            "reset" => Self::Reset,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "destroy" => Self::Destroy,
            "create" => Self::Create,
            "update" => Self::Update { confirm_ms: milliseconds(words.next(), "confirm_ms=")? },
            "confirm" => Self::Confirm,
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
            Self::Create => "create",
            Self::Update { .. } => "update",
            Self::Confirm => "confirm",
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
            Self::Create => "no longer there",
            Self::Update { .. } => "neither starting nor stopping",
            Self::Confirm => "on trial after an update",
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
            Self::Upload { bytes, crc32c } => write!(f, "upload {bytes} {crc32c:08x}"),
            Self::Put { offset, data } => write!(f, "put {offset} {data}"),
            Self::Uploaded => f.write_str("uploaded"),
            Self::Change { vm, action } => {
                write!(f, "{} {vm}", action.verb())?;
                match action {
                    Action::Update { confirm_ms: Some(ms) } => write!(f, " confirm_ms={ms}"),
                    Action::Stop { deadline_ms: Some(ms) } => write!(f, " deadline_ms={ms}"),
                    _ => Ok(()),
                }
            }
        }
    }
}
