// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Plans that fit are accepted; any two claims on the same are refused in words that name both.

use super::*;
use crate::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use crate::id::{Mpidr, Pintid, Vintid};
use crate::plan::machine::{
    self,
    samples::{pi4, virt, virt_but},
};
use crate::plan::samples::{IMAGE_BYTES, device, fingerprint, list, name, two_vms};
use crate::plan::{Layout, UartClaim, VgicFrames, is_name};
use crate::spec::dtb::Dtb;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::{format, vec};

const LIMITS: Limits = Limits { ipa_bits: 40, pa_bits: 40 };

fn machine() -> Machine {
    Machine::read(&Dtb::new(&virt()).unwrap()).unwrap()
}

fn image_bytes(name: &str) -> Option<u64> {
    (name != "missing").then_some(IMAGE_BYTES)
}

/// Returns what is said about the plan, a line for each VM that is refused.
fn said(plan: &Plan) -> Vec<String> {
    said_on(plan, &machine())
}

fn said_on(plan: &Plan, machine: &Machine) -> Vec<String> {
    match check(plan, machine, LIMITS, &image_bytes) {
        Ok(report) => report.refusals.iter().map(ToString::to_string).collect(),
        Err(refusal) => vec![refusal.to_string()],
    }
}

/// Changes the second VM of the sample and returns the only thing that is said.
fn said_after(change: impl FnOnce(&mut VmPlan)) -> String {
    let mut plan = two_vms();
    change(&mut plan.vms[1]);
    let mut said = said(&plan);
    assert_eq!(said.len(), 1, "{said:?}");
    said.remove(0)
}

fn pages(start: u64, pages: u64) -> PaRange {
    PaRange::new(Pa::new(start), pages * 4096).unwrap()
}

#[test]
fn plan_that_fits_is_accepted() {
    let plan = two_vms();
    let machine = machine();
    let report = check(&plan, &machine, LIMITS, &image_bytes).unwrap();
    assert_eq!(report, Report { refusals: vec![], shortfall: None });
}

#[test]
fn plan_for_another_machine_is_refused_as_a_whole() {
    let mut plan = two_vms();
    plan.machine.gic = GicClaim::V2 { gicd: Pa::new(0x800_0000) };
    assert_eq!(said(&plan), ["plan expects GICv2 at 0x8000000, tree has GICv3 at 0x8000000"]);
    plan.machine.gic = GicClaim::V3 { gicd: Pa::new(0x801_0000) };
    assert_eq!(said(&plan), ["plan expects GICv3 at 0x8010000, tree has GICv3 at 0x8000000"]);

    let mut plan = two_vms();
    plan.machine.uart.as_mut().unwrap().registers = pages(0x904_0000, 1);
    assert_eq!(
        said(&plan),
        ["plan expects /pl011@9000000 at 0x9040000..0x9041000, \
            tree has /pl011@9000000 at 0x9000000..0x9001000"]
    );
    let mut silent = Machine::read(&Dtb::new(&virt_but(&["devices"], |_| {})).unwrap()).unwrap();
    silent.fingerprints.push(fingerprint());
    assert_eq!(
        said_on(&two_vms(), &silent),
        ["plan expects /pl011@9000000 at 0x9000000..0x9001000, tree has no console"]
    );
    plan.machine.uart = None;
    assert_eq!(said_on(&plan, &silent), [""; 0]);
    assert_eq!(said(&plan), [""; 0]);
}

#[test]
fn plan_that_cannot_be_is_refused_as_a_whole() {
    let mut plan = two_vms();
    plan.vms = list(vec![]);
    assert_eq!(said(&plan), ["plan has no VM"]);
    let mut plan = two_vms();
    plan.board = name("a\nb");
    assert_eq!(said(&plan), ["plan names a board that is none"]);
    let mut plan = two_vms();
    plan.knobs.list_registers_max = Some(0);
    assert_eq!(said(&plan), ["plan has a value of list_registers_max that cannot be"]);
    plan.knobs.list_registers_max = Some(1);
    plan.knobs.vmid_bits_max = Some(4);
    assert_eq!(said(&plan), ["plan has a value of vmid_bits_max that cannot be"]);
    plan.knobs.vmid_bits_max = Some(5);
    assert_eq!(said(&plan), [""; 0]);
}

