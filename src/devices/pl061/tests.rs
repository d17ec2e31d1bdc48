// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Offsets and bits are written as numbers here, from DDI 0190.
use super::*;
use proptest::prelude::*;

fn read(gpio: &Pl061, offset: u64) -> u64 {
    gpio.read(offset, Width::Word).unwrap()
}

fn write(gpio: &mut Pl061, offset: u64, value: u64) {
    gpio.write(offset, Width::Word, value).unwrap();
}

#[test]
fn reset_values() {
    let gpio = Pl061::default();
    for offset in (0..0xfe0).step_by(4) {
        assert_eq!(read(&gpio, offset), 0, "{offset:#x}");
    }
    let ids = [0xfe0, 0xfe4, 0xfe8, 0xfec, 0xff0, 0xff4, 0xff8, 0xffc];
    assert_eq!(ids.map(|id| read(&gpio, id)), [0x61, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    // As Linux's AMBA bus puts them together; gpio-pl061 wants 0x041061 in the low 20 bits.
    let id = (0..4).fold(0, |id, n| id | read(&gpio, 0xfe0 + 4 * n) << (8 * n));
    assert_eq!(id & 0xf_ffff, 0x4_1061);
}

#[test]
fn t37_every_offset_and_width_has_a_defined_answer() {
    for offset in 0..0x2000 {
        for width in Width::ALL {
            let mut gpio = Pl061::default();
            write(&mut gpio, 0x400, 0x0f);
            gpio.drive(Line::new(7), Level::High);
            let before = gpio.clone();
            let answer = if offset >= 0x1000 {
                Err(MmioError::Unmapped)
            } else if width == Width::Double || offset % width.bytes() != 0 {
                Err(MmioError::Width)
            } else {
                Ok(())
            };
            let access = gpio.read(offset, width);
            assert_eq!(access.map(|_| ()), answer, "{offset:#x} {width:?}");
            assert!(access.unwrap_or(0) <= 0xff, "all registers have eight bits");
            assert_eq!(gpio.write(offset, width, u64::MAX), answer, "{offset:#x} {width:?}");
            let is_data = offset < 0x400 && offset >> 2 & 0x0f != 0;
            let is_register = matches!(offset, 0x400..=0x410 | 0x420);
            let changes = answer.is_ok() && offset % 4 == 0 && (is_data || is_register);
            assert_eq!(gpio != before, changes, "{offset:#x} {width:?}");
        }
    }
}

#[test]
fn the_address_says_which_lines_are_meant() {
    let mut gpio = Pl061::default();
    write(&mut gpio, 0x400, 0xf0);
    write(&mut gpio, 0x3fc, 0xff);
    assert_eq!(read(&gpio, 0x3fc), 0xf0, "inputs are not written");
    for n in 0..4 {
        gpio.drive(Line::new(n), Level::High);
    }
    assert_eq!(read(&gpio, 0x3fc), 0xff);
    for mask in 0..256 {
        assert_eq!(read(&gpio, mask << 2), mask);
    }
    write(&mut gpio, 0x30 << 2, 0);
    assert_eq!(read(&gpio, 0x3fc), 0xcf);
    // What an output had is not what it has when it is one again.
    write(&mut gpio, 0x400, 0);
    assert_eq!(read(&gpio, 0x3fc), 0x0f);
    write(&mut gpio, 0x400, 0xf0);
    assert_eq!(read(&gpio, 0x3fc), 0x0f);
}

#[test]
fn a_press_is_an_edge_that_stays_until_it_is_cleared() {
    let mut gpio = Pl061::default();
    let line = Line::new(3);
    // As Linux sets both edges up.
    write(&mut gpio, 0x408, 1 << 3);
    write(&mut gpio, 0x410, 1 << 3);
    gpio.drive(line, Level::High);
    assert_eq!((read(&gpio, 0x414), read(&gpio, 0x418)), (8, 8));
    assert_eq!((gpio.interrupt_level(), read(&gpio, 8 << 2)), (Level::High, 8));
    write(&mut gpio, 0x41c, 0xf7);
    assert_eq!(gpio.interrupt_level(), Level::High, "others were cleared");
    write(&mut gpio, 0x41c, 8);
    assert_eq!(gpio.interrupt_level(), Level::Low);
    gpio.drive(line, Level::High);
    assert_eq!(gpio.interrupt_level(), Level::Low, "that is no edge");
    gpio.drive(line, Level::Low);
    assert_eq!(gpio.interrupt_level(), Level::High);
}

/// DDI 0190, section 3.3: one line by itself, in the words of its registers.
#[derive(Clone, Copy, Debug)]
struct IdealLine {
    input: u64,
    output: u64,
    is_output: u64,
    by_level: u64,
    both: u64,
    high: u64,
    enabled: u64,
    edge: u64,
}

impl IdealLine {
    fn drive(&mut self, level: u64) {
        let changed = self.input != level;
        self.input = level;
        if changed && self.is_output == 0 && self.by_level == 0 {
            let counts = self.both == 1 || self.high == level;
            self.edge |= u64::from(counts);
        }
    }

    fn raw(&self) -> u64 {
        match self.by_level {
            0 => self.edge,
            _ => u64::from(self.is_output == 0 && self.input == self.high),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_guests_see_the_gpio_of_the_specification(
        steps in prop::collection::vec((0u64..9, any::<u8>(), any::<u8>()), 0..60),
    ) {
        const NONE: IdealLine = IdealLine {
            input: 0, output: 0, is_output: 0, by_level: 0, both: 0, high: 0, enabled: 0, edge: 0,
        };
        let (mut ideal, mut gpio) = ([NONE; 8], Pl061::default());
        for (what, lines, value) in steps {
            let offset = match what {
                0 => u64::from(lines) << 2,
                1..=5 => 0x3fc + 4 * what,
                6 => 0x41c,
                _ => 0,
            };
            if what < 7 {
                write(&mut gpio, offset, value.into());
            } else {
                let level = if value & 1 == 0 { Level::Low } else { Level::High };
                gpio.drive(Line::new(lines & 7), level);
            }
            for (n, line) in ideal.iter_mut().enumerate() {
                let bit = u64::from(value >> n & 1);
                match what {
                    0 if lines >> n & 1 == 1 && line.is_output == 1 => line.output = bit,
                    1 => (line.is_output, line.output) = (bit, line.output & bit),
                    2 => line.by_level = bit,
                    3 => line.both = bit,
                    4 => line.high = bit,
                    5 => line.enabled = bit,
                    6 => line.edge &= 1 - bit,
                    7 | 8 if usize::from(lines & 7) == n => line.drive(u64::from(value & 1)),
                    _ => {}
                }
            }
            let bits = |of: fn(&IdealLine) -> u64| {
                ideal.iter().rev().fold(0, |bits, line| bits << 1 | of(line))
            };
            let data = bits(|line| if line.is_output == 1 { line.output } else { line.input });
            prop_assert_eq!(read(&gpio, 0x3fc), data);
            prop_assert_eq!(read(&gpio, 0x400), bits(|line| line.is_output));
            prop_assert_eq!(read(&gpio, 0x414), bits(IdealLine::raw));
            let masked = bits(|line| line.raw() & line.enabled);
            prop_assert_eq!(read(&gpio, 0x418), masked);
            prop_assert_eq!(gpio.interrupt_level() == Level::High, masked != 0);
        }
    }
}
