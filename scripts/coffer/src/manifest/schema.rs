// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is made from the documentation of the keys: the JSON schema and docs/manifest.md.
#![forbid(unsafe_code)]

use super::Manifest;
use super::keys::{CONSOLE, CONTROL, Form, Key, Keys, ON_CRASH, SHARED, TEST, TOP, VM};
use schemars::{JsonSchema, Schema, SchemaGenerator, schema_for};
use std::borrow::Cow;
use std::fmt::Write as _;

/// What the schema is called, and where it is in the repository.
pub const FILE: &str = "docs/cofferdam-manifest-1.schema.json";
/// Where the page is in the repository.
pub const PAGE: &str = "docs/manifest.md";

/// All tables, in the order of the page.
const TABLES: [&Keys; 7] = [&TOP, &VM, &ON_CRASH, &SHARED, &CONSOLE, &CONTROL, &TEST];

const HEAD: &str = "\
<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->
<!-- Made by `coffer schema --page` from scripts/coffer/src/manifest/keys/: change it there. -->
# The manifest

A manifest is a TOML file that says what a machine is to do. `coffer plan FILE` shows what follows from it, or
which line is wrong and what to write; `coffer init --board NAME` prints one to start from. A key that is not here is
an error. Editors complete and check manifests with
[cofferdam-manifest-1.schema.json](cofferdam-manifest-1.schema.json) (`coffer schema`), named in the first line:

```toml
#:schema ./cofferdam-manifest-1.schema.json
```
";

impl JsonSchema for Manifest {
    fn schema_name() -> Cow<'static, str> {
        "cofferdam-manifest-1".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // It is an object: `Keys` makes no other.
        Schema::try_from(TOP.schema()).unwrap_or_default()
    }
}

/// Returns the JSON schema of the manifests that are taken.
///
/// # Errors
/// There is none that could be seen: what it is made of is in this program.
pub fn json() -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(&schema_for!(Manifest))? + "\n")
}

/// Returns the page with every key.
#[must_use]
pub fn page() -> String {
    TABLES
        .into_iter()
        .filter(|keys| is_taken(keys))
        .map(table)
        .fold(HEAD.to_owned(), |page, table| page + &table)
}

/// Returns whether this version takes the table at all.
fn is_taken(keys: &Keys) -> bool {
    let is_it = |form: &Form| match form {
        Form::Named(table, ..) | Form::Table(table) => table.header == keys.header,
        _ => false,
    };
    !TOP.keys.iter().any(|key| !key.is_known() && is_it(&key.form))
}

fn table(keys: &Keys) -> String {
    let mut text = format!("\n## {}\n\n{}\n", title(keys), wrapped(keys.text, ""));
    for key in keys.keys.iter().filter(|key| key.is_known()) {
        text += &section(keys, key);
    }
    let later: Vec<_> = keys.keys.iter().filter(|key| !key.is_known()).collect();
    if !later.is_empty() {
        let names: Vec<_> = later.iter().map(|key| format!("`{}`", key.name)).collect();
        let told =
            format!("Part of the format, but refused by this version (E06): {}.", names.join(", "));
        let _ = write!(text, "\n{}\n", wrapped(&told, ""));
    }
    text
}

fn title(keys: &Keys) -> String {
    if keys.header == TOP.header { keys.header.into() } else { format!("`{}`", keys.header) }
}

fn section(keys: &Keys, key: &Key) -> String {
    let default = key.default.unwrap_or("none; the key must be there");
    let mut text = format!("\n### `{}`\n\n{}\n\n", key.name, wrapped(key.text, ""));
    let mut item = |name: &str, what: &str| {
        let _ = writeln!(text, "{}", wrapped(&format!("- {name}: {what}"), "  "));
    };
    item("value", &key.form.in_words());
    item("default", default);
    item("example", &format!("`{}`", key.example));
    if let Some((theirs, _)) = keys.foreign.iter().find(|(_, ours)| *ours == key.name) {
        let theirs: Vec<_> = theirs.iter().map(|name| format!("`{name}`")).collect();
        item("elsewhere called", &theirs.join(", "));
    }
    text
}

