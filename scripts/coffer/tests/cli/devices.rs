// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Devices of the board: which can be given away, and what is said of the others.

use crate::bed::{Bed, expect, expect_text};

#[test]
fn a_device_that_stands_for_itself_is_assigned() {
    let report = Bed::new().planned(
        "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\ndevices = [\"&rtc\"]\n",
    );
    let row = "a   device    0x10000000..0x10001000        4K  \
               /soc/rtc@1000 at 0xf0001000, SPI 2 as INTID 64, no DMA";
    assert!(report.contains(row), "{report}");
}

#[test]
fn a_device_that_needs_more_is_refused_by_what_it_needs() {
    let bed = Bed::new();
    let device = |name: &str| bed.vm_refused(&format!("devices = [\"{name}\"]"));
    expect_text(&device("&nic"), "E18", "`&nic` (`test,nic`) may do DMA");
    let why = "/soc/serial@7000: dmas: it names a node that is no provider of this kind";
    expect_text(&device("&dmaing"), "E18", why);
    expect_text(&device("&off"), "E18", "switched off in the board's tree");
    expect_text(&device("&uart0"), "E18", "the console's UART");
    expect_text(&device("/soc/watchdog@9000"), "E18", "an interrupt that is not an SPI");
    let held = "`&gic` is in pages that the hypervisor keeps for the interrupt controller";
    expect_text(&device("&gic"), "E18", held);
    expect_text(&device("/soc"), "E18", "has no registers that a core can reach");
    expect_text(&device("/"), "E16", "no device");
}

#[test]
fn what_one_device_needs_comes_along() {
    let report = Bed::new().planned(
        "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\ndevices = [\"&clocked\"]\n",
    );
    for row in ["/clock-controller@1000 at 0x1000", "/soc/serial@6000 at 0xf0006000, SPI 7"] {
        assert!(report.contains(row), "{report}");
    }
}

/// Two VMs with a UART each whose clocks come from one controller.
const SHARED_CLOCKS: &str = "\
[vm.a]
cpus = \"0\"
memory = \"64M\"
kernel = \"Image\"
devices = [\"&clocked\"]
[vm.b]
cpus = \"1\"
memory = \"64M\"
kernel = \"Image\"
devices = [\"&other\"]
";

#[test]
fn what_two_vms_need_goes_to_the_provider() {
    let bed = Bed::new();
    let said = bed.refused(SHARED_CLOCKS);
    let why = "/clock-controller@1000 is needed by &clocked (a) by its clocks, \
               and &other (b) by its clocks";
    expect_text(&said, "E12", why);
    assert!(said.contains("= write: provider = \"a\", or put all of them in one VM"), "{said}");
    // Nobody knows how fast the clock of the other's runs, until the board's description says so.
    let provided = format!("provider = \"a\"\n{SHARED_CLOCKS}");
    let said = bed.refused(&provided);
    expect_text(&said, "E18", "does not say how fast `/clock-controller@1000` runs it");
    assert!(said.contains("[clocks] \"/soc/serial@b000\" = "), "{said}");
    let description =
        "format = 1\n[tree]\nfile = \"board.dtb\"\n[clocks]\n\"&other\" = [1843200]\n";
    bed.write("board/board.toml", description.as_bytes());
    let report = bed.planned(&provided);
    let has = |vm: &str, what: &str| {
        report.lines().any(|line| line.starts_with(vm) && line.contains(what))
    };
    assert!(has("a", "/clock-controller@1000 at") && has("b", "/soc/serial@b000 at"), "{report}");
    assert!(!has("b", "/clock-controller@1000"), "{report}");
}

#[test]
fn everything_is_what_nobody_else_has() {
    let two = |lines: &str| {
        let one = "cpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"";
        let other = one.replacen('0', "1", 1);
        format!("[vm.a]\n{one}\ndevices = \"everything\"\n{lines}\n[vm.b]\n{other}\n")
    };
    let bed = Bed::new();
    let said = bed.plan(&format!("{}devices = [\"&rtc\"]\n", two("except = [\"&uart5\"]")));
    assert_eq!(said.code, 0, "{}", said.err);
    let has = |vm: &str, what: &str| {
        said.out.lines().any(|line| line.starts_with(vm) && line.contains(what))
    };
    for path in ["/soc/serial@2000", "/soc/serial@4000", "/soc/serial@6000"] {
        assert!(has("a", path), "{}", said.out);
    }
    assert!(has("b", "/soc/rtc@1000") && !has("a", "/soc/rtc@1000"), "{}", said.out);
    assert!(!said.out.contains("/soc/serial@a000"), "{}", said.out);
    let left_out = ["`/soc/ethernet@5000` may do DMA", "watchdog@9000` has an interrupt"];
    assert!(said.err.starts_with("warning[W10]: `a` does not get"), "{}", said.err);
    assert!(left_out.iter().all(|text| said.err.contains(text)), "{}", said.err);
    let said = bed.refused(&format!("{}devices = \"everything\"\n", two("")));
    expect_text(&said, "E17", "`a` and `b` both get everything");
    let said = bed.refused(&two("except = [\"&rtcc\"]"));
    expect(&said, "E16", "\"&rtc\"");
}

#[test]
fn devices_that_share_a_page_or_an_interrupt_are_refused() {
    let bed = Bed::new();
    let said = bed.vm_refused("devices = [\"&uart1\"]");
    expect_text(&said, "E21", "`&uart1` and `/soc/serial@2100` share page 0xf0002000");
    let said = bed.vm_refused("devices = [\"&uart3\"]");
    expect_text(&said, "E21", "`&uart3` and `/soc/serial@4000` share SPI 5");
}

#[test]
fn a_device_is_given_away_once() {
    let said = Bed::new().refused(
        "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\ndevices = [\"&rtc\"]\n\
         [vm.b]\ncpus = \"1\"\nmemory = \"64M\"\nkernel = \"Image\"\n\
         devices = [\"/soc/rtc@1000\"]\n",
    );
    expect_text(&said, "E17", "`/soc/rtc@1000` is given to `a` and to `b`");
    assert!(said.contains("a has it") && said.contains("b takes it again"), "{said}");
}

#[test]
fn names_of_devices_are_corrected() {
    let bed = Bed::new();
    let device = |name: &str| bed.vm_refused(&format!("devices = [\"{name}\"]"));
    expect(&device("&rtcc"), "E16", "\"&rtc\"");
    expect(&device("rtc"), "E16", "\"&rtc\"");
    expect(&device("/soc/rtc@2000"), "E16", "\"/soc/rtc@1000\"");
    expect(&device("clock"), "E16", "\"&label\" or \"/full/path\"");
}

#[test]
fn a_node_is_explained() {
    let bed = Bed::new();
    let vm = "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n";
    bed.planned(vm);
    let said = bed.coffer(&["plan", "m.toml", "--explain", "&uart3"]);
    let expected = "node   /soc/serial@3000\nstate  switched on\n\
                    given  as a whole, with what is below it\ndma    none\n\
                    reg    0xf0003000..0xf0004000\nirq    0 5 4 of /interrupt-controller@8000000\n\
                    \x20        shared with /soc/serial@4000\n";
    assert_eq!((said.code, said.out.as_str()), (0, expected));
    let said = bed.coffer(&["plan", "m.toml", "--explain", "&clk"]);
    assert!(said.out.contains("user   /soc/serial@b000 by clocks\n"), "{}", said.out);
    let said = bed.coffer(&["plan", "m.toml", "--explain", "&uart33"]);
    assert_eq!((said.code, said.err.contains("but `&uart3`")), (1, true), "{}", said.err);
}
