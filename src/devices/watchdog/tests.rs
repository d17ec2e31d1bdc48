// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Offsets and bits are written as numbers here, from DEN 0094.
use super::*;
use proptest::prelude::*;
use std::vec;

const WS0: u64 = 2;
const WS1: u64 = 4;

fn read(watchdog: &mut Watchdog, offset: u64, now: u64) -> u64 {
    watchdog.read(Frame::Control, offset, Width::Word, now).unwrap()
}

fn write(watchdog: &mut Watchdog, offset: u64, value: u64, now: u64) {
    watchdog.write(Frame::Control, offset, Width::Word, value, now).unwrap();
}

fn refresh(watchdog: &mut Watchdog, now: u64) {
    watchdog.write(Frame::Refresh, 0, Width::Word, 0xdead_beef, now).unwrap();
}

#[test]
fn reset_values() {
    let mut watchdog = Watchdog::default();
    for offset in [0, 8, 0xc, 0x10, 0x14] {
        assert_eq!(read(&mut watchdog, offset, u64::MAX), 0, "{offset:#x}");
    }
    // Linux reads the architecture's revision in bits 19:16 and takes 1 for an offset of 48 bits.
    for frame in [Frame::Control, Frame::Refresh] {
        let iidr = watchdog.read(frame, 0xfcc, Width::Word, 0).unwrap();
        assert_eq!((iidr >> 16 & 0xf, iidr & 0xfff), (1, 0x43b));
    }
    assert_eq!((watchdog.deadline(), watchdog.fired()), (None, Level::Low));
}

#[test]
fn t37_every_offset_and_width_has_a_defined_answer() {
    let known = [0x000, 0x008, 0x00c, 0x010, 0x014];
    for frame in [Frame::Control, Frame::Refresh] {
        for offset in 0..0x2000 {
            for width in Width::ALL {
                let mut watchdog = Watchdog::armed(200, 0);
                watchdog.look(150);
                let before = watchdog.clone();
                let access = watchdog.read(frame, offset, width, 150);
                assert_eq!(watchdog, before, "a read changes nothing");
                let answer = if offset >= 0x1000 {
                    Err(MmioError::Unmapped)
                } else if width != Width::Word || offset & 3 != 0 {
                    Err(MmioError::Width)
                } else {
                    Ok(())
                };
                assert_eq!(access.map(|_| ()), answer, "{offset:#x} {width:?}");
                let written = watchdog.write(frame, offset, width, u64::MAX, 150);
                assert_eq!(written, answer, "{offset:#x} {width:?}");
                let is_known = match frame {
                    Frame::Control => known.contains(&offset),
                    Frame::Refresh => offset == 0,
                };
                let changes = answer.is_ok() && is_known;
                assert_eq!(watchdog != before, changes, "{frame:?} {offset:#x}");
                if answer.is_ok() && !is_known && offset != 0xfcc {
                    assert_eq!(access, Ok(0), "{offset:#x}");
                }
            }
        }
    }
}

#[test]
fn registers_keep_the_bits_that_they_have() {
    let mut watchdog = Watchdog::default();
    for (offset, bits) in
        [(8, 0xffff_ffff), (0xc, 0xffff), (0x10, 0xffff_ffff), (0x14, 0xffff_ffff)]
    {
        for value in [0xffff_ffff_ffff_ffff, 0, 0x1234_5678] {
            write(&mut watchdog, offset, value, 0);
            assert_eq!(read(&mut watchdog, offset, 0), value & bits, "{offset:#x}");
        }
    }
    write(&mut watchdog, 0, 0xffff_ffff, 0);
    assert_eq!(read(&mut watchdog, 0, 0), 1, "what has risen is not written");
}

#[test]
fn two_offsets_without_a_refresh_are_the_end() {
    let mut watchdog = Watchdog::default();
    write(&mut watchdog, 8, 100, 1000);
    assert_eq!(watchdog.deadline(), None, "it is off");
    write(&mut watchdog, 0, 1, 1000);
    assert_eq!(read(&mut watchdog, 0x10, 1000), 1100);
    assert_eq!(watchdog.deadline(), Some(1101));
    watchdog.look(1100);
    assert_eq!(watchdog.interrupt_level(), Level::Low);
    watchdog.look(1101);
    assert_eq!((watchdog.interrupt_level(), watchdog.fired()), (Level::High, Level::Low));
    assert_eq!(read(&mut watchdog, 0, 1101), 1 | WS0);
    assert_eq!(watchdog.deadline(), Some(1202));
    watchdog.look(1202);
    assert_eq!((watchdog.interrupt_level(), watchdog.fired()), (Level::High, Level::High));
    assert_eq!((read(&mut watchdog, 0, 1202), watchdog.deadline()), (1 | WS0 | WS1, None));
}

