// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine that is asked for things while it runs: by its port for requests, or in band, between
//! what is typed and said on its console. It dies with the test.

use crate::harness::{LIMIT, Result, prepare, text};
use coffer::qemu::{Heard, Machine, Running};
use coffer::run::Prepared;
use coffer::vm;
use coffer::vm::client::{Client, ClientError, Row};
use coffer::vm::port::{Port, SystemPort};
use std::io::{self, ErrorKind, Write};
use std::process::ChildStdin;
use std::thread;
use std::time::{Duration, Instant};

/// How long a request may take: a hang, where it takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a moment is between two looks.
const MOMENT: Duration = Duration::from_millis(20);

/// What a manifest says whose machine takes requests on both ports.
pub const BOTH_PORTS: &str = "\n[control]\nport = [\"console\", \"serial1\"]\n";

/// A machine that runs, and both ways to ask it.
pub struct Controlled {
    /// By the UART for requests.
    pub client: Client<SystemPort>,
    /// In band.
    pub console: Client<Console>,
}

/// The console of a machine, as a line for requests.
pub struct Console {
    child: Running,
    input: ChildStdin,
    said: String,
    /// How much of that [`Controlled::hear`] has passed over.
    heard: usize,
    deadline: Instant,
}

impl Port for Console {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.write_all(bytes)?;
        self.input.flush()
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        if Instant::now() > self.deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        match self.child.hear(MOMENT)? {
            Heard::Output(bytes) => {
                self.said += &String::from_utf8_lossy(&bytes).replace(['\x1e', '\r'], "");
                Ok(bytes)
            }
            Heard::Silence => Ok(Vec::new()),
            Heard::Ended(status, errors) => {
                Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{status}: {errors}")))
            }
        }
    }
}

impl Controlled {
    /// Boots the manifest of `test`, which has a UART for requests.
    pub fn boot(test: &str, manifest: &str, machine: &Machine) -> Result<Self> {
        Self::boot_prepared(prepare(test, manifest, machine, Default::default())?)
    }

    /// Boots what was prepared of such a manifest.
    pub fn boot_prepared(prepared: Prepared) -> Result<Self> {
        let mut child = Running::start(prepared.command).map_err(text)?;
        let input = child.take_input().ok_or("the machine has no console")?;
        let deadline = Instant::now() + LIMIT;
        let console = Console { child, input, said: String::new(), heard: 0, deadline };
        let client = loop {
            match vm::connect(&prepared.artifacts.image) {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(text(error)),
                Err(_) => thread::sleep(MOMENT),
            }
        };
        // Nobody else asks here, so any number is one that was not used.
        let mut controlled = Self { client, console: Client::new(console, 0) };
        controlled.hear("[09] up in ")?;
        Ok(controlled)
    }

    /// Asks by the UART for requests and returns the rows of the reply.
    pub fn ask(&mut self, request: &str) -> Result<Vec<Row>> {
        let asked = self.client.ask(request, PATIENCE);
        asked.map_err(|error| self.failed(request, &error.to_string()))
    }

    /// Asks what is to be refused, and returns the code.
    pub fn refused(&mut self, request: &str) -> Result<String> {
        match self.client.ask(request, PATIENCE) {
            Err(ClientError::Refused { code, .. }) => Ok(code),
            Err(error) => Err(self.failed(request, &error.to_string())),
            Ok(_) => Err(self.failed(request, "it was not refused")),
        }
    }

    /// Asks in band.
    pub fn ask_in_band(&mut self, request: &str) -> Result<Vec<Row>> {
        let asked = self.console.ask(request, PATIENCE);
        asked.map_err(|error| self.failed(request, &error.to_string()))
    }

    /// Returns the state of a VM; none where it is not listed.
    pub fn state(&mut self, vm: &str) -> Result<Option<String>> {
        let rows = self.ask("list")?;
        Ok(rows.iter().find(|row| row.get("name") == vm).map(|row| row.get("state").to_owned()))
    }

    /// Fails, with the log, where a VM is not in this state now.
    pub fn is_in(&mut self, vm: &str, state: &str) -> Result<()> {
        match self.state(vm)? {
            Some(now) if now == state => Ok(()),
            now => Err(self.failed(vm, &format!("it is {now:?} and not {state}"))),
        }
    }

    /// Waits until a VM is in this state.
    pub fn wait_for(&mut self, vm: &str, state: &str) -> Result<()> {
        loop {
            let now = self.state(vm)?;
            if now.as_deref() == Some(state) {
                return Ok(());
            }
            // The console is listened to, so that its pipe is never full, and its deadline counts.
            self.listen(&format!("{vm} is {now:?} and not {state}"))?;
        }
    }

    /// Waits until the machine says a line with this in it, and passes over what was said before.
    pub fn hear(&mut self, what: &str) -> Result<()> {
        self.hear_all(&[what])
    }

    /// Waits until the machine says a line with each of these in it, in whatever order, and passes
    /// over what was said before the last of them.
    pub fn hear_all(&mut self, all: &[&str]) -> Result<()> {
        loop {
            let console = self.console.port();
            let rest = console.said.get(console.heard..).unwrap_or_default();
            let end_of = |what: &&str| {
                let at = rest.find(what)?;
                Some(at + rest.get(at..)?.find('\n')?)
            };
            let ends: Option<Vec<usize>> = all.iter().map(end_of).collect();
            if let Some(end) = ends.and_then(|ends| ends.into_iter().max()) {
                console.heard += end;
                // It goes on: a hang is counted from here.
                console.deadline = Instant::now() + LIMIT;
                return Ok(());
            }
            self.listen(&format!("{all:?} was not said"))?;
        }
    }

    /// Types on the console, for the guest that has the focus.
    pub fn type_in(&mut self, what: &str) -> Result<()> {
        self.console.port().send(what.as_bytes()).map_err(text)
    }

    /// Passes over what has been said.
    pub fn pass_over(&mut self) -> Result<()> {
        self.listen("it does not go on")?;
        let console = self.console.port();
        console.heard = console.said.len();
        Ok(())
    }

    /// Waits until the machine has said this, now or earlier, and returns everything that it has.
    pub fn wait_until_said(&mut self, what: &str) -> Result<String> {
        loop {
            self.listen(&format!("{what:?} was not said"))?;
            let said = self.whole_lines();
            if said.contains(what) {
                return Ok(said.to_owned());
            }
        }
    }

    /// Returns all lines that the machine has said, and what it says now; not the one that it is
    /// in the middle of.
    pub fn said(&mut self) -> Result<String> {
        self.listen("it does not go on")?;
        Ok(self.whole_lines().to_owned())
    }

    fn whole_lines(&mut self) -> &str {
        let said = &self.console.port().said;
        let end = said.rfind('\n').map_or(0, |end| end + 1);
        said.get(..end).unwrap_or_default()
    }

    /// Listens to the console, whose pipe must not become full, while something else is waited for.
    pub fn goes_on(&mut self) -> Result<()> {
        self.listen("it does not go on")
    }

    fn listen(&mut self, why: &str) -> Result<()> {
        let received = self.console.port().receive();
        received.map(drop).map_err(|error| self.failed(why, &error.to_string()))
    }

    fn failed(&mut self, what: &str, why: &str) -> String {
        // What it has said meanwhile belongs to it.
        while self.console.port().receive().is_ok_and(|bytes| !bytes.is_empty()) {}
        format!("{what}: {why}\n--- the log ---\n{}", self.console.port().said)
    }
}
