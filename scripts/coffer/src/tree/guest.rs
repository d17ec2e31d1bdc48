// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree that a guest gets: its vCPUs, memory, virtual devices and assigned devices.
//!
//! Shaped like the tree of QEMU's virt machine (Devicetree Specification 0.4; Linux,
//! Documentation/devicetree/bindings for the nodes), so that kernels meet what they know.
#![forbid(unsafe_code)]

mod platform;

use crate::plan::layout::VUART_BYTES;
use cofferdam::addr::{Address, Ipa, IpaRange};
use cofferdam::plan::{Layout, VgicFrames};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// What is said to a guest.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// The VM's name.
    pub name: &'a str,
    /// For each vCPU what its core is compatible with.
    pub vcpus: Vec<&'a [String]>,
    /// RAM.
    pub memory: IpaRange,
    /// Where the virtual devices stand.
    pub layout: &'a Layout,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// The ramdisk.
    pub ramdisk: Option<IpaRange>,
    /// Whether the cores have a performance monitor.
    pub has_pmu: bool,
    /// What the guest's random numbers start from.
    pub seeds: &'a Seeds,
    /// Devices of the board, and what stands in for what they need.
    pub devices: Vec<DeviceTreeNode>,
}

/// What a guest's random numbers start from. EL2 writes fresh values over them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seeds {
    /// For the kernel's place.
    pub kaslr: u64,
    /// For the pool of entropy.
    pub rng: [u8; 64],
}

pub(crate) const EMPTY: &[u8] = &[];
/// From here up phandles are those of what the board does not have. Its own start at 1 (dtc) or
/// at 0x8000 (QEMU).
pub(crate) const PHANDLES: u32 = 0xcd00_0000;
pub(crate) const GIC_PHANDLE: u32 = PHANDLES + 1;
const APB_CLOCK_PHANDLE: u32 = PHANDLES + 2;
const ITS_PHANDLE: u32 = PHANDLES + 3;
const GPIO_PHANDLE: u32 = PHANDLES + 4;
/// The first phandle of what stands in for parts of the board.
pub(crate) const DEVICE_PHANDLES: u32 = PHANDLES + 0x1_0000;
const APB_CLOCK_HZ: u32 = 24_000_000;
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The first INTID that is an SPI.
const SPI_BASE: u32 = 32;
/// The PPIs of the timers: secure physical, physical, virtual, hypervisor.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
const PMU_PPI: u32 = 7;

/// Writes the tree, flattened.
#[must_use]
pub fn write(guest: &Guest<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    for property in [
        property("#address-cells", 2u32),
        property("#size-cells", 2u32),
        property("compatible", "linux,dummy-virt"),
        property("model", format!("Cofferdam VM {}", guest.name).as_str()),
        property("interrupt-parent", GIC_PHANDLE),
    ] {
        root.add_property(property);
    }
    let uart = format!("pl011@{:x}", guest.layout.vuart.get());
    root.add_child(chosen(guest, &uart));
    root.add_child(node("aliases", [property("serial0", format!("/{uart}").as_str())]));
    root.add_child(cpus(&guest.vcpus));
    root.add_child(memory(guest.memory));
    root.add_child(psci());
    root.add_child(timer(guest));
    root.add_child(gic(guest));
    if guest.has_pmu {
        let interrupts = [PPI, PMU_PPI, ppi_flags(guest)];
        let compatible = property("compatible", "arm,armv8-pmuv3");
        root.add_child(node("pmu", [compatible, property("interrupts", cells(&interrupts))]));
    }
    root.add_child(clock("apb-pclk", APB_CLOCK_PHANDLE, APB_CLOCK_HZ));
    root.add_child(vuart(&uart, guest.layout));
    platform::nodes(guest.layout).into_iter().for_each(|node| root.add_child(node));
    guest.devices.iter().for_each(|device| root.add_child(device.clone()));
    tree.to_dtb()
}

fn chosen(guest: &Guest<'_>, uart: &str) -> DeviceTreeNode {
    let [high, low] = halves(guest.seeds.kaslr);
    let mut chosen = node(
        "chosen",
        [
            property("bootargs", guest.bootargs),
            property("stdout-path", format!("/{uart}").as_str()),
            property("kaslr-seed", cells(&[high, low])),
            property("rng-seed", guest.seeds.rng.as_slice()),
        ],
    );
    if let Some(ramdisk) = guest.ramdisk {
        chosen.add_property(property("linux,initrd-start", ramdisk.start().get()));
        chosen.add_property(property("linux,initrd-end", ramdisk.end().get()));
    }
    chosen
}

fn cpus(vcpus: &[&[String]]) -> DeviceTreeNode {
    let mut cpus = node("cpus", [property("#address-cells", 1u32), property("#size-cells", 0u32)]);
    for (index, core) in (0u32..).zip(vcpus) {
        // Sixteen at most share Aff1: that is what one SGI of the GIC can name.
        let affinity = (index % 16) | (index / 16) << 8;
        let fallback = ["arm,armv8"];
        let compatible: Vec<&str> = core.iter().map(String::as_str).collect();
        let compatible = if compatible.is_empty() { &fallback } else { compatible.as_slice() };
        cpus.add_child(node(
            &format!("cpu@{affinity:x}"),
            [
                property("device_type", "cpu"),
                property("compatible", compatible),
                property("reg", affinity),
                property("enable-method", "psci"),
            ],
        ));
    }
    cpus
}