#[test]
fn less_memory_than_expected_is_reported_and_refuses_nothing() {
    let mut plan = two_vms();
    plan.machine.memory_bytes = 4 << 30;
    let machine = machine();
    let report = check(&plan, &machine, LIMITS, &image_bytes).unwrap();
    assert_eq!(report.refusals, []);
    assert_eq!(report.shortfall.unwrap().to_string(), "plan expects 4G, tree has 2G");
    let id = VmId::new(1);
    let refusal = report.no_room(id, &plan.vms[1]);
    assert_eq!(refusal.to_string(), "plan expects 4G, tree has 2G: \"b\" does not fit");
    let refusal = Report { shortfall: None, ..report }.no_room(id, &plan.vms[1]);
    assert_eq!(refusal.to_string(), "\"b\" does not fit: 512M of memory are not free");
}

#[test]
fn vms_start_after_those_before_them_alone() {
    let after = |ids: &[u8]| {
        let mut plan = two_vms();
        let ids = ids.iter().copied().map(VmId::new).collect();
        plan.vms[1].policies.after = list(ids);
        said(&plan)
    };
    assert_eq!(after(&[]), [""; 0]);
    assert_eq!(after(&[0]), [""; 0]);
    assert_eq!(after(&[0, 0]), [""; 0]);
    // Itself, one behind it or nobody, and the last that can be named.
    for (ids, bad) in [(&[1][..], 1), (&[0, 2], 2), (&[255, 0], 255)] {
        let expected = format!("\"b\" is to start after VM {bad}, which is not before it");
        assert_eq!(after(ids), [expected]);
    }
    // A circle is refused where it closes, and only there.
    let mut plan = two_vms();
    plan.vms[0].policies.after = list(vec![VmId::new(1)]);
    plan.vms[1].policies.after = list(vec![VmId::new(0)]);
    assert_eq!(said(&plan), ["\"a\" is to start after VM 1, which is not before it"]);
}

#[test]
fn a_watchdog_that_fires_at_once_is_refused() {
    let watchdog = |ms| said_after(|b| b.policies.watchdog_ms = Some(ms));
    assert_eq!(watchdog(0), "\"b\" has a watchdog that fires at once");
    let mut plan = two_vms();
    plan.vms[1].policies.watchdog_ms = Some(1);
    assert_eq!(said(&plan), [""; 0]);
}

#[test]
fn vm_that_is_refused_does_not_stop_the_others() {
    let mut plan = two_vms();
    let mut third = plan.vms[0].clone();
    third.name = name("third");
    third.vcpus = list(vec![]);
    plan.vms = list(vec![third, plan.vms[0].clone(), plan.vms[1].clone()]);
    let machine = machine();
    let report = check(&plan, &machine, LIMITS, &image_bytes).unwrap();
    assert_eq!(report.refusal(VmId::new(0)).unwrap().to_string(), "\"third\" has no cpu");
    assert_eq!((report.refusal(VmId::new(1)), report.refusal(VmId::new(2))), (None, None));
    assert_eq!(report.refusals.len(), 1);
}

#[test]
fn what_a_refused_vm_claims_is_free() {
    let mut plan = two_vms();
    // The first VM claims the second's PEs, but has an image that is not there.
    plan.vms[0].vcpus = plan.vms[1].vcpus.clone();
    plan.vms[0].images[0].name = name("missing");
    assert_eq!(said(&plan), ["\"a\" needs image missing, which the bundle does not have"]);
}

