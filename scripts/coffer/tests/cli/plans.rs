// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Good manifests: the report, the bundle and the guests' trees.

use crate::bed::{Bed, dtc, image};
use coffer::tree::Tree;
use cofferdam::addr::{Address, Ipa, Pa};
use cofferdam::plan::{ConsoleMode, FaultKind, FaultPlan, GicClaim, OnEnd, Plan};

const TWO: &str = "\
[vm.little]
cpus = \"0-1\"
memory = \"64M\"
kernel = \"Image\"
ramdisk = \"initrd\"
cmdline = \"quiet\"

[vm.big]
cpus = [\"cpu_b1\", \"&cpu_b0\"]
memory = \"128M\"
kernel = \"Image\"
on_reboot = \"stop\"
devices = [\"&rtc\"]
";

/// A bundle that `coffer build` wrote.
struct Built {
    fit: Vec<u8>,
    tree: Tree,
}

impl Built {
    fn new(bed: &Bed, rest: &str) -> Self {
        let manifest = format!("format = 1\nboard = \"board/board.toml\"\n{rest}");
        bed.write("m.toml", manifest.as_bytes());
        bed.write("hypervisor", &hypervisor());
        let said = bed.coffer(&["build", "m.toml", "--hypervisor", "hypervisor", "--out", "out"]);
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        assert_eq!(said.out, "out/cofferdam.img\nout/bundle.itb\n");
        let fit = std::fs::read(bed.path("out/bundle.itb")).unwrap().split_off(4096);
        let tree = Tree::parse(&fit).unwrap();
        Self { fit, tree }
    }

    fn image(&self, name: &str) -> &[u8] {
        let node = self.tree.find(&format!("/images/{name}")).unwrap();
        let number = |name| usize::try_from(self.tree.u32(node, name).unwrap()).unwrap();
        &self.fit[number("data-position")..][..number("data-size")]
    }

    fn plan(&self) -> Plan {
        Plan::decode(self.image("plan")).unwrap()
    }
}

/// Makes an ELF file with two segments, linked at 0.
pub fn hypervisor() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([3u16, 183].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    for fields in [[176u64, 0, 0, 4, 4, 4096], [180, 0x1000, 0x1000, 4, 0x9000, 4096]] {
        file.extend([1u32, 7].map(u32::to_le_bytes).concat());
        file.extend(fields.map(u64::to_le_bytes).concat());
    }
    file.extend(b"textdata");
    file
}

#[test]
fn the_report_says_who_has_what() {
    let expected = "\
cpus   0-1 cortex-a55 little | 2-3 cortex-a76 big
ram    little 64M  big 128M  hypervisor 16M  bundle 28K  free 1.7G
uart   /soc/serial@0, Ctrl-] moves the focus
policy big: on_reboot stop

VM      WHAT      WHERE                       SIZE
little  memory    0x40000000..0x44000000       64M
little  kernel    0x40200000..0x40201000        4K  Image: Image
little  ramdisk   0x40600000..0x40600009        9B  initrd
little  vdist     0x08000000..0x08010000       64K  GICv3
little  vredist   0x080a0000..0x080e0000      256K
little  vits      0x08080000..0x080a0000      128K
little  vuart     0x09000000..0x09001000        4K  PL011, INTID 33
little  platform  0x09030000..0x09070000      256K  PL061, INTID 39; watchdog, INTID 40; panic port
big     memory    0x40000000..0x48000000      128M
big     kernel    0x40200000..0x40201000        4K  Image: Image
big     vdist     0x08000000..0x08010000       64K  GICv3
big     vredist   0x080a0000..0x080e0000      256K
big     vits      0x08080000..0x080a0000      128K
big     vuart     0x09000000..0x09001000        4K  PL011, INTID 33
big     platform  0x09030000..0x09070000      256K  PL061, INTID 39; watchdog, INTID 40; panic port
big     device    0x10000000..0x10001000        4K  /soc/rtc@1000 at 0xf0001000, SPI 2 as INTID 64, no DMA
";
    let report = Bed::new().planned(TWO);
    assert!(report.starts_with("board  board (Test board, 4 cpus, 2G)  tree sha256:"), "{report}");
    // How long a tree is and what its digest is belong to other tests.
    let kept: Vec<_> = report.lines().skip(1).filter(|line| !line.contains("  tree  ")).collect();
    assert_eq!(kept, expected.lines().collect::<Vec<_>>());
    assert_eq!(report.matches("  tree      0x40000000..").count(), 2);
}

#[test]
fn the_plan_says_what_the_manifest_and_the_tree_say() {
    let built =
        Built::new(&Bed::new(), &format!("{TWO}[console]\nmode = \"tagged\"\nescape = \"^A\"\n"));
    let plan = built.plan();
    assert_eq!(plan.machine.memory_bytes, 2 << 30);
    assert_eq!(plan.machine.gic, GicClaim::V3 { gicd: Pa::new(0x800_0000) });
    let uart = plan.machine.uart.as_ref().unwrap();
    assert_eq!((uart.path.as_str(), uart.registers.start().get()), ("/soc/serial@0", 0xf000_0000));
    assert_eq!((plan.console.mode, plan.console.escape), (ConsoleMode::Tagged, 1));
    let [little, big] = &plan.vms[..] else { panic!("{} VMs", plan.vms.len()) };
    let affinities =
        |vm: &cofferdam::plan::VmPlan| vm.vcpus.iter().map(|mpidr| mpidr.get()).collect::<Vec<_>>();
    // The order of the manifest is the order of the vCPUs.
    assert_eq!((affinities(little), affinities(big)), (vec![0, 0x100], vec![0x300, 0x200]));
    assert_eq!(little.memory.size(), 64 << 20);
    assert_eq!((little.tree, little.entry), (Ipa::new(0x4000_0000), Ipa::new(0x4020_0000)));
    let images: Vec<_> = little.images.iter().map(|i| (i.name.as_str(), i.ipa.get())).collect();
    assert_eq!(
        images,
        [("little-tree", 0x4000_0000), ("kernel-0", 0x4020_0000), ("ramdisk-0", 0x4060_0000)]
    );
    let on_reboot = |vm: &cofferdam::plan::VmPlan| vm.policies.on_reboot;
    assert_eq!((on_reboot(little), on_reboot(big)), (OnEnd::Restart, OnEnd::Stop));
    assert_eq!(big.devices[0].interrupts[0].pintid.get(), 34);
}

#[test]
fn images_are_in_the_bundle_once_and_as_they_were() {
    let bed = Bed::new();
    let built = Built::new(&bed, TWO);
    assert_eq!(built.image("kernel-0"), image(4 << 20, 1));
    assert_eq!(built.image("ramdisk-0"), b"a ramdisk");
    assert!(built.tree.find("/images/kernel-1").is_none());
    for vm in &built.plan().vms {
        for image in &vm.images {
            let stored = built.image(&image.name).len();
            assert_eq!(u64::try_from(stored).unwrap(), image.size_bytes);
        }
    }
    let other = Built::new(&bed, &TWO.replacen("Image", "Other", 1));
    assert!(other.tree.find("/images/kernel-1").is_some());
}

#[test]
fn the_image_is_what_the_segments_have_in_the_file() {
    let bed = Bed::new();
    Built::new(&bed, TWO);
    let image = std::fs::read(bed.path("out/cofferdam.img")).unwrap();
    assert_eq!((image.len(), &image[..4], &image[0x1000..]), (0x1004, &b"text"[..], &b"data"[..]));
}

#[test]
fn dtc_has_nothing_to_say_about_a_guests_tree() {
    let bed = Bed::new();
    let built = Built::new(&bed, TWO);
    for vm in ["little", "big"] {
        bed.write("guest.dtb", built.image(&format!("{vm}-tree")));
        let file = bed.path("guest.dtb");
        let more = ["node_name_chars_strict", "unique_unit_address_if_enabled"];
        let more = more.map(|check| format!("-W{check}"));
        let file = file.to_str().unwrap();
        dtc(&[&more[0], &more[1], "-I", "dtb", "-O", "dtb", file]);
    }
}

#[test]
fn a_guests_tree_says_what_it_has() {
    let built = Built::new(&Bed::new(), TWO);
    let tree = Tree::parse(built.image("little-tree")).unwrap();
    let at = |path: &str| tree.find(path).unwrap_or_else(|| panic!("{path}"));
    let chosen = at("/chosen");
    assert_eq!(tree.text(chosen, "bootargs"), Some("console=ttyAMA0 quiet"));
    assert_eq!(tree.cells(chosen, "linux,initrd-start"), [0, 0x4060_0000]);
    assert_eq!(tree.cells(chosen, "linux,initrd-end"), [0, 0x4060_0009]);
    assert_eq!(tree.property(chosen, "rng-seed").unwrap().len(), 64);
    assert_eq!(tree.cells(chosen, "kaslr-seed").len(), 2);
    assert_eq!(tree.cells(at("/memory@40000000"), "reg"), [0, 0x4000_0000, 0, 64 << 20]);
    assert_eq!(tree.cells(at("/cpus/cpu@1"), "reg"), [1]);
    assert_eq!(tree.text(at("/cpus/cpu@1"), "compatible"), Some("arm,cortex-a55"));
    assert!(tree.find("/cpus/cpu@2").is_none() && tree.find("/rtc@10000000").is_none());
    let gic = at("/intc@8000000");
    assert_eq!(tree.registers(gic), Some(vec![(0x800_0000, 0x1_0000), (0x80a_0000, 0x4_0000)]));
    assert_eq!(tree.interrupts(at("/pl011@9000000")), Some(vec![(gic, vec![0, 1, 4])]));
    assert!(tree.find("/pmu").is_some());
}

#[test]
fn every_guest_has_a_watchdog_keys_and_a_panic_port() {
    let built = Built::new(&Bed::new(), TWO);
    for vm in ["little-tree", "big-tree"] {
        let tree = Tree::parse(built.image(vm)).unwrap();
        let at = |path: &str| tree.find(path).unwrap_or_else(|| panic!("{path}"));
        let (gic, gpio) = (at("/intc@8000000"), at("/pl061@9030000"));
        let watchdog = at("/watchdog@9040000");
        assert!(tree.is_compatible(gpio, "arm,pl061") && tree.is_compatible(gpio, "arm,primecell"));
        assert_eq!(tree.registers(gpio), Some(vec![(0x903_0000, 0x1000)]));
        assert_eq!(tree.interrupts(gpio), Some(vec![(gic, vec![0, 7, 4])]));
        assert_eq!(tree.text(gpio, "clock-names"), Some("apb_pclk"));
        let clock = tree.by_phandle(tree.u32(gpio, "clocks").unwrap());
        assert_eq!(clock, tree.find("/apb-pclk"));
        assert!(tree.is_compatible(at("/gpio-keys"), "gpio-keys"));
        for (key, line, code) in [("poweroff", 3, 116), ("dependency-lost", 4, 256)] {
            let key = at(&format!("/gpio-keys/{key}"));
            let gpios = tree.cells(key, "gpios");
            assert_eq!(tree.by_phandle(gpios[0]), Some(gpio));
            assert_eq!((&gpios[1..], tree.u32(key, "linux,code")), (&[line, 0][..], Some(code)));
        }
        assert!(tree.is_compatible(watchdog, "arm,sbsa-gwdt"));
        let frames = vec![(0x904_0000, 0x1000), (0x905_0000, 0x1000)];
        assert_eq!(tree.registers(watchdog), Some(frames), "control, then refresh");
        assert_eq!(tree.interrupts(watchdog), Some(vec![(gic, vec![0, 8, 4])]));
        let panic = at("/pvpanic@9060000");
        assert!(tree.is_compatible(panic, "qemu,pvpanic-mmio"));
        assert_eq!(tree.registers(panic), Some(vec![(0x906_0000, 2)]));
    }
}

#[test]
fn an_assigned_device_is_in_its_guests_tree_alone() {
    let built = Built::new(&Bed::new(), TWO);
    let tree = Tree::parse(built.image("big-tree")).unwrap();
    let rtc = tree.find("/rtc@10000000").unwrap();
    assert_eq!(tree.registers(rtc), Some(vec![(0x1000_0000, 0x1000)]));
    let gic = tree.find("/intc@8000000").unwrap();
    assert_eq!(tree.interrupts(rtc), Some(vec![(gic, vec![0, 32, 4])]));
    let clock = tree.by_phandle(tree.u32(rtc, "clocks").unwrap()).unwrap();
    assert_eq!(tree.u32(clock, "clock-frequency"), Some(48_000_000));
    assert!(tree.is_compatible(rtc, "arm,pl031"));
}

#[test]
fn a_console_in_the_command_line_is_the_users_own() {
    let manifest = TWO.replace("quiet", "console=hvc0 quiet");
    let built = Built::new(&Bed::new(), &manifest);
    let tree = Tree::parse(built.image("little-tree")).unwrap();
    let chosen = tree.find("/chosen").unwrap();
    assert_eq!(tree.text(chosen, "bootargs"), Some("console=hvc0 quiet"));
}

#[test]
fn a_flat_kernel_gets_its_command_line_as_written() {
    let bed = Bed::new();
    bed.write("bare", &[0x5a; 777]);
    let vm = "[vm.big]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"bare\"\n";
    let built = Built::new(&bed, &format!("{vm}kernel_format = \"flat\"\ncmdline = \"ipi 1\"\n"));
    let plan = built.plan();
    assert_eq!(plan.vms[0].entry, Ipa::new(0x4020_0000));
    assert_eq!(built.image("kernel-0"), [0x5a; 777]);
    let tree = Tree::parse(built.image("big-tree")).unwrap();
    assert_eq!(tree.text(tree.find("/chosen").unwrap(), "bootargs"), Some("ipi 1"));
}

#[test]
fn seeds_differ_unless_a_test_fixes_them() {
    let bed = Bed::new();
    let seed = |manifest: &str| {
        let built = Built::new(&bed, manifest);
        let tree = Tree::parse(built.image("little-tree")).unwrap();
        tree.cells(tree.find("/chosen").unwrap(), "kaslr-seed")
    };
    assert_ne!(seed(TWO), seed(TWO));
    let fixed = format!("{TWO}[test]\nseed = 7\n");
    assert_eq!(seed(&fixed), seed(&fixed));
}

#[test]
fn knobs_for_tests_reach_the_plan() {
    let knobs = "[test]\nlist_registers_max = 1\nvmid_bits_max = 8\nmitigations_off = true\n\
                 report_reset_cost = true\nfault_at_start = \"stack-overflow\"\n\
                 fault_vm = \"big\"\nfault_vcpu = 1\nfault_after = 2\n";
    let knobs = Built::new(&Bed::new(), &format!("{TWO}{knobs}")).plan().knobs;
    assert_eq!((knobs.list_registers_max, knobs.vmid_bits_max), (Some(1), Some(8)));
    assert!(knobs.mitigations_off && knobs.report_reset_cost);
    let kind = FaultKind::StackOverflow;
    let fault = FaultPlan { kind, vm: "big".try_into().unwrap(), vcpu: 1, after: 2 };
    assert_eq!(knobs.fault_at_start, Some(fault));
}

#[test]
fn doubts_are_warnings() {
    let bed = Bed::new();
    bed.write("Image", &image(0, 1));
    let said = bed.plan("[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n");
    assert_eq!(said.code, 0);
    assert!(said.err.starts_with("warning[W02]: "), "{}", said.err);
}

#[test]
fn json_says_the_same() {
    let bed = Bed::new();
    bed.planned(TWO);
    let said = bed.coffer(&["plan", "m.toml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["vms"][1]["name"], "big");
    assert_eq!(json["vms"][1]["cpus"], serde_json::json!([3, 2]));
    assert_eq!(json["vms"][0]["places"][2]["ipa"], 0x4020_0000);
    bed.refused("[vm.a]\n");
    let said = bed.coffer(&["plan", "m.toml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, said.err.as_str()), (1, ""));
    assert_eq!(json["errors"][0]["code"], "E05");
    assert_eq!(json["errors"][0]["places"][0]["line"], 3);
}

#[test]
fn another_tree_can_be_planned_for() {
    let bed = Bed::new();
    bed.planned(TWO);
    bed.write("broken.dtb", b"rubbish");
    let said = bed.coffer(&["plan", "m.toml", "--dtb", "broken.dtb"]);
    assert!(said.code == 1 && said.err.starts_with("error[E31]"), "{}", said.err);
    assert_eq!(bed.coffer(&["plan", "m.toml", "--dtb", "board/board.dtb"]).code, 0);
}

#[test]
fn exit_codes_are_as_promised() {
    let bed = Bed::new();
    assert_eq!(bed.coffer(&["explain", "e21"]).code, 0);
    assert!(bed.coffer(&["explain", "E21"]).out.starts_with("E21: "));
    assert_eq!(bed.coffer(&["explain", "E99"]).code, 2);
    assert_eq!(bed.coffer(&["plan"]).code, 2);
    assert_eq!(bed.coffer(&["frobnicate"]).code, 2);
    assert_eq!(bed.coffer(&["plan", "absent"]).code, 1);
    assert_eq!(bed.coffer(&["--version"]).code, 0);
}

#[test]
fn qemus_machine_is_planned_for() {
    let bed = Bed::new();
    let manifest = |cpus| {
        format!(
            "format = 1\nboard = \"qemu-virt\"\n[vm.a]\ncpus = \"{cpus}\"\nmemory = \"64M\"\nkernel = \"Image\"\n"
        )
    };
    let said = bed.plan_bytes(manifest("0-3").as_bytes());
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        said.out.starts_with("board  qemu-virt (linux,dummy-virt, 4 cpus, 2G)"),
        "{}",
        said.out
    );
    assert_eq!(bed.plan_bytes(manifest("4").as_bytes()).code, 1);
}

#[test]
fn what_the_caller_overrides_counts() {
    use coffer::board::Overrides;
    use coffer::build::{Options, plan};
    use cofferdam::addr::{Address, Ipa};
    use cofferdam::plan::VgicFrames;

    let bed = Bed::new();
    let text = "format = 1\nboard = \"qemu-virt\"\n[vm.a]\ncpus = \"5\"\nmemory = \"64M\"\nkernel = \"Image\"\n";
    bed.write("m.toml", text.as_bytes());
    let with = |overrides| plan(&bed.path("m.toml"), &Options { overrides, ..Options::default() });
    assert!(with(Overrides::default()).is_err());
    let larger = Overrides { cpus: Some(6), memory_bytes: Some(4 << 30), ..Overrides::default() };
    let (board, planned) = with(larger.clone()).unwrap();
    assert_eq!((board.machine.cores.len(), board.machine.memory_bytes()), (6, 4 << 30));
    assert_eq!(planned.bundle.plan.machine.memory_bytes, 4 << 30);
    assert_eq!(planned.cores, [[5]]);
    let (_, planned) = with(Overrides { gic_version: Some(2), ..larger }).unwrap();
    let vgic = planned.bundle.plan.vms[0].layout.vgic;
    assert_eq!(vgic, VgicFrames::V2 { gicc: Ipa::new(0x801_0000) });
}
