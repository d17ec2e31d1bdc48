// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ports that requests come in by (docs/control.md), and what requests do.
//!
//! There are two at most: a UART for this alone, and the console's UART, where requests stand
//! between what is typed and replies between the lines of the log. Each answers one request at a
//! time, a line when there is room for it, and a bounded number of bytes in one visit.
#![forbid(unsafe_code)]

mod crash;
mod stats;

use super::Hypervisor;
use super::host_console::RECEIVE_MAX;
use super::upload::Task;
use crate::arch;
use crate::console::{Sent, SerialPort, Switch};
use crate::control::{
    Action, CrashAt, Executor, Line, MARK, ReadAt, Refusal, Request, Row, Rows, Session, StatsAt,
    Taken, VERSION,
};
use crate::drivers::uart::Uart;
use crate::id::{Pintid, VmId};
use crate::plan::Name;
use crate::sync::{Lock, Slot};
use crate::vcpu::FromCore;
use crate::vm::Vm;
use crate::vm::fate::Images;
use crate::vm::lifecycle::{self, State};
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many bytes of a line one visit sends: the FIFO of a PL011 takes no more either.
const SEND_BUDGET_BYTES: usize = 32;
/// How long a guest may take to turn itself off, in milliseconds, where a request does not say.
const STOP_MS: u32 = 30_000;

/// Where requests come in.
#[derive(Default)]
pub struct Control {
    /// What the plan calls the board.
    pub board: Name,
    /// The console's UART.
    pub on_console: Option<Lock<Session>>,
    /// A UART for this alone.
    pub port: Option<ControlPort>,
    /// Whether the log has said that the machine stays on.
    has_said_so: AtomicBool,
    /// Whether replies are next to go on, and the output of guests after them.
    is_next: AtomicBool,
    /// Whether more of the reply on the UART for requests could go out at once.
    has_more: AtomicBool,
    /// The core that has taken the last bytes there: the reply is its work, and no guest's core's.
    server: AtomicU64,
}

/// A UART for requests alone.
pub struct ControlPort {
    /// Its interrupt.
    interrupt: Pintid,
    wire: Lock<Wire<Uart>>,
}

impl ControlPort {
    /// Takes charge of a UART whose received bytes raise this interrupt.
    #[must_use]
    pub fn new(mut uart: Uart, interrupt: Pintid) -> Self {
        uart.turn_on();
        uart.enable_receive_interrupt();
        Self { interrupt, wire: Lock::new(Wire::new(uart)) }
    }
}

impl Control {
    /// Makes the control of a machine with these ports.
    #[must_use]
    pub fn new(board: Name, on_console: Option<Session>, port: Option<ControlPort>) -> Self {
        Self { board, on_console: on_console.map(Lock::new), port, ..Self::default() }
    }

    /// Returns whether it is the replies' turn, which it then no longer is.
    pub(super) fn take_turn(&self) -> bool {
        self.is_next.swap(false, Ordering::Relaxed)
    }

    /// Returns the interrupt of the UART for requests.
    #[must_use]
    pub fn interrupt(&self) -> Option<Pintid> {
        self.port.as_ref().map(|port| port.interrupt)
    }

    /// Returns whether the machine stays on without a VM, and says so the first time.
    pub(super) fn keeps_on(&self) -> bool {
        let stays = self.on_console.is_some() || self.port.is_some();
        if stays && !self.has_said_so.swap(true, Ordering::Relaxed) {
            log::info!(target: "vm", "all off; the machine stays on for requests");
        }
        stays
    }
}

/// A serial line with a conversation on it.
struct Wire<P> {
    port: P,
    session: Session,
    /// The line that is being sent, and how much of it, with mark and end.
    line: Line,
    sent: Option<usize>,
    send_interrupt: Switch,
}

/// What a visit has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// Nothing, or what the port's interrupt will ask for.
    Nothing,
    /// Bytes that could go out at once.
    More,
}

impl<P: SerialPort> Wire<P> {
    fn new(port: P) -> Self {
        let (session, line) = (Session::default(), Line::default());
        Self { port, session, line, sent: None, send_interrupt: Switch::Off }
    }

