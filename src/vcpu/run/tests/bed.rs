// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Two VMs of two vCPUs each on the fake machine. A thread is one core of it.
#![forbid(unsafe_code)]

use super::super::super::Core;
use super::super::Next;
use crate::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use crate::arch::fake::machine::{Event, ExitKind, Scripted, with};
use crate::arch::{self, HypMemory, Mitigations};
use crate::bits::Trigger;
use crate::console::{Config, Console, Mode, TokenBucket};
use crate::drivers::gic::{Distributor, PrivateInterrupts};
use crate::drivers::gicv3::Redistributor;
use crate::drivers::uart::{Uart, UartKind};
use crate::hypervisor::{Control, ControlPort, Estate, HostConsole, Hypervisor, Upload};
use crate::id::{Mpidr, Pintid, VcpuId, Vintid, VmId};
use crate::memory::owners::Owners;
use crate::memory::vmid::Vmids;
use crate::mmio::Registers;
use crate::plan::machine::Machine;
use crate::plan::machine::samples::virt;
use crate::plan::samples::{fingerprint, list, two_vms};
use crate::plan::{DevicePlan, Plan, SpiPlan, VMS_MAX, VmPlan};
use crate::smccc::{Firmware, Workarounds};
use crate::spec::dtb::Dtb;
use crate::spec::vmsa::{Features, HypAttributes, MemAttrEncoding};
use crate::sync::{Lock, Slot};
use crate::vcpu::Post;
use crate::vm::Vm;
use crate::vm::build::{BuildError, Source, build};
use crate::vm::lifecycle::{Entry, Request};
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::vec::Vec;

/// Where every guest's memory starts for it, and where vCPU 0 starts.
pub const RAM: u64 = 0x4000_0000;
/// How much of it there is.
pub const RAM_BYTES: u64 = 0x4000;
pub const VDIST: u64 = 0x0800_0000;
pub const VREDIST: u64 = 0x080a_0000;
pub const VUART: u64 = 0x0900_0000;
/// Where the memory of VM 0 is.
pub const RAM_PA: u64 = 0x8000_0000;
/// What is in the two images of each VM, the second right behind the first page.
pub const KERNEL: [u8; 3] = *b"krn";
pub const TREE: [u8; 2] = *b"dt";
pub const TREE_AT: u64 = 0x1000;
/// A physical SPI of VM 0, and what its guest sees.
pub const SPI: (u32, u32) = (48, 40);

/// Where the machine's devices are.
pub const GICD: u64 = 0x1000_0000;
/// Shows the line of [`SPI`], which is high unless a test lowers it.
pub const GICD_ISPENDR1: u64 = GICD + 0x204;
const GICR: u64 = 0x1100_0000;
pub const UART: u64 = 0x1200_0000;
/// The UART for requests, and its interrupt.
const CONTROL_UART: u64 = 0x1201_0000;
pub const CONTROL_INTERRUPT: Pintid = Pintid::new(34);
const BUNDLE: u64 = 0x7000_0000;

/// The pCPUs of VM 0 and VM 1; no vCPU has the number of its pCPU.
pub const PCPUS: [[u64; 2]; 2] = [[0x101, 0x100], [0x300, 0x200]];

/// The pCPUs of the machine's tree, which no VM has.
pub const FREE: [u64; 4] = [0, 1, 2, 3];

pub fn pcpu(vm: usize, vcpu: usize) -> Mpidr {
    affinity(PCPUS[vm][vcpu])
}

pub fn affinity(value: u64) -> Mpidr {
    Mpidr::from_affinity(value).unwrap()
}

pub fn pa_range(at: u64, bytes: u64) -> PaRange {
    PaRange::new(Pa::new(at), bytes).unwrap()
}

/// A core of the machine, this thread's, with the vCPU that it serves.
pub struct Bed {
    pub core: Core<'static>,
    pub vm: &'static Vm,
}

