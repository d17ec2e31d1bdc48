// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer vm stats` shows: the counters of each vCPU (docs/control.md), read without stopping
//! anybody. Numbers of a machine that runs need not be of one moment.
#![forbid(unsafe_code)]

use super::client::{ClientError, Row};
use crate::message::bytes;
use serde::Serialize;
use std::collections::BTreeMap;

/// Numbers by name.
pub type Numbers = BTreeMap<String, u64>;
/// How many exits took from 2^n up to 2^(n+1) ticks, by n; those of none are left out.
pub type Buckets = BTreeMap<u32, u64>;

/// What a machine counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stats {
    /// Ticks in a second.
    pub counter_hz: u64,
    /// What each VM counts.
    pub vms: Vec<VmStats>,
}

/// What a VM counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VmStats {
    /// Its name.
    pub name: String,
    /// The memory that it owns, whole pages.
    pub memory_bytes: u64,
    /// Its vCPUs, by number.
    pub vcpus: Vec<VcpuStats>,
}

/// What a vCPU counts, since its VM was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct VcpuStats {
    /// Exits by reason.
    pub exits: Numbers,
    /// Ticks at EL2 by reason.
    pub ticks: Numbers,
    /// Interrupts by kind.
    pub injected: Numbers,
    /// Cycles and instructions of the guest, and the ticks of all that is in `to_entry`.
    pub executed: Numbers,
    /// Time at EL2.
    pub at_el2: Buckets,
    /// From the exit by a physical interrupt to the entry that carries a virtual one.
    pub to_entry: Buckets,
}

impl Stats {
    /// Reads the rows of a reply.
    ///
    /// # Errors
    /// They are not as documented.
    pub fn read(counter_hz: u64, rows: Vec<Row>) -> Result<Self, ClientError> {
        let mut stats = Self { counter_hz, vms: Vec::new() };
        for row in rows {
            stats.add(row).map_err(ClientError::Strange)?;
        }
        Ok(stats)
    }

    fn add(&mut self, row: Row) -> Result<(), String> {
        let mut fields: BTreeMap<String, String> = row.0.into_iter().collect();
        let mut take = |key: &str| fields.remove(key).ok_or(format!("a row without {key}"));
        let (what, name) = (take("what")?, take("vm")?);
        if what == "vm" {
            let memory_bytes = number(&take("memory_bytes")?)?;
            self.vms.push(VmStats { name, memory_bytes, vcpus: Vec::new() });
            return Ok(());
        }
        let vcpu = usize::try_from(number(&take("vcpu")?)?).map_err(|e| e.to_string())?;
        let vm = self.vms.iter_mut().find(|vm| vm.name == name);
        let vcpus = &mut vm.ok_or(format!("a row of {name} before its own"))?.vcpus;
        if vcpu > vcpus.len() {
            return Err(format!("vCPU {vcpu} of {name} without those before it"));
        }
        if vcpu == vcpus.len() {
            vcpus.push(VcpuStats::default());
        }
        match vcpus.get_mut(vcpu) {
            Some(vcpu) => vcpu.add(&what, fields),
            None => Ok(()),
        }
    }
}

impl VcpuStats {
    fn add(&mut self, what: &str, fields: BTreeMap<String, String>) -> Result<(), String> {
        let numbers = match what {
            "exits" => &mut self.exits,
            "ticks" => &mut self.ticks,
            "injected" => &mut self.injected,
            "executed" => &mut self.executed,
            "at_el2" => return add_buckets(&mut self.at_el2, fields),
            "to_entry" => return add_buckets(&mut self.to_entry, fields),
            // What a later hypervisor says beyond that.
            _ => return Ok(()),
        };
        for (key, value) in fields {
            numbers.insert(key, number(&value)?);
        }
        Ok(())
    }
}

