// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The manifest's keys, those that come later, and what people write instead.
#![forbid(unsafe_code)]

use crate::message::nearest;

/// The keys of one table.
pub(super) struct Keys {
    /// What the keys belong to, in messages.
    pub owner: &'static str,
    /// Keys that are read.
    pub known: &'static [&'static str],
    /// Keys of the format that this version cannot carry out: they are read, and refused. Where one
    /// moves to `known`, nothing else has to change here. `except` stands for "everything" too.
    pub later: &'static [&'static str],
    /// Keys of other tools and what they are called here.
    pub foreign: &'static [(&'static [&'static str], &'static str)],
    /// Keys of other tools that have no counterpart, and why.
    pub needless: &'static [(&'static [&'static str], &'static str)],
}

/// The keys at the top.
pub(super) const TOP: Keys = Keys {
    owner: "the manifest",
    known: &["format", "board", "provider", "vm", "console", "control", "test"],
    later: &["network", "shared"],
    foreign: &[
        (&["version", "schema"], "format"),
        (&["platform", "machine", "target", "soc"], "board"),
        (&["vms", "guest", "guests", "domain", "partition", "cell", "zone"], "vm"),
        (&["serial", "uart", "tty"], "console"),
        (&["net", "networks"], "network"),
        (&["ivshmem", "shmem", "shared_memory"], "shared"),
        (&["owner", "service_vm", "control_domain"], "provider"),
    ],
    needless: &[],
};

/// The keys of `[vm.NAME]`.
pub(super) const VM: Keys = Keys {
    owner: "a VM",
    known: &[
        "cpus",
        "memory",
        "kernel",
        "kernel_format",
        "ramdisk",
        "cmdline",
        "devices",
        "except",
        "on_crash",
        "on_reboot",
        "on_poweroff",
        "on_loss",
        "after",
        "watchdog",
        "pause_time",
    ],
    later: &["firmware", "unconfined_dma", "control"],
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
        (&["unconfined", "allow_dma", "unsafe_dma", "dma"], "unconfined_dma"),
        (&["exclude", "excluding", "without", "not"], "except"),
        (&["passthrough", "passthru", "device", "assign", "dtdev", "hostdev"], "devices"),
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

/// The keys of `[shared.NAME]`.
pub(super) const SHARED: Keys = Keys {
    owner: "[shared.NAME]",
    known: &["size", "write", "read", "doorbell"],
    later: &[],
    foreign: &[
        (&["memory", "mem", "bytes", "length"], "size"),
        (&["writers", "writer", "owner", "rw", "from"], "write"),
        (&["readers", "reader", "ro", "to"], "read"),
        (&["interrupt", "irq", "notify", "vectors"], "doorbell"),
    ],
    needless: &[(
        &["address", "base", "addr", "phys", "start"],
        "coffer works out the addresses, and the guests' device trees have them",
    )],
};

/// The keys of `on_crash` where it is a table.
pub(super) const ON_CRASH: Keys = Keys {
    owner: "`on_crash`",
    known: &["restart", "backoff"],
    later: &[],
    foreign: &[
        (&["restarts", "limit", "max", "most", "attempts", "retries"], "restart"),
        (&["delay", "wait", "pause", "interval"], "backoff"),
    ],
    needless: &[],
};

/// The keys of `[console]`.
pub(super) const CONSOLE: Keys = Keys {
    owner: "[console]",
    known: &["mode", "escape"],
    later: &[],
    foreign: &[(&["escape_key", "key"], "escape")],
    needless: &[],
};

/// The keys of `[control]`.
pub(super) const CONTROL: Keys = Keys {
    owner: "[control]",
    known: &["port"],
    later: &[],
    foreign: &[(&["uart", "serial", "ports", "device", "tty"], "port")],
    needless: &[(
        &["baud", "speed"],
        "the firmware has set the line up, and coffer vm has --baud for the other end",
    )],
};

/// The keys of `[test]`.
pub(super) const TEST: Keys = Keys {
    owner: "[test]",
    known: &[
        "list_registers_max",
        "vmid_bits_max",
        "mitigations_off",
        "report_reset_cost",
        "watch_off",
        "fault_at_start",
        "fault_vm",
        "fault_vcpu",
        "fault_after",
        "seed",
    ],
    later: &[],
    foreign: &[],
    needless: &[],
};

/// What a key is.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Kind<'a> {
    /// It is read.
    Known,
    /// It is in the format, but not supported yet.
    Later,
    /// It is called otherwise here.
    Foreign(&'static str),
    /// There is no need for it: why.
    Needless(&'static str),
    /// Nobody knows it; perhaps this was meant.
    Unknown(Option<&'a str>),
}

impl Keys {
    /// Returns what the key is.
    pub(super) fn kind(&self, key: &str) -> Kind<'static> {
        if self.known.contains(&key) {
            return Kind::Known;
        }
        if self.later.contains(&key) {
            return Kind::Later;
        }
        let plain = key.to_ascii_lowercase().replace('-', "_");
        let named = |entry: &&(&'static [&'static str], &'static str)| entry.0.contains(&&*plain);
        if let Some((_, ours)) = self.foreign.iter().find(named) {
            return Kind::Foreign(ours);
        }
        if let Some((_, why)) = self.needless.iter().find(named) {
            return Kind::Needless(why);
        }
        Kind::Unknown(nearest(key, self.known.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translations_lead_to_keys_of_the_format() {
        for keys in [&TOP, &VM, &SHARED, &ON_CRASH, &CONSOLE, &CONTROL, &TEST] {
            for (theirs, ours) in keys.foreign {
                assert!(keys.known.contains(ours) || keys.later.contains(ours), "{ours}");
                for key in *theirs {
                    assert_eq!(keys.kind(key), Kind::Foreign(ours), "{key}");
                }
            }
            for (theirs, why) in keys.needless {
                for key in *theirs {
                    assert_eq!(keys.kind(key), Kind::Needless(why));
                }
            }
        }
    }

    #[test]
    fn slips_of_the_finger_are_understood() {
        assert_eq!(VM.kind("kernal"), Kind::Unknown(Some("kernel")));
        assert_eq!(VM.kind("Memory"), Kind::Unknown(Some("memory")));
        assert_eq!(VM.kind("on-reboot"), Kind::Unknown(Some("on_reboot")));
        assert_eq!(VM.kind("colour"), Kind::Unknown(None));
    }
}
