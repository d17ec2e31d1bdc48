// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What every key of a manifest is made of: strings, numbers, choices; and the keys themselves.
#![forbid(unsafe_code)]

use super::{Reader, Value, count_as_list};
use crate::explain::Code;
use crate::manifest::keys::{Keys, Kind};
use crate::manifest::{Spanned, value};
use crate::message::{Mark, Message, nearest, quote};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

impl Reader<'_> {
    pub(super) fn mark(&self, span: Range<usize>, label: &str) -> Mark {
        Mark::new(self.source, span, label)
    }

    /// Reads a key that must be there; that it is not is reported elsewhere.
    pub(super) fn field<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        read: fn(&mut Self, &Value<'_>, &str) -> Option<T>,
    ) -> Option<Spanned<T>> {
        self.spanned(table.get(key)?, key, read)
    }

    /// Reads a key that may be missing: `None` only when it is wrong.
    pub(super) fn optional<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        read: fn(&mut Self, &Value<'_>, &str) -> Option<T>,
    ) -> Option<Option<Spanned<T>>> {
        match table.get(key) {
            Some(value) => self.spanned(value, key, read).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn spanned<T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        read: fn(&mut Self, &Value<'_>, &str) -> Option<T>,
    ) -> Option<Spanned<T>> {
        read(self, value, key).map(|read| Spanned::new(value.span(), read))
    }

    pub(super) fn table<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        key: &str,
    ) -> Option<&'v DeTable<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => self.wrong_type(value, key, "a table", Some(&format!("[{key}]"))),
        }
    }

    pub(super) fn string(&mut self, value: &Value<'_>, key: &str) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            other => {
                let fixed = match other {
                    DeValue::Array(_) | DeValue::Table(_) => None,
                    _ => self.text(value.span()).map(|text| format!("{key} = \"{text}\"")),
                };
                self.wrong_type(value, key, "a string", fixed.as_deref())
            }
        }
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>, key: &str) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.wrong_type(value, key, "true or false", None),
        }
    }

    pub(super) fn integer(
        &mut self,
        value: &Value<'_>,
        key: &str,
        range: Range<u64>,
    ) -> Option<u64> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => return self.wrong_type(value, key, "a number", None),
        };
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        let text = format!("{key} is a number from {} to {}", range.start, range.end - 1);
        self.malformed(value, text, None)
    }

    pub(super) fn small(&mut self, value: &Value<'_>, key: &str, range: Range<u8>) -> Option<u8> {
        let number = self.integer(value, key, range.start.into()..range.end.into())?;
        u8::try_from(number).ok()
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.string(value, key)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let listed: Vec<_> = names().map(|name| format!("\"{name}\"")).collect();
        let why = format!("{key} is {}", listed.join(" or "));
        self.malformed(
            value,
            why,
            nearest(&text, names()).map(|name| format!("{key} = \"{name}\"")),
        )
    }

    pub(super) fn well_formed<T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        result: Result<T, value::Malformed>,
    ) -> Option<T> {
        let wrong = match result {
            Ok(value) => return Some(value),
            Err(wrong) => wrong,
        };
        let instead = wrong.instead.map(|instead| format!("{key} = \"{instead}\""));
        self.malformed(value, format!("{key}: {}", wrong.why), instead)
    }

    pub(super) fn malformed<T>(
        &mut self,
        value: &Value<'_>,
        why: impl Into<String>,
        instead: Option<String>,
    ) -> Option<T> {
        let mut message = Message::new(Code::E04, why).at(self.mark(value.span(), ""));
        if let Some(instead) = instead {
            message = message.write(instead);
        }
        self.report.push(message);
        None
    }

    pub(super) fn wrong_type<T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        wanted: &str,
        instead: Option<&str>,
    ) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let text = format!("{} is {wanted}, not {found}", quote(key));
        self.malformed(value, text, instead.map(Into::into))
    }

    /// Returns a short piece of the file on one line.
    fn text(&self, span: Range<usize>) -> Option<&str> {
        self.source.text.get(span).filter(|text| text.len() <= 60 && !text.contains('\n'))
    }

    /// Reports every key that the table should not have.
    pub(super) fn check_keys(&mut self, table: &DeTable<'_>, keys: &Keys) {
        for (key, value) in table {
            if let Some(message) = self.unexpected(key.get_ref(), value, keys) {
                self.report.push(message.at(self.mark(key.span(), "")));
            }
        }
    }

    fn unexpected(&self, key: &str, value: &Value<'_>, keys: &Keys) -> Option<Message> {
        let unknown =
            || Message::new(Code::E03, format!("{} has no key {}", keys.owner, quote(key)));
        let renamed = |ours: &str| match (ours, self.text(value.span())) {
            ("cpus", _) if !value.get_ref().is_str() => count_as_list(value.get_ref()),
            (_, Some(text)) if !matches!(value.get_ref(), DeValue::Table(_)) => {
                format!("{ours} = {text}")
            }
            _ => format!("{ours} = …"),
        };
        match keys.kind(key) {
            Kind::Known => None,
            Kind::Later => {
                let text = format!("{} is not supported yet", quote(key));
                Some(Message::new(Code::E06, text).write("nothing: leave it out for now"))
            }
            Kind::Foreign(ours) | Kind::Unknown(Some(ours)) => Some(unknown().write(renamed(ours))),
            Kind::Needless(why) => Some(unknown().write(format!("nothing: {why}"))),
            Kind::Unknown(None) => {
                let known: Vec<_> = keys.known().collect();
                Some(unknown().write(format!("one of {}", known.join(", "))))
            }
        }
    }
}
