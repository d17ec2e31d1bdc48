// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Manifests by chance: whatever they say, there is an answer and no panic.

use crate::bed::Bed;
use crate::grammar::{manifest, written};
use coffer::board::{Board, Overrides};
use coffer::manifest::Manifest;
use coffer::message::{Source, Style};
use coffer::plan::{Choices, plan};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

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

/// Returns the processor time that this thread has taken: a machine that has other work to do does
/// not make a manifest slow.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Plans a manifest, and returns whether that is refused.
fn answer(text: String) -> Result<bool, TestCaseError> {
    let begun = spent();
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
    let json = serde_json::to_value(report.to_json()).unwrap();
    for message in json.as_array().unwrap() {
        prop_assert!(message["places"].is_array(), "no place: {}", message);
    }
    prop_assert!(spent() - begun < Duration::from_secs(1), "{:?}", spent() - begun);
    Ok(refused)
}

/// Plans so many manifests that look like some, a third of them with slips in their text.
fn answers(cases: u32) {
    let slips = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(change(), 1..3),
    ];
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    let (planned, refused) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new(config).run(&(manifest(), slips), |case| {
        let (manifest, slips) = case;
        let count = if answer(apply(written(&manifest), &slips))? { &refused } else { &planned };
        count.set(count.get() + 1);
        Ok(())
    });
    outcome.unwrap();
    let (planned, refused) = (planned.get(), refused.get());
    assert!(planned > cases / 10 && refused > cases / 3, "{planned} planned, {refused} refused");
}

#[test]
fn random_manifests_give_a_plan_or_an_error_with_a_place() {
    answers(500);
}

#[test]
#[ignore = "takes minutes"]
fn many_random_manifests_give_a_plan_or_an_error_with_a_place() {
    answers(10_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_manifest_makes_a_panic(changes in prop::collection::vec(change(), 1..5)) {
        let _ = answer(apply(GOOD.into(), &changes))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_text_makes_a_panic(text in "\\PC{0,200}") {
        let _ = answer(text)?;
    }
}

#[test]
fn the_manifest_that_is_changed_is_good() {
    let source = Arc::new(Source { path: "m.toml".into(), text: GOOD.into() });
    assert!(Manifest::parse(source, BED.path("")).is_ok());
}
