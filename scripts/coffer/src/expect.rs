// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Expectations: what each console of a machine has to say, what is typed meanwhile, how it ends.
//!
//! [`Script`] is what a person writes, [`wire`] takes the tagged serial line apart, [`engine`]
//! compares the two without any input or output of its own, [`drive()`] runs it with a child. A time
//! limit is a hang detector, never an expectation.
#![forbid(unsafe_code)]

pub mod drive;
pub mod engine;
pub mod junit;
pub mod wire;

pub use drive::{Outcome, drive};

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The version of the file's schema.
const FORMAT: u32 = 1;
/// How long a machine may take altogether where the file does not say.
const LIMIT_DEFAULT: Duration = Duration::from_secs(300);

/// What has to happen.
#[derive(Clone, Debug)]
pub struct Script {
    /// After how long the machine counts as hung.
    pub limit: Duration,
    /// What ends the run.
    pub end: End,
    /// The status with which QEMU has to end, where [`End::Off`] ends the run.
    pub status: i32,
    /// What no line of anyone may match.
    pub never: Vec<Regex>,
    /// What the hypervisor's own lines have to say.
    pub hypervisor: Vec<Step>,
    /// What happens on the console of each VM, by its name.
    pub vms: BTreeMap<String, Vec<Step>>,
    /// Who has the line for itself, where no hypervisor tags and shares it.
    pub bare: Option<String>,
}

/// What ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The machine goes off by itself, as it does when its last VM has.
    #[default]
    Off,
    /// The last step has been done; the machine is then killed.
    Done,
}

/// One step on one console.
#[derive(Clone, Debug)]
pub enum Step {
    /// Something further down matches; `^` and `$` stand for the ends of a line.
    Expect(Regex),
    /// This is typed.
    Send(String),
    /// The VM of this name has done all its steps; what was said before is passed over.
    After(String),
}

/// Why a file is not a script.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It is not TOML, or has the wrong keys; the text shows the place.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// It is of another version.
    #[error("format = {0}: this coffer reads format = {FORMAT}")]
    Format(u32),
    /// A pattern is not a regular expression.
    #[error("{place}: {source}")]
    Pattern {
        /// The table it stands in.
        place: String,
        /// What is wrong with it.
        source: regex::Error,
    },
    /// A duration does not read.
    #[error("limit = \"{0}\": write for example \"90s\" or \"5min\"")]
    Limit(String),
    /// The hypervisor is sent something.
    #[error("hypervisor: it reads no input; write the step under a VM")]
    SendToHypervisor,
    /// A step waits for a VM that has no steps.
    #[error("after = \"{0}\": there is no [vm.{0}] here")]
    UnknownVm(String),
    /// Nothing is expected of anyone.
    #[error("nothing is expected: write a step under [vm.NAME] or [hypervisor]")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    limit: Option<String>,
    #[serde(default)]
    end: End,
    #[serde(default)]
    status: i32,
    #[serde(default)]
    never: Vec<String>,
    #[serde(default)]
    hypervisor: TrackText,
    #[serde(default)]
    vm: BTreeMap<String, TrackText>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrackText {
    steps: Vec<StepText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StepText {
    Expect(String),
    Send(String),
    After(String),
}

impl Script {
    /// Makes a script that expects nothing yet, to be filled by code.
    #[must_use]
    pub fn new(end: End) -> Self {
        Self {
            limit: LIMIT_DEFAULT,
            end,
            status: 0,
            never: Vec::new(),
            hypervisor: Vec::new(),
            vms: BTreeMap::new(),
            bare: None,
        }
    }

    /// Reads a script from TOML.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let file: File = toml::from_str(text)?;
        if file.format != FORMAT {
            return Err(ScriptError::Format(file.format));
        }
        let mut script = Self::new(file.end);
        script.status = file.status;
        if let Some(limit) = file.limit {
            script.limit = duration(&limit).ok_or(ScriptError::Limit(limit))?;
        }
        script.never = file.never.iter().map(|p| pattern("never", p)).collect::<Result<_, _>>()?;
        script.hypervisor = steps("hypervisor", file.hypervisor)?;
        if script.hypervisor.iter().any(|step| matches!(step, Step::Send(_))) {
            return Err(ScriptError::SendToHypervisor);
        }
        for (name, track) in file.vm {
            let steps = steps(&format!("vm.{name}"), track)?;
            script.vms.insert(name, steps);
        }
        let unknown =
            |step: &&Step| matches!(step, Step::After(vm) if !script.vms.contains_key(vm));
        let mut steps = script.hypervisor.iter().chain(script.vms.values().flatten());
        if let Some(Step::After(vm)) = steps.find(unknown) {
            return Err(ScriptError::UnknownVm(vm.clone()));
        }
        if script.hypervisor.is_empty() && script.vms.values().all(Vec::is_empty) {
            return Err(ScriptError::Empty);
        }
        Ok(script)
    }

    /// Adds a step to the hypervisor's lines: `expression` has to match.
    ///
    /// # Errors
    /// `expression` is not a regular expression.
    pub fn expect_hypervisor(&mut self, expression: &str) -> Result<&mut Self, ScriptError> {
        self.hypervisor.push(Step::Expect(pattern("hypervisor", expression)?));
        Ok(self)
    }

    /// Adds a step to the console of `vm`: `expression` has to match.
    ///
    /// # Errors
    /// `expression` is not a regular expression.
    pub fn expect(&mut self, vm: &str, expression: &str) -> Result<&mut Self, ScriptError> {
        let step = Step::Expect(pattern(vm, expression)?);
        self.vms.entry(vm.to_owned()).or_default().push(step);
        Ok(self)
    }

    /// Adds a step to the console of `vm`: `text` is typed.
    pub fn send(&mut self, vm: &str, text: &str) -> &mut Self {
        self.vms.entry(vm.to_owned()).or_default().push(Step::Send(text.to_owned()));
        self
    }

    /// Adds a step to the console of `vm`: all steps of `other` have been done.
    pub fn after(&mut self, vm: &str, other: &str) -> &mut Self {
        self.vms.entry(vm.to_owned()).or_default().push(Step::After(other.to_owned()));
        self
    }

    /// Adds what no line of anyone may match.
    ///
    /// # Errors
    /// `expression` is not a regular expression.
    pub fn never(&mut self, expression: &str) -> Result<&mut Self, ScriptError> {
        self.never.push(pattern("never", expression)?);
        Ok(self)
    }
}

