// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Offsets and bits are written as numbers here, from DDI 0183.
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

/// A wire with so much room, and input.
#[derive(Default)]
struct Fake {
    sent: Vec<u8>,
    lost: Vec<u8>,
    room: usize,
    input: VecDeque<Received>,
}

impl Fake {
    fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }
    fn with_input(bytes: &[u8]) -> Self {
        let input = bytes.iter().map(|byte| Received { byte: *byte, overrun: false }).collect();
        Self { room: 100, input, ..Self::default() }
    }
}

impl Wire for Fake {
    fn send(&mut self, byte: u8) {
        match self.room.checked_sub(1) {
            Some(room) => {
                self.room = room;
                self.sent.push(byte);
            }
            None => self.lost.push(byte),
        }
    }
    fn room(&self) -> usize {
        self.room
    }
    fn receive(&mut self) -> Option<Received> {
        self.input.pop_front()
    }
}

fn read(uart: &mut VirtualPl011, offset: u64, wire: &mut Fake) -> u64 {
    uart.read(offset, Width::Word, wire).unwrap()
}

fn write(uart: &mut VirtualPl011, offset: u64, value: u64, wire: &mut Fake) {
    uart.write(offset, Width::Word, value, wire).unwrap();
}

const RX: u64 = 1 << 4;
const TX: u64 = 1 << 5;
const RT: u64 = 1 << 6;
const OE: u64 = 1 << 10;

#[test]
fn reset_values() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(100));
    let expected = [
        (0x000, 0),
        (0x004, 0),
        (0x018, 0x97), // TXFE, RXFE, and a modem that is ready
        (0x020, 0),
        (0x024, 0),
        (0x028, 0),
        (0x02c, 0),
        (0x030, 0x300),
        (0x034, 0x12),
        (0x038, 0),
        (0x03c, 0),
        (0x040, 0),
        (0x048, 0),
    ];
    for (offset, value) in expected {
        assert_eq!(read(&mut uart, offset, &mut wire), value, "{offset:#x}");
    }
    assert_eq!(uart.interrupt_level(), Level::Low);
}

#[test]
fn linux_finds_an_arm_pl011_with_16_byte_fifos() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(100));
    // As drivers/amba/bus.c puts them together.
    let mut id =
        |base| (0..4u64).fold(0, |id, n| id | read(&mut uart, base + 4 * n, &mut wire) << (8 * n));
    let periph_id = id(0xfe0);
    assert_eq!(periph_id & 0x000f_ffff, 0x0004_1011);
    assert!(periph_id >> 20 & 0xf < 3, "from revision 3 on, FIFOs are taken for 32 bytes");
    assert_eq!(id(0xff0), 0xb105_f00d);
}

#[test]
fn t36_writable_bits_and_no_others() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(100));
    let masks = [
        (0x020, 0xff),
        (0x024, 0xffff),
        (0x028, 0x3f),
        (0x02c, 0xff),
        (0x030, 0xff87),
        (0x034, 0x3f),
        (0x038, 0x7ff),
        (0x048, 0x7),
    ];
    for (offset, mask) in masks {
        for (width, carried) in [(Width::Byte, 0xff), (Width::Half, 0xffff), (Width::Word, !0)] {
            uart.write(offset, width, !0, &mut wire).unwrap();
            assert_eq!(read(&mut uart, offset, &mut wire), mask & carried, "{offset:#x}");
            assert_eq!(uart.read(offset, Width::Byte, &mut wire), Ok(mask & carried & 0xff));
        }
    }
}

#[test]
fn t37_every_offset_and_width_has_a_defined_answer() {
    let known = |offset| {
        [0, 4, 0x18, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x48].contains(&offset)
            || offset >= 0xfe0 && offset % 4 == 0
    };
    for offset in 0..0x1010 {
        for width in Width::ALL {
            let mut wire = Fake::with_input(b"in");
            let mut uart = VirtualPl011::new();
            let before = std::format!("{uart:?}");
            let expected = if offset >= 0x1000 {
                Err(MmioError::Unmapped)
            } else if width == Width::Double || offset % width.bytes() != 0 {
                Err(MmioError::Width)
            } else {
                Ok(())
            };
            assert_eq!(uart.read(offset, width, &mut wire).map(|_| ()), expected, "{offset:#x}");
            if expected.is_err() || !known(offset) {
                assert_eq!(uart.read(offset, width, &mut wire), expected.map(|()| 0));
                assert_eq!(std::format!("{uart:?}"), before, "{offset:#x} has a side effect");
                assert_eq!(wire.input.len(), 2);
            }
            assert_eq!(uart.write(offset, width, !0, &mut wire), expected);
            let sends = expected.is_ok() && offset == 0;
            assert_eq!(wire.sent.len(), usize::from(sends), "{offset:#x} sends");
        }
    }
}

