// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tool says when something is wrong: a code, a sentence, the place, and what to write.
//!
//! Owns the rendering. Must not know what is being planned.
#![forbid(unsafe_code)]

use crate::explain::{Code, Severity};
use annotate_snippets::{
    AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str,
};
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;

/// The most messages that are printed; what follows is counted only.
const PRINTED_MAX: usize = 20;
/// The most characters of somebody's text in a message.
const QUOTED_MAX: usize = 60;

/// A file that messages point into.
#[derive(Debug)]
pub struct Source {
    /// Its path as the user gave it.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A place in a file.
#[derive(Clone, Debug)]
pub struct Mark {
    source: Arc<Source>,
    span: Range<usize>,
    label: String,
}

impl Mark {
    /// Marks `span`, in bytes of the source's text, with a label that may be empty.
    #[must_use]
    pub fn new(source: &Arc<Source>, span: Range<usize>, label: impl Into<String>) -> Self {
        Self { source: Arc::clone(source), span, label: label.into() }
    }

    /// Returns the line and the column, in characters, both from 1.
    fn line_and_column(&self) -> (usize, usize) {
        let before = self.source.text.get(..self.span.start).unwrap_or(&self.source.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

/// One error or warning.
#[derive(Clone, Debug)]
pub struct Message {
    code: Code,
    text: String,
    marks: Vec<Mark>,
    write: Option<String>,
}

impl Message {
    /// Makes the message with this code.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), marks: Vec::new(), write: None }
    }
    /// Adds a place; the first one is what the message is about.
    #[must_use]
    pub fn at(mut self, mark: Mark) -> Self {
        self.marks.push(mark);
        self
    }
    /// Says what to write instead.
    #[must_use]
    pub fn write(mut self, text: impl Into<String>) -> Self {
        self.write = Some(text.into());
        self
    }
    /// Returns the code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }
    /// Returns the sentence.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.code.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(&self.text).id(self.code.name());
        let mut group = Group::with_title(title);
        let mut shown: Vec<&Arc<Source>> = Vec::new();
        for mark in &self.marks {
            if shown.iter().any(|source| Arc::ptr_eq(source, &mark.source)) {
                continue;
            }
            shown.push(&mark.source);
            group = group.elements(self.snippet(&mark.source));
        }
        if let Some(write) = &self.write {
            let write = normalize_untrusted_str(write);
            group = group.element(Level::HELP.with_name("write").message(write));
        }
        renderer.render(&[group])
    }

    /// Shows what the marks point at, with the first mark of the message as the primary one.
    fn snippet<'a>(&'a self, source: &'a Arc<Source>) -> [annotate_snippets::Element<'a>; 1] {
        if source.text.is_empty() {
            return [Origin::path(&source.path).into()];
        }
        let mut snippet = Snippet::source(&source.text).path(&source.path);
        for (index, mark) in self.marks.iter().enumerate() {
            if Arc::ptr_eq(&mark.source, source) {
                let kind =
                    if index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
                let label = (!mark.label.is_empty()).then_some(&*mark.label);
                snippet = snippet.annotation(kind.span(mark.span.clone()).label(label));
            }
        }
        [snippet.into()]
    }
}

/// How messages look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Text alone.
    Plain,
    /// Text with the terminal's colours.
    Coloured,
}

/// Everything that is wrong, in the order in which it was found.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<Message>);

impl Report {
    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        self.0.push(message);
    }
    /// Adds all messages of another report.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }
    /// Returns the messages.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.0
    }
    /// Returns whether nothing forbids to go on; warnings do not.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !self.0.iter().any(|message| message.code.severity() == Severity::Error)
    }
    /// Returns the value and the warnings, or all messages when an error is among them.
    ///
    /// # Errors
    /// The report itself, when an error is in it or the value is missing.
    pub fn ok_with<T>(self, value: Option<T>) -> Result<(T, Self), Self> {
        match value {
            Some(value) if self.is_ok() => Ok((value, self)),
            _ => Err(self),
        }
    }
    /// Writes the messages as a person reads them; empty when there are none.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Coloured => Renderer::styled(),
        };
        let mut text = String::new();
        for message in self.0.iter().take(PRINTED_MAX) {
            text.push_str(&message.render(&renderer));
            text.push_str("\n\n");
        }
        if let Some(more) = self.0.len().checked_sub(PRINTED_MAX).filter(|more| *more > 0) {
            text.push_str(&format!("… and {more} more\n"));
        }
        text
    }
    /// Returns the messages for `--json`.
    #[must_use]
    pub fn to_json(&self) -> Vec<JsonMessage<'_>> {
        self.0.iter().map(JsonMessage::new).collect()
    }
}

impl From<Message> for Report {
    fn from(message: Message) -> Self {
        Self(vec![message])
    }
}

/// A message in the output of `--json`, format 1.
#[derive(Serialize, Debug)]
pub struct JsonMessage<'a> {
    code: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    places: Vec<JsonPlace<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<&'a str>,
}

#[derive(Serialize, Debug)]
struct JsonPlace<'a> {
    path: &'a str,
    line: usize,
    column: usize,
}

impl<'a> JsonMessage<'a> {
    fn new(message: &'a Message) -> Self {
        let place = |mark: &'a Mark| {
            let (line, column) = mark.line_and_column();
            JsonPlace { path: &mark.source.path, line, column }
        };
        Self {
            code: message.code.name(),
            text: &message.text,
            places: message.marks.iter().map(place).collect(),
            write: message.write.as_deref(),
        }
    }
}

/// Quotes somebody's text: on one line, without control characters, and not too long.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTED_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_MAX).is_some() {
        quoted.push('…');
    }
    format!("`{quoted}`")
}

/// Writes a number of bytes the way the manifest takes it, and inexactly where that reads better.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    for (unit, suffix) in UNITS {
        if count >= unit {
            let (whole, tenths) = (count / unit, (count % unit) * 10 / unit);
            let exact = count.is_multiple_of(unit);
            return match (exact, tenths) {
                (true, _) => format!("{whole}{suffix}"),
                (false, _) if whole >= 100 => format!("{whole}{suffix}"),
                (false, tenths) => format!("{whole}.{tenths}{suffix}"),
            };
        }
    }
    format!("{count}B")
}

/// Returns the candidate that was most likely meant, if one is near enough.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A longer word is not a slip of the finger, and comparing it would take its time.
    const WORD_MAX: usize = 100;
    if word.len() > WORD_MAX {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let distance =
        |candidate: &str| strsim::damerau_levenshtein(&word, &candidate.to_ascii_lowercase());
    let near = |candidate: &&str| distance(candidate) <= candidate.len().div_ceil(3);
    candidates.into_iter().filter(near).min_by_key(|candidate| distance(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_short_line_without_control_characters() {
        assert_eq!(quote("a\u{1b}[31m\n"), "`a\\u{1b}[31m\\n`");
        assert_eq!(quote(&"x".repeat(1 << 20)).chars().count(), QUOTED_MAX + 3);
    }

    #[test]
    fn bytes_are_short() {
        for (count, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1 << 10, "1K"),
            (512 << 20, "512M"),
            ((1 << 30) - 1, "1023M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "17179869183G"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn nearest_is_near() {
        let known = ["cpus", "memory", "kernel"];
        assert_eq!(nearest("kernal", known), Some("kernel"));
        assert_eq!(nearest("memroy", known), Some("memory"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest(&"k".repeat(1 << 20), known), None);
    }
}
