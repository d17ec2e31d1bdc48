// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The same models through the registers of GICv2, and SGIs that have a sender.
#![forbid(unsafe_code)]

use super::fake::{FakeCpu, Recorder, SPURIOUS};
use super::*;
use proptest::prelude::*;

const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ITARGETSR: u64 = 0x800;
const SGIR: u64 = 0xf00;
const CPENDSGIR: u64 = 0xf10;
const SPENDSGIR: u64 = 0xf20;

/// A GICv2 VM, of which the test plays all vCPUs and the core of each.
struct Bed {
    vgic: Vgic,
    token: SpiToken,
    cores: Vec<(Delivery, FakeCpu)>,
    effects: Recorder,
}

impl Bed {
    fn new(vcpus: u8, list_registers: usize) -> Self {
        let affinities: Vec<_> = (0..u64::from(vcpus)).map(affinity).collect();
        let (vgic, token) = Vgic::new(Version::V2, &affinities, 64, &[]).unwrap();
        let make =
            |n| (Delivery::new(VcpuId::new(n), list_registers), FakeCpu::new(list_registers));
        let cores = (0..vcpus).map(make).collect();
        let mut bed = Self { vgic, token, cores, effects: Recorder::default() };
        for vcpu in 0..vcpus {
            bed.vgic.note_on(VcpuId::new(vcpu));
            bed.write(vcpu, ISENABLER, 0xffff_ffff);
            for n in 0..8 {
                bed.write(vcpu, 0x400 + 4 * n, 0xa0a0_a0a0);
            }
        }
        bed.write(0, 0, 1);
        bed.settle();
        bed
    }

    fn try_write(&mut self, by: u8, offset: u64, width: Width, value: u64) -> bool {
        let (by, effects) = (VcpuId::new(by), &self.effects);
        let done = home_of_write(by, offset, width).and_then(|home| match home {
            Home::Vdist(offset) => {
                self.vgic.write_vdist(&mut self.token, (offset, width), value, effects)
            }
            Home::Vredists(offset) => self.vgic.write_vredists((offset, width), value, effects),
            Home::Own(offset) => {
                self.vgic.write_v2(&mut self.token, by, (offset, width), value, effects)
            }
        });
        done.is_ok()
    }
    fn try_read(&self, by: u8, offset: u64, width: Width) -> Result<u64, MmioError> {
        let by = VcpuId::new(by);
        match home(by, offset, width)? {
            Home::Vdist(offset) => self.vgic.vdist().read(offset, width),
            Home::Vredists(offset) => self.vgic.read_vredists(offset, width),
            Home::Own(offset) => self.vgic.read_v2(by, offset, width),
        }
    }
    fn write(&mut self, by: u8, offset: u64, value: u64) {
        self.prepare(by, offset);
        assert!(self.try_write(by, offset, Width::Word, value));
    }
    fn read(&mut self, by: u8, offset: u64) -> u64 {
        self.prepare(by, offset);
        let value = self.try_read(by, offset, Width::Word).unwrap();
        self.settle();
        value
    }
    /// Does what a core does before its guest's access.
    fn prepare(&mut self, by: u8, offset: u64) {
        let (delivery, cpu) = &mut self.cores[usize::from(by)];
        if shows_list_registers(offset) {
            delivery.reconcile(&self.vgic, &mut self.token, cpu, &self.effects);
        } else if is_sgi_state(offset) {
            delivery.recall_sgis(&self.vgic, &mut self.token, cpu, &self.effects);
        }
        assert!(!self.vgic.vredists[usize::from(by)].looks.is_going_on());
    }
    /// Lets every core leave and enter its guest until nobody has anything to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            let mut is_over = true;
            for ((delivery, cpu), own) in self.cores.iter_mut().zip(&self.vgic.vredists) {
                if cpu.wants_maintenance() {
                    own.look_again();
                }
                while own.has_work() {
                    is_over = false;
                    if delivery.flush(own, cpu) == Flush::Reconcile {
                        delivery.reconcile(&self.vgic, &mut self.token, cpu, &self.effects);
                    }
                }
            }
            if is_over {
                return;
            }
        }
        panic!("no rest: maintenance or work without end");
    }
    /// The guest acknowledges: the INTID, and who has sent it.
    fn acknowledge(&mut self, vcpu: u8) -> Option<(u32, u8)> {
        let cpu = &mut self.cores[usize::from(vcpu)].1;
        let intid = cpu.acknowledge();
        (intid != SPURIOUS).then(|| (intid, cpu.find(intid).unwrap().source()))
    }
    fn end(&mut self, vcpu: u8, intid: u32) {
        self.cores[usize::from(vcpu)].1.end(intid);
        self.settle();
    }
    fn take(&mut self, vcpu: u8) -> Option<(u32, u8)> {
        let taken = self.acknowledge(vcpu)?;
        self.end(vcpu, taken.0);
        Some(taken)
    }
}

