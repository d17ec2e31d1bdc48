// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Crashes that a port tells of, among them what no hypervisor says.
#![forbid(unsafe_code)]

use super::*;
use crate::crash::samples::Ram;
use cofferdam::control::crc32c;
use std::fmt::Write;

const RAM: u64 = 0x4000_0000;

/// A machine with one VM, `a`, of some pages.
struct Machine {
    ram: Ram,
    state: &'static str,
    /// What `crash` tells, behind the row of the crash.
    vcpus: Vec<String>,
    /// And behind those.
    more: Vec<&'static str>,
    /// How often `crash` may be asked before the VM starts again.
    asked_left: u32,
    replies: Vec<u8>,
}

impl Machine {
    fn new() -> Self {
        let mut ram = Ram::new(RAM, 4);
        ram.write(RAM + 0x1000, &[RAM + 0x1040, RAM + 0x204]);
        ram.write(RAM + 0x1040, &[0, RAM + 0x304]);
        let vcpus = [
            "vcpu=0 pc=0x40000100 pstate=0x3c5 sp_el0=0x1 sp_el1=0x40001000",
            "vcpu=0 x29=0x40001000 new=0x7",
            "vcpu=1 pc=0x40000500 pstate=0x3c4 sp_el0=0x2 sp_el1=0x3",
        ];
        let vcpus = vcpus.map(str::to_owned).to_vec();
        let (more, replies) = (Vec::new(), Vec::new());
        Self { ram, state: "crashed", vcpus, more, asked_left: u32::MAX, replies }
    }

    fn rows(&mut self, request: &str) -> Result<Vec<String>, &'static str> {
        let words: Vec<_> = request.split(' ').collect();
        match words[..] {
            ["hello"] => Ok(vec!["counter_hz=1000".to_owned()]),
            ["crash", "a"] => {
                match self.asked_left.checked_sub(1) {
                    Some(left) => self.asked_left = left,
                    None => self.state = "running",
                }
                let bytes = self.ram.bytes.len();
                let first = format!(
                    "what=crash vm=a cause=panicked vcpu=1 at_ticks=4000 now_ticks=7500 count=2 \
                     state={} ram={RAM:#x} ram_bytes={bytes:#x}",
                    self.state
                );
                let vcpus = self.vcpus.iter().map(|row| format!("what=vcpu {row}"));
                let more = self.more.iter().map(|row| format!("what={row}"));
                Ok(std::iter::once(first).chain(vcpus).chain(more).collect())
            }
            ["read", "a", at, "4096"] if self.state == "crashed" => {
                let at = number(at).map_err(|_| "arguments")?;
                let Page::Bytes(page) = self.ram.page(at).unwrap() else { return Ok(Vec::new()) };
                let parts = (at..).step_by(64).zip(page.chunks(64));
                let parts = parts.filter(|(_, part)| part.iter().any(|byte| *byte != 0));
                let hex = |part: &[u8]| {
                    part.iter().fold(String::new(), |mut text, byte| {
                        write!(text, "{byte:02x}").unwrap();
                        text
                    })
                };
                Ok(parts.map(|(at, part)| format!("at={at:#x} bytes={}", hex(part))).collect())
            }
            ["read", ..] => Err("not-held"),
            _ => Err("no-vm"),
        }
    }
}

impl Port for Machine {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let line = String::from_utf8_lossy(bytes).into_owned();
        let (line, _) = line.trim_start_matches('\x1e').split_once('*').unwrap();
        let [_, seq, request] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!() };
        let lines = match self.rows(request) {
            Ok(rows) => {
                let end = format!("ok rows={}", rows.len());
                let rows = rows.iter().enumerate().map(|(n, row)| format!("row {n} {row}"));
                rows.chain([end]).collect()
            }
            Err(code) => vec![format!("error code={code} text=no")],
        };
        for line in lines {
            let line = format!("R1 {seq} {line}");
            let crc = crc32c(line.as_bytes());
            self.replies.extend(format!("\x1e{line}*{crc:08x}\r\n").bytes());
        }
        Ok(())
    }
    fn receive(&mut self) -> io::Result<Vec<u8>> {
        Ok(std::mem::take(&mut self.replies))
    }
}

const BRIEF: Wanted<'static> = Wanted { detail: Detail::Brief, core: None, elf: None };
const FULL: Wanted<'static> = Wanted { detail: Detail::Full, ..BRIEF };

