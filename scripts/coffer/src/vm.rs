// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer vm`: lists, makes, starts and stops the VMs of a machine that runs, by its port for
//! requests.
#![forbid(unsafe_code)]

pub mod client;
pub mod crash;
mod create;
mod error;
pub mod export;
#[cfg(test)]
mod fake;
mod line;
pub mod port;
pub mod stats;
pub mod upload;

pub use line::connect;

use crate::command::{self, Exit};
use crate::expect;
use crate::message::bytes;
use client::{Client, ClientError, Row};
use cofferdam::control::{Action, Request};
use crash::CrashArgs;
use create::{CreateArgs, UpdateArgs};
use error::Error;
use line::LineArgs;
use port::{Port, SystemPort};
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
    /// Makes a VM of the manifest and starts it, beside those that run
    Create(CreateArgs),
    /// Gives a VM the images that the manifest names now, or others, and starts it anew
    Update(UpdateArgs),
    /// Says that a VM is to keep the images of an update
    Confirm(ChangeArgs),
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

/// Carries out `coffer vm`.
#[must_use]
pub fn vm(args: &VmArgs) -> Exit {
    let line = args.verb.line();
    let done = line.path().and_then(|port| {
        let mut client = line.open(&port)?;
        args.verb.carry_out(&mut client, &port)
    });
    let (text, exit) = match done {
        Ok(said) if line.json => (json(&said), Exit::Done),
        Ok(said) => (said.to_text(), Exit::Done),
        Err(Error::Refused(report)) => return command::refuse(&report, line.json),
        Err(error) if line.json => (json(&JsonError::new(&error)), error.exit()),
        Err(error) => {
            eprintln!("error: {error}");
            return error.exit();
        }
    };
    print!("{text}");
    exit
}

impl Verb {
    fn line(&self) -> &LineArgs {
        match self {
            Self::Hello(line) | Self::List(line) | Self::Stats { line, .. } => line,
            Self::Crash(args) => &args.line,
            Self::Create(args) => &args.line,
            Self::Update(args) => &args.line,
            Self::Start(change)
            | Self::Kill(change)
            | Self::Reset(change)
            | Self::Pause(change)
            | Self::Resume(change)
            | Self::Destroy(change)
            | Self::Confirm(change)
            | Self::Stop { change, .. } => &change.line,
        }
    }

    fn carry_out(&self, client: &mut Client<SystemPort>, port: &Path) -> Result<Said, Error> {
        let (change, action) = match self {
            Self::Hello(_) => return Ok(Said::hello(hello(client)?)),
            Self::List(_) => return Ok(Said::List { format: FORMAT, vms: list(client)? }),
            Self::Crash(args) => {
                let report = Box::new(crash::look(client, &args.name, &args.wanted())?);
                return Ok(Said::Crash { format: FORMAT, report });
            }
            Self::Stats { name, .. } => {
                let stats = stats(client, name.as_deref())?;
                return Ok(Said::Stats { format: FORMAT, stats });
            }
            Self::Create(args) => {
                let (vm, state) = args.carry_out(client, port)?;
                let (vm, asked) = (vm.to_owned(), Action::Create.verb());
                return Ok(Said::Changed { format: FORMAT, vm, asked, state: Some(state) });
            }
            Self::Update(args) => {
                let (vm, state, confirm_ms) = args.carry_out(client, port)?;
                let (vm, asked) = (vm.to_owned(), "update");
                return Ok(Said::Updated { format: FORMAT, vm, asked, state, confirm_ms });
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
            Self::Confirm(change) => (change, Action::Confirm),
        };
        let ChangeArgs { name, wait, timeout, .. } = change;
        let request = Request::Change { vm: name, action };
        client.ask(&request.to_string(), PATIENCE)?;
        let state = if *wait { Some(wait_for(client, name, action, *timeout)?) } else { None };
        Ok(Said::Changed { format: FORMAT, vm: name.clone(), asked: action.verb(), state })
    }
}

/// Waits until what was asked for is done, and returns the VM's state.
fn wait_for<P: Port>(
    client: &mut Client<P>,
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
        Action::Start | Action::Reset | Action::Create | Action::Update { .. } => {
            !matches!(state, "starting" | "stopping")
        }
        Action::Stop { .. } | Action::Kill => matches!(state, "off" | DESTROYED),
        Action::Pause => state == "paused",
        Action::Resume => !matches!(state, "paused" | "resuming"),
        Action::Destroy => state == DESTROYED,
        // That is done when it is granted.
        Action::Confirm => true,
    }
}

