// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the text: against the OpenMetrics specification 1.0, line by line.
#![forbid(unsafe_code)]

use super::super::stats::tests::sample;
use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Checks the text by what the specification says of it, and returns the samples.
fn samples(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("\n# EOF\n"));
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    let mut units = BTreeMap::new();
    let mut found = BTreeMap::new();
    let mut family = String::new();
    let mut families = BTreeSet::new();
    for line in text.trim_end_matches("# EOF\n").lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let words: Vec<_> = rest.splitn(3, ' ').collect();
            match words[0] {
                "TYPE" => assert!(types.insert(words[1].into(), words[2].into()).is_none()),
                "UNIT" => assert!(units.insert(words[1].to_owned(), words[2]).is_none()),
                "HELP" => {}
                other => panic!("{other}"),
            }
            if family != words[1] {
                assert!(families.insert(words[1].to_owned()), "{line}: in two places");
            }
            words[1].clone_into(&mut family);
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let suffix = name.split('{').next().unwrap().strip_prefix(&family).expect(name);
        let suffixes: &[&str] = match types[&family].as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{other}"),
        };
        assert!(suffixes.contains(&suffix), "{line}");
        assert!(found.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line}: twice");
    }
    for (family, unit) in units {
        assert!(family.ends_with(&format!("_{unit}")), "{family} {unit}");
    }
    found
}

#[test]
fn every_counter_is_a_sample() {
    let found = samples(&to_open_metrics(&sample()).unwrap());
    let of = |name: &str| found[name];
    assert_eq!(of(r#"cofferdam_exits_total{vm="linux",vcpu="0",reason="call"}"#), 10_000.0);
    let time = r#"cofferdam_el2_seconds_total{vm="linux",vcpu="0",reason="call"}"#;
    assert_eq!(of(time), 0.0096);
    assert_eq!(of(r#"cofferdam_interrupts_total{vm="linux",vcpu="0",kind="ppi"}"#), 90.0);
    assert_eq!(of(r#"cofferdam_guest_cycles_total{vm="linux",vcpu="0"}"#), 1_000_000.0);
    assert_eq!(of(r#"cofferdam_memory_bytes{vm="linux"}"#), 268_435_456.0);
    let uncounted = r#"cofferdam_guest_instructions_total{vm="linux",vcpu="0"}"#;
    assert!(!found.contains_key(uncounted));
}

#[test]
fn buckets_grow_up_to_the_count() {
    let text = to_open_metrics(&sample()).unwrap();
    let found = samples(&text);
    for (name, count) in [("exit_duration", 10_123.0), ("interrupt_to_entry", 99.0)] {
        let name = format!("cofferdam_{name}_seconds");
        let start = format!("{name}_bucket{{");
        let lines = text.lines().filter(|l| l.starts_with(&start) && l.contains("vcpu=\"0\""));
        let mut last = (f64::NEG_INFINITY, 0.0);
        for line in lines {
            let bound = line.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
            let bound: f64 = bound.trim_start_matches('+').parse().unwrap();
            let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert!(bound > last.0 && value >= last.1, "{line}");
            last = (bound, value);
        }
        assert_eq!(last, (f64::INFINITY, count));
        assert_eq!(found[&format!("{name}_count{{vm=\"linux\",vcpu=\"0\"}}")], count);
    }
    // 2^6 to 2^7 ticks of 16 ns are at most 2.048 us.
    let bucket = |le: f64| {
        let of = |name: &&String| {
            let bound = name.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            name.starts_with("cofferdam_interrupt_to_entry_seconds_bucket")
                && name.contains("vcpu=\"0\"")
                && bound.and_then(|bound| bound.parse().ok()) == Some(le)
        };
        found[found.keys().find(of).unwrap()]
    };
    assert_eq!((bucket(1.024e-6), bucket(2.048e-6)), (0.0, 99.0));
    let sum = r#"cofferdam_interrupt_to_entry_seconds_sum{vm="linux",vcpu="0"}"#;
    assert_eq!(found[sum], 0.000_192);
}

#[test]
fn a_machine_without_vms_is_a_text_too() {
    assert!(samples(&to_open_metrics(&Stats::default()).unwrap()).is_empty());
}