fn add_buckets(buckets: &mut Buckets, fields: BTreeMap<String, String>) -> Result<(), String> {
    for (key, value) in fields {
        let n = key.strip_prefix('b').and_then(|n| n.parse().ok()).filter(|n| *n < 64);
        buckets.insert(n.ok_or(format!("{key:?} is no bucket"))?, number(&value)?);
    }
    Ok(())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

/// Returns a table for each VM: a column for each vCPU.
#[must_use]
pub fn to_text(stats: &Stats) -> String {
    stats.vms.iter().map(|vm| table(vm, stats.counter_hz)).collect::<Vec<_>>().join("\n")
}

fn table(vm: &VmStats, counter_hz: u64) -> String {
    let mut lines =
        vec![(String::new(), (0..vm.vcpus.len()).map(|n| format!("vCPU {n}")).collect())];
    let mut add = |label: String, cell: &dyn Fn(&VcpuStats) -> String| {
        lines.push((label, vm.vcpus.iter().map(cell).collect::<Vec<_>>()));
    };
    let of = |numbers: &Numbers, key: &str| numbers.get(key).copied().unwrap_or(0);
    let first = vm.vcpus.first().cloned().unwrap_or_default();
    for reason in first.exits.keys() {
        add(format!("exits {reason}"), &|vcpu| of(&vcpu.exits, reason).to_string());
        let each = |vcpu: &VcpuStats| {
            let ticks = of(&vcpu.ticks, reason).checked_div(of(&vcpu.exits, reason));
            ticks.map_or("-".to_owned(), |ticks| nanoseconds(ticks, counter_hz))
        };
        add("  time of each".to_owned(), &each);
    }
    for kind in first.injected.keys() {
        add(format!("injected {kind}"), &|vcpu| of(&vcpu.injected, kind).to_string());
    }
    add("at EL2, 99 %".into(), &|vcpu| quantile(&vcpu.at_el2, counter_hz));
    add("interrupt to entry, 99 %".into(), &|vcpu| quantile(&vcpu.to_entry, counter_hz));
    for key in ["cycles", "instructions"] {
        add(key.to_owned(), &|vcpu| match of(&vcpu.executed, key) {
            0 => "-".to_owned(),
            n => n.to_string(),
        });
    }
    let label_width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let width = lines.iter().flat_map(|(_, cells)| cells).map(String::len).max().unwrap_or(0);
    let mut text = format!("{}: {} of memory\n", vm.name, bytes(vm.memory_bytes));
    for (label, cells) in lines {
        let cells: String = cells.iter().map(|cell| format!("  {cell:>width$}")).collect();
        text += format!("  {label:label_width$}{cells}").trim_end();
        text.push('\n');
    }
    text
}

/// Says below which power of two 99 of 100 are.
fn quantile(buckets: &Buckets, counter_hz: u64) -> String {
    let all: u128 = buckets.values().map(|n| u128::from(*n)).sum();
    let mut seen = 0;
    for (n, count) in buckets {
        seen += u128::from(*count);
        if seen * 100 >= all * 99 {
            let ticks = 1_u64.checked_shl(n + 1).unwrap_or(u64::MAX);
            return format!("< {}", nanoseconds(ticks, counter_hz));
        }
    }
    "-".to_owned()
}

fn nanoseconds(ticks: u64, counter_hz: u64) -> String {
    let ns = u128::from(ticks) * 1_000_000_000 / u128::from(counter_hz.max(1));
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{} us", ns / 1000),
        _ => format!("{} ms", ns / 1_000_000),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        let field = |word: &str| {
            let (key, value) = word.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        Row(text.split(' ').map(field).collect())
    }

    /// The rows of a VM with two vCPUs, as the hypervisor writes them.
    const ROWS: &str = "\
        what=vm vm=linux memory_bytes=268435456\n\
        what=exits vm=linux vcpu=0 call=10000 sysreg=3 mmio=20 irq=100 fault=0\n\
        what=ticks vm=linux vcpu=0 call=600000 sysreg=300 mmio=4000 irq=12500 fault=0\n\
        what=injected vm=linux vcpu=0 sgi=2 ppi=90 spi=7 lpi=0\n\
        what=executed vm=linux vcpu=0 cycles=1000000 instructions=0 to_entry_ticks=12000\n\
        what=at_el2 vm=linux vcpu=0 b5=9000 b6=1100\n\
        what=at_el2 vm=linux vcpu=0 b8=23\n\
        what=to_entry vm=linux vcpu=0 b6=99\n\
        what=exits vm=linux vcpu=1 call=0 sysreg=0 mmio=0 irq=0 fault=0\n\
        what=ticks vm=linux vcpu=1 call=0 sysreg=0 mmio=0 irq=0 fault=0\n\
        what=injected vm=linux vcpu=1 sgi=0 ppi=0 spi=0 lpi=0\n\
        what=executed vm=linux vcpu=1 cycles=0 instructions=0 to_entry_ticks=0";

    pub fn sample() -> Stats {
        Stats::read(62_500_000, ROWS.lines().map(row).collect()).unwrap()
    }

    #[test]
    fn rows_become_numbers() {
        let stats = sample();
        let vm = &stats.vms[0];
        assert_eq!((vm.name.as_str(), vm.memory_bytes, vm.vcpus.len()), ("linux", 1 << 28, 2));
        let vcpu = &vm.vcpus[0];
        assert_eq!(
            (vcpu.exits["call"], vcpu.ticks["irq"], vcpu.injected["spi"]),
            (10000, 12500, 7)
        );
        assert_eq!(vcpu.at_el2, Buckets::from([(5, 9000), (6, 1100), (8, 23)]));
        assert_eq!(vcpu.to_entry, Buckets::from([(6, 99)]));
        assert_eq!(vm.vcpus[1].at_el2, Buckets::new());
    }

    #[test]
    fn what_is_not_as_documented_is_refused_and_what_is_new_is_not() {
        let read = |text: &str| Stats::read(1, text.lines().map(row).collect());
        let vm = "what=vm vm=a memory_bytes=1\n";
        for wrong in [
            "vm=a memory_bytes=1",
            "what=vm vm=a memory_bytes=x",
            "what=exits vm=a vcpu=0 call=1",
            &format!("{vm}what=exits vm=a vcpu=1 call=1"),
            &format!("{vm}what=exits vm=a vcpu=0 call=-1"),
            &format!("{vm}what=exits vm=a vcpu=18446744073709551616 call=1"),
            &format!("{vm}what=at_el2 vm=a vcpu=0 b64=1"),
            &format!("{vm}what=at_el2 vm=a vcpu=0 x1=1"),
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let newer = format!("{vm}what=exits vm=a vcpu=0 call=1 new=2\nwhat=new vm=a vcpu=0 x=y");
        assert_eq!(read(&newer).unwrap().vms[0].vcpus[0].exits["new"], 2);
    }

    #[test]
    fn the_table_has_a_column_for_each_vcpu() {
        let expected = "\
linux: 256M of memory
                               vCPU 0     vCPU 1
  exits call                    10000          0
    time of each               960 ns          -
  exits fault                       0          0
    time of each                    -          -
  exits irq                       100          0
    time of each              2000 ns          -
  exits mmio                       20          0
    time of each              3200 ns          -
  exits sysreg                      3          0
    time of each              1600 ns          -
  injected lpi                      0          0
  injected ppi                     90          0
  injected sgi                      2          0
  injected spi                      7          0
  at EL2, 99 %              < 2048 ns          -
  interrupt to entry, 99 %  < 2048 ns          -
  cycles                      1000000          -
  instructions                      -          -
";
        assert_eq!(to_text(&sample()), expected);
    }
}