#[test]
fn cpus_are_checked() {
    let cpus =
        |cpus: &[u64]| list(cpus.iter().map(|cpu| Mpidr::from_affinity(*cpu).unwrap()).collect());
    assert_eq!(said_after(|b| b.vcpus = cpus(&[2, 1])), "\"b\" and \"a\" both claim cpu 0x1");
    assert_eq!(said_after(|b| b.vcpus = cpus(&[2, 2])), "\"b\" claims cpu 0x2 twice");
    assert_eq!(said_after(|b| b.vcpus = cpus(&[])), "\"b\" has no cpu");
    // T22: an affinity is not an index.
    assert_eq!(
        said_after(|b| b.vcpus = cpus(&[0x200])),
        "\"b\" claims cpu 0x200, which the tree does not have"
    );
}

#[test]
fn names_are_checked_before_they_are_shown() {
    for bad in ["", "a b", "x\n[06] forged", "\u{1b}[2J", "caf\u{e9}"] {
        let said = said_after(|b| b.name = name(bad));
        assert_eq!(said, "VM 1: its name is not of letters, digits, - and _");
        assert!(!is_name(bad));
    }
    assert_eq!(said_after(|b| b.name = name("a")), "\"a\" is already the name of VM 0");
    let said = said_after(|b| b.images[0].name = name("x\ny"));
    assert_eq!(said, "\"b\": the name of image 0 is malformed");
    for bad in ["", "uart", "/a\nb", "/a b"] {
        let said = said_after(|b| b.devices[0].path = bad.try_into().unwrap());
        assert_eq!(said, "\"b\": the path of device 0 is malformed");
    }
}

#[test]
fn guest_layout_is_checked() {
    let at = |ipa| Ipa::new(ipa);
    assert_eq!(
        said_after(|b| {
            b.layout.vgic = VgicFrames::V3 { vredist: at(0x800_0000), vits: at(0x808_0000) }
        }),
        "\"b\": virtual redistributors at 0x8000000..0x8040000 \
            overlaps virtual distributor at 0x8000000..0x8010000"
    );
    assert_eq!(
        said_after(|b| {
            b.layout.vgic = VgicFrames::V3 { vredist: at(0x80a_0000), vits: at(0x809_0000) }
        }),
        "\"b\": virtual ITS at 0x8090000..0x80b0000 \
            overlaps virtual redistributors at 0x80a0000..0x80e0000"
    );
    assert_eq!(
        said_after(|b| b.layout.vuart = at(0x4000_0000)),
        "\"b\": virtual UART at 0x40000000..0x40001000 overlaps memory at 0x40000000..0x60000000"
    );
    assert_eq!(
        said_after(|b| b.layout.vdist = at(0x800_1000)),
        "\"b\": virtual distributor is not aligned to 64K"
    );
    assert_eq!(
        said_after(|b| b.layout.vdist = at(u64::MAX - 0xffff)),
        "\"b\": virtual distributor is beyond 40 bits of address"
    );
    assert_eq!(
        said_after(|b| b.memory = IpaRange::new(at((1 << 40) - 0x1000), 0x2000).unwrap()),
        "\"b\": memory is beyond 40 bits of address"
    );
    assert_eq!(
        said_after(|b| b.memory = IpaRange::new(at(0x4000_0800), 0x2000_0000).unwrap()),
        "\"b\": memory is not aligned to 4K"
    );
    assert_eq!(
        said_after(|b| b.devices[0].regions[0].1 = at(0x900_0000)),
        "\"b\": device /dev@b000000 at 0x9000000..0x9001000 \
            overlaps virtual UART at 0x9000000..0x9001000"
    );
    assert_eq!(
        said_after(|b| b.entry = at(0x3fff_fffc)),
        "\"b\": entry point is outside its memory at 0x40000000..0x60000000"
    );
    assert_eq!(
        said_after(|b| b.entry = at(0x4000_0002)),
        "\"b\": entry point is not aligned to 4 bytes"
    );
    assert_eq!(
        said_after(|b| b.tree = at(0x6000_0000)),
        "\"b\": device tree is outside its memory at 0x40000000..0x60000000"
    );
    assert_eq!(
        said_after(|b| b.tree = at(0x4000_0004)),
        "\"b\": device tree is not aligned to 8 bytes"
    );
}

