// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The other cores: started before any memory is given away, so that what they can do is known.
#![forbid(unsafe_code)]

use super::{Stage, Stop, stop};
use crate::addr::{Address, PAGE_SIZE, PaRange};
use crate::arch::{self, Mitigations, SecondaryBoot};
use crate::drivers::gic::{Distributor, PrivateInterrupts};
use crate::drivers::gicv2::{BankedInterrupts, CpuInterfaces};
use crate::drivers::gicv3::Redistributor;
use crate::hypervisor::Hypervisor;
use crate::id::{Mpidr, PcpuId};
use crate::memory::owners::{Owner, Owners};
use crate::mmio::Registers;
use crate::plan::Plan;
use crate::plan::machine::{Conduit, Cpu, EnableMethod, Gic, Machine, Psci, PsciVersion};
use crate::spec::vmsa::{Features, HypAttributes};
use crate::sync::{Lock, Once};
use crate::vcpu::{self, Post};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes of a secondary core's stack, and of the hole below it.
const STACK_BYTES: u64 = 16 << 10;
const GUARD_BYTES: u64 = PAGE_SIZE;
/// How long a core may take to come, in seconds.
const START_SECONDS: u64 = 2;

/// Where every core finds its SGIs and PPIs.
enum Private {
    /// GICv2: in the distributor.
    Banked(PaRange),
    /// GICv3: in one of these regions of redistributors, so far apart; 0 where nobody says.
    Redistributors(Vec<Registers>, u64),
}

/// What every core reads once it comes.
struct Meeting {
    private: Private,
    mitigations: Mitigations,
    /// By the order of /cpus: what the core brings along, and what it is given to do.
    seats: Vec<Lock<Seat>>,
    arrived: AtomicUsize,
    go: AtomicBool,
}

#[derive(Default)]
struct Seat {
    features: Option<Features>,
    private: Option<PrivateInterrupts>,
    hypervisor: Option<&'static Hypervisor>,
}

static MEETING: Once<Meeting> = Once::new();

/// The cores that are up.
pub struct Cores {
    meeting: &'static Meeting,
    here: usize,
    /// By the order of /cpus: whether the core came in time.
    is_up: Vec<bool>,
    /// What all cores can do.
    pub features: Features,
    /// The physical distributor, until the hypervisor takes it.
    pub distributor: Option<Distributor>,
}

/// Starts every core that the plan uses, each with a stack of its own.
#[inline(never)]
pub fn bring_up(plan: &Plan, machine: &Machine, owners: &mut Owners) -> Result<Cores, Stop> {
    let say = |why: core::fmt::Arguments<'_>| stop(Stage::CORES, why);
    check_ppis(machine)?;
    let (distributor, private) = interrupt_controller(&machine.gic)?;
    let meeting = MEETING.call_once(|| Meeting {
        private,
        mitigations: mitigations(plan),
        seats: machine.cpus.iter().map(|_| Lock::default()).collect(),
        arrived: AtomicUsize::new(0),
        go: AtomicBool::new(false),
    });
    let me = arch::this_mpidr();
    let here = machine.cpus.iter().position(|cpu| cpu.mpidr == me);
    let here = here.ok_or_else(|| say(format_args!("the tree has no cpu {me}, which booted")))?;
    take_seat(meeting, here).map_err(|why| say(format_args!("cpu {me}: {why}")))?;
    // Requests may come for all of them, and are served by one that no VM has.
    let used = |mpidr: Mpidr| {
        plan.control.is_there() || plan.vms.iter().any(|vm| vm.vcpus.contains(&mpidr))
    };
    let firmware = firmware(machine);
    let mut wanted = 1;
    for (n, cpu) in machine.cpus.iter().enumerate() {
        let in_spin_table = matches!(cpu.enable, EnableMethod::SpinTable(_));
        if n != here && (used(cpu.mpidr) || in_spin_table) {
            // Without that core, VMs that need it are refused and the others start.
            if start(meeting, (n, cpu), (firmware, &mut *owners)).is_ok() {
                wanted += 1;
            }
        }
    }
    wait_for(meeting, wanted);
    // Who comes later is not counted on: what it can do is in nobody's translation tables.
    let of_seats: Vec<_> = meeting.seats.iter().map(|seat| seat.lock().features).collect();
    let features = of_seats.iter().flatten().copied().reduce(Features::and).ok_or(Stop)?;
    let is_up: Vec<_> = of_seats.iter().map(Option::is_some).collect();
    let up = of_seats.iter().flatten().count();
    let parks = |cpu: &Cpu| matches!(cpu.enable, EnableMethod::SpinTable(_));
    let how = if machine.cpus.iter().any(parks) { "spin-table" } else { "psci" };
    let all = machine.cpus.len();
    let gic = if matches!(machine.gic, Gic::V2 { .. }) { "gicv2" } else { "gicv3" };
    Stage::CORES.say(format_args!("{gic}, cpus {up}/{all} ({how})"));
    Ok(Cores { meeting, here, is_up, features, distributor: Some(distributor) })
}

