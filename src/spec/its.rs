// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The encodings of the Interrupt Translation Service and of LPIs (IHI 0069 H).
//!
//! Register map and fields 12.18 and 12.19, commands 5.3, the LPI configuration and pending
//! tables 5.1.1 and 5.1.2. No state, no policy.
#![forbid(unsafe_code)]

/// The first LPI (IHI 0069 H 2.2.1).
pub const LPI_FIRST: u32 = 8192;
/// Bytes of the control frame and the translation frame behind it.
pub const GITS_BYTES: u64 = 0x2_0000;
/// Bytes of one command.
pub const COMMAND_BYTES: u64 = 32;

/// Offsets and fields of the ITS's frames.
pub mod gits {
    /// GITS_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GITS_IIDR.
    pub const IIDR: u64 = 0x0004;
    /// GITS_TYPER, 64 bits.
    pub const TYPER: u64 = 0x0008;
    /// GITS_CBASER, 64 bits.
    pub const CBASER: u64 = 0x0080;
    /// GITS_CWRITER, 64 bits.
    pub const CWRITER: u64 = 0x0088;
    /// GITS_CREADR, 64 bits.
    pub const CREADR: u64 = 0x0090;
    /// `GITS_BASER<n>`, eight of 64 bits.
    pub const BASER: u64 = 0x0100;
    /// The first offset behind `GITS_BASER<7>`.
    pub const BASER_END: u64 = 0x0140;
    /// GITS_TRANSLATER, in the second frame; it takes 16 bits too.
    pub const TRANSLATER: u64 = 0x1_0040;

    /// GITS_CTLR.Enabled.
    pub const CTLR_ENABLED: u32 = 1 << 0;
    /// GITS_CTLR.Quiescent.
    pub const CTLR_QUIESCENT: u32 = 1 << 31;

    /// GITS_TYPER.Physical: there are physical LPIs.
    pub const TYPER_PHYSICAL: u64 = 1 << 0;
    /// Where GITS_TYPER.ID_bits starts: the bits of an EventID minus one.
    pub const TYPER_ID_BITS_SHIFT: u32 = 8;
    /// Where GITS_TYPER.Devbits starts: the bits of a DeviceID minus one.
    pub const TYPER_DEVBITS_SHIFT: u32 = 13;
    /// Where GITS_TYPER.CIDbits starts: the bits of a collection's number minus one.
    pub const TYPER_CIDBITS_SHIFT: u32 = 32;
    /// GITS_TYPER.CIL: CIDbits says how many collections there are.
    pub const TYPER_CIL: u64 = 1 << 36;

    /// GITS_CBASER.Valid and `GITS_BASER<n>`.Valid.
    pub const VALID: u64 = 1 << 63;
    /// InnerCache of both: Normal, inner read- and write-allocate, write-back.
    pub const INNER_WRITE_BACK: u64 = 7 << 59;
    /// Shareability of both: inner shareable.
    pub const INNER_SHAREABLE: u64 = 1 << 10;
    /// GITS_CBASER.Physical_Address.
    pub const CBASER_ADDRESS: u64 = 0xf_ffff_ffff_f000;
    /// Size of both, in pages minus one.
    pub const SIZE: u64 = 0xff;
    /// Bytes in a page of the command queue.
    pub const CBASER_PAGE: u64 = 0x1000;

    /// `GITS_BASER<n>`.Physical_Address.
    pub const BASER_ADDRESS: u64 = 0xffff_ffff_f000;
    /// `GITS_BASER<n>`.Type of the device table.
    pub const BASER_DEVICES: u64 = 1 << 56;
    /// `GITS_BASER<n>`.Type of the collection table.
    pub const BASER_COLLECTIONS: u64 = 4 << 56;
    /// `GITS_BASER<n>`.Page_Size of 64 KiB.
    pub const BASER_PAGES_OF_64K: u64 = 2 << 8;
    /// Bytes in such a page.
    pub const BASER_PAGE: u64 = 0x1_0000;

    /// The offset in GITS_CWRITER and GITS_CREADR.
    pub const OFFSET: u64 = 0xf_ffe0;
    /// GITS_CWRITER.Retry.
    pub const CWRITER_RETRY: u64 = 1 << 0;
    /// GITS_CREADR.Stalled.
    pub const CREADR_STALLED: u64 = 1 << 0;
}

/// Fields of the redistributor's registers for LPIs (IHI 0069 H 12.11).
pub mod lpi {
    /// GICR_PROPBASER.IDbits: the bits of an INTID minus one.
    pub const PROPBASER_ID_BITS: u64 = 0x1f;
    /// GICR_PROPBASER.Physical_Address.
    pub const PROPBASER_ADDRESS: u64 = 0xf_ffff_ffff_f000;
    /// GICR_PENDBASER.Physical_Address.
    pub const PENDBASER_ADDRESS: u64 = 0xf_ffff_ffff_0000;
    /// GICR_PENDBASER.PTZ: the pending table is all zeros. Reads as 0.
    pub const PENDBASER_ZERO: u64 = 1 << 62;
    /// InnerCache of both: Normal, inner read- and write-allocate, write-back.
    pub const INNER_WRITE_BACK: u64 = 7 << 7;
    /// Shareability of both: inner shareable.
    pub const INNER_SHAREABLE: u64 = 1 << 10;

    /// The enable bits of eight bytes of the configuration table.
    pub const ENABLES: u64 = 0x0101_0101_0101_0101;
    /// The priorities of four bytes of the configuration table.
    pub const PRIORITIES: u32 = 0xfcfc_fcfc;
}

