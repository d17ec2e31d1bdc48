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

/// What stands for no digit.
const NONE: u8 = 0xff;
/// What each byte stands for.
const VALUES: [u8; 256] = {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [NONE; 256];
    let mut n = 0u8;
    while n < 64 {
        #[expect(clippy::indexing_slicing, reason = "64 digits of ASCII")]
        {
            values[digits[n as usize] as usize] = n;
        }
        n += 1;
    }
    values
};

/// Reads what `text` stands for; `None` where it does not read, is empty or too long.
#[must_use]
pub fn decode(text: &str) -> Option<Piece> {
    let mut piece = Piece { bytes: [0; PUT_BYTES_MAX], used: 0 };
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    let (last, groups) = groups.split_last().filter(|_| rest.is_empty())?;
    let (places, _) = piece.bytes.as_chunks_mut::<3>();
    let mut places = places.iter_mut();
    for (group, place) in groups.iter().zip(&mut places) {
        *place = bytes_of(*group)?;
    }
    // In the last one `=` stands where there are no bytes left, and what is beyond them is 0.
    let (digits, count) = match *last {
        [a, b, b'=', b'='] => ([a, b, b'A', b'A'], 1),
        [a, b, c, b'='] => ([a, b, c, b'A'], 2),
        digits => (digits, 3),
    };
    let bytes = bytes_of(digits)?;
    *places.next()? = bytes;
    piece.used = groups.len() * 3 + count;
    let is_whole = bytes.get(count..)?.iter().all(|byte| *byte == 0);
    is_whole.then_some(piece)
}

/// Reads four digits.
#[inline(always)]
fn bytes_of([a, b, c, d]: [u8; 4]) -> Option<[u8; 3]> {
    let (a, b, c, d) = (value(a), value(b), value(c), value(d));
    if a | b | c | d == NONE {
        return None;
    }
    Some([a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d])
}

#[inline(always)]
fn value(digit: u8) -> u8 {
    #[expect(clippy::indexing_slicing, reason = "there is one for each byte")]
    let value = VALUES[usize::from(digit)];
    value
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
