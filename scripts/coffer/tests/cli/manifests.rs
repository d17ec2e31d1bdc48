// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bad manifests: each gets an error that points into its line and says what to write.

use crate::bed::{Bed, expect, expect_text, image};

const VM: &str = "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n";

#[test]
fn core_used_twice_names_both_vms_and_both_lines() {
    let said = Bed::new().refused(
        "[vm.app]\ncpus = \"0-1\"\nmemory = \"64M\"\nkernel = \"Image\"\n\
         [vm.gateway]\ncpus = \"1-2\"\nmemory = \"64M\"\nkernel = \"Image\"\n",
    );
    let expected = "\
error[E11]: core 1 is given to `app` and to `gateway`
 --> m.toml:8:8
  |
4 | cpus = \"0-1\"
  |        ----- app has it
...
8 | cpus = \"1-2\"
  |        ^^^^^ gateway takes it again
  |
  = write: cores that are free: 3

";
    assert_eq!(said, expected);
}

#[test]
fn core_twice_in_one_vm_is_refused() {
    let bed = Bed::new();
    let vm = |cpus: &str| format!("[vm.a]\ncpus = {cpus}\nmemory = \"64M\"\nkernel = \"Image\"\n");
    expect_text(&bed.refused(&vm("\"0,0\"")), "E04", "core 0 is in the list twice");
    expect_text(&bed.refused(&vm("[\"cpu_b0\", \"cpu_b0\"]")), "E11", "given to `a` twice");
}

#[test]
fn absent_core_is_refused() {
    let bed = Bed::new();
    let vm = |cpus: &str| format!("[vm.a]\ncpus = {cpus}\nmemory = \"64M\"\nkernel = \"Image\"\n");
    expect_text(&bed.refused(&vm("\"0-4\"")), "E10", "the board has no core 4: it has 0-3");
    expect(&bed.refused(&vm("[\"cpu_b9\"]")), "E10", "\"cpu_b0\"");
    expect(&bed.refused(&vm("[\"frobnicator\"]")), "E10", "one of cpu_l0, cpu_l1, cpu_b0, cpu_b1");
    expect_text(&bed.refused(&vm("[\"uart0\"]")), "E10", "no core labelled `uart0`");
}

#[test]
fn memory_over_board_is_added_up() {
    let said = Bed::new().refused(
        "[vm.a]\ncpus = \"0\"\nmemory = \"1G\"\nkernel = \"Image\"\n\
         [vm.b]\ncpus = \"1\"\nmemory = \"1G\"\nkernel = \"Image\"\n",
    );
    let expected = "\
error[E13]: a 1G + b 1G + hypervisor 16M + bundle 24K = 2.0G, but the board has 1.9G of memory to give
 --> m.toml:9:10
  |
9 | memory = \"1G\"
  |          ^^^^ this passes the end
  |
  = write: memory = \"974M\", or less elsewhere

";
    assert_eq!(said, expected);
}

#[test]
fn what_the_message_says_to_write_fits() {
    let bed = Bed::new();
    let vms = |size: &str| {
        format!(
            "[vm.a]\ncpus = \"0\"\nmemory = \"1G\"\nkernel = \"Image\"\n\
             [vm.b]\ncpus = \"1\"\nmemory = \"{size}\"\nkernel = \"Image\"\n"
        )
    };
    bed.planned(&vms("974M"));
    bed.refused(&vms("976M"));
}

#[test]
fn missing_file_is_named() {
    let bed = Bed::new();
    let said = bed.refused("[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Imgae\"\n");
    let expected = "\
error[E07]: `Imgae`: no such file
 --> m.toml:6:10
  |
6 | kernel = \"Imgae\"
  |          ^^^^^^^
  |
  = write: \"Image\"

";
    assert_eq!(said, expected);
    expect_text(&bed.vm_refused("ramdisk = \"board\""), "E07", "not a regular file");
    bed.write("empty", b"");
    expect_text(&bed.vm_refused("ramdisk = \"empty\""), "E07", "this file is empty");
    expect_text(&bed.vm_refused("ramdisk = \"\""), "E04", "ramdisk is no path");
    bed.write("large", &vec![0; (64 << 20) + 1]);
    expect_text(&bed.vm_refused("ramdisk = \"large\""), "E07", "is more than 64M");
}

