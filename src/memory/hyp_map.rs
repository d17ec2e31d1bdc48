// SPDX-License-Identifier: Apache-2.0 OR MIT
//! EL2's own stage-1 tables: write-xor-execute, device memory never executable, all global.
//!
//! Built by one core with the MMU off, so nothing here takes a lock, an atomic or the heap. What
//! is mapped where is the boot's business. DDI 0487 D8.2 (EL2 translation regime, E2H = 0).
#![forbid(unsafe_code)]

use super::mapper::{Format, Mapper};
use crate::addr::{HypVa, Pa};
use crate::spec::vmsa::{self, Geometry, HypAttributes};

/// Marks tables of EL2's stage 1.
#[derive(Debug)]
pub struct HypFormat;

impl Format for HypFormat {
    type Input = HypVa;
    type Attributes = HypAttributes;
    const ALL: &'static [HypAttributes] = &HypAttributes::ALL;

    fn bits(&self, attributes: HypAttributes) -> u64 {
        attributes.bits()
    }
}

/// EL2's tables.
pub type HypMap = Mapper<HypFormat>;

/// Takes charge of EL2's tables under `root`, one zeroed page, for as many virtual as physical
/// bits.
///
/// `None` when the root is not aligned, or `pa_bits` is not from 32 to 48.
pub fn hyp_map(pa_bits: u32, root: Pa) -> Option<HypMap> {
    Mapper::new(HypFormat, Geometry::stage1(pa_bits)?, pa_bits, root)
}

/// Returns TCR_EL2 for [`hyp_map`]; TTBR0_EL2 is the root, MAIR_EL2 is [`vmsa::mair::MAIR_EL2`].
pub fn tcr_el2(map: &HypMap) -> u64 {
    vmsa::tcr_el2(map.geometry(), map.pa_bits())
}
