// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bench's table: our columns beside the peers'.
#![forbid(unsafe_code)]

use super::Costs;
use serde::Serialize;
use std::fmt::Write as _;

/// The peers, measured with the same guest under QEMU 10.0.2, `-icount shift=0,sleep=off`,
/// `-cpu cortex-a72,cntfrq=1000000000`; the first column is the guest at EL1 without a hypervisor.
const PEERS: [&str; 6] = ["bare", "KVM nVHE", "KVM VHE", "Xen 4.20", "Bao 2.0", "hvisor"];

/// What operations cost the peers, in instructions or bytes; `-` where nobody measured it.
const ROWS: &[(&str, [&str; 6])] = &[
    ("hvc_psci_version", ["4", "1699", "1322", "467", "192", "154"]),
    ("smc_psci_version", ["-", "1730", "1353", "498", "206", "129"]),
    ("gicd_iidr_read", ["3", "2447", "2108", "574", "229", "323"]),
    ("gicd_isenabler_read", ["3", "4313", "3974", "679", "1292", "712"]),
    ("gicd_isenabler_write", ["3", "2474", "2135", "730", "3565", "709"]),
    ("gicr_isenabler_write", ["3", "2578", "2235", "722", "3591", "356"]),
    ("uart_fr_read", ["3", "15906", "16351", "628", "-", "-"]),
    ("idreg_read", ["3", "2014", "1643", "428", "untrapped", "untrapped"]),
    ("sgi1r_write", ["14", "3143", "2761", "662", "685", "141*"]),
    ("self_sgi_to_vector", ["14", "3090", "2709", "1040", "789", "346*"]),
    ("vtimer_to_vector", ["4", "2992", "2595", "1092", "203", "227"]),
    ("ipi_one_way", ["23", "5432", "4714", "1611", "810", "362*"]),
    ("ipi_round_trip", ["152", "11024", "9488", "3354", "1726", "830*"]),
    ("cpu_on", ["10", "~480k", "~200k", "64203", "1806", "1218"]),
    ("reset_to_guest", ["-", "-", "-", "17.9M", "335k", "814k"]),
    ("image_bytes", ["-", "31M", "-", "1.0M", "92K", "208K"]),
    ("ram_bytes", ["-", "-", "-", "17M", "260K", "~66M"]),
];

/// Returns the table: the peers' operations in their order, then what only we measure.
pub(super) fn text(mitigations_off: &Costs, mitigations_on: &Costs) -> String {
    let cell = |costs: &Costs, operation: &str| {
        costs.get(operation).map_or_else(|| "-".to_owned(), u64::to_string)
    };
    let mut text = String::new();
    row(&mut text, "operation", ["cofferdam", "mitigated"].map(str::to_owned), PEERS);
    for &(operation, peers) in ROWS {
        let ours = [mitigations_off, mitigations_on].map(|costs| cell(costs, operation));
        row(&mut text, operation, ours, peers);
    }
    let only_ours = mitigations_off.keys().filter(|name| ROWS.iter().all(|row| row.0 != **name));
    for operation in only_ours {
        let ours = [mitigations_off, mitigations_on].map(|costs| cell(costs, operation));
        row(&mut text, operation, ours, ["-"; 6]);
    }
    text.push_str("* without a check that the target belongs to the sender's VM\n");
    text
}

fn row(text: &mut String, operation: &str, ours: [String; 2], peers: [&str; 6]) {
    // Writing to a string does not fail.
    let _ = write!(text, "{operation:<22}{:>11}{:>11}", ours[0], ours[1]);
    for peer in peers {
        let _ = write!(text, "{peer:>11}");
    }
    text.push('\n');
}

#[derive(Serialize)]
struct Entry<'a> {
    operation: &'a str,
    instructions: u64,
}

/// Returns the costs as a JSON list.
pub(super) fn json(costs: &Costs) -> String {
    let entries = costs.iter().map(|(name, &instructions)| Entry { operation: name, instructions });
    // Strings and integers always serialise.
    serde_json::to_string_pretty(&entries.collect::<Vec<_>>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_numbers_stand_beside_the_peers() {
        let off = Costs::from([("hvc_psci_version".into(), 114), ("reset_copy".into(), 7)]);
        let on = Costs::from([("hvc_psci_version".into(), 141)]);
        let text = text(&off, &on);
        let words = |start: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(
            words("hvc_psci_version"),
            ["hvc_psci_version", "114", "141", "4", "1699", "1322", "467", "192", "154"]
        );
        assert_eq!(words("reset_copy")[1..3], ["7", "-"]);
        let width = text.lines().next().unwrap().len();
        assert!(text.lines().take(ROWS.len()).all(|line| line.len() == width), "{text}");
    }

    #[test]
    fn json_is_a_list_of_operations() {
        let costs = Costs::from([("cpu_on".into(), 900)]);
        let value: serde_json::Value = serde_json::from_str(&json(&costs)).unwrap();
        assert_eq!(value, serde_json::json!([{"operation": "cpu_on", "instructions": 900}]));
    }
}
