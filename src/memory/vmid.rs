// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMIDs: a tag for each VM's TLB entries.
//!
//! Two VMs never share a tag, 0 is nobody's, and a tag that a VM has given back is not handed out
//! again before every TLB has forgotten it. Knows nothing of tables or VMs. DDI 0487 D8.16.3.
#![forbid(unsafe_code)]

use crate::id::Vmid;
use heapless::Vec;

/// Hands out VMIDs to at most `LIVE` VMs at a time.
///
/// Tags are handed out in rising order. At the end of the number space every TLB is invalidated
/// once and counting starts over; the tags in use at that moment are passed over for the whole next
/// round, also when their VM ends, for their entries are younger than the invalidation.
#[derive(Debug)]
pub struct Vmids<const LIVE: usize> {
    last: u16,
    next: u16,
    live: Vec<Vmid, LIVE>,
    carried: Vec<Vmid, LIVE>,
}

impl<const LIVE: usize> Vmids<LIVE> {
    /// Makes an allocator for tags of `bits` bits: what all cores have, or fewer for a test.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let last = u16::MAX >> (16 - bits.clamp(1, 16));
        Self { last, next: 1, live: Vec::new(), carried: Vec::new() }
    }

    /// Hands out a tag; `None` when all are in use.
    ///
    /// `invalidate_all` makes every core forget the entries of all VMs (TLBI ALLE1IS; DSB ISH; ISB)
    /// before it returns. It is called only when tags that had an owner come up for a second time.
    pub fn allocate(&mut self, invalidate_all: impl FnOnce()) -> Option<Vmid> {
        if self.live.is_full() {
            return None;
        }
        let vmid = self.fresh().or_else(|| {
            invalidate_all();
            self.carried.clone_from(&self.live);
            self.next = 1;
            self.fresh()
        })?;
        self.live.push(vmid).ok()?;
        Some(vmid)
    }

    /// Takes a tag back from a VM that runs nowhere any more.
    pub fn release(&mut self, vmid: Vmid) {
        self.live.retain(|&live| live != vmid);
    }

    /// Returns how many tags are in use.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Takes the next tag of this round.
    fn fresh(&mut self) -> Option<Vmid> {
        // 0 marks the end of the round, since `next` of the biggest tag is no number of 16 bits.
        while self.next != 0 {
            let vmid = Vmid::new(self.next);
            self.next = if self.next == self.last { 0 } else { self.next.wrapping_add(1) };
            if !self.carried.contains(&vmid) {
                return Some(vmid);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_tag_of_16_bits_but_0_is_handed_out() {
        let mut vmids = Vmids::<4>::new(16);
        for expected in 1..=u16::MAX {
            let vmid = vmids.allocate(|| panic!("nothing to invalidate yet")).unwrap();
            assert_eq!(vmid.get(), expected);
            vmids.release(vmid);
        }
        let mut invalidated = false;
        assert_eq!(vmids.allocate(|| invalidated = true), Some(Vmid::new(1)));
        assert!(invalidated);
    }

    #[test]
    fn full_space_is_refused_and_recovers() {
        let mut vmids = Vmids::<8>::new(2);
        let all: Vec<_, 3> = (0..3).map(|_| vmids.allocate(|| ()).unwrap()).collect();
        assert_eq!(vmids.allocate(|| ()), None);
        vmids.release(all[1]);
        assert_eq!(vmids.allocate(|| ()), Some(all[1]));
    }

    #[test]
    fn more_vms_than_places_are_refused() {
        let mut vmids = Vmids::<1>::new(8);
        assert!(vmids.allocate(|| ()).is_some());
        assert_eq!(vmids.allocate(|| ()), None);
    }

    proptest! {
        /// Against TLBs that keep every tag which ran since the last full invalidation: a tag with
        /// entries of somebody else is never handed out. Two bits, so that rounds are short.
        #[test]
        fn t10_t115_no_tag_is_reused_before_the_tlbs_forget_it(
            steps in proptest::collection::vec((any::<bool>(), 0..3usize), 1..200)
        ) {
            let mut vmids = Vmids::<3>::new(2);
            let mut live: BTreeSet<u16> = BTreeSet::new();
            let mut in_tlbs: BTreeSet<u16> = BTreeSet::new();
            for (start, which) in steps {
                if start {
                    let granted = vmids.allocate(|| in_tlbs.clear());
                    prop_assert_eq!(granted.is_some(), live.len() < 3);
                    if let Some(vmid) = granted {
                        prop_assert!((1..=3).contains(&vmid.get()));
                        prop_assert!(!in_tlbs.contains(&vmid.get()), "{} is stale", vmid);
                        prop_assert!(live.insert(vmid.get()), "{} twice", vmid);
                    }
                } else if let Some(&vmid) = live.iter().nth(which) {
                    live.remove(&vmid);
                    vmids.release(Vmid::new(vmid));
                }
                // Whoever lives runs, and so fills the TLBs.
                in_tlbs.extend(&live);
            }
        }
    }
}
