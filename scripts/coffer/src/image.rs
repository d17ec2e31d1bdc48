// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests' kernels: which format a file has, and what it asks of its place in memory.
//!
//! arm64 `Image` (Linux, Documentation/arch/arm64/booting.rst), gzip of anything here, ELF.
//! Knows no layout of guests beyond that RAM has a start. The file may be hostile.
#![forbid(unsafe_code)]

use crate::elf::flatten::{By, Flat, FlattenError, flatten};
use crate::explain::Code;
use std::io::Read;

/// The base of an Image is a multiple of this.
pub const ALIGNMENT: u64 = 2 << 20;
const HEADER_BYTES: usize = 64;
/// What kernels without image_size are given behind their end.
const LEGACY_SLACK: u64 = 16 << 20;
/// Where kernels without image_size want to be.
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;

/// A kernel, ready to be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// What the file is called in reports.
    pub format: &'static str,
    /// What goes into memory.
    pub bytes: Vec<u8>,
    /// Where it goes.
    pub placement: Placement,
    /// What is doubtful about it.
    pub warnings: Vec<(Code, String)>,
}

/// Where a kernel goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// So far behind a multiple of 2 MiB, entered at its first byte.
    Offset {
        /// The distance in bytes, less than 2 MiB.
        text_offset: u64,
        /// The bytes that it takes in memory, no less than it has.
        memory_bytes: u64,
    },
    /// Where it was linked.
    Fixed {
        /// The address of its first byte.
        start: u64,
        /// The first address behind what it takes in memory.
        end: u64,
        /// Where it is entered.
        entry: u64,
    },
}

