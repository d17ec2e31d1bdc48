// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMSAv8-64 with the 4 KiB granule: descriptors of stage 2 and of EL2's own stage 1, and the
//! registers that point at tables.
//!
//! Knows bits only: who may map what is not decided here. Without FEAT_LPA2 the 4 KiB granule ends
//! at 48 bits of input and of output, and nothing here goes beyond. DDI 0487 D8.2 (translation
//! process), D8.3 (descriptor formats), D8.4 (permissions), D8.6 (memory types), and D24.2 for
//! MAIR_EL2, TCR_EL2, VTCR_EL2, VTTBR_EL2 and ID_AA64MMFR0_EL1 to ID_AA64MMFR2_EL1.
#![forbid(unsafe_code)]

use crate::addr::{Address, PAGE_SIZE, Pa};
use crate::id::Vmid;

/// Descriptors in one table.
pub const ENTRIES: u64 = 512;
/// Bytes in a descriptor.
pub const ENTRY_BYTES: u64 = 8;
/// Leaves that share one TLB entry under the contiguous hint (4 KiB granule, levels 2 and 3).
pub const CONTIGUOUS_COUNT: u64 = 16;
/// The contiguous hint of a leaf.
pub const CONTIGUOUS: u64 = 1 << 52;
/// The most address bits, in and out, that the 4 KiB granule reaches without FEAT_LPA2.
pub const BITS_MAX: u32 = 48;
/// The fewest address bits that are configured: PARange never says less.
pub const BITS_MIN: u32 = 32;

const VALID: u64 = 1 << 0;
/// Table at levels 0 to 2, page at level 3; clear in a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
const OUTPUT: u64 = 0xffff_ffff_f000;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 0b11 << 8;
/// XN of EL2's stage 1; XN\[1\] of stage 2, which alone means "nowhere", with FEAT_XNX or without.
const XN: u64 = 1 << 54;

/// A level of lookup; a bigger one is nearer to the page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// An entry covers 512 GiB and is never a leaf.
    L0,
    /// An entry covers 1 GiB.
    L1,
    /// An entry covers 2 MiB.
    L2,
    /// An entry is a page of 4 KiB.
    L3,
}

impl Level {
    /// Returns log2 of the bytes that an entry covers.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::L0 => 39,
            Self::L1 => 30,
            Self::L2 => 21,
            Self::L3 => 12,
        }
    }
    /// Returns the bytes that an entry covers.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// Returns the level of the tables that entries of this level point at.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }
}

/// What the MMU reads in a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// The walk ends with a translation fault.
    Invalid,
    /// The walk goes on in the table at this address.
    Table(Pa),
    /// A block or page.
    Leaf {
        /// Where it is.
        output: Pa,
        /// All bits but the type, the address and the contiguous hint.
        attributes: u64,
        /// Whether it is one of 16 leaves that may share a TLB entry.
        contiguous: bool,
    },
}

impl Descriptor {
    /// Reads a descriptor found at `level`; reserved encodings are invalid (D8.3.1).
    #[must_use]
    pub fn decode(level: Level, descriptor: u64) -> Self {
        let output = Pa::new(descriptor & OUTPUT);
        match (descriptor & (VALID | TABLE_OR_PAGE), level) {
            (0b01, Level::L1 | Level::L2) | (0b11, Level::L3) => Self::Leaf {
                output,
                attributes: descriptor & !(VALID | TABLE_OR_PAGE | OUTPUT | CONTIGUOUS),
                contiguous: descriptor & CONTIGUOUS != 0,
            },
            (0b11, _) => Self::Table(output),
            _ => Self::Invalid,
        }
    }
}

/// Makes the descriptor that leads to the table at `next`; it restricts nothing by itself.
#[must_use]
pub fn table(next: Pa) -> u64 {
    next.get() & OUTPUT | TABLE_OR_PAGE | VALID
}

