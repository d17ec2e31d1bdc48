// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The FIT of a bundle: which images there are and where they lie.
//!
//! What is read: `/images/<name>` with `data-position` (from the start of the FIT) and
//! `data-size`, in each a `hash-…` node with `algo = "crc32c"` and `value`; in `/configurations`
//! the `default`, and its `plan`, the name of an image. Anything else is left to others.
#![forbid(unsafe_code)]

use super::{BundleError, HEADER_BYTES, IMAGE_ALIGN, IMAGES_MAX, Image, ImageError, NAME_MAX};
use crate::heap;
use crate::sort::sort_by_key;
use crate::spec::dtb::{self, Entry, value};
use alloc::vec::Vec;

/// Which part of the FIT a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Part {
    Images,
    Configurations,
    #[default]
    Other,
}

/// What the FIT says about an image.
struct Claim<'a> {
    name: &'a str,
    position: Option<u64>,
    size: Option<u64>,
    crc32c: Option<u32>,
}

/// What a `hash-…` node says, as far as it has been read.
#[derive(Default)]
struct Hash {
    is_crc32c: bool,
    value: Option<u32>,
}

/// Reads the FIT behind the header and finds the images, sorted by offset, and the plan's; with a
/// `pause` now and then.
pub(super) fn read<'a>(
    bundle: &'a [u8],
    pause: &mut dyn FnMut(),
) -> Result<(Vec<Image<'a>>, Image<'a>), BundleError<'a>> {
    let fit = bundle.get(HEADER_BYTES..).unwrap_or_default();
    let mut reader = Reader::default();
    let fit_bytes = dtb::read(fit, &mut |entry| {
        pause();
        reader.take(entry);
    });
    let fit_bytes = fit_bytes.map_err(BundleError::Fit)?;
    if let Some(error) = reader.error {
        return Err(error);
    }
    let mut images = Vec::new();
    for claim in &reader.claims {
        pause();
        let image = place(bundle, fit_bytes, claim);
        let image = image.map_err(|error| BundleError::Image(claim.name, error))?;
        heap::push(&mut images, image).map_err(|_| BundleError::NoMemory)?;
    }
    sort_by_key(&mut images, |image| image.offset as u64);
    check_clashes(&images, pause)?;
    let plan = images.iter().find(|image| Some(image.name) == reader.plan).copied();
    Ok((images, plan.ok_or(BundleError::NoPlan)?))
}

/// Collects what the FIT says about images, and the name of the plan's.
#[derive(Default)]
struct Reader<'a> {
    part: Part,
    /// The depth of the node whose properties come.
    depth: usize,
    claims: Vec<Claim<'a>>,
    hash: Option<Hash>,
    default: Option<&'a str>,
    /// Whether the node is the default configuration.
    is_default: bool,
    plan: Option<&'a str>,
    error: Option<BundleError<'a>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, entry: Entry<'a>) {
        match entry {
            Entry::Node(depth, name) => self.begin(depth, name),
            Entry::Property(name, value) => self.note(name, value),
            Entry::Nop => {}
        }
    }

    fn begin(&mut self, depth: usize, name: &'a str) {
        self.depth = depth;
        self.hash = (depth == 3 && name.starts_with("hash")).then(Hash::default);
        self.is_default = depth == 2 && Some(name) == self.default;
        if depth <= 1 {
            self.part = match (depth, name) {
                (1, "images") => Part::Images,
                (1, "configurations") => Part::Configurations,
                _ => Part::Other,
            };
        }
        if depth == 2 && self.part == Part::Images && self.error.is_none() {
            let claim = Claim { name, position: None, size: None, crc32c: None };
            if self.claims.len() == IMAGES_MAX {
                self.error = Some(BundleError::TooMany);
            } else if heap::push(&mut self.claims, claim).is_err() {
                self.error = Some(BundleError::NoMemory);
            }
        }
    }

    fn note(&mut self, name: &str, bytes: &'a [u8]) {
        match (self.part, self.depth, name) {
            (Part::Configurations, 1, "default") => self.default = value::text(bytes),
            (Part::Configurations, 2, "plan") if self.is_default => {
                self.plan = value::text(bytes);
            }
            (Part::Images, 2 | 3, _) => {
                // Beyond the last one that is taken nothing is believed anyway.
                let Some(claim) = self.claims.last_mut() else { return };
                match (self.depth, name, &mut self.hash) {
                    (2, "data-position", _) => claim.position = value::number(bytes),
                    (2, "data-size", _) => claim.size = value::number(bytes),
                    (3, "algo", Some(hash)) => {
                        hash.is_crc32c = value::text(bytes) == Some("crc32c");
                    }
                    (3, "value", Some(hash)) => hash.value = value::cell(bytes),
                    _ => {}
                }
                if let Some(Hash { is_crc32c: true, value: value @ Some(_) }) = self.hash {
                    claim.crc32c = value;
                }
            }
            _ => {}
        }
    }
}

/// Finds the bytes of an image.
fn place<'a>(
    bundle: &'a [u8],
    fit_bytes: usize,
    claim: &Claim<'a>,
) -> Result<Image<'a>, ImageError<'a>> {
    let name = claim.name;
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.len() > NAME_MAX || !name.bytes().all(is_name_byte) {
        return Err(ImageError::Name);
    }
    let position = claim.position.ok_or(ImageError::Property("data-position"))?;
    let size = claim.size.ok_or(ImageError::Property("data-size"))?;
    let crc32c = claim.crc32c.ok_or(ImageError::Property("crc32c"))?;
    let range = || {
        let position = usize::try_from(position).ok()?;
        let size = usize::try_from(size).ok()?;
        if size == 0 || position < fit_bytes || !position.is_multiple_of(IMAGE_ALIGN) {
            return None;
        }
        let offset = position.checked_add(HEADER_BYTES)?;
        Some((offset, bundle.get(offset..offset.checked_add(size)?)?))
    };
    let (offset, bytes) = range().ok_or(ImageError::Place)?;
    Ok(Image { name, offset, bytes, crc32c })
}

/// Makes sure that no two of the sorted images overlap or have the same name.
fn check_clashes<'a>(images: &[Image<'a>], pause: &mut dyn FnMut()) -> Result<(), BundleError<'a>> {
    let mut rest = images;
    while let [first, others @ ..] = rest {
        pause();
        // Both ends lie in the bundle: no overflow.
        let overlaps = |other: &&Image<'_>| other.offset < first.offset + first.bytes.len();
        let clash = others.first().filter(overlaps);
        let clash = clash.or_else(|| others.iter().find(|other| other.name == first.name));
        if let Some(other) = clash {
            return Err(BundleError::Image(first.name, ImageError::Clash(other.name)));
        }
        rest = others;
    }
    Ok(())
}
