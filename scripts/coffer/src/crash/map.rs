// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest's physical addresses lead to.
#![forbid(unsafe_code)]

use serde::Serialize;

/// Addresses that lead somewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Area {
    /// `ram`, `model` or `device`.
    pub kind: String,
    /// The first address.
    #[serde(serialize_with = "super::hex")]
    pub at: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The model, or the device's path in the host tree.
    pub name: String,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Map(pub Vec<Area>);

impl Map {
    /// Returns the name of what is at an address, and how far behind its start that is.
    #[must_use]
    pub fn place(&self, ipa: u64) -> Option<String> {
        let offset = |area: &Area| ipa.checked_sub(area.at).filter(|offset| *offset < area.bytes);
        let found = self.0.iter().find_map(|area| Some((area, offset(area)?)));
        found.map(|(area, offset)| format!("{}+{offset:#x}", area.name))
    }
}
