// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bundles that come by a port for requests: a VM is made of one, or updated by one, or nothing has
//! changed.
#![forbid(unsafe_code)]

use super::bed::*;
use crate::addr::{Address, Ipa, IpaRange, Pa};
use crate::arch::fake::machine::{Event, with};
use crate::arch::read_uncached;
use crate::control::{
    Action, Executor, Line, PUT_BYTES_MAX, PUT_USAGE, Refusal, Request, Row, Rows,
};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::audit::AuditRow;
use crate::id::VmId;
use crate::plan::samples::{list, name, two_vms};
use crate::plan::{PLAN_BYTES_MAX, Plan, VmPlan};
use crate::spec::bundle::{HEADER_BYTES, MAGIC, crc32c};
use crate::spec::dtb::builder::Builder;
use crate::vm::Vm;
use crate::vm::lifecycle::{Change, State};
use std::cell::Cell;
use std::string::String;
use std::vec;
use std::vec::Vec;

const MS: u64 = 1_000_000;
/// Where bundles and VMs that are made find memory.
const BANK: (u64, u64) = (0x9000_0000, 16 << 20);
const IMAGE_BYTES: usize = 8192;
/// The place of the VM that is made.
const MADE: usize = 2;

/// The plan of one VM that is not there yet.
fn plan_of_one() -> Plan {
    let mut plan = two_vms();
    let vm = plan.vms[0].clone();
    let mut vm = VmPlan {
        name: name("c"),
        memory: IpaRange::new(Ipa::new(RAM), 0x8000).unwrap(),
        tree: Ipa::new(RAM + 0x4000),
        devices: list(vec![]),
        ..vm
    };
    vm.images[1].ipa = Ipa::new(RAM + 0x4000);
    plan.vms = list(vec![vm]);
    plan
}

/// Makes a bundle of a plan whose images are filled with a byte.
fn bundle(plan: &Plan, fill: u8) -> Vec<u8> {
    let mut buffer = vec![0; PLAN_BYTES_MAX];
    let plan = plan.encode(&mut buffer).unwrap();
    let images: [(&str, &[u8]); 3] =
        [("plan", plan), ("kernel", &[fill; IMAGE_BYTES]), ("tree", &[fill; IMAGE_BYTES])];
    let position = |n: usize| 4096 + 8192 * n;
    let fit = Builder::tree(|b| {
        b.node("images", |b| {
            for (n, (image, bytes)) in images.iter().enumerate() {
                b.node(image, |b| {
                    b.cells("data-position", &[u32::try_from(position(n)).unwrap()]);
                    b.cells("data-size", &[u32::try_from(bytes.len()).unwrap()]);
                    b.node("hash-1", |b| {
                        b.text("algo", "crc32c");
                        b.cells("value", &[crc32c(bytes)]);
                    });
                });
            }
        });
        b.node("configurations", |b| {
            b.text("default", "conf-1");
            b.node("conf-1", |b| b.text("plan", "plan"));
        });
    });
    let mut bundle = vec![0; HEADER_BYTES + position(3)];
    bundle[..8].copy_from_slice(&MAGIC);
    bundle[8] = 1;
    let total = bundle.len() as u64;
    bundle[16..24].copy_from_slice(&total.to_le_bytes());
    bundle[HEADER_BYTES..][..fit.len()].copy_from_slice(&fit);
    for (n, (_, bytes)) in images.iter().enumerate() {
        bundle[HEADER_BYTES + position(n)..][..bytes.len()].copy_from_slice(bytes);
    }
    bundle
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().enumerate().fold(0, |w, (n, b)| w | u32::from(*b) << (16 - 8 * n));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn machine() -> &'static Hypervisor {
    let hypervisor = hypervisor(&plan());

    hypervisor.estate.acquire().owners.add_bank(pa_range(BANK.0, BANK.1)).unwrap();
    // The first two places are the bed's.
    hypervisor.vms[..2].iter().for_each(|slot| assert!(slot.take()));
    hypervisor
}

