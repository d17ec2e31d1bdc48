// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The walk that collects, and the end where everything is put together.
#![forbid(unsafe_code)]

use super::irq::{Domain, Specifiers};
use super::walk::{Properties, Walk};
use super::{
    BANKS_MAX, Conduit, Cpu, EnableMethod, Machine, MachineError, Problem, Psci, PsciVersion,
    REGIONS_MAX, Region, Timer, gic, uart,
};
use crate::addr::{Address, Pa, PaRange};
use crate::id::Mpidr;
use crate::plan::{CPUS_MAX, Name};
use crate::sort::sort_by_key;
use crate::spec::dtb::{Dtb, FdtNode, value};
use alloc::vec::Vec;
use heapless::String;

/// The PEs that a GICv2 can serve (IHI 0048B, section 1.4.2).
const GICV2_CPUS_MAX: usize = 8;

/// What the walk has found.
#[derive(Default)]
pub(super) struct Found<'b, 'a> {
    model: String<63>,
    cpus: Vec<(&'a str, Cpu)>,
    /// The method that `/cpus` states for all, as old trees do.
    enable_method: Option<&'a [u8]>,
    memory: Vec<(&'a str, PaRange)>,
    reserved: Vec<Region>,
    kept: Vec<Region>,
    fingerprints: Vec<u32>,
    power: Option<PaRange>,
    gic: Option<gic::Found<'a>>,
    timer: Option<(&'a str, Specifiers<'a>)>,
    pmus: Vec<Specifiers<'a>>,
    psci: Option<Psci>,
    uarts: Vec<uart::Candidate<'a>>,
    chosen: Option<FdtNode<'b, 'a>>,
    aliases: Option<FdtNode<'b, 'a>>,
}

/// What stands for the name of an entry of the reservation block.
const MEMRESERVE: &str = "memreserve";

type Done<'a> = Result<(), MachineError<'a>>;

/// Walks the tree once.
pub(super) fn collect<'b, 'a>(tree: &'b Dtb<'a>) -> Result<Found<'b, 'a>, MachineError<'a>> {
    let mut found = Found::default();
    for (address, size) in tree.reservations() {
        let range = PaRange::new(Pa::new(address), size);
        if size > 0 {
            found.reserve(MEMRESERVE, range, "size")?;
        }
    }
    let mut walk = Walk::default();
    for (depth, node) in tree.nodes() {
        let properties = walk.enter(depth, node);
        if !walk.is_enabled() {
            continue;
        }
        found.fingerprints.push(walk.fingerprint(&properties));
        match (depth, node.name) {
            (0, _) => found.model = model(node),
            (1, "chosen") => found.chosen = found.chosen.or(Some(node)),
            (1, "aliases") => found.aliases = found.aliases.or(Some(node)),
            (1, "cpus") => {
                found.enable_method = node.property("enable-method").map(|p| p.value);
            }
            (2, _) if walk.parent_name() == "cpus" => found.cpu(&walk, node, &properties)?,
            (2, _) if walk.parent_name() == "reserved-memory" => {
                found.reserved_memory(&walk, node.name, &properties)?;
            }
            (1, _) if properties.is_type("memory") => {
                found.memory(&walk, node.name, &properties)?;
            }
            _ => found.device(&walk, node, &properties)?,
        }
    }
    Ok(found)
}

/// Finds the console in a tree whose other parts may be wrong; its interrupt is not looked for.
pub(super) fn console(tree: &Dtb<'_>) -> Option<super::Uart> {
    let mut found = Found::default();
    let mut walk = Walk::default();
    for (depth, node) in tree.nodes() {
        let properties = walk.enter(depth, node);
        if walk.is_enabled() {
            found.console_only(&walk, (depth, node), &properties);
        }
    }
    let console = uart::choose(&found.uarts, found.chosen, found.aliases)?;
    Some(found.uarts.get(console)?.finish(Domain { phandle: None, cells: 3 }))
}

fn model(root: FdtNode<'_, '_>) -> String<63> {
    let text = root.property("model").and_then(|property| value::text(property.value));
    cut(text.unwrap_or("unknown model"))
}

/// Cuts a text to what fits.
fn cut<const MAX: usize>(text: &str) -> String<MAX> {
    let fits = text.bytes().take(MAX).take_while(u8::is_ascii).count();
    text.get(..fits).and_then(|text| text.try_into().ok()).unwrap_or_default()
}

impl<'b, 'a> Found<'b, 'a> {
    fn cpu(
        &mut self,
        walk: &Walk<'a>,
        node: FdtNode<'_, 'a>,
        properties: &Properties<'a>,
    ) -> Done<'a> {
        // Others live here too: cpu-map, idle states, caches.
        if !properties.is_type("cpu") {
            return Ok(());
        }
        let error = |problem| MachineError { node: node.name, problem };
        let reg = properties.reg.and_then(|reg| walk.entries(reg)?.next());
        let mpidr = reg.and_then(|(affinity, _)| Mpidr::from_affinity(affinity));
        let mpidr = mpidr.ok_or(error(Problem::Property("reg")))?;
        if let Some((other, _)) = self.cpus.iter().find(|(_, cpu)| cpu.mpidr == mpidr) {
            return Err(error(Problem::Clash(other)));
        }
        if self.cpus.len() == CPUS_MAX {
            return Err(error(Problem::TooMany(CPUS_MAX)));
        }
        let property = |name| node.property(name).map(|property| property.value);
        let method = property("enable-method").or(self.enable_method).and_then(value::text);
        let enable = match method {
            Some("psci") => EnableMethod::Psci,
            Some("spin-table") => {
                let address = property("cpu-release-addr").and_then(value::number);
                let address = address.filter(|address| address.is_multiple_of(8));
                let address = address.ok_or(error(Problem::Property("cpu-release-addr")))?;
                EnableMethod::SpinTable(Pa::new(address))
            }
            _ => EnableMethod::Unknown,
        };
        self.cpus.push((node.name, Cpu { mpidr, enable }));
        Ok(())
    }

