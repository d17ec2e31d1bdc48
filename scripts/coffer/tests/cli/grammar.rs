// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Manifests by chance that look like manifests: keys that there are with values that could be
//! theirs, and now and then a slip.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// A key, what it may be given on the board of [`crate::bed`], and slips.
type Key = (&'static str, &'static [&'static str], &'static [&'static str]);

/// What each key of a VM may be given, as JSON.
const VM: &[Key] = &[
    (
        "cpus",
        &[
            r#""0""#,
            r#""1""#,
            r#""2""#,
            r#""3""#,
            r#""0-1""#,
            r#""2-3""#,
            r#""1, 2""#,
            r#"["cpu_b0"]"#,
            r#"["&cpu_b1", "cpu_l0"]"#,
        ],
        &[
            r#""9""#,
            r#""0,0""#,
            r#""3-1""#,
            r#""0-4294967295""#,
            "2",
            "[]",
            r#""x""#,
            r#"["cpu_b9"]"#,
        ],
    ),
    (
        "memory",
        &[r#""64M""#, r#""32M""#, r#""256M""#, r#""65536K""#, r#""512M""#],
        &[
            r#""5M""#,
            r#""4G""#,
            r#""0M""#,
            r#""512""#,
            "512",
            r#""17179869184G""#,
            r#""1T""#,
            r#""2M""#,
            r#""1G""#,
        ],
    ),
    (
        "kernel",
        &[r#""Image""#, r#""Other""#],
        &[r#""initrd""#, r#""absent""#, r#""board""#, r#""""#],
    ),
    ("kernel_format", &[r#""flat""#], &[r#""elf""#]),
    ("ramdisk", &[r#""initrd""#, r#""Image""#], &[r#""absent""#, r#""\u0000""#]),
    ("cmdline", &[r#""quiet""#, r#""""#, r#""console=tty0 é""#], &[r#""a\nb""#, r#""\u007f""#]),
    (
        "devices",
        &[r#"["&rtc"]"#, "[]", r#"["&uart5"]"#, r#"["/soc/rtc@1000"]"#],
        &[
            r#"["&nic"]"#,
            r#"["&uart1", "&uart2"]"#,
            r#"["&nothing"]"#,
            r#""everything""#,
            r#""&rtc""#,
            r#"["&rtc", "&rtc"]"#,
            "[1]",
            r#"["/"]"#,
        ],
    ),
    (
        "on_crash",
        &[
            r#""restart""#,
            r#""stop""#,
            r#""preserve""#,
            r#""machine""#,
            r#"{"restart": 5, "backoff": "1s"}"#,
            r#"{"restart": 65535}"#,
        ],
        &[
            r#"{"restart": 0}"#,
            r#"{"backoff": "1s"}"#,
            r#""destroy""#,
            r#"{"restart": 1, "delay": "1s"}"#,
        ],
    ),
    ("on_reboot", &[r#""restart""#, r#""stop""#, r#""machine""#], &[r#""preserve""#, r#""off""#]),
    ("on_poweroff", &[r#""restart""#, r#""stop""#, r#""machine""#], &["0"]),
    ("on_loss", &[r#""tell""#, r#""stop""#, r#""ignore""#], &[r#""restart""#]),
    ("after", &["[]"], &[r#"["a"]"#, r#"["b"]"#, r#"["a", "b"]"#, r#"["nobody"]"#, r#""a""#]),
    (
        "watchdog",
        &[r#""200ms""#, r#""10s""#, r#""1min""#],
        &[r#""0s""#, r#""5""#, r#""4294968s""#, "200"],
    ),
    ("pause_time", &["true", "false"], &[r#""true""#]),
    ("except", &[], &[r#"["&rtc"]"#, "[]", r#"["&uart5", "/soc"]"#, r#""&rtc""#]),
    ("unconfined_dma", &[], &[r#"["&nic"]"#, r#"["&rtc"]"#, "[]", "true"]),
    ("firmware", &[], &[r#""edk2""#]),
    ("control", &[], &[r#""operate""#]),
];

const CONSOLE: &[Key] = &[
    ("mode", &[r#""focus""#, r#""tagged""#], &[r#""both""#]),
    ("escape", &[r#""^]""#, r#""^A""#, r#""^z""#], &[r#""^1""#, r#""A""#]),
];

const CONTROL: &[Key] = &[(
    "port",
    &[r#""console""#, r#""uart3""#, r#"["console", "uart3"]"#, r#"["uart3"]"#],
    &[r#"["uart3", "uart4"]"#, "[]", r#""nothing""#, r#"["console", "console"]"#, "1"],
)];

const SHARED: &[Key] = &[
    ("size", &[r#""64K""#, r#""4K""#, r#""2M""#], &[r#""5K""#, r#""64""#, r#""1G""#]),
    ("write", &[r#"["a"]"#, r#"["b"]"#, r#"["a", "b"]"#], &["[]", r#"["nobody"]"#, r#""a""#]),
    ("read", &[r#"["b"]"#, r#"["c"]"#, "[]"], &[r#"["a"]"#, "true"]),
    ("doorbell", &["true", "false"], &["1"]),
];

const TEST: &[Key] = &[
    ("list_registers_max", &["1", "16"], &["0", "17", "-1", r#""1""#]),
    ("vmid_bits_max", &["8", "16"], &["99"]),
    ("mitigations_off", &["true", "false"], &["1"]),
    ("report_reset_cost", &["true"], &["[]"]),
    ("watch_off", &["true"], &["0"]),
    (
        "fault_at_start",
        &[
            r#""panic""#,
            r#""write-to-text""#,
            r#""execute-data""#,
            r#""stack-overflow""#,
            r#""serror""#,
            r#""logged""#,
            r#""guest-serror""#,
            r#""hang""#,
            r#""stall""#,
        ],
        &[r#""flood""#],
    ),
    ("fault_vm", &[r#""a""#], &[r#""nobody""#, "7"]),
    ("fault_vcpu", &["0", "63"], &["64"]),
    ("fault_after", &["0", "2"], &["1.5"]),
    ("seed", &["7", "0", "9223372036854775807"], &["-7"]),
];
/// What stands where it should not.
const ODD: &[&str] = &[
    "true",
    "0",
    "-1",
    "1.5",
    r#""""#,
    r#""\u001b[2J""#,
    "[]",
    "[[1]]",
    "{}",
    r#"{"a": {"b": 1}}"#,
];
const OTHER_KEYS: &[&str] =
    &["initrd", "vcpus", "kernal", "colour", "dtb", "memory ", "bus.width", "name"];
const NAMES: &[&str] =
    &["a", "b", "c", "d-1", "", "my vm", "-a", "aaaaaaaaaabbbbbbbbbbccccccccccdd"];

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn one_of(values: &'static [&'static str]) -> BoxedStrategy<Value> {
    select(values).prop_map(parsed).boxed()
}

/// Chooses a value, and now and then a slip or something odd.
fn value((_, good, slips): Key) -> BoxedStrategy<Value> {
    let good = if good.is_empty() { slips } else { good };
    prop_oneof![60 => one_of(good), 2 => one_of(slips), 1 => one_of(ODD)].boxed()
}

/// Makes a table of these keys: the first `required` nearly always, the others now and then, and
/// those that have no good value hardly ever.
fn table(keys: &'static [Key], required: usize) -> BoxedStrategy<Value> {
    let entry = |(index, key): (usize, &Key)| {
        let (name, good, _) = *key;
        let (there, absent) = match (index < required, good.is_empty()) {
            (true, _) => (150, 1),
            (false, false) => (1, 6),
            (false, true) => (1, 150),
        };
        let value = value(*key).prop_map(move |value| Some((name.to_owned(), value)));
        prop_oneof![there => value, absent => Just(None)]
    };
    let slip = (select(OTHER_KEYS), one_of(ODD));
    let slip = slip.prop_map(|(key, value)| Some((key.to_owned(), value)));
    let slip = prop_oneof![1 => slip, 60 => Just(None)];
    let entries: Vec<_> = keys.iter().enumerate().map(entry).collect();
    let all = (entries, slip).prop_map(|(entries, slip)| {
        Value::Object(entries.into_iter().chain([slip]).flatten().collect())
    });
    all.boxed()
}

fn named(table: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    let name = prop_oneof![30 => select(&NAMES[..4]), 1 => select(NAMES)];
    let tables = proptest::collection::vec((name, table), 1..4);
    tables.prop_map(|tables| {
        Value::Object(tables.into_iter().map(|(name, table)| (name.to_owned(), table)).collect())
    })
}

/// Makes a table that may be missing.
fn optional(
    key: &'static str,
    table: impl Strategy<Value = Value>,
    absent: u32,
) -> impl Strategy<Value = Option<(String, Value)>> {
    let odd = one_of(ODD).prop_map(move |value| Some((key.to_owned(), value)));
    let good = table.prop_map(move |value| Some((key.to_owned(), value)));
    prop_oneof![absent => Just(None), 12 => good, 1 => odd]
}

/// Makes a manifest.
pub fn manifest() -> impl Strategy<Value = Value> {
    let head = prop_oneof![
        200 => Just(json!({"format": 1, "board": "board/board.toml"})),
        1 => Just(json!({"format": 1, "board": "bord"})),
        1 => Just(json!({"format": 2, "board": "board/board.toml"})),
        1 => Just(json!({"format": "1", "board": 1})),
        1 => Just(json!({"format": 1})),
        1 => Just(json!({"board": "board/board.toml"})),
    ];
    let vms = prop_oneof![60 => named(table(VM, 3)), 1 => one_of(ODD)];
    let provider = one_of(&[r#""a""#, r#""b""#, r#""nobody""#]);
    let rest = (
        optional("console", table(CONSOLE, 0), 40),
        optional("control", table(CONTROL, 1), 40),
        optional("shared", named(table(SHARED, 2)), 200),
        optional("test", table(TEST, 0), 40),
        optional("provider", provider, 200),
        optional("network", one_of(&["{}"]), 200),
    );
    (head, vms, rest).prop_map(|(head, vms, rest)| {
        let Value::Object(mut all) = head else { return Value::Null };
        let (console, control, shared, test, provider, network) = rest;
        let rest = [console, control, shared, test, provider, network].into_iter().flatten();
        all.insert("vm".into(), vms);
        all.extend(rest);
        Value::Object(all)
    })
}

/// Writes a manifest as TOML.
pub fn written(manifest: &Value) -> String {
    toml::to_string(&toml::Value::try_from(manifest).unwrap()).unwrap()
}
