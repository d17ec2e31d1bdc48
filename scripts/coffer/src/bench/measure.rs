// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boots the bench guest and reads what it and the hypervisor report.
#![forbid(unsafe_code)]

use super::{BenchArgs, Costs};
use crate::build::Options;
use crate::command::Exit;
use crate::expect::{self, End, Outcome, Script, ScriptError};
use crate::qemu::{Clock, Machine};
use crate::run::{self, Error};
use object::{Object, ObjectSection, SectionFlags, SectionKind, elf};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The VM of the bench.
const VM: &str = "bench";
const MIB: u64 = 1 << 20;
/// The memory of the VM.
const MEMORY_MIB: u64 = 64;
/// How often the VM is reset; the last one counts, on memory that a guest has dirtied.
const RESETS: usize = 3;
/// After how long a boot counts as hung; one takes some seconds.
const LIMIT: Duration = Duration::from_secs(180);

/// What came of measuring.
pub(super) enum Measured {
    /// What operations cost.
    Costs {
        /// With the mitigations off.
        mitigations_off: Costs,
        /// With the mitigations on.
        mitigations_on: Costs,
    },
    /// A boot went wrong.
    Problem(String, Exit),
}

/// What a boot of the guest is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// The costs of exits, without mitigations.
    MitigationsOff,
    /// The costs of exits, with the mitigations that the core needs.
    MitigationsOn,
    /// The cost of a reset.
    Reset,
}

/// Boots the guest for each column and for the reset.
pub(super) fn measure(args: &BenchArgs) -> Result<Measured, Error> {
    let mut columns = [Costs::new(), Costs::new()];
    for boot in [Boot::MitigationsOff, Boot::MitigationsOn, Boot::Reset] {
        let (outcome, elf) = boot.run(args)?;
        if let Some(report) = outcome.report() {
            let verdict = match outcome.problem {
                Some(expect::drive::Problem::Hung { .. }) => Exit::Timeout,
                _ => Exit::Failed,
            };
            return Ok(Measured::Problem(report, verdict));
        }
        let column = usize::from(boot == Boot::MitigationsOn);
        columns[column].extend(costs(&outcome));
        columns[column].insert("image_bytes".into(), image_bytes(&elf)?);
    }
    let [mitigations_off, mitigations_on] = columns;
    Ok(Measured::Costs { mitigations_off, mitigations_on })
}

impl Boot {
    fn run(self, args: &BenchArgs) -> Result<(Outcome, PathBuf), Error> {
        let machine = Machine {
            cpu: Some(args.cpu.clone()),
            smp: Some(2),
            memory_bytes: Some(1 << 30),
            clock: Clock::Instructions,
            ..Machine::default()
        };
        let folder = run::work_folder("bench").join(self.name());
        std::fs::create_dir_all(&folder).map_err(Error::io(folder.display().to_string()))?;
        let path = folder.join("bench.toml");
        let guest = args.guest.clone().unwrap_or_else(|| run::built("guest-bench"));
        std::fs::write(&path, self.manifest(&guest))
            .map_err(Error::io(path.display().to_string()))?;
        let options = Options { out: Some(folder), ..Options::default() };
        let prepared = run::prepare(&path, &machine, options)?;
        let script = self.script().map_err(|source| Error::Script { path, source })?;
        let outcome =
            expect::drive(prepared.command, &script, |_| {}).map_err(Error::io(run::QEMU))?;
        Ok((outcome, prepared.artifacts.elf))
    }

    fn name(self) -> &'static str {
        match self {
            Self::MitigationsOff => "mitigations-off",
            Self::MitigationsOn => "mitigations-on",
            Self::Reset => "reset",
        }
    }

    fn manifest(self, guest: &Path) -> String {
        let mut text = String::from("format = 1\nboard = \"qemu-virt\"\n\n");
        let guest = guest.display().to_string();
        // A string of TOML's basic form is also one of Rust's debug form, for paths of this world.
        let _ = write!(
            text,
            "[vm.{VM}]\ncpus = \"0-1\"\nmemory = \"{MEMORY_MIB}M\"\nkernel = {guest:?}\ncmdline = \"{}\"\n\n\
             [console]\nmode = \"tagged\"\n\n\
             [test]\nmitigations_off = {}\nreport_reset_cost = true\n",
            if self == Self::Reset { "mode=reset" } else { "" },
            self != Self::MitigationsOn,
        );
        text
    }

    fn script(self) -> Result<Script, ScriptError> {
        let mut script = Script::new(End::Off);
        script.limit = LIMIT;
        if self == Self::Reset {
            for _ in 0..RESETS {
                script.expect(VM, "^READY")?.send(VM, "r");
                script.expect_hypervisor(r"reset bench: \d+ ticks")?;
            }
            script.expect(VM, "^READY")?.send(VM, "q");
        } else {
            script.expect(VM, r"^RESULT benched=[1-9]")?.expect_hypervisor(r"ram \d+ bytes")?;
        }
        Ok(script)
    }
}

/// Reads the costs in what a boot said; a later one replaces an earlier one.
fn costs(outcome: &Outcome) -> Costs {
    let mut costs = Costs::new();
    for line in outcome.lines_of(VM) {
        costs.extend(guest_cost(&line));
    }
    for line in outcome.hypervisor_lines() {
        costs.extend(hypervisor_costs(&line));
    }
    costs
}