/// Returns the firmware's PSCI where EL2 can call it: by SMC, with the functions' own numbers.
pub fn firmware(machine: &Machine) -> Option<arch::HostPsci> {
    let is_called_alike = |psci: &Psci| {
        psci.conduit == Conduit::Smc && !matches!(psci.version, PsciVersion::V0_1 { .. })
    };
    machine.psci.filter(is_called_alike).map(|_| arch::HostPsci)
}

/// Returns whether mitigations are on under this plan.
pub fn mitigations(plan: &Plan) -> Mitigations {
    if plan.knobs.mitigations_off { Mitigations::Off } else { Mitigations::On }
}

/// Takes charge of the distributor, and says where cores find what is theirs.
fn interrupt_controller(gic: &Gic) -> Result<(Distributor, Private), Stop> {
    let say = |why: core::fmt::Arguments<'_>| stop(Stage::CORES, why);
    let (gicd, made, private) = match gic {
        Gic::V2 { gicd, gicc, gich, gicv, .. } => {
            let (Some(gich), Some(_)) = (gich, gicv) else {
                return Err(say(format_args!(
                    "the GICv2 at {gicd} has no GICH and GICV in the tree: it cannot serve guests"
                )));
            };
            // One block for what is banked, and one for the lock to guard: see `Private`.
            let interfaces: &'static CpuInterfaces = Box::leak(Box::new(CpuInterfaces::new(
                map_registers(*gicd)?,
                map_registers(*gicc)?,
                map_registers(*gich)?,
            )));
            arch::use_gicv2(interfaces);
            let made = Distributor::v2(Registers::new(*gicd), interfaces);
            (gicd, made, Private::Banked(*gicd))
        }
        Gic::V3 { gicd, redistributors, stride_bytes, .. } => {
            let mut regions = Vec::new();
            for region in redistributors {
                regions.push(map_registers(*region)?);
            }
            let made = Distributor::v3(map_registers(*gicd)?);
            (gicd, made, Private::Redistributors(regions, stride_bytes.unwrap_or(0)))
        }
    };
    let distributor = made.map_err(|e| say(format_args!("distributor at {gicd}: {e}")))?;
    Ok((distributor, private))
}

impl Private {
    /// Finds what is this core's.
    fn of_this_core(&self) -> Option<PrivateInterrupts> {
        match self {
            Self::Banked(gicd) => {
                Some(PrivateInterrupts::V2(BankedInterrupts::new(Registers::new(*gicd))))
            }
            Self::Redistributors(regions, stride) => {
                let find = |region| Redistributor::find(region, *stride, arch::this_mpidr());
                regions.iter().find_map(find).map(PrivateInterrupts::V3)
            }
        }
    }
}

/// The run loop knows the PPIs by the numbers of the Base System Architecture (DEN 0094).
fn check_ppis(machine: &Machine) -> Result<(), Stop> {
    let timer = &machine.timer;
    let maintenance = match &machine.gic {
        Gic::V2 { maintenance, .. } | Gic::V3 { maintenance, .. } => *maintenance,
    };
    let wrong = [
        (maintenance, vcpu::MAINTENANCE, "GIC's maintenance interrupt"),
        (Some(timer.virt), vcpu::VIRTUAL_TIMER, "virtual timer"),
        (timer.physical, vcpu::PHYSICAL_TIMER, "physical timer"),
        (timer.hypervisor, vcpu::HYP_TIMER, "EL2 timer"),
        (machine.pmu, vcpu::PMU, "PMU"),
    ]
    .into_iter()
    .find_map(|(found, expected, name)| {
        found.filter(|i| i.pintid != expected).map(|i| (i.pintid, expected, name))
    });
    wrong.map_or(Ok(()), |(found, expected, name)| {
        Err(stop(Stage::CORES, format_args!("the {name} is PPI {found}, {expected} expected")))
    })
}

/// Maps registers for a driver.
pub fn map_registers(range: PaRange) -> Result<Registers, Stop> {
    arch::map_hyp(range, HypAttributes::Device)
        .map(|memory| Registers::new(memory.range()))
        .map_err(|e| stop(Stage::CORES, format_args!("registers {range}: {e}")))
}

