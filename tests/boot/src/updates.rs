// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs that are made, and get other images, while the machine runs: they do as those of the boot,
//! what cannot be is refused with nothing changed, and nobody else notices.

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, manifest, refused, text};
use coffer::build::{self, Options};
use coffer::bundle::Bundle;
use coffer::qemu::Machine;
use coffer::vm::client::{ClientError, Row};
use coffer::vm::stats;
use coffer::vm::upload::{UploadError, carry_out, put, upload};
use cofferdam::control::{Action, Request, crc32c};
use cofferdam::plan::List;
use libtest_mimic::Trial;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("updates::a_vm_is_made_beside_another", made_beside_another),
        harness::test("updates::what_cannot_be_made_is_refused", what_cannot_be_made),
        harness::test("updates::images_are_replaced_for_good_or_on_trial", replaced),
        harness::test("updates::what_cannot_be_updated_runs_on", what_cannot_be_updated),
        harness::test("updates::nothing_is_left_for_the_next_owner", nothing_is_left),
        harness::test("updates::a_vm_on_the_core_that_serves_the_uarts", on_the_serving_core),
    ]
}

/// A guest that says its number when it has started, and then runs until somebody ends it.
fn numbered(name: &'static str, cpus: &str, number: u32) -> Vm {
    let cmdline = format!("mode=payload end=hang_after_{number}");
    Vm { memory: "16M", ..Vm::of_guest(name, cpus, "guest-suite", &cmdline) }
}

fn started(name: &str, number: u32) -> String {
    format!("{name}| EXIT: STATUS={number}")
}

/// The machine of a test: four cores, of which one at least stays free for the hypervisor's work.
pub struct Live {
    pub machine: Controlled,
    test: &'static str,
}

impl Live {
    fn boot(test: &'static str, vms: &[Vm]) -> Result<Self> {
        Self::boot_on(test, vms, "", &Machine::default())
    }

    /// Boots VMs with knobs on a machine of another kind.
    pub fn boot_on(test: &'static str, vms: &[Vm], knobs: &str, machine: &Machine) -> Result<Self> {
        let text = manifest(vms, knobs) + BOTH_PORTS;
        Ok(Self { machine: Controlled::boot(test, &text, machine)?, test })
    }

    /// Plans these VMs, for a machine that may have other memory, and returns the part with one.
    pub fn plan(&self, vms: &[Vm], name: &str, machine: &Machine) -> Result<Bundle> {
        let path = harness::folder(self.test)?.join("next.toml");
        std::fs::write(&path, manifest(vms, "") + BOTH_PORTS).map_err(text)?;
        let options = Options { overrides: machine.overrides(), ..Options::default() };
        let (_, planned) = build::plan(&path, &options).map_err(refused)?;
        planned.bundle.single(name).ok_or_else(|| format!("no {name}"))
    }

    /// Plans and writes the part with one VM.
    fn bundle(&self, vms: &[Vm], name: &str) -> Result<Vec<u8>> {
        self.plan(vms, name, &Machine::default())?.write().map_err(text)
    }

    /// Uploads and has it done.
    fn change(
        &mut self,
        bytes: &[u8],
        vm: &str,
        action: Action,
    ) -> std::result::Result<(), UploadError> {
        let client = &mut self.machine.client;
        upload(client, bytes, &mut |_| {})?;
        carry_out(client, Request::Change { vm, action })
    }

    pub fn create(&mut self, bytes: &[u8], vm: &str) -> Result<()> {
        self.change(bytes, vm, Action::Create).map_err(text)
    }

    pub fn update(&mut self, bytes: &[u8], vm: &str, confirm_ms: Option<u32>) -> Result<()> {
        self.change(bytes, vm, Action::Update { confirm_ms }).map_err(text)
    }

