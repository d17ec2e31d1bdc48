// SPDX-License-Identifier: Apache-2.0 OR MIT
//! QEMU: its command line for the board `qemu-virt`, and a child that cannot outlive its caller.
//!
//! Knows nothing of manifests or of what is said on the wire. The serial line is the child's
//! standard input and output, so that every caller (terminal, expectation, test) sees plain bytes.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The program that is started.
const QEMU: &str = "qemu-system-aarch64";
/// Ticks of the generic timer in a second when one tick is one instruction.
const TICKS_PER_SECOND_ICOUNT: u64 = 1_000_000_000;

/// The machine that QEMU plays: `-M virt` and what goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// The name of the core, as in `-cpu`.
    pub cpu: String,
    /// How many cores.
    pub smp: u32,
    /// How much memory, as in `-m`.
    pub memory: String,
    /// The interrupt controller.
    pub gic: Gic,
    /// The exception level at which the image is entered.
    pub entry: Entry,
    /// What time follows.
    pub clock: Clock,
    /// Whether a program may end QEMU with a status of its own.
    pub semihosting: Semihosting,
    /// Further arguments, as they are.
    pub extra: Vec<OsString>,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Entry {
    /// EL1: the machine has no virtualization extension, so Cofferdam must refuse it.
    El1,
    /// EL2.
    El2,
}

/// What time follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// The computer's own clock; one thread for each core.
    Host,
    /// The number of executed instructions, one tick each: exactly repeatable, single-threaded.
    Instructions,
}

/// Whether a program may end QEMU with a status of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Semihosting {
    /// It may not.
    Off,
    /// It may, by the call SYS_EXIT.
    On,
}

impl Default for Machine {
    /// Returns the machine of the demo: four cores, GICv3, 2 GiB.
    fn default() -> Self {
        Self {
            cpu: "cortex-a72".into(),
            smp: 4,
            memory: "2G".into(),
            gic: Gic::V3,
            entry: Entry::El2,
            clock: Clock::Host,
            semihosting: Semihosting::Off,
            extra: Vec::new(),
        }
    }
}

impl Machine {
    /// Returns QEMU's command line without an image; the serial line is standard input and output.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.hardware(None);
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        push(&["-display", "none", "-nodefaults", "-monitor", "none", "-no-reboot"]);
        push(&["-chardev", "stdio,id=wire,signal=off", "-serial", "chardev:wire"]);
        if self.clock == Clock::Instructions {
            push(&["-icount", "shift=0,sleep=off", "-seed", "1"]);
            push(&["-rtc", "base=2025-01-01,clock=vm"]);
        }
        if self.semihosting == Semihosting::On {
            push(&["-semihosting-config", "enable=on,target=native"]);
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// Returns the command that boots `image` with `bundle` where Linux would have its ramdisk.
    #[must_use]
    pub fn command(&self, image: &Path, bundle: Option<&Path>) -> Command {
        let mut command = leashed(QEMU);
        command.args(self.arguments()).arg("-kernel").arg(image);
        if let Some(bundle) = bundle {
            command.arg("-initrd").arg(bundle);
        }
        command
    }

    /// Returns the command that writes the machine's device tree to `file` and starts nothing.
    #[must_use]
    pub fn dump_tree_command(&self, file: &Path) -> Command {
        let mut command = leashed(QEMU);
        command.args(self.hardware(Some(file))).args(["-display", "none"]);
        command
    }

    /// Returns the arguments that say what the hardware is.
    fn hardware(&self, dump_tree: Option<&Path>) -> Vec<OsString> {
        let mut board = OsString::from("virt,virtualization=");
        board.push(match self.entry {
            Entry::El1 => "off",
            Entry::El2 => "on",
        });
        board.push(match self.gic {
            Gic::V2 => ",gic-version=2",
            Gic::V3 => ",gic-version=3",
        });
        let mut cpu = self.cpu.clone();
        if self.clock == Clock::Instructions {
            // The tree's seeds are the one thing in it that changes from run to run.
            board.push(",dtb-randomness=off");
            cpu = format!("{cpu},cntfrq={TICKS_PER_SECOND_ICOUNT}");
        }
        if let Some(file) = dump_tree {
            board.push(",dumpdtb=");
            board.push(file);
        }
        let smp = self.smp.to_string();
        let words: [OsString; 8] = [
            "-M".into(),
            board,
            "-cpu".into(),
            cpu.into(),
            "-smp".into(),
            smp.into(),
            "-m".into(),
            self.memory.as_str().into(),
        ];
        words.into()
    }
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

    /// Waits up to `timeout` for output or for the end.
    ///
    /// # Errors
    /// What waiting for the child failed with.
    pub fn hear(&mut self, timeout: Duration) -> io::Result<Heard> {
        match self.output.recv_timeout(timeout) {
            Ok(bytes) => Ok(Heard::Output(bytes)),
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

/// Writes the device tree of `machine` to `file`.
///
/// # Errors
/// What QEMU said where it refuses the machine, or that it hung.
pub fn dump_tree(machine: &Machine, file: &Path) -> io::Result<()> {
    /// QEMU needs a tenth of a second for it.
    const LIMIT: Duration = Duration::from_secs(30);
    let mut running = Running::start(machine.dump_tree_command(file))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match running.hear(deadline.saturating_duration_since(Instant::now()))? {
            Heard::Output(_) => {}
            Heard::Ended(status, _) if status.success() && file.exists() => return Ok(()),
            Heard::Ended(_, errors) => return Err(io::Error::other(errors.trim().to_owned())),
            Heard::Silence => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{QEMU} hangs")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let words = machine.arguments();
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_demo_machine_has_four_cores_at_el2_and_gicv3() {
        let line = line(&Machine::default());
        assert!(line.starts_with("-M virt,virtualization=on,gic-version=3 -cpu cortex-a72 -smp 4"));
        assert!(line.contains("-m 2G"));
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
    fn entry_at_el1_turns_virtualization_off() {
        let machine = Machine { entry: Entry::El1, gic: Gic::V2, ..Machine::default() };
        assert!(line(&machine).starts_with("-M virt,virtualization=off,gic-version=2 "));
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
