// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bundle: what the boot loader takes for a ramdisk. A header of 4 KiB, a FIT (a device tree,
//! Flattened Image Tree specification 0.8) and, page by page behind it, the images.
//!
//! Owns the layout and the checksums; what is in an image, and where the bundle lies in memory,
//! is not known here. Everything in a bundle may be wrong.
//!
//! | offset | size | header field |
//! |---|---|---|
//! | 0 | 8 | `COFFERDM` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags, 0 |
//! | 16 | 8 | bytes in the whole bundle, with the header |
//!
//! Numbers are little-endian; the rest of the header is ignored. Without it, U-Boot's `booti`
//! would take the FIT for its own.
#![forbid(unsafe_code)]

mod fit;

use super::dtb::DtbError;
use super::size::Size;
use crate::heap::NoMemory;
use alloc::vec::Vec;
use core::fmt;

/// What a bundle starts with.
pub const MAGIC: [u8; 8] = *b"COFFERDM";
/// The version of the header.
pub const VERSION: u32 = 1;
/// The bytes in the header; the FIT follows.
pub const HEADER_BYTES: usize = 4096;
/// What the offset of each image is a multiple of.
pub const IMAGE_ALIGN: usize = 4096;
/// The most images in a bundle.
pub const IMAGES_MAX: usize = 160;
/// The most bytes in the name of an image.
pub const NAME_MAX: usize = 31;

/// A bundle whose images all lie in it and do not overlap.
#[derive(Debug)]
pub struct Bundle<'a> {
    images: Vec<Image<'a>>,
    plan: Image<'a>,
    size: usize,
}

/// One image. Its checksum has not been compared until [`Image::verify`] has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image<'a> {
    /// Its name: letters, digits, `-` and `_`.
    pub name: &'a str,
    /// Its offset from the start of the bundle in bytes, a multiple of [`IMAGE_ALIGN`].
    pub offset: usize,
    /// Its bytes, at least one.
    pub bytes: &'a [u8],
    /// The CRC32C that the bundle states.
    pub crc32c: u32,
}

/// Why bytes are not a bundle, or not this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BundleError<'a> {
    /// The first bytes are not the magic.
    Magic,
    /// The header is of this version.
    Version(u32),
    /// The header has flags, and none are known.
    Flags(u32),
    /// The loader has given fewer bytes than the bundle has.
    Truncated {
        /// The bytes that the header states.
        expected: u64,
        /// The bytes that are there.
        present: u64,
    },
    /// The FIT is not a device tree.
    Fit(DtbError),
    /// The default configuration does not name a plan among the images.
    NoPlan,
    /// There are more than [`IMAGES_MAX`] images.
    TooMany,
    /// The hypervisor has no memory for the list of images.
    NoMemory,
    /// The image of this name, as the bundle spells it, is wrong.
    Image(&'a str, ImageError<'a>),
}

/// What is wrong with an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError<'a> {
    /// The name has a character that names do not have, or is too long.
    Name,
    /// The property is missing or malformed.
    Property(&'static str),
    /// The image is not aligned, or reaches into the FIT or past the end of the bundle.
    Place,
    /// The image of this name overlaps, or there are two of the name.
    Clash(&'a str),
    /// The contents have another checksum.
    Crc {
        /// What the bundle states.
        expected: u32,
        /// What the bytes have.
        found: u32,
    },
}

impl fmt::Display for BundleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle: ")?;
        match self {
            Self::Magic => write!(f, "the magic is missing: the ramdisk is not a bundle"),
            Self::Version(version) => write!(f, "header version {version}, {VERSION} expected"),
            Self::Flags(flags) => write!(f, "header flags {flags:#x} are not known"),
            Self::Truncated { expected, present } if expected.abs_diff(*present) < 1 << 20 => {
                write!(f, "{expected} bytes expected, {present} bytes present")
            }
            Self::Truncated { expected, present } => {
                write!(f, "{} expected, {} present", Size(*expected), Size(*present))
            }
            Self::Fit(error) => write!(f, "{error}"),
            Self::NoPlan => write!(f, "the default configuration names no plan"),
            Self::TooMany => write!(f, "more than {IMAGES_MAX} images"),
            Self::NoMemory => NoMemory.fmt(f),
            Self::Image(name, ImageError::Name) => write!(f, "{name} is no name for an image"),
            Self::Image(name, ImageError::Property(property)) => {
                write!(f, "image {name}: {property} is missing or malformed")
            }
            Self::Image(name, ImageError::Place) => {
                write!(f, "image {name} is not aligned or not inside the bundle")
            }
            Self::Image(name, ImageError::Clash(other)) => {
                write!(f, "images {name} and {other} overlap")
            }
            Self::Image(name, ImageError::Crc { expected, found }) => {
                write!(f, "image {name} is damaged: crc32c {expected:08x} expected, {found:08x}")
            }
        }
    }
}

