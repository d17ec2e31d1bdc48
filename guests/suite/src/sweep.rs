// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T36 and T37: every offset of every emulated block in every width. An access gives a value or an
//! external abort, nothing else, and never hangs; what is reserved reads as zero.
//!
//! Bytes and halfwords stop at 4 KiB of each frame unless the arguments have `full`.

use crate::{gicv3, platform};
use guest_rt::device::{Device, Width};
use guest_rt::gic::{self, reg};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, console, cpu, irq, tests, tree};

pub const TESTS: &[Test] = tests![
    t36_every_read_of_gicd,
    t36_every_read_of_gicr,
    t36_every_read_of_uart,
    t36_every_read_of_small_devices,
    t36_every_write_of_gicd,
    t36_every_write_of_gicr,
    t36_every_write_of_uart,
    t36_every_write_of_small_devices,
    t36_doubleword_is_two_words,
    t37_reserved_reads_zero,
    t74_redistributors_match_vcpus,
];

/// The narrow accesses go this far into each 64 KiB frame.
const NARROW: u64 = 0x1000;

fn offsets(size: u64, width: Width) -> impl Iterator<Item = u64> {
    let is_narrow = matches!(width, Width::Byte | Width::Half) && !tree::has_argument("full");
    let step = usize::try_from(width.bytes()).unwrap_or(1);
    (0..size).step_by(step).filter(move |offset| !is_narrow || offset % 0x1_0000 < NARROW)
}

fn read_all(device: Device, size: u64) -> Outcome {
    for width in Width::ALL {
        for offset in offsets(size, width) {
            match device.try_read(offset, width) {
                Ok(value) => {
                    check_eq!(width.cut(value), value, "{width:?} at {offset:#x}");
                }
                Err(exception) => {
                    check!(exception.is_data_sea(), "{width:?} at {offset:#x}: {exception}");
                    check_eq!(exception.far, device.at(offset), "FAR_EL1 of {width:?}");
                }
            }
        }
    }
    Ok(())
}

fn write_all(device: Device, size: u64, is_kept_out: impl Fn(u64) -> bool) -> Outcome {
    for width in Width::ALL {
        for offset in offsets(size, width) {
            if (offset..offset + width.bytes()).any(&is_kept_out) {
                continue;
            }
            for value in [0, u64::MAX, 0x5555_5555_5555_5555] {
                if let Err(exception) = device.try_write(offset, width, value) {
                    check!(exception.is_data_sea(), "{width:?} at {offset:#x}: {exception}");
                    check_eq!(exception.far, device.at(offset), "FAR_EL1 of {width:?}");
                }
            }
        }
    }
    Ok(())
}

fn t36_every_read_of_gicd() -> Outcome {
    read_all(gic::gicd(), gic::gicd().size())
}

fn t36_every_read_of_gicr() -> Outcome {
    gicv3()?;
    read_all(gic::gicr(0), reg::GICR_STRIDE)
}

fn t36_every_read_of_uart() -> Outcome {
    read_all(console::device(), 0x1000)
}

/// The PL061, both frames of the watchdog and the panic port, as far as there are.
fn small_devices() -> impl Iterator<Item = Device> {
    let machine = tree::machine();
    let watchdog = machine.watchdog.into_iter();
    let gpio = machine.gpio.map(|(gpio, _)| gpio);
    gpio.into_iter().chain(watchdog.flat_map(|watchdog| [watchdog.control, watchdog.refresh]))
}

fn t36_every_read_of_small_devices() -> Outcome {
    for device in small_devices() {
        read_all(device, device.size())?;
    }
    tree::machine().panic_port.map_or(Ok(()), |port| read_all(port, port.size()))
}

/// The registers that say what a block is, which no write may change.
fn identity(device: Device, offsets: &[u64]) -> [u32; 6] {
    let mut words = [0; 6];
    for (word, offset) in words.iter_mut().zip(offsets) {
        *word = device.read32(*offset);
    }
    words
}

fn t36_every_write_of_gicd() -> Outcome {
    let gicd = gic::gicd();
    // The identification is at the end of the frame.
    let id = if gic::is_v2() { 0x0fe8 } else { 0xffe8 };
    let read_only = [reg::TYPER, reg::IIDR, id, id + 8, id + 12, id + 16];
    let before = identity(gicd, &read_only);
    write_all(gicd, id + 0x18, |_| false)?;
    check_eq!(identity(gicd, &read_only), before, "GICD's read-only registers");
    check!(gic::wait_for_writes(), "GICD_CTLR.RWP stays set");
    gic::init();
    irq::take_pending();
    check_eq!(irq::total(0), 0, "interrupts after everything was reset");
    Ok(())
}

fn t36_every_write_of_gicr() -> Outcome {
    gicv3()?;
    let gicr = gic::gicr(0);
    let read_only = [reg::GICR_TYPER, reg::GICR_TYPER + 4, 4, 0xffe8, 0xfff0, 0xfff4];
    let before = identity(gicr, &read_only);
    // LPIs, once enabled at a wild address, cannot be disabled; a frame that sleeps delivers
    // nothing, which the wake-up below undoes.
    write_all(gicr, reg::GICR_STRIDE, |offset| offset < 4)?;
    check_eq!(identity(gicr, &read_only), before, "GICR's read-only registers");
    gic::init_cpu();
    irq::take_pending();
    check_eq!(irq::total(0), 0, "interrupts after everything was reset");
    gic::enable(3);
    gic::send_sgi(3, 0);
    irq::take_pending();
    check_eq!(irq::count(0, 3), 1, "SGIs after everything was reset");
    Ok(())
}

