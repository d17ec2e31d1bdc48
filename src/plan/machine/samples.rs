// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Trees like those that firmware hands over, in parts that tests put together.
#![forbid(unsafe_code)]

use crate::spec::dtb::builder::Builder;
use std::format;
use std::vec::Vec;

/// The tree of QEMU 10's `virt,gic-version=3,virtualization=on -smp 4 -m 2G`, less what EL2 does
/// not look at.
pub fn virt() -> Vec<u8> {
    virt_but(&[], |_| {})
}

/// A part of a tree: its name and what writes it.
type Part = (&'static str, fn(&mut Builder));

/// Writes [`virt`] without some of its parts and with what `fill` adds to the root.
pub fn virt_but(without: &[&str], fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let parts: [Part; 6] = [
        ("psci", psci),
        ("memory", memory),
        ("devices", devices),
        ("gic", gic_v3),
        ("cpus", |b| cpus(b, 4)),
        ("timer", timer),
    ];
    assert!(without.iter().all(|name| parts.iter().any(|(part, _)| part == name)));
    Builder::tree(|b| {
        b.text("model", "linux,dummy-virt");
        b.cells("#address-cells", &[2]);
        b.cells("#size-cells", &[2]);
        b.cells("interrupt-parent", &[0x8005]);
        parts.iter().filter(|(part, _)| !without.contains(part)).for_each(|(_, write)| write(b));
        fill(b);
    })
}

pub fn psci(b: &mut Builder) {
    b.node("psci", |b| {
        b.text("method", "smc");
        b.text("compatible", "arm,psci-1.0\0arm,psci-0.2\0arm,psci");
    });
}

pub fn memory(b: &mut Builder) {
    b.node("memory@40000000", |b| {
        b.cells("reg", &[0, 0x4000_0000, 0, 0x8000_0000]);
        b.text("device_type", "memory");
    });
}

pub fn devices(b: &mut Builder) {
    b.node("pl011@9000000", |b| {
        b.cells("interrupts", &[0, 1, 4]);
        b.cells("reg", &[0, 0x900_0000, 0, 0x1000]);
        b.text("compatible", "arm,pl011\0arm,primecell");
    });
    b.node("pmu", |b| {
        b.cells("interrupts", &[1, 7, 4]);
        b.text("compatible", "arm,armv8-pmuv3");
    });
    b.node("aliases", |b| b.text("serial0", "/pl011@9000000"));
    b.node("chosen", |b| {
        b.text("stdout-path", "/pl011@9000000");
        b.cells("linux,initrd-start", &[0x4800_0000]);
        b.cells("linux,initrd-end", &[0x4c00_0000]);
    });
}

pub fn gic_v3(b: &mut Builder) {
    b.node("intc@8000000", |b| {
        b.cells("phandle", &[0x8005]);
        b.cells("interrupts", &[1, 9, 4]);
        b.cells("reg", &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]);
        b.cells("#redistributor-regions", &[1]);
        b.text("compatible", "arm,gic-v3");
        b.prop("ranges", &[]);
        b.cells("#size-cells", &[2]);
        b.cells("#address-cells", &[2]);
        b.cells("#interrupt-cells", &[3]);
        b.node("its@8080000", |b| {
            b.cells("reg", &[0, 0x808_0000, 0, 0x2_0000]);
            b.text("compatible", "arm,gic-v3-its");
        });
    });
}

pub fn gic_v2(b: &mut Builder) {
    b.node("intc@8000000", |b| {
        b.cells("phandle", &[0x8005]);
        b.cells("interrupts", &[1, 9, 4]);
        let frames = [0x800_0000, 0x801_0000, 0x803_0000, 0x804_0000];
        let reg: Vec<u32> = frames.into_iter().flat_map(|at| [0, at, 0, 0x1_0000]).collect();
        b.cells("reg", &reg);
        b.text("compatible", "arm,cortex-a15-gic");
        b.cells("#interrupt-cells", &[3]);
    });
}

