// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers of the ITS and of LPIs: what can be read and written (IHI 0069 H 12.10, 12.18, 12.19).
#![forbid(unsafe_code)]

use super::*;

/// InnerCache 7 and Shareability 1 of GITS_CBASER and `GITS_BASER<n>`.
const REACHED: u64 = 7 << 59 | 1 << 10;

#[test]
fn t84_identification_is_that_of_an_its_with_physical_lpis() {
    let bed = Bed::bare(2, 4);
    let word = |offset| bed.vits.read(offset, Width::Word).unwrap();
    assert_eq!(word(4), bed.machine.read(8), "GITS_IIDR is the implementer's");
    assert_eq!(word(0xffe8) >> 4 & 0xf, 3);
    let typer = bed.read(8);
    assert_eq!(typer & 0xff, 1, "Physical, no virtual LPIs, entries of one byte");
    assert_eq!(typer >> 8 & 0x1f, 15, "ID_bits");
    assert_eq!(typer >> 13 & 0x1f, 15, "Devbits");
    assert_eq!(typer >> 18 & 0x3, 0, "no SEIS, PTA 0: RDbase is a number");
    assert_eq!(typer >> 24 & 0xff, 0, "HCC: no collection without memory");
    assert_eq!((typer >> 36 & 1, typer >> 32 & 0xf), (1, 7), "CIL, CIDbits");
    assert_eq!(word(8) | word(12) << 32, typer);
}

#[test]
fn t84_distributor_and_redistributors_say_that_there_are_lpis() {
    let bed = Bed::bare(2, 4);
    let typer = bed.machine.read(4);
    assert_eq!(typer >> 17 & 1, 1, "LPIS");
    assert_eq!(typer >> 19 & 0x1f, 13, "IDbits");
    assert_eq!(2 << (typer >> 11 & 0x1f), 256, "num_LPIs");
    for vcpu in 0..2 {
        assert_eq!(bed.read_private(vcpu, 8) & 0x2f, 1, "PLPIS, no DirectLPI");
    }
    let without = Machine::new(1, 4);
    assert_eq!(without.read(4) >> 11 & 0x7f, 0);
    assert_eq!(without.vgic.read_vredists(8, Width::Double).unwrap() & 1, 0);
}

#[test]
fn t84_widths_and_places_are_those_of_registers() {
    let mut bed = Bed::new(1, 4);
    let doubles = [8, 0x80, 0x88, 0x90];
    let doubles: Vec<_> = doubles.into_iter().chain((0x100..0x140).step_by(8)).collect();
    let offsets = (0..0x1_0100).chain(0x1_fff0..0x2_0010).chain([u64::MAX - 7, u64::MAX]);
    for offset in offsets {
        for width in [Width::Byte, Width::Half, Width::Word, Width::Double] {
            let expected = match width {
                _ if offset >= 0x2_0000 => Err(MmioError::Unmapped),
                Width::Word if offset % 4 == 0 => Ok(()),
                Width::Double if doubles.contains(&offset) => Ok(()),
                // GITS_TRANSLATER takes 16 bits.
                Width::Half if offset == 0x1_0040 => Ok(()),
                _ => Err(MmioError::Width),
            };
            assert_eq!(bed.vits.read(offset, width).map(|_| ()), expected, "{offset:#x}");
            assert_eq!(bed.vits.write(offset, width, 0), expected, "{offset:#x}");
        }
    }
}

#[test]
fn t84_what_is_not_there_is_razwi() {
    let mut bed = Bed::bare(1, 4);
    let there = |offset| {
        let registers = [0, 4, 8, 0xc, 0x80, 0x84, 0x88, 0x8c, 0x90, 0x94, 0xffe8];
        registers.contains(&offset) || (0x100..0x110).contains(&offset)
    };
    for offset in (0..0x2_0000).step_by(4).filter(|&offset| !there(offset)) {
        bed.write_word(offset, 0xffff_ffff);
        assert_eq!(bed.vits.read(offset, Width::Word), Ok(0), "{offset:#x}");
    }
    for offset in [4, 8, 0xc, 0x90, 0x94, 0xffe8] {
        let before = bed.vits.read(offset, Width::Word);
        bed.write_word(offset, 0xffff_ffff);
        assert_eq!(bed.vits.read(offset, Width::Word), before, "{offset:#x} is read-only");
    }
}

