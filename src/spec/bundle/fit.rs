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
use crate::spec::dtb::{Dtb, FdtNode, value};
use alloc::vec::Vec;

/// Which part of the FIT a node belongs to.
#[derive(Clone, Copy)]
enum Part {
    Images,
    Configurations,
    Other,
}

/// What the FIT says about an image.
struct Entry<'a> {
    name: &'a str,
    position: Option<u64>,
    size: Option<u64>,
    crc32c: Option<u32>,
}

/// Reads the FIT behind the header and finds the images, sorted by offset, and the plan's.
pub(super) fn read<'a>(bundle: &'a [u8]) -> Result<(Vec<Image<'a>>, Image<'a>), BundleError<'a>> {
    let fit = Dtb::new(bundle.get(HEADER_BYTES..).unwrap_or_default()).map_err(BundleError::Fit)?;
    let (entries, plan) = entries(&fit)?;
    let mut images = Vec::new();
    for entry in &entries {
        let image = place(bundle, fit.size(), entry);
        let image = image.map_err(|error| BundleError::Image(entry.name, error))?;
        heap::push(&mut images, image).map_err(|_| BundleError::NoMemory)?;
    }
    sort_by_key(&mut images, |image| image.offset as u64);
    check_clashes(&images)?;
    let plan = images.iter().find(|image| Some(image.name) == plan).copied();
    Ok((images, plan.ok_or(BundleError::NoPlan)?))
}

/// Collects in one walk what the FIT says about images, and the name of the plan's.
fn entries<'a>(fit: &Dtb<'a>) -> Result<(Vec<Entry<'a>>, Option<&'a str>), BundleError<'a>> {
    let (mut part, mut default, mut plan) = (Part::Other, None, None);
    let mut entries = Vec::new();
    for (depth, node) in fit.nodes() {
        match (depth, part) {
            (1, _) => {
                part = match node.name {
                    "images" => Part::Images,
                    "configurations" => Part::Configurations,
                    _ => Part::Other,
                };
                if matches!(part, Part::Configurations) {
                    default = text(node, "default");
                }
            }
            (2, Part::Images) => {
                if entries.len() == IMAGES_MAX {
                    return Err(BundleError::TooMany);
                }
                let entry = Entry {
                    name: node.name,
                    position: node.property("data-position").and_then(|p| value::number(p.value)),
                    size: node.property("data-size").and_then(|p| value::number(p.value)),
                    crc32c: None,
                };
                heap::push(&mut entries, entry).map_err(|_| BundleError::NoMemory)?;
            }
            (3, Part::Images) if node.name.starts_with("hash") => {
                if let Some(entry) = entries.last_mut()
                    && text(node, "algo") == Some("crc32c")
                {
                    entry.crc32c = node.property("value").and_then(|p| value::cell(p.value));
                }
            }
            (2, Part::Configurations) if Some(node.name) == default => plan = text(node, "plan"),
            _ => {}
        }
    }
    Ok((entries, plan))
}

fn text<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a str> {
    value::text(node.property(name)?.value)
}

/// Finds the bytes of an image.
fn place<'a>(
    bundle: &'a [u8],
    fit_bytes: usize,
    entry: &Entry<'a>,
) -> Result<Image<'a>, ImageError<'a>> {
    let name = entry.name;
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.len() > NAME_MAX || !name.bytes().all(is_name_byte) {
        return Err(ImageError::Name);
    }
    let position = entry.position.ok_or(ImageError::Property("data-position"))?;
    let size = entry.size.ok_or(ImageError::Property("data-size"))?;
    let crc32c = entry.crc32c.ok_or(ImageError::Property("crc32c"))?;
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
fn check_clashes<'a>(images: &[Image<'a>]) -> Result<(), BundleError<'a>> {
    let mut rest = images;
    while let [first, others @ ..] = rest {
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