    fn memory(&mut self, walk: &Walk<'a>, node: &'a str, properties: &Properties<'a>) -> Done<'a> {
        let error = |problem| MachineError { node, problem };
        let entries = properties.reg.and_then(|reg| walk.entries(reg));
        // Boot loaders fill in sizes; a bank that they left empty is none.
        for (address, size) in entries.ok_or(error(Problem::Property("reg")))? {
            if size == 0 {
                continue;
            }
            let range = PaRange::new(Pa::new(address), size);
            let range = range.ok_or(error(Problem::Address("reg")))?;
            if let Some((other, _)) = self.memory.iter().find(|(_, bank)| bank.overlaps(range)) {
                return Err(error(Problem::Clash(other)));
            }
            if self.memory.len() == BANKS_MAX {
                return Err(error(Problem::TooMany(BANKS_MAX)));
            }
            self.memory.push((node, range));
        }
        Ok(())
    }

    /// Notes what a child of `/reserved-memory` fixes. One that only asks for a size finds its
    /// place in the operating system's memory.
    fn reserved_memory(
        &mut self,
        walk: &Walk<'a>,
        node: &'a str,
        properties: &Properties<'a>,
    ) -> Done<'a> {
        let Some(reg) = properties.reg else { return Ok(()) };
        let entries = walk.entries(reg);
        let malformed = MachineError { node, problem: Problem::Property("reg") };
        for (address, size) in entries.ok_or(malformed)? {
            if size > 0 {
                self.reserve(node, PaRange::new(Pa::new(address), size), "reg")?;
            }
        }
        Ok(())
    }