/// Breaks a text into lines; those behind the first start with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    const COLUMNS: usize = 118;
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines += &line;
            lines.push('\n');
            line = indent.to_owned();
        } else if !line.trim().is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + &line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Source, Style};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    /// Writes a manifest in which this line stands where it belongs.
    fn manifest(keys: &Keys, line: &str) -> String {
        let is = |other: &Keys| keys.header == other.header;
        let own = |table: &Keys| if is(table) { line } else { "" };
        let vm = |name: &str, lines: &str| {
            let required = VM.keys.iter().filter(|key| key.is_required());
            let required = required.filter(|key| !lines.starts_with(&format!("{} ", key.name)));
            let mut text = format!("[vm.{name}]\n{lines}\n");
            required.for_each(|key| text += &format!("{}\n", key.example));
            text
        };
        let top = ["format = 1", "board = \"qemu-virt\""];
        let top = top.iter().filter(|text| **text != line);
        let mut text: String = top.map(|line| format!("{line}\n")).collect();
        if is(&TOP) && !line.starts_with("[vm") {
            text += &format!("{line}\n");
        }
        text += &(vm("a", own(&VM)) + &vm("b", ""));
        if line.starts_with("except ") {
            text = text.replacen("[vm.a]\n", "[vm.a]\ndevices = \"everything\"\n", 1);
        }
        if is(&ON_CRASH) {
            text = text.replacen("[vm.a]\n", &format!("[vm.a]\non_crash = {{ {line} }}\n"), 1);
            text = text.replace("{ backoff", "{ restart = 1, backoff");
        }
        for table in [&SHARED, &CONSOLE, &CONTROL, &TEST].into_iter().filter(|table| is(table)) {
            text += &format!("{}\n{line}\n", table.header);
        }
        text
    }

    #[test]
    fn every_example_is_read() {
        for keys in TABLES.into_iter().filter(|keys| is_taken(keys) && keys.header != SHARED.header)
        {
            let known = keys.keys.iter().filter(|key| key.is_known());
            // An empty table shows nothing, and some have keys that must be there.
            for key in known.filter(|key| !key.example.starts_with('[')) {
                let text = manifest(keys, key.example);
                let source = Arc::new(Source { path: "m.toml".into(), text });
                let read = Manifest::parse(Arc::clone(&source), "".into());
                let said = read.map_err(|report| report.render(Style::Plain)).map(drop);
                assert_eq!(said, Ok(()), "{}", source.text);
            }
        }
    }

    #[test]
    fn every_key_is_documented_once_and_in_full() {
        for keys in TABLES {
            let names: BTreeSet<_> = keys.keys.iter().map(|key| key.name).collect();
            assert_eq!(names.len(), keys.keys.len(), "{}", keys.header);
            for key in keys.keys {
                let starts = key.example.starts_with(&format!("{} = ", key.name));
                let is_header = key.example.starts_with(&format!("[{}", key.name));
                assert!(starts || is_header, "{}", key.example);
                assert!(key.text.ends_with('.') && !key.text.contains("  "), "{}", key.text);
            }
        }
        let is_table = |key: &&Key| matches!(key.form, Form::Named(..) | Form::Table(_));
        let tables = TOP.keys.iter().filter(is_table).filter(|key| key.name != "network").count();
        assert_eq!(tables + 2, TABLES.len());
    }

    #[test]
    fn lines_are_short() {
        assert_eq!(wrapped("a  b\n c", "  "), "a b c");
        let long = wrapped(&"word ".repeat(60), "  ");
        assert!(long.lines().count() == 3 && long.lines().all(|line| line.len() <= 118), "{long}");
        assert!(long.lines().skip(1).all(|line| line.starts_with("  word")), "{long}");
    }
}
