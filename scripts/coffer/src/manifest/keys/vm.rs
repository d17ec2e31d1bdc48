// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The keys of `[vm.NAME]`, and of `on_crash` in it.
#![forbid(unsafe_code)]

use super::super::read::devices::NAMED_MAX;
use super::{Form, Key, Keys};
use cofferdam::plan::VMS_MAX;

const ENDS: &[&str] = &["restart", "stop", "machine"];

/// The keys of `[vm.NAME]`.
pub(crate) const VM: Keys = Keys {
    owner: "a VM",
    header: "[vm.NAME]",
    text: "\
A VM. Its NAME has 1 to 31 ASCII letters, digits, `-` and `_`, and starts with a letter or a digit. There are 1 to \
16 of them. They start in the order of the file, as far as `after` allows.",
    keys: &[
        Key::required(
            "cpus",
            Form::Cores,
            "cpus = \"0-1\"",
            "Which cores of the board it has, each for itself alone: vCPU 0 is the first one. Numbers count the \
             nodes of /cpus in the board's tree from 0; labels are those of the tree, with or without `&`. How many \
             vCPUs it has follows.",
        ),
        Key::required(
            "memory",
            Form::Size,
            "memory = \"512M\"",
            "How much memory it has: a multiple of 2M. The hypervisor chooses where it is.",
        ),
        Key::required(
            "kernel",
            Form::Path,
            "kernel = \"Image\"",
            "What it starts: an arm64 Image (Debian's vmlinuz), the same compressed with gzip, or an ELF file. Which of \
             them, the file says.",
        ),
        Key::optional(
            "kernel_format",
            Form::Choice(&["flat"]),
            "what the file says",
            "kernel_format = \"flat\"",
            "The kernel has no header: it is entered at its first byte, and its command line goes to it as it is \
             written, without `console=`.",
        ),
        Key::optional(
            "ramdisk",
            Form::Path,
            "none",
            "ramdisk = \"initrd\"",
            "What a Linux kernel unpacks or mounts first.",
        ),
        Key::optional(
            "cmdline",
            Form::Line,
            "`\"console=ttyAMA0\"`",
            "cmdline = \"root=/dev/vda1 ro\"",
            "The kernel's command line, about 2000 bytes at most. `console=ttyAMA0` is put before it where it names \
             no console.",
        ),
        Key::optional(
            "devices",
            Form::Devices,
            "none",
            "devices = [\"&rtc\"]",
            "The devices of the board that it drives itself: `&label` as in a .dts, `&alias`, or the full path of a \
             node. What no VM has stays off. `\"everything\"` is what can be given away and no other VM names.",
        ),
        Key::optional(
            "except",
            Form::List(NAMED_MAX),
            "none",
            "except = [\"&rtc\"]",
            "What it does not get with `devices = \"everything\"`. Devices that another VM names are not its own in \
             any case.",
        ),
        Key::optional(
            "unconfined_dma",
            Form::List(NAMED_MAX),
            "none",
            "unconfined_dma = [\"&rtc\"]",
            "Those of its devices that may do DMA although no IOMMU confines it: whoever drives such a device can \
             overwrite the memory of every VM and of the hypervisor.",
        )
        .later(),
        Key::optional(
            "on_crash",
            Form::ChoiceOrTable(&["restart", "stop", "preserve", "machine"], &ON_CRASH),
            "`\"restart\"`",
            "on_crash = { restart = 5, backoff = \"1s\" }",
            "What is done when it cannot go on, as its kernel says or its watchdog finds. `\"preserve\"` leaves it as \
             it is, to be looked at; `\"machine\"` starts the machine again, with all VMs.",
        ),
        Key::optional(
            "on_reboot",
            Form::Choice(ENDS),
            "`\"restart\"`",
            "on_reboot = \"machine\"",
            "What is done when it asks for a reset.",
        ),
        Key::optional(
            "on_poweroff",
            Form::Choice(ENDS),
            "`\"stop\"`",
            "on_poweroff = \"restart\"",
            "What is done when it turns itself off.",
        ),
        Key::optional(
            "on_loss",
            Form::Choice(&["tell", "stop", "ignore"]),
            "`\"tell\"`",
            "on_loss = \"stop\"",
            "What is done when a VM that it starts after is gone. `\"tell\"` raises a line of its GPIO controller.",
        ),
        Key::optional(
            "after",
            Form::List(VMS_MAX - 1),
            "none",
            "after = [\"b\"]",
            "The VMs that start before it, and that it depends on.",
        ),
        Key::optional(
            "watchdog",
            Form::Duration,
            "off until its driver turns it on",
            "watchdog = \"10s\"",
            "Turns its watchdog on before its first instruction. Who does not serve it within this time has crashed.",
        ),
        Key::optional(
            "pause_time",
            Form::Boolean,
            "`false`",
            "pause_time = true",
            "Stops its time while it is paused, so that it sees nothing of the pause.",
        ),
        Key::optional(
            "firmware",
            Form::Choice(&["edk2", "u-boot"]),
            "none",
            "firmware = \"edk2\"",
            "What it starts instead of a kernel.",
        )
        .later(),
        Key::optional(
            "control",
            Form::Choice(&["observe", "operate", "create"]),
            "none",
            "control = \"operate\"",
            "What it may ask of the hypervisor about other VMs.",
        )
        .later(),
    ],
    foreign: &[
        (
            &["vcpus", "vcpu", "cores", "core", "cpu", "pcpus", "cpu_list", "cpu_affinity", "smp"],
            "cpus",
        ),
        (&["mem", "ram", "memory_size", "mem_size", "maxmem", "size"], "memory"),
        (&["image", "linux", "vmlinuz", "kernel_image", "kernel_path", "bzimage"], "kernel"),
        (&["kernel_type", "image_type", "image_format"], "kernel_format"),
        (&["initrd", "initramfs", "initrd_path", "rootfs", "ramdisk_path"], "ramdisk"),
        (&["bootargs", "append", "args", "extra", "kernel_args", "command_line"], "cmdline"),
        (&["passthrough", "passthru", "device", "assign", "dtdev", "hostdev"], "devices"),
        (&["exclude", "excluding", "without", "not"], "except"),
        (&["unconfined", "allow_dma", "unsafe_dma", "dma"], "unconfined_dma"),
        (&["on_panic", "on_failure", "crash"], "on_crash"),
        (&["on_restart", "on_reset", "reboot"], "on_reboot"),
        (&["on_shutdown", "on_halt", "on_off", "poweroff"], "on_poweroff"),
        (&["on_dependency_loss", "on_lost"], "on_loss"),
        (&["depends", "depends_on", "requires", "needs", "start_after"], "after"),
        (&["watchdog_timeout", "watchdog_ms", "wdt"], "watchdog"),
        (&["stop_time", "stop_clock"], "pause_time"),
        (&["bios", "uefi", "loader"], "firmware"),
    ],
    needless: &[
        (&["dtb", "fdt", "device_tree", "dts"], "coffer writes the guest's device tree"),
        (&["name"], "the name stands in the header: [vm.NAME]"),
        (
            &["entry", "entry_point", "load_address", "kernel_load_paddr"],
            "coffer works out the addresses",
        ),
        (&["irqs", "interrupts"], "coffer reads a device's interrupts in the board's tree"),
    ],
};

/// The keys of `on_crash` where it is a table.
pub(crate) const ON_CRASH: Keys = Keys {
    owner: "`on_crash`",
    header: "on_crash = { … }",
    text: "How a VM that crashes again and again is restarted.",
    keys: &[
        Key::required(
            "restart",
            Form::Number(1, 65535),
            "restart = 5",
            "How often it is restarted; with the next crash it is turned off.",
        ),
        Key::optional(
            "backoff",
            Form::Duration,
            "none: at once",
            "backoff = \"1s\"",
            "How long the first restart waits; each further one waits twice as long.",
        ),
    ],
    foreign: &[
        (&["restarts", "limit", "max", "most", "attempts", "retries"], "restart"),
        (&["delay", "wait", "pause", "interval"], "backoff"),
    ],
    needless: &[],
};
