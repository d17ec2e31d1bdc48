// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Plans for tests, for QEMU's `virt` as [`super::machine::samples::virt`] has it.
#![forbid(unsafe_code)]

use super::*;
use crate::addr::Address;
use std::vec;

/// The bytes in each image of a sample.
pub const IMAGE_BYTES: u64 = 8192;

/// Makes a list of elements that fit.
pub fn list<T: fmt::Debug, const MAX: usize>(elements: vec::Vec<T>) -> List<T, MAX> {
    List::new(elements).unwrap()
}

/// Makes a name, also a wrong one.
pub fn name(text: &str) -> Name {
    text.try_into().unwrap()
}

/// Returns the fingerprint of a device that QEMU's `virt` has: its PL011.
pub fn fingerprint() -> u32 {
    let reg = [0, 0x900_0000, 0, 0x1000_u32].map(u32::to_be_bytes);
    let compatible = b"arm,pl011\0arm,primecell\0";
    machine::fingerprint("/pl011@9000000", compatible, reg.as_flattened())
}

/// Makes a device of one page and one interrupt.
pub fn device(registers: u64, pintid: u32, ipa: u64) -> DevicePlan {
    DevicePlan {
        path: std::format!("/dev@{registers:x}").as_str().try_into().unwrap(),
        fingerprint: fingerprint(),
        regions: list(vec![(PaRange::new(Pa::new(registers), 0x1000).unwrap(), Ipa::new(ipa))]),
        interrupts: list(vec![SpiPlan {
            pintid: Pintid::new(pintid),
            vintid: Vintid::new(pintid),
            trigger: Trigger::Level,
        }]),
    }
}

/// Makes a plan of the VMs "a" on PEs 0 and 1 and "b" on PEs 2 and 3, each with a device.
pub fn two_vms() -> Plan {
    let image = |image, offset: u64| ImagePlan {
        name: name(image),
        ipa: Ipa::new(0x4000_0000 + offset),
        size_bytes: IMAGE_BYTES,
    };
    let vm = |vm, cpus: [u64; 2], device| VmPlan {
        name: name(vm),
        vcpus: list(cpus.map(|cpu| Mpidr::from_affinity(cpu).unwrap()).to_vec()),
        memory: IpaRange::new(Ipa::new(0x4000_0000), 0x2000_0000).unwrap(),
        placement: Placement::Anywhere,
        images: list(vec![image("kernel", 0), image("tree", 0x10_0000)]),
        entry: Ipa::new(0x4000_0000),
        tree: Ipa::new(0x4010_0000),
        layout: Layout {
            vdist: Ipa::new(0x800_0000),
            vgic: VgicFrames::V3 { vredist: Ipa::new(0x80a_0000), vits: Ipa::new(0x808_0000) },
            vuart: Ipa::new(0x900_0000),
            vuart_interrupt: Vintid::new(33),
            platform: Ipa::new(0x903_0000),
            gpio_interrupt: Vintid::new(39),
            watchdog_interrupt: Vintid::new(40),
        },
        devices: list(vec![device]),
        policies: Policies::default(),
    };
    Plan {
        board: name("qemu-virt"),
        machine: MachineClaim {
            memory_bytes: 2 << 30,
            gic: GicClaim::V3 { gicd: Pa::new(0x800_0000) },
            uart: Some(UartClaim {
                path: "/pl011@9000000".try_into().unwrap(),
                registers: PaRange::new(Pa::new(0x900_0000), 0x1000).unwrap(),
            }),
        },
        console: ConsolePlan { mode: ConsoleMode::Focus, escape: 0x1d },
        control: ControlPlan::default(),
        vms: list(vec![
            vm("a", [0, 1], device(0xa00_0000, 48, 0xa00_0000)),
            vm("b", [2, 3], device(0xb00_0000, 49, 0xb00_0000)),
        ]),
        knobs: Knobs::default(),
    }
}