#[test]
fn unknown_keys_are_translated() {
    let bed = Bed::new();
    let said = bed.vm_refused("initrd = \"initrd\"");
    let expected = "\
error[E03]: a VM has no key `initrd`
 --> m.toml:7:1
  |
7 | initrd = \"initrd\"
  | ^^^^^^
  |
  = write: ramdisk = \"initrd\"

";
    assert_eq!(said, expected);
    expect(&bed.vm_refused("bootargs = \"ro\""), "E03", "cmdline = \"ro\"");
    expect(&bed.vm_refused("passthrough = [\"&rtc\"]"), "E03", "devices = [\"&rtc\"]");
    expect(&bed.vm_refused("vcpus = 2"), "E03", "cpus = \"0-1\" (which cores; the count follows)");
    expect(&bed.vm_refused("mem = \"1G\""), "E03", "memory = \"1G\"");
    expect(&bed.vm_refused("dtb = \"x\""), "E03", "nothing: coffer writes the guest's device tree");
    expect(&bed.vm_refused("on_rebot = \"stop\""), "E03", "on_reboot = \"stop\"");
    expect_text(&bed.vm_refused("colour = 1"), "E03", "= write: one of cpus, memory, kernel");
    expect(&bed.refused(&format!("guests = 1\n{VM}")), "E03", "vm = 1");
    expect(&bed.refused(&format!("{VM}[console]\nmod = \"focus\"")), "E03", "mode = \"focus\"");
    expect(&bed.refused(&format!("{VM}[test]\nsed = 1")), "E03", "seed = 1");
}

#[test]
fn a_translated_key_is_not_missing_as_well() {
    let said = Bed::new().refused("[vm.a]\ncores = \"0\"\nmem = \"64M\"\nlinux = \"Image\"\n");
    assert!(!said.contains("E05"), "{said}");
    assert_eq!(said.matches("error[E03]").count(), 3, "{said}");
}

#[test]
fn keys_that_come_later_are_not_unknown() {
    let bed = Bed::new();
    for line in ["firmware = \"edk2\"", "control = \"operate\"", "unconfined_dma = [\"&nic\"]"] {
        let key = line.split(' ').next().unwrap();
        let said = bed.vm_refused(line);
        expect_text(&said, "E06", &format!("`{key}` is not supported yet"));
    }
    for lines in ["network = {}", "shared = {}"] {
        expect_text(&bed.refused(&format!("{lines}\n{VM}")), "E06", "is not supported yet");
    }
}

#[test]
fn misspelt_types_are_corrected() {
    let bed = Bed::new();
    let memory = |value: &str| {
        bed.refused(&format!("[vm.a]\ncpus = \"0\"\nmemory = {value}\nkernel = \"Image\"\n"))
    };
    let expected = "\
error[E04]: memory: a bare number is refused: add K, M or G
 --> m.toml:5:10
  |
5 | memory = 512
  |          ^^^
  |
  = write: memory = \"512M\"

";
    assert_eq!(memory("512"), expected);
    expect(&memory("\"512\""), "E04", "memory = \"512M\"");
    expect(&memory("\"512MB\""), "E04", "memory = \"512M\"");
    expect(&memory("536870912"), "E04", "memory = \"512M\"");
    expect(&memory("\"5M\""), "E04", "memory = \"6M\"");
    for bad in ["-1", "0x200", "1.5", "true", "[]", "\"0M\"", "\"\"", "9223372036854775808"] {
        expect_text(&memory(bad), "E04", "memory");
    }
    expect_text(&memory("\"17179869184G\""), "E04", "do not fit into 64 bits");
    expect(&memory("512M"), "E02", "memory = \"512M\"");
    let cpus = |value: &str| {
        bed.refused(&format!("[vm.a]\ncpus = {value}\nmemory = \"64M\"\nkernel = \"Image\"\n"))
    };
    expect(&cpus("2"), "E04", "cpus = \"0-1\" (which cores; the count follows)");
    expect(&cpus("[0, 1]"), "E04", "cpus = \"0,1\"");
    expect(&cpus("\"3-1\""), "E04", "cpus = \"1-3\"");
    expect_text(&cpus("[]"), "E04", "1 to 64 cores");
    expect_text(&cpus("\"\""), "E04", "a list of cores looks like");
    expect_text(&cpus("\"0-64\""), "E04", "at most 64 cores");
    expect_text(&cpus("true"), "E04", "not true or false");
    expect(&bed.vm_refused("devices = \"&rtc\""), "E04", "devices = [\"&rtc\"]");
    expect(&bed.vm_refused("on_reboot = \"stopp\""), "E04", "on_reboot = \"stop\"");
    expect(&bed.vm_refused("cmdline = 1"), "E04", "cmdline = \"1\"");
    expect_text(&bed.vm_refused("cmdline = \"a\\nb\""), "E04", "one line");
    let long = format!("cmdline = \"{}\"", "x".repeat(2048));
    expect_text(&bed.vm_refused(&long), "E04", "2048 bytes of command line");
}

