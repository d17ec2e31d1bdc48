// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What trees say, and which are refused. Expected numbers are those of the boards' manuals and
//! of `dtc` on QEMU's tree.

use super::samples::{cpus, gic_v2, pi4, rk3588, virt, virt_but};
use super::*;
use crate::addr::Address;
use crate::spec::dtb::builder::{Builder, Random};
use std::string::{String, ToString};
use std::vec;

fn read(bytes: &[u8]) -> Machine {
    Machine::read(&Dtb::new(bytes).unwrap()).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    Machine::read(&Dtb::new(bytes).unwrap()).unwrap_err().to_string()
}

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

fn level(pintid: u32) -> Interrupt {
    Interrupt { pintid: Pintid::new(pintid), trigger: Trigger::Level }
}

fn affinities(machine: &Machine) -> Vec<u64> {
    machine.cpus.iter().map(|cpu| cpu.mpidr.get()).collect()
}

#[test]
fn virt_is_read() {
    let machine = read(&virt());
    assert_eq!(machine.model, "linux,dummy-virt");
    assert_eq!(affinities(&machine), [0, 1, 2, 3]);
    assert!(machine.cpus.iter().all(|cpu| cpu.enable == EnableMethod::Psci));
    assert_eq!(machine.memory, [range(0x4000_0000, 0x8000_0000)]);
    assert_eq!(machine.memory_bytes(), 2 << 30);
    let gic = Gic::V3 {
        gicd: range(0x800_0000, 0x1_0000),
        redistributors: vec![range(0x80a_0000, 0xf6_0000)],
        stride_bytes: None,
        maintenance: Some(level(25)),
    };
    assert_eq!(machine.gic, gic);
    let timer = Timer {
        secure: Some(level(29)),
        physical: Some(level(30)),
        virt: level(27),
        hypervisor: Some(level(26)),
    };
    assert_eq!(machine.timer, timer);
    assert_eq!(machine.pmu, Some(level(23)));
    let psci = Psci { conduit: Conduit::Smc, version: PsciVersion::V1_0 };
    assert_eq!(machine.psci, Some(psci));
    let uart = machine.uart.as_ref().unwrap();
    assert_eq!((uart.path.as_str(), uart.kind), ("/pl011@9000000", UartKind::Pl011));
    assert_eq!((uart.registers, uart.interrupt), (range(0x900_0000, 0x1000), Some(level(33))));
    assert_eq!(machine.initrd, Some(range(0x4800_0000, 0x400_0000)));
    assert_eq!(machine.kept[0].range, range(0x808_0000, 0x2_0000));
    assert_eq!(machine.reserved, []);
}

#[test]
fn t23_pi4_is_read() {
    let machine = read(&pi4());
    assert_eq!(machine.model, "Raspberry Pi 4 Model B Rev 1.4");
    let release: Vec<_> = machine.cpus.iter().map(|cpu| cpu.enable).collect();
    assert_eq!(release, [0xd8, 0xe0, 0xe8, 0xf0].map(|at| EnableMethod::SpinTable(Pa::new(at))));
    assert_eq!(machine.psci, None);
    // T24: several banks, one above 4 GiB; sorted.
    let banks = [(0, 0x3b40_0000), (0x4000_0000, 0xbc00_0000), (0x1_0000_0000, 0x8000_0000)];
    assert_eq!(machine.memory, banks.map(|(start, size)| range(start, size)));
    let gic = Gic::V2 {
        gicd: range(0xff84_1000, 0x1000),
        gicc: range(0xff84_2000, 0x2000),
        gich: Some(range(0xff84_4000, 0x2000)),
        gicv: Some(range(0xff84_6000, 0x2000)),
        maintenance: Some(level(25)),
    };
    assert_eq!(machine.gic, gic);
    assert_eq!(machine.power, Some(range(0xfe10_0000, 0x114)));
    let uart = machine.uart.as_ref().unwrap();
    assert_eq!(uart.path, "/soc/serial@7e215040");
    assert_eq!(uart.registers, range(0xfe21_5040, 0x40));
    assert_eq!(uart.kind, UartKind::Ns16550 { reg_shift: 2, reg_io_width_bytes: 4 });
    assert_eq!(uart.interrupt, Some(level(125)));
    // Its monitors have SPIs, one for each PE.
    assert_eq!(machine.pmu, None);
    let reserved: Vec<_> = machine.reserved.iter().map(|r| (r.name.as_str(), r.range)).collect();
    let expected =
        [("memreserve", range(0, 0x1000)), ("vc_mem@3ec00000", range(0x3ec0_0000, 0x140_0000))];
    assert_eq!(reserved, expected);
    assert_eq!(machine.initrd, Some(range(0x2000_0000, 0x400_0000)));
}