/// Makes a leaf of `level`, which is not [`Level::L0`], with `attributes` of either format below.
#[must_use]
pub fn leaf(level: Level, output: Pa, attributes: u64) -> u64 {
    let page = if level == Level::L3 { TABLE_OR_PAGE } else { 0 };
    output.get() & OUTPUT | attributes | page | VALID
}

/// What a guest may do with memory (stage 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage2Attributes {
    /// Normal write-back, read, write, execute.
    Ram,
    /// Normal write-back, read and execute.
    ReadOnly,
    /// Device-nGnRE, read and write, never execute.
    Device,
}

impl Stage2Attributes {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ram, Self::ReadOnly, Self::Device];

    /// Returns the attribute bits of a leaf: MemAttr 5:2, S2AP 7:6, SH 9:8, AF 10, XN 54:53.
    #[must_use]
    pub const fn bits(self, encoding: MemAttrEncoding) -> u64 {
        const READ: u64 = 0b01 << 6;
        const WRITE: u64 = 0b10 << 6;
        let normal = match encoding {
            MemAttrEncoding::Combining => 0b1111 << 2,
            MemAttrEncoding::Forced => 0b0110 << 2,
        };
        // The same in both encodings: Device-nGnRE.
        let device = 0b0001 << 2;
        AF | match self {
            Self::Ram => normal | READ | WRITE | SH_INNER,
            Self::ReadOnly => normal | READ | SH_INNER,
            Self::Device => device | READ | WRITE | XN,
        }
    }
}

/// How stage 2 says "write-back" (D8.6.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemAttrEncoding {
    /// HCR_EL2.FWB = 0: combined with stage 1, the weaker cacheability wins.
    Combining,
    /// HCR_EL2.FWB = 1: write-back whatever stage 1 says.
    Forced,
}

/// What EL2 may do with memory (stage 1, non-VHE): never write and execute, always global.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HypAttributes {
    /// Normal write-back, read and execute.
    Text,
    /// Normal write-back, read.
    Rodata,
    /// Normal write-back, read and write.
    Data,
    /// Device-nGnRE, read and write.
    Device,
}

impl HypAttributes {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Text, Self::Rodata, Self::Data, Self::Device];

    /// Returns the attribute bits of a leaf: AttrIndx 4:2, AP\[2:1\] 7:6, SH 9:8, AF 10, XN 54.
    #[must_use]
    pub const fn bits(self) -> u64 {
        // AP[1] is RES1 where a regime has one privilege level; nG and PXN are RES0.
        const READ: u64 = 0b11 << 6;
        const READ_WRITE: u64 = 0b01 << 6;
        let normal = mair::NORMAL << 2 | SH_INNER;
        AF | match self {
            Self::Text => normal | READ,
            Self::Rodata => normal | READ | XN,
            Self::Data => normal | READ_WRITE | XN,
            Self::Device => mair::DEVICE_NGNRE << 2 | READ_WRITE | XN,
        }
    }
}

/// Memory types of EL2's stage 1: indices into MAIR_EL2, and its value.
pub mod mair {
    /// Device-nGnRnE: no gathering, no reordering, no early acknowledgement.
    pub const DEVICE_NGNRNE: u64 = 0;
    /// Device-nGnRE: writes may be acknowledged early.
    pub const DEVICE_NGNRE: u64 = 1;
    /// Normal, inner and outer write-back, read- and write-allocate, not transient.
    pub const NORMAL: u64 = 2;
    /// MAIR_EL2.
    pub const MAIR_EL2: u64 =
        0x00 << (8 * DEVICE_NGNRNE) | 0x04 << (8 * DEVICE_NGNRE) | 0xff << (8 * NORMAL);
}

/// Where walks of one input size begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    input_bits: u32,
    start: Level,
    root_tables: u64,
}

