// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer vm create` and `coffer vm update`: a VM of a manifest, or new images of one, for a machine
//! that runs.
//!
//! The manifest has all VMs, so all are planned together and none clashes with another; the part
//! with the one VM is uploaded. What can be seen here is refused before that takes its time; the
//! machine checks all of it again.
#![forbid(unsafe_code)]

use super::client::Client;
use super::line::LineArgs;
use super::port::Port;
use super::upload::{carry_out, upload};
use super::{Error, JsonVm, hello, list, wait_for};
use crate::board::Overrides;
use crate::build::{self, Options, Origin};
use crate::bundle::Bundle;
use crate::command::print_report;
use crate::expect;
use crate::explain::Code;
use crate::manifest::{Manifest, Spanned, Vm, value};
use crate::message::{Message, Report, bytes, nearest, quote};
use cofferdam::control::{Action, Request};
use cofferdam::plan::VmPlan;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a VM may take to start.
const START: Duration = Duration::from_secs(60);
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What is planned, and for which machine.
#[derive(Clone, Debug, clap::Args)]
struct FromArgs {
    /// The manifest, with all VMs of the machine (default: the one that coffer run was given)
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The machine's device tree, where it is neither the board's own nor that of coffer run
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
}

/// Which VM is made.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// The VM, as the manifest names it
    name: String,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    pub line: LineArgs,
}

/// Which VM gets which images.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// The VM, as the manifest names it
    name: String,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    images: ImageArgs,
    /// Puts the old images back after this time, unless coffer vm confirm NAME is written before
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    confirm: Option<u32>,
    #[command(flatten)]
    pub line: LineArgs,
}

/// What the VM gets in place of what the manifest says.
#[derive(Clone, Debug, Default, clap::Args)]
struct ImageArgs {
    /// The kernel, in place of the manifest's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The ramdisk, in place of the manifest's
    #[arg(long, value_name = "FILE")]
    ramdisk: Option<PathBuf>,
    /// The kernel's command line, in place of the manifest's
    #[arg(long, value_name = "TEXT", value_parser = cmdline)]
    cmdline: Option<String>,
}

fn cmdline(text: &str) -> Result<String, String> {
    value::cmdline(text).map_err(|wrong| wrong.why)
}

fn milliseconds(text: &str) -> Result<u32, String> {
    let ms = expect::duration(text).and_then(|time| u32::try_from(time.as_millis()).ok());
    ms.filter(|ms| *ms > 0).ok_or_else(|| "write for example 120s or 5min".to_owned())
}

impl CreateArgs {
    /// Makes the VM and returns its name and what state it is in.
    pub(super) fn carry_out<P: Port>(
        &self,
        client: &mut Client<P>,
        port: &Path,
    ) -> Result<(&str, String), Error> {
        let (manifest, options) = (self.from.manifest(port)?, self.from.options(port));
        let change = Change { manifest, options, name: &self.name, action: Action::Create };
        Ok((&self.name, change.carry_out(client)?))
    }
}

impl UpdateArgs {
    /// Gives the VM its images and returns its name, what state it is in, and the time after which
    /// it gets the old ones back.
    pub(super) fn carry_out<P: Port>(
        &self,
        client: &mut Client<P>,
        port: &Path,
    ) -> Result<(&str, String, Option<u32>), Error> {
        let (mut manifest, options) = (self.from.manifest(port)?, self.from.options(port));
        if let Some(vm) = manifest.vms.iter_mut().find(|vm| *vm.name.get_ref() == self.name) {
            self.images.replace(vm);
        }
        let action = Action::Update { confirm_ms: self.confirm };
        let change = Change { manifest, options, name: &self.name, action };
        Ok((&self.name, change.carry_out(client)?, self.confirm))
    }
}

impl FromArgs {
    fn manifest(&self, port: &Path) -> Result<Manifest, Error> {
        let of_machine = || Origin::beside(port).map(|origin| origin.manifest);
        let path = self.manifest.clone().or_else(of_machine).ok_or(Error::NoManifest)?;
        Manifest::load(&path).map_err(Error::Refused)
    }

    /// Returns how the machine differs from the board of the manifest.
    fn options(&self, port: &Path) -> Options {
        let of_machine = || Origin::beside(port).map(|origin| origin.tree);
        let tree = self.dtb.clone().or_else(of_machine);
        Options { overrides: Overrides { tree, ..Overrides::default() }, ..Options::default() }
    }
}

impl ImageArgs {
    /// Puts what the caller says in place of what the manifest says. Messages about that lead to
    /// the VM.
    fn replace(&self, vm: &mut Vm) {
        let span = vm.name.span();
        // The manifest's paths start from its folder, these from where the caller is.
        let here = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if let Some(kernel) = &self.kernel {
            vm.kernel = Spanned::new(span.clone(), here(kernel));
        }
        if let Some(ramdisk) = &self.ramdisk {
            vm.ramdisk = Some(Spanned::new(span.clone(), here(ramdisk)));
        }
        if let Some(cmdline) = &self.cmdline {
            vm.cmdline = Some(Spanned::new(span, cmdline.clone()));
        }
    }
}

/// What is to become of a VM.
struct Change<'a> {
    manifest: Manifest,
    /// How the machine differs from the board of the manifest.
    options: Options,
    name: &'a str,
    action: Action,
}