/// The plan of the two VMs.
pub fn plan() -> Plan {
    let mut plan = two_vms();
    let vms = plan.vms.iter().zip(PCPUS).map(|(vm, cpus)| VmPlan {
        vcpus: list(cpus.map(affinity).to_vec()),
        memory: IpaRange::new(Ipa::new(RAM), RAM_BYTES).unwrap(),
        entry: Ipa::new(RAM),
        tree: Ipa::new(RAM + TREE_AT),
        devices: list(std::vec![]),
        ..vm.clone()
    });
    let mut vms: Vec<_> = vms.collect();
    let (pintid, vintid) = (Pintid::new(SPI.0), Vintid::new(SPI.1));
    let interrupts = list(std::vec![SpiPlan { pintid, vintid, trigger: Trigger::Level }]);
    let (path, regions) = (Default::default(), list(std::vec![]));
    vms[0].devices =
        list(std::vec![DevicePlan { path, fingerprint: fingerprint(), regions, interrupts }]);
    vms.iter_mut().for_each(|vm| vm.images[1].ipa = Ipa::new(RAM + TREE_AT));
    plan.vms = list(vms);
    plan
}

/// Makes the machine and the hypervisor on it.
pub fn hypervisor(plan: &Plan) -> &'static Hypervisor {
    make_hypervisor(plan, None)
}

/// Makes one that has a UART for requests.
pub fn hypervisor_with_port(plan: &Plan) -> &'static Hypervisor {
    let port = Uart::new(UartKind::Pl011, pa_range(CONTROL_UART, 0x1000));
    make_hypervisor(plan, Some(ControlPort::new(port, CONTROL_INTERRUPT)))
}

fn make_hypervisor(plan: &Plan, port: Option<ControlPort>) -> &'static Hypervisor {
    let devices = [
        (GICD + 0xffe8, 0x3b), // GICD_PIDR2: GICv3
        (GICD + 4, 2),         // GICD_TYPER: SPIs up to 95
        (GICD_ISPENDR1, 1 << (SPI.0 - 32)),
        (GICR + 8, 1 << 4), // GICR_TYPER: the last one
    ];
    with(|core| core.devices.extend(devices));
    arch::forget_tables();
    let distributor = Distributor::v3(Registers::new(pa_range(GICD, 0x1_0000))).unwrap();
    let config = Config {
        mode: Mode::Focus,
        escape: 0x1d,
        ring_bytes: 1024,
        partial_after_ticks: 0,
        messages: TokenBucket::new(8, 1),
    };
    let uart = Uart::new(UartKind::Pl011, pa_range(UART, 0x1000));
    let console = HostConsole::new(Console::new(config, VMS_MAX).unwrap(), Some(uart));
    let estate = Lock::new(estate());
    let slots: Box<[Slot<Vm>]> = (0..VMS_MAX).map(|_| Slot::new()).collect();
    for (vm, n) in plan.vms.iter().zip(0..) {
        let vm = make_vm(n, vm, &estate);
        console.mux.attach(vm.id, &vm.plan.name).unwrap();
        vm.lifecycle.request(Request::Start).unwrap();
        slots[usize::from(n)].fill(vm);
    }
    let hypervisor = Hypervisor {
        vms: slots,
        posts: PCPUS.as_flattened().iter().chain(&FREE).map(|c| Post::new(affinity(*c))).collect(),
        estate,
        console,
        control: Control::new(plan.board.clone(), None, port),
        upload: Upload::default(),
        distributor: Lock::new(distributor),
        uart_interrupt: Some(Pintid::new(33)),
        boot_core: affinity(FREE[0]),
        firmware: Some(arch::HostPsci),
        power: None,
        workarounds: Workarounds {
            workaround_1: Firmware::Required,
            workaround_2: Firmware::Unsupported,
            workaround_3: Firmware::Unsupported,
        },
        mitigations: Mitigations::On,
        list_registers_max: None,
        reports_reset_cost: false,
        watch: None,
        fault_at_start: None,
    };
    with(|core| core.events.clear());
    Box::leak(Box::new(hypervisor))
}

