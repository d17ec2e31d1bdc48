// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory from EL2's heap, asked for so that it can be refused.
//!
//! VMs are made and unmade while others run, so a heap that is used up is an error of the one who
//! asks and never a panic. Whatever a VM is made of takes its memory here, or by `try_reserve`.
//! Must not know where the heap is.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// The heap has no room for what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hypervisor's own memory is used up")
    }
}

/// Makes an empty list with room for `count` items.
///
/// # Errors
/// The heap has no room for them.
pub fn list<T>(count: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| NoMemory)?;
    Ok(list)
}

/// Makes a list of `count` bytes, all zero.
///
/// # Errors
/// The heap has no room for them.
pub fn zeroes(count: usize) -> Result<Box<[u8]>, NoMemory> {
    let mut list = list(count)?;
    // Byte by byte, as `resize` has it, a console's ring takes 50,000 instructions.
    let part = [0; 256];
    while let Some(left) = count.checked_sub(list.len()).filter(|left| *left > 0) {
        list.extend_from_slice(part.get(..left).unwrap_or(&part));
    }
    // It is full, so this moves nothing.
    Ok(list.into_boxed_slice())
}

/// Adds an item to a list.
///
/// # Errors
/// The heap has no room for it; the list is as it was.
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), NoMemory> {
    list.try_reserve(1).map_err(|_| NoMemory)?;
    list.push(item);
    Ok(())
}

/// Makes a list of all items, which are the same when they are asked for a second time.
///
/// # Errors
/// The heap has no room for them.
pub fn collect<T>(items: impl Iterator<Item = T> + Clone) -> Result<Box<[T]>, NoMemory> {
    let mut list = list(items.clone().count())?;
    list.extend(items);
    // It is full, so this moves nothing.
    Ok(list.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_heap_has_is_refused_and_changes_nothing() {
        assert_eq!(list::<u64>(usize::MAX / 8), Err(NoMemory));
        assert_eq!(list::<u64>(usize::MAX), Err(NoMemory));
        assert_eq!(zeroes(usize::MAX), Err(NoMemory));
        // Of items without a size there may be any number, until it is no number any more.
        let mut items = std::vec![(); usize::MAX];
        assert_eq!(push(&mut items, ()), Err(NoMemory));
        assert_eq!(items.len(), usize::MAX);
    }

    #[test]
    fn what_is_collected_is_all_of_it_in_order() {
        assert_eq!(collect(3..7), Ok(Box::from([3, 4, 5, 6])));
        assert_eq!(collect(0..0), Ok(Box::from([])));
        assert_eq!(zeroes(3), Ok(Box::from([0; 3])));
        assert_eq!(zeroes(1000), Ok(Box::from([0; 1000])));
        let mut items = list(2).unwrap();
        let room = items.capacity();
        assert!(room >= 2);
        assert_eq!((push(&mut items, 'a'), push(&mut items, 'b')), (Ok(()), Ok(())));
        assert_eq!((&*items, items.capacity()), (&['a', 'b'][..], room));
    }
}
