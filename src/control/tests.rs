// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whole lines are answered, and whatever else comes is answered or passed over, and does nothing.

use super::*;
use core::cell::RefCell;
use core::fmt::Write as _;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// Notes what it is asked, and has two VMs: "a", and one whose row does not fit a line.
#[derive(Default)]
struct Fake {
    asked: RefCell<Vec<String>>,
}

impl Executor for Fake {
    fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal> {
        self.asked.borrow_mut().push(request.to_string());
        match request {
            Request::Hello => Ok(Rows::Hello),
            Request::List => Ok(Rows::Vms(0)),
            Request::Crash { .. } => {
                Ok(Rows::Crash(CrashAt { place: 0, row: 0, at_ticks: 7, vcpus: 1 }))
            }
            Request::Audit
            | Request::Stats { .. }
            | Request::Read { .. }
            | Request::Upload { .. }
            | Request::Put { .. }
            | Request::Uploaded => Ok(Rows::None),
            Request::Change { vm: "a", .. } => Ok(Rows::None),
            Request::Change { .. } => Err(Refusal::NoVm),
        }
    }

    fn next_row(&self, rows: &mut Rows, line: &mut Line) -> Row {
        let (text, rest) = match *rows {
            Rows::Hello => ("x".repeat(300), Rows::None),
            // There is another one behind the first row.
            Rows::Crash(at @ CrashAt { row: 0, .. }) => {
                ("first".into(), Rows::Crash(CrashAt { row: 1, ..at }))
            }
            Rows::Crash(_) => return Row::Changed,
            Rows::Vms(next @ 0..2) => (format!("n{}", next + 1), Rows::Vms(next + 1)),
            _ => return Row::End,
        };
        *rows = rest;
        if write!(line, " name={text}").is_ok() { Row::Written } else { Row::TooLong }
    }
}

/// A session with whom it asks.
#[derive(Default)]
struct Bed {
    session: Session,
    fake: Fake,
}

impl Bed {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.session.take(*byte, &self.fake) == Taken::End {
                let row = self.session.next_line(&mut Line::default(), &self.fake);
                assert_eq!(row, Row::Passed, "it is carried out");
            }
        }
    }

    /// Returns the bodies of the reply's lines, all of which bear this number.
    fn reply(&mut self, seq: Seq) -> Vec<String> {
        let mut bodies = Vec::new();
        let mut line = Line::default();
        while self.session.next_line(&mut line, &self.fake) == Row::Written {
            assert!(line.as_str().len() + 3 <= REPLY_BYTES_MAX, "{line:?}");
            let (own, body) = open(Direction::Reply, line.as_str().as_bytes()).unwrap();
            assert_eq!(own, seq, "{line:?}");
            bodies.push(body.to_string());
        }
        bodies
    }

    fn asked(&self) -> Vec<String> {
        self.fake.asked.take()
    }
}

/// Writes a line with its mark, checksum and end.
fn sealed(text: &str) -> Vec<u8> {
    format!("\x1e{text}*{:08x}\n", crc32c(text.as_bytes())).into_bytes()
}

fn error(refusal: Refusal) -> Vec<String> {
    vec![format!("error code={} text={refusal}", refusal.code())]
}

/// What nobody has had time for is done before the next one comes.
#[test]
fn no_request_is_lost_to_the_next() {
    let mut bed = Bed::default();
    for byte in [sealed("C1 1 start a"), sealed("C1 2 list")].concat() {
        bed.session.take(byte, &bed.fake);
    }
    assert_eq!(bed.asked(), ["start a"]);
    assert!(bed.session.has_reply());
    assert_eq!(bed.session.next_line(&mut Line::default(), &bed.fake), Row::Passed);
    assert_eq!(bed.asked(), ["list"]);
    assert_eq!(bed.reply(Some(2)).len(), 3);
}

#[test]
fn rows_come_one_by_one_and_then_their_number() {
    let mut bed = Bed::default();
    bed.feed(&sealed("C1 7 list"));
    assert_eq!(bed.reply(Some(7)), ["row 0 name=n1", "row 1 name=n2", "ok rows=2"]);
    assert_eq!(bed.reply(Some(7)), [""; 0]);
    assert_eq!(bed.asked(), ["list"]);
}

