// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What passes, what does not, and that the `fdt` crate holds on what passes.

use super::builder::Builder;
use super::*;
use std::string::{String, ToString};

fn sample() -> Vec<u8> {
    Builder::tree(|b| {
        b.reserve(0x1000, 0x2000);
        b.cells("#address-cells", &[2]);
        b.node("a@1", |b| {
            b.text("compatible", "x");
            b.node("deep", |b| b.prop("empty", &[]));
        });
        b.node("b", |_| {});
    })
}

fn set(tree: &mut [u8], at: usize, value: u32) {
    tree[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn check(tree: &[u8]) -> Result<(), DtbError> {
    Dtb::new(tree).map(|_| ())
}

/// Returns the offset of the structure block in the file.
fn structs_at(tree: &[u8]) -> usize {
    word(tree, 8).unwrap() as usize
}

fn render(dtb: &Dtb<'_>) -> Vec<(usize, String, usize)> {
    dtb.nodes()
        .map(|(depth, node)| (depth, node.name.to_string(), node.properties().count()))
        .collect()
}

#[test]
fn nodes_come_with_their_depth() {
    let bytes = sample();
    let dtb = Dtb::new(&bytes).unwrap();
    let expected =
        [(0, "/", 1), (1, "a@1", 1), (2, "deep", 1), (1, "b", 0)].map(|(d, n, p)| (d, n.into(), p));
    assert_eq!(render(&dtb), expected);
    assert_eq!(dtb.reservations().collect::<Vec<_>>(), [(0x1000, 0x2000)]);
    assert_eq!(dtb.size(), bytes.len());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample();
    for size in 0..bytes.len() {
        assert!(check(&bytes[..size]).is_err(), "{size} bytes");
    }
    let mut longer = bytes.clone();
    longer.extend([0xff; 64]);
    assert_eq!(check(&longer), Ok(()));
}

#[test]
fn header_is_checked_field_by_field() {
    let cases: [(usize, u32, DtbError); 15] = [
        (0, 0xd00d_feee, DtbError::Magic),
        (4, 39, DtbError::Size(39)),
        (4, u32::MAX, DtbError::Size(u32::MAX)),
        (4, (2 << 20) + 1, DtbError::Size((2 << 20) + 1)),
        (8, 73, DtbError::Block("structure")),
        (8, u32::MAX - 3, DtbError::Block("structure")),
        (8, 36, DtbError::Block("structure")),
        (36, u32::MAX, DtbError::Block("structure")),
        (12, u32::MAX, DtbError::Block("strings")),
        (12, 72, DtbError::Block("strings")),
        (32, u32::MAX, DtbError::Block("strings")),
        (16, 44, DtbError::Block("reservation")),
        (16, 48, DtbError::Reservations),
        (20, 16, DtbError::Version(16)),
        (24, 18, DtbError::Version(17)),
    ];
    for (at, value, expected) in cases {
        let mut tree = sample();
        set(&mut tree, at, value);
        assert_eq!(check(&tree), Err(expected), "{value:#x} at {at}");
    }
}

#[test]
fn reservations_end_or_are_refused() {
    let endless = Builder::tree(|b| {
        for i in 0..=RESERVATIONS_MAX as u64 {
            b.reserve(i << 20, 4096);
        }
    });
    assert_eq!(check(&endless), Err(DtbError::Reservations));
}

#[test]
fn tokens_out_of_place_are_refused() {
    let property_after_child = Builder::tree(|b| {
        b.node("child", |_| {});
        b.prop("late", &[]);
    });
    assert!(matches!(check(&property_after_child), Err(DtbError::Token(_))));

    let mut two_roots = Builder::default();
    two_roots.node("", |_| {});
    two_roots.node("", |_| {});
    assert!(matches!(check(&two_roots.finish()), Err(DtbError::Token(_))));

    assert!(matches!(check(&Builder::default().finish()), Err(DtbError::Token(0))));

    let unbalanced = Builder::tree(|b| b.token(2));
    assert!(matches!(check(&unbalanced), Err(DtbError::Token(_))));

    // The word that ends the tree becomes a token that does not exist.
    let mut endless = sample();
    let end = structs_at(&endless) + word(&endless, 36).unwrap() as usize - 4;
    set(&mut endless, end, 5);
    assert!(matches!(check(&endless), Err(DtbError::Token(_))));
}

#[test]
fn names_are_checked() {
    for name in ["", "a/b", "a b", "a\n", "\u{e9}"] {
        let tree = Builder::tree(|b| b.node(name, |_| {}));
        assert!(matches!(check(&tree), Err(DtbError::Name(_))), "node {name:?}");
    }
    for name in ["", "a b", "\x7f"] {
        let tree = Builder::tree(|b| b.prop(name, &[]));
        assert!(matches!(check(&tree), Err(DtbError::Name(_))), "property {name:?}");
    }
    let long = "x".repeat(NAME_MAX);
    assert_eq!(check(&Builder::tree(|b| b.node(&long, |b| b.prop(&long, &[])))), Ok(()));
    let longer = "x".repeat(NAME_MAX + 1);
    assert!(check(&Builder::tree(|b| b.node(&longer, |_| {}))).is_err());
    assert!(check(&Builder::tree(|b| b.prop(&longer, &[]))).is_err());
    // Real RK3588 trees have property names of more than 31 characters.
    let real = "snps,dis-u2-freeclk-exists-quirk";
    assert_eq!(check(&Builder::tree(|b| b.prop(real, &[]))), Ok(()));
}

#[test]
fn value_that_reaches_out_is_refused() {
    let tree = Builder::tree(|b| b.prop("p", &[1, 2, 3, 4]));
    let length_at = structs_at(&tree) + 12;
    for length in [16, u32::MAX, u32::MAX - 12, u32::MAX - 15] {
        let mut tree = tree.clone();
        set(&mut tree, length_at, length);
        assert!(check(&tree).is_err(), "{length}");
    }
    // The offset of the name.
    let mut tree = tree.clone();
    set(&mut tree, length_at + 4, 100);
    assert!(matches!(check(&tree), Err(DtbError::Name(_))));
}

#[test]
fn depth_and_counts_are_limited() {
    fn nest(b: &mut Builder, levels: usize) {
        if levels > 0 {
            b.node("n", |b| nest(b, levels - 1));
        }
    }
    assert_eq!(check(&Builder::tree(|b| nest(b, DEPTH_MAX - 1))), Ok(()));
    assert!(matches!(check(&Builder::tree(|b| nest(b, DEPTH_MAX))), Err(DtbError::Depth(_))));
    assert!(matches!(check(&Builder::tree(|b| nest(b, 1000))), Err(DtbError::Depth(_))));

    let nodes = |count| Builder::tree(|b| (1..count).for_each(|_| b.node("n", |_| {})));
    assert_eq!(check(&nodes(NODES_MAX)), Ok(()));
    assert!(matches!(check(&nodes(NODES_MAX + 1)), Err(DtbError::Count(_))));

    let properties = |count| Builder::tree(|b| (0..count).for_each(|_| b.prop("p", &[])));
    assert_eq!(check(&properties(PROPERTIES_MAX)), Ok(()));
    assert!(matches!(check(&properties(PROPERTIES_MAX + 1)), Err(DtbError::Count(_))));
}

#[test]
fn nops_are_squeezed_out() {
    let mut edited = Builder::default();
    edited.token(4);
    edited.node("", |b| {
        b.token(4);
        b.cells("#address-cells", &[4, 4, 4]);
        b.token(4);
        b.node("a", |b| {
            b.token(4);
            b.prop("p", b"\0\0\0\x04\0");
            b.token(4);
        });
        b.token(4);
    });
    edited.token(4);
    let mut edited = edited.finish();
    let plain = Builder::tree(|b| {
        b.cells("#address-cells", &[4, 4, 4]);
        b.node("a", |b| b.prop("p", b"\0\0\0\x04\0"));
    });

    assert_eq!(check(&edited), Err(DtbError::Nops));
    let squeezed = Dtb::squeeze(&mut edited).unwrap();
    assert_eq!(render(&squeezed), render(&Dtb::new(&plain).unwrap()));
    let values = |dtb: &Dtb<'_>| {
        dtb.nodes()
            .flat_map(|(_, n)| n.properties().map(|p| (p.name.to_string(), p.value.to_vec())))
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&squeezed), values(&Dtb::new(&plain).unwrap()));
    assert_eq!(check(&edited), Ok(()));
}

