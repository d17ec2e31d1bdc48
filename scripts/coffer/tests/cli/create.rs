// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs that are made and updated while a machine runs: what is uploaded, and what is refused before.
//! The machine is EL2's side of the protocol behind a socket.

use crate::bed::{Bed, Said, expect, expect_text};
use crate::plans::hypervisor;
use cofferdam::control::{Action, Executor, Line, Refusal, Request, Row, Rows, Session, base64};
use cofferdam::plan::{Knobs, Plan};
use cofferdam::spec::bundle::{Bundle, crc32c};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

const HEAD: &str = "format = 1\nboard = \"board/board.toml\"\n[control]\nport = \"uart3\"\n";

fn vm(name: &str, cpu: u32, lines: &str) -> String {
    format!("[vm.{name}]\ncpus = \"{cpu}\"\nmemory = \"64M\"\nkernel = \"Image\"\n{lines}")
}

/// A machine with one VM, `a`, that takes what is uploaded.
#[derive(Default)]
struct Machine(Mutex<State>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    crc32c: u32,
    /// What was to be done with it, and the bytes then.
    done: Vec<(String, Vec<u8>)>,
    /// Why it does not do it.
    refusal: Option<&'static str>,
}

/// Stands for the one row of an upload.
const UPLOADED: Rows = Rows::Audit(0);

impl Executor for Machine {
    fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal> {
        let mut state = self.0.lock().unwrap();
        match request {
            Request::Hello => return Ok(Rows::Hello),
            Request::List => return Ok(Rows::Vms(0)),
            Request::Uploaded => return Ok(UPLOADED),
            Request::Upload { bytes, crc32c } => {
                state.bytes = vec![0; usize::try_from(bytes).unwrap()];
                state.crc32c = crc32c;
            }
            Request::Put { offset, data } => {
                let piece = base64::decode(data).unwrap();
                let at = usize::try_from(offset).unwrap();
                state.bytes[at..at + piece.as_bytes().len()].copy_from_slice(piece.as_bytes());
            }
            Request::Change { action: Action::Confirm, .. } => {}
            Request::Change { .. } => {
                let bytes = std::mem::take(&mut state.bytes);
                assert_eq!(crc32c(&bytes), state.crc32c);
                state.done.push((request.to_string(), bytes));
            }
            _ => return Err(Refusal::Verb),
        }
        Ok(Rows::None)
    }

    fn next_row(&self, rows: &mut Rows, line: &mut Line) -> Row {
        let state = self.0.lock().unwrap();
        let was = std::mem::replace(rows, Rows::None);
        let written = match was {
            Rows::Hello => write!(line, " protocol=1 board=board"),
            UPLOADED => match (state.bytes.len(), state.refusal) {
                (0, Some(why)) => write!(line, " state=refused bytes=0 text={why}"),
                (0, None) => write!(line, " state=none bytes=0"),
                (bytes, _) => write!(line, " state=filling bytes={bytes}"),
            },
            Rows::Vms(0) => {
                if state.done.iter().any(|(asked, _)| asked == "create b") {
                    *rows = Rows::Vms(1);
                }
                write!(line, " name=a state=running vcpus=1 memory_bytes=67108864 images=first")
            }
            Rows::Vms(_) => {
                write!(line, " name=b state=running vcpus=1 memory_bytes=67108864 images=first")
            }
            _ => return Row::End,
        };
        written.unwrap();
        Row::Written
    }
}

/// Serves everybody who comes, one after the other.
fn serve(listener: &UnixListener, machine: &Machine) {
    for client in listener.incoming() {
        let (mut client, mut session, mut byte) = (client.unwrap(), Session::default(), [0]);
        while client.read(&mut byte).is_ok_and(|count| count == 1) {
            session.take(byte[0], machine);
            let mut line = Line::default();
            // Nothing is written when a request is carried out, and lines are left all the same.
            while session.has_reply() {
                if session.next_line(&mut line, machine) == Row::Written {
                    // Who has left does not read.
                    let _ = client.write_all(format!("\x1e{}\r\n", line.as_str()).as_bytes());
                }
            }
        }
    }
}

