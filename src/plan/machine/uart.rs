// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console: which UART `/chosen` and `/aliases` mean.
#![forbid(unsafe_code)]

use super::irq::{Domain, Specifiers};
use super::walk::{Properties, Walk};
use super::{Uart, UartKind};
use crate::addr::PaRange;
use crate::plan::Path;
use crate::spec::dtb::{FdtNode, value};

/// The most UARTs that are looked at.
pub(super) const UARTS_MAX: usize = 16;

/// What a node's `compatible` states.
#[derive(Clone, Copy)]
pub(super) enum Family {
    Pl011,
    Ns16550,
    /// The Raspberry Pi's second UART: a 16550 whose spacing the binding fixes.
    Bcm2835Aux,
}

/// A UART that could be the console.
pub(super) struct Candidate<'a> {
    path: Path,
    kind: UartKind,
    pub registers: PaRange,
    interrupts: Specifiers<'a>,
}

/// Reads the node that the walk has reached; `None` when it is no UART that EL2 can drive.
pub(super) fn read<'a>(
    walk: &Walk<'a>,
    node: FdtNode<'_, 'a>,
    properties: &Properties<'a>,
    family: Family,
) -> Option<Candidate<'a>> {
    let kind = kind(node, family)?;
    let registers = walk.registers(properties.reg?, 0)?;
    // Up to the last register that a driver touches.
    let least_bytes = match kind {
        UartKind::Pl011 => 0x48,
        UartKind::Ns16550 { reg_shift, .. } => 8 << reg_shift,
    };
    (registers.size() >= least_bytes).then_some(())?;
    let interrupts = Specifiers::new(walk, node, properties);
    Some(Candidate { path: walk.path()?, kind, registers, interrupts })
}

fn kind(node: FdtNode<'_, '_>, family: Family) -> Option<UartKind> {
    match family {
        Family::Pl011 => return Some(UartKind::Pl011),
        Family::Bcm2835Aux => {
            return Some(UartKind::Ns16550 { reg_shift: 2, reg_io_width_bytes: 4 });
        }
        Family::Ns16550 => {}
    }
    let cell = |name, default: u8| match node.property(name) {
        None => Some(default),
        Some(property) => u8::try_from(value::cell(property.value)?).ok(),
    };
    let (reg_shift, reg_io_width_bytes) = (cell("reg-shift", 0)?, cell("reg-io-width", 1)?);
    // A wide access must not reach into the next register.
    let fits = reg_shift <= 2
        && reg_io_width_bytes.is_power_of_two()
        && reg_io_width_bytes <= 1 << reg_shift;
    fits.then_some(UartKind::Ns16550 { reg_shift, reg_io_width_bytes })
}

/// Chooses the console: `/chosen/stdout-path`, else the alias `serial0`. Returns its place among
/// the candidates.
pub(super) fn choose<'a>(
    candidates: &[Candidate<'a>],
    chosen: Option<FdtNode<'_, 'a>>,
    aliases: Option<FdtNode<'_, 'a>>,
) -> Option<usize> {
    let find = |name: &'a str| {
        let path = if name.starts_with('/') { name } else { text(aliases, name)? };
        candidates.iter().position(|candidate| is_path(path, &candidate.path))
    };
    // What follows the colon are options: "serial2:1500000n8".
    let stdout = text(chosen, "stdout-path").or_else(|| text(chosen, "linux,stdout-path"));
    let stdout = stdout.and_then(|path| find(path.split(':').next()?));
    stdout.or_else(|| find("serial0"))
}

impl Candidate<'_> {
    /// Puts the UART together, now that the GIC is known.
    pub(super) fn finish(&self, domain: Domain) -> Uart {
        Uart {
            path: self.path.clone(),
            kind: self.kind,
            registers: self.registers,
            interrupt: self.interrupts.get(domain, 0),
        }
    }
}

fn text<'a>(node: Option<FdtNode<'_, 'a>>, name: &str) -> Option<&'a str> {
    value::text(node?.property(name)?.value)
}

/// Returns whether `path` leads to `node`; a component may leave out its unit address.
fn is_path(path: &str, node: &str) -> bool {
    let mut node = node.split('/');
    let leads = path.split('/').all(|component| {
        node.next().is_some_and(|name| {
            name == component || name.split_once('@').is_some_and(|(base, _)| base == component)
        })
    });
    leads && node.next().is_none()
}