fn memory(memory: IpaRange) -> DeviceTreeNode {
    let name = format!("memory@{:x}", memory.start().get());
    node(&name, [property("device_type", "memory"), registers(&[memory])])
}

fn psci() -> DeviceTreeNode {
    let versions: &[&str] = &["arm,psci-1.0", "arm,psci-0.2"];
    node("psci", [property("compatible", versions), property("method", "hvc")])
}

/// Returns the flags of a PPI: with GICv2, the vCPUs too that have it (bits 15:8).
fn ppi_flags(guest: &Guest<'_>) -> u32 {
    match guest.layout.vgic {
        VgicFrames::V2 { .. } => guest.vcpus.iter().fold(0, |set, _| set << 1 | 0x100) | LEVEL_HIGH,
        VgicFrames::V3 { .. } => LEVEL_HIGH,
    }
}

fn timer(guest: &Guest<'_>) -> DeviceTreeNode {
    let flags = ppi_flags(guest);
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| [PPI, *ppi, flags]).collect();
    let compatible = property("compatible", "arm,armv8-timer");
    let interrupts = property("interrupts", cells(&interrupts));
    node("timer", [compatible, interrupts, property("always-on", EMPTY)])
}

fn gic(guest: &Guest<'_>) -> DeviceTreeNode {
    let layout = guest.layout;
    let regions = [layout.vdist_range(), layout.vgic_range(guest.vcpus.len())];
    let regions: Vec<IpaRange> = regions.into_iter().flatten().collect();
    // Without an ITS there is nothing below it: an interrupt-map would have no address to name.
    let address_cells = if layout.vits_range().is_some() { 2u32 } else { 0 };
    let mut gic = node(
        &format!("intc@{:x}", layout.vdist.get()),
        [
            property("#interrupt-cells", 3u32),
            property("#address-cells", address_cells),
            property("interrupt-controller", EMPTY),
            registers(&regions),
            property("phandle", GIC_PHANDLE),
        ],
    );
    match layout.vgic {
        VgicFrames::V2 { .. } => {
            let names: &[&str] = &["arm,gic-400", "arm,cortex-a15-gic"];
            gic.add_property(property("compatible", names));
        }
        VgicFrames::V3 { .. } => {
            gic.add_property(property("compatible", "arm,gic-v3"));
            gic.add_property(property("#redistributor-regions", 1u32));
        }
    }
    if let Some(vits) = layout.vits_range() {
        gic.add_property(property("#size-cells", 2u32));
        gic.add_property(property("ranges", EMPTY));
        gic.add_child(its(vits));
    }
    gic
}

fn its(range: IpaRange) -> DeviceTreeNode {
    node(
        &format!("its@{:x}", range.start().get()),
        [
            property("compatible", "arm,gic-v3-its"),
            property("msi-controller", EMPTY),
            property("#msi-cells", 1u32),
            registers(&[range]),
            property("phandle", ITS_PHANDLE),
        ],
    )
}

pub(crate) fn clock(name: &str, phandle: u32, hz: u32) -> DeviceTreeNode {
    node(
        name,
        [
            property("compatible", "fixed-clock"),
            property("#clock-cells", 0u32),
            property("clock-frequency", hz),
            property("phandle", phandle),
        ],
    )
}

fn vuart(name: &str, layout: &Layout) -> DeviceTreeNode {
    let compatible: &[&str] = &["arm,pl011", "arm,primecell"];
    let clock_names: &[&str] = &["uartclk", "apb_pclk"];
    let interrupt = layout.vuart_interrupt.get().wrapping_sub(SPI_BASE);
    node(
        name,
        [
            property("compatible", compatible),
            property("reg", cells(&pair(layout.vuart, VUART_BYTES))),
            property("interrupts", cells(&[SPI, interrupt, LEVEL_HIGH])),
            property("clocks", cells(&[APB_CLOCK_PHANDLE, APB_CLOCK_PHANDLE])),
            property("clock-names", clock_names),
        ],
    )
}

fn registers(ranges: &[IpaRange]) -> DeviceTreeProperty {
    let pairs: Vec<u32> =
        ranges.iter().flat_map(|range| pair(range.start(), range.size())).collect();
    property("reg", cells(&pairs))
}

fn pair(start: Ipa, size: u64) -> [u32; 4] {
    let ([a, b], [c, d]) = (halves(start.get()), halves(size));
    [a, b, c, d]
}

pub(crate) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

pub(crate) fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

pub(crate) fn node<const N: usize>(
    name: &str,
    properties: [DeviceTreeProperty; N],
) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    properties.into_iter().for_each(|property| node.add_property(property));
    node
}

pub(crate) fn property(name: &str, value: impl ToPropertyValue) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}
