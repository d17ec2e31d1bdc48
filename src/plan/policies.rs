// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Policies: what is done when a VM ends, hangs, pauses, or loses another VM that it needs.
//!
//! Says what was chosen; who carries it out is somebody else.
#![forbid(unsafe_code)]

use super::{List, VMS_MAX};
use crate::id::VmId;
use serde::{Deserialize, Serialize};

/// What is done with a VM when something happens. The default is what a manifest that says nothing
/// gets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Policies {
    /// When it cannot go on: its kernel panics, its watchdog fires, it cannot take an exception.
    pub on_crash: OnCrash,
    /// When it asks for a reset.
    pub on_reboot: OnEnd,
    /// When it turns itself off.
    pub on_poweroff: OnEnd,
    /// When a VM that it starts after is gone.
    pub on_loss: OnLoss,
    /// The VMs that start before it and that it depends on: all stand before it in the plan, so
    /// that the plan's order is one in which VMs can start, and there is no circle.
    pub after: List<VmId, VMS_MAX>,
    /// Arms its watchdog before its first instruction, with a timeout of so many milliseconds,
    /// never 0. Otherwise the watchdog is off until the guest turns it on.
    pub watchdog_ms: Option<u32>,
    /// What its time does while it is paused.
    pub pause_time: PauseTime,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            on_crash: OnCrash::default(),
            on_reboot: OnEnd::Restart,
            on_poweroff: OnEnd::Stop,
            on_loss: OnLoss::default(),
            after: List::default(),
            watchdog_ms: None,
            pause_time: PauseTime::default(),
        }
    }
}

/// What is done when a VM crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnCrash {
    /// It starts again.
    Restart(Restarts),
    /// It is turned off.
    Stop,
    /// It stays as it is, to be looked at.
    Preserve,
    /// The machine starts again, with all VMs.
    Machine,
}

impl Default for OnCrash {
    fn default() -> Self {
        Self::Restart(Restarts::default())
    }
}

/// How a VM that crashes again and again is restarted. The default is at once and always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Restarts {
    /// The most restarts, behind which it is turned off; `None`: there is no limit.
    pub most: Option<u16>,
    /// The milliseconds that pass before the first restart; each further one takes twice as long.
    pub backoff_ms: u32,
}

/// What is done when a VM ends in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnEnd {
    /// It starts again; nobody else notices.
    Restart,
    /// It stays off.
    Stop,
    /// The machine does the same, with all VMs.
    Machine,
}

/// What is done when a VM that another one depends on is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum OnLoss {
    /// The other is told, by a line of its GPIO controller.
    #[default]
    Tell,
    /// The other is turned off as well.
    Stop,
    /// Nothing.
    Ignore,
}

/// What a VM's time does while it is paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum PauseTime {
    /// It goes on, as a real machine's does while nobody looks.
    #[default]
    Runs,
    /// It stops: the guest does not see that it was paused.
    Stops,
}