/// The machine that VMs are made of, with memory for both.
pub fn estate() -> Estate {
    let tree = virt();
    let machine = Machine::read(&Dtb::new(&tree).unwrap()).unwrap();
    let machine = Box::leak(Box::new(machine));
    let mut owners = Owners::new();
    owners.add_bank(pa_range(RAM_PA, 2 * RAM_BYTES)).unwrap();
    let encoding = MemAttrEncoding::Combining;
    let features = Features { pa_bits: 48, vmid_bits: 8, encoding };
    Estate { machine, features, owners, vmids: Vmids::new(8) }
}

/// Makes a VM of the machine.
pub fn make_vm(n: u8, plan: &VmPlan, estate: &Lock<Estate>) -> Vm {
    try_make_vm(n, plan, estate).unwrap()
}

/// Makes a VM of the machine, or not.
pub fn try_make_vm(n: u8, plan: &VmPlan, estate: &Lock<Estate>) -> Result<Vm, BuildError> {
    let find = |name: &str| match name {
        "kernel" => Some(source(BUNDLE, &KERNEL)),
        _ => Some(source(BUNDLE + 0x10, &TREE)),
    };
    build(VmId::new(n), plan.clone(), &find, estate, &mut || ())
}

pub fn map(range: PaRange) -> HypMemory {
    arch::map_hyp(range, HypAttributes::Data).unwrap()
}

fn source(at: u64, bytes: &[u8]) -> Source {
    let source = map(pa_range(at, bytes.len() as u64));
    arch::write_bytes(source, bytes);
    (source, arch::crc32c(0, source))
}