#[test]
fn each_refresh_takes_the_signals_back() {
    for how in [0, 1, 2, 3] {
        let mut watchdog = Watchdog::armed(200, 0);
        watchdog.look(150);
        assert_eq!(watchdog.interrupt_level(), Level::High);
        match how {
            0 => refresh(&mut watchdog, 150),
            1 => write(&mut watchdog, 0, 1, 150),
            2 => write(&mut watchdog, 8, 100, 150),
            _ => write(&mut watchdog, 0xc, 0, 150),
        }
        assert_eq!((watchdog.interrupt_level(), watchdog.deadline()), (Level::Low, Some(251)));
    }
    // A new value to compare with is none.
    let mut watchdog = Watchdog::armed(200, 0);
    watchdog.look(150);
    write(&mut watchdog, 0x10, 500, 150);
    assert_eq!((watchdog.interrupt_level(), watchdog.deadline()), (Level::High, Some(501)));
}

#[test]
fn an_armed_one_fires_after_its_timeout() {
    for (timeout, now) in [(2, 0), (200, 17), (1 << 40, 1 << 50)] {
        let mut watchdog = Watchdog::armed(timeout, now);
        let warned = watchdog.deadline().unwrap();
        assert_eq!(warned, now + timeout / 2 + 1);
        watchdog.look(warned);
        let fires = watchdog.deadline().unwrap();
        assert_eq!(fires, now + timeout + 2);
        watchdog.look(fires);
        assert_eq!(watchdog.fired(), Level::High);
    }
    // One too long for 48 bits is as long as there can be.
    let watchdog = Watchdog::armed(u64::MAX, 0);
    assert_eq!(watchdog.deadline(), Some(1 << 48));
}

/// The specification's own words, for every tick by itself.
#[derive(Default)]
struct Ideal {
    enabled: u64,
    ws0: u64,
    ws1: u64,
    offset: u64,
    compare: u64,
}

impl Ideal {
    fn tick(&mut self, now: u64) {
        if self.enabled == 1 && now > self.compare {
            if self.ws0 == 0 {
                self.ws0 = 1;
                self.compare = now + self.offset;
            } else {
                self.ws1 = 1;
            }
        }
    }

    fn refresh(&mut self, now: u64) {
        self.compare = now + self.offset;
        (self.ws0, self.ws1) = (0, 0);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    Control(u64),
    Offset(u64),
    OffsetHigh(u64),
    Compare(u64),
    Refresh,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..40).prop_map(Step::Wait),
        1 => (0u64..8).prop_map(Step::Control),
        1 => (0u64..30).prop_map(Step::Offset),
        1 => (0u64..2).prop_map(Step::OffsetHigh),
        1 => (0u64..400).prop_map(Step::Compare),
        2 => Just(Step::Refresh),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_guests_see_the_watchdog_of_the_specification(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let (mut ideal, mut watchdog, mut now) = (Ideal::default(), Watchdog::default(), 0);
        for step in steps {
            match step {
                Step::Wait(ticks) => {
                    for _ in 0..ticks {
                        let before = (ideal.ws0, ideal.ws1);
                        now += 1;
                        ideal.tick(now);
                        // Its deadline is the tick at which something rises, and no other.
                        let due = watchdog.deadline().is_some_and(|deadline| deadline <= now);
                        prop_assert_eq!(due, (ideal.ws0, ideal.ws1) != before);
                        if due && now % 2 == 0 {
                            watchdog.look(now);
                        } else if due {
                            // Late, by the next access.
                            watchdog.read(Frame::Refresh, 0, Width::Word, now).unwrap();
                        }
                    }
                }
                Step::Control(value) => {
                    write(&mut watchdog, 0, value, now);
                    ideal.enabled = value & 1;
                    ideal.refresh(now);
                }
                Step::Offset(value) => {
                    write(&mut watchdog, 8, value, now);
                    ideal.offset = ideal.offset >> 32 << 32 | value;
                    ideal.refresh(now);
                }
                Step::OffsetHigh(value) => {
                    write(&mut watchdog, 0xc, value, now);
                    ideal.offset = value << 32 | ideal.offset & 0xffff_ffff;
                    ideal.refresh(now);
                }
                Step::Compare(value) => {
                    write(&mut watchdog, 0x10, value, now);
                    ideal.compare = ideal.compare >> 32 << 32 | value;
                    ideal.tick(now);
                }
                Step::Refresh => {
                    refresh(&mut watchdog, now);
                    ideal.refresh(now);
                }
            }
            let status = ideal.enabled | ideal.ws0 << 1 | ideal.ws1 << 2;
            let seen = vec![0, 8, 0xc, 0x10, 0x14];
            let seen: vec::Vec<_> =
                seen.into_iter().map(|offset| read(&mut watchdog, offset, now)).collect();
            let (offset, compare) = (ideal.offset, ideal.compare);
            let expected =
                [status, offset & 0xffff_ffff, offset >> 32, compare & 0xffff_ffff, compare >> 32];
            prop_assert_eq!(seen, expected, "at {}", now);
            prop_assert_eq!(watchdog.interrupt_level() == Level::High, ideal.ws0 == 1);
            prop_assert_eq!(watchdog.fired() == Level::High, ideal.ws1 == 1);
        }
    }

    /// Who looks late sees what it would have seen in between.
    #[test]
    fn late_is_as_good_as_often(timeout in 0u64..100, now in 0u64..1000, late in 0u64..300) {
        let mut often = Watchdog::armed(timeout, now);
        let mut once = often.clone();
        (now..=now + late).for_each(|tick| often.look(tick));
        once.look(now + late);
        prop_assert_eq!(often, once);
    }
}