impl Change<'_> {
    /// Plans, uploads, and has the machine do it; returns the VM's state then.
    fn carry_out<P: Port>(&self, client: &mut Client<P>) -> Result<String, Error> {
        let (vm, vms) = (self.find().map_err(Error::Refused)?, list(client)?);
        let present = vms.iter().find(|vm| vm.name == self.name);
        match (present, self.action) {
            (Some(_), Action::Create) => return Err(Error::Taken(self.name.to_owned())),
            (None, Action::Update { .. }) => return Err(Error::NotThere(self.name.to_owned())),
            _ => {}
        }
        let bundle = self.plan(vm, present).map_err(Error::Refused)?;
        let board = hello(client)?.get("board").to_owned();
        if board != bundle.plan.board.as_str() {
            return Err(Error::Board { machine: board, manifest: bundle.plan.board.to_string() });
        }
        if self.action == Action::Create {
            print_report(&self.doubts(vm, &vms));
        }
        let bytes = bundle.write().map_err(|error| Message::new(Code::E41, error.to_string()));
        let bytes = bytes.map_err(|message| Error::Refused(message.into()))?;
        let mut progress = Progress::new(bytes.len());
        let uploaded = upload(client, &bytes, &mut |arrived| progress.show(arrived));
        progress.end();
        uploaded?;
        carry_out(client, Request::Change { vm: self.name, action: self.action })?;
        wait_for(client, self.name, self.action, START)
    }

    fn find(&self) -> Result<&Vm, Report> {
        let (name, vms) = (self.name, &self.manifest.vms);
        let known = || vms.iter().map(|vm| vm.name.get_ref().as_str());
        vms.iter().find(|vm| vm.name.get_ref() == name).ok_or_else(|| {
            let text = format!("{} has no VM {}", quote(&self.manifest.source.path), quote(name));
            let write = match nearest(name, known()) {
                Some(near) => near.to_owned(),
                None => format!("[vm.{name}], and below it what it is made of"),
            };
            Message::new(Code::E23, text).write(write).into()
        })
    }

    /// Plans all VMs and returns the part with this one, which may be there already.
    fn plan(&self, vm: &Vm, present: Option<&JsonVm>) -> Result<Bundle, Report> {
        let (_, planned) = build::plan_manifest(&self.manifest, &self.options)?;
        print_report(&planned.warnings);
        // A plan has all VMs of its manifest.
        let missing = || Message::new(Code::E41, "the plan has no such VM");
        let bundle = planned.bundle.single(self.name).ok_or_else(missing)?;
        if let Some((new, old)) = bundle.plan.vms.first().zip(present) {
            let changed = self.changed(vm, new, old);
            if !changed.is_ok() {
                return Err(changed);
            }
        }
        Ok(bundle)
    }

    /// Names what an update does not change.
    fn changed(&self, vm: &Vm, new: &VmPlan, old: &JsonVm) -> Report {
        let (name, mut report) = (quote(self.name), Report::default());
        if new.memory.size() != old.memory_bytes {
            let has = bytes(old.memory_bytes);
            let text = format!("{name} has {has} of memory, and an update does not change that");
            let mark = self.manifest.mark(vm.memory.span(), "");
            let message = Message::new(Code::E24, text).at(mark);
            report.push(message.write(format!("memory = \"{has}\"")));
        }
        if u64::try_from(new.vcpus.len()) != Ok(old.vcpus) {
            let has = old.vcpus;
            let text = format!("{name} has {has} vCPUs, and an update does not change that");
            let mark = self.manifest.mark(vm.cpus.span(), "");
            report.push(Message::new(Code::E24, text).at(mark));
        }
        report
    }

    /// Says what of a new VM is otherwise than somebody may expect.
    fn doubts(&self, vm: &Vm, vms: &[JsonVm]) -> Report {
        let mut report = Report::default();
        let here = || self.manifest.mark(vm.name.span(), "");
        if !vm.policies.after.is_empty() {
            let text = format!(
                "{} starts when it is created, and depends on no other VM, whatever its `after` \
                 says",
                quote(self.name)
            );
            report.push(Message::new(Code::W08, text).at(here()));
        }
        let is_planned = |name: &str| self.manifest.vms.iter().any(|vm| vm.name.get_ref() == name);
        for other in vms.iter().filter(|other| !is_planned(&other.name)) {
            let text = format!(
                "the machine has a VM {}, which this manifest does not: only the machine sees \
                 whether they clash",
                quote(&other.name)
            );
            report.push(Message::new(Code::W09, text).at(here()));
        }
        report
    }
}

/// What a person sees of an upload.
struct Progress {
    total: u64,
    begun: Instant,
    shown: Option<Instant>,
    has_viewer: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        let has_viewer = io::stderr().is_terminal();
        Self { total, begun: Instant::now(), shown: None, has_viewer }
    }

    fn show(&mut self, arrived: usize) {
        let is_due = self.shown.is_none_or(|shown| shown.elapsed() >= SHOW_EVERY);
        if self.has_viewer && is_due {
            self.shown = Some(Instant::now());
            let arrived = u64::try_from(arrived).unwrap_or(self.total);
            // Nothing depends on it.
            let _ =
                write!(io::stderr(), "\r{}\x1b[K", line(arrived, self.total, self.begun.elapsed()));
        }
    }

    fn end(self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Writes how far an upload is.
fn line(arrived: u64, total: u64, after: Duration) -> String {
    let percent = arrived.saturating_mul(100).checked_div(total).unwrap_or(100);
    let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let rate = arrived.saturating_mul(1000).checked_div(ms).unwrap_or(0);
    format!("{percent:3} % of {}, {}/s", bytes(total), bytes(rate))
}
