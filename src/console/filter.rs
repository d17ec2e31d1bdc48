// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Takes from a guest's output what could move the cursor, so that a line of text stays a line.
//!
//! It knows control functions (ECMA-48) and the shape of UTF-8 (RFC 3629), not consoles.
#![forbid(unsafe_code)]

/// Reads a stream of bytes and says of each whether it is text.
#[derive(Debug, Default)]
pub(super) struct Filter {
    state: State,
    /// Continuation bytes that the UTF-8 sequence at hand still wants.
    wanted: u8,
    /// Whether its lead byte is 0xc2: U+0080 to U+009F are control characters too.
    latin: bool,
}

/// Where in a control function the stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// In none.
    #[default]
    Ground,
    /// Behind ESC, and intermediate bytes.
    Escape,
    /// Behind ESC `[`: parameters, up to a final byte.
    Sequence,
    /// In a control string (such as a window title), up to BEL or ESC `\`.
    String,
}

/// What becomes of a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is text, a tab or a newline.
    Keep,
    /// It is not shown.
    Remove,
}

const ESC: u8 = 0x1b;

impl Filter {
    /// Decides about the next byte. A newline ends any sequence that is not complete: no guest
    /// loses more than a line by it.
    #[inline]
    pub(super) fn next(&mut self, byte: u8) -> Verdict {
        // Most are.
        if self.state == State::Ground && matches!(byte, 0x20..=0x7e) {
            self.wanted = 0;
            return Verdict::Keep;
        }
        self.next_rare(byte)
    }

    fn next_rare(&mut self, byte: u8) -> Verdict {
        let before = self.state;
        self.state = before.behind(byte);
        let wanted = core::mem::take(&mut self.wanted);
        match (before, byte) {
            (_, b'\n') | (State::Ground, b'\t' | 0x20..=0x7e) => Verdict::Keep,
            (State::Ground, 0x80..=0xbf) if wanted > 0 => {
                self.wanted = wanted - 1;
                if self.latin && byte < 0xa0 { Verdict::Remove } else { Verdict::Keep }
            }
            (State::Ground, 0xc2..=0xf4) => {
                self.wanted = 1 + u8::from(byte >= 0xe0) + u8::from(byte >= 0xf0);
                self.latin = byte == 0xc2;
                Verdict::Keep
            }
            _ => Verdict::Remove,
        }
    }

    /// Returns whether the stream is in the middle of a control function.
    pub(super) fn is_within(&self) -> bool {
        self.state != State::Ground
    }
}

impl State {
    fn behind(self, byte: u8) -> Self {
        match (self, byte) {
            (_, b'\n') => Self::Ground,
            (_, ESC) => Self::Escape,
            // CAN and SUB cancel.
            (_, 0x18 | 0x1a) => Self::Ground,
            (Self::Escape, b'[') => Self::Sequence,
            // OSC, DCS, SOS, PM, APC.
            (Self::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Self::String,
            (Self::Escape, 0x20..=0x2f) => Self::Escape,
            (Self::Sequence, 0x20..=0x3f) => Self::Sequence,
            (Self::String, 0x07) => Self::Ground,
            (Self::String, _) => Self::String,
            // Control characters within a sequence do not end it.
            (Self::Escape | Self::Sequence, 0x00..=0x1f) => self,
            _ => Self::Ground,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    fn kept(bytes: &[u8]) -> Vec<u8> {
        let mut filter = Filter::default();
        bytes.iter().copied().filter(|byte| filter.next(*byte) == Verdict::Keep).collect()
    }

    #[test]
    fn text_stays_and_control_goes() {
        let cases: [(&[u8], &str); 14] = [
            (b"plain ~ text\n", "plain ~ text\n"),
            (b"tab\there\r\n", "tab\there\n"),
            (b"\x1b[1;31mred\x1b[0m", "red"),
            (b"\x1b[?25l\x1b[2J\x1b[Hhome", "home"),
            (b"\x1b(Bset\x1b=\x1b7\x1bM", "set"),
            (b"\x1b]0;title\x07a\x1b]8;;x\x1b\\b", "ab"),
            (b"\x1b]0;never ends\nnext", "\nnext"),
            (b"\x1b[12\nnext", "\nnext"),
            (b"\x1b[12\x18next", "next"),
            (b"\x1b\x1b[Ax", "x"),
            (b"\x00\x01\x07\x08\x0b\x0c\x0e\x1a\x1e\x7fx", "x"),
            ("grün €uro 🎈\n".as_bytes(), "grün €uro 🎈\n"),
            ("\u{a0}\u{e9}".as_bytes(), "\u{a0}\u{e9}"),
            (b"\x9b2Jx\xff\xc0\xfe", "2Jx"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(String::from_utf8_lossy(&kept(bytes)), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn t114_no_control_character_of_latin_1_in_utf_8() {
        // U+009B is CSI to many terminals.
        assert_eq!(kept("\u{9b}2Jx".as_bytes()), b"\xc22Jx");
    }

    proptest! {
        #[test]
        fn t114_nothing_that_moves_the_cursor_is_left(bytes: Vec<u8>) {
            let kept = kept(&bytes);
            let control = |byte: &u8| *byte < 0x20 && !b"\t\n".contains(byte) || *byte == 0x7f;
            prop_assert!(!kept.iter().any(control));
            let text = String::from_utf8_lossy(&kept);
            let second_set = text.chars().any(|c| ('\u{80}'..='\u{9f}').contains(&c));
            prop_assert!(!second_set, "{:?}", text);
        }

        #[test]
        fn printable_text_is_untouched(text in "[^\\p{Cc}]*") {
            prop_assert_eq!(kept(text.as_bytes()), text.as_bytes());
        }
    }
}
