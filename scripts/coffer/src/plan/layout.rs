// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest's memory map looks like, and where a kernel and a ramdisk go in it.
//!
//! The map is that of QEMU's virt machine as far as there is one, so that a kernel that boots
//! there boots here:
//!
//! | IPA | what |
//! |---|---|
//! | 0x0800_0000 | vdist, 64 KiB; of a GICv2 4 KiB |
//! | 0x0801_0000 | CPU interface of a GICv2, 8 KiB |
//! | 0x0808_0000 | vits of a GICv3, 128 KiB |
//! | 0x080a_0000 | vredist of a GICv3, 128 KiB for each vCPU |
//! | 0x0900_0000 | PL011, 4 KiB, INTID 33 |
//! | 0x0903_0000 | PL061, 4 KiB, INTID 39 |
//! | 0x0904_0000 | watchdog, 4 KiB for control, INTID 40 |
//! | 0x0905_0000 | watchdog, 4 KiB for the refresh |
//! | 0x0906_0000 | panic port |
//! | 0x1000_0000 to 0x4000_0000 | physical devices, INTIDs from 64 |
//! | 0x4000_0000 | RAM: device tree, 2 MiB on the kernel, behind it the ramdisk |
#![forbid(unsafe_code)]

use crate::image::{ALIGNMENT, Placement};
use cofferdam::addr::{Address, Ipa, IpaRange};
use cofferdam::id::Vintid;
use cofferdam::plan::{Layout, VgicFrames};

/// The start of RAM.
pub const RAM: Ipa = Ipa::at(0x4000_0000);
/// The bytes at the start of RAM that the device tree may take.
pub const TREE_BYTES_MAX: u64 = 2 << 20;
/// RAM is a multiple of this, so that stage 2 maps it in blocks.
pub const RAM_ALIGNMENT: u64 = 2 << 20;
/// Where physical devices are mapped.
pub const DEVICES: (Ipa, Ipa) = (Ipa::at(0x1000_0000), Ipa::at(0x4000_0000));
/// The first INTID of physical devices.
pub const DEVICE_INTERRUPTS: u32 = 64;
/// The bytes of the PL011.
pub const VUART_BYTES: u64 = 0x1000;

/// Returns where every guest's virtual devices stand on a machine with a GIC of this architecture.
#[must_use]
pub fn virtual_devices(gic_version: u32) -> Layout {
    let vgic = if gic_version == 2 {
        VgicFrames::V2 { gicc: Ipa::at(0x0801_0000) }
    } else {
        VgicFrames::V3 { vredist: Ipa::at(0x080a_0000), vits: Ipa::at(0x0808_0000) }
    };
    Layout {
        vdist: Ipa::at(0x0800_0000),
        vgic,
        vuart: Ipa::at(0x0900_0000),
        vuart_interrupt: Vintid::new(33),
        platform: Ipa::at(0x0903_0000),
        gpio_interrupt: Vintid::new(39),
        watchdog_interrupt: Vintid::new(40),
    }
}

/// Where a kernel and a ramdisk go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// The kernel's first byte.
    pub kernel: Ipa,
    /// Where it is entered.
    pub entry: Ipa,
    /// The ramdisk, where there is one.
    pub ramdisk: Option<IpaRange>,
}

/// Why something does not fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel passes the end of memory.
    #[error("the kernel takes {kernel:#x}..{end:#x}, but memory ends at {memory_end:#x}")]
    Kernel {
        /// Its first byte.
        kernel: u64,
        /// The first address behind what it takes.
        end: u64,
        /// The first address behind memory.
        memory_end: u64,
    },
    /// The kernel was linked where it cannot be.
    #[error(
        "the kernel is linked at {start:#x}..{end:#x}; memory is {memory}, and the first 2M are \
         the device tree's"
    )]
    Linked {
        /// Its first byte.
        start: u64,
        /// The first address behind it.
        end: u64,
        /// The VM's memory.
        memory: IpaRange,
    },
    /// The ramdisk passes the end of memory.
    #[error(
        "the ramdisk ({bytes:#x} bytes) starts behind the kernel at {start:#x}, but memory ends at \
         {memory_end:#x}"
    )]
    Ramdisk {
        /// Where it would start.
        start: u64,
        /// Its size.
        bytes: u64,
        /// The first address behind memory.
        memory_end: u64,
    },
}

impl PlaceError {
    /// Returns the bytes of memory with which it would fit; `None` where more does not help.
    #[must_use]
    pub fn memory_needed(&self) -> Option<u64> {
        let end = match self {
            Self::Kernel { end, .. } => Some(*end),
            Self::Ramdisk { start, bytes, .. } => start.checked_add(*bytes),
            Self::Linked { .. } => None,
        };
        end?.checked_sub(RAM.get())?.checked_next_multiple_of(RAM_ALIGNMENT)
    }
}