fn hello<P: Port>(client: &mut Client<P>) -> Result<Row, ClientError> {
    Ok(client.ask(&Request::Hello.to_string(), PATIENCE)?.pop().unwrap_or_default())
}

fn list<P: Port>(client: &mut Client<P>) -> Result<Vec<JsonVm>, ClientError> {
    let rows = client.ask(&Request::List.to_string(), PATIENCE)?;
    rows.into_iter().map(JsonVm::new).collect()
}

/// Asks what is counted, of one VM or of all.
///
/// # Errors
/// The machine did not answer as documented.
pub fn stats(client: &mut Client<SystemPort>, vm: Option<&str>) -> Result<Stats, ClientError> {
    let hz = hello(client)?.get("counter_hz").parse();
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
    let client = line.path().and_then(|port| line.open(&port));
    let stats = client.and_then(|mut client| Ok(stats(&mut client, None)?));
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
        report: Box<crash::Report>,
    },
    Changed {
        format: u32,
        vm: String,
        asked: &'static str,
        state: Option<String>,
    },
    Updated {
        format: u32,
        vm: String,
        asked: &'static str,
        state: String,
        /// How long it keeps the images, unless that is confirmed.
        confirm_ms: Option<u32>,
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
            Self::Changed { vm, asked: "confirm", .. } => format!("{vm} keeps its images\n"),
            Self::Changed { vm, asked, state: None, .. } => format!("{vm}: {asked} has begun\n"),
            Self::Changed { vm, state: Some(state), .. } => format!("{vm} is {state}\n"),
            Self::Updated { vm, state, confirm_ms: None, .. } => {
                format!("{vm} is {state}, with its new images\n")
            }
            Self::Updated { vm, state, confirm_ms: Some(ms), .. } => format!(
                "{vm} is {state}, with its new images; write coffer vm confirm {vm} within {} s, or \
                 it gets the old ones back\n",
                f64::from(*ms) / 1000.0
            ),
        }
    }
}

fn table(vms: &[JsonVm]) -> String {
    let width = vms.iter().map(|vm| vm.name.len()).max().unwrap_or(0).max(4);
    let line = |name: &str, state: &str, cpus: &str, memory: &str, images: &str| {
        let line = format!("{name:width$}  {state:8}  {cpus:>4}  {memory:>6}  {images}");
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line("NAME", "STATE", "CPUS", "MEMORY", "IMAGES");
    for JsonVm { name, state, vcpus, memory_bytes, more } in vms {
        let images = more.get("images").map_or("", String::as_str);
        text += &line(name, state, &vcpus.to_string(), &bytes(*memory_bytes), images);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let vms = vec![JsonVm::new(row(&[&fields[..], &[("images", "trial")]].concat())).unwrap()];
        let said = Said::List { format: FORMAT, vms };
        let table = "NAME  STATE     CPUS  MEMORY  IMAGES\n7     off          2      1M  trial\n";
        assert_eq!(said.to_text(), table);
        let json = serde_json::to_value(&said).unwrap();
        let vm = serde_json::json!({
            "name": "7", "state": "off", "vcpus": 2, "memory_bytes": 1_048_576, "images": "trial",
        });
        assert_eq!(json, serde_json::json!({ "format": 1, "vms": [vm] }));
        assert!(JsonVm::new(row(&fields[..3])).is_err());
    }
}