#[test]
fn t84_control_is_enabled_or_quiescent() {
    let mut bed = Bed::bare(1, 4);
    let read = |bed: &Bed| bed.vits.read(CTLR, Width::Word).unwrap();
    assert_eq!(read(&bed), 1 << 31);
    bed.write_word(CTLR, 0xffff_ffff);
    assert_eq!(read(&bed), 1);
    bed.write_word(CTLR, 0xffff_fffe);
    assert_eq!(read(&bed), 1 << 31);
}

#[test]
fn t84_queue_is_set_up_while_the_its_is_off() {
    let mut bed = Bed::new(1, 4);
    let before = bed.read(CBASER);
    assert_eq!(before, VALID | QUEUE | REACHED);
    bed.write(CBASER, u64::MAX);
    assert_eq!(bed.read(CBASER), before);
    bed.write_word(CTLR, 0);
    bed.write(CBASER, u64::MAX);
    assert_eq!(bed.read(CBASER), VALID | REACHED | 0xf_ffff_ffff_f0ff);
    assert_eq!((bed.read(CWRITER), bed.read(CREADR)), (0, 0), "it starts at 0");
    bed.write_word(CBASER, 0x4001_0001);
    bed.write_word(CBASER + 4, 0x8000_0000);
    assert_eq!(bed.read(CBASER), VALID | REACHED | 0x4001_0001, "by halves");
    bed.write(CWRITER, 0x40);
    assert!(!bed.vits.has_work());
    bed.write_word(CTLR, 1);
    assert!(bed.vits.has_work(), "it goes on when it is enabled");
    bed.write_word(CTLR, 0);
    bed.write(CBASER, QUEUE);
    bed.write(CWRITER, 0x40);
    bed.write_word(CTLR, 1);
    assert!(!bed.vits.has_work(), "not with a queue that is not valid");
}

#[test]
fn t84_writer_stays_within_the_queue() {
    let mut bed = Bed::new(1, 4);
    let before = bed.read(CWRITER);
    for outside in [0x1000, 0x1020, 0xf_ffe0, !1] {
        bed.write(CWRITER, outside);
        assert_eq!(bed.read(CWRITER), before, "{outside:#x}");
    }
    bed.write(CWRITER, before | 0x1e);
    assert_eq!(bed.read(CWRITER), before, "unaligned is what it is without the rest");
    bed.write_word(CWRITER + 4, 0xffff_ffff);
    assert_eq!(bed.read(CWRITER), before, "RES0");
    bed.write_word(CWRITER, 0xfe0);
    assert_eq!(bed.read(CWRITER), 0xfe0);
    bed.write(CREADR, 0x20);
    assert_eq!(bed.read(CREADR), before, "read-only");
}

#[test]
fn t84_tables_say_their_types_and_keep_what_is_theirs() {
    let mut bed = Bed::bare(1, 4);
    // Type, and pages of 64 KiB.
    let fixed = [1 << 56 | 2 << 8, 4 << 56 | 2 << 8];
    for (n, fixed) in fixed.into_iter().enumerate() {
        let offset = BASER + 8 * n as u64;
        assert_eq!(bed.read(offset), fixed);
        bed.write(offset, u64::MAX);
        assert_eq!(bed.read(offset), fixed | VALID | REACHED | 0xffff_ffff_f0ff, "flat");
        bed.write_word(offset + 4, 0);
        assert_eq!(bed.read(offset), fixed | REACHED | 0xffff_f0ff);
        bed.write_word(CTLR, 1);
        bed.write(offset, VALID);
        assert_eq!(bed.read(offset), fixed | REACHED | 0xffff_f0ff, "not while enabled");
        bed.write_word(CTLR, 0);
    }
    for n in 2..8 {
        bed.write(BASER + 8 * n, u64::MAX);
        assert_eq!(bed.read(BASER + 8 * n), 0, "no more tables");
    }
}

