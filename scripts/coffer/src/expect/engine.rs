// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Compares what a machine says with a script: bytes in, bytes to type out.
//!
//! A state machine without input, output or clock. Each console has a track of its own; what is typed
//! goes to the VM that has the focus, so the engine presses the focus key until the hypervisor
//! announces the VM it wants (`console: NAME`). Each press has one such answer; a focus that moves
//! because a VM went off says so (`console: NAME (OTHER is off)`) and answers nothing.
#![forbid(unsafe_code)]

use super::wire::{FOCUS_NEXT, LineEnd, Source, Wire};
use super::{Script, Step};
use regex::bytes::Regex;
use std::collections::BTreeMap;

/// How often the focus key is pressed for one VM before it counts as not there: more often than
/// there are VMs.
const PRESSES_MAX: usize = 2 * cofferdam::plan::VMS_MAX;
/// How many bytes of a console are shown where it failed.
const TAIL_BYTES: usize = 2000;
/// What the hypervisor says when the focus has moved.
const FOCUS_LINE: &str = "console: ";

/// Why a run cannot pass any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// A line that nobody may say.
    #[error("{who} said what must not be said (/{pattern}/): {line}")]
    Forbidden {
        /// Who said it.
        who: String,
        /// The pattern it matches.
        pattern: String,
        /// The line.
        line: String,
    },
    /// The focus key does not lead to a VM.
    #[error("{0} was never announced by the focus key, after {PRESSES_MAX} presses")]
    NoFocus(String),
}

/// One expectation and how it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// Whose console.
    pub track: String,
    /// The pattern.
    pub pattern: String,
    /// The text that matched, or `None` where nothing has.
    pub matched: Option<String>,
}

/// The state of a run.
#[derive(Debug)]
pub struct Engine<'s> {
    wire: Wire,
    tracks: Vec<Track<'s>>,
    never: &'s [Regex],
    /// The line that each source has begun.
    begun: BTreeMap<Source, Vec<u8>>,
    focus: Focus,
    input: Vec<u8>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Track<'s> {
    source: Source,
    steps: &'s [Step],
    next: usize,
    text: Vec<u8>,
    /// Where in `text` the next expectation starts to look.
    cursor: usize,
    cases: Vec<Case>,
}

#[derive(Debug, Default)]
struct Focus {
    /// The VM that was announced last.
    now: Option<String>,
    /// How often the key was pressed without reaching a VM that is wanted.
    presses: usize,
    /// Whether an announcement is due.
    is_moving: bool,
}

impl<'s> Engine<'s> {
    /// Starts at the first step of everyone.
    #[must_use]
    pub fn new(script: &'s Script) -> Self {
        let hypervisor = Track::new(Source::Hypervisor, &script.hypervisor);
        let vms =
            script.vms.iter().map(|(name, steps)| Track::new(Source::Vm(name.clone()), steps));
        let wire = script.bare.as_deref().map_or_else(Wire::default, Wire::untagged);
        Self {
            wire,
            tracks: std::iter::once(hypervisor).chain(vms).collect(),
            never: &script.never,
            begun: BTreeMap::new(),
            focus: Focus { now: script.bare.clone(), ..Focus::default() },
            input: Vec::new(),
            failure: None,
        }
    }

    /// Takes what the machine has said.
    pub fn feed(&mut self, bytes: &[u8]) {
        for fragment in self.wire.feed(bytes) {
            let line = self.begun.entry(fragment.source.clone()).or_default();
            line.extend(&fragment.text);
            let whole = (fragment.line == LineEnd::Ended).then(|| std::mem::take(line));
            if let Some(track) = self.tracks.iter_mut().find(|t| t.source == fragment.source) {
                track.text.extend(&fragment.text);
                if whole.is_some() {
                    track.text.push(b'\n');
                }
            }
            if let Some(line) = whole {
                self.hear_line(&fragment.source, &line);
            }
        }
        self.advance();
    }