#[test]
fn layout_that_ends_with_the_address_space_is_accepted() {
    let mut plan = two_vms();
    let memory = IpaRange::between(Ipa::new((1 << 40) - (1 << 29)), Ipa::new(1 << 40)).unwrap();
    let vm = &mut plan.vms[1];
    let moved = memory.start().get() - vm.memory.start().get();
    vm.memory = memory;
    vm.entry = Ipa::new(vm.entry.get() + moved);
    vm.tree = Ipa::new(vm.tree.get() + moved);
    for image in &mut *vm.images {
        image.ipa = Ipa::new(image.ipa.get() + moved);
    }
    assert_eq!(said(&plan), [""; 0]);
}

#[test]
fn images_are_checked() {
    let at = |ipa| Ipa::new(ipa);
    assert_eq!(
        said_after(|b| b.images[0].size_bytes += 1),
        "\"b\" expects image kernel of 8193 bytes, the bundle has 8192"
    );
    assert_eq!(
        said_after(|b| b.images[0].name = name("missing")),
        "\"b\" needs image missing, which the bundle does not have"
    );
    assert_eq!(
        said_after(|b| b.images[0].ipa = at(0x6000_0000 - 8191)),
        "\"b\": image kernel is outside its memory at 0x40000000..0x60000000"
    );
    assert_eq!(
        said_after(|b| b.images[0].ipa = at(u64::MAX - 100)),
        "\"b\": image kernel is outside its memory at 0x40000000..0x60000000"
    );
    assert_eq!(
        said_after(|b| b.images[1].ipa = at(0x4000_1fff)),
        "\"b\": image tree at 0x40001fff..0x40003fff \
            overlaps image kernel at 0x40000000..0x40002000"
    );
}

#[test]
fn registers_of_devices_are_checked() {
    let on = |range| said_after(|b| b.devices[0].regions[0].0 = range);
    assert_eq!(
        on(pages(0x800_f000, 1)),
        "\"b\": device /dev@b000000 at 0x800f000..0x8010000 \
            overlaps the interrupt controller at 0x8000000..0x8010000"
    );
    assert_eq!(
        on(pages(0x900_0000, 1)),
        "\"b\": device /dev@b000000 at 0x9000000..0x9001000 \
            overlaps the console /pl011@9000000 at 0x9000000..0x9001000"
    );
    assert_eq!(
        on(pages(0x809_f000, 1)),
        "\"b\": device /dev@b000000 at 0x809f000..0x80a0000 \
            overlaps its@8080000 (kept by the hypervisor) at 0x8080000..0x80a0000"
    );
    assert_eq!(
        on(pages(0x3fff_f000, 2)),
        "\"b\": device /dev@b000000 at 0x3ffff000..0x40001000 \
            overlaps memory at 0x40000000..0xc0000000"
    );
    assert_eq!(
        on(pages(0xa00_0000, 1)),
        "\"b\": device /dev@b000000 at 0xa000000..0xa001000 \
            overlaps device /dev@a000000 of \"a\""
    );
    assert_eq!(
        on(PaRange::new(Pa::new(0xb00_0000), 512).unwrap()),
        "\"b\": device /dev@b000000 is not aligned to 4K"
    );
    assert_eq!(on(pages(1 << 40, 1)), "\"b\": device /dev@b000000 is beyond 40 bits of address");
    // The same VM may not map a page twice either.
    let twice = said_after(|b| {
        b.devices = list(vec![b.devices[0].clone(), device(0xb00_0000, 50, 0xd00_0000)]);
    });
    assert!(twice.contains("overlaps device /dev@b000000 of \"b\""), "{twice}");
}