#[test]
fn refused_tree_is_left_as_it_was() {
    let mut tree = Builder::tree(|b| {
        b.token(4);
        b.token(7);
    });
    let before = tree.clone();
    assert!(Dtb::squeeze(&mut tree).is_err());
    assert_eq!(tree, before);
}

/// Everything that is used of `fdt`, on every tree that passes, must return.
#[test]
fn fdt_holds_on_every_mutated_tree_that_passes() {
    let original = sample();
    let mut passed = 0;
    let mut random = builder::Random::new(1);
    for _ in 0..20_000 {
        let mut tree = original.clone();
        random.mutate(&mut tree);
        if let Ok(dtb) = Dtb::squeeze(&mut tree) {
            passed += 1;
            let nodes = render(&dtb);
            assert!(!nodes.is_empty() && dtb.reservations().count() <= RESERVATIONS_MAX);
            assert_eq!(nodes.len(), dtb.depths.len());
        }
    }
    // Neither may the test be empty, nor the check let everything through.
    assert!((500..19_500).contains(&passed), "{passed}");
}

#[test]
fn total_size_needs_the_header_alone() {
    let bytes = sample();
    assert_eq!(total_size(&bytes[..8]), Ok(bytes.len()));
    assert_eq!(total_size(&bytes[..7]), Err(DtbError::Size(0)));
    assert_eq!(total_size(&[0; 64]), Err(DtbError::Magic));
}
