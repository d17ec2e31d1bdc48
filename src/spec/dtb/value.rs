// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Values of properties: big-endian cells and strings (Devicetree Specification 0.4, section
//! 2.2.4). Everything here takes any bytes.
#![forbid(unsafe_code)]

/// Returns the value of a property that is one cell.
#[must_use]
pub fn cell(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Returns the value of a property that is a number of one or two cells.
#[must_use]
pub fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => cell(value).map(u64::from),
        8 => value.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

/// Returns the value of a property that is one string: printable ASCII and a NUL.
#[must_use]
pub fn text(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value.strip_suffix(&[0])?).ok()?;
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte)).then_some(text)
}

/// Walks the strings of a property that is a list of them; what is not printable is left out.
pub fn texts(value: &[u8]) -> impl Iterator<Item = &str> {
    value.split_inclusive(|byte| *byte == 0).filter_map(text)
}

/// Walks entries of `N` numbers that have so many cells each; `None` when the value is not a
/// whole number of entries or a number has more than two cells.
pub fn entries<const N: usize>(
    value: &[u8],
    cells: [u32; N],
) -> Option<impl Iterator<Item = [u64; N]>> {
    if cells.iter().any(|count| *count > 2) {
        return None;
    }
    let cells = cells.map(|count| count as usize);
    let size = 4 * cells.iter().sum::<usize>();
    if size == 0 || !value.len().is_multiple_of(size) {
        return None;
    }
    Some(value.chunks_exact(size).map(move |mut entry| {
        cells.map(|count| {
            let (this, rest) = entry.split_at_checked(4 * count).unwrap_or_default();
            entry = rest;
            number(this).unwrap_or(0)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn entries_take_one_and_two_cells() {
        let value = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        let two_one: Vec<_> = entries(&value, [2, 1]).unwrap().collect();
        assert_eq!(two_one, [[0x1_0000_0002, 3]]);
        let one: Vec<_> = entries(&value, [1, 0]).unwrap().collect();
        assert_eq!(one, [[1, 0], [2, 0], [3, 0]]);
    }

    #[test]
    fn entries_refuse_what_does_not_divide() {
        assert!(entries(&[0; 12], [1, 1]).is_none());
        assert!(entries(&[0; 12], [3, 0]).is_none());
        assert!(entries(&[0; 12], [0, 0]).is_none());
        assert_eq!(entries(&[], [2, 2]).unwrap().count(), 0);
    }

    #[test]
    fn text_needs_its_nul_and_only_that_one() {
        assert_eq!(text(b"okay\0"), Some("okay"));
        assert_eq!(text(b"okay"), None);
        assert_eq!(text(b"o\0kay\0"), None);
        assert_eq!(text(b"\n\0"), None);
        assert_eq!(texts(b"a\0\xff\0b\0c").collect::<Vec<_>>(), ["a", "b"]);
    }
}
