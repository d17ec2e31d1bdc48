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
    expect_text(&device("&dmaing"), "E18", "what its property `dmas` says");
    expect_text(&device("&clocked"), "E18", "a clock that is not fixed");
    expect_text(&device("&off"), "E18", "switched off in the board's tree");
    expect_text(&device("&uart0"), "E18", "the console's UART");
    expect_text(&device("/soc/watchdog@9000"), "E18", "an interrupt that is not an SPI");
    expect_text(&device("&gic"), "E18", "may do DMA");
    expect_text(&device("/"), "E16", "no device");
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