    /// Uploads what is to be refused, with these words; all is then as `before`.
    fn refused(
        &mut self,
        what: &str,
        bytes: &[u8],
        (vm, action): (&str, Action),
        words: &str,
        before: &[Row],
    ) -> Result<()> {
        let why = match self.change(bytes, vm, action) {
            Err(UploadError::Refused(why)) => why,
            Err(UploadError::Client(ClientError::Refused { code, text })) => {
                format!("{code}: {text}")
            }
            Err(error) => return Err(format!("{what}: {error}")),
            Ok(()) => return Err(format!("{what} is not refused")),
        };
        if !why.contains(words) {
            return Err(format!("{what} is refused with {why:?}, without {words:?}"));
        }
        let now = self.audit()?;
        if now == before { Ok(()) } else { Err(format!("{what}: {before:?} is now {now:?}")) }
    }

    /// Returns for how many interrupts vCPU 0 of a VM leaves at each request. There are a few others:
    /// those of its own output, and of the counters that EL2 keeps of it, which overflow.
    fn disturbed(&mut self, vm: &str) -> Result<u64> {
        const REQUESTS: u64 = 20;
        let mut irqs = [0; 2];
        for irqs in &mut irqs {
            let stats = stats(&mut self.machine.client, Some(vm)).map_err(text)?;
            let vcpu = stats.vms.first().and_then(|vm| vm.vcpus.first()).ok_or("no vCPU")?;
            *irqs = vcpu.exits.get("irq").copied().ok_or("no irq")?;
            for _ in 0..REQUESTS {
                self.machine.ask("hello")?;
            }
        }
        Ok((irqs[1] - irqs[0]) / REQUESTS)
    }

    /// Returns the rows of an audit once nothing moves any more: who destroys a VM gives back what it
    /// had when it is no longer listed.
    fn audit(&mut self) -> Result<Vec<Row>> {
        const SAME: usize = 5;
        let mut rows = self.machine.ask("audit")?;
        let mut same = 0;
        while same < SAME {
            std::thread::sleep(Duration::from_millis(50));
            let next = self.machine.ask("audit")?;
            same = if next == rows { same + 1 } else { 0 };
            rows = next;
        }
        Ok(rows)
    }

    /// Returns that of a machine that has had an upload and has given it up: the first one may make
    /// a list longer.
    fn audit_after_an_upload(&mut self) -> Result<Vec<Row>> {
        upload(&mut self.machine.client, b"nothing", &mut |_| {}).map_err(text)?;
        self.machine.ask("upload 0 00000000")?;
        self.audit()
    }

    fn images(&mut self, vm: &str) -> Result<String> {
        let rows = self.machine.ask("list")?;
        let row = rows.iter().find(|row| row.get("name") == vm).ok_or("it is not there")?;
        Ok(row.get("images").to_owned())
    }

    fn expect_images(&mut self, vm: &str, expected: &str) -> Result<()> {
        match self.images(vm)? {
            images if images == expected => Ok(()),
            images => Err(format!("{vm} has {images} and not {expected}")),
        }
    }

    /// Returns how often this was said.
    fn count(&mut self, what: &str) -> Result<usize> {
        Ok(self.machine.said()?.matches(what).count())
    }

    /// Waits until the neighbour has run all tests, which it began before all else.
    fn expect_untouched(&mut self) -> Result<()> {
        while self.count("[vm] neighbour off")? == 0 {}
        let said = self.machine.said()?;
        let passed = |line: &str| {
            line.starts_with("neighbour| RESULT passed=") && line.contains(" failed=0 ")
        };
        if said.lines().any(passed) { Ok(()) } else { Err(said) }
    }
}

/// The neighbour, which runs the whole suite meanwhile.
fn neighbour() -> Vm {
    Vm::of_guest("neighbour", "0-1", "guest-suite", "")
}

/// It starts, starts again, and is gone without a trace.
fn made_beside_another() -> Result<()> {
    let vms = || [neighbour(), numbered("late", "2", 5)];
    let mut live = Live::boot("updates-create", &[neighbour()])?;
    let bytes = live.bundle(&vms(), "late")?;
    let mut before = None;
    for _ in 0..3 {
        live.create(&bytes, "late")?;
        live.machine.hear(&started("late", 5))?;
        live.machine.is_in("late", "running")?;
        live.expect_images("late", "first")?;
        live.machine.ask("kill late")?;
        live.machine.wait_for("late", "off")?;
        live.machine.ask("start late")?;
        live.machine.hear(&started("late", 5))?;
        live.machine.ask("kill late")?;
        live.machine.wait_for("late", "off")?;
        live.machine.ask("destroy late")?;
        live.machine.hear("[vm] late gone")?;
        let now = live.audit()?;
        let before = before.get_or_insert_with(|| now.clone());
        if *before != now {
            return Err(format!("after the first life: {before:?}\nafter another: {now:?}"));
        }
    }
    live.create(&bytes, "late")?;
    live.machine.hear(&started("late", 5))?;
    live.expect_untouched()
}

