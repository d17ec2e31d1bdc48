// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether a VM runs: cores enter and leave, and one of them leads a change.
//!
//! ```text
//!                 Start              finish            Pause
//!   Off ───────────────────→ Starting ────────→ Running ───────→ Paused
//!    │ ↑                         ↑                 │ ↑ go_on      │ ↑
//!    │ │                         │                 │ │     Resume │ │ Pause
//!    │ │ finish           finish │ Start     Crash │ │            ↓ │
//!    │ └─────────── Stopping ←───┼──── Stop ───────┤ └───────── Resuming
//!    │ Destroy                   │                 │              │
//!    ↓                           └───────────── Crashed           │
//!   Gone                         └────────────────────────────────┘
//! ```
//!
//! A core may run the guest only between a successful [`Lifecycle::enter`] and
//! [`Lifecycle::leave`]. Whoever begins a change waits until all others have left: entering is
//! "count, then look", beginning is "say, then look at the count", both sequentially consistent,
//! so one of the two sees the other. While the VM is frozen, paused or crashed, its cores stay
//! inside and stand aside; none goes on before all do, so that all go on at the same guest time.
//!
//! From any state but Gone a VM is Lost when one of its cores is stuck at EL2, and nothing can be
//! asked of it. When that core comes back it is Crashed, or where it did not run what it was.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

/// How it stands with a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Its vCPUs run, where they are on.
    Running,
    /// It is loaded.
    Starting,
    /// It is taken down.
    Stopping,
    /// It has memory and cores, and does nothing.
    Off,
    /// Its vCPUs are held, and can go on.
    Paused,
    /// Its vCPUs are held, and will not go on.
    Crashed,
    /// It is about to vanish.
    Gone,
    /// Its vCPUs go on once all of them are held.
    Resuming,
    /// A core of it is stuck at EL2; the others are held.
    Lost,
}

impl State {
    const ALL: [Self; 9] = [
        Self::Running,
        Self::Starting,
        Self::Stopping,
        Self::Off,
        Self::Paused,
        Self::Crashed,
        Self::Gone,
        Self::Resuming,
        Self::Lost,
    ];

    fn from_word(word: u8) -> Self {
        Self::ALL.get(usize::from(word)).copied().unwrap_or(Self::Gone)
    }

    /// Returns whether its vCPUs are held where they are.
    #[must_use]
    pub const fn is_frozen(self) -> bool {
        matches!(self, Self::Paused | Self::Resuming | Self::Crashed | Self::Lost)
    }

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Off => "off",
            Self::Paused => "paused",
            Self::Crashed => "crashed",
            Self::Gone => "gone",
            Self::Resuming => "resuming",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a core is asked to bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Change {
    /// Load the VM and run it: at boot, and after a reset.
    ///
    /// The values below it are left to the run loop's `Next`, which is compared with 0 at each
    /// exit.
    Start = 3,
    /// Leave it off.
    Stop,
}

/// What somebody outside a VM wants of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// That it starts: it is off, or has crashed.
    Start,
    /// That it is off, whatever its guest does.
    Kill,
    /// That it starts anew.
    Reset,
    /// That its vCPUs stop where they are.
    Pause,
    /// That they go on.
    Resume,
    /// That it vanishes: it is off.
    Destroy,
}

impl Request {
    /// Returns from which states to which one, and what its core has to lead.
    const fn table(self) -> (&'static [State], State, Option<Change>) {
        use State::{Crashed, Gone, Off, Paused, Resuming, Running, Starting, Stopping};
        const LIVES: &[State] = &[Running, Paused, Resuming, Crashed];
        match self {
            Self::Start => (&[Off, Crashed], Starting, Some(Change::Start)),
            Self::Kill => (LIVES, Stopping, Some(Change::Stop)),
            Self::Reset => (LIVES, Starting, Some(Change::Start)),
            Self::Pause => (&[Running, Resuming], Paused, None),
            Self::Resume => (&[Paused], Resuming, None),
            Self::Destroy => (&[Off], Gone, None),
        }
    }
}

