// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer vm`: lists, starts and stops the VMs of a machine that runs, by its port for requests.
#![forbid(unsafe_code)]

pub mod client;
pub mod crash;
pub mod export;
pub mod port;
pub mod stats;

use crate::command::Exit;
use crate::expect;
use crate::message::bytes;
use crate::run::work_folder;
use client::{Client, ClientError, Row};
use cofferdam::control::{Action, Request};
use crash::{CrashArgs, CrashError, Report};
use port::{SystemPort, running};
use serde::Serialize;
use stats::Stats;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The version of the JSON.
const FORMAT: u32 = 1;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The state of a VM that is no longer listed.
const DESTROYED: &str = "destroyed";
/// How often somebody looks who waits for a VM.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lists, starts and stops the VMs of a machine that runs
#[derive(Clone, Debug, clap::Args)]
pub struct VmArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// Says who answers
    Hello(LineArgs),
    /// Lists the VMs and what they do
    List(LineArgs),
    /// Shows what each vCPU's exits cost and brought, which stops nobody
    Stats {
        /// The VM (default: all)
        name: Option<String>,
        #[command(flatten)]
        line: LineArgs,
    },
    /// Shows why a VM has crashed and where it was
    Crash(CrashArgs),
    /// Starts a VM that is off or has crashed
    Start(ChangeArgs),
    /// Asks a VM to go off, as by its power button; when its time is up it is turned off
    Stop {
        #[command(flatten)]
        change: ChangeArgs,
        /// How long it has
        #[arg(long, value_name = "TIME", value_parser = time)]
        deadline: Option<Duration>,
    },
    /// Turns a VM off at once
    Kill(ChangeArgs),
    /// Starts a VM anew, at once
    Reset(ChangeArgs),
    /// Holds a VM where it is
    Pause(ChangeArgs),
    /// Lets a VM go on
    Resume(ChangeArgs),
    /// Forgets a VM that is off; what it had is free
    Destroy(ChangeArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct LineArgs {
    /// The socket or serial device (default: that of the machine that coffer run has started)
    #[arg(long, value_name = "PATH")]
    port: Option<PathBuf>,
    /// The speed of a serial device
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
    /// Write JSON (format 1)
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct ChangeArgs {
    /// The VM
    name: String,
    #[command(flatten)]
    line: LineArgs,
    /// Waits until it is done
    #[arg(long)]
    wait: bool,
    /// How long at most
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = time, default_value = "30s")]
    timeout: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    expect::duration(text).ok_or_else(|| "write for example 30s or 5min".to_owned())
}

/// Why a request has failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No machine was found.
    #[error("no machine with [control] on a UART runs here; write --port, or coffer run MANIFEST")]
    NoMachine,
    /// More than one was found.
    #[error("several machines run here; write one of{}", listed(.0))]
    Machines(Vec<PathBuf>),
    /// The port cannot be opened.
    #[error("{}: {source}", path.display())]
    Port { path: PathBuf, source: std::io::Error },
    /// The machine did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The crash cannot be shown.
    #[error(transparent)]
    Crash(#[from] CrashError),
    /// It was begun, and is not done.
    #[error("{name} is still {state} after {} s", waited.as_secs())]
    Timeout { name: String, state: String, waited: Duration },
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("\n  --port {}", path.display())).collect()
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Timeout { .. }
            | Self::Client(ClientError::Silent(_))
            | Self::Crash(CrashError::Client(ClientError::Silent(_))) => Exit::Timeout,
            _ => Exit::Failed,
        }
    }

    /// Returns the code in JSON: the hypervisor's own where it has refused.
    fn code(&self) -> &str {
        match self {
            Self::NoMachine | Self::Machines(_) | Self::Port { .. } => "port",
            Self::Client(error) | Self::Crash(CrashError::Client(error)) => error.code(),
            Self::Crash(error) => error.code(),
            Self::Timeout { .. } => "timeout",
        }
    }
}