#[test]
fn t75_private_registers_are_banked_and_spis_are_not() {
    let mut bed = Bed::new(3, 4);
    bed.write(1, ICENABLER, 0xffff_0000);
    assert_eq!([0, 1].map(|by| bed.read(by, ISENABLER)), [0xffff_ffff, 0xffff]);
    bed.write(1, 0x404, 0x1020_3040);
    assert_eq!([0, 1].map(|by| bed.read(by, 0x404)), [0xa0a0_a0a0, 0x1020_3040]);
    bed.write(1, ISENABLER + 4, 0x30);
    assert_eq!([0, 2].map(|by| bed.read(by, ISENABLER + 4)), [0x30; 2]);
    // Two blocks of SPIs behind the private ones, three CPU interfaces; architecture 2.
    assert_eq!(bed.read(0, 4), 0x42);
    assert_eq!(bed.read(0, 0xfe8) >> 4 & 0xf, 2);
    // All in Group 0, which the one Security state has.
    assert_eq!([0x80, 0x84].map(|offset| bed.read(2, offset)), [0; 2]);
}

#[test]
fn t75_targets_are_of_the_vcpus_that_there_are() {
    let mut bed = Bed::new(3, 4);
    bed.write(0, ITARGETSR + 32, 0xff12_0408);
    assert_eq!(bed.read(1, ITARGETSR + 32), 0x0702_0400);
    assert!(bed.try_write(0, ITARGETSR + 33, Width::Byte, 0x03));
    assert_eq!(bed.read(1, ITARGETSR + 32), 0x0702_0300);
    for by in 0..3 {
        bed.write(by, ITARGETSR + 4, u64::MAX);
        assert_eq!(bed.read(by, ITARGETSR + 4), 0x0101_0101 << by, "those of SGIs are read-only");
    }
    let mut alone = Bed::new(1, 4);
    alone.write(0, ITARGETSR + 32, u64::MAX);
    assert_eq!([0, 32].map(|offset| alone.read(0, ITARGETSR + offset)), [0; 2]);
    alone.write(0, ISENABLER + 4, 1);
    alone.write(0, ISPENDR + 4, 1);
    alone.settle();
    assert_eq!(alone.take(0), Some((32, 0)), "a single vCPU has all SPIs");
}

#[test]
fn t75_spi_goes_to_one_target_that_is_on() {
    let mut bed = Bed::new(3, 4);
    bed.write(0, ISENABLER + 4, 1);
    for (targets, off, wanted) in [(2, 0, 1), (6, 1, 2), (6, 2, 1), (7, 1, 0)] {
        bed.vgic.note_off(VcpuId::new(off));
        bed.write(0, ITARGETSR + 32, targets);
        bed.write(0, ISPENDR + 4, 1);
        bed.settle();
        let took: Vec<_> = (0..3).filter(|&vcpu| bed.take(vcpu) == Some((32, 0))).collect();
        assert_eq!(took, [wanted], "targets {targets:#x}");
        bed.vgic.note_on(VcpuId::new(off));
    }
    bed.write(0, ITARGETSR + 32, 0);
    bed.write(0, ISPENDR + 4, 1);
    bed.settle();
    assert!((0..3).all(|vcpu| bed.take(vcpu).is_none()), "routed to nobody");
    bed.write(0, ITARGETSR + 32, 4);
    bed.settle();
    assert_eq!(bed.take(2), Some((32, 0)), "it was kept");
}

