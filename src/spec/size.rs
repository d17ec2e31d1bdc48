// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How messages show a number of bytes: as a person writes it in a manifest.
#![forbid(unsafe_code)]

use core::fmt;

/// A number of bytes for a message: `4G`, `512M`, `61.3M`, `12K`, `100 bytes`.
///
/// Sizes that are 1 MiB or more apart look different.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            size if size > 0 && size.trailing_zeros() >= 30 => (30, "G"),
            0x10_0000.. => (20, "M"),
            0x400.. => (10, "K"),
            size => return write!(f, "{size} bytes"),
        };
        write!(f, "{}", self.0 >> shift)?;
        match self.0 & ((1 << shift) - 1) {
            0 => write!(f, "{unit}"),
            rest => write!(f, ".{}{unit}", (rest * 10) >> shift),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn sizes_read_like_a_manifest() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (12 << 10, "12K"),
            (512 << 20, "512M"),
            (4 << 30, "4G"),
            ((1 << 30) + (1 << 20), "1025M"),
            ((61 << 20) + (1 << 19), "61.5M"),
            ((61 << 20) + 1, "61.0M"),
            (u64::MAX, "17592186044415.9M"),
        ];
        for (size, shown) in cases {
            assert_eq!(Size(size).to_string(), shown);
        }
    }
}
