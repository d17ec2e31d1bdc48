// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer bench`: what an exit costs, in instructions, beside what it costs the peers.
//!
//! The guest `guests/bench` counts on QEMU's instruction clock, where a tick is an instruction and
//! every repeat gives the same numbers. One boot with the mitigations off, one with them on, one
//! that resets its VM over and over.
#![forbid(unsafe_code)]

mod baseline;
mod measure;
mod table;

use crate::command::Exit;
use crate::run::Error;
pub use baseline::Baseline;
use measure::Measured;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Measures what exits cost, in instructions
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The core, as QEMU names it
    #[arg(long, default_value = "cortex-a72")]
    pub cpu: String,
    /// Prints a JSON list of operations and instructions, with the mitigations off
    #[arg(long)]
    pub json: bool,
    /// Fails where an operation costs more than it may, or more than the baseline allows
    #[arg(long)]
    pub check: bool,
    /// Makes what is measured the baseline of this core
    #[arg(long, conflicts_with = "check")]
    pub renew: bool,
    /// The ELF file of the bench guest; found in the target folder unless told
    #[arg(long, value_name = "FILE")]
    pub guest: Option<PathBuf>,
}

/// What each operation costs, by its name.
pub type Costs = BTreeMap<String, u64>;

/// What an operation may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The operation's name.
    pub operation: &'static str,
    /// The most instructions, counters compiled in, mitigations off; of `…_bytes`, the most bytes.
    pub max: u64,
}

/// What operations may cost on a Cortex-A72.
pub const LIMITS: &[Limit] = &[
    Limit { operation: "hvc_psci_version", max: 130 },
    Limit { operation: "smc_psci_version", max: 135 },
    Limit { operation: "gicd_iidr_read", max: 200 },
    Limit { operation: "gicd_isenabler_write", max: 230 },
    Limit { operation: "sgi1r_write", max: 175 },
    Limit { operation: "self_sgi_to_vector", max: 215 },
    Limit { operation: "vtimer_to_vector", max: 130 },
    Limit { operation: "ipi_one_way", max: 330 },
    Limit { operation: "ipi_round_trip", max: 760 },
    Limit { operation: "cpu_on", max: 1200 },
    Limit { operation: "reset_to_guest", max: 1_500_000 },
    Limit { operation: "restart_64_mib", max: 10_000_000 },
    Limit { operation: "image_bytes", max: 240 << 10 },
    Limit { operation: "ram_bytes", max: 1 << 20 },
];

/// The operations that a bench has to report.
pub const OPERATIONS: &[&str] = &[
    "hvc_psci_version",
    "smc_psci_version",
    "gicd_iidr_read",
    "gicd_isenabler_write",
    "gicr_isenabler_write",
    "sgi1r_write",
    "self_sgi_to_vector",
    "vtimer_to_vector",
    "ipi_one_way",
    "ipi_round_trip",
    "cpu_on",
    "reset_to_guest",
    "restart_64_mib",
    "image_bytes",
    "ram_bytes",
];

/// Carries out `coffer bench`.
///
/// # Errors
/// Says why nothing was measured.
pub fn bench(args: &BenchArgs) -> Result<Exit, Error> {
    let measured = match measure::measure(args)? {
        Measured::Costs { mitigations_off, mitigations_on } => (mitigations_off, mitigations_on),
        Measured::Problem(problem, verdict) => {
            eprintln!("error: {problem}");
            return Ok(verdict);
        }
    };
    if args.json {
        println!("{}", table::json(&measured.0));
    } else {
        print!("{}", table::text(&measured.0, &measured.1));
    }
    let now = [&measured.0, &measured.1];
    if args.renew {
        Baseline::load()?.renew(&args.cpu, now)?;
    }
    if !args.check {
        return Ok(Exit::Done);
    }
    let mut complaints = complaints(&measured.0);
    complaints.extend(Baseline::load()?.complaints(&args.cpu, now));
    for complaint in &complaints {
        eprintln!("error: {complaint}");
    }
    Ok(if complaints.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Returns what is wrong with the costs: an operation that is missing, or costs more than it may.
#[must_use]
pub fn complaints(costs: &Costs) -> Vec<String> {
    let missing = OPERATIONS.iter().filter(|&&operation| !costs.contains_key(operation));
    let missing = missing.map(|operation| format!("{operation}: not measured"));
    let over = LIMITS.iter().filter_map(|limit| {
        let cost = costs.get(limit.operation).filter(|&&cost| cost > limit.max)?;
        let Limit { operation, max } = limit;
        Some(format!("{operation}: {cost}, {max} allowed"))
    });
    missing.chain(over).collect()
}

/// Measures as `coffer bench` does and returns the costs with the mitigations off and on.
///
/// # Errors
/// Says what went wrong.
pub fn costs(args: &BenchArgs) -> Result<(Costs, Costs), Error> {
    match measure::measure(args)? {
        Measured::Costs { mitigations_off, mitigations_on } => {
            Ok((mitigations_off, mitigations_on))
        }
        Measured::Problem(problem, _) => Err(Error::Tool(format!("bench: {problem}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_allows_its_own_value_and_no_more() {
        let mut costs: Costs = OPERATIONS.iter().map(|&name| (name.to_owned(), 1)).collect();
        costs.insert("hvc_psci_version".into(), 130);
        assert_eq!(complaints(&costs), [""; 0]);
        costs.insert("hvc_psci_version".into(), 131);
        assert_eq!(complaints(&costs), ["hvc_psci_version: 131, 130 allowed"]);
    }

    #[test]
    fn what_is_not_measured_is_a_complaint() {
        assert_eq!(complaints(&Costs::new()).len(), OPERATIONS.len());
    }

    #[test]
    fn every_limit_is_on_an_operation() {
        assert!(LIMITS.iter().all(|limit| OPERATIONS.contains(&limit.operation)));
    }
}
