// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What exits cost: the gates, and that the same run costs the same.

use crate::harness::{self, Result};
use coffer::bench::{self, BenchArgs, Costs, LIMITS, OPERATIONS};
use libtest_mimic::Trial;
use std::sync::{Arc, OnceLock};

/// One bench for all gates: it runs when the first one asks for it.
type Run = Arc<OnceLock<Result<Costs>>>;

pub fn trials() -> Vec<Trial> {
    let run = Run::default();
    let measured = |operation: &'static str| {
        let run = Arc::clone(&run);
        harness::test(&format!("bench::{operation}"), move || {
            let costs = run.get_or_init(measure).as_ref().map_err(Clone::clone)?;
            gate(costs, operation)
        })
    };
    OPERATIONS.iter().copied().map(measured).collect()
}

fn measure() -> Result<Costs> {
    harness::build_guests()?;
    let args = BenchArgs { cpu: "cortex-a72".into(), json: false, check: false, guest: None };
    let (mitigations_off, _) = bench::costs(&args).map_err(harness::text)?;
    Ok(mitigations_off)
}

fn gate(costs: &Costs, operation: &str) -> Result<()> {
    let Some(cost) = costs.get(operation) else {
        return Err("not measured".to_owned());
    };
    match LIMITS.iter().find(|limit| limit.operation == operation) {
        Some(limit) if *cost > limit.instructions_max => {
            Err(format!("{cost} instructions, {} allowed", limit.instructions_max))
        }
        _ => Ok(()),
    }
}
