// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer doctor`: says what the last stage line of a serial log means and what to do next.
#![forbid(unsafe_code)]

use crate::command::Exit;
use crate::run::Error;
use regex::Regex;
use std::path::PathBuf;

/// Says what the last stage line of a serial log means
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// What came over the serial line
    #[arg(long, value_name = "FILE")]
    pub serial: PathBuf,
}

/// One stage of the boot.
struct Stage {
    number: u8,
    /// What has been reached when its line is there.
    reached: &'static str,
    /// What comes next, so what hangs or fails when nothing follows.
    next: &'static str,
    /// What to look at when the line is a refusal (`[nn!]`).
    refused: &'static str,
}

/// The stages in the order of the boot.
const STAGES: &[Stage] = &[
    Stage {
        number: 1,
        reached: "Cofferdam runs at EL2, has found the device tree and the UART in it",
        next: "the machine in the tree (stage 02) and the bundle (stage 03)",
        refused: "the image was entered at the wrong exception level or without a device tree: it \
                  needs EL2, the MMU off and the tree's address in x0 (on a Raspberry Pi: no \
                  armstub= that leaves EL2; elsewhere: a BL31 that enters at EL2)",
    },
    Stage {
        number: 2,
        reached: "the tree describes a machine that Cofferdam knows",
        next: "the bundle (stage 03)",
        refused: "the tree lacks something or contradicts itself: look at the node that the line \
                  names, and at who has edited the tree (overlays, the firmware)",
    },
    Stage {
        number: 3,
        reached: "the bundle was found where the tree says (/chosen, linux,initrd-start) and is whole",
        next: "the comparison of the plan with this machine (stage 04), the cores (stage 05)",
        refused: "the bundle is missing, cut short or altered: check that the ramdisk's address \
                  does not overlap the image, that all of the file was loaded, and build it again",
    },
    Stage {
        number: 4,
        reached: "the plan fits this machine",
        next: "the interrupt controller and the cores (stage 05)",
        refused: "the plan was made for another machine: the line names both sides; plan again \
                  with this machine's own tree (coffer plan --dtb)",
    },
    Stage {
        number: 5,
        reached: "the interrupt controller is set up and the cores have answered",
        next: "the guests' memory (stage 06)",
        refused: "a core did not start or the interrupt controller is not what the tree says: \
                  compare the tree with the firmware (PSCI, spin table)",
    },
    Stage {
        number: 6,
        reached: "every guest has its memory",
        next: "what the hypervisor keeps for itself (stage 07)",
        refused: "a guest's memory does not fit beside what the line names; the other guests go on",
    },
    Stage {
        number: 7,
        reached: "the memory is handed out",
        next: "copying the images and the first entry to a guest (stage 08)",
        refused: "the hypervisor has no memory left for itself: give the guests less",
    },
    Stage {
        number: 8,
        reached: "a guest is being entered",
        next: "the guest's own output: try console=ttyAMA0 earlycon in its cmdline",
        refused: "this guest could not be entered; the other guests go on",
    },
    Stage {
        number: 9,
        reached: "the hypervisor is up; what follows comes from the guests",
        next: "the guests: their own last lines tell",
        refused: "no guest is left to run",
    },
];

/// Carries out `coffer doctor`.
///
/// # Errors
/// Says that the log does not read.
pub fn doctor(args: &DoctorArgs) -> Result<Exit, Error> {
    let path = &args.serial;
    let log = std::fs::read(path).map_err(Error::io(path.display().to_string()))?;
    println!("{}", diagnose(&String::from_utf8_lossy(&log)));
    Ok(Exit::Done)
}

/// Says what the last stage line of `log` means.
#[must_use]
pub fn diagnose(log: &str) -> String {
    let Ok(pattern) = Regex::new(r"(?m)^\x1e?(\[(\d\d)(!?)\] .*?)\r?$") else {
        return String::new();
    };
    let lines: Vec<_> = pattern.captures_iter(log).collect();
    let refusal = lines.iter().rfind(|line| !line[3].is_empty());
    let Some(last) = lines.last() else {
        return nothing(log);
    };
    let mut text = format!("last stage: {}\n", &last[1]);
    let Some(stage) = stage(&last[2]) else {
        text.push_str("this coffer knows no such stage: the image is of another version");
        return text;
    };
    if let Some(refusal) = refusal {
        text = format!("refused:    {}\n", &refusal[1]);
        let refused = self::stage(&refusal[2]).unwrap_or(stage);
        text.push_str(&format!("meaning:    {}", refused.refused));
    } else if log.contains("hypervisor fault") {
        text.push_str("meaning:    the hypervisor itself failed: run coffer symbolize on this log");
    } else {
        text.push_str(&format!("reached:    {}\nnext:       {}", stage.reached, stage.next));
    }
    text
}

fn stage(number: &str) -> Option<&'static Stage> {
    let number: u8 = number.parse().ok()?;
    STAGES.iter().find(|stage| stage.number == number)
}

fn nothing(log: &str) -> String {
    let what = if log.trim().is_empty() {
        "the log is empty: the image was not started, or the UART is not where the tree says \
         (/chosen stdout-path), or the speed of the terminal is wrong"
    } else {
        "there is no stage line: the image was not started; the last lines of the log are the boot \
         loader's"
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_numbered_without_a_gap() {
        let numbers: Vec<u8> = STAGES.iter().map(|stage| stage.number).collect();
        assert_eq!(numbers, (1..=9).collect::<Vec<u8>>());
    }

    #[test]
    fn a_hang_is_placed_between_two_stages() {
        let said = diagnose("U-Boot\r\n\x1e[01] cofferdam 0.1.0 at EL2\r\n\x1e[03] bundle 61M\r\n");
        assert!(said.starts_with("last stage: [03] bundle 61M\n"), "{said}");
        assert!(said.contains("next:       the comparison of the plan"), "{said}");
    }

    #[test]
    fn a_refusal_counts_more_than_what_follows_it() {
        let said = diagnose("[01] x\n[06!] plan expects 4G, tree has 2G\n[09] up in 3 ms\n");
        assert!(said.starts_with("refused:    [06!] plan expects 4G, tree has 2G\n"), "{said}");
        assert!(said.contains("the other guests go on"), "{said}");
    }

    #[test]
    fn silence_and_foreign_output_differ() {
        assert!(diagnose(" \n").starts_with("the log is empty"));
        assert!(diagnose("U-Boot 2025.01\n").starts_with("there is no stage line"));
        assert!(diagnose("app| [01] not a stage\n").starts_with("there is no stage line"));
        assert!(diagnose("[77] x\n").contains("another version"));
    }
}