/// A device has to be what was planned: by path, `compatible`, `reg`, and in use.
#[test]
fn device_that_is_another_in_the_live_tree_is_refused() {
    let [ours, theirs] = [*b"acme,dma\0", *b"acme,dmb\0"];
    let print = |path, compatible, reg: [u8; 8]| machine::fingerprint(path, compatible, &reg);
    let here = print("/bus/dma@100", &ours, [0, 0, 1, 0, 0, 0, 0, 16]);
    let tree = |status: &'static str| {
        virt_but(&[], |b| {
            b.node("bus", |b| {
                b.text("status", status);
                b.cells("#address-cells", &[1]);
                b.cells("#size-cells", &[1]);
                b.node("dma@100", |b| {
                    b.text("compatible", "acme,dma");
                    b.cells("reg", &[0x100, 16]);
                });
            });
        })
    };
    let on = |tree: &[u8], planned| {
        let mut plan = two_vms();
        plan.vms[0].devices[0].fingerprint = planned;
        said_on(&plan, &Machine::read(&Dtb::new(tree).unwrap()).unwrap())
    };
    assert_eq!(on(&tree("okay"), here), [""; 0]);
    let refused = "\"a\": /dev@a000000 is not the device that was planned; \
                   plan with this board's tree";
    assert_eq!(on(&tree("disabled"), here), [refused]);
    for other in [
        print("/bus/dma@200", &ours, [0, 0, 1, 0, 0, 0, 0, 16]),
        print("/bus/dma@100", &theirs, [0, 0, 1, 0, 0, 0, 0, 16]),
        print("/bus/dma@100", &ours, [0, 0, 2, 0, 0, 0, 0, 16]),
    ] {
        assert_eq!(on(&tree("okay"), other), [refused]);
    }
}

#[test]
fn reserved_memory_over_a_guests_device_is_refused() {
    let tree = virt_but(&[], |b| {
        b.node("reserved-memory", |b| {
            b.cells("#address-cells", &[1]);
            b.cells("#size-cells", &[1]);
            b.node("mailbox@b000800", |b| b.cells("reg", &[0xb00_0800, 4]));
        });
    });
    let machine = Machine::read(&Dtb::new(&tree).unwrap()).unwrap();
    assert_eq!(
        said_on(&two_vms(), &machine),
        ["\"b\": device /dev@b000000 at 0xb000000..0xb001000 \
            overlaps reserved memory mailbox@b000800 at 0xb000800..0xb000804"]
    );
}

#[test]
fn interrupts_are_checked() {
    let on = |pintid| said_after(|b| b.devices[0].interrupts[0].pintid = Pintid::new(pintid));
    assert_eq!(on(31), "\"b\": interrupt 31 of device /dev@b000000 is no SPI");
    assert_eq!(on(1020), "\"b\": interrupt 1020 of device /dev@b000000 is no SPI");
    assert_eq!(
        on(33),
        "\"b\": interrupt 33 of device /dev@b000000 is that of the console /pl011@9000000"
    );
    assert_eq!(
        on(48),
        "\"b\": interrupt 48 of device /dev@b000000 is that of device /dev@a000000 of \"a\""
    );
    let seen = |vintid| said_after(|b| b.devices[0].interrupts[0].vintid = Vintid::new(vintid));
    assert_eq!(seen(27), "\"b\": its interrupt 27 is no SPI");
    assert_eq!(seen(1020), "\"b\": its interrupt 1020 is no SPI");
    for own in [33, 39, 40] {
        assert_eq!(seen(own), format!("\"b\" has two interrupts of number {own}"));
    }
    let own = |change: fn(&mut Layout)| said_after(|b| change(&mut b.layout));
    let gpio = own(|layout| layout.gpio_interrupt = Vintid::new(31));
    assert_eq!(gpio, "\"b\": its interrupt 31 is no SPI");
    let watchdog = own(|layout| layout.watchdog_interrupt = Vintid::new(39));
    assert_eq!(watchdog, "\"b\" has two interrupts of number 39");
    let platform = own(|layout| layout.platform = Ipa::new(u64::MAX << 12));
    assert_eq!(platform, "\"b\": virtual platform is beyond 40 bits of address");
}