/// Why a file is not a kernel that can be started.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// None of the formats.
    #[error("this is neither an arm64 Image nor gzip nor ELF")]
    Unknown,
    /// A format that people use and that comes later.
    #[error("{0} is not supported yet")]
    NotYet(&'static str),
    /// An Image for big-endian cores.
    #[error("this kernel is big-endian")]
    BigEndian,
    /// An offset that no kernel has.
    #[error("the header's text_offset {0:#x} is not a multiple of 4K below 2M")]
    TextOffset(u64),
    /// An Image that wants more memory than the VM has.
    #[error("the header's image_size {0:#x} is more than the VM's memory")]
    ImageSize(u64),
    /// gzip, but broken.
    #[error("the gzip data is broken: {0}")]
    Gzip(String),
    /// gzip that grows past the VM's memory.
    #[error("the gzip data unpacks to more than the VM's memory")]
    GzipTooLarge,
    /// gzip in gzip.
    #[error("the gzip data holds gzip data again")]
    GzipTwice,
    /// ELF, but not usable.
    #[error(transparent)]
    Elf(#[from] FlattenError),
}

/// Takes a file without a header. It gets as much memory behind it as old kernels do, since nothing
/// says where its data and its stack end.
#[must_use]
pub fn flat(file: Vec<u8>) -> Kernel {
    let memory_bytes = length(&file).saturating_add(LEGACY_SLACK);
    let placement = Placement::Offset { text_offset: 0, memory_bytes };
    Kernel { format: "flat", bytes: file, placement, warnings: Vec::new() }
}

/// Reads a kernel for a VM with so much memory.
///
/// # Errors
/// Says why it cannot be started.
pub fn kernel(file: Vec<u8>, memory_bytes: u64) -> Result<Kernel, ImageError> {
    if file.starts_with(&[0x1f, 0x8b]) {
        let unpacked = gunzip(&file, memory_bytes)?;
        if unpacked.starts_with(&[0x1f, 0x8b]) {
            return Err(ImageError::GzipTwice);
        }
        let kernel = plain_kernel(unpacked, memory_bytes)?;
        let format = if kernel.format == "Image" { "Image, gzip" } else { "ELF, gzip" };
        return Ok(Kernel { format, ..kernel });
    }
    plain_kernel(file, memory_bytes)
}

fn gunzip(file: &[u8], limit: u64) -> Result<Vec<u8>, ImageError> {
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(file)
        .take(limit.saturating_add(1))
        .read_to_end(&mut unpacked)
        .map_err(|error| ImageError::Gzip(error.to_string()))?;
    if length(&unpacked) > limit {
        return Err(ImageError::GzipTooLarge);
    }
    Ok(unpacked)
}

fn plain_kernel(file: Vec<u8>, memory_bytes: u64) -> Result<Kernel, ImageError> {
    if file.starts_with(b"\x7fELF") {
        let Flat { base: start, bytes, end, entry } =
            flatten(&file, By::PhysicalAddress, memory_bytes)?;
        let placement = Placement::Fixed { start, end, entry };
        return Ok(Kernel { format: "ELF", bytes, placement, warnings: Vec::new() });
    }
    if file.get(4..8) == Some(b"zimg") {
        return Err(ImageError::NotYet("an EFI zboot kernel"));
    }
    if file.starts_with(b"ANDROID!") {
        return Err(ImageError::NotYet("an Android boot image"));
    }
    if file.starts_with(b"\x28\xb5\x2f\xfd") || file.starts_with(b"\xfd7zXZ\0") {
        return Err(ImageError::NotYet("compression other than gzip"));
    }
    let header = file.first_chunk::<HEADER_BYTES>().ok_or(ImageError::Unknown)?;
    if header.get(56..60) != Some(b"ARM\x64") {
        return Err(ImageError::Unknown);
    }
    let (placement, warnings) = image(header, length(&file), memory_bytes)?;
    Ok(Kernel { format: "Image", bytes: file, placement, warnings })
}

/// Reads the header of an Image of so many bytes.
fn image(
    header: &[u8; HEADER_BYTES],
    file_bytes: u64,
    memory_bytes: u64,
) -> Result<(Placement, Vec<(Code, String)>), ImageError> {
    let field = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let (text_offset, image_size, flags) = (field(8), field(16), field(24));
    let mut warnings = Vec::new();
    if flags & 1 != 0 {
        return Err(ImageError::BigEndian);
    }
    if let page @ 2..=3 = (flags >> 1) & 3 {
        let text = format!("this kernel needs cores with {}K pages", 1 << (2 * page));
        warnings.push((Code::W03, text));
    }
    let (text_offset, needed) = if image_size == 0 {
        warnings
            .push((Code::W02, "the kernel's header does not say how much memory it takes".into()));
        (LEGACY_TEXT_OFFSET, file_bytes.saturating_add(LEGACY_SLACK))
    } else {
        (text_offset, image_size.max(file_bytes))
    };
    if text_offset >= ALIGNMENT || !text_offset.is_multiple_of(4096) {
        return Err(ImageError::TextOffset(text_offset));
    }
    if image_size > memory_bytes {
        return Err(ImageError::ImageSize(image_size));
    }
    Ok((Placement::Offset { text_offset, memory_bytes: needed }, warnings))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::flatten::tests::elf;
    use proptest::prelude::*;
    use std::io::Write;

    const MEMORY: u64 = 64 << 20;

    fn header(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut image = vec![0; HEADER_BYTES];
        image[8..32]
            .copy_from_slice(&[text_offset, image_size, flags].map(u64::to_le_bytes).concat());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn offset(text_offset: u64, memory_bytes: u64) -> Placement {
        Placement::Offset { text_offset, memory_bytes }
    }

    #[test]
    fn an_image_says_where_it_wants_to_be() {
        let read = kernel(header(0x1000, 0x20_0000, 0b1010), MEMORY).unwrap();
        assert_eq!((read.placement, read.warnings), (offset(0x1000, 0x20_0000), vec![]));
        // A size below the file's own is none.
        let read = kernel(header(0, 1, 0), MEMORY).unwrap();
        assert_eq!(read.placement, offset(0, 64));
    }

    #[test]
    fn a_legacy_image_gets_room_and_a_warning() {
        let read = kernel(header(0x1234, 0, 0), MEMORY).unwrap();
        assert_eq!(read.placement, offset(0x8_0000, 64 + (16 << 20)));
        assert_eq!(read.warnings[0].0, Code::W02);
    }

    #[test]
    fn pages_other_than_4k_are_doubtful() {
        for (flags, warned) in [(0b010, false), (0b100, true), (0b110, true)] {
            let read = kernel(header(0, 64, flags), MEMORY).unwrap();
            assert_eq!(!read.warnings.is_empty(), warned);
        }
        let read = kernel(header(0, 64, 0b110), MEMORY).unwrap();
        assert!(read.warnings[0].1.contains("64K"));
    }

    #[test]
    fn headers_that_no_kernel_has_are_refused() {
        let refused = |text_offset, image_size, flags| {
            kernel(header(text_offset, image_size, flags), MEMORY).unwrap_err()
        };
        assert_eq!(refused(0, 64, 1), ImageError::BigEndian);
        assert_eq!(refused(2 << 20, 64, 0), ImageError::TextOffset(2 << 20));
        assert_eq!(refused(u64::MAX, 64, 0), ImageError::TextOffset(u64::MAX));
        assert_eq!(refused(0x100, 64, 0), ImageError::TextOffset(0x100));
        assert_eq!(refused(0, MEMORY + 1, 0), ImageError::ImageSize(MEMORY + 1));
        assert_eq!(refused(0, u64::MAX, 0), ImageError::ImageSize(u64::MAX));
    }

    #[test]
    fn files_that_are_no_kernels_are_refused() {
        for length in [0, 1, 63, 64, 4095] {
            assert_eq!(kernel(vec![0; length], MEMORY), Err(ImageError::Unknown), "{length}");
        }
        assert!(matches!(kernel(b"MZ\0\0zimg".to_vec(), MEMORY), Err(ImageError::NotYet(_))));
        assert!(matches!(kernel(b"ANDROID!".to_vec(), MEMORY), Err(ImageError::NotYet(_))));
    }

    #[test]
    fn gzip_is_unpacked_within_the_limit() {
        let mut image = header(0, 0x10_0000, 0);
        image.resize(0x8000, 7);
        let read = kernel(gzip(&image), MEMORY).unwrap();
        assert_eq!((read.format, &read.bytes), ("Image, gzip", &image));
        assert_eq!(kernel(gzip(&image), 0x7fff), Err(ImageError::GzipTooLarge));
        assert_eq!(kernel(gzip(&gzip(&image)), MEMORY), Err(ImageError::GzipTwice));
        let packed = gzip(&image);
        for length in 2..packed.len() {
            assert!(matches!(kernel(packed[..length].into(), MEMORY), Err(ImageError::Gzip(_))));
        }
    }

    #[test]
    fn an_elf_file_stands_where_it_was_linked() {
        let file = elf(0x4020_0000, &[(120, 0x4020_0000, 0x4020_0000, 4, 0x1000)], b"abcd");
        let read = kernel(file, MEMORY).unwrap();
        let (start, end, entry) = (0x4020_0000, 0x4020_1000, 0x4020_0000);
        assert_eq!(read.placement, Placement::Fixed { start, end, entry });
        assert_eq!(read.bytes, b"abcd");
    }

    proptest! {
        #[test]
        fn no_header_makes_a_panic(bytes in prop::collection::vec(any::<u8>(), 64)) {
            let mut bytes = bytes;
            bytes[56..60].copy_from_slice(b"ARM\x64");
            if let Ok(Kernel { placement: Placement::Offset { text_offset, memory_bytes }, .. }) =
                kernel(bytes, MEMORY)
            {
                prop_assert!(text_offset < ALIGNMENT && (64..=MEMORY).contains(&memory_bytes));
            }
        }
    }
}
