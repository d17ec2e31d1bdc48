// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What guests' random numbers start from, until EL2 writes its own over it.
#![forbid(unsafe_code)]

use crate::tree::guest::Seeds;
use sha2::{Digest, Sha512};
use std::io::Read;

/// Draws seeds, or derives them from a fixed one and the VM's name.
pub(super) fn seeds(fixed: Option<u64>, vm: &str) -> Seeds {
    let mut seeds = Seeds { kaslr: 0, rng: [0; 64] };
    let mut random = [0; 72];
    match fixed {
        Some(fixed) => {
            let first = Sha512::digest(format!("{fixed} {vm}"));
            let second = Sha512::digest(first);
            for (byte, value) in random.iter_mut().zip(first.iter().chain(&second)) {
                *byte = *value;
            }
        }
        None => {
            // Without it the seeds stay zero, which kernels take for none.
            let source = std::fs::File::open("/dev/urandom");
            let _ = source.and_then(|mut source| source.read_exact(&mut random));
        }
    }
    if let Some((rng, kaslr)) = random.split_first_chunk() {
        seeds.rng = *rng;
        seeds.kaslr = kaslr.try_into().map_or(0, u64::from_be_bytes);
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_seeds_are_the_same_for_a_vm_and_differ_between_vms() {
        assert_eq!(seeds(Some(1), "a"), seeds(Some(1), "a"));
        assert_ne!(seeds(Some(1), "a"), seeds(Some(1), "b"));
        assert_ne!(seeds(Some(1), "a"), seeds(Some(2), "a"));
        assert_ne!(seeds(None, "a"), seeds(None, "a"));
        assert_ne!(seeds(Some(1), "a").kaslr, 0);
    }
}
