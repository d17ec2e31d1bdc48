// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is said of the manifest: the committed pages are those that the tool prints, and the schema
//! and the reader agree.

use crate::bed::Bed;
use crate::grammar::{manifest, written};
use boon::{Compiler, Schemas};
use coffer::board::project_root;
use coffer::manifest::{Manifest, schema};
use coffer::message::{Report, Source, Style};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use std::cell::Cell;
use std::sync::Arc;

#[track_caller]
fn is_committed(file: &str, arguments: &[&str]) {
    let said = Bed::new().coffer(arguments);
    let committed = std::fs::read_to_string(project_root().join(file)).unwrap();
    let write = format!("cargo coffer {} > {file}", arguments.join(" "));
    assert!(said.code == 0 && said.out == committed, "write: {write}");
}

#[test]
fn the_committed_schema_is_what_the_tool_prints() {
    is_committed(schema::FILE, &["schema"]);
}

#[test]
fn the_committed_page_is_what_the_tool_prints() {
    is_committed(schema::PAGE, &["schema", "--page"]);
}

/// Returns the names of all properties of a schema, those of tables in it too.
fn properties(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                if key == "properties" {
                    names.extend(
                        value.as_object().into_iter().flat_map(|keys| keys.keys().cloned()),
                    );
                }
                properties(value, names);
            }
        }
        Value::Array(array) => array.iter().for_each(|item| properties(item, names)),
        _ => {}
    }
}

#[test]
fn the_page_names_each_key_and_nothing_else() {
    let json: Value = serde_json::from_str(&schema::json().unwrap()).unwrap();
    let mut expected = Vec::new();
    properties(&json, &mut expected);
    let page = schema::page();
    let heading = |line: &str| Some(line.strip_prefix("### `")?.strip_suffix('`')?.to_owned());
    let mut named: Vec<_> = page.lines().filter_map(heading).collect();
    expected.sort();
    named.sort();
    assert!(named.len() > 30 && named == expected, "{named:?} {expected:?}");
}

/// What the reader finds and no schema could: what depends on two values, on how large a number is,
/// or on bytes where a schema counts characters.
const BEYOND: [&str; 17] = [
    "there is no VM `",
    "this is a circle: ",
    "is in the list twice",
    "the range ends before it starts",
    "a VM has at most 64 cores",
    "a list of cores looks like",
    "do not fit into 64 bits",
    "a size is a whole number",
    "that is more than 49 days",
    "a time is a whole number",
    "bytes of command line",
    "shared memory is a multiple of 4K",
    "has this memory twice",
    "shared memory has one VM at least",
    "`except` goes with",
    "fault_vm: no VM has such a name",
    "region's name",
];

fn read(text: &str) -> Result<Manifest, Report> {
    Manifest::parse(Arc::new(Source { path: "m.toml".into(), text: text.into() }), "".into())
}

#[test]
fn what_the_schema_takes_the_reader_takes() {
    let json: Value = serde_json::from_str(&schema::json().unwrap()).unwrap();
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("manifest.json", json).unwrap();
    let compiled = compiler.compile("manifest.json", &mut schemas).unwrap();
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(3000) });
    let outcome = runner.run(&manifest(), |manifest| {
        let text = written(&manifest);
        let by_schema = schemas.validate(&manifest, compiled);
        match (&by_schema, read(&text)) {
            (Ok(()), Ok(_)) => taken.set(taken.get() + 1),
            (Err(_), Err(_)) => refused.set(refused.get() + 1),
            (Ok(()), Err(report)) => {
                let is_beyond = |text: &str| BEYOND.iter().any(|beyond| text.contains(beyond));
                let all = report.messages().iter().all(|message| is_beyond(message.text()));
                proptest::prop_assert!(all, "{text}\n{}", report.render(Style::Plain));
            }
            (Err(error), Ok(_)) => proptest::prop_assert!(false, "{text}\n{error}"),
        }
        Ok(())
    });
    outcome.unwrap();
    let (taken, refused) = (taken.get(), refused.get());
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}
