// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TLBs of the other cores: they keep everything until they are told to forget it.
#![forbid(unsafe_code)]

use super::{ADDRESS, Walk};
use std::collections::BTreeMap;
use std::vec::Vec;

/// A TLBI that was issued and not waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    Stage2 { vmid: u64, ipa: u64 },
    Combined { vmid: u64 },
    All { vmid: u64 },
}

/// Entries by VMID and page address.
type Entries = BTreeMap<(u64, u64), Walk>;

#[derive(Debug, Default)]
pub(super) struct TlbModel {
    /// The VMID that a TLBI acts on.
    pub selected: Option<u64>,
    pub begun: Vec<Pending>,
    /// Stage-2 entries, and the tables on the way to them.
    stage2: Entries,
    /// Entries from both stages, made from what `stage2` holds.
    combined: Entries,
}

impl TlbModel {
    /// Keeps what a walk has met; what is known already stays.
    pub fn fill(&mut self, vmid: u64, address: u64, mut walk: Walk) {
        let key = (vmid, address & !0xfff);
        if let Some(known) = self.stage2.get_mut(&key) {
            // A fault is not kept, but the ways up to it are, old ones beside new ones.
            walk.ways.retain(|way| !known.ways.contains(way));
            known.ways.append(&mut walk.ways);
            if known.leaf_bytes.is_none() {
                walk.ways = std::mem::take(&mut known.ways);
                *known = walk;
            }
        } else {
            self.stage2.insert(key, walk);
        }
        if let Some(known) = self.stage2.get(&key).filter(|known| known.leaf_bytes.is_some()) {
            self.combined.entry(key).or_insert_with(|| known.clone());
        }
    }

    /// Answers an access: from a combined entry, or a stage-2 one, or by `walk`.
    pub fn lookup(&mut self, vmid: u64, address: u64, walk: Walk) -> Walk {
        self.fill(vmid, address, walk.clone());
        self.combined.get(&(vmid, address & !0xfff)).cloned().unwrap_or(walk)
    }

    /// Forgets.
    pub fn apply(&mut self, pending: &Pending) {
        match *pending {
            Pending::Stage2 { vmid, ipa } => {
                self.stage2.retain(|&(tag, page), walk| tag != vmid || forget(walk, page, ipa));
            }
            Pending::Combined { vmid } => self.combined.retain(|&(tag, _), _| tag != vmid),
            Pending::All { vmid } => {
                self.stage2.retain(|&(tag, _), _| tag != vmid);
                self.combined.retain(|&(tag, _), _| tag != vmid);
            }
        }
    }

    /// Returns whether an entry was made from another value of this descriptor.
    pub fn holds_other(&self, slot: u64, new: u64) -> bool {
        let leaf =
            |walk: &Walk| walk.leaf_bytes.is_some() && walk.slot == slot && walk.descriptor != new;
        let way = |walk: &Walk| walk.ways.iter().any(|w| w.slot == slot && w.descriptor != new);
        self.entries().any(|walk| leaf(walk) || way(walk))
    }

    /// Forgets everything.
    pub fn forget_all(&mut self) {
        self.stage2.clear();
        self.combined.clear();
    }

    /// Returns whether something is known by way of this slot.
    pub fn walks_by(&self, slot: u64) -> bool {
        let leaf = |walk: &Walk| walk.leaf_bytes.is_some() && walk.slot == slot;
        self.entries().any(|walk| leaf(walk) || walk.ways.iter().any(|w| w.slot == slot))
    }

    /// Returns whether a walker may still come to this table.
    pub fn walks_through(&self, table: u64) -> bool {
        let through = |walk: &Walk| walk.ways.iter().any(|w| w.descriptor & ADDRESS == table);
        self.entries().any(through)
    }

    fn entries(&self) -> impl Iterator<Item = &Walk> {
        self.stage2.values().chain(self.combined.values())
    }
}

/// Does what a TLBI for `ipa` does to the entry of `page`: leaf and ways go where they hold for
/// both addresses. Returns whether something is left.
fn forget(walk: &mut Walk, page: u64, ipa: u64) -> bool {
    if walk.leaf_bytes.is_some_and(|bytes| page / bytes == ipa / bytes) {
        walk.leaf_bytes = None;
    }
    walk.ways.retain(|way| ipa.wrapping_sub(way.start) >= way.bytes);
    walk.leaf_bytes.is_some() || !walk.ways.is_empty()
}