/// What docs/control.md shows.
#[test]
fn line_is_as_documented() {
    assert_eq!(sealed("C1 1 list"), b"\x1eC1 1 list*4891464e\n");
}

#[test]
fn request_may_end_as_terminals_end_lines() {
    let mut bed = Bed::default();
    let mut line = sealed("C1 4294967295 start a");
    line.insert(line.len() - 1, b'\r');
    bed.feed(&line);
    assert_eq!(bed.reply(Some(u32::MAX)), ["ok rows=0"]);
}

#[test]
fn rows_that_would_be_of_something_else_are_an_error() {
    let mut bed = Bed::default();
    bed.feed(&sealed("C1 3 crash a"));
    let mut expected = vec![String::from("row 0 name=first")];
    expected.extend(error(Refusal::Changed));
    assert_eq!(bed.reply(Some(3)), expected);
}

#[test]
fn row_that_does_not_fit_is_an_error_of_its_own() {
    let mut bed = Bed::default();
    bed.feed(&sealed("C1 0 hello"));
    assert_eq!(bed.reply(Some(0)), error(Refusal::Row));
}

#[test]
fn what_does_not_read_is_refused_in_words() {
    let usage = |verb| Refusal::Arguments(VERBS.iter().find(|(name, _)| *name == verb).unwrap().1);
    for (text, seq, refusal) in [
        ("C2 1 list", None, Refusal::Version),
        ("C12 1 list", None, Refusal::Version),
        ("R1 1 list", None, Refusal::Malformed),
        ("C1", None, Refusal::Malformed),
        ("C1 1", None, Refusal::Malformed),
        ("C1  list", None, Refusal::Malformed),
        ("C1 - list", None, Refusal::Malformed),
        ("C1 01 list", None, Refusal::Malformed),
        ("C1 +1 list", None, Refusal::Malformed),
        ("C1 4294967296 list", None, Refusal::Malformed),
        ("C1 1 list\t", None, Refusal::Malformed),
        ("C1 1 l\u{ef}st", None, Refusal::Malformed),
        ("C1 1 ", Some(1), Refusal::Verb),
        ("C1 1 List", Some(1), Refusal::Verb),
        ("C1 1 list a", Some(1), usage("list")),
        ("C1 1 list ", Some(1), usage("list")),
        ("C1 1 hello a", Some(1), usage("hello")),
        ("C1 1 start", Some(1), usage("start")),
        ("C1 1 start ", Some(1), usage("start")),
        ("C1 1 start  a", Some(1), usage("start")),
        ("C1 1 start a b", Some(1), usage("start")),
        ("C1 1 start b", Some(1), Refusal::NoVm),
        ("C1 1 stop a 5", Some(1), usage("stop")),
        ("C1 1 stop a deadline_ms=", Some(1), usage("stop")),
        ("C1 1 stop a deadline_ms=4294967296", Some(1), usage("stop")),
        ("C1 1 stop a deadline_ms=1 deadline_ms=1", Some(1), usage("stop")),
    ] {
        let mut bed = Bed::default();
        bed.feed(&sealed(text));
        assert_eq!(bed.reply(seq), error(refusal), "{text}");
        let asked = bed.asked();
        assert!(asked.is_empty() || refusal == Refusal::NoVm, "{text}: {asked:?}");
    }
}

#[test]
fn lines_of_any_length_are_bounded() {
    // Mark, line feed and what else a line has.
    let longest = REQUEST_BYTES_MAX - "\x1eC1 1 start *12345678\n".len();
    for (length, refusal) in [(longest, Refusal::NoVm), (longest + 1, Refusal::TooLong)] {
        let line = sealed(&format!("C1 1 start {}", "a".repeat(length)));
        assert_eq!(line.len() <= REQUEST_BYTES_MAX, refusal == Refusal::NoVm);
        let mut bed = Bed::default();
        bed.feed(&line);
        assert_eq!(bed.reply((refusal == Refusal::NoVm).then_some(1)), error(refusal));
    }
    let mut bed = Bed::default();
    bed.feed(b"\x1e");
    bed.feed(&vec![b'x'; 1 << 20]);
    bed.feed(&sealed("C1 1 list"));
    assert_eq!(bed.reply(Some(1)).len(), 3, "after a line that never ended");
}

