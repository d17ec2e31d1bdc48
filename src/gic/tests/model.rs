// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random guests on the models, against a GIC without list registers.
#![forbid(unsafe_code)]

use super::fake::{EoiMode, SPURIOUS};
use super::*;
use proptest::prelude::*;
use std::vec;

/// The interrupts that play: SGIs, a software PPI, the timer, an edge, a level, linked SPIs.
const PLAYERS: [u32; 9] = [0, 1, 20, TIMER, 33, 34, 35, 40, 41];
const EDGES: [u32; 4] = [0, 1, 33, 35];

#[derive(Clone, Copy, Debug)]
enum Op {
    Enable(u32),
    Disable(u32),
    SetPending(u32),
    ClearPending(u32),
    SetActive(u32),
    ClearActive(u32),
    Priority(u32, u8),
    Route(u32, usize),
    Sgi(u32, u64),
    Level(u32, Level),
    Edge(u32),
    Fire(u32),
    Acknowledge,
    End,
    Dir(usize),
    Groups(u32),
    CpuGroups(u32),
    Group(u32, u32),
    Compare,
    Vacate,
}

/// An interrupt as the specification has it: one state machine, wherever it is.
#[derive(Clone, Copy, Default)]
struct Ideal {
    enabled: bool,
    priority: u8,
    edge: bool,
    latch: bool,
    line: bool,
    active: bool,
    group: u32,
    target: usize,
    /// The physical interrupt has fired and the guest has not acknowledged it.
    is_fresh: bool,
}

impl Ideal {
    fn is_pending(self) -> bool {
        self.latch || self.line && !self.edge
    }
}

struct Game {
    machine: Machine,
    ideal: Vec<Vec<Ideal>>,
    groups: u32,
    /// For each vCPU what it has acknowledged and not ended, with the priority then.
    running: Vec<Vec<(u32, u8)>>,
    /// What was ended with the priority drop only: by whom, and what.
    dropped: Vec<(usize, u32)>,
    eoi_mode: EoiMode,
}

impl Game {
    fn new(vcpus: usize, list_registers: usize, eoi_mode: EoiMode) -> Self {
        let mut machine = Machine::enabled(vcpus, list_registers);
        // SPI 33 and 35 are edge-triggered: ICFGR2.
        machine.write(0xc08, 0x88);
        let ideal = |intid: u32| Ideal {
            enabled: true,
            priority: 0xa0,
            edge: EDGES.contains(&intid),
            group: 1,
            ..Ideal::default()
        };
        let ideal = vec![(0..64).map(ideal).collect::<Vec<_>>(); vcpus];
        machine.cores.iter_mut().for_each(|(_, cpu)| cpu.eoi_mode = eoi_mode);
        machine.settle_all();
        let running = vec![Vec::new(); vcpus];
        Self { machine, ideal, groups: 3, running, dropped: Vec::new(), eoi_mode }
    }

    /// SPIs are the VM's, and kept with vCPU 0.
    fn at(&mut self, vcpu: usize, intid: u32) -> &mut Ideal {
        &mut self.ideal[if intid < 32 { vcpu } else { 0 }][intid as usize]
    }
    fn get(&self, vcpu: usize, intid: u32) -> Ideal {
        self.ideal[if intid < 32 { vcpu } else { 0 }][intid as usize]
    }
    fn is_running(&self, vcpu: usize, intid: u32) -> bool {
        let is_here = |n: usize| n == vcpu || intid >= 32;
        let mut running = self.running.iter().enumerate().filter(|(n, _)| is_here(*n));
        running.any(|(_, stack)| stack.iter().any(|&(running, _)| running == intid))
    }