impl Geometry {
    /// Returns the shape of stage-2 tables for `ipa_bits`, or `None` outside 32 to 48 bits.
    ///
    /// Up to 16 tables side by side save a level (D8.2.2): 43 bits still start at level 1. Level 2
    /// is never the start, since there is no 1 GiB block below it.
    #[must_use]
    pub const fn stage2(ipa_bits: u32) -> Option<Self> {
        match ipa_bits {
            BITS_MIN..=39 => Some(Self::of(ipa_bits, Level::L1, 1)),
            40..=43 => Some(Self::of(ipa_bits, Level::L1, 1 << (ipa_bits - 39))),
            44..=BITS_MAX => Some(Self::of(ipa_bits, Level::L0, 1)),
            _ => None,
        }
    }
    /// Returns the shape of stage-1 tables for `va_bits`, or `None` outside 32 to 48 bits.
    #[must_use]
    pub const fn stage1(va_bits: u32) -> Option<Self> {
        match va_bits {
            BITS_MIN..=39 => Some(Self::of(va_bits, Level::L1, 1)),
            40..=BITS_MAX => Some(Self::of(va_bits, Level::L0, 1)),
            _ => None,
        }
    }
    const fn of(input_bits: u32, start: Level, root_tables: u64) -> Self {
        Self { input_bits, start, root_tables }
    }
    /// Returns the number of input address bits.
    #[must_use]
    pub const fn input_bits(self) -> u32 {
        self.input_bits
    }
    /// Returns the level of the root.
    #[must_use]
    pub const fn start(self) -> Level {
        self.start
    }
    /// Returns the bytes of the root, which are also its alignment.
    #[must_use]
    pub const fn root_bytes(self) -> u64 {
        self.root_tables * PAGE_SIZE
    }
}

/// What the MMUs of all cores together can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Bits of a physical address, at most 48.
    pub pa_bits: u32,
    /// Bits of a VMID: 8 or 16.
    pub vmid_bits: u32,
    /// FEAT_S2FWB where there; the caller sets HCR_EL2.FWB to match.
    pub encoding: MemAttrEncoding,
}

impl Features {
    /// Reads one core's ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1 and ID_AA64MMFR2_EL1.
    #[must_use]
    pub const fn from_id_registers(mmfr0: u64, mmfr1: u64, mmfr2: u64) -> Self {
        let pa_bits = match mmfr0 & 0xf {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            // 52 and more bits need FEAT_LPA2 with this granule.
            _ => BITS_MAX,
        };
        let vmid_bits = if mmfr1 >> 4 & 0xf == 0b0010 { 16 } else { 8 };
        let encoding = match mmfr2 >> 40 & 0xf {
            0 => MemAttrEncoding::Combining,
            _ => MemAttrEncoding::Forced,
        };
        Self { pa_bits, vmid_bits, encoding }
    }
    /// Returns what this core and `other` both can do.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            pa_bits: self.pa_bits.min(other.pa_bits),
            vmid_bits: self.vmid_bits.min(other.vmid_bits),
            encoding: match (self.encoding, other.encoding) {
                (MemAttrEncoding::Forced, MemAttrEncoding::Forced) => MemAttrEncoding::Forced,
                _ => MemAttrEncoding::Combining,
            },
        }
    }
}

/// Returns the value of a PS or PARange field for `pa_bits`, rounded down to a size that exists.
#[must_use]
pub const fn ps(pa_bits: u32) -> u64 {
    match pa_bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        _ => 5,
    }
}

/// What TCR_EL2 and VTCR_EL2 have in the same places: T0SZ 5:0; table walks inner and outer
/// write-back write-allocate (9:8, 11:10) and inner shareable (13:12); TG0 15:14 = 4 KiB; PS 18:16.
fn walk_control(geometry: Geometry, pa_bits: u32) -> u64 {
    let t0sz = u64::from(64 - geometry.input_bits);
    t0sz | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | ps(pa_bits) << 16
}

/// Makes VTCR_EL2 for stage-2 tables of this shape on cores with these features.
#[must_use]
pub fn vtcr_el2(geometry: Geometry, features: Features) -> u64 {
    const RES1: u64 = 1 << 31;
    const VS_16_BITS: u64 = 1 << 19;
    let sl0: u64 = if geometry.start == Level::L0 { 2 } else { 1 };
    let vs = if features.vmid_bits == 16 { VS_16_BITS } else { 0 };
    walk_control(geometry, features.pa_bits) | sl0 << 6 | vs | RES1
}

