// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The rows of `crash`, read and checked (docs/control.md).
#![forbid(unsafe_code)]

use super::super::client::{Client, ClientError, Row};
use super::super::port::Port;
use super::{HELD, PAGE_U64, PATIENCE};
use crate::crash::Registers;
use crate::crash::exits::LastExit;
use crate::crash::map::{Area, Map};
use cofferdam::control::Request;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// The most that a guest's last words may be.
const SAID_BYTES_MAX: usize = 1 << 20;

/// A crash, as the machine tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Crash {
    pub(super) vm: String,
    pub(super) cause: String,
    pub(super) vcpu: u64,
    pub(super) at_ticks: u64,
    pub(super) now_ticks: u64,
    /// Ticks in a second, which is told elsewhere.
    pub(super) hz: u64,
    pub(super) count: u64,
    pub(super) state: String,
    pub(super) ram: Range<u64>,
    /// What is kept of each vCPU that was on.
    pub(super) vcpus: BTreeMap<u64, Vcpu>,
    pub(super) map: Map,
    /// The last bytes that the guest has said.
    pub(super) said: Vec<u8>,
}

/// What is kept of a vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Vcpu {
    /// Its registers, in the order in which they are told.
    pub(super) registers: Vec<(String, u64)>,
    /// Its last exits, by time.
    pub(super) exits: Vec<LastExit>,
}

impl Crash {
    pub(super) fn ask<P: Port>(client: &mut Client<P>, vm: &str) -> Result<Self, ClientError> {
        let rows = client.ask(&Request::Crash { vm }.to_string(), PATIENCE)?;
        Self::parse(&rows).map_err(ClientError::Strange)
    }

    pub(super) fn parse(rows: &[Row]) -> Result<Self, String> {
        let (first, rows) = rows.split_first().ok_or("a crash without rows")?;
        if first.get("what") != "crash" {
            return Err(format!("{first:?} in place of a crash"));
        }
        let take = |key: &str| number(first.get(key));
        let (start, bytes) = (take("ram")?, take("ram_bytes")?);
        let end = start.checked_add(bytes).ok_or("memory without end")?;
        if start % PAGE_U64 != 0 || end % PAGE_U64 != 0 {
            return Err("memory that is no pages".to_owned());
        }
        let mut crash = Self {
            vm: first.get("vm").to_owned(),
            cause: first.get("cause").to_owned(),
            vcpu: take("vcpu")?,
            at_ticks: take("at_ticks")?,
            now_ticks: take("now_ticks")?,
            hz: 1,
            count: take("count")?,
            state: first.get("state").to_owned(),
            ram: start..end,
            vcpus: BTreeMap::new(),
            map: Map::default(),
            said: Vec::new(),
        };
        for row in rows {
            crash.add(row)?;
        }
        Ok(crash)
    }

    /// Takes one of the rows behind the first. Those that are not known are of a later hypervisor.
    fn add(&mut self, row: &Row) -> Result<(), String> {
        match row.get("what") {
            "vcpu" => {
                let registers = &mut self.vcpu(row)?.registers;
                for (key, value) in row.0.iter().filter(|(key, _)| key != "what" && key != "vcpu") {
                    registers.push((key.clone(), number(value)?));
                }
            }
            "exit" => self.vcpu(row)?.add(exit(row)?),
            "fault" => {
                let LastExit { detail, .. } = exit(row)?;
                self.vcpu(row)?.add(LastExit { detail: None, far: detail, ..exit(row)? });
            }
            "map" => self.map.0.push(Area {
                kind: row.get("kind").to_owned(),
                at: number(row.get("at"))?,
                bytes: number(row.get("size_bytes"))?,
                name: row.get("name").to_owned(),
            }),
            "console" => {
                let bytes = bytes(row).filter(|_| self.said.len() < SAID_BYTES_MAX);
                let is_next = number(row.get("at"))? == self.said.len() as u64;
                let strange = || format!("{row:?} of a console");
                self.said.extend(bytes.filter(|_| is_next).ok_or_else(strange)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn vcpu(&mut self, row: &Row) -> Result<&mut Vcpu, String> {
        Ok(self.vcpus.entry(number(row.get("vcpu"))?).or_default())
    }

    /// Returns the registers of the vCPUs, those of the one that has crashed in front.
    pub(super) fn registers(&self) -> Vec<(u64, Registers)> {
        let all = self.vcpus.iter().map(|(vcpu, own)| (*vcpu, registers(&own.registers)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(vcpu, _)| (*vcpu != self.vcpu, *vcpu));
        all
    }

    /// Returns how long so many ticks are, in whole microseconds.
    pub(super) fn time(&self, ticks: u64) -> Duration {
        let us = u128::from(ticks) * 1_000_000 / u128::from(self.hz.max(1));
        Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
    }

    /// Returns whether the memory is as the crash has left it.
    pub(super) fn is_kept(&self) -> bool {
        self.state == HELD
    }
}

impl Vcpu {
    /// Takes one more exit. An access that no device has answered is told twice: as an access, and
    /// as the fault that it became.
    fn add(&mut self, exit: LastExit) {
        let same = |own: &&mut LastExit| (own.at_ticks, own.pc) == (exit.at_ticks, exit.pc);
        match self.exits.iter_mut().find(same) {
            Some(own) => own.far = own.far.or(exit.far),
            None => self.exits.push(exit),
        }
        self.exits.sort_by_key(|exit| exit.at_ticks);
    }
}

fn exit(row: &Row) -> Result<LastExit, String> {
    let take = |key: &str| number(row.get(key));
    Ok(LastExit {
        syndrome: take("syndrome")?,
        pc: take("pc")?,
        at_ticks: take("at_ticks")?,
        detail: Some(take("detail")?),
        far: None,
    })
}

pub(super) fn number(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| format!("{text:?} in place of a number"))
}

/// Returns the bytes of a row.
pub(super) fn bytes(row: &Row) -> Option<Vec<u8>> {
    let digits = row.get("bytes").as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let pairs = digits.chunks_exact(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

fn registers(values: &[(String, u64)]) -> Registers {
    let get = |name: &str| values.iter().find(|(own, _)| own == name).map_or(0, |(_, v)| *v);
    let pstate = get("pstate");
    // M[3:0] is 5 at EL1 with SP_EL1; all else that runs here uses SP_EL0.
    let sp = if pstate & 0xf == 5 { "sp_el1" } else { "sp_el0" };
    Registers {
        x: std::array::from_fn(|n| get(&format!("x{n}"))),
        sp: get(sp),
        pc: get("pc"),
        pstate,
        sctlr: get("sctlr_el1"),
        tcr: get("tcr_el1"),
        ttbr0: get("ttbr0_el1"),
        ttbr1: get("ttbr1_el1"),
        vbar: get("vbar_el1"),
    }
}