/// A directory with a machine that was built from a manifest with `a` and `b`.
pub struct Running {
    pub bed: Bed,
    machine: Arc<Machine>,
}

impl Running {
    pub fn new(rest: &str) -> Self {
        let bed = Bed::new();
        bed.write("m.toml", format!("{HEAD}{rest}").as_bytes());
        bed.write("hypervisor", &hypervisor());
        let built = bed.coffer(&["build", "m.toml", "--out", "out", "--hypervisor", "hypervisor"]);
        assert_eq!(built.code, 0, "{}", built.err);
        let listener = UnixListener::bind(bed.path("out/control.sock")).unwrap();
        let machine = Arc::new(Machine::default());
        let served = Arc::clone(&machine);
        // It ends with the process.
        std::thread::spawn(move || serve(&listener, &served));
        Self { bed, machine }
    }

    fn vm(&self, arguments: &[&str]) -> Said {
        let port = ["--port", "out/control.sock"];
        self.bed.coffer(&[&["vm"], arguments, &port[..]].concat())
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let said = self.vm(arguments);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
        assert!(self.machine.0.lock().unwrap().crc32c == 0, "nothing is uploaded");
        said.err
    }

    /// Returns what was asked of the machine last, and the plan and the named images with it.
    fn last(&self) -> (String, Plan, Vec<(String, Vec<u8>)>) {
        let (asked, bytes) = self.machine.0.lock().unwrap().done.last().unwrap().clone();
        let bundle = Bundle::parse(&bytes).unwrap();
        bundle.images().iter().for_each(|image| image.verify(crc32c).unwrap());
        let plan = Plan::decode(bundle.plan().bytes).unwrap();
        let own = plan.vms.iter().flat_map(|vm| vm.images.iter());
        let bytes = |name: &str| bundle.image(name).unwrap().bytes.to_vec();
        let images: Vec<_> = own.map(|i| (i.name.to_string(), bytes(&i.name))).collect();
        assert_eq!(bundle.images().len(), images.len() + 1, "the plan and the VM's images alone");
        (asked, plan, images)
    }
}

fn two() -> Running {
    let b = vm("b", 1, "ramdisk = \"initrd\"\ndevices = [\"&rtc\"]\nafter = [\"a\"]\n");
    Running::new(&format!("{}{b}[test]\nvmid_bits_max = 6\n", vm("a", 0, "")))
}

#[test]
fn one_vm_of_the_manifest_goes_over() {
    let running = two();
    let said = running.vm(&["create", "b"]);
    assert_eq!((said.code, said.out.as_str()), (0, "b is running\n"), "{}", said.err);
    expect_warning(&said.err, "W08", "`b` starts when it is created");
    let (asked, plan, images) = running.last();
    assert_eq!(asked, "create b");
    let [vm] = &plan.vms[..] else { panic!("{:?}", plan.vms) };
    // The core and the device are those that it has beside `a`.
    assert_eq!((vm.name.as_str(), vm.vcpus.len(), vm.devices.len()), ("b", 1, 1));
    assert_eq!((vm.policies.after.len(), &plan.knobs), (0, &Knobs::default()));
    let kernel = std::fs::read(running.bed.path("Image")).unwrap();
    assert!(images.iter().any(|(_, bytes)| *bytes == kernel));
    assert!(images.iter().any(|(_, bytes)| bytes == b"a ramdisk"));
}

#[track_caller]
fn expect_warning(said: &str, code: &str, text: &str) {
    assert_eq!(said.matches("warning[").count(), 1, "{said}");
    assert!(said.starts_with(&format!("warning[{code}]: {text}")), "{said}");
}

