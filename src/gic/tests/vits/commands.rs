// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each command does (IHI 0069 H 5.3), and that a wrong one does nothing.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn t84_int_delivers_an_lpi_once() {
    for lpis in [LpiState::Gone, LpiState::ActiveToTheEnd] {
        let mut bed = Bed::mapped(2, 4);
        bed.machine.cpu(0).lpis = lpis;
        for _ in 0..3 {
            bed.run([int((5, 3))]);
            assert_eq!(bed.taken(0), [8195]);
        }
        bed.run([int((5, 3)), int((5, 3)), sync(0)]);
        assert_eq!(bed.taken(0), [8195], "pending is a bit, no count");
        assert_eq!(bed.taken(1), []);
    }
}

#[test]
fn t84_lpi_occurs_again_while_the_first_is_handled() {
    for lpis in [LpiState::Gone, LpiState::ActiveToTheEnd] {
        let mut bed = Bed::mapped(1, 1);
        bed.machine.cpu(0).lpis = lpis;
        bed.run([int((5, 0))]);
        assert_eq!(bed.machine.cpu(0).acknowledge(), 8192);
        bed.run([int((5, 0))]);
        assert_eq!(bed.machine.cpu(0).acknowledge(), SPURIOUS, "its priority runs");
        bed.machine.cpu(0).end(8192);
        assert_eq!(bed.taken(0), [8192]);
    }
}

#[test]
fn t84_lpis_come_by_priority_among_the_others() {
    for list_registers in [1, 2, 4] {
        let mut bed = Bed::new(1, list_registers);
        bed.machine.write(0x104, 1 << 2);
        bed.machine.write_priority(0, 34, 0x60);
        bed.machine.write_private(0, 0x100, 1 << 9);
        bed.machine.write_priority(0, 9, 0xa0);
        for (n, priority) in [0xc1, 0x41, 0x81, 0xe1, 0x21].into_iter().enumerate() {
            bed.configure(8192 + n as u64, priority);
            bed.run([mapti((5, n as u64), 8192 + n as u64, 0), int((5, n as u64))]);
        }
        bed.machine.raise_edge(34);
        bed.machine.write_private(0, 0x200, 1 << 9);
        bed.machine.settle(0);
        assert_eq!(bed.taken(0), [8196, 8193, 34, 8194, 9, 8192, 8195], "{list_registers}");
    }
}

#[test]
fn t84_mapi_takes_the_event_for_the_lpi() {
    let mut bed = Bed::new(1, 4);
    bed.configure(8200, 0xa1);
    bed.run([mapd(7, 13), mapi((7, 8200), 0), int((7, 8200))]);
    assert_eq!(bed.taken(0), [8200]);
    bed.run([mapi((5, 3), 0), int((5, 3))]);
    assert_eq!(bed.taken(0), [], "3 is no LPI");
}

#[test]
fn t84_mapping_again_keeps_what_is_mapped() {
    let mut bed = Bed::mapped(1, 4);
    bed.configure(8300, 0xa1);
    bed.run([mapti((5, 0), 8300, 0), int((5, 0))]);
    assert_eq!(bed.taken(0), [8192]);
}

#[test]
fn t84_movi_moves_the_event_and_what_is_pending() {
    for lpis in [LpiState::Gone, LpiState::ActiveToTheEnd] {
        let mut bed = Bed::mapped(3, 1);
        (0..3).for_each(|n| bed.machine.cpu(n).lpis = lpis);
        bed.run([int((5, 1)), int((5, 2)), movi((5, 1), 1), movi((5, 2), 2)]);
        assert_eq!((bed.taken(0), bed.taken(1), bed.taken(2)), (vec![], vec![8193], vec![8194]));
        bed.run([int((5, 1)), int((5, 2))]);
        assert_eq!((bed.taken(0), bed.taken(1), bed.taken(2)), (vec![], vec![8193], vec![8194]));
    }
}

#[test]
fn t84_movi_of_an_lpi_that_is_handled_moves_the_next() {
    for lpis in [LpiState::Gone, LpiState::ActiveToTheEnd] {
        let mut bed = Bed::mapped(2, 4);
        (0..2).for_each(|n| bed.machine.cpu(n).lpis = lpis);
        bed.run([int((5, 0))]);
        assert_eq!(bed.machine.cpu(0).acknowledge(), 8192);
        bed.run([int((5, 0)), movi((5, 0), 1)]);
        // There is no active state that would keep it from the other one.
        assert_eq!(bed.taken(1), [8192]);
        bed.machine.cpu(0).end(8192);
        assert_eq!(bed.taken(0), []);
    }
}

