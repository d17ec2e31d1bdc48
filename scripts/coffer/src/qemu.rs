// SPDX-License-Identifier: Apache-2.0 OR MIT
//! QEMU: its command line, and a child that cannot outlive its caller.
//!
//! Knows nothing of manifests or of what is said on the wire. The serial line is the child's
//! standard input and output, so that every caller (terminal, expectation, test) sees plain bytes.
#![forbid(unsafe_code)]

use crate::board::{Overrides, Qemu};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Ticks of the generic timer in a second when one tick is one instruction.
const TICKS_PER_SECOND_ICOUNT: u64 = 1_000_000_000;

/// The name of the socket that a machine's line for requests is.
pub const CONTROL_SOCKET: &str = "control.sock";

/// What the caller wants otherwise than the board's description has it, and how QEMU plays it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// The model of the cores.
    pub cpu: Option<String>,
    /// How many cores.
    pub smp: Option<u32>,
    /// The bytes of memory.
    pub memory_bytes: Option<u64>,
    /// The interrupt controller.
    pub gic: Option<Gic>,
    /// The exception level at which the image is entered.
    pub entry: Entry,
    /// What time follows.
    pub clock: Clock,
    /// Whether a program may end QEMU with a status of its own.
    pub semihosting: Semihosting,
    /// Further arguments, as they are.
    pub extra: Vec<String>,
}

/// The interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Gic {
    /// GICv2.
    #[value(name = "2")]
    V2,
    /// GICv3.
    #[value(name = "3")]
    V3,
}

/// The exception level at which the image is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Entry {
    /// EL1: the machine has no virtualization extension, so Cofferdam must refuse it.
    El1,
    /// EL2.
    #[default]
    El2,
}

/// What time follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Clock {
    /// The computer's own clock; one thread for each core.
    #[default]
    Host,
    /// The number of executed instructions, one tick each: exactly repeatable, single-threaded.
    /// Time in which all cores sleep passes at once.
    Instructions,
    /// The same, but time in which all cores sleep passes as on the computer: for a machine that
    /// sleeps until somebody asks it something, which QEMU 10 else may let sleep on.
    InstructionsAndSleep,
}

/// Whether a program may end QEMU with a status of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Semihosting {
    /// It may not.
    #[default]
    Off,
    /// It may, by the call SYS_EXIT.
    On,
}

impl Machine {
    /// Returns what the board's description is to be changed to.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides {
            cpus: self.smp,
            memory_bytes: self.memory_bytes,
            cpu: self.cpu.clone(),
            gic_version: self.gic.map(|gic| match gic {
                Gic::V2 => 2,
                Gic::V3 => 3,
            }),
            qemu_arguments: self.extra.clone(),
            ..Overrides::default()
        };
        if self.entry == Entry::El1 {
            overrides.machine_options.push("virtualization=off".into());
        }
        if self.clock != Clock::Host {
            // The tree's seeds are the one thing in it that changes from run to run.
            overrides.machine_options.push("dtb-randomness=off".into());
        }
        overrides
    }

    /// Returns the command that boots `image` on `board`, with `bundle` where Linux would have its
    /// ramdisk. The serial line is standard input and output, that for requests is
    /// [`control_socket`].
    #[must_use]
    pub fn command(&self, board: &Qemu, image: &Path, bundle: Option<&Path>) -> Command {
        let mut command = leashed(&board.program);
        command.args(self.arguments(board)).arg("-kernel").arg(image);
        if board.has_control_line {
            // QEMU takes a comma in a file's name when it is doubled.
            let socket = control_socket(image).to_string_lossy().replace(',', ",,");
            command.args(["-serial", &format!("unix:{socket},server=on,wait=off")]);
        }
        if let Some(bundle) = bundle {
            command.arg("-initrd").arg(bundle);
        }
        command
    }

    /// Returns QEMU's arguments without an image.
    fn arguments(&self, board: &Qemu) -> Vec<String> {
        let mut board = board.clone();
        if self.clock != Clock::Host {
            board.cpu = format!("{},cntfrq={TICKS_PER_SECOND_ICOUNT}", board.cpu);
        }
        let mut arguments = board.arguments();
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.into()));
        // A reset of the whole machine ends it: nobody could tell how often it went round.
        push(&["-display", "none", "-nodefaults", "-monitor", "none", "-no-reboot"]);
        push(&["-chardev", "stdio,id=wire,signal=off", "-serial", "chardev:wire"]);
        if self.clock != Clock::Host {
            let sleep = if self.clock == Clock::Instructions { "off" } else { "on" };
            push(&["-icount", &format!("shift=0,sleep={sleep}"), "-seed", "1"]);
            push(&["-rtc", "base=2025-01-01,clock=vm"]);
        }
        if self.semihosting == Semihosting::On {
            push(&["-semihosting-config", "enable=on,target=native"]);
        }
        arguments
    }
}

/// Returns the socket that a machine's line for requests is: it lies beside the image.
#[must_use]
pub fn control_socket(image: &Path) -> PathBuf {
    image.with_file_name(CONTROL_SOCKET)
}

