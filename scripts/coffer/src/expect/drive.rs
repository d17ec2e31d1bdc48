// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs a script with a child: its output to the engine, the engine's input to the child.
#![forbid(unsafe_code)]

use super::engine::{Case, Engine, Failure};
use super::{End, Script};
use crate::qemu::{Heard, Running};
use std::io::{self, Write};
use std::process::{Command, ExitStatus};
use std::time::Instant;

/// How many bytes of the log are shown where a run failed.
const TAIL_BYTES: usize = 6000;

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every expectation and what met it.
    pub cases: Vec<Case>,
    /// Why the run failed, or `None` where it passed.
    pub problem: Option<Problem>,
    /// Everything that the machine said, as it came.
    pub log: Vec<u8>,
}

/// Why a run failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// The machine said something wrong.
    #[error("{0}")]
    Failure(#[from] Failure),
    /// The machine neither ended nor said what it should.
    #[error("hung: not over after {seconds} s{waiting}")]
    Hung {
        /// The hang limit.
        seconds: u64,
        /// Who waits for what.
        waiting: String,
    },
    /// The machine ended before everything was said.
    #[error("ended early{status}{waiting}{errors}")]
    Early {
        /// How it ended, where that is wrong too.
        status: String,
        /// Who waits for what.
        waiting: String,
        /// What QEMU wrote to its standard error.
        errors: String,
    },
    /// The machine ended with another status.
    #[error("everything was said, but the machine ended{status}{errors}")]
    Status {
        /// How it ended.
        status: String,
        /// What QEMU wrote to its standard error.
        errors: String,
    },
}

impl Outcome {
    /// Returns the log as text, without the marks of hypervisor lines.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).replace(['\x1e', '\r'], "")
    }

    /// Returns the lines that `vm` said, whole ones only.
    #[must_use]
    pub fn lines_of(&self, vm: &str) -> Vec<String> {
        let tag = format!("{vm}| ");
        self.text().lines().filter_map(|line| line.strip_prefix(&tag)).map(str::to_owned).collect()
    }

    /// Returns the hypervisor's own lines, without their marks.
    #[must_use]
    pub fn hypervisor_lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.log).replace('\r', "");
        text.lines().filter_map(|line| line.strip_prefix('\x1e')).map(str::to_owned).collect()
    }

    /// Returns what went wrong with the end of the log, or `None` where the run passed.
    #[must_use]
    pub fn report(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        let text = self.text();
        let mut start = text.len().saturating_sub(TAIL_BYTES);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        Some(format!("{problem}\n--- end of the log ---\n{}", &text[start..]))
    }
}

/// Starts `command` and holds it to `script`. `echo` sees what the child says, as it comes.
///
/// # Errors
/// What starting the child or talking to it failed with; a machine that misbehaves is no error but a
/// [`Problem`].
pub fn drive(
    command: Command,
    script: &Script,
    mut echo: impl FnMut(&[u8]),
) -> io::Result<Outcome> {
    let mut running = Running::start(command)?;
    let mut input = running.take_input();
    let mut engine = Engine::new(script);
    let mut log = Vec::new();
    let deadline = Instant::now() + script.limit;
    let problem = loop {
        match running.hear(deadline.saturating_duration_since(Instant::now()))? {
            Heard::Output(bytes) => {
                echo(&bytes);
                log.extend(&bytes);
                engine.feed(&bytes);
            }
            Heard::Ended(status, errors) => break judge_end(&engine, script, status, &errors),
            Heard::Silence => break Some(hung(&engine, script)),
        }
        if let Some(failure) = engine.failure() {
            break Some(failure.clone().into());
        }
        if engine.is_done() && script.end == End::Done {
            break None;
        }
        if Instant::now() >= deadline {
            break Some(hung(&engine, script));
        }
        type_in(input.as_mut(), &engine.take_input())?;
    };
    running.kill();
    Ok(Outcome { cases: engine.cases(), problem, log })
}

