// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs come and go: what is left is what was there before, and nobody reaches what is not his.
#![forbid(unsafe_code)]

use super::bed::*;
use crate::addr::{Address, Ipa, IpaRange, Pa};
use crate::arch::{HeapTables, Tlb, forget_tables, with};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::audit::{AuditRow, Breach};
use crate::id::VmId;
use crate::memory::owners::Owner;
use crate::plan::Placement;
use crate::spec::vmsa::Stage2Attributes::{self, Device, Ram};
use crate::sync::Lock;
use crate::vm::Vm;
use crate::vm::build::destroy;
use std::string::ToString;
use std::vec::Vec;

const PAGE: u64 = 0x1000;

fn rows(hypervisor: &Hypervisor) -> Vec<AuditRow> {
    (0..).map_while(|n| hypervisor.audit_row(n)).collect()
}

fn row(rows: &[AuditRow], name: &str) -> u64 {
    rows.iter().find(|row| row.name == name).unwrap().value
}

#[test]
fn each_cycle_of_a_vm_leaves_what_the_one_before_left() {
    let hypervisor = hypervisor(&plan());
    let before = rows(hypervisor);
    let mut gone = None;
    for _ in 0..3 {
        hypervisor.destroy(VmId::new(1), &mut || ());
        let now = rows(hypervisor);
        assert_eq!((row(&now, "vms"), row(&now, "vmids")), (0b01, 1));
        assert_eq!(row(&now, "free_bytes"), row(&before, "free_bytes") + RAM_BYTES);
        assert_ne!(row(&now, "owners"), row(&before, "owners"));
        assert_eq!(gone.get_or_insert_with(|| now.clone()), &now);
        let slot = &hypervisor.vms[1];
        assert!(slot.take());
        slot.fill(make_vm(1, &plan().vms[1], &hypervisor.estate));
        assert_eq!(rows(hypervisor), before);
    }
}

/// Memory that has to be where the guest sees it is set apart before others are placed. Without
/// that the first VM, which may be anywhere, has it, and the other one is refused by name.
#[test]
fn identity_memory_is_where_the_guest_sees_it() {
    let [anywhere, mut identity] = [0, 1].map(|n| plan().vms[n].clone());
    let whole = pa_range(RAM_PA, RAM_BYTES);
    identity.memory = IpaRange::new(Ipa::new(RAM_PA), RAM_BYTES).unwrap();
    identity.placement = Placement::Identity;
    assert_eq!(identity.identity(), Some(whole));
    let place = |vm: &Vm| vm.memory.chunks().iter().map(|c| (c.ipa, c.pa)).collect::<Vec<_>>();
    for is_set_apart in [true, false] {
        forget_tables();
        let estate = Lock::new(estate());
        let owner = Owner::Vm(VmId::new(1));
        if is_set_apart {
            estate.acquire().owners.reserve(whole, owner).unwrap();
        }
        let other = make_vm(0, &anywhere, &estate);
        let made = try_make_vm(1, &identity, &estate);
        if !is_set_apart {
            let refused = made.err().unwrap().to_string();
            assert_eq!(
                refused,
                "VM 1 wants 0x80000000..0x80004000, but memory 0x80000000..0x80004000 is VM 0's"
            );
            assert_eq!(estate.acquire().owners.memory_of(owner).count(), 0);
            continue;
        }
        assert_eq!(place(&made.unwrap()), [(identity.memory, whole.start())]);
        assert_eq!(place(&other)[0].1, whole.end());
    }
}

/// SPIs up to 95 in words of 32, and each core; what is wrong is seen in one row.
#[test]
fn every_row_tells_of_its_own() {
    let hypervisor = hypervisor(&plan());
    let before = rows(hypervisor);
    let texts: Vec<_> = before.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&"vms=0x3".into()), "{texts:?}");
    assert!(texts.contains(&"cpu0=0x0".into()), "{texts:?}");
    let words: Vec<_> =
        before.iter().filter(|row| row.name == "spi").map(|row| row.index).collect();
    assert_eq!(words, [Some(32), Some(64)]);
    let changed = || {
        let now = rows(hypervisor);
        let differ = before.iter().zip(&now).filter(|(a, b)| a != b);
        differ.map(|(row, _)| (row.name, row.index)).collect::<Vec<_>>()
    };
    assert_eq!(changed(), []);
    // An SPI that nobody has is pending.
    with(|core| core.devices.insert(GICD + 0x208, 1 << 5));
    assert_eq!(changed(), [("spi", Some(64))]);
    with(|core| core.devices.insert(GICD + 0x208, 0));
    let mut owners = std::mem::take(&mut hypervisor.estate.acquire().owners);
    owners.claim_device(pa_range(0x1000, PAGE), Owner::Firmware).unwrap();
    hypervisor.estate.acquire().owners = owners;
    assert_eq!(changed(), [("owners", None)]);
}

/// What is done to a VM's stage 2 behind everybody's back, and what is found.
fn found(tamper: impl FnOnce(&mut Vm, &Vm)) -> Result<(), Breach> {
    forget_tables();
    let estate = Lock::new(estate());
    let mut vm = make_vm(0, &plan().vms[0], &estate);
    let other = make_vm(1, &plan().vms[1], &estate);
    tamper(&mut vm, &other);
    let mut pauses = 0;
    let outcome = estate.acquire().check_partition(&vm, &mut || pauses += 1);
    assert_eq!(estate.acquire().check_partition(&other, &mut || ()), Ok(()), "the other");
    assert!(pauses > 0);
    for vm in [vm, other] {
        destroy(vm, &estate, &mut || ());
    }
    assert_eq!(estate.acquire().vmids.live(), 0);
    outcome
}

fn map(vm: &mut Vm, ipa: u64, pa: Pa, attributes: Stage2Attributes) {
    let range = IpaRange::new(Ipa::new(ipa), PAGE).unwrap();
    vm.translation.map(&mut HeapTables, &mut Tlb::default(), range, pa, attributes).unwrap();
}

#[test]
fn t39_a_vm_reaches_its_own_and_nothing_else() {
    const ELSEWHERE: u64 = 1 << 36;
    let id = VmId::new(0);
    assert_eq!(found(|_, _| ()), Ok(()));
    let neighbours = found(|vm, other| map(vm, ELSEWHERE, other.memory.chunks()[0].pa, Ram));
    assert!(matches!(neighbours, Err(Breach::Foreign { vm, held: Some(_), .. }) if vm == id));
    // Where EL2 is there is no memory that can be given away.
    let el2s = Pa::new(0x4020_0000);
    assert_eq!(
        found(|vm, _| map(vm, ELSEWHERE, el2s, Ram)),
        Err(Breach::Foreign { vm: id, pa: el2s, held: None })
    );
    let own = found(|vm, _| {
        let pa = vm.memory.chunks()[0].pa;
        map(vm, ELSEWHERE, pa, Device);
    });
    assert!(matches!(own, Err(Breach::Foreign { .. })), "memory is no device: {own:?}");
    let twice = found(|vm, _| {
        let pa = vm.memory.chunks()[0].pa;
        map(vm, ELSEWHERE, pa, Ram);
    });
    assert!(matches!(twice, Err(Breach::Astray { .. })), "{twice:?}");
    let lacking = found(|vm, _| {
        let range = IpaRange::new(Ipa::new(RAM), PAGE).unwrap();
        vm.translation.unmap(&mut HeapTables, &mut Tlb::default(), range).unwrap();
    });
    assert!(matches!(lacking, Err(Breach::Astray { .. })), "{lacking:?}");
}