/// Carries out `coffer vm`.
#[must_use]
pub fn vm(args: &VmArgs) -> Exit {
    let line = args.verb.line();
    let done = open(line).and_then(|mut client| args.verb.carry_out(&mut client));
    let (text, exit) = match done {
        Ok(said) if line.json => (json(&said), Exit::Done),
        Ok(said) => (said.to_text(), Exit::Done),
        Err(error) if line.json => (json(&JsonError::new(&error)), error.exit()),
        Err(error) => {
            eprintln!("error: {error}");
            return error.exit();
        }
    };
    print!("{text}");
    exit
}

/// Opens the port that is named, or that of the only machine that runs.
fn open(line: &LineArgs) -> Result<Client<SystemPort>, Error> {
    let path = match &line.port {
        Some(path) => path.clone(),
        None => only(running(&work_folder("")))?,
    };
    let port = SystemPort::open(&path, line.baud);
    let port = port.map_err(|source| Error::Port { path, source })?;
    Ok(Client::new(port, first_seq()))
}

fn only(mut paths: Vec<PathBuf>) -> Result<PathBuf, Error> {
    match (paths.pop(), paths.is_empty()) {
        (Some(path), true) => Ok(path),
        (Some(path), false) => {
            paths.push(path);
            Err(Error::Machines(paths))
        }
        (None, _) => Err(Error::NoMachine),
    }
}

/// Draws a number: whoever was here before must not have used it of late.
fn first_seq() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl Verb {
    fn line(&self) -> &LineArgs {
        match self {
            Self::Hello(line) | Self::List(line) | Self::Stats { line, .. } => line,
            Self::Crash(args) => &args.line,
            Self::Start(change)
            | Self::Kill(change)
            | Self::Reset(change)
            | Self::Pause(change)
            | Self::Resume(change)
            | Self::Destroy(change)
            | Self::Stop { change, .. } => &change.line,
        }
    }

    fn carry_out(&self, client: &mut Client<SystemPort>) -> Result<Said, Error> {
        let (change, action) = match self {
            Self::Hello(_) => {
                let mut rows = client.ask(&Request::Hello.to_string(), PATIENCE)?;
                return Ok(Said::hello(rows.pop().unwrap_or_default()));
            }
            Self::List(_) => return Ok(Said::List { format: FORMAT, vms: list(client)? }),
            Self::Crash(args) => {
                let report = Box::new(crash::look(client, &args.name, &args.wanted())?);
                return Ok(Said::Crash { format: FORMAT, report });
            }
            Self::Stats { name, .. } => {
                let stats = stats(client, name.as_deref())?;
                return Ok(Said::Stats { format: FORMAT, stats });
            }
            Self::Start(change) => (change, Action::Start),
            Self::Stop { change, deadline } => {
                let ms = |deadline: Duration| u32::try_from(deadline.as_millis()).ok();
                (change, Action::Stop { deadline_ms: deadline.and_then(ms) })
            }
            Self::Kill(change) => (change, Action::Kill),
            Self::Reset(change) => (change, Action::Reset),
            Self::Pause(change) => (change, Action::Pause),
            Self::Resume(change) => (change, Action::Resume),
            Self::Destroy(change) => (change, Action::Destroy),
        };
        let ChangeArgs { name, wait, timeout, .. } = change;
        let request = Request::Change { vm: name, action };
        client.ask(&request.to_string(), PATIENCE)?;
        let state = if *wait { Some(wait_for(client, name, action, *timeout)?) } else { None };
        Ok(Said::Changed { format: FORMAT, vm: name.clone(), asked: action.verb(), state })
    }
}