    fn reserve(
        &mut self,
        node: &'a str,
        range: Option<PaRange>,
        property: &'static str,
    ) -> Done<'a> {
        let range = range.ok_or(MachineError { node, problem: Problem::Address(property) })?;
        note(&mut self.reserved, node, range)
    }

    fn device(
        &mut self,
        walk: &Walk<'a>,
        node: FdtNode<'b, 'a>,
        properties: &Properties<'a>,
    ) -> Done<'a> {
        let compatible = properties.compatible.unwrap_or_default();
        let Some(kind) = value::texts(compatible).find_map(Kind::of) else { return Ok(()) };
        let specifiers = || Specifiers::new(walk, node, properties);
        match kind {
            Kind::Gic(version) => {
                if let Some(other) = &self.gic {
                    let problem = Problem::Clash(other.node);
                    return Err(MachineError { node: node.name, problem });
                }
                self.gic = Some(gic::read(walk, node, properties, version)?);
            }
            Kind::Kept => {
                let frame = |index| walk.registers(properties.reg?, index);
                for range in (0..).map_while(frame) {
                    note(&mut self.kept, node.name, range)?;
                }
            }
            Kind::Power => {
                let range = properties.reg.and_then(|reg| walk.registers(reg, 0));
                let missing = MachineError { node: node.name, problem: Problem::Address("reg") };
                note(&mut self.kept, node.name, range.ok_or(missing)?)?;
                self.power = self.power.or(range);
            }
            Kind::Timer => self.timer = self.timer.or(Some((node.name, specifiers()))),
            // One for each kind of PE.
            Kind::Pmu if self.pmus.len() < CPUS_MAX => self.pmus.push(specifiers()),
            Kind::Psci(_) => self.psci = self.psci.or(Some(psci(node, compatible)?)),
            Kind::Uart(family) if self.uarts.len() < uart::UARTS_MAX => {
                self.uarts.extend(uart::read(walk, node, properties, family));
            }
            Kind::Pmu | Kind::Uart(_) => {}
        }
        Ok(())
    }

    /// Takes in a UART, or what names one, and nothing that could be wrong.
    fn console_only(
        &mut self,
        walk: &Walk<'a>,
        at: (usize, FdtNode<'b, 'a>),
        properties: &Properties<'a>,
    ) {
        match at {
            (1, node) if node.name == "chosen" => self.chosen = self.chosen.or(Some(node)),
            (1, node) if node.name == "aliases" => self.aliases = self.aliases.or(Some(node)),
            (_, node) => {
                let compatible = properties.compatible.unwrap_or_default();
                let kind = value::texts(compatible).find_map(Kind::of);
                if let Some(Kind::Uart(family)) = kind
                    && self.uarts.len() < uart::UARTS_MAX
                {
                    self.uarts.extend(uart::read(walk, node, properties, family));
                }
            }
        }
    }

    /// Puts together what was found.
    pub(super) fn finish(mut self) -> Result<Machine, MachineError<'a>> {
        let missing = |node| MachineError { node, problem: Problem::Missing };
        let gic = self.gic.take().ok_or(missing("interrupt controller"))?;
        let (first, _) = *self.cpus.first().ok_or(missing("cpu"))?;
        if matches!(gic.gic, super::Gic::V2 { .. }) && self.cpus.len() > GICV2_CPUS_MAX {
            return Err(MachineError { node: first, problem: Problem::TooMany(GICV2_CPUS_MAX) });
        }
        if self.memory.is_empty() {
            return Err(missing("memory"));
        }
        // Registers in memory would be handed to a guest.
        for range in gic.gic.frames() {
            if let Some((bank, _)) = self.memory.iter().find(|(_, bank)| bank.overlaps(range)) {
                return Err(MachineError { node: gic.node, problem: Problem::Clash(bank) });
            }
        }
        self.uarts
            .retain(|uart| !self.memory.iter().any(|(_, bank)| bank.overlaps(uart.registers)));
        sort_by_key(&mut self.memory, |(_, bank)| bank.start().get());
        // U-Boot reserves the ramdisk as well, which is nobody's but ours.
        let initrd = self.initrd()?;
        self.reserved.retain(|region| region.name != MEMRESERVE || Some(region.range) != initrd);
        let mut uarts: Vec<_> = self.uarts.iter().map(|uart| uart.finish(gic.domain)).collect();
        let console = uart::choose(&self.uarts, self.chosen, self.aliases);
        let pmu = |pmu: &Specifiers<'_>| pmu.get(gic.domain, 0).and_then(|i| i.ppi());
        Ok(Machine {
            timer: self.timer(gic.domain)?,
            // Where kinds of PEs have different ones, none is right for all.
            pmu: self
                .pmus
                .first()
                .and_then(pmu)
                .filter(|first| self.pmus.iter().all(|other| pmu(other) == Some(*first))),
            initrd,
            uart: console.map(|place| uarts.remove(place)),
            control: None,
            spare_uarts: uarts,
            model: self.model,
            cpus: self.cpus.into_iter().map(|(_, cpu)| cpu).collect(),
            memory: self.memory.into_iter().map(|(_, bank)| bank).collect(),
            reserved: self.reserved,
            kept: self.kept,
            fingerprints: self.fingerprints,
            power: self.power,
            gic: gic.gic,
            psci: self.psci,
        })
    }

    /// Reads the timer's interrupts: by name where the node has names, else by position.
    fn timer(&self, domain: Domain) -> Result<Timer, MachineError<'a>> {
        let missing = MachineError { node: "timer", problem: Problem::Missing };
        let (node, interrupts) = self.timer.ok_or(missing)?;
        let get = |name, position| {
            interrupts.get(domain, interrupts.index(name, position)?).and_then(|i| i.ppi())
        };
        let virt = get("virt", 2);
        Ok(Timer {
            secure: get("sec-phys", 0),
            physical: get("phys", 1),
            virt: virt.ok_or(MachineError { node, problem: Problem::Property("interrupts") })?,
            hypervisor: get("hyp-phys", 3),
        })
    }

    /// Reads where the ramdisk is; the end is exclusive.
    fn initrd(&self) -> Result<Option<PaRange>, MachineError<'a>> {
        let property = |name| self.chosen?.property(name).map(|property| property.value);
        let name = "linux,initrd-end";
        let (start, end) = (property("linux,initrd-start"), property(name));
        let (Some(start), Some(end)) = (start, end) else { return Ok(None) };
        let number = |bytes| value::number(bytes).map(Pa::new);
        let range = number(start).zip(number(end)).map(|(start, end)| PaRange::between(start, end));
        match range {
            Some(Some(range)) => Ok(Some(range)),
            _ => Err(MachineError { node: "chosen", problem: Problem::Address(name) }),
        }
    }
}