fn steps(place: &str, track: TrackText) -> Result<Vec<Step>, ScriptError> {
    let step = |text| match text {
        StepText::Expect(expression) => Ok(Step::Expect(pattern(place, &expression)?)),
        StepText::Send(text) => Ok(Step::Send(text)),
        StepText::After(vm) => Ok(Step::After(vm)),
    };
    track.steps.into_iter().map(step).collect()
}

fn pattern(place: &str, expression: &str) -> Result<Regex, ScriptError> {
    RegexBuilder::new(expression)
        .multi_line(true)
        .build()
        .map_err(|source| ScriptError::Pattern { place: place.to_owned(), source })
}

/// Reads `90s` or `5min`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "s" => Some(Duration::from_secs(count)),
        "min" => Some(Duration::from_secs(count.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Script::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_script_reads() {
        let script = Script::parse(
            r#"
            format = 1
            limit = "2min"
            end = "done"
            never = ['panic']
            hypervisor.steps = [{ expect = 'up in \d+ ms' }]
            [vm.linux-a]
            steps = [{ expect = '# $' }, { send = "nproc\n" }, { expect = '^2$' }]
            "#,
        )
        .unwrap();
        assert_eq!(script.limit, Duration::from_secs(120));
        assert_eq!((script.end, script.status), (End::Done, 0));
        assert_eq!((script.never.len(), script.hypervisor.len()), (1, 1));
        assert!(matches!(&script.vms["linux-a"][1], Step::Send(text) if text == "nproc\n"));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("format = 2\n").contains("this coffer reads format = 1"));
        assert!(error("format = 1\n").contains("nothing is expected"));
        assert!(error("format = 1\nexpects = 2\n").contains("unknown field `expects`"));
        let bad = "format = 1\n[vm.a]\nsteps = [{ expect = '(' }]\n";
        assert!(error(bad).starts_with("vm.a: regex parse error"));
        let bad = "format = 1\nlimit = \"5 parsecs\"\n[vm.a]\nsteps = [{ expect = 'x' }]\n";
        assert!(error(bad).contains("write for example \"90s\""));
        let bad = "format = 1\n[hypervisor]\nsteps = [{ send = 'x' }]\n";
        assert!(error(bad).contains("it reads no input"));
        let bad = "format = 1\n[vm.a]\nsteps = [{ after = 'b' }]\n";
        assert!(error(bad).contains("there is no [vm.b] here"));
    }
}