#[test]
fn t22_t83_rk3588_is_read() {
    let machine = read(&rk3588());
    assert_eq!(affinities(&machine), [0, 0x100, 0x200, 0x300, 0x400, 0x600, 0x700]);
    assert_eq!(machine.pmu, Some(level(23)));
    let uart = machine.uart.as_ref().unwrap();
    assert_eq!(uart.kind, UartKind::Ns16550 { reg_shift: 2, reg_io_width_bytes: 4 });
    assert_eq!((uart.registers, uart.interrupt), (range(0xfeb5_0000, 0x100), Some(level(365))));
    assert_eq!(machine.timer.virt, level(27));
    assert_eq!(machine.timer.hypervisor, Some(level(26)));
    assert_eq!(machine.memory_bytes(), 0xefe0_0000 + (4 << 30));
    assert_eq!(machine.initrd, None);
}

#[test]
fn t83_timer_is_read_by_name_where_there_are_names() {
    let renamed = virt_but(&["timer"], |b| {
        b.node("timer", |b| {
            b.text("compatible", "arm,armv8-timer");
            b.cells("interrupts", &[1, 11, 8, 1, 14, 1]);
            b.text("interrupt-names", "virt\0phys");
        });
    });
    let physical = Interrupt { pintid: Pintid::new(30), trigger: Trigger::Edge };
    let expected =
        Timer { secure: None, physical: Some(physical), virt: level(27), hypervisor: None };
    assert_eq!(read(&renamed).timer, expected);
}

#[test]
fn gicv2_of_virt_is_read() {
    let machine = read(&virt_but(&["gic"], gic_v2));
    assert!(matches!(machine.gic, Gic::V2 { gicd, gicv: Some(gicv), .. }
        if gicd == range(0x800_0000, 0x1_0000) && gicv == range(0x804_0000, 0x1_0000)));
    assert_eq!(machine.gic.frames().count(), 4);
}

#[test]
fn what_is_missing_is_named() {
    for (part, what) in
        [("gic", "interrupt controller"), ("cpus", "cpu"), ("memory", "memory"), ("timer", "timer")]
    {
        let expected = std::format!("device tree: {what} is missing");
        assert_eq!(refusal(&virt_but(&[part], |_| {})), expected);
    }
    let empty = refusal(&Builder::tree(|_| {}));
    assert_eq!(empty, "device tree: interrupt controller is missing");
}

#[test]
fn missing_console_is_no_error() {
    let machine = read(&virt_but(&["devices"], |_| {}));
    assert_eq!((machine.uart, machine.pmu, machine.initrd), (None, None, None));
}

