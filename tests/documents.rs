// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What documents say of the tree: each test that docs/faults.md names is there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

/// Adds the text of all Rust files under a folder.
fn read(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            read(&entry, text);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(&entry).unwrap();
        }
    }
}

/// Returns which of the tests that a document names are in no file: there is no function of that
/// name, nor a trial.
fn missing<'a>(document: &'a str, files: &str) -> Vec<&'a str> {
    let is_there = |name: &&str| {
        let last = name.rsplit("::").next().unwrap_or(name);
        // All of a kind, or this one.
        let (last, end) = last.strip_suffix('*').map_or((last, "\""), |start| (start, ""));
        let trial = [format!("\"{last}{end}"), format!("::{last}{end}")];
        let call = if end.is_empty() { "" } else { "(" };
        files.contains(&format!("fn {last}{call}")) || trial.iter().any(|t| files.contains(t))
    };
    let rows = document.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    // The last part of a path ends in `.rs`.
    quoted.filter(|name| !name.ends_with(".rs")).filter(|name| !is_there(name)).collect()
}

#[test]
fn each_test_of_the_faults_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = String::new();
    for folder in ["src", "tests", "scripts/coffer/src"] {
        read(&root.join(folder), &mut files);
    }
    let document = fs::read_to_string(root.join("docs/faults.md")).unwrap();
    assert_eq!(missing(&document, &files), Vec::<&str>::new());
}

#[test]
fn one_that_is_not_there_is_found() {
    let document = "| a | `storms::is_there`, `t1_*` | `is_gone`, `of_no::kind_*` of `x.rs` |";
    let files = "(\"is_there\", 1) fn t1_one() fn is_gone_too() ";
    assert_eq!(missing(document, files), ["is_gone", "of_no::kind_*"]);
}