    /// Takes in what the port has received, and goes on with the reply, unless a request has ended:
    /// that is enough for one visit.
    fn serve(&mut self, executor: &impl Executor) -> Left {
        for _ in 0..RECEIVE_MAX {
            let Some(byte) = self.port.try_receive() else { break };
            if self.session.take(byte, executor) == Taken::End {
                return Left::More;
            }
        }
        self.reply(executor)
    }

    /// Goes on with the reply by one step: carries out what was asked, or makes a line, or sends of
    /// one what the port takes and the budget allows. A line that is begun is sent whole, also when
    /// another request comes.
    fn reply(&mut self, executor: &impl Executor) -> Left {
        let wanted = if self.sent.is_some() {
            self.send()
        } else {
            let row = self.session.next_line(&mut self.line, executor);
            self.sent = (row == Row::Written).then_some(0);
            Switch::Off
        };
        if self.send_interrupt != wanted {
            self.send_interrupt = wanted;
            self.port.set_send_interrupt(wanted);
        }
        if self.has_reply() && wanted == Switch::Off { Left::More } else { Left::Nothing }
    }

    fn has_reply(&self) -> bool {
        self.sent.is_some() || self.session.has_reply()
    }

    /// Sends of the line, and returns whether the port is to say when it takes more.
    fn send(&mut self) -> Switch {
        for _ in 0..SEND_BUDGET_BYTES {
            let Some(byte) = self.sent.and_then(|at| framed(&self.line, at)) else {
                self.sent = None;
                break;
            };
            if self.port.try_send(byte) == Sent::Busy {
                return Switch::On;
            }
            self.sent = self.sent.map(|at| at.saturating_add(1));
        }
        Switch::Off
    }
}

/// Returns a byte of a line with its mark and its end.
fn framed(line: &Line, at: usize) -> Option<u8> {
    let Some(at) = at.checked_sub(1) else { return Some(MARK) };
    let text = line.as_str().as_bytes();
    text.get(at).or_else(|| b"\r\n".get(at.checked_sub(text.len())?)).copied()
}

impl Hypervisor {
    /// Serves the interrupt of the UART for requests.
    pub(super) fn serve_control(&self) {
        if let Some(port) = &self.control.port {
            let mut wire = port.wire.acquire();
            self.control.server.store(arch::this_mpidr().get(), Ordering::Relaxed);
            let left = self.note(wire.serve(self));
            drop(wire);
            if left == Left::More {
                // This core's own guest comes in between.
                arch::arm_hyp_timer(arch::counter());
            }
        }
    }

    /// Makes it the replies' turn, at once where one can go on.
    pub(super) fn give_turn(&self) {
        self.control.is_next.store(true, Ordering::Relaxed);
        let has_more = self.is_server() && self.control.has_more.load(Ordering::Relaxed);
        if has_more || self.console.can_reply() {
            arch::arm_hyp_timer(arch::counter());
        }
    }

    /// Goes on with a reply by one step, where there is one and no other core does that: then more
    /// may be left.
    pub(super) fn go_on_with_replies(&self) -> Left {
        if self.reply_on_console() == Left::More {
            return Left::More;
        }
        let port = self.control.port.as_ref().filter(|_| self.is_server());
        let Some(mut wire) = port.and_then(|port| port.wire.try_lock()) else {
            return Left::Nothing;
        };
        if !wire.has_reply() {
            return self.note(Left::Nothing);
        }
        self.note(wire.reply(self));
        Left::More
    }

    fn is_server(&self) -> bool {
        self.control.server.load(Ordering::Relaxed) == arch::this_mpidr().get()
    }

    /// Notes whether more of the reply could go out at once; who has the wire does that.
    fn note(&self, left: Left) -> Left {
        self.control.has_more.store(left == Left::More, Ordering::Relaxed);
        left
    }

    /// Takes a byte of the console's input where that is part of a request.
    pub(super) fn take_on_console(&self, byte: u8) -> bool {
        let Some(session) = &self.control.on_console else { return false };
        let taken = session.acquire().take(byte, self);
        if taken == Taken::End {
            self.console.set_replies(true);
            self.give_turn();
        }
        taken != Taken::Outside
    }