/// Returns bundles that are none, with words of the refusal.
fn broken(bundle: &Bundle) -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let whole = bundle.write().map_err(text)?;
    let mut of_none = bundle.clone();
    of_none.plan.vms = List::default();
    Ok(vec![
        ("a truncated bundle", whole[..whole.len() / 2].to_vec(), ""),
        ("zeros", vec![0; 100_000], ""),
        ("a byte", vec![0x43], ""),
        ("a plan without a VM", of_none.write().map_err(text)?, ""),
    ])
}

/// Returns a bundle whose last image is not what its checksum says; what is uploaded is whole.
fn damaged(bundle: &Bundle) -> Result<Vec<u8>> {
    let mut bytes = bundle.write().map_err(text)?;
    let last = bytes.last_mut().ok_or("an empty bundle")?;
    *last ^= 0x10;
    Ok(bytes)
}

fn what_cannot_be_made() -> Result<()> {
    let mut live = Live::boot("updates-refused", &[neighbour()])?;
    let create = ("late", Action::Create);
    let good = live.plan(&[neighbour(), numbered("late", "2", 5)], "late", &Machine::default())?;
    let before = live.audit_after_an_upload()?;
    for (what, bytes, words) in broken(&good)? {
        live.refused(what, &bytes, create, words, &before)?;
    }
    let two = live.bundle(&[neighbour()], "neighbour")?;
    live.refused("another VM's plan", &two, create, "", &before)?;
    live.refused("a name that is taken", &two, ("neighbour", Action::Create), "", &before)?;
    let core = live.bundle(&[numbered("late", "1", 5)], "late")?;
    live.refused("a core that is taken", &core, create, "neighbour", &before)?;
    let large = Machine { memory_bytes: Some(8 << 30), ..Machine::default() };
    let vms = [neighbour(), Vm { memory: "4G", ..numbered("late", "2", 5) }];
    let memory = live.plan(&vms, "late", &large)?.write().map_err(text)?;
    live.refused("more memory than there is", &memory, create, "", &before)?;
    // What a line's checksum does not see, that of the whole does.
    let bytes = good.write().map_err(text)?;
    let right = crc32c(&bytes);
    for (what, crc32c, end) in [
        ("a bundle of another checksum", right ^ 1, bytes.len()),
        ("a bundle that has come in part", right, bytes.len() / 2),
    ] {
        let (length, machine) = (bytes.len(), &mut live.machine);
        // What is not sent is not there from before.
        upload(&mut machine.client, &vec![0; length], &mut |_| {}).map_err(text)?;
        machine.ask(&format!("upload {length} {crc32c:08x}"))?;
        while machine.ask("uploaded")?.first().is_some_and(|row| row.get("state") == "reserving") {}
        put(&mut machine.client, bytes.get(..end).unwrap_or_default(), &mut |_| {})
            .map_err(text)?;
        match carry_out(&mut machine.client, Request::Change { vm: "late", action: create.1 }) {
            Err(UploadError::Refused(_)) => {}
            other => return Err(format!("{what}: {other:?}")),
        }
    }
    // An image is looked at when it is loaded, as at a reset.
    live.create(&damaged(&good)?, "late")?;
    live.machine.hear("late cannot start: its image")?;
    live.machine.wait_for("late", "off")?;
    live.machine.ask("destroy late")?;
    live.machine.hear("[vm] late gone")?;
    live.audit()?;
    live.create(&bytes, "late")?;
    live.machine.hear(&started("late", 5))?;
    live.expect_untouched()
}

