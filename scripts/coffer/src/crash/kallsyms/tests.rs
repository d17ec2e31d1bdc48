// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the names of kernels that are made here. Those of real ones are in the boot tests.
#![forbid(unsafe_code)]

use super::super::samples::{Ram, flat};
use super::*;
use proptest::prelude::*;

/// In which order a kernel has its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// As in 6.1.
    OffsetsFirst,
    /// As in 6.12.
    OffsetsLast,
}

/// Makes the tables of symbols as `scripts/kallsyms.c` does, with tokens for a few syllables.
fn tables(symbols: &[(u32, &str)], order: Order) -> Vec<u8> {
    let mut tokens: Vec<Vec<u8>> = (0..=255_u8).map(|c| vec![c]).collect();
    tokens[0] = b"sys_".to_vec();
    tokens[1] = b"_init".to_vec();
    for (n, token) in tokens.iter_mut().enumerate().skip(2) {
        // Tokens that nobody needs are empty, but for the printable ones.
        if !(0x20..0x7f).contains(&n) {
            token.clear();
        }
    }
    let compress = |name: &str| {
        let name = name.replace("sys_", "\0").replace("_init", "\u{1}").into_bytes();
        let mut bytes = match u8::try_from(name.len()) {
            Ok(short @ 0..=127) => vec![short],
            _ => vec![
                (name.len() & 0x7f | 0x80).try_into().unwrap(),
                (name.len() >> 7).try_into().unwrap(),
            ],
        };
        bytes.extend(name);
        bytes
    };
    let pad = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (n, (_, name)) in symbols.iter().enumerate() {
        if n % 256 == 0 {
            markers.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        }
        names.extend(compress(name));
    }
    let (mut table, mut index) = (Vec::new(), Vec::new());
    for token in &tokens {
        index.extend(u16::try_from(table.len()).unwrap().to_le_bytes());
        table.extend(token);
        table.push(0);
    }
    let offsets = pad(symbols.iter().flat_map(|(offset, _)| offset.to_le_bytes()).collect());
    let base = 0xffff_8000_0800_0000_u64.to_le_bytes().to_vec();
    let count = pad(u32::try_from(symbols.len()).unwrap().to_le_bytes().to_vec());
    let rest = [count, pad(names), pad(markers), pad(table), pad(index)].concat();
    match order {
        Order::OffsetsFirst => [offsets, base, rest].concat(),
        Order::OffsetsLast => [rest, offsets, base].concat(),
    }
}

/// An image with these tables somewhere in it.
fn image(symbols: &[(u32, &str)], order: Order) -> Vec<u8> {
    let mut image: Vec<u8> =
        (0..0x2000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    // What looks like the start of the table and is none.
    image.extend(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00");
    image.resize(image.len().next_multiple_of(4096), 0x5a);
    image.extend(tables(symbols, order));
    image.resize(image.len() + 0x3000, 0);
    image
}

fn many() -> Vec<(u32, String)> {
    let mut all = vec![(0, "T_text".to_owned()), (0x1000, "Tvectors".to_owned())];
    all.extend((0..1500).map(|n| (0x2000 + n * 0x40, format!("tsys_call_{n}_init"))));
    all.push((0x9_0000, format!("t{}", "long_".repeat(60))));
    all.push((0xa_0000, "D_etext".to_owned()));
    all.push((0xb_0000, "Bsome_data".to_owned()));
    all.push((0xc_0000, "B_end".to_owned()));
    all
}

fn borrowed(all: &[(u32, String)]) -> Vec<(u32, &str)> {
    all.iter().map(|(offset, name)| (*offset, name.as_str())).collect()
}

#[test]
fn names_and_offsets_come_out_of_both_orders() {
    let all = many();
    for order in [Order::OffsetsFirst, Order::OffsetsLast] {
        let found = Kallsyms::find(&image(&borrowed(&all), order)).expect("found");
        let symbols = found.symbols().iter();
        let found_again: Vec<(u32, String)> = symbols
            .map(|s| {
                (u32::try_from(s.offset).unwrap(), format!("{}{}", char::from(s.kind), s.name))
            })
            .collect();
        assert_eq!(found_again, all, "{order:?}");
        assert_eq!(found.offset("vectors"), Some(0x1000));
        assert_eq!(found.function(0x2044), Some(("sys_call_1_init", 4)));
        assert_eq!(found.function(0xb_0004), None, "data");
    }
}

#[test]
fn what_is_no_kernel_has_no_names() {
    assert_eq!(Kallsyms::find(b""), None);
    assert_eq!(Kallsyms::find(&vec![0; 0x10000]), None);
    let all = many();
    let good = image(&borrowed(&all), Order::OffsetsLast);
    for cut in [good.len() / 2, good.len() - 0x4000] {
        assert_eq!(Kallsyms::find(&good[..cut]), None, "cut at {cut}");
    }
}

#[test]
fn the_kernel_is_found_by_its_vectors_or_by_its_code() {
    let kernel = Kallsyms::find(&image(&borrowed(&many()), Order::OffsetsLast)).unwrap();
    let mut ram = Ram::new(0x4000_0000, 0x400);
    ram.write(0x4008_0038, &[u64::from(u32::from_le_bytes(*b"ARM\x64"))]);
    let mut registers = flat();
    registers.vbar = 0x4008_0000 + 0x1000;
    assert_eq!(find_base(&mut ram, &registers, &kernel).unwrap(), Some(0x4008_0000));
    registers.vbar = 0x1234_5000;
    registers.pc = 0x400b_2044;
    assert_eq!(find_base(&mut ram, &registers, &kernel).unwrap(), Some(0x4008_0000));
    registers.pc = 0x4001_2044;
    assert_eq!(find_base(&mut ram, &registers, &kernel).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A kernel that a guest has damaged gives names or none, and no panic.
    #[test]
    fn a_damaged_kernel_does_no_harm(
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        is_first in any::<bool>(),
    ) {
        let order = if is_first { Order::OffsetsFirst } else { Order::OffsetsLast };
        let mut image = image(&borrowed(&many()[..300]), order);
        let tables = 0x9000..image.len() - 0x3000;
        for (index, byte) in hits {
            let at = tables.start + index.index(tables.len());
            image[at] = byte;
        }
        let _ = Kallsyms::find(&image);
    }
}
