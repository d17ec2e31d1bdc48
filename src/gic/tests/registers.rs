// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers: what can be read, what can be written, and that nothing else can.
#![forbid(unsafe_code)]

use super::*;
use crate::spec::gic::GICD_BYTES;

/// A VM with one vCPU and all SPIs that there can be.
fn full() -> (Vgic, SpiToken) {
    Vgic::new(Version::V3, &[affinity(0)], 988, &[]).unwrap()
}

#[test]
fn identification_is_that_of_a_gicv3_with_one_security_state() {
    let machine = Machine::new(2, 4);
    // DS and ARE, and the two groups.
    assert_eq!(machine.read(0), 0x53);
    // ITLinesNumber 2: INTIDs up to 95; IDbits 9, A3V, RSS; no LPIs, no MBIS, no ESPIs.
    assert_eq!(machine.read(4), 9 << 19 | 1 << 24 | 1 << 26 | 2);
    assert_eq!(machine.read(8) & 0xfff, 0x43b);
    assert_eq!(machine.read(0xffe8) >> 4 & 0xf, 3);
    assert_eq!(machine.read(0xc), 0);
    let rd = |offset| machine.vgic.read_vredists(offset, Width::Word).unwrap();
    assert_eq!(rd(0xffe8) >> 4 & 0xf, 3);
    assert_eq!(rd(4), machine.read(8));
    assert_eq!(rd(0), 0);
}

#[test]
fn control_keeps_the_group_enables_only() {
    let mut machine = Machine::new(1, 4);
    machine.write(0, 0);
    assert_eq!(machine.read(0), 0x50);
    machine.write(0, 0xffff_ffff);
    assert_eq!(machine.read(0), 0x53, "no RWP: writes are done when they return");
}

#[test]
fn t74_redistributors_stand_side_by_side_and_the_last_one_says_so() {
    for vcpus in [1usize, 2, 4, 8, 64] {
        let affinities: Vec<_> = (0..vcpus as u64).map(affinity).collect();
        let (vgic, _) = Vgic::new(Version::V3, &affinities, 0, &[]).unwrap();
        for (n, affinity) in affinities.iter().enumerate() {
            let frame = n as u64 * 0x2_0000;
            let typer = vgic.read_vredists(frame + 8, Width::Double).unwrap();
            assert_eq!(typer >> 32, u64::from(affinity.packed()));
            assert_eq!(typer >> 8 & 0xffff, n as u64);
            assert_eq!(typer & 0xff, if n + 1 == vcpus { 0x10 } else { 0 });
            let half = |offset| vgic.read_vredists(frame + offset, Width::Word).unwrap();
            assert_eq!(half(0xc) << 32 | half(8), typer);
        }
        let end = vcpus as u64 * 0x2_0000;
        assert_eq!(vgic.read_vredists(end, Width::Word), Err(MmioError::Unmapped));
        assert_eq!(vgic.read_vredists(u64::MAX, Width::Byte), Err(MmioError::Unmapped));
    }
}

#[test]
fn t74_bad_configurations_are_refused() {
    let new = |affinities: &[Mpidr], spis, links: &[(u32, u32)]| {
        let link = |&(vintid, pintid)| (Vintid::new(vintid), Pintid::new(pintid));
        let links: Vec<_> = links.iter().map(link).collect();
        Vgic::new(Version::V3, affinities, spis, &links).err()
    };
    let [zero, one] = [affinity(0), affinity(1)];
    assert_eq!(new(&[], 32, &[]), Some(ConfigError::Vcpus));
    assert_eq!(new(&(0..65).map(affinity).collect::<Vec<_>>(), 32, &[]), Some(ConfigError::Vcpus));
    assert_eq!(new(&[zero, one, zero], 32, &[]), Some(ConfigError::Affinity(zero)));
    assert_eq!(new(&[zero], 989, &[]), Some(ConfigError::Spis));
    assert_eq!(new(&[zero], u32::MAX, &[]), Some(ConfigError::Spis));
    for (vintid, pintid) in [(31, 40), (64, 40), (40, 31), (40, 1020), (40, 0), (1020, 40)] {
        let refused = Some(ConfigError::Link(Vintid::new(vintid)));
        assert_eq!(new(&[zero], 32, &[(vintid, pintid)]), refused);
    }
    assert_eq!(new(&[zero], 32, &[(40, 50), (40, 51)]), Some(ConfigError::Link(Vintid::new(40))));
    assert_eq!(new(&[zero], 988, &[(1019, 1019), (32, 32)]), None);
}

