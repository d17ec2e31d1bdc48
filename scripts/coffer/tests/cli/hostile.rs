// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Manifests by chance: whatever they say, there is an answer and no panic.

use crate::bed::Bed;
use coffer::board::{Board, Overrides};
use coffer::manifest::Manifest;
use coffer::message::{Source, Style};
use coffer::plan::{Choices, plan};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

const GOOD: &str = "\
format = 1
board = \"board/board.toml\"
[vm.little]
cpus = \"0-1\"
memory = \"64M\"
kernel = \"Image\"
ramdisk = \"initrd\"
cmdline = \"quiet é\"
[vm.big]
cpus = [\"cpu_b1\", \"&cpu_b0\"]
memory = \"128M\"
kernel = \"Other\"
on_reboot = \"stop\"
on_crash = { restart = 5, backoff = \"1s\" }
after = [\"little\"]
watchdog = \"200ms\"
devices = [\"&rtc\"]
[console]
mode = \"tagged\"
escape = \"^A\"
[test]
seed = 7
list_registers_max = 2
";

static BED: LazyLock<Bed> = LazyLock::new(Bed::new);

#[derive(Clone, Debug)]
enum Change {
    Insert(usize, &'static str),
    Remove(usize, usize),
    Move(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let pieces = vec![
        "\"",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        ".",
        ",",
        "0",
        "-",
        "#",
        "'",
        "\\",
        "\\u0000",
        "é",
        "\t",
        "\r\n",
        "\u{200b}",
        "\u{1b}[31m",
        "18446744073709551616",
        "-1",
        "true",
        "1e9",
        "nan",
        "[vm.x]\n",
        "cpus = 2\n",
        "memory = 512\n",
        "initrd = \"x\"\n",
        "vm = 1\n",
        "&",
        "*",
        "^",
        "\"\"\"",
        "1979-05-27",
        "format = 2\n",
        "[[vm.y]]\n",
        "0-4294967295",
        "/",
        "everything",
    ];
    prop_oneof![
        (any::<usize>(), prop::sample::select(pieces))
            .prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<usize>(), 1usize..12).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<usize>(), 1usize..30, any::<usize>())
            .prop_map(|(at, length, to)| Change::Move(at, length, to)),
    ]
}

/// Finds the next border between characters.
fn border(text: &str, at: usize) -> usize {
    let at = at % (text.len() + 1);
    (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn apply(mut text: String, changes: &[Change]) -> String {
    for change in changes {
        match *change {
            Change::Insert(at, piece) => text.insert_str(border(&text, at), piece),
            Change::Remove(at, length) => {
                let start = border(&text, at);
                let end = border(&text, (start + length).min(text.len()));
                text.replace_range(start..end.max(start), "");
            }
            Change::Move(at, length, to) => {
                let start = border(&text, at);
                let end = border(&text, (start + length).min(text.len())).max(start);
                let piece: String = text.drain(start..end).collect();
                text.insert_str(border(&text, to), &piece);
            }
        }
    }
    text
}

fn answer(text: String) -> Result<(), TestCaseError> {
    let source = Arc::new(Source { path: "m.toml".into(), text });
    let planned = Manifest::parse(source, BED.path("")).and_then(|manifest| {
        let board = Board::load(&manifest, &Overrides::default())?;
        let planned = plan(&manifest, &board, &Choices::default())?;
        let report = planned.to_text(&board);
        let bundle = planned.bundle.write();
        assert!(report.starts_with("board") && bundle.is_ok());
        Ok(planned.warnings)
    });
    let refused = planned.is_err();
    let report = planned.unwrap_or_else(|report| report);
    let text = report.render(Style::Plain);
    prop_assert_eq!(refused, text.contains("error[E"));
    prop_assert!(text.len() < 100_000);
    // Nothing in a manifest reaches the terminal as a command to it.
    prop_assert!(!text.contains('\u{1b}'), "{}", text);
    prop_assert!(serde_json::to_string(&report.to_json()).is_ok());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_manifest_makes_a_panic(changes in prop::collection::vec(change(), 1..5)) {
        answer(apply(GOOD.into(), &changes))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_text_makes_a_panic(text in "\\PC{0,200}") {
        answer(text)?;
    }
}

#[test]
fn the_manifest_that_is_changed_is_good() {
    let source = Arc::new(Source { path: "m.toml".into(), text: GOOD.into() });
    assert!(Manifest::parse(source, BED.path("")).is_ok());
}