    fn play(&mut self, vcpu: usize, op: Op) {
        let vcpu = vcpu % self.ideal.len();
        match op {
            Op::Enable(intid) => {
                self.at(vcpu, intid).enabled = true;
                self.machine.write_bit(vcpu, 0x100, intid);
            }
            Op::Disable(intid) => {
                self.at(vcpu, intid).enabled = false;
                self.machine.write_bit(vcpu, 0x180, intid);
            }
            Op::SetPending(intid) => {
                self.at(vcpu, intid).latch = true;
                self.machine.write_bit(vcpu, 0x200, intid);
            }
            Op::ClearPending(intid) => {
                let ideal = self.at(vcpu, intid);
                (ideal.latch, ideal.is_fresh) = (false, false);
                self.machine.write_bit(vcpu, 0x280, intid);
            }
            Op::SetActive(intid) => {
                self.at(vcpu, intid).active = true;
                self.machine.write_bit(vcpu, 0x300, intid);
            }
            Op::ClearActive(intid) => {
                // Of what runs, only the end may clear it: else the end is UNPREDICTABLE.
                if !self.is_running(vcpu, intid) {
                    self.deactivate(vcpu, intid);
                    self.machine.write_bit(vcpu, 0x380, intid);
                }
            }
            Op::Priority(intid, priority) => {
                // The priority of an active interrupt must not change.
                if !self.get(vcpu, intid).active {
                    self.at(vcpu, intid).priority = priority & 0xf8;
                    self.machine.write_priority(vcpu, intid, priority);
                }
            }
            Op::Route(intid, target) => {
                self.at(vcpu, intid).target = target;
                self.machine.write_router(intid, affinity(target as u64).get());
            }
            Op::Sgi(intid, targets) => {
                for target in 0..self.ideal.len() {
                    if targets >> target & 1 != 0 {
                        self.at(target, intid).latch = true;
                    }
                }
                self.machine.send_sgi(vcpu, u64::from(intid) << 24 | targets);
            }
            Op::Level(intid, level) => self.set_level(vcpu, intid, level),
            Op::Edge(intid) => {
                self.at(vcpu, intid).latch = true;
                self.machine.raise_edge(intid);
            }
            Op::Fire(intid) => {
                let fired = match intid {
                    TIMER => self.machine.fire_timer(vcpu),
                    _ => self.machine.fire_spi(intid),
                };
                if fired {
                    let ideal = self.at(vcpu, intid);
                    (ideal.latch, ideal.is_fresh) = (true, true);
                }
            }
            Op::Acknowledge => self.acknowledge(vcpu),
            Op::End => self.end(vcpu),
            Op::Dir(index) => self.dir(vcpu, index),
            Op::Groups(groups) => {
                self.groups = groups;
                self.machine.write(0, groups.into());
            }
            Op::CpuGroups(groups) => self.machine.cpu(vcpu).groups = groups,
            Op::Group(intid, group) => self.set_group(vcpu, intid, group),
            Op::Compare => self.compare(),
            Op::Vacate => self.machine.vacate(vcpu),
        }
        self.machine.settle(vcpu);
        self.check_physical();
    }

    fn set_group(&mut self, vcpu: usize, intid: u32, group: u32) {
        // The group of an active interrupt must not change.
        if self.get(vcpu, intid).active {
            return;
        }
        self.at(vcpu, intid).group = group;
        let offset = 0x80 + 4 * u64::from(intid >> 5);
        let old = match intid {
            0..32 => self.machine.read_private(vcpu, 0x80),
            _ => self.machine.read(offset),
        };
        let value = old & !(1 << (intid & 31)) | u64::from(group) << (intid & 31);
        match intid {
            0..32 => self.machine.write_private(vcpu, 0x80, value),
            _ => self.machine.write(offset, value),
        }
    }

    fn set_level(&mut self, vcpu: usize, intid: u32, level: Level) {
        let ideal = self.at(vcpu, intid);
        let is_high = level == Level::High;
        ideal.latch |= ideal.edge && is_high && !ideal.line;
        ideal.line = is_high;
        if intid < 32 {
            let own = self.machine.own(vcpu);
            own.set_level(Vintid::new(intid), level, &self.machine.effects);
        } else {
            self.machine.set_level(intid, level);
        }
    }

    fn deactivate(&mut self, vcpu: usize, intid: u32) {
        self.at(vcpu, intid).active = false;
        self.dropped.retain(|&(by, dropped)| dropped != intid || intid < 32 && by != vcpu);
    }