#[test]
fn waker_says_awake_as_soon_as_asked() {
    let machine = Machine::new(1, 4);
    let waker = (0x14, Width::Word);
    let read = || machine.vgic.read_vredists(0x14, Width::Word).unwrap();
    assert_eq!(read(), 6);
    machine.vgic.write_vredists(waker, 4, &()).unwrap();
    assert_eq!(read(), 0);
    machine.vgic.write_vredists(waker, u64::MAX, &()).unwrap();
    assert_eq!(read(), 6);
}

#[test]
fn t75_bits_are_set_by_one_register_and_cleared_by_another() {
    let mut machine = Machine::new(1, 4);
    machine.write(0, 0);
    for (set, clear) in [(0x100, 0x180), (0x200, 0x280), (0x300, 0x380)] {
        for word in [0, 1, 2] {
            let mut write = |first: u64, value| match word {
                0 => machine.write_private(0, first, value),
                _ => machine.write(first + 4 * word, value),
            };
            write(set, 0x0f0f_0000);
            write(set, 0x0000_0f0f);
            write(clear, 0x0800_0008);
            machine.settle(0);
            let read = |first: u64| match word {
                0 => machine.read_private(0, first),
                _ => machine.read(first + 4 * word),
            };
            assert_eq!([read(set), read(clear)], [0x070f_0f07; 2], "{set:#x} word {word}");
        }
    }
    // Those of the SGIs and PPIs in the distributor are RAZ/WI under affinity routing.
    for first in [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x41c, 0xc00, 0xc04] {
        machine.write(first, u64::MAX);
        assert_eq!(machine.read(first), 0, "{first:#x}");
    }
}

#[test]
fn t75_icfgr_of_sgis_is_read_only_and_of_others_has_one_bit() {
    let mut machine = Machine::new(1, 4);
    assert_eq!(machine.read_private(0, 0xc00), 0xaaaa_aaaa);
    machine.write_private(0, 0xc00, 0);
    assert_eq!(machine.read_private(0, 0xc00), 0xaaaa_aaaa);
    machine.write_private(0, 0xc04, 0xffff_ffff);
    assert_eq!(machine.read_private(0, 0xc04), 0xaaaa_aaaa);
    machine.write(0xc0c, 0xffff_0000);
    assert_eq!([machine.read(0xc08), machine.read(0xc0c)], [0, 0xaaaa_0000]);
}

#[test]
fn t75_priorities_are_bytes_of_five_bits() {
    let mut machine = Machine::new(1, 4);
    machine.write_priority(0, 33, 0xff);
    machine.write_priority(0, 35, 0x47);
    assert_eq!(machine.read(0x420), 0x4000_f800);
    machine.write_priority(0, 17, 0xa7);
    assert_eq!(machine.read_private(0, 0x410), 0xa000);
    let byte = |offset| machine.vgic.vdist().read(offset, Width::Byte).unwrap();
    assert_eq!([byte(0x421), byte(0x423), byte(0x800)], [0xf8, 0x40, 0]);
    let offset = GICR_SGI_BASE + 0x411;
    assert_eq!(machine.vgic.read_vredists(offset, Width::Byte), Ok(0xa0));
}

#[test]
fn t75_irouter_reads_as_written_whole_or_in_halves() {
    let (vgic, mut token) = full();
    for intid in [32, 33, 1019] {
        let offset = 0x6000 + 8 * intid;
        let mut write = |offset, width, value| {
            vgic.write_vdist(&mut token, (offset, width), value, &()).unwrap();
        };
        let read = |offset, width| vgic.vdist().read(offset, width).unwrap();
        write(offset, Width::Double, u64::MAX);
        assert_eq!(read(offset, Width::Double), 0xff_80ff_ffff);
        write(offset, Width::Word, 0x0102_0304);
        write(offset + 4, Width::Word, 0x0506_0708);
        assert_eq!(read(offset, Width::Word), 0x0002_0304);
        assert_eq!(read(offset + 4, Width::Word), 8);
        assert_eq!(read(offset, Width::Double), 0x08_0002_0304);
    }
    let mut write = |intid: u64| {
        let access = (0x6000 + 8 * intid, Width::Double);
        vgic.write_vdist(&mut token, access, u64::MAX, &()).unwrap();
    };
    for reserved in [0, 31, 1020, 1023] {
        write(reserved);
        assert_eq!(vgic.vdist().read(0x6000 + 8 * reserved, Width::Double), Ok(0));
    }
}

