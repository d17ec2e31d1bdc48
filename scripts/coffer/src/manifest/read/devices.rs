// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which devices a VM gets, and which of them may reach all memory. Must not know the board.
#![forbid(unsafe_code)]

use super::{Reader, Value};
use crate::explain::Code;
use crate::manifest::keys::{self, Kind};
use crate::manifest::{Devices, Spanned};
use crate::message::{Message, quote};
use cofferdam::plan::DEVICES_MAX;
use toml::de::{DeTable, DeValue};

/// The most devices that a key names which does not give them away.
const NAMED_MAX: usize = 256;
/// The word for all devices.
const EVERYTHING: &str = "everything";

impl Reader<'_> {
    /// Reads `devices`, with `except` that belongs to it.
    pub(super) fn devices(&mut self, table: &DeTable<'_>) -> Option<Devices> {
        let except = self.names_of_devices(table, "except");
        let Some(value) = table.get("devices") else {
            self.except_alone(table)?;
            return Some(Devices::Listed(Vec::new()));
        };
        if matches!(value.get_ref(), DeValue::String(text) if text == EVERYTHING) {
            if keys::VM.kind("except") == Kind::Later {
                let text = format!("`devices = \"{EVERYTHING}\"` is not supported yet");
                self.report.push(Message::new(Code::E06, text).at(self.mark(value.span(), "")));
            }
            return Some(Devices::Everything { span: value.span(), except: except? });
        }
        let devices = self.device_list(value, "devices", DEVICES_MAX)?;
        self.except_alone(table)?;
        Some(Devices::Listed(devices))
    }

    /// Refuses `except` where there is nothing that it could be an exception of.
    fn except_alone(&mut self, table: &DeTable<'_>) -> Option<()> {
        let Some(except) = table.get("except") else { return Some(()) };
        let text = format!("`except` goes with `devices = \"{EVERYTHING}\"`");
        self.malformed(except, text, Some(format!("devices = \"{EVERYTHING}\"")))
    }

    /// Reads a list of devices that may be missing.
    pub(super) fn names_of_devices(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
    ) -> Option<Vec<Spanned<String>>> {
        match table.get(key) {
            Some(value) => self.device_list(value, key, NAMED_MAX),
            None => Some(Vec::new()),
        }
    }

    fn device_list(
        &mut self,
        value: &Value<'_>,
        key: &str,
        max: usize,
    ) -> Option<Vec<Spanned<String>>> {
        match value.get_ref() {
            DeValue::Array(array) if array.len() > max => {
                let text = format!("{} devices, but at most {max}", array.len());
                self.malformed(value, text, None)
            }
            DeValue::Array(array) => {
                array.iter().map(|item| self.spanned(item, key, Self::string)).collect()
            }
            DeValue::String(text) => {
                let fixed = format!("{key} = [{}]", quote(text).replace('`', "\""));
                self.wrong_type(value, key, "a list of devices", Some(&fixed))
            }
            _ => self.wrong_type(value, key, "a list of devices", Some("[\"&label\"]")),
        }
    }
}