fn upload(hypervisor: &Hypervisor, bytes: &[u8]) {
    let size = u32::try_from(bytes.len()).unwrap();
    ask(hypervisor, Request::Upload { bytes: size, crc32c: crc32c(bytes) }).unwrap();
    for (n, piece) in bytes.chunks(PUT_BYTES_MAX).enumerate() {
        let offset = u32::try_from(n * PUT_BYTES_MAX).unwrap();
        ask(hypervisor, Request::Put { offset, data: &base64(piece) }).unwrap();
    }
}

fn ask(hypervisor: &Hypervisor, request: Request<'_>) -> Result<Rows, Refusal> {
    hypervisor.carry_out(request)
}

fn change(hypervisor: &Hypervisor, vm: &str, action: Action) -> Result<(), Refusal> {
    ask(hypervisor, Request::Change { vm, action }).map(drop)
}

/// Returns what `uploaded` says.
fn uploaded(hypervisor: &Hypervisor) -> String {
    let (mut rows, mut line) = (Rows::Uploaded, Line::default());
    assert_eq!(hypervisor.next_row(&mut rows, &mut line), Row::Written);
    line.as_str().trim().into()
}

fn audit(hypervisor: &Hypervisor) -> Vec<AuditRow> {
    (0..).map_while(|n| hypervisor.audit_row(n)).collect()
}

fn free_posts(hypervisor: &Hypervisor) -> usize {
    hypervisor.posts.iter().filter(|post| post.is_free()).count()
}

/// Asks for a VM and does what the core does that makes it.
fn create(hypervisor: &Hypervisor, vm: &str) -> String {
    change(hypervisor, vm, Action::Create).unwrap();
    let maker = hypervisor.posts.iter().position(|post| !post.is_free()).unwrap();
    hypervisor.make_vm(hypervisor.posts[maker].mpidr, &mut || ());
    hypervisor.posts[maker].has_made();
    uploaded(hypervisor)
}