#[test]
fn refusals_fit_a_line_and_have_codes_of_their_own() {
    let mut refusals = vec![
        Refusal::Damaged,
        Refusal::Malformed,
        Refusal::TooLong,
        Refusal::Version,
        Refusal::Verb,
        Refusal::NoVm,
        Refusal::State(Action::Kill, "off"),
        Refusal::NoCrash,
        Refusal::NotHeld("running"),
        Refusal::NoMemory,
        Refusal::Busy,
        Refusal::NoUpload,
        Refusal::TooLarge,
        Refusal::NoCore,
        Refusal::NotSupported,
        Refusal::Changed,
        Refusal::Row,
    ];
    let codes: std::collections::BTreeSet<_> = refusals.iter().map(|r| r.code()).collect();
    assert_eq!(codes.len(), refusals.len());
    refusals.extend(VERBS.iter().map(|(_, usage)| Refusal::Arguments(usage)));
    for refusal in refusals {
        let mut line = Line::default();
        line.begin(Some(u32::MAX));
        write!(line, "error code={} text={refusal}", refusal.code()).unwrap();
        line.seal();
        let (_, body) = open(Direction::Reply, line.as_str().as_bytes()).unwrap();
        assert!(body.ends_with(&refusal.to_string()), "{body}");
    }
}

#[test]
fn every_verb_is_as_its_usage_says() {
    for (verb, usage) in VERBS {
        let filled = usage
            .replace("NAME", "a")
            .replace(" [deadline_ms=0..4294967295]", "")
            .replace(" [confirm_ms=0..4294967295]", "")
            .replace("BYTES CRC32C", "4294967295 00c0ffee")
            .replace("OFFSET BASE64, at most 348 bytes", "4294967295 Zg==")
            .replace("[a]", "a")
            .replace("0xADDRESS 1..4096", "0x40000000 4096");
        let request = Request::parse(&filled).unwrap();
        assert_eq!(request.to_string(), filled);
        assert!(filled.starts_with(verb) && Refusal::Verb.to_string().contains(verb));
    }
}

#[test]
fn what_is_sent_again_is_not_carried_out_again() {
    let mut bed = Bed::default();
    for _ in 0..3 {
        bed.feed(&sealed("C1 9 kill a"));
        assert_eq!(bed.reply(Some(9)), ["ok rows=0"]);
        bed.feed(&sealed("C1 9 list"));
        bed.feed(&sealed("C1 9 kill"));
    }
    assert_eq!(bed.asked(), ["kill a", "list", "list", "list"]);
    // Another number, another request, and again the first: that is no longer the last.
    for (text, answer) in [("10 kill a", "ok"), ("10 kill b", "error"), ("9 kill a", "ok")] {
        for _ in 0..2 {
            bed.feed(&sealed(&format!("C1 {text}")));
            let seq = text.split(' ').next().unwrap().parse().ok();
            assert!(bed.reply(seq).concat().starts_with(answer), "{text}");
        }
    }
    assert_eq!(bed.asked(), ["kill a", "kill b", "kill a"]);
}

#[test]
fn next_request_ends_the_reply_before_it() {
    let mut bed = Bed::default();
    bed.feed(&sealed("C1 1 list"));
    let mut line = Line::default();
    assert_eq!(bed.session.next_line(&mut line, &bed.fake), Row::Written);
    bed.feed(&sealed("C1 2 start a"));
    assert_eq!(bed.reply(Some(2)), ["ok rows=0"]);
}

/// Whatever one byte becomes, the request is not carried out, nor is another one.
#[test]
fn damage_of_a_byte_is_noticed() {
    let whole = sealed("C1 5 kill a");
    for at in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut line = whole.clone();
            line[at] = byte;
            let mut bed = Bed::default();
            bed.feed(&line);
            let asked = bed.asked();
            assert!(asked.is_empty() || byte == whole[at], "{at}: {byte:#x}: {asked:?}");
            // And the next one is understood, where the end of the damaged one was lost too.
            bed.feed(&whole);
            assert_eq!(bed.reply(Some(5)), ["ok rows=0"]);
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let whole = sealed("C1 5 kill a");
    for length in 0..whole.len() - 1 {
        for end in ["", "\n", "\r\n"] {
            let mut bed = Bed::default();
            bed.feed(&whole[..length]);
            bed.feed(end.as_bytes());
            assert_eq!(bed.asked(), [""; 0], "{length}");
            assert_eq!(bed.session.has_reply(), length > 0 && !end.is_empty(), "{length}");
            bed.feed(&whole);
            assert_eq!(bed.asked(), ["kill a"], "{length}");
        }
    }
}