/// Waits until what was asked for is done, and returns the VM's state.
fn wait_for(
    client: &mut Client<SystemPort>,
    name: &str,
    action: Action,
    patience: Duration,
) -> Result<String, Error> {
    let begun = Instant::now();
    loop {
        let vms = list(client)?;
        let state = vms.iter().find(|vm| vm.name == name).map_or(DESTROYED, |vm| &vm.state);
        if is_done(action, state) {
            return Ok(state.to_owned());
        }
        if begun.elapsed() >= patience {
            let (name, state) = (name.to_owned(), state.to_owned());
            return Err(Error::Timeout { name, state, waited: patience });
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Returns whether a VM in this state has done what was asked. A guest that starts may be off again
/// before anybody looks.
fn is_done(action: Action, state: &str) -> bool {
    match action {
        Action::Confirm => true,
        Action::Start | Action::Reset | Action::Create | Action::Update { .. } => {
            !matches!(state, "starting" | "stopping")
        }
        Action::Stop { .. } | Action::Kill => matches!(state, "off" | DESTROYED),
        Action::Pause => state == "paused",
        Action::Resume => !matches!(state, "paused" | "resuming"),
        Action::Destroy => state == DESTROYED,
    }
}

fn list(client: &mut Client<SystemPort>) -> Result<Vec<JsonVm>, ClientError> {
    let rows = client.ask(&Request::List.to_string(), PATIENCE)?;
    rows.into_iter().map(JsonVm::new).collect()
}

/// Asks what is counted, of one VM or of all.
///
/// # Errors
/// The machine did not answer as documented.
pub fn stats(client: &mut Client<SystemPort>, vm: Option<&str>) -> Result<Stats, ClientError> {
    let hello = client.ask(&Request::Hello.to_string(), PATIENCE)?.pop().unwrap_or_default();
    let hz = hello.get("counter_hz").parse();
    let hz = hz.map_err(|_| ClientError::Strange("a hello without counter_hz".to_owned()))?;
    Stats::read(hz, client.ask(&Request::Stats { vm }.to_string(), PATIENCE)?)
}

/// Writes what a machine counts as OpenMetrics text
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// The socket or serial device (default: that of the machine that coffer run has started)
    #[arg(long, value_name = "PATH")]
    port: Option<PathBuf>,
    /// The speed of a serial device
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
}

/// Carries out `coffer export`.
#[must_use]
pub fn export(args: &ExportArgs) -> Exit {
    let line = LineArgs { port: args.port.clone(), baud: args.baud, json: false };
    let stats = open(&line).and_then(|mut client| Ok(stats(&mut client, None)?));
    let text = stats.and_then(|stats| {
        let strange = |_| ClientError::Strange("numbers that are too large".to_owned());
        Ok(export::to_open_metrics(&stats).map_err(strange)?)
    });
    match text {
        Ok(text) => {
            print!("{text}");
            Exit::Done
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.exit()
        }
    }
}

/// What there is to say.
#[derive(Serialize)]
#[serde(untagged)]
enum Said {
    Hello {
        format: u32,
        hypervisor: BTreeMap<String, String>,
    },
    List {
        format: u32,
        vms: Vec<JsonVm>,
    },
    Stats {
        format: u32,
        #[serde(flatten)]
        stats: Stats,
    },
    Crash {
        format: u32,
        #[serde(flatten)]
        report: Box<Report>,
    },
    Changed {
        format: u32,
        vm: String,
        asked: &'static str,
        state: Option<String>,
    },
}

#[derive(Serialize)]
struct JsonVm {
    name: String,
    state: String,
    vcpus: u64,
    memory_bytes: u64,
    /// What a later hypervisor says beyond that.
    #[serde(flatten)]
    more: BTreeMap<String, String>,
}

impl JsonVm {
    fn new(row: Row) -> Result<Self, ClientError> {
        let mut more: BTreeMap<_, _> = row.0.into_iter().collect();
        let mut take = |key: &str| {
            more.remove(key).ok_or_else(|| ClientError::Strange(format!("a VM without {key}")))
        };
        let (name, state) = (take("name")?, take("state")?);
        let (vcpus, memory) = (take("vcpus")?, take("memory_bytes")?);
        let number =
            |text: String| text.parse().map_err(|_| ClientError::Strange(format!("{text:?}")));
        Ok(Self { name, state, vcpus: number(vcpus)?, memory_bytes: number(memory)?, more })
    }
}

#[derive(Serialize)]
struct JsonError<'a> {
    format: u32,
    code: &'a str,
    text: String,
}

impl<'a> JsonError<'a> {
    fn new(error: &'a Error) -> Self {
        Self { format: FORMAT, code: error.code(), text: error.to_string() }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(|error| error.to_string(), |text| text + "\n")
}

impl Said {
    fn hello(row: Row) -> Self {
        Self::Hello { format: FORMAT, hypervisor: row.0.into_iter().collect() }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Hello { hypervisor, .. } => {
                hypervisor.iter().map(|(key, value)| format!("{key:12} {value}\n")).collect()
            }
            Self::List { vms, .. } => table(vms),
            Self::Stats { stats, .. } => stats::to_text(stats),
            Self::Crash { report, .. } => report.to_text(),
            Self::Changed { vm, asked, state: None, .. } => format!("{vm}: {asked} has begun\n"),
            Self::Changed { vm, state: Some(state), .. } => format!("{vm} is {state}\n"),
        }
    }
}

fn table(vms: &[JsonVm]) -> String {
    let width = vms.iter().map(|vm| vm.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:8}  {:>4}  {:>6}\n", "NAME", "STATE", "CPUS", "MEMORY");
    for JsonVm { name, state, vcpus, memory_bytes, .. } in vms {
        let memory = bytes(*memory_bytes);
        text += &format!("{name:width$}  {state:8}  {vcpus:>4}  {memory:>6}\n");
    }
    text
}

/// Opens the port of a machine that was started with this image, for other programs.
///
/// # Errors
/// Nobody listens there yet.
pub fn connect(image: &Path) -> std::io::Result<Client<SystemPort>> {
    let port = SystemPort::open(&crate::qemu::control_socket(image), 0)?;
    Ok(Client::new(port, first_seq()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_is_found_and_two_are_named() {
        assert_eq!(only(vec!["a".into()]).unwrap(), PathBuf::from("a"));
        assert!(only(vec![]).unwrap_err().to_string().ends_with("coffer run MANIFEST"));
        let said = only(vec!["a".into(), "b".into()]).unwrap_err().to_string();
        assert!(said.ends_with("write one of\n  --port a\n  --port b"), "{said}");
    }

    #[test]
    fn a_change_is_done_when_its_state_is_there() {
        let stop = Action::Stop { deadline_ms: None };
        for (action, done, not) in [
            (Action::Start, &["running", "off"][..], &["starting"][..]),
            (Action::Reset, &["running"], &["starting", "stopping"]),
            (stop, &["off"], &["running", "stopping"]),
            (Action::Kill, &["off"], &["stopping", "running"]),
            (Action::Pause, &["paused"], &["running"]),
            (Action::Resume, &["running", "off"], &["paused", "resuming"]),
            (Action::Destroy, &[DESTROYED], &["off", "gone"]),
        ] {
            assert!(done.iter().all(|state| is_done(action, state)), "{action:?}");
            assert!(!not.iter().any(|state| is_done(action, state)), "{action:?}");
        }
    }

    #[test]
    fn the_list_is_a_table_and_json() {
        let row = |fields: &[(&str, &str)]| {
            Row(fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        let fields = [("name", "7"), ("state", "off"), ("vcpus", "2"), ("memory_bytes", "1048576")];
        let vms = vec![JsonVm::new(row(&[&fields[..], &[("new", "x")]].concat())).unwrap()];
        let said = Said::List { format: FORMAT, vms };
        let table = "NAME  STATE     CPUS  MEMORY\n7     off          2      1M\n";
        assert_eq!(said.to_text(), table);
        let json = serde_json::to_value(&said).unwrap();
        let vm = serde_json::json!({
            "name": "7", "state": "off", "vcpus": 2, "memory_bytes": 1_048_576, "new": "x",
        });
        assert_eq!(json, serde_json::json!({ "format": 1, "vms": [vm] }));
        assert!(JsonVm::new(row(&fields[..3])).is_err());
    }
}