#[test]
fn t84_movall_moves_what_is_pending_and_no_mapping() {
    let mut bed = Bed::mapped(3, 2);
    bed.run([movi((5, 7), 2), int((5, 7))]);
    bed.run([int((5, 0)), int((5, 1)), int((5, 2)), int((5, 3)), movall(0, 1)]);
    assert_eq!(bed.taken(0), []);
    let mut taken = bed.taken(1);
    taken.sort_unstable();
    assert_eq!(taken, [8192, 8193, 8194, 8195]);
    assert_eq!(bed.taken(2), [8199], "it was not the first one's");
    bed.run([int((5, 0)), movall(0, 0)]);
    assert_eq!(bed.taken(0), [8192]);
}

#[test]
fn t84_collection_that_moves_takes_the_next_ones_along() {
    let mut bed = Bed::mapped(2, 4);
    bed.run([mapc(0, 1), int((5, 0))]);
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![8192]));
}

#[test]
fn t84_clear_and_discard_take_back_what_is_pending() {
    let mut bed = Bed::mapped(1, 1);
    bed.run([int((5, 0)), int((5, 1)), int((5, 2)), clear((5, 0)), discard((5, 1))]);
    assert_eq!(bed.taken(0), [8194]);
    bed.run([int((5, 0)), int((5, 1))]);
    assert_eq!(bed.taken(0), [8192], "a cleared event occurs again, a discarded one does not");
    bed.run([discard((5, 1)), mapti((5, 1), 8193, 0), int((5, 1))]);
    assert_eq!(bed.taken(0), [8193], "and it can be mapped again");
}

#[test]
fn t84_configuration_counts_from_when_inv_asks_for_it() {
    let mut bed = Bed::mapped(1, 4);
    bed.configure(8192, 0xa0);
    bed.run([int((5, 0))]);
    assert_eq!(bed.taken(0), [8192], "not read yet");
    bed.run([inv((5, 0)), int((5, 0))]);
    assert_eq!(bed.taken(0), [], "disabled");
    bed.configure(8192, 0xa1);
    bed.run([inv((5, 0))]);
    assert_eq!(bed.taken(0), [8192], "pending all the time");
    bed.run([int((5, 0)), int((5, 1))]);
    bed.configure(8193, 0x51);
    bed.run([inv((5, 1))]);
    assert_eq!(bed.taken(0), [8193, 8192], "more urgent now, and in a list register");
    bed.run([int((5, 0))]);
    bed.configure(8192, 0xa0);
    bed.run([inv((5, 0))]);
    assert_eq!(bed.taken(0), [], "disabled in a list register");
}

#[test]
fn t84_invall_reads_every_lpis_configuration() {
    let mut bed = Bed::new(2, 4);
    bed.run([mapd(6, 7)]);
    for n in 0..256 {
        bed.run([mapti((6, n), 8192 + n, n & 1)]);
    }
    for n in 0..256 {
        bed.configure(8192 + n, u8::try_from(n).unwrap() & 0xf8 | 1);
    }
    for n in [0, 1, 31, 32, 255] {
        bed.run([int((6, n))]);
    }
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![]));
    bed.run([invall(1)]);
    assert_eq!(bed.taken(0), [8192, 8224]);
    assert_eq!(bed.taken(1), [8193, 8223, 8447]);
}

#[test]
fn t84_unmapped_device_or_collection_delivers_nothing() {
    let mut bed = Bed::mapped(2, 4);
    bed.run([unmapc(0), int((5, 0)), movi((5, 0), 1), int((5, 0)), inv((5, 0)), invall(0)]);
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![]));
    bed.run([mapc(0, 0), int((5, 0))]);
    assert_eq!(bed.taken(0), [8192], "the event was not moved");
    bed.run([unmapd(5), int((5, 0)), mapd(5, 3), int((5, 0))]);
    assert_eq!(bed.taken(0), [], "a device that is mapped again has no events");
    bed.run([mapti((5, 0), 8192, 0), int((5, 0)), mapd(5, 3), int((5, 0))]);
    assert_eq!(bed.taken(0), [8192], "also without having been unmapped");
}

#[test]
fn t85_devices_do_not_know_each_others_events() {
    let mut bed = Bed::mapped(1, 4);
    bed.configure(8250, 0xa1);
    bed.run([mapd(4, 3), mapd(6, 3), mapti((6, 1), 8250, 0), int((4, 1)), int((6, 0))]);
    assert_eq!(bed.taken(0), []);
    bed.run([unmapd(5), unmapd(4), int((5, 1)), int((6, 1))]);
    assert_eq!(bed.taken(0), [8250]);
}

