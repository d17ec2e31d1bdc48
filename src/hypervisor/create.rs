// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is made of a bundle that has come by a port for requests: a VM, or new images for one.
//!
//! A VM is made by a core that no VM has. The images of one are replaced by its own core of vCPU 0,
//! the only one that leads a start that somebody else has asked for.
#![forbid(unsafe_code)]

use super::Hypervisor;
use super::upload::{Checker, Progress, Refused, Staged, Task};
use crate::arch::{self, HypMemory};
use crate::heap;
use crate::id::{Mpidr, VcpuId, VmId};
use crate::memory::owners::Owner;
use crate::plan::check::{self, Report, VmRefusal};
use crate::plan::machine::Machine;
use crate::plan::{DecodeError, Name, PLAN_BYTES_MAX, Plan, VmPlan};
use crate::spec::bundle::{Bundle, HEADER_BYTES};
use crate::vm::Vm;
use crate::vm::build::{self, Source};
use crate::vm::fate::Images;
use crate::vm::lifecycle::{Request, State};
use crate::vm::payload::Payload;
use alloc::vec::Vec;
use core::fmt;

/// The most bytes in the list of a bundle's images: that of one VM needs less than 4 KiB.
const FIT_BYTES_MAX: u32 = 8 << 10;

/// Returns how many bytes the list of a bundle's images says it has (Devicetree Specification
/// v0.4, 5.2).
fn fit_bytes(bundle: &[u8]) -> u32 {
    let total = bundle.get(HEADER_BYTES + 4..).and_then(|rest| rest.first_chunk());
    total.map_or(0, |total| u32::from_be_bytes(*total))
}

/// What is in a bundle for one VM.
struct Opened {
    plan: VmPlan,
    images: Vec<(Name, Source)>,
}

fn find(images: &[(Name, Source)], name: &str) -> Option<Source> {
    images.iter().find(|(image, _)| image == name).map(|(_, source)| *source)
}

impl Hypervisor {
    /// Finds the one VM in a bundle, and checks it against the machine.
    fn open(
        &self,
        staged: Staged,
        machine: &Machine,
        pause: &mut dyn FnMut(),
    ) -> Result<Opened, Refused> {
        let (memory, board) = (staged.bundle(), &self.control.board);
        let why = |why: &dyn fmt::Display| self.refuse_upload(why);
        arch::with_bytes(memory, |bytes| {
            if fit_bytes(bytes) > FIT_BYTES_MAX {
                return Err(why(&"it has too long a list of images"));
            }
            let bundle = Bundle::parse_in_pieces(bytes, pause).map_err(|e| why(&e))?;
            let plan = bundle.plan();
            if plan.bytes.len() > PLAN_BYTES_MAX {
                return Err(why(&DecodeError::Malformed));
            }
            plan.verify(|bytes| {
                let place = memory.part(plan.offset as u64, bytes.len() as u64);
                place.map_or(0, |place| arch::crc32c(0, place))
            })
            .map_err(|e| why(&e))?;
            pause();
            let plan = Plan::decode(plan.bytes).map_err(|e| why(&e))?;
            pause();
            if plan.board != *board {
                return Err(why(&format_args!("it is for {}, and this is {board}", plan.board)));
            }
            let [vm] = &*plan.vms else {
                return Err(why(&format_args!("it has {} VMs, and not one", plan.vms.len())));
            };
            let image_bytes = |name: &str| bundle.image(name).map(|image| image.bytes.len() as u64);
            let report = check::check(&plan, machine, build::limits(), &image_bytes);
            let Report { refusals, .. } = report.map_err(|e| why(&e))?;
            pause();
            if let Some(refusal) = refusals.first() {
                return Err(why(refusal));
            }
            let mut images = heap::list(vm.images.len()).map_err(|e| why(&e))?;
            for image in &vm.images {
                let found = bundle.image(&image.name).and_then(|image| {
                    let (offset, bytes) = (image.offset as u64, image.bytes.len() as u64);
                    Some((memory.part(offset, bytes)?, image.crc32c))
                });
                let source = found.ok_or_else(|| why(&format_args!("it has no {}", image.name)))?;
                heap::push(&mut images, (image.name.clone(), source)).map_err(|e| why(&e))?;
            }
            let plan = plan.vms.into_vec().pop();
            Ok(Opened { plan: plan.ok_or_else(|| why(&"it has no VM"))?, images })
        })
    }

    /// Makes the VM that somebody has asked for, on a core that no VM has; its own post is taken.
    pub fn make_vm(&self, here: Mpidr, pause: &mut dyn FnMut()) {
        loop {
            match self.check_piece(Checker::Maker(here)) {
                Progress::More => pause(),
                Progress::Whole(staged, Task::Create { name, .. }) => {
                    // What is wrong has been said.
                    let _ = self.create(staged, &name, here, pause);
                    return;
                }
                Progress::Whole(..) | Progress::NotMine => return,
            }
        }
    }

