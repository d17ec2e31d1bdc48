// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The keys at the top, and of all tables but a VM's.
#![forbid(unsafe_code)]

use super::super::read::shared::SHARED_MAX;
use super::vm::VM;
use super::{Form, Key, Keys};
use cofferdam::plan::VMS_MAX;

/// The keys at the top.
pub(crate) const TOP: Keys = Keys {
    owner: "the manifest",
    header: "Top",
    text: "What stands before the first header.",
    keys: &[
        Key::required("format", Form::Format, "format = 1", "The format of this page."),
        Key::required(
            "board",
            Form::Text,
            "board = \"qemu-virt\"",
            "The board: the name of a directory in `platform/`, or the path of a `board.toml`, relative to the \
             manifest's directory.",
        ),
        Key::optional(
            "provider",
            Form::Text,
            "none",
            "provider = \"a\"",
            "The VM that owns the clocks, resets, pins and power domains which devices of several VMs hang on.",
        ),
        Key::required("vm", Form::Named(&VM, 1, VMS_MAX), "[vm.a]", "The VMs."),
        Key::optional(
            "shared",
            Form::Named(&SHARED, 0, SHARED_MAX),
            "none",
            "[shared.loop]",
            "Memory that VMs share.",
        )
        .later(),
        Key::optional(
            "network",
            Form::Table(&NETWORK),
            "none",
            "[network.lan]",
            "Networks between VMs.",
        )
        .later(),
        Key::optional(
            "console",
            Form::Table(&CONSOLE),
            "its defaults",
            "[console]",
            "How the VMs' consoles share the board's UART.",
        ),
        Key::optional(
            "control",
            Form::Table(&CONTROL),
            "nothing is listened to",
            "[control]",
            "Where requests come in while the machine runs ([control.md](control.md)).",
        ),
        Key::optional(
            "test",
            Form::Table(&TEST),
            "its defaults",
            "[test]",
            "For tests of the hypervisor.",
        ),
    ],
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

/// The keys of `[shared.NAME]`.
pub(crate) const SHARED: Keys = Keys {
    owner: "[shared.NAME]",
    header: "[shared.NAME]",
    text: "Memory that two VMs or more have in common. Its NAME is formed as a VM's.",
    keys: &[
        Key::required("size", Form::Size, "size = \"64K\"", "How much it is: a multiple of 4K."),
        Key::required(
            "write",
            Form::List(VMS_MAX),
            "write = [\"a\"]",
            "The VMs that write it, and read it too: one at least.",
        ),
        Key::optional(
            "read",
            Form::List(VMS_MAX),
            "none",
            "read = [\"b\"]",
            "The VMs that read it alone.",
        ),
        Key::optional(
            "doorbell",
            Form::Boolean,
            "`false`",
            "doorbell = true",
            "Whether those who share it can interrupt each other.",
        ),
    ],
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

/// The keys of `[network.NAME]`, of which there is nothing yet.
const NETWORK: Keys = Keys {
    owner: "[network.NAME]",
    header: "[network.NAME]",
    text: "A network between VMs.",
    keys: &[],
    foreign: &[],
    needless: &[],
};

/// The keys of `[console]`.
pub(crate) const CONSOLE: Keys = Keys {
    owner: "[console]",
    header: "[console]",
    text: "How the VMs' consoles share the board's UART.",
    keys: &[
        Key::optional(
            "mode",
            Form::Choice(&["focus", "tagged"]),
            "`\"focus\"`",
            "mode = \"tagged\"",
            "What goes out: the bytes of the VM that has the focus, or every VM's lines, each behind the VM's name.",
        ),
        Key::optional(
            "escape",
            Form::ControlKey,
            "`\"^]\"`",
            "escape = \"^A\"",
            "The key that moves the focus to the next VM.",
        ),
    ],
    foreign: &[(&["escape_key", "key"], "escape")],
    needless: &[],
};

/// The keys of `[control]`.
pub(crate) const CONTROL: Keys = Keys {
    owner: "[control]",
    header: "[control]",
    text: "Where requests come in while the machine runs.",
    keys: &[Key::required(
        "port",
        Form::Ports,
        "port = \"console\"",
        "The console's own UART (`\"console\"`), or a UART of the board that is kept for this (an alias, `&label` or \
         full path), or both.",
    )],
    foreign: &[(&["uart", "serial", "ports", "device", "tty"], "port")],
    needless: &[(
        &["baud", "speed"],
        "the firmware has set the line up, and coffer vm has --baud for the other end",
    )],
};

/// What goes wrong on purpose.
const FAULTS: &[&str] = &[
    "panic",
    "write-to-text",
    "execute-data",
    "stack-overflow",
    "serror",
    "logged",
    "guest-serror",
    "hang",
    "stall",
];

/// The keys of `[test]`.
pub(crate) const TEST: Keys = Keys {
    owner: "[test]",
    header: "[test]",
    text: "\
For tests of the hypervisor ([faults.md](faults.md)): nothing here makes a machine better.",
    keys: &[
        Key::optional(
            "list_registers_max",
            Form::Number(1, 16),
            "all that there are",
            "list_registers_max = 1",
            "The most list registers of the GIC that are used.",
        ),
        Key::optional(
            "vmid_bits_max",
            Form::Number(1, 16),
            "all that there are",
            "vmid_bits_max = 8",
            "The most bits of the TLBs' tags that are used.",
        ),
        Key::optional(
            "mitigations_off",
            Form::Boolean,
            "`false`",
            "mitigations_off = true",
            "Leaves out what keeps guests from each other's branch predictions, to see what it costs.",
        ),
        Key::optional(
            "report_reset_cost",
            Form::Boolean,
            "`false`",
            "report_reset_cost = true",
            "Says what each reset of a VM has cost.",
        ),
        Key::optional(
            "watch_off",
            Form::Boolean,
            "`false`",
            "watch_off = true",
            "Lets no core watch the others.",
        ),
        Key::optional(
            "fault_at_start",
            Form::Choice(FAULTS),
            "nothing",
            "fault_at_start = \"panic\"",
            "What goes wrong at a start of a vCPU, once.",
        ),
        Key::optional("fault_vm", Form::Text, "any", "fault_vm = \"a\"", "Whose vCPU that is."),
        Key::optional("fault_vcpu", Form::Number(0, 63), "`0`", "fault_vcpu = 1", "Which vCPU."),
        Key::optional(
            "fault_after",
            Form::Number(0, 63),
            "`0`",
            "fault_after = 2",
            "After how many starts of that vCPU that go well.",
        ),
        Key::optional(
            "seed",
            Form::Number(0, 9_223_372_036_854_775_807),
            "another one each time",
            "seed = 7",
            "What the guests' random seeds are made from.",
        ),
    ],
    foreign: &[],
    needless: &[],
};