#[test]
fn missing_keys_are_listed() {
    let bed = Bed::new();
    let said = bed.refused("[vm.a]\n");
    let expected = "\
error[E05]: VM `a` lacks cpus, memory, kernel
 --> m.toml:3:5
  |
3 | [vm.a]
  |     ^
  |
  = write: cpus = \"0\", memory = \"512M\", kernel = …

";
    assert_eq!(said, expected);
    let said =
        bed.plan_bytes(b"format = 1\n[vm.a]\ncpus=\"0\"\nmemory=\"64M\"\nkernel=\"Image\"\n");
    expect(&said.err, "E05", "board = \"qemu-virt\"");
    let said = bed.plan_bytes(format!("board = \"board/board.toml\"\n{VM}").as_bytes());
    expect(&said.err, "E05", "format = 1");
    let said = bed.plan_bytes(format!("format = 2\nboard = \"board/board.toml\"\n{VM}").as_bytes());
    expect(&said.err, "E09", "format = 1");
}

#[test]
fn the_number_of_vms_is_bounded() {
    let bed = Bed::new();
    expect_text(&bed.refused(""), "E08", "the manifest has no VM");
    expect_text(&bed.refused("[vm]"), "E08", "the manifest has no VM");
    let many: String = (0..1000).map(|vm| VM.replace("vm.a", &format!("vm.v{vm}"))).collect();
    expect_text(&bed.refused(&many), "E08", "1000 VMs, but at most 16 are possible");
}

#[test]
fn names_of_vms_are_short_and_plain() {
    let bed = Bed::new();
    let named = |name: &str| VM.replace("[vm.a]", &format!("[vm.{name}]"));
    expect(&bed.refused(&named("\"my vm\"")), "E08", "[vm.my-vm]");
    expect_text(&bed.refused(&named("\"\"")), "E08", "name is empty");
    expect_text(&bed.refused(&named("-a")), "E08", "starts with a letter or a digit");
    expect_text(&bed.refused(&named("\"\\u001b[2J\"")), "E08", "`\\u{1b}[2J`");
    expect_text(&bed.refused(&named(&"x".repeat(32))), "E08", "at most 31 characters");
    let said = bed.refused(&named(&"x".repeat(200_000)));
    assert!(said.starts_with("error[E08]") && said.len() < 4096, "{} bytes", said.len());
    bed.planned(&named(&"x".repeat(31)));
}

