// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sorting in little code: core's sorts are 9 KiB of the image, and nothing here is sorted often.
//!
//! Must not know what is sorted.
#![forbid(unsafe_code)]

/// Sorts by a key, without memory, in n log n steps whatever the order was (a heap sort). What has
/// equal keys ends in any order.
pub fn sort_by_key<T>(items: &mut [T], key: impl Fn(&T) -> u64) {
    for root in (0..items.len() / 2).rev() {
        sift(items, root, &key);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        if let Some(heap) = items.get_mut(..end) {
            sift(heap, 0, &key);
        }
    }
}

/// Moves the item at `root` down until no item below it has a greater key.
fn sift<T>(items: &mut [T], mut root: usize, key: &impl Fn(&T) -> u64) {
    loop {
        let rank = |n: usize| items.get(n).map(key);
        // `None` is less than any key.
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let child = if rank(right) > rank(left) { right } else { left };
        if rank(child) <= rank(root) {
            return;
        }
        items.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn what_is_sorted_is_what_was_there_in_order(items: Vec<u64>) {
            let mut sorted = items.clone();
            sort_by_key(&mut sorted, |&item| item);
            let mut expected = items;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }

    #[test]
    fn the_key_decides() {
        let mut items = [(3, 'a'), (1, 'c'), (2, 'b')];
        sort_by_key(&mut items, |&(key, _)| key);
        assert_eq!(items, [(1, 'c'), (2, 'b'), (3, 'a')]);
    }
}