    /// Goes on with the reply on the console by one step, where there is room: then more may be
    /// left. Follow with the console's `send`.
    fn reply_on_console(&self) -> Left {
        let Some(session) = self.control.on_console.as_ref() else { return Left::Nothing };
        let Some(mut session) = session.try_lock() else { return Left::Nothing };
        // What is carried out says nothing yet.
        let has_room = || session.has_reply() && self.console.mux.has_log_room();
        let has_done = session.is_asked() || has_room();
        if has_done {
            let mut line = Line::default();
            if session.next_line(&mut line, self) == Row::Written {
                self.console.mux.log(format_args!("{}", line.as_str()));
            }
        }
        self.console.set_replies(session.has_reply());
        if has_done { Left::More } else { Left::Nothing }
    }

    /// Has the VM of this name changed.
    fn change(&self, name: &str, action: Action) -> Result<Rows, Refusal> {
        let change = |vm: &Vm| (vm.plan.name == name).then(|| change(self, vm, action));
        let changed = self.vms.iter().find_map(|slot| slot.look(change)?);
        changed.unwrap_or(Err(Refusal::NoVm))
    }
}

impl Executor for Hypervisor {
    fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal> {
        match request {
            Request::Hello => Ok(Rows::Hello),
            Request::List => Ok(Rows::Vms(0)),
            Request::Stats { vm } => self.stats(vm),
            Request::Audit => Ok(Rows::Audit(0)),
            Request::Crash { vm } => {
                let place = self.place(vm)?;
                let first = self.with_vm(VmId::new(place), |vm| crash::first_row(vm, place));
                first.flatten().map(Rows::Crash).ok_or(Refusal::NoCrash)
            }
            Request::Read { vm, at, bytes } => {
                let place = self.place(vm)?;
                let check = |vm: &Vm| crash::check(vm, at, bytes);
                self.with_vm(VmId::new(place), check).unwrap_or(Err(Refusal::NoVm))?;
                Ok(Rows::Memory(place, ReadAt { at, bytes }))
            }
            Request::Upload { bytes, crc32c } => {
                self.begin_upload(bytes, crc32c).map(|()| Rows::None)
            }
            Request::Put { offset, data } => self.put(offset, data).map(|()| Rows::None),
            Request::Uploaded => Ok(Rows::Uploaded),
            Request::Change { vm, action: Action::Create } => self.ask_for_vm(vm),
            Request::Change { vm, action } => self.change(vm, action),
        }
    }

    fn next_row(&self, rows: &mut Rows, line: &mut Line) -> Row {
        let (row, rest) = match *rows {
            Rows::None => return Row::End,
            Rows::Hello => (self.write_hello(line).into(), Rows::None),
            Rows::Uploaded => (self.write_upload(line).into(), Rows::None),
            Rows::Stats(mut at) => (self.write_stats(&mut at, line), Rows::Stats(at)),
            Rows::Audit(row) => {
                let Some(audit) = self.audit_row(row.into()) else { return Row::End };
                (write!(line, " {audit}").into(), Rows::Audit(row.saturating_add(1)))
            }
            Rows::Crash(at) => {
                *rows = Rows::Crash(CrashAt { row: at.row.saturating_add(1), ..at });
                let write = |vm: &Vm| crash::write_row(vm, at, line);
                return self.with_vm(VmId::new(at.place), write).unwrap_or(Row::Changed);
            }
            Rows::Memory(place, mut at) => {
                let write = |vm: &Vm| crash::write_memory(vm, &mut at, line);
                let row = self.with_vm(VmId::new(place), write).unwrap_or(Row::End);
                (row, Rows::Memory(place, at))
            }
            Rows::Vms(next) => {
                let slots = self.vms.iter().zip(1..).skip(next.into());
                let mut vms = slots.filter_map(|(slot, behind)| {
                    Some((slot.look(|vm| write_vm(vm, line))?, Rows::Vms(behind)))
                });
                let Some((written, rest)) = vms.next() else { return Row::End };
                (written.into(), rest)
            }
        };
        *rows = rest;
        row
    }
}

impl Hypervisor {
    /// Finds whose counters are asked for.
    fn stats(&self, name: Option<&str>) -> Result<Rows, Refusal> {
        let all = StatsAt { place: 0, end: u8::MAX, vcpu: 0, part: 0 };
        let Some(name) = name else { return Ok(Rows::Stats(all)) };
        let place = self.place(name)?;
        Ok(Rows::Stats(StatsAt { place, end: place.saturating_add(1), ..all }))
    }

