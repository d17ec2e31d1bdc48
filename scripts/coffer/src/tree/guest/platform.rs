// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The nodes of the small virtual devices: GPIO controller and its keys as on QEMU's virt,
//! watchdog, panic port.
#![forbid(unsafe_code)]

use super::{APB_CLOCK_PHANDLE, EMPTY, GPIO_PHANDLE, LEVEL_HIGH, SPI, SPI_BASE};
use super::{cells, node, pair, property};
use cofferdam::addr::{Address, Ipa};
use cofferdam::id::Vintid;
use cofferdam::plan::Layout;
use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};

/// The bytes of one device's registers.
const BYTES: u64 = 0x1000;
/// The bytes of the panic port's.
const PANIC_BYTES: u64 = 2;
/// The line of the power button, and that of a VM that is gone.
const LINES: (u32, u32) = (3, 4);
/// Linux, include/uapi/linux/input-event-codes.h.
const KEY_POWER: u32 = 116;
const BTN_0: u32 = 0x100;

pub(super) fn nodes(layout: &Layout) -> [DeviceTreeNode; 4] {
    [gpio(layout), keys(), watchdog(layout), panic_port(layout)]
}

/// Returns where device `n` of the four stands.
fn at(layout: &Layout, n: u64) -> Ipa {
    Ipa::new(layout.platform.get().saturating_add(n * Layout::PLATFORM_STRIDE))
}

fn interrupts(vintid: Vintid) -> DeviceTreeProperty {
    property("interrupts", cells(&[SPI, vintid.get().wrapping_sub(SPI_BASE), LEVEL_HIGH]))
}

fn gpio(layout: &Layout) -> DeviceTreeNode {
    let compatible: &[&str] = &["arm,pl061", "arm,primecell"];
    let start = at(layout, 0);
    node(
        &format!("pl061@{:x}", start.get()),
        [
            property("compatible", compatible),
            property("reg", cells(&pair(start, BYTES))),
            interrupts(layout.gpio_interrupt),
            property("clocks", APB_CLOCK_PHANDLE),
            property("clock-names", "apb_pclk"),
            property("gpio-controller", EMPTY),
            property("#gpio-cells", 2u32),
            property("phandle", GPIO_PHANDLE),
        ],
    )
}

fn keys() -> DeviceTreeNode {
    let key = |name, label, line, code: u32| {
        node(
            name,
            [
                property("label", label),
                property("linux,code", code),
                property("gpios", cells(&[GPIO_PHANDLE, line, 0])),
            ],
        )
    };
    let mut keys = node("gpio-keys", [property("compatible", "gpio-keys")]);
    keys.add_child(key("poweroff", "GPIO Key Poweroff", LINES.0, KEY_POWER));
    keys.add_child(key("dependency-lost", "VM dependency lost", LINES.1, BTN_0));
    keys
}

fn watchdog(layout: &Layout) -> DeviceTreeNode {
    let (control, refresh) = (at(layout, 1), at(layout, 2));
    node(
        &format!("watchdog@{:x}", control.get()),
        [
            property("compatible", "arm,sbsa-gwdt"),
            property("reg", cells(&[pair(control, BYTES), pair(refresh, BYTES)].concat())),
            interrupts(layout.watchdog_interrupt),
        ],
    )
}

fn panic_port(layout: &Layout) -> DeviceTreeNode {
    let start = at(layout, 3);
    node(
        &format!("pvpanic@{:x}", start.get()),
        [
            property("compatible", "qemu,pvpanic-mmio"),
            property("reg", cells(&pair(start, PANIC_BYTES))),
        ],
    )
}
