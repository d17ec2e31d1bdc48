// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The baseline: what operations cost when somebody last said that this is how it shall be.
//!
//! It is `guests/bench/baseline.toml`, a table for each core and for mitigations off and on. A cost
//! may grow by 3 % or 8 instructions, whichever is more: that is what other code moving about does.
#![forbid(unsafe_code)]

use super::Costs;
use crate::board::project_root;
use crate::run::Error;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// The tables of one core.
const COLUMNS: [&str; 2] = ["mitigations-off", "mitigations-on"];
const HEAD: &str = "# SPDX-License-Identifier: Apache-2.0 OR MIT
# What operations cost, in instructions under icount, and bytes of image and memory.
# `cargo coffer bench --check` fails where one grows by more than 3 % or 8, whichever is more;
# `cargo coffer bench --cpu CORE --renew` writes what it measures here. Say why in the commit.
";

/// What operations cost, by core and mitigations.
#[derive(Debug, Default)]
pub struct Baseline(BTreeMap<String, BTreeMap<String, Costs>>);

impl Baseline {
    /// Reads the baseline of this project.
    ///
    /// # Errors
    /// Says what does not read.
    pub fn load() -> Result<Self, Error> {
        let path = path();
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(Error::io(name.clone()))?;
        Self::parse(&text).map_err(|why| Error::Tool(format!("{name}: {why}")))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text).map(Self)
    }

    /// Takes what `cpu` costs now as its baseline, and writes that down.
    ///
    /// # Errors
    /// Says what cannot be written.
    pub fn renew(mut self, cpu: &str, now: [&Costs; 2]) -> Result<(), Error> {
        let columns = COLUMNS.iter().zip(now);
        let columns = columns.map(|(&column, costs)| (column.to_owned(), costs.clone())).collect();
        self.0.insert(cpu.to_owned(), columns);
        let path = path();
        std::fs::write(&path, self.to_text()).map_err(Error::io(path.display().to_string()))
    }

    fn to_text(&self) -> String {
        let mut text = String::from(HEAD);
        for (cpu, columns) in &self.0 {
            for (column, costs) in columns {
                // Writing to a string does not fail.
                let _ = write!(text, "\n[{cpu}.{column}]\n");
                for (operation, cost) in costs {
                    let _ = writeln!(text, "{operation} = {cost}");
                }
            }
        }
        text
    }

    /// Returns what costs more now than `cpu`'s baseline allows: which operation, by how much, and
    /// what to do. A core without a baseline is a complaint, an operation without one is none.
    #[must_use]
    pub fn complaints(&self, cpu: &str, now: [&Costs; 2]) -> Vec<String> {
        let renew = format!("cargo coffer bench --cpu {cpu} --renew");
        let Some(columns) = self.0.get(cpu) else {
            return vec![format!("there is no baseline for {cpu}: {renew}")];
        };
        let mut complaints = Vec::new();
        for (&column, costs) in COLUMNS.iter().zip(now) {
            for (operation, &before) in columns.get(column).into_iter().flatten() {
                let Some(&cost) = costs.get(operation) else { continue };
                let (more, allowed) = (cost.saturating_sub(before), allowed(before));
                if more > allowed {
                    complaints.push(format!(
                        "{operation}, {column}: {cost}, {more} more than {before}, {allowed} \
                         allowed; if that is meant, {renew}"
                    ));
                }
            }
        }
        complaints
    }
}

/// Returns by how much a cost may grow.
fn allowed(before: u64) -> u64 {
    (before.saturating_mul(3) / 100).max(8)
}

fn path() -> PathBuf {
    project_root().join("guests/bench/baseline.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(hvc: u64, image: u64) -> Costs {
        Costs::from([("hvc".into(), hvc), ("image".into(), image)])
    }

    fn baseline() -> Baseline {
        let text = "[a72.mitigations-off]\nhvc = 100\nimage = 1000\n\
                    [a72.mitigations-on]\nhvc = 130\nimage = 1000\n";
        Baseline::parse(text).unwrap()
    }

    #[test]
    fn a_cost_may_grow_by_8_or_by_3_percent() {
        let complaints = |off, on| baseline().complaints("a72", [&off, &on]);
        assert_eq!(complaints(costs(108, 1030), costs(138, 1030)), [""; 0]);
        assert_eq!(complaints(costs(1, 1), costs(1, 1)), [""; 0]);
        assert_eq!(
            complaints(costs(109, 1000), costs(130, 1031)),
            [
                "hvc, mitigations-off: 109, 9 more than 100, 8 allowed; if that is meant, \
                 cargo coffer bench --cpu a72 --renew",
                "image, mitigations-on: 1031, 31 more than 1000, 30 allowed; if that is meant, \
                 cargo coffer bench --cpu a72 --renew",
            ]
        );
    }

    #[test]
    fn a_core_without_a_baseline_is_a_complaint() {
        let now = costs(1, 1);
        assert_eq!(baseline().complaints("max", [&now, &now]).len(), 1);
    }

    #[test]
    fn what_is_written_reads_as_it_was() {
        let (text, again) = (baseline().to_text(), Baseline::parse(&baseline().to_text()).unwrap());
        assert_eq!(again.0, baseline().0);
        assert!(text.starts_with("# SPDX"));
    }
}