/// The machine with a second UART, and a plan that has requests come in there.
fn with_control(machine_has: impl FnOnce(&mut crate::spec::dtb::builder::Builder)) -> Vec<String> {
    let mut plan = two_vms();
    plan.control.uart = Some(UartClaim {
        path: "/pl011@9040000".try_into().unwrap(),
        registers: pages(0x904_0000, 1),
    });
    let mut machine = Machine::read(&Dtb::new(&virt_but(&[], machine_has)).unwrap()).unwrap();
    machine.keep_for_control("/pl011@9040000");
    let whole = said_on(&plan, &machine);
    plan.vms[1].devices[0].regions[0].0 = pages(0x904_0000, 1);
    plan.vms[0].devices[0].interrupts[0].pintid = Pintid::new(40);
    [whole, said_on(&plan, &machine)].concat()
}

fn second_uart(b: &mut crate::spec::dtb::builder::Builder, at: u32, interrupts: &[u32]) {
    b.node("pl011@9040000", |b| {
        b.cells("interrupts", interrupts);
        b.cells("reg", &[0, at, 0, 0x1000]);
        b.text("compatible", "arm,pl011\0arm,primecell");
    });
}

#[test]
fn control_port_is_no_guests() {
    assert_eq!(
        with_control(|b| second_uart(b, 0x904_0000, &[0, 8, 4])),
        [
            "\"a\": interrupt 40 of device /dev@a000000 is that of the control port /pl011@9040000",
            "\"b\": device /dev@b000000 at 0x9040000..0x9041000 overlaps the control port \
             /pl011@9040000 at 0x9040000..0x9041000",
        ]
    );
}

#[test]
fn control_port_is_where_the_plan_says_and_can_interrupt() {
    let said = |at, interrupts: &[u32]| with_control(|b| second_uart(b, at, interrupts)).remove(0);
    assert_eq!(
        said(0x905_0000, &[0, 8, 4]),
        "plan expects /pl011@9040000 at 0x9040000..0x9041000, tree has /pl011@9040000 at \
         0x9050000..0x9051000"
    );
    assert_eq!(
        said(0x904_0000, &[]),
        "plan has requests come in by /pl011@9040000, whose interrupt does not go to the GIC"
    );
    assert_eq!(
        with_control(|_| {})[0],
        "plan expects /pl011@9040000 at 0x9040000..0x9041000, tree has no such UART that is free \
         for requests"
    );
}

/// The console's own UART is not one that is free, also where the plan says so.
#[test]
fn control_port_is_not_the_console() {
    let mut plan = two_vms();
    plan.control.uart = plan.machine.uart.clone();
    let mut machine = machine();
    machine.keep_for_control("/pl011@9000000");
    assert!(machine.uart.is_some());
    assert!(said_on(&plan, &machine)[0].ends_with("no such UART that is free for requests"));
}

#[test]
fn gicv2_plan_fits_the_pi() {
    let mut plan = two_vms();
    plan.machine.gic = GicClaim::V2 { gicd: Pa::new(0xff84_1000) };
    plan.machine.uart = Some(UartClaim {
        path: "/soc/serial@7e215040".try_into().unwrap(),
        registers: PaRange::new(Pa::new(0xfe21_5040), 0x40).unwrap(),
    });
    for (vm, start) in plan.vms.iter_mut().zip([0xfe20_1000, 0xfe20_2000]) {
        vm.devices[0].regions[0].0 = pages(start, 1);
        vm.layout.vgic = VgicFrames::V2 { gicc: Ipa::new(0x801_0000) };
    }
    let mut machine = Machine::read(&Dtb::new(&pi4()).unwrap()).unwrap();
    machine.fingerprints.push(fingerprint());
    assert_eq!(said_on(&plan, &machine), [""; 0]);
    plan.vms[1].layout.vgic =
        VgicFrames::V3 { vredist: Ipa::new(0x80a_0000), vits: Ipa::new(0x808_0000) };
    assert_eq!(
        said_on(&plan, &machine),
        ["\"b\" expects another GIC than the tree has, or more of its CPUs"]
    );
    plan.vms[1].layout.vgic = VgicFrames::V2 { gicc: Ipa::new(0x801_0000) };
    // The console's registers are 64 bytes of this page.
    plan.vms[1].devices[0].regions[0].0 = pages(0xfe21_5000, 1);
    assert!(said_on(&plan, &machine)[0].contains("the console /soc/serial@7e215040"));
}

