// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer demo`: two unmodified Debian guests side by side, with one terminal for both.
#![forbid(unsafe_code)]

use crate::board::project_root;
use crate::build::Options;
use crate::command::Exit;
use crate::expect::{End, Script, ScriptError};
use crate::manifest::Manifest;
use crate::qemu::Machine;
use crate::run::{self, Error};
use cofferdam::plan::ConsoleMode;
use std::process::Command;
use std::time::Duration;

/// The demo's manifest, from the root of the project.
pub const MANIFEST: &str = "guests/two-linux.toml";
/// The prompt of the guests' shell.
pub const PROMPT: &str = "[#$] $";
/// After how long the unattended demo counts as hung; it takes some 20 seconds.
const LIMIT: Duration = Duration::from_secs(300);

/// Boots two Debian guests side by side in QEMU
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Boots unattended, asks each guest what it is, powers both off
    #[arg(long)]
    pub batch: bool,
    /// The model of the cores, as QEMU names it
    #[arg(long)]
    pub cpu: Option<String>,
}

/// Carries out `coffer demo`.
///
/// # Errors
/// Says why nothing was booted.
pub fn demo(args: &DemoArgs) -> Result<Exit, Error> {
    fetch_guests()?;
    let machine = Machine { cpu: args.cpu.clone(), ..Machine::default() };
    let path = project_root().join(MANIFEST);
    let manifest = Manifest::load(&path).map_err(Error::Refused)?;
    let console = if args.batch { ConsoleMode::Tagged } else { ConsoleMode::Focus };
    let options = Options { console: Some(console), ..Options::default() };
    let prepared = run::prepare(&path, &machine, options)?;
    if !args.batch {
        return run::attend(prepared.command);
    }
    let vms: Vec<&str> = manifest.vms.iter().map(|vm| vm.name.get_ref().as_str()).collect();
    let script = script(&vms).map_err(|source| Error::Script { path, source })?;
    run::expected(prepared.command, &script, None)
}

/// Returns what the unattended demo does in each of `vms`.
///
/// # Errors
/// A pattern is wrong, which a test would show.
pub fn script(vms: &[&str]) -> Result<Script, ScriptError> {
    let mut script = Script::new(End::Off);
    script.limit = LIMIT;
    script.never("Kernel panic")?.never("hypervisor fault")?;
    for vm in vms {
        script.expect(vm, PROMPT)?;
        script.send(vm, "uname -r; nproc; cat /proc/uptime\n");
        script.expect(vm, r"^\d+\.\d+\.\S+")?.expect(vm, r"^\d+$")?;
        script.expect(vm, r"^\d+\.\d\d \d+\.\d\d$")?.expect(vm, PROMPT)?;
        script.send(vm, "poweroff -f\n");
    }
    Ok(script)
}

/// Fetches the guests' kernels and makes their ramdisk, where that has not been done.
///
/// # Errors
/// Says what failed.
pub fn fetch_guests() -> Result<(), Error> {
    let fetch = project_root().join("guests/linux/fetch");
    let what = fetch.display().to_string();
    let status = Command::new(&fetch).status().map_err(Error::io(what.clone()))?;
    if status.success() { Ok(()) } else { Err(Error::Tool(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::engine::Engine;

    #[test]
    fn a_guest_is_asked_at_its_prompt_and_powered_off() {
        let script = script(&["a"]).unwrap();
        let mut engine = Engine::new(&script);
        engine.feed(b"\x1econsole: a\n");
        engine.feed(b"a| [    0.000000] Booting Linux 6.1.0-40-arm64 # 1\na| / # ");
        assert_eq!(engine.take_input(), b"uname -r; nproc; cat /proc/uptime\n");
        // The echo of what was typed is no answer to it.
        engine.feed(b"uname -r; nproc; cat /proc/uptime\na| 6.1.0-40-arm64\na| 2\n");
        assert!(engine.take_input().is_empty());
        engine.feed(b"a| 3.14 5.00\na| / # ");
        assert_eq!(engine.take_input(), b"poweroff -f\n");
        assert!(engine.is_done());
        let said: Vec<_> = engine.cases().into_iter().filter_map(|case| case.matched).collect();
        assert_eq!(said[1..4], ["6.1.0-40-arm64", "2", "3.14 5.00"]);
    }
}