#[test]
fn t77_only_the_lpis_that_there_are_can_be_mapped() {
    let mut bed = Bed::new(1, 4);
    let bad = [0, 15, 31, 32, 1019, 1020, 1023, 1024, 5120, 8191, 8448, 1 << 13 | 1 << 16];
    for lpi in bad.into_iter().chain([0xffff, 1 << 24, 0xffff_ffff]) {
        bed.run([mapti((5, 1), lpi, 0), int((5, 1))]);
        assert_eq!(bed.taken(0), [], "{lpi}");
    }
    for lpi in [8192, 8447] {
        bed.configure(lpi, 0xa1);
        bed.run([mapti((5, 1), lpi, 0), int((5, 1)), discard((5, 1))]);
        assert_eq!(bed.taken(0), [], "discarded");
        bed.run([mapti((5, 1), lpi, 0), int((5, 1))]);
        assert_eq!(bed.taken(0), [u32::try_from(lpi).unwrap()]);
        bed.run([discard((5, 1))]);
    }
}

#[test]
fn t84_commands_with_numbers_out_of_range_do_nothing() {
    let mut bed = Bed::mapped(2, 4);
    // 16 events, 64 Ki devices, 256 collections, 2 vCPUs.
    for event in [16, 17, 0x100, 0x1_0000, 0xffff_ffff] {
        bed.run([mapti((5, event), 8250, 0), int((5, event)), inv((5, event)), clear((5, event))]);
        bed.run([discard((5, event)), movi((5, event), 1), mapi((5, event), 0)]);
    }
    for device in [0x1_0005, 0x8000_0005, 0xffff_0005, 0xffff_ffff] {
        bed.run([mapd(device, 3), unmapd(device), mapti((device, 0), 8250, 0), int((device, 0))]);
        bed.run([discard((device, 0)), movi((device, 0), 1), clear((device, 0))]);
    }
    for collection in [0x100, 0x8001, 0xffff] {
        bed.run([mapc(collection, 1), movi((5, 0), collection), mapti((5, 9), 8201, collection)]);
        bed.run([unmapc(collection), invall(collection), int((5, 9))]);
    }
    for vcpu in [2, 0xff, 0x100, 0x1_0000, 0xf_ffff_ffff] {
        bed.run([mapc(1, vcpu), movall(0, vcpu), movall(vcpu, 0), sync(vcpu)]);
    }
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![]));
    for bits in 16..32 {
        // EventIDs have 16 bits.
        bed.run([mapd(5, bits)]);
    }
    bed.run([int((5, 0)), movi((5, 1), 1), int((5, 1))]);
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![8192], vec![8193]), "all is as it was");
}

