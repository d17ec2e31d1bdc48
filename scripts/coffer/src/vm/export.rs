// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer export`: what a machine counts, as OpenMetrics text (version 1.0 of that specification).
#![forbid(unsafe_code)]

use super::stats::{Buckets, Numbers, Stats, VcpuStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// Buckets of histograms; what takes longer than 2^33 ticks is in the last one alone.
const BUCKETS: u32 = 33;

/// Writes what a machine counts, with the line that ends it.
///
/// # Errors
/// A string takes everything.
pub fn to_open_metrics(stats: &Stats) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Export(stats.clone())));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Export(Stats);

type Labels<'a> = Vec<(&'static str, String)>;

impl Export {
    /// Calls `each` with every vCPU and its labels.
    fn vcpus(&self, mut each: impl FnMut(&VcpuStats, Labels<'_>) -> fmt::Result) -> fmt::Result {
        for vm in &self.0.vms {
            for (vcpu, n) in vm.vcpus.iter().zip(0..) {
                each(vcpu, vec![("vm", vm.name.clone()), ("vcpu", format!("{n}"))])?;
            }
        }
        Ok(())
    }

    /// Writes counters that are told apart by one more label.
    fn by(
        &self,
        mut metric: MetricEncoder<'_>,
        label: &'static str,
        numbers: impl Fn(&VcpuStats) -> &Numbers,
        write: impl Fn(&mut MetricEncoder<'_>, u64) -> fmt::Result,
    ) -> fmt::Result {
        self.vcpus(|vcpu, labels| {
            for (key, value) in numbers(vcpu) {
                let labels = [&labels[..], &[(label, key.clone())]].concat();
                write(&mut metric.encode_family(&labels)?, *value)?;
            }
            Ok(())
        })
    }

    fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / self.0.counter_hz.max(1) as f64
    }

    fn histogram(
        &self,
        mut metric: MetricEncoder<'_>,
        of: impl Fn(&VcpuStats) -> (&Buckets, u64),
    ) -> fmt::Result {
        self.vcpus(|vcpu, labels| {
            let (buckets, ticks) = of(vcpu);
            let in_bucket = |n: u32| buckets.get(&n).copied().unwrap_or(0);
            let mut all: Vec<(f64, u64)> =
                (0..BUCKETS).map(|n| (self.seconds(2 << n), in_bucket(n))).collect();
            all.push((f64::INFINITY, buckets.range(BUCKETS..).map(|(_, count)| count).sum()));
            let count = buckets.values().sum();
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(self.seconds(ticks), count, &all, None)
        })
    }
}

/// No example of a value is given.
const NONE: Option<&Exemplar<NoLabelSet, u64>> = None;

fn counter(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter(&value, NONE)
}

impl Collector for Export {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge, Histogram};
        let exits = "Exits of a vCPU by reason";
        let exits = to.encode_descriptor("cofferdam_exits", exits, None, Counter)?;
        self.by(exits, "reason", |vcpu| &vcpu.exits, counter)?;
        let help = "Time of a vCPU at EL2 by reason";
        let time = to.encode_descriptor("cofferdam_el2", help, Some(&Unit::Seconds), Counter)?;
        self.by(
            time,
            "reason",
            |vcpu| &vcpu.ticks,
            |metric, ticks| metric.encode_counter(&self.seconds(ticks), NONE),
        )?;
        let help = "Interrupts that a vCPU was given, by kind";
        let injected = to.encode_descriptor("cofferdam_interrupts", help, None, Counter)?;
        self.by(injected, "kind", |vcpu| &vcpu.injected, counter)?;
        for (key, name, help) in [
            ("cycles", "cofferdam_guest_cycles", "Cycles of the guest, where they are counted"),
            ("instructions", "cofferdam_guest_instructions", "Instructions of the guest, likewise"),
        ] {
            let mut metric = to.encode_descriptor(name, help, None, Counter)?;
            self.vcpus(|vcpu, labels| match vcpu.executed.get(key) {
                Some(value) if *value != 0 => counter(&mut metric.encode_family(&labels)?, *value),
                _ => Ok(()),
            })?;
        }
        let help = "Time of single exits at EL2";
        let name = "cofferdam_exit_duration";
        let at_el2 = to.encode_descriptor(name, help, Some(&Unit::Seconds), Histogram)?;
        self.histogram(at_el2, |vcpu| (&vcpu.at_el2, vcpu.ticks.values().sum()))?;
        let help = "From a physical interrupt's exit to the entry with a virtual one";
        let name = "cofferdam_interrupt_to_entry";
        let to_entry = to.encode_descriptor(name, help, Some(&Unit::Seconds), Histogram)?;
        self.histogram(to_entry, |vcpu| {
            (&vcpu.to_entry, vcpu.executed.get("to_entry_ticks").copied().unwrap_or(0))
        })?;
        let help = "Memory that a VM owns";
        let name = "cofferdam_memory";
        let mut memory = to.encode_descriptor(name, help, Some(&Unit::Bytes), Gauge)?;
        for vm in &self.0.vms {
            let labels = [("vm", vm.name.clone())];
            let bytes = i64::try_from(vm.memory_bytes).map_err(|_| fmt::Error)?;
            memory.encode_family(&labels)?.encode_gauge(&bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
