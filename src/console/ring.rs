// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A ring of bytes with a fixed size. It knows nothing of lines.
#![forbid(unsafe_code)]

use crate::heap::{self, NoMemory};
use alloc::boxed::Box;

/// A first-in, first-out queue of bytes.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Box<[u8]>,
    /// Where the oldest byte is.
    head: usize,
    len: usize,
}

impl Ring {
    /// Makes a ring that holds `size` bytes. This allocates; nothing else here does.
    pub(super) fn new(size: usize) -> Result<Self, NoMemory> {
        Ok(Self { bytes: heap::zeroes(size)?, head: 0, len: 0 })
    }
    /// Makes a ring that holds nothing.
    pub(super) fn empty() -> Self {
        Self { bytes: Box::default(), head: 0, len: 0 }
    }
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
    pub(super) fn len(&self) -> usize {
        self.len
    }
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Returns how many bytes can still be pushed.
    pub(super) fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.len)
    }

    /// Adds a byte; returns whether there was room.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        let at = self.place(self.len);
        if self.len < self.bytes.len()
            && let Some(slot) = self.bytes.get_mut(at)
        {
            *slot = byte;
            self.len += 1;
            return true;
        }
        false
    }
    /// Takes the oldest byte.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.peek(0)?;
        self.skip(1);
        Some(byte)
    }
    /// Returns the oldest bytes, as many as lie together.
    pub(super) fn front(&self) -> &[u8] {
        let behind = self.bytes.get(self.head..).unwrap_or_default();
        behind.get(..self.len).unwrap_or(behind)
    }
    /// Takes the oldest bytes, at most as many as there are.
    pub(super) fn skip(&mut self, count: usize) {
        let count = count.min(self.len);
        self.head = self.place(count);
        self.len -= count;
    }
    /// Returns the byte `ahead` places behind the oldest.
    pub(super) fn peek(&self, ahead: usize) -> Option<u8> {
        (ahead < self.len).then(|| self.bytes.get(self.place(ahead)).copied())?
    }
    /// Copies the newest bytes, also those that were taken: as many as there is room for in
    /// `buffer`, which is no more than the ring has and than were ever pushed.
    pub(super) fn copy_newest(&self, buffer: &mut [u8]) {
        let end = self.place(self.len);
        // The older ones are at the end of the ring, where they do not fit in front of `end`.
        let older = buffer.len().saturating_sub(end);
        let (older, newer) = buffer.split_at_mut(older);
        for (part, end) in [(older, self.bytes.len()), (newer, end)] {
            let from = end.checked_sub(part.len()).and_then(|start| self.bytes.get(start..end));
            if let Some(from) = from {
                part.copy_from_slice(from);
            }
        }
    }
    /// Forgets the newest bytes, until `len` are left.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Returns the place of the byte `ahead` places behind the oldest; `ahead` is at most the size.
    fn place(&self, ahead: usize) -> usize {
        let at = self.head.saturating_add(ahead);
        at.checked_sub(self.bytes.len()).unwrap_or(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    /// Follows a ring of `size` bytes and a queue through the same steps; `push` is the ring's.
    fn follow(
        size: usize,
        steps: &[(u8, u8)],
        push: impl Fn(&mut Ring, u8) -> bool,
    ) -> Result<(), TestCaseError> {
        let mut ring = Ring::new(size).unwrap();
        let mut model = VecDeque::new();
        for &(step, byte) in steps {
            match step {
                0..=3 => {
                    prop_assert_eq!(push(&mut ring, byte), model.len() < size);
                    if model.len() < size {
                        model.push_back(byte);
                    }
                }
                4..=6 => prop_assert_eq!(ring.pop(), model.pop_front()),
                _ => {
                    ring.truncate(usize::from(byte));
                    model.truncate(usize::from(byte));
                }
            }
            prop_assert_eq!(ring.len(), model.len());
            prop_assert_eq!(ring.room(), size - model.len());
            for n in 0..=size {
                prop_assert_eq!(ring.peek(n), model.get(n).copied());
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn follows_the_model(
            size in 1usize..20,
            steps in proptest::collection::vec((0u8..8, any::<u8>()), 0..200),
        ) {
            follow(size, &steps, Ring::push)?;
        }
    }

    /// Says that there was room, and has written over what was to be sent next.
    fn push_over(ring: &mut Ring, byte: u8) -> bool {
        let at = ring.place(ring.len);
        ring.bytes[at % ring.bytes.len()] = byte;
        ring.len = (ring.len + 1).min(ring.bytes.len());
        true
    }

    #[test]
    fn t114_twin_that_wraps_over_what_is_not_sent_is_noticed() {
        let pushes: Vec<_> = (0..4).map(|n| (0, n)).collect();
        for (steps, is_so) in [(&pushes[..3], true), (&pushes[..], false)] {
            assert_eq!(follow(3, steps, push_over).is_ok(), is_so);
            assert!(follow(3, steps, Ring::push).is_ok());
        }
    }

    #[test]
    fn t112_ring_of_no_size_is_full() {
        let mut ring = Ring::new(0).unwrap();
        assert!(!ring.push(1) && ring.pop().is_none() && ring.room() == 0);
    }
}