#[test]
fn t84_every_opcode_is_answered_and_the_next_command_follows() {
    let mut bed = Bed::mapped(2, 4);
    let known = [1, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
    for opcode in (0..256).filter(|opcode| !known.contains(opcode)) {
        let all = u64::MAX << 8 | opcode;
        bed.run([[all, u64::MAX, u64::MAX, u64::MAX], [opcode, 0, 0, 0], int((5, 0))]);
        assert_eq!(bed.taken(0), [8192], "{opcode:#x}");
    }
    for opcode in known {
        bed.run([[u64::MAX << 8 | opcode, u64::MAX, u64::MAX, u64::MAX], int((5, 0))]);
        assert_eq!(bed.taken(0), [8192], "{opcode:#x}");
    }
}

#[test]
fn t84_queue_wraps_and_each_command_is_read_once() {
    let mut bed = Bed::mapped(1, 4);
    for n in 0..300u64 {
        let before = bed.memory.reads.get();
        bed.run([int((5, n % 8))]);
        assert_eq!(bed.memory.reads.get(), before + 1);
        assert_eq!(bed.taken(0), [8192 + u32::try_from(n % 8).unwrap()], "{n}");
    }
}

#[test]
fn t84_full_queue_is_done_one_command_a_step() {
    let mut bed = Bed::mapped(1, 4);
    bed.write_word(CTLR, 0);
    bed.write(CBASER, VALID | QUEUE | 3);
    bed.write_word(CTLR, 1);
    let at = bed.queue([invall(0); 511]);
    bed.write(CWRITER, at);
    for done in 0..511 {
        assert_eq!(bed.read(CREADR), 32 * done);
        assert_eq!(bed.step(), 8, "costs what the core's budget has for much");
    }
    assert!(!bed.vits.has_work());
    assert_eq!(bed.step(), 0);
}

#[test]
fn t42_queue_that_is_not_the_guests_memory_stalls_until_told_to_try_again() {
    for queue in [0, RAM - 0x1000, RAM + RAM_BYTES, 0xf_ffff_ffff_f000] {
        let mut bed = Bed::mapped(1, 4);
        bed.write_word(CTLR, 0);
        bed.write(CBASER, VALID | queue);
        bed.write_word(CTLR, 1);
        bed.write(CWRITER, 64);
        assert!(bed.vits.has_work());
        bed.step();
        assert!(!bed.vits.has_work());
        assert_eq!(bed.read(CREADR), 1, "stalled, at the first command");
        bed.write(CWRITER, 96);
        assert!(!bed.vits.has_work());
        bed.write(CWRITER, 96 | 1);
        assert!(bed.vits.has_work(), "Retry");
        bed.step();
        assert_eq!(bed.read(CREADR), 1);
        bed.write_word(CTLR, 0);
        bed.write(CBASER, VALID | QUEUE);
        bed.write_word(CTLR, 1);
        bed.run([int((5, 0))]);
        assert_eq!(bed.taken(0), [8192], "another queue starts anew");
    }
    // The last page of memory, and one more.
    let mut bed = Bed::mapped(1, 4);
    bed.write_word(CTLR, 0);
    bed.write(CBASER, VALID | (RAM + RAM_BYTES - 0x1000) | 1);
    bed.write_word(CTLR, 1);
    bed.write(CWRITER, 0x1020);
    (0..128).for_each(|_| assert_eq!(bed.step(), 1));
    assert_eq!(bed.read(CREADR), 0x1000);
    bed.step();
    assert_eq!(bed.read(CREADR), 0x1001);
}

#[test]
fn t42_unreadable_configuration_leaves_lpis_as_they_are() {
    let mut bed = Bed::bare(1, 4);
    bed.write_private(0, 0x70, (RAM + RAM_BYTES) | 13);
    bed.write_private(0, 0x78, RAM + RAM_BYTES);
    bed.enable_lpis(0);
    bed.write(BASER, VALID | DEVICES);
    bed.write(BASER + 8, VALID | COLLECTIONS);
    bed.write(CBASER, VALID | QUEUE);
    bed.write_word(CTLR, 1);
    bed.run([mapc(0, 0), mapd(5, 3), mapti((5, 0), 8192, 0), inv((5, 0)), invall(0), int((5, 0))]);
    assert_eq!(bed.taken(0), [], "after reset it is disabled");
}

#[test]
fn t84_tables_bound_what_can_be_mapped() {
    let mut bed = Bed::new(1, 4);
    // One page of 64 KiB with entries of one byte has room for any of each.
    bed.configure(8192, 0xa1);
    bed.run([mapd(0xffff, 15), mapc(0xff, 0), mapti((0xffff, 0xffff), 8192, 0xff)]);
    bed.run([int((0xffff, 0xffff))]);
    assert_eq!(bed.taken(0), [8192]);
    for without in [BASER, BASER + 8] {
        let mut bed = Bed::mapped(1, 4);
        bed.write_word(CTLR, 0);
        bed.write(without, DEVICES);
        bed.write_word(CTLR, 1);
        bed.run([int((5, 0)), mapd(5, 3), mapc(0, 0), mapti((5, 0), 8192, 0), int((5, 0))]);
        assert_eq!(bed.taken(0), [], "a table that is not valid maps nothing");
    }
}

#[test]
fn t84_there_is_a_bound_on_devices_and_events() {
    let mut bed = Bed::new(1, 4);
    bed.run([mapd(9, 15)]);
    for event in 0..1000 {
        bed.run([mapti((9, event), 8192, 0)]);
    }
    bed.configure(8192, 0xa1);
    bed.run([inv((9, 0))]);
    let delivers = |bed: &mut Bed, event| {
        bed.run([int(event)]);
        bed.taken(0) == [8192]
    };
    assert!(delivers(&mut bed, (9, 255)), "one for each LPI");
    assert!(!delivers(&mut bed, (9, 256)));
    bed.run([discard((9, 17)), mapti((9, 256), 8192, 0)]);
    assert!(delivers(&mut bed, (9, 256)), "one goes, one comes");
    for device in 0..1000 {
        bed.run([mapd(100 + device, 0)]);
    }
    bed.run([discard((9, 0)), mapti((1099, 0), 8192, 0)]);
    assert!(!delivers(&mut bed, (1099, 0)));
    bed.run([mapti((100, 0), 8192, 0)]);
    assert!(delivers(&mut bed, (100, 0)));
}

#[test]
fn t84_lpi_for_a_vcpu_without_lpis_is_lost() {
    let mut bed = Bed::bare(2, 4);
    bed.write_private(0, 0x70, PROPERTIES | 13);
    bed.enable_lpis(0);
    bed.write(BASER, VALID | DEVICES);
    bed.write(BASER + 8, VALID | COLLECTIONS);
    bed.write(CBASER, VALID | QUEUE);
    bed.write_word(CTLR, 1);
    bed.configure(8192, 0xa1);
    bed.run([mapc(0, 1), mapd(5, 3), mapti((5, 0), 8192, 0), int((5, 0))]);
    bed.enable_lpis(1);
    assert_eq!(bed.taken(1), []);
    bed.run([int((5, 0))]);
    assert_eq!(bed.taken(1), [8192]);
}

#[test]
fn t84_vcpu_whose_lpis_are_disabled_loses_what_is_pending() {
    for list_registers in [1, 4] {
        let mut bed = Bed::mapped(2, list_registers);
        bed.run([int((5, 0)), int((5, 1)), movi((5, 2), 1), int((5, 2))]);
        bed.write_control(0, 0xffff_fffe);
        bed.machine.settle_all();
        assert_eq!(bed.control(0), CES);
        bed.run([int((5, 3))]);
        assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![8194]));
        bed.enable_lpis(0);
        bed.machine.settle_all();
        assert_eq!(bed.taken(0), []);
        bed.run([int((5, 3))]);
        assert_eq!(bed.taken(0), [8195]);
    }
}