pub fn cpus(b: &mut Builder, count: u32) {
    b.node("cpus", |b| {
        b.cells("#size-cells", &[0]);
        b.cells("#address-cells", &[1]);
        b.node("cpu-map", |b| b.node("socket0", |_| {}));
        for affinity in 0..count {
            b.node(&format!("cpu@{affinity:x}"), |b| {
                b.cells("reg", &[affinity]);
                b.text("enable-method", "psci");
                b.text("device_type", "cpu");
            });
        }
    });
}

pub fn timer(b: &mut Builder) {
    b.node("timer", |b| {
        b.cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        b.text("compatible", "arm,armv8-timer\0arm,armv7-timer");
    });
}

/// The Raspberry Pi 4's tree in its traits: buses with `ranges`, a spin table, GICv2, a console
/// behind an alias with options, memory in several entries.
pub fn pi4() -> Vec<u8> {
    Builder::tree(|b| {
        b.reserve(0, 0x1000);
        b.text("model", "Raspberry Pi 4 Model B Rev 1.4");
        b.cells("#address-cells", &[2]);
        b.cells("#size-cells", &[1]);
        b.cells("interrupt-parent", &[1]);
        b.node("aliases", |b| b.text("serial1", "/soc/serial@7e215040"));
        b.node("chosen", |b| {
            b.text("stdout-path", "serial1:115200n8");
            b.cells("linux,initrd-start", &[0, 0x2000_0000]);
            b.cells("linux,initrd-end", &[0, 0x2400_0000]);
        });
        b.node("reserved-memory", |b| {
            b.cells("#address-cells", &[2]);
            b.cells("#size-cells", &[1]);
            b.prop("ranges", &[]);
            b.node("linux,cma", |b| b.cells("size", &[0x400_0000]));
            b.node("nvram@0", |b| {
                b.cells("reg", &[0, 0, 0]);
                b.text("status", "disabled");
            });
            b.node("vc_mem@3ec00000", |b| b.cells("reg", &[0, 0x3ec0_0000, 0x140_0000]));
        });
        b.node("cpus", |b| {
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[0]);
            b.text("enable-method", "spin-table");
            for cpu in 0..4 {
                b.node(&format!("cpu@{cpu}"), |b| {
                    b.text("device_type", "cpu");
                    b.cells("reg", &[cpu]);
                    b.cells("cpu-release-addr", &[0, 0xd8 + 8 * cpu]);
                });
            }
            b.node("l2-cache0", |_| {});
        });
        b.node("soc", |b| {
            b.text("compatible", "simple-bus");
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[1]);
            let video = [0x7e00_0000, 0, 0xfe00_0000, 0x180_0000];
            let local = [0x4000_0000, 0, 0xff80_0000, 0x80_0000];
            b.cells("ranges", &[video, local].concat());
            b.node("watchdog@7e100000", |b| {
                b.text("compatible", "brcm,bcm2711-pm\0brcm,bcm2835-pm-wdt");
                b.cells("reg", &[0x7e10_0000, 0x114, 0x7e00_a000, 0x24, 0x7ec1_1000, 0x20]);
            });
            b.node("serial@7e201000", |b| {
                b.text("compatible", "arm,pl011\0arm,primecell");
                b.cells("reg", &[0x7e20_1000, 0x200]);
                b.cells("interrupts", &[0, 121, 4]);
            });
            b.node("serial@7e215040", |b| {
                b.text("compatible", "brcm,bcm2835-aux-uart");
                b.cells("reg", &[0x7e21_5040, 0x40]);
                b.cells("interrupts", &[0, 93, 4]);
            });
            b.node("interrupt-controller@40041000", |b| {
                b.cells("#interrupt-cells", &[3]);
                b.text("compatible", "arm,gic-400");
                let frames = [(0x4004_1000, 0x1000), (0x4004_2000, 0x2000)];
                let more = [(0x4004_4000, 0x2000), (0x4004_6000, 0x2000)];
                let reg: Vec<u32> =
                    frames.into_iter().chain(more).flat_map(|(at, size)| [at, size]).collect();
                b.cells("reg", &reg);
                b.cells("interrupts", &[1, 9, 0xf04]);
                b.cells("phandle", &[1]);
            });
        });
        b.node("memory@0", |b| {
            b.text("device_type", "memory");
            b.cells("reg", &[0, 0x4000_0000, 0xbc00_0000, 0, 0, 0x3b40_0000, 1, 0, 0x8000_0000]);
        });
        b.node("timer", |b| {
            b.text("compatible", "arm,armv8-timer");
            b.cells("interrupts", &[1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08, 1, 10, 0xf08]);
        });
        b.node("arm-pmu", |b| {
            b.text("compatible", "arm,cortex-a72-pmu");
            b.cells("interrupts", &[0, 16, 4, 0, 17, 4, 0, 18, 4, 0, 19, 4]);
        });
    })
}