/// What the words of a register frame are.
struct Frames {
    bytes: u64,
    /// The registers that take something else than a word.
    widths: &'static [(Width, core::ops::Range<u64>)],
    /// What always reads the same.
    fixed: &'static [(u64, u32)],
    /// The bits that a register keeps which reads as it is written, or sets what is written.
    kept: fn(u64) -> u32,
}

impl Frames {
    /// Accesses every offset in every width; all interrupts are clear before.
    fn sweep(
        &self,
        read: impl Fn(u64, Width) -> Result<u64, MmioError>,
        mut write: impl FnMut(u64, Width, u64) -> Result<(), MmioError>,
    ) {
        for value in [u64::MAX, 0] {
            for offset in 0..self.bytes {
                for width in Width::ALL {
                    let is_taken = self.takes(offset, width);
                    let outcome = if is_taken { Ok(()) } else { Err(MmioError::Width) };
                    assert_eq!(write(offset, width, value), outcome, "{offset:#x} {width:?}");
                    let got = read(offset, width);
                    assert_eq!(got.map(|_| ()), outcome, "{offset:#x} {width:?}");
                    if width == Width::Word && is_taken {
                        // What the first round sets it also clears: those registers come later.
                        let kept = if value == 0 { 0 } else { (self.kept)(offset) };
                        let fixed = self.fixed.iter().find(|(at, _)| *at == offset);
                        let expected = fixed.map_or(0, |(_, fixed)| *fixed) | kept;
                        assert_eq!(got, Ok(expected.into()), "{offset:#x} after {value:#x}");
                    }
                }
            }
        }
        for offset in [self.bytes, self.bytes + 8, 1 << 32, u64::MAX - 7] {
            for width in Width::ALL {
                assert_eq!(read(offset, width), Err(MmioError::Unmapped));
                assert_eq!(write(offset, width, 0), Err(MmioError::Unmapped));
            }
        }
    }

    fn takes(&self, offset: u64, width: Width) -> bool {
        let is_aligned = offset & (width.bytes() - 1) == 0;
        let mut listed = self.widths.iter().filter(|(other, _)| *other == width);
        is_aligned && (width == Width::Word || listed.any(|(_, range)| range.contains(&offset)))
    }
}

#[test]
fn t37_every_offset_of_the_distributor_in_every_width() {
    let frames = Frames {
        bytes: GICD_BYTES,
        widths: &[
            (Width::Byte, 0x400..0xc00),
            (Width::Byte, 0xf10..0xf30),
            (Width::Half, 0x40..0x60),
            (Width::Double, 0x6000..0x8000),
        ],
        fixed: &[(0, 0x50), (4, 0x0548_001f), (8, 0x4300_043b), (0xffe8, 0x3b)],
        // Of the last words, INTIDs 1020 to 1023 do not exist.
        kept: |offset| match offset {
            0x0 => 3,
            0xfc | 0x17c | 0x27c | 0x37c => 0x0fff_ffff,
            0x84..0x100 | 0x104..0x180 | 0x204..0x280 | 0x304..0x380 => u32::MAX,
            0x420..0x7fc => 0xf8f8_f8f8,
            0xc08..0xcfc => 0xaaaa_aaaa,
            0xcfc => 0x00aa_aaaa,
            0x6100..0x7fe0 if offset & 4 == 0 => 0x80ff_ffff,
            0x6100..0x7fe0 => 0xff,
            _ => 0,
        },
    };
    let (vgic, mut token) = full();
    frames.sweep(
        |offset, width| vgic.vdist().read(offset, width),
        |offset, width, value| vgic.write_vdist(&mut token, (offset, width), value, &()),
    );
}

#[test]
fn t37_every_offset_of_a_redistributor_in_every_width() {
    let frames = Frames {
        bytes: GICR_BYTES,
        widths: &[
            (Width::Byte, 0x1_0400..0x1_0420),
            (Width::Double, 0x8..0x10),
            (Width::Double, 0x40..0xb8),
        ],
        fixed: &[(4, 0x4300_043b), (8, 0x10), (0xffe8, 0x3b), (0x1_0c00, 0xaaaa_aaaa)],
        kept: |offset| match offset {
            0x14 => 6,
            0x1_0080 | 0x1_0100 | 0x1_0200 | 0x1_0300 => u32::MAX,
            0x1_0400..0x1_0420 => 0xf8f8_f8f8,
            0x1_0c04 => 0xaaaa_aaaa,
            _ => 0,
        },
    };
    let (vgic, _) = full();
    frames.sweep(
        |offset, width| vgic.read_vredists(offset, width),
        |offset, width, value| vgic.write_vredists((offset, width), value, &()),
    );
}