/// Makes TCR_EL2 (E2H = 0) for stage-1 tables of this shape.
#[must_use]
pub fn tcr_el2(geometry: Geometry, pa_bits: u32) -> u64 {
    const RES1: u64 = 1 << 31 | 1 << 23;
    walk_control(geometry, pa_bits) | RES1
}

/// Makes VTTBR_EL2. CnP stays 0: no two cores promise to have common tables.
#[must_use]
pub fn vttbr_el2(root: Pa, vmid: Vmid) -> u64 {
    u64::from(vmid.get()) << 48 | root.get() & OUTPUT
}

#[cfg(test)]
mod tests {
    use super::*;

    const A72: (u64, u64, u64) = (0x1124, 0, 0);
    const MAX: (u64, u64, u64) = (0x2100_0000_1126, 0x20, 1 << 40);

    fn features((mmfr0, mmfr1, mmfr2): (u64, u64, u64)) -> Features {
        Features::from_id_registers(mmfr0, mmfr1, mmfr2)
    }

    /// Sizes and start levels that D8.2.2 (table of concatenated tables) allows for 4 KiB.
    #[test]
    fn t38_stage2_root_follows_the_ipa_size() {
        let of = |bits| Geometry::stage2(bits).map(|g| (g.start(), g.root_bytes() / PAGE_SIZE));
        assert_eq!(of(31), None);
        assert_eq!(of(32), Some((Level::L1, 1)));
        assert_eq!(of(39), Some((Level::L1, 1)));
        assert_eq!(of(40), Some((Level::L1, 2)));
        assert_eq!(of(42), Some((Level::L1, 8)));
        assert_eq!(of(43), Some((Level::L1, 16)));
        assert_eq!(of(44), Some((Level::L0, 1)));
        assert_eq!(of(48), Some((Level::L0, 1)));
        assert_eq!(of(49), None);
    }

    #[test]
    fn stage1_roots_are_never_concatenated() {
        for bits in BITS_MIN..=BITS_MAX {
            let geometry = Geometry::stage1(bits).unwrap();
            assert_eq!(geometry.root_bytes(), PAGE_SIZE);
            assert!(geometry.start().shift() < bits && bits <= geometry.start().shift() + 9);
        }
    }

    #[test]
    fn t40_output_size_is_the_smallest_of_all_cores() {
        let (a72, max) = (features(A72), features(MAX));
        assert_eq!((a72.pa_bits, max.pa_bits), (44, 48));
        let common = max.and(a72);
        assert_eq!(common.pa_bits, 44);
        let vtcr = vtcr_el2(Geometry::stage2(40).unwrap(), common);
        assert_eq!(vtcr >> 16 & 7, 0b100);
        assert_eq!(ps(40), 0b010);
        assert_eq!(ps(48), 0b101);
    }

    #[test]
    fn t10_vmid_size_and_t17_fwb_hold_for_all_cores_or_none() {
        let (a72, max) = (features(A72), features(MAX));
        assert_eq!((a72.vmid_bits, max.vmid_bits), (8, 16));
        assert_eq!(
            (a72.encoding, max.encoding),
            (MemAttrEncoding::Combining, MemAttrEncoding::Forced)
        );
        assert_eq!(max.and(a72), Features { pa_bits: 44, ..a72 });
        assert_eq!(max.and(max), max);
        let geometry = Geometry::stage2(40).unwrap();
        assert_eq!(vtcr_el2(geometry, a72) >> 19 & 1, 0);
        assert_eq!(vtcr_el2(geometry, max) >> 19 & 1, 1);
    }

