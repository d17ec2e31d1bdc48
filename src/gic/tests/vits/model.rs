// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random queues of commands, against an ITS that keeps everything in maps.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// How many vCPUs, devices, events of each and collections play, and one more of each is asked for.
const FEW: u64 = 3;
const VCPUS: usize = 3;
/// The LPIs that play: some of one word and of its neighbour.
const LPIS: [u64; 6] = [8192, 8193, 8223, 8224, 8225, 8447];
/// An SGI, at priority 0x80.
const SGI: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    Mapd(u64, u64),
    Unmapd(u64),
    Mapc(u64, u64),
    Unmapc(u64),
    Mapti((u64, u64), u64, u64),
    Movi((u64, u64), u64),
    Movall(u64, u64),
    Discard((u64, u64)),
    Inv((u64, u64)),
    Invall(u64),
    Int((u64, u64)),
    Clear((u64, u64)),
    Sync(u64),
    Configure(u64, u8),
    Sgi(usize),
    Acknowledge(usize),
    End(usize),
    Vacate(usize),
    Groups(u64),
}

/// An LPI: what its configuration was when it was last read, and for whom it is pending.
#[derive(Clone, Copy, Default)]
struct Ideal {
    read: u8,
    pending: Option<u64>,
}

struct Game {
    bed: Bed,
    devices: BTreeMap<u64, u64>,
    events: BTreeMap<(u64, u64), (u64, u64)>,
    collections: BTreeMap<u64, u64>,
    lpis: BTreeMap<u64, Ideal>,
    table: BTreeMap<u64, u8>,
    sgis: BTreeSet<usize>,
    groups: u64,
    /// What each vCPU has acknowledged and not ended, with its priority.
    running: Vec<Vec<(u32, u8)>>,
}

impl Game {
    fn new(list_registers: usize, lpis: LpiState) -> Self {
        let mut bed = Bed::new(VCPUS, list_registers);
        bed.run([unmapd(5), unmapc(0), unmapc(1), unmapc(2)]);
        for vcpu in 0..VCPUS {
            bed.machine.cpu(vcpu).lpis = lpis;
            bed.machine.write_private(vcpu, 0x100, 1 << SGI);
            bed.machine.write_priority(vcpu, SGI, 0x80);
        }
        bed.machine.settle_all();
        let (devices, events, collections, sgis) = Default::default();
        let lpis = LPIS.into_iter().map(|lpi| (lpi, Ideal::default())).collect();
        let table = LPIS.into_iter().map(|lpi| (lpi, 0)).collect();
        let running = vec![Vec::new(); VCPUS];
        Self { bed, devices, events, collections, lpis, table, sgis, groups: 3, running }
    }

    /// Returns the LPI and the vCPU of an event that is mapped with its collection.
    fn translate(&self, event: (u64, u64)) -> Option<(u64, u64)> {
        let &(lpi, collection) = self.events.get(&event)?;
        Some((lpi, *self.collections.get(&collection)?))
    }
    fn lpi(&mut self, lpi: u64) -> &mut Ideal {
        self.lpis.get_mut(&lpi).unwrap()
    }

