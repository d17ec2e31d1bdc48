// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The boot: from the first line of Rust on the boot core to the first guest instruction.
//!
//! Each step that a person may wait for prints one numbered line (docs/boot.md); a step that fails
//! prints its number with `!` and what to do, and stops.
#![forbid(unsafe_code)]

mod bundle;
mod cores;
mod memory;
mod tree;
mod vms;

use crate::addr::Pa;
use crate::arch;
use crate::hypervisor;
use crate::hypervisor::Estate;
use crate::memory::owners::Owner;
use crate::memory::vmid::Vmids;
use crate::plan::machine::Machine;
use crate::sync::Lock;
use alloc::boxed::Box;
use core::convert::Infallible;
use core::fmt;

pub use cores::start_secondary;

/// Why the boot stops: the stage, and the sentence that says what is wrong.
struct Stop;

/// Prints an error that says all about why the boot stops.
fn fail(stage: Stage, error: &dyn fmt::Display) -> Stop {
    stop(stage, format_args!("{error}"))
}

/// Prints why the boot stops.
fn stop(stage: Stage, why: fmt::Arguments<'_>) -> Stop {
    log::error!(target: stage.0, "{why}");
    Stop
}

/// The number in front of a stage's line.
#[derive(Clone, Copy)]
struct Stage(&'static str);

impl Stage {
    const ENTRY: Self = Self("01");
    const TREE: Self = Self("02");
    const BUNDLE: Self = Self("03");
    const PLAN: Self = Self("04");
    const CORES: Self = Self("05");
    const MEMORY: Self = Self("06");
    const RAM: Self = Self("07");
    const VM: Self = Self("08");
    const UP: Self = Self("09");

    fn say(self, what: fmt::Arguments<'_>) {
        log::info!(target: self.0, "{what}");
    }
}

/// Boots the machine. Runs on the boot core, MMU off, with the host tree's address.
pub fn start(tree: Pa) -> ! {
    match boot(tree) {
        Ok(never) => match never {},
        Err(Stop) => hypervisor::stop_machine(),
    }
}

/// Goes through the stages. Each is a function of its own also in the image: as one, with one large
/// frame, they are 3 KB larger.
fn boot(tree_at: Pa) -> Result<Infallible, Stop> {
    let begun_ticks = arch::counter();
    let mut machine = tree::read(tree_at)?;
    let mut owners = memory::owners(&machine)?;
    let held = bundle::take(&machine, &mut owners)?;
    let plan = bundle::plan(&held)?;
    memory::set_apart(&plan, &mut owners)?;
    memory::keep_for_control(&plan, &mut machine, &mut owners)?;
    let machine: &Machine = Box::leak(Box::new(machine));
    let report = bundle::check(&plan, machine, &held)?;
    let mut cores = cores::bring_up(&plan, machine, &mut owners)?;
    let ram: u64 = owners.memory_of(Owner::Hypervisor).map(|range| range.size()).sum();
    Stage::RAM.say(format_args!("ram {ram} bytes for the hypervisor, bundle apart"));
    let console = vms::console(&plan)?;
    let bits = cores.features.vmid_bits.min(plan.knobs.vmid_bits_max.map_or(16, u32::from));
    let estate =
        Lock::new(Estate { machine, features: cores.features, owners, vmids: Vmids::new(bits) });
    let vms = vms::build(&plan, &report, &held, machine, &cores, &estate)?;
    let hypervisor = vms::install(&plan, machine, console, vms, &mut cores, estate)?;
    let ticks = arch::counter().wrapping_sub(begun_ticks);
    let ms = ticks.saturating_mul(1000) / arch::counter_frequency_hz().max(1);
    Stage::UP.say(format_args!("up in {ms} ms; guest output follows"));
    cores.release(hypervisor)
}