fn note<'a>(regions: &mut Vec<Region>, node: &'a str, range: PaRange) -> Done<'a> {
    if regions.len() == REGIONS_MAX {
        return Err(MachineError { node, problem: Problem::TooMany(REGIONS_MAX) });
    }
    let name: Name = cut(node);
    regions.push(Region { name, range });
    Ok(())
}

/// What a node's `compatible` states.
#[derive(Clone, Copy)]
enum Kind {
    Gic(gic::Version),
    /// A unit that only the hypervisor may program.
    Kept,
    Power,
    Timer,
    Pmu,
    Psci(PsciVersion),
    Uart(uart::Family),
}

impl Kind {
    fn of(compatible: &str) -> Option<Self> {
        Some(match compatible {
            "arm,gic-v3" => Self::Gic(gic::Version::V3),
            "arm,gic-400" | "arm,cortex-a15-gic" | "arm,cortex-a7-gic" => {
                Self::Gic(gic::Version::V2)
            }
            "arm,gic-v3-its" | "arm,gic-v2m-frame" => Self::Kept,
            "arm,smmu-v3" | "arm,mmu-500" | "arm,smmu-v2" => Self::Kept,
            "brcm,bcm2835-pm-wdt" => Self::Power,
            "arm,armv8-timer" => Self::Timer,
            "arm,armv8-pmuv3" => Self::Pmu,
            "arm,psci-1.0" => Self::Psci(PsciVersion::V1_0),
            "arm,psci-0.2" => Self::Psci(PsciVersion::V0_2),
            "arm,psci" => Self::Psci(PsciVersion::V0_1 { cpu_on: None }),
            "arm,pl011" => Self::Uart(uart::Family::Pl011),
            "snps,dw-apb-uart" | "ns16550a" => Self::Uart(uart::Family::Ns16550),
            "brcm,bcm2835-aux-uart" => Self::Uart(uart::Family::Bcm2835Aux),
            other => {
                let core = other.strip_prefix("arm,")?.strip_suffix("-pmu")?;
                let is_core = core.starts_with("cortex-") || core.starts_with("neoverse-");
                return is_core.then_some(Self::Pmu);
            }
        })
    }
}

/// Reads the firmware's node. It lists what it is compatible with: the latest counts.
fn psci<'a>(node: FdtNode<'_, 'a>, compatible: &[u8]) -> Result<Psci, MachineError<'a>> {
    let property = |name| node.property(name).map(|property| property.value);
    let conduit = match property("method").and_then(value::text) {
        Some("smc") => Conduit::Smc,
        Some("hvc") => Conduit::Hvc,
        _ => return Err(MachineError { node: node.name, problem: Problem::Property("method") }),
    };
    let versions = value::texts(compatible).filter_map(|name| match Kind::of(name) {
        Some(Kind::Psci(version)) => Some(version),
        _ => None,
    });
    let version = match versions.max() {
        Some(version @ (PsciVersion::V0_2 | PsciVersion::V1_0)) => version,
        _ => PsciVersion::V0_1 { cpu_on: property("cpu_on").and_then(value::cell) },
    };
    Ok(Psci { conduit, version })
}