#[test]
fn early_console_works_on_an_untouched_uart() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(100));
    // pl011_putc of drivers/tty/serial/amba-pl011.c, over bytes and over words.
    for (width, byte) in [(Width::Byte, b'a'), (Width::Word, b'b')] {
        assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x20, 0);
        uart.write(0, width, u64::from(byte), &mut wire).unwrap();
        assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x08, 0);
    }
    assert_eq!(wire.sent, b"ab");
}

#[test]
fn t114_full_wire_holds_the_guest_back() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(2));
    write(&mut uart, 0x2c, 0x70, &mut wire);
    for _ in 0..2 {
        assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x20, 0);
        write(&mut uart, 0, 0x41, &mut wire);
    }
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0xa8, 0x28, "full, busy, not empty");
    write(&mut uart, 0, 0x42, &mut wire);
    assert_eq!((wire.sent.len(), wire.lost.len()), (2, 1));
    assert_eq!(read(&mut uart, 0x3c, &mut wire) & TX, 0);
    wire.room = 15;
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0xa8, 0x08, "neither full nor empty");
    wire.room = 16;
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0xa8, 0x80, "empty");
}

#[test]
fn transmit_interrupt_promises_room_down_to_its_level() {
    // UARTIFLS.TXIFLSEL, and the room there is when the FIFO is at that level.
    for (select, room) in [(0, 14), (1, 12), (2, 8), (3, 4), (4, 2)] {
        let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(1));
        write(&mut uart, 0x2c, 0x70, &mut wire);
        write(&mut uart, 0x34, select, &mut wire);
        write(&mut uart, 0x38, TX, &mut wire);
        write(&mut uart, 0, 0x41, &mut wire);
        assert_eq!(uart.interrupt_level(), Level::Low);
        wire.room = room - 1;
        uart.refresh(&mut wire);
        assert_eq!(uart.interrupt_level(), Level::Low, "level {select}");
        wire.room = room;
        uart.refresh(&mut wire);
        assert_eq!(uart.interrupt_level(), Level::High, "level {select}");
        // Cleared, it does not come again for the same room.
        write(&mut uart, 0x44, TX, &mut wire);
        uart.refresh(&mut wire);
        assert_eq!(uart.interrupt_level(), Level::Low, "level {select}");
        // A byte that passes through brings it again, unless it leaves too little room.
        write(&mut uart, 0, 0x41, &mut wire);
        assert_eq!(uart.interrupt_level(), Level::Low, "level {select}");
        wire.room = 17;
        uart.refresh(&mut wire);
        write(&mut uart, 0x44, TX, &mut wire);
        write(&mut uart, 0, 0x41, &mut wire);
        assert_eq!(uart.interrupt_level(), Level::High, "level {select}");
    }
}

#[test]
fn transmit_interrupt_without_fifos_wants_an_empty_register() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(1));
    write(&mut uart, 0x38, TX, &mut wire);
    assert_eq!(uart.interrupt_level(), Level::Low, "nothing was sent yet");
    write(&mut uart, 0, 0x41, &mut wire);
    assert_eq!(uart.interrupt_level(), Level::Low);
    wire.room = 1;
    assert_eq!(read(&mut uart, 0x40, &mut wire), TX);
    assert_eq!(uart.interrupt_level(), Level::High);
}

#[test]
fn receive_interrupts_follow_the_fifo() {
    let mut uart = VirtualPl011::new();
    let mut wire = Fake::with_input(b"");
    write(&mut uart, 0x2c, 0x70, &mut wire);
    write(&mut uart, 0x34, 2 << 3, &mut wire); // half full: 8
    write(&mut uart, 0x38, RX | RT, &mut wire);
    for n in 0..20 {
        wire.input.push_back(Received { byte: n, overrun: false });
        uart.refresh(&mut wire);
        let expected = if n + 1 < 8 { RT } else { RT | RX };
        assert_eq!(read(&mut uart, 0x40, &mut wire), expected, "after {n}");
        assert_eq!(uart.interrupt_level(), Level::High);
        let full = read(&mut uart, 0x18, &mut wire) & 0x40 != 0;
        assert_eq!(full, n + 1 >= 16);
    }
    assert_eq!(wire.input.len(), 4, "the rest stays on the wire");
    for n in 0..20u8 {
        assert_eq!(read(&mut uart, 0, &mut wire), n.into());
        let left = 19 - n;
        let expected = match left {
            0 => 0,
            1..8 => RT,
            _ => RT | RX,
        };
        assert_eq!(read(&mut uart, 0x3c, &mut wire), expected, "{left} left");
    }
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x50, 0x10);
    assert_eq!(uart.interrupt_level(), Level::Low);
    assert_eq!(read(&mut uart, 0, &mut wire), 0, "an empty FIFO gives nothing");
}