/// Starts a core; whether it comes is seen later.
fn start(
    meeting: &Meeting,
    (n, cpu): (usize, &Cpu),
    (firmware, owners): (Option<arch::HostPsci>, &mut Owners),
) -> Result<(), Stop> {
    let Cpu { mpidr, enable: how } = *cpu;
    let say = |why: core::fmt::Arguments<'_>| stop(Stage::CORES, why);
    let area = owners
        .allocate(GUARD_BYTES + STACK_BYTES, PAGE_SIZE, Owner::Hypervisor)
        .map_err(|e| say(format_args!("stack of cpu {mpidr}: {e}")))?;
    let bottom = area.start().checked_add(GUARD_BYTES).ok_or(Stop)?;
    let stack = PaRange::between(bottom, area.end()).ok_or(Stop)?;
    arch::map_hyp(stack, HypAttributes::Data).map_err(|e| say(format_args!("stack: {e}")))?;
    let boot = Box::leak(Box::new(SecondaryBoot {
        regime: arch::regime().ok_or(Stop)?,
        stack_top: stack.end().get(),
        core: n as u64,
    }));
    let context = arch::publish_to_uncached(boot);
    match how {
        EnableMethod::Psci => firmware
            .ok_or_else(|| say(format_args!("cpu {mpidr} needs PSCI 0.2 by SMC")))?
            .cpu_on(mpidr, arch::secondary_entry(), context.get())
            .map_err(|no| say(format_args!("the firmware does not start cpu {mpidr}: -{no}"))),
        EnableMethod::SpinTable(at) => {
            let page = PaRange::new(at, 8).and_then(|r| r.page_cover()).ok_or(Stop)?;
            let mapped = arch::map_hyp(page, HypAttributes::Data)
                .map_err(|e| say(format_args!("spin table of cpu {mpidr} at {at}: {e}")))?;
            let slot = mapped.part(at.page_offset(), 8).ok_or(Stop)?;
            let arrived = meeting.arrived.load(Ordering::Acquire);
            arch::release_from_spin_table(slot, context);
            // The next core finds its context in the same place.
            wait_for(meeting, arrived + 1);
            arch::unmap_hyp(mapped).map_err(|e| say(format_args!("spin table: {e}")))
        }
        EnableMethod::Unknown => {
            Err(say(format_args!("the tree does not say how cpu {mpidr} is started")))
        }
    }
}

fn wait_for(meeting: &Meeting, wanted: usize) {
    let patience = START_SECONDS * arch::counter_frequency_hz();
    let begun = arch::counter();
    while meeting.arrived.load(Ordering::Acquire) < wanted {
        if arch::counter().wrapping_sub(begun) > patience {
            return;
        }
        arch::relax();
    }
}

/// Makes this core ready and says what it can do.
fn take_seat(meeting: &Meeting, n: usize) -> Result<(), &'static str> {
    arch::set_up_core(meeting.mitigations).map_err(|e| match e {
        arch::CoreRefusal::Level(_) => "entered at another level than EL2",
        arch::CoreRefusal::VheOnly => "has E2H fixed to 1, which is not supported",
    })?;
    arch::enable_cpu_interface();
    let mut private = meeting.private.of_this_core().ok_or("has no redistributor")?;
    private.wake().map_err(|_| "has a redistributor that does not answer")?;
    for intid in vcpu::ENABLED_PRIVATE {
        private.enable(intid);
    }
    let seat = meeting.seats.get(n).ok_or("has no seat")?;
    let mut seat = seat.lock();
    seat.features = Some(arch::features().translation());
    seat.private = Some(private);
    drop(seat);
    meeting.arrived.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// The first line of Rust on every core but the boot core, with its place in /cpus.
pub fn start_secondary(n: u64) -> ! {
    let Some(meeting) = MEETING.get() else { arch::halt() };
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    if take_seat(meeting, n).is_err() {
        arch::halt();
    }
    while !meeting.go.load(Ordering::Acquire) {
        arch::wait_for_event();
    }
    work(meeting, n)
}

/// Does what the core is given to do, for good.
fn work(meeting: &Meeting, n: usize) -> ! {
    let Some(seat) = meeting.seats.get(n) else { arch::halt() };
    let (private, hypervisor) = {
        let mut seat = seat.lock();
        (seat.private.take(), seat.hypervisor)
    };
    match (private, hypervisor, u8::try_from(n)) {
        (Some(private), Some(hypervisor), Ok(n)) => vcpu::work(hypervisor, PcpuId::new(n), private),
        _ => arch::halt(),
    }
}

impl Cores {
    /// Returns whether the core of this affinity is up.
    #[must_use]
    pub fn is_up(&self, machine: &Machine, mpidr: Mpidr) -> bool {
        let n = machine.cpus.iter().position(|cpu| cpu.mpidr == mpidr);
        n.and_then(|n| self.is_up.get(n).copied()).unwrap_or(false)
    }

    /// Makes the posts of all cores of the machine.
    pub fn posts(&self, machine: &Machine) -> Box<[Post]> {
        let post = |cpu: &Cpu| match self.is_up(machine, cpu.mpidr) {
            true => Post::new(cpu.mpidr),
            false => Post::absent(cpu.mpidr),
        };
        machine.cpus.iter().map(post).collect()
    }

    /// Lets all cores begin, this one too.
    pub fn release(self, hypervisor: &'static Hypervisor) -> Result<Infallible, Stop> {
        for seat in &self.meeting.seats {
            seat.lock().hypervisor = Some(hypervisor);
        }
        self.meeting.go.store(true, Ordering::Release);
        arch::send_event();
        work(self.meeting, self.here)
    }
}