/// The RK3588's tree in its traits: sparse affinities, specifiers of four cells with PPI
/// partitions, named timer interrupts, a DesignWare UART with a long option, two kinds of PEs.
pub fn rk3588() -> Vec<u8> {
    Builder::tree(|b| {
        b.text("model", "Radxa ROCK 5B");
        b.cells("#address-cells", &[2]);
        b.cells("#size-cells", &[2]);
        b.cells("interrupt-parent", &[1]);
        b.node("aliases", |b| b.text("serial2", "/serial@feb50000"));
        b.node("chosen", |b| b.text("stdout-path", "serial2:1500000n8"));
        b.node("cpus", |b| {
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[0]);
            for affinity in [0, 0x100, 0x200, 0x300, 0x400, 0x500, 0x600, 0x700] {
                b.node(&format!("cpu@{affinity:x}"), |b| {
                    b.text("device_type", "cpu");
                    b.cells("reg", &[affinity]);
                    b.text("enable-method", "psci");
                    if affinity == 0x500 {
                        b.text("status", "fail");
                    }
                });
            }
        });
        for (name, partition) in [("a55", 2), ("a76", 3)] {
            b.node(&format!("pmu-{name}"), |b| {
                b.text("compatible", &format!("arm,cortex-{name}-pmu"));
                b.cells("interrupts", &[1, 7, 4, partition]);
            });
        }
        psci(b);
        b.node("timer", |b| {
            b.text("compatible", "arm,armv8-timer");
            let ppis = [13, 14, 11, 10, 12].map(|ppi| [1, ppi, 4, 0]);
            b.cells("interrupts", ppis.as_flattened());
            b.text("interrupt-names", "sec-phys\0phys\0virt\0hyp-phys\0hyp-virt");
        });
        b.node("serial@feb50000", |b| {
            b.text("compatible", "rockchip,rk3588-uart\0snps,dw-apb-uart");
            b.cells("reg", &[0, 0xfeb5_0000, 0, 0x100]);
            b.cells("interrupts", &[0, 333, 4, 0]);
            b.cells("reg-shift", &[2]);
            b.cells("reg-io-width", &[4]);
        });
        b.node("interrupt-controller@fe600000", |b| {
            b.text("compatible", "arm,gic-v3");
            b.cells("reg", &[0, 0xfe60_0000, 0, 0x1_0000, 0, 0xfe68_0000, 0, 0x10_0000]);
            b.cells("interrupts", &[1, 9, 4, 0]);
            b.cells("#interrupt-cells", &[4]);
            b.cells("phandle", &[1]);
        });
        b.node("memory@200000", |b| {
            b.text("device_type", "memory");
            let banks = [[0, 0x20_0000, 0, 0xefe0_0000], [1, 0, 1, 0]];
            b.cells("reg", banks.as_flattened());
        });
    })
}