    fn play(&mut self, op: Op) {
        match op {
            Op::Mapd(device, size) => {
                self.events.retain(|&(owner, _), _| owner != device);
                self.devices.insert(device, size);
                self.bed.run([mapd(device, size)]);
            }
            Op::Unmapd(device) => {
                self.events.retain(|&(owner, _), _| owner != device);
                self.devices.remove(&device);
                self.bed.run([unmapd(device)]);
            }
            Op::Mapc(collection, vcpu) => {
                if vcpu < FEW {
                    self.collections.insert(collection, vcpu);
                }
                self.bed.run([mapc(collection, vcpu)]);
            }
            Op::Unmapc(collection) => {
                self.collections.remove(&collection);
                self.bed.run([unmapc(collection)]);
            }
            Op::Mapti(event, lpi, collection) => self.mapti(event, lpi, collection),
            Op::Movi(event, collection) => self.movi(event, collection),
            Op::Movall(from, to) => {
                let pending = self.lpis.values_mut().filter(|lpi| lpi.pending == Some(from));
                if to < FEW {
                    pending.for_each(|lpi| lpi.pending = Some(to));
                }
                self.bed.run([movall(from, to)]);
            }
            Op::Discard(event) => {
                if let Some((lpi, _)) = self.events.remove(&event) {
                    self.lpi(lpi).pending = None;
                }
                self.bed.run([discard(event)]);
            }
            Op::Inv(event) => {
                if let Some((lpi, _)) = self.translate(event) {
                    self.lpi(lpi).read = self.table[&lpi];
                }
                self.bed.run([inv(event)]);
            }
            Op::Invall(collection) => {
                if self.collections.contains_key(&collection) {
                    self.lpis.iter_mut().for_each(|(lpi, ideal)| ideal.read = self.table[lpi]);
                }
                self.bed.run([invall(collection)]);
            }
            Op::Int(event) => {
                if let Some((lpi, vcpu)) = self.translate(event) {
                    self.lpi(lpi).pending = Some(vcpu);
                }
                self.bed.run([int(event)]);
            }
            Op::Clear(event) => {
                if let Some((lpi, _)) = self.translate(event) {
                    self.lpi(lpi).pending = None;
                }
                self.bed.run([clear(event)]);
            }
            Op::Sync(vcpu) => self.bed.run([sync(vcpu)]),
            Op::Configure(lpi, entry) => {
                self.table.insert(lpi, entry);
                self.bed.configure(lpi, entry);
            }
            Op::Sgi(vcpu) => {
                self.sgis.insert(vcpu);
                self.bed.machine.write_private(vcpu, 0x200, 1 << SGI);
            }
            Op::Acknowledge(vcpu) => self.acknowledge(vcpu),
            Op::End(vcpu) => {
                if let Some((intid, _)) = self.running[vcpu].pop() {
                    self.bed.machine.cpu(vcpu).end(intid);
                }
            }
            Op::Vacate(vcpu) => {
                self.bed.machine.vacate(vcpu);
                self.bed.machine.settle(vcpu);
            }
            Op::Groups(groups) => {
                self.groups = groups;
                self.bed.machine.write(0, groups);
            }
        }
        self.bed.machine.settle(0);
    }

    fn mapti(&mut self, event: (u64, u64), lpi: u64, collection: u64) {
        let has_room = self.devices.get(&event.0).is_some_and(|size| event.1 >> (size + 1) == 0);
        if has_room && !self.events.contains_key(&event) && self.lpis.contains_key(&lpi) {
            self.events.insert(event, (lpi, collection));
            self.lpi(lpi).read = self.table[&lpi];
        }
        self.bed.run([mapti(event, lpi, collection)]);
    }

    fn movi(&mut self, event: (u64, u64), collection: u64) {
        let target = self.collections.get(&collection).copied();
        if let (Some((lpi, _)), Some(target)) = (self.translate(event), target) {
            self.events.insert(event, (lpi, collection));
            let ideal = self.lpi(lpi);
            ideal.pending = ideal.pending.map(|_| target);
        }
        self.bed.run([movi(event, collection)]);
    }

    fn acknowledge(&mut self, vcpu: usize) {
        let limit = self.running[vcpu].last().map_or(0xff, |&(_, priority)| priority);
        let sgi_runs = self.running[vcpu].iter().any(|&(intid, _)| intid == SGI);
        let sgi = (self.sgis.contains(&vcpu) && !sgi_runs).then_some((0x80, SGI));
        let lpis = self
            .lpis
            .iter()
            .filter(|(_, ideal)| ideal.pending == Some(vcpu as u64) && ideal.read & 1 == 1);
        let lpis = lpis.map(|(&lpi, ideal)| (ideal.read & 0xf8, u32::try_from(lpi).unwrap()));
        let all: Vec<_> = lpis.chain(sgi).filter(|&(priority, _)| priority < limit).collect();
        let is_on = self.groups & 2 != 0;
        let best = all.iter().map(|&(priority, _)| priority).min().filter(|_| is_on);
        let intid = self.bed.machine.cpu(vcpu).acknowledge();
        let Some(best) = best else {
            assert_eq!(intid, SPURIOUS, "vCPU {vcpu}");
            return;
        };
        assert!(all.contains(&(best, intid)), "vCPU {vcpu} got {intid}, not one of {all:x?}");
        match intid {
            SGI => assert!(self.sgis.remove(&vcpu)),
            _ => self.lpi(intid.into()).pending = None,
        }
        self.running[vcpu].push((intid, best));
    }