    /// Returns what is to be typed now, and forgets it.
    pub fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Returns whether every step has been done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.tracks.iter().all(Track::is_done)
    }

    /// Returns why the run cannot pass any more.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Returns every expectation, the ones that were not reached included.
    #[must_use]
    pub fn cases(&self) -> Vec<Case> {
        self.tracks.iter().flat_map(Track::all_cases).collect()
    }

    /// Returns the tracks that wait for something: who, what for, and what was said last.
    #[must_use]
    pub fn waiting(&self) -> Vec<(String, String, String)> {
        let unfinished = self.tracks.iter().filter(|track| !track.is_done());
        unfinished.map(|track| (track.who(), track.wish(), track.tail())).collect()
    }

    fn hear_line(&mut self, source: &Source, line: &[u8]) {
        if let Some(pattern) = self.never.iter().find(|pattern| pattern.is_match(line)) {
            self.failure.get_or_insert(Failure::Forbidden {
                who: who(source),
                pattern: pattern.to_string(),
                line: String::from_utf8_lossy(line).into_owned(),
            });
        }
        if *source == Source::Hypervisor
            && let Some(name) = String::from_utf8_lossy(line).strip_prefix(FOCUS_LINE)
        {
            let (name, is_answer) = match name.trim().split_once(" (") {
                None => (name.trim(), true),
                Some((name, _)) => (name, false),
            };
            self.focus.now = Some(name.to_owned());
            self.focus.is_moving &= !is_answer;
        }
    }

    fn advance(&mut self) {
        loop {
            let finished: Vec<String> =
                self.tracks.iter().filter(|track| track.is_done()).map(Track::who).collect();
            for track in &mut self.tracks {
                track.advance(&mut self.focus, &mut self.input, &finished);
            }
            // A track that has just finished can be what another one waits for.
            if self.tracks.iter().filter(|track| track.is_done()).count() == finished.len() {
                break;
            }
        }
        self.move_focus();
    }

    /// Presses the focus key where a track waits for the focus and none of them has it.
    fn move_focus(&mut self) {
        let wants = self.tracks.iter().find(|track| matches!(track.step(), Some(Step::Send(_))));
        let Some(Source::Vm(name)) = wants.map(|track| &track.source) else { return };
        if self.focus.is_moving {
            return;
        }
        if self.focus.presses == PRESSES_MAX {
            self.failure.get_or_insert(Failure::NoFocus(name.clone()));
            return;
        }
        self.input.push(FOCUS_NEXT);
        self.focus.is_moving = true;
        self.focus.presses += 1;
    }
}

impl<'s> Track<'s> {
    fn new(source: Source, steps: &'s [Step]) -> Self {
        Self { source, steps, next: 0, text: Vec::new(), cursor: 0, cases: Vec::new() }
    }

    fn step(&self) -> Option<&'s Step> {
        self.steps.get(self.next)
    }

    fn is_done(&self) -> bool {
        self.next == self.steps.len()
    }

    fn who(&self) -> String {
        who(&self.source)
    }

    /// Does every step that can be done now; all steps of those in `finished` have been.
    fn advance(&mut self, focus: &mut Focus, input: &mut Vec<u8>, finished: &[String]) {
        while let Some(step) = self.step() {
            match step {
                Step::Expect(pattern) => {
                    let Some(found) = pattern.find_at(&self.text, self.cursor) else { return };
                    let matched = String::from_utf8_lossy(found.as_bytes()).into_owned();
                    self.cursor = found.end();
                    self.cases.push(self.case(pattern, Some(matched)));
                }
                Step::Send(text) => {
                    if !matches!((&self.source, &focus.now), (Source::Vm(vm), Some(now)) if vm == now)
                        || focus.is_moving
                    {
                        return;
                    }
                    focus.presses = 0;
                    input.extend(text.as_bytes());
                }
                Step::After(vm) => {
                    if !finished.contains(vm) {
                        return;
                    }
                    self.cursor = self.text.len();
                }
            }
            self.next += 1;
        }
    }

    fn case(&self, pattern: &Regex, matched: Option<String>) -> Case {
        Case { track: self.who(), pattern: pattern.to_string(), matched }
    }

    fn all_cases(&self) -> Vec<Case> {
        let rest = self.steps.iter().skip(self.next).filter_map(|step| match step {
            Step::Expect(pattern) => Some(self.case(pattern, None)),
            Step::Send(_) | Step::After(_) => None,
        });
        self.cases.iter().cloned().chain(rest).collect()
    }

    fn wish(&self) -> String {
        match self.step() {
            Some(Step::Expect(pattern)) => format!("/{pattern}/"),
            Some(Step::Send(text)) => format!("the focus, to type {text:?}"),
            Some(Step::After(vm)) => format!("the end of {vm}'s steps"),
            None => "nothing".to_owned(),
        }
    }

    fn tail(&self) -> String {
        let rest = &self.text[self.cursor..];
        String::from_utf8_lossy(&rest[rest.len().saturating_sub(TAIL_BYTES)..]).into_owned()
    }
}