/// The images change with what the guest says; they stay over resets, and those that nobody
/// confirms do not stay.
fn replaced() -> Result<()> {
    let mut live = Live::boot("updates-images", &[neighbour(), numbered("app", "2", 5)])?;
    let bundle = |live: &Live, n| live.bundle(&[neighbour(), numbered("app", "2", n)], "app");
    live.machine.hear(&started("app", 5))?;
    live.expect_images("app", "first")?;
    let bytes = bundle(&live, 6)?;
    live.update(&bytes, "app", None)?;
    live.machine.hear(&started("app", 6))?;
    live.expect_images("app", "updated")?;
    live.machine.ask("reset app")?;
    live.machine.hear(&started("app", 6))?;
    // Nobody confirms.
    let bytes = bundle(&live, 7)?;
    live.update(&bytes, "app", Some(2000))?;
    live.expect_images("app", "trial")?;
    live.machine.hear(&started("app", 7))?;
    live.machine.hear(&started("app", 6))?;
    live.expect_images("app", "updated")?;
    if live.machine.refused("confirm app")? != "state" {
        return Err("what is gone was confirmed".to_owned());
    }
    // Somebody does, and a reset before and after it changes nothing.
    let bytes = bundle(&live, 8)?;
    live.update(&bytes, "app", Some(3_600_000))?;
    live.machine.hear(&started("app", 8))?;
    live.machine.ask("reset app")?;
    live.machine.hear(&started("app", 8))?;
    live.machine.ask("confirm app")?;
    live.expect_images("app", "updated")?;
    live.machine.ask("kill app")?;
    live.machine.wait_for("app", "off")?;
    live.machine.ask("start app")?;
    live.machine.hear(&started("app", 8))?;
    // What is off stays off.
    live.machine.ask("kill app")?;
    live.machine.wait_for("app", "off")?;
    let bytes = bundle(&live, 9)?;
    live.update(&bytes, "app", None)?;
    live.machine.is_in("app", "off")?;
    live.machine.ask("start app")?;
    live.machine.hear(&started("app", 9))?;
    live.expect_untouched()
}

/// It is refused, and the VM goes on where it is: it does not start again.
fn what_cannot_be_updated() -> Result<()> {
    let app = |number| numbered("app", "2", number);
    let mut live = Live::boot("updates-broken", &[neighbour(), app(5)])?;
    live.machine.hear(&started("app", 5))?;
    let update = ("app", Action::Update { confirm_ms: None });
    let before = live.audit_after_an_upload()?;
    let good = live.plan(&[neighbour(), app(6)], "app", &Machine::default())?;
    for (what, bytes, words) in broken(&good)? {
        live.refused(what, &bytes, update, words, &before)?;
    }
    let others = [
        ("other memory", Vm { memory: "32M", ..app(6) }),
        ("another core", numbered("app", "3", 6)),
        ("more cores", numbered("app", "2-3", 6)),
    ];
    for (what, vm) in others {
        let bytes = live.bundle(&[neighbour(), vm], "app")?;
        live.refused(what, &bytes, update, "", &before)?;
    }
    let late = live.bundle(&[neighbour(), numbered("late", "3", 6)], "late")?;
    let missing = ("late", Action::Update { confirm_ms: None });
    live.refused("a VM that is not there", &late, missing, "", &before)?;
    live.machine.is_in("app", "running")?;
    live.expect_images("app", "first")?;
    if live.count(&started("app", 5))? != 1 || live.count(&started("app", 6))? != 0 {
        return Err(format!("it has started again:\n{}", live.machine.said()?));
    }
    // What does not start is not waited for.
    live.update(&damaged(&good)?, "app", Some(3_600_000))?;
    live.machine.hear(&started("app", 5))?;
    live.expect_images("app", "first")?;
    live.update(&good.write().map_err(text)?, "app", None)?;
    live.machine.hear(&started("app", 6))?;
    live.expect_untouched()
}

/// The search of `mode=secret`, in the order in which it is reported.
const SEARCH: [&str; 5] = [
    "t02_all_memory_is_zero",
    "t02_nothing_is_left_in_the_program",
    "t58_boot_vcpu_enters_with_zero_state",
    "t58_secondary_enters_with_zero_state",
    "t02_no_register_holds_a_secret",
];

