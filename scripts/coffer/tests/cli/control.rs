// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Ports for requests: which there can be, and what is said of others.

use crate::bed::{Bed, expect, expect_text};

const VM: &str = "[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\nkernel = \"Image\"\n";

fn manifest(port: &str) -> String {
    format!("{VM}[control]\nport = {port}\n")
}

#[test]
fn ports_are_reported() {
    let bed = Bed::new();
    let line = |port: &str| {
        let report = bed.planned(&manifest(port));
        report.lines().find(|line| line.starts_with("ctrl")).unwrap().to_owned()
    };
    assert_eq!(line("\"console\""), "ctrl   on the console");
    for port in ["\"uart3\"", "\"&uart3\"", "\"/soc/serial@3000\""] {
        assert_eq!(line(port), "ctrl   /soc/serial@3000", "{port}");
    }
    assert_eq!(line("[\"&uart3\", \"console\"]"), "ctrl   on the console, /soc/serial@3000");
    assert!(!bed.planned(VM).contains("ctrl"));
}

#[test]
fn other_ports_are_refused() {
    let bed = Bed::new();
    let refused = |port: &str| bed.refused(&manifest(port));
    expect(&refused("\"&uart9\""), "E16", "port = \"uart0\"");
    expect(&refused("\"konsole\""), "E16", "port = \"console\"");
    expect(&refused("\"&uart0\""), "E18", "port = \"console\"");
    expect_text(&refused("\"&off\""), "E42", "no such UART that is free for requests");
    expect_text(&refused("\"&rtc\""), "E42", "no such UART that is free for requests");
    expect_text(&refused("[]"), "E04", "by the console, by one UART of their own, or by both");
    expect_text(&refused("[\"&uart1\", \"&uart3\"]"), "E04", "two ports are the console and one");
    expect_text(&refused("[\"console\", \"console\"]"), "E04", "two ports are the console and");
    expect_text(&refused("7"), "E04", "is a string, not a number");
    expect_text(&bed.refused(&format!("{VM}[control]\n")), "E05", "does not say its port");
    expect_text(&bed.refused(&format!("control = 1\n{VM}")), "E04", "a table");
    expect(
        &bed.refused(&format!("{VM}[control]\nport = \"console\"\ntty = \"x\"\n")),
        "E03",
        "port = \"x\"",
    );
}

#[test]
fn port_is_no_guests_device() {
    let bed = Bed::new();
    let device = "devices = [\"&uart5\"]\n";
    bed.planned(&format!("{VM}{device}"));
    let said = bed.vm_refused(&format!("{device}[control]\nport = \"uart5\"\n"));
    expect_text(&said, "E18", "`&uart5` is the port for requests, which the hypervisor keeps");
}