    fn acknowledge(&mut self, vcpu: usize) {
        let limit = self.running[vcpu].last().map_or(0xff, |&(_, priority)| priority);
        let groups = self.groups & self.machine.cpu(vcpu).groups;
        let best = PLAYERS.into_iter().filter(|&intid| {
            let ideal = self.get(vcpu, intid);
            let is_mine = intid < 32 || ideal.target == vcpu;
            let is_on = ideal.enabled && groups >> ideal.group & 1 != 0;
            is_on && ideal.is_pending() && !ideal.active && is_mine && ideal.priority < limit
        });
        let best: Vec<_> = best.map(|intid| (self.get(vcpu, intid).priority, intid)).collect();
        let most_urgent = best.iter().map(|&(priority, _)| priority).min();
        let intid = self.machine.cpu(vcpu).acknowledge();
        let expected: Vec<_> = best.iter().filter(|&&(p, _)| Some(p) == most_urgent).collect();
        if intid == SPURIOUS {
            assert!(expected.is_empty(), "vCPU {vcpu} lost one of {expected:?}");
            return;
        }
        assert!(
            expected.iter().any(|&&(_, expected)| expected == intid),
            "vCPU {vcpu} got {intid}, not one of {expected:?}"
        );
        let ideal = self.at(vcpu, intid);
        (ideal.latch, ideal.active, ideal.is_fresh) = (false, true, false);
        let priority = ideal.priority;
        self.running[vcpu].push((intid, priority));
    }

    fn end(&mut self, vcpu: usize) {
        let Some((intid, _)) = self.running[vcpu].pop() else { return };
        self.machine.cpu(vcpu).end(intid);
        if self.eoi_mode == EoiMode::DropAndDeactivate {
            self.deactivate(vcpu, intid);
        } else {
            self.dropped.push((vcpu, intid));
        }
    }

    /// An SPI may be deactivated on any vCPU.
    fn dir(&mut self, vcpu: usize, index: usize) {
        if self.dropped.is_empty() {
            return;
        }
        let (by, intid) = self.dropped[index % self.dropped.len()];
        let vcpu = if intid < 32 { by } else { vcpu };
        self.machine.dir(vcpu, intid);
        self.deactivate(vcpu, intid);
        self.machine.settle(vcpu);
    }

    /// What the guest reads is what is.
    fn compare(&mut self) {
        for vcpu in 0..self.ideal.len() {
            self.machine.reconcile(vcpu);
        }
        for vcpu in 0..self.ideal.len() {
            for intid in PLAYERS {
                let ideal = self.get(vcpu, intid);
                let read = |first: u64| match intid {
                    0..32 => self.machine.read_private(vcpu, first) >> intid & 1 != 0,
                    _ => self.machine.read(first + 4) >> (intid - 32) & 1 != 0,
                };
                let pending = (read(0x200), read(0x280));
                // The line of the timer is always high here, which makes it pending while active.
                if intid != TIMER || !ideal.active {
                    let expected = (ideal.is_pending(), ideal.is_pending());
                    assert_eq!(pending, expected, "pending {intid}");
                }
                let active = (read(0x300), read(0x380));
                assert_eq!(active, (ideal.active, ideal.active), "active {intid}");
            }
        }
    }

    /// A physical interrupt is active from when it fires until the guest has deactivated it.
    fn check_physical(&self) {
        let linked = LINKED_SPIS.map(|intid| (0, intid)).into_iter();
        for (vcpu, intid) in linked.chain((0..self.ideal.len()).map(|vcpu| (vcpu, TIMER))) {
            let ideal = self.get(vcpu, intid);
            let is_active = match intid {
                TIMER => self.machine.physical_ppis.contains(&(vcpu, TIMER)),
                _ => self.machine.physical_spis.contains(&(intid + 100)),
            };
            if ideal.is_fresh {
                assert!(is_active, "{intid} deactivated before it was delivered");
            } else if !ideal.latch && !ideal.active {
                assert!(!is_active, "{intid} left active");
            }
        }
    }

