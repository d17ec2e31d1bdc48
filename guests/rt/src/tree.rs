// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the device tree says about the machine, read once at entry. A guest trusts its tree.
#![expect(unsafe_code, reason = "the tree is found by its address")]

use crate::cpu::CPUS_MAX;
use crate::device::Device;
use crate::mmu;
use crate::psci::Conduit;
use fdt::Fdt;
use fdt::node::FdtNode;
use heapless::{String, Vec};
use spin::Once;

/// A range of addresses: start and size in bytes.
pub type Range = (u64, u64);

/// The machine as the tree describes it.
pub struct Machine {
    /// The console, a PL011.
    pub uart: Device,
    /// Its interrupt.
    pub uart_intid: u32,
    /// The distributor.
    pub gicd: Device,
    /// The CPU interface of a GICv2; none with a GICv3.
    pub gicc: Option<Device>,
    /// The regions of redistributors.
    pub gicr: Vec<Device, 4>,
    /// The ITS.
    pub its: Option<Device>,
    /// The affinity of each vCPU.
    pub cpus: Vec<u64, CPUS_MAX>,
    /// The memory.
    pub memory: Vec<Range, 8>,
    /// Where the tree itself is, and the initial RAM disk.
    pub kept: Vec<Range, 2>,
    /// Every range that the tree gives to a device.
    pub devices: Vec<Range, 96>,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// The interrupts of the generic timers: secure physical, physical, virtual, hypervisor.
    pub timers: [u32; 4],
    /// A PL061 and its interrupt.
    pub gpio: Option<(Device, u32)>,
    /// A generic watchdog.
    pub watchdog: Option<Watchdog>,
    /// The port on which a panic is reported.
    pub panic_port: Option<Device>,
    /// A PL031 clock and its interrupt.
    pub rtc: Option<(Device, u32)>,
    /// The arguments.
    pub bootargs: String<512>,
}

/// A generic watchdog.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    /// The control frame.
    pub control: Device,
    /// The refresh frame.
    pub refresh: Device,
    /// The interrupt of WS0.
    pub intid: u32,
}

static MACHINE: Once<Machine> = Once::new();

/// Returns the machine; there is none before the boot vCPU has read the tree.
#[must_use]
pub fn machine() -> &'static Machine {
    match MACHINE.get() {
        Some(machine) => machine,
        // Without a tree there is no console to complain on.
        None => loop {
            crate::sysreg::relax();
        },
    }
}

/// Returns whether the arguments have the word `word`.
#[must_use]
pub fn has_argument(word: &str) -> bool {
    machine().bootargs.split_ascii_whitespace().any(|w| w == word)
}

/// Returns the value of the argument `name=value`.
#[must_use]
pub fn argument(name: &str) -> Option<&'static str> {
    machine()
        .bootargs
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Reads the tree.
pub(crate) fn read(address: u64) {
    // SAFETY: the boot protocol puts the address of a tree into x0; the entry code has mapped it,
    // and nothing writes there.
    let tree = unsafe { Fdt::from_ptr(core::ptr::with_exposed_provenance(usize_from(address))) };
    let Ok(tree) = tree else { return };
    let tree_size = tree.total_size() as u64;
    let mut kept = Vec::new();
    let _ = kept.push((address, tree_size));
    if let Some(ramdisk) = ramdisk(&tree) {
        let _ = kept.push(ramdisk);
    }
    let gicv2 = tree.find_compatible(&["arm,gic-400", "arm,cortex-a15-gic"]);
    let gic = gicv2.or_else(|| tree.find_compatible(&["arm,gic-v3"]));
    let mut gic_regions = gic.into_iter().flat_map(regions);
    let uart = tree.find_compatible(&["arm,pl011"]);
    let rtc = tree.find_compatible(&["arm,pl031"]);
    let gpio = tree.find_compatible(&["arm,pl061"]);
    let timer = tree.find_compatible(&["arm,armv8-timer"]);
    let chosen = tree.find_node("/chosen");
    let machine = Machine {
        uart: uart.and_then(device).unwrap_or_default(),
        uart_intid: uart.map_or(0, |node| intid(node, 0)),
        gicd: gic_regions.next().map(to_device).unwrap_or_default(),
        gicc: gicv2.and_then(|_| gic_regions.next()).map(to_device),
        gicr: gic_regions.map(to_device).take(redistributor_regions(gic)).collect(),
        its: tree.find_compatible(&["arm,gic-v3-its"]).and_then(device),
        cpus: tree.cpus().take(CPUS_MAX).map(|cpu| cpu.ids().first() as u64).collect(),
        memory: tree.find_all_nodes("/memory").flat_map(regions).take(8).collect(),
        kept,
        devices: devices(&tree),
        conduit: conduit(&tree),
        timers: [0, 1, 2, 3].map(|n| timer.map_or(0, |node| intid(node, n))),
        gpio: gpio.and_then(|node| Some((device(node)?, intid(node, 0)))),
        watchdog: tree.find_compatible(&["arm,sbsa-gwdt"]).and_then(watchdog),
        panic_port: tree.find_compatible(&["qemu,pvpanic-mmio"]).and_then(device),
        rtc: rtc.and_then(|node| Some((device(node)?, intid(node, 0)))),
        bootargs: chosen
            .and_then(|node| node.property("bootargs")?.as_str())
            .and_then(|text| String::try_from(text).ok())
            .unwrap_or_default(),
    };
    for (start, size) in &machine.memory {
        for gib in (*start..start + size).step_by(1 << 30) {
            mmu::add_memory(gib);
        }
        mmu::add_memory(start + size - 1);
    }
    MACHINE.call_once(|| machine);
}