/// Returns a command that the kernel kills when the thread that started it is gone, however it
/// went: nobody is left to do it otherwise.
fn leashed(program: &str) -> Command {
    let setpriv = PathBuf::from("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// How many reads of a child's output are returned at once: one that never stops is no hang.
const READS_MAX: usize = 1 << 16;

/// What a [`Child`] was waited for and did.
#[derive(Debug)]
pub enum Heard {
    /// It wrote this to its standard output.
    Output(Vec<u8>),
    /// It has ended. What it wrote to its standard error comes along.
    Ended(ExitStatus, String),
    /// Nothing happened in the given time.
    Silence,
}

/// A running child whose output is read by a thread; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: mpsc::Receiver<Vec<u8>>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts `command` with pipes for its standard streams.
    ///
    /// # Errors
    /// What starting it failed with.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let (sender, output) = mpsc::channel();
        thread::spawn(move || forward(stdout, &sender));
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What could not be read of a diagnostic is no reason to lose the rest.
            let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self { child, input, output, errors: Some(errors) })
    }

    /// Takes the child's standard input, so that another thread can write to it.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// Waits up to `timeout` for output or for the end. Returns all output that has come by then:
    /// who listens rarely to a child that writes byte by byte would fall behind for good.
    ///
    /// # Errors
    /// What waiting for the child failed with.
    pub fn hear(&mut self, timeout: Duration) -> io::Result<Heard> {
        match self.output.recv_timeout(timeout) {
            Ok(mut bytes) => {
                let more = self.output.try_iter().take(READS_MAX);
                more.for_each(|more| bytes.extend(more));
                Ok(Heard::Output(bytes))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(Heard::Silence),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                let errors = self.errors.take().and_then(|thread| thread.join().ok());
                Ok(Heard::Ended(status, errors.unwrap_or_default()))
            }
        }
    }

    /// Kills the child; an idle QEMU can ignore anything gentler, and there is nothing to save.
    pub fn kill(&mut self) {
        // An error means that it has already been waited for, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn forward(pipe: Option<impl Read>, sender: &mpsc::Sender<Vec<u8>>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 4096];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::manifest::Manifest;
    use crate::message::Source;
    use std::sync::Arc;

    /// Returns the command line on the board of the demo.
    fn line(machine: &Machine) -> String {
        let text = "format = 1\nboard = \"qemu-virt\"\n[vm.a]\ncpus = \"0\"\nmemory = \"64M\"\n\
                    kernel = \"x\"\n";
        let source = Source { path: "test.toml".into(), text: text.into() };
        let manifest = Manifest::parse(Arc::new(source), PathBuf::new()).unwrap();
        let board = Board::load(&manifest, &machine.overrides()).unwrap();
        machine.arguments(board.qemu.as_ref().unwrap()).join(" ")
    }

    #[test]
    fn the_demo_machine_has_four_cores_at_el2_and_gicv3() {
        let line = line(&Machine::default());
        let hardware = "-machine virt,virtualization=on,gic-version=3 -cpu cortex-a72 -smp 4";
        assert!(line.starts_with(hardware), "{line}");
        assert!(line.contains("-serial chardev:wire"), "{line}");
        assert!(!line.contains("icount") && !line.contains("semihosting"), "{line}");
    }

    #[test]
    fn an_instruction_clock_leaves_nothing_to_chance() {
        let line = line(&Machine { clock: Clock::Instructions, ..Machine::default() });
        for part in [
            "dtb-randomness=off",
            "cntfrq=1000000000",
            "-icount shift=0,sleep=off",
            "-seed 1",
            "-rtc base=2025-01-01,clock=vm",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }

    #[test]
    fn what_is_wanted_otherwise_replaces_what_the_board_says() {
        let machine = Machine {
            entry: Entry::El1,
            gic: Some(Gic::V2),
            smp: Some(8),
            cpu: Some("cortex-a76".into()),
            memory_bytes: Some(8 << 30),
            extra: vec!["-d".into(), "int".into()],
            ..Machine::default()
        };
        let line = line(&machine);
        assert!(line.contains("gic-version=2,virtualization=off -cpu cortex-a76 -smp 8"), "{line}");
        assert!(line.contains("-m 8388608K") && line.contains("-d int"), "{line}");
    }

    #[test]
    fn a_child_is_heard_to_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf one; echo bad >&2; exit 3"]);
        let mut running = Running::start(command).unwrap();
        let mut said = Vec::new();
        loop {
            match running.hear(Duration::from_secs(60)).unwrap() {
                Heard::Output(bytes) => said.extend(bytes),
                Heard::Ended(status, errors) => {
                    assert_eq!((status.code(), errors.as_str()), (Some(3), "bad\n"));
                    break;
                }
                Heard::Silence => panic!("the child hangs"),
            }
        }
        assert_eq!(said, b"one");
    }

    #[test]
    fn what_a_child_has_written_byte_by_byte_is_heard_at_once() {
        let (sender, output) = mpsc::channel();
        b"flood".iter().for_each(|byte| sender.send(vec![*byte]).unwrap());
        let child = Command::new("true").spawn().unwrap();
        let mut running = Running { child, input: None, output, errors: None };
        match running.hear(Duration::ZERO).unwrap() {
            Heard::Output(bytes) => assert_eq!(bytes, b"flood"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dropped_child_is_dead() {
        let mut command = leashed("sleep");
        command.arg("1000");
        let running = Running::start(command).unwrap();
        let process = PathBuf::from(format!("/proc/{}", running.child.id()));
        assert!(process.exists());
        drop(running);
        assert!(!process.exists());
    }
}
