// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of translations by tables that are built here, from DDI 0487 D8.
#![forbid(unsafe_code)]

use super::super::samples::{REGIMES, Ram, Regime, Tables, flat};
use super::super::{Cached, read_virtual};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const RAM: u64 = 0x4000_0000;

#[test]
fn with_the_mmu_off_memory_is_where_it_is() {
    let mut ram = Ram::new(RAM, 4);
    assert_eq!(translate(&mut ram, &flat(), 0x1234).unwrap(), Some(0x1234));
    let runs = mappings(&mut ram, &flat()).unwrap().runs;
    assert_eq!(runs, [Run { va: RAM, ipa: RAM, bytes: 0x4000 }]);
}

#[test]
fn pages_and_blocks_are_found_in_every_regime() {
    for regime in REGIMES {
        let page = 1 << regime.granule;
        let mut ram = Ram::new(RAM, 1024);
        let mut tables = Tables::new(regime, &ram);
        let base = regime.base();
        tables.map(&mut ram, base + 5 * page, RAM + page, 0);
        tables.map(&mut ram, base + 6 * page, RAM + 2 * page, 0);
        tables.map(&mut ram, u64::MAX - page + 1, RAM, 0);
        // The block has the memory from its start on and nothing behind that.
        let block: u64 = 1 << (2 * regime.granule - 3);
        tables.map(&mut ram, base + 3 * block, RAM & !(block - 1), 1);
        let registers = tables.registers();
        let mut look = |va| translate(&mut ram, &registers, va).unwrap();
        assert_eq!(look(base + 5 * page + 8), Some(RAM + page + 8), "{regime:?}");
        assert_eq!(look(base + 7 * page), None);
        assert_eq!(look(u64::MAX), Some(RAM + page - 1));
        assert_eq!(look(base + 3 * block + 0x10), Some((RAM & !(block - 1)) + 0x10));
        assert_eq!(look(5 * page), None, "the lower half is off");
        let runs = mappings(&mut ram, &registers).unwrap().runs;
        let bytes = block.min(1024 * 4096);
        let expected = [
            Run { va: base + 5 * page, ipa: RAM + page, bytes: 2 * page },
            Run { va: base + 3 * block + (RAM & (block - 1)), ipa: RAM, bytes },
            Run { va: u64::MAX - page + 1, ipa: RAM, bytes: page },
        ];
        assert_eq!(runs, expected, "{regime:?}");
    }
}

#[test]
fn a_signed_address_is_its_target() {
    let regime = REGIMES[1];
    let registers = regime.registers(0);
    assert_eq!(
        registers.without_tag(0x0012_8000_0810_1234),
        0xffff_8000_0810_1234 & 0x0000_ffff_ffff_ffff
    );
    assert_eq!(registers.without_tag(0x1e92_8000_0810_1234), 0xffff_8000_0810_1234);
    assert_eq!(registers.without_tag(0xffff_8000_0810_1234), 0xffff_8000_0810_1234);
}

#[test]
fn tables_that_lead_to_themselves_come_to_an_end() {
    let regime = REGIMES[1];
    let mut ram = Ram::new(RAM, 16);
    // Every entry is this table, and at the last level a page.
    ram.write(RAM, &[RAM | 3; 512]);
    let registers = regime.registers(RAM);
    let found = mappings(&mut Cached::new(ram), &registers).unwrap();
    assert!(found.is_cut);
    assert!(found.runs.len() <= RUNS_MAX);
}

#[test]
fn tables_outside_memory_map_nothing() {
    for root in [0, 0x1000, !0xfff, RAM - 0x1000, RAM + 0x1_0000] {
        let mut ram = Ram::new(RAM, 16);
        let registers = REGIMES[1].registers(root & 0xffff_ffff_f000);
        assert_eq!(translate(&mut ram, &registers, u64::MAX).unwrap(), None);
        assert_eq!(mappings(&mut ram, &registers).unwrap(), Mappings::default());
    }
}

fn any_regime() -> impl Strategy<Value = Regime> {
    (0..REGIMES.len()).prop_map(|n| REGIMES[n])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Runs, single translations and the pages that were mapped say the same.
    #[test]
    fn mappings_are_what_was_mapped(
        regime in any_regime(),
        wanted in prop::collection::vec((0_u64..64, 0_u64..8), 1..40),
    ) {
        let page = 1 << regime.granule;
        let mut ram = Ram::new(RAM, 2048);
        let mut tables = Tables::new(regime, &ram);
        let mut model = BTreeMap::new();
        for (n, to) in wanted {
            // In two places far apart.
            let va = if n < 32 { regime.base() + n * page } else { u64::MAX - (n * page) + 1 };
            let va = va & !(page - 1);
            if model.contains_key(&va) {
                continue;
            }
            tables.map(&mut ram, va, RAM + to * page, 0);
            model.insert(va, RAM + to * page);
        }
        let registers = tables.registers();
        let mut listed = BTreeMap::new();
        for run in mappings(&mut ram, &registers).unwrap().runs {
            prop_assert_eq!(run.bytes % page, 0);
            for n in 0..run.bytes / page {
                listed.insert(run.va + n * page, run.ipa + n * page);
            }
        }
        prop_assert_eq!(&listed, &model);
        for (va, ipa) in model {
            prop_assert_eq!(translate(&mut ram, &registers, va + 9).unwrap(), Some(ipa + 9));
        }
    }

    /// Whatever a guest has in its registers and its tables, work ends and nothing panics.
    #[test]
    fn hostile_tables_do_no_harm(
        words in prop::collection::vec(any::<u64>(), 512),
        tcr in any::<u64>(),
        ttbrs in any::<[u16; 2]>(),
        va in any::<u64>(),
    ) {
        let mut ram = Ram::new(RAM, 4);
        // Half of them lead back into memory.
        let words: Vec<u64> = words
            .iter()
            .map(|w| if w & 4 == 0 { RAM | w & 0x3000 | 3 } else { *w })
            .collect();
        ram.write(RAM, &words);
        let [ttbr0, ttbr1] = ttbrs.map(|low| RAM | u64::from(low));
        let registers = Registers { sctlr: 1, tcr, ttbr0, ttbr1, pc: va, ..flat() };
        let mut ram = Cached::new(ram);
        let _ = translate(&mut ram, &registers, va).unwrap();
        let _ = read_virtual(&mut ram, &registers, va, &mut [0; 32]).unwrap();
        let found = mappings(&mut ram, &registers).unwrap();
        prop_assert!(found.runs.len() <= RUNS_MAX);
    }
}