    fn create(
        &self,
        staged: Staged,
        name: &Name,
        here: Mpidr,
        pause: &mut dyn FnMut(),
    ) -> Result<(), Refused> {
        let why = |why: &dyn fmt::Display| self.refuse_upload(why);
        let machine = self.estate.acquire().machine;
        let opened = self.open(staged, machine, pause)?;
        if opened.plan.name != *name {
            return Err(why(&format_args!("it is for {}, and not {name}", opened.plan.name)));
        }
        for slot in &self.vms {
            let check = |other: &Vm| {
                let checked = check::check_beside(&opened.plan, (other.id, &other.plan), machine);
                let refusal = |why| VmRefusal { id: other.id, name: &opened.plan.name, why };
                checked.map_err(|e| why(&refusal(e)))
            };
            slot.look(check).unwrap_or(Ok(()))?;
            pause();
        }
        // What others depend on is not this one, though it were in its place.
        let depends = |id: VmId| {
            let is_after = |vm: &Vm| vm.plan.policies.after.contains(&id);
            self.vms.iter().any(|slot| slot.look(is_after).unwrap_or(false))
        };
        let mut places = (0..).map(VmId::new).zip(&self.vms);
        let free = places.find(|(id, slot)| !depends(*id) && slot.take());
        let Some((id, slot)) = free else { return Err(why(&"there are as many VMs as can be")) };
        let made = self.create_at(id, opened, staged, here, pause);
        if made.is_err() {
            slot.free();
        }
        made
    }

    /// Makes a VM in a slot that is taken for it.
    fn create_at(
        &self,
        id: VmId,
        opened: Opened,
        staged: Staged,
        here: Mpidr,
        pause: &mut dyn FnMut(),
    ) -> Result<(), Refused> {
        let why = |why: &dyn fmt::Display| self.refuse_upload(why);
        let Opened { plan, images } = opened;
        let pcpus = heap::collect(plan.vcpus.iter().copied()).map_err(|e| why(&e))?;
        self.take_posts(&pcpus, here)
            .map_err(|mpidr| why(&format_args!("cpu {mpidr} is another VM's, or is not there")))?;
        let made = self.console.mux.attach(id, &plan.name).map_err(|e| why(&e)).and_then(|()| {
            pause();
            let find = |name: &str| find(&images, name);
            let vm = build::build(id, plan, &find, &self.estate, pause).map_err(|e| why(&e));
            if vm.is_err() {
                self.console.mux.detach(id);
            }
            vm
        });
        match made {
            Ok(vm) => {
                vm.payloads.acquire().now.bundle = Some(staged.memory);
                self.keep_images(id, staged.memory);
                self.admit(vm);
                self.with_vm(id, |vm| {
                    self.post(vm);
                    let _ = vm.request(Request::Start);
                });
                self.end_upload();
                Ok(())
            }
            Err(refused) => {
                self.free_posts(&pcpus, here);
                Err(refused)
            }
        }
    }

    /// Takes the posts of the pCPUs of a VM, all or none; that of `here` is taken.
    fn take_posts(&self, pcpus: &[Mpidr], here: Mpidr) -> Result<(), Mpidr> {
        for (n, mpidr) in pcpus.iter().enumerate() {
            let mut posts = self.posts.iter();
            let is_taken = *mpidr == here || posts.any(|post| post.mpidr == *mpidr && post.take());
            if !is_taken {
                self.free_posts(pcpus.get(..n).unwrap_or_default(), here);
                return Err(*mpidr);
            }
        }
        Ok(())
    }

    fn free_posts(&self, pcpus: &[Mpidr], here: Mpidr) {
        let is_own = |mpidr: &Mpidr| *mpidr != here && pcpus.contains(mpidr);
        self.posts.iter().filter(|post| is_own(&post.mpidr)).for_each(|post| post.free());
    }

    /// Notes that a bundle is what a VM is started from.
    fn keep_images(&self, id: VmId, memory: HypMemory) {
        let owners = &mut self.estate.acquire().owners;
        let given = owners.give(memory.range(), Owner::Upload, Owner::Images(id));
        debug_assert!(given.is_ok(), "all that the upload has needs no memory for the list");
    }

    /// Puts a VM in its place, which is taken: the physical interrupts of its devices go to it.
    pub fn admit(&self, vm: Vm) {
        let (id, target) = (vm.id, vm.pcpus.first().copied());
        if let Some(slot) = self.vms.get(id.index()) {
            slot.fill(vm);
        }
        self.with_vm(id, |vm| {
            for spi in vm.plan.devices.iter().flat_map(|device| device.interrupts.iter()) {
                if let Some(target) = target {
                    self.distributor.lock().enable(spi.pintid, target, spi.trigger);
                }
            }
        });
    }

