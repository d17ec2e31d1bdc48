// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the values of keys look like: in words, and as JSON Schema (draft 2020-12) says it.
//!
//! The reader reads them by itself. That both agree, as far as a schema can say it, is tested.
#![forbid(unsafe_code)]

use super::{Keys, Kind, VM};
use cofferdam::plan::{CPUS_MAX, DEVICES_MAX, NAME_MAX};
use serde_json::{Value, json};

/// What a key's value looks like.
#[derive(Debug)]
pub enum Form {
    /// The number of the format: 1.
    Format,
    /// Any string.
    Text,
    /// A path of a file.
    Path,
    /// A kernel's command line.
    Line,
    /// Bytes.
    Size,
    /// A time.
    Duration,
    /// Which cores.
    Cores,
    /// A control key.
    ControlKey,
    /// True or false.
    Boolean,
    /// A number, from the first to the second.
    Number(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// So many strings at most.
    List(usize),
    /// Which devices of the board.
    Devices,
    /// Where requests come in.
    Ports,
    /// A table.
    Table(&'static Keys),
    /// One of these words, or a table.
    ChoiceOrTable(&'static [&'static str], &'static Keys),
    /// A table with a name for each of so many things, so many at least and at most.
    Named(&'static Keys, usize, usize),
}

/// Returns whether "everything" is a value for `devices`: it came with `except`.
fn has_everything() -> bool {
    VM.kind("except") == Kind::Known
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
}

impl Form {
    /// Returns type and unit in words.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Format => "the number 1".into(),
            Self::Text => "a string".into(),
            Self::Path => "a path, relative to the manifest's directory".into(),
            Self::Line => "one line in a string, without control characters".into(),
            Self::Size => {
                "a size in a string: a whole number of `K`, `M` or `G` (2^10, 2^20, 2^30 bytes)"
                    .into()
            }
            Self::Duration => {
                "a time in a string: a whole number of `ms`, `s` or `min`; 49 days at most".into()
            }
            Self::Cores => format!(
                "a list of numbers in a string, as Linux writes it (`\"0-3,5\"`), or an array of \
                 labels; 1 to {CPUS_MAX} cores"
            ),
            Self::ControlKey => {
                "a control key in a string: `^` and a letter or one of `@[\\]^_`".into()
            }
            Self::Boolean => "`true` or `false`".into(),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Choice(words) => format!("one of {}", quoted(words)),
            Self::List(most) => format!("an array of strings, {most} at most"),
            Self::Devices if has_everything() => {
                format!("an array of strings, {DEVICES_MAX} at most, or `\"everything\"`")
            }
            Self::Devices => format!("an array of strings, {DEVICES_MAX} at most"),
            Self::Ports => "a string, or an array of two strings, one of them `\"console\"`".into(),
            Self::Table(_) => "a table".into(),
            Self::ChoiceOrTable(words, _) => format!("one of {}, or a table", quoted(words)),
            Self::Named(_, _, most) => format!("a table for each, {most} at most"),
        }
    }

    /// Returns what JSON Schema says of it.
    pub(crate) fn schema(&self) -> Value {
        let list = |most: usize| json!({"type": "array", "maxItems": most, "items": text()});
        match self {
            Self::Format => json!({"const": 1}),
            Self::Text => text(),
            Self::Path => pattern("^[^\u{0}]+$"),
            Self::Line => pattern(r"^\P{Cc}*$"),
            Self::Size => pattern("^0*[1-9][0-9]*[KMG]$"),
            Self::Duration => pattern("^0*[1-9][0-9]*(ms|s|min)$"),
            Self::Cores => {
                let range = r"\s*[0-9]+\s*(-\s*[0-9]+\s*)?";
                let labels =
                    json!({"type": "array", "minItems": 1, "maxItems": CPUS_MAX, "items": text()});
                json!({"anyOf": [pattern(&format!("^{range}(,{range})*$")), labels]})
            }
            Self::ControlKey => pattern(r"^\^[@-_a-z]$"),
            Self::Boolean => json!({"type": "boolean"}),
            Self::Number(least, most) => {
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Self::Choice(words) => json!({"enum": words}),
            Self::List(most) => list(*most),
            Self::Devices if has_everything() => {
                json!({"anyOf": [{"const": "everything"}, list(DEVICES_MAX)]})
            }
            Self::Devices => list(DEVICES_MAX),
            Self::Ports => {
                let one = json!({"type": "array", "minItems": 1, "maxItems": 1, "items": text()});
                let two = json!({
                    "type": "array", "minItems": 2, "maxItems": 2, "items": text(),
                    "contains": {"const": "console"}, "minContains": 1, "maxContains": 1,
                });
                json!({"anyOf": [text(), one, two]})
            }
            Self::Table(keys) => keys.schema(),
            Self::ChoiceOrTable(words, keys) => json!({"anyOf": [{"enum": words}, keys.schema()]}),
            Self::Named(keys, least, most) => json!({
                "type": "object",
                "minProperties": least,
                "maxProperties": most,
                "propertyNames": {"pattern": format!("^[A-Za-z0-9][A-Za-z0-9_-]{{0,{}}}$", NAME_MAX - 1)},
                "additionalProperties": keys.schema(),
            }),
        }
    }
}

fn text() -> Value {
    json!({"type": "string"})
}

fn pattern(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

impl Keys {
    /// Returns what JSON Schema says of a table with these keys: those that are read, no others.
    pub(crate) fn schema(&self) -> Value {
        let property = |key: &super::Key| {
            let mut schema = key.form.schema();
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("description".into(), key.text.into());
            }
            (key.name.to_owned(), schema)
        };
        let known = || self.keys.iter().filter(|key| key.is_known());
        let properties: serde_json::Map<_, _> = known().map(property).collect();
        let required: Vec<_> =
            known().filter(|key| key.is_required()).map(|key| key.name).collect();
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }
}