fn who(source: &Source) -> String {
    match source {
        Source::Hypervisor => "hypervisor".to_owned(),
        Source::Vm(name) => name.clone(),
        Source::Untagged => "an untagged line".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::End;
    use super::*;

    fn script() -> Script {
        Script::new(End::Done)
    }

    #[test]
    fn expectations_are_met_in_order_and_once() {
        let mut script = script();
        script.expect("a", "^ready$").unwrap().expect("a", "^ready$").unwrap();
        let mut engine = Engine::new(&script);
        engine.feed(b"b| ready\na| ready\n");
        assert!(!engine.is_done(), "one line meets one expectation");
        assert_eq!(engine.waiting()[0].1, "/^ready$/");
        engine.feed(b"a| ready\n");
        assert!(engine.is_done());
        assert_eq!(engine.cases()[1].matched.as_deref(), Some("ready"));
    }

    #[test]
    fn input_waits_for_the_announced_focus() {
        let mut script = script();
        script.expect("b", "# $").unwrap().send("b", "hi\n");
        let mut engine = Engine::new(&script);
        engine.feed(b"\x1econsole: a\n");
        assert!(engine.take_input().is_empty(), "nobody wants the focus yet");
        engine.feed(b"b| / # ");
        assert_eq!(engine.take_input(), [FOCUS_NEXT]);
        engine.feed(b"\n\x1econsole: c\n");
        assert_eq!(engine.take_input(), [FOCUS_NEXT]);
        engine.feed(b"a| noise\n");
        assert!(engine.take_input().is_empty(), "one key press for one announcement");
        engine.feed(b"\x1econsole: b\n");
        assert_eq!(engine.take_input(), b"hi\n");
        assert!(engine.is_done());
    }

    #[test]
    fn without_a_hypervisor_there_is_no_focus_to_move() {
        let mut script = script();
        script.bare = Some("bare".into());
        script.expect("bare", "# $").unwrap().send("bare", "hi\n");
        let mut engine = Engine::new(&script);
        engine.feed(b"Welcome\r\n/ # ");
        assert_eq!(engine.take_input(), b"hi\n");
    }

    #[test]
    fn two_vms_share_the_focus() {
        let mut script = script();
        script.send("a", "1\n").send("b", "2\n").send("b", "3\n");
        let mut engine = Engine::new(&script);
        engine.feed(b"\x1econsole: a\n");
        assert_eq!(engine.take_input(), b"1\n\x1d");
        engine.feed(b"\x1econsole: b\n");
        assert_eq!(engine.take_input(), b"2\n3\n");
        assert!(engine.is_done());
    }

    #[test]
    fn a_vm_can_wait_for_another() {
        let mut script = script();
        script.expect("b", "done").unwrap();
        script.expect("a", "beat").unwrap().after("a", "b").expect("a", "beat").unwrap();
        let mut engine = Engine::new(&script);
        engine.feed(b"a| beat\na| beat\na| beat\n");
        engine.feed(b"b| done\n");
        assert!(!engine.is_done(), "only a beat after the other one's end counts");
        engine.feed(b"a| beat\n");
        assert!(engine.is_done());
    }

    /// A key press is under way while the VM with the focus goes off: the press moves the focus on
    /// from where it fell.
    #[test]
    fn a_focus_that_moves_by_itself_answers_no_key() {
        let mut script = script();
        script.expect("a", "bye").unwrap().send("b", "1\n").send("c", "2\n");
        let mut engine = Engine::new(&script);
        engine.feed(b"\x1econsole: a\na| bye\n");
        assert_eq!(engine.take_input(), [FOCUS_NEXT]);
        engine.feed(b"\x1econsole: b (a is off)\n");
        assert!(engine.take_input().is_empty(), "b has it for a moment only");
        engine.feed(b"\x1econsole: c\n");
        assert_eq!(engine.take_input(), b"2\n\x1d");
        engine.feed(b"\x1econsole: b\n");
        assert_eq!(engine.take_input(), b"1\n");
        assert!(engine.is_done());
    }

    #[test]
    fn a_guest_cannot_announce_the_focus() {
        let mut script = script();
        script.send("b", "hi\n");
        let mut engine = Engine::new(&script);
        engine.feed(b"a| x\n");
        assert_eq!(engine.take_input(), [FOCUS_NEXT]);
        engine.feed(b"b| console: b\nb| \x1econsole: b\nconsole: b\n");
        assert!(engine.take_input().is_empty());
        assert!(!engine.is_done());
    }

    #[test]
    fn a_vm_that_is_not_there_is_a_failure_and_not_a_loop() {
        let mut script = script();
        script.send("ghost", "hi\n");
        let mut engine = Engine::new(&script);
        let mut presses = 0;
        for _ in 0..2 * PRESSES_MAX {
            engine.feed(b"\x1econsole: a\n");
            presses += engine.take_input().len();
        }
        assert_eq!(presses, PRESSES_MAX);
        assert_eq!(engine.failure(), Some(&Failure::NoFocus("ghost".into())));
    }

    #[test]
    fn a_forbidden_line_fails_whoever_says_it() {
        let mut script = script();
        script.expect("a", "ok").unwrap().never("panic").unwrap();
        let mut engine = Engine::new(&script);
        engine.feed(b"a| no pan");
        assert!(engine.failure().is_none());
        engine.feed(b"ic here\n");
        let said = engine.failure().map(ToString::to_string).unwrap();
        assert_eq!(said, "a said what must not be said (/panic/): no panic here");
    }

    #[test]
    fn unreached_expectations_are_cases_too() {
        let mut script = script();
        script.expect("a", "one").unwrap().send("a", "x").expect("a", "two").unwrap();
        let engine = Engine::new(&script);
        let cases = engine.cases();
        assert_eq!(cases.len(), 2);
        assert!(cases.iter().all(|case| case.matched.is_none()));
    }
}
