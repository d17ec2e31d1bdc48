// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The checksum of a line: CRC32C (RFC 3720, section 12.1), four bits at a time. Lines are short,
//! so 64 bytes of table serve better than the 1 KiB of the table by bytes.
#![forbid(unsafe_code)]

/// The polynomial 0x1edc6f41, its lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 16] = {
    let mut table = [0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        let mut crc = nibble;
        let mut bit = 0;
        while bit < 4 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "the loop ends at the table's length")]
        {
            table[nibble as usize] = crc;
        }
        nibble += 1;
    }
    table
};

/// Computes the CRC32C of some bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        crc = step(step(crc));
    }
    !crc
}

fn step(crc: u32) -> u32 {
    #[expect(clippy::indexing_slicing, reason = "masked to the length")]
    let entry = TABLE[(crc & 0xf) as usize];
    crc >> 4 ^ entry
}