    /// Has a core that no VM has make the VM of this name.
    fn ask_for_vm(&self, name: &str) -> Result<Rows, Refusal> {
        if let Ok(place) = self.place(name) {
            let state = self.with_vm(VmId::new(place), |vm| vm.lifecycle.state());
            return Err(Refusal::State(Action::Create, state.unwrap_or(State::Gone).name()));
        }
        let name = Name::try_from(name).map_err(|_| Refusal::NoVm)?;
        self.check_upload(|| {
            let post = self.posts.iter().find(|post| post.take()).ok_or(Refusal::NoCore)?;
            post.make();
            Ok(Task::Create { name, maker: post.mpidr })
        })?;
        Ok(Rows::None)
    }

    /// Finds a VM by its name.
    fn place(&self, name: &str) -> Result<u8, Refusal> {
        let is_it = |slot: &Slot<Vm>| slot.look(|vm| vm.plan.name == name).unwrap_or(false);
        let mut places = self.vms.iter().zip(0..);
        places.find_map(|(slot, place)| is_it(slot).then_some(place)).ok_or(Refusal::NoVm)
    }

    fn write_stats(&self, at: &mut StatsAt, line: &mut Line) -> Row {
        let slot = self.vms.get(usize::from(at.place)).filter(|_| at.place < at.end);
        let Some(slot) = slot else { return Row::End };
        let row = slot.look(|vm| stats::write_next(vm, at, line)).unwrap_or(Row::End);
        if row != Row::End {
            return row;
        }
        *at = StatsAt { place: at.place.saturating_add(1), vcpu: 0, part: 0, ..*at };
        Row::Passed
    }

    fn write_hello(&self, line: &mut Line) -> core::fmt::Result {
        write!(
            line,
            " protocol={VERSION} version={} revision=g{} board={} counter_hz={} vms={}",
            env!("CARGO_PKG_VERSION"),
            env!("COFFERDAM_REVISION"),
            self.control.board,
            arch::counter_frequency_hz(),
            self.vms.iter().filter_map(|slot| slot.look(|_| ())).count(),
        )
    }
}

fn write_vm(vm: &Vm, line: &mut Line) -> core::fmt::Result {
    let (name, cpus, bytes) = (&vm.plan.name, vm.plan.vcpus.len(), vm.plan.memory.size());
    let state = vm.lifecycle.state();
    let images = vm.fate.images().name();
    write!(line, " name={name} state={state} vcpus={cpus} memory_bytes={bytes} images={images}")
}

/// Has a VM changed.
fn change(hypervisor: &Hypervisor, vm: &Vm, action: Action) -> Result<Rows, Refusal> {
    let request = match action {
        Action::Stop { deadline_ms } => {
            let ms = u64::from(deadline_ms.unwrap_or(STOP_MS));
            let ticks = ms.saturating_mul(arch::counter_frequency_hz()) / 1000;
            let by = FromCore { vm, own: None, hypervisor };
            vm.stop(&by, ticks).map_err(|state| Refusal::State(action, state.name()))?;
            return Ok(Rows::None);
        }
        Action::Update { confirm_ms } => {
            let state = vm.lifecycle.state();
            if vm.fate.images() == Images::OnTrial {
                return Err(Refusal::State(action, Images::OnTrial.name()));
            }
            if matches!(state, State::Gone | State::Lost) {
                return Err(Refusal::State(action, state.name()));
            }
            hypervisor.check_upload(|| Ok(Task::Update { vm: vm.id, confirm_ms }))?;
            vm.fate.begin_check();
            vm.ask_to_serve_platform();
            return Ok(Rows::None);
        }
        Action::Confirm => {
            if vm.fate.end_trial().is_none() {
                return Err(Refusal::State(action, vm.lifecycle.state().name()));
            }
            vm.ask_to_serve_platform();
            return Ok(Rows::None);
        }
        // That was looked at before.
        Action::Create => return Err(Refusal::State(action, vm.lifecycle.state().name())),
        Action::Start => lifecycle::Request::Start,
        Action::Kill => lifecycle::Request::Kill,
        Action::Reset => lifecycle::Request::Reset,
        Action::Pause => lifecycle::Request::Pause,
        Action::Resume => lifecycle::Request::Resume,
        Action::Destroy => lifecycle::Request::Destroy,
    };
    vm.request(request).map_err(|state| Refusal::State(action, state.name()))?;
    Ok(Rows::None)
}

#[cfg(test)]
mod tests;
