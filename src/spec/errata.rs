// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What cores need beyond the architecture, by MIDR_EL1 and identification registers.
//!
//! The tables are those of Arm's advisories as Linux has them (arch/arm64/kernel/proton-pack.c and
//! cpu_errata.c). Knows neither the core that it runs on nor how a mitigation is done.
#![forbid(unsafe_code)]

/// A core model: MIDR_EL1.Implementer and PartNum.
type Model = (u64, u64);

const ARM: u64 = 0x41;
const MICROSOFT: u64 = 0x6d;
const NVIDIA: u64 = 0x4e;
const QUALCOMM: u64 = 0x51;
const AMPERE: u64 = 0xc0;

const fn model(midr: u64) -> Model {
    (midr >> 24 & 0xff, midr >> 4 & 0xfff)
}

/// What says how a core's branch history is kept from EL2 (CVE-2022-23960, "Spectre-BHB").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchHistory {
    /// MIDR_EL1.
    pub midr: u64,
    /// ID_AA64PFR0_EL1.CSV2.
    pub csv2: u64,
    /// ID_AA64ISAR2_EL1.CLRBHB.
    pub clrbhb: u64,
    /// ID_AA64MMFR1_EL1.ECBHB.
    pub ecbhb: u64,
}

impl BranchHistory {
    /// Returns how many branches overwrite the history when EL2 is entered; 0 where nothing is to
    /// be done, 1 where the instruction CLRBHB in front of them does all of it.
    #[must_use]
    pub const fn loops(self) -> u64 {
        if self.csv2 >= 3 || self.ecbhb != 0 {
            return 0;
        }
        if self.clrbhb != 0 {
            return 1;
        }
        match model(self.midr) {
            // Cortex-A57, A72.
            (ARM, 0xd07 | 0xd08) => 8,
            // Ampere-1.
            (AMPERE, 0xac3) => 11,
            // Cortex-A76, Neoverse-N1, Cortex-A77, A76AE; Kryo 4xx Gold.
            (ARM, 0xd0b..=0xd0e) | (QUALCOMM, 0x804) => 24,
            // Neoverse-V1, Cortex-A78, A78AE, X1, A710, X2, Neoverse-N2, A78C, X1C; Cobalt 100.
            (ARM, 0xd40..=0xd42 | 0xd44 | 0xd47..=0xd49 | 0xd4b | 0xd4c) | (MICROSOFT, 0xd49) => 32,
            // Cortex-A715, A720.
            (ARM, 0xd4d | 0xd81) => 38,
            // Cortex-X3, Neoverse-V2.
            (ARM, 0xd4e | 0xd4f) => 132,
            _ => 0,
        }
    }
}

/// Returns whether a broadcast TLB invalidation may leave memory accesses of such a core
/// incomplete unless it is repeated (CVE-2025-10263, traps T08). One such core is enough for all
/// cores of a machine to repeat theirs.
#[must_use]
pub const fn repeats_tlbi(midr: u64) -> bool {
    match model(midr) {
        // Cortex-A76, Neoverse-N1, Cortex-A77, A76AE.
        (ARM, 0xd0b..=0xd0e)
        // Neoverse-V1, Cortex-A78, A78AE, X1, A710, X2, Neoverse-N2, A78C, X1C.
        | (ARM, 0xd40..=0xd42 | 0xd44 | 0xd47..=0xd49 | 0xd4b | 0xd4c)
        // Cortex-X3, Neoverse-V2, Cortex-X4, Neoverse-V3AE, V3, Cortex-X925.
        | (ARM, 0xd4e | 0xd4f | 0xd82..=0xd85)
        // C1-Ultra, C1-Premium; Cobalt 100; Olympus.
        | (ARM, 0xd8c | 0xd90) | (MICROSOFT, 0xd49) | (NVIDIA, 0x010) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn midr(implementer: u64, part: u64) -> u64 {
        // Variant 3, architecture 0xf, revision 1: none of them counts.
        implementer << 24 | 3 << 20 | 0xf << 16 | part << 4 | 1
    }

    fn loops(implementer: u64, part: u64) -> u64 {
        let midr = midr(implementer, part);
        BranchHistory { midr, csv2: 1, clrbhb: 0, ecbhb: 0 }.loops()
    }

    /// The tables of spectre_bhb_loop_affected().
    #[test]
    fn t60_branch_history_follows_the_published_table() {
        let table: [(u64, &[u64]); 5] = [
            (8, &[0xd07, 0xd08]),
            (24, &[0xd0b, 0xd0c, 0xd0d, 0xd0e]),
            (32, &[0xd40, 0xd41, 0xd42, 0xd44, 0xd47, 0xd48, 0xd49, 0xd4b, 0xd4c]),
            (38, &[0xd4d, 0xd81]),
            (132, &[0xd4e, 0xd4f]),
        ];
        for part in 0..0x1000 {
            let row = table.iter().find(|(_, parts)| parts.contains(&part));
            assert_eq!(loops(0x41, part), row.map_or(0, |(n, _)| *n), "{part:#x}");
        }
        assert_eq!(loops(0xc0, 0xac3), 11);
        assert_eq!(loops(0x51, 0x804), 24);
        assert_eq!(loops(0x6d, 0xd49), 32);
        assert_eq!(loops(0x50, 0xd08), 0, "the part number is the implementer's own");
    }

    #[test]
    fn t60_newer_cores_have_better_means() {
        let a710 = BranchHistory { midr: midr(0x41, 0xd47), csv2: 1, clrbhb: 0, ecbhb: 0 };
        assert_eq!(BranchHistory { csv2: 3, ..a710 }.loops(), 0);
        assert_eq!(BranchHistory { ecbhb: 1, clrbhb: 1, ..a710 }.loops(), 0);
        assert_eq!(BranchHistory { clrbhb: 1, ..a710 }.loops(), 1);
        let unknown = BranchHistory { midr: midr(0x41, 0xfff), clrbhb: 1, ..a710 };
        assert_eq!(unknown.loops(), 1, "an instruction that is there is used");
    }

    /// The list of CONFIG_ARM64_ERRATUM_4118414.
    #[test]
    fn t08_cores_that_repeat_a_tlbi() {
        let arm = [
            0xd0b, 0xd0c, 0xd0d, 0xd0e, 0xd40, 0xd41, 0xd42, 0xd44, 0xd47, 0xd48, 0xd49, 0xd4b,
            0xd4c, 0xd4e, 0xd4f, 0xd82, 0xd83, 0xd84, 0xd85, 0xd8c, 0xd90,
        ];
        for part in 0..0x1000 {
            assert_eq!(repeats_tlbi(midr(0x41, part)), arm.contains(&part), "{part:#x}");
        }
        assert!(repeats_tlbi(midr(0x6d, 0xd49)) && repeats_tlbi(midr(0x4e, 0x010)));
        assert!(!repeats_tlbi(midr(0x4e, 0xd0b)));
    }
}