#[test]
fn t94_psci_versions_and_conduits() {
    let with = |compatible, method| {
        virt_but(&["psci"], |b| {
            b.node("psci", |b| {
                b.text("compatible", compatible);
                b.text("method", method);
                b.cells("cpu_on", &[0x95c1_ba60]);
            });
        })
    };
    let psci = |compatible| read(&with(compatible, "hvc")).psci.unwrap();
    assert_eq!(psci("arm,psci-0.2").version, PsciVersion::V0_2);
    assert_eq!(psci("arm,psci\0arm,psci-0.2").version, PsciVersion::V0_2);
    assert_eq!(psci("arm,psci-1.0").conduit, Conduit::Hvc);
    let old = PsciVersion::V0_1 { cpu_on: Some(0x95c1_ba60) };
    assert_eq!(psci("arm,psci").version, old);
    let bad = refusal(&with("arm,psci-1.0", "jump"));
    assert_eq!(bad, "device tree: psci: method is missing or malformed");
}

#[test]
fn cpus_that_cannot_be_are_refused() {
    let with = |reg: &[u32], cells: u32| {
        virt_but(&["cpus"], |b| {
            b.node("cpus", |b| {
                b.cells("#address-cells", &[cells]);
                b.cells("#size-cells", &[0]);
                for (index, reg) in reg.chunks(cells.max(1) as usize).enumerate() {
                    b.node(&std::format!("cpu@{index}"), |b| {
                        b.text("device_type", "cpu");
                        b.cells("reg", reg);
                    });
                }
            });
        })
    };
    // T88: affinity fields and nothing else.
    assert_eq!(affinities(&read(&with(&[0x12, 0x81_0203], 2))), [0x12_0081_0203]);
    assert!(refusal(&with(&[0x8000_0000], 1)).contains("cpu@0: reg"));
    assert!(refusal(&with(&[0], 0)).contains("cpu@0: reg"));
    assert!(refusal(&with(&[0, 0, 0], 3)).contains("cpu@0: reg"));
    assert_eq!(refusal(&with(&[7, 7], 1)), "device tree: cpu@1 and cpu@0 contradict each other");
    assert_eq!(read(&with(&[7], 1)).cpus[0].enable, EnableMethod::Unknown);

    let most = virt_but(&["cpus"], |b| cpus(b, 64));
    assert_eq!(read(&most).cpus.len(), 64);
    let more = virt_but(&["cpus"], |b| cpus(b, 512));
    assert_eq!(refusal(&more), "device tree: cpu@40: more than 64 of its kind");
    let nine = virt_but(&["cpus", "gic"], |b| {
        gic_v2(b);
        cpus(b, 9);
    });
    assert_eq!(refusal(&nine), "device tree: cpu@0: more than 8 of its kind");
}

#[test]
fn t23_spin_table_needs_its_address() {
    let tree = virt_but(&["cpus"], |b| {
        b.node("cpus", |b| {
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[0]);
            b.node("cpu@0", |b| {
                b.text("device_type", "cpu");
                b.cells("reg", &[0]);
                b.text("enable-method", "spin-table");
            });
        });
    });
    assert_eq!(refusal(&tree), "device tree: cpu@0: cpu-release-addr is missing or malformed");
}

fn bank(b: &mut Builder, name: &str, reg: &[u32]) {
    b.node(name, |b| {
        b.text("device_type", "memory");
        b.cells("reg", reg);
    });
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let only = |name, reg: &[u32]| virt_but(&["memory"], |b| bank(b, name, reg));
    let besides = |name, reg: &[u32]| virt_but(&[], |b| bank(b, name, reg));
    let overlap = refusal(&besides("memory@b", &[0, 0xbfff_f000, 0, 0x2000]));
    assert_eq!(overlap, "device tree: memory@b and memory@40000000 contradict each other");
    assert_eq!(read(&besides("memory@c", &[0, 0xc000_0000, 0, 0x2000])).memory.len(), 2);
    assert!(refusal(&only("m", &[!0, !0, 0, 2])).contains("m: reg is no usable range"));
    assert!(refusal(&only("m", &[0, 1, 2])).contains("m: reg is missing or malformed"));
    assert!(refusal(&only("m", &[0, 1 << 30, 0, 0])).contains("memory is missing"));
    let many: Vec<u32> = (0..65).flat_map(|i| [i, 0, 0, 4096]).collect();
    assert_eq!(refusal(&only("m", &many)), "device tree: m: more than 64 of its kind");
    let disabled = virt_but(&[], |b| {
        b.node("secram@e000000", |b| {
            b.text("device_type", "memory");
            b.text("status", "disabled");
            b.cells("reg", &[0, 0xe00_0000, 0, 0x100_0000]);
        });
    });
    assert_eq!(read(&disabled).memory_bytes(), 2 << 30);
}

