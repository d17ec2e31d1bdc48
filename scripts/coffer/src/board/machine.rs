// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a board's tree says of the machine: cores, memory, interrupt controller, UART.
//!
//! Knows the generic bindings of the architecture alone, no board. EL2 reads the live tree by
//! itself and refuses a plan whose claims differ.
#![forbid(unsafe_code)]

use crate::tree::{NodeId, Tree};
use cofferdam::addr::{Address, Pa, PaRange};
use cofferdam::id::Mpidr;
use cofferdam::plan::CPUS_MAX;

/// GICv2 with virtualization and the names it goes by.
const GIC_V2: [&str; 3] = ["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic"];
/// More banks of memory than any machine has.
const BANKS_MAX: usize = 128;
const GIC_V3: &str = "arm,gic-v3";

/// What a tree says of its machine.
#[derive(Debug)]
pub struct Machine {
    /// What it calls itself.
    pub model: String,
    /// The cores in the order of /cpus.
    pub cores: Vec<Core>,
    /// The banks of memory, sorted.
    pub memory: Vec<PaRange>,
    /// The bytes that the tree keeps out of use.
    pub reserved_bytes: u64,
    /// The interrupt controller.
    pub gic: Gic,
    /// The console's UART.
    pub uart: Option<Uart>,
    /// Whether the cores have a performance monitor.
    pub has_pmu: bool,
}

/// A core.
#[derive(Clone, Debug)]
pub struct Core {
    /// Its node.
    pub node: NodeId,
    /// Its affinity.
    pub mpidr: Mpidr,
    /// What it is compatible with, the best description first.
    pub compatible: Vec<String>,
}

impl Core {
    /// Returns its short name.
    #[must_use]
    pub fn short_name(&self) -> &str {
        let name = self.compatible.first().map_or("core", String::as_str);
        name.strip_prefix("arm,").unwrap_or(name)
    }
}

/// The interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gic {
    /// Its node.
    pub node: NodeId,
    /// Its architecture: 2 or 3.
    pub version: u32,
    /// The distributor.
    pub gicd: Pa,
}

/// The UART of the console.
#[derive(Clone, Debug)]
pub struct Uart {
    /// Its node.
    pub node: NodeId,
    /// Its registers.
    pub registers: PaRange,
}

/// What a tree lacks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MachineError {
    /// No usable node in /cpus.
    #[error("the board's tree has no core in /cpus")]
    NoCores,
    /// More than a plan can name.
    #[error("the board's tree has {0} cores; {CPUS_MAX} are the most that are supported")]
    TooManyCores(usize),
    /// A core without an affinity that an MPIDR can have.
    #[error("{0} has no usable `reg`")]
    BadCore(String),
    /// Two cores with one affinity.
    #[error("{0} and {1} have the same affinity {2}")]
    SameCore(String, String, Mpidr),
    /// No usable memory node.
    #[error("the board's tree has no memory")]
    NoMemory,
    /// More banks than any machine has.
    #[error("the board's tree has {0} banks of memory; {BANKS_MAX} are the most")]
    TooManyBanks(usize),
    /// Two memory nodes that overlap.
    #[error("two memory nodes of the board's tree overlap: {0} and {1}")]
    MemoryOverlaps(PaRange, PaRange),
    /// No GIC.
    #[error("the board's tree has no Arm GIC that is switched on")]
    NoGic,
}

impl Machine {
    /// Reads what the planner needs to know.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn read(tree: &Tree) -> Result<Self, MachineError> {
        let memory = memory(tree)?;
        let model = tree.text(tree.root(), "model").unwrap_or("no model").to_owned();
        let pmu = |id: NodeId| {
            let mut names = tree.texts(id, "compatible");
            names.any(|name| name.ends_with("-pmu") || name == "arm,armv8-pmuv3")
        };
        Ok(Self {
            model,
            cores: cores(tree)?,
            reserved_bytes: reserved_bytes(tree, &memory),
            memory,
            gic: gic(tree)?,
            uart: uart(tree),
            has_pmu: tree.children(tree.root()).iter().any(|id| pmu(*id)),
        })
    }

    /// Returns the bytes of memory in all banks.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().fold(0, |sum, bank| sum.saturating_add(bank.size()))
    }
    /// Returns the core that this node describes.
    #[must_use]
    pub fn core_of(&self, node: NodeId) -> Option<usize> {
        self.cores.iter().position(|core| core.node == node)
    }
}