#[test]
fn files_that_are_no_manifests_are_refused() {
    let bed = Bed::new();
    let said = bed.coffer(&["plan", "absent.toml"]);
    assert_eq!((said.code, said.err.trim()), (1, "error[E01]: `absent.toml`: no such file"));
    expect_text(&bed.coffer(&["plan", "board"]).err, "E01", "not a regular file");
    expect_text(&bed.plan_bytes(b"\xff\xfe").err, "E01", "not UTF-8");
    expect_text(&bed.plan_bytes(&vec![b'#'; 10 << 20]).err, "E01", "10M is more than 256K");
    let empty = bed.plan_bytes(b"");
    assert!(empty.code == 1 && empty.err.contains("error[E05]"), "{}", empty.err);
    let deep = format!("x = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    expect_text(&bed.plan_bytes(deep.as_bytes()).err, "E02", "this is not TOML");
    let deep = format!("{} = 1", vec!["x"; 10_000].join("."));
    expect_text(&bed.plan_bytes(deep.as_bytes()).err, "E02", "this is not TOML");
    expect_text(&bed.refused(&format!("{VM}cpus = \"1\"\n")), "E02", "duplicate key");
    expect_text(&bed.refused(&format!("{VM}{VM}")), "E02", "duplicate key");
}

#[test]
fn kernels_that_cannot_start_are_refused() {
    let bed = Bed::new();
    let kernel = |bytes: &[u8]| {
        bed.write("k", bytes);
        bed.refused("[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"k\"\n")
    };
    expect_text(&kernel(&[0; 4095]), "E15", "neither an arm64 Image nor gzip nor ELF");
    let instead = "kernel_format = \"flat\" below it, if it is bare code";
    expect(&kernel(&[0; 4095]), "E15", instead);
    expect_text(&bed.vm_refused("kernel_format = \"elf\""), "E04", "kernel_format is \"flat\"");
    expect(&bed.vm_refused("image_type = \"flat\""), "E03", "kernel_format = \"flat\"");
    expect_text(&kernel(b"ANDROID!"), "E15", "an Android boot image is not supported yet");
    expect_text(&kernel(b"\x1f\x8b rubbish"), "E15", "gzip data is broken");
    expect_text(&kernel(b"\x7fELF rubbish"), "E15", "not a usable ELF file");
    expect_text(&kernel(&image(65 << 20, 0)), "E15", "more than the VM's memory");
    expect(&kernel(&image(63 << 20, 0)), "E14", "memory = \"66M\", or more");
    bed.write("initrd", &[0; 4096]);
    let said = bed.refused(
        "[vm.a]\ncpus = \"0\"\nmemory = \"6M\"\nkernel = \"Image\"\nramdisk = \"initrd\"\n",
    );
    expect(&said, "E14", "memory = \"8M\", or more");
}

#[test]
fn boards_that_are_not_there_are_refused() {
    let bed = Bed::new();
    let board = |board: &str| {
        bed.plan_bytes(format!("format = 1\nboard = \"{board}\"\n{VM}").as_bytes()).err
    };
    expect(&board("qemu-vrit"), "E30", "board = \"qemu-virt\"");
    expect_text(&board("../up/board.toml"), "E30", "no such file");
    expect_text(&board(".."), "E30", "there is no board `..`");
    bed.write("board/board.toml", b"format = 1\n[tree]\nfile = \"absent.dtb\"\n");
    expect_text(&bed.refused(VM), "E31", "no such file");
    bed.write("board/board.toml", b"format = 1\n");
    expect_text(&bed.refused(VM), "E31", "neither [qemu] nor [tree]");
    bed.write("board/board.toml", b"format = 1\n[tree]\nfiel = \"board.dtb\"\n");
    expect_text(&bed.refused(VM), "E30", "board/board.toml:3:1");
    bed.write("board/board.toml", b"format = 1\n[tree]\nfile = \"board.toml\"\n");
    expect_text(&bed.refused(VM), "E31", "the tree is broken");
}

#[test]
fn every_error_is_reported_not_the_first_alone() {
    let said = Bed::new().refused(
        "[vm.a]\ncpus = \"9\"\nmemory = \"64M\"\nkernel = \"absent\"\ndevices = [\"&nothing\"]\n\
         [vm.b]\ncpus = \"1\"\nmemory = \"64M\"\nkernel = \"absent\"\n",
    );
    for code in ["E10", "E07", "E16"] {
        assert!(said.contains(&format!("error[{code}]")), "{said}");
    }
    assert_eq!(said.matches("error[E07]").count(), 2, "{said}");
}