fn shown(machine: Machine, wanted: &Wanted<'_>) -> Result<Report, CrashError> {
    look(&mut Client::new(machine, 1), "a", wanted)
}

#[test]
fn two_lines_say_what_and_where() {
    let expected = "\
a crashed: its guest has panicked (vcpu 1, 3 s ago, 2 in a row)
  at pc 0x0000000040000500
";
    assert_eq!(shown(Machine::new(), &BRIEF).unwrap().to_text(), expected);
    let again = Machine { state: "running", ..Machine::new() };
    let text = shown(again, &BRIEF).unwrap().to_text();
    assert!(text.contains("2 in a row, now running)\n"), "{text}");
}

#[test]
fn all_is_every_register_and_the_calls_in_text_and_json() {
    let report = shown(Machine::new(), &FULL).unwrap();
    let expected = "\
a crashed: its guest has panicked (vcpu 1, 3 s ago, 2 in a row)
  at pc 0x0000000040000500
  vcpu 1
              pc 0x0000000040000500         pstate 0x00000000000003c4         sp_el0 0x0000000000000002
          sp_el1 0x0000000000000003
    #0  0x0000000040000500
  vcpu 0
              pc 0x0000000040000100         pstate 0x00000000000003c5         sp_el0 0x0000000000000001
          sp_el1 0x0000000040001000            x29 0x0000000040001000            new 0x0000000000000007
    #0  0x0000000040000100
    #1  0x0000000040000204
    #2  0x0000000040000304
";
    assert_eq!(report.to_text(), expected);
    let json = serde_json::to_value(&report).unwrap();
    let [at, sp] = [&json["at"]["pc"], &json["vcpus"][1]["registers"]["sp_el1"]];
    assert_eq!((at.as_str(), sp.as_str()), (Some("0x40000500"), Some("0x40001000")));
    assert_eq!((&json["ago_ms"], &json["count"]), (&3500.into(), &2.into()));
}

