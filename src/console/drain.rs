// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The way out: whose turn it is, and what a line looks like on the wire.
//!
//! Sources speak in turn, a line at a time, so none can starve another. A line is staged whole
//! before its first byte is sent.
#![forbid(unsafe_code)]

use super::filter::Filter;
use super::guest::Flow;
use super::source::Source;
use super::{Console, HYPERVISOR_MARK, LINE_BYTES_MAX, Mode, NAME_BYTES_MAX};
use crate::id::VmId;
use heapless::Vec;

const END_OF_LINE: &[u8] = b"\r\n";
const TAG_END: &[u8] = b"| ";
/// CAN: a terminal in the middle of a control function forgets it (ECMA-48, 8.3.6).
const CANCEL: u8 = 0x18;
/// End of the line before, with a cancel; tag; text; end of line.
const STAGED_MAX: usize = 3 + NAME_BYTES_MAX + 2 + LINE_BYTES_MAX + 2;

/// The physical serial port.
pub trait SerialPort {
    /// Sends a byte unless that would mean waiting.
    fn try_send(&mut self, byte: u8) -> Sent;
    /// Takes a byte that has come in.
    fn try_receive(&mut self) -> Option<u8>;
    /// Turns on or off the interrupt that says that bytes can be sent again.
    fn set_send_interrupt(&mut self, switch: Switch);
}

/// Whether a byte was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It was.
    Yes,
    /// The port has no room for it.
    Busy,
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    #[default]
    Off,
}

/// What is left after draining.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Nothing.
    Empty,
    /// Bytes that could go out: drain again at the port's interrupt, which is on.
    MoreLeft,
    /// Unfinished lines only: drain again at that time, in ticks.
    HeldUntil(u64),
}

/// The state of the wire.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// The VM that input goes to.
    pub(super) focus: Option<VmId>,
    staged: Vec<u8, STAGED_MAX>,
    /// How many of the staged bytes are sent.
    sent: usize,
    /// Who has an unfinished line on the wire, and how many bytes of text it has.
    open: Option<(Speaker, usize)>,
    /// Until when the open line is left open though others have lines: a core that its guest's
    /// writer is taken from for a moment must not cut the line.
    open_until_ticks: u64,
    /// Until when at the latest, however its bytes dribble.
    open_limit_ticks: u64,
    /// Who comes next: a place in the round of the log and all guests.
    turn: usize,
    /// Follows what a focused guest sends.
    filter: Filter,
    /// A VM that is off and lost the focus, but still has bytes to show.
    last_words: Option<VmId>,
    send_interrupt: Switch,
}

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaker {
    Log,
    Guest(VmId),
    /// A VM that is there no more: its line ends when the next one begins.
    Gone,
}

impl Out {
    /// Forgets a VM that is there no more.
    pub(super) fn forget(&mut self, vm: VmId) {
        if let Some((speaker, _)) = &mut self.open
            && *speaker == Speaker::Guest(vm)
        {
            *speaker = Speaker::Gone;
            self.open_until_ticks = 0;
        }
    }
    /// Returns the VM that is off but still has bytes to show.
    pub(super) fn has_last_words(&self) -> Option<VmId> {
        self.last_words
    }

    /// Lets a VM that is off finish before the focus is seen to move.
    pub(super) fn last_words(&mut self, vm: VmId) {
        self.last_words = Some(vm);
    }
    pub(super) fn no_last_words(&mut self) {
        self.last_words = None;
    }

    /// Stages bytes. There is always room: a staging adds at most [`STAGED_MAX`] to nothing.
    fn put(&mut self, bytes: &[u8]) {
        let fits = self.staged.extend_from_slice(bytes);
        debug_assert!(fits.is_ok());
    }

    /// Stages text of a line that has so many columns, up to its end or the longest that a line may
    /// be. Returns the columns, and whether the line is whole.
    fn put_text(&mut self, source: &mut Source, mut columns: usize) -> (usize, bool) {
        // A character of several bytes is not cut in two.
        let is_full = |columns, byte| {
            columns >= LINE_BYTES_MAX || columns + 4 > LINE_BYTES_MAX && byte >= 0xc0
        };
        while let Some(byte) = source.peek() {
            if byte == b'\n' {
                source.pop();
                return (columns, true);
            }
            if is_full(columns, byte) {
                return (columns, true);
            }
            let goes_on =
                |(column, byte): &(usize, &u8)| **byte != b'\n' && !is_full(*column, **byte);
            let part = source.front();
            let count = (columns..).zip(part).take_while(goes_on).count();
            self.put(part.get(..count).unwrap_or_default());
            source.skip_text(count);
            columns = columns.saturating_add(count);
        }
        (columns, false)
    }