#[test]
fn an_update_takes_the_images_that_are_named() {
    let running = two();
    let update = ["update", "a", "--kernel", "Other", "--ramdisk", "initrd"];
    let said = running.vm(&[&update[..], &["--cmdline", "new words", "--confirm", "90s"]].concat());
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    let told = "write coffer vm confirm a within 90 s, or it gets the old ones back\n";
    assert!(said.out.ends_with(told), "{}", said.out);
    let (asked, plan, images) = running.last();
    assert_eq!((asked.as_str(), plan.vms.len()), ("update a confirm_ms=90000", 1));
    let other = std::fs::read(running.bed.path("Other")).unwrap();
    assert!(images.iter().any(|(_, bytes)| *bytes == other));
    assert!(images.iter().any(|(_, bytes)| bytes == b"a ramdisk"));
    let has_cmdline = |bytes: &[u8]| bytes.windows(9).any(|window| window == b"new words");
    assert!(images.iter().any(|(name, bytes)| name == "a-tree" && has_cmdline(bytes)));

    let said = running.vm(&["update", "a", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "format": 1, "vm": "a", "asked": "update", "state": "running", "confirm_ms": null,
        })
    );
    assert_eq!(running.last().0, "update a");
    assert_eq!(running.vm(&["confirm", "a"]).out, "a keeps its images\n");
}

#[test]
fn what_can_be_seen_is_refused_before_it_is_uploaded() {
    let running = two();
    let said = running.refused(&["create", "a"]);
    assert!(said.contains("the machine has a VM a; write coffer vm update a"), "{said}");
    let said = running.refused(&["update", "b"]);
    assert!(said.contains("the machine has no VM b; write coffer vm create b"), "{said}");
    expect(&running.refused(&["create", "bb"]), "E23", "b");
    expect_text(&running.refused(&["create", "other"]), "E23", "[vm.other], and below it");
    let said = running.refused(&["update", "a", "--kernel", "Othr"]);
    expect_text(&said, "E07", "Othr`: no such file");
    assert!(said.contains("Other\"\n"), "the near one is named: {said}");
    expect_text(&running.refused(&["update", "a", "--kernel", "initrd"]), "E15", "");
    for wrong in [["--confirm", "0s"], ["--confirm", "60d"], ["--cmdline", "a\nb"]] {
        let said = running.vm(&[&["update", "a"], &wrong[..]].concat());
        assert_eq!(said.code, 2, "{}", said.err);
    }
}

#[test]
fn an_update_changes_images_alone() {
    let running = Running::new(&vm("a", 0, ""));
    let changed = vm("a", 0, "").replace("\"0\"", "\"0-1\"").replace("64M", "128M");
    running.bed.write("m.toml", format!("{HEAD}{changed}").as_bytes());
    let said = running.refused(&["update", "a"]);
    assert_eq!(said.matches("error[E24]").count(), 2, "{said}");
    assert!(said.contains("`a` has 64M of memory") && said.contains("`a` has 1 vCPUs"), "{said}");
    assert!(said.contains("= write: memory = \"64M\"\n"), "{said}");
}

#[test]
fn a_clash_with_another_vm_is_shown_where_it_is_written() {
    let running = Running::new(&vm("a", 0, ""));
    running.bed.write("m.toml", format!("{HEAD}{}{}", vm("a", 0, ""), vm("b", 0, "")).as_bytes());
    expect_text(&running.refused(&["create", "b"]), "E11", "core 0 is given to `a` and to `b`");
    // Who leaves out what runs learns it from the machine.
    running.bed.write("other.toml", format!("{HEAD}{}", vm("b", 0, "")).as_bytes());
    running.machine.0.lock().unwrap().refusal = Some("b: core 0 is a's");
    let said = running.vm(&["create", "b", "--manifest", "other.toml"]);
    expect_warning(&said.err, "W09", "the machine has a VM `a`, which this manifest does not");
    assert!(
        said.err.ends_with("error: the machine refuses it: b: core 0 is a's\n"),
        "{}",
        said.err
    );
    assert_eq!(said.code, 1);
}

#[test]
fn a_machine_that_nobody_knows_needs_a_manifest() {
    let running = Running::new(&vm("a", 0, ""));
    std::fs::remove_file(running.bed.path("out/manifest")).unwrap();
    assert!(running.refused(&["create", "b"]).contains("write --manifest FILE"));
    let other = "format = 1\nboard = \"qemu-virt\"\n";
    running
        .bed
        .write("other.toml", format!("{other}{}{}", vm("a", 0, ""), vm("b", 1, "")).as_bytes());
    let said = running.refused(&["create", "b", "--manifest", "other.toml"]);
    assert!(said.contains("the machine is a board and the manifest is for a qemu-virt"), "{said}");
}