fn requests() -> impl Strategy<Value = String> {
    let name = "[a-zA-Z0-9_-]{1,31}";
    let verb = prop::sample::select(VERBS.map(|(name, _)| name).to_vec());
    let number = prop::option::of(any::<u32>());
    (verb, name, number).prop_map(|(verb, name, number)| match (verb, number) {
        ("hello" | "list" | "audit" | "uploaded", _) => verb.to_string(),
        ("upload", n) => format!("upload {} {:08x}", n.unwrap_or(0), n.unwrap_or(1)),
        ("put", n) => format!("put {} {}", n.unwrap_or(0), "Zm9v".repeat(1 + name.len())),
        ("update", Some(ms)) => format!("update {name} confirm_ms={ms}"),
        ("stop", Some(ms)) => format!("stop {name} deadline_ms={ms}"),
        ("read", n) => {
            let n = n.unwrap_or(0);
            format!("read {name} {:#x} {}", u64::from(n) << 20, 1 + n % READ_BYTES_MAX)
        }
        _ => format!("{verb} {name}"),
    })
}

/// Bytes as a hostile client chooses them: noise, and pieces of what would be right.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(vec![MARK]),
        Just(b"\n".to_vec()),
        Just(b"\x1eC1 1 list".to_vec()),
        Just(b"*00000000\n".to_vec()),
        prop::collection::vec(any::<u8>(), 500..530),
        prop::collection::vec(b' '..=b'~', 0..20)
            .prop_map(|text| sealed(&format!("C1 3 {}", String::from_utf8(text).unwrap()))),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn requests_read_as_they_are_written(body in requests()) {
        prop_assert_eq!(Request::parse(&body).unwrap().to_string(), body);
    }

    /// After whatever came, a whole line is answered.
    #[test]
    fn noise_is_survived(noise in noise(), body in requests(), seq in any::<u32>()) {
        let mut bed = Bed::default();
        let mut line = Line::default();
        for byte in noise {
            bed.session.take(byte, &bed.fake);
            if bed.session.next_line(&mut line, &bed.fake) == Row::Written {
                prop_assert!(open(Direction::Reply, line.as_str().as_bytes()).is_ok());
            }
        }
        bed.asked();
        bed.feed(&sealed(&format!("C1 {seq} {body}")));
        prop_assert_eq!(bed.asked(), [body]);
        let reply = bed.reply(Some(seq));
        let last = reply.last().unwrap();
        prop_assert!(last.starts_with("ok rows=") || last.starts_with("error code="));
    }

    /// Bytes before a mark are not the channel's: a console has them.
    #[test]
    fn what_is_no_line_is_left_to_others(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = Frame::default();
        let mut inside = false;
        for byte in bytes {
            inside |= byte == MARK;
            let expected = match byte {
                b'\n' if inside => Taken::End,
                _ if inside => Taken::Inside,
                _ => Taken::Outside,
            };
            prop_assert_eq!(frame.take(byte), expected);
            inside &= byte != b'\n';
        }
    }
}

#[test]
fn read_takes_an_address_and_up_to_a_page() {
    let parse = |text| Request::parse(text).map(|request| request.to_string());
    for text in ["crash a", "read a 0x40000000 4096", "read a 0x0 1"] {
        assert_eq!(parse(text), Ok(text.into()));
    }
    let wrong = [
        "crash",
        "crash a b",
        "read a",
        "read a 0x40000000",
        "read a 40000000 1",
        "read a 0x 1",
        "read a 0x01 1",
        "read a 0xA 1",
        "read a 0x10000000000000000 1",
        "read a 0x0 0",
        "read a 0x0 4097",
        "read a 0x0 1 2",
    ];
    for text in wrong {
        assert!(matches!(parse(text), Err(Refusal::Arguments(_))), "{text}");
    }
}