#[test]
fn t76_sgir_reaches_whom_it_names() {
    let mut bed = Bed::new(3, 4);
    let reached = |bed: &mut Bed| {
        bed.settle();
        [0, 1, 2].map(|vcpu| bed.take(vcpu))
    };
    bed.write(1, SGIR, 0x00f5_0007);
    assert_eq!(reached(&mut bed), [Some((7, 1)), None, Some((7, 1))]);
    bed.write(1, SGIR, 0x01ff_000f);
    assert_eq!(reached(&mut bed), [Some((15, 1)), None, Some((15, 1))]);
    bed.write(2, SGIR, 0x02ff_0000);
    assert_eq!(reached(&mut bed), [None, None, Some((0, 2))]);
    bed.write(2, SGIR, 0x03ff_0000);
    assert_eq!(reached(&mut bed), [None; 3]);
}

#[test]
fn t73_reset_forgets_senders() {
    let mut bed = Bed::new(2, 1);
    bed.write(1, SGIR, 0x0001_0003);
    bed.write(0, SPENDSGIR, 0x0000_0303);
    for ((delivery, cpu), own) in bed.cores.iter_mut().zip(&bed.vgic.vredists) {
        delivery.reset(own, cpu);
    }
    bed.vgic.reset_vredists(&mut || {});
    bed.vgic.reset(&mut bed.token, &bed.effects);
    for offset in [SPENDSGIR, SPENDSGIR + 4, ISPENDR, ISENABLER, 0] {
        assert_eq!(bed.read(0, offset), 0, "{offset:#x}");
    }
}

/// SPIs take the way on which other vCPUs' cores are waited for; what is banked is in the list
/// registers of the vCPU that asks, and in no other's.
#[test]
fn t75_pending_and_active_bits_take_the_way_of_gicv3() {
    let bed = Bed::new(2, 4);
    let by = VcpuId::new(1);
    let everybody = bed.vgic.everybody;
    for offset in (ICENABLER..0x400).step_by(4).chain([0]) {
        let home = |offset| home(by, offset, Width::Word).unwrap();
        let written = home_of_write(by, offset, Width::Word).unwrap();
        let holders = |frame, offset| bed.vgic.holders(frame, offset, u64::MAX);
        if offset == 0 {
            assert_eq!(written, Home::Vdist(0));
            assert!(changes_list_registers(0) && holders(Frame::Vdist, 0) == everybody);
        } else if offset & 0x7c != 0 {
            assert_eq!([home(offset), written], [Home::Vdist(offset); 2]);
            assert!(changes_list_registers(offset));
            assert_eq!(shows_list_registers(offset), offset >= ISPENDR);
        } else {
            let Home::Vredists(own) = home(offset) else { panic!("{offset:#x} is not banked") };
            assert_eq!(holders(Frame::Vredists, own), 1 << 1);
            assert!(changes_own_list_registers(own));
            assert_eq!(shows_list_registers(own), offset >= ISPENDR);
            // Of these some bits are read-only, which GICv3 does not know.
            let is_pending = matches!(offset, ISPENDR | 0x280);
            assert_eq!(written, if is_pending { Home::Own(offset) } else { Home::Vredists(own) });
        }
    }
}

