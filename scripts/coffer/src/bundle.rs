// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bundle: a plan and everything that it names, in one file that a boot loader takes for an
//! initrd.
//!
//! 4 KiB of header keep a boot loader from taking the rest for its own; then a FIT image
//! (Flattened Image Tree Specification) with its data outside of the tree, on page boundaries:
//!
//! ```text
//! 0     magic "COFFERDM", u32 version 1, u32 0, u64 bytes in all (little-endian), zeros
//! 4096  FIT: /images/<name> { type, data-position, data-size, hash-1 { crc32c } }
//!       /configurations/conf-1 { plan = "plan" }
//! ```
//!
//! Positions count from the start of the FIT. Owns the format; must not know what a plan says.
#![forbid(unsafe_code)]

use cofferdam::addr::PAGE_SIZE;
use cofferdam::plan::{PLAN_BYTES_MAX, Plan};
use crc::{CRC_32_ISCSI, Crc};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use std::sync::Arc;

/// The first bytes of a bundle.
pub const MAGIC: &[u8; 8] = b"COFFERDM";
/// The version of the header.
pub const VERSION: u32 = 1;
/// The bytes in front of the FIT.
pub const HEADER_BYTES: u64 = PAGE_SIZE;
/// The name of the plan's image.
pub const PLAN_NAME: &str = "plan";

/// What an image is, in the words of FIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A plan.
    Plan,
    /// A device tree.
    Tree,
    /// A kernel.
    Kernel,
    /// A ramdisk.
    Ramdisk,
}

impl Kind {
    /// Returns the word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Tree => "tree",
            Self::Kernel => "kernel",
            Self::Ramdisk => "ramdisk",
        }
    }

    fn fit_type(self) -> &'static str {
        match self {
            Self::Plan => "firmware",
            Self::Tree => "flat_dt",
            Self::Kernel => "kernel",
            Self::Ramdisk => "ramdisk",
        }
    }
}

/// One image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The name of its node under /images.
    pub name: String,
    /// What it is for, for people.
    pub description: String,
    /// What it is.
    pub kind: Kind,
    /// What is in it.
    pub bytes: Arc<[u8]>,
}

/// A plan and its images, without the plan's own.
#[derive(Clone, PartialEq, Debug)]
pub struct Bundle {
    /// The plan.
    pub plan: Plan,
    /// What it names.
    pub images: Vec<Image>,
}

/// Why a bundle cannot be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BundleError {
    /// The plan is too long.
    #[error("the plan has more than {PLAN_BYTES_MAX} bytes")]
    Plan,
    /// The bundle is too long for its 32-bit positions.
    #[error("the bundle has 4G or more")]
    TooLong,
}

impl Bundle {
    /// Returns the bytes that the bundle takes, without the little that its trees add.
    #[must_use]
    pub fn approximate_bytes(images: &[Image]) -> u64 {
        let pages = |image: &Image| length(&image.bytes).next_multiple_of(PAGE_SIZE);
        images.iter().map(pages).fold(HEADER_BYTES + 2 * PAGE_SIZE, u64::saturating_add)
    }

    /// Writes the bundle.
    ///
    /// # Errors
    /// Says which limit it does not keep.
    pub fn write(&self) -> Result<Vec<u8>, BundleError> {
        let mut buffer = vec![0; PLAN_BYTES_MAX];
        let plan = self.plan.encode(&mut buffer).ok_or(BundleError::Plan)?;
        let plan = Image {
            name: PLAN_NAME.into(),
            description: format!("Cofferdam's plan for {}", self.plan.board),
            kind: Kind::Plan,
            bytes: plan.into(),
        };
        let images: Vec<&Image> = [&plan].into_iter().chain(&self.images).collect();
        // Positions are of a fixed width, so the tree is as long with zeros in their places.
        let tree_bytes = length(&fit(&images, &vec![0; images.len()]));
        let (positions, total) = positions(&images, tree_bytes).ok_or(BundleError::TooLong)?;
        Ok(assemble(&images, &positions, total))
    }
}

/// Places every image on a page of its own and returns the length of the FIT with its data.
fn positions(images: &[&Image], tree_bytes: u64) -> Option<(Vec<u32>, u64)> {
    let mut end = tree_bytes;
    let mut positions = Vec::new();
    for image in images {
        let start = end.next_multiple_of(PAGE_SIZE);
        positions.push(u32::try_from(start).ok()?);
        end = start.checked_add(length(&image.bytes))?;
    }
    u32::try_from(end).ok()?;
    Some((positions, end))
}

fn assemble(images: &[&Image], positions: &[u32], fit_bytes: u64) -> Vec<u8> {
    let mut bundle = Vec::new();
    bundle.extend_from_slice(MAGIC);
    bundle.extend_from_slice(&VERSION.to_le_bytes());
    bundle.extend_from_slice(&0u32.to_le_bytes());
    bundle.extend_from_slice(&(HEADER_BYTES + fit_bytes).to_le_bytes());
    pad(&mut bundle);
    bundle.extend_from_slice(&fit(images, positions));
    for image in images {
        pad(&mut bundle);
        bundle.extend_from_slice(&image.bytes);
    }
    bundle
}

