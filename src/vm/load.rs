// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Filling a VM's memory for a start: scrub once, copy the images, clean.
//!
//! Runs on the VM's own core while no vCPU is inside, in pieces with a pause behind each: that core
//! may have other duties. The images come from the bundle, which EL2 keeps read-only, so a restart
//! finds what the first start found.
#![forbid(unsafe_code)]

use crate::addr::{Address, Ipa, PaRange};
use crate::arch::{self, HypMemory};
use crate::memory::guest::Chunk;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

/// The bytes that are worked on between two pauses: checking them takes some 10,000 instructions
/// where the core has CRC32C.
const PIECE_BYTES: u64 = 32 << 10;

/// An image of the bundle and where it goes.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it is in the bundle.
    pub source: HypMemory,
    /// Where its first byte goes.
    pub ipa: Ipa,
    /// What [`arch::crc32c`] must say of it.
    pub crc32c: u32,
}

/// What it takes to fill a VM's memory.
#[derive(Debug)]
pub struct Loader {
    /// The VM's memory: what the guest sees, and EL2's own mapping of it.
    memory: Box<[(Chunk, HypMemory)]>,
    is_scrubbed: AtomicBool,
}

/// What a start has cost, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadCost {
    /// Scrubbing the memory, which only the first start does.
    pub scrub_ticks: u64,
    /// Checking the images.
    pub hash_ticks: u64,
    /// Copying them.
    pub copy_ticks: u64,
    /// Cleaning the caches.
    pub clean_ticks: u64,
    /// The bytes of all images.
    pub image_bytes: u64,
    /// The bytes of the VM's memory.
    pub memory_bytes: u64,
}

/// Why a VM's memory cannot be filled: an image is not what it was. Names where it would go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged(pub Ipa);

impl Loader {
    /// Takes the memory of a VM.
    #[must_use]
    pub fn new(memory: Box<[(Chunk, HypMemory)]>) -> Self {
        Self { memory, is_scrubbed: AtomicBool::new(false) }
    }

    /// Gives the memory up.
    #[must_use]
    pub fn into_memory(self) -> Vec<(Chunk, HypMemory)> {
        self.memory.into()
    }

    /// Returns EL2's own mapping of a part of the memory; `None` where that is not in one chunk.
    #[must_use]
    pub fn mapped(&self, part: PaRange) -> Option<HypMemory> {
        self.memory.iter().find_map(|(chunk, memory)| {
            let offset = part.start().get().checked_sub(chunk.pa.get())?;
            memory.part(offset, part.size())
        })
    }

    /// Fills the memory with these images, with a `pause` now and then. Only the leader of a start
    /// calls this.
    ///
    /// # Errors
    /// An image is damaged; the memory is then partly filled and must not run.
    pub fn load(&self, images: &[Image], pause: &mut dyn FnMut()) -> Result<LoadCost, Damaged> {
        let mut cost = LoadCost::default();
        let begun = arch::counter();
        if !self.is_scrubbed.swap(true, Ordering::Relaxed) {
            // What the firmware or an earlier owner left is no guest's business (traps T02).
            for (_, memory) in &self.memory {
                in_pieces(*memory, pause, |piece, _| arch::zero(piece));
            }
            cost.scrub_ticks = arch::counter().wrapping_sub(begun);
        }
        let start = arch::counter();
        for image in images {
            let mut crc32c = 0;
            in_pieces(image.source, pause, |piece, _| crc32c = arch::crc32c(crc32c, piece));
            if crc32c != image.crc32c {
                return Err(Damaged(image.ipa));
            }
            cost.image_bytes = cost.image_bytes.saturating_add(image.source.range().size());
        }
        let hashed = arch::counter();
        images.iter().for_each(|image| self.copy(image, pause));
        let copied = arch::counter();
        self.clean(pause);
        let cleaned = arch::counter();
        cost.hash_ticks = hashed.wrapping_sub(start);
        cost.copy_ticks = copied.wrapping_sub(hashed);
        cost.clean_ticks = cleaned.wrapping_sub(copied);
        cost.memory_bytes = self.memory.iter().map(|(chunk, _)| chunk.ipa.size()).sum();
        Ok(cost)
    }

    /// Copies an image to its place, which may span chunks.
    fn copy(&self, image: &Image, pause: &mut dyn FnMut()) {
        let bytes = image.source.range().size();
        let Some(wanted) = crate::addr::IpaRange::new(image.ipa, bytes) else { return };
        for (chunk, memory) in &self.memory {
            let Some(part) = chunk.ipa.intersection(wanted) else { continue };
            let in_chunk = part.start().get() - chunk.ipa.start().get();
            let in_image = part.start().get() - image.ipa.get();
            let Some(from) = image.source.part(in_image, part.size()) else { continue };
            in_pieces(from, pause, |piece, offset| {
                let to = in_chunk.saturating_add(offset);
                if let Some(to) = memory.part(to, piece.range().size()) {
                    arch::copy(to, piece);
                }
            });
        }
    }

    /// Makes memory hold what the caches hold: the guest starts with its caches off (traps T01).
    fn clean(&self, pause: &mut dyn FnMut()) {
        for (_, memory) in &self.memory {
            in_pieces(*memory, pause, |piece, _| arch::clean_invalidate(piece.range()));
        }
        arch::publish_code();
    }
}

/// Works on memory piece by piece, each with its offset, with a pause behind each.
fn in_pieces(memory: HypMemory, pause: &mut dyn FnMut(), mut work: impl FnMut(HypMemory, u64)) {
    let (mut offset, bytes) = (0, memory.range().size());
    while let Some(piece) = memory.part(offset, bytes.saturating_sub(offset).min(PIECE_BYTES)) {
        work(piece, offset);
        pause();
        offset = offset.saturating_add(PIECE_BYTES);
    }
}