    /// Bit by bit from the register descriptions.
    #[test]
    fn registers_have_the_documented_values() {
        // RES1 31, PS 44 bits, 4 KiB, inner shareable, write-back, SL0 = level 1, T0SZ 24.
        assert_eq!(vtcr_el2(Geometry::stage2(40).unwrap(), features(A72)), 0x8004_3558);
        // The same with SL0 = level 0, T0SZ 16, PS 48 bits, VS.
        assert_eq!(vtcr_el2(Geometry::stage2(48).unwrap(), features(MAX)), 0x800d_3590);
        assert_eq!(tcr_el2(Geometry::stage1(44).unwrap(), 44), 0x8084_3514);
        assert_eq!(mair::MAIR_EL2, 0xff_0400);
    }

    #[test]
    fn t12_vttbr_has_no_cnp() {
        let vttbr = vttbr_el2(Pa::new(0x4765_4321_0fff), Vmid::new(0xabcd));
        assert_eq!(vttbr, 0xabcd_4765_4321_0000);
    }

    /// MemAttr 5:2 in both encodings: Normal write-back is 1111 without FWB and x110 with it.
    #[test]
    fn t17_normal_is_encoded_by_fwb() {
        use MemAttrEncoding::{Combining, Forced};
        let memattr = |a: Stage2Attributes, e| a.bits(e) >> 2 & 0xf;
        for normal in [Stage2Attributes::Ram, Stage2Attributes::ReadOnly] {
            assert_eq!(memattr(normal, Combining), 0b1111);
            assert_eq!(memattr(normal, Forced), 0b0110);
        }
        assert_eq!(memattr(Stage2Attributes::Device, Combining), 0b0001);
        assert_eq!(memattr(Stage2Attributes::Device, Forced), 0b0001);
    }

    #[test]
    fn stage2_leaves_have_the_documented_values() {
        let page = |a: Stage2Attributes| {
            leaf(Level::L3, Pa::new(0x4321_f000), a.bits(MemAttrEncoding::Combining))
        };
        assert_eq!(page(Stage2Attributes::Ram), 0x4321_f7ff);
        assert_eq!(page(Stage2Attributes::ReadOnly), 0x4321_f77f);
        assert_eq!(page(Stage2Attributes::Device), 0x0040_0000_4321_f4c7);
    }

    #[test]
    fn t18_device_is_never_executable() {
        for encoding in [MemAttrEncoding::Combining, MemAttrEncoding::Forced] {
            assert_eq!(Stage2Attributes::Device.bits(encoding) >> 53 & 0b11, 0b10);
        }
        assert_eq!(HypAttributes::Device.bits() & XN, XN);
    }

    #[test]
    fn t45_el2_never_writes_and_executes() {
        for attributes in HypAttributes::ALL {
            let (ap, xn) = (attributes.bits() >> 6 & 0b11, attributes.bits() >> 54 & 1);
            assert_eq!(ap & 0b01, 1, "AP[1] is RES1");
            assert!(ap & 0b10 != 0 || xn == 1, "{attributes:?}");
            assert_eq!(attributes.bits() >> 11 & 1, 0, "nG is RES0");
        }
        let page = |a: HypAttributes| leaf(Level::L3, Pa::new(0x1000), a.bits());
        assert_eq!(page(HypAttributes::Text), 0x17cb);
        assert_eq!(page(HypAttributes::Rodata), 0x0040_0000_0000_17cb);
        assert_eq!(page(HypAttributes::Data), 0x0040_0000_0000_174b);
        assert_eq!(page(HypAttributes::Device), 0x0040_0000_0000_1447);
    }

    #[test]
    fn reserved_descriptors_are_invalid() {
        for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
            assert_eq!(Descriptor::decode(level, 0b00), Descriptor::Invalid);
            assert_eq!(Descriptor::decode(level, 0b10), Descriptor::Invalid);
        }
        assert_eq!(Descriptor::decode(Level::L0, 0b01), Descriptor::Invalid);
        assert_eq!(Descriptor::decode(Level::L3, 0b01), Descriptor::Invalid);
        assert_eq!(Descriptor::decode(Level::L2, 0x5003), Descriptor::Table(Pa::new(0x5000)));
    }
}