#[test]
fn t84_lpis_are_set_up_while_they_are_disabled() {
    let mut bed = Bed::bare(2, 4);
    let reached = 7 << 7 | 1 << 10;
    bed.write_private(0, 0x70, u64::MAX);
    bed.write_private(0, 0x78, u64::MAX);
    let (properties, pending) = (reached | 0xf_ffff_ffff_f01f, reached | 0xf_ffff_ffff_0000);
    assert_eq!(bed.read_private(0, 0x70), properties);
    assert_eq!(bed.read_private(0, 0x78), pending, "PTZ reads as 0");
    assert_eq!(bed.read_private(1, 0x70), 0, "each has its own");
    let word = |bed: &Bed, offset| bed.machine.vgic.read_vredists(offset, Width::Word).unwrap();
    assert_eq!(word(&bed, 0x70) | word(&bed, 0x74) << 32, properties);
    let Machine { vgic, effects, .. } = &bed.machine;
    vgic.write_vredists((0x74, Width::Word), 0, effects).unwrap();
    vgic.write_vredists((0x70, Width::Word), PROPERTIES | 13, effects).unwrap();
    assert_eq!(bed.read_private(0, 0x70), reached | PROPERTIES | 13, "by halves");
    assert_eq!(bed.control(0), CES);
    bed.enable_lpis(0);
    assert_eq!((bed.control(0), bed.control(1)), (CES | 1, CES));
    bed.write_private(0, 0x70, 0);
    bed.write_private(0, 0x78, 0);
    assert_eq!(bed.read_private(0, 0x70), reached | PROPERTIES | 13);
    assert_eq!(bed.read_private(0, 0x78), pending);
    bed.write_control(0, 0);
    assert_eq!(bed.control(0), CES);
    bed.write_private(0, 0x70, PROPERTIES | 14);
    assert_eq!(bed.read_private(0, 0x70), reached | PROPERTIES | 14, "as before");
}

#[test]
fn t77_registers_for_direct_lpis_are_razwi() {
    // SETLPIR, CLRLPIR, INVLPIR, INVALLR, SYNCR: DirectLPI is 0.
    let bed = Bed::mapped(1, 4);
    for offset in [0x40, 0x48, 0xa0, 0xb0] {
        for value in [0, 1, 8191, 8192, 8193, 8192 + 256, u64::MAX] {
            bed.write_private(0, offset, value);
            assert_eq!(bed.read_private(0, offset), 0);
        }
    }
    assert_eq!(bed.machine.vgic.read_vredists(0xc0, Width::Word), Ok(0), "SYNCR: not busy");
    let mut bed = bed;
    assert_eq!(bed.taken(0), []);
}

#[test]
fn t84_vm_without_its_has_no_registers_for_lpis() {
    let Machine { vgic, effects, .. } = &Machine::new(1, 4);
    for offset in [0x70, 0x78] {
        vgic.write_vredists((offset, Width::Double), u64::MAX, effects).unwrap();
        vgic.write_vredists((offset, Width::Word), u64::MAX, effects).unwrap();
        assert_eq!(vgic.read_vredists(offset, Width::Double), Ok(0));
    }
    vgic.write_vredists((0, Width::Word), 1, effects).unwrap();
    assert_eq!(vgic.read_vredists(0, Width::Word), Ok(0));
    assert!(effects.lpi_controls.borrow().is_empty());
}

#[test]
fn t84_pending_table_is_taken_over_unless_it_is_said_to_be_zero() {
    for (zeros, expected) in [(0, vec![8192, 8447]), (1 << 62, vec![])] {
        let mut bed = Bed::bare(2, 4);
        bed.configure(8192, 0x51);
        bed.configure(8447, 0xa1);
        // One bit for each INTID: LPIs start at byte 1024. The last is none that there is.
        bed.fill(PENDING + 1024, &[1]);
        bed.fill(PENDING + 1024 + 31, &[0x80, 1]);
        bed.write_private(1, 0x70, PROPERTIES | 13);
        bed.write_private(1, 0x78, PENDING | zeros);
        bed.enable_lpis(1);
        bed.machine.settle_all();
        assert_eq!((bed.taken(0), bed.taken(1)), (vec![], expected));
    }
}

#[test]
fn t84_too_few_id_bits_leave_no_room_for_lpis() {
    for id_bits in 0..32 {
        let mut bed = Bed::bare(1, 4);
        bed.configure(8192, 0xa1);
        bed.fill(PENDING + 1024, &[1]);
        bed.write_private(0, 0x70, PROPERTIES | id_bits);
        bed.write_private(0, 0x78, PENDING);
        bed.enable_lpis(0);
        bed.machine.settle_all();
        let expected: &[u32] = if id_bits < 13 { &[] } else { &[8192] };
        assert_eq!(bed.taken(0), expected, "{id_bits}");
    }
}
