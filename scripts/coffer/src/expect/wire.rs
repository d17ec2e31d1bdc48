// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Takes the tagged serial line apart: who said what.
//!
//! A line that starts with 0x1e is the hypervisor's; a guest's output never contains that byte, so
//! that no guest can forge one. Other lines are `NAME| text`. A line of a VM need not be complete to
//! be passed on: a shell's prompt has no end of line.
#![forbid(unsafe_code)]

/// The first byte of a hypervisor line.
pub const HYPERVISOR_MARK: u8 = 0x1e;
/// The byte that moves the focus of the input to the next VM, Ctrl-].
pub const FOCUS_NEXT: u8 = 0x1d;
/// The most bytes in the name of a VM.
const NAME_MAX: usize = cofferdam::plan::NAME_MAX;

/// Who said something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// The hypervisor.
    Hypervisor,
    /// The VM of this name.
    Vm(String),
    /// Nobody can be held to it: the line has neither mark nor tag.
    Untagged,
}

/// A piece of what somebody said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Who.
    pub source: Source,
    /// What, without mark, tag, carriage returns and terminal control sequences.
    pub text: Vec<u8>,
    /// Whether the line ends behind it.
    pub line: LineEnd,
}

/// Whether a line ends behind a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineEnd {
    /// It goes on, or nobody knows yet.
    Open,
    /// It ends.
    Ended,
}

/// The state of the line that is being received.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Bytes of the line that have not been passed on.
    held: Vec<u8>,
    /// Who is talking, once that is known.
    source: Option<Source>,
    control: Control,
    /// Who says everything, where the line has no tags.
    sole: Option<Source>,
}

/// Where in a terminal control sequence the line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Control {
    #[default]
    Outside,
    Escape,
    Sequence,
}

impl Wire {
    /// Makes the line of a machine without a hypervisor: everything on it is said by `name`.
    #[must_use]
    pub fn untagged(name: &str) -> Self {
        Self { sole: Some(Source::Vm(name.to_owned())), ..Self::default() }
    }

    /// Takes `bytes` from the wire and returns what was said, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                fragments.push(self.end_line());
            } else if self.is_text(byte) {
                self.held.push(byte);
                self.find_source();
            }
        }
        fragments.extend(self.open_line());
        fragments
    }

    /// Returns whether `byte` is text, and follows terminal control sequences (ECMA-48, 5.4).
    fn is_text(&mut self, byte: u8) -> bool {
        let (control, is_text) = match (self.control, byte) {
            (Control::Outside, 0x1b) => (Control::Escape, false),
            (Control::Outside, byte) => (Control::Outside, byte != b'\r'),
            (Control::Escape, b'[') => (Control::Sequence, false),
            (Control::Sequence, 0x20..=0x3f) => (Control::Sequence, false),
            (Control::Escape | Control::Sequence, _) => (Control::Outside, false),
        };
        self.control = control;
        is_text
    }

    /// Finds out who is talking, as soon as the line tells.
    fn find_source(&mut self) {
        if self.source.is_none() {
            self.source.clone_from(&self.sole);
        }
        if self.source.is_some() {
            return;
        }
        if self.held.first() == Some(&HYPERVISOR_MARK) {
            self.held.clear();
            self.source = Some(Source::Hypervisor);
        } else if self.held.ends_with(b"| ") {
            let name = &self.held[..self.held.len() - 2];
            if let Some(name) = vm_name(name) {
                self.source = Some(Source::Vm(name));
                self.held.clear();
            }
        } else if self.held.len() > NAME_MAX + 2 {
            self.source = Some(Source::Untagged);
        }
    }

    fn end_line(&mut self) -> Fragment {
        self.find_source();
        // An empty line of a guest may have lost the space behind its tag.
        if self.source.is_none() && self.held.last() == Some(&b'|') {
            self.held.push(b' ');
            self.find_source();
        }
        self.control = Control::Outside;
        Fragment {
            source: self.source.take().unwrap_or(Source::Untagged),
            text: std::mem::take(&mut self.held),
            line: LineEnd::Ended,
        }
    }

    /// Passes on what a VM has said of a line that has not ended. The hypervisor's lines are whole.
    fn open_line(&mut self) -> Option<Fragment> {
        let source = self.source.clone().filter(|source| matches!(source, Source::Vm(_)))?;
        if self.held.is_empty() {
            return None;
        }
        Some(Fragment { source, text: std::mem::take(&mut self.held), line: LineEnd::Open })
    }
}

fn vm_name(name: &[u8]) -> Option<String> {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || name.len() > NAME_MAX || !name.iter().all(is_name) {
        return None;
    }
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins what each source said to whole texts, whatever the pieces were.
    fn said(pieces: &[&[u8]]) -> Vec<(Source, String)> {
        let mut wire = Wire::default();
        let mut said: Vec<(Source, String)> = Vec::new();
        for fragment in pieces.iter().flat_map(|bytes| wire.feed(bytes)) {
            let mut text = String::from_utf8(fragment.text).unwrap();
            if fragment.line == LineEnd::Ended {
                text.push('\n');
            }
            match said.last_mut() {
                Some((source, before)) if *source == fragment.source => before.push_str(&text),
                _ => said.push((fragment.source, text)),
            }
        }
        said
    }

    fn vm(name: &str) -> Source {
        Source::Vm(name.into())
    }

    #[test]
    fn lines_go_to_their_sources() {
        let text = b"\x1e[09] up in 41 ms\r\napp| one\r\nlinux-b| two\r\napp|\r\napp| \r\n";
        let expected = vec![
            (Source::Hypervisor, "[09] up in 41 ms\n".to_owned()),
            (vm("app"), "one\n".to_owned()),
            (vm("linux-b"), "two\n".to_owned()),
            (vm("app"), "\n\n".to_owned()),
        ];
        assert_eq!(said(&[text]), expected);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(said(&bytes), expected, "byte by byte");
    }

    #[test]
    fn a_prompt_is_passed_on_before_its_line_ends() {
        assert_eq!(said(&[b"app| ~ # \x1b[6n"]), [(vm("app"), "~ # ".to_owned())]);
    }

    #[test]
    fn a_tag_counts_at_the_start_of_a_line_only() {
        assert_eq!(said(&[b"app| b| x\n"]), [(vm("app"), "b| x\n".to_owned())]);
        assert_eq!(said(&[b"two words| x\n"]), [(Source::Untagged, "two words| x\n".to_owned())]);
        assert_eq!(said(&[b"| x\n"]), [(Source::Untagged, "| x\n".to_owned())]);
    }

    #[test]
    fn a_mark_counts_at_the_start_of_a_line_only() {
        let forged = said(&[b"app| \x1econsole: b\n"]);
        assert_eq!(forged, [(vm("app"), "\x1econsole: b\n".to_owned())]);
    }

    #[test]
    fn without_a_hypervisor_every_line_has_the_same_source() {
        let mut wire = Wire::untagged("bare");
        let said = wire.feed(b"a| one\n\n# ");
        let texts: Vec<_> = said.iter().map(|fragment| &*fragment.text).collect();
        assert_eq!(texts, [&b"a| one"[..], b"", b"# "]);
        assert!(said.iter().all(|fragment| fragment.source == vm("bare")));
    }

    #[test]
    fn a_long_line_without_a_tag_does_not_wait_for_one() {
        let mut wire = Wire::default();
        assert!(wire.feed(&[b'x'; 100]).is_empty());
        let long = [b"x".repeat(NAME_MAX + 1), b"| y\n".to_vec()].concat();
        assert_eq!(said(&[&long])[0].0, Source::Untagged);
    }
}
