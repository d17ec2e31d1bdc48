// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who owns each page of the machine: exactly one owner, by construction.
//!
//! The list covers the memory banks without gap or overlap, and beside them the registers of
//! devices that somebody drives. Whoever maps, copies into or frees memory has been given it here.
//! Must not know tables or what a VM is. Used at boot and when a VM starts or ends, never on an
//! exit path. A refusal changes nothing, but for want of memory for the list itself.
#![forbid(unsafe_code)]

mod place;

use crate::addr::{Address, PAGE_SIZE, Pa, PaRange};
use crate::id::VmId;
use alloc::vec::Vec;
use core::fmt;

/// Who may own memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Owner {
    /// Nobody: free to be handed out.
    #[default]
    Free,
    /// EL2's image, stacks, tables and heap; registers that EL2 drives.
    Hypervisor,
    /// The bundle that the guests are started from.
    Bundle,
    /// The host's device tree.
    HostTree,
    /// What the firmware keeps: reserved memory. Never touched.
    Firmware,
    /// One VM.
    Vm(VmId),
    /// A bundle that comes by a port for requests.
    Upload,
    /// What a VM is started from, where that has come after boot.
    Images(VmId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("nobody"),
            Self::Hypervisor => f.write_str("the hypervisor"),
            Self::Bundle => f.write_str("the bundle"),
            Self::HostTree => f.write_str("the host device tree"),
            Self::Firmware => f.write_str("the firmware"),
            Self::Vm(id) => write!(f, "VM {id}"),
            Self::Upload => f.write_str("the upload"),
            Self::Images(id) => write!(f, "the start of VM {id}"),
        }
    }
}

/// What is at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A memory bank of the host tree.
    Memory,
    /// Registers of a device.
    Device,
}

/// Neighbouring pages with one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Whole pages.
    pub range: PaRange,
    /// What is there.
    pub kind: Kind,
    /// Whose it is.
    pub owner: Owner,
}

impl Region {
    fn is_free_memory(&self) -> bool {
        self.kind == Kind::Memory && self.owner == Owner::Free
    }
}

/// Why somebody did not get memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A part of `range` is somebody else's, or there is nothing to be had.
    Clash {
        /// What was asked for.
        range: PaRange,
        /// By whom.
        wanted: Owner,
        /// What stands at the first page that clashes, `None` where there is neither memory nor a
        /// known device.
        held: Option<Region>,
    },
    /// There is not enough free memory, or not in pieces that are aligned so.
    Exhausted {
        /// Who asked.
        wanted: Owner,
        /// For how many bytes.
        size_bytes: u64,
        /// How many bytes are free in all.
        free_bytes: u64,
    },
    /// A size or address is not a whole number of pages, or a size is 0.
    Unaligned,
    /// The hypervisor has no memory left for this list.
    ListFull,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clash { range, wanted, held: None } => {
                write!(f, "{wanted} wants {range}, where there is no memory")
            }
            Self::Clash { range, wanted, held: Some(held) } => {
                let what = if held.kind == Kind::Memory { "memory" } else { "device" };
                write!(f, "{wanted} wants {range}, but {what} {} is {}'s", held.range, held.owner)
            }
            Self::Exhausted { wanted, size_bytes, free_bytes } => {
                let kib = |bytes| bytes / 1024;
                let (size, free) = (kib(*size_bytes), kib(*free_bytes));
                write!(f, "{wanted} wants {size} KiB of memory, {free} KiB are free")
            }
            Self::Unaligned => f.write_str("not a whole number of 4 KiB pages"),
            Self::ListFull => f.write_str("the hypervisor has no memory for its list of owners"),
        }
    }
}

/// The owner of each page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Sorted, without overlap; neighbours of one kind and owner are one region.
    regions: Vec<Region>,
}

