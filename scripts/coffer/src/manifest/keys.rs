// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The manifest's keys: what each is for, those that come later, and what people write instead.
//!
//! This is the one place where they are documented: docs/manifest.md and the JSON schema are made
//! from it, and the reader takes no other.
#![forbid(unsafe_code)]

mod form;
mod tables;
mod vm;

pub(crate) use form::Form;
pub(crate) use tables::{CONSOLE, CONTROL, SHARED, TEST, TOP};
pub(crate) use vm::{ON_CRASH, VM};

use crate::message::nearest;

/// The keys of one table.
#[derive(Debug)]
pub(crate) struct Keys {
    /// What the keys belong to, in messages.
    pub owner: &'static str,
    /// How the table is written.
    pub header: &'static str,
    /// What it is for.
    pub text: &'static str,
    /// The keys of the format.
    pub keys: &'static [Key],
    /// Keys of other tools and what they are called here.
    pub foreign: &'static [(&'static [&'static str], &'static str)],
    /// Keys of other tools that have no counterpart, and why.
    pub needless: &'static [(&'static [&'static str], &'static str)],
}

/// A key of the format.
#[derive(Debug)]
pub(crate) struct Key {
    /// What it is called.
    pub name: &'static str,
    /// What its value looks like.
    pub form: Form,
    /// What holds where it is missing; `None` where it must not be.
    pub default: Option<&'static str>,
    /// How it is written.
    pub example: &'static str,
    /// What it is for.
    pub text: &'static str,
    status: Status,
}

/// Whether this version can carry a key out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// It can.
    Known,
    /// It cannot: the key is read, and refused. Without `.later()` nothing else has to change.
    Later,
}

impl Key {
    const fn required(
        name: &'static str,
        form: Form,
        example: &'static str,
        text: &'static str,
    ) -> Self {
        Self { name, form, default: None, example, text, status: Status::Known }
    }
    const fn optional(
        name: &'static str,
        form: Form,
        default: &'static str,
        example: &'static str,
        text: &'static str,
    ) -> Self {
        Self { name, form, default: Some(default), example, text, status: Status::Known }
    }
    /// Says that this version cannot carry it out.
    const fn later(mut self) -> Self {
        self.status = Status::Later;
        self
    }
    /// Returns whether this version can carry it out.
    pub(crate) const fn is_known(&self) -> bool {
        matches!(self.status, Status::Known)
    }
    /// Returns whether it must not be missing.
    pub(crate) const fn is_required(&self) -> bool {
        self.default.is_none()
    }
}

/// What a key is.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Kind<'a> {
    /// It is read.
    Known,
    /// It is in the format, but not supported yet.
    Later,
    /// It is called otherwise here.
    Foreign(&'static str),
    /// There is no need for it: why.
    Needless(&'static str),
    /// Nobody knows it; perhaps this was meant.
    Unknown(Option<&'a str>),
}

impl Keys {
    /// Returns the keys that are read.
    pub(crate) fn known(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.iter().filter(|key| key.is_known()).map(|key| key.name)
    }

    /// Returns what the key is.
    pub(crate) fn kind(&self, key: &str) -> Kind<'static> {
        if let Some(key) = self.keys.iter().find(|known| known.name == key) {
            return if key.is_known() { Kind::Known } else { Kind::Later };
        }
        let plain = key.to_ascii_lowercase().replace('-', "_");
        let named = |entry: &&(&'static [&'static str], &'static str)| entry.0.contains(&&*plain);
        if let Some((_, ours)) = self.foreign.iter().find(named) {
            return Kind::Foreign(ours);
        }
        if let Some((_, why)) = self.needless.iter().find(named) {
            return Kind::Needless(why);
        }
        Kind::Unknown(nearest(key, self.known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translations_lead_to_keys_of_the_format() {
        for keys in [&TOP, &VM, &SHARED, &ON_CRASH, &CONSOLE, &CONTROL, &TEST] {
            for (theirs, ours) in keys.foreign {
                assert!(keys.keys.iter().any(|key| key.name == *ours), "{ours}");
                for key in *theirs {
                    assert_eq!(keys.kind(key), Kind::Foreign(ours), "{key}");
                }
            }
            for (theirs, why) in keys.needless {
                for key in *theirs {
                    assert_eq!(keys.kind(key), Kind::Needless(why));
                }
            }
        }
    }

    #[test]
    fn slips_of_the_finger_are_understood() {
        assert_eq!(VM.kind("kernal"), Kind::Unknown(Some("kernel")));
        assert_eq!(VM.kind("Memory"), Kind::Unknown(Some("memory")));
        assert_eq!(VM.kind("on-reboot"), Kind::Unknown(Some("on_reboot")));
        assert_eq!(VM.kind("colour"), Kind::Unknown(None));
    }
}
