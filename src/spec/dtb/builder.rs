// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Writes device trees for tests, also wrong ones.
#![forbid(unsafe_code)]

use std::vec::Vec;

/// A tree in the making.
#[derive(Default)]
pub struct Builder {
    structs: Vec<u8>,
    strings: Vec<u8>,
    reservations: Vec<u64>,
}

impl Builder {
    /// Writes a tree: the root with what `fill` puts into it.
    pub fn tree(fill: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut builder = Self::default();
        builder.node("", fill);
        builder.finish()
    }
    /// Adds a memory reservation.
    pub fn reserve(&mut self, address: u64, size: u64) {
        self.reservations.extend([address, size]);
    }
    /// Adds a node with what `fill` puts into it.
    pub fn node(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.token(1);
        self.bytes(name.as_bytes());
        self.bytes(&[0]);
        self.pad();
        fill(self);
        self.token(2);
    }
    /// Adds a property.
    pub fn prop(&mut self, name: &str, value: &[u8]) {
        self.token(3);
        self.token(u32::try_from(value.len()).unwrap());
        let name_at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.as_bytes().iter().chain(&[0]));
        self.token(name_at);
        self.bytes(value);
        self.pad();
    }
    /// Adds a property that is a list of cells.
    pub fn cells(&mut self, name: &str, cells: &[u32]) {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.prop(name, &value);
    }
    /// Adds a property that is a list of strings, each but the last with its `\0`.
    pub fn text(&mut self, name: &str, text: &str) {
        self.prop(name, &[text.as_bytes(), &[0]].concat());
    }
    /// Adds a word to the structure block.
    pub fn token(&mut self, token: u32) {
        self.bytes(&token.to_be_bytes());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.structs.extend(bytes);
    }
    fn pad(&mut self) {
        self.structs.resize(self.structs.len().next_multiple_of(4), 0);
    }
    /// Ends the structure block and puts the blocks together.
    pub fn finish(mut self) -> Vec<u8> {
        self.token(9);
        self.reservations.extend([0, 0]);
        let reservations: Vec<u8> =
            self.reservations.iter().flat_map(|number| number.to_be_bytes()).collect();
        let structs_at = 40 + reservations.len();
        let strings_at = structs_at + self.structs.len();
        let total = strings_at + self.strings.len();
        let sizes = [self.strings.len(), self.structs.len()];
        let header = [0xd00d_feed, total, structs_at, strings_at, 40, 17, 16, 0].into_iter();
        let mut tree: Vec<u8> = header
            .chain(sizes)
            .flat_map(|word| u32::try_from(word).unwrap().to_be_bytes())
            .collect();
        tree.extend([reservations, self.structs, self.strings].concat());
        tree
    }
}

/// A small generator of the xorshift kind, so that a test does the same every time.
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }
    /// Damages one to four places: bytes, and words that mean something in a tree.
    pub fn mutate(&mut self, bytes: &mut [u8]) {
        const WORDS: [u32; 12] = [0, 1, 2, 3, 4, 5, 8, 9, 12, 0x7fff_ffff, 0xffff_fffc, u32::MAX];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 => bytes[at] ^= 1 << self.below(8),
                2 => {
                    let word = WORDS[self.below(WORDS.len())].to_be_bytes();
                    let here = bytes[at & !3..].iter_mut();
                    here.zip(word).for_each(|(byte, new)| *byte = new);
                }
                _ => {
                    let (from, size) = (self.below(bytes.len()), 1 + self.below(32));
                    let size = size.min(bytes.len() - at).min(bytes.len() - from);
                    bytes.copy_within(from..from + size, at);
                }
            }
        }
    }
}