/// Places a kernel, and a ramdisk of so many bytes (0: none), in a guest's memory.
///
/// # Errors
/// Says what does not fit.
pub fn place(
    memory: IpaRange,
    kernel: Placement,
    ramdisk_bytes: u64,
) -> Result<Places, PlaceError> {
    let memory_end = memory.end().get();
    let (start, end, entry) = match kernel {
        Placement::Offset { text_offset, memory_bytes } => {
            // All of these are far below 2^63: RAM starts at 1 GiB and an offset is below 2 MiB.
            let start = memory.start().get() + TREE_BYTES_MAX + text_offset;
            let end = start.saturating_add(memory_bytes);
            if end > memory_end {
                return Err(PlaceError::Kernel { kernel: start, end, memory_end });
            }
            (start, end, start)
        }
        Placement::Fixed { start, end, entry } => {
            if start < memory.start().get() + TREE_BYTES_MAX || end > memory_end {
                return Err(PlaceError::Linked { start, end, memory });
            }
            (start, end, entry)
        }
    };
    let ramdisk = match ramdisk_bytes {
        0 => None,
        bytes => {
            let start = end.next_multiple_of(ALIGNMENT);
            let range = IpaRange::new(Ipa::new(start), bytes).filter(|range| memory.covers(*range));
            Some(range.ok_or(PlaceError::Ramdisk { start, bytes, memory_end })?)
        }
    };
    Ok(Places { kernel: Ipa::new(start), entry: Ipa::new(entry), ramdisk })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const M: u64 = 1 << 20;
    const START: u64 = 0x4000_0000;

    fn memory(bytes: u64) -> IpaRange {
        IpaRange::new(RAM, bytes).unwrap()
    }

    #[test]
    fn kernel_and_ramdisk_stand_behind_the_tree() {
        let kernel = Placement::Offset { text_offset: 0x8_0000, memory_bytes: 3 * M };
        let places = place(memory(16 * M), kernel, 5).unwrap();
        assert_eq!(places.kernel, Ipa::new(0x4028_0000));
        assert_eq!(places.entry, places.kernel);
        assert_eq!(places.ramdisk, IpaRange::new(Ipa::new(0x4060_0000), 5));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_one_byte() {
        let kernel = |memory_bytes| Placement::Offset { text_offset: 0, memory_bytes };
        assert!(place(memory(8 * M), kernel(6 * M), 0).is_ok());
        let error = place(memory(8 * M), kernel(6 * M + 1), 0).unwrap_err();
        assert_eq!(error.memory_needed(), Some(10 * M));
        assert!(place(memory(8 * M), kernel(2 * M), 4 * M).is_ok());
        let error = place(memory(8 * M), kernel(2 * M), 4 * M + 1).unwrap_err();
        assert_eq!(error.memory_needed(), Some(10 * M));
        assert!(place(memory(8 * M), kernel(u64::MAX), 0).is_err());
        assert!(place(memory(8 * M), kernel(2 * M), u64::MAX).is_err());
    }

    #[test]
    fn a_linked_kernel_stays_where_it_is() {
        let kernel = |start, end, entry| Placement::Fixed { start, end, entry };
        let places =
            place(memory(8 * M), kernel(START + 3 * M, START + 3 * M + 1, START + 3 * M), 1);
        let places = places.unwrap();
        assert_eq!(places.ramdisk, IpaRange::new(Ipa::new(START + 4 * M), 1));
        for (start, end) in
            [(START, START + M), (START + 2 * M - 1, START + 4 * M), (START + 2 * M, START + 9 * M)]
        {
            assert!(place(memory(8 * M), kernel(start, end, start), 0).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_placed_lies_in_memory_and_apart(
            blocks in 1u64..64,
            text_offset in 0u64..(2 << 20),
            kernel_bytes in 0u64..(96 << 20),
            ramdisk_bytes in 0u64..(96 << 20),
        ) {
            let memory = memory(blocks * RAM_ALIGNMENT);
            let kernel = Placement::Offset { text_offset, memory_bytes: kernel_bytes };
            if let Ok(places) = place(memory, kernel, ramdisk_bytes) {
                let kernel_end = places.kernel.get() + kernel_bytes;
                prop_assert!(places.kernel.get() >= START + TREE_BYTES_MAX);
                prop_assert!(kernel_end <= memory.end().get());
                prop_assert_eq!(places.ramdisk.is_some(), ramdisk_bytes > 0);
                if let Some(ramdisk) = places.ramdisk {
                    prop_assert!(ramdisk.start().get() >= kernel_end && memory.covers(ramdisk));
                    prop_assert!(ramdisk.is_aligned(1) && ramdisk.start().is_aligned(ALIGNMENT));
                }
            }
        }
    }
}
