// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The error codes, each with its page for `coffer explain`.
//!
//! A code keeps its meaning for ever; a new meaning takes a new number.
#![forbid(unsafe_code)]

/// Whether a message stops the tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

macro_rules! codes {
    ($($code:ident $title:literal $page:literal)*) => {
        /// The code of a message.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Code {
            $(#[doc = $title] $code,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$code),*];

            /// Returns the code as it is printed.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                }
            }
            /// Returns the page: a title, what it means and what to do.
            #[must_use]
            pub fn page(self) -> String {
                match self {
                    $(Self::$code => format!("{}: {}\n\n{}\n", stringify!($code), $title, $page),)*
                }
            }
        }
    };
}

codes! {
    E01 "The manifest cannot be read."
    "The file is missing, is not a regular file, is not UTF-8 text, or is larger than a manifest
can reasonably be (256K). Check the path."
    E02 "The manifest is not TOML."
    "The TOML parser stopped at the place shown. The usual reasons: a string without quotation
marks (write memory = \"512M\", not memory = 512M), a key given twice, a bracket not closed."
    E03 "A key that the manifest does not have."
    "Unknown keys are errors, so that a slip of the finger cannot leave a VM without its ramdisk.
Keys of other hypervisors are translated: initrd is ramdisk, bootargs is cmdline, vcpus and cores
are cpus (which cores; the count follows), mem is memory, passthrough is devices."
    E04 "A value of the wrong type or form."
    "Sizes are strings with K, M or G (binary) behind the number: a bare number is refused because
nobody remembers whether it means bytes or megabytes. `cpus` is a list in a string, as Linux writes
it (\"0-3,5\", in the order of /cpus in the board's tree), or labels: [\"cpu_b0\", \"cpu_b1\"].
Times are strings with ms, s or min behind the number."
    E05 "A key is missing."
    "A manifest has `format = 1` and `board`; a VM has at least `cpus`, `memory` and `kernel`."
    E06 "A key that this version does not support yet."
    "The key belongs to the manifest's format, but this version of the tool cannot carry it out, and
does not pretend to. Leave it out."
    E07 "A file that the manifest names cannot be read."
    "Paths are relative to the manifest's directory. The file must exist, be a regular file, and be
no larger than the memory of its VM."
    E08 "The VMs' names or number."
    "A manifest has 1 to 16 VMs. A name has 1 to 31 ASCII letters, digits, - and _, and starts with
a letter or a digit."
    E09 "A manifest of another format."
    "This tool reads `format = 1`."
    E10 "A core that the board does not have."
    "Cores are numbered from 0 in the order of /cpus in the board's tree; `coffer plan` lists them.
A label is one of the tree's /__symbols__ or aliases, which a tree compiled without -@ lacks: use
numbers there."
    E11 "A core used twice."
    "Every core belongs to one VM alone; the message shows both claims. Cores that no VM claims
stay parked."
    E12 "Devices of two VMs need the same thing."
    "Clocks, resets, pins, power domains and the like sit in devices that belong to one VM alone:
whoever has them can take the other's device away. The message names the device that both need and
the ways to it. Put all of them in one VM, or name the VM that gets it as `provider`: the trees of the
others' guests then say that what they need is fixed and always on."
    E13 "The VMs need more memory than the board has."
    "The sum of the VMs' memory, of what the hypervisor keeps and of the bundle (which stays in
memory for restarts) must fit into the board's memory less what its tree reserves."
    E14 "A VM's memory is too small for what is loaded into it."
    "The device tree takes the first 2M, the kernel stands behind it with the space that its header
asks for, the ramdisk behind the kernel. The message has the numbers: raise `memory` or shrink the
ramdisk."
    E15 "The kernel is not one that can be started."
    "Kernels are arm64 Image files (what Debian calls vmlinuz), the same compressed with gzip, or
ELF files linked at addresses of the guest's memory, which starts at 0x40000000. Little-endian
only. Code without any header says nothing of itself: with kernel_format = \"flat\" it stands at
0x40200000 and is entered there."
    E16 "A device that the board does not have."
    "Write a device as \"&label\" (a label of /__symbols__ or an alias of the board's tree) or as
the full path of its node."
    E17 "A device given away twice."
    "A device belongs to one VM alone; the message shows both claims."
    E18 "A device that cannot be assigned."
    "A device is given away with what is below it in the tree, and with what it needs: clocks, resets,
pins, power domains. It cannot be where its registers are the hypervisor's, where its interrupts are no
SPIs of the GIC, where nobody says how fast a clock runs that another VM switches ([clocks] in
board.toml does), or where it may do DMA, which nothing confines yet: only a generic name like serial,
gpio or i2c without any sign of DMA, or [dma] no_dma in board.toml, says that it does none."
    E21 "Devices that share a page or an interrupt."
    "The smallest thing that can be given to a VM is a page of registers (4K) and a whole interrupt.
Devices that share one of them must go to the same VM, or stay unassigned."
    E22 "A VM starts after one that there is not, or in a circle."
    "`after` names VMs of the same manifest that start before this one, and that it depends on. None
starts after itself, and no two each after the other, directly or by way of others."
    E23 "The manifest has no VM of this name."
    "`coffer vm create` and `coffer vm update` take a VM from the manifest that has all VMs of the
machine: by default the one that `coffer run` was given, else the one behind --manifest. Add the VM
to it."
    E24 "More than an update changes."
    "An update gives a VM other images. Its cores, memory and devices stay what they were when it was
made: write what they are, or destroy the VM and create it anew."
    E25 "A key names a VM that the manifest does not have."
    "`provider`, and `write` and `read` of shared memory, name VMs of the same manifest by the NAME in
their headers: [vm.NAME]."
    E30 "The board is not known or its description is wrong."
    "`board` is the name of a directory in platform/, or the path of a board.toml."
    E31 "The board's device tree cannot be had."
    "For a QEMU board the tool asks QEMU (qemu-system-aarch64 with dumpdtb); for others it reads the
file that board.toml or --dtb names."
    E32 "The board's device tree lacks what Cofferdam needs."
    "It needs: cores in /cpus, memory nodes, a GICv3 that is switched on. Boards with a GICv2 alone
cannot run guests with this version."
    E40 "The hypervisor could not be built."
    "`coffer build` runs cargo for the bare-metal target; its own messages are above. Run
scripts/setup if the target is missing, or name an ELF file that is already built with
--hypervisor."
    E41 "The bundle could not be made."
    "The output directory cannot be written, or the bundle does not keep to its limits (4G in all,
32K for the plan)."
    E42 "EL2 would refuse this plan."
    "The planner found nothing wrong, but the checker that runs at boot does; it was asked in
advance. Change what it names. That the two disagree is worth a report as well."
    W01 "The board's tree names no console."
    "Neither /chosen/stdout-path nor an alias serial0 leads to a UART, or it is one that the hypervisor
has no driver for: it and the guests' virtual UARTs will be silent. A VM can have that UART then."
    W02 "A kernel without image_size in its header."
    "Kernels before Linux 3.17 do not say how much memory they take behind their end; 16M are
assumed."
    W03 "A kernel built for pages other than 4K."
    "Not every core can translate with 16K or 64K pages; where it cannot, the kernel stops before
its first message."
    W07 "A VM can overwrite the memory of every VM."
    "The device does DMA and no IOMMU confines it. The guest that drives it must be trusted like
the hypervisor itself."
    W08 "A VM that is created starts at once."
    "`after` says in which order VMs start with the machine, and what one depends on. A VM that is
created while the machine runs starts then, depends on no other, and is not told when one is gone."
    W09 "A VM that the manifest does not know."
    "What runs on the machine was planned with another manifest. Whether the new VM wants cores,
devices or memory of such a VM shows when the machine looks at it, behind the upload; it then refuses
the new one. A manifest with all VMs shows it at once."
    W10 "A VM that gets everything does not get all of it."
    "`devices = \"everything\"` gives what can be given: a device that may do DMA, shares a page or an
interrupt with one that somebody else has, or hangs on a clock of which nobody says how fast it runs,
stays unassigned. Name it in `devices` to have the reason as an error with what to write."
}

impl Code {
    /// Returns whether messages with this code are errors or warnings.
    #[must_use]
    pub fn severity(self) -> Severity {
        if self.name().starts_with('E') { Severity::Error } else { Severity::Warning }
    }
    /// Finds the code with this name, in capitals or not.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name() {
        for &code in Code::ALL {
            assert_eq!(Code::find(&code.name().to_lowercase()), Some(code));
            assert!(code.page().starts_with(code.name()));
        }
        assert_eq!(Code::find("E99"), None);
    }
}
