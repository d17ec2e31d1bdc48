// SPDX-License-Identifier: Apache-2.0 OR MIT
//! That the longest rows fit a line.

use super::*;
use std::format;

#[test]
fn rows_of_the_largest_numbers_fit_a_line() {
    let largest = u64::MAX;
    let name = "n".repeat(crate::plan::NAME_MAX);
    let row = |fields: &[&str]| {
        let fields: std::string::String =
            fields.iter().map(|field| format!(" {field}={largest}")).collect();
        format!(" what=injected vm={name} vcpu=255{fields}")
    };
    for fields in [
        &REASONS[..],
        &KINDS[..],
        &["cycles", "instructions", "to_entry_ticks"],
        &["b60", "b61", "b62", "b63"],
    ] {
        let mut line = Line::default();
        line.begin(Some(u32::MAX));
        write!(line, "row {}", u32::MAX).unwrap();
        assert!(line.write_str(&row(fields)).is_ok(), "{fields:?}");
    }
}