#[test]
fn t84_groups_of_the_distributor_hold_lpis_back() {
    let mut bed = Bed::mapped(2, 4);
    bed.run([movi((5, 1), 1)]);
    bed.machine.write(0, 0);
    bed.run([int((5, 0)), int((5, 1))]);
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![]));
    bed.machine.write(0, 1);
    bed.machine.settle_all();
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![], vec![]), "LPIs are in Group 1");
    bed.machine.write(0, 2);
    bed.machine.settle_all();
    assert_eq!((bed.taken(0), bed.taken(1)), (vec![8192], vec![8193]));
}

#[test]
fn t84_lpis_of_a_vcpu_that_goes_off_wait_or_move() {
    let mut bed = Bed::mapped(2, 4);
    bed.run([int((5, 0)), int((5, 1))]);
    bed.machine.vacate(0);
    bed.run([movi((5, 1), 1)]);
    assert_eq!(bed.taken(1), [8193]);
    bed.machine.settle(0);
    assert_eq!(bed.taken(0), [8192]);
}

#[test]
fn t84_reset_forgets_everything() {
    let mut bed = Bed::mapped(2, 1);
    let at = bed.queue([int((5, 0)), int((5, 1)), invall(0)]);
    bed.write(CWRITER, at);
    // In the middle of the queue, with one in a list register and one waiting.
    bed.step();
    bed.step();
    bed.machine.settle(0);
    bed.vits.reset();
    for vcpu in 0..2 {
        let own = bed.machine.vgic.vredist(VcpuId::new(vcpu)).unwrap();
        let (delivery, cpu) = &mut bed.machine.cores[usize::from(vcpu)];
        delivery.reset(own, cpu);
    }
    bed.machine.vgic.reset_vredists(&mut || {});
    bed.machine.vgic.reset(&mut bed.machine.token, &bed.machine.effects);
    bed.machine.write(0, 3);
    assert_eq!([CBASER, CWRITER, CREADR].map(|offset| bed.read(offset)), [0; 3]);
    assert_eq!([CTLR].map(|offset| bed.vits.read(offset, Width::Word)), [Ok(1 << 31)]);
    assert!(!bed.vits.has_work());
    for vcpu in 0..2 {
        assert_eq!(bed.control(vcpu), CES);
        assert_eq!([0x70, 0x78].map(|offset| bed.read_private(vcpu, offset)), [0; 2]);
    }
    // The same guest again finds none of its mappings, and nothing pending.
    bed.write_private(0, 0x70, PROPERTIES | 13);
    bed.write_private(0, 0x78, PENDING | 1 << 62);
    bed.enable_lpis(0);
    bed.write(BASER, VALID | DEVICES);
    bed.write(BASER + 8, VALID | COLLECTIONS);
    bed.write(CBASER, VALID | QUEUE);
    bed.write_word(CTLR, 1);
    bed.machine.settle_all();
    bed.run([int((5, 0)), mapd(5, 3), int((5, 0)), mapti((5, 0), 8192, 0), int((5, 0))]);
    assert_eq!(bed.taken(0), []);
    bed.run([mapc(0, 0), int((5, 0))]);
    assert_eq!(bed.taken(0), [8192]);
}
