// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Policies: what may be chosen, what is refused, and the order in which VMs start.

use crate::bed::{Bed, expect, expect_text};
use coffer::board::Overrides;
use coffer::build::{Options, plan};
use cofferdam::id::VmId;
use cofferdam::plan::{OnCrash, OnEnd, OnLoss, PauseTime, Policies, Restarts, VmPlan};

/// Makes a manifest of VMs, each with these lines of its own.
fn vms(vms: &[(&str, &str)]) -> String {
    let vm = |(core, (name, lines)): (usize, &(&str, &str))| {
        format!("[vm.{name}]\ncpus = \"{core}\"\nmemory = \"64M\"\nkernel = \"Image\"\n{lines}\n")
    };
    vms.iter().enumerate().map(vm).collect()
}

/// Plans VMs.
fn planned(named: &[(&str, &str)]) -> Vec<VmPlan> {
    let bed = Bed::new();
    let text = format!("format = 1\nboard = \"board/board.toml\"\n{}", vms(named));
    bed.write("m.toml", text.as_bytes());
    let options = Options { overrides: Overrides::default(), ..Options::default() };
    let (_, planned) = plan(&bed.path("m.toml"), &options).unwrap();
    planned.bundle.plan.vms.to_vec()
}

fn policies(lines: &str) -> Policies {
    planned(&[("a", lines)]).remove(0).policies
}

#[test]
fn who_says_nothing_is_restarted_unless_it_turns_itself_off() {
    let policies = policies("");
    let restarts = Restarts { most: None, backoff_ms: 0 };
    assert_eq!(policies.on_crash, OnCrash::Restart(restarts));
    assert_eq!((policies.on_reboot, policies.on_poweroff), (OnEnd::Restart, OnEnd::Stop));
    assert_eq!((policies.on_loss, policies.pause_time), (OnLoss::Tell, PauseTime::Runs));
    assert_eq!((&*policies.after, policies.watchdog_ms), (&[][..], None));
}

#[test]
fn every_policy_reaches_the_plan() {
    let crash = |value: &str| policies(&format!("on_crash = {value}")).on_crash;
    let restart = |most, backoff_ms| OnCrash::Restart(Restarts { most, backoff_ms });
    assert_eq!(crash("\"restart\""), restart(None, 0));
    assert_eq!(crash("\"stop\""), OnCrash::Stop);
    assert_eq!(crash("\"preserve\""), OnCrash::Preserve);
    assert_eq!(crash("\"machine\""), OnCrash::Machine);
    assert_eq!(crash("{ restart = 5, backoff = \"1s\" }"), restart(Some(5), 1000));
    assert_eq!(crash("{ restart = 65535 }"), restart(Some(u16::MAX), 0));
    for (word, end) in
        [("restart", OnEnd::Restart), ("stop", OnEnd::Stop), ("machine", OnEnd::Machine)]
    {
        assert_eq!(policies(&format!("on_reboot = \"{word}\"")).on_reboot, end);
        assert_eq!(policies(&format!("on_poweroff = \"{word}\"")).on_poweroff, end);
    }
    for (word, loss) in [("tell", OnLoss::Tell), ("stop", OnLoss::Stop), ("ignore", OnLoss::Ignore)]
    {
        assert_eq!(policies(&format!("on_loss = \"{word}\"")).on_loss, loss);
    }
    assert_eq!(policies("watchdog = \"200ms\"").watchdog_ms, Some(200));
    assert_eq!(policies("pause_time = false").pause_time, PauseTime::Runs);
    assert_eq!(policies("pause_time = true").pause_time, PauseTime::Stops);
}

#[test]
fn vms_start_behind_those_that_they_start_after() {
    // Each behind the others; otherwise in the order of the file.
    let plan = planned(&[
        ("web", "after = [\"gateway\", \"store\"]"),
        ("gateway", "after = [\"store\"]"),
        ("clock", ""),
        ("store", ""),
    ]);
    let names: Vec<_> = plan.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["clock", "store", "gateway", "web"]);
    let after = |vm: usize| plan[vm].policies.after.iter().map(|id| id.get()).collect::<Vec<_>>();
    assert_eq!((after(0), after(1), after(2), after(3)), (vec![], vec![], vec![1], vec![2, 1]));
    // What else belongs to a VM goes with it.
    let core = |vm: usize| plan[vm].vcpus[0].get();
    assert_eq!((core(0), core(1), core(2), core(3)), (0x200, 0x300, 0x100, 0));
    let twice = planned(&[("a", ""), ("b", "after = [\"a\", \"a\"]")]);
    assert_eq!(&*twice[1].policies.after, [VmId::new(0)]);
}