    /// Stages the end of whatever line is open.
    fn close(&mut self) {
        if self.open.take().is_some() {
            if self.filter.is_within() {
                self.put(&[CANCEL]);
            }
            self.put(END_OF_LINE);
        }
        self.filter = Filter::default();
    }
}

impl Console {
    /// Sends what is ready, until the port is busy or `budget_bytes` are sent, and turns the port's
    /// interrupt on while more is left. The work is bounded by the budget and one line.
    pub fn drain(
        &self,
        port: &mut impl SerialPort,
        budget_bytes: usize,
        now_ticks: u64,
    ) -> Drained {
        let mut out = self.out.acquire();
        let mut drain = Drain { console: self, out: &mut out };
        let drained = drain.send(port, budget_bytes, now_ticks);
        let wanted = if drained == Drained::MoreLeft { Switch::On } else { Switch::Off };
        if out.send_interrupt != wanted {
            out.send_interrupt = wanted;
            port.set_send_interrupt(wanted);
        }
        drained
    }

    /// Takes from what somebody has to say, and notes when that makes room for a guest that waits.
    fn take_from<R>(&self, speaker: Speaker, take: impl FnOnce(&mut Source) -> R) -> Option<R> {
        let vm = match speaker {
            Speaker::Log => return Some(take(&mut self.log.acquire().source)),
            Speaker::Guest(vm) => vm,
            Speaker::Gone => return None,
        };
        let mut guest = self.guest(vm)?;
        let taken = take(&mut guest.source);
        if guest.update_flow() == Flow::Freed {
            self.has_room(vm);
        }
        Some(taken)
    }

    /// Returns how many bytes somebody has to say, and whether the end of a line is among them.
    fn waiting(&self, speaker: Speaker) -> (usize, bool) {
        let of = |source: &Source| (source.len(), source.has_line());
        match speaker {
            Speaker::Log => of(&self.log.acquire().source),
            Speaker::Guest(vm) => self.guest(vm).map_or((0, false), |guest| of(&guest.source)),
            Speaker::Gone => (0, false),
        }
    }

    /// Returns when somebody's unfinished line is to go out as it is, `None` where there is none:
    /// the log's lines are whole.
    fn partial_due(&self, speaker: Speaker, now_ticks: u64) -> Option<u64> {
        let Speaker::Guest(vm) = speaker else { return None };
        self.guest(vm)?.source.partial_due(now_ticks, self.config.partial_after_ticks)
    }
}

/// One drain.
struct Drain<'a> {
    console: &'a Console,
    out: &'a mut Out,
}