fn usize_from(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}

fn regions<'a>(node: FdtNode<'_, 'a>) -> impl Iterator<Item = Range> + use<'a> {
    node.reg()
        .into_iter()
        .flatten()
        .map(|region| (region.starting_address.addr() as u64, region.size.unwrap_or(0) as u64))
}

fn to_device((base, size): Range) -> Device {
    Device::new(base, size)
}

fn device(node: FdtNode<'_, '_>) -> Option<Device> {
    regions(node).next().map(to_device)
}

fn watchdog(node: FdtNode<'_, '_>) -> Option<Watchdog> {
    let mut frames = regions(node).map(to_device);
    let (control, refresh) = (frames.next()?, frames.next()?);
    Some(Watchdog { control, refresh, intid: intid(node, 0) })
}

/// Returns cell `index` of a property.
fn cell(node: FdtNode<'_, '_>, property: &str, index: usize) -> Option<u32> {
    let cells = node.property(property)?.value.as_chunks::<4>().0;
    cells.get(index).copied().map(u32::from_be_bytes)
}

/// Returns the INTID of a node's interrupt `n`: three cells each, type, number, trigger.
fn intid(node: FdtNode<'_, '_>, n: usize) -> u32 {
    let class = cell(node, "interrupts", 3 * n).unwrap_or(0);
    let number = cell(node, "interrupts", 3 * n + 1).unwrap_or(0);
    number + if class == 1 { 16 } else { 32 }
}

fn redistributor_regions(gic: Option<FdtNode<'_, '_>>) -> usize {
    let has_some = gic.is_some_and(|node| {
        node.compatible().is_some_and(|names| names.all().any(|name| name == "arm,gic-v3"))
    });
    if !has_some {
        return 0;
    }
    let count = gic.and_then(|node| cell(node, "#redistributor-regions", 0)).unwrap_or(1);
    usize::try_from(count).unwrap_or(1)
}

fn conduit(tree: &Fdt<'_>) -> Conduit {
    let method = tree.find_node("/psci").and_then(|node| node.property("method")?.as_str());
    if method == Some("smc") { Conduit::Smc } else { Conduit::Hvc }
}

fn ramdisk(tree: &Fdt<'_>) -> Option<Range> {
    let chosen = tree.find_node("/chosen")?;
    let address = |name| {
        let value = chosen.property(name)?.value;
        Some(value.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let start: u64 = address("linux,initrd-start")?;
    Some((start, address("linux,initrd-end")?.checked_sub(start)?))
}

/// Returns what the tree gives to devices: `reg`, and the windows of a PCI host (`ranges` of three
/// cells in the child, two in the parent and two of size).
fn devices(tree: &Fdt<'_>) -> Vec<Range, 96> {
    let mut all = Vec::new();
    for node in tree.all_nodes() {
        let name = node.name;
        if name.starts_with("cpu") || name.starts_with("memory") || name.starts_with("partition") {
            continue;
        }
        for region in regions(node) {
            let _ = all.push(region);
        }
        if !name.starts_with("pcie") {
            continue;
        }
        let Some(ranges) = node.property("ranges") else { continue };
        let cells = |entry: &[u8], n: usize| {
            let bytes = entry.get(4 * n..4 * n + 8).unwrap_or_default();
            bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        for entry in ranges.value.chunks(28) {
            let _ = all.push((cells(entry, 3), cells(entry, 5)));
        }
    }
    all
}

impl Machine {
    /// Returns whether the tree gives `address` to memory or a device.
    #[must_use]
    pub fn describes(&self, address: u64) -> bool {
        self.memory
            .iter()
            .chain(&self.devices)
            .any(|(start, size)| address.wrapping_sub(*start) < *size)
    }

    /// Returns an address, page-aligned, that the tree gives to nobody: behind the memory.
    #[must_use]
    pub fn hole(&self) -> u64 {
        self.memory
            .iter()
            .map(|(start, size)| (start + size).next_multiple_of(4096))
            .max()
            .unwrap_or(0)
    }
}