/// Reads `BENCH hvc_psci_version 114`.
fn guest_cost(line: &str) -> Option<(String, u64)> {
    let mut words = line.strip_prefix("BENCH ")?.split_ascii_whitespace();
    let operation = words.next()?;
    let cost = words.next()?.parse().ok()?;
    words.next().is_none().then(|| (operation.to_owned(), cost))
}

/// Reads `ram 262144 bytes` and `reset bench: 9 ticks, hash 8, copy 7, …, images 6, memory 5`,
/// wherever in a line. What grows with a size is told per MiB of it, and all of it together for the
/// memory that the bench has.
fn hypervisor_costs(line: &str) -> Vec<(String, u64)> {
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    if let Some(bytes) = words.windows(3).find_map(|window| match *window {
        ["ram", bytes, "bytes"] => bytes.parse().ok(),
        _ => None,
    }) {
        return vec![("ram_bytes".to_owned(), bytes)];
    }
    let Some(reset) = words.iter().position(|&word| word == "reset") else { return Vec::new() };
    let words = &words[reset..];
    let ticks = words.windows(2).find_map(|pair| match *pair {
        [ticks, "ticks"] => Some(("reset_to_guest".to_owned(), ticks.parse::<u64>().ok()?)),
        _ => None,
    });
    let value = |name: &str| -> Option<u64> {
        words.windows(2).find(|pair| pair[0] == name).and_then(|pair| pair[1].parse().ok())
    };
    let parts = [("hash", "images"), ("copy", "images"), ("clean", "memory")];
    let parts = parts.into_iter().filter_map(|(part, size)| {
        let per_mib = value(part)?.checked_mul(MIB)?.checked_div(value(size)?)?;
        Some((format!("reset_{part}_per_mib"), per_mib))
    });
    let all = || {
        let parts = ["hash", "copy", "clean"].map(value).into_iter().sum::<Option<u64>>()?;
        let total = ticks.as_ref()?.1.checked_add(parts)?;
        (value("memory")? == MEMORY_MIB * MIB).then(|| (format!("restart_{MEMORY_MIB}_mib"), total))
    };
    let all = all();
    ticks.into_iter().chain(parts).chain(all).collect()
}

/// Returns the bytes of code and initialised data in an ELF file: what a board has to load.
fn image_bytes(path: &PathBuf) -> Result<u64, Error> {
    let error = |text: String| Error::Io {
        what: path.display().to_string(),
        source: std::io::Error::other(text),
    };
    let file = std::fs::read(path).map_err(Error::io(path.display().to_string()))?;
    let elf = object::File::parse(&*file).map_err(|source| error(source.to_string()))?;
    // Loaded is what has SHF_ALLOC and bytes in the file; the image's text is at address 0.
    let is_loaded = |section: &object::Section<'_, '_>| {
        let is_allocated = matches!(section.flags(), SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_ALLOC) != 0);
        is_allocated && section.kind() != SectionKind::UninitializedData
    };
    let loaded = elf.sections().filter(is_loaded);
    Ok(loaded.map(|section| section.size()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_line_is_an_operation_and_a_number() {
        assert_eq!(guest_cost("BENCH cpu_on 900"), Some(("cpu_on".into(), 900)));
        assert_eq!(guest_cost("BENCH END"), None);
        assert_eq!(guest_cost("BENCH cpu_on many"), None);
        assert_eq!(guest_cost("BENCH cpu_on 9 of 10"), None);
        assert_eq!(guest_cost("A BENCH cpu_on 9"), None);
    }

    #[test]
    fn hypervisor_lines_tell_memory_and_reset() {
        let cost = |name: &str, value| (name.to_owned(), value);
        assert_eq!(hypervisor_costs("[07] ram 262144 bytes"), [cost("ram_bytes", 262_144)]);
        let line = "[vm] reset bench: 900 ticks, hash 30, copy 20, clean 640, scrub 0, \
                    images 524288, memory 67108864";
        assert_eq!(
            hypervisor_costs(line),
            [
                cost("reset_to_guest", 900),
                cost("reset_hash_per_mib", 60),
                cost("reset_copy_per_mib", 40),
                cost("reset_clean_per_mib", 10),
                cost("restart_64_mib", 1590)
            ]
        );
        let empty = "reset bench: 900 ticks, hash 30, images 0";
        assert_eq!(hypervisor_costs(empty), [cost("reset_to_guest", 900)]);
        assert_eq!(hypervisor_costs("start bench: 900 ticks, hash 30, images 1"), []);
        assert_eq!(hypervisor_costs("[08] app 2 cpus 1G"), []);
    }

    #[test]
    fn the_columns_differ_in_the_mitigations_alone() {
        let guest = Path::new("/a b/bench");
        let off = Boot::MitigationsOff.manifest(guest);
        let on = Boot::MitigationsOn.manifest(guest);
        assert!(off.contains("kernel = \"/a b/bench\""));
        assert_eq!(off.replace("mitigations_off = true", "mitigations_off = false"), on);
    }
}