#[test]
fn gics_that_cannot_be_are_refused() {
    fn gic(b: &mut Builder, reg: &[u32], regions: u32, cells: u32) {
        b.node("gic", |b| {
            b.text("compatible", "arm,gic-v3");
            b.cells("reg", reg);
            b.cells("#redistributor-regions", &[regions]);
            b.cells("#interrupt-cells", &[cells]);
            b.cells("phandle", &[0x8005]);
        });
    }
    const REG: [u32; 12] = [0, 1 << 28, 0, 1 << 16, 0, 2 << 28, 0, 1 << 20, 0, 3 << 28, 0, 1 << 20];
    let with = |reg: &[u32], regions, cells| virt_but(&["gic"], |b| gic(b, reg, regions, cells));
    let two = virt_but(&[], |b| gic(b, &REG, 1, 3));
    assert_eq!(refusal(&two), "device tree: gic and intc@8000000 contradict each other");
    assert!(refusal(&with(&REG, 0, 3)).contains("gic: #redistributor-regions is missing or"));
    assert!(refusal(&with(&REG, 4, 3)).contains("gic: reg is no usable range"));
    assert!(refusal(&with(&REG, !0, 3)).contains("gic: more than 16"));
    assert!(refusal(&with(&REG, 1, 1)).contains("gic: #interrupt-cells"));
    let mut small = REG;
    small[3] = 0x1000;
    assert!(refusal(&with(&small, 1, 3)).contains("gic: reg is no usable range"));
    assert_eq!(read(&with(&REG, 2, 3)).gic.frames().count(), 3);
    let stride = |bytes: u32| {
        virt_but(&["gic"], |b| {
            b.node("gic", |b| {
                b.text("compatible", "arm,gic-v3");
                b.cells("reg", &REG);
                b.cells("redistributor-stride", &[0, bytes]);
                b.cells("#interrupt-cells", &[3]);
                b.cells("phandle", &[0x8005]);
            });
        })
    };
    let machine = read(&stride(0x4_0000));
    assert!(matches!(machine.gic, Gic::V3 { stride_bytes: Some(0x4_0000), .. }));
    for bytes in [0, 0x1_0000, 0x2_8000] {
        assert!(refusal(&stride(bytes)).contains("gic: redistributor-stride"));
    }
}

#[test]
fn interrupts_of_other_controllers_are_not_taken_for_the_gics() {
    let machine = read(&virt_but(&["devices"], |b| {
        b.node("aliases", |b| b.text("serial0", "/uart"));
        b.node("uart", |b| {
            b.text("compatible", "arm,pl011");
            b.cells("reg", &[0, 0x900_0000, 0, 0x1000]);
            b.cells("interrupt-parent", &[7]);
            b.cells("interrupts", &[0, 1, 4]);
        });
        b.node("pmu", |b| {
            b.text("compatible", "arm,armv8-pmuv3");
            b.cells("interrupts-extended", &[0x8005, 1, 7, 4]);
        });
    }));
    assert_eq!(machine.uart.unwrap().interrupt, None);
    assert_eq!(machine.pmu, Some(level(23)));
}