fn cores(tree: &Tree) -> Result<Vec<Core>, MachineError> {
    let cpus = tree.find("/cpus").ok_or(MachineError::NoCores)?;
    let is_core = |id: &NodeId| {
        let failed = tree.text(*id, "status").is_some_and(|status| status.starts_with("fail"));
        tree.text(*id, "device_type") == Some("cpu") && !failed
    };
    let nodes: Vec<_> = tree.children(cpus).iter().copied().filter(is_core).collect();
    if nodes.len() > CPUS_MAX {
        return Err(MachineError::TooManyCores(nodes.len()));
    }
    let mut cores: Vec<Core> = Vec::new();
    for node in nodes {
        let bad = || MachineError::BadCore(tree.path(node));
        let affinity = match *tree.cells(node, "reg") {
            [low] => u64::from(low),
            [high, low] => (u64::from(high) << 32) | u64::from(low),
            _ => return Err(bad()),
        };
        let mpidr = Mpidr::from_affinity(affinity).ok_or_else(bad)?;
        if let Some(twin) = cores.iter().find(|core| core.mpidr == mpidr) {
            return Err(MachineError::SameCore(tree.path(twin.node), tree.path(node), mpidr));
        }
        let compatible = tree.texts(node, "compatible").map(Into::into).collect();
        cores.push(Core { node, mpidr, compatible });
    }
    if cores.is_empty() { Err(MachineError::NoCores) } else { Ok(cores) }
}

fn memory(tree: &Tree) -> Result<Vec<PaRange>, MachineError> {
    let is_memory =
        |id: &NodeId| tree.text(*id, "device_type") == Some("memory") && tree.is_enabled(*id);
    let nodes = tree.children(tree.root()).iter().copied().filter(is_memory);
    let ranges = nodes.filter_map(|id| tree.registers(id)).flatten();
    let mut banks: Vec<_> =
        ranges.filter_map(|(start, size)| PaRange::new(Pa::new(start), size)).collect();
    banks.sort_by_key(|bank| bank.start());
    for pair in banks.windows(2) {
        if let [a, b] = *pair
            && a.overlaps(b)
        {
            return Err(MachineError::MemoryOverlaps(a, b));
        }
    }
    match banks.len() {
        0 => Err(MachineError::NoMemory),
        1..=BANKS_MAX => Ok(banks),
        many => Err(MachineError::TooManyBanks(many)),
    }
}

/// Counts the bytes of memory that /reserved-memory and /memreserve/ keep, each once.
fn reserved_bytes(tree: &Tree, memory: &[PaRange]) -> u64 {
    let node = tree.find("/reserved-memory");
    let children = node.map(|node| tree.children(node)).unwrap_or_default();
    let nodes = children.iter().filter_map(|id| tree.registers(*id)).flatten();
    let reserved = nodes.chain(tree.reservations.iter().copied());
    let mut kept: Vec<PaRange> = reserved
        .filter_map(|(start, size)| PaRange::new(Pa::new(start), size)?.page_cover())
        .flat_map(|range| memory.iter().filter_map(move |bank| bank.intersection(range)))
        .collect();
    kept.sort_by_key(|range| range.start());
    let mut counted = Pa::new(0);
    kept.iter().fold(0, |sum, range| {
        let start = range.start().max(counted);
        counted = counted.max(range.end());
        sum.saturating_add(range.end().get().saturating_sub(start.get()))
    })
}

fn gic(tree: &Tree) -> Result<Gic, MachineError> {
    let version = |id: NodeId| {
        if tree.is_compatible(id, GIC_V3) {
            Some(3)
        } else {
            GIC_V2.iter().any(|name| tree.is_compatible(id, name)).then_some(2)
        }
    };
    let gic = tree.all().filter(|id| tree.is_enabled(*id)).find_map(|node| {
        let version = version(node)?;
        let gicd = Pa::new(tree.registers(node)?.first()?.0);
        Some(Gic { node, version, gicd })
    });
    gic.ok_or(MachineError::NoGic)
}

/// Finds the UART that the firmware's console is on.
fn uart(tree: &Tree) -> Option<Uart> {
    let chosen = tree.find("/chosen");
    let stdout = chosen.and_then(|chosen| tree.text(chosen, "stdout-path"));
    let node = stdout.and_then(|path| tree.resolve(path)).or_else(|| tree.resolve("serial0"))?;
    let (start, size) = *tree.registers(node)?.first()?;
    Some(Uart { node, registers: PaRange::new(Pa::new(start), size)? })
}