impl Owners {
    /// Makes the list of a machine without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { regions: Vec::new() }
    }

    /// Adds a memory bank of the host tree, less the pages at its ends that are not whole.
    ///
    /// # Errors
    /// Refuses a bank that overlaps what is known already.
    pub fn add_bank(&mut self, bank: PaRange) -> Result<(), Refusal> {
        let start = bank.start().align_up(PAGE_SIZE).ok_or(Refusal::Unaligned)?;
        match PaRange::between(start, bank.end().align_down(PAGE_SIZE)) {
            Some(range) => self.insert(Region { range, kind: Kind::Memory, owner: Owner::Free }),
            None => Ok(()),
        }
    }

    /// Gives the pages of a device's registers to `owner`.
    ///
    /// # Errors
    /// Refuses pages that are memory or another device's.
    pub fn claim_device(&mut self, registers: PaRange, owner: Owner) -> Result<(), Refusal> {
        let range = registers.page_cover().ok_or(Refusal::Unaligned)?;
        self.insert(Region { range, kind: Kind::Device, owner })
    }

    /// Gives all pages of `range` to `owner`, when all of them are free memory.
    ///
    /// # Errors
    /// Names the holder of the first page that is not.
    pub fn claim(&mut self, range: PaRange, owner: Owner) -> Result<(), Refusal> {
        let pages = range.page_cover().ok_or(Refusal::Unaligned)?;
        let index = self.first_behind(pages.start());
        match self.regions.get(index) {
            Some(held) if held.is_free_memory() && held.range.covers(pages) => {
                self.make_room()?;
                self.change(index, pages, owner);
                Ok(())
            }
            _ => Err(self.clash(range, pages, owner)),
        }
    }

    /// Gives the free pages of `range` to `owner`.
    ///
    /// Reserved ranges of real trees overlap each other, the tree itself and addresses without
    /// memory; what is not free memory stays as it is.
    ///
    /// # Errors
    /// Only for want of memory for the list; then a part may be given.
    pub fn reserve(&mut self, range: PaRange, owner: Owner) -> Result<(), Refusal> {
        let pages = range.page_cover().ok_or(Refusal::Unaligned)?;
        let mut at = pages.start();
        while let Some(left) = PaRange::between(at, pages.end())
            && let Some(region) = self.regions.get(self.first_behind(at))
            && let Some(part) = region.range.intersection(left)
        {
            if region.is_free_memory() {
                self.claim(part, owner)?;
            }
            at = part.end();
        }
        Ok(())
    }

    /// Frees all memory of `owner` and forgets its devices.
    pub fn release(&mut self, owner: Owner) {
        let keeps = |region: &Region| region.kind == Kind::Memory || region.owner != owner;
        self.regions.retain(keeps);
        for region in &mut self.regions {
            if region.owner == owner {
                region.owner = Owner::Free;
            }
        }
        self.merge();
    }

    /// Gives memory of `from`, or a part of it, to somebody else; nothing where it is not his.
    ///
    /// # Errors
    /// There is no memory for the list, which a part may need and a whole region does not.
    pub fn give(&mut self, range: PaRange, from: Owner, to: Owner) -> Result<(), Refusal> {
        let pages = range.page_cover().ok_or(Refusal::Unaligned)?;
        let index = self.first_behind(pages.start());
        if let Some(held) = self.regions.get(index)
            && held.kind == Kind::Memory
            && held.owner == from
            && held.range.covers(pages)
        {
            if held.range != pages {
                self.make_room()?;
            }
            self.change(index, pages, to);
        }
        Ok(())
    }

    /// Returns what is at an address, `None` where there is nothing.
    #[must_use]
    pub fn at(&self, pa: Pa) -> Option<Region> {
        let region = self.regions.get(self.first_behind(pa))?;
        region.range.contains(pa).then_some(*region)
    }
    /// Returns everything that is known, in order of addresses.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
    /// Returns the memory of one owner, in order of addresses.
    pub fn memory_of(&self, owner: Owner) -> impl Iterator<Item = PaRange> {
        let is_owners = move |r: &&Region| r.kind == Kind::Memory && r.owner == owner;
        self.regions.iter().filter(is_owners).map(|region| region.range)
    }
    /// Returns the bytes of memory that nobody owns.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.memory_of(Owner::Free).map(PaRange::size).sum()
    }

    /// Returns the index of the first region that ends behind `pa`.
    fn first_behind(&self, pa: Pa) -> usize {
        self.regions.partition_point(|region| region.range.end() <= pa)
    }

    /// Makes sure that the two more regions which one change can bring will not need the heap.
    fn make_room(&mut self) -> Result<(), Refusal> {
        self.regions.try_reserve(2).map_err(|_| Refusal::ListFull)
    }

    /// Adds a region where there is none.
    fn insert(&mut self, new: Region) -> Result<(), Refusal> {
        let index = self.first_behind(new.range.start());
        if let Some(held) = self.regions.get(index).filter(|r| r.range.overlaps(new.range)) {
            let held = Some(*held);
            return Err(Refusal::Clash { range: new.range, wanted: new.owner, held });
        }
        self.make_room()?;
        self.regions.insert(index, new);
        self.merge();
        Ok(())
    }

    /// Gives a part of the region at `index` another owner. There is room for two more regions.
    fn change(&mut self, index: usize, part: PaRange, owner: Owner) {
        let Some(region) = self.regions.get_mut(index) else { return };
        let old = *region;
        *region = Region { range: part, owner, ..old };
        if let Some(range) = PaRange::between(part.end(), old.range.end()) {
            self.regions.insert(index + 1, Region { range, ..old });
        }
        if let Some(range) = PaRange::between(old.range.start(), part.start()) {
            self.regions.insert(index, Region { range, ..old });
        }
        self.merge();
    }

    /// Makes one region of neighbours that differ in nothing.
    fn merge(&mut self) {
        self.regions.dedup_by(|next, kept| {
            let same = (next.kind, next.owner) == (kept.kind, kept.owner);
            let merges = same && kept.range.end() == next.range.start();
            if merges {
                kept.range = kept.range.hull(next.range);
            }
            merges
        });
    }

    /// Finds the first page of `pages` that is not free memory.
    fn clash(&self, range: PaRange, pages: PaRange, wanted: Owner) -> Refusal {
        let mut at = pages.start();
        let held = loop {
            match self.at(at) {
                Some(region) if region.is_free_memory() => at = region.range.end(),
                held => break held,
            }
        };
        Refusal::Clash { range, wanted, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::string::ToString;

    fn range(start: u64, size: u64) -> PaRange {
        PaRange::new(Pa::new(start), size).unwrap()
    }

    /// Two banks, one of them above 4 GiB, with ends that are not whole pages.
    fn machine() -> Owners {
        let mut owners = Owners::new();
        owners.add_bank(range(0x1_0000_0000, 0x8_0800)).unwrap();
        owners.add_bank(range(0x4000_0800, 0x8_0000)).unwrap();
        owners
    }

    #[test]
    fn t24_banks_lose_the_pages_that_are_not_whole() {
        let owners = machine();
        let banks: Vec<_> = owners.memory_of(Owner::Free).collect();
        assert_eq!(banks, [range(0x4000_1000, 0x7_f000), range(0x1_0000_0000, 0x8_0000)]);
        let mut nothing = Owners::new();
        nothing.add_bank(range(0x1800, 0xfff)).unwrap();
        assert_eq!(nothing, Owners::new());
    }

    #[test]
    fn t115_nobody_is_the_default() {
        assert_eq!(Owner::default(), Owner::Free);
        assert_eq!(machine().at(Pa::new(0x4000_1000)).unwrap().owner, Owner::Free);
        assert_eq!(machine().at(Pa::new(0x4000_0fff)), None);
    }

    #[test]
    fn a_refusal_names_both_claimants() {
        let mut owners = machine();
        owners.claim(range(0x4000_2000, 0x1000), Owner::Firmware).unwrap();
        owners.claim_device(range(0x900_0000, 0x1000), Owner::Hypervisor).unwrap();
        let vm = Owner::Vm(VmId::new(1));
        let text = |refused: Result<(), Refusal>| refused.unwrap_err().to_string();
        assert_eq!(
            text(owners.claim(range(0x4000_1000, 0x2000), vm)),
            "VM 1 wants 0x40001000..0x40003000, but memory 0x40002000..0x40003000 is the firmware's"
        );
        assert_eq!(
            text(owners.claim_device(range(0x900_0040, 4), vm)),
            "VM 1 wants 0x9000000..0x9001000, but device 0x9000000..0x9001000 is the hypervisor's"
        );
        assert_eq!(
            text(owners.claim(range(0x4007_f000, 0x2001), Owner::Bundle)),
            "the bundle wants 0x4007f000..0x40081001, where there is no memory"
        );
        assert_eq!(
            text(owners.place(1 << 30, vm).map(|_| ())),
            "VM 1 wants 1048576 KiB of memory, 1016 KiB are free"
        );
    }

    #[test]
    fn a_device_in_memory_is_refused() {
        let mut owners = machine();
        let refused = owners.claim_device(range(0x4000_1ffc, 4), Owner::Hypervisor);
        assert!(
            matches!(refused, Err(Refusal::Clash { held: Some(held), .. }) if held.is_free_memory())
        );
    }

    #[test]
    fn reserved_ranges_may_overlap_anything() {
        let mut owners = machine();
        owners.claim(range(0x4001_0000, 0x1000), Owner::HostTree).unwrap();
        owners.reserve(range(0x4000_f800, 0x3000), Owner::Firmware).unwrap();
        owners.reserve(range(0x4001_1000, 0x800), Owner::Firmware).unwrap();
        owners.reserve(range(0x1000, 0x1000), Owner::Firmware).unwrap();
        owners.reserve(range(0x4008_0000, 0xd000_0000), Owner::Firmware).unwrap();
        let firmware: Vec<_> = owners.memory_of(Owner::Firmware).collect();
        assert_eq!(
            firmware,
            [
                range(0x4000_f000, 0x1000),
                range(0x4001_1000, 0x2000),
                range(0x1_0000_0000, 0x8_0000)
            ]
        );
        assert_eq!(owners.at(Pa::new(0x4001_0000)).unwrap().owner, Owner::HostTree);
    }

    /// Whoever gives all that it has needs no memory for that, and always can.
    #[test]
    fn a_whole_region_changes_hands_without_the_heap() {
        let (mut owners, whole) = (machine(), range(0x4000_2000, 0x4000));
        owners.claim(whole, Owner::Upload).unwrap();
        owners.regions.shrink_to_fit();
        let room = owners.regions.capacity();
        owners.give(whole, Owner::Upload, Owner::Images(VmId::new(1))).unwrap();
        assert_eq!(owners.regions.capacity(), room);
        assert_eq!(owners.memory_of(Owner::Images(VmId::new(1))).collect::<Vec<_>>(), [whole]);
        owners.give(range(0x4000_3000, 0x1000), Owner::Images(VmId::new(1)), Owner::Free).unwrap();
        assert!(owners.regions.capacity() > room);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim(PaRange, Owner),
        Device(PaRange, Owner),
        Reserve(PaRange),
        Allocate(u64, u64, Owner),
        Place(u64, Owner),
        Release(Owner),
    }

    fn any_owner() -> impl Strategy<Value = Owner> {
        let vm = (0..3u8).prop_map(|n| Owner::Vm(VmId::new(n)));
        prop_oneof![3 => vm, 1 => Just(Owner::Hypervisor), 1 => Just(Owner::Bundle)]
    }

    fn any_range() -> impl Strategy<Value = PaRange> {
        let base = prop_oneof![Just(0x3fff_0000u64), Just(0x4000_0000), Just(0xffff_8000)];
        (base, 0..0x10u64, 1..0x9u64)
            .prop_map(|(b, page, count)| range(b + page * 0x8000 / 2, count * 0x1000))
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any_range(), any_owner()).prop_map(|(r, o)| Step::Claim(r, o)),
            1 => (any_range(), any_owner()).prop_map(|(r, o)| Step::Device(r, o)),
            1 => any_range().prop_map(Step::Reserve),
            2 => (1..0x20u64, 12..18u32, any_owner())
                .prop_map(|(n, a, o)| Step::Allocate(n << 12, 1 << a, o)),
            2 => (1..0x60u64, any_owner()).prop_map(|(n, o)| Step::Place(n << 12, o)),
            2 => any_owner().prop_map(Step::Release),
        ]
    }

    /// The model: one entry for each page that there is.
    type Pages = BTreeMap<u64, (Kind, Owner)>;

    fn pages(range: PaRange) -> impl Iterator<Item = u64> {
        (range.start().get()..range.end().get()).step_by(0x1000)
    }

    const FREE: (Kind, Owner) = (Kind::Memory, Owner::Free);

    /// Carries a step out on both; says what the model allows.
    fn step(owners: &mut Owners, model: &mut Pages, step: Step) -> Result<(), TestCaseError> {
        let before = owners.regions().to_vec();
        let refused = match step {
            Step::Claim(range, owner) => {
                let free = pages(range).all(|page| model.get(&page) == Some(&FREE));
                prop_assert_eq!(owners.claim(range, owner).is_ok(), free);
                if free {
                    model.extend(pages(range).map(|page| (page, (Kind::Memory, owner))));
                }
                !free
            }
            Step::Device(range, owner) => {
                let free = pages(range).all(|page| !model.contains_key(&page));
                prop_assert_eq!(owners.claim_device(range, owner).is_ok(), free);
                if free {
                    model.extend(pages(range).map(|page| (page, (Kind::Device, owner))));
                }
                !free
            }
            Step::Reserve(range) => {
                owners.reserve(range, Owner::Firmware).unwrap();
                for page in pages(range) {
                    model.entry(page).and_modify(|holder| {
                        if *holder == FREE {
                            *holder = (Kind::Memory, Owner::Firmware);
                        }
                    });
                }
                false
            }
            Step::Allocate(size, align, owner) => {
                let at = |start: &u64| {
                    start.is_multiple_of(align)
                        && pages(range(*start, size)).all(|page| model.get(&page) == Some(&FREE))
                };
                let expected = model.keys().copied().find(at).map(|start| range(start, size));
                let actual = owners.allocate(size, align, owner).ok();
                prop_assert_eq!(actual, expected);
                let pages = expected.into_iter().flat_map(pages);
                model.extend(pages.map(|page| (page, (Kind::Memory, owner))));
                expected.is_none()
            }
            Step::Place(size, owner) => {
                let free = model.values().filter(|holder| **holder == FREE).count() as u64;
                let placed = owners.place(size, owner);
                prop_assert_eq!(placed.is_ok(), size <= free * 0x1000);
                let refused = placed.is_err();
                let placed: Vec<_> = placed.into_iter().flatten().flat_map(pages).collect();
                prop_assert!(refused || placed.len() as u64 * 0x1000 == size);
                for page in placed {
                    let holder = model.insert(page, (Kind::Memory, owner));
                    prop_assert_eq!(holder, Some(FREE), "page {:#x} had an owner", page);
                }
                refused
            }
            Step::Release(owner) => {
                owners.release(owner);
                model.retain(|_, holder| *holder != (Kind::Device, owner));
                for holder in model.values_mut().filter(|holder| holder.1 == owner) {
                    *holder = FREE;
                }
                false
            }
        };
        prop_assert!(!refused || owners.regions() == before, "a refusal has changed something");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn each_page_has_the_one_owner_that_was_given_it(
            steps in proptest::collection::vec(any_step(), 1..40)
        ) {
            let mut owners = machine();
            let mut model: Pages =
                owners.memory_of(Owner::Free).flat_map(pages).map(|page| (page, FREE)).collect();
            for next in steps {
                step(&mut owners, &mut model, next)?;
                let listed: Pages = owners
                    .regions()
                    .iter()
                    .flat_map(|r| pages(r.range).map(|page| (page, (r.kind, r.owner))))
                    .collect();
                prop_assert_eq!(&listed, &model);
                let sizes: u64 = owners.regions().iter().map(|r| r.range.size()).sum();
                prop_assert_eq!(sizes, model.len() as u64 * 0x1000, "regions overlap");
            }
        }
    }
}