/// Fills up the page. Header and FIT are in step: 4096 bytes of the one precede the other.
fn pad(bundle: &mut Vec<u8>) {
    let page = usize::try_from(PAGE_SIZE).unwrap_or(4096);
    bundle.resize(bundle.len().next_multiple_of(page), 0);
}

fn fit(images: &[&Image], positions: &[u32]) -> Vec<u8> {
    let checksum = Crc::<u32>::new(&CRC_32_ISCSI);
    let nodes = images.iter().zip(positions).map(|(image, position)| {
        let hash = node(
            "hash-1",
            [property("algo", "crc32c"), property("value", checksum.checksum(&image.bytes))],
        );
        // `positions` has checked that every length has 32 bits; zero stands for none as yet.
        let size = u32::try_from(image.bytes.len()).unwrap_or(u32::MAX);
        let properties = [
            property("description", image.description.as_str()),
            property("type", image.kind.fit_type()),
            property("arch", "arm64"),
            property("compression", "none"),
            property("data-position", *position),
            property("data-size", size),
        ];
        let mut image = node(&image.name, properties);
        image.add_child(hash);
        image
    });
    let mut tree = DeviceTree::new();
    tree.root.add_property(property("description", "Cofferdam bundle"));
    tree.root.add_property(property("#address-cells", 1u32));
    let mut parent = node("images", []);
    nodes.for_each(|node| parent.add_child(node));
    tree.root.add_child(parent);
    let mut configurations = node("configurations", [property("default", "conf-1")]);
    let configuration =
        [property("description", "the plan and all that it names"), property("plan", PLAN_NAME)];
    configurations.add_child(node("conf-1", configuration));
    tree.root.add_child(configurations);
    tree.to_dtb()
}

fn node<const N: usize>(name: &str, properties: [DeviceTreeProperty; N]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    properties.into_iter().for_each(|property| node.add_property(property));
    node
}

fn property(name: &str, value: impl ToPropertyValue) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use cofferdam::addr::{Address, Pa};
    use cofferdam::plan::{
        ConsoleMode, ConsolePlan, ControlPlan, GicClaim, Knobs, List, MachineClaim, Name,
    };

    fn example() -> Bundle {
        let machine = MachineClaim {
            memory_bytes: 1 << 31,
            gic: GicClaim::V3 { gicd: Pa::new(0) },
            uart: None,
        };
        let plan = Plan {
            board: Name::try_from("board").unwrap(),
            machine,
            console: ConsolePlan { mode: ConsoleMode::Tagged, escape: 0x1d },
            control: ControlPlan::default(),
            vms: List::default(),
            knobs: Knobs::default(),
        };
        let image = |name: &str, kind, bytes: Vec<u8>| Image {
            name: name.into(),
            description: "for a test".into(),
            kind,
            bytes: bytes.into(),
        };
        let images = vec![
            image("kernel-0", Kind::Kernel, b"123456789".to_vec()),
            image("linux-a-tree", Kind::Tree, vec![7; 4097]),
            image("ramdisk-0", Kind::Ramdisk, vec![]),
        ];
        Bundle { plan, images }
    }

    #[test]
    fn the_header_says_what_it_is_and_how_long() {
        let bytes = example().write().unwrap();
        assert_eq!(&bytes[..8], b"COFFERDM");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], length(&bytes).to_le_bytes());
        assert!(bytes[24..4096].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn every_image_is_found_on_its_page() {
        let bundle = example();
        let bytes = bundle.write().unwrap();
        let fit = &bytes[4096..];
        let tree = Tree::parse(fit).unwrap();
        for image in &bundle.images {
            let node = tree.find(&format!("/images/{}", image.name)).unwrap();
            let position = usize::try_from(tree.u32(node, "data-position").unwrap()).unwrap();
            let size = usize::try_from(tree.u32(node, "data-size").unwrap()).unwrap();
            assert!(position.is_multiple_of(4096));
            assert_eq!(fit[position..position + size], *image.bytes);
        }
        // The check value of CRC-32C, of the nine digits.
        let hash = tree.find("/images/kernel-0/hash-1").unwrap();
        assert_eq!(tree.text(hash, "algo"), Some("crc32c"));
        assert_eq!(tree.u32(hash, "value"), Some(0xe306_9283));
    }

    #[test]
    fn the_plan_comes_back() {
        let bundle = example();
        let bytes = bundle.write().unwrap();
        let tree = Tree::parse(&bytes[4096..]).unwrap();
        let conf = tree.find("/configurations/conf-1").unwrap();
        let name = tree.text(conf, "plan").unwrap();
        let node = tree.find(&format!("/images/{name}")).unwrap();
        let position = usize::try_from(tree.u32(node, "data-position").unwrap()).unwrap() + 4096;
        let size = usize::try_from(tree.u32(node, "data-size").unwrap()).unwrap();
        assert_eq!(Plan::decode(&bytes[position..position + size]), Ok(bundle.plan));
    }

    #[test]
    fn the_same_bundle_has_the_same_bytes() {
        assert_eq!(example().write(), example().write());
    }
}