#[test]
fn input_is_not_lost_by_clearing_interrupts() {
    let mut uart = VirtualPl011::new();
    let mut wire = Fake::with_input(b"x");
    write(&mut uart, 0x38, RX | RT, &mut wire);
    write(&mut uart, 0x44, !0, &mut wire);
    assert_eq!(read(&mut uart, 0x40, &mut wire), RT);
    assert_eq!(uart.interrupt_level(), Level::High);
}

#[test]
fn receiver_that_is_off_leaves_input_on_the_wire() {
    let mut uart = VirtualPl011::new();
    let mut wire = Fake::with_input(b"xyz");
    write(&mut uart, 0x30, 0x101, &mut wire);
    assert_eq!(wire.input.len(), 3);
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x10, 0x10);
    // Without FIFOs there is one place.
    write(&mut uart, 0x30, 0x301, &mut wire);
    assert_eq!(wire.input.len(), 2);
    assert_eq!(read(&mut uart, 0x18, &mut wire) & 0x50, 0x40);
    assert_eq!(read(&mut uart, 0x3c, &mut wire), RX | RT);
    assert_eq!(read(&mut uart, 0, &mut wire), u64::from(b'x'));
}

#[test]
fn overrun_shows_with_the_byte_behind_the_gap() {
    let mut uart = VirtualPl011::new();
    let mut wire = Fake::with_input(b"a");
    write(&mut uart, 0x2c, 0x70, &mut wire);
    write(&mut uart, 0x38, OE, &mut wire);
    wire.input.push_back(Received { byte: b'c', overrun: true });
    uart.refresh(&mut wire);
    assert_eq!(uart.interrupt_level(), Level::High);
    assert_eq!(read(&mut uart, 0, &mut wire), 0x61);
    assert_eq!(read(&mut uart, 4, &mut wire), 0);
    assert_eq!(read(&mut uart, 0, &mut wire), 0x863);
    assert_eq!(read(&mut uart, 4, &mut wire), 0x8);
    write(&mut uart, 4, 0, &mut wire);
    assert_eq!(read(&mut uart, 4, &mut wire), 0);
    write(&mut uart, 0x44, OE, &mut wire);
    assert_eq!(uart.interrupt_level(), Level::Low);
}

/// The interrupt handler of Linux's amba-pl011: reads while not empty, then sends half a FIFO
/// without a look at TXFF.
#[test]
fn linux_sends_a_long_text_through_a_short_wire_without_loss() {
    let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(24));
    let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut left = text.iter();
    write(&mut uart, 0x34, 0x12, &mut wire);
    write(&mut uart, 0x2c, 0x70, &mut wire);
    write(&mut uart, 0x30, 0x301, &mut wire);
    // start_tx
    while read(&mut uart, 0x18, &mut wire) & 0x20 == 0 {
        write(&mut uart, 0, u64::from(*left.next().unwrap()), &mut wire);
    }
    write(&mut uart, 0x38, TX, &mut wire);
    let mut interrupts = 0;
    for drained in (0..24).cycle().take(10_000) {
        if uart.interrupt_level() == Level::High {
            interrupts += 1;
            while read(&mut uart, 0x3c, &mut wire) & TX != 0 && left.len() > 0 {
                for byte in left.by_ref().take(8) {
                    write(&mut uart, 0, u64::from(*byte), &mut wire);
                }
            }
        }
        if left.len() == 0 {
            break;
        }
        wire.room = (wire.room + drained).min(24);
        uart.refresh(&mut wire);
    }
    assert_eq!(wire.sent, text);
    assert!(wire.lost.is_empty() && interrupts > 10);
}

proptest! {
    #[test]
    fn t112_any_accesses_leave_the_fifo_and_line_sound(
        steps in vec((0u64..0x60, any::<u64>(), 0usize..40, any::<u8>()), 0..200)
    ) {
        let (mut uart, mut wire) = (VirtualPl011::new(), Fake::new(10));
        for (offset, value, room, byte) in steps {
            wire.room = room;
            wire.input.push_back(Received { byte, overrun: byte & 1 != 0 });
            let _ = uart.write(offset & !3, Width::Word, value, &mut wire);
            let _ = uart.read(offset & !3, Width::Half, &mut wire);
            let mis = read(&mut uart, 0x40, &mut wire);
            prop_assert_eq!(uart.interrupt_level() == Level::High, mis != 0);
            let fr = read(&mut uart, 0x18, &mut wire);
            prop_assert!(fr & 0x50 != 0x50 && fr & 0xa0 != 0xa0);
            let ris = read(&mut uart, 0x3c, &mut wire);
            prop_assert_eq!(ris & RT == 0, fr & 0x10 != 0, "timeout is at hand with input");
        }
    }
}