/// A guest fills its memory and its cores with a secret; the next one, in the same place and on the
/// same cores, finds nothing of it. That it would, the first one shows: a reset keeps memory, and
/// there it finds its own secret.
fn nothing_is_left() -> Result<()> {
    const SECRET: &str = "mode=secret key=0f1e2d3c4b5a6978";
    let owner = |name| Vm { memory: "16M", ..Vm::of_guest(name, "2-3", "guest-suite", SECRET) };
    let other = || numbered("other", "0", 5);
    let mut live = Live::boot("updates-residue", &[other()])?;
    let (first, next) = (
        live.bundle(&[other(), owner("first")], "first")?,
        live.bundle(&[other(), owner("after")], "after")?,
    );
    let empty = live.audit_after_an_upload()?;
    live.create(&first, "first")?;
    live.machine.hear("first| SECRET")?;
    let with_first = live.audit()?;
    live.machine.ask("reset first")?;
    live.machine.hear("first| BOOT")?;
    live.machine.hear("first| SECRET")?;
    let said = live.machine.said()?;
    let again = said.rsplit("first| BOOT").next().unwrap_or_default();
    for search in SEARCH.iter().take(2) {
        if !again.contains(&format!("TEST {search}: FAIL")) {
            return Err(format!("{search} is blind:\n{said}"));
        }
    }
    live.machine.ask("kill first")?;
    live.machine.wait_for("first", "off")?;
    live.machine.ask("destroy first")?;
    live.machine.hear("[vm] first gone")?;
    let again_empty = live.audit()?;
    live.create(&next, "after")?;
    live.machine.hear("after| SECRET")?;
    // The same pages are owned from the same place of the list of VMs, and what is not memory is as
    // it was: who has them is all that differs, and that goes by places.
    let owners =
        |rows: &[Row]| rows.iter().find_map(|row| row.0.iter().find(|f| f.0 == "owners").cloned());
    let with_after = live.audit()?;
    let all = [&empty, &with_first, &again_empty, &with_after];
    let [empty, first, again_empty, after] = all.map(|rows| owners(rows));
    if first.is_none() || first != after || empty != again_empty || first == empty {
        return Err(format!("owners: {empty:?}, {first:?}, {again_empty:?}, {after:?}"));
    }
    let said = live.machine.said()?;
    for search in SEARCH.iter().chain(&["a_secret_in_registers_is_found"]) {
        if !said.contains(&format!("after| TEST {search}: ok")) {
            return Err(format!("{search}:\n{said}"));
        }
    }
    Ok(())
}

/// Whoever gets the core that serves the UARTs pays for no request: another free core does, the
/// boot core where there is none, and again a free one as soon as there is.
fn on_the_serving_core() -> Result<()> {
    const NO_CORE_IS_FREE: &str = "2-3";
    for (cpus, pays) in [("2", false), (NO_CORE_IS_FREE, true)] {
        let boots = numbered("boots", "0-1", 1);
        let late = numbered("late", cpus, 2);
        let mut live = Live::boot("updates-uarts", &[boots])?;
        live.machine.hear(&started("boots", 1))?;
        let before = (live.disturbed("boots")?, live.audit()?);
        let bytes = live.bundle(&[late], "late")?;
        live.create(&bytes, "late")?;
        live.machine.hear(&started("late", 2))?;
        let late = live.disturbed("late")?;
        let during = (live.disturbed("boots")? > 0, late);
        live.machine.ask("kill late")?;
        live.machine.wait_for("late", "off")?;
        live.machine.ask("destroy late")?;
        live.machine.hear("[vm] late gone")?;
        let after = (live.audit()?, live.disturbed("boots")?);
        if (before.0, during, after.1) != (0, (pays, 0), 0) {
            return Err(format!("{cpus}: {}, {during:?}, {}", before.0, after.1));
        }
        if before.1 != after.0 {
            return Err(format!("{cpus}: {:?} is now {:?}", before.1, after.0));
        }
    }
    Ok(())
}