    /// In the end all that is pending comes, and nothing else.
    fn finish(&mut self) {
        self.play(Op::Groups(3));
        self.play(Op::Mapc(0, 0));
        for lpi in LPIS {
            self.play(Op::Configure(lpi, 0xa1));
        }
        self.play(Op::Invall(0));
        for vcpu in 0..VCPUS {
            while !self.running[vcpu].is_empty() {
                self.play(Op::End(vcpu));
            }
            for _ in 0..=LPIS.len() + 1 {
                self.play(Op::Acknowledge(vcpu));
                self.play(Op::End(vcpu));
            }
            assert_eq!(self.bed.machine.cpu(vcpu).acknowledge(), SPURIOUS);
        }
        assert!(self.lpis.values().all(|ideal| ideal.pending.is_none()) && self.sgis.is_empty());
    }
}

fn op() -> impl Strategy<Value = Op> {
    let event = || (0..=FEW, 0..=FEW);
    let lpi = || (0..LPIS.len()).prop_map(|n| LPIS[n]);
    let any_lpi = prop_oneof![9 => lpi(), 1 => prop_oneof![Just(8191u64), Just(8448), Just(3)]];
    let number = || 0..=FEW;
    let vcpu = || 0..VCPUS;
    prop_oneof![
        3 => (number(), 0u64..3).prop_map(|(device, size)| Op::Mapd(device, size)),
        1 => number().prop_map(Op::Unmapd),
        4 => (number(), number()).prop_map(|(collection, vcpu)| Op::Mapc(collection, vcpu)),
        1 => number().prop_map(Op::Unmapc),
        9 => (event(), any_lpi, number()).prop_map(|(event, lpi, to)| Op::Mapti(event, lpi, to)),
        4 => (event(), number()).prop_map(|(event, to)| Op::Movi(event, to)),
        2 => (number(), number()).prop_map(|(from, to)| Op::Movall(from, to)),
        1 => event().prop_map(Op::Discard),
        3 => event().prop_map(Op::Inv),
        2 => number().prop_map(Op::Invall),
        9 => event().prop_map(Op::Int),
        2 => event().prop_map(Op::Clear),
        1 => number().prop_map(Op::Sync),
        6 => (lpi(), any::<u8>()).prop_map(|(lpi, entry)| Op::Configure(lpi, entry)),
        2 => vcpu().prop_map(Op::Sgi),
        9 => vcpu().prop_map(Op::Acknowledge),
        6 => vcpu().prop_map(Op::End),
        1 => vcpu().prop_map(Op::Vacate),
        1 => prop_oneof![1 => 0u64..3, 3 => Just(3)].prop_map(Op::Groups),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Nothing lost, nothing doubled, the most urgent first, whoever it was moved to.
    #[test]
    fn t84_random_queues_act_as_an_ideal_its(
        list_registers in 1usize..=4,
        is_kept in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let lpis = if is_kept { LpiState::ActiveToTheEnd } else { LpiState::Gone };
        let mut game = Game::new(list_registers, lpis);
        // So that most of what follows is about something.
        for n in 0..FEW {
            game.play(Op::Mapd(n, 1));
            game.play(Op::Mapc(n, n));
        }
        ops.into_iter().for_each(|op| game.play(op));
        game.finish();
    }
}