fn t36_every_write_of_uart() -> Outcome {
    let uart = console::device();
    let read_only = [0xfe0, 0xfe4, 0xff0, 0xff4, 0xff8, 0xffc];
    let before = identity(uart, &read_only);
    // A write of the data register is output, and one of UARTCR while on may turn loop-back on.
    let result = write_all(uart, 0x1000, |offset| offset < 4);
    console::init();
    result?;
    check_eq!(identity(uart, &read_only), before, "the UART's identification");
    Ok(())
}

fn t36_every_write_of_small_devices() -> Outcome {
    let machine = tree::machine();
    let control = machine.watchdog.map(|watchdog| watchdog.control);
    for device in small_devices() {
        let read_only = [0xfcc, 0xfe0, 0xfe4, 0xfe8, 0xff0, 0xff4];
        let before = identity(device, &read_only);
        // Turned on, the watchdog would end this run.
        let result = write_all(device, device.size(), |at| Some(device) == control && at < 4);
        platform::quiet();
        result?;
        check_eq!(identity(device, &read_only), before, "identification");
    }
    // A panic that is reported would too.
    let port = machine.panic_port;
    port.map_or(Ok(()), |port| write_all(port, port.size(), |offset| offset < 1))
}

fn t36_doubleword_is_two_words() -> Outcome {
    gicv3()?;
    let spi = gic::intids() - 1;
    let offset = reg::IROUTER + 8 * u64::from(spi);
    let gicd = gic::gicd();
    let gicr = gic::gicr(0);
    gicd.write64(offset, cpu::mpidr(0));
    check_eq!(gicd.read64(offset), cpu::mpidr(0), "GICD_IROUTER as written");
    let low = u64::from(gicd.read32(offset));
    let high = u64::from(gicd.read32(offset + 4));
    check_eq!(high << 32 | low, cpu::mpidr(0), "GICD_IROUTER in halves");
    let low = u64::from(gicr.read32(reg::GICR_TYPER));
    let high = u64::from(gicr.read32(reg::GICR_TYPER + 4));
    check_eq!(high << 32 | low, gicr.read64(reg::GICR_TYPER), "GICR_TYPER in halves");
    // Interrupt_Routing_Mode in the low half, Aff3 in the high half, each written alone.
    gicd.write64(offset, 0);
    gicd.write32(offset, 1 << 31);
    check_eq!(gicd.read64(offset) >> 32, 0, "the half that was not written");
    gicd.write32(offset + 4, 0);
    check_eq!(gicd.read64(offset), 1 << 31, "the half that was written before");
    Ok(())
}

fn t37_reserved_reads_zero() -> Outcome {
    let gicd = gic::gicd();
    let typer = gicd.read32(reg::TYPER);
    check_eq!(typer >> 8 & 1, 0, "GICD_TYPER.ESPI: the extended range is not reserved");
    // IHI 0069 table 12-25.
    let reserved = [0x60..0x80, 0xf40..0xf80, 0x2c00..0x3000, 0x4000..0x6000, 0xa000..0xc000];
    for range in reserved.into_iter().take(if gic::is_v2() { 2 } else { 5 }) {
        for offset in range.step_by(4) {
            match gicd.try_read(offset, Width::Word) {
                Ok(value) => check_eq!(value, 0, "GICD at {offset:#x}"),
                Err(exception) => check!(exception.is_data_sea(), "{exception}"),
            }
            let _ = gicd.try_write(offset, Width::Word, u64::MAX);
        }
    }
    // What lies behind the last INTID is RAZ/WI, bit by bit and byte by byte.
    let count = u64::from(gic::intids().next_multiple_of(32));
    for (register, bits) in [
        (reg::ISENABLER, 1),
        (reg::ISPENDR, 1),
        (reg::ISACTIVER, 1),
        (reg::IPRIORITYR, 8),
        (reg::ICFGR, 2),
    ] {
        let first = count * bits / 8;
        for offset in (first..1024 * bits / 8).step_by(4) {
            gicd.write32(register + offset, u32::MAX);
            check_eq!(gicd.read32(register + offset), 0, "GICD at {:#x}", register + offset);
        }
    }
    Ok(())
}

fn t74_redistributors_match_vcpus() -> Outcome {
    gicv3()?;
    let mut frames = 0;
    let mut last = 0;
    for region in &tree::machine().gicr {
        for offset in (0..region.size()).step_by(0x2_0000) {
            let typer = region.read64(offset + reg::GICR_TYPER);
            check_eq!(typer >> 8 & 0xffff, frames, "GICR_TYPER.Processor_Number");
            let wanted = cpu::mpidr(usize::try_from(frames).unwrap_or(usize::MAX));
            let wanted = wanted >> 8 & 0xff00_0000 | wanted & 0xff_ffff;
            check_eq!(typer >> 32, wanted, "GICR_TYPER.Affinity_Value of frame {frames}");
            frames += 1;
            if typer & 1 << 4 != 0 {
                last += 1;
                break;
            }
        }
    }
    check_eq!(frames, cpu::count() as u64, "redistributors");
    check_eq!(last, 1, "frames that call themselves the last");
    Ok(())
}
