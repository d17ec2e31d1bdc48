// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Good bundles are read, and damage of any kind is refused in one line.

use super::*;
use crate::spec::dtb::builder::{Builder, Random};
use std::string::ToString;
use std::vec;

/// What the FIT of a sample says about an image.
struct Claim {
    name: &'static str,
    position: u64,
    size: u64,
}

/// The contents: the FIT needs less than a page.
const CONTENTS: [(&str, &[u8]); 3] =
    [("plan", b"the plan"), ("kernel", &[7; 5000]), ("tree_1", &[3; 1])];

fn claims() -> [Claim; 3] {
    [("plan", 4096, 8), ("kernel", 8192, 5000), ("tree_1", 16384, 1)]
        .map(|(name, position, size)| Claim { name, position, size })
}

fn write(claims: &[Claim], fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let fit = Builder::tree(|b| {
        b.node("images", |b| {
            for (claim, (_, contents)) in claims.iter().zip(CONTENTS) {
                b.node(claim.name, |b| {
                    b.prop("data-position", &claim.position.to_be_bytes());
                    b.cells("data-size", &[u32::try_from(claim.size).unwrap()]);
                    b.node("hash-1", |b| {
                        b.text("algo", "crc32c");
                        b.cells("value", &[crc32c(contents)]);
                    });
                });
            }
        });
        fill(b);
    });
    let total = HEADER_BYTES + 16384 + 1;
    let mut bundle = vec![0; total];
    bundle[..8].copy_from_slice(&MAGIC);
    bundle[8] = 1;
    bundle[16..24].copy_from_slice(&(total as u64).to_le_bytes());
    bundle[HEADER_BYTES..][..fit.len()].copy_from_slice(&fit);
    for (at, (_, contents)) in [4096, 8192, 16384].into_iter().zip(CONTENTS) {
        bundle[HEADER_BYTES + at..][..contents.len()].copy_from_slice(contents);
    }
    bundle
}

fn configurations(b: &mut Builder) {
    b.node("configurations", |b| {
        b.text("default", "conf-1");
        b.node("conf-0", |b| b.text("plan", "kernel"));
        b.node("conf-1", |b| b.text("plan", "plan"));
    });
}

fn sample() -> Vec<u8> {
    write(&claims(), configurations)
}

fn parse_and_verify(bytes: &[u8]) -> Result<(), BundleError<'_>> {
    Bundle::parse(bytes)?.images().iter().try_for_each(|image| image.verify(crc32c))
}

#[test]
fn crc32c_is_castagnolis() {
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn crc32c_goes_on_behind_a_part() {
    let bytes = b"123456789";
    for n in 0..=bytes.len() {
        let (first, second) = bytes.split_at(n);
        assert_eq!(crc32c_behind(crc32c_behind(0, first), second), 0xe306_9283, "{n}");
    }
}

#[test]
fn bundle_is_read() {
    let mut bytes = sample();
    let size = bytes.len();
    bytes.extend([0xaa; 100]);
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.size(), size);
    assert_eq!((bundle.plan().name, bundle.plan().bytes), CONTENTS[0]);
    assert_eq!(bundle.images().len(), 3);
    for (name, contents) in CONTENTS {
        let image = bundle.image(name).unwrap();
        assert_eq!((image.bytes, image.offset % 4096), (contents, 0));
        assert_eq!(image.verify(crc32c), Ok(()));
    }
    assert_eq!(bundle.image("other"), None);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample();
    for size in 0..bytes.len() {
        assert!(Bundle::parse(&bytes[..size]).is_err(), "{size}");
    }
    let error = Bundle::parse(&bytes[..20000]).unwrap_err();
    assert_eq!(error.to_string(), "bundle: 20481 bytes expected, 20000 bytes present");
    let error = BundleError::Truncated { expected: 61 << 20, present: 32 << 20 };
    assert_eq!(error.to_string(), "bundle: 61M expected, 32M present");
}