/// Ticks are milliseconds here, and the crash is at 4000.
#[test]
fn exits_addresses_and_last_words_are_told() {
    let more = vec![
        "exit vcpu=1 at_ticks=3990 syndrome=0x5a000000 pc=0x40000104 detail=0xc4000003",
        "exit vcpu=1 at_ticks=3999 syndrome=0x93800007 pc=0x40000108 detail=0x9000018",
        "exit vcpu=1 at_ticks=3995 syndrome=0x800000000000001b pc=0x40000200 detail=0x0",
        "fault vcpu=1 at_ticks=3980 syndrome=0x82000004 pc=0x40000300 detail=0x8",
        "fault vcpu=1 at_ticks=3999 syndrome=0x93800007 pc=0x40000108 detail=0xffff0018",
        "map kind=ram at=0x40000000 size_bytes=0x4000 name=ram",
        "map kind=model at=0x9000000 size_bytes=0x1000 name=pl011",
        "console at=0x0 bytes=6f6f70730d0a1b5b316d07",
        "console at=0xb bytes=ff0a656e",
    ];
    let report = shown(Machine { more, ..Machine::new() }, &FULL).unwrap();
    let expected = "
    #0  0x0000000040000500
        20000 us before, 0x0000000040000300: instruction abort at 0x8
        10000 us before, 0x0000000040000104: HVC PSCI CPU_ON
         5000 us before, 0x0000000040000200: interrupt 27 (virtual timer)
         1000 us before, 0x0000000040000108: data abort, read of 4 bytes of 0x9000018 (pl011+0x18)
  vcpu 0
";
    let text = report.to_text();
    assert!(text.contains(expected), "{text}");
    let expected = "
  addresses
    0x000040000000    16K ram    ram
    0x000009000000     4K model  pl011
  the last that it has said
    | oops
    | \\u{1b}[1m\\u{7}\\xff
    | en
";
    assert!(text.ends_with(expected), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    let exit = serde_json::json!({
        "before_us": 10_000, "pc": "0x40000104", "function": null,
        "syndrome": "0x5a000000", "why": "HVC PSCI CPU_ON",
    });
    assert_eq!(json["vcpus"][0]["exits"][1], exit);
    let area = serde_json::json!({
        "kind": "model", "at": "0x9000000", "bytes": 4096, "name": "pl011",
    });
    assert_eq!((&json["map"][1], &json["console"][2]), (&area, &"en".into()));
}

#[test]
fn the_stack_pointer_is_that_of_the_level() {
    let crash = Crash::ask(&mut Client::new(Machine::new(), 1), "a").unwrap();
    let registers = crash.registers();
    let sps: Vec<_> = registers.iter().map(|(vcpu, own)| (*vcpu, own.sp)).collect();
    assert_eq!(sps, [(1, 2), (0, RAM + 0x1000)]);
}

#[test]
fn memory_is_what_the_guest_has_left() {
    let mut ram = Ram::new(RAM, 4);
    ram.write(RAM + 0xff8, &[0x0102_0304_0506_0708, 9]);
    ram.write(RAM + 0x2080, &[7]);
    let expected: Vec<_> = (0..4).map(|page| ram.page(RAM + page * 0x1000).unwrap()).collect();
    let mut client = Client::new(Machine { ram, ..Machine::new() }, 1);
    let mut memory = HeldMemory { client: &mut client, vm: "a", ram: None };
    let found: Vec<_> = (0..4).map(|page| memory.page(RAM + page * 0x1000).unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_core_file_is_whole_or_none() {
    let bed = tempfile::tempdir().unwrap();
    let core = bed.path().join("a.core");
    let wanted = Wanted { core: Some(WantedCore { path: &core, extent: Extent::All }), ..BRIEF };
    let gone = Machine { state: "paused", ..Machine::new() };
    let error = shown(gone, &wanted).unwrap_err();
    assert_eq!(error.code(), "not-kept");
    assert!(error.to_string().contains("write on_crash = \"preserve\""), "{error}");
    let none = Machine { vcpus: Vec::new(), ..Machine::new() };
    assert_eq!(shown(none, &wanted).unwrap_err().code(), "no-vcpu");
    let restarts = Machine { asked_left: 1, ..Machine::new() };
    assert_eq!(shown(restarts, &wanted).unwrap_err().code(), "changed");
    assert!(!core.exists());
    let report = shown(Machine::new(), &wanted).unwrap();
    assert!(std::fs::read(&core).unwrap().starts_with(b"\x7fELF"));
    // One page that is not zero, and the last, which makes it as long as it says.
    assert!(report.to_text().ends_with("a.core: 8K\n"), "{}", report.to_text());
}

#[test]
fn what_does_not_read_is_told() {
    let row = |text: &str| {
        let fields = text.split(' ').filter_map(|word| word.split_once('='));
        Row(fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    let good = "what=crash vcpu=0 at_ticks=1 now_ticks=2 count=1 ram=0x1000 ram_bytes=0x1000";
    assert!(Crash::parse(&[row(good), row("what=new x=y")]).is_ok());
    for wrong in [
        good.replace("what=crash", "what=vcpu"),
        good.replace("count=1", "count=-1"),
        good.replace("ram=0x1000", "ram=0x1001"),
        good.replace("ram=0x1000", "ram=0xfffffffffffff000"),
        good.replace("ram_bytes=0x1000", "ram_bytes=0x10000000000000000"),
    ] {
        assert!(Crash::parse(&[row(&wrong)]).is_err(), "{wrong}");
    }
    assert!(Crash::parse(&[]).is_err());
    for wrong in [
        "what=vcpu vcpu=0 pc=x",
        "what=exit vcpu=0 at_ticks=1 syndrome=0x1 pc=0x1",
        "what=fault at_ticks=1 syndrome=0x1 pc=0x1 detail=0x1",
        "what=map kind=ram at=0x0 name=ram",
        "what=console at=0x1 bytes=00",
        "what=console at=0x0 bytes=0",
        "what=console at=0x0 bytes=+1",
    ] {
        assert!(Crash::parse(&[row(good), row(wrong)]).is_err(), "{wrong}");
    }
    let mut page = [0; PAGE];
    for wrong in [
        "at=0xfff bytes=00",
        "at=0x2000 bytes=00",
        "at=0x1fff bytes=0000",
        "at=0x1000 bytes=0",
        "at=0x1000 bytes=+1",
        "bytes=00",
    ] {
        assert_eq!(put(&mut page, 0x1000, &row(wrong)), None, "{wrong}");
    }
    assert_eq!(page, [0; PAGE]);
    assert_eq!(put(&mut page, 0x1000, &row("at=0x1fff bytes=ff")), Some(()));
    assert_eq!(page[PAGE - 1], 0xff);
}
