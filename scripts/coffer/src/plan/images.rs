// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The images that a plan names, each kept once.
#![forbid(unsafe_code)]

use crate::bundle::{Image, Kind};
use cofferdam::plan::NAME_MAX;

/// The images so far, each kept once.
#[derive(Default)]
pub(super) struct Images(pub(super) Vec<Image>);

impl Images {
    /// Keeps an image, unless the same is there already, and returns its name.
    pub(super) fn add(&mut self, kind: Kind, description: String, bytes: Vec<u8>) -> String {
        let same = |image: &&Image| image.kind == kind && *image.bytes == *bytes;
        if let Some(image) = self.0.iter().find(same) {
            return image.name.clone();
        }
        let number = self.0.iter().filter(|image| image.kind == kind).count();
        self.push(format!("{}-{number}", kind.word()), kind, description, bytes)
    }

    /// Keeps a VM's tree, under the VM's name where there is room for it.
    pub(super) fn add_tree(&mut self, vm: &str, bytes: Vec<u8>) -> String {
        let description = format!("for {vm}");
        let name = format!("{vm}-tree");
        if name.len() > NAME_MAX {
            return self.add(Kind::Tree, description, bytes);
        }
        self.push(name, Kind::Tree, description, bytes)
    }

    fn push(&mut self, name: String, kind: Kind, description: String, bytes: Vec<u8>) -> String {
        self.0.push(Image { name: name.clone(), description, kind, bytes: bytes.into() });
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_images_are_kept_once() {
        let mut images = Images::default();
        let mut add = |kind, bytes: &[u8]| images.add(kind, String::new(), bytes.to_vec());
        assert_eq!(add(Kind::Kernel, b"a"), "kernel-0");
        assert_eq!(add(Kind::Kernel, b"b"), "kernel-1");
        assert_eq!(add(Kind::Kernel, b"a"), "kernel-0");
        assert_eq!(add(Kind::Ramdisk, b"a"), "ramdisk-0");
        assert_eq!(images.add_tree("vm", b"a".to_vec()), "vm-tree");
        assert_eq!(images.add_tree(&"x".repeat(31), b"a".to_vec()), "vm-tree");
        assert_eq!(images.add_tree(&"x".repeat(31), b"b".to_vec()), "tree-1");
    }
}