/// Returns a VM.
pub fn vm(hypervisor: &'static Hypervisor, n: usize) -> &'static Vm {
    hypervisor.vms[n].stare().unwrap()
}

/// Finds the SGIs and PPIs of this core.
pub fn private_interrupts() -> PrivateInterrupts {
    let region = Registers::new(pa_range(GICR, 0x2_0000));
    PrivateInterrupts::V3(Redistributor::find(&region, 0, Mpidr::default()).unwrap())
}

/// Makes the core of a vCPU.
pub fn core(hypervisor: &'static Hypervisor, n: usize, vcpu: u8) -> Core<'static> {
    let private = Box::leak(Box::new(private_interrupts()));
    Core::new(hypervisor, vm(hypervisor, n), VcpuId::new(vcpu), private).unwrap()
}

/// Runs until the script has ended, the core is asleep or has halted.
pub fn serve(core: &mut Core<'_>) {
    let _ = catch_unwind(AssertUnwindSafe(|| core.serve()));
}

impl Bed {
    /// Makes the machine and starts vCPU 0 of VM 0 on this thread.
    pub fn new() -> Self {
        Self::on(hypervisor(&plan()))
    }

    /// Starts vCPU 0 of VM 0 of this hypervisor on this thread.
    pub fn on(hypervisor: &'static Hypervisor) -> Self {
        let mut core = core(hypervisor, 0, 0);
        // Ends asleep or, with an empty script, at the first entry.
        serve(&mut core);
        with(|core| core.events.clear());
        Self { vm: core.vm, core }
    }

    /// Lets the guest run into an exit and answers it, up to where the guest would be entered
    /// again; returns what the run loop does where that is something else.
    pub fn exit(&mut self, exit: Scripted) -> Option<Next> {
        with(|core| core.exits.push_back(exit));
        catch_unwind(AssertUnwindSafe(|| self.core.run())).ok()
    }
    /// Enters the guest, which a physical interrupt makes leave.
    pub fn interrupt(&mut self, pintid: u32) -> Option<Next> {
        with(|core| core.pending.push_back(Pintid::new(pintid)));
        self.exit(Scripted { kind: ExitKind::Interrupt, esr: 0, far: 0, ipa: 0 })
    }
    /// Makes a call with X0 to X3 and returns X0.
    pub fn hvc<const N: usize>(&mut self, x: [u64; N]) -> u64 {
        self.core.registers.x[..N].copy_from_slice(&x);
        assert_eq!(self.exit(hvc(0)), None);
        self.core.registers.x[0]
    }
    /// Reads a device, 32 bits.
    pub fn read(&mut self, ipa: u64) -> u64 {
        assert_eq!(self.exit(load(ipa, Load { register: 3, ..WORD })), None);
        self.core.registers.x[3]
    }
    /// Writes a device, 32 bits.
    pub fn write(&mut self, ipa: u64, value: u64) {
        self.core.registers.x[3] = value;
        assert_eq!(self.exit(store(ipa, 2, 3)), None);
    }
    /// Enables Group 1 and these interrupts: SGIs and PPIs, and SPIs 32 to 63.
    pub fn enable(&mut self, private: u64, spis: u64) {
        self.write(VDIST, 1 << 1);
        self.write(VREDIST + 0x1_0100, private);
        self.write(VDIST + 0x104, spis);
        clear_events();
    }
    pub fn state(&self) -> Vec<u64> {
        with(|core| core.list_registers.iter().map(|lr| lr.get()).filter(|lr| *lr != 0).collect())
    }
}

/// Lets vCPU 1 of VM 0 look at its work, as its core does when it is kicked.
pub fn look_at_work(bed: &Bed) {
    let mut other = Bed { vm: bed.vm, core: core(bed.core.hypervisor, 0, 1) };
    assert_eq!(other.interrupt(0), None);
    clear_events();
}

pub fn clear_events() {
    with(|core| core.events.clear());
}

/// What happened, list registers left out.
pub fn events() -> Vec<Event> {
    let is_other = |event: &Event| !matches!(event, Event::WriteListRegister(..));
    with(|core| core.events.iter().filter(|event| is_other(event)).cloned().collect())
}

pub fn elr() -> u64 {
    with(|core| core.elr)
}

/// IL: the instruction has 32 bits.
const IL: u64 = 1 << 25;

/// A synchronous exit: EC and ISS.
pub fn synchronous(class: u64, iss: u64) -> Scripted {
    let esr = class << 26 | IL | iss;
    Scripted { kind: ExitKind::Synchronous, esr, far: 0, ipa: 0 }
}
pub fn hvc(immediate: u64) -> Scripted {
    synchronous(0x16, immediate)
}
pub fn smc(immediate: u64) -> Scripted {
    synchronous(0x17, immediate)
}

/// How a load goes: log2 of the size, the sign extended, to a register of 64 bits or 32.
#[derive(Clone, Copy)]
pub struct Load {
    pub size: u64,
    pub sign: u64,
    pub sixty_four: u64,
    pub register: u64,
}

pub const WORD: Load = Load { size: 2, sign: 0, sixty_four: 0, register: 0 };

/// A translation fault at level 3.
pub const FAULT: u64 = 0b00_0111;
pub const ISV: u64 = 1 << 24;
pub const EA: u64 = 1 << 9;
pub const CM: u64 = 1 << 8;
pub const S1PTW: u64 = 1 << 7;
pub const WNR: u64 = 1 << 6;

/// A data abort at an address; the guest's virtual address has the same offset in its page.
pub fn data_abort(ipa: u64, iss: u64) -> Scripted {
    let far = 0xffff_8000_1234_5000 | ipa & 0xfff;
    Scripted { far, ipa: ipa & !0xfff, ..synchronous(0x24, iss) }
}
pub fn load(ipa: u64, load: Load) -> Scripted {
    let Load { size, sign, sixty_four, register } = load;
    data_abort(ipa, ISV | size << 22 | sign << 21 | register << 16 | sixty_four << 15 | FAULT)
}
pub fn store(ipa: u64, size: u64, register: u64) -> Scripted {
    data_abort(ipa, ISV | size << 22 | register << 16 | WNR | FAULT)
}

/// A system register: Op0, Op1, CRn, CRm and Op2.
pub type Encoding = [u64; 5];

pub fn mrs([op0, op1, crn, crm, op2]: Encoding, register: u64) -> Scripted {
    let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | register << 5 | crm << 1 | 1;
    synchronous(0x18, iss)
}
pub fn msr(encoding: Encoding, register: u64) -> Scripted {
    let read = mrs(encoding, register);
    Scripted { esr: read.esr & !1, ..read }
}

/// Says that the vCPU may run, as a core does that enters its VM.
pub fn enter(vm: &Vm) {
    assert_eq!(vm.lifecycle.enter(), Entry::Granted);
}