#[test]
fn interrupts_out_of_range_are_none() {
    let cases: [([u32; 3], Option<u32>); 8] = [
        ([0, 987, 4], Some(1019)),
        ([0, 988, 4], None),
        ([0, u32::MAX, 4], None),
        ([1, 16, 4], None),
        ([1, 15, 4], Some(31)),
        ([2, 0, 4], None),
        ([0, 0, 0], None),
        ([0, 0, 0xf01], Some(32)),
    ];
    for (cells, expected) in cases {
        let machine = read(&virt_but(&["devices"], |b| {
            b.node("aliases", |b| b.text("serial0", "/uart"));
            b.node("uart", |b| {
                b.text("compatible", "arm,pl011");
                b.cells("reg", &[0, 0x900_0000, 0, 0x1000]);
                b.cells("interrupts", &cells);
            });
        }));
        let found = machine.uart.unwrap().interrupt.map(|i| i.pintid.get());
        assert_eq!(found, expected, "{cells:?}");
    }
}

#[test]
fn registers_in_memory_are_refused() {
    let over_gic = virt_but(&[], |b| bank(b, "memory@8000000", &[0, 0x8ff_f000, 0, 0x1000]));
    assert_eq!(
        refusal(&over_gic),
        "device tree: intc@8000000 and memory@8000000 contradict each other"
    );
    // A console that cannot be is none.
    let over_uart = virt_but(&[], |b| bank(b, "memory@9000000", &[0, 0x900_0000, 0, 0x1000]));
    assert_eq!(read(&over_uart).uart, None);
}

/// A console on a bus, one outside the bus's window, and one on a bus that is disabled.
fn consoles(b: &mut Builder) {
    b.node("bus", |b| {
        b.cells("#address-cells", &[1]);
        b.cells("#size-cells", &[1]);
        b.cells("ranges", &[0x1000, 0, 0x900_1000, 0x1000]);
        for (name, at) in [("uart@1000", 0x1000), ("outside@2000", 0x2000)] {
            b.node(name, |b| {
                b.text("compatible", "ns16550a");
                b.cells("reg", &[at, 0x100]);
            });
        }
    });
    b.node("off", |b| {
        b.text("status", "disabled");
        b.prop("ranges", &[]);
        b.node("uart@3000", |b| {
            b.text("compatible", "arm,pl011");
            b.cells("reg", &[0, 0x3000, 0, 0x1000]);
        });
    });
}

#[test]
fn console_is_found_as_the_tree_names_it() {
    let with = |stdout: Option<&str>, alias: Option<&str>| -> Option<String> {
        let machine = read(&virt_but(&["devices"], |b| {
            consoles(b);
            b.node("aliases", |b| alias.into_iter().for_each(|path| b.text("serial0", path)));
            b.node("chosen", |b| stdout.into_iter().for_each(|path| b.text("stdout-path", path)));
        }));
        let uart = machine.uart?;
        assert_eq!(uart.registers, range(0x900_1000, 0x100));
        Some(uart.path.as_str().into())
    };
    let found = Some("/bus/uart@1000".to_string());
    for stdout in ["/bus/uart@1000", "/bus/uart", "/bus/uart@1000:115200", "serial0:9600n8"] {
        assert_eq!(with(Some(stdout), Some("/bus/uart@1000")), found, "{stdout}");
    }
    assert_eq!(with(None, Some("/bus/uart@1000")), found);
    assert_eq!(with(Some("serial7"), Some("/bus/uart@1000")), found);
    for stdout in ["", "/", ":", "/bus", "/bus/uart@1000/x", "/bus/outside@2000", "serial0"] {
        assert_eq!(with(Some(stdout), None), None, "{stdout}");
    }
    // A bus that is disabled takes its children with it.
    assert_eq!(with(Some("/off/uart@3000"), None), None);
    // An alias is no way to another alias.
    assert_eq!(with(None, Some("serial0")), None);
}