    /// Does what is to be done about the images of a VM; its core of vCPU 0 does that.
    pub fn look_after_images(&self, vm: &Vm, pause: &mut dyn FnMut()) {
        let now = arch::counter();
        if vm.fate.checks_upload() {
            match self.check_piece(Checker::Vm(vm.id)) {
                Progress::NotMine => vm.fate.end_check(),
                Progress::More => arch::arm_hyp_timer(now.saturating_add(between_pieces())),
                Progress::Whole(staged, task) => self.update(vm, staged, task, pause),
            }
        }
        if vm.fate.trial_has_failed(now) && !vm.lifecycle.is_lost() {
            self.take_update_back(vm);
        }
        if vm.fate.images() != Images::OnTrial && vm.lifecycle.state() == State::Running {
            // It has started with what it has.
            let before = vm.payloads.try_lock().and_then(|mut payloads| payloads.before.take());
            self.discard(vm.id, before);
        }
    }

    /// Replaces the images of a VM, unless it is just being started or stopped: then later.
    fn update(&self, vm: &Vm, staged: Staged, task: Task, pause: &mut dyn FnMut()) {
        let Task::Update { confirm_ms, .. } = task else { return };
        let why = |why: &dyn fmt::Display| self.refuse_upload(why);
        let later = |task| {
            self.put_off(task);
            arch::arm_hyp_timer(arch::counter().saturating_add(between_pieces()));
        };
        match vm.lifecycle.state() {
            State::Starting | State::Stopping => return later(task),
            State::Lost | State::Gone => {
                let _ = why(&format_args!("{} is {}", vm.plan.name, vm.lifecycle.state()));
                return vm.fate.end_check();
            }
            _ => {}
        }
        let machine = self.estate.acquire().machine;
        let payload = self.open(staged, machine, pause).and_then(|opened| {
            if !is_alike(&opened.plan, &vm.plan) {
                return Err(why(&"its name, cores, memory or devices are not those of the VM"));
            }
            Payload::find(&opened.plan, &|name| find(&opened.images, name)).map_err(|e| why(&e))
        });
        // What the pauses have taken in is looked at once more.
        vm.kick(VcpuId::new(0));
        vm.ask_to_serve_platform();
        let Ok(mut payload) = payload else { return vm.fate.end_check() };
        // From here on no other core starts the VM.
        match vm.request(Request::Reset) {
            Ok(()) | Err(State::Off) => {}
            Err(_) => return later(task),
        }
        payload.bundle = Some(staged.memory);
        self.keep_images(vm.id, staged.memory);
        let older = vm.payloads.acquire().replace(payload);
        self.discard(vm.id, older);
        let trial_ticks =
            |ms: u32| u64::from(ms).saturating_mul(arch::counter_frequency_hz()) / 1000;
        let ends_at = |ms| arch::counter().saturating_add(trial_ticks(ms));
        vm.fate.note_update(confirm_ms.map(ends_at));
        vm.fate.end_check();
        log::info!(target: "vm", "{} updated", vm.plan.name);
        self.end_upload();
    }

    /// Gives a VM the images back that it had before an update that nobody has confirmed, unless it
    /// is just being started or stopped: then later.
    fn take_update_back(&self, vm: &Vm) {
        // Of this and a confirmation one wins.
        let Some(ends_at) = vm.fate.end_trial() else { return };
        match vm.request(Request::Reset) {
            Ok(()) | Err(State::Off) => {}
            Err(_) => return vm.fate.resume_trial(ends_at),
        }
        if self.go_back(vm) {
            log::info!(target: "vm", "{}: nobody has confirmed the update", vm.plan.name);
        }
    }

    /// Gives a VM the images back that it had before, where it has not yet started with new ones or
    /// has them on trial, and returns whether there were any. Whoever leads its start does that.
    pub fn go_back(&self, vm: &Vm) -> bool {
        let failed = vm.payloads.acquire().go_back();
        let is_back = failed.is_some();
        if is_back {
            vm.fate.note_return();
        }
        self.discard(vm.id, failed);
        is_back
    }

    /// Gives the memory back in which images have come that nobody needs any more.
    fn discard(&self, id: VmId, payload: Option<Payload>) {
        if let Some(memory) = payload.and_then(|payload| payload.bundle) {
            self.give_back(memory, Owner::Images(id));
        }
    }
}

/// How long a guest comes in between the pieces of an upload that its core checks, in ticks.
fn between_pieces() -> u64 {
    arch::counter_frequency_hz() / 10_000
}

/// Returns whether a plan differs from that of a VM in nothing but its images, what is started of
/// them, and the policies, which stay as they are.
fn is_alike(new: &VmPlan, old: &VmPlan) -> bool {
    let VmPlan { name, vcpus, memory, placement, layout, devices, .. } = new;
    *name == old.name
        && *vcpus == old.vcpus
        && *memory == old.memory
        && *placement == old.placement
        && *layout == old.layout
        && *devices == old.devices
}