/// The state that all cores of a VM share.
#[derive(Debug)]
pub struct Lifecycle {
    state: AtomicU8,
    inside: AtomicU32,
    /// How many of these stand aside.
    aside: AtomicU32,
    /// The change that the core of vCPU 0 is to lead, for who is no core of the VM; 0 for none.
    asked: AtomicU8,
    /// How many of its cores are stuck.
    lost: AtomicU32,
    /// The state that it was lost in.
    was: AtomicU8,
    /// The change whose leader has given it up, since the VM is lost; 0 for none.
    given_up: AtomicU8,
}

impl Lifecycle {
    /// Makes the lifecycle of a VM that is off.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(State::Off as u8),
            inside: AtomicU32::new(0),
            aside: AtomicU32::new(0),
            asked: AtomicU8::new(0),
            lost: AtomicU32::new(0),
            was: AtomicU8::new(State::Off as u8),
            given_up: AtomicU8::new(0),
        }
    }

    /// Returns how it stands with the VM. Of two VMs that change at once, at least one sees the
    /// other's new state after its own change.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_word(self.state.load(SeqCst))
    }

    /// Asks to run the guest. On success the core calls [`leave`](Self::leave) when it no longer
    /// does.
    #[must_use]
    pub fn enter(&self) -> Entry {
        self.inside.fetch_add(1, SeqCst);
        if self.state() == State::Running {
            return Entry::Granted;
        }
        self.leave();
        Entry::Refused
    }

    /// Says that this core no longer runs the guest.
    pub fn leave(&self) {
        self.inside.fetch_sub(1, SeqCst);
    }

    /// Returns whether a core that is inside must leave or stand aside.
    #[must_use]
    #[inline(always)]
    pub fn wants_out(&self) -> bool {
        self.state.load(SeqCst) != State::Running as u8
    }

    /// Returns whether this run of the VM is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let state = self.state();
        state == State::Lost || state != State::Running && !state.is_frozen()
    }

    /// Returns whether a core of it is stuck.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state() == State::Lost
    }

    /// Returns whether it is being started, or will be once it is no longer lost.
    #[must_use]
    pub fn will_start(&self) -> bool {
        match self.state() {
            State::Starting => true,
            State::Lost => self.was.load(SeqCst) == State::Starting as u8,
            _ => false,
        }
    }

    /// Gives the VM up, since one more of its cores is stuck; whatever it was about ends here.
    /// Returns the state that it was in, none where that is known already.
    #[must_use]
    pub fn lose(&self) -> Option<State> {
        self.lost.fetch_add(1, SeqCst);
        loop {
            let state = self.state();
            if matches!(state, State::Lost | State::Gone) {
                return None;
            }
            self.was.store(state as u8, SeqCst);
            if self.change(state, State::Lost).is_ok() {
                return Some(state);
            }
        }
    }

    /// Notes that a core is no longer stuck. With the last of them a VM that ran or was frozen is
    /// one that has crashed; else it is what it was, and a change goes on: by its leader, or led
    /// anew where that has given up. Kick the core of vCPU 0 then.
    pub fn find(&self) {
        let before = self.lost.fetch_update(SeqCst, SeqCst, |lost| lost.checked_sub(1));
        if before != Ok(1) {
            return;
        }
        let was = State::from_word(self.was.load(SeqCst));
        let ran = was == State::Running || was.is_frozen();
        if self.change(State::Lost, if ran { State::Crashed } else { was }).is_ok() {
            self.lead_anew();
        }
    }

    /// Leaves a change of a VM that is lost: it is led anew should that end. Kick the core of
    /// vCPU 0 then.
    pub fn give_up(&self, change: Change) {
        self.given_up.store(change as u8, SeqCst);
        // Of this and what finds the VM at least one sees what the other has done.
        if !self.is_lost() {
            self.lead_anew();
        }
    }

    fn lead_anew(&self) {
        let given_up = self.given_up.swap(0, SeqCst);
        if given_up != 0 {
            self.asked.store(given_up, SeqCst);
        }
    }

    /// Says that this core, which is inside, stands aside.
    pub fn stand_aside(&self) {
        self.aside.fetch_add(1, SeqCst);
    }

    /// Says that it goes on.
    pub fn go_on(&self) {
        self.aside.fetch_sub(1, SeqCst);
    }

    /// Lets the vCPUs of a VM that is resumed go on, now that all stand aside. The core of vCPU 0
    /// calls this. Somebody may have been faster with something else.
    #[must_use]
    pub fn end_pause(&self) -> Leadership {
        match self.change(State::Resuming, State::Running) {
            Ok(()) => Leadership::Mine,
            Err(_) => Leadership::Others,
        }
    }

    /// Returns how many cores are inside.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.inside.load(SeqCst) as usize
    }

    /// Returns whether all cores that are inside stand aside.
    #[must_use]
    pub fn all_stand_aside(&self) -> bool {
        self.inside.load(SeqCst) == self.aside.load(SeqCst)
    }

    /// Makes this core, which is inside or serves a VM that is off, the leader of a change; of many
    /// at once, one wins. The leader leaves if it is inside, kicks the others, and calls
    /// [`finish`](Self::finish) once [`is_empty`](Self::is_empty).
    ///
    /// A core that acts for its guest begins before it leaves: until then no other change ends, so
    /// what was asked of one run of the VM cannot end the next one.
    #[must_use]
    pub fn begin(&self, change: Change) -> Leadership {
        let to = match change {
            Change::Start => State::Starting,
            Change::Stop => State::Stopping,
        };
        self.lead(to)
    }

    /// Freezes a VM that cannot go on; of many cores at once, one wins.
    #[must_use]
    pub fn crash(&self) -> Leadership {
        self.lead(State::Crashed)
    }

    /// Carries a request out as far as that takes no core of the VM; the rest is done by these,
    /// which are kicked now.
    ///
    /// # Errors
    /// Returns the state that it does not fit; nothing has changed.
    pub fn request(&self, request: Request) -> Result<(), State> {
        let (from, to, change) = request.table();
        loop {
            let state = self.state();
            if !from.contains(&state) {
                return Err(state);
            }
            if self.change(state, to).is_err() {
                // Others were faster: it may or may not fit what they have made of it.
                continue;
            }
            if let Some(change) = change {
                self.asked.store(change as u8, SeqCst);
            }
            return Ok(());
        }
    }

    /// Takes the change that somebody has asked for; the core of vCPU 0 then leads it.
    #[must_use]
    pub fn take_asked(&self) -> Option<Change> {
        if self.asked.load(SeqCst) == 0 {
            return None;
        }
        let asked = self.asked.swap(0, SeqCst);
        [Change::Start, Change::Stop].into_iter().find(|change| *change as u8 == asked)
    }

    /// Returns whether no core runs the guest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inside.load(SeqCst) == 0
    }

    /// Ends the change that this core leads, or gives it up where the VM is lost. A start may end
    /// as a stop.
    pub fn finish(&self, change: Change) {
        let to = if change == Change::Start { State::Running } else { State::Off };
        loop {
            match self.state() {
                from @ (State::Starting | State::Stopping) => {
                    if self.change(from, to).is_ok() {
                        return;
                    }
                }
                State::Lost => return self.give_up(change),
                // It is somebody else's.
                _ => return,
            }
        }
    }

    fn lead(&self, to: State) -> Leadership {
        match self.change(State::Running, to) {
            Ok(()) => Leadership::Mine,
            Err(_) => Leadership::Others,
        }
    }

    fn change(&self, from: State, to: State) -> Result<(), State> {
        let changed = self.state.compare_exchange(from as u8, to as u8, SeqCst, SeqCst);
        changed.map(drop).map_err(State::from_word)
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer to [`Lifecycle::enter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The core may run the guest.
    Granted,
    /// The VM is off or changes.
    Refused,
}

/// The answer to [`Lifecycle::begin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// This core leads.
    Mine,
    /// Another core leads a change, or the VM is not in a state for this one.
    Others,
}

#[cfg(test)]
mod tests;
