// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Plans survive the wire, and bytes that are no plan are refused without a panic.

use super::samples::two_vms;
use super::*;
use crate::id::VmId;
use crate::spec::dtb::builder::Random;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn encoded() -> Vec<u8> {
    let mut buffer = vec![0; PLAN_BYTES_MAX];
    two_vms().encode(&mut buffer).unwrap().to_vec()
}

#[test]
fn plan_survives_the_wire() {
    let bytes = encoded();
    assert_eq!(bytes[..2], FORMAT.to_le_bytes());
    assert_eq!(Plan::decode(&bytes), Ok(two_vms()));
}

#[test]
fn plan_that_does_not_fit_the_buffer_is_not_written() {
    let size = encoded().len();
    for short in 0..size {
        assert_eq!(two_vms().encode(&mut vec![0; short]), None, "{short}");
    }
    assert!(two_vms().encode(&mut vec![0; size]).is_some());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = encoded();
    for size in 0..bytes.len() {
        assert_eq!(Plan::decode(&bytes[..size]), Err(DecodeError::Malformed), "{size}");
    }
}

#[test]
fn what_follows_a_plan_is_refused() {
    let mut bytes = encoded();
    bytes.push(0);
    assert_eq!(Plan::decode(&bytes), Err(DecodeError::Malformed));
}

#[test]
fn other_formats_are_refused_by_number() {
    for format in [0, FORMAT + 1, 0x100 | FORMAT, u16::MAX] {
        let mut bytes = encoded();
        bytes[..2].copy_from_slice(&format.to_le_bytes());
        assert_eq!(Plan::decode(&bytes), Err(DecodeError::Format(format)));
    }
}

#[test]
fn plan_that_is_too_long_is_refused_unread() {
    let mut bytes = encoded();
    bytes.resize(PLAN_BYTES_MAX + 1, 0);
    assert_eq!(Plan::decode(&bytes), Err(DecodeError::Malformed));
}

#[test]
fn lists_are_no_longer_than_they_may_be() {
    // As postcard writes them: a length, then elements.
    let list = |length: u8| postcard::from_bytes::<List<u8, 4>>(&[&[length], &[7; 8][..]].concat());
    assert_eq!(&*list(4).unwrap(), [7; 4]);
    assert!(list(5).is_err());
    // A length that lies allocates nothing.
    assert!(postcard::from_bytes::<List<u64, 4>>(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1]).is_err());
}

/// What serde's derived code reads.
fn oracle(bytes: &[u8]) -> Option<Plan> {
    match postcard::take_from_bytes(bytes.strip_prefix(&FORMAT.to_le_bytes())?) {
        Ok((plan, [])) => Some(plan),
        _ => None,
    }
}

/// Whatever decodes is a plan that the wire carries again: no range that wraps, no list too long.
/// And it is what postcard says, or nothing where postcard says nothing.
fn check_decoded(bytes: &[u8]) -> bool {
    assert_eq!(Plan::decode(bytes).ok(), oracle(bytes));
    let Ok(plan) = Plan::decode(bytes) else { return false };
    let mut buffer = vec![0; 2 * PLAN_BYTES_MAX];
    let again = plan.encode(&mut buffer).unwrap();
    assert_eq!(Plan::decode(again), Ok(plan));
    true
}

#[test]
fn mutated_plans_do_not_panic() {
    let original = encoded();
    let mut random = Random::new(4);
    let mut decoded = 0;
    for _ in 0..20_000 {
        let mut bytes = original.clone();
        random.mutate(&mut bytes[2..]);
        decoded += usize::from(check_decoded(&bytes));
    }
    assert!((500..19_500).contains(&decoded), "{decoded}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let plan = [&FORMAT.to_le_bytes(), &bytes[..]].concat();
        check_decoded(&plan);
        check_decoded(&bytes);
    }
}

/// Every field at every bound of its own, so that two that change places are seen.
#[test]
fn every_field_is_read_where_it_stands() {
    let mut plan = two_vms();
    plan.machine.gic = GicClaim::V2 { gicd: Pa::at(u64::MAX) };
    plan.machine.uart = None;
    plan.console = ConsolePlan { mode: ConsoleMode::Focus, escape: 0xff };
    plan.control = ControlPlan {
        on_console: true,
        uart: Some(UartClaim {
            path: "/c".try_into().unwrap(),
            registers: PaRange::new(Pa::at(0x80), 0x7f).unwrap(),
        }),
    };
    plan.knobs = Knobs {
        list_registers_max: Some(1),
        vmid_bits_max: Some(8),
        mitigations_off: true,
        report_reset_cost: false,
        watch_off: true,
        fault_at_start: Some(FaultPlan {
            kind: FaultKind::ExecuteData,
            vm: "b".try_into().unwrap(),
            vcpu: 0xff,
            after: 3,
        }),
    };
    for vm in &mut *plan.vms {
        vm.layout.vgic = VgicFrames::V2 { gicc: Ipa::at(0x7f) };
        vm.layout.vuart_interrupt = Vintid::new(u32::MAX);
        vm.policies = Policies {
            on_crash: OnCrash::Restart(Restarts { most: Some(0x102), backoff_ms: u32::MAX }),
            on_reboot: OnEnd::Stop,
            on_poweroff: OnEnd::Machine,
            on_loss: OnLoss::Ignore,
            after: List::new(vec![VmId::new(3), VmId::new(0xff)]).unwrap(),
            watchdog_ms: Some(200),
            pause_time: PauseTime::Stops,
        };
        for spi in vm.devices.iter_mut().flat_map(|device| &mut *device.interrupts) {
            (spi.pintid, spi.trigger) = (Pintid::new(0x80), Trigger::Edge);
        }
    }
    let mut buffer = vec![0; PLAN_BYTES_MAX];
    let bytes = plan.encode(&mut buffer).unwrap();
    assert_eq!(Plan::decode(bytes), Ok(plan));
    for at in 2..bytes.len() {
        for byte in [0x00, 0x01, 0x02, 0x03, 0x04, 0x0f, 0x10, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            check_decoded(&bytes);
            bytes.insert(at, byte);
            check_decoded(&bytes);
        }
    }
}

#[test]
fn names_are_of_few_characters() {
    for good in ["a", "linux-a", "VM_1", "x234567890123456789012345678901"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "a.b", "a b", "\u{e9}", "a\n", "x2345678901234567890123456789012"] {
        assert!(!is_name(bad), "{bad}");
    }
}