impl Drain<'_> {
    fn send(&mut self, port: &mut impl SerialPort, budget_bytes: usize, now_ticks: u64) -> Drained {
        let mut budget = budget_bytes;
        loop {
            if self.out.sent == self.out.staged.len() {
                self.out.staged.clear();
                self.out.sent = 0;
                match self.console.config.mode {
                    Mode::Tagged => self.stage_tagged(now_ticks),
                    Mode::Focus => self.stage_focus(),
                }
            }
            let Some(byte) = self.out.staged.get(self.out.sent) else {
                return self.held(now_ticks);
            };
            if budget == 0 || port.try_send(*byte) == Sent::Busy {
                return Drained::MoreLeft;
            }
            budget -= 1;
            self.out.sent = self.out.sent.saturating_add(1);
        }
    }

    /// Stages a line of whoever comes next, if anybody has one.
    fn stage_tagged(&mut self, now_ticks: u64) {
        self.end_last_words();
        let open = self.out.open;
        // Who can finish the line on the wire does so first.
        if let Some((speaker, columns)) = open
            && self.can_finish(speaker, columns)
        {
            return self.stage_line(speaker);
        }
        let is_kept =
            |(_, columns)| columns < LINE_BYTES_MAX && now_ticks < self.out.open_until_ticks;
        if open.is_some_and(is_kept) {
            return self.grow(open, now_ticks);
        }
        let round = self.console.places().saturating_add(1);
        for step in 0..round {
            let place = self.out.turn.saturating_add(step) % round;
            let Some(speaker) = speaker_at(place) else { continue };
            let is_open = open.is_some_and(|(open, _)| open == speaker);
            if !is_open && self.due(speaker, now_ticks).is_some_and(|due| due <= now_ticks) {
                self.out.turn = place + 1;
                self.stage_line(speaker);
                return self.hold(now_ticks, Line::New);
            }
        }
        // Nobody else wants the wire, so an open line may grow as its bytes come.
        self.grow(open, now_ticks);
    }

    /// Adds what has come to the open line.
    fn grow(&mut self, open: Option<(Speaker, usize)>, now_ticks: u64) {
        if let Some((speaker, _)) = open
            && self.console.waiting(speaker).0 > 0
        {
            self.stage_line(speaker);
            self.hold(now_ticks, Line::Same);
        }
    }

    /// Leaves the open line open for a while.
    fn hold(&mut self, now_ticks: u64, line: Line) {
        const LINE_HOLDS: u64 = 4;
        let after = self.console.config.partial_after_ticks;
        if line == Line::New {
            self.out.open_limit_ticks = now_ticks.saturating_add(after.saturating_mul(LINE_HOLDS));
        }
        self.out.open_until_ticks = now_ticks.saturating_add(after).min(self.out.open_limit_ticks);
    }

    /// Stages a line of the log, or else bytes of the VM with the focus. The log comes first: so
    /// what says that the focus has moved is in front of the first byte that follows from it.
    fn stage_focus(&mut self) {
        self.end_last_words();
        if self.console.waiting(Speaker::Log).1 {
            self.stage_line(Speaker::Log);
        } else if let Some(vm) = self.out.last_words.or(self.out.focus) {
            self.stage_raw(Speaker::Guest(vm));
        }
    }

    /// Stages a line, or what there is of it, up to the longest that a line may be.
    fn stage_line(&mut self, speaker: Speaker) {
        let columns = match self.out.open {
            Some((open, columns)) if open == speaker => columns,
            _ => {
                self.out.close();
                self.stage_tag(speaker);
                0
            }
        };
        let line = self.console.take_from(speaker, |source| self.out.put_text(source, columns));
        let Some((columns, is_whole)) = line else { return };
        self.out.open = Some((speaker, columns));
        if is_whole {
            self.out.close();
        }
    }

    fn stage_tag(&mut self, speaker: Speaker) {
        match speaker {
            Speaker::Log => self.out.put(&[HYPERVISOR_MARK]),
            Speaker::Gone => {}
            Speaker::Guest(vm) => {
                self.out.put(self.console.name(vm).as_bytes());
                self.out.put(TAG_END);
            }
        }
    }

    /// Stages bytes of a guest as they are.
    fn stage_raw(&mut self, speaker: Speaker) {
        self.console.take_from(speaker, |source| {
            for byte in core::iter::from_fn(|| source.pop()).take(LINE_BYTES_MAX) {
                self.out.filter.next(byte);
                self.out.put(&[byte]);
                self.out.open = (byte != b'\n').then_some((speaker, 0));
            }
        });
    }

    /// Says that the focus has moved, once the VM that lost it has nothing left to show.
    fn end_last_words(&mut self) {
        if let Some(vm) = self.out.last_words
            && self.console.waiting(Speaker::Guest(vm)).0 == 0
        {
            self.out.no_last_words();
            if let Some(focus) = self.out.focus {
                self.console.announce(focus, Some(vm));
            }
        }
    }

    /// Returns what remains when nothing is ready.
    fn held(&mut self, now_ticks: u64) -> Drained {
        if self.console.config.mode == Mode::Focus {
            return Drained::Empty;
        }
        let speakers = (0..=self.console.places()).filter_map(speaker_at);
        let due = speakers.filter_map(|speaker| self.due(speaker, now_ticks)).min();
        // An open line keeps back what is ready.
        let until = if self.out.open.is_some() { self.out.open_until_ticks } else { 0 };
        due.map_or(Drained::Empty, |due| Drained::HeldUntil(due.max(until)))
    }

    /// Returns whether a source has the end of a line, or so much that the line is full.
    fn can_finish(&self, speaker: Speaker, columns: usize) -> bool {
        let (bytes, has_line) = self.console.waiting(speaker);
        has_line || bytes >= LINE_BYTES_MAX.saturating_sub(columns).max(1)
    }

    /// Returns when a source is to have its turn: now, or when its unfinished line has waited long
    /// enough.
    fn due(&self, speaker: Speaker, now_ticks: u64) -> Option<u64> {
        if self.can_finish(speaker, 0) {
            return Some(now_ticks);
        }
        self.console.partial_due(speaker, now_ticks)
    }
}

/// Whether bytes begin a line on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    New,
    Same,
}

/// Returns who has a place in the round.
fn speaker_at(place: usize) -> Option<Speaker> {
    match place.checked_sub(1) {
        None => Some(Speaker::Log),
        Some(n) => Some(Speaker::Guest(VmId::new(u8::try_from(n).ok()?))),
    }
}