    /// In the end everything is delivered and nothing is left.
    fn finish(&mut self) {
        self.play(0, Op::Groups(3));
        for vcpu in 0..self.ideal.len() {
            self.play(vcpu, Op::CpuGroups(3));
            for intid in PLAYERS {
                self.play(vcpu, Op::Enable(intid));
                self.play(vcpu, Op::Level(intid, Level::Low));
                if intid >= 32 {
                    self.play(vcpu, Op::Route(intid, 0));
                }
            }
            while !self.running[vcpu].is_empty() {
                self.play(vcpu, Op::End);
            }
        }
        while let Some(&(vcpu, _)) = self.dropped.first() {
            self.play(vcpu, Op::Dir(0));
        }
        for vcpu in 0..self.ideal.len() {
            PLAYERS.into_iter().for_each(|intid| self.play(vcpu, Op::ClearActive(intid)));
        }
        for vcpu in 0..self.ideal.len() {
            for _ in 0..PLAYERS.len() {
                self.play(vcpu, Op::Acknowledge);
                self.play(vcpu, Op::End);
                self.play(vcpu, Op::Dir(0));
            }
            assert_eq!(self.machine.cpu(vcpu).acknowledge(), SPURIOUS);
        }
        let left = self.ideal.iter().flatten().any(|ideal| ideal.is_pending() || ideal.active);
        assert!(!left);
        self.compare();
        assert!(self.machine.physical_ppis.is_empty() && self.machine.physical_spis.is_empty());
    }
}

fn player() -> impl Strategy<Value = u32> {
    (0..PLAYERS.len()).prop_map(|n| PLAYERS[n])
}

fn op() -> impl Strategy<Value = Op> {
    let linked = prop_oneof![Just(TIMER), Just(40u32), Just(41)];
    let with_line = prop_oneof![Just(20u32), Just(33), Just(34)];
    prop_oneof![
        2 => player().prop_map(Op::Enable),
        1 => player().prop_map(Op::Disable),
        3 => player().prop_map(Op::SetPending),
        1 => player().prop_map(Op::ClearPending),
        1 => player().prop_map(Op::SetActive),
        2 => player().prop_map(Op::ClearActive),
        3 => (player(), any::<u8>()).prop_map(|(intid, priority)| Op::Priority(intid, priority)),
        2 => (33u32..=41, 0usize..5).prop_map(|(intid, target)| Op::Route(intid, target)),
        3 => (0u32..2, 0u64..16).prop_map(|(intid, targets)| Op::Sgi(intid, targets)),
        3 => with_line.clone().prop_map(|intid| Op::Level(intid, Level::High)),
        2 => with_line.prop_map(|intid| Op::Level(intid, Level::Low)),
        2 => (33u32..36).prop_map(Op::Edge),
        4 => linked.prop_map(Op::Fire),
        8 => Just(Op::Acknowledge),
        6 => Just(Op::End),
        3 => any::<usize>().prop_map(Op::Dir),
        1 => prop_oneof![1 => 0u32..3, 3 => Just(3)].prop_map(Op::Groups),
        1 => prop_oneof![1 => 0u32..3, 3 => Just(3)].prop_map(Op::CpuGroups),
        2 => (player(), 0u32..2).prop_map(|(intid, group)| Op::Group(intid, group)),
        1 => Just(Op::Compare),
        1 => Just(Op::Vacate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// T67 to T72: nothing lost, nothing doubled, the most urgent first, links let go in time.
    #[test]
    fn t67_random_guests_see_an_ideal_gic(
        vcpus in 1usize..=4,
        list_registers in 1usize..=4,
        drops_only in any::<bool>(),
        ops in prop::collection::vec((0usize..4, op()), 1..120),
    ) {
        let mode = if drops_only { EoiMode::DropOnly } else { EoiMode::DropAndDeactivate };
        let mut game = Game::new(vcpus, list_registers, mode);
        ops.into_iter().for_each(|(vcpu, op)| game.play(vcpu, op));
        game.finish();
    }
}