#[test]
fn initrd_that_cannot_be_is_refused() {
    let with = |start: &[u8], end: &[u8]| {
        virt_but(&["devices"], |b| {
            b.node("chosen", |b| {
                b.prop("linux,initrd-start", start);
                b.prop("linux,initrd-end", end);
            });
        })
    };
    let mixed = with(&[0, 0, 0, 0, 0x48, 0, 0, 0], &[0x49, 0, 0, 0]);
    assert_eq!(read(&mixed).initrd, Some(range(0x4800_0000, 0x100_0000)));
    for (start, end) in [([1, 0, 0, 0], [1, 0, 0, 0]), ([1, 0, 0, 1], [1, 0, 0, 0])] {
        assert!(refusal(&with(&start, &end)).contains("chosen: linux,initrd-end"));
    }
    assert!(refusal(&with(&[1], &[0; 4])).contains("chosen: linux,initrd-end"));
}

#[test]
fn ramdisk_that_is_reserved_is_no_reservation() {
    let with = |start, bytes| virt_but(&[], |b| b.reserve(start, bytes));
    let reserved = |tree: &[u8]| read(tree).reserved.iter().map(|r| r.range).collect::<Vec<_>>();
    assert_eq!(reserved(&with(0x4800_0000, 0x400_0000)), []);
    // Whatever is not exactly that is somebody else's.
    for (start, bytes) in [(0x4800_0000, 0x3ff_ffff), (0x47ff_f000, 0x400_1000)] {
        assert_eq!(reserved(&with(start, bytes)), [range(start, bytes)]);
    }
}

#[test]
fn reservations_that_cannot_be_are_refused() {
    let wraps = virt_but(&[], |b| b.reserve(u64::MAX, 2));
    assert!(refusal(&wraps).contains("memreserve: size is no usable range"));
    let many = virt_but(&[], |b| {
        b.node("reserved-memory", |b| {
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[1]);
            for index in 0..=128 {
                b.node("r", |b| b.cells("reg", &[index << 12, 4096]));
            }
        });
    });
    assert_eq!(refusal(&many), "device tree: r: more than 128 of its kind");
}

#[test]
fn held_names_everything_that_is_not_to_be_given_away() {
    let machine = read(&pi4());
    let holders: Vec<_> = machine.held().map(|(holder, _)| holder.to_string()).collect();
    let gic = ["the interrupt controller"; 4];
    let others = [
        "the console /soc/serial@7e215040",
        "watchdog@7e100000 (kept by the hypervisor)",
        "reserved memory memreserve",
        "reserved memory vc_mem@3ec00000",
    ];
    assert_eq!(holders, [&gic[..], &others, &["memory"; 3]].concat());
}

/// Whoever can write to it can send any SPI, to any guest: with DMA, too.
#[test]
fn t86_frame_that_sends_any_spi_is_given_to_nobody() {
    let machine = read(&virt_but(&[], |b| {
        b.node("v2m@8020000", |b| {
            b.text("compatible", "arm,gic-v2m-frame");
            b.prop("msi-controller", &[]);
            b.cells("reg", &[0, 0x802_0000, 0, 0x1000]);
        });
    }));
    let frame = machine.held().find(|(_, held)| *held == range(0x802_0000, 0x1000));
    assert_eq!(frame.unwrap().0.to_string(), "v2m@8020000 (kept by the hypervisor)");
}

/// No tree that passes the structural check may panic the reader or get past its limits.
#[test]
fn mutated_trees_do_not_panic() {
    let originals = [virt(), pi4(), rk3588()];
    let (mut read, mut refused) = (0, 0);
    let mut random = Random::new(3);
    for round in 0..21_000 {
        let mut tree = originals[round % 3].clone();
        random.mutate(&mut tree);
        let Ok(dtb) = Dtb::squeeze(&mut tree) else { continue };
        match Machine::read(&dtb) {
            Ok(machine) => {
                read += 1;
                assert!((1..=64).contains(&machine.cpus.len()) && !machine.memory.is_empty());
                assert!(machine.memory.windows(2).all(|pair| pair[0].end() <= pair[1].start()));
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            }
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} {refused}");
}