fn made(hypervisor: &'static Hypervisor) -> &'static Vm {
    vm(hypervisor, MADE)
}

/// Starts a VM as its core does, and returns what its guest finds at the start of its memory.
fn started(hypervisor: &Hypervisor, vm: &Vm) -> u8 {
    assert_eq!(vm.lifecycle.take_asked(), Some(Change::Start));
    while vm.load(&mut || ()).is_err() {
        assert!(hypervisor.go_back(vm), "damaged");
    }
    vm.begin();
    read_uncached(pa_range(vm.memory.chunks()[0].pa.get(), 1))[0]
}

#[test]
fn a_vm_is_made_of_a_bundle_and_leaves_nothing_when_it_is_gone() {
    let hypervisor = machine();
    let before = audit(hypervisor);
    for fill in 1..4 {
        upload(hypervisor, &bundle(&plan_of_one(), fill));
        assert_eq!(uploaded(hypervisor), "state=filling bytes=32768");
        assert_eq!(create(hypervisor, "c"), "state=none bytes=0");
        assert_eq!(free_posts(hypervisor), hypervisor.posts.len() - 2);
        let posts = |cpu: u64| hypervisor.posts.iter().find(|p| p.mpidr == affinity(cpu)).unwrap();
        assert!(!posts(0).is_free() && !posts(1).is_free());
        let state = hypervisor.vms[MADE].look(|vm| {
            assert_eq!(started(hypervisor, vm), fill);
            assert_eq!(hypervisor.estate.acquire().check_partition(vm, &mut || ()), Ok(()));
            // As its core turns it off.
            vm.lifecycle.request(crate::vm::lifecycle::Request::Kill).unwrap();
            hypervisor.vm_is_off(vm);
            vm.lifecycle.state()
        });
        assert_eq!(state, Some(State::Off));
        hypervisor.destroy(VmId::new(2), &mut || ());
        [0, 1].into_iter().for_each(|cpu| posts(cpu).free());
        assert_eq!(audit(hypervisor), before);
    }
}

/// Whatever is wrong, it is said, nothing is made, and nothing is kept but the upload.
#[test]
fn a_bundle_that_cannot_be_used_is_refused_in_words() {
    let hypervisor = machine();
    let before = audit(hypervisor);
    let altered = |alter: &dyn Fn(&mut Plan)| {
        let mut plan = plan_of_one();
        alter(&mut plan);
        bundle(&plan, 7)
    };
    let mut unlike_its_crc = bundle(&plan_of_one(), 7);
    unlike_its_crc[HEADER_BYTES + 4096] ^= 1;
    let cases: [(Vec<u8>, &str); 8] = [
        (vec![0; 5000], "the magic is missing"),
        (unlike_its_crc, "image plan is damaged"),
        (altered(&|plan| plan.board = name("other")), "it is for other, and this is qemu-virt"),
        (altered(&|plan| plan.vms = two_vms().vms), "it has 2 VMs, and not one"),
        (altered(&|plan| plan.vms[0].name = name("d")), "it is for d, and not c"),
        (altered(&|plan| plan.vms[0].vcpus = list(vec![affinity(9)])), "9"),
        (
            altered(&|plan| plan.vms[0].memory = IpaRange::new(Ipa::new(RAM), 1 << 30).unwrap()),
            "memory",
        ),
        (altered(&|plan| plan.vms[0].policies.after = list(vec![VmId::new(0)])), "0"),
    ];
    for (bytes, why) in cases {
        upload(hypervisor, &bytes);
        let said = create(hypervisor, "c");
        assert!(said.starts_with("state=refused ") && said.contains(why), "{why}: {said}");
        assert_eq!(free_posts(hypervisor), hypervisor.posts.len(), "{why}");
        assert!(hypervisor.vms[MADE].look(|_| ()).is_none());
        assert!(hypervisor.vms[MADE].take(), "{why}: its place is kept");
        hypervisor.vms[MADE].free();
    }
    ask(hypervisor, Request::Upload { bytes: 0, crc32c: 0 }).unwrap();
    assert_eq!(audit(hypervisor), before);
}

#[test]
fn what_is_put_is_what_was_sent() {
    let hypervisor = machine();
    let put = |offset, data| ask(hypervisor, Request::Put { offset, data }).map(drop);
    assert_eq!(put(0, "Zm9v"), Err(Refusal::NoUpload));
    assert_eq!(change(hypervisor, "c", Action::Create), Err(Refusal::NoUpload));
    assert_eq!(free_posts(hypervisor), hypervisor.posts.len());
    let begin = |bytes| ask(hypervisor, Request::Upload { bytes, crc32c: 0 }).map(drop);
    assert_eq!(begin(300 << 20), Err(Refusal::TooLarge));
    assert_eq!(begin(17 << 20), Err(Refusal::TooLarge));
    assert_eq!(begin(10), Ok(()));
    for what in ["", "Zm9", "Zm 9", "Zm9=", "????"] {
        assert_eq!(put(0, what), Err(Refusal::Arguments(PUT_USAGE)), "{what:?}");
    }
    assert_eq!(put(7, "Zm9v"), Ok(()));
    assert_eq!(put(8, "Zm9v"), Err(Refusal::NoUpload), "past the end");
    assert_eq!(put(u32::MAX, "Zm9v"), Err(Refusal::NoUpload));
    // What has not come whole is not used.
    let mut bytes = bundle(&plan_of_one(), 1);
    upload(hypervisor, &bytes);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let offset = u32::try_from(last).unwrap();
    let piece = base64(&bytes[last..]);
    assert_eq!(put(offset, &piece), Ok(()));
    assert!(create(hypervisor, "c").contains("not all of it has come"));
    assert_eq!(put(0, "Zm9v"), Err(Refusal::NoUpload));
}

/// Lets the core of the VM look after its images as often as it asks for that.
fn look(hypervisor: &Hypervisor, vm: &Vm) {
    for _ in 0..4 {
        hypervisor.look_after_images(vm, &mut || {});
    }
}

fn with_one_made(test: impl FnOnce(&'static Hypervisor, &'static Vm)) {
    let hypervisor = machine();
    upload(hypervisor, &bundle(&plan_of_one(), 1));
    assert_eq!(create(hypervisor, "c"), "state=none bytes=0");
    let vm = made(hypervisor);
    assert_eq!(started(hypervisor, vm), 1);
    test(hypervisor, vm);
}

#[test]
fn an_update_replaces_the_images_for_good() {
    with_one_made(|hypervisor, vm| {
        let update = || change(hypervisor, "c", Action::Update { confirm_ms: None });
        let free = hypervisor.estate.acquire().owners.free_bytes();
        for fill in 2..5 {
            upload(hypervisor, &bundle(&plan_of_one(), fill));
            assert_eq!(update(), Ok(()));
            assert_eq!(update(), Err(Refusal::Busy));
            assert_eq!(vm.lifecycle.state(), State::Running, "before it is checked");
            look(hypervisor, vm);
            assert_eq!(vm.lifecycle.state(), State::Starting);
            assert_eq!(started(hypervisor, vm), fill);
            assert_eq!(vm.fate.images().name(), "updated");
            assert_eq!(uploaded(hypervisor), "state=none bytes=0");
            look(hypervisor, vm);
            assert_eq!(hypervisor.estate.acquire().owners.free_bytes(), free, "old images kept");
        }
        assert_eq!(
            change(hypervisor, "c", Action::Confirm),
            Err(Refusal::State(Action::Confirm, "running"))
        );
    });
}

#[test]
fn without_confirmation_the_old_images_return_in_time() {
    with_one_made(|hypervisor, vm| {
        let free = hypervisor.estate.acquire().owners.free_bytes();
        let update = Action::Update { confirm_ms: Some(100) };
        for is_off in [false, true] {
            upload(hypervisor, &bundle(&plan_of_one(), 2));
            assert_eq!(change(hypervisor, "c", update), Ok(()));
            look(hypervisor, vm);
            assert_eq!(started(hypervisor, vm), 2);
            assert_eq!(vm.fate.images().name(), "trial");
            assert_eq!(change(hypervisor, "c", update), Err(Refusal::State(update, "trial")));
            let ends_at = vm.fate.deadline_ticks().unwrap();
            if is_off {
                vm.lifecycle.request(crate::vm::lifecycle::Request::Kill).unwrap();
                assert_eq!(vm.lifecycle.take_asked(), Some(Change::Stop));
                hypervisor.vm_is_off(vm);
            }
            with(|core| core.counter = ends_at - MS);
            look(hypervisor, vm);
            assert_eq!(vm.fate.images().name(), "trial");
            assert!(ends_at > 99 * MS);
            with(|core| core.counter = ends_at);
            look(hypervisor, vm);
            assert_eq!(vm.fate.images().name(), "first");
            if is_off {
                vm.request(crate::vm::lifecycle::Request::Start).unwrap();
            }
            assert_eq!(started(hypervisor, vm), 1);
            assert_eq!(hypervisor.estate.acquire().owners.free_bytes(), free);
        }
    });
}

#[test]
fn a_confirmed_update_stays() {
    with_one_made(|hypervisor, vm| {
        upload(hypervisor, &bundle(&plan_of_one(), 2));
        assert_eq!(change(hypervisor, "c", Action::Update { confirm_ms: Some(100) }), Ok(()));
        look(hypervisor, vm);
        assert_eq!(started(hypervisor, vm), 2);
        assert_eq!(change(hypervisor, "c", Action::Confirm), Ok(()));
        with(|core| core.counter = u64::MAX / 2);
        look(hypervisor, vm);
        assert_eq!(vm.lifecycle.state(), State::Running);
        vm.request(crate::vm::lifecycle::Request::Reset).unwrap();
        assert_eq!(started(hypervisor, vm), 2);
    });
}

/// An image that is not what its checksum says is found when the VM starts: no loss.
#[test]
fn a_damaged_image_gives_way_to_the_old_one() {
    with_one_made(|hypervisor, vm| {
        let free = hypervisor.estate.acquire().owners.free_bytes();
        let mut bytes = bundle(&plan_of_one(), 2);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        for confirm_ms in [None, Some(100)] {
            upload(hypervisor, &bytes);
            assert_eq!(change(hypervisor, "c", Action::Update { confirm_ms }), Ok(()));
            look(hypervisor, vm);
            assert_eq!(vm.lifecycle.state(), State::Starting);
            assert_eq!(started(hypervisor, vm), 1);
            assert_eq!(vm.fate.images().name(), "first");
            assert_eq!(hypervisor.estate.acquire().owners.free_bytes(), free);
        }
    });
}

/// Whoever comes while a bundle is in use gets none of it.
#[test]
fn a_bundle_is_used_once() {
    let hypervisor = machine();
    upload(hypervisor, &bundle(&plan_of_one(), 1));
    assert_eq!(change(hypervisor, "c", Action::Create), Ok(()));
    assert_eq!(change(hypervisor, "c", Action::Create), Err(Refusal::Busy));
    let begin = Request::Upload { bytes: 10, crc32c: 0 };
    assert_eq!(ask(hypervisor, begin), Err(Refusal::Busy));
    let (maker, other) = (hypervisor.posts[0].mpidr, hypervisor.posts[1].mpidr);
    hypervisor.make_vm(other, &mut || ());
    assert_eq!(uploaded(hypervisor), "state=checking bytes=32768");
    let asked_again = &Cell::new(0);
    hypervisor.make_vm(maker, &mut || {
        assert_eq!(ask(hypervisor, begin), Err(Refusal::Busy));
        assert_eq!(change(hypervisor, "c", Action::Create), Err(Refusal::Busy));
        asked_again.set(asked_again.get() + 1);
    });
    assert!(asked_again.get() > 0);
    assert_eq!(made(hypervisor).plan.name, "c");
    hypervisor.make_vm(maker, &mut || ());
}

#[test]
fn an_update_comes_through_where_the_vm_is_off() {
    with_one_made(|hypervisor, vm| {
        vm.lifecycle.request(crate::vm::lifecycle::Request::Kill).unwrap();
        assert_eq!(vm.lifecycle.take_asked(), Some(Change::Stop));
        hypervisor.vm_is_off(vm);
        upload(hypervisor, &bundle(&plan_of_one(), 2));
        assert_eq!(change(hypervisor, "c", Action::Update { confirm_ms: None }), Ok(()));
        look(hypervisor, vm);
        assert_eq!((vm.lifecycle.state(), vm.fate.images().name()), (State::Off, "updated"));
        vm.request(crate::vm::lifecycle::Request::Start).unwrap();
        assert_eq!(started(hypervisor, vm), 2);
    });
}

#[test]
fn an_update_that_is_for_another_vm_changes_nothing() {
    with_one_made(|hypervisor, vm| {
        let alterations: [&dyn Fn(&mut VmPlan); 3] =
            [&|vm| vm.name = name("d"), &|vm| vm.vcpus = list(vec![affinity(0)]), &|vm| {
                vm.memory = IpaRange::new(Ipa::new(RAM), 0x9000).unwrap()
            }];
        for alter in alterations {
            let mut plan = plan_of_one();
            alter(&mut plan.vms[0]);
            upload(hypervisor, &bundle(&plan, 2));
            assert_eq!(change(hypervisor, "c", Action::Update { confirm_ms: None }), Ok(()));
            look(hypervisor, vm);
            assert!(uploaded(hypervisor).contains("are not those of the VM"));
            assert_eq!(vm.lifecycle.state(), State::Running);
            assert_eq!(vm.fate.images().name(), "first");
        }
    });
}

/// The first free core takes the UART's interrupt (GICD_IROUTER, IHI 0069 H 12.9.22), the boot core
/// where none is free.
#[test]
fn uarts_go_to_a_core_that_no_vm_has() {
    let hypervisor = hypervisor_with_port(&plan());
    let place = || {
        hypervisor.place_uarts();
        with(|core| core.devices.get(&(GICD + 0x6000 + 8 * 33)).copied())
    };
    for post in &hypervisor.posts {
        assert_eq!(place(), Some(post.mpidr.get()));
        assert!(post.take());
    }
    assert_eq!(place(), Some(hypervisor.boot_core.get()));
    hypervisor.posts[2].free();
    assert_eq!(place(), Some(hypervisor.posts[2].mpidr.get()));
    // Once it is routed the other one is made pending (GICD_ISPENDR1, 12.9.24): a reply that is
    // under way goes on there.
    let other = u64::from(CONTROL_INTERRUPT.get());
    let (router, pending) =
        (GICD + 0x6000 + 8 * other, Event::DeviceWrite(Pa::new(GICD_ISPENDR1), 1 << (other - 32)));
    let events = with(|core| core.events.clone());
    let at = |is_it: &dyn Fn(&Event) -> bool| events.iter().rposition(is_it);
    let routed = at(&|event| matches!(event, Event::DeviceWrite(at, _) if at.get() == router));
    assert!(routed.is_some() && routed < at(&|event| *event == pending));
}