/// Returns the bytes in the whole bundle, as its header says; 24 bytes suffice.
///
/// # Errors
/// There is no header, or not of this version. The size is not compared with anything.
pub fn total_size(bytes: &[u8]) -> Result<u64, BundleError<'static>> {
    if bytes.first_chunk() != Some(&MAGIC) {
        return Err(BundleError::Magic);
    }
    let truncated =
        BundleError::Truncated { expected: HEADER_BYTES as u64, present: bytes.len() as u64 };
    let word = |at| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let (Some(version), Some(flags), Some(low), Some(high)) =
        (word(8), word(12), word(16), word(20))
    else {
        return Err(truncated);
    };
    match (version, flags) {
        (VERSION, 0) => Ok(u64::from(high) << 32 | u64::from(low)),
        (VERSION, flags) => Err(BundleError::Flags(flags)),
        (version, _) => Err(BundleError::Version(version)),
    }
}

impl<'a> Bundle<'a> {
    /// Reads the bundle at the start of `present`: all the bytes that the loader gave, of which
    /// there may be more than the bundle has.
    ///
    /// # Errors
    /// Says what is wrong and names the images.
    #[inline(never)]
    pub fn parse(present: &'a [u8]) -> Result<Self, BundleError<'a>> {
        Self::parse_in_pieces(present, &mut || {})
    }

    /// Does the same with a `pause` behind each small piece of the work.
    ///
    /// # Errors
    /// Says what is wrong and names the images.
    #[inline(never)]
    pub fn parse_in_pieces(
        present: &'a [u8],
        pause: &mut dyn FnMut(),
    ) -> Result<Self, BundleError<'a>> {
        let expected = total_size(present)?;
        let bytes = usize::try_from(expected).ok().and_then(|total| present.get(..total));
        let bytes =
            bytes.ok_or(BundleError::Truncated { expected, present: present.len() as u64 })?;
        let (images, plan) = fit::read(bytes, pause)?;
        Ok(Self { images, plan, size: bytes.len() })
    }

    /// Returns the bytes in the whole bundle.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the image that holds the plan.
    #[must_use]
    pub fn plan(&self) -> Image<'a> {
        self.plan
    }

    /// Returns all images in the order in which they lie in the bundle.
    #[must_use]
    pub fn images(&self) -> &[Image<'a>] {
        &self.images
    }

    /// Returns the image of this name.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<Image<'a>> {
        self.images.iter().find(|image| image.name == name).copied()
    }
}

impl<'a> Image<'a> {
    /// Compares the contents with the checksum; `crc` computes a CRC32C, such as [`crc32c`].
    ///
    /// # Errors
    /// States both checksums.
    pub fn verify(&self, crc: impl FnOnce(&[u8]) -> u32) -> Result<(), BundleError<'a>> {
        let (expected, found) = (self.crc32c, crc(self.bytes));
        if expected == found {
            return Ok(());
        }
        Err(BundleError::Image(self.name, ImageError::Crc { expected, found }))
    }
}

/// Computes a CRC32C (the polynomial of iSCSI, as the A64 `CRC32C*` instructions have it) with a
/// table.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    TABLE.checksum(bytes)
}

/// Returns the CRC32C of bytes behind others that have the CRC32C `before`: 0 where there are none.
#[must_use]
pub fn crc32c_behind(before: u32, bytes: &[u8]) -> u32 {
    let crc = crc::Crc::<u32, crc::NoTable>::new(&crc::CRC_32_ISCSI);
    // What is handed over is neither inverted nor reflected.
    let mut digest = crc.digest_with_initial((!before).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests;