/// What an event is: which device says which of its numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Event {
    /// DeviceID.
    pub device: u32,
    /// EventID.
    pub event: u32,
}

/// Whether a command makes a mapping or takes it away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// V is 1.
    Make,
    /// V is 0.
    Unmake,
}

/// A command (IHI 0069 H 5.3), as a guest has written it: every number may be out of range.
///
/// RDbase is a Processor_Number: GITS_TYPER.PTA is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// MAPD: a device has events of so many bits.
    Mapd(u32, u32, Mapping),
    /// MAPC: a collection goes to a redistributor.
    Mapc(u16, u64, Mapping),
    /// MAPTI, and MAPI with the EventID for the INTID: an event is an LPI of a collection.
    Mapti(Event, u32, u16),
    /// MOVI: an event goes to another collection.
    Movi(Event, u16),
    /// DISCARD: an event is nothing any more, and its LPI is not pending.
    Discard(Event),
    /// INV: read an event's configuration again.
    Inv(Event),
    /// INVALL: read the configuration of a collection's LPIs again.
    Invall(u16),
    /// MOVALL: what is pending on one redistributor goes to another.
    Movall(u64, u64),
    /// INT: an event occurs.
    Int(Event),
    /// CLEAR: an event's LPI is not pending.
    Clear(Event),
    /// SYNC: what was done for a redistributor has its effect.
    Sync(u64),
    /// No command of an ITS without virtual LPIs.
    Unknown(u8),
}

impl Command {
    /// Takes the four double words of a command apart.
    #[must_use]
    pub fn decode(words: [u64; 4]) -> Self {
        let [first, second, third, fourth] = words;
        let [opcode, ..] = first.to_le_bytes();
        let event = Event { device: high(first), event: low(second) };
        let collection = (third & 0xffff).to_le_bytes();
        let collection = u16::from_le_bytes([collection[0], collection[1]]);
        let target = |word: u64| word >> 16 & 0xf_ffff_ffff;
        let mapping = if third >> 63 == 1 { Mapping::Make } else { Mapping::Unmake };
        match opcode {
            0x01 => Self::Movi(event, collection),
            0x03 => Self::Int(event),
            0x04 => Self::Clear(event),
            0x05 => Self::Sync(target(third)),
            0x08 => Self::Mapd(event.device, (low(second) & 0x1f) + 1, mapping),
            0x09 => Self::Mapc(collection, target(third), mapping),
            0x0a => Self::Mapti(event, high(second), collection),
            0x0b => Self::Mapti(event, event.event, collection),
            0x0c => Self::Inv(event),
            0x0d => Self::Invall(collection),
            0x0e => Self::Movall(target(third), target(fourth)),
            0x0f => Self::Discard(event),
            _ => Self::Unknown(opcode),
        }
    }
}

/// Returns bits 31:0.
const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}
/// Returns bits 63:32.
const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t84_fields_of_commands_stand_where_the_specification_has_them() {
        let event = Event { device: 0x1234_5678, event: 0x9abc_def0 };
        let first = 0x1234_5678_0000_0000;
        let decode = |opcode: u64, rest: [u64; 3]| {
            Command::decode([first | opcode, rest[0], rest[1], rest[2]])
        };
        let second = 0x0000_2001_9abc_def0;
        assert_eq!(decode(0x0a, [second, 0x7, 0]), Command::Mapti(event, 0x2001, 7));
        assert_eq!(decode(0x0b, [second, 0x7, 0]), Command::Mapti(event, 0x9abc_def0, 7));
        assert_eq!(decode(0x01, [second, 0xffff, 0]), Command::Movi(event, 0xffff));
        assert_eq!(decode(0x0f, [second, 0, 0]), Command::Discard(event));
        assert_eq!(decode(0x0c, [second, 0, 0]), Command::Inv(event));
        assert_eq!(decode(0x03, [second, 0, 0]), Command::Int(event));
        assert_eq!(decode(0x04, [second, 0, 0]), Command::Clear(event));
        let itt = 1 << 63 | 0x1234_5600;
        assert_eq!(decode(0x08, [0x1f, itt, 0]), Command::Mapd(0x1234_5678, 32, Mapping::Make));
        assert_eq!(decode(0x08, [0, 0, 0]), Command::Mapd(0x1234_5678, 1, Mapping::Unmake));
        let to = 1 << 63 | 3 << 16 | 9;
        assert_eq!(decode(0x09, [0, to, 0]), Command::Mapc(9, 3, Mapping::Make));
        let widest = 0xf_ffff_ffff << 16;
        assert_eq!(decode(0x09, [0, widest, 0]), Command::Mapc(0, 0xf_ffff_ffff, Mapping::Unmake));
        assert_eq!(decode(0x0e, [0, 1 << 16, 2 << 16]), Command::Movall(1, 2));
        assert_eq!(decode(0x05, [0, 5 << 16, 0]), Command::Sync(5));
        assert_eq!(decode(0x0d, [0, 0x1_0008, 0]), Command::Invall(8));
    }

    #[test]
    fn t84_all_other_opcodes_are_unknown() {
        let known = [1, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
        for opcode in 0..=255u8 {
            let is_unknown = Command::decode([opcode.into(), 0, 0, 0]) == Command::Unknown(opcode);
            assert_eq!(is_unknown, !known.contains(&opcode), "{opcode:#x}");
        }
    }
}