#[test]
fn every_bit_of_the_header_counts() {
    for bit in 0..24 * 8 {
        let mut bytes = sample();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(parse_and_verify(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn every_altered_byte_of_an_image_is_found() {
    for (at, (name, contents)) in [4096, 8192, 16384].into_iter().zip(CONTENTS) {
        for offset in (0..contents.len()).step_by(97) {
            let mut bytes = sample();
            bytes[HEADER_BYTES + at + offset] ^= 0x40;
            let error = parse_and_verify(&bytes).unwrap_err();
            assert!(
                matches!(error, BundleError::Image(n, ImageError::Crc { .. }) if n == name),
                "{error}"
            );
        }
    }
}

#[test]
fn images_that_clash_are_refused_by_name() {
    let change = |index: usize, position, size| {
        let mut claims = claims();
        claims[index] = Claim { name: claims[index].name, position, size };
        write(&claims, configurations)
    };
    let message = |bytes: &[u8]| Bundle::parse(bytes).unwrap_err().to_string();
    assert_eq!(message(&change(0, 4096, 4097)), "bundle: images plan and kernel overlap");
    assert_eq!(message(&change(1, 8192, 8193)), "bundle: images kernel and tree_1 overlap");
    assert!(message(&change(2, 8192, 1)).contains("overlap"));
    let place = |name| format_place(name);
    assert_eq!(message(&change(0, 0, 8)), place("plan"));
    assert_eq!(message(&change(0, 4097, 8)), place("plan"));
    assert_eq!(message(&change(0, 4096, 0)), place("plan"));
    assert_eq!(message(&change(2, 16384, 2)), place("tree_1"));
    assert_eq!(message(&change(2, 20480, 1)), place("tree_1"));
    assert_eq!(message(&change(2, u64::MAX - 4095, 1)), place("tree_1"));
    assert_eq!(message(&change(2, u64::MAX - 8191, 0xffff_ffff)), place("tree_1"));
}

fn format_place(name: &str) -> std::string::String {
    std::format!("bundle: image {name} is not aligned or not inside the bundle")
}

#[test]
fn images_of_one_name_are_refused() {
    let mut claims = claims();
    claims[2].name = "plan";
    let bytes = write(&claims, configurations);
    let error = Bundle::parse(&bytes).unwrap_err();
    assert_eq!(error, BundleError::Image("plan", ImageError::Clash("plan")));
}

#[test]
fn names_of_images_are_checked() {
    for name in ["a.b", "a@1", "a,b", "x23456789012345678901234567890123"] {
        let mut claims = claims();
        claims[1].name = name;
        let bytes = write(&claims, configurations);
        let error = Bundle::parse(&bytes).unwrap_err();
        assert_eq!(error, BundleError::Image(name, ImageError::Name));
    }
}

#[test]
fn plan_must_be_named_by_the_default() {
    let cases: [fn(&mut Builder); 4] = [
        |_| {},
        |b| b.node("configurations", |b| b.text("default", "conf-1")),
        |b| b.node("configurations", |b| b.node("conf-1", |b| b.text("plan", "plan"))),
        |b| {
            b.node("configurations", |b| {
                b.text("default", "conf-1");
                b.node("conf-1", |b| b.text("plan", "missing"));
            });
        },
    ];
    for fill in cases {
        assert_eq!(Bundle::parse(&write(&claims(), fill)).unwrap_err(), BundleError::NoPlan);
    }
}

#[test]
fn what_is_missing_is_named() {
    let bytes = write(&[], |b| {
        b.node("images", |b| b.node("plan", |b| b.cells("data-position", &[4096])));
        configurations(b);
    });
    let error = Bundle::parse(&bytes).unwrap_err();
    assert_eq!(error, BundleError::Image("plan", ImageError::Property("data-size")));
    assert_eq!(error.to_string(), "bundle: image plan: data-size is missing or malformed");
}

#[test]
fn too_many_images_are_refused() {
    let fit = Builder::tree(|b| {
        b.node("images", |b| (0..=IMAGES_MAX).for_each(|_| b.node("x", |_| {})));
    });
    let mut bytes = sample();
    bytes.resize(HEADER_BYTES + fit.len(), 0);
    bytes[HEADER_BYTES..].copy_from_slice(&fit);
    let total = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&total.to_le_bytes());
    assert_eq!(Bundle::parse(&bytes).unwrap_err(), BundleError::TooMany);
}

/// Damage anywhere in header or FIT must neither panic nor lead out of the bundle.
#[test]
fn mutated_bundles_do_not_panic() {
    let original = sample();
    let mut random = Random::new(2);
    let mut accepted = 0;
    for _ in 0..5_000 {
        let mut bytes = original.clone();
        random.mutate(&mut bytes[..HEADER_BYTES + 1024]);
        match Bundle::parse(&bytes) {
            Ok(bundle) => {
                accepted += 1;
                let mut end = HEADER_BYTES + 1;
                for image in bundle.images() {
                    assert!(image.offset >= end && !image.bytes.is_empty());
                    end = image.offset + image.bytes.len();
                }
                assert!(end <= bundle.size());
            }
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
    assert!(accepted > 100, "{accepted}");
}