#[test]
fn t36_every_offset_and_width_is_answered() {
    let mut bed = Bed::new(2, 2);
    for offset in 0..0x1010 {
        for width in [Width::Byte, Width::Half, Width::Word, Width::Double] {
            let by_bytes = (0x400..0xc00).contains(&offset) || (0xf10..0xf30).contains(&offset);
            let is_register = offset < 0x1000
                && match width {
                    Width::Byte => by_bytes,
                    Width::Word => offset & 3 == 0,
                    Width::Half | Width::Double => false,
                };
            let read = bed.try_read(1, offset, width);
            assert_eq!(read.is_ok(), is_register, "{offset:#x}, {width:?}");
            let wrote = bed.try_write(1, offset, width, u64::MAX);
            assert_eq!(wrote, is_register, "{offset:#x}, {width:?}");
        }
    }
}

/// What a guest can do with the SGIs of vCPU 0.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8, u32),
    Set(u32, u8),
    Clear(u32, u8),
    Enable(u32),
    Disable(u32),
    /// Reads what is pending, which recalls it from list registers.
    Look,
    /// Takes one; while it is active this vCPU sends this SGI.
    Take(u8, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let (who, intid, set) = (0..3u8, 0..4u32, 0..8u8);
    prop_oneof![
        3 => (who.clone(), intid.clone()).prop_map(|(who, intid)| Step::Send(who, intid)),
        1 => (intid.clone(), set.clone()).prop_map(|(intid, set)| Step::Set(intid, set)),
        1 => (intid.clone(), set).prop_map(|(intid, set)| Step::Clear(intid, set)),
        1 => intid.clone().prop_map(Step::Enable),
        1 => intid.clone().prop_map(Step::Disable),
        1 => Just(Step::Look),
        3 => (who, intid).prop_map(|(who, intid)| Step::Take(who, intid)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// An SGI is pending once for each sender, however few list registers there are.
    #[test]
    fn t76_sgis_are_pending_by_sender(
        list_registers in 1..4usize,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut bed = Bed::new(3, list_registers);
        let mut senders = [0u8; 4];
        let mut enabled = 0xfu32;
        for step in steps {
            match step {
                Step::Look => {
                    let set = (0..4).filter(|&n| senders[n] != 0).fold(0, |set, n| set | 1 << n);
                    prop_assert_eq!(bed.read(0, ISPENDR), set);
                    let bytes = u32::from_le_bytes(senders);
                    prop_assert_eq!(bed.read(0, SPENDSGIR), u64::from(bytes));
                }
                Step::Send(who, intid) => {
                    bed.write(who, SGIR, 0x1_0000 | u64::from(intid));
                    senders[intid as usize] |= 1 << who;
                }
                Step::Set(intid, set) => {
                    bed.write(0, SPENDSGIR, u64::from(set) << (8 * intid));
                    senders[intid as usize] |= set;
                }
                Step::Clear(intid, set) => {
                    bed.write(0, CPENDSGIR, u64::from(set) << (8 * intid));
                    senders[intid as usize] &= !set;
                }
                Step::Enable(intid) => {
                    bed.write(0, ISENABLER, 1 << intid);
                    enabled |= 1 << intid;
                }
                Step::Disable(intid) => {
                    bed.write(0, ICENABLER, 1 << intid);
                    enabled &= !(1 << intid);
                }
                Step::Take(who, intid) => match bed.acknowledge(0) {
                    Some((taken, sender)) => {
                        let set = &mut senders[taken as usize];
                        prop_assert!(*set >> sender & 1 == 1, "{taken} of {sender} in {set:#x}");
                        *set &= !(1 << sender);
                        bed.write(who, SGIR, 0x1_0000 | u64::from(intid));
                        senders[intid as usize] |= 1 << who;
                        bed.settle();
                        bed.end(0, taken);
                    }
                    None => {
                        let is_left = |n: usize| enabled >> n & 1 == 1 && senders[n] != 0;
                        prop_assert!(!(0..4).any(is_left), "nothing of {senders:?}");
                    }
                },
            }
            bed.settle();
        }
    }
}
