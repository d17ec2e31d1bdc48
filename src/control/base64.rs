// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Base64 (RFC 4648, 4): bytes in a line of text. The standard alphabet, padded, and nothing that
//! another reader would take for something else.
#![forbid(unsafe_code)]

/// The most bytes in one line: the longest request that bears them fits 512 bytes.
pub const PUT_BYTES_MAX: usize = 348;

/// Bytes that stood in a line.
#[derive(Clone, Debug)]
pub struct Piece {
    bytes: [u8; PUT_BYTES_MAX],
    used: usize,
}

impl Piece {
    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

/// Reads what `text` stands for; `None` where it does not read, is empty or too long.
#[must_use]
pub fn decode(text: &str) -> Option<Piece> {
    let text = text.as_bytes();
    let mut piece = Piece { bytes: [0; PUT_BYTES_MAX], used: 0 };
    let (groups, rest) = text.as_chunks::<4>();
    if groups.is_empty() || !rest.is_empty() {
        return None;
    }
    let mut places = piece.bytes.chunks_exact_mut(3);
    for (n, group) in groups.iter().enumerate() {
        let is_last = n + 1 == groups.len();
        let count = match group {
            [_, _, b'=', b'='] if is_last => 1,
            [_, _, _, b'='] if is_last => 2,
            _ => 3,
        };
        let digits = group.get(..=count)?;
        let word = digits.iter().try_fold(0, |word, digit| Some(word << 6 | value(*digit)?))?;
        // What the digits have beyond whole bytes is 0.
        let word: u32 = word << (6 * (3 - count));
        let [bytes @ .., unused] = (word << 8).to_be_bytes();
        let place = places.next()?;
        place.copy_from_slice(&bytes);
        if place.get(count..)?.iter().any(|byte| *byte != 0) || unused != 0 {
            return None;
        }
        piece.used += count;
    }
    Some(piece)
}

fn value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_standard_gives_for_examples() {
        // RFC 4648, 10.
        for (text, bytes) in [
            ("Zg==", &b"f"[..]),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("Zm9vYmE=", b"fooba"),
            ("Zm9vYmFy", b"foobar"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(decode(text).unwrap().as_bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn takes_nothing_that_could_be_read_in_two_ways() {
        for text in [
            "", "Z", "Zg", "Zg=", "=", "====", "Z===", "Zh==", "Zm9=", "Zm==Zm9v", "Zm8=Zm9v",
            "Zm9v\n", "Zm-_", "Zm 9", "Zg==Zg==", "\u{e9}Zm",
        ] {
            assert!(decode(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn takes_as_much_as_a_line_holds_and_no_more() {
        let most = "/".repeat(PUT_BYTES_MAX / 3 * 4);
        assert_eq!(decode(&most).unwrap().as_bytes(), [0xff; PUT_BYTES_MAX]);
        assert!(decode(&(most + "AAAA")).is_none());
    }
}
