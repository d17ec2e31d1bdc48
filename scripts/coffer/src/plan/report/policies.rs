// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer plan` prints of policies: in the text those that somebody chose, in JSON all.
#![forbid(unsafe_code)]

use cofferdam::plan::{OnCrash, OnEnd, OnLoss, PauseTime, Policies, VmPlan};
use serde::Serialize;

/// A VM's policies in the output of `--json`.
#[derive(Serialize, PartialEq, Eq, Debug)]
pub(super) struct JsonPolicies<'a> {
    on_crash: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    restarts_max: Option<u16>,
    #[serde(skip_serializing_if = "is_zero")]
    backoff_ms: u32,
    on_reboot: &'static str,
    on_poweroff: &'static str,
    on_loss: &'static str,
    after: Vec<&'a str>,
    watchdog_ms: Option<u32>,
    pause_time: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl<'a> JsonPolicies<'a> {
    pub(super) fn new(policies: &Policies, vms: &'a [VmPlan]) -> Self {
        let (on_crash, restarts_max, backoff_ms) = match policies.on_crash {
            OnCrash::Restart(restarts) => ("restart", restarts.most, restarts.backoff_ms),
            OnCrash::Stop => ("stop", None, 0),
            OnCrash::Preserve => ("preserve", None, 0),
            OnCrash::Machine => ("machine", None, 0),
        };
        let end = |on_end| match on_end {
            OnEnd::Restart => "restart",
            OnEnd::Stop => "stop",
            OnEnd::Machine => "machine",
        };
        let name = |id: &cofferdam::id::VmId| vms.get(id.index()).map(|vm| vm.name.as_str());
        Self {
            on_crash,
            restarts_max,
            backoff_ms,
            on_reboot: end(policies.on_reboot),
            on_poweroff: end(policies.on_poweroff),
            on_loss: match policies.on_loss {
                OnLoss::Tell => "tell",
                OnLoss::Stop => "stop",
                OnLoss::Ignore => "ignore",
            },
            after: policies.after.iter().filter_map(name).collect(),
            watchdog_ms: policies.watchdog_ms,
            pause_time: policies.pause_time == PauseTime::Stops,
        }
    }

    /// Lists what is not as it is without a word in the manifest; empty where all is.
    pub(super) fn chosen(&self) -> String {
        let or = JsonPolicies::new(&Policies::default(), &[]);
        let mut chosen = Vec::new();
        let restarts = self.restarts_max.map_or(String::new(), |most| format!(" {most} times"));
        let backoff = match self.backoff_ms {
            0 => String::new(),
            backoff_ms => format!(" after {backoff_ms}ms"),
        };
        let on_crash = format!("{}{restarts}{backoff}", self.on_crash);
        for (key, word, default) in [
            ("on_crash", on_crash.as_str(), or.on_crash),
            ("on_reboot", self.on_reboot, or.on_reboot),
            ("on_poweroff", self.on_poweroff, or.on_poweroff),
            ("on_loss", self.on_loss, or.on_loss),
        ] {
            if word != default {
                chosen.push(format!("{key} {word}"));
            }
        }
        if !self.after.is_empty() {
            chosen.push(format!("after {}", self.after.join(" ")));
        }
        if let Some(timeout_ms) = self.watchdog_ms {
            chosen.push(format!("watchdog {timeout_ms}ms"));
        }
        if self.pause_time {
            chosen.push("pause_time".into());
        }
        chosen.join(", ")
    }
}