#[test]
fn nobody_starts_after_himself_or_nobody() {
    let bed = Bed::new();
    let said = bed.refused(&vms(&[("gateway", ""), ("web", "after = [\"gatway\"]")]));
    expect(&said, "E22", "\"gateway\"");
    expect_text(&said, "E22", "there is no VM `gatway` to start after");
    expect_text(&said, "E22", "m.toml:12:10");
    let said = bed.refused(&vms(&[("a", "after = [\"a\"]")]));
    expect_text(&said, "E22", "this is a circle: `a` starts after `a`");
    let said = bed.refused(&vms(&[
        ("d", "after = [\"c\"]"),
        ("a", "after = [\"c\"]"),
        ("b", "after = [\"a\"]"),
        ("c", "after = [\"b\"]"),
    ]));
    let circle = "this is a circle: `c` starts after `b` starts after `a` starts after `c`";
    expect_text(&said, "E22", circle);
    for line in ["after = [\"a\"]", "after = [\"b\"]", "after = [\"c\"]"] {
        assert_eq!(said.matches(line).count(), 1, "{said}");
    }
    let many: Vec<_> = (0..17).map(|n| format!("\"vm{n}\"")).collect();
    let after = format!("after = [{}]", many.join(","));
    expect_text(&bed.vm_refused(&after), "E04", "there are at most 15 other VMs");
}

#[test]
fn wrong_policies_are_corrected() {
    let bed = Bed::new();
    expect(&bed.vm_refused("on_reboot = \"machin\""), "E04", "on_reboot = \"machine\"");
    expect(&bed.vm_refused("on_crash = \"destroy\""), "E04", "on_crash = \"stop\"");
    expect(&bed.vm_refused("on_poweroff = \"reboot\""), "E04", "on_poweroff = \"restart\"");
    expect(&bed.vm_refused("on_loss = \"destroy\""), "E04", "on_loss = \"stop\"");
    expect_text(&bed.vm_refused("on_loss = \"restart\""), "E04", "on_loss is \"tell\" or \"stop\"");
    expect_text(&bed.vm_refused("on_reboot = \"preserve\""), "E04", "on_reboot is \"restart\"");
    expect_text(&bed.vm_refused("on_crash = {}"), "E05", "does not say how often to restart");
    expect_text(&bed.vm_refused("on_crash = { restart = 0 }"), "E04", "from 1 to 65535");
    expect_text(&bed.vm_refused("on_crash = { restart = 65536 }"), "E04", "from 1 to 65535");
    let both = "on_crash = { restart = 1, backoff = \"1\" }";
    expect(&bed.vm_refused(both), "E04", "backoff = \"1ms\"");
    expect(
        &bed.vm_refused("on_crash = { restart = 1, delay = \"1s\" }"),
        "E03",
        "backoff = \"1s\"",
    );
    expect(&bed.vm_refused("on_panic = \"stop\""), "E03", "on_crash = \"stop\"");
    expect(&bed.vm_refused("on_shutdown = \"stop\""), "E03", "on_poweroff = \"stop\"");
    expect(&bed.vm_refused("depends_on = [\"b\"]"), "E03", "after = [\"b\"]");
    expect(&bed.vm_refused("wdt = \"1s\""), "E03", "watchdog = \"1s\"");
    expect(&bed.vm_refused("watchdog = 200"), "E04", "watchdog = \"200ms\"");
    expect_text(&bed.vm_refused("watchdog = \"0s\""), "E04", "a time is not 0");
    expect_text(&bed.vm_refused("watchdog = true"), "E04", "not true or false");
    expect_text(&bed.vm_refused("pause_time = \"1s\""), "E04", "true or false");
    expect(&bed.vm_refused("after = \"b\""), "E04", "after = [\"b\"]");
}

#[test]
fn the_report_shows_what_was_chosen() {
    let bed = Bed::new();
    let report = bed.planned(&vms(&[
        ("a", "watchdog = \"1s\"\non_loss = \"stop\"\nafter = [\"b\"]"),
        ("b", "on_crash = { restart = 5, backoff = \"1s\" }\non_poweroff = \"machine\""),
        ("c", ""),
    ]));
    let lines: Vec<_> = report.lines().filter(|line| line.starts_with("policy")).collect();
    let expected = [
        "policy b: on_crash restart 5 times after 1000ms, on_poweroff machine",
        "policy a: on_loss stop, after b, watchdog 1000ms",
    ];
    assert_eq!(lines, expected);
    let json = bed.coffer(&["plan", "m.toml", "--json"]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let (b, a) = (&json["vms"][0], &json["vms"][1]);
    assert_eq!((&b["restarts_max"], &b["backoff_ms"]), (&5.into(), &1000.into()));
    assert_eq!((&b["on_crash"], &b["on_reboot"]), (&"restart".into(), &"restart".into()));
    assert_eq!((&a["after"], &a["watchdog_ms"]), (&serde_json::json!(["b"]), &1000.into()));
    assert_eq!((&a["on_loss"], &a["pause_time"]), (&"stop".into(), &false.into()));
}
