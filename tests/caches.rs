// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest sees that starts with its MMU off: the order of scrubbing, copying and cleaning.

use cofferdam::addr::{Address, Pa};
use cofferdam::arch::fake::memory::CacheLedger;
use cofferdam::memory::cache_range::{LineSize, cache_lines};

const START: u64 = 0x4000_0010;
const SIZE: u64 = 0x100;
const SECRET: u64 = 0x5ec2e7;
const IMAGE: u64 = 0x1a6e;

fn lines() -> impl Iterator<Item = u64> {
    // 64 bytes, as the Cortex-A72 says.
    cache_lines(Pa::new(START), SIZE, LineSize::from_ctr_el0(4 << 16)).map(Pa::get)
}

/// Memory that the last VM has left full of secrets, some of them still in caches.
fn dirty() -> CacheLedger {
    let mut ledger = CacheLedger::new();
    for line in lines() {
        ledger.write_uncached(line, SECRET);
        ledger.write(line, SECRET);
    }
    ledger
}

fn fill(ledger: &mut CacheLedger, value: u64) {
    lines().for_each(|line| ledger.write(line, value));
}

fn clean_invalidate(ledger: &mut CacheLedger) {
    lines().for_each(|line| ledger.clean_invalidate(line));
}

fn all_lines_are(ledger: &CacheLedger, value: u64) -> bool {
    // The guest looks at each byte, with its MMU off and then with it on.
    (START..START + SIZE)
        .map(|byte| byte & !63)
        .all(|line| ledger.read_uncached(line) == value && ledger.read(line) == value)
}

#[test]
fn t01_an_image_is_cleaned_before_the_guest_reads_it() {
    let mut ledger = dirty();
    fill(&mut ledger, IMAGE);
    clean_invalidate(&mut ledger);
    assert!(all_lines_are(&ledger, IMAGE));
}

#[test]
fn t01_twin_without_cleaning_the_guest_reads_the_old_bytes() {
    let mut ledger = dirty();
    fill(&mut ledger, IMAGE);
    assert!(!all_lines_are(&ledger, IMAGE));
    assert_eq!(ledger.read_uncached(START & !63), SECRET);
}

#[test]
fn t02_memory_is_scrubbed_then_cleaned_then_handed_over() {
    let mut ledger = dirty();
    fill(&mut ledger, 0);
    clean_invalidate(&mut ledger);
    assert!(all_lines_are(&ledger, 0));
}

#[test]
fn t02_twin_in_the_other_order_leaks_the_secret() {
    let mut ledger = dirty();
    clean_invalidate(&mut ledger);
    fill(&mut ledger, 0);
    assert_eq!(ledger.read_uncached(START & !63), SECRET);
}

/// A line that is only cleaned stays in the cache and hides what the guest writes past it.
#[test]
fn t16_twin_without_invalidation_a_stale_line_becomes_visible() {
    let mut ledger = dirty();
    fill(&mut ledger, 0);
    lines().for_each(|line| ledger.clean(line));
    ledger.write_uncached(START & !63, 1);
    assert_eq!(ledger.read(START & !63), 0);
    clean_invalidate(&mut ledger);
    ledger.write_uncached(START & !63, 2);
    assert_eq!(ledger.read(START & !63), 2);
}