/// A clash between two VMs: which of the first's claims the second takes.
#[derive(Clone, Copy, Debug)]
enum Stolen {
    Cpu,
    Registers,
    Interrupt,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Two VMs whose claims are drawn from disjoint pools are accepted; once the second takes
    /// anything of the first, or part of it, it is refused and both are named.
    #[test]
    fn any_overlap_of_two_vms_is_refused(
        split in 1_usize..4,
        first_pages in 1_u64..64,
        second_pages in 1_u64..64,
        gap in 0_u64..8,
        spi in 34_u32..1000,
        stolen in prop_oneof![Just(Stolen::Cpu), Just(Stolen::Registers), Just(Stolen::Interrupt)],
        shift in 0_u64..128,
    ) {
        let mut plan = two_vms();
        let cpus: Vec<Mpidr> = (0..4).map(|cpu| Mpidr::from_affinity(cpu).unwrap()).collect();
        plan.vms[0].vcpus = list(cpus[..split].to_vec());
        plan.vms[1].vcpus = list(cpus[split..].to_vec());
        let first = pages(0xa00_0000, first_pages);
        let second = pages(first.end().get() + gap * 4096, second_pages);
        plan.vms[0].devices[0].regions[0].0 = first;
        plan.vms[1].devices[0].regions[0].0 = second;
        plan.vms[0].devices[0].interrupts[0].pintid = Pintid::new(spi);
        plan.vms[1].devices[0].interrupts[0].pintid = Pintid::new(spi + 1);
        prop_assert_eq!(said(&plan), [""; 0]);

        let thief = &mut plan.vms[1];
        match stolen {
            Stolen::Cpu => thief.vcpus = list([&cpus[split..], &cpus[..1]].concat()),
            Stolen::Interrupt => thief.devices[0].interrupts[0].pintid = Pintid::new(spi),
            Stolen::Registers => {
                // From the last place where the end touches to the last where the start does.
                let places = first_pages + second_pages - 1;
                let start = first.start().get() + 4096 - second_pages * 4096;
                thief.devices[0].regions[0].0 =
                    pages(start + (shift % places) * 4096, second_pages);
            }
        }
        let said = said(&plan);
        prop_assert_eq!(said.len(), 1);
        prop_assert!(said[0].contains("\"b\""));
        prop_assert!(said[0].contains("\"a\""), "{}", said[0]);
    }

    /// Two things at the same place of one guest are refused, whatever they are.
    #[test]
    fn any_overlap_in_a_guest_is_refused(
        which in 0_usize..5, onto in 0_usize..6, page in 0_u64..16
    ) {
        let mut plan = two_vms();
        let vm = &mut plan.vms[1];
        let places = [
            vm.layout.vdist_range().unwrap(),
            vm.layout.vgic_range(vm.vcpus.len()).unwrap(),
            vm.layout.vuart_range().unwrap(),
            IpaRange::new(vm.devices[0].regions[0].1, 0x1000).unwrap(),
            vm.layout.platform_range().unwrap(),
            vm.memory,
        ];
        prop_assume!(which != onto);
        let target = Ipa::new(places[onto].start().get() + (page << 12) % places[onto].size());
        match which {
            0 => vm.layout.vdist = target.align_down(0x1_0000),
            1 => {
                let (vredist, vits) = (target.align_down(0x1_0000), Ipa::new(0x808_0000));
                vm.layout.vgic = VgicFrames::V3 { vredist, vits };
            }
            2 => vm.layout.vuart = target,
            4 => vm.layout.platform = target,
            _ => vm.devices[0].regions[0].1 = target,
        }
        let said = said(&plan);
        prop_assert_eq!(said.len(), 1);
        let is_overlap = said[0].starts_with("\"b\": ") && said[0].contains(" overlaps ");
        prop_assert!(is_overlap, "{}", said[0]);
    }
}