/// Types `bytes`. A child that has just ended no longer reads, which its end will tell.
fn type_in(input: Option<&mut impl Write>, bytes: &[u8]) -> io::Result<()> {
    let Some(input) = input.filter(|_| !bytes.is_empty()) else { return Ok(()) };
    match input.write_all(bytes).and_then(|()| input.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn hung(engine: &Engine<'_>, script: &Script) -> Problem {
    Problem::Hung { seconds: script.limit.as_secs(), waiting: waiting(engine) }
}

fn judge_end(
    engine: &Engine<'_>,
    script: &Script,
    status: ExitStatus,
    errors: &str,
) -> Option<Problem> {
    if let Some(failure) = engine.failure() {
        return Some(failure.clone().into());
    }
    // Who wants the machine killed in the end does not care how it ends.
    let is_expected = script.end == End::Done || status.code() == Some(script.status);
    if engine.is_done() && is_expected {
        return None;
    }
    let errors = if errors.is_empty() { String::new() } else { format!("\n{}", errors.trim_end()) };
    let said = format!(" with {status}, not {}", script.status);
    if engine.is_done() {
        return Some(Problem::Status { status: said, errors });
    }
    let status = if is_expected { String::new() } else { said };
    Some(Problem::Early { status, waiting: waiting(engine), errors })
}

fn waiting(engine: &Engine<'_>) -> String {
    let lines = engine.waiting().into_iter().map(|(who, wish, tail)| {
        let last = tail.lines().last().unwrap_or_default().to_owned();
        format!("\n  {who} waits for {wish}; last line: {last:?}")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A machine of two VMs, `a` and `b`, each with a shell that knows `name` and `off`.
    const FAKE: &str = r#"
        say() { printf '\036%s\r\n' "$1"; }
        say '[01] fake at EL2'
        say 'console: a'
        printf 'a| / # \n'
        printf 'b| / # '
        focus=a; on=2; line=
        while [ $on -gt 0 ]; do
            byte=$(dd bs=1 count=1 2>/dev/null | od -An -tu1)
            case $byte in
            *' 29') printf '\n'
                    if [ $focus = a ]; then focus=b; else focus=a; fi; say "console: $focus";;
            *' 10') printf '\n'
                    case $line in
                    name) printf '%s| I am %s\r\n%s| / # ' $focus $focus $focus;;
                    off) on=$((on - 1)); say "$focus off";;
                    hang) sleep 1000;;
                    esac
                    line=;;
            '') exit 9;;
            *) line=$line$(printf "\\$(printf %03o $byte)");;
            esac
        done
        say 'machine off'
    "#;

    fn fake() -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", FAKE]);
        command
    }

    fn run(script: &Script) -> Outcome {
        drive(fake(), script, |_| {}).unwrap()
    }

    fn two_shells() -> Script {
        let mut script = Script::new(End::Off);
        script.limit = Duration::from_secs(60);
        script.expect_hypervisor("machine off").unwrap();
        for vm in ["a", "b"] {
            script.expect(vm, "/ # $").unwrap().send(vm, "name\n");
            script.expect(vm, &format!("^I am {vm}$")).unwrap();
            script.expect(vm, "/ # $").unwrap().send(vm, "off\n");
        }
        script
    }

    #[test]
    fn two_shells_are_talked_to_and_go_off() {
        let outcome = run(&two_shells());
        assert!(outcome.problem.is_none(), "{}", outcome.report().unwrap());
        assert!(outcome.cases.iter().all(|case| case.matched.is_some()));
        assert!(outcome.lines_of("b").contains(&"I am b".to_owned()));
    }

    #[test]
    fn a_missing_answer_is_reported_with_the_log() {
        let mut script = two_shells();
        script.expect("b", "never said").unwrap();
        let report = run(&script).report().unwrap();
        assert!(report.starts_with("ended early\n  b waits for /never said/"), "{report}");
        assert!(report.contains("machine off"), "{report}");
    }

    #[test]
    fn a_hang_is_found_and_the_child_is_killed() {
        let mut script = Script::new(End::Off);
        script.limit = Duration::from_secs(1);
        script.expect("a", "/ # $").unwrap().send("a", "hang\n").expect("a", "x").unwrap();
        let outcome = run(&script);
        assert!(matches!(outcome.problem, Some(Problem::Hung { seconds: 1, .. })));
    }

    #[test]
    fn the_status_counts() {
        let mut script = two_shells();
        script.status = 1;
        let report = run(&script).report().unwrap();
        assert!(report.contains("ended with exit status: 0, not 1"), "{report}");
    }

    #[test]
    fn a_run_that_ends_when_done_does_not_wait_for_the_machine() {
        let mut script = Script::new(End::Done);
        script.limit = Duration::from_secs(60);
        script.expect("b", "/ # $").unwrap();
        let outcome = run(&script);
        assert!(outcome.problem.is_none());
    }

    #[test]
    fn a_forbidden_line_ends_the_run() {
        let mut script = two_shells();
        script.never("I am b").unwrap();
        let outcome = run(&script);
        assert!(matches!(outcome.problem, Some(Problem::Failure(Failure::Forbidden { .. }))));
    }
}
